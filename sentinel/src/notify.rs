//! Tells the service manager how the daemon is doing, by the protocol of sd_notify(3): ready, alive, stopping.
//!
//! Without a service manager (no NOTIFY_SOCKET) nothing is said. Nothing here can fail the daemon: what could not be
//! said is logged once, and the manager draws its own conclusions.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// A sign of life goes out this many times within the time that the manager waits for one, so that one that is lost or
/// late does no harm.
const SIGNS: u32 = 4;

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Supervisor {
    /// Between two signs of life; None when the manager does not wait for any.
    every: Option<Duration>,
    last: Option<Instant>,
    mute: bool,
}

impl Supervisor {
    /// As the environment has it: NOTIFY_SOCKET, and WATCHDOG_USEC for WatchdogSec= of the unit.
    pub fn of_this_process() -> Self {
        Self::new(sd_notify::watchdog_enabled())
    }

    fn new(watchdog: Option<Duration>) -> Self {
        Self {
            every: watchdog.map(|watchdog| watchdog / SIGNS),
            last: None,
            mute: false,
        }
    }

    /// A tick has come to its end. The first one makes the daemon ready: it has looked, so that `status` has an answer.
    pub fn ticked(&mut self, now: Instant) {
        if self.last.is_none() {
            self.last = Some(now);
            self.tell(&[NotifyState::Ready]);
        } else if self.is_due(now) {
            self.last = Some(now);
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// The daemon gives back what is in force, which may take as long as TimeoutStopSec= of the unit allows.
    pub fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Watchdog]);
    }

    fn is_due(&self, now: Instant) -> bool {
        let since = self.last.map(|last| now.saturating_duration_since(last));
        matches!((self.every, since), (Some(every), Some(since)) if since >= every)
    }

    fn tell(&mut self, state: &[NotifyState<'_>]) {
        match sd_notify::notify(state) {
            Ok(()) => self.mute = false,
            Err(error) if !self.mute => {
                self.mute = true;
                tracing::warn!(%error, "cannot tell the service manager (NOTIFY_SOCKET) how the daemon is doing");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn signs_of_life_come_well_within_the_watchdogs_time() {
        let start = clock::now().mono;
        let mut supervisor = Supervisor::new(Some(Duration::from_secs(40)));
        supervisor.ticked(start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!supervisor.is_due(at(9)));
        assert!(supervisor.is_due(at(10)));
        supervisor.ticked(at(11));
        assert!(!supervisor.is_due(at(20)), "counted from the last one");
        assert!(supervisor.is_due(at(21)));
    }

    #[test]
    fn without_a_watchdog_there_is_nothing_to_feed() {
        let start = clock::now().mono;
        let mut supervisor = Supervisor::new(None);
        supervisor.ticked(start);
        assert!(!supervisor.is_due(start + Duration::from_secs(3600)));
    }
}
