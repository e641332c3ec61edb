//! Keeps the bytes of each master.cf before our first edit, until that edit is undone.
//!
//! For people, and for the worst case: an undo takes our lines out of whatever the file is by then, and never puts
//! a backup over somebody else's work.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::entry::Digest;
use super::error::ActError;
use super::journal::sync_dir;
use super::steps::Steps;

/// Where the backup of these bytes is or goes.
fn path(state_dir: &Path, instance: &str, sha: &Digest) -> PathBuf {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '_'
        }
    };
    let instance: String = instance.chars().map(plain).take(64).collect();
    state_dir
        .join("backup")
        .join(format!("{instance}-{}.master.cf", sha.short()))
}

/// On the disk when this returns, name and all.
pub(super) fn keep(
    state_dir: &Path,
    instance: &str,
    bytes: &[u8],
    steps: &mut Steps,
) -> Result<PathBuf, ActError> {
    let path = path(state_dir, instance, &Digest::of(bytes));
    write(state_dir, &path, bytes, steps)
        .map_err(|source| ActError::Backup {
            path: path.clone(),
            source,
        })
        .map(|()| path)
}

fn write(state_dir: &Path, path: &Path, bytes: &[u8], steps: &mut Steps) -> io::Result<()> {
    steps.step("backup.directory")?;
    let dir = state_dir.join("backup");
    match DirBuilder::new().mode(0o700).create(&dir) {
        Ok(()) => sync_dir(state_dir)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    // Named by its bytes, so one that is there and whole is this one; a crash can have left half of it.
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    steps.step("backup.write")?;
    let half = path.with_extension("new");
    let mut file = create(&half)?;
    file.write_all(bytes)?;
    steps.step("backup.sync")?;
    file.sync_all()?;
    steps.step("backup.rename")?;
    std::fs::rename(&half, path)?;
    sync_dir(&dir)
}

fn create(path: &Path) -> io::Result<File> {
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(nofollow)
        .open(path)
}

/// No longer needed. One that cannot be removed is only in the way of nobody.
pub(super) fn drop_kept(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "a backup that is no longer needed could not be removed");
    }
}
