//! A private Postfix: own configuration, queue, data and log in one temporary directory, started in the server's namespace.
//! It never reads or writes /etc/postfix beyond what Debian's own binaries do.
//!
//! It hangs on a guard, a shell that is master's parent and waits for the end of its standard input: when the process that
//! holds the other end is gone, orderly or by SIGKILL, the guard ends master and removes the directory. PR_SET_PDEATHSIG
//! cannot do this, since the kernel clears it when credentials change (commit_creds()), and master changes its effective
//! user when it locks its data directory.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Group, Pid, Uid, User};

use crate::clock::{wait_for, wait_until};
use crate::netns::Namespace;

/// Debian's place first, then where other distributions keep it.
const DAEMON_DIRECTORIES: [&str; 3] = [
    "/usr/lib/postfix/sbin",
    "/usr/libexec/postfix",
    "/usr/lib/postfix/bin",
];

/// A start of master takes half a second here; a machine with other things to do gets the rest.
const START: Duration = Duration::from_secs(60);

/// $1: master. $2: the lab's directory. $3: a file that is bind-mounted read-only for this Postfix alone, or empty. Takes
/// `stop` and `start` on its standard input and answers each with a line. master leads its own session
/// (src/master/master.c), so the negative pid reaches all that it started. The inner shell is there for `unshare`, which
/// must not fork: master has to be the guard's own child, or its pid could go to another process.
const GUARD: &str = r#"
start() {
    if [ -n "$3" ]; then
        unshare --mount --propagation private sh -c \
            'mount --bind "$2" "$2" && mount -o remount,bind,ro "$2" && exec "$1" -s' sh "$1" "$3" >/dev/null 2>&1 &
    else
        "$1" -s >/dev/null 2>&1 &
    fi
    master=$!
    echo "$master"
}
stop() {
    [ -n "$master" ] || return
    kill -TERM "$master" 2>/dev/null
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 -- "-$master" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL -- "-$master" 2>/dev/null
    wait
    master=
}
start "$@"
while read -r order; do
    case $order in
        stop) stop; echo stopped ;;
        start) start "$@" ;;
    esac
done
stop
rm -rf -- "$2"
"#;

/// What to start.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) main_cf: String,
    pub(crate) master_cf: String,
    pub(crate) read_only_master_cf: bool,
    pub(crate) own_master: bool,
}

/// A running private Postfix.
#[derive(Debug)]
pub struct Postfix {
    base: PathBuf,
    guard: Child,
    answers: BufReader<ChildStdout>,
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
        lay_out(base)?;
        let master = if plan.own_master {
            copy_of(&master, base)?
        } else {
            master
        };
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
        let mut guard = namespace.run(|| {
            Command::new("sh")
                .args(["-c", GUARD, "guard"])
                .args([&master, base, &read_only])
                // What postfix(1) sets for every command that it starts, and what tells the instance from outside.
                .env("MAIL_CONFIG", &config)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                // Out of reach of a Ctrl-C, which would take the guard before its work.
                .process_group(0)
                .spawn()
                .context("starting the guard of Postfix")
        })?;
        let stdout = guard.stdout.take().context("the guard has no standard output")?;
        let mut postfix = Self {
            base: base.to_owned(),
            guard,
            answers: BufReader::new(stdout),
            master_pid: 0,
        };
        postfix.wait_started(0)?;
        Ok(postfix)
    }

    /// Ends master and all that it started, as `postfix stop` does, and returns when they are gone.
    ///
    /// # Errors
    /// The guard is gone.
    pub fn stop(&mut self) -> Result<()> {
        let answer = self.order("stop")?;
        ensure!(answer == "stopped", "the guard said {answer:?}");
        Ok(())
    }

    /// Starts a new master after [`Self::stop`], and returns when it runs.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&mut self) -> Result<()> {
        let starts = self.starts();
        self.guard_input()?.write_all(b"start\n")?;
        self.wait_started(starts)
    }

    fn order(&mut self, order: &str) -> Result<String> {
        writeln!(self.guard_input()?, "{order}")?;
        self.answer()
    }

    fn guard_input(&mut self) -> Result<&mut ChildStdin> {
        self.guard
            .stdin
            .as_mut()
            .context("the guard has no standard input")
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Takes the new master's pid and waits until it says that it has started; `before` is how many have said so.
    fn wait_started(&mut self, before: usize) -> Result<()> {
        let master_pid = self.answer()?;
        self.master_pid = master_pid
            .parse()
            .context("the guard did not tell master's process id")?;
        wait_until("master to start", START, || {
            ensure!(
                Path::new(&format!("/proc/{master_pid}/exe")).exists(),
                "master ended at once:\n{}",
                self.log()
            );
            Ok(self.starts() > before)
        })
    }

    /// How many masters have started.
    fn starts(&self) -> usize {
        self.log_count("daemon started")
    }

    pub fn master_pid(&self) -> i32 {
        self.master_pid
    }

    /// The lab's directory, which goes with the instance.
    pub fn base(&self) -> &Path {
        &self.base
    }

    pub fn config_dir(&self) -> PathBuf {
        self.base.join("config")
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
        fs::read(self.base.join("mail.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// How many lines of the mail log contain `needle`.
    pub fn log_count(&self, needle: &str) -> usize {
        self.log().lines().filter(|line| line.contains(needle)).count()
    }

    /// SIGHUP to master, as an administrator reloads, and waits until it has taken it.
    ///
    /// # Errors
    /// master is gone, or does not reload.
    pub fn reload(&self) -> Result<()> {
        let before = self.reloads();
        kill(Pid::from_raw(self.master_pid), Signal::SIGHUP)?;
        wait_until("master to reload", START, || Ok(self.reloads() > before))
    }

    /// Changes master.cf as configuration management does: a new file, renamed over the old one.
    ///
    /// # Errors
    /// The file cannot be read or replaced.
    pub fn replace_master_cf(&self, bytes: &[u8]) -> Result<()> {
        let new = self.config_dir().join("master.cf.ansible");
        fs::write(&new, bytes)?;
        Ok(fs::rename(new, self.master_cf_path())?)
    }

    /// Replaces the executable of [`crate::lab::Builder::own_master`] under the running master, as the upgrade of a package does.
    ///
    /// # Errors
    /// There is none, or it cannot be replaced.
    pub fn upgrade(&self) -> Result<()> {
        let (program, new) = (
            self.base.join("sbin/master"),
            self.base.join("sbin/master.dpkg-new"),
        );
        fs::copy(&program, &new)?;
        Ok(fs::rename(new, program)?)
    }

    /// Whether master lives.
    pub fn runs(&self) -> bool {
        Path::new(&format!("/proc/{}/exe", self.master_pid)).exists()
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

impl Drop for Postfix {
    fn drop(&mut self) {
        // The end of its input is the guard's sign; it is bounded by itself (GUARD), so this wait is.
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// A copy of master's program, beside an smtpd by which the sentinel knows it; it starts those of the machine.
fn copy_of(master: &Path, base: &Path) -> Result<PathBuf> {
    let own = base.join("sbin");
    fs::create_dir(&own)?;
    fs::copy(master, own.join("master"))?;
    symlink(master.with_file_name("smtpd"), own.join("smtpd"))?;
    Ok(own.join("master"))
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
