//! Running other programs: where they are, and as whom.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// The cargo that runs this task, in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments);
    command
}

/// Cargo's target directory, two above this very program.
pub(crate) fn target() -> Result<PathBuf> {
    let program = env::current_exe()?;
    let target = program.parent().and_then(Path::parent);
    Ok(target
        .context("xtask must be run by cargo, out of its target directory")?
        .to_owned())
}

/// Where a program is. Debian keeps `ip`, `postfix` and others in sbin, which a user's PATH need not have.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places
        .map(|place| place.join(program))
        .find(|file| file.is_file())
}

/// Runs a command and takes nothing but success.
///
/// # Errors
/// It cannot be started, or fails; its own words are on the terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = words(command);
    let status = command.status().with_context(|| format!("running `{line}`"))?;
    ensure!(status.success(), "`{line}` failed ({status})");
    Ok(())
}

/// Whether a command can be started and succeeds; says nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// The command line, for messages.
pub(crate) fn words(command: &Command) -> String {
    let all = std::iter::once(command.get_program()).chain(command.get_args());
    all.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

pub(crate) fn is_root() -> bool {
    // The owner of our own /proc entry is our effective user; std has no geteuid().
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// What to put before a command so that it runs as root: nothing when we are, sudo otherwise. `why` finishes "as root, ...".
///
/// # Errors
/// Not root, and there is no sudo.
pub(crate) fn as_root(why: &str) -> Result<Vec<&'static str>> {
    if is_root() {
        return Ok(Vec::new());
    }
    ensure!(
        find("sudo").is_some(),
        "{why} needs root, and there is no sudo here: run it as root"
    );
    Ok(vec!["sudo", "-E"])
}
