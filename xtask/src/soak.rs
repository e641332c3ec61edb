//! `cargo xtask soak`: what takes too long for every run of the tests. A list of parts, each known by its name; what they
//! counted goes into docs/soak.md.

mod table;

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::tally::{Outcome, Tally};
use crate::{fuzz, setup, shell, suite};
use table::Row;

/// One thing to do for a long time.
struct Part {
    name: &'static str,
    what: &'static str,
    work: Work,
}

enum Work {
    /// The targets of the package `sentinel-fuzz`.
    Fuzz,
    /// The tests of the lab whose name has this in it. They go on for as many seconds as [`SECONDS`] says (without it, in
    /// every run of the tests, for a few), and print a line that begins with [`crate::tally::SOAKED`] and tells what they
    /// counted.
    Lab(&'static str),
}

/// Tells a test that it soaks, and for how long.
const SECONDS: &str = "SENTINEL_SOAK_SECONDS";

const PARTS: &[Part] = &[
    Part {
        name: "fuzz",
        what: "any bytes as master.cf and as journal",
        work: Work::Fuzz,
    },
    Part {
        name: "masters",
        what: "random master.cf before the masters of all versions",
        work: Work::Lab("master_cf::random::"),
    },
    Part {
        name: "cycles",
        what: "attack and calm in turn: memory, descriptors and threads of the daemon stay as they are",
        work: Work::Lab("soak::cycles"),
    },
    Part {
        name: "prefixes",
        what: "a million clients, each from a /24 of its own, however long that takes",
        work: Work::Lab("bounds::more_source_prefixes"),
    },
];

/// Runs the parts named in `only`, or all, each for `minutes`, and writes down what came of it.
///
/// # Errors
/// A part is unknown, or docs/soak.md cannot be written; that a part failed is in the exit code.
pub(crate) fn run(only: &[String], minutes: u64) -> Result<ExitCode> {
    let parts = choose(only)?;
    setup::run()?;
    let mut tally = Tally::default();
    let mut rows = Vec::new();
    for part in parts {
        println!("=== {}: {}, for {minutes} min", part.name, part.what);
        let outcome = part
            .work
            .run(Duration::from_secs(60 * minutes))
            .unwrap_or_else(|error| {
                eprintln!("{}: {error:#}", part.name);
                Tally::FAILURE.into()
            });
        tally += outcome.tally;
        rows.push(Row::new(part.name, part.what, minutes, &outcome, &machine()));
    }
    let path = shell::root().join("docs/soak.md");
    table::write(&path, &rows)?;
    println!("=== in docs/soak.md:\n{}", table::render(&rows));
    println!("{tally}");
    Ok(tally.exit_code())
}

fn choose(only: &[String]) -> Result<Vec<&'static Part>> {
    let known: BTreeSet<&str> = PARTS.iter().map(|part| part.name).collect();
    for name in only {
        ensure!(
            known.contains(name.as_str()),
            "there is no part {name:?} of the soak; there are {}",
            known.iter().copied().collect::<Vec<_>>().join(", ")
        );
    }
    let wanted = |part: &&Part| only.is_empty() || only.iter().any(|name| name == part.name);
    Ok(PARTS.iter().filter(wanted).collect())
}

impl Work {
    fn run(&self, time: Duration) -> Result<Outcome> {
        match self {
            Self::Fuzz => fuzz::run(time),
            Self::Lab(filter) => {
                // The lab runs the daemon as a program, which no test target of its package builds.
                suite::build(&["--bin", "smtp-sentinel"])?;
                let outcome = suite::run(
                    &["--test", "lab"],
                    &[filter, "--show-output"],
                    &[(SECONDS, time.as_secs().to_string())],
                )?;
                ensure!(
                    outcome.tally.passed + outcome.tally.failed > 0,
                    "no test of the lab has {filter:?} in its name"
                );
                Ok(outcome)
            }
        }
    }
}

/// What a reader needs to know of the machine to judge the counts.
fn machine() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    // What follows the hyphen is whose build it is.
    let version = release.trim().split('-').next().unwrap_or_default();
    format!("{processors} processors, Linux {version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_chosen_by_name_and_all_without_one() {
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            choose(&only).map(|parts| parts.iter().map(|part| part.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap().len(), PARTS.len());
        assert_eq!(names(&["masters"]).unwrap(), ["masters"]);
        let unknown = names(&["fuzz", "toads"]).unwrap_err().to_string();
        assert!(
            unknown.contains("\"toads\"") && unknown.contains("masters"),
            "{unknown}"
        );
    }
}
