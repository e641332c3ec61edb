//! `cargo xtask bench`, optimized, as people run the daemon. What it measures, and its options, are in tests/src/bin/bench.rs.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::lab;

pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    lab::run("bench", "the benchmark", true, arguments)
}
