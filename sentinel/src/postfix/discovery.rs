//! Running Postfix masters, found in /proc.
//!
//! A name proves nothing: a master is a process of root whose executable is called `master` and lies beside an
//! `smtpd`. Anything weaker would let any user of the machine name the files that we read, and the programs that we
//! run, as root.
//!
//! To most masters paths mean the same as to us: to those of our own mount namespace, and to those of another one that
//! shows the same directories. (systemd gives every service with ProtectSystem= or PrivateTmp= a mount namespace of its
//! own, so this daemon's and Postfix's differ on many machines.) The others are in containers. They are watched where
//! [`Scope::containers`] says so, with the root of their container held open; else they are counted as ignored, with
//! the reason.
//!
//! In a container everything but what the kernel says can be made up: the files, the command line, the environment, a
//! thousand processes that look like a master. So nothing of it is believed beyond that container, no more than
//! [`LOOKED_AT`] masters of one are looked at, and who of them is watched is decided in [`super::fair`].

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use procfs::net::TcpState;
use procfs::process::{Process, Stat};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::arguments::{config_dir, keeps_session};
use super::cgroup::{self, Dwelling};
use super::processes::stat;
use super::root::Container;
use super::{Home, Master, Root};

/// Masters of one container (by [`Dwelling::group`]) that a survey looks at.
pub const LOOKED_AT: usize = 32;

/// Of a command line or an environment; the kernel lets a process have megabytes of both.
const ARGUMENTS_LIMIT: u64 = 1 << 18;

/// A master has some for each of its services. What has a million of them is none, and would cost a second a look.
const DESCRIPTORS: usize = 8192;

/// Which masters are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Of those to whom paths mean the same as to us, only these; all when it is empty.
    pub config_dirs: Vec<PathBuf>,
    /// Those in containers too.
    pub containers: bool,
    /// Of those in containers, only these; see [`cgroup::within`].
    pub cgroups: Vec<String>,
}

/// All that looks like a master.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// By pid.
    pub masters: Vec<Master>,
    pub ignored: Vec<Ignored>,
    pub unseen: Unseen,
}

/// What is called master and could not be looked into for want of a privilege. A number, since anybody can start thousands of
/// them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unseen {
    pub count: usize,
    /// Of the first; empty when there is none.
    pub reason: String,
}

/// A process that is called master and is none that we watch.
#[derive(Debug, PartialEq, Eq)]
pub struct Ignored {
    pub pid: i32,
    pub reason: String,
}

/// The running masters in `scope`.
pub fn masters(scope: &Scope) -> io::Result<Vec<Master>> {
    survey(scope).map(|survey| survey.masters)
}

/// The running masters in `scope`, and what was passed over and why.
pub fn survey(scope: &Scope) -> io::Result<Survey> {
    survey_at(Path::new("/proc"), scope)
}

/// The running masters of one home.
pub fn masters_of(home: &Home) -> io::Result<Vec<Master>> {
    match &home.root {
        Root::Own => masters(&Scope {
            config_dirs: vec![home.config_dir.clone()],
            ..Scope::default()
        }),
        Root::Container(_) => masters_in(home.root.name().unwrap_or_default(), &home.config_dir),
    }
}

/// The running masters of one directory of the container that has this name.
pub fn masters_in(container: &str, config_dir: &Path) -> io::Result<Vec<Master>> {
    let all = masters(&Scope {
        containers: true,
        ..Scope::default()
    })?;
    let these = |master: &Master| master.root.name() == Some(container) && master.config_dir == config_dir;
    Ok(all.into_iter().filter(these).collect())
}

/// Whether this very master still runs: not another process under its pid, and not a zombie.
pub fn alive(master: &Master) -> bool {
    stat(Path::new("/proc"), master.pid)
        .is_some_and(|s| s.starttime == master.start_time && !matches!(s.state, 'Z' | 'X' | 'x'))
}

/// The addresses of the listening TCP sockets of a process, in its own network namespace.
pub fn listening(pid: i32) -> Result<Vec<SocketAddr>, procfs::ProcError> {
    let process = Process::new(pid)?;
    let owned = socket_inodes(pid)?;
    // Without IPv6 the kernel has no such list.
    let six = process.tcp6().unwrap_or_default();
    let sockets = process.tcp()?.into_iter().chain(six);
    Ok(sockets
        .filter(|socket| socket.state == TcpState::Listen && owned.contains(&socket.inode))
        .map(|socket| socket.local_address)
        .collect())
}

