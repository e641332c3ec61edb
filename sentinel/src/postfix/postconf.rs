//! Runs postconf(1): the only program that this room starts, and only one that belongs to root.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Master, Root};

/// It takes 15 ms, or up to 2 s when main.cf was changed just now: it waits until the file is that old, lest it read
/// half of it (Postfix src/util/dict.c dict_load_file_xt()). One that hangs waits for a file system or a look-up, and
/// nothing of ours may wait with it.
const PATIENCE: Duration = Duration::from_secs(5);

/// postconf dies of an inet_interfaces with an address that its own network namespace lacks (Postfix
/// src/global/own_inet_addr.c), and it runs in ours, which need not be master's. Loopback is everywhere.
const INTERFACES: &str = "inet_interfaces=loopback-only";

/// A postconf(1) that may be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postconf {
    program: PathBuf,
}

/// Why postconf gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum PostconfError {
    #[error("cannot run {program}: {source}")]
    NotRun { program: PathBuf, source: io::Error },
    #[error("{program} gave no answer within {} s and was killed; see what it waits for", PATIENCE.as_secs())]
    TimedOut { program: PathBuf },
    #[error("{program} refuses {config_dir}: {message}; correct the file that it names")]
    Failed {
        program: PathBuf,
        config_dir: PathBuf,
        message: String,
    },
}

impl PostconfError {
    /// Whether the same question may be answered later, without a change of any file.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::NotRun { .. } | Self::TimedOut { .. } => true,
            Self::Failed { .. } => false,
        }
    }
}

impl Postconf {
    /// The postconf of the Postfix whose daemons are in `daemon_dir`: the nearest first, since a machine can have two
    /// versions of Postfix. `None`: there is none that belongs to root and that nobody else can write.
    pub fn find(daemon_dir: &Path) -> Option<Self> {
        let near = [".", "../sbin", "../../sbin"].map(|dir| daemon_dir.join(dir));
        let usual = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
        let programs = near.into_iter().chain(usual).map(|dir| dir.join("postconf"));
        programs
            .into_iter()
            .find(|p| is_trusted(p))
            .map(|program| Self { program })
    }

    /// The postconf for a master; never one for a master in a container. What is in there is not executed, and its
    /// configuration is not read by ours either: a meta_directory in main.cf makes postconf(1) load shared objects
    /// from wherever it says (Postfix src/global/dynamicmaps.c), /proc/PID/root of that container not excepted.
    pub fn of(master: &Master) -> Option<Self> {
        match master.root {
            Root::Own => Self::find(&master.daemon_dir),
            Root::Container(_) => None,
        }
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What `postconf -M` prints of the master.cf of a directory, one entry a line. A candidate directory must have a
    /// main.cf too, as a symlink or with an old time: postconf waits for one younger than 2 s.
    /// Catches less than [`super::master_cf::validate`] in some places and more in others: ask both.
    pub fn entries(&self, config_dir: &Path) -> Result<Vec<u8>, PostconfError> {
        Ok(self.run(config_dir, &["-M"], &[])?.stdout)
    }

    /// The values of parameters, with every `$name` in them expanded, as they would be with these `-o name=value`
    /// (the last of a name counts). A parameter that this Postfix does not have is left out. Do not ask for
    /// inet_interfaces: it is always overridden.
    pub fn parameters(
        &self,
        config_dir: &Path,
        overrides: &[String],
        names: &[&str],
    ) -> Result<BTreeMap<String, String>, PostconfError> {
        let mut options = vec!["-x"];
        options.extend(overrides.iter().flat_map(|setting| ["-o", setting.as_str()]));
        let output = self.run(config_dir, &options, names)?;
        Ok(parse_parameters(&String::from_utf8_lossy(&output.stdout)))
    }

    /// A text with every `$name` in it expanded as in main.cf.
    pub fn expand(&self, config_dir: &Path, text: &str) -> Result<String, PostconfError> {
        // Lent to a parameter that takes any text and that nothing else of postconf looks at.
        let values = self.parameters(config_dir, &[format!("smtpd_banner={text}")], &["smtpd_banner"])?;
        Ok(values.into_values().next().unwrap_or_default())
    }

    fn run(&self, config_dir: &Path, options: &[&str], names: &[&str]) -> Result<Output, PostconfError> {
        let not_run = |source| PostconfError::NotRun {
            program: self.program.clone(),
            source,
        };
        // Without our environment: MAIL_CONFIG and the like would speak about another Postfix.
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(config_dir)
            .args(options)
            .args(["-o", INTERFACES])
            .args(names)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(not_run)?;
        let timed_out = || PostconfError::TimedOut {
            program: self.program.clone(),
        };
        let output = wait(child, PATIENCE).map_err(not_run)?.ok_or_else(timed_out)?;
        if output.status.success() {
            return Ok(output);
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        let message = if message.is_empty() {
            output.status.to_string()
        } else {
            message
        };
        Err(PostconfError::Failed {
            program: self.program.clone(),
            config_dir: config_dir.to_owned(),
            message,
        })
    }
}

/// Root's, and nobody else's to write: we run it as root.
fn is_trusted(program: &Path) -> bool {
    std::fs::metadata(program).is_ok_and(|m| m.is_file() && m.uid() == 0 && m.mode() & 0o022 == 0)
}

/// The output of a child, or `None` when it was killed for being late.
fn wait(child: Child, patience: Duration) -> io::Result<Option<Output>> {
    // The pidfd is taken while the child cannot have been reaped yet, so the kill hits no other process.
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("the child has no pid"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let (sender, receiver) = mpsc::channel();
    // Reads both pipes to their ends, so the child never blocks on a full one, and reaps it, late or not.
    let waiter = thread::spawn(move || drop(sender.send(child.wait_with_output())));
    match receiver.recv_timeout(patience) {
        Ok(output) => output.map(Some),
        Err(_) => {
            pidfd_send_signal(&pidfd, Signal::KILL)?;
            // Not joined: a grandchild could hold the pipes open.
            drop(waiter);
            Ok(None)
        }
    }
}

/// `name = value` a line; a value that is empty has no blank behind the `=`.
fn parse_parameters(output: &str) -> BTreeMap<String, String> {
    let pairs = output.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    #[test]
    fn a_late_child_is_killed_and_a_talkative_one_is_read() {
        assert!(
            wait(shell("exec sleep 60"), Duration::from_millis(50))
                .unwrap()
                .is_none()
        );
        let output = wait(shell("head -c 300000 /dev/zero"), Duration::from_secs(30))
            .unwrap()
            .unwrap();
        assert_eq!(output.stdout.len(), 300_000);
    }

    #[test]
    fn parameters_are_read_from_lines() {
        let read = parse_parameters("a = 1\nb =\nc = x = y\n");
        assert_eq!(read["a"], "1");
        assert_eq!(read["b"], "");
        assert_eq!(read["c"], "x = y");
    }

    #[test]
    fn only_a_program_of_root_is_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("postconf");
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(!is_trusted(&program));
        assert!(!is_trusted(dir.path()));
        assert!(!is_trusted(&dir.path().join("none")));
    }
}
