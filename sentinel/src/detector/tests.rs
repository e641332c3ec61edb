use proptest::prelude::*;

use super::*;
use crate::signals::{AcceptQueue, GreetingLatency, Holders};

/// A sample with nothing wrong with it: 20 slots, two busy.
pub(crate) fn calm(at: Instant) -> Sample {
    Sample {
        at,
        limit: Reading::exact(ProcessLimit::Of(20), at),
        own_limit: None,
        busy: Reading::exact(2, at),
        processes: Reading::exact(5, at),
        holders: Reading::exact(
            Holders {
                active: 2,
                ..Holders::default()
            },
            at,
        ),
        queue: Reading::exact(
            AcceptQueue {
                depth: 0,
                limit: 100,
                high_water: 1,
            },
            at,
        ),
        early_disconnects_per_s: Reading::exact(0.0, at),
        greeting: Reading::exact(
            GreetingLatency {
                p50_ms: 1.0,
                p99_ms: 4.0,
                count: 100,
            },
            at,
        ),
        native_stress: Reading::exact(false, at),
        held_without_stress: Reading::exact(0.0, at),
    }
}

/// The same service with `holders` on its slots.
pub(crate) fn held(at: Instant, holders: Holders) -> Sample {
    Sample {
        busy: Reading::exact(holders.total(), at),
        holders: Reading::exact(holders, at),
        ..calm(at)
    }
}

fn instant() -> Instant {
    crate::clock::now().mono
}

fn thresholds() -> Thresholds {
    Thresholds::new(0.7, 0.4).unwrap()
}

fn judge(sample: &Sample) -> Verdict {
    Detector::new(thresholds()).step(sample)
}

fn kind(sample: &Sample) -> VerdictKind {
    judge(sample).kind
}

#[test]
fn silent_clients_on_most_slots_are_hogging() {
    let at = instant();
    let verdict = judge(&held(
        at,
        Holders {
            silent: 14,
            active: 2,
            ..Holders::default()
        },
    ));
    assert_eq!(verdict.kind, VerdictKind::Hogged);
    assert_eq!(verdict.pressure, Some(0.8));
    assert!(verdict.reasons[0].contains("16 of 20"), "{:?}", verdict.reasons);
}

#[test]
fn the_time_until_the_last_slot_follows_the_rate_of_filling() {
    let start = instant();
    let mut detector = Detector::new(thresholds());
    let mut step = |ms: u64, busy: u32| {
        let at = start + Duration::from_millis(ms);
        detector
            .step(&held(
                at,
                Holders {
                    silent: busy,
                    ..Holders::default()
                },
            ))
            .full_in
    };
    assert_eq!(step(0, 2), None);
    assert_eq!(step(1000, 6), Some(Duration::from_millis(3500)));
    assert_eq!(step(2000, 6), Some(Duration::from_secs(7)));
    assert_eq!(step(6000, 6), None);
    assert_eq!(step(7000, 20), Some(Duration::ZERO));
}

#[test]
fn the_other_three_conditions_are_not_hogging() {
    let at = instant();
    let none = Holders::default();
    assert_eq!(
        kind(&held(
            at,
            Holders {
                ungreeted: 19,
                active: 1,
                ..none
            }
        )),
        VerdictKind::SlowGreeting
    );
    assert_eq!(
        kind(&held(
            at,
            Holders {
                server_owes: 18,
                active: 2,
                ..none
            }
        )),
        VerdictKind::BehindFilter
    );
    assert_eq!(
        kind(&held(at, Holders { active: 20, ..none })),
        VerdictKind::Surge
    );
}

#[test]
fn who_was_just_greeted_counts_for_neither_side() {
    let at = instant();
    let burst = |silent, just_greeted, active| {
        kind(&held(
            at,
            Holders {
                silent,
                just_greeted,
                active,
                ..Holders::default()
            },
        ))
    };
    assert_eq!(
        burst(7, 9, 2),
        VerdictKind::Hogged,
        "half of the fourteen that make a trip are told to be silent"
    );
    assert_eq!(
        burst(6, 10, 2),
        VerdictKind::Busy,
        "too few of them to say that of the rest"
    );
    assert_eq!(burst(3, 14, 1), VerdictKind::Busy, "too few are told");
    assert_eq!(burst(0, 10, 7), VerdictKind::Surge);
    assert_eq!(burst(0, 20, 0), VerdictKind::Busy);
}

#[test]
fn a_port_scan_is_calm_it_holds_no_slot() {
    let at = instant();
    let scan = Sample {
        early_disconnects_per_s: Reading::exact(200.0, at),
        ..calm(at)
    };
    assert_eq!(kind(&scan), VerdictKind::Calm);
}

#[test]
fn a_standing_queue_is_not_calm_a_moment_of_waiting_is() {
    let start = instant();
    let waiting = |ms: u64, depth: u32| {
        let at = start + Duration::from_millis(ms);
        Sample {
            queue: Reading::exact(
                AcceptQueue {
                    depth,
                    limit: 100,
                    high_water: depth,
                },
                at,
            ),
            ..calm(at)
        }
    };
    let mut detector = Detector::new(thresholds());
    let kinds = [(0, 3), (500, 3), (600, 0), (700, 3), (1700, 3)]
        .map(|(ms, depth)| detector.step(&waiting(ms, depth)).kind);
    use VerdictKind::{Busy, Calm};
    assert_eq!(kinds, [Calm, Calm, Calm, Calm, Busy]);
}

