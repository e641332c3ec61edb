//! The sentinel under test: the real binary with a configuration of its own, asked by the contracts that everybody has. It
//! runs in the machine's own network namespace, as a DaemonSet does, and has to find the lab's by itself; or, where a test
//! says so, in that of its Postfix, as on a machine without containers.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use smtp_sentinel::controller::State;
use smtp_sentinel::status::{Report, Service};

use crate::Lab;
use crate::clock::{wait_for, wait_until};
use crate::metrics::Scrape;
use crate::netns::Namespace;
use crate::usage::Usage;

/// Bounds what takes a moment: a start with the BPF verifier in it, an answer, an end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What differs from the daemon's defaults. The dwells are short, so that a test sees a trip and a clear; the thresholds are
/// the defaults.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names the directory in the lab's: a second sentinel needs one of its own.
    pub name: String,
    /// Instead of the lab's own configuration directory; [`Sentinel::install_for`] is told all of them.
    pub config_dir: Option<PathBuf>,
    /// Lines of `[discovery]` besides config_dirs.
    pub discovery: String,
    /// Lines of `[detect]`.
    pub detect: String,
    /// Lines of `[act]`.
    pub act: String,
    /// Lines of `[watch]`.
    pub watch: String,
    /// Any other text, at the end.
    pub more: String,
    /// The daemon is going to be in the network namespace of its Postfix; [`Sentinel::beside_postfix`] gets it there.
    pub beside_postfix: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "sentinel".to_owned(),
            config_dir: None,
            discovery: String::new(),
            detect: "dwell = \"3s\"\ntrip_dwell = \"1s\"".to_owned(),
            act: "mode = \"enforce\"\nmin_interval = \"1s\"".to_owned(),
            watch: String::new(),
            more: String::new(),
            beside_postfix: false,
        }
    }
}

/// The sentinel as installed for one lab: program, configuration and directories, whether it runs or not. All of it lies in
/// the lab's directory and goes with that.
#[derive(Debug)]
pub struct Sentinel {
    program: PathBuf,
    base: PathBuf,
    config_dir: PathBuf,
    http: SocketAddr,
    /// Where `http` is, when that is not our own network namespace, and the master whose it is.
    beside: Option<(Namespace, i32)>,
}

/// What a command of the sentinel said.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Answer {
    /// That of `history --json`, taken apart.
    ///
    /// # Errors
    /// The command failed, or says what is not in the contract.
    pub fn history(&self) -> Result<Vec<Entry>> {
        ensure!(self.code == Some(0), "history: {self:?}");
        serde_json::from_str(&self.stdout).with_context(|| format!("history --json: {}", self.stdout))
    }
}

/// One entry of `history --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Entry {
    pub time: String,
    pub kind: String,
    pub instance: Option<String>,
    pub service: Option<String>,
    pub from: Option<String>,
    pub to: Option<String>,
    pub action: Option<String>,
    #[serde(default)]
    pub reasons: Vec<String>,
    pub outcome: Option<String>,
    #[serde(default)]
    pub detail: serde_json::Value,
}

impl Entry {
    /// Whether a reason or the detail has this text.
    pub fn tells(&self, text: &str) -> bool {
        self.reasons.iter().any(|reason| reason.contains(text)) || self.detail.to_string().contains(text)
    }

    /// A transition to `state`.
    pub fn is_transition_to(&self, state: &str) -> bool {
        self.kind == "transition" && self.to.as_deref() == Some(state)
    }
}

impl Sentinel {
    /// # Errors
    /// As [`Self::install_with`].
    pub fn install(lab: &Lab) -> Result<Self> {
        Self::install_with(lab, &Settings::default())
    }

    /// Writes the configuration for the lab's Postfix.
    ///
    /// # Errors
    /// The program is not built, or older than its sources.
    pub fn install_with(lab: &Lab, settings: &Settings) -> Result<Self> {
        let config_dir = settings.config_dir.clone();
        let config_dir = config_dir.unwrap_or_else(|| lab.postfix.config_dir());
        let mut sentinel = Self::install_for(lab.base(), &[config_dir], settings)?;
        if settings.beside_postfix {
            sentinel.beside = Some((lab.server().handle()?, lab.postfix.master_pid()));
        }
        Ok(sentinel)
    }

    /// Writes the configuration for the Postfix of each of `config_dirs`, below the directory `base`.
    ///
    /// # Errors
    /// As [`Self::install_with`].
    pub fn install_for(base: &Path, config_dirs: &[PathBuf], settings: &Settings) -> Result<Self> {
        let program = program()?;
        let base = base.join(&settings.name);
        fs::create_dir(&base).with_context(|| format!("making {}", base.display()))?;
        // The daemon takes no port of ours to be told: a free one is chosen here, and the gap until it binds is accepted.
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let Settings {
            name: _,
            config_dir: _,
            discovery,
            detect,
            act,
            watch,
            more,
            beside_postfix: _,
        } = settings;
        let sentinel = Self {
            program,
            base,
            config_dir: config_dirs.first().cloned().unwrap_or_default(),
            http,
            beside: None,
        };
        let text = format!(
            "[discovery]\nconfig_dirs = {config_dirs:?}\n{discovery}\n[watch]\n{watch}\n[detect]\n{detect}\n[act]\n{act}\n\
             [metrics]\nlisten = \"{http}\"\n[paths]\nstate_dir = {:?}\nruntime_dir = {:?}\n{more}\n",
            sentinel.state_dir(),
            sentinel.runtime_dir(),
        );
        fs::write(sentinel.config(), text)?;
        Ok(sentinel)
    }

