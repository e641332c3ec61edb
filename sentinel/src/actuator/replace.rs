//! Replaces a master.cf atomically, by the protocol by which postconf(1) does it.
//!
//! The protocol (Postfix src/util/edit_file.c): whoever holds an exclusive flock on `master.cf.tmp`, and finds that
//! name still standing for the file that is locked, owns the temporary file and the right to rename it over
//! master.cf. So a postconf that runs meanwhile waits for us, and we, for a bounded time, for it. The file is created
//! with mode 0600, so that nobody else can hold a lock on it, and gets its final mode as late as possible.
//!
//! # The order of the fsyncs
//! What must hold after a power loss at any moment: master.cf is either the old file or the new one, whole; and if
//! it may be the new one, the journal on the disk says so.
//! 1. The backup, and its directory: before the intent that names it.
//! 2. The journal's intent: before the rename. So an edit that survives has its intent.
//! 3. The temporary file, data and attributes: before the rename. The rename may reach the disk before data that was
//!    not synced (XFS, ext4 with `noauto_da_alloc`), and the name would then stand for an empty file.
//! 4. The directory: before the master is signalled, and before a history entry settles the intent. Else an undo
//!    that is settled could come undone: the old directory entry comes back, with our lines, and no open intent
//!    tells of them (the marker in the file still would, when the next start looks).
//!
//! The journal's last line (done) comes after all that; lost, it costs one reload too many at the next start.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use xattr::FileExt as _;

use super::entry::FileId;
use super::file::{ConfigDir, Content, FileError, MASTER_CF, MASTER_CF_TMP, SIZE_LIMIT, attributes, file_id};
use super::lock::{PARTING, flock_within};
use super::steps::Steps;
use crate::postfix::root::{look_at, reopen};

/// postconf(1) holds its lock for some milliseconds. Long enough for a slow disk, short enough for a tick.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// The mode of a temporary file that is being worked on.
const DRAFT_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Attributes that change the permission bits, or are changed by them: they go on after the mode.
const ACL: &str = "system.posix_acl_access";

/// The temporary file, empty and locked. As long as it lives, no postconf(1) edits master.cf.
///
/// It has no `Drop` that removes the file: [`Draft::abandon`] does, and a process that dies leaves what the next one,
/// ours or postconf's, takes over by the same protocol.
#[derive(Debug)]
pub(super) struct Draft<'d> {
    dir: &'d ConfigDir,
    temp: File,
}

/// A replacement that failed.
#[derive(Debug)]
pub(super) struct CommitError {
    pub(super) error: FileError,
    /// The new file is in place all the same: the failure came after the rename.
    pub(super) renamed: bool,
}

impl<'d> Draft<'d> {
    /// Locks. A temporary file that somebody died over is taken over or removed, as the protocol has it; but one
    /// with bytes in it and a mode that a draft does not have is only removed if `dead_copy` knows its bytes.
    pub(super) fn begin(
        dir: &'d ConfigDir,
        dead_copy: &dyn Fn(&[u8]) -> bool,
        steps: &mut Steps,
    ) -> Result<Self, FileError> {
        let path = dir.file(MASTER_CF_TMP);
        steps.step("lock").map_err(FileError::io("lock", path.clone()))?;
        let mut waited = Duration::ZERO;
        let patience = dir.patience(LOCK_WAIT);
        while waited < patience {
            let temp = open_temp(dir)?;
            if !flock_within(&temp, LOCK_POLL).map_err(FileError::io("lock", path.clone()))? {
                waited += LOCK_POLL;
                continue;
            }
            match standing(dir, &temp, dead_copy)? {
                Standing::Ours => {
                    temp.set_len(0).map_err(FileError::io("truncate", path))?;
                    return Ok(Self { dir, temp });
                }
                // Renamed or removed while we waited for the lock: not a wait, but neither for ever.
                Standing::Gone => waited += Duration::from_millis(1),
                Standing::Dead => {
                    unlink(dir)?;
                    waited += Duration::from_millis(1);
                }
                Standing::Foreign => return Err(FileError::TempTaken(path)),
            }
        }
        Err(FileError::Busy {
            path,
            waited: patience,
        })
    }