#[test]
fn it_is_not_calm_while_the_attack_only_waits_for_stress_mode_to_end() {
    let at = instant();
    let kept_down = |held| Sample {
        held_without_stress: Reading::exact(held, at),
        ..calm(at)
    };
    // Two of the twenty are busy.
    assert_eq!(kind(&kept_down(17.9)), VerdictKind::Calm);
    let verdict = judge(&kept_down(18.0));
    assert_eq!(verdict.kind, VerdictKind::Busy);
    assert!(
        verdict
            .reasons
            .iter()
            .any(|reason| reason.contains("18 slots more")),
        "{:?}",
        verdict.reasons
    );
}

#[test]
fn with_headroom_it_is_calm_only_when_the_own_slots_would_do() {
    let at = instant();
    let raised = |active| Sample {
        limit: Reading::exact(ProcessLimit::Of(80), at),
        own_limit: Some(20),
        ..held(
            at,
            Holders {
                active,
                ..Holders::default()
            },
        )
    };
    assert_eq!(kind(&raised(16)), VerdictKind::Busy);
    let mut detector = Detector::new(thresholds());
    detector.step(&calm(at));
    assert_eq!(
        detector.step(&raised(16)).kind,
        VerdictKind::Busy,
        "however short"
    );
    assert_eq!(kind(&raised(7)), VerdictKind::Calm);
    let kept_down = Sample {
        held_without_stress: Reading::exact(18.0, at),
        ..raised(2)
    };
    assert_eq!(kind(&kept_down), VerdictKind::Busy);
}

#[test]
fn one_busy_moment_does_not_end_the_calm_and_one_idle_moment_does_not_start_it() {
    let start = instant();
    let busy = |seconds: u64, active: u32| {
        held(
            start + Duration::from_secs(seconds),
            Holders {
                active,
                ..Holders::default()
            },
        )
    };
    let mut detector = Detector::new(thresholds());
    detector.step(&busy(0, 2));
    assert_eq!(detector.step(&busy(1, 10)).kind, VerdictKind::Calm);
    for second in 2..30 {
        detector.step(&busy(second, 12));
    }
    assert_eq!(detector.step(&busy(30, 0)).kind, VerdictKind::Busy);
    assert_eq!(detector.step(&busy(45, 0)).kind, VerdictKind::Calm);
}

#[test]
fn what_is_not_known_or_stale_decides_nothing() {
    let at = instant();
    let hogged = held(
        at,
        Holders {
            silent: 20,
            ..Holders::default()
        },
    );
    let blind = Sample {
        holders: Reading::unavailable("no sock_diag"),
        ..hogged.clone()
    };
    assert_eq!(kind(&blind), VerdictKind::Busy);
    let later = Sample {
        at: at + STALE_AFTER + Duration::from_millis(1),
        ..hogged
    };
    assert_eq!(kind(&later), VerdictKind::Unknown);
    let unlimited = Sample {
        limit: Reading::exact(ProcessLimit::Unlimited, at),
        ..calm(at)
    };
    assert_eq!(kind(&unlimited), VerdictKind::Unknown);
}

/// A signal in its worst state; the other ones stay calm.
fn one_bad_signal(at: Instant) -> impl Strategy<Value = Sample> {
    prop_oneof![
        (14u32..1000).prop_map(move |busy| Sample {
            busy: Reading::exact(busy, at),
            ..calm(at)
        }),
        (0u32..1000).prop_map(move |silent| Sample {
            holders: Reading::exact(
                Holders {
                    silent,
                    ..Holders::default()
                },
                at
            ),
            ..calm(at)
        }),
        (1u32..100).prop_map(move |depth| Sample {
            queue: Reading::exact(
                AcceptQueue {
                    depth,
                    limit: 100,
                    high_water: depth
                },
                at
            ),
            ..calm(at)
        }),
        (1.0f64..1000.0).prop_map(move |rate| Sample {
            early_disconnects_per_s: Reading::exact(rate, at),
            ..calm(at)
        }),
        (0.0f64..60_000.0).prop_map(move |p99_ms| Sample {
            greeting: Reading::exact(
                GreetingLatency {
                    p50_ms: p99_ms,
                    p99_ms,
                    count: 9
                },
                at
            ),
            ..calm(at)
        }),
        (5u32..1000).prop_map(move |count| Sample {
            processes: Reading::exact(count, at),
            ..calm(at)
        }),
    ]
}

fn any_holders() -> impl Strategy<Value = Holders> {
    (0u32..30, 0u32..30, 0u32..30, 0u32..30, 0u32..30).prop_map(
        |(silent, active, ungreeted, server_owes, just_greeted)| Holders {
            ungreeted,
            silent,
            server_owes,
            just_greeted,
            active,
        },
    )
}

proptest! {
    #[test]
    fn one_signal_alone_never_trips(sample in one_bad_signal(instant())) {
        prop_assert_ne!(kind(&sample), VerdictKind::Hogged);
    }

    #[test]
    fn the_verdict_depends_on_the_sample_alone(holders in any_holders()) {
        let sample = held(instant(), holders);
        prop_assert_eq!(judge(&sample), judge(&sample));
    }

    #[test]
    fn hogged_needs_pressure_and_silence(holders in any_holders()) {
        let verdict = judge(&held(instant(), holders));
        if verdict.kind == VerdictKind::Hogged {
            prop_assert!(holders.total() >= 14);
            prop_assert!(holders.silent * 2 >= holders.total() - holders.just_greeted);
            prop_assert!(holders.silent >= 7);
        }
        if verdict.kind == VerdictKind::Calm {
            prop_assert!(holders.total() < 8);
        }
    }
}
