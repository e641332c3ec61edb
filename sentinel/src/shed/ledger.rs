//! What each connection has been doing, look by look, as far as its byte counts tell.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::{GRACE, Limits, Offender, Reason, Situation, patience};
use crate::signals::connections::{Turn, turn};
use crate::sock_diag::Connection;

/// Reply to NOOP and RSET: `250 2.0.0 Ok` (Postfix src/smtpd/smtpd.c, noop_cmd() and rset_cmd()). MAIL and RCPT get one
/// of the same length, to a command that is longer than [`JUNK_COMMAND_MAX`].
const OK_REPLY: u64 = 14;
const JUNK_COMMAND_MIN: u64 = 6;
const JUNK_COMMAND_MAX: u64 = 13;

/// What one record adds to its contents: none without TLS, TLS 1.3, TLS 1.2 with an AEAD cipher (RFC 8446 section 5.2,
/// RFC 5288 section 3).
const RECORD_OVERHEAD: [u64; 3] = [0, 22, 29];

/// For so long a client that was closed for not saying a word is remembered.
const REMEMBERED: Duration = Duration::from_secs(600);

/// At most so many are; an attack from more addresses meets the usual patience.
const MUTES: usize = 10_000;

/// Of one service.
#[derive(Debug)]
pub struct Ledger {
    /// Sessions that only the limits of stress mode have ended are counted over this long.
    counted_over: Duration,
    tracks: HashMap<[u8; 8], Track>,
    /// When the last look was taken in.
    seen_at: Option<Instant>,
    /// When a session ended that only stress mode's limits have ended, by smtpd or by us.
    ended: VecDeque<Instant>,
    /// Whom we closed for not saying a word, and when last.
    mutes: HashMap<IpAddr, Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Track {
    bytes_sent: u64,
    bytes_received: u64,
    /// What the client had sent when the server last spoke.
    received_before_turn: u64,
    junk: u32,
    /// When it was first seen greeted.
    greeted_at: Option<Instant>,
    /// All that it has ever said are commands that do nothing.
    only_junk: bool,
    /// For how long it had been silent, on its own turn, when last seen.
    silent: Duration,
}

impl Ledger {
    /// Counts over one and a half times `dwell`, the calm that has to last before stress mode is let go: an attack that
    /// has stopped is out of the count by then, one that pulses is not.
    pub fn new(dwell: Duration) -> Self {
        Self {
            counted_over: dwell * 3 / 2,
            tracks: HashMap::new(),
            seen_at: None,
            ended: VecDeque::new(),
            mutes: HashMap::new(),
        }
    }

    /// Takes the accepted connections of this look in; forgets those that are gone, and counts those that only stress
    /// mode can have ended.
    pub fn see(&mut self, now: Instant, connections: &[Connection], limits: &Limits) {
        let accepted = connections.iter().filter(|connection| connection.accepted());
        let tracks = accepted.map(|connection| {
            let track = match self.tracks.get(&connection.cookie) {
                Some(track) => track.follow(now, connection),
                None => Track::begin(now, connection),
            };
            (connection.cookie, track)
        });
        let tracks: HashMap<_, _> = tracks.collect();
        // Looks come every tenth of a second while it matters: who was that close to the limit ran into it.
        let close = limits.timeout.mul_f64(0.9);
        for (cookie, track) in &self.tracks {
            if !tracks.contains_key(cookie)
                && track.silent >= close
                && track.silent < limits.calm_timeout.mul_f64(0.9)
            {
                self.ended.push_back(now);
            }
        }
        while self
            .ended
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) > self.counted_over)
        {
            self.ended.pop_front();
        }
        self.tracks = tracks;
        self.seen_at = Some(now);
        self.mutes
            .retain(|_, at| now.saturating_duration_since(*at) < REMEMBERED);
    }

    /// Those of `connections` that have broken a limit, oldest offence first. Takes no look in: see [`Ledger::see`].
    pub fn offenders(
        &self,
        connections: &[Connection],
        limits: &Limits,
        floor: Duration,
        situation: Situation,
    ) -> Vec<Offender> {
        let mute_limit = patience(limits, floor, situation);
        let once_more = patience(limits, again(floor), situation);
        let offence = |connection: &Connection| {
            let track = self.tracks.get(&connection.cookie)?;
            let mute_limit = if self.mutes.contains_key(&whose(connection)) {
                once_more
            } else {
                mute_limit
            };
            let (reason, since) = track.offence(self.seen_at?, connection, limits, mute_limit)?;
            Some(Offender {
                connection: *connection,
                reason,
                since,
            })
        };
        let mut offenders: Vec<_> = connections
            .iter()
            .filter(|one| one.accepted())
            .filter_map(offence)
            .collect();
        offenders.sort_by_key(|offender| std::cmp::Reverse(offender.since));
        offenders
    }

    /// We closed it: it ended by the limits of stress mode, though it will not be seen to.
    pub fn closed(&mut self, now: Instant, offender: &Offender) {
        self.tracks.remove(&offender.connection.cookie);
        self.ended.push_back(now);
        if offender.reason == Reason::Mute && self.mutes.len() < MUTES {
            self.mutes.insert(whose(&offender.connection), now);
        }
    }

    /// Sessions a second that only stress mode's limits have ended of late.
    pub fn ended_per_s(&self) -> f64 {
        self.ended.len() as f64 / self.counted_over.as_secs_f64()
    }
}

