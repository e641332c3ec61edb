//! A stand-in for Postfix where the real one is too heavy: fifty instances with a thousand smtpd, or five thousand sessions a
//! second. It has what the sentinel knows a Postfix by (the program `master` beside an `smtpd`, command lines, listening
//! sockets, configuration files), and no mail in it. It cannot stand in where master's own doings matter.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::netns::Namespace;

/// What the stand-in has and does; handed to the program in its environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Role {
    pub listens: Vec<SocketAddr>,
    /// smtpd processes, which only sit there.
    pub smtpds: u32,
    /// maxproc.
    pub limit: u32,
    /// Connections that it makes to its own listeners, in turn, and keeps.
    pub connections: u32,
    pub accepts: Accepts,
}

/// Which connections the stand-in takes out of the accept queues, all by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accepts {
    /// So many of each listener, which it greets and keeps.
    AndKeeps(u32),
    /// All; greets them, and closes when they do.
    AndServes,
}

/// The variable that a [`Role`] goes by.
pub const VARIABLE: &str = "STAND_IN";

/// A running stand-in; it ends when it is dropped, or with this process.
#[derive(Debug)]
pub struct StandIn {
    process: Child,
    config_dir: PathBuf,
}

/// The programs `master` and `smtpd` in a directory of their own.
#[derive(Debug)]
pub struct Programs(PathBuf);

impl Programs {
    /// Lays them out below `base`.
    ///
    /// # Errors
    /// The program `stand-in` is not built.
    pub fn install(base: &Path) -> Result<Self> {
        let own = env::current_exe()?;
        let program = own
            .ancestors()
            .skip(1)
            .map(|directory| directory.join("stand-in"))
            .find(|path| path.is_file())
            .context("the program stand-in is not built: run `cargo build --package sentinel-lab`")?;
        let directory = base.join("sbin");
        fs::create_dir(&directory)?;
        fs::copy(program, directory.join("master"))?;
        fs::hard_link(directory.join("master"), directory.join("smtpd"))?;
        Ok(Self(directory))
    }
}

impl StandIn {
    /// Starts one inside `namespace` with its files below `base`, and waits until its sockets and processes are there.
    ///
    /// # Errors
    /// It could not do as told; its words are on standard error.
    pub fn start(namespace: &Namespace, programs: &Programs, base: &Path, role: &Role) -> Result<Self> {
        let (config_dir, queue) = (base.join("config"), base.join("queue"));
        for directory in [&config_dir, &queue] {
            fs::create_dir_all(directory)?;
        }
        let hosts: Vec<String> = role
            .listens
            .iter()
            .map(|address| address.ip().to_string())
            .collect();
        fs::write(
            config_dir.join("main.cf"),
            format!("inet_interfaces = {}\n", hosts.join(", ")),
        )?;
        fs::write(
            config_dir.join("master.cf"),
            format!("smtp inet n - n - {} smtpd\n", role.limit),
        )?;
        // postconf(1) warns of a directory that has no such file beside main.cf.
        let _ = symlink("/etc/postfix/dynamicmaps.cf", config_dir.join("dynamicmaps.cf"));
        let mut process = namespace.run(|| {
            Command::new(programs.0.join("master"))
                .arg("-w")
                .env("MAIL_CONFIG", &config_dir)
                .env(VARIABLE, serde_json::to_string(role)?)
                .current_dir(&queue)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("starting the stand-in")
        })?;
        let mut line = String::new();
        let stdout = process
            .stdout
            .take()
            .context("the stand-in has no standard output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "the stand-in did not get ready: {line:?}");
        Ok(Self { process, config_dir })
    }

    pub fn config_dir(&self) -> &Path {
        &self.config_dir
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // The end of its input is its sign to end; its children go with it.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
