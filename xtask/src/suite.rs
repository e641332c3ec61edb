//! The workspace as it is built for the tests, and the running of its test programs.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::Result;

use crate::tally::{Outcome, Tally};
use crate::{setup, shell};

/// What to build, for whatever test: cargo unites the features of the packages that it is told of, so that a part of the
/// workspace, or all of it without this feature, would be compiled against dependencies of its own. The feature is what the
/// container image has; the packages have not.
pub(crate) const WORKSPACE: [&str; 3] = ["--workspace", "--features", "smtp-sentinel/kubernetes"];

/// Builds some of the workspace for the tests; `targets` chooses, as cargo's options.
///
/// # Errors
/// It does not build.
pub(crate) fn build(targets: &[&str]) -> Result<()> {
    shell::run(shell::cargo(&["build"]).args(WORKSPACE).args(targets))
}

/// Runs the tests, as root, and adds up what the test programs say. `targets` chooses some of the test programs, as cargo's
/// options; `arguments` are for them.
///
/// # Errors
/// Not root and no sudo, or no cargo.
pub(crate) fn run(targets: &[&str], arguments: &[&str], environment: &[(&str, String)]) -> Result<Outcome> {
    let mut cargo = shell::cargo(&["test", "--no-fail-fast"]);
    cargo
        .args(WORKSPACE)
        .args(targets)
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
            env::consts::ARCH.to_uppercase()
        );
        cargo.env(runner, sudo.join(" "));
    }
    println!("{}", shell::words(&cargo));
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
