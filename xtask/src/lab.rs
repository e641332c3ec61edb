//! Programs of the lab: built together with the daemon that they run, and run as root.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{setup, shell};

/// Builds and runs `program`. `what` is its name in messages.
///
/// # Errors
/// Not root and no sudo, or it cannot be built or started; that it failed is in the exit code.
pub(crate) fn run(program: &str, what: &str, release: bool, arguments: &[OsString]) -> Result<ExitCode> {
    // Said before anything is built for it.
    let sudo = shell::as_root(&format!(
        "{what} (BPF programs, network namespaces, a private Postfix)"
    ))?;
    setup::run()?;
    let mut cargo = shell::cargo(&["build", "--package", "smtp-sentinel", "--package", "sentinel-lab"]);
    cargo.args(["--bin", "smtp-sentinel", "--bin", program]);
    if release {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)?;
    let path = shell::target()?
        .join(if release { "release" } else { "debug" })
        .join(program);
    let mut command = match sudo.split_first() {
        None => Command::new(&path),
        Some((wrapper, options)) => {
            println!("{what} runs as root: {} {}", sudo.join(" "), path.display());
            let mut command = Command::new(wrapper);
            command.args(options).arg(&path);
            command
        }
    };
    let status = command
        .args(arguments)
        .env("PATH", setup::path()?)
        .status()
        .with_context(|| format!("running {what}"))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
