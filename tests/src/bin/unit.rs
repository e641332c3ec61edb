//! `unit --file FILE... [--instead PATH=PATH]... [--expose PATH]... -- PROGRAM ARGUMENT...`: becomes the program, under what
//! the unit file says (see [`sentinel_lab::unit`]).

use std::env;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use sentinel_lab::unit::{Stage, Unit};

fn main() -> Result<()> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut stage = Stage::default();
    let mut words = env::args().skip(1);
    loop {
        let word = words.next().context("no -- PROGRAM")?;
        if word == "--" {
            break;
        }
        let value = words.next().with_context(|| format!("{word} without a value"))?;
        match word.as_str() {
            "--file" => files.push(value.into()),
            "--expose" => stage.exposed.push(value.into()),
            "--instead" => {
                let (path, instead) = value.split_once('=').context("--instead PATH=PATH")?;
                stage.instead.insert(path.into(), instead.into());
            }
            _ => bail!("unknown: {word}"),
        }
    }
    let program = words.next().context("no program")?;
    Unit::read(&files)?.apply(&stage)?;
    // Only comes back when it fails.
    Err(Command::new(&program).args(words).exec()).with_context(|| format!("running {program}"))
}
