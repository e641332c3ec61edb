//! The smtpd processes of a master, and what their command lines say about stress mode.
//!
//! Made to be asked ten times a second: one file, held open, names the children of master, and a command line, which
//! never changes after exec, is read once. As long as the children are the same, to ask is one system call. Whether a
//! process is busy is not known here, see [`super::locks`].

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use procfs::FromRead;
use procfs::process::Stat;
use rustix::buffer::spare_capacity;

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
    of: Option<Family>,
}

/// One master and its children.
#[derive(Debug)]
struct Family {
    /// Pid and start time.
    master: (i32, u64),
    list: List,
    /// By pid. A pid that stays among the children is taken for the same process: to be reused between two updates
    /// the whole pid space would have to go by in the meantime.
    known: HashMap<i32, Child>,
    /// One was listed that could not be told apart yet: it is looked at again, whether or not the list changes.
    unsettled: bool,
    /// The smtpd among the known, oldest first.
    smtpds: Rc<[Smtpd]>,
}

#[derive(Debug)]
enum Child {
    Smtpd(Smtpd),
    Other,
}

/// Where it says who the children are.
#[derive(Debug)]
enum List {
    File(Children),
    /// A kernel without CONFIG_PROC_CHILDREN: each process is asked for its parent.
    Parents,
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
            of: None,
        }
    }

    /// The smtpd processes of this master now, oldest first. One `Processes` serves one master; given another, it
    /// starts anew. An error means that master is gone, or /proc cannot be read; one that goes later has no children.
    ///
    /// The kernel may leave out children while others exit (proc(5) on `children`): a count can be short for one
    /// update.
    pub fn update(&mut self, master: &Master) -> io::Result<Rc<[Smtpd]>> {
        let identity = (master.pid, master.start_time);
        let mut family = match self.of.take() {
            Some(family) if family.master == identity => family,
            _ => Family::open(&self.proc, identity)?,
        };
        family.update(&self.proc)?;
        let smtpds = Rc::clone(&family.smtpds);
        self.of = Some(family);
        Ok(smtpds)
    }

    /// Whether the last update has shown that the very master lives, so that nobody need ask. What a process has of
    /// children, the kernel gives to another when it ends, before it is a zombie (kernel/exit.c, exit_notify()).
    pub fn show_life(&self) -> bool {
        let list = self.of.as_ref().map(|family| &family.list);
        matches!(list, Some(List::File(children)) if !children.text.is_empty())
    }
}

impl Family {
    fn open(proc: &Path, master: (i32, u64)) -> io::Result<Self> {
        let (pid, start_time) = master;
        let list = List::open(proc, pid)?;
        // The file is that of the process that has the pid now, for good. If that is our master, it was so before, too.
        if stat(proc, pid).is_none_or(|stat| stat.starttime != start_time) {
            let gone = format!("master {pid} is gone");
            return Err(io::Error::new(io::ErrorKind::NotFound, gone));
        }
        Ok(Self {
            master,
            list,
            known: HashMap::new(),
            unsettled: true,
            smtpds: Rc::default(),
        })
    }

    fn update(&mut self, proc: &Path) -> io::Result<()> {
        let pids = match &mut self.list {
            List::File(children) => {
                let changed = children.read()?;
                if !changed && !self.unsettled {
                    return Ok(());
                }
                children.pids()
            }
            List::Parents => children_by_parent(proc, self.master.0)?,
        };
        let mut known = std::mem::take(&mut self.known);
        self.unsettled = false;
        for pid in pids {
            match known.remove(&pid).or_else(|| inspect(proc, pid)) {
                Some(child) => drop(self.known.insert(pid, child)),
                None => self.unsettled = true,
            }
        }
        let smtpds = self.known.values().filter_map(|child| match child {
            Child::Smtpd(smtpd) => Some(smtpd.clone()),
            Child::Other => None,
        });
        let mut smtpds: Vec<Smtpd> = smtpds.collect();
        smtpds.sort_unstable_by_key(|s| (s.start_time, s.pid));
        self.smtpds = smtpds.into();
        Ok(())
    }
}

