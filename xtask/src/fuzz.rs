//! Fuzzing: builds the targets of the package `sentinel-fuzz` so that libFuzzer sees what they cover, and runs all of them
//! side by side. What they find beyond a crash, inputs that reach new code, stays in the target directory for the next run.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::shell;
use crate::suite::WORKSPACE;
use crate::tally::Outcome;

/// The programs are `fuzz_NAME`, their first inputs `fuzz/seeds/NAME`.
const TARGETS: [&str; 2] = ["master_cf", "journal"];

/// Fewer inputs than this were no fuzzing, however busy the machine.
const AT_LEAST: u64 = 1000;

/// Runs all targets at the same time, each for `time`; each counts as a test.
///
/// # Errors
/// They cannot be built or started.
pub(crate) fn run(time: Duration) -> Result<Outcome> {
    let home = shell::root().join("fuzz");
    println!(
        "fuzzing {} for {} s each, side by side",
        TARGETS.join(", "),
        time.as_secs()
    );
    let mut cargo = shell::cargo(&["build"]);
    cargo.args(WORKSPACE);
    for name in TARGETS {
        cargo.args(["--bin", &format!("fuzz_{name}")]);
    }
    shell::run(cargo.env("RUSTC_WORKSPACE_WRAPPER", home.join("instrument.sh")))?;
    let mut running = Vec::new();
    for name in TARGETS {
        let place = shell::target()?.join("fuzz").join(name);
        running.push((name, start(name, &home, &place, time)?, place));
    }
    let mut outcome = Outcome::default();
    for (name, mut program, place) in running {
        let success = program.wait()?.success();
        let log = String::from_utf8_lossy(&fs::read(place.join("log"))?).into_owned();
        let inputs = inputs(&log).unwrap_or(0);
        outcome.counts.push(format!("{name}: {inputs} inputs"));
        if success && inputs >= AT_LEAST {
            println!("fuzz target {name}: {inputs} inputs, nothing found");
            outcome.tally.passed += 1;
        } else {
            let log: Vec<_> = log.lines().filter(|line| !line.starts_with('#')).collect();
            println!("{}", log.join("\n"));
            println!(
                "fuzz target {name}: FAILED after {inputs} inputs; the input, if there is one, is in {}",
                place.display()
            );
            outcome.tally.failed += 1;
        }
    }
    Ok(outcome)
}

fn start(name: &str, home: &Path, place: &Path, time: Duration) -> Result<Child> {
    let corpus = place.join("corpus");
    fs::create_dir_all(&corpus)?;
    let program = shell::target()?.join("debug").join(format!("fuzz_{name}"));
    let mut command = Command::new(program);
    command.args([
        format!("-max_total_time={}", time.as_secs()),
        // A bound in time and one in memory for any input: it takes a millisecond and a few megabytes.
        "-timeout=60".to_owned(),
        "-rss_limit_mb=1024".to_owned(),
        "-print_final_stats=1".to_owned(),
        format!("-artifact_prefix={}/", place.display()),
    ]);
    let words = home.join(format!("{name}.dict"));
    if words.exists() {
        command.arg(format!("-dict={}", words.display()));
    }
    command.arg(corpus).arg(home.join("seeds").join(name));
    command
        .stdout(File::create(place.join("output"))?)
        .stderr(File::create(place.join("log"))?)
        .spawn()
        .with_context(|| format!("starting the fuzz target {name}"))
}

/// `stat::number_of_executed_units: 12895`
fn inputs(log: &str) -> Option<u64> {
    let line = log
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    line.trim().parse().ok()
}
