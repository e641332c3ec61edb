//! Reads a master.cf without being led anywhere, and says beforehand whether it could be replaced.
//!
//! Everything goes through a handle of the configuration directory, so that a directory swapped in between cannot
//! mix two of them. Nothing here writes; [`super::replace`] does.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use xattr::FileExt as _;

use super::entry::{Digest, FileId};
use super::lock::{LockError, PARTING, flock_within};
use crate::postfix::root::{look_at, reopen};
use crate::postfix::{Home, Root};

pub(super) const MASTER_CF: &str = "master.cf";
/// What postconf(1) calls its temporary file (Postfix src/util/edit_file.c, EDIT_FILE_SUFFIX).
pub(super) const MASTER_CF_TMP: &str = "master.cf.tmp";

/// A master.cf is some kilobytes. Above this it is not one, and not read.
pub(super) const SIZE_LIMIT: u64 = 1 << 20;

/// A lock in a container that is not free by then is somebody's who wants us to wait.
const PATIENCE_WITH_CONTAINERS: Duration = Duration::from_millis(100);

/// Why a master.cf is left alone.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{} is a symbolic link: we would replace the link and not the file; make it a file", .0.display())]
    Symlink(PathBuf),
    #[error(
        "{} has {links} names (hard links): replacing one would leave the others behind; make it a file of its own",
        .path.display()
    )]
    HardLink { path: PathBuf, links: u64 },
    #[error("{} is not a regular file", .0.display())]
    NotRegular(PathBuf),
    #[error("{} is larger than {SIZE_LIMIT} bytes, too large for a master.cf", .0.display())]
    TooLarge(PathBuf),
    #[error("{} is a mount of its own (a bind mount, a ConfigMap): it cannot be replaced; mount the directory", .0.display())]
    Mount(PathBuf),
    #[error(
        "{} is reached through a symbolic link, which may lead anywhere by the next moment; configure the directory itself",
        .0.display()
    )]
    LinkOnTheWay(PathBuf),
    #[error(
        "{} is on a mount of its own in its container (a volume, a ConfigMap), which is not ours to change; have it in \
         the container's own file system",
        .0.display()
    )]
    MountOnTheWay(PathBuf),
    #[error("{} is setuid, setgid, or has capabilities of its own, and we would be the one who gives them to the new file", .0.display())]
    Privileged(PathBuf),
    #[error("{} is marked immutable or append-only: `chattr -ia` it, or leave its directory out", .0.display())]
    Immutable(PathBuf),
    #[error("cannot replace files in {}: {source}; run as root, with that directory writable", .path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("{} is locked by somebody else (postconf?) for more than {} ms; try again later", .path.display(), .waited.as_millis())]
    Busy { path: PathBuf, waited: Duration },
    #[error("{} is in the way and is neither ours nor postconf's: look at it, and remove it", .0.display())]
    TempTaken(PathBuf),
    #[error("{} was changed by somebody else while we were at it; it is theirs, and we did not touch it", .0.display())]
    Changed(PathBuf),
    #[error(
        "cannot give the new {} the attribute {} of the old one: {source}; the file was left as it was",
        .path.display(), .name.display()
    )]
    Attribute {
        path: PathBuf,
        name: OsString,
        source: io::Error,
    },
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl FileError {
    pub(super) fn io(what: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path, source }
    }

    /// Whether the file is simply not there.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A configuration directory that is open.
///
/// Every file in it is named by this descriptor and a name without a slash, on the host and in a container alike. What
/// differs is only how the directory itself was reached: see [`Root::open_dir`].
#[derive(Debug)]
pub struct ConfigDir {
    fd: OwnedFd,
    home: Home,
}

/// A master.cf as it was read, with all that a replacement must take over from it.
#[derive(Debug, Clone)]
pub struct Content {
    pub bytes: Vec<u8>,
    pub sha: Digest,
    pub id: FileId,
    pub(super) mode: Mode,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) xattrs: Vec<(OsString, Vec<u8>)>,
}

