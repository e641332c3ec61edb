//! The benchmark's harness on a real Postfix, in miniature. Its figures are for people; here they are only counted.

use std::time::Duration;

use sentinel_lab::attackers::{Arrival, Attack};
use sentinel_lab::bench::profiles::{self, Assault, Begin, Profile};
use sentinel_lab::bench::report::{Machine, Outcome, Recovery};
use sentinel_lab::bench::scenarios::{self, Scenario};
use sentinel_lab::bench::{Phases, Store, side_by_side};

const PHASES: Phases = Phases {
    calm: Duration::from_secs(2),
    window: Duration::from_secs(8),
    tail: Duration::from_secs(1),
    patience: Duration::from_secs(3),
    letting_go: None,
};

fn scenario(name: &str) -> Scenario {
    let mut all = scenarios::ALL.into_iter();
    all.find(|scenario| scenario.name == name).expect("a scenario")
}

fn profile(name: &str) -> Profile {
    let mut all = profiles::all().into_iter();
    all.find(|profile| profile.name == name).expect("a profile")
}

/// More silent clients than slots, at once: nothing is delivered any more.
fn outage() -> Profile {
    Profile {
        maxproc: 3,
        assaults: vec![Assault {
            begin: Begin::Attack(Duration::ZERO),
            attack: Attack::silent(Arrival::Evenly {
                count: 12,
                within: Duration::from_millis(200),
            }),
            pulse: None,
        }],
        ..profile("flood")
    }
}

#[test]
fn an_outage_is_measured_as_one_and_stored() {
    let runs = side_by_side(&outage(), &[scenario("builtin")], &PHASES, 1).unwrap();
    let [run] = &runs[..] else {
        panic!("one run: {runs:?}")
    };
    assert!(run.calm.tried > 0, "{run:?}");
    assert!(run.legitimate.tried > 20, "{run:?}");
    assert!(run.legitimate.lost() * 2 > run.legitimate.tried, "{run:?}");
    assert_eq!(run.recovery, Recovery::NotWithinRun, "{run:?}");
    assert!(run.queue_max >= 5, "{run:?}");
    assert_eq!((run.pass_queue_max, &run.daemon), (None, &None), "{run:?}");
    assert!(
        run.attackers.connections == 12 && run.attackers.greeted >= 1,
        "{run:?}"
    );
    assert!(run.seconds.iter().any(|second| second.accepted >= 3), "{run:?}");

    let outcome = Outcome {
        profile: "flood".to_owned(),
        about: "an outage".to_owned(),
        maxproc: 3,
        machine: Machine::this(),
        seed: 1,
        jobs: 1,
        window_s: PHASES.window.as_secs_f64(),
        patience_s: PHASES.patience.as_secs_f64(),
        runs,
        not_run: Vec::new(),
    };
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("bench")).unwrap();
    store.keep(&outcome).unwrap();
    assert_eq!(store.outcomes(), [outcome]);
}

#[test]
fn the_sentinel_and_postscreen_are_measured_side_by_side() {
    let both = [scenario("sentinel"), scenario("postscreen")];
    let phases = Phases {
        patience: Duration::from_secs(30),
        ..PHASES
    };
    let runs = side_by_side(&profile("quiet"), &both, &phases, 1).unwrap();
    let [sentinel, postscreen] = &runs[..] else {
        panic!("two runs: {runs:?}")
    };
    assert!(
        sentinel.daemon.is_some() && postscreen.daemon.is_none(),
        "{runs:?}"
    );
    assert_eq!(sentinel.legitimate.lost(), 0, "{sentinel:?}");
    assert!(postscreen.pass_queue_max.is_some(), "{postscreen:?}");
    // The same seed: the same arrivals, but for some at either end of the measured time.
    let (ours, theirs) = (sentinel.legitimate.tried, postscreen.legitimate.tried);
    assert!(ours > 20 && ours.abs_diff(theirs) <= 5, "{ours} and {theirs}");
    // It is postscreen who greets: not before its six seconds are over.
    let median = postscreen.legitimate.greeting_p50_ms.expect("it greets");
    assert!(median >= 5_000.0, "{median}");
}

#[test]
fn a_scenario_tells_what_it_cannot_do_here() {
    assert_eq!(scenario("sentinel").obstacle().unwrap(), None);
}
