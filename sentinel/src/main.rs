//! Parses the command line, runs it, and turns the outcome into an exit code.

use std::process::ExitCode;

use clap::Parser;
use smtp_sentinel::cli::{self, Cli, Code};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, and are what was asked for. A closed pipe is nobody's concern.
            let code = if error.use_stderr() {
                Code::Usage
            } else {
                Code::Done
            };
            let _ = error.print();
            return code.into();
        }
    };
    match cli::execute(cli) {
        Ok(code) => code.into(),
        Err(failure) => {
            eprintln!("smtp-sentinel: {failure}");
            failure.code.into()
        }
    }
}
