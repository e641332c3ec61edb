//! `cargo xtask dist`: the packages of an optimized build, below target/dist. What is in them is packaging/'s to say.

use std::process::ExitCode;

use anyhow::Result;

use crate::{setup, shell};

pub(crate) fn run() -> Result<ExitCode> {
    setup::run()?;
    shell::run(&mut shell::cargo(&[
        "build",
        "--release",
        "--package",
        "smtp-sentinel",
    ]))?;
    let target = shell::target()?;
    let mut packages = shell::cargo(&["run", "--release", "--package", "sentinel-packages", "--"]);
    packages
        .arg("--binary")
        .arg(target.join("release/smtp-sentinel"))
        .arg("--to")
        .arg(target.join("dist"))
        .env("PATH", setup::path()?);
    shell::run(&mut packages)?;
    Ok(ExitCode::SUCCESS)
}
