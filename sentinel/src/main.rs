//! Parses the command line, runs it, and turns the outcome into an exit code.

use std::process::ExitCode;

use clap::Parser;
use smtp_sentinel::cli::{self, Cli, Code, Failure};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return fail(&error.into()),
        // Help and version come this way too, and are what was asked for. A closed pipe is nobody's concern.
        Err(error) => {
            let _ = error.print();
            return Code::Done.into();
        }
    };
    match cli::execute(cli) {
        Ok(code) => code.into(),
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    eprintln!("smtp-sentinel: {failure}");
    failure.code.into()
}