    /// Puts `bytes` in the place of `original`, with its owner, mode and attributes, provided that master.cf is still
    /// that very file. Returns what the new one is known by.
    pub(super) fn commit(
        mut self,
        original: &Content,
        bytes: &[u8],
        steps: &mut Steps,
    ) -> Result<FileId, CommitError> {
        if let Err(error) = self
            .fill(original, bytes, steps)
            .and_then(|()| self.rename(original, steps))
        {
            self.abandon();
            return Err(CommitError {
                error,
                renamed: false,
            });
        }
        let path = self.dir.file(MASTER_CF);
        let synced = steps
            .step("directory.sync")
            .and_then(|()| rustix::fs::fsync(self.dir.fd()).map_err(io::Error::from))
            .and_then(|()| rustix::fs::fstat(&self.temp).map_err(io::Error::from));
        match synced {
            Ok(stat) => Ok(file_id(&stat)),
            Err(source) => {
                let error = FileError::io("sync the directory of", path)(source);
                Err(CommitError { error, renamed: true })
            }
        }
    }

    /// Removes the temporary file, while its lock is still held: after that it may be somebody else's.
    pub(super) fn abandon(self) {
        if let Err(error) = unlink(self.dir) {
            tracing::warn!(%error, "an empty temporary file stays behind; the next edit takes it over");
        }
    }

    fn fill(&mut self, original: &Content, bytes: &[u8], steps: &mut Steps) -> Result<(), FileError> {
        let path = self.dir.file(MASTER_CF_TMP);
        let io = |what| FileError::io(what, path.clone());
        steps
            .step("temp.write")
            .and_then(|()| self.temp.write_all(bytes))
            .map_err(io("write"))?;
        // Before the mode: a change of owner clears setuid and setgid.
        steps
            .step("temp.owner")
            .and_then(|()| {
                let (uid, gid) = (Uid::from_raw(original.uid), Gid::from_raw(original.gid));
                rustix::fs::fchown(&self.temp, Some(uid), Some(gid)).map_err(io::Error::from)
            })
            .map_err(io("set the owner of"))?;
        steps
            .step("temp.attributes")
            .map_err(io("set the attributes of"))?;
        self.copy_attributes(original, |name| name != ACL)?;
        steps
            .step("temp.mode")
            .and_then(|()| rustix::fs::fchmod(&self.temp, original.mode).map_err(io::Error::from))
            .map_err(io("set the mode of"))?;
        self.copy_attributes(original, |name| name == ACL)?;
        steps
            .step("temp.sync")
            .and_then(|()| self.temp.sync_all())
            .map_err(io("sync"))
    }

    /// Makes those attributes of the temporary file that `which` names the same as the original's: the missing are
    /// set, the surplus (a default ACL of the directory gives new files one) taken off.
    fn copy_attributes(&self, original: &Content, which: impl Fn(&str) -> bool) -> Result<(), FileError> {
        let path = || self.dir.file(MASTER_CF);
        let chosen = |name: &std::ffi::OsStr| which(&name.to_string_lossy());
        let present = attributes(&self.temp).map_err(FileError::io("read the attributes of", path()))?;
        let failed = |name: &std::ffi::OsString, source| FileError::Attribute {
            path: path(),
            name: name.clone(),
            source,
        };
        for (name, _) in present.iter().filter(|(name, _)| chosen(name)) {
            if !original.xattrs.iter().any(|(wanted, _)| wanted == name) {
                self.temp
                    .remove_xattr(name)
                    .map_err(|source| failed(name, source))?;
            }
        }
        for attribute in original.xattrs.iter().filter(|(name, _)| chosen(name)) {
            let (name, value) = attribute;
            if !present.contains(attribute) {
                self.temp
                    .set_xattr(name, value)
                    .map_err(|source| failed(name, source))?;
            }
        }
        Ok(())
    }

    fn rename(&self, original: &Content, steps: &mut Steps) -> Result<(), FileError> {
        let path = self.dir.file(MASTER_CF);
        // Those who do not keep to the protocol (an editor, Ansible) may have been at it since we read it. What is
        // left is the time between this look and the rename, some microseconds.
        steps
            .step("recheck")
            .map_err(FileError::io("read", path.clone()))?;
        let now = self.dir.read()?;
        if now.id != original.id || now.sha != original.sha {
            return Err(FileError::Changed(path));
        }
        steps
            .step("rename")
            .map_err(FileError::io("replace", path.clone()))?;
        match rustix::fs::renameat(self.dir.fd(), MASTER_CF_TMP, self.dir.fd(), MASTER_CF) {
            Ok(()) => Ok(()),
            Err(Errno::BUSY) => Err(FileError::Mount(path)),
            Err(error) => Err(FileError::io("replace", path)(error.into())),
        }
    }
}

