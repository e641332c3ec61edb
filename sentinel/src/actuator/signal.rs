//! Tells a running master to read its files again. Never signals anything but a master, and never an smtpd: killing
//! one that has served nothing yet throttles its service for a minute (Postfix src/master/master_spawn.c).

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::command::{self, Ended};
use crate::postfix::postconf::Postconf;
use crate::postfix::{Master, discovery};

/// `postfix reload` runs `postsuper active` first, which is 50 to 400 ms and more with a long queue.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// How a master is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReloadMode {
    /// SIGHUP to the master itself. The new queue manager moves `active` back to `incoming` by itself, so what
    /// `postfix reload` does beforehand is not missed.
    #[default]
    Signal,
    /// `postfix -c DIR reload`.
    Command,
}

/// Why a master could not be told.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(
        "the Postfix of {} (master pid {pid}) is not running any more; start it if that was not meant to be",
        .config_dir.display()
    )]
    Gone { pid: i32, config_dir: PathBuf },
    #[error("cannot signal master {pid}: {source}; run as root, or with CAP_KILL")]
    NotSent { pid: i32, source: io::Error },
    #[error("`postfix -c {} reload` failed: {complaint}", .config_dir.display())]
    Refused { config_dir: PathBuf, complaint: String },
    #[error(
        "`postfix -c {} reload` did not end within {limit_s} s, so that it is not known whether the master was told",
        .config_dir.display()
    )]
    Unknown { config_dir: PathBuf, limit_s: u64 },
    #[error("there is no postfix(1) command on this machine; set act.reload = \"signal\"")]
    NoCommand,
    #[error("cannot look for running masters: {0}")]
    Discovery(String),
}

/// The running masters, as the actuator needs them. [`System`] is the real thing.
pub trait Masters: Send {
    /// Every running master of these configuration directories.
    fn running(&mut self, config_dirs: &[PathBuf]) -> Result<Vec<Master>, ReloadError>;

    /// Whether it is still this very master that has the pid.
    fn alive(&mut self, master: &Master) -> bool;

    /// The addresses of its listening TCP sockets; `None` when that cannot be told.
    fn listening(&mut self, master: &Master) -> Option<Vec<SocketAddr>>;

    /// Makes it read its files again.
    fn reload(&mut self, master: &Master, mode: ReloadMode) -> Result<(), ReloadError>;
}

/// The masters of this machine.
#[derive(Debug, Default)]
pub struct System;

impl Masters for System {
    fn running(&mut self, config_dirs: &[PathBuf]) -> Result<Vec<Master>, ReloadError> {
        discovery::masters(config_dirs).map_err(|error| ReloadError::Discovery(error.to_string()))
    }

    fn alive(&mut self, master: &Master) -> bool {
        is_this(master)
    }

    fn listening(&mut self, master: &Master) -> Option<Vec<SocketAddr>> {
        let sockets = discovery::listening(master.pid).ok()?;
        // One that has none has just started, and is about to open them.
        Some(sockets).filter(|sockets| !sockets.is_empty())
    }

    fn reload(&mut self, master: &Master, mode: ReloadMode) -> Result<(), ReloadError> {
        match mode {
            ReloadMode::Signal => hang_up(master),
            ReloadMode::Command => command(master),
        }
    }
}

fn gone(master: &Master) -> ReloadError {
    ReloadError::Gone {
        pid: master.pid,
        config_dir: master.config_dir.clone(),
    }
}

/// SIGHUP, to this master or to nobody: the pidfd pins the process, so that what is checked after it was opened is
/// what the signal goes to, however pids are reused.
fn hang_up(master: &Master) -> Result<(), ReloadError> {
    let not_sent = |error: rustix::io::Errno| match error {
        rustix::io::Errno::SRCH => gone(master),
        error => ReloadError::NotSent {
            pid: master.pid,
            source: error.into(),
        },
    };
    let pid = Pid::from_raw(master.pid).ok_or_else(|| gone(master))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(not_sent)?;
    if !is_this(master) {
        return Err(gone(master));
    }
    pidfd_send_signal(pidfd, Signal::HUP).map_err(not_sent)
}

