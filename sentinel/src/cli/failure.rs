//! Exit codes, and which of them an error of each room means.

use std::io;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::Cli;
use super::plain::printable;
use crate::actuator::{ActError, JournalError};
use crate::config::ConfigError;
use crate::control::{AskError, ControlError};
use crate::metrics::http::HttpError;
use crate::run::RunError;

/// The exit codes; those above 1 are of sysexits.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Done.
    Done = 0,
    /// The answer is no, or it could not be done; another try may.
    No = 1,
    /// EX_USAGE: the command line makes no sense.
    Usage = 64,
    /// EX_UNAVAILABLE: the daemon is not there.
    Unavailable = 69,
    /// EX_NOPERM: not permitted.
    NotPermitted = 77,
    /// EX_CONFIG: the configuration must be corrected; another try is of no use.
    Config = 78,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// What the operator gets to read, and what a script gets to see.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct Failure {
    pub code: Code,
    /// One sentence that says what to do, without a newline.
    pub sentence: String,
}

impl Failure {
    pub fn new(code: Code, sentence: impl Into<String>) -> Self {
        Self {
            code,
            sentence: sentence.into(),
        }
    }
}

/// A refusal of the system gets its own code, whatever was being done.
fn unless_denied(code: Code, source: &io::Error) -> Code {
    match source.kind() {
        io::ErrorKind::PermissionDenied => Code::NotPermitted,
        _ => code,
    }
}

impl From<clap::Error> for Failure {
    /// clap's text is a page; ours is its first line and its advice.
    fn from(error: clap::Error) -> Self {
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let command = Cli::command();
            let names: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
            let sentence = format!(
                "a subcommand is missing, one of {}; see `smtp-sentinel --help`",
                names.join(", ")
            );
            return Self::new(Code::Usage, sentence);
        }
        let text = error.to_string();
        let mut parts: Vec<_> = text
            .lines()
            .take(1)
            .map(|line| line.trim_start_matches("error: "))
            .collect();
        parts.extend(
            text.lines()
                .filter_map(|line| line.trim_start().strip_prefix("tip: ")),
        );
        parts.push("see `smtp-sentinel --help`");
        Self::new(Code::Usage, printable(&parts.join("; ")))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let code = match &error {
            ConfigError::Unreadable { source, .. } => unless_denied(Code::Config, source),
            _ => Code::Config,
        };
        Self::new(code, error.to_string())
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        let code = match &error {
            AskError::NotRunning { .. } => Code::Unavailable,
            AskError::NotPermitted { .. } | AskError::Refused(_) => Code::NotPermitted,
            AskError::NoAnswer(_) => Code::No,
            // There is a socket, and behind it nothing that works.
            AskError::Broken { source, .. } => unless_denied(Code::Unavailable, source),
        };
        Self::new(code, error.to_string())
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let code = match &error {
            ControlError::AlreadyRunning { .. } => Code::No,
            ControlError::NotPrivate { .. } => Code::Config,
            ControlError::Io { source, .. } => unless_denied(Code::No, source),
        };
        Self::new(code, error.to_string())
    }
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        let code = match &error {
            // Whoever has it may let go of it: systemd may try again.
            HttpError::InUse { .. } => Code::No,
            HttpError::Bind { source, .. } => unless_denied(Code::No, source),
        };
        Self::new(code, error.to_string())
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let code = match &error {
            JournalError::Read { source, .. } => unless_denied(Code::No, source),
            _ => Code::No,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ActError> for Failure {
    fn from(error: ActError) -> Self {
        let code = if error.not_permitted() {
            Code::NotPermitted
        } else {
            Code::No
        };
        Self::new(code, error.to_string())
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Act(error) => error.into(),
            RunError::Control(error) => error.into(),
            RunError::Http(error) => error.into(),
            RunError::Privileges(_) => Self::new(Code::NotPermitted, error.to_string()),
            RunError::Runtime(_) => Self::new(Code::No, error.to_string()),
        }
    }
}
