//! What the tests with podman need beside podman itself and the sentinel's binary: a root file system with Postfix.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{setup, shell};

/// What is in the root file system beside Debian's smallest; and its suite, whose keys every Debian has.
const PACKAGES: &str = "postfix,procps";
const SUITE: &str = "bookworm";

/// Makes it where it is missing.
///
/// # Errors
/// The packages cannot be had.
pub(crate) fn root_file_system() -> Result<()> {
    let cache = shell::target()?.join("podman");
    let archive = cache.join("postfix.tar");
    if archive.is_file() {
        return Ok(());
    }
    fs::create_dir_all(&cache)?;
    let unfinished = cache.join("unfinished.tar");
    let mut words = shell::as_root("unpacking Debian packages into a root file system")?;
    words.extend(["mmdebstrap", "--quiet", "--variant=minbase"]);
    let include = format!("--include={PACKAGES}");
    words.extend([include.as_str(), SUITE]);
    let (program, arguments) = words.split_first().context("mmdebstrap is the last of them")?;
    let mut mmdebstrap = Command::new(program);
    mmdebstrap
        .args(arguments)
        .arg(&unfinished)
        .env("PATH", setup::path()?);
    println!(
        "making a root file system with Postfix: {}",
        shell::words(&mmdebstrap)
    );
    shell::run(&mut mmdebstrap).context("mmdebstrap failed (its words are above)")?;
    Ok(fs::rename(unfinished, archive)?)
}
