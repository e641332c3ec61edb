use proptest::prelude::*;

use super::*;

const DWELL: Dwell = Dwell {
    trip: Duration::from_secs(1),
    clear: Duration::from_secs(30),
};
const TICK: Duration = Duration::from_millis(500);

fn verdict(kind: VerdictKind) -> Verdict {
    Verdict {
        kind,
        pressure: Some(0.5),
        full_in: None,
        reasons: vec![kind.to_string()],
    }
}

fn open() -> Gate {
    Gate {
        actionable: Ok(()),
        native_stress: false,
        budget: Ok(()),
    }
}

/// A controller with an obedient actuator, driven tick by tick.
struct Drive {
    now: Instant,
    controller: Controller,
    budget: Budget,
    acts: Vec<(Instant, Act)>,
    refusals: Vec<String>,
}

impl Drive {
    fn new(budget: Budget) -> Self {
        let now = crate::clock::now().mono;
        Self {
            now,
            controller: Controller::new(DWELL),
            budget,
            acts: Vec::new(),
            refusals: Vec::new(),
        }
    }

    fn free() -> Self {
        Self::new(Budget::new(Duration::ZERO, 1000))
    }

    fn tick(&mut self, kind: VerdictKind, gate: Gate) {
        let gate = Gate {
            budget: self.budget.may_trip(self.now),
            ..gate
        };
        let step = self.controller.step(self.now, &verdict(kind), &gate);
        self.refusals.extend(step.refusal);
        let act = match step.plan {
            Plan::Nothing => None,
            Plan::Trip { .. } => Some(Act::Trip),
            Plan::Clear { .. } => Some(Act::Clear),
        };
        if let Some(act) = act {
            match act {
                Act::Trip => self.budget.trip(self.now),
                Act::Clear => self.budget.clear(self.now),
            }
            self.controller.settle(self.now, act, true, Vec::new());
            self.acts.push((self.now, act));
        }
        self.now += TICK;
    }

    fn hold(&mut self, kind: VerdictKind, seconds: u64) {
        for _ in 0..seconds * 2 {
            self.tick(kind, open());
        }
    }

    fn trips(&self) -> usize {
        self.acts.iter().filter(|(_, act)| *act == Act::Trip).count()
    }
}

#[test]
fn an_episode_from_trip_to_clear() {
    let mut drive = Drive::free();
    drive.hold(VerdictKind::Calm, 5);
    drive.hold(VerdictKind::Hogged, 3);
    assert_eq!(drive.controller.state(), State::Stressed);
    drive.hold(VerdictKind::Calm, 20);
    assert_eq!(drive.controller.state(), State::Recovering);
    drive.hold(VerdictKind::Busy, 1);
    assert_eq!(drive.controller.state(), State::Stressed);
    drive.hold(VerdictKind::Calm, 32);
    assert_eq!(drive.controller.state(), State::Normal);
    assert_eq!(drive.acts.len(), 2);
}

#[test]
fn a_steep_ramp_does_not_wait_for_the_whole_dwell() {
    let start = crate::clock::now().mono;
    let ticks_until_trip = |full_in| {
        let mut controller = Controller::new(DWELL);
        let steep = Verdict {
            full_in,
            ..verdict(VerdictKind::Hogged)
        };
        (0..20u32).find(|tick| controller.step(start + TICK * *tick, &steep, &open()).plan != Plan::Nothing)
    };
    assert_eq!(ticks_until_trip(Some(Duration::from_millis(400))), Some(1));
    assert_eq!(ticks_until_trip(Some(Duration::ZERO)), Some(0));
    assert_eq!(ticks_until_trip(Some(Duration::from_secs(60))), Some(2));
    assert_eq!(ticks_until_trip(None), Some(2));
}

#[test]
fn a_short_burst_does_not_trip() {
    let mut drive = Drive::free();
    for _ in 0..10 {
        drive.tick(VerdictKind::Hogged, open());
        drive.tick(VerdictKind::Busy, open());
    }
    assert!(drive.acts.is_empty());
}

#[test]
fn each_relapse_waits_longer_before_it_lets_go() {
    let mut drive = Drive::free();
    let mut waits = Vec::new();
    for _ in 0..5 {
        drive.hold(VerdictKind::Hogged, 3);
        waits.push(drive.controller.clear_dwell().as_secs());
        drive.hold(VerdictKind::Calm, 300);
        assert_eq!(drive.controller.state(), State::Normal);
    }
    assert_eq!(waits, [30, 60, 120, 240, 240]);
}

#[test]
fn a_refusal_is_told_once_for_each_reason() {
    let mut drive = Drive::free();
    for _ in 0..20 {
        drive.tick(
            VerdictKind::Hogged,
            Gate {
                native_stress: true,
                ..open()
            },
        );
    }
    assert_eq!(drive.refusals.len(), 1);
    for _ in 0..20 {
        drive.tick(
            VerdictKind::Hogged,
            Gate {
                actionable: Err("read-only".into()),
                ..open()
            },
        );
    }
    assert_eq!(drive.refusals.len(), 2);
    assert!(drive.acts.is_empty());
}

