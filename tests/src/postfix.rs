//! A private Postfix: own configuration, queue, data and log in one temporary directory, started in the server's namespace.
//! It never reads or writes /etc/postfix beyond what Debian's own binaries do.
//!
//! It hangs on a guard, a shell that is master's parent and waits for the end of its standard input: when the process that
//! holds the other end is gone, orderly or by SIGKILL, the guard ends master and removes the directory. PR_SET_PDEATHSIG
//! cannot do this, since the kernel clears it when credentials change (commit_creds()), and master changes its effective
//! user when it locks its data directory.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Gid, Group, Uid, User};

use crate::clock::{wait_for, wait_until};
use crate::container::{self, Container};
use crate::netns::Namespace;

/// Debian's place first, then where other distributions keep it.
const DAEMON_DIRECTORIES: [&str; 3] = [
    "/usr/lib/postfix/sbin",
    "/usr/libexec/postfix",
    "/usr/lib/postfix/bin",
];

/// A start of master takes half a second here; a machine with other things to do gets the rest.
const START: Duration = Duration::from_secs(60);

/// $1: master. $2: the lab's directory. $3: a file that is bind-mounted read-only for this Postfix alone, or empty. master
/// leads its own session (src/master/master.c), so the negative pid reaches all that it started. The inner shell is there
/// for `unshare`, which must not fork: master has to be the guard's own child, or its pid could go to another process.
const GUARD: &str = r#"
if [ -n "$3" ]; then
    unshare --mount --propagation private sh -c \
        'mount --bind "$2" "$2" && mount -o remount,bind,ro "$2" && exec "$1" -s' sh "$1" "$3" >/dev/null 2>&1 &
else
    "$1" -s >/dev/null 2>&1 &
fi
master=$!
echo "$master"
read -r _
kill -TERM "$master" 2>/dev/null
for _ in 1 2 3 4 5 6 7 8 9 10; do
    kill -0 -- "-$master" 2>/dev/null || break
    sleep 0.1
done
kill -KILL -- "-$master" 2>/dev/null
wait
rm -rf -- "$2"
"#;

/// The same for a container. $1: master. $2: the directory that goes with it. $3: the script that sets the container up, of
/// [`container`]. $4: its cgroup. $5: how its master.cf is mounted. The pid that is told is that of unshare(1), whose one child
/// is the first process of the container, and takes all others with it.
const CONTAINER_GUARD: &str = r#"
sh -c 'echo $$ >"$4/cgroup.procs" && exec unshare --mount --pid --uts --ipc --propagation private --fork --kill-child \
    sh -c "$3" sh "$1" "$2" "$5"' sh "$@" >"$2/setup.log" 2>&1 &
outer=$!
echo "$outer"
read -r _
for process in $(cat "/proc/$outer/task/$outer/children" 2>/dev/null); do
    kill -KILL "$process" 2>/dev/null
done
wait
rm -rf -- "$2"
for _ in 1 2 3 4 5 6 7 8 9 10; do
    rmdir -- "$4" 2>/dev/null && break
    sleep 0.1
done
rmdir -- "${4%/*}" 2>/dev/null
"#;

/// What to start.
#[derive(Debug)]
pub(crate) struct Plan {
    /// In a container of its own.
    pub(crate) container: Option<Container>,
    pub(crate) main_cf: String,
    pub(crate) master_cf: String,
    pub(crate) read_only_master_cf: bool,
}

/// A running private Postfix.
#[derive(Debug)]
pub struct Postfix {
    base: PathBuf,
    /// Where the instance itself lies: `base`, or in a container's root below it.
    tree: PathBuf,
    guard: Child,
    master_pid: i32,
}

/// One smtpd process, from its command line and environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smtpd {
    pub pid: i32,
    pub args: Vec<String>,
    /// master's spawn counter (GENERATION, octal): later means younger.
    pub generation: u64,
}

impl Smtpd {
    /// The value of the last `-o stress=`, the one that counts; `None` without any.
    pub fn stress(&self) -> Option<&str> {
        self.args
            .iter()
            .rev()
            .find_map(|argument| argument.strip_prefix("stress="))
    }

    /// The value that master.cf itself gives: an `-o stress=` after the one that master puts first of its own accord
    /// (src/master/master_ent.c, get_master_ent()).
    pub fn stress_of_master_cf(&self) -> Option<&str> {
        self.args
            .iter()
            .filter_map(|argument| argument.strip_prefix("stress="))
            .nth(1)
    }
}

