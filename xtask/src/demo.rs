//! `cargo xtask demo`: builds the daemon and the demo, and runs it as root. What it shows is in tests/src/bin/demo.rs.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{setup, shell};

pub(crate) fn run() -> Result<ExitCode> {
    // Said before anything is built for it.
    let sudo = shell::as_root("the demo (BPF programs, network namespaces, a private Postfix)")?;
    setup::run()?;
    let packages = [
        "--package",
        "smtp-sentinel",
        "--package",
        "sentinel-lab",
        "--bin",
        "smtp-sentinel",
        "--bin",
        "demo",
    ];
    shell::run(shell::cargo(&["build"]).args(packages))?;
    let demo = shell::target()?.join("debug/demo");
    let mut command = match sudo.split_first() {
        None => Command::new(&demo),
        Some((program, options)) => {
            println!("the demo runs as root: {} {}", sudo.join(" "), demo.display());
            let mut command = Command::new(program);
            command.args(options).arg(&demo);
            command
        }
    };
    let status = command
        .env("PATH", setup::path()?)
        .status()
        .context("running the demo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
