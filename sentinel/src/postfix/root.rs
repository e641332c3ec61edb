//! Where the paths of a Postfix begin: at our own root, or at that of a container.
//!
//! Owns every way into the files of a Postfix, and there are two. [`Root::open_dir`] is for changes: on the way into a
//! container it follows no link and crosses no mount. [`Root::read`] is for looking: it sees what the processes there
//! see, links and mounts included, and still never leaves their root. Neither opens anything but a regular file, since
//! the open alone of a device has effects, and that of a FIFO waits.
//!
//! A container's root is held open from the moment that it was found. So nothing that happens to its processes, its
//! pid or its links later makes a path mean something else.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// RESOLVE_BENEATH and RESOLVE_IN_ROOT give EAGAIN while a rename anywhere gets in their way (openat2(2)).
const ATTEMPTS: usize = 32;

/// Where the paths of a Postfix begin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Root {
    /// They mean the same to it as to us.
    #[default]
    Own,
    Container(Arc<Container>),
}

/// A container, of which nothing is believed but what the kernel says.
#[derive(Debug)]
pub struct Container {
    /// Names it in instances, in the journal, and to people; see [`super::cgroup::Dwelling::name`].
    pub name: String,
    /// What its inhabitants cannot choose: those that share it share a place among the watched.
    pub group: String,
    /// As the cgroup path has it, for whoever looks for the pod.
    pub pod_uid: Option<String>,
    /// As its own /etc/hostname has it: its word, and no more than that.
    pub hostname: Option<String>,
    /// Inode of its mount namespace.
    pub mount_namespace: u64,
    root: OwnedFd,
    identity: (u64, u64),
}

impl PartialEq for Container {
    /// The same root of the same container, whoever holds it open.
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.mount_namespace, self.identity)
            == (&other.name, other.mount_namespace, other.identity)
    }
}

impl Eq for Container {}

impl Container {
    /// `root` is its root directory, open.
    pub fn new(
        root: OwnedFd,
        name: String,
        group: String,
        pod_uid: Option<String>,
        mount_namespace: u64,
    ) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&root)?;
        let mut container = Self {
            name,
            group,
            pod_uid,
            hostname: None,
            mount_namespace,
            root,
            identity: (stat.st_dev, stat.st_ino),
        };
        container.hostname = container
            .read(Path::new("/etc/hostname"), 256)
            .ok()
            .and_then(hostname);
        Ok(container)
    }

    fn resolve(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        resolved(self.root.as_fd(), &below(path), flags, resolve)
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        read_regular(self.followed(path)?, limit)
    }

    fn followed(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.resolve(
            path,
            OFlags::PATH,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }
}

impl Root {
    pub fn container(&self) -> Option<&Container> {
        match self {
            Self::Own => None,
            Self::Container(container) => Some(container),
        }
    }

    /// The name of the container; `None` for our own root.
    pub fn name(&self) -> Option<&str> {
        self.container().map(|container| container.name.as_str())
    }

    /// Opens a directory in which something is to be changed. In a container: ELOOP where a symbolic link is on the
    /// way, EXDEV where a mount is.
    pub fn open_dir(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match self {
            Self::Own => rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()),
            Self::Container(container) => container.resolve(path, flags, STRICT),
        }
    }

    /// The bytes of a regular file as the processes there would read it.
    ///
    /// # Errors
    /// What opening it says; [`io::ErrorKind::InvalidInput`] when it is no regular file, [`io::ErrorKind::FileTooLarge`]
    /// when it has more than `limit` bytes.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        match self {
            Self::Own => {
                let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                read_regular(found, limit)
            }
            Self::Container(container) => container.read(path, limit),
        }
    }

    /// What the processes there would find under a path, links followed.
    pub fn stat(&self, path: &Path) -> io::Result<Stat> {
        Ok(match self {
            Self::Own => rustix::fs::stat(path)?,
            Self::Container(container) => rustix::fs::fstat(container.followed(path)?)?,
        })
    }
}

/// For changes: nothing may lead anywhere but straight down.
const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A name in a directory, without opening what it stands for: ELOOP for a symbolic link, EXDEV where something is mounted
/// on it in the mount namespace of the directory, which a rename from another one would take away without a word.
pub fn look_at(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    resolved(dir, Path::new(name), OFlags::PATH | OFlags::CLOEXEC, STRICT)
}

/// Opens what an O_PATH descriptor stands for, and nothing that was put in its place since.
pub fn reopen(found: &OwnedFd, flags: OFlags) -> Result<File, Errno> {
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

fn resolved(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut last = Errno::AGAIN;
    for _ in 0..ATTEMPTS {
        match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => last = Errno::AGAIN,
            result => return result,
        }
    }
    Err(last)
}

/// The path without what makes it absolute; the root itself is `.`.
fn below(path: &Path) -> PathBuf {
    let parts = path
        .components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir));
    let below: PathBuf = parts.collect();
    if below.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        below
    }
}

fn read_regular(found: OwnedFd, limit: u64) -> io::Result<Vec<u8>> {
    let stat = rustix::fs::fstat(&found)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    let size = stat.st_size.cast_unsigned();
    let too_large = || {
        io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {limit} bytes"),
        )
    };
    if size > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // No more than the size that it claims: the files of /proc claim none, and reading some of them has effects.
    reopen(&found, OFlags::RDONLY)?
        .take(size)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A host name that can be shown anywhere.
fn hostname(bytes: Vec<u8>) -> Option<String> {
    let text = String::from_utf8(bytes).ok()?;
    let name = text.lines().next()?.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    (!name.is_empty() && name.chars().all(plain)).then(|| name.to_owned())
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
