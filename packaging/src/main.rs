//! `sentinel-packages --binary FILE --to DIRECTORY`: makes both packages of a built program. `cargo xtask dist` calls it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use sentinel_packages::{deb, payload, rpm};

#[derive(Debug, Parser)]
struct Arguments {
    /// The program, built; its debug information is left out of the packages
    #[arg(long)]
    binary: PathBuf,
    /// Where the packages go
    #[arg(long)]
    to: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.to)?;
    payload::ensure_without_kubernetes(&arguments.binary)?;
    let files = payload::collect(&arguments.binary)?;
    for package in [
        deb::build(&files, &arguments.to)?,
        rpm::build(&files, &arguments.to)?,
    ] {
        println!("{}", package.display());
    }
    Ok(())
}
