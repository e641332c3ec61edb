//! The configuration: file text, then raw values with their lines, then a [`Config`] that has been proved.
//!
//! Whoever holds a [`Config`] need not check it again: the newtypes have no constructor that lets nonsense in. Nothing
//! here looks at the system that the configuration is for, but at the file itself: it steers a daemon that runs as
//! root, so a file that others can write is refused like a wrong key.

mod error;
mod file;
mod raw;
mod validate;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::postfix::ServiceId;
use crate::postfix::discovery::Scope;

pub use error::{ConfigError, Invalid, UnknownKey};

/// Read when no file is named; it may be missing.
pub const DEFAULT_PATH: &str = "/etc/smtp-sentinel/config.toml";

/// A configuration that can be used as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub discovery: Discovery,
    pub watch: Watch,
    pub detect: Detect,
    pub act: Act,
    pub metrics: Metrics,
    pub kubernetes: Kubernetes,
    pub paths: Paths,
}

/// Which Postfix instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// Absolute, each once. Empty: every master of the own mount namespace.
    pub config_dirs: Vec<PathBuf>,
    /// Those in containers too.
    pub containers: bool,
    /// Of those in containers, only these, by their cgroup path or a part of it; all when it is empty.
    pub cgroups: Vec<String>,
    /// At least 1. Instances beyond it are left alone, and reported.
    pub max_instances: usize,
}

impl Discovery {
    pub fn scope(&self) -> Scope {
        Scope {
            config_dirs: self.config_dirs.clone(),
            containers: self.containers,
            cgroups: self.cgroups.clone(),
        }
    }
}

/// Which services of an instance. At least one of the two lists has something in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// Of type `inet` or `pass`, each once.
    pub services: Vec<ServiceId>,
    /// An `inet` service that listens on one of these is watched under whatever name it has.
    pub ports: Vec<u16>,
}

impl Watch {
    /// Both lists as names of services, the way master.cf could write them: `smtp/inet`, `25/inet`.
    pub fn names(&self) -> Vec<String> {
        let services = self.services.iter().map(ToString::to_string);
        services
            .chain(self.ports.iter().map(|port| format!("{port}/inet")))
            .collect()
    }
}

/// When to act.
#[derive(Debug, Clone, PartialEq)]
pub struct Detect {
    pub thresholds: Thresholds,
    /// How long the pressure must stay below `clear` before we let go.
    pub dwell: Duration,
    /// How long the pressure must stay above `trip` before we act.
    pub trip_dwell: Duration,
}

/// Pressure at which to trip and below which to clear: 0 < clear < trip <= 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    trip: f64,
    clear: f64,
}

impl Thresholds {
    /// # Errors
    /// When one of the two is not in (0, 1], or `clear` is not below `trip`: with one threshold for both, a pressure
    /// that hovers around it would reload Postfix again and again.
    pub fn new(trip: f64, clear: f64) -> Result<Self, Invalid> {
        for part in [trip, clear] {
            // Also refuses NaN, which compares false with everything; TOML can write it.
            if !(part > 0.0 && part <= 1.0) {
                return Err(Invalid::NotAPart(part));
            }
        }
        if clear >= trip {
            return Err(Invalid::ClearNotBelowTrip { trip, clear });
        }
        Ok(Self { trip, clear })
    }

    pub fn trip(self) -> f64 {
        self.trip
    }

    pub fn clear(self) -> f64 {
        self.clear
    }
}

/// How to act.
#[derive(Debug, Clone, PartialEq)]
pub struct Act {
    pub mode: ActMode,
    pub reload: Reload,
    /// Between two reloads of one instance that switch stress on.
    pub min_interval: Duration,
    /// Of one instance; at least 2, since what is switched on is switched off again.
    pub max_reloads_per_hour: u32,
    /// Hold the connections that began before stress mode to its limits too, and close those that break them.
    pub shed: bool,
    /// The least patience with clients that have not said a word since the greeting, when slots are gone.
    pub min_patience: Duration,
    /// maxproc may be raised to so many times what the administrator has, for the time of an episode; 1 is off.
    pub headroom: f64,
}

