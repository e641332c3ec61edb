//! The smtpd processes of a master, and what their command lines say about stress mode.
//!
//! Made to be asked ten times a second: one file names the children of master, and a command line, which never
//! changes after exec, is read once. Whether a process is busy is not known here, see [`super::locks`].

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use procfs::FromRead;
use procfs::process::Stat;

use super::master_cf::option_values;
use super::{Master, ServiceId};

/// One smtpd process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smtpd {
    pub pid: i32,
    /// Clock ticks since boot; with the pid an identity, and the order in which processes were started.
    pub start_time: u64,
    pub service: ServiceId,
    /// Master's own verdict when it started the process: the `-o stress=` that it puts before the arguments of
    /// master.cf; `None` where it gave none. A service to which master gives none (see
    /// [`super::services::WatchedService::native`]) and whose first argument in master.cf is `-o stress=` looks the
    /// same: do not ask this of such a service.
    pub native_stress: Option<bool>,
    /// Whether the process runs in stress mode: the last `-o stress=` counts, and any value but the empty one is on
    /// (Postfix src/util/mac_expand.c). A `stress` in main.cf is not seen.
    pub effective_stress: bool,
    /// How many `-o stress=` its command line has.
    pub stress_arguments: usize,
}

/// What is known of the children of one master.
#[derive(Debug)]
pub struct Processes {
    proc: PathBuf,
    master: Option<(i32, u64)>,
    /// By pid. A pid that stays among the children is taken for the same process: to be reused between two updates
    /// the whole pid space would have to go by in the meantime.
    known: HashMap<i32, Child>,
}

#[derive(Debug)]
enum Child {
    Smtpd(Smtpd),
    Other,
}

impl Default for Processes {
    fn default() -> Self {
        Self::new()
    }
}

impl Processes {
    pub fn new() -> Self {
        Self::at(Path::new("/proc"))
    }

    fn at(proc: &Path) -> Self {
        Self {
            proc: proc.to_owned(),
            master: None,
            known: HashMap::new(),
        }
    }

    /// The smtpd processes of this master now, oldest first. One `Processes` serves one master; given another, it
    /// starts anew. An error means that master is gone, or /proc cannot be read.
    ///
    /// The kernel may leave out children while others exit (proc(5) on `children`): a count can be short for one
    /// update.
    pub fn update(&mut self, master: &Master) -> io::Result<Vec<Smtpd>> {
        let identity = (master.pid, master.start_time);
        if self.master.replace(identity) != Some(identity) {
            self.known.clear();
        }
        let mut known = std::mem::take(&mut self.known);
        for pid in children(&self.proc, master.pid)? {
            let child = known.remove(&pid).or_else(|| inspect(&self.proc, pid));
            self.known.extend(child.map(|c| (pid, c)));
        }
        let smtpds = self.known.values().filter_map(|child| match child {
            Child::Smtpd(smtpd) => Some(smtpd.clone()),
            Child::Other => None,
        });
        let mut smtpds: Vec<Smtpd> = smtpds.collect();
        smtpds.sort_unstable_by_key(|s| (s.start_time, s.pid));
        Ok(smtpds)
    }
}

/// The children of a process. Master has one thread, so those of its main thread are all.
fn children(proc: &Path, pid: i32) -> io::Result<Vec<i32>> {
    let thread = proc.join(format!("{pid}/task/{pid}"));
    match fs::read_to_string(thread.join("children")) {
        Ok(pids) => Ok(pids
            .split_ascii_whitespace()
            .filter_map(|p| p.parse().ok())
            .collect()),
        // A kernel without CONFIG_PROC_CHILDREN, unless the process itself is gone.
        Err(error) if error.kind() == io::ErrorKind::NotFound && thread.exists() => {
            children_by_parent(proc, pid)
        }
        Err(error) => Err(error),
    }
}

fn children_by_parent(proc: &Path, parent: i32) -> io::Result<Vec<i32>> {
    let pids = fs::read_dir(proc)?.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok());
    Ok(pids
        .filter(|&pid| stat(proc, pid).is_some_and(|s| s.ppid == parent))
        .collect())
}

pub(super) fn stat(proc: &Path, pid: i32) -> Option<Stat> {
    Stat::from_file(proc.join(format!("{pid}/stat"))).ok()
}

