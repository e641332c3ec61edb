//! Running Postfix masters, found in /proc.
//!
//! A name proves nothing: a master is a process of root whose executable is called `master` and lies beside an
//! `smtpd`. Anything weaker would let any user of the machine name the files that we read, and the programs that we
//! run, as root. For now only masters are watched to whom paths mean the same as to us: those of our own mount
//! namespace, and those of another one that shows the same directories. (systemd gives every service with ProtectSystem=
//! or PrivateTmp= a mount namespace of its own, so this daemon's and Postfix's differ on many machines.) Others are
//! counted as ignored, with the reason.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use procfs::net::TcpState;
use procfs::process::{FDTarget, Process};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Master;
use super::processes::stat;

/// Where master looks when nobody tells it (DEF_CONFIG_DIR).
const DEFAULT_CONFIG_DIR: &str = "/etc/postfix";

/// All that looks like a master.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// By pid.
    pub masters: Vec<Master>,
    pub ignored: Vec<Ignored>,
}

/// A process that is called master and is none that we watch.
#[derive(Debug, PartialEq, Eq)]
pub struct Ignored {
    pub pid: i32,
    pub reason: String,
}

/// The running masters; with a filter that is not empty, only those of these configuration directories.
pub fn masters(filter: &[PathBuf]) -> io::Result<Vec<Master>> {
    survey(filter).map(|survey| survey.masters)
}

/// The running masters, and what was passed over and why.
pub fn survey(filter: &[PathBuf]) -> io::Result<Survey> {
    survey_at(Path::new("/proc"), filter)
}

/// Whether this very master still runs: not another process under its pid, and not a zombie.
pub fn alive(master: &Master) -> bool {
    stat(Path::new("/proc"), master.pid)
        .is_some_and(|s| s.starttime == master.start_time && !matches!(s.state, 'Z' | 'X' | 'x'))
}

/// The addresses of the listening TCP sockets of a process, in its own network namespace.
pub fn listening(pid: i32) -> Result<Vec<SocketAddr>, procfs::ProcError> {
    let process = Process::new(pid)?;
    let mut owned = HashSet::new();
    for descriptor in process.fd()?.flatten() {
        if let FDTarget::Socket(inode) = descriptor.target {
            owned.insert(inode);
        }
    }
    // Without IPv6 the kernel has no such list.
    let six = process.tcp6().unwrap_or_default();
    let sockets = process.tcp()?.into_iter().chain(six);
    Ok(sockets
        .filter(|socket| socket.state == TcpState::Listen && owned.contains(&socket.inode))
        .map(|socket| socket.local_address)
        .collect())
}

fn survey_at(proc: &Path, filter: &[PathBuf]) -> io::Result<Survey> {
    let filter: Vec<PathBuf> = filter.iter().map(|dir| canonical(dir)).collect();
    let mut pids: Vec<i32> = fs::read_dir(proc)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let mut survey = Survey::default();
    for pid in pids {
        match examine(proc, pid, &filter) {
            Ok(Some(master)) => survey.masters.push(master),
            Ok(None) => {}
            Err(reason) => survey.ignored.push(Ignored { pid, reason }),
        }
    }
    Ok(survey)
}

fn canonical(dir: &Path) -> PathBuf {
    fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned())
}

