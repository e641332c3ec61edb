//! Whose move it is on each accepted connection.
//!
//! The one bit that tells silent clients from a slow server of our own is "has anything been sent yet", the next is
//! who spoke last. Both are the kernel's (TCP_INFO), so nobody has to look into the sessions.

use std::time::Duration;

use super::Holders;
use crate::sock_diag::Connection;

/// Bytes a second: the default of smtpd_min_data_rate (Postfix 3.7, src/global/mail_params.h).
const DAWDLING_RATE: u64 = 500;

/// One request may always take this long: a person types a command in less.
const DAWDLES_AFTER: Duration = Duration::from_secs(6);

/// Who has said nothing for longer may be done and wait for our reply: then it is the server's turn.
const STILL_SPEAKING: Duration = Duration::from_secs(5);

/// Whose move it is on an accepted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Not a byte sent to the client yet.
    Ungreeted,
    /// The client owes the next move, and has been silent for this long.
    ClientSilent(Duration),
    /// The client is at its turn, and gives so little, and has for this long, that no honest line is that slow: a byte
    /// now and then to look alive.
    ClientDawdles(Duration),
    /// The client spoke last, this long ago.
    ServerOwes(Duration),
    /// Greeted a moment ago, and the client has not said its first word yet.
    JustGreeted,
    /// Something moved just now, or the client has closed and smtpd is about to see it.
    Active,
}

/// Whose move it is on `connection`, which has been accepted.
pub fn turn(connection: &Connection) -> Turn {
    let quiet = connection.since_sent.min(connection.since_received);
    // since_sent and since_received start at the handshake: before the first byte sent they say nothing of the
    // session, a client that waited 12 s in the accept queue would look silent for 12 s.
    if connection.bytes_sent == 0 {
        Turn::Ungreeted
    } else if let Some(spoke_for) = dawdled(connection) {
        Turn::ClientDawdles(spoke_for)
    } else if connection.client_closed {
        Turn::Active
    } else if quiet < silent_after(connection) {
        if connection.bytes_received == 0 {
            Turn::JustGreeted
        } else {
            Turn::Active
        }
    } else if connection.since_received < connection.since_sent {
        Turn::ServerOwes(quiet)
    } else {
        Turn::ClientSilent(quiet)
    }
}

/// For how long the client has been over one request, if all that it has ever said would not fill that time at
/// [`DAWDLING_RATE`].
fn dawdled(connection: &Connection) -> Option<Duration> {
    let spoke_for = connection.since_sent.checked_sub(connection.since_received)?;
    let allowed = Duration::from_secs(connection.bytes_received / DAWDLING_RATE);
    let speaking = connection.bytes_received > 0 && connection.since_received < STILL_SPEAKING;
    (speaking && spoke_for > DAWDLES_AFTER + allowed).then_some(spoke_for)
}

/// From when on this connection counts as silent.
fn silent_after(connection: &Connection) -> Duration {
    if connection.bytes_received == 0 {
        // A sender says EHLO within a round trip of the greeting; there is no command of ours to think about yet.
        Holders::MUTE_AFTER
            .max(4 * connection.rtt)
            .min(Holders::SILENT_AFTER)
    } else {
        Holders::SILENT_AFTER
    }
}

/// Counts the accepted ones of `connections` by whose move it is.
pub fn holders<'a>(connections: impl IntoIterator<Item = &'a Connection>) -> Holders {
    let mut holders = Holders::default();
    for connection in connections.into_iter().filter(|connection| connection.accepted()) {
        match turn(connection) {
            Turn::Ungreeted => holders.ungreeted += 1,
            Turn::ClientSilent(_) | Turn::ClientDawdles(_) => holders.silent += 1,
            Turn::ServerOwes(_) => holders.server_owes += 1,
            Turn::JustGreeted => holders.just_greeted += 1,
            Turn::Active => holders.active += 1,
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(bytes_sent: u64, sent_ms: u64, received_ms: u64) -> Connection {
        Connection {
            local: "192.0.2.1:25".parse().unwrap(),
            remote: "198.51.100.7:40000".parse().unwrap(),
            cookie: [0; 8],
            interface: 0,
            inode: 1,
            client_closed: false,
            bytes_sent,
            bytes_received: 20,
            rtt: Duration::from_millis(30),
            since_sent: Duration::from_millis(sent_ms),
            since_received: Duration::from_millis(received_ms),
        }
    }

    #[test]
    fn a_long_wait_in_the_queue_is_not_silence() {
        assert_eq!(turn(&accepted(0, 12_000, 12_000)), Turn::Ungreeted);
        assert_eq!(turn(&accepted(31, 20, 12_000)), Turn::Active);
    }

    #[test]
    fn who_spoke_last_decides_whose_move_it_is() {
        assert_eq!(
            turn(&accepted(31, 5_000, 9_000)),
            Turn::ClientSilent(Duration::from_secs(5))
        );
        assert_eq!(
            turn(&accepted(31, 9_000, 5_000)),
            Turn::ServerOwes(Duration::from_secs(5))
        );
    }

    #[test]
    fn who_never_said_a_word_is_silent_sooner_but_not_before_his_round_trips() {
        let mute = Connection {
            bytes_received: 0,
            ..accepted(31, 700, 900)
        };
        assert_eq!(turn(&mute), Turn::ClientSilent(Duration::from_millis(700)));
        assert_eq!(
            turn(&Connection {
                rtt: Duration::from_millis(200),
                ..mute
            }),
            Turn::JustGreeted
        );
        assert_eq!(
            turn(&Connection {
                client_closed: true,
                rtt: Duration::from_millis(200),
                ..mute
            }),
            Turn::Active
        );
        assert_eq!(turn(&accepted(31, 700, 900)), Turn::Active);
    }

    #[test]
    fn a_byte_now_and_then_is_dawdling_a_message_on_a_slow_line_is_not() {
        let drip = |received, spoke_ms: u64| Connection {
            bytes_received: received,
            ..accepted(200, spoke_ms + 2_000, 2_000)
        };
        assert_eq!(
            turn(&drip(120, 8_000)),
            Turn::ClientDawdles(Duration::from_secs(8))
        );
        assert_eq!(turn(&drip(120, 5_000)), Turn::ServerOwes(Duration::from_secs(2)));
        assert_eq!(
            turn(&drip(160_000, 8_000)),
            Turn::ServerOwes(Duration::from_secs(2))
        );
    }

    #[test]
    fn queued_connections_hold_no_slot() {
        let queued = Connection {
            inode: 0,
            ..accepted(0, 100, 100)
        };
        let all = [queued, accepted(31, 5_000, 9_000), accepted(0, 1, 1)];
        assert_eq!(
            holders(&all),
            Holders {
                ungreeted: 1,
                silent: 1,
                ..Holders::default()
            }
        );
    }
}