fn command(master: &Master) -> Result<(), ReloadError> {
    if !is_this(master) {
        return Err(gone(master));
    }
    // postfix(1) is beside postconf(1), and the same must hold for it: root's, and nobody else's to write.
    let postconf = Postconf::find(&master.daemon_dir).ok_or(ReloadError::NoCommand)?;
    let program = postconf.program().with_file_name("postfix");
    let refused = |complaint: String| ReloadError::Refused {
        config_dir: master.config_dir.clone(),
        complaint,
    };
    let scratch = tempfile::tempdir().map_err(|error| refused(error.to_string()))?;
    // With -c it is this one instance, also where multi_instance_directories is set (postfix-wrapper(5)).
    let args = ["-c".as_ref(), master.config_dir.as_os_str(), "reload".as_ref()];
    match command::run(&program, args, COMMAND_LIMIT, scratch.path()) {
        Ok(Ended::Well) => Ok(()),
        Ok(Ended::Badly(complaint)) => Err(refused(complaint)),
        Ok(Ended::Never) => Err(ReloadError::Unknown {
            config_dir: master.config_dir.clone(),
            limit_s: COMMAND_LIMIT.as_secs(),
        }),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// Same pid and start time, and not a zombie: a signal to a zombie reaches nobody and is reported as a success. The
/// executable guards against a [`Master`] that is none; where it may not be looked at (no CAP_SYS_PTRACE), the other
/// two are an identity by themselves.
fn is_this(master: &Master) -> bool {
    let exe = std::fs::read_link(format!("/proc/{}/exe", master.pid));
    discovery::alive(master)
        && exe.map_or(true, |exe| {
            // After a package upgrade the running master's executable is deleted; a reload is as good as ever.
            let exe = exe.to_string_lossy();
            Path::new(exe.trim_end_matches(" (deleted)")) == master.daemon_dir.join("master")
        })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// A process that is a master in everything that identifies one, and writes a line for each SIGHUP.
    pub(in crate::actuator) struct FakeMaster {
        child: Child,
        pub(in crate::actuator) master: Master,
        log: PathBuf,
        _home: tempfile::TempDir,
    }

    impl FakeMaster {
        pub(in crate::actuator) fn start(config_dir: &Path) -> Self {
            let home = tempfile::tempdir().unwrap();
            let exe = home.path().join("master");
            std::fs::copy("/bin/sh", &exe).unwrap();
            let log = home.path().join("log");
            let script = "trap 'echo hup >> \"$0\"' HUP; echo up >> \"$0\"; while :; do sleep 0.01; done";
            let child = Command::new(&exe)
                .args(["-c", script])
                .arg(&log)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let pid = child.id().cast_signed();
            for _ in 0..500 {
                if log.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let stat = procfs::process::Process::new(pid).unwrap().stat().unwrap();
            let master = Master {
                pid,
                start_time: stat.starttime,
                config_dir: config_dir.to_owned(),
                queue_dir: home.path().to_owned(),
                daemon_dir: home.path().to_owned(),
                netns: 0,
            };
            Self {
                child,
                master,
                log,
                _home: home,
            }
        }

        pub(in crate::actuator) fn kill(&mut self) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }

        /// Waits for the signal, which the shell takes note of after its sleep.
        pub(in crate::actuator) fn hangups(&self, expected: usize) -> usize {
            let count = || std::fs::read_to_string(&self.log).unwrap().matches("hup").count();
            for _ in 0..300 {
                if count() >= expected {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            std::thread::sleep(Duration::from_millis(50));
            count()
        }
    }

    impl Drop for FakeMaster {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn hangs_up_this_master_once() {
        let mut fake = FakeMaster::start("/nowhere".as_ref());
        assert!(System.alive(&fake.master));
        System.reload(&fake.master, ReloadMode::Signal).unwrap();
        assert_eq!(fake.hangups(1), 1);
        fake.kill();
        assert!(!System.alive(&fake.master));
        assert!(matches!(
            System.reload(&fake.master, ReloadMode::Signal),
            Err(ReloadError::Gone { .. })
        ));
    }

    #[test]
    fn another_process_with_the_pid_is_left_alone() {
        let fake = FakeMaster::start("/nowhere".as_ref());
        let earlier = Master {
            start_time: fake.master.start_time - 1,
            ..fake.master.clone()
        };
        let elsewhere = Master {
            daemon_dir: "/usr/lib/postfix/sbin".into(),
            ..fake.master.clone()
        };
        for other in [earlier, elsewhere] {
            assert!(matches!(
                System.reload(&other, ReloadMode::Signal),
                Err(ReloadError::Gone { .. })
            ));
            assert!(matches!(
                System.reload(&other, ReloadMode::Command),
                Err(ReloadError::Gone { .. })
            ));
        }
        assert_eq!(fake.hangups(0), 0);
    }

    #[test]
    fn a_zombie_is_gone() {
        let mut fake = FakeMaster::start("/nowhere".as_ref());
        fake.child.kill().unwrap();
        for _ in 0..200 {
            if !System.alive(&fake.master) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(matches!(
            System.reload(&fake.master, ReloadMode::Signal),
            Err(ReloadError::Gone { .. })
        ));
    }
}
