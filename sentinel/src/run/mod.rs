//! The daemon: wires the rooms together, ticks, and stops in good order.
//!
//! Two threads: this one runs the engine, which may block on an act; the other one the front, which must not
//! keep a scrape waiting.

mod engine;
mod front;
mod hands;
mod instance;
mod report;
mod service;
mod shedding;
mod turns;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};

use self::engine::{Engine, TICK};
use self::front::Front;
use self::hands::Hands;
use crate::actuator::{ActError, Actuator, ReloadMode};
use crate::clock;
use crate::config::{ActMode, Config, Reload};
use crate::control::ControlError;
use crate::metrics::http::HttpError;
use crate::probes::Probes;
use crate::status::{Board, Mode};

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Act(#[from] ActError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("cannot start a thread or an event loop: {0}; raise the process and file limits of this service")]
    Runtime(io::Error),
}

/// Runs until SIGTERM or SIGINT, and gives back whatever is in force before it returns.
pub fn daemon(config: Config, dry_run: bool) -> Result<(), RunError> {
    let mode = match (dry_run, config.act.mode) {
        (true, _) => Mode::DryRun,
        (false, ActMode::Enforce) => Mode::Enforce,
        (false, ActMode::Observe) => Mode::Observe,
    };
    // The lock of the state directory comes first: a second daemon must not touch a socket of the first.
    let actuator = Actuator::open(&config.paths.state_dir, reload_mode(&config))?;
    let board = Arc::new(Board::new(clock::now().mono));
    let (stop, stopped) = sync_channel(1);
    let front = Front::start(
        config.metrics.listen,
        config.paths.control_socket(),
        Arc::clone(&board),
        stop,
    )?;
    tracing::info!(?mode, version = env!("CARGO_PKG_VERSION"), "smtp-sentinel starts");
    let hands = Hands::new(mode, actuator, Arc::clone(&board));
    let mut engine = Engine::new(config, hands, Probes::start(), board);
    engine.begin(clock::now());
    let signal = run(&mut engine, &stopped);
    tracing::info!("{signal}: giving back and stopping");
    engine.end(clock::now());
    drop(front);
    Ok(())
}

/// How the configuration wants Postfix to be told.
pub fn reload_mode(config: &Config) -> ReloadMode {
    match config.act.reload {
        Reload::Signal => ReloadMode::Signal,
        Reload::Command => ReloadMode::Command,
    }
}

/// Ticks until told to stop, and returns why.
fn run(engine: &mut Engine, stopped: &Receiver<&'static str>) -> &'static str {
    loop {
        let began = clock::now();
        engine.tick(began);
        let took = clock::now().mono.saturating_duration_since(began.mono);
        engine.ticked(took);
        match stopped.recv_timeout(TICK.saturating_sub(took)) {
            Ok(signal) => return signal,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return "the front has ended",
        }
    }
}