impl Track {
    fn begin(now: Instant, connection: &Connection) -> Self {
        Self {
            bytes_sent: connection.bytes_sent,
            bytes_received: connection.bytes_received,
            received_before_turn: connection.bytes_received,
            junk: 0,
            greeted_at: (connection.bytes_sent > 0).then_some(now),
            only_junk: connection.bytes_received == 0,
            silent: silence(connection),
        }
    }

    fn follow(self, now: Instant, connection: &Connection) -> Self {
        let sent = connection.bytes_sent.saturating_sub(self.bytes_sent);
        let received = connection.bytes_received.saturating_sub(self.bytes_received);
        let new_turn = sent > 0;
        let junk = junk_commands(received, sent);
        Self {
            bytes_sent: connection.bytes_sent,
            bytes_received: connection.bytes_received,
            received_before_turn: if new_turn {
                connection.bytes_received
            } else {
                self.received_before_turn
            },
            junk: self.junk.saturating_add(junk),
            greeted_at: self.greeted_at.or((connection.bytes_sent > 0).then_some(now)),
            only_junk: self.only_junk && (received == 0 || junk > 0),
            silent: silence(connection),
        }
    }

    fn offence(
        &self,
        now: Instant,
        connection: &Connection,
        limits: &Limits,
        mute_limit: Duration,
    ) -> Option<(Reason, Duration)> {
        if self.junk >= limits.junk_commands.saturating_add(2) && connection.bytes_sent > 0 {
            return Some((Reason::Junk, connection.since_sent));
        }
        if let Some(idled) = self.idled(now, connection)
            && idled >= mute_limit + GRACE
        {
            return Some((Reason::Mute, idled));
        }
        match turn(connection) {
            Turn::Ungreeted | Turn::JustGreeted => None,
            Turn::ClientSilent(quiet) if connection.bytes_received == 0 => {
                (quiet >= mute_limit + GRACE).then_some((Reason::Mute, quiet))
            }
            Turn::ClientSilent(quiet) => (quiet >= limits.timeout + GRACE).then_some((Reason::Silent, quiet)),
            // The client has spoken last: an offence only if it was still speaking when its time was up already.
            Turn::ClientDawdles(_) | Turn::ServerOwes(_) | Turn::Active => {
                self.slow_request(connection, limits)
            }
        }
    }

    /// For how long a client has been greeted that has had nothing to say but commands that do nothing, each of which has
    /// its reply: who says NOOP to look alive has not said a word.
    fn idled(&self, now: Instant, connection: &Connection) -> Option<Duration> {
        let answered = connection.since_sent <= connection.since_received;
        let idle = self.only_junk && self.junk > 0 && answered;
        let since = self.greeted_at.filter(|_| idle)?;
        Some(now.saturating_duration_since(since))
    }

    fn slow_request(&self, connection: &Connection, limits: &Limits) -> Option<(Reason, Duration)> {
        let rate = limits.min_data_rate.filter(|rate| *rate > 0)?;
        let spoke_for = connection.since_sent.checked_sub(connection.since_received)?;
        let said = connection
            .bytes_received
            .saturating_sub(self.received_before_turn);
        let allowed = limits.timeout + GRACE + Duration::from_secs_f64(said as f64 / f64::from(rate));
        (connection.bytes_sent > 0 && said > 0 && spoke_for > allowed)
            .then_some((Reason::SlowRequest, spoke_for))
    }
}

/// The least patience with a client that comes back and says nothing again: half of it, and what `[act] min_patience` may
/// be at least.
fn again(floor: Duration) -> Duration {
    floor.min((floor / 2).max(Duration::from_secs(1)))
}

/// Who a client is when it comes back: its address, or its network of 64 bits, in which it can choose any.
fn whose(connection: &Connection) -> IpAddr {
    match connection.remote.ip().to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

fn silence(connection: &Connection) -> Duration {
    match turn(connection) {
        Turn::ClientSilent(quiet) => quiet,
        _ => Duration::ZERO,
    }
}

/// How many commands that do nothing passed between two looks, if nothing else did; 0 when in doubt.
fn junk_commands(received: u64, sent: u64) -> u32 {
    let all_junk = |overhead: u64| {
        let count = sent / (OK_REPLY + overhead);
        let exact = count > 0 && sent.is_multiple_of(OK_REPLY + overhead);
        let range = count * (JUNK_COMMAND_MIN + overhead)..=count * (JUNK_COMMAND_MAX + overhead);
        (exact && range.contains(&received)).then_some(count)
    };
    RECORD_OVERHEAD
        .into_iter()
        .find_map(all_junk)
        .map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