/// `None` for a process that is no Postfix master, or has gone in the meantime.
fn examine(proc: &Path, pid: i32, filter: &[PathBuf]) -> Result<Option<Master>, String> {
    let dir = proc.join(pid.to_string());
    if !fs::read(dir.join("comm")).is_ok_and(|comm| comm == b"master\n") {
        return Ok(None);
    }
    let Some(stat_before) = stat(proc, pid) else {
        return Ok(None);
    };
    let exe = match fs::read_link(dir.join("exe")) {
        Ok(exe) => exe,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err("its executable may not be looked at; run as root with CAP_SYS_PTRACE".into());
        }
        Err(_) => return Ok(None),
    };
    let apart = fs::read_link(dir.join("ns/mnt")).ok() != fs::read_link(proc.join("self/ns/mnt")).ok();
    let root = dir.join("root");
    if apart && !is_our_root(&root) {
        return Err("it runs in another mount namespace with other files (a container)".into());
    }
    let Some(daemon_dir) = daemon_dir(&exe) else {
        return Ok(None);
    };
    if !fs::read_to_string(dir.join("status")).is_ok_and(|status| real_uid(&status) == Some(0)) {
        return Err("it does not run as root, so it is not Postfix's master".into());
    }
    let cmdline = read(&dir, "cmdline")?;
    let parent = stat(proc, stat_before.ppid);
    let parent_exe = fs::read_link(proc.join(format!("{}/exe", stat_before.ppid))).ok();
    let of_master = parent.is_some_and(|p| p.comm == "master") && parent_exe.as_ref() == Some(&exe);
    if of_master || !(stat_before.session == pid || keeps_session(&cmdline)) {
        // A child between fork and exec, or `master -w` waiting for the real one: master leads a session
        // (Postfix src/master/master.c, setsid()).
        return Ok(None);
    }
    let config_dir = config_dir(&cmdline, &read(&dir, "environ")?)?;
    let config_dir = fs::canonicalize(&config_dir)
        .map_err(|error| format!("its configuration directory {}: {error}", config_dir.display()))?;
    if !filter.is_empty() && !filter.contains(&config_dir) {
        return Err(format!(
            "{} is not among [discovery] config_dirs",
            config_dir.display()
        ));
    }
    let link =
        |name: &str| fs::read_link(dir.join(name)).map_err(|error| format!("/proc/{pid}/{name}: {error}"));
    let master = Master {
        pid,
        start_time: stat_before.starttime,
        config_dir,
        queue_dir: link("cwd")?,
        daemon_dir,
        netns: namespace_inode(&link("ns/net")?)
            .ok_or_else(|| format!("/proc/{pid}/ns/net is no namespace"))?,
    };
    if apart {
        same_files(&root, &master)?;
    }
    // Reused or gone while we looked: what was read may be of two processes.
    Ok(stat(proc, pid)
        .is_some_and(|s| s.starttime == master.start_time)
        .then_some(master))
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

fn read(dir: &Path, name: &str) -> Result<Vec<u8>, String> {
    let path = dir.join(name);
    fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
}