/// Whether to act at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActMode {
    /// Edit master.cf and reload.
    Enforce,
    /// Decide and report, and change nothing.
    Observe,
}

/// How Postfix is told to read master.cf again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// SIGHUP to the master: what `postfix reload` ends in, without its walk over the queue files.
    Signal,
    /// `postfix reload`.
    Command,
}

/// Where the metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// `None`: nowhere.
    pub listen: Option<SocketAddr>,
}

/// Whether the cluster is asked for the pods of this node, and what holds where it does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    pub enabled: bool,
    /// Of a pod without the annotation.
    pub default_mode: PodMode,
    /// Of every pod, as long as the API has not answered, or not for longer than `keep`.
    pub without_api: PodMode,
    /// For how long the last answers count when the API has gone away.
    pub keep: Duration,
    /// Whether a trip, a clear and a refusal become Events on the pod.
    pub events: bool,
}

/// What may be done with the Postfix in a pod; `[act] mode` is the most that any pod can have. Ordered: the lesser one
/// does less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PodMode {
    /// Not watched.
    Off,
    Observe,
    Enforce,
}

impl PodMode {
    /// The words of the configuration and of the annotation alike.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "off" => Some(Self::Off),
            "observe" => Some(Self::Observe),
            "enforce" => Some(Self::Enforce),
            _ => None,
        }
    }
}

impl fmt::Display for PodMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        })
    }
}

/// Where our own files are. Both are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Journal and backups; must outlive a reboot.
    pub state_dir: PathBuf,
    /// Control socket; short enough that its path fits a socket address.
    pub runtime_dir: PathBuf,
}

impl Paths {
    pub fn control_socket(&self) -> PathBuf {
        self.runtime_dir.join("control.sock")
    }
}

impl Config {
    /// Reads `named`, or [`DEFAULT_PATH`] when none is named. Only the latter may be missing: the defaults serve then.
    ///
    /// # Errors
    /// When the file is missing, cannot be read, can be written by others, or says something that it must not.
    pub fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        match file::read(path) {
            Ok(text) => Self::parse(&text, path),
            Err(ConfigError::Missing { .. }) if named.is_none() => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Reads `text`; `path` is only for the messages.
    ///
    /// # Errors
    /// When the text is not TOML, has an unknown key, or a value that is out of its range.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw = file::decode(text, path)?;
        validate::Validator { text, path }.config(raw)
    }
}

impl Default for Config {
    fn default() -> Self {
        let service = |name: &str, kind: &str| ServiceId {
            name: name.to_owned(),
            kind: kind.to_owned(),
        };
        Self {
            discovery: Discovery {
                config_dirs: Vec::new(),
                containers: false,
                cgroups: Vec::new(),
                max_instances: 64,
            },
            watch: Watch {
                services: vec![service("smtp", "inet"), service("smtpd", "pass")],
                ports: vec![25],
            },
            detect: Detect {
                thresholds: Thresholds {
                    trip: 0.7,
                    clear: 0.4,
                },
                dwell: Duration::from_secs(30),
                trip_dwell: Duration::from_secs(1),
            },
            act: Act {
                mode: ActMode::Enforce,
                reload: Reload::Signal,
                min_interval: Duration::from_secs(60),
                max_reloads_per_hour: 12,
                shed: true,
                min_patience: Duration::from_secs(5),
                headroom: 1.0,
            },
            metrics: Metrics {
                listen: Some(SocketAddr::from(([127, 0, 0, 1], 9825))),
            },
            kubernetes: Kubernetes {
                enabled: false,
                default_mode: PodMode::Observe,
                without_api: PodMode::Observe,
                keep: Duration::from_secs(3600),
                events: true,
            },
            paths: Paths {
                state_dir: PathBuf::from("/var/lib/smtp-sentinel"),
                runtime_dir: PathBuf::from("/run/smtp-sentinel"),
            },
        }
    }
}

#[cfg(test)]
mod tests;