/// The sockets of a process, by inode. Costs one system call a descriptor.
pub fn socket_inodes(pid: i32) -> io::Result<HashSet<u64>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptors = rustix::fs::open(format!("/proc/{pid}/fd"), flags, Mode::empty())?;
    let mut inodes = HashSet::new();
    for entry in Dir::read_from(&descriptors)?.take(DESCRIPTORS) {
        let mut room = [MaybeUninit::uninit(); SOCKET_LINK];
        // Nor are `.` and `..` links, and one that is closed meanwhile is none.
        if let Ok((link, _)) = rustix::fs::readlinkat_raw(&descriptors, entry?.file_name(), &mut room) {
            inodes.extend(socket_inode(link));
        }
    }
    Ok(inodes)
}

/// More than a link to a socket ever has: what is longer is another file, cut off.
const SOCKET_LINK: usize = 32;

/// `socket:[4711]`
fn socket_inode(link: &[u8]) -> Option<u64> {
    let number = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Whether any process is left in a mount namespace. Walks through all of /proc.
pub fn inhabited(mount_namespace: u64) -> bool {
    let wanted = PathBuf::from(format!("mnt:[{mount_namespace}]"));
    pids(Path::new("/proc")).is_ok_and(|pids| {
        pids.into_iter()
            .any(|pid| fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|link| link == wanted))
    })
}

fn pids(proc: &Path) -> io::Result<Vec<i32>> {
    let mut pids: Vec<i32> = fs::read_dir(proc)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

fn survey_at(proc: &Path, scope: &Scope) -> io::Result<Survey> {
    let mut look = Look {
        proc,
        scope,
        config_dirs: scope.config_dirs.iter().map(|dir| canonical(dir)).collect(),
        own_mounts: fs::read_link(proc.join("self/ns/mnt")).ok(),
        looked_at: HashMap::new(),
    };
    let mut survey = Survey::default();
    for pid in pids(proc)? {
        match look.examine(pid) {
            Ok(Some(master)) => survey.masters.push(master),
            Ok(None) => {}
            Err(Refusal::Elsewhere(reason) | Refusal::Other(reason)) => {
                survey.ignored.push(Ignored { pid, reason });
            }
            Err(Refusal::Denied(reason)) => {
                if survey.unseen.count == 0 {
                    survey.unseen.reason = reason;
                }
                survey.unseen.count += 1;
            }
        }
    }
    Ok(survey)
}

fn canonical(dir: &Path) -> PathBuf {
    fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned())
}

/// One walk through /proc.
struct Look<'a> {
    proc: &'a Path,
    scope: &'a Scope,
    /// Those of the scope, links followed.
    config_dirs: Vec<PathBuf>,
    own_mounts: Option<PathBuf>,
    /// How many masters of a group were looked at.
    looked_at: HashMap<String, usize>,
}

/// A process that calls itself master.
struct Suspect {
    pid: i32,
    dir: PathBuf,
    stat: Stat,
    exe: PathBuf,
    mounts: Option<PathBuf>,
}

/// Why a master is not watched as one of ours.
enum Refusal {
    /// Paths do not mean the same to it.
    Elsewhere(String),
    /// We may not look.
    Denied(String),
    Other(String),
}

impl Refusal {
    fn of(what: &dyn std::fmt::Display, error: &io::Error) -> Self {
        let reason = format!("{what}: {error}");
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied(reason),
            _ => Self::Other(reason),
        }
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Other(reason)
    }
}

