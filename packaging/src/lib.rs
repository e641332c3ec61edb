//! The packages: what lies where once SMTP Sentinel is installed ([`payload`]), as a .deb ([`deb`]) and as an .rpm ([`rpm`]).
//!
//! Both are made of the one payload, so that they cannot differ. Debian's own tools make the .deb (dpkg-deb,
//! dpkg-shlibdeps), and the crate `rpm`, which cargo-generate-rpm stands on too, makes the .rpm without any tool. The scripts
//! and the texts that are not generated lie in deploy/deb and deploy/rpm. Nothing here builds the program.

pub mod deb;
pub mod manual;
pub mod payload;
pub mod rpm;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

pub const NAME: &str = "smtp-sentinel";
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Of the packaging, for the same version of the program.
pub const RELEASE: &str = "1";
/// The time of everything in the packages, so that the same sources give the same bytes: that of deploy/deb/changelog, in
/// seconds since the epoch.
pub const TIME: u32 = 1_795_323_600;

/// The workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Runs a tool to a good end and returns what it prints.
fn output(command: &mut Command, package: &str) -> Result<String> {
    let output = command.output().with_context(|| {
        format!(
            "{:?} cannot be run; it is in Debian's package {package}",
            command.get_program()
        )
    })?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