/// $daemon_directory, when the executable is a Postfix master. After an upgrade of the package the old master runs
/// on, and the kernel says so behind its path.
fn daemon_dir(exe: &Path) -> Option<PathBuf> {
    let exe = exe.as_os_str().as_bytes();
    let exe = exe.strip_suffix(b" (deleted)").unwrap_or(exe);
    let dir = Path::new(OsStr::from_bytes(exe.strip_suffix(b"/master")?));
    dir.join("smtpd").is_file().then(|| dir.to_owned())
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

/// `net:[4026531840]`
fn namespace_inode(link: &Path) -> Option<u32> {
    link.to_str()?.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

/// The options of a master's command line, with the value of `-c` and `-e` (Postfix src/master/master.c).
fn options(cmdline: &[u8]) -> Vec<(u8, &[u8])> {
    let mut options = Vec::new();
    let mut args = cmdline.split(|&b| b == 0).skip(1);
    while let Some(letters) = args.next().and_then(|arg| arg.strip_prefix(b"-")) {
        for (at, &letter) in letters.iter().enumerate() {
            if matches!(letter, b'c' | b'e') {
                let rest = &letters[at + 1..];
                options.push((
                    letter,
                    if rest.is_empty() {
                        args.next().unwrap_or_default()
                    } else {
                        rest
                    },
                ));
                break;
            }
            options.push((letter, &b""[..]));
        }
    }
    options
}

/// As pid 1 of a container (`-i`) and for debugging (`-d`, `-D`) master makes no session of its own.
fn keeps_session(cmdline: &[u8]) -> bool {
    options(cmdline)
        .iter()
        .any(|(letter, _)| matches!(letter, b'i' | b'd' | b'D'))
}

/// The configuration directory: `-c`, else what postfix(1) exports, else the built-in one.
fn config_dir(cmdline: &[u8], environ: &[u8]) -> Result<PathBuf, String> {
    let variable = |name: &[u8]| {
        let mut variables = environ.split(|&b| b == 0);
        variables
            .find_map(|v| v.strip_prefix(name)?.strip_prefix(b"="))
            .filter(|value| !value.is_empty())
    };
    let given = options(cmdline)
        .into_iter()
        .rfind(|(letter, _)| *letter == b'c')
        .map(|(_, dir)| dir);
    let dir = given
        .or_else(|| variable(b"MAIL_CONFIG"))
        .or_else(|| variable(b"config_directory"));
    let dir = dir.map_or(Path::new(DEFAULT_CONFIG_DIR), |d| Path::new(OsStr::from_bytes(d)));
    if dir.is_absolute() {
        Ok(dir.to_owned())
    } else {
        Err(format!(
            "its configuration directory {} is relative to a place that is not known",
            dir.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn config_dir_comes_from_the_nearest_source() {
        let dir = |cmdline: &str, environ: &str| {
            config_dir(
                cmdline.replace(' ', "\0").as_bytes(),
                environ.replace(' ', "\0").as_bytes(),
            )
        };
        let environ = "A=b MAIL_CONFIG=/etc/postfix-b config_directory=/c";
        assert_eq!(dir("/x/master -w", ""), Ok("/etc/postfix".into()));
        assert_eq!(dir("/x/master -w", environ), Ok("/etc/postfix-b".into()));
        assert_eq!(dir("/x/master -w", "config_directory=/c"), Ok("/c".into()));
        assert_eq!(dir("/x/master -vc /d -w", environ), Ok("/d".into()));
        assert_eq!(dir("/x/master -c/d", environ), Ok("/d".into()));
        assert_eq!(dir("/x/master -e 5 -s", ""), Ok("/etc/postfix".into()));
        assert!(dir("/x/master -c conf", "").is_err());
    }

    /// A /proc whose processes share one mount namespace, and a Postfix in the same temporary directory.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for dir in ["proc/self/ns", "sbin", "other", "etc/a", "etc/b", "spool"] {
                fs::create_dir_all(tree.path(dir)).unwrap();
            }
            for file in ["sbin/master", "sbin/smtpd", "other/master"] {
                fs::write(tree.path(file), "").unwrap();
            }
            symlink("mnt:[1]", tree.path("proc/self/ns/mnt")).unwrap();
            tree
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// A master as `postfix start` leaves it, leader of its session, with `change` applied to its directory.
        fn process(&self, pid: i32, ppid: i32, session: i32, change: impl Fn(&Path)) {
            let dir = self.path(&format!("proc/{pid}"));
            fs::create_dir_all(dir.join("ns")).unwrap();
            fs::write(dir.join("comm"), "master\n").unwrap();
            let zeros = "0 ".repeat(30);
            let stat = format!(
                "{pid} (master) S {ppid} {pid} {session} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid}5 {zeros}\n"
            );
            fs::write(dir.join("stat"), stat).unwrap();
            fs::write(dir.join("status"), "Name:\tmaster\nUid:\t0\t105\t0\t105\n").unwrap();
            fs::write(dir.join("cmdline"), "/x/master\0-w\0").unwrap();
            fs::write(
                dir.join("environ"),
                format!("MAIL_CONFIG={}\0", self.path("etc/a").display()),
            )
            .unwrap();
            symlink(self.path("sbin/master"), dir.join("exe")).unwrap();
            symlink(self.path("spool"), dir.join("cwd")).unwrap();
            symlink("mnt:[1]", dir.join("ns/mnt")).unwrap();
            symlink("net:[4026531840]", dir.join("ns/net")).unwrap();
            change(&dir);
        }

        fn survey(&self, filter: &[PathBuf]) -> Survey {
            survey_at(&self.path("proc"), filter).unwrap()
        }
    }

    fn relink(target: &Path, link: PathBuf) {
        fs::remove_file(&link).unwrap();
        symlink(target, link).unwrap();
    }

    #[test]
    fn a_master_is_found_with_all_its_places() {
        let tree = Tree::new();
        tree.process(10, 1, 10, |_| {});
        let survey = tree.survey(&[]);
        assert_eq!(survey.ignored, []);
        let [master] = &survey.masters[..] else {
            panic!("{survey:?}")
        };
        assert_eq!(
            (master.pid, master.start_time, master.netns),
            (10, 105, 4_026_531_840)
        );
        assert_eq!(master.config_dir, fs::canonicalize(tree.path("etc/a")).unwrap());
        assert_eq!(
            (&master.queue_dir, &master.daemon_dir),
            (&tree.path("spool"), &tree.path("sbin"))
        );
    }

    #[test]
    fn what_only_looks_like_a_master_is_none() {
        let tree = Tree::new();
        tree.process(10, 1, 10, |_| {});
        tree.process(11, 10, 10, |_| {});
        tree.process(12, 10, 12, |_| {});
        tree.process(13, 1, 9, |_| {});
        tree.process(14, 1, 14, |dir| {
            relink(&tree.path("other/master"), dir.join("exe"))
        });
        tree.process(15, 1, 15, |dir| fs::write(dir.join("comm"), "smtpd\n").unwrap());
        let survey = tree.survey(&[]);
        assert_eq!(survey.masters.iter().map(|m| m.pid).collect::<Vec<_>>(), [10]);
        assert_eq!(survey.ignored, []);
    }

    #[test]
    fn what_we_may_not_or_must_not_touch_is_said() {
        let tree = Tree::new();
        tree.process(10, 1, 10, |dir| relink(Path::new("mnt:[2]"), dir.join("ns/mnt")));
        tree.process(11, 1, 11, |dir| {
            fs::write(dir.join("status"), "Uid:\t1000\t0\t0\t0\n").unwrap()
        });
        tree.process(12, 1, 12, |dir| {
            fs::write(dir.join("environ"), "MAIL_CONFIG=/nowhere/at/all\0").unwrap()
        });
        let survey = tree.survey(&[]);
        assert_eq!(survey.masters, []);
        let reasons: Vec<&str> = survey.ignored.iter().map(|i| i.reason.as_str()).collect();
        assert!(reasons[0].contains("mount namespace"), "{reasons:?}");
        assert!(reasons[1].contains("not run as root"), "{reasons:?}");
        assert!(reasons[2].contains("/nowhere/at/all"), "{reasons:?}");
    }

    #[test]
    fn another_mount_namespace_with_the_same_files_is_no_container() {
        let tree = Tree::new();
        let apart = |root: PathBuf| {
            move |dir: &Path| {
                relink(Path::new("mnt:[2]"), dir.join("ns/mnt"));
                symlink(&root, dir.join("root")).unwrap();
            }
        };
        tree.process(10, 1, 10, apart("/".into()));
        tree.process(11, 1, 11, apart(tree.path("spool")));
        let survey = tree.survey(&[]);
        assert_eq!(survey.masters.iter().map(|m| m.pid).collect::<Vec<_>>(), [10]);
        assert!(survey.ignored[0].reason.contains("container"), "{survey:?}");
    }

    #[test]
    fn directories_that_only_have_the_same_name_are_told_apart() {
        let tree = Tree::new();
        tree.process(10, 1, 10, |_| {});
        let [master] = &tree.survey(&[]).masters[..] else {
            panic!()
        };
        same_files(Path::new("/"), master).unwrap();
        // A root in which the path leads elsewhere, by a link that would be ours if it were followed from our root.
        let root = tree.path("root");
        let fake = root.join(master.config_dir.strip_prefix("/").unwrap());
        fs::create_dir_all(fake.parent().unwrap()).unwrap();
        symlink(&master.config_dir, &fake).unwrap();
        let refused = same_files(&root, master).unwrap_err();
        assert!(refused.contains("mount namespace"), "{refused}");
        fs::remove_file(&fake).unwrap();
        fs::create_dir(&fake).unwrap();
        let refused = same_files(&root, master).unwrap_err();
        assert!(refused.contains("another directory"), "{refused}");
    }

    #[test]
    fn an_upgraded_one_and_one_without_a_session_are_masters() {
        let tree = Tree::new();
        let deleted = format!("{} (deleted)", tree.path("sbin/master").display());
        tree.process(10, 1, 10, |dir| relink(Path::new(&deleted), dir.join("exe")));
        tree.process(11, 1, 0, |dir| {
            fs::write(dir.join("cmdline"), "/x/master\0-d\0").unwrap()
        });
        assert_eq!(tree.survey(&[]).masters.len(), 2);
    }

    #[test]
    fn the_filter_follows_symlinks() {
        let tree = Tree::new();
        tree.process(10, 1, 10, |_| {});
        symlink(tree.path("etc/a"), tree.path("etc/link")).unwrap();
        assert_eq!(tree.survey(&[tree.path("etc/link")]).masters.len(), 1);
        let survey = tree.survey(&[tree.path("etc/b")]);
        assert_eq!((survey.masters.len(), survey.ignored.len()), (0, 1));
    }

    #[test]
    fn alive_is_about_one_process_not_a_pid() {
        let own_pid = i32::try_from(std::process::id()).unwrap();
        let start_time = stat(Path::new("/proc"), own_pid).unwrap().starttime;
        let path = PathBuf::new;
        let master = Master {
            pid: own_pid,
            start_time,
            config_dir: path(),
            queue_dir: path(),
            daemon_dir: path(),
            netns: 1,
        };
        assert!(alive(&master));
        assert!(!alive(&Master {
            start_time: start_time + 1,
            ..master
        }));
    }
}
