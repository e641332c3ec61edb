//! `run`: the daemon. Sets up what the process needs around it; what it does all day is not said here.

use std::io::IsTerminal;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{Code, ConfigFile, Failure};
use crate::clock;
use crate::config::Config;
use crate::control;
use crate::metrics::http;
use crate::status::Board;

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
    let failed = |error: std::io::Error| Failure::new(Code::No, format!("cannot start: {error}"));
    // One thread: there is little to do, and all of it is for the same few masters.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    tracing::info!(config = %args.file.name(), dry_run = args.dry_run, "starting");
    runtime.block_on(serve(&config))
}

/// Answers on the control socket and over HTTP until it is told to end.
async fn serve(config: &Config) -> Result<Code, Failure> {
    let failed = |error: std::io::Error| Failure::new(Code::No, format!("cannot take signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let board = Arc::new(Board::new(clock::now().mono));
    let control = control::Server::bind(&config.paths.control_socket())?;
    let http = match config.metrics.listen {
        Some(address) => Some(http::Server::bind(address).await?),
        None => None,
    };
    let http = async {
        match http {
            Some(server) => {
                tracing::info!(address = %server.address(), "metrics");
                server.serve(Arc::clone(&board), clock::now).await;
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = control.serve(Arc::clone(&board)) => {}
        () = http => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(Code::Done)
}

/// Levels by RUST_LOG, else info. journald and files get no colours, and journald has its own clock.
fn log_to_stderr() {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env_lossy();
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // systemd sets it for a service whose standard error goes to the journal (systemd.exec(5)).
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().init();
    } else {
        builder.init();
    }
}