fn native() -> Gate {
    Gate {
        native_stress: true,
        ..open()
    }
}

/// In an attack the verdict flickers, and what keeps us from acting may too.
#[test]
fn a_refusal_is_told_once_an_episode_however_the_verdict_flickers() {
    let mut drive = Drive::free();
    let read_only = || Gate {
        actionable: Err("read-only".into()),
        ..open()
    };
    for _ in 0..100 {
        for gate in [native, read_only] {
            for kind in [VerdictKind::Hogged, VerdictKind::Surge, VerdictKind::Calm] {
                for _ in 0..4 {
                    drive.tick(kind, gate());
                }
            }
        }
    }
    assert_eq!(drive.refusals.len(), 2, "{:?}", drive.refusals);
    drive.hold(VerdictKind::Calm, 31);
    for _ in 0..4 {
        drive.tick(VerdictKind::Hogged, native());
    }
    assert_eq!(drive.refusals.len(), 3, "the next episode is news");
    assert!(drive.acts.is_empty());
}

/// Somebody with a reason of his own for each second does not fill the history.
#[test]
fn the_refusals_of_an_episode_are_bounded() {
    let mut drive = Drive::free();
    for second in 0..600 {
        for _ in 0..2 {
            let gate = Gate {
                actionable: Err(format!("reason {second}")),
                ..open()
            };
            drive.tick(VerdictKind::Hogged, gate);
        }
    }
    assert_eq!(drive.refusals.len(), Told::KINDS);
}

/// What stood in the way of a trip that came has been out of the way since: the next time is news.
#[test]
fn a_trip_makes_the_next_refusal_news() {
    let mut drive = Drive::free();
    let told = |drive: &mut Drive| {
        for _ in 0..6 {
            drive.tick(VerdictKind::Hogged, native());
        }
        drive.refusals.len()
    };
    assert_eq!(told(&mut drive), 1);
    drive.hold(VerdictKind::Hogged, 3);
    assert_eq!(drive.trips(), 1);
    drive.hold(VerdictKind::Unknown, 303);
    assert_eq!(drive.controller.state(), State::Normal);
    assert_eq!(told(&mut drive), 2);
}

#[test]
fn a_failed_act_is_not_tried_again_at_once() {
    let mut controller = Controller::new(DWELL);
    let start = crate::clock::now().mono;
    let mut plans = 0;
    for tick in 0..40 {
        let now = start + TICK * tick;
        if controller.step(now, &verdict(VerdictKind::Hogged), &open()).plan != Plan::Nothing {
            plans += 1;
            assert_eq!(controller.settle(now, Act::Trip, false, Vec::new()), None);
        }
    }
    assert_eq!(plans, 1);
    assert_eq!(controller.state(), State::Normal);
}

#[test]
fn failures_wait_longer_each_time_until_something_has_changed() {
    let mut controller = Controller::new(DWELL);
    let start = crate::clock::now().mono;
    let mut tries = Vec::new();
    for tick in 0..2 * 1000u32 {
        let now = start + TICK * tick;
        if controller.step(now, &verdict(VerdictKind::Hogged), &open()).plan != Plan::Nothing {
            tries.push((now - start).as_secs());
            controller.settle(now, Act::Trip, false, Vec::new());
        }
    }
    assert_eq!(tries, [1, 31, 91, 211, 451, 931]);
    controller.try_again();
    let now = start + TICK * 2000;
    assert!(matches!(
        controller.step(now, &verdict(VerdictKind::Hogged), &open()).plan,
        Plan::Trip { .. }
    ));
}

/// What somebody else has taken out is not put back, however long the attack lasts; the next attack is another matter.
#[test]
fn a_decision_of_others_stands_until_it_has_been_calm() {
    let mut drive = Drive::free();
    drive.hold(VerdictKind::Hogged, 3);
    let change = drive.controller.yielded("theirs".into()).unwrap();
    assert_eq!((change.from, change.to), (State::Stressed, State::Normal));
    drive.hold(VerdictKind::Hogged, 7200);
    drive.hold(VerdictKind::Calm, 29);
    drive.hold(VerdictKind::Hogged, 600);
    assert_eq!(drive.trips(), 1);
    assert!(
        drive
            .refusals
            .iter()
            .all(|refusal| refusal.contains("taken our lines out")),
        "{:?}",
        drive.refusals
    );
    drive.hold(VerdictKind::Calm, 31);
    drive.hold(VerdictKind::Hogged, 3);
    assert_eq!(drive.trips(), 2);
}

/// A daemon that stood still knows nothing of the time in between: a verdict before it and one after it are not a dwell.
#[test]
fn a_stall_is_no_dwell() {
    for stall in [4, 60, 3600] {
        let mut drive = Drive::free();
        drive.hold(VerdictKind::Hogged, 1);
        drive.now += Duration::from_secs(stall);
        drive.tick(VerdictKind::Hogged, open());
        assert_eq!(drive.trips(), 0, "a stall of {stall} s");
        drive.hold(VerdictKind::Hogged, 2);
        assert_eq!(drive.trips(), 1);
        drive.hold(VerdictKind::Calm, 20);
        drive.now += Duration::from_secs(stall);
        drive.tick(VerdictKind::Calm, open());
        assert_eq!(drive.acts.len(), 1, "a stall of {stall} s");
        drive.hold(VerdictKind::Calm, 31);
        assert_eq!(drive.acts.len(), 2);
    }
}