impl Look<'_> {
    /// `None` for a process that is no Postfix master, or has gone in the meantime.
    fn examine(&mut self, pid: i32) -> Result<Option<Master>, Refusal> {
        let Some(suspect) = self.suspect(pid)? else {
            return Ok(None);
        };
        let apart = suspect.mounts != self.own_mounts;
        let found = if apart && !is_our_root(&suspect.dir.join("root")) {
            Err(Refusal::Elsewhere(
                "it runs in another mount namespace with other files (a container)".into(),
            ))
        } else {
            self.at_home(&suspect, apart)
        };
        match found {
            Err(Refusal::Elsewhere(_)) if self.scope.containers => self.in_container(&suspect),
            found => found,
        }
    }

    fn suspect(&self, pid: i32) -> Result<Option<Suspect>, Refusal> {
        let dir = self.proc.join(pid.to_string());
        if !is_called_master(&dir) {
            return Ok(None);
        }
        let Some(stat) = stat(self.proc, pid) else {
            return Ok(None);
        };
        let exe = match fs::read_link(dir.join("exe")) {
            Ok(exe) => exe,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Refusal::of(
                    &format_args!("the executable of process {pid}"),
                    &error,
                ));
            }
            Err(_) => return Ok(None),
        };
        let mounts = fs::read_link(dir.join("ns/mnt")).ok();
        Ok(Some(Suspect {
            pid,
            dir,
            stat,
            exe,
            mounts,
        }))
    }

    /// A master to whom paths mean the same as to us.
    fn at_home(&self, suspect: &Suspect, apart: bool) -> Result<Option<Master>, Refusal> {
        let Some(daemon_dir) = daemon_dir(&suspect.exe).filter(|dir| dir.join("smtpd").is_file()) else {
            return Ok(None);
        };
        if suspect.real_uid() != Some(0) {
            return Err(Refusal::Other(
                "it does not run as root, so it is not Postfix's master".into(),
            ));
        }
        let cmdline = suspect.read("cmdline")?;
        if self.is_no_leader(suspect, &cmdline) {
            return Ok(None);
        }
        let config_dir = config_dir(&cmdline, &suspect.read("environ")?)?;
        let config_dir = fs::canonicalize(&config_dir)
            .map_err(|error| format!("its configuration directory {}: {error}", config_dir.display()))?;
        if !self.config_dirs.is_empty() && !self.config_dirs.contains(&config_dir) {
            return Err(Refusal::Other(format!(
                "{} is not among [discovery] config_dirs",
                config_dir.display()
            )));
        }
        let master = Master {
            pid: suspect.pid,
            start_time: suspect.stat.starttime,
            root: Root::Own,
            config_dir,
            queue_dir: suspect.link("cwd")?,
            daemon_dir,
            netns: suspect.netns()?,
        };
        if apart {
            same_files(&suspect.dir.join("root"), &master).map_err(Refusal::Elsewhere)?;
        }
        Ok(self.unchanged(master))
    }

    /// A master in a container. The cheap questions come first: there may be very many of it.
    fn in_container(&mut self, suspect: &Suspect) -> Result<Option<Master>, Refusal> {
        let cgroups = String::from_utf8_lossy(&suspect.read("cgroup")?).into_owned();
        if !cgroup::within(&cgroups, &self.scope.cgroups) {
            return Err(Refusal::Other(
                "its container is not among [discovery] cgroups".into(),
            ));
        }
        let dwelling = Dwelling::of(&cgroups);
        let looked_at = self.looked_at.entry(dwelling.group.clone()).or_insert(0);
        *looked_at += 1;
        if *looked_at > LOOKED_AT {
            // Not counted as ignored: each would be a line for somebody to read.
            return Ok(None);
        }
        let cmdline = suspect.read("cmdline")?;
        if self.is_no_leader(suspect, &cmdline) {
            return Ok(None);
        }
        if suspect.real_uid() != suspect.root_of_its_users() {
            return Err(Refusal::Other(
                "it does not run as root of its container, so it is not Postfix's master".into(),
            ));
        }
        let config_dir = config_dir(&cmdline, &suspect.read("environ")?)?;
        let root = Root::Container(Arc::new(suspect.container(&dwelling)?));
        let Some(daemon_dir) = daemon_dir(&suspect.exe) else {
            return Ok(None);
        };
        // Below a root that was entered by chroot(2) alone, our view of its paths has that root before it.
        let outside = suspect.link("root")?;
        let inside = |path: &Path| {
            let below = path.strip_prefix(&outside).unwrap_or(path);
            Path::new("/").join(below)
        };
        let smtpd = inside(&daemon_dir).join("smtpd");
        match root.stat(&smtpd) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Refusal::of(&smtpd.display(), &error));
            }
            Ok(_) | Err(_) => return Ok(None),
        }
        Ok(self.unchanged(Master {
            pid: suspect.pid,
            start_time: suspect.stat.starttime,
            config_dir,
            queue_dir: inside(&suspect.link("cwd")?),
            daemon_dir,
            netns: suspect.netns()?,
            root,
        }))
    }

    /// A child between fork and exec, or `master -w` waiting for the real one: master leads a session (Postfix
    /// src/master/master.c, setsid()).
    fn is_no_leader(&self, suspect: &Suspect, cmdline: &[u8]) -> bool {
        let ppid = suspect.stat.ppid;
        let parent = stat(self.proc, ppid);
        let parent_exe = fs::read_link(self.proc.join(format!("{ppid}/exe"))).ok();
        let of_master =
            parent.is_some_and(|p| p.comm == "master") && parent_exe.as_ref() == Some(&suspect.exe);
        of_master || !(suspect.stat.session == suspect.pid || keeps_session(cmdline))
    }

    /// Reused or gone while we looked: what was read may be of two processes.
    fn unchanged(&self, master: Master) -> Option<Master> {
        stat(self.proc, master.pid)
            .is_some_and(|s| s.starttime == master.start_time)
            .then_some(master)
    }
}

