//! The benchmark. `cargo xtask bench` builds the daemon and this, optimized, and runs it as root; what is measured, and how,
//! is in tests/src/bench.
//!
//! Exit code 1 when a run failed, or, with `--expect`, when a promised line was missed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use sentinel_lab::bench::expect::{self, Verdict};
use sentinel_lab::bench::profiles::{self, Profile};
use sentinel_lab::bench::reaction;
use sentinel_lab::bench::report::{Machine, NotRun, Outcome};
use sentinel_lab::bench::scenarios::{self, Scenario};
use sentinel_lab::bench::{Phases, Store, of_profile, side_by_side, summary};
use sentinel_lab::netns;

/// Postfix under attack, with its own means and with the sentinel, side by side on the same load
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// The shape in ten minutes: short phases, six profiles, built-in stress and the sentinel
    #[arg(long)]
    quick: bool,
    /// Only this load; may be given several times
    #[arg(long, value_name = "NAME")]
    profile: Vec<String>,
    /// Only this set-up; may be given several times
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Measure for so long, instead of as long as the profile says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: Option<u64>,
    /// Scenarios at a time; six for each processor unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: Option<u8>,
    /// Of the arrivals; the same seed is the same load
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Hold the results against the lines that are promised, and fail when one is missed
    #[arg(long)]
    expect: bool,
    /// Put what is stored into docs/benchmark.md and its pictures, after the runs; not with --quick
    #[arg(long, conflicts_with = "quick")]
    docs: bool,
    /// Measure besides how soon the daemon acts, over so many trips
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    reaction: Option<u16>,
    /// Run nothing: only print what is stored, and do what --expect and --docs say
    #[arg(long)]
    stored: bool,
    /// Say which profiles and scenarios there are
    #[arg(long)]
    list: bool,
}

/// A scenario takes a tenth of a processor or less: with so many for each, latencies are what they are with one.
const PER_PROCESSOR: usize = 6;

fn main() -> ExitCode {
    match bench(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        list();
        return Ok(true);
    }
    let quick = arguments.quick;
    let profiles = chosen(&arguments.profile, "profile", profiles::all(), |profile| {
        (profile.name, !quick || profiles::QUICK.contains(&profile.name))
    })?;
    let store = Store::open(target()?.join(if quick { "bench/quick" } else { "bench" }))?;
    // By itself unless profiles are named too: it wants an idle machine.
    if let Some(rounds) = arguments.reaction {
        netns::require_root()?;
        store.keep_reaction(&reaction::measure(rounds.into())?)?;
    }
    if !arguments.stored && (arguments.reaction.is_none() || !arguments.profile.is_empty()) {
        run(arguments, &profiles, &store)?;
    }
    if let Some(reaction) = store.reaction() {
        println!("\n{}", reaction::table(&reaction));
    }
    let mut outcomes = store.outcomes();
    outcomes.retain(|outcome| profiles.iter().any(|profile| profile.name == outcome.profile));
    if arguments.stored {
        for outcome in &outcomes {
            println!(
                "\n{}: {}\n\n{}",
                outcome.profile,
                outcome.about,
                of_profile(outcome)
            );
        }
    }
    println!("\n{}", summary(&outcomes));
    println!("JSON, tables and pictures are in {}", store.directory().display());
    if arguments.docs {
        store.publish(root())?;
        println!("docs/benchmark.md has them too");
    }
    Ok(!arguments.expect || report(&outcomes))
}

fn list() {
    println!("profiles");
    for profile in profiles::all() {
        println!("  {:<20} {}", profile.name, profile.about);
    }
    println!("scenarios");
    for scenario in scenarios::ALL {
        println!("  {:<20} {}", scenario.name, scenario.about);
    }
}

/// Those with a name in `names`, or, when there are no names, those that are chosen without.
fn chosen<T>(
    names: &[String],
    what: &str,
    all: impl IntoIterator<Item = T>,
    name_and_default: impl Fn(&T) -> (&'static str, bool),
) -> Result<Vec<T>> {
    let all: Vec<_> = all.into_iter().collect();
    for name in names {
        ensure!(
            all.iter().any(|one| name_and_default(one).0 == name),
            "there is no {what} {name:?}: `cargo xtask bench --list` names them"
        );
    }
    Ok(all
        .into_iter()
        .filter(|one| {
            let (name, by_default) = name_and_default(one);
            if names.is_empty() {
                by_default
            } else {
                names.iter().any(|wanted| wanted == name)
            }
        })
        .collect())
}

fn run(arguments: &Arguments, profiles: &[Profile], store: &Store) -> Result<()> {
    netns::require_root()?;
    let quick = arguments.quick;
    let asked = chosen(&arguments.scenario, "scenario", scenarios::ALL, |scenario| {
        (scenario.name, !quick || scenarios::QUICK.contains(&scenario.name))
    })?;
    let (mut scenarios, mut not_run) = (Vec::new(), Vec::new());
    for scenario in asked {
        match scenario.obstacle()? {
            None => scenarios.push(scenario),
            Some(reason) => {
                println!("{} is not run: {reason}", scenario.name);
                not_run.push(NotRun {
                    scenario: scenario.name.to_owned(),
                    reason,
                });
            }
        }
    }
    ensure!(!scenarios.is_empty(), "no scenario is left to run");
    let session = Session {
        arguments,
        scenarios,
        not_run,
        machine: Machine::this(),
        store: Mutex::new(store),
    };
    session.all(profiles)
}

/// What all profiles of one call have in common.
struct Session<'a> {
    arguments: &'a Arguments,
    scenarios: Vec<Scenario>,
    not_run: Vec<NotRun>,
    machine: Machine,
    /// One profile at a time is stored and printed.
    store: Mutex<&'a Store>,
}