/// Removes a temporary file that a crash left behind, if it is surely of no use to anyone: empty and a draft, or
/// another name of master.cf itself, or with bytes that `dead_copy` knows. Whoever works on it holds its lock, and
/// then it stays.
pub(super) fn sweep(dir: &ConfigDir, dead_copy: &dyn Fn(&[u8]) -> bool) -> Result<(), FileError> {
    let path = dir.file(MASTER_CF_TMP);
    if let Err(Errno::NOENT) = rustix::fs::statat(dir.fd(), MASTER_CF_TMP, AtFlags::SYMLINK_NOFOLLOW) {
        return Ok(());
    }
    let temp = open_temp(dir)?;
    if !flock_within(&temp, dir.patience(PARTING)).map_err(FileError::io("lock", path))? {
        return Ok(());
    }
    match standing(dir, &temp, dead_copy)? {
        Standing::Ours | Standing::Dead => unlink(dir),
        Standing::Gone | Standing::Foreign => Ok(()),
    }
}

/// What a locked temporary file is.
enum Standing {
    /// A draft, and the name stands for it: ours to fill.
    Ours,
    /// The name stands for something else by now.
    Gone,
    /// Left behind by a crash at its very end: to be removed.
    Dead,
    /// Nothing that this protocol makes.
    Foreign,
}

fn standing(dir: &ConfigDir, temp: &File, dead_copy: &dyn Fn(&[u8]) -> bool) -> Result<Standing, FileError> {
    let io = |error: Errno| FileError::io("stat", dir.file(MASTER_CF_TMP))(error.into());
    let locked = rustix::fs::fstat(temp).map_err(io)?;
    let named = match rustix::fs::statat(dir.fd(), MASTER_CF_TMP, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => named,
        Err(Errno::NOENT) => return Ok(Standing::Gone),
        Err(error) => return Err(io(error)),
    };
    if (locked.st_dev, locked.st_ino) != (named.st_dev, named.st_ino) {
        return Ok(Standing::Gone);
    }
    if FileType::from_raw_mode(named.st_mode) != FileType::RegularFile {
        return Ok(Standing::Foreign);
    }
    if named.st_nlink > 1 {
        // A power loss in the middle of a rename can leave one file under both names (edit_file.c on the same).
        return Ok(
            match rustix::fs::statat(dir.fd(), MASTER_CF, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(file) if (file.st_dev, file.st_ino) == (named.st_dev, named.st_ino) => Standing::Dead,
                _ => Standing::Foreign,
            },
        );
    }
    // Bytes in it, and still a draft: whoever wrote them died before the end. postconf(1) truncates it too.
    if Mode::from_raw_mode(named.st_mode) == DRAFT_MODE {
        return Ok(Standing::Ours);
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(temp, SIZE_LIMIT), &mut bytes)
        .map_err(FileError::io("read", dir.file(MASTER_CF_TMP)))?;
    Ok(if bytes.is_empty() || dead_copy(&bytes) {
        Standing::Dead
    } else {
        Standing::Foreign
    })
}

fn open_temp(dir: &ConfigDir) -> Result<File, FileError> {
    let path: PathBuf = dir.file(MASTER_CF_TMP);
    match existing_or_new(dir) {
        Ok(Some(temp)) => Ok(temp),
        Ok(None) | Err(Errno::LOOP | Errno::XDEV) => Err(FileError::TempTaken(path)),
        Err(error @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => Err(FileError::Unwritable {
            path: dir.path().to_owned(),
            source: error.into(),
        }),
        Err(error) => Err(FileError::io("create", path)(error.into())),
    }
}

/// `None`: something else than a regular file has the name. It is not opened, which with a device could have effects.
fn existing_or_new(dir: &ConfigDir) -> Result<Option<File>, Errno> {
    let create = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut last = Errno::EXIST;
    // It may come and go between the two looks, but not for ever.
    for _ in 0..16 {
        match look_at(dir.fd(), MASTER_CF_TMP) {
            Ok(found) => {
                let stat = rustix::fs::fstat(&found)?;
                let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                return regular.then(|| reopen(&found, OFlags::RDWR)).transpose();
            }
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        match rustix::fs::openat(dir.fd(), MASTER_CF_TMP, create, DRAFT_MODE) {
            Ok(fd) => return Ok(Some(File::from(fd))),
            Err(Errno::EXIST) => last = Errno::EXIST,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

fn unlink(dir: &ConfigDir) -> Result<(), FileError> {
    match rustix::fs::unlinkat(dir.fd(), MASTER_CF_TMP, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(FileError::io("remove", dir.file(MASTER_CF_TMP))(error.into())),
    }
}

#[cfg(test)]
#[path = "replace_tests.rs"]
mod tests;