/// `None` for a child that is gone, a zombie, or still before its exec: it is looked at again next time.
fn inspect(proc: &Path, pid: i32) -> Option<Child> {
    let start_time = stat(proc, pid)?.starttime;
    let cmdline = fs::read(proc.join(format!("{pid}/cmdline"))).ok()?;
    match parse_cmdline(&cmdline) {
        Program::NotYet => None,
        Program::Other => Some(Child::Other),
        Program::Smtpd(line) => Some(Child::Smtpd(Smtpd {
            pid,
            start_time,
            service: line.service,
            native_stress: line.native_stress,
            effective_stress: line.effective_stress,
            stress_arguments: line.stress_arguments,
        })),
    }
}

/// What /proc/PID/cmdline of a child of master shows.
#[derive(Debug, PartialEq, Eq)]
enum Program {
    /// Nothing, or still the command line of master.
    NotYet,
    Other,
    Smtpd(CommandLine),
}

#[derive(Debug, PartialEq, Eq)]
struct CommandLine {
    service: ServiceId,
    native_stress: Option<bool>,
    effective_stress: bool,
    stress_arguments: usize,
}

/// Reads a command line as Postfix src/master/master_ent.c get_master_ent() makes it.
fn parse_cmdline(cmdline: &[u8]) -> Program {
    let text = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    let mut argv = text.split(|&b| b == 0).map(<[u8]>::to_vec);
    let program = argv.next().unwrap_or_default();
    let program = program.rsplit(|&b| b == b'/').next().unwrap_or_default();
    let args: Vec<Vec<u8>> = argv.collect();
    let first = |option| {
        option_values(&args, option)
            .first()
            .map(|v| String::from_utf8_lossy(v).into_owned())
    };
    match (program, first(b't')) {
        (b"" | b"master", None) => Program::NotYet,
        (b"smtpd", Some(kind)) => {
            let name = first(b'n').unwrap_or_else(|| "smtpd".into());
            let stress: Vec<&[u8]> = option_values(&args, b'o')
                .into_iter()
                .filter_map(|o| o.strip_prefix(b"stress="))
                .collect();
            Program::Smtpd(CommandLine {
                service: ServiceId { name, kind },
                native_stress: native_stress(&args),
                effective_stress: stress.last().is_some_and(|value| !value.is_empty()),
                stress_arguments: stress.len(),
            })
        }
        _ => Program::Other,
    }
}