impl List {
    /// Master has one thread, so the children of its main thread are all.
    fn open(proc: &Path, pid: i32) -> io::Result<Self> {
        let thread = proc.join(format!("{pid}/task/{pid}"));
        match File::open(thread.join("children")) {
            Ok(file) => Ok(Self::File(Children {
                file,
                text: Vec::new(),
                last: Vec::new(),
            })),
            // Unless the process itself is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound && thread.exists() => Ok(Self::Parents),
            Err(error) => Err(error),
        }
    }
}

/// /proc/PID/task/PID/children, held open: it is that of one process, whoever gets the pid after it, and empty once that
/// one has ended.
#[derive(Debug)]
struct Children {
    file: File,
    /// What it said at the last reading.
    text: Vec<u8>,
    /// What it said at the one before.
    last: Vec<u8>,
}

impl Children {
    /// The kernel puts at least so many bytes together before it hands out a part (fs/seq_file.c, seq_read_iter()).
    const PAGE: usize = 4096;

    /// `true` when it says something else than the last time.
    fn read(&mut self) -> io::Result<bool> {
        std::mem::swap(&mut self.text, &mut self.last);
        self.text.clear();
        loop {
            self.text.reserve(Self::PAGE);
            let from = self.text.len() as u64;
            let read = rustix::io::pread(&self.file, spare_capacity(&mut self.text), from)?;
            // A part ends at a number, and none is that long: after so little there is no more.
            if read < Self::PAGE / 2 {
                return Ok(self.text != self.last);
            }
        }
    }

    fn pids(&self) -> Vec<i32> {
        let text = String::from_utf8_lossy(&self.text);
        let pids = text.split_ascii_whitespace();
        pids.filter_map(|pid| pid.parse().ok()).collect()
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
            tree.master_of(START);
            fs::create_dir_all(tree.0.path().join("100/task/100")).unwrap();
            tree
        }

        /// Pid 100 was started then.
        fn master_of(&self, start_time: u64) {
            self.started(100, 1, "/usr/lib/postfix/sbin/master -w", start_time);
        }

        fn process(&self, pid: i32, ppid: i32, cmdline: &str) {
            self.started(pid, ppid, cmdline, u64::try_from(pid).unwrap() * 10 + 7);
        }

        fn started(&self, pid: i32, ppid: i32, cmdline: &str, start_time: u64) {
            let dir = self.0.path().join(pid.to_string());
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cmdline"), cmdline.replace(' ', "\0")).unwrap();
            let zeros = "0 ".repeat(30);
            let stat = format!(
                "{pid} (smtpd) S {ppid} {pid} {pid} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {start_time} {zeros}\n"
            );
            fs::write(dir.join("stat"), stat).unwrap();
        }

