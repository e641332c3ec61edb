//! The lines that the project promises, held against a run. They are figures for a machine that has little else to do, which
//! is why no test asserts them; `bench --expect` does.

use super::report::{LettingGo, Outcome, Recovery, Run};

/// A line, and whether it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub line: String,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Holds,
    /// With the figure that was measured.
    Missed(String),
    /// Its scenario did not run, or the run was too short for it.
    NotRun,
}

/// One promise about a run of a scenario.
#[derive(Debug, Clone, Copy)]
enum Promise {
    /// At least so much of the mail is delivered, of 1.
    Delivered(f64),
    P50(f64),
    P99(f64),
    RecoveredS(f64),
    NoOverflow,
    /// No greeting is later than postscreen's own wait before the attack.
    AsPostscreenAlone,
    NothingShed,
    NoTrip,
    /// Once on, stress stays on while the attack lasts.
    OneTrip,
    LetsGoS(f64),
    /// Of these slow senders, no more are lost than to static stress.
    SlowAsStatic(&'static str),
}

/// smtpd's own greeting comes on top of postscreen's wait; this is what flood allows it at the 99th percentile.
const BEHIND_POSTSCREEN_MS: f64 = 250.0;

/// What is promised of a profile, by scenario.
fn promises(profile: &str) -> Vec<(&'static str, Vec<Promise>)> {
    use Promise::*;
    let all = Delivered(1.0);
    let nearly = Delivered(0.999);
    let attack = [OneTrip, LetsGoS(120.0)];
    let with = |more: &[Promise]| [more, &attack].concat();
    match profile {
        "ramp" => vec![
            ("sentinel", with(&[all, P99(200.0)])),
            ("postscreen+sentinel", with(&[all, AsPostscreenAlone])),
        ],
        "flood" => vec![
            ("sentinel", with(&[all, P50(5.0), P99(250.0)])),
            ("headroom", with(&[P99(100.0)])),
            ("postscreen+sentinel", with(&[all, AsPostscreenAlone])),
        ],
        "burst" => vec![
            ("sentinel", with(&[nearly, RecoveredS(6.0), NoOverflow])),
            ("headroom", with(&[P99(1000.0)])),
        ],
        "m100" => vec![("sentinel", with(&[all, P99(100.0)]))],
        "noop" | "drip" => vec![
            ("sentinel", with(&[nearly, P50(5.0), P99(3000.0)])),
            ("headroom", with(&[P99(500.0)])),
        ],
        "swarm" => vec![
            ("sentinel", with(&[Delivered(0.99), P50(9000.0)])),
            ("headroom", with(&[nearly, P50(50.0)])),
        ],
        "pulse" | "crawl" | "pack" => vec![("sentinel", attack.to_vec())],
        "slow" => vec![(
            "sentinel",
            with(&[SlowAsStatic("pause 8 s"), SlowAsStatic("upload")]),
        )],
        "surge" => vec![
            ("sentinel", vec![NothingShed]),
            ("headroom", vec![nearly, NothingShed]),
        ],
        "quiet" | "scan" | "slowdns" => vec![
            ("sentinel", vec![NothingShed, NoTrip]),
            ("postscreen+sentinel", vec![NothingShed, NoTrip]),
        ],
        _ => Vec::new(),
    }
}

/// All lines of a profile.
pub fn findings(outcome: &Outcome) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (scenario, promises) in promises(&outcome.profile) {
        for promise in promises {
            findings.push(Finding {
                line: format!("{} with {scenario}: {}", outcome.profile, promise.text()),
                verdict: outcome
                    .run(scenario)
                    .map_or(Verdict::NotRun, |run| promise.hold(run, outcome)),
            });
        }
    }
    findings
}

impl Promise {
    fn text(self) -> String {
        match self {
            Self::Delivered(share) => format!("at least {:.1} % delivered", share * 100.0),
            Self::P50(most) => format!("greeting p50 at most {most} ms"),
            Self::P99(most) => format!("greeting p99 at most {most} ms"),
            Self::RecoveredS(most) => format!("recovered within {most} s"),
            Self::NoOverflow => "no overflow".to_owned(),
            Self::AsPostscreenAlone => {
                format!("greeting p99 at most that of the calm and {BEHIND_POSTSCREEN_MS} ms")
            }
            Self::NothingShed => "no session shed".to_owned(),
            Self::NoTrip => "no trip".to_owned(),
            Self::OneTrip => "at most one trip".to_owned(),
            Self::LetsGoS(most) => format!("stress off {most} s after the attack"),
            Self::SlowAsStatic(kind) => format!("{kind}: no more lost than with static"),
        }
    }

