//! What can go wrong in this room, and what the operator can do about it.

use std::io;
use std::path::PathBuf;

use super::check::CheckError;
use super::file::FileError;
use super::journal::JournalError;
use super::lock::LockError;
use super::signal::ReloadError;
use crate::postfix::ServiceId;
use crate::postfix::edit::EditError;

/// Why the actuator did not do what it was told to. Unless the variant says otherwise, master.cf is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: {source}", .path.display())]
    Edit { path: PathBuf, source: EditError },
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error("cannot keep a copy of master.cf as {}: {source}; free space there, or set paths.state_dir", .path.display())]
    Backup { path: PathBuf, source: io::Error },
    /// The lines are out of master.cf, or never were in; but the master may still run with them.
    #[error(transparent)]
    Reload(#[from] ReloadError),
    #[error("{service} in {} has no lines of ours, and the journal knows of none: nothing to take back", .path.display())]
    NothingOfOurs { path: PathBuf, service: ServiceId },
    /// Our lines are still in master.cf.
    #[error(
        "{cause}; and our lines could not be taken out of {} again: {error}; run `smtp-sentinel restore` when that is \
         cured",
        .path.display()
    )]
    Stuck {
        path: PathBuf,
        cause: Box<ActError>,
        error: Box<ActError>,
    },
}

impl ActError {
    /// Whether it is a matter of permissions: run as root, or grant the capability.
    pub fn not_permitted(&self) -> bool {
        let mut error: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(this) = error {
            if this
                .downcast_ref::<io::Error>()
                .is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied)
            {
                return true;
            }
            error = std::error::Error::source(this);
        }
        false
    }
}
