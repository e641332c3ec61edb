//! Decides on headroom without stress mode: where sessions at work fill the slots, and where master has switched its own
//! stress mode on. With a trip, headroom comes in the same edit and goes with it.

use std::time::{Duration, Instant};

use super::told::Told;
use super::{BUDGET, Dwell, RETRY_AFTER, State, lasted};
use crate::detector::{Verdict, VerdictKind};

/// A short burst that drains by itself is no news.
const ALERT_AFTER: Duration = Duration::from_secs(10);

/// The same refusal is told again after this long.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(600);

/// What is to be done to maxproc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomPlan {
    Nothing,
    /// Raise it and reload.
    Raise {
        maxproc: u32,
        reasons: Vec<String>,
    },
    /// Take it back and reload.
    Lower {
        reasons: Vec<String>,
    },
    /// More slots are what would help, and there are none to be had: for people to know.
    Alert {
        reasons: Vec<String>,
    },
}

/// What stands between a verdict and more slots.
#[derive(Debug, Clone)]
pub struct RoomGate {
    /// The state of the service: one that is stressed has had its headroom with the trip.
    pub state: State,
    /// Master's own stress mode is on, so that there will be no trip.
    pub native_stress: bool,
    /// How far maxproc may go; else why nowhere.
    pub room: Result<u32, String>,
    /// The entry may be touched; else why not.
    pub actionable: Result<(), String>,
    /// A reload can be paid for; else why not.
    pub budget: Result<(), String>,
}

/// The headroom of one service.
#[derive(Debug)]
pub struct Headroom {
    dwell: Dwell,
    raised: bool,
    wanted_since: Option<Instant>,
    calm_since: Option<Instant>,
    retry_at: Option<Instant>,
    told: Told,
}

impl Headroom {
    pub fn new(dwell: Dwell) -> Self {
        Self {
            dwell,
            raised: false,
            wanted_since: None,
            calm_since: None,
            retry_at: None,
            told: Told::default(),
        }
    }

    /// maxproc is ours for now.
    pub fn raised(&self) -> bool {
        self.raised
    }

    /// Takes the next verdict in. `clear_dwell` is how long the calm has to last this time.
    pub fn step(
        &mut self,
        now: Instant,
        verdict: &Verdict,
        clear_dwell: Duration,
        gate: &RoomGate,
    ) -> RoomPlan {
        let keep = |since: Option<Instant>, holds: bool| holds.then(|| since.unwrap_or(now));
        let wanted = match verdict.kind {
            VerdictKind::Surge => true,
            VerdictKind::Hogged => gate.native_stress,
            _ => false,
        };
        self.wanted_since = keep(self.wanted_since, wanted);
        self.calm_since = keep(self.calm_since, verdict.kind == VerdictKind::Calm);
        if gate.state != State::Normal || self.retry_at.is_some_and(|at| now < at) {
            return RoomPlan::Nothing;
        }
        if self.raised && lasted(self.calm_since, now, clear_dwell) {
            let mut reasons = vec![format!("calm for {} s", clear_dwell.as_secs())];
            reasons.extend(verdict.reasons.iter().cloned());
            return RoomPlan::Lower { reasons };
        }
        let dwell = verdict
            .full_in
            .map_or(self.dwell.trip, |left| self.dwell.trip.min(left / 4));
        if !self.raised && lasted(self.wanted_since, now, dwell) {
            return self.wants(now, verdict, gate);
        }
        RoomPlan::Nothing
    }

    fn wants(&mut self, now: Instant, verdict: &Verdict, gate: &RoomGate) -> RoomPlan {
        let mut reasons = verdict.reasons.clone();
        let (key, why) = match (&gate.room, &gate.actionable, &gate.budget) {
            (Ok(maxproc), Ok(()), Ok(())) => {
                return RoomPlan::Raise {
                    maxproc: *maxproc,
                    reasons,
                };
            }
            (Err(why), _, _) | (Ok(_), Err(why), _) => (why.as_str(), why),
            (Ok(_), Ok(()), Err(why)) => (BUDGET, why),
        };
        if let Some(then) = now.checked_sub(TELL_AGAIN_AFTER) {
            self.told.forget_until(then);
        }
        // Of clients that sit on the slots the trip's own refusal tells.
        let surge = verdict.kind == VerdictKind::Surge && lasted(self.wanted_since, now, ALERT_AFTER);
        if !surge || !self.told.is_news(key, now) {
            return RoomPlan::Nothing;
        }
        reasons.insert(
            0,
            format!("more slots would help, and there are none to be had: {why}"),
        );
        RoomPlan::Alert { reasons }
    }

    /// maxproc was raised, or is the administrator's again; or that failed, and is tried again a while later.
    pub fn settle(&mut self, now: Instant, raised: bool, done: bool) {
        if done {
            self.raised = raised;
            self.retry_at = None;
        } else {
            self.retry_at = Some(now + RETRY_AFTER);
        }
    }