impl Postfix {
    /// Lays the instance out below `base` and starts it inside `namespace`; returns when master runs. From here on the guard
    /// owns `base` and removes it in the end.
    pub(crate) fn start(namespace: &Namespace, base: &Path, plan: &Plan) -> Result<Self> {
        let master = DAEMON_DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join("master"))
            .find(|path| path.exists())
            .context("Postfix is not installed: run `cargo xtask setup`")?;
        if let Some(container) = &plan.container {
            return Self::start_in(namespace, base, plan, container, &master);
        }
        lay_out(base)?;
        let config = base.join("config");
        fs::write(
            config.join("main.cf"),
            crate::master_cf::main_cf(base, &plan.main_cf),
        )?;
        fs::write(config.join("master.cf"), &plan.master_cf)?;

        let read_only = if plan.read_only_master_cf {
            config.join("master.cf")
        } else {
            PathBuf::new()
        };
        let (guard, master_pid) = start_guard(namespace, || {
            let mut command = Command::new("sh");
            command
                .args(["-c", GUARD, "guard"])
                .args([&master, base, &read_only])
                // What postfix(1) sets for every command that it starts, and what tells the instance from outside.
                .env("MAIL_CONFIG", &config);
            command
        })?;
        let postfix = Self {
            base: base.to_owned(),
            tree: base.to_owned(),
            guard,
            master_pid,
        };
        postfix.wait_started()?;
        Ok(postfix)
    }

    /// In a container: its own root, made of the machine's /usr and what is needed of /etc, with mount, pid, uts and ipc
    /// namespaces of its own, in a cgroup that is named as runtimes do it. master is its first process.
    fn start_in(
        namespace: &Namespace,
        base: &Path,
        plan: &Plan,
        container: &Container,
        master: &Path,
    ) -> Result<Self> {
        let tree = container.lay_out(base)?;
        let config = tree.join("config");
        let main_cf = crate::master_cf::main_cf(Path::new(container::TREE), &plan.main_cf);
        fs::write(config.join("main.cf"), main_cf)?;
        fs::write(config.join("master.cf"), &plan.master_cf)?;
        fs::write(tree.join("mail.log"), "")?;
        container.fill_mount(base, &config)?;
        let cgroup = container.make_cgroup()?;
        let (guard, outer) = start_guard(namespace, || {
            let mut command = Command::new("sh");
            command
                .args(["-c", CONTAINER_GUARD, "guard"])
                .args([master, base])
                .arg(container::SET_UP)
                .arg(&cgroup)
                .arg(container.mount.word())
                .env("MAIL_CONFIG", Path::new(container::TREE).join("config"));
            command
        })?;
        let first = wait_for("the first process of the container", START, || {
            let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));
            Ok(children
                .ok()
                .and_then(|text| text.split_whitespace().next()?.parse().ok()))
        });
        let postfix = Self {
            base: base.to_owned(),
            tree,
            guard,
            master_pid: first
                .with_context(|| fs::read_to_string(base.join("setup.log")).unwrap_or_default())?,
        };
        postfix
            .wait_started()
            .with_context(|| fs::read_to_string(base.join("setup.log")).unwrap_or_default())?;
        Ok(postfix)
    }

    fn wait_started(&self) -> Result<()> {
        let (postfix, master_pid) = (self, self.master_pid);
        wait_until("master to start", START, || {
            ensure!(
                Path::new(&format!("/proc/{master_pid}/exe")).exists(),
                "master ended at once:\n{}",
                postfix.log()
            );
            Ok(postfix.log().contains("daemon started"))
        })
    }

    pub fn master_pid(&self) -> i32 {
        self.master_pid
    }

    /// The lab's directory, which goes with the instance.
    pub fn base(&self) -> &Path {
        &self.base
    }

    pub fn config_dir(&self) -> PathBuf {
        self.tree.join("config")
    }

    pub fn master_cf_path(&self) -> PathBuf {
        self.config_dir().join("master.cf")
    }

    /// The bytes of master.cf.
    ///
    /// # Errors
    /// The file is not there, even for a moment.
    pub fn master_cf(&self) -> Result<Vec<u8>> {
        fs::read(self.master_cf_path()).context("reading the lab's master.cf")
    }

    /// The mail log so far.
    pub fn log(&self) -> String {
        fs::read(self.tree.join("mail.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// How many lines of the mail log contain `needle`.
    pub fn log_count(&self, needle: &str) -> usize {
        self.log().lines().filter(|line| line.contains(needle)).count()
    }

    /// How many times master has re-read its configuration.
    pub fn reloads(&self) -> usize {
        self.log_count("reload -- version")
    }

    /// The smtpd processes of this master, oldest first.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn smtpds(&self) -> Result<Vec<Smtpd>> {
        let mut found: Vec<_> = fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|pid| smtpd(pid, self.master_pid))
            .collect();
        found.sort_by_key(|smtpd| smtpd.generation);
        Ok(found)
    }

    /// Waits until the youngest smtpd is as wanted, and returns it. One is forked for a connection only, so somebody has to
    /// connect meanwhile.
    ///
    /// # Errors
    /// It did not come to pass.
    pub fn wait_youngest(
        &self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Smtpd) -> bool,
    ) -> Result<Smtpd> {
        wait_for(&format!("the youngest smtpd: {what}"), patience, || {
            Ok(self.smtpds()?.pop().filter(&wanted))
        })
    }
}

