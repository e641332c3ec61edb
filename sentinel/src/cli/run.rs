//! `run`: the daemon. Sets up what the process needs around it; what it does all day is in [`crate::run`].

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::{Code, ConfigFile, Failure};
use crate::run::daemon;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// Decide and report as if in earnest, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn execute(args: &Args) -> Result<Code, Failure> {
    let config = args.file.load()?;
    log_to_stderr();
    tracing::info!(config = %args.file.name(), "configuration read");
    daemon(config, args.dry_run)?;
    Ok(Code::Done)
}

/// Levels by RUST_LOG, else info. journald and files get no colours, and journald has its own clock.
fn log_to_stderr() {
    // The client of the Kubernetes API logs every failed attempt, and texts of the server as they come; what there is to
    // say of it is said by the room of that name.
    let levels = std::env::var("RUST_LOG").ok().filter(|levels| !levels.is_empty());
    let filter = EnvFilter::builder().parse_lossy(levels.as_deref().unwrap_or("info,kube_client=off"));
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // Standard error that is closed must not end a daemon that has an edit to give back: the complaint about a
        // failed write would itself go there, and panic.
        .log_internal_errors(false);
    // systemd sets it for a service whose standard error goes to the journal (systemd.exec(5)).
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().init();
    } else {
        builder.init();
    }
}
