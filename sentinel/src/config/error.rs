//! Why a configuration is refused. Each display is one sentence that says where and what to do.

use std::io;
use std::path::PathBuf;

use jiff::SignedDuration;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "{} does not exist; create it, or leave --config out to run with the built-in defaults", path.display()
    )]
    Missing { path: PathBuf },

    #[error("cannot read {}: {source}; make it readable for the user that runs smtp-sentinel", path.display())]
    Unreadable { path: PathBuf, source: io::Error },

    #[error("{} is not UTF-8 text; correct it, or name a configuration file with --config", path.display())]
    NotText { path: PathBuf },

    #[error("{} is not a regular file of at most {limit} bytes; name a configuration file with --config", path.display())]
    NotAFile { path: PathBuf, limit: u64 },

    #[error(
        "{} can be written by others than its owner (mode {mode:04o}), and it steers a daemon that runs as root; \
         run: chmod go-w '{}'", path.display(), path.display()
    )]
    WritableByOthers { path: PathBuf, mode: u32 },

    #[error(
        "{} belongs to user {owner}, and it steers a daemon that runs as root; run: chown root '{}'",
        path.display(), path.display()
    )]
    OwnedByOther { path: PathBuf, owner: u32 },

    #[error("{}: line {line}: {message}; correct that line, or remove it to get the default", path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        message: String,
    },

    #[error(transparent)]
    UnknownKey(Box<UnknownKey>),

    #[error("{}: line {line}: [{section}] {key} {problem}", path.display())]
    Value {
        path: PathBuf,
        line: usize,
        section: &'static str,
        key: &'static str,
        problem: Invalid,
    },
}

/// A key that no section has, or a section that there is not.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: line {line}: unknown {} \"{key}\"{}; {}",
    path.display(),
    if *is_section { "section" } else { "key" },
    section.as_ref().map_or(String::new(), |name| format!(" in [{name}]")),
    advice(suggestion.as_deref(), known)
)]
pub struct UnknownKey {
    pub path: PathBuf,
    pub line: usize,
    pub key: String,
    pub is_section: bool,
    pub section: Option<String>,
    pub suggestion: Option<String>,
    pub known: Vec<String>,
}

fn advice(suggestion: Option<&str>, known: &[String]) -> String {
    match suggestion {
        Some(name) => format!(
            "did you mean \"{name}\"? The keys known there are: {}",
            known.join(", ")
        ),
        None if known.is_empty() => "remove it".to_owned(),
        None => format!("remove it, or use one of: {}", known.join(", ")),
    }
}

/// What is wrong with a value; reads on after the name of its key.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Invalid {
    #[error("must be above 0 and at most 1, and is {0}; write a part of maxproc, such as 0.7")]
    NotAPart(f64),
    #[error("must lie between 1 and {max}, and is {factor}; 1 is no headroom, 2 twice the slots")]
    NotAFactor { factor: f64, max: f64 },
    #[error("= {clear} must be below trip = {trip}; two thresholds apart keep the state from flapping")]
    ClearNotBelowTrip { trip: f64, clear: f64 },
    #[error("is not a time: {text:?}; write it like \"30s\" or \"1m 30s\"")]
    NotADuration { text: String },
    #[error("must lie between {min:#} and {max:#}, and is {value:#}")]
    DurationOutOfRange {
        value: SignedDuration,
        min: SignedDuration,
        max: SignedDuration,
    },
    #[error("must lie between {min} and {max}, and is {value}")]
    NumberOutOfRange { value: i64, min: i64, max: i64 },
    #[error("is not an absolute path: {text:?}; begin it with /, and leave out .. and control characters")]
    NotAbsolute { text: String },
    #[error(
        "is {length} bytes long, and the control socket in it may have no path above {max} bytes; choose a shorter one"
    )]
    PathTooLong { length: usize, max: usize },
    #[error(
        "names {text:?}, which is no service; write name/type as in master.cf, such as \"smtp/inet\" or \"smtpd/pass\""
    )]
    NotAService { text: String },
    #[error("names {text:?} twice; remove one")]
    Twice { text: String },
    #[error("names {value}, which is no port; write numbers from 1 to 65535")]
    NotAPort { value: i64 },
    #[error(
        "is empty, and so is ports: nothing would be watched; name a service, such as \"smtp/inet\", or remove the key"
    )]
    NothingToWatch,
    #[error("must be one of {}, and is {text:?}", allowed.join(", "))]
    NotOneOf {
        text: String,
        allowed: &'static [&'static str],
    },
    #[error(
        "is not an address with a port: {text:?}; write \"127.0.0.1:9825\" or \"[::1]:9825\", or \"\" for none"
    )]
    NotAnAddress { text: String },
    #[error(
        "is no cgroup path nor a part of one: {text:?}; write it like \"kubepods\" or \"/machine.slice/libpod-1.scope\""
    )]
    NotACgroup { text: String },
}