    /// It is not in force any more: rolled back, or somebody else has set maxproc.
    pub fn lost(&mut self, now: Instant) {
        self.raised = false;
        self.retry_at = Some(now + RETRY_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DWELL: Dwell = Dwell {
        trip: Duration::from_secs(1),
        clear: Duration::from_secs(30),
    };

    fn verdict(kind: VerdictKind) -> Verdict {
        Verdict {
            kind,
            pressure: Some(0.9),
            full_in: None,
            reasons: vec![kind.to_string()],
        }
    }

    fn gate() -> RoomGate {
        RoomGate {
            state: State::Normal,
            native_stress: false,
            room: Ok(80),
            actionable: Ok(()),
            budget: Ok(()),
        }
    }

    /// What comes of one kind of verdict for so many seconds, every half a second; the last plan that is one.
    fn hold(
        headroom: &mut Headroom,
        now: &mut Instant,
        kind: VerdictKind,
        gate: &RoomGate,
        seconds: u64,
    ) -> Vec<RoomPlan> {
        let mut plans = Vec::new();
        for _ in 0..seconds * 2 {
            let plan = headroom.step(*now, &verdict(kind), DWELL.clear, gate);
            match &plan {
                RoomPlan::Raise { .. } => headroom.settle(*now, true, true),
                RoomPlan::Lower { .. } => headroom.settle(*now, false, true),
                RoomPlan::Alert { .. } | RoomPlan::Nothing => {}
            }
            if plan != RoomPlan::Nothing {
                plans.push(plan);
            }
            *now += Duration::from_millis(500);
        }
        plans
    }

    #[test]
    fn a_surge_raises_once_and_calm_lowers_once() {
        let (mut headroom, mut now) = (Headroom::new(DWELL), crate::clock::now().mono);
        let plans = hold(&mut headroom, &mut now, VerdictKind::Surge, &gate(), 60);
        assert!(
            matches!(plans[..], [RoomPlan::Raise { maxproc: 80, .. }]),
            "{plans:?}"
        );
        assert_eq!(hold(&mut headroom, &mut now, VerdictKind::Busy, &gate(), 60), []);
        let plans = hold(&mut headroom, &mut now, VerdictKind::Calm, &gate(), 60);
        assert!(matches!(plans[..], [RoomPlan::Lower { .. }]), "{plans:?}");
    }

    #[test]
    fn hogged_slots_are_the_trips_business_unless_master_is_stressed_already() {
        let (mut headroom, mut now) = (Headroom::new(DWELL), crate::clock::now().mono);
        assert_eq!(
            hold(&mut headroom, &mut now, VerdictKind::Hogged, &gate(), 10),
            []
        );
        let native = RoomGate {
            native_stress: true,
            ..gate()
        };
        let plans = hold(&mut headroom, &mut now, VerdictKind::Hogged, &native, 10);
        assert!(matches!(plans[..], [RoomPlan::Raise { .. }]), "{plans:?}");
    }

    #[test]
    fn what_a_trip_brought_goes_with_its_clear() {
        let (mut headroom, mut now) = (Headroom::new(DWELL), crate::clock::now().mono);
        headroom.settle(now, true, true);
        let stressed = RoomGate {
            state: State::Recovering,
            ..gate()
        };
        assert_eq!(
            hold(&mut headroom, &mut now, VerdictKind::Calm, &stressed, 60),
            []
        );
    }

    #[test]
    fn a_surge_without_room_is_an_alert_and_not_a_flood_of_them() {
        let (mut headroom, mut now) = (Headroom::new(DWELL), crate::clock::now().mono);
        let off = RoomGate {
            room: Err("off".into()),
            ..gate()
        };
        let mut alerts = Vec::new();
        for _ in 0..10 {
            alerts.extend(hold(&mut headroom, &mut now, VerdictKind::Surge, &off, 20));
            alerts.extend(hold(&mut headroom, &mut now, VerdictKind::Busy, &off, 1));
        }
        assert!(matches!(alerts[..], [RoomPlan::Alert { .. }]), "{alerts:?}");
        let native = RoomGate {
            native_stress: true,
            ..off
        };
        now += TELL_AGAIN_AFTER;
        assert_eq!(
            hold(&mut headroom, &mut now, VerdictKind::Hogged, &native, 20),
            []
        );
        assert_eq!(
            hold(&mut headroom, &mut now, VerdictKind::Surge, &native, 20).len(),
            1
        );
    }

    /// A budget that counts seconds down, and room that comes and goes.
    #[test]
    fn an_alert_is_told_once_however_its_reason_flickers() {
        let (mut headroom, mut now) = (Headroom::new(DWELL), crate::clock::now().mono);
        let mut alerts = Vec::new();
        for second in 0..120 {
            let gate = RoomGate {
                room: match second % 2 {
                    0 => Ok(80),
                    _ => Err("no memory".into()),
                },
                budget: Err(format!("{} s to go", 120 - second)),
                ..gate()
            };
            alerts.extend(hold(&mut headroom, &mut now, VerdictKind::Surge, &gate, 1));
        }
        assert_eq!(alerts.len(), 2, "{alerts:?}");
    }

    #[test]
    fn what_failed_waits() {
        let (mut headroom, now) = (Headroom::new(DWELL), crate::clock::now().mono);
        headroom.settle(now, true, false);
        assert!(!headroom.raised());
        let mut soon = now;
        assert_eq!(
            hold(&mut headroom, &mut soon, VerdictKind::Surge, &gate(), 20),
            []
        );
        assert_eq!(
            hold(&mut headroom, &mut soon, VerdictKind::Surge, &gate(), 20).len(),
            1
        );
    }
}