        /// Writes into the file that may be open, as the kernel does.
        fn children(&self, pids: &str) {
            fs::write(self.0.path().join("100/task/100/children"), pids).unwrap();
        }
    }

    const START: u64 = 1;

    fn master() -> Master {
        let path = PathBuf::new;
        Master {
            pid: 100,
            start_time: START,
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
        assert_eq!(
            pids(&smtpds),
            [7, 9],
            "read again after its exec, of which the list says nothing"
        );
        assert_eq!(smtpds[0].service.name, "smtp", "not read again");

        tree.children("9 ");
        assert_eq!(pids(&processes.update(&master()).unwrap()), [9]);
        let known = &processes.of.as_ref().unwrap().known;
        assert_eq!(known.len(), 1, "the dead are forgotten");

        let restarted = Master {
            start_time: 2,
            ..master()
        };
        tree.master_of(2);
        tree.process(9, 100, "smtpd -n other -t inet");
        assert_eq!(processes.update(&restarted).unwrap()[0].service.name, "other");
    }

    #[test]
    fn nothing_but_the_list_is_read_while_it_is_the_same() {
        let tree = Tree::new();
        let mut processes = Processes::at(tree.0.path());
        tree.process(7, 100, "smtpd -n smtp -t inet -u");
        tree.process(8, 100, "qmgr -l -t unix -u");
        tree.children("7 8 ");
        let first = processes.update(&master()).unwrap();
        fs::remove_dir_all(tree.0.path().join("7")).unwrap();
        fs::remove_dir_all(tree.0.path().join("8")).unwrap();
        let second = processes.update(&master()).unwrap();
        assert!(Rc::ptr_eq(&first, &second), "made anew: {second:?}");
        tree.children("8 ");
        assert_eq!(pids(&processes.update(&master()).unwrap()), [] as [i32; 0]);
    }

    /// Longer than what the kernel hands out at once, and shorter than that again.
    #[test]
    fn a_long_list_is_read_to_its_end() {
        let tree = Tree::new();
        tree.children("");
        let List::File(mut children) = List::open(tree.0.path(), 100).unwrap() else {
            panic!("the file is there");
        };
        for count in [255, 256, 1500, 400] {
            let pids: Vec<i32> = (1_000_000..1_000_000 + count).collect();
            let text: String = pids.iter().map(|pid| format!("{pid} ")).collect();
            tree.children(&text);
            assert!(children.read().unwrap());
            assert_eq!(children.pids(), pids);
            assert!(!children.read().unwrap(), "the same again");
            assert_eq!(children.pids(), pids);
        }
    }

    #[test]
    fn who_has_children_is_alive_and_who_has_none_may_be() {
        let tree = Tree::new();
        let mut processes = Processes::at(tree.0.path());
        assert!(!processes.show_life(), "nobody was asked yet");
        tree.process(8, 100, "qmgr -l -t unix -u");
        tree.children("8 ");
        processes.update(&master()).unwrap();
        assert!(processes.show_life());
        tree.children("");
        processes.update(&master()).unwrap();
        assert!(!processes.show_life());
    }

    #[test]
    fn the_kernel_agrees() {
        use std::io::{BufRead as _, BufReader};
        use std::process::{Command, Stdio};

        let mut parent = Command::new("sh")
            .args(["-c", "sleep 60 & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let child: i32 = line.trim().parse().unwrap();
        let pid = i32::try_from(parent.id()).unwrap();
        let this = Master {
            pid,
            start_time: stat(Path::new("/proc"), pid).unwrap().starttime,
            ..master()
        };
        let mut processes = Processes::new();
        let mut known = || {
            processes.update(&this).unwrap();
            assert!(processes.show_life());
            let known = processes.of.as_ref().unwrap().known.keys();
            known.copied().collect::<Vec<i32>>()
        };
        // In the midst of its exec it has no command line.
        while known().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(known(), [child]);

        // A zombie until it is waited for: it has its pid and its directory in /proc, and no child.
        parent.kill().unwrap();
        let ended = || stat(Path::new("/proc"), pid).is_some_and(|stat| stat.state == 'Z');
        while !ended() {
            std::thread::yield_now();
        }
        assert!(processes.update(&this).unwrap().is_empty());
        assert!(!processes.show_life());
        parent.wait().unwrap();
        assert!(processes.update(&this).unwrap().is_empty());
        assert!(!processes.show_life());
        let anew = Processes::new().update(&this).unwrap_err();
        assert_eq!(anew.kind(), io::ErrorKind::NotFound);
        let child = nix::unistd::Pid::from_raw(child);
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    #[test]
    fn without_the_children_file_parents_are_asked() {
        let tree = Tree::new();
        tree.process(7, 100, "smtpd -t pass -u");
        tree.process(8, 1, "smtpd -t pass -u");
        let mut processes = Processes::at(tree.0.path());
        assert_eq!(pids(&processes.update(&master()).unwrap()), [7]);
        tree.process(9, 100, "smtpd -t pass -u");
        assert_eq!(pids(&processes.update(&master()).unwrap()), [7, 9]);
        assert!(!processes.show_life(), "a parent's pid alone proves nothing");
    }

    #[test]
    fn a_master_that_is_gone_is_an_error() {
        let tree = Tree::new();
        for gone in [
            Master { pid: 5, ..master() },
            // Another process has its pid.
            Master {
                start_time: START + 1,
                ..master()
            },
        ] {
            tree.children("");
            let error = Processes::at(tree.0.path()).update(&gone).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
    }
}
