//! Tells whether a reload took: pure, fed with what the tick sees anyway.

use std::time::{Duration, Instant};

use crate::postfix::ServiceId;
use crate::postfix::endpoint::same_service;
use crate::postfix::processes::Smtpd;

/// A master that cannot read its files logs so, sleeps 1 s and exits (Postfix src/util/msg_output.c, msg_fatal):
/// before this is over its life proves nothing. As long again for a machine that is out of breath.
pub const LIVES_FOR: Duration = Duration::from_secs(2);

/// A new smtpd is only started when a connection comes and none is idle; on a quiet machine none comes.
pub const NEW_WORKER_WITHIN: Duration = Duration::from_secs(30);

/// /proc counts start times in these (USER_HZ, 100 on every architecture that we are built for).
const TICKS_PER_SECOND: u64 = 100;

/// How far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    Pending,
    /// It took, or nothing speaks against it; in words.
    Confirmed(String),
    /// It did not; in words. A trip is to be rolled back.
    Failed(String),
}

/// What tells that it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// New workers carry stress=yes.
    Stress,
    /// More slots: no worker shows them, and a master that lives has read them.
    Room,
    /// New workers carry no stress.
    Nothing,
}

/// The verification of one trip or clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    pub(super) expected: Expected,
    pub(super) service: ServiceId,
    /// When the master was signalled.
    pub(super) signalled: Instant,
    /// The same on the clock of [`Smtpd::start_time`], read before the signal went out.
    pub(super) signalled_ticks: u64,
}

impl Verification {
    /// When the master was signalled.
    pub fn signalled(&self) -> Instant {
        self.signalled
    }

    /// `workers` are those of the instance's own master; those of other services do not matter.
    pub fn step(&self, now: Instant, master_alive: bool, workers: &[Smtpd]) -> Progress {
        if !master_alive {
            return Progress::Failed("the master exited after it was told to reload".into());
        }
        let elapsed = now.saturating_duration_since(self.signalled);
        if elapsed < LIVES_FOR {
            return Progress::Pending;
        }
        let fresh = || {
            workers.iter().filter(|worker| {
                same_service(&worker.service, &self.service) && worker.start_time > self.signalled_ticks
            })
        };
        match self.expected {
            Expected::Room => Progress::Confirmed("the master lives, and has read the new maxproc".into()),
            Expected::Stress if fresh().any(|worker| worker.effective_stress) => {
                Progress::Confirmed("the master lives, and a new smtpd carries stress=yes".into())
            }
            Expected::Stress if fresh().any(|worker| worker.start_time > self.surely_after()) => {
                Progress::Failed("a new smtpd was started without stress=yes".into())
            }
            Expected::Nothing if fresh().any(|worker| !worker.effective_stress) => {
                Progress::Confirmed("the master lives, and a new smtpd carries no stress".into())
            }
            // Nothing of ours can be in it: the file is clean, and the master has read it. Its own stress mode lasts
            // at least 1000 s and survives a reload (master_avail.c).
            Expected::Nothing if fresh().any(|worker| worker.start_time > self.surely_after()) => {
                Progress::Confirmed("the master lives; its own stress mode is still on".into())
            }
            _ if elapsed >= NEW_WORKER_WITHIN => {
                Progress::Confirmed("the master lives; no new smtpd was started yet".into())
            }
            _ => Progress::Pending,
        }
    }

    /// Whether the master has lived long enough after the signal that it may be sent another. The next act need not wait
    /// for a new smtpd as well: it changes the file again, and is verified itself.
    pub fn outlived(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.signalled) >= LIVES_FOR
    }

    /// A process started after this was started by a master that had read the new file. In between the signal may
    /// have been on its way while the master was still forking by the old one.
    fn surely_after(&self) -> u64 {
        self.signalled_ticks + LIVES_FOR.as_secs() * TICKS_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ServiceId {
        ServiceId {
            name: name.into(),
            kind: "inet".into(),
        }
    }

    fn worker(name: &str, start_time: u64, effective_stress: bool) -> Smtpd {
        let service = id(name);
        Smtpd {
            pid: 1,
            start_time,
            service,
            native_stress: None,
            effective_stress,
            stress_arguments: 1,
        }
    }

    fn after(expected: Expected, seconds: f64, alive: bool, workers: &[Smtpd]) -> Progress {
        let start = crate::clock::now().mono;
        let verification = Verification {
            expected,
            service: id("smtp"),
            signalled: start,
            signalled_ticks: 10_000,
        };
        verification.step(start + Duration::from_secs_f64(seconds), alive, workers)
    }

    #[test]
    fn the_next_act_waits_as_long_as_a_dying_master_may_take() {
        let start = crate::clock::now().mono;
        let verification = Verification {
            expected: Expected::Stress,
            service: id("smtp"),
            signalled: start,
            signalled_ticks: 10_000,
        };
        assert!(!verification.outlived(start + LIVES_FOR - Duration::from_millis(1)));
        assert!(verification.outlived(start + LIVES_FOR));
    }

    #[test]
    fn a_dead_master_is_a_failure_at_any_time() {
        for seconds in [0.0, 1.0, 60.0] {
            for act in [Expected::Stress, Expected::Nothing] {
                let workers = [worker("smtp", 20_000, act == Expected::Stress)];
                assert!(matches!(
                    after(act, seconds, false, &workers),
                    Progress::Failed(_)
                ));
            }
        }
    }

    #[test]
    fn nothing_is_sure_while_a_dying_master_may_still_sleep() {
        assert_eq!(
            after(Expected::Stress, 1.9, true, &[worker("smtp", 10_001, true)]),
            Progress::Pending
        );
        assert!(matches!(
            after(Expected::Stress, 2.0, true, &[worker("smtp", 10_001, true)]),
            Progress::Confirmed(_)
        ));
    }

    #[test]
    fn a_new_worker_without_stress_fails_a_trip() {
        assert!(matches!(
            after(Expected::Stress, 3.0, true, &[worker("smtp", 10_201, false)]),
            Progress::Failed(_)
        ));
    }

    #[test]
    fn what_was_forked_while_the_signal_was_on_its_way_proves_nothing() {
        assert_eq!(
            after(Expected::Stress, 3.0, true, &[worker("smtp", 10_200, false)]),
            Progress::Pending
        );
        assert_eq!(
            after(Expected::Nothing, 3.0, true, &[worker("smtp", 10_200, true)]),
            Progress::Pending
        );
    }

    #[test]
    fn old_workers_and_other_services_do_not_matter() {
        let others = [
            worker("smtp", 10_000, false),
            worker("submission", 10_900, false),
            worker("smtp", 1, true),
        ];
        assert_eq!(after(Expected::Stress, 10.0, true, &others), Progress::Pending);
        assert_eq!(
            after(Expected::Stress, 30.0, true, &others),
            Progress::Confirmed("the master lives; no new smtpd was started yet".into())
        );
    }

    /// The command line has `smtp`, the plan said `25`.
    #[test]
    fn names_of_one_service_are_one() {
        assert!(matches!(
            after(Expected::Stress, 3.0, true, &[worker("25", 10_201, true)]),
            Progress::Confirmed(_)
        ));
    }

    #[test]
    fn masters_own_stress_does_not_fail_a_clear() {
        assert!(matches!(
            after(Expected::Nothing, 5.0, true, &[worker("smtp", 10_300, true)]),
            Progress::Confirmed(_)
        ));
        assert!(matches!(
            after(Expected::Nothing, 5.0, true, &[worker("smtp", 10_100, false)]),
            Progress::Confirmed(_)
        ));
    }
}
