//! The daemon: wires the rooms together, ticks, and stops in good order.
//!
//! Two threads: this one runs the engine, which may block on an act; the other one the front, which must not
//! keep a scrape waiting. Where the cluster is asked, a third one does that. Those are made when the capabilities have been
//! dropped, and so never had them.

mod engine;
mod eyes;
mod front;
mod hands;
mod instance;
mod outside;
mod pods;
mod report;
mod room;
mod roster;
mod service;
mod shedding;
mod turns;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};

use self::engine::Engine;
use self::front::Bound;
use self::hands::Hands;
use self::pods::Pods;
use crate::actuator::{ActError, Actuator, ReloadMode};
use crate::clock;
use crate::config::{ActMode, Config, Reload};
use crate::control::ControlError;
use crate::kubernetes::Kubernetes;
use crate::metrics::http::HttpError;
use crate::notify::Supervisor;
use crate::privileges;
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
    #[error(transparent)]
    Privileges(#[from] privileges::Error),
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
    // All that takes a privilege which is not kept comes before the drop, and every thread after it.
    let bound = Bound::bind(config.metrics.listen, &config.paths.control_socket())?;
    tracing::info!(?mode, version = env!("CARGO_PKG_VERSION"), "smtp-sentinel starts");
    let probes = Probes::start();
    let kept = privileges::drop_to(privileges::circumstances(&config), || probes.readable())?;
    let kept = privileges::names(kept);
    tracing::info!(
        "capabilities kept: {}; all others are dropped for good",
        kept.join(" ")
    );
    let front = bound.serve(Arc::clone(&board), stop)?;
    let pods = Pods::new(Kubernetes::start(&config.kubernetes, clock::now));
    let hands = Hands::new(mode, actuator, Arc::clone(&board), pods);
    let mut engine = Engine::new(config, hands, probes, board, kept);
    engine.begin(clock::now());
    let mut supervisor = Supervisor::of_this_process();
    let signal = run(&mut engine, &mut supervisor, &stopped);
    tracing::info!("{signal}: giving back and stopping");
    supervisor.stopping();
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
fn run(engine: &mut Engine, supervisor: &mut Supervisor, stopped: &Receiver<&'static str>) -> &'static str {
    loop {
        let began = clock::now();
        engine.tick(began);
        let ended = clock::now().mono;
        supervisor.ticked(ended);
        let took = ended.saturating_duration_since(began.mono);
        match stopped.recv_timeout(engine.pause(took)) {
            Ok(signal) => return signal,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return "the front has ended",
        }
    }
}