impl Session<'_> {
    /// As many profiles at a time as there are jobs for all their scenarios; those that want the machine for themselves
    /// come after all others.
    fn all(&self, profiles: &[Profile]) -> Result<()> {
        let jobs = self
            .arguments
            .jobs
            .map_or(self.machine.processors * PER_PROCESSOR, usize::from);
        let side_by_side = jobs.min(self.scenarios.len());
        let (alone, together): (Vec<_>, Vec<_>) = profiles.iter().partition(|profile| profile.alone);
        let next = Mutex::new(together.into_iter());
        let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
        let workers = (jobs / self.scenarios.len()).max(1);
        thread::scope(|scope| {
            let worker = || -> Result<()> {
                while let Some(profile) = take() {
                    self.one(profile, side_by_side, jobs)?;
                }
                Ok(())
            };
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
            let ends = workers
                .into_iter()
                .map(|worker| worker.join().map_err(|_| anyhow!("a run panicked"))?);
            ends.collect::<Result<()>>()
        })?;
        alone.into_iter().try_for_each(|profile| self.one(profile, 1, 1))
    }

    /// `jobs` is what runs on the machine in all.
    fn one(&self, profile: &Profile, at_a_time: usize, jobs: usize) -> Result<()> {
        let phases = phases(self.arguments, profile);
        let wanted = |scenario: &&Scenario| !profile.alone || !scenario.is_behind_postscreen();
        let scenarios: Vec<_> = self.scenarios.iter().filter(wanted).copied().collect();
        let mut runs = Vec::new();
        for batch in scenarios.chunks(at_a_time) {
            announce(profile, batch, &phases);
            runs.extend(side_by_side(profile, batch, &phases, self.arguments.seed)?);
        }
        let outcome = Outcome {
            profile: profile.name.to_owned(),
            about: profile.about.to_owned(),
            maxproc: profile.maxproc,
            machine: self.machine.clone(),
            seed: self.arguments.seed,
            jobs,
            window_s: phases.window.as_secs_f64(),
            patience_s: phases.patience.as_secs_f64(),
            runs,
            not_run: self.not_run.clone(),
        };
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.keep(&outcome)?;
        println!(
            "\n{}: {}\n\n{}",
            profile.name,
            profile.about,
            of_profile(&outcome)
        );
        Ok(())
    }
}

fn phases(arguments: &Arguments, profile: &Profile) -> Phases {
    let window = arguments.seconds.map(Duration::from_secs);
    if arguments.quick {
        Phases::quick(window)
    } else {
        Phases::full(window.unwrap_or(profile.window))
    }
}

fn announce(profile: &Profile, batch: &[Scenario], phases: &Phases) {
    let names: Vec<_> = batch.iter().map(|scenario| scenario.name).collect();
    println!(
        "{} with {}: {} s of calm, {} s measured, {} s and the last senders after it",
        profile.name,
        names.join(", "),
        phases.calm.as_secs(),
        phases.window.as_secs(),
        phases.tail.as_secs()
    );
}

/// Prints every promised line; false when one was missed.
fn report(outcomes: &[Outcome]) -> bool {
    let mut kept = true;
    println!();
    for finding in outcomes.iter().flat_map(expect::findings) {
        match finding.verdict {
            Verdict::Holds => println!("holds    {}", finding.line),
            Verdict::NotRun => println!("not run  {}", finding.line),
            Verdict::Missed(figure) => {
                kept = false;
                println!("MISSED   {} (measured: {figure})", finding.line);
            }
        }
    }
    kept
}

/// The workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Cargo's target directory, two above this very program.
fn target() -> Result<PathBuf> {
    let program = env::current_exe()?;
    let target = program.parent().and_then(Path::parent);
    Ok(target
        .context("a program of cargo lies in its target directory")?
        .to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn profiles_of(line: &str) -> Result<Vec<&'static str>> {
        let arguments = Arguments::try_parse_from(line.split(' '))?;
        let chosen = chosen(&arguments.profile, "profile", profiles::all(), |profile| {
            (
                profile.name,
                !arguments.quick || profiles::QUICK.contains(&profile.name),
            )
        })?;
        Ok(chosen.into_iter().map(|profile| profile.name).collect())
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn names_choose_and_without_names_all_run_or_the_quick_ones() {
        assert_eq!(profiles_of("bench").unwrap().len(), profiles::all().len());
        assert_eq!(profiles_of("bench --quick").unwrap().len(), profiles::QUICK.len());
        assert_eq!(
            profiles_of("bench --quick --profile scan --profile flood").unwrap(),
            ["flood", "scan"]
        );
        assert!(profiles_of("bench --profile fload").is_err());
        assert!(profiles_of("bench --quick --docs").is_err());
        assert!(profiles_of("bench --seconds 0").is_err());
    }
}