/// As long as the monotonic clock stands still nothing lasts, and nothing is done.
#[test]
fn a_clock_that_is_stuck_does_nothing() {
    let mut controller = Controller::new(DWELL);
    let now = crate::clock::now().mono;
    for _ in 0..1000 {
        assert_eq!(
            controller.step(now, &verdict(VerdictKind::Hogged), &open()).plan,
            Plan::Nothing
        );
    }
    controller.settle(now, Act::Trip, true, Vec::new());
    for _ in 0..1000 {
        assert_eq!(
            controller.step(now, &verdict(VerdictKind::Calm), &open()).plan,
            Plan::Nothing
        );
    }
}

#[test]
fn blindness_holds_on_for_a_while_and_then_lets_go() {
    let mut drive = Drive::free();
    drive.hold(VerdictKind::Hogged, 3);
    drive.hold(VerdictKind::Unknown, 299);
    assert_eq!(drive.controller.state(), State::Stressed);
    drive.hold(VerdictKind::Unknown, 3);
    assert_eq!(drive.controller.state(), State::Normal);
}

fn kinds() -> impl Strategy<Value = VerdictKind> {
    prop_oneof![
        4 => Just(VerdictKind::Hogged),
        4 => Just(VerdictKind::Calm),
        1 => Just(VerdictKind::Busy),
        1 => Just(VerdictKind::Surge),
        1 => Just(VerdictKind::SlowGreeting),
        1 => Just(VerdictKind::BehindFilter),
        1 => Just(VerdictKind::Unknown),
    ]
}

/// Runs of the same verdict, as an attacker would choose their lengths.
fn script() -> impl Strategy<Value = Vec<(VerdictKind, u64)>> {
    prop::collection::vec((kinds(), 1u64..400), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_script_reloads_more_often_than_the_budget(script in script(), per_hour in 2u32..20) {
        let interval = Duration::from_secs(60);
        let mut drive = Drive::new(Budget::new(interval, per_hour));
        for (kind, seconds) in script {
            drive.hold(kind, seconds);
        }
        for (index, (at, _)) in drive.acts.iter().enumerate() {
            let within = drive.acts[index..].iter().filter(|(then, _)| *then - *at < Duration::from_secs(3600)).count();
            prop_assert!(within <= per_hour as usize, "{within} reloads in an hour");
        }
        let trips: Vec<_> = drive.acts.iter().filter(|(_, act)| *act == Act::Trip).map(|(at, _)| *at).collect();
        prop_assert!(trips.windows(2).all(|pair| pair[1] - pair[0] >= interval));
    }

    #[test]
    fn trips_and_clears_take_turns_and_never_faster_than_their_dwell(script in script()) {
        let mut drive = Drive::free();
        let mut run: Option<(VerdictKind, Instant)> = None;
        for (kind, seconds) in script {
            for _ in 0..seconds * 2 {
                if run.is_none_or(|(last, _)| last != kind) {
                    run = Some((kind, drive.now));
                }
                let (before, now) = (drive.acts.len(), drive.now);
                drive.tick(kind, open());
                if drive.acts.len() > before {
                    let lasted = run.map(|(_, since)| now - since).unwrap_or_default();
                    match drive.acts[before].1 {
                        Act::Trip => prop_assert!(kind == VerdictKind::Hogged && lasted >= DWELL.trip),
                        Act::Clear if kind == VerdictKind::Calm => prop_assert!(lasted >= DWELL.clear),
                        Act::Clear => prop_assert!(kind == VerdictKind::Unknown && lasted >= BLIND_LETS_GO),
                    }
                }
            }
        }
        prop_assert!(drive.acts.windows(2).all(|pair| pair[0].1 != pair[1].1));
        prop_assert!(drive.acts.first().is_none_or(|(_, act)| *act == Act::Trip));
    }

    #[test]
    fn only_hogged_ever_trips(script in script()) {
        let mut drive = Drive::free();
        for (kind, seconds) in script {
            let kind = if kind == VerdictKind::Hogged { VerdictKind::Surge } else { kind };
            drive.hold(kind, seconds);
        }
        prop_assert_eq!(drive.trips(), 0);
    }

    #[test]
    fn the_same_script_gives_the_same_acts(script in script()) {
        let acts = |script: &[(VerdictKind, u64)]| {
            let mut drive = Drive::free();
            let start = drive.now;
            for (kind, seconds) in script {
                drive.hold(*kind, *seconds);
            }
            drive.acts.iter().map(|(at, act)| (*at - start, *act)).collect::<Vec<_>>()
        };
        prop_assert_eq!(acts(&script), acts(&script));
    }
}