    fn hold(self, run: &Run, outcome: &Outcome) -> Verdict {
        let figure = |holds: bool, figure: String| {
            if holds {
                Verdict::Holds
            } else {
                Verdict::Missed(figure)
            }
        };
        // A session that was never greeted is later than any figure.
        let latency = |measured: Option<f64>, most: f64| {
            let text = measured.map_or("none".to_owned(), |measured| format!("{measured} ms"));
            figure(measured.is_some_and(|measured| measured <= most), text)
        };
        let legitimate = &run.legitimate;
        let trips = run.daemon.as_ref().map_or(0, |daemon| daemon.trips);
        match self {
            Self::Delivered(share) => figure(
                legitimate.share() >= share,
                format!("{} of {} delivered", legitimate.delivered, legitimate.tried),
            ),
            Self::P50(most) => latency(legitimate.greeting_p50_ms, most),
            Self::P99(most) => latency(legitimate.greeting_p99_ms, most),
            Self::RecoveredS(most) => match run.recovery {
                Recovery::NotSaturated => Verdict::Holds,
                Recovery::AfterS(seconds) => figure(seconds <= most, format!("{seconds} s")),
                Recovery::NotWithinRun => Verdict::Missed("not within the run".to_owned()),
            },
            Self::NoOverflow => figure(run.overflows == 0, run.overflows.to_string()),
            Self::AsPostscreenAlone => match run.calm.greeting_p99_ms {
                Some(calm) => latency(legitimate.greeting_p99_ms, calm + BEHIND_POSTSCREEN_MS),
                None => Verdict::Missed("no greeting in the calm".to_owned()),
            },
            Self::NothingShed => {
                let sheds = run.daemon.as_ref().and_then(|daemon| daemon.sheds).unwrap_or(0);
                figure(sheds == 0, sheds.to_string())
            }
            Self::NoTrip => figure(trips == 0, trips.to_string()),
            Self::OneTrip => figure(trips <= 1, trips.to_string()),
            Self::LetsGoS(most) => match run.daemon.as_ref().map(|daemon| daemon.letting_go) {
                None | Some(LettingGo::NotAwaited) => Verdict::NotRun,
                Some(LettingGo::Nothing) => Verdict::Holds,
                Some(LettingGo::AfterS(seconds)) => figure(seconds <= most, format!("{seconds:.0} s")),
                Some(LettingGo::NotWithinS(seconds)) => Verdict::Missed(format!("not within {seconds:.0} s")),
            },
            Self::SlowAsStatic(kind) => {
                let lost = |run: &Run| {
                    let mut kinds = run.slow.iter();
                    kinds.find(|slow| slow.kind == kind).map(|slow| slow.crowd.lost())
                };
                match (lost(run), outcome.run("static").and_then(lost)) {
                    (Some(ours), Some(statics)) => {
                        figure(ours <= statics, format!("{ours} against {statics}"))
                    }
                    _ => Verdict::NotRun,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::profiles;
    use super::super::report::{Crowd, Daemon, Slow};
    use super::super::table::tests::{outcome, run};
    use super::*;

    fn missed(outcome: &Outcome) -> Vec<String> {
        findings(outcome)
            .into_iter()
            .filter(|finding| matches!(finding.verdict, Verdict::Missed(_)))
            .map(|finding| finding.line)
            .collect()
    }

    #[test]
    fn something_is_promised_of_every_profile() {
        for profile in profiles::all() {
            let promised = promises(profile.name);
            assert!(!promised.is_empty(), "{}", profile.name);
        }
    }

    #[test]
    fn a_figure_above_its_line_misses_it() {
        let mut sentinel = run("sentinel");
        sentinel.legitimate.greeting_p99_ms = Some(200.0);
        assert_eq!(missed(&outcome("ramp", vec![sentinel.clone()])), [""; 0]);
        sentinel.legitimate.greeting_p99_ms = Some(200.1);
        sentinel.legitimate.delivered -= 1;
        assert_eq!(
            missed(&outcome("ramp", vec![sentinel])),
            [
                "ramp with sentinel: at least 100.0 % delivered",
                "ramp with sentinel: greeting p99 at most 200 ms"
            ]
        );
    }

    #[test]
    fn a_session_without_greeting_misses_any_line() {
        let mut sentinel = run("sentinel");
        sentinel.legitimate.greeting_p50_ms = None;
        assert_eq!(
            missed(&outcome("swarm", vec![sentinel])),
            ["swarm with sentinel: greeting p50 at most 9000 ms"]
        );
    }

    #[test]
    fn what_did_not_run_is_not_missed_and_said() {
        let findings = findings(&outcome("flood", vec![run("builtin")]));
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::NotRun));
        assert!(!findings.is_empty());
    }

    #[test]
    fn a_trip_where_there_is_no_attack_is_one_too_many() {
        let mut sentinel = run("sentinel");
        sentinel.daemon = Some(Daemon {
            trips: 1,
            sheds: Some(1),
            letting_go: LettingGo::NotWithinS(180.0),
        });
        let quiet = outcome("quiet", vec![sentinel.clone()]);
        assert_eq!(
            missed(&quiet),
            [
                "quiet with sentinel: no session shed",
                "quiet with sentinel: no trip"
            ]
        );
        let pulse = outcome("pulse", vec![sentinel]);
        assert_eq!(
            missed(&pulse),
            ["pulse with sentinel: stress off 120 s after the attack"]
        );
    }

    #[test]
    fn slow_senders_are_held_against_static_stress_of_the_same_run() {
        let losing = |scenario, lost: usize| {
            let crowd = Crowd {
                tried: 10,
                delivered: 10 - lost,
                ..Crowd::default()
            };
            let kinds = ["pause 8 s", "upload"].map(|kind| Slow {
                kind: kind.to_owned(),
                crowd: crowd.clone(),
            });
            Run {
                slow: kinds.to_vec(),
                ..run(scenario)
            }
        };
        let as_many = outcome("slow", vec![losing("static", 1), losing("sentinel", 1)]);
        assert_eq!(missed(&as_many), [""; 0]);
        let more = outcome("slow", vec![losing("static", 1), losing("sentinel", 2)]);
        assert_eq!(missed(&more).len(), 2);
    }
}
