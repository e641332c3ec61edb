//! `cargo xtask dashboard`. What it plays and draws is in tests/src/bin/episode.rs.

use std::process::ExitCode;

use anyhow::Result;

use crate::lab;

pub(crate) fn run() -> Result<ExitCode> {
    lab::run("episode", "the episode for the dashboard", false, &[])
}
