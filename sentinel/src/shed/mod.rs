//! Which connections stress mode would end if they had begun under it.
//!
//! `-o stress=yes` reaches new sessions only; those that hang when it comes keep their 300 s. While a service is
//! stressed, by us or by master itself, its older connections are held to the same limits here, and the worst
//! offenders are named, oldest first. Pure: closing them is the actuator's.
//!
//! Never named: a client that has not been greeted, one that waits for a reply of ours, and one of the networks that
//! the service trusts.

mod ledger;

use std::fmt;
use std::time::Duration;

pub use ledger::Ledger;
use serde::{Deserialize, Serialize};

use crate::sock_diag::Connection;

/// Above what smtpd itself would wait: a session that began under stress is ended by smtpd, with a 421, and not by us.
const GRACE: Duration = Duration::from_millis(500);

/// From this share of free slots on, patience with mute clients is the whole timeout: it is where the default trip
/// threshold of 0.7 would not have been reached.
const AT_EASE: f64 = 0.3;

/// The limits of stress mode, as they are in force for the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// smtpd_timeout.
    pub timeout: Duration,
    /// smtpd_min_data_rate, bytes a second, where smtpd_per_request_deadline is on: a request must be complete within
    /// the timeout, plus a second for each so many bytes (Postfix 3.7, RELEASE_NOTES). `None`: no deadline.
    pub min_data_rate: Option<u32>,
    /// smtpd_junk_command_limit.
    pub junk_commands: u32,
    /// smtpd_timeout without stress: for how long a hanging session keeps its slot then.
    pub calm_timeout: Duration,
}

/// How the service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    pub slots: u32,
    pub busy: u32,
    /// Clients in the accept queue.
    pub waiting: u32,
}

/// Which limit a connection has broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Silent for longer than the stress timeout while it owes the next move.
    Silent,
    /// Has not said a word since the greeting, or only such as do nothing, while slots are running out.
    Mute,
    /// Takes longer over one request than the deadline and the data rate of stress mode allow.
    SlowRequest,
    /// More commands that do nothing than stress mode allows.
    Junk,
}

impl Reason {
    pub const ALL: [Self; 4] = [Self::Silent, Self::Mute, Self::SlowRequest, Self::Junk];
}

impl fmt::Display for Reason {
    /// The same word as in JSON and in labels.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Silent => "silent",
            Self::Mute => "mute",
            Self::SlowRequest => "slow_request",
            Self::Junk => "junk",
        })
    }
}

/// A connection that has broken a limit, and by how much of its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offender {
    pub connection: Connection,
    pub reason: Reason,
    /// For how long it has been at it.
    pub since: Duration,
}

/// How long a client that has not said a word since the greeting may go on (half of `floor` where it was closed for that
/// before, see [`Ledger`]): the stress timeout while slots are free,
/// down to `floor` as they run out, and at once down to it while others wait in the accept queue.
pub fn patience(limits: &Limits, floor: Duration, situation: Situation) -> Duration {
    let floor = floor.min(limits.timeout);
    if situation.waiting > 0 {
        return floor;
    }
    let free = f64::from(situation.slots.saturating_sub(situation.busy)) / f64::from(situation.slots.max(1));
    floor + (limits.timeout - floor).mul_f64((free / AT_EASE).min(1.0))
}