impl ConfigDir {
    pub fn open(home: &Home) -> Result<Self, FileError> {
        let path = home.config_dir.clone();
        let fd = home.root.open_dir(&path).map_err(|error| match error {
            Errno::LOOP => FileError::LinkOnTheWay(path),
            Errno::XDEV => FileError::MountOnTheWay(path),
            error => FileError::io("open", path)(error.into()),
        })?;
        Ok(Self {
            fd,
            home: home.clone(),
        })
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    pub fn path(&self) -> &Path {
        &self.home.config_dir
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// From here on no other sentinel edits this master.cf, as long as this handle lives.
    pub(super) fn claim(&self) -> Result<(), LockError> {
        // Asked every few seconds; and whoever holds the lock of a directory in a container need be no sentinel.
        let patience = match self.home.root {
            Root::Own => PARTING,
            Root::Container(_) => Duration::ZERO,
        };
        match flock_within(self.fd(), patience) {
            Ok(true) => Ok(()),
            Ok(false) => Err(LockError::Claimed {
                config_dir: self.path().to_owned(),
            }),
            Err(source) => Err(LockError::Claim {
                path: self.path().to_owned(),
                source,
            }),
        }
    }

    /// The master.cf, unless it is something that we must not replace.
    pub fn read(&self) -> Result<Content, FileError> {
        let path = self.file(MASTER_CF);
        let found = match look_at(self.fd(), MASTER_CF) {
            Ok(found) => found,
            Err(Errno::LOOP) => return Err(FileError::Symlink(path)),
            Err(Errno::XDEV) => return Err(FileError::Mount(path)),
            Err(error) => return Err(FileError::io("open", path)(error.into())),
        };
        // Before it is opened: the open alone of a device has effects, and that of a FIFO may wait.
        let stat =
            rustix::fs::fstat(&found).map_err(|error| FileError::io("stat", path.clone())(error.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Symlink => return Err(FileError::Symlink(path)),
            _ => return Err(FileError::NotRegular(path)),
        }
        let file =
            reopen(&found, OFlags::RDONLY).map_err(|error| FileError::io("open", path)(error.into()))?;
        self.read_open(&file)
    }

    /// The bytes that a master would read, links followed: to look at, not to edit.
    pub fn read_followed(&self) -> Result<Vec<u8>, FileError> {
        read_followed(&self.home)
    }

    /// How long to wait for a lock of somebody else's: in a container anybody may hold it, and for as long as he likes.
    pub(super) fn patience(&self, usual: Duration) -> Duration {
        match self.home.root {
            Root::Own => usual,
            Root::Container(_) => usual.min(PATIENCE_WITH_CONTAINERS),
        }
    }

    /// Whether the path still stands for the directory that is open.
    pub(super) fn still_named(&self) -> bool {
        let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        match (rustix::fs::fstat(&self.fd), self.home.root.stat(self.path())) {
            (Ok(open), Ok(named)) => id(open) == id(named),
            _ => false,
        }
    }

    fn read_open(&self, file: &File) -> Result<Content, FileError> {
        let path = || self.file(MASTER_CF);
        let stat = rustix::fs::fstat(file).map_err(|error| FileError::io("stat", path())(error.into()))?;
        if stat.st_nlink != 1 {
            return Err(FileError::HardLink {
                path: path(),
                links: stat.st_nlink,
            });
        }
        let mut bytes = Vec::new();
        file.take(SIZE_LIMIT + 1)
            .read_to_end(&mut bytes)
            .map_err(FileError::io("read", path()))?;
        if bytes.len() as u64 > SIZE_LIMIT {
            return Err(FileError::TooLarge(path()));
        }
        let content = Content {
            sha: Digest::of(&bytes),
            bytes,
            id: file_id(&stat),
            mode: Mode::from_raw_mode(stat.st_mode),
            uid: stat.st_uid,
            gid: stat.st_gid,
            xattrs: attributes(file).map_err(FileError::io("read the attributes of", path()))?,
        };
        // We would be the one who gives them out.
        if self.home.root != Root::Own && content.privileged() {
            return Err(FileError::Privileged(path()));
        }
        Ok(content)
    }

    /// Whether master.cf could be replaced, as far as that can be told without trying.
    pub fn replaceable(&self) -> Result<(), FileError> {
        let path = self.file(MASTER_CF);
        rustix::fs::accessat(
            self.fd(),
            c".",
            Access::WRITE_OK | Access::EXEC_OK,
            AtFlags::EACCESS,
        )
        .map_err(|error| FileError::Unwritable {
            path: self.path().to_owned(),
            source: error.into(),
        })?;
        let statx = rustix::fs::statx(
            self.fd(),
            MASTER_CF,
            AtFlags::SYMLINK_NOFOLLOW,
            StatxFlags::BASIC_STATS,
        )
        .map_err(|error| FileError::io("stat", path.clone())(error.into()))?;
        // The attribute is known since Linux 5.8; without it the rename says EBUSY, later and as well.
        if statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(FileError::Mount(path));
        }
        if statx
            .stx_attributes
            .intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND)
        {
            return Err(FileError::Immutable(path));
        }
        Ok(())
    }
}

impl Content {
    /// Whether whoever runs it would get more than he has; nobody runs a master.cf.
    fn privileged(&self) -> bool {
        let special = Mode::SUID | Mode::SGID;
        let ours_to_give =
            |name: &OsString| name == "security.capability" || name.to_string_lossy().starts_with("trusted.");
        self.mode.intersects(special) || self.xattrs.iter().any(|(name, _)| ours_to_give(name))
    }
}

/// The bytes that a master would read, links and mounts followed as far as its root reaches: to look at, not to edit.
pub fn read_followed(home: &Home) -> Result<Vec<u8>, FileError> {
    let path = home.config_dir.join(MASTER_CF);
    home.root
        .read(&path, SIZE_LIMIT)
        .map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => FileError::TooLarge(path),
            io::ErrorKind::InvalidInput => FileError::NotRegular(path),
            _ => FileError::io("read", path)(error),
        })
}

pub(super) fn file_id(stat: &rustix::fs::Stat) -> FileId {
    FileId {
        dev: stat.st_dev,
        ino: stat.st_ino,
        size: stat.st_size.cast_unsigned(),
        mtime: (stat.st_mtime, stat.st_mtime_nsec),
        ctime: (stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// All extended attributes that belong to the file and not to the bytes in it: `security.ima` and `security.evm` are
/// digests that the kernel makes, and a copied one would make the new file unreadable where they are enforced.
pub(super) fn attributes(file: &File) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let names = match file.list_xattr() {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut attributes = Vec::new();
    for name in names.filter(|name| name != OsStr::new("security.ima") && name != OsStr::new("security.evm"))
    {
        if let Some(value) = file.get_xattr(&name)? {
            attributes.push((name, value));
        }
    }
    Ok(attributes)
}
