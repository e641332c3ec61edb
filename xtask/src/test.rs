//! `cargo xtask test`: every check and every test, and one line at the end that tells the counts.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Result;

use crate::tally::Tally;
use crate::{kernels, setup, shell};

/// Labs at a time. Each has a Postfix with up to some dozens of processes and clients that measure time, so more of them
/// than processors would measure the neighbours.
const LABS: usize = 2;

/// What the container image has and the packages do not.
const KUBERNETES: &str = "smtp-sentinel/kubernetes";

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
        tally += tests(&only_ours, &[filter.unwrap_or("kubernetes::")])?;
    }
    // The lab runs the daemon as a program, which no test target of its package builds.
    tally += check(&mut shell::cargo(&["build", "--package", "smtp-sentinel"]));
    let with_kernels = with_kernels && filter.is_none();
    let filter = filter.unwrap_or_default();
    tally += tests(&["--workspace", "--exclude", "sentinel-lab"], &[filter])?;
    tally += tests(
        &["--package", "sentinel-lab"],
        &[filter, &format!("--test-threads={LABS}")],
    )?;
    if with_kernels {
        tally += kernels();
    }
    println!("{tally}");
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The probes' scenarios on the oldest kernel and on the newest.
fn kernels() -> Tally {
    println!("--- cargo xtask kernels --only oldest,newest");
    kernels::oldest_and_newest().unwrap_or_else(|error| {
        eprintln!("the kernels did not run: {error:#}; `cargo xtask test --no-kernels` leaves them out");
        Tally::FAILURE
    })
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
fn tests(what: &[&str], arguments: &[&str]) -> Result<Tally> {
    let mut cargo = shell::cargo(&["test", "--no-fail-fast"]);
    cargo
        .args(what)
        .arg("--")
        .args(arguments.iter().filter(|argument| !argument.is_empty()));
    cargo.env("PATH", setup::path()?);
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
    let mut tally = Tally::default();
    if let Some(stdout) = running.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            tally += Tally::parse(&line).unwrap_or_default();
        }
    }
    // A build that fails or a test program that crashes leaves no summary line.
    if !running.wait()?.success() && tally.failed == 0 {
        tally += Tally::FAILURE;
    }
    Ok(tally)
}
