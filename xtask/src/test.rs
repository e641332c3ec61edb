//! `cargo xtask test`: every check and every test, how long each step took, and one line at the end that tells the counts.

use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::steps::Steps;
use crate::suite::{self, WORKSPACE};
use crate::{fuzz, image, kernels, pages, pods, setup, shell};

/// Labs at a time. Each has a Postfix with up to some dozens of processes and clients that measure time, so more of them
/// than processors would measure the neighbours.
const LABS: usize = 2;

/// For each fuzz target in every run; `cargo xtask soak` goes on where this ends.
const FUZZ_FOR: Duration = Duration::from_secs(30);

/// Runs everything; a check that fails does not keep the others from running, so that one run tells all.
pub(crate) fn run(filter: Option<&str>, with_kernels: bool) -> Result<ExitCode> {
    let mut steps = Steps::default();
    setup::run()?;
    let whole = filter.is_none();
    let with_kernels = with_kernels && whole;
    // The tests in podman's containers have this word in their names.
    let with_pods = filter.is_none_or(|filter| filter.contains("pod"));

    // The network and a compiler do not get into each other's way.
    let ahead = thread::spawn(move || fetch(with_pods, with_kernels));
    if whole {
        steps.command("format", &mut shell::cargo(&["fmt", "--all", "--check"]));
        steps.check("what README and docs point to", pages::check);
        steps.command("lints", &mut clippy());
        steps.command(
            "lints, without the feature kubernetes",
            &mut clippy_without_kubernetes(),
        );
        let mut doc = shell::cargo(&["doc", "--no-deps"]);
        doc.args(WORKSPACE).env("RUSTDOCFLAGS", "--deny warnings");
        steps.command("documentation of the code", &mut doc);
    }
    if with_pods {
        // Before the tests: they want the ordinary program back where this one is built.
        steps.check("the daemon for the containers", image::binary_of_tests);
    }
    steps.check("what had to be fetched", || {
        ahead
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the thread that fetches panicked")))
    });
    steps.count("tests", || {
        let arguments = [filter.unwrap_or_default(), &format!("--test-threads={LABS}")];
        Ok(suite::run(&[], &arguments, &[])?.tally)
    });
    if with_kernels {
        steps.count(
            "the oldest kernel and the newest (`--no-kernels` leaves them out)",
            kernels::oldest_and_newest,
        );
    }
    if whole {
        steps.count("fuzzing", || Ok(fuzz::run(FUZZ_FOR)?.tally));
    }
    print!("{}", steps.times());
    println!("{}", steps.tally());
    Ok(steps.tally().exit_code())
}

fn clippy() -> Command {
    let mut cargo = shell::cargo(&["clippy", "--all-targets"]);
    cargo.args(WORKSPACE).args(["--", "--deny", "warnings"]);
    cargo
}

/// The packages' daemon has less in it. All of the workspace is named, and of that the libraries, with their tests, and the
/// one program: so few dependencies are others than before that this takes seconds.
fn clippy_without_kubernetes() -> Command {
    let mut cargo = shell::cargo(&["clippy", "--workspace", "--profile", "test", "--lib"]);
    cargo.args(["--bin", "smtp-sentinel", "--", "--deny", "warnings"]);
    cargo
}

/// Gets what the tests would else wait for: Debian's packages, of which kernels and root file systems are made.
fn fetch(with_pods: bool, with_kernels: bool) -> Result<()> {
    if with_pods {
        pods::root_file_system()?;
    }
    if with_kernels {
        kernels::fetch()?;
    }
    Ok(())
}