impl Suspect {
    fn read(&self, name: &str) -> Result<Vec<u8>, Refusal> {
        let path = self.dir.join(name);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(ARGUMENTS_LIMIT).read_to_end(&mut bytes))
            .map_err(|error| Refusal::of(&path.display(), &error))?;
        Ok(bytes)
    }

    fn link(&self, name: &str) -> Result<PathBuf, Refusal> {
        fs::read_link(self.dir.join(name))
            .map_err(|error| Refusal::of(&format_args!("/proc/{}/{name}", self.pid), &error))
    }

    fn netns(&self) -> Result<u32, Refusal> {
        namespace_inode(&self.link("ns/net")?)
            .ok_or_else(|| Refusal::Other(format!("/proc/{}/ns/net is no namespace", self.pid)))
    }

    fn real_uid(&self) -> Option<u32> {
        real_uid(&fs::read_to_string(self.dir.join("status")).ok()?)
    }

    /// What root of its user namespace is to us.
    fn root_of_its_users(&self) -> Option<u32> {
        root_in(&fs::read_to_string(self.dir.join("uid_map")).ok()?)
    }

    fn container(&self, dwelling: &Dwelling) -> Result<Container, Refusal> {
        let mounts = self.mounts.as_deref().and_then(namespace_inode);
        let mounts = mounts
            .ok_or_else(|| format!("/proc/{}/ns/mnt is no namespace", self.pid))?
            .into();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(self.dir.join("root"), flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|root| {
                let (name, group) = (dwelling.name(mounts), dwelling.group.clone());
                Container::new(root, name, group, dwelling.pod.uid().map(str::to_owned), mounts)
            })
            .map_err(|error| Refusal::of(&format_args!("/proc/{}/root", self.pid), &error))
    }
}

/// What every process of the machine is asked every few seconds, and so with as few calls as can be.
fn is_called_master(dir: &Path) -> bool {
    const COMM: &[u8] = b"master\n";
    let mut comm = [0; COMM.len() + 1];
    let read = File::open(dir.join("comm")).and_then(|mut file| file.read(&mut comm));
    read.is_ok_and(|read| &comm[..read] == COMM)
}

/// Whether `root`, as in /proc/PID/root, is the directory that is our root too.
fn is_our_root(root: &Path) -> bool {
    match (fs::metadata(root), fs::metadata("/")) {
        (Ok(theirs), Ok(ours)) => identity(&theirs) == identity(&ours),
        _ => false,
    }
}

/// Whether the directories of a master stand for the same below its root as for us, and whether its master.cf can be
/// replaced there: a file that is mounted over it in its mount namespace would lose that mount by our rename, without a
/// word.
fn same_files(root: &Path, master: &Master) -> Result<(), String> {
    let refused = |path: &Path, why: &dyn std::fmt::Display| {
        format!(
            "in its mount namespace {} is not what it is in ours: {why}",
            path.display()
        )
    };
    let root = rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| refused(Path::new("/"), &error))?;
    for path in [&master.config_dir, &master.queue_dir, &master.daemon_dir] {
        // Within their root a symbolic link cannot lead to a file of ours that is none of theirs.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let theirs = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)
            .map(File::from)
            .map_err(|error| refused(path, &error))?;
        let same = match (theirs.metadata(), fs::metadata(path)) {
            (Ok(theirs), Ok(ours)) => identity(&theirs) == identity(&ours),
            _ => false,
        };
        if !same {
            return Err(refused(path, &"another directory"));
        }
        if path == &master.config_dir {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat2(&theirs, "master.cf", flags, Mode::empty(), ResolveFlags::NO_XDEV);
            if let Err(Errno::XDEV) = file {
                return Err(refused(&path.join("master.cf"), &"a mount of its own"));
            }
        }
    }
    Ok(())
}

fn identity(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// $daemon_directory, when the executable is a Postfix master. After an upgrade of the package the old master runs
/// on, and the kernel says so behind its path.
fn daemon_dir(exe: &Path) -> Option<PathBuf> {
    let exe = exe.as_os_str().as_bytes();
    let exe = exe.strip_suffix(b" (deleted)").unwrap_or(exe);
    Some(PathBuf::from(OsStr::from_bytes(exe.strip_suffix(b"/master")?)))
}

/// From the text of /proc/PID/status. The effective one changes as master works; the real one stays root's.
fn real_uid(status: &str) -> Option<u32> {
    status
        .lines()
        .find_map(|l| l.strip_prefix("Uid:"))?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Who is 0 there, from the text of /proc/PID/uid_map: ranges of first inside, first outside, and count.
fn root_in(uid_map: &str) -> Option<u32> {
    let ranges = uid_map.lines().map(|line| line.split_ascii_whitespace());
    ranges
        .filter_map(|mut range| Some((range.next()?, range.next()?)))
        .find(|(inside, _)| *inside == "0")
        .and_then(|(_, outside)| outside.parse().ok())
}

/// `net:[4026531840]`
fn namespace_inode(link: &Path) -> Option<u32> {
    link.to_str()?.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
#[path = "discovery_tests.rs"]
mod tests;