/// The stress argument of master's own: it follows [-l|-z] [-n NAME] -t TYPE [-d] [-v] [-u] [-c], is empty or `yes`,
/// and goes only to services of more than one process (no -l) with a limit (no -z).
fn native_stress(args: &[Vec<u8>]) -> Option<bool> {
    let mut args = args.iter().map(Vec::as_slice);
    loop {
        match args.next()? {
            b"-n" | b"-t" => {
                args.next()?;
            }
            b"-d" | b"-v" | b"-u" | b"-c" => {}
            b"-o" => {
                return match args.next()? {
                    b"stress=" => Some(false),
                    b"stress=yes" => Some(true),
                    _ => None,
                };
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> CommandLine {
        match parse_cmdline(format!("{}\0", line.replace(' ', "\0")).as_bytes()) {
            Program::Smtpd(line) => line,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn real_command_lines() {
        for (line, service, native, effective, count) in [
            (
                "smtpd -n smtp -t inet -u -c -o stress= -s 2",
                "smtp/inet",
                Some(false),
                false,
                1,
            ),
            (
                "smtpd -n smtp -t inet -u -c -o stress=yes -s 2",
                "smtp/inet",
                Some(true),
                true,
                1,
            ),
            (
                "smtpd -n smtp -t inet -u -c -o stress= -s 2 -o stress=yes",
                "smtp/inet",
                Some(false),
                true,
                2,
            ),
            (
                "smtpd -n smtp -t inet -u -o stress=yes -s 2 -o stress=",
                "smtp/inet",
                Some(true),
                false,
                2,
            ),
            (
                "smtpd -n submission -t inet -u -c -o stress= -s 2 -o syslog_name=postfix/submission",
                "submission/inet",
                Some(false),
                false,
                1,
            ),
            (
                "smtpd -t pass -u -c -o stress=",
                "smtpd/pass",
                Some(false),
                false,
                1,
            ),
            (
                "smtpd -n 127.0.0.1:10025 -t inet -u -o mynetworks=x",
                "127.0.0.1:10025/inet",
                None,
                false,
                0,
            ),
            ("smtpd -z -n 25 -t inet -u -s 2", "25/inet", None, false, 0),
            (
                "smtpd -z -n 25 -t inet -u -s 2 -o stress=yes",
                "25/inet",
                None,
                true,
                1,
            ),
            (
                "smtpd -l -n 25 -t inet -u -o stress=yes",
                "25/inet",
                None,
                true,
                1,
            ),
        ] {
            let read = parsed(line);
            let found = (
                read.service.to_string(),
                read.native_stress,
                read.effective_stress,
                read.stress_arguments,
            );
            assert_eq!(found, (service.to_owned(), native, effective, count), "{line}");
        }
    }

    #[test]
    fn other_programs_and_children_before_exec() {
        assert_eq!(parse_cmdline(b""), Program::NotYet);
        assert_eq!(
            parse_cmdline(b"/usr/lib/postfix/sbin/master\0-w\0"),
            Program::NotYet
        );
        assert_eq!(
            parse_cmdline(b"postscreen\0-l\0-n\0smtp\0-t\0inet\0-u\0-s\x002\0"),
            Program::Other
        );
        assert_eq!(parse_cmdline(b"qmgr\0-l\0-t\0unix\0-u\0"), Program::Other);
        assert_eq!(parse_cmdline(b"smtpd\0"), Program::Other, "not started by master");
    }

    /// A /proc with one master, pid 100, whose children are added one by one.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(tree.0.path().join("100/task/100")).unwrap();
            tree
        }

        fn process(&self, pid: i32, ppid: i32, cmdline: &str) {
            let dir = self.0.path().join(pid.to_string());
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cmdline"), cmdline.replace(' ', "\0")).unwrap();
            let zeros = "0 ".repeat(30);
            let stat = format!(
                "{pid} (smtpd) S {ppid} {pid} {pid} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid}7 {zeros}\n"
            );
            fs::write(dir.join("stat"), stat).unwrap();
        }

        fn children(&self, pids: &str) {
            fs::write(self.0.path().join("100/task/100/children"), pids).unwrap();
        }
    }

    fn master() -> Master {
        let path = PathBuf::new;
        Master {
            pid: 100,
            start_time: 1,
            root: crate::postfix::Root::Own,
            config_dir: path(),
            queue_dir: path(),
            daemon_dir: path(),
            netns: 1,
        }
    }

    fn pids(smtpds: &[Smtpd]) -> Vec<i32> {
        smtpds.iter().map(|s| s.pid).collect()
    }

    #[test]
    fn children_come_go_and_are_read_once() {
        let tree = Tree::new();
        let mut processes = Processes::at(tree.0.path());
        tree.process(7, 100, "smtpd -n smtp -t inet -u -o stress=");
        tree.process(8, 100, "qmgr -l -t unix -u");
        tree.process(9, 100, "/usr/lib/postfix/sbin/master -w");
        tree.children("9 7 8 11 ");
        let smtpds = processes.update(&master()).unwrap();
        assert_eq!(pids(&smtpds), [7]);
        assert_eq!(smtpds[0].start_time, 77);

        tree.process(7, 100, "smtpd -n changed -t inet");
        tree.process(9, 100, "smtpd -n smtp -t inet -u -o stress=yes");
        let smtpds = processes.update(&master()).unwrap();
        assert_eq!(pids(&smtpds), [7, 9], "read again after its exec");
        assert_eq!(smtpds[0].service.name, "smtp", "not read again");

        tree.children("9 ");
        assert_eq!(pids(&processes.update(&master()).unwrap()), [9]);
        assert_eq!(processes.known.len(), 1, "the dead are forgotten");

        let restarted = Master {
            start_time: 2,
            ..master()
        };
        tree.process(9, 100, "smtpd -n other -t inet");
        assert_eq!(processes.update(&restarted).unwrap()[0].service.name, "other");
    }

    #[test]
    fn without_the_children_file_parents_are_asked() {
        let tree = Tree::new();
        tree.process(7, 100, "smtpd -t pass -u");
        tree.process(8, 1, "smtpd -t pass -u");
        assert_eq!(
            pids(&Processes::at(tree.0.path()).update(&master()).unwrap()),
            [7]
        );
    }

    #[test]
    fn a_master_that_is_gone_is_an_error() {
        let tree = Tree::new();
        let gone = Master { pid: 5, ..master() };
        let error = Processes::at(tree.0.path()).update(&gone).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
