//! Where the things lie that set-up and build put below cargo's target directory.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Cargo's target directory, above the profile's, in which the running test program lies.
///
/// # Errors
/// It was not built by cargo.
pub fn target() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let profile = own
        .ancestors()
        .skip(1)
        .find(|directory| !directory.ends_with("deps"));
    let target = profile.and_then(Path::parent);
    Ok(target
        .context("a test program lies in a target directory")?
        .to_owned())
}

/// A program that set-up has unpacked: of a known version, whatever the machine has in PATH.
///
/// # Errors
/// It is not there.
pub fn unpacked(name: &str) -> Result<PathBuf> {
    let program = target()?.join("tools").join(name);
    ensure!(
        program.is_file(),
        "{} is not there: run `cargo xtask setup`",
        program.display()
    );
    Ok(program)
}

/// A file or directory of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
