//! One daemon per state directory, and one owner per master.cf.
//!
//! Both are flock(2) locks: the kernel drops them with the process, however it dies, so none can be left behind.
//! The state directory has a file `lock`. For a master.cf the configuration directory itself is locked: the file is
//! replaced by each edit, so a lock on it would be a lock on the past, and a lock file of ours has no business in
//! Postfix's directory. Nobody else locks that directory: postconf(1) locks `master.cf.tmp`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};

/// Why a lock was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "smtp-sentinel is already running{} with state directory {}: stop the daemon first, or let it give back by itself",
        holder(.pid),
        .state_dir.display()
    )]
    Held { state_dir: PathBuf, pid: Option<i32> },
    #[error(
        "another smtp-sentinel, with another state directory, is in charge of {}/master.cf: stop it, or leave this \
         directory out of config_dirs",
        .config_dir.display()
    )]
    Claimed { config_dir: PathBuf },
    #[error(
        "{} can be written by others than its owner (mode {mode:o}): `chmod go-w` it, or set paths.state_dir to a \
         directory of our own",
        .state_dir.display()
    )]
    Exposed { state_dir: PathBuf, mode: u32 },
    #[error("cannot use {} as state directory: {source}; make it writable, or set paths.state_dir", .path.display())]
    State { path: PathBuf, source: io::Error },
    #[error("cannot lock {}: {source}; without that lock two sentinels could edit one master.cf", .path.display())]
    Claim { path: PathBuf, source: io::Error },
}

fn holder(pid: &Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// Held for the life of the daemon.
#[derive(Debug)]
pub(super) struct StateLock {
    _file: File,
}

impl StateLock {
    /// Makes `state_dir` if it is missing (mode 0700) and locks it.
    pub(super) fn take(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join("lock");
        let failed = |source| LockError::State {
            path: state_dir.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(failed)?;
        // Its mode is not ours to change: a state_dir = "/tmp" by mistake must not close /tmp to everyone.
        let mode = std::fs::metadata(state_dir).map_err(failed)?.mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(LockError::Exposed {
                state_dir: state_dir.to_owned(),
                mode,
            });
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(failed)?;
        if !flock_within(&file, PARTING).map_err(failed)? {
            let mut text = String::new();
            // The pid is a help for the reader of the message, no more: the lock itself is the truth.
            let pid = file
                .take(32)
                .read_to_string(&mut text)
                .ok()
                .and_then(|_| text.trim().parse().ok());
            return Err(LockError::Held {
                state_dir: state_dir.to_owned(),
                pid,
            });
        }
        // Likewise: on a full disk the lock still holds.
        let named = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| {
            let pid = std::process::id();
            writeln!(file, "{pid}")
        });
        if let Err(error) = named {
            tracing::warn!(%error, path = %path.display(), "the lock is held, but our pid could not be written to it");
        }
        Ok(Self { _file: file })
    }
}

/// How long a lock may be held by one that is on its way out: a daemon that is ending, or a child of ours, or of one
/// that was killed, between fork and exec, which has all our files open for a moment.
pub(super) const PARTING: Duration = Duration::from_millis(500);

/// Locks `file` within `patience`; `false` if somebody else has it all that time.
pub(super) fn flock_within(file: impl AsFd, patience: Duration) -> io::Result<bool> {
    const POLL: Duration = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if waited < patience => {
                std::thread::sleep(POLL);
                waited += POLL;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn second_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::take(dir.path()).unwrap();
        let error = StateLock::take(dir.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("(pid {})", std::process::id())),
            "{error}"
        );
        assert!(error.to_string().contains("stop the daemon first"), "{error}");
        drop(first);
        StateLock::take(dir.path()).unwrap();
    }

    #[test]
    fn makes_the_directory_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let _lock = StateLock::take(&state).unwrap();
        assert_eq!(std::fs::metadata(&state).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(
            std::fs::metadata(state.join("lock")).unwrap().mode() & 0o7777,
            0o600
        );
    }

    #[test]
    fn refuses_a_directory_that_others_can_write() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            StateLock::take(dir.path()),
            Err(LockError::Exposed { mode: 0o777, .. })
        ));
        assert_eq!(std::fs::metadata(dir.path()).unwrap().mode() & 0o7777, 0o777);
    }

    #[test]
    fn does_not_follow_a_planted_lock() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        let state = dir.path().join("state");
        DirBuilder::new().mode(0o700).create(&state).unwrap();
        std::os::unix::fs::symlink(&victim, state.join("lock")).unwrap();
        assert!(matches!(StateLock::take(&state), Err(LockError::State { .. })));
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }
}
