//! The command line: one file a subcommand. What it prints on standard output is for the caller; whatever went wrong
//! is one sentence on standard error and an exit code, the same for every subcommand.

mod check;
mod failure;
mod history;
mod plain;
mod restore;
mod run;
mod status;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::{self, Config};

pub use check::{Finding, Verdict};
pub use failure::{Code, Failure};

/// Watches Postfix, sees the smtpd processes run out, and switches stress mode on in time
#[derive(Debug, Parser)]
#[command(name = "smtp-sentinel", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch, and act when it is time
    Run(run::Args),
    /// Say whether it can work here: kernel, capabilities, each Postfix, each permission
    Check(check::Args),
    /// Say what is going on now, as the running daemon sees it
    Status(status::Args),
    /// List every transition and action, newest last
    History(history::Args),
    /// Undo what the journal says is ours, without a daemon
    Restore(restore::Args),
}

/// Which configuration; every subcommand has it.
#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// Configuration file [default: /etc/smtp-sentinel/config.toml; the built-in defaults when that is not there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, Failure> {
        Ok(Config::load(self.config.as_deref())?)
    }

    /// For people: which file the values are from.
    fn name(&self) -> String {
        match &self.config {
            Some(path) => path.display().to_string(),
            None => format!("{}, or the defaults where it is not there", config::DEFAULT_PATH),
        }
    }
}

/// Runs the subcommand to its end.
///
/// # Errors
/// With the sentence and the exit code for whatever kept it from doing what it was asked.
pub fn execute(cli: Cli) -> Result<Code, Failure> {
    match cli.command {
        Command::Run(args) => run::execute(&args),
        Command::Check(args) => check::execute(&args),
        Command::Status(args) => status::execute(&args),
        Command::History(args) => history::execute(&args),
        Command::Restore(args) => restore::execute(&args),
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            Code::No,
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// One JSON document and a newline.
fn print_json(document: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::new(Code::No, format!("cannot put the answer into JSON: {error}")))?;
    print(&(text + "\n"))
}
