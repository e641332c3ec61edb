//! `cargo xtask demo`. What it shows is in tests/src/bin/demo.rs.

use std::process::ExitCode;

use anyhow::Result;

use crate::lab;

pub(crate) fn run() -> Result<ExitCode> {
    lab::run("demo", "the demo", false, &[])
}
