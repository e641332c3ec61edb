//! The main job, to watch: calm, flood, trip, clear, on a real Postfix, with the real daemon. `cargo xtask demo` builds the
//! daemon first and runs this as root.
//!
//! Exit code 1 when there was no trip, no clear, or when master.cf is not byte for byte what it was.

use std::fs;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sentinel_lab::attackers::{Arrival, Attack, Attackers, Hold, Toll};
use sentinel_lab::clock::now;
use sentinel_lab::senders::{Senders, Session, Tally, Traffic, greeting_quantile};
use sentinel_lab::sentinel::{Daemon, Entry, Sentinel, Settings};
use sentinel_lab::{Lab, netns};
use smtp_sentinel::controller::State;
use smtp_sentinel::status::Service;

const SLOTS: u32 = 20;
/// Legitimate sessions a second.
const LEGITIMATE: f64 = 5.0;
/// Silent attackers a second. They come evenly, so that on no machine a chance crowd takes the last slot before the trip: from
/// then on master's own stress mode is on, and there is nothing left to show.
const SILENT: f64 = 1.2;

const CALM: Duration = Duration::from_secs(20);
/// The flood goes on for so long after the trip, so that mail is seen to flow under stress.
const FLOOD_AFTER_TRIP: Duration = Duration::from_secs(12);
/// And calm for so long after the clear.
const AFTER_CLEAR: Duration = Duration::from_secs(5);
/// No trip, or no clear, by then: give up.
const PATIENCE: Duration = Duration::from_secs(60);

/// When each phase began; the sessions are sorted by them in the end.
struct Phases {
    start: Instant,
    flood: Instant,
    after: Instant,
}

/// What happened by the clock of the demo.
struct Course {
    phases: Phases,
    tripped: bool,
    cleared: bool,
}

fn main() -> ExitCode {
    match demo() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<bool> {
    netns::require_root()?;
    println!(
        "A private Postfix with {SLOTS} smtpd slots in a network namespace of its own; clients in another."
    );
    println!(
        "Legitimate: {LEGITIMATE} sessions a second. Attackers, after {} s of calm: {SILENT} silent connections a second,",
        CALM.as_secs()
    );
    println!("each of which Postfix alone would keep for 300 s.\n");
    let lab = Lab::builder().maxproc(SLOTS).start()?;
    let original = lab.postfix.master_cf()?;
    let settings = Settings {
        detect: "dwell = \"5s\"\ntrip_dwell = \"500ms\"".to_owned(),
        act: "mode = \"enforce\"\nmin_interval = \"10s\"".to_owned(),
        ..Settings::default()
    };
    let sentinel = Sentinel::install_with(&lab, &settings)?;
    let daemon = sentinel.start()?;

    let senders = lab.senders(Traffic::new(LEGITIMATE))?;
    let (course, holds) = play(&lab, &daemon, &senders)?;
    let sessions = senders.stop()?;
    let history = sentinel.history()?;
    daemon.terminate()?;

    summarize(&course, &sessions, &holds, &history);
    let same = diff(&lab, &original)?;
    Ok(course.tripped && course.cleared && same)
}

/// Runs the phases and prints a line a second; returns what happened and what the attackers met.
fn play(lab: &Lab, daemon: &Daemon<'_>, senders: &Senders) -> Result<(Course, Vec<Hold>)> {
    header();
    let start = now();
    let mut scroll = Scroll {
        start,
        line: 0,
        daemon,
        senders,
    };

    scroll.until("calm", None, |_| start.elapsed() >= CALM)?;

    let flood = now();
    let attackers = lab.attack(Attack::silent(Arrival::Evenly {
        count: 1000,
        within: Duration::from_secs_f64(1000.0 / SILENT),
    }))?;
    let tripped = scroll.until("flood", Some(&attackers), |service| {
        service.state == State::Stressed
    })?;
    if tripped {
        let trip = now();
        scroll.until("flood", Some(&attackers), |_| trip.elapsed() >= FLOOD_AFTER_TRIP)?;
    }

    let after = now();
    let holds = attackers.stop()?;
    let cleared = tripped && scroll.until("after", None, |service| service.state == State::Normal)?;
    let clear = now();
    scroll.until("after", None, |_| clear.elapsed() >= AFTER_CLEAR)?;
    Ok((
        Course {
            phases: Phases { start, flood, after },
            tripped,
            cleared,
        },
        holds,
    ))
}

/// The table that scrolls by.
struct Scroll<'a> {
    start: Instant,
    line: u32,
    daemon: &'a Daemon<'a>,
    senders: &'a Senders,
}

