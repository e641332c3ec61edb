//! Markdown: a table for each profile, and one over all of them.

use super::report::{Crowd, LettingGo, Outcome, Recovery, Run};
use super::scenarios;

/// The figures of a profile, a line for each scenario.
pub fn of_profile(outcome: &Outcome) -> String {
    let mut text = String::from(
        "| | delivered | lost | greeting p50 / p90 / p99 | recovery | overflows | longest queue | trips, reloads | shed \
         | slow senders lost | attackers dropped | stress off after |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for run in &outcome.runs {
        let cells = [
            run.scenario.clone(),
            delivered(&run.legitimate),
            losses(&run.legitimate),
            greeting(&run.legitimate),
            recovery(run.recovery),
            run.overflows.to_string(),
            queue(run),
            actions(run),
            sheds(run),
            slow(run),
            format!("{} of {}", run.attackers.dropped, run.attackers.connections),
            letting_go(run),
        ];
        text.push_str(&line(&cells));
    }
    for not_run in &outcome.not_run {
        text.push_str(&format!(
            "\n{} was not run: {}\n",
            not_run.scenario, not_run.reason
        ));
    }
    text
}

/// One line a profile: delivered, and greeting at the median and the 99th percentile, for each scenario.
pub fn summary(outcomes: &[Outcome]) -> String {
    let ran = |scenario: &&scenarios::Scenario| {
        outcomes
            .iter()
            .any(|outcome| outcome.run(scenario.name).is_some())
    };
    let columns: Vec<_> = scenarios::ALL.iter().filter(ran).collect();
    let mut heading = vec!["profile".to_owned()];
    heading.extend(columns.iter().map(|scenario| scenario.name.to_owned()));
    let mut text = line(&heading);
    text.push_str(&format!("|{}\n", "---|".repeat(heading.len())));
    for outcome in outcomes {
        let mut cells = vec![outcome.profile.clone()];
        for scenario in &columns {
            cells.push(outcome.run(scenario.name).map_or("-".to_owned(), |run| {
                let Crowd {
                    greeting_p50_ms,
                    greeting_p99_ms,
                    ..
                } = run.legitimate;
                format!(
                    "{}, {} / {}",
                    percent(&run.legitimate),
                    latency(greeting_p50_ms),
                    latency(greeting_p99_ms)
                )
            }));
        }
        text.push_str(&line(&cells));
    }
    text
}

/// What the figures stand on, as one sentence.
pub(super) fn caption(outcome: &Outcome) -> String {
    let machine = &outcome.machine;
    format!(
        "{:.0} s measured, {} slots, senders wait {:.0} s for a greeting; {} at a time on {} processors ({}), {} MiB of \
         memory, Linux {}, Postfix {}; seed {}.",
        outcome.window_s,
        outcome.maxproc,
        outcome.patience_s,
        outcome.jobs,
        machine.processors,
        machine.processor,
        machine.memory_mib,
        machine.kernel,
        machine.postfix,
        outcome.seed
    )
}

fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// Never rounded up to 100 %: a hundred is all of them.
fn percent(crowd: &Crowd) -> String {
    if crowd.lost() == 0 {
        return "100 %".to_owned();
    }
    let tenths = (crowd.share() * 1000.0).floor() / 10.0;
    format!("{tenths:.1} %")
}

fn delivered(crowd: &Crowd) -> String {
    format!("{} ({} of {})", percent(crowd), crowd.delivered, crowd.tried)
}

fn losses(crowd: &Crowd) -> String {
    if crowd.losses.is_empty() {
        return "-".to_owned();
    }
    let losses = crowd.losses.iter().map(|(loss, count)| format!("{loss} {count}"));
    losses.collect::<Vec<_>>().join("; ")
}

fn greeting(crowd: &Crowd) -> String {
    let quantiles = [
        crowd.greeting_p50_ms,
        crowd.greeting_p90_ms,
        crowd.greeting_p99_ms,
    ];
    quantiles.map(latency).join(" / ")
}

/// `none`: that session was never greeted.
pub(super) fn latency(milliseconds: Option<f64>) -> String {
    match milliseconds {
        None => "none".to_owned(),
        Some(milliseconds) if milliseconds < 9.95 => format!("{milliseconds:.1} ms"),
        Some(milliseconds) if milliseconds < 999.5 => format!("{milliseconds:.0} ms"),
        Some(milliseconds) => format!("{:.1} s", milliseconds / 1000.0),
    }
}

fn recovery(recovery: Recovery) -> String {
    match recovery {
        Recovery::NotSaturated => "-".to_owned(),
        Recovery::AfterS(seconds) => format!("{seconds:.0} s"),
        Recovery::NotWithinRun => "not within the run".to_owned(),
    }
}

fn queue(run: &Run) -> String {
    match run.pass_queue_max {
        None => run.queue_max.to_string(),
        Some(pass) => format!("{}, behind {pass}", run.queue_max),
    }
}

fn actions(run: &Run) -> String {
    match &run.daemon {
        None => "-".to_owned(),
        Some(daemon) => format!("{}, {}", daemon.trips, run.reloads),
    }
}

fn sheds(run: &Run) -> String {
    let sheds = run.daemon.as_ref().and_then(|daemon| daemon.sheds);
    sheds.map_or("-".to_owned(), |sheds| sheds.to_string())
}

