//! Whose move it is on each accepted connection.
//!
//! The one bit that tells silent clients from a slow server of our own is "has anything been sent yet", the next is
//! who spoke last. Both are the kernel's (TCP_INFO), so nobody has to look into the sessions.

use std::time::Duration;

use super::Holders;
use super::sock_diag::Connection;

/// Whose move it is on an accepted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Not a byte sent to the client yet.
    Ungreeted,
    /// The client owes the next move, and has been silent for this long.
    ClientSilent(Duration),
    /// The client spoke last, this long ago.
    ServerOwes(Duration),
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
    } else if connection.client_closed || quiet < silent_after(connection) {
        Turn::Active
    } else if connection.since_received < connection.since_sent {
        Turn::ServerOwes(quiet)
    } else {
        Turn::ClientSilent(quiet)
    }
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
    for connection in connections.into_iter().filter(|connection| connection.accepted) {
        match turn(connection) {
            Turn::Ungreeted => holders.ungreeted += 1,
            Turn::ClientSilent(_) => holders.silent += 1,
            Turn::ServerOwes(_) => holders.server_owes += 1,
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
            accepted: true,
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
            Turn::Active
        );
        assert_eq!(turn(&accepted(31, 700, 900)), Turn::Active);
    }

    #[test]
    fn queued_connections_hold_no_slot() {
        let queued = Connection {
            accepted: false,
            ..accepted(0, 100, 100)
        };
        let all = [queued, accepted(31, 5_000, 9_000), accepted(0, 1, 1)];
        assert_eq!(
            holders(&all),
            Holders {
                ungreeted: 1,
                silent: 1,
                server_owes: 0,
                active: 0
            }
        );
    }
}
