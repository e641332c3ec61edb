//! The images, and where they are kept between runs: below target/podman, in a store that every node reads and none writes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{master_cf, tools};

/// Debian's Postfix, as `cargo xtask test` has made it of Debian's packages, with the lab's configuration.
pub(super) const POSTFIX: &str = "localhost/postfix:lab";
/// The image of deploy/container/Containerfile.
pub(super) const SENTINEL: &str = "localhost/smtp-sentinel:lab";

/// Slots of `smtp inet` in the pods: room for a flood that trips, and for more before master switches its own stress mode on.
pub const SLOTS: u32 = 30;

/// Where the root file system is, and what is made of it.
pub(super) fn cache() -> Result<PathBuf> {
    Ok(tools::target()?.join("podman"))
}

/// The store with [`POSTFIX`] in it.
pub(super) fn store() -> Result<PathBuf> {
    Ok(cache()?.join("images"))
}

/// The root file system with Debian's Postfix in it.
pub(super) fn root_file_system() -> Result<PathBuf> {
    let archive = cache()?.join("postfix.tar");
    ensure!(
        archive.is_file(),
        "{} is not there: `cargo xtask test` makes it",
        archive.display()
    );
    Ok(archive)
}

/// Makes what is missing of the store with `podman`, which is told of no other store by itself. One node at a time; the
/// others wait.
pub(super) fn prepare(podman: impl Fn(&[&str]) -> Result<String>) -> Result<()> {
    let cache = cache()?;
    fs::create_dir_all(&cache)?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    let archive = root_file_system()?;
    let recipe = recipe(&archive)?;
    let made = cache.join("images.made");
    if fs::read_to_string(&made).is_ok_and(|of| of == recipe) {
        return Ok(());
    }
    let _ = fs::remove_file(&made);
    let store = store()?;
    if store.exists() {
        fs::remove_dir_all(&store)?;
    }
    fs::create_dir_all(&store)?;
    let context = tempfile::tempdir_in(&cache)?;
    configure(context.path())?;
    let base = "localhost/postfix:debian";
    let root = store.to_string_lossy();
    let in_store = |words: &[&str]| podman(&[&["--root", &*root], words].concat());
    in_store(&["import", "--quiet", &archive.to_string_lossy(), base])?;
    fs::write(
        context.path().join("Containerfile"),
        format!(
            "FROM {base}\nCOPY main.cf master.cf /etc/postfix/\nCMD [\"/usr/sbin/postfix\", \"start-fg\"]\n"
        ),
    )?;
    in_store(&[
        "build",
        "--quiet",
        "--tag",
        POSTFIX,
        &context.path().to_string_lossy(),
    ])?;
    Ok(fs::write(made, recipe)?)
}

/// main.cf and master.cf for a pod; nothing of the lab's own directories is in there.
pub(super) fn configure(directory: &Path) -> Result<()> {
    fs::write(directory.join("main.cf"), main_cf())?;
    Ok(fs::write(directory.join("master.cf"), master_cf::plain(SLOTS))?)
}

/// Debian's own directories; the rest as in the lab.
fn main_cf() -> String {
    let lab = master_cf::main_cf(Path::new("/lab"), "");
    let own: Vec<&str> = lab.lines().filter(|line| !line.contains("/lab")).collect();
    format!("{}\nmaillog_file = /var/log/mail.log\n", own.join("\n"))
}

/// What the store is made of.
fn recipe(archive: &Path) -> Result<String> {
    let meta = archive.metadata()?;
    Ok(format!(
        "{:?} {}\n{}\n{}",
        meta.modified()?,
        meta.len(),
        main_cf(),
        master_cf::plain(SLOTS)
    ))
}

/// /etc/postfix of the image, configured, to be mounted over it.
pub(super) fn etc_postfix(to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let output = Command::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(root_file_system()?)
        .arg("--directory")
        .arg(to)
        .args(["--strip-components=3", "./etc/postfix"])
        .output()?;
    ensure!(
        output.status.success(),
        "no /etc/postfix in the root file system: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    configure(to)
}

/// The directory that the sentinel's image is built from: the static binary, not older than its sources.
///
/// # Errors
/// It is not there, or older.
pub(super) fn context() -> Result<PathBuf> {
    let target = tools::target()?;
    let context = target.join("image");
    crate::sentinel::ensure_of_today(
        &context.join("smtp-sentinel"),
        &target.join("image.d"),
        "run `cargo xtask image` (`cargo xtask test` builds it too)",
    )
    .context("the static binary")?;
    Ok(context)
}