fn slow(run: &Run) -> String {
    if run.slow.is_empty() {
        return "-".to_owned();
    }
    let kinds = run
        .slow
        .iter()
        .map(|slow| format!("{} {} of {}", slow.kind, slow.crowd.lost(), slow.crowd.tried));
    kinds.collect::<Vec<_>>().join("; ")
}

fn letting_go(run: &Run) -> String {
    match run.daemon.as_ref().map(|daemon| daemon.letting_go) {
        None | Some(LettingGo::Nothing | LettingGo::NotAwaited) => "-".to_owned(),
        Some(LettingGo::AfterS(seconds)) => format!("{seconds:.0} s"),
        Some(LettingGo::NotWithinS(seconds)) => format!("not within {seconds:.0} s"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::report::{Attackers, Daemon, Machine, NotRun, Slow};
    use super::*;

    pub(in super::super) fn run(scenario: &str) -> Run {
        Run {
            scenario: scenario.to_owned(),
            calm: Crowd::default(),
            legitimate: Crowd {
                tried: 1000,
                delivered: 1000,
                greeting_p50_ms: Some(4.04),
                greeting_p90_ms: Some(439.0),
                greeting_p99_ms: Some(1800.0),
                ..Crowd::default()
            },
            slow: Vec::new(),
            recovery: Recovery::NotSaturated,
            overflows: 0,
            queue_max: 4,
            pass_queue_max: None,
            reloads: 0,
            attackers: Attackers::default(),
            daemon: None,
            seconds: Vec::new(),
        }
    }

    pub(in super::super) fn outcome(profile: &str, runs: Vec<Run>) -> Outcome {
        Outcome {
            profile: profile.to_owned(),
            about: "a load".to_owned(),
            maxproc: 20,
            machine: Machine {
                processors: 2,
                processor: "a processor".to_owned(),
                memory_mib: 1024,
                kernel: "6.1.0".to_owned(),
                postfix: "3.7.11".to_owned(),
            },
            seed: 1,
            jobs: 2,
            window_s: 345.0,
            patience_s: 30.0,
            runs,
            not_run: Vec::new(),
        }
    }

    #[test]
    fn a_profile_is_a_table_with_a_line_for_each_scenario() {
        let mut builtin = run("builtin");
        builtin.legitimate = Crowd {
            tried: 2846,
            delivered: 1139,
            no_greeting: 1700,
            refused: 7,
            losses: [("no greeting".to_owned(), 1700), ("421 at EHLO".to_owned(), 7)].into(),
            ..Crowd::default()
        };
        builtin.recovery = Recovery::AfterS(317.0);
        builtin.overflows = 19839;
        let mut sentinel = run("sentinel");
        sentinel.reloads = 1;
        sentinel.slow = vec![Slow {
            kind: "upload".to_owned(),
            crowd: Crowd {
                tried: 20,
                delivered: 19,
                ..Crowd::default()
            },
        }];
        sentinel.daemon = Some(Daemon {
            trips: 1,
            sheds: Some(8),
            letting_go: LettingGo::AfterS(31.4),
        });
        let mut outcome = outcome("flood", vec![builtin, sentinel]);
        outcome.not_run.push(NotRun {
            scenario: "headroom".to_owned(),
            reason: "unknown key".to_owned(),
        });
        let text = of_profile(&outcome);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[2],
            "| builtin | 40.0 % (1139 of 2846) | 421 at EHLO 7; no greeting 1700 | none / none / none | 317 s | 19839 | 4 | - | - | - | 0 of 0 | - |"
        );
        assert_eq!(
            lines[3],
            "| sentinel | 100 % (1000 of 1000) | - | 4.0 ms / 439 ms / 1.8 s | - | 0 | 4 | 1, 1 | 8 | upload 1 of 20 \
             | 0 of 0 | 31 s |"
        );
        assert_eq!(lines.last(), Some(&"headroom was not run: unknown key"));
        let widths: Vec<_> = lines[..4].iter().map(|line| line.matches('|').count()).collect();
        assert_eq!(widths, [13; 4]);
    }

    #[test]
    fn the_summary_has_a_column_for_what_ran_somewhere() {
        let flood = outcome("flood", vec![run("builtin"), run("sentinel")]);
        let ramp = outcome("ramp", vec![run("sentinel")]);
        assert_eq!(
            summary(&[flood, ramp]),
            "| profile | builtin | sentinel |\n|---|---|---|\n\
             | flood | 100 %, 4.0 ms / 1.8 s | 100 %, 4.0 ms / 1.8 s |\n\
             | ramp | - | 100 %, 4.0 ms / 1.8 s |\n"
        );
    }

    #[test]
    fn a_lost_session_is_never_rounded_away() {
        let crowd = Crowd {
            tried: 100_000,
            delivered: 99_999,
            ..Crowd::default()
        };
        assert_eq!(percent(&crowd), "99.9 %");
        assert_eq!(percent(&Crowd::default()), "100 %", "nothing tried, nothing lost");
    }

    #[test]
    fn latencies_have_their_unit() {
        let texts = [None, Some(0.3), Some(9.96), Some(999.4), Some(999.6)].map(latency);
        assert_eq!(texts, ["none", "0.3 ms", "10 ms", "999 ms", "1.0 s"]);
    }
}
