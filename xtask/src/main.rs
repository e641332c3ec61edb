//! `cargo xtask`: set-up, build, test, demo and benchmark. It orders other tools about and knows nothing of the daemon's insides.

mod bench;
mod cluster;
mod dashboard;
mod demo;
mod dist;
mod fuzz;
mod image;
mod kernels;
mod lab;
mod packages;
mod pages;
mod pods;
mod setup;
mod shell;
mod soak;
mod steps;
mod suite;
mod tally;
mod test;
mod toolchain;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    about = "Set-up, build, test, demo and benchmark of SMTP Sentinel"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what is missing, and only that: Postfix (not configured, not started), the BPF toolchain, tools of the tests
    Setup {
        /// Only say what is missing; exit code 1 when something is
        #[arg(long)]
        check: bool,
    },
    /// Build the daemon
    Build {
        /// Optimized, as it is installed
        #[arg(long)]
        release: bool,
    },
    /// Set up, then build the container image: one static binary, from scratch, with podman or docker
    Image {
        /// smtp-sentinel:VERSION unless given, which is what the manifests name
        #[arg(long)]
        tag: Option<String>,
    },
    /// Set up, then run every check and every test
    Test {
        /// Run only the tests whose name contains this, and no other check
        #[arg(long)]
        filter: Option<String>,
        /// Leave out the oldest and the newest kernel in qemu, which need a mirror of Debian and some minutes
        #[arg(long)]
        no_kernels: bool,
    },
    /// Set up, then make the Debian package and the RPM: target/dist
    Dist,
    /// Boot Debian's kernels in qemu, play the probes' scenarios on each, and write down what runs where
    Kernels {
        /// Only these: 5.10, 6.1, 6.12, 7, oldest, newest; the table in the docs stays as it is then
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
    },
    /// Set up, then run what takes too long for every run of the tests, and write down in docs/soak.md what came of it
    Soak {
        /// Only these: fuzz, masters, cycles, prefixes
        parts: Vec<String>,
        /// For how long each
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
        minutes: u64,
    },
    /// Set up, then show the main job: calm, flood, trip, clear, on a real Postfix in network namespaces
    Demo,
    /// Set up, then play an episode before a Prometheus and draw what the Grafana dashboard shows of it: docs/episode.svg
    Dashboard,
    /// Set up, then measure legitimate mail under attack: Postfix's own means and the sentinel, side by side (`bench --help`);
    /// with --cost, what the daemon itself costs
    #[command(disable_help_flag = true)]
    Bench {
        /// As `bench --help` has them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup { check: true } => setup::check(),
        Task::Setup { check: false } => setup::run(),
        Task::Build { release } => build(release),
        Task::Image { tag } => image::run(tag.as_deref()),
        Task::Test { filter, no_kernels } => test::run(filter.as_deref(), !no_kernels),
        Task::Kernels { only } => kernels::run(&only),
        Task::Soak { parts, minutes } => soak::run(&parts, minutes),
        Task::Demo => demo::run(),
        Task::Dist => dist::run(),
        Task::Dashboard => dashboard::run(),
        Task::Bench { arguments } => bench::run(&arguments),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build(release: bool) -> anyhow::Result<ExitCode> {
    setup::run()?;
    let mut cargo = shell::cargo(&["build", "--package", "smtp-sentinel"]);
    if release {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)?;
    Ok(ExitCode::SUCCESS)
}
