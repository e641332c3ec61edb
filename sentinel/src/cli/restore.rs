//! `restore`: gives back whatever of ours is in a master.cf, without a daemon.

use std::path::PathBuf;

use super::{Code, ConfigFile, Failure, print};
use crate::actuator::restore;
use crate::clock;
use crate::postfix::discovery;
use crate::run::reload_mode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
}

pub(super) fn execute(args: &Args) -> Result<Code, Failure> {
    let config = args.file.load()?;
    let report = restore(
        &config.paths.state_dir,
        &config_dirs(&config)?,
        reload_mode(&config),
        clock::now(),
    )?;
    let text: String = report
        .items
        .iter()
        .map(|restored| format!("{restored}\n"))
        .collect();
    print(if text.is_empty() {
        "nothing to restore\n"
    } else {
        &text
    })?;
    Ok(if report.complete() { Code::Done } else { Code::No })
}

/// Those of the configuration, and those of the masters that run: the journal may be lost.
fn config_dirs(config: &crate::config::Config) -> Result<Vec<PathBuf>, Failure> {
    let mut dirs = config.discovery.config_dirs.clone();
    let masters = discovery::masters(&dirs).map_err(|error| {
        Failure::new(
            Code::No,
            format!("cannot look for running masters: {error}; mount /proc"),
        )
    })?;
    dirs.extend(masters.into_iter().map(|master| master.config_dir));
    Ok(dirs)
}