impl Postfix {
    /// Ends it, and takes its directory away. Twice is once.
    pub(crate) fn stop(&mut self) {
        // The end of its input is the guard's sign; it is bounded by itself (GUARD), so this wait is.
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts a guard in `namespace`, and returns it with the process id that it tells.
fn start_guard(namespace: &Namespace, command: impl FnOnce() -> Command + Send) -> Result<(Child, i32)> {
    let mut guard = namespace.run(|| {
        command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Out of reach of a Ctrl-C, which would take the guard before its work.
            .process_group(0)
            .spawn()
            .context("starting the guard of Postfix")
    })?;
    let mut line = String::new();
    let stdout = guard.stdout.take().context("the guard has no standard output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    let pid = line
        .trim()
        .parse()
        .context("the guard did not tell the process id of what it started")?;
    Ok((guard, pid))
}

/// The directories that `postfix check` would make (conf/postfix-files), without a start of its scripts.
pub(crate) fn lay_out(base: &Path) -> Result<()> {
    let owner = User::from_name("postfix")?.context("there is no user `postfix`: run `cargo xtask setup`")?;
    let group =
        Group::from_name("postdrop")?.context("there is no group `postdrop`: run `cargo xtask setup`")?;
    let root = Uid::from_raw(0);
    let make = |name: &str, user: Uid, group: Option<Gid>, mode: u32| -> Result<()> {
        let path = base.join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        chown(&path, Some(user.as_raw()), group.map(Gid::as_raw))?;
        Ok(fs::set_permissions(&path, Permissions::from_mode(mode))?)
    };
    fs::set_permissions(base, Permissions::from_mode(0o755))?;
    make("config", root, None, 0o755)?;
    make("queue", root, None, 0o755)?;
    make("data", owner.uid, None, 0o700)?;
    make("queue/pid", root, None, 0o755)?;
    for name in [
        "incoming", "active", "deferred", "hold", "corrupt", "bounce", "defer", "trace", "flush", "saved",
        "private",
    ] {
        make(&format!("queue/{name}"), owner.uid, None, 0o700)?;
    }
    make("queue/public", owner.uid, Some(group.gid), 0o2710)?;
    make("queue/maildrop", owner.uid, Some(group.gid), 0o1730)
}

/// `pid` if it is an smtpd child of `master`. A process may go while it is read; then it is none.
fn smtpd(pid: i32, master: i32) -> Option<Smtpd> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent: i32 = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
    if parent != master {
        return None;
    }
    let args = nul_separated(&fs::read(format!("/proc/{pid}/cmdline")).ok()?);
    if args.first().map(String::as_str) != Some("smtpd") {
        return None;
    }
    let environ = nul_separated(&fs::read(format!("/proc/{pid}/environ")).ok()?);
    let generation = environ.iter().find_map(|pair| pair.strip_prefix("GENERATION="))?;
    Some(Smtpd {
        pid,
        args,
        generation: u64::from_str_radix(generation, 8).ok()?,
    })
}

fn nul_separated(bytes: &[u8]) -> Vec<String> {
    bytes
        .split(|&byte| byte == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .filter(|part| !part.is_empty())
        .collect()
}