impl Scroll<'_> {
    /// Prints a line a second until `enough`; false when the patience was over first.
    fn until(
        &mut self,
        phase: &str,
        attackers: Option<&Attackers>,
        enough: impl Fn(&Service) -> bool,
    ) -> Result<bool> {
        let begin = now();
        while begin.elapsed() < PATIENCE {
            // By the start, not by the last line: a slow answer must not add up.
            let due = Duration::from_secs(self.line.into());
            std::thread::sleep(due.saturating_sub(self.start.elapsed()));
            self.line += 1;
            let service = self.daemon.find_service("smtp/inet")?;
            let standing = attackers.map_or(0, |attackers| attackers.toll().standing);
            let delivered = Tally::of(&self.senders.so_far()).delivered;
            row(self.start.elapsed(), phase, service.as_ref(), delivered, standing);
            if service.as_ref().is_some_and(&enough) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn header() {
    println!(
        "{:>7}  {:<5}  {:<10} {:>9} {:>6} {:>7} {:>5} {:>11} {:>9} {:>11} {:>10}",
        "time",
        "phase",
        "state",
        "pressure",
        "busy",
        "queue",
        "high",
        "greeting ms",
        "",
        "legitimate",
        "attackers"
    );
    println!(
        "{:>7}  {:<5}  {:<10} {:>9} {:>6} {:>7} {:>5} {:>11} {:>9} {:>11} {:>10}",
        "s", "", "", "", "slots", "depth", "water", "p50", "p99", "delivered", "connected"
    );
}

fn row(time: Duration, phase: &str, service: Option<&Service>, delivered: usize, standing: usize) {
    let Some(service) = service else {
        println!(
            "{:>7.0}  {phase:<5}  (the daemon has not found the Postfix yet)",
            time.as_secs_f64()
        );
        return;
    };
    let state = match service.state {
        State::Normal => "normal",
        State::Stressed => "STRESSED",
        State::Recovering => "recovering",
    };
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    println!(
        "{:>7.0}  {phase:<5}  {state:<10} {:>9} {:>6} {:>7} {:>5} {:>11} {:>9} {delivered:>11} {standing:>10}",
        time.as_secs_f64(),
        or_dash(service.pressure.map(|pressure| format!("{pressure:.2}"))),
        or_dash(
            service
                .busy
                .zip(service.limit)
                .map(|(busy, limit)| format!("{busy}/{limit}"))
        ),
        or_dash(service.accept_queue.map(|queue| queue.depth.to_string())),
        or_dash(service.accept_queue.map(|queue| queue.high_water.to_string())),
        or_dash(service.greeting_ms.map(|greeting| format!("{:.1}", greeting.p50))),
        or_dash(service.greeting_ms.map(|greeting| format!("{:.1}", greeting.p99))),
    );
}

fn summarize(course: &Course, sessions: &[Session], holds: &[Hold], history: &[Entry]) {
    let Phases { start, flood, after } = course.phases;
    println!("\nLegitimate sessions, by when they began and by their own clocks");
    println!("            tried  delivered  no greeting  refused  dropped   greeting p50   p99 (ms)");
    let phases = [
        ("calm", start, Some(flood)),
        ("flood", flood, Some(after)),
        ("after", after, None),
    ];
    for (name, from, to) in phases {
        let within = |session: &&Session| session.started >= from && to.is_none_or(|to| session.started < to);
        let sessions: Vec<_> = sessions.iter().filter(within).copied().collect();
        let tally = Tally::of(&sessions);
        let milliseconds = |q| {
            let latency = greeting_quantile(&sessions, q);
            latency.map_or("none".to_owned(), |latency| {
                format!("{:.1}", latency.as_secs_f64() * 1000.0)
            })
        };
        println!(
            "  {name:<8} {:>6} {:>10} {:>12} {:>8} {:>8} {:>14} {:>10}",
            tally.tried,
            tally.delivered,
            tally.no_greeting,
            tally.refused,
            tally.dropped,
            milliseconds(0.5),
            milliseconds(0.99),
        );
    }

    let toll = Toll::of(holds);
    println!("\nAttackers");
    println!(
        "  {} connections, {} of them greeted; {} dropped by Postfix, {} left when the flood ended",
        toll.connections,
        toll.greeted,
        toll.dropped,
        toll.connections - toll.dropped
    );

    println!("\nWhat the sentinel did (smtp-sentinel history)");
    for entry in history.iter().filter(|entry| entry.kind != "probe") {
        let what = match (&entry.from, &entry.to, &entry.action) {
            (Some(from), Some(to), _) => format!("{from} -> {to}"),
            (_, _, Some(action)) => action.clone(),
            _ => String::new(),
        };
        let outcome = entry.outcome.as_deref().unwrap_or_default();
        println!(
            "  {}  {:<10} {what} {outcome}  {}",
            entry.time,
            entry.kind,
            entry.reasons.join("; ")
        );
    }
    let told = |state| {
        history
            .iter()
            .find(|entry| entry.is_transition_to(state))
            .map_or("none", |entry| &entry.time)
    };
    println!("\nTrip: {}. Clear: {}.", told("stressed"), told("normal"));
}

/// Prints the diff of master.cf against what it was; true when there is none.
fn diff(lab: &Lab, original: &[u8]) -> Result<bool> {
    let before = lab.base().join("master.cf.before");
    fs::write(&before, original)?;
    let output = Command::new("diff")
        .arg("-u")
        .arg(&before)
        .arg(lab.postfix.master_cf_path())
        .output();
    let text = String::from_utf8_lossy(&output.context("running diff (diffutils)")?.stdout).into_owned();
    let same = lab.postfix.master_cf()? == original;
    println!(
        "diff of master.cf, before and after: {}",
        if same { "empty" } else { "NOT empty" }
    );
    print!("{text}");
    Ok(same)
}
