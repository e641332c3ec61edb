//! `restore`: gives back whatever of ours is in a master.cf, without a daemon.

use super::{Code, ConfigFile, Failure, print};
use crate::actuator::restore;
use crate::clock;
use crate::config::Config;
use crate::postfix::{Home, Master, discovery};
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
        &homes(&config)?,
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
fn homes(config: &Config) -> Result<Vec<Home>, Failure> {
    let masters = discovery::masters(&config.discovery.scope()).map_err(|error| {
        Failure::new(
            Code::No,
            format!("cannot look for running masters: {error}; mount /proc"),
        )
    })?;
    let configured = config.discovery.config_dirs.iter().map(Home::own);
    Ok(configured.chain(masters.iter().map(Master::home)).collect())
}
