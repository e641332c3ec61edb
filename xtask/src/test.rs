//! `cargo xtask test`: every check and every test, and one line at the end that tells the counts.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Result;

use crate::tally::{Outcome, Tally};
use crate::{fuzz, kernels, pods, setup, shell};

/// Labs at a time. Each has a Postfix with up to some dozens of processes and clients that measure time, so more of them
/// than processors would measure the neighbours.
const LABS: usize = 2;

/// What the container image has and the packages do not.
const KUBERNETES: &str = "smtp-sentinel/kubernetes";

/// For each fuzz target in every run; `cargo xtask soak` goes on where this ends.
const FUZZ_FOR: Duration = Duration::from_secs(30);

/// Runs everything; a check that fails does not keep the others from running, so that one run tells all.
pub(crate) fn run(filter: Option<&str>, with_kernels: bool) -> Result<ExitCode> {
    setup::run()?;
    let mut tally = Tally::default();
    if filter.is_none() {
        tally += check(&mut shell::cargo(&["fmt", "--all", "--check"]));
        tally += check(&mut shell::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]));
        tally += check(&mut shell::cargo(&[
            "clippy",
            "--package",
            "smtp-sentinel",
            "--features",
            KUBERNETES,
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]));
        let mut doc = shell::cargo(&["doc", "--workspace", "--no-deps"]);
        tally += check(doc.env("RUSTDOCFLAGS", "--deny warnings"));
    }
    // Before what the lab runs is built: this leaves a smtp-sentinel with the feature in its place.
    if filter.is_none_or(|filter| filter.contains("kubernetes")) {
        let only_ours = ["--package", "smtp-sentinel", "--features", KUBERNETES, "--lib"];
        tally += tests(&only_ours, &[filter.unwrap_or("kubernetes::")], &[])?.tally;
    }
    // The lab runs the daemon as a program, which no test target of its package builds.
    tally += check(&mut shell::cargo(&["build", "--package", "smtp-sentinel"]));
    // What the tests in podman's containers run takes minutes to build; their names have this word in them.
    if filter.is_none_or(|filter| filter.contains("pod")) {
        tally += containers();
    }
    let with_fuzzing = filter.is_none();
    let with_kernels = with_kernels && filter.is_none();
    let filter = filter.unwrap_or_default();
    tally += tests(&["--workspace", "--exclude", "sentinel-lab"], &[filter], &[])?.tally;
    tally += tests(
        &["--package", "sentinel-lab"],
        &[filter, &format!("--test-threads={LABS}")],
        &[],
    )?
    .tally;
    if with_kernels {
        tally += kernels();
    }
    if with_fuzzing {
        tally += fuzzing();
    }
    println!("{tally}");
    Ok(tally.exit_code())
}

/// What the containers are made of.
fn containers() -> Tally {
    match pods::prepare() {
        Ok(()) => Tally::default(),
        Err(error) => {
            eprintln!("what the containers are made of is not there: {error:#}");
            Tally::FAILURE
        }
    }
}

/// The probes' scenarios on the oldest kernel and on the newest.
fn kernels() -> Tally {
    println!("--- cargo xtask kernels --only oldest,newest");
    kernels::oldest_and_newest().unwrap_or_else(|error| {
        eprintln!("the kernels did not run: {error:#}; `cargo xtask test --no-kernels` leaves them out");
        Tally::FAILURE
    })
}

fn fuzzing() -> Tally {
    match fuzz::run(FUZZ_FOR) {
        Ok(outcome) => outcome.tally,
        Err(error) => {
            eprintln!("the fuzz targets did not run: {error:#}");
            Tally::FAILURE
        }
    }
}

/// Runs what is no test; nothing to count unless it fails.
fn check(command: &mut Command) -> Tally {
    println!("--- {}", shell::words(command));
    match shell::run(command) {
        Ok(()) => Tally::default(),
        Err(error) => {
            eprintln!("{error:#}");
            Tally::FAILURE
        }
    }
}

/// Runs `cargo test`, as root, and adds up what the test programs say.
///
/// # Errors
/// Not root and no sudo, or no cargo.
pub(crate) fn tests(what: &[&str], arguments: &[&str], environment: &[(&str, String)]) -> Result<Outcome> {
    let mut cargo = shell::cargo(&["test", "--no-fail-fast"]);
    cargo
        .args(what)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .arg("--")
        .args(arguments.iter().filter(|argument| !argument.is_empty()));
    cargo
        .env("PATH", setup::path()?)
        .env("SENTINEL_GRAFANA_TYPES", setup::grafana_types()?);
    let sudo = shell::as_root("running the tests (BPF programs, network namespaces, a private Postfix)")?;
    if !sudo.is_empty() {
        println!("the test programs run as root: {} PROGRAM", sudo.join(" "));
        let runner = format!(
            "CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER",
            std::env::consts::ARCH.to_uppercase()
        );
        cargo.env(runner, sudo.join(" "));
    }
    println!("--- {}", shell::words(&cargo));
    let mut running = cargo.stdout(Stdio::piped()).spawn()?;
    let mut outcome = Outcome::default();
    if let Some(stdout) = running.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            outcome.read(&line);
        }
    }
    // A build that fails or a test program that crashes leaves no summary line.
    if !running.wait()?.success() && outcome.tally.failed == 0 {
        outcome.tally += Tally::FAILURE;
    }
    Ok(outcome)
}