    /// What the daemon has against a configuration, in its own words; `None` when it takes it.
    ///
    /// # Errors
    /// The program is not built, or cannot be run.
    pub fn refusal_of(configuration: &str) -> Result<Option<String>> {
        /// sysexits.h, EX_CONFIG.
        const BAD_CONFIGURATION: i32 = 78;
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(configuration.as_bytes())?;
        let output = Command::new(program()?)
            .args(["check", "--config"])
            .arg(file.path())
            .output()?;
        let name = file.path().to_string_lossy();
        let words = || {
            let words = String::from_utf8_lossy(&output.stderr);
            words.trim().replace(&*name, "the configuration")
        };
        Ok((output.status.code() == Some(BAD_CONFIGURATION)).then(words))
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Where the daemon serves /metrics, on the loopback of the namespace that it runs in.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    pub fn config(&self) -> PathBuf {
        self.base.join("config.toml")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.base.join("state")
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.base.join("run")
    }

    /// The words that start a program in the network namespace of the lab's Postfix; none without
    /// [`Settings::beside_postfix`].
    pub fn beside_postfix(&self) -> Vec<String> {
        let master = self.beside.as_ref().map(|(_, master)| master);
        master
            .map(|master| vec!["nsenter".to_owned(), format!("--net=/proc/{master}/ns/net")])
            .unwrap_or_default()
    }

    /// Starts the daemon and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or does not get ready; the message has its log.
    pub fn start(&self) -> Result<Daemon<'_>> {
        self.start_under(&[])
    }

    /// [`Self::start`] by way of another program, as in `nsenter --mount=FILE -- smtp-sentinel run`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_under(&self, wrapper: &[&str]) -> Result<Daemon<'_>> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        // Ends with the thread that starts it, which is the test's. The daemon keeps its credentials, so the kernel keeps
        // this setting.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(wrapper)
            .arg(&self.program)
            .arg("run")
            .arg("--config")
            .arg(self.config())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting the daemon by setpriv (util-linux)")?;
        let mut daemon = Daemon {
            sentinel: self,
            process,
            ended: None,
        };
        wait_until("the daemon to be ready", PATIENCE, || {
            if let Some(status) = daemon.process.try_wait()? {
                daemon.ended = Some(status);
                bail!("the daemon ended at its start ({status}):\n{}", self.log());
            }
            Ok(self.get("/readyz").is_ok_and(|(status, _)| status == 200))
        })?;
        Ok(daemon)
    }

    /// Runs a command of the sentinel, such as `&["status", "--json"]`, with our configuration.
    ///
    /// # Errors
    /// It could not be run at all; what it says is in the answer.
    pub fn ask(&self, words: &[&str]) -> Result<Answer> {
        self.ask_under(&[], words)
    }

    /// [`Self::ask`] by way of another program.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn ask_under(&self, wrapper: &[&str], words: &[&str]) -> Result<Answer> {
        let output = Command::new("env")
            .args(wrapper)
            .arg(&self.program)
            .args(words)
            .arg("--config")
            .arg(self.config())
            .output()?;
        Ok(output.into())
    }

    /// What the journal tells, oldest first; needs no daemon.
    ///
    /// # Errors
    /// The command fails, or says what is not in the contract.
    pub fn history(&self) -> Result<Vec<Entry>> {
        self.ask(&["history", "--json"])?.history()
    }

    /// GET of the daemon's HTTP server: status and body.
    ///
    /// # Errors
    /// Nobody listens, or it is no HTTP.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        match &self.beside {
            Some((namespace, _)) => namespace.run(|| get(self.http, path)),
            None => get(self.http, path),
        }
    }

    /// The daemon's log so far.
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.base.join("sentinel.log")
    }
}

/// A running daemon. Dropping it kills it, as nothing else would: what it leaves is the lab's to judge.
#[derive(Debug)]
pub struct Daemon<'a> {
    sentinel: &'a Sentinel,
    process: Child,
    ended: Option<ExitStatus>,
}

