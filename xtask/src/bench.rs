//! `cargo xtask bench`, optimized, as people run the daemon. What it measures, and its options, are in tests/src/bin/bench.rs;
//! with `--cost` first, in tests/src/bin/cost.rs.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::{lab, setup, shell};

pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    match arguments.split_first() {
        Some((first, rest)) if first == "--cost" => cost(rest),
        _ => lab::run("bench", "the benchmark", true, arguments),
    }
}

/// What the daemon costs: into target/cost.json and docs/cost.md. `more` may be the seconds that each round takes.
fn cost(more: &[OsString]) -> Result<ExitCode> {
    setup::run()?;
    // Postfix is too heavy for five thousand sessions a second.
    shell::run(&mut shell::cargo(&[
        "build",
        "--release",
        "--package",
        "sentinel-lab",
        "--bin",
        "stand-in",
    ]))?;
    let mut arguments: Vec<OsString> = vec![
        shell::target()?.join("cost.json").into(),
        shell::root().join("docs/cost.md").into(),
    ];
    arguments.extend_from_slice(more);
    lab::run("cost", "the measurement of the cost", true, &arguments)
}