impl Daemon<'_> {
    /// What it uses now.
    ///
    /// # Errors
    /// It is gone.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(self.process.id())
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// `status --json`.
    ///
    /// # Errors
    /// The command fails, or says what is not in the contract.
    pub fn status(&self) -> Result<Report> {
        let answer = self.sentinel.ask(&["status", "--json"])?;
        ensure!(answer.code == Some(0), "status: {answer:?}");
        serde_json::from_str(&answer.stdout).with_context(|| format!("status --json: {}", answer.stdout))
    }

    /// A service of the lab's Postfix, such as `smtp/inet`, in the status; `None` while the daemon has not found it.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn find_service(&self, label: &str) -> Result<Option<Service>> {
        let config_dir = self.sentinel.config_dir.to_string_lossy();
        let instances = self.status()?.instances.into_iter();
        let mut services = instances
            .filter(|one| one.config_dir == config_dir)
            .flat_map(|one| one.services);
        Ok(services.find(|service| format!("{}/{}", service.name, service.kind) == label))
    }

    /// Polls the status until `smtp inet` is as wanted, and returns it.
    ///
    /// # Errors
    /// It did not come to pass; the message has the last status.
    pub fn wait_service(
        &self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Service) -> bool,
    ) -> Result<Service> {
        self.wait_service_named("smtp/inet", what, patience, wanted)
    }

    /// The same for any service.
    ///
    /// # Errors
    /// As [`Self::wait_service`].
    pub fn wait_service_named(
        &self,
        label: &str,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Service) -> bool,
    ) -> Result<Service> {
        let mut last = None;
        let found = wait_for(what, patience, || {
            last = self.find_service(label)?;
            Ok(last.clone().filter(&wanted))
        });
        found.with_context(|| format!("last status of {label}: {last:#?}"))
    }

    /// Waits until `smtp inet` is in this state.
    ///
    /// # Errors
    /// As [`Self::wait_service`].
    pub fn wait_state(&self, state: State) -> Result<Service> {
        let what = format!("smtp/inet to be {state}");
        self.wait_service(&what, PATIENCE, |service| service.state == state)
    }

    /// Waits until the detector says this of `smtp inet`.
    ///
    /// # Errors
    /// As [`Self::wait_service`].
    pub fn wait_verdict(&self, kind: &str) -> Result<Service> {
        let what = format!("the verdict {kind} on smtp/inet");
        self.wait_service(&what, PATIENCE, |service| service.verdict.kind == kind)
    }

    /// /metrics, read.
    ///
    /// # Errors
    /// No answer, or not the text format.
    pub fn metrics(&self) -> Result<Scrape> {
        Scrape::parse(&self.metrics_text()?)
    }

    /// /metrics as it is.
    ///
    /// # Errors
    /// No answer, or another status than 200.
    pub fn metrics_text(&self) -> Result<String> {
        let (status, body) = self.sentinel.get("/metrics")?;
        ensure!(status == 200, "/metrics: status {status}: {body}");
        Ok(body)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid())?), signal)?)
    }

    /// SIGSTOP: it stands still, as on a machine that is starved or suspended.
    ///
    /// # Errors
    /// It is gone.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT, after [`Self::freeze`].
    ///
    /// # Errors
    /// It is gone.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// kill -9: no chance to put anything in order.
    ///
    /// # Errors
    /// It was gone already.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.ended = Some(self.process.wait()?);
        Ok(())
    }

    /// SIGTERM, and the exit code of the orderly end.
    ///
    /// # Errors
    /// It does not end within a minute.
    pub fn terminate(mut self) -> Result<Option<i32>> {
        self.signal(Signal::SIGTERM)?;
        let status = wait_for("the daemon to end after SIGTERM", PATIENCE, || {
            Ok(self.process.try_wait()?)
        })?;
        self.ended = Some(status);
        Ok(status.code())
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the daemon in the failed lab\n{}", self.sentinel.log());
        }
    }
}

/// GET of an HTTP server in this network namespace: status and body.
pub(crate) fn get(server: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").context("no HTTP response")?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("no HTTP status")?;
    Ok((status, body.to_owned()))
}

/// The daemon's binary: beside the directory of the running test program. Cargo does not build the programs of another
/// package for a test, so it can be missing or older than what it is made of; a test of yesterday's daemon would be worse
/// than none.
fn program() -> Result<PathBuf> {
    const BUILD: &str = "run `cargo build --package smtp-sentinel` (`cargo xtask test` does)";
    let own = env::current_exe()?;
    let profile = own
        .ancestors()
        .skip(1)
        .find(|directory| !directory.ends_with("deps"));
    let program = profile
        .context("a program lies in a directory")?
        .join("smtp-sentinel");
    ensure_of_today(&program, &program.with_extension("d"), BUILD)?;
    Ok(program)
}

/// Refuses a program that is missing, or older than one of the sources in `list`, cargo's own for it.
pub(crate) fn ensure_of_today(program: &Path, list: &Path, build: &str) -> Result<()> {
    ensure!(program.is_file(), "{} is not there: {build}", program.display());
    let built = program.metadata()?.modified()?;
    for source in sources(list) {
        // A source that is gone was renamed or removed since.
        let newer = source
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(|changed| changed <= built);
        ensure!(
            newer,
            "{} is older than {}: {build}",
            program.display(),
            source.display()
        );
    }
    Ok(())
}

/// The sources that cargo itself lists for the binary, `BINARY: SOURCE SOURCE ...`, blanks escaped as in make.
fn sources(list: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(list).unwrap_or_default();
    let sources = text
        .split_once(": ")
        .map_or("", |(_, sources)| sources)
        .trim_end();
    let escaped = sources.replace("\\ ", "\0");
    escaped
        .split(' ')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('\0', " ").into())
        .collect()
}
