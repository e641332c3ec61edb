//! `cargo xtask kernels`: boots Debian's kernels in qemu with the daemon and the scenarios of sentinel/tests/probes on
//! board, and holds what they find against what is expected of each kernel.
//!
//! The programs are the ones that the other tests run, with their libraries. Nothing is installed on this machine, and
//! the guests have no network.

mod archive;
mod initramfs;
mod machine;
mod report;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::shell;
use crate::suite::WORKSPACE;
use crate::tally::Tally;
use initramfs::Archive;
use machine::{Guest, Tools};
use report::Report;

/// A kernel that the sentinel must work on.
pub(crate) struct Kernel {
    /// What `--only` calls it.
    pub(crate) name: &'static str,
    /// Where it comes from; the newest of them counts.
    suites: &'static [&'static str],
    /// What this kernel does not have. Everything else must run.
    pub(crate) absent: &'static [Absent],
}

/// A scenario that a kernel cannot play, and why.
pub(crate) struct Absent {
    pub(crate) scenario: &'static str,
    pub(crate) reason: &'static str,
}

/// Oldest first.
pub(crate) const KERNELS: [Kernel; 4] = [
    Kernel {
        name: "5.10",
        suites: &["bullseye"],
        absent: &[Absent {
            scenario: "queue::an_mptcp_listener_counts_each_client_once",
            reason: "built without MPTCP",
        }],
    },
    Kernel {
        name: "6.1",
        suites: &["bookworm"],
        absent: &[],
    },
    Kernel {
        name: "6.12",
        suites: &["trixie"],
        absent: &[],
    },
    Kernel {
        name: "7",
        suites: &["sid", "trixie-backports"],
        absent: &[],
    },
];

/// A kernel that came to its end.
pub(crate) struct Run {
    pub(crate) kernel: &'static Kernel,
    pub(crate) suite: &'static str,
    pub(crate) version: String,
    pub(crate) report: Report,
}

/// All kernels, or those that `only` names; the table in the docs is written when all have run.
pub(crate) fn run(only: &[String]) -> Result<ExitCode> {
    let chosen = choose(only)?;
    let all = chosen.len() == KERNELS.len();
    let (tally, runs) = play(&chosen)?;
    let table = table::render(&runs);
    if all && runs.len() == chosen.len() {
        table::write(&shell::root().join("docs/kernels.md"), &table)?;
    } else {
        println!("{table}");
    }
    println!("{tally}");
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What [`oldest_and_newest`] chooses.
const EITHER_END: [&str; 2] = ["oldest", "newest"];

/// The oldest kernel and the newest, for `cargo xtask test`.
///
/// # Errors
/// What is needed for it cannot be had.
pub(crate) fn oldest_and_newest() -> Result<Tally> {
    Ok(play(&choose(&EITHER_END.map(str::to_owned))?)?.0)
}

/// Gets what [`oldest_and_newest`] boots, without booting it.
///
/// # Errors
/// A package cannot be had.
pub(crate) fn fetch() -> Result<()> {
    let cache = archive::cache()?;
    fs::create_dir_all(&cache)?;
    Tools::get(&cache)?;
    for kernel in choose(&EITHER_END.map(str::to_owned))? {
        archive::newest(kernel.suites, &cache)?;
    }
    Ok(())
}

fn choose(only: &[String]) -> Result<Vec<&'static Kernel>> {
    if only.is_empty() {
        return Ok(KERNELS.iter().collect());
    }
    only.iter()
        .map(|name| {
            match name.as_str() {
                "oldest" => KERNELS.first(),
                "newest" => KERNELS.last(),
                name => KERNELS.iter().find(|kernel| kernel.name == name),
            }
            .with_context(|| {
                let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
                format!(
                    "no kernel {name}: there are {}, oldest and newest",
                    known.join(", ")
                )
            })
        })
        .collect()
}

/// Plays the scenarios on each. A kernel that fails does not keep the others from running.
fn play(chosen: &[&'static Kernel]) -> Result<(Tally, Vec<Run>)> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the kernels are Debian's for amd64, and so are the programs to run on them"
    );
    let cache = archive::cache()?;
    fs::create_dir_all(&cache)?;
    let tools = Tools::get(&cache)?;
    let programs = Programs::build()?;
    let mut tally = Tally::default();
    let mut runs = Vec::new();
    let (tools, programs, cache) = (&tools, &programs, &*cache);
    for (kernel, played) in side_by_side(chosen, |kernel| play_one(kernel, tools, programs, cache)) {
        match played {
            Ok(run) => {
                let complaints = run.complaints();
                for complaint in &complaints {
                    eprintln!("kernel {}: {complaint}", run.report.release);
                    tally += Tally::FAILURE;
                }
                tally += run.report.tally;
                println!(
                    "kernel {} ({} {}): {}, {} complaints",
                    run.report.release,
                    run.suite,
                    run.version,
                    run.report.tally,
                    complaints.len()
                );
                runs.push(run);
            }
            Err(error) => {
                eprintln!("kernel {}: {error:#}", kernel.name);
                tally += Tally::FAILURE;
            }
        }
    }
    Ok((tally, runs))
}

/// Guests at a time: each is one thread of qemu (see [`machine`]) on one processor.
const GUESTS: usize = 2;

/// Plays all, some at a time, and gives what came of each in the order of `chosen`.
fn side_by_side(
    chosen: &[&'static Kernel],
    play: impl Fn(&'static Kernel) -> Result<Run> + Sync,
) -> Vec<(&'static Kernel, Result<Run>)> {
    let mut played = Vec::new();
    for some in chosen.chunks(GUESTS) {
        thread::scope(|scope| {
            let play = &play;
            let guests: Vec<_> = some
                .iter()
                .map(|&kernel| (kernel, scope.spawn(move || play(kernel))))
                .collect();
            played.extend(guests.into_iter().map(|(kernel, guest)| {
                let run = guest.join();
                (kernel, run.unwrap_or_else(|_| bail!("its thread panicked")))
            }));
        });
    }
    played
}

fn play_one(kernel: &'static Kernel, tools: &Tools, programs: &Programs, cache: &Path) -> Result<Run> {
    let unpacked = archive::newest(kernel.suites, cache)?;
    println!("--- booting {} {}", unpacked.suite, unpacked.version);
    let place = |extension: &str| cache.join(format!("{}.{extension}", kernel.name));
    let (initramfs, console, report) = (place("initramfs"), place("console"), place("report"));
    programs.pack(&initramfs, &tools.busybox, &unpacked.modules)?;
    let skipped: Vec<String> = kernel
        .absent
        .iter()
        .map(|absent| format!("--skip={}", absent.scenario))
        .collect();
    tools
        .boot(&Guest {
            kernel: &unpacked.vmlinuz,
            initramfs: &initramfs,
            console: &console,
            report: &report,
            arguments: &skipped.join(" "),
        })
        .with_context(|| logs(&[&console, &report]))?;
    let text = String::from_utf8_lossy(&fs::read(&report)?).into_owned();
    let report_read = Report::parse(&text).with_context(|| logs(&[&console, &report]))?;
    if report_read.tally.failed > 0 {
        eprintln!("{text}");
    }
    Ok(Run {
        kernel,
        suite: unpacked.suite,
        version: unpacked.version,
        report: report_read,
    })
}

/// What the machine said last, for a failure.
fn logs(files: &[&PathBuf]) -> String {
    const LINES: usize = 40;
    let tail = |file: &&PathBuf| {
        let text = fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(LINES);
        format!(
            "--- the end of {}:\n{}\n",
            file.display(),
            lines[from..].join("\n")
        )
    };
    files.iter().map(tail).collect()
}

impl Run {
    /// What should be and is not, apart from scenarios that failed.
    fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let release = format!("{}.", self.kernel.name);
        if !self.report.release.starts_with(&release) {
            complaints.push(format!("is not {}", self.kernel.name));
        }
        for probe in PROBES {
            match self.report.probes.get(probe) {
                Some(health) if health.well => {}
                Some(health) => complaints.push(format!("probe {probe}: {}", health.detail)),
                None => complaints.push(format!("probe {probe}: `check` does not speak of it")),
            }
        }
        for fact in FACTS {
            if !self.report.facts.contains_key(fact) {
                complaints.push(format!("nothing was compared for: {fact}"));
            }
        }
        complaints
    }
}

/// Every one of them works on every kernel.
const PROBES: [&str; 5] = ["state", "greeting", "depth", "log", "overflow"];

/// What the scenarios must have held against the kernel's own numbers: a source of overflows that a kernel refuses is a
/// test passed on the development machine, and not here.
const FACTS: [&str; 15] = [
    "accept queue, depth of limit",
    "high water of 4 x 100 connections at once",
    "greeting latency in ms, sum of 7",
    "dropped SYNs, IPv4, fentry",
    "dropped SYNs, IPv4, kprobes",
    "dropped SYNs, IPv6, fentry",
    "dropped SYNs, IPv6, kprobes",
    "dropped SYNs, IPv4 of a dual-stack listener, fentry",
    "dropped SYNs, IPv4 of a dual-stack listener, kprobes",
    "dropped ACKs, IPv4, fentry",
    "dropped ACKs, IPv4, kprobes",
    "dropped ACKs, IPv6, fentry",
    "dropped ACKs, IPv6, kprobes",
    "dropped ACKs, IPv4 of a dual-stack listener, fentry",
    "dropped ACKs, IPv4 of a dual-stack listener, kprobes",
];

/// The programs that run in the guest, stripped of what only a debugger reads.
struct Programs {
    sentinel: PathBuf,
    scenarios: PathBuf,
}

/// A line of cargo's JSON.
#[derive(Deserialize)]
struct Artifact {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

impl Programs {
    fn build() -> Result<Self> {
        let mut cargo = shell::cargo(&["test", "--no-run", "--message-format=json"]);
        // With them comes the daemon, which they run as well.
        cargo.args(WORKSPACE).args(["--test", "probes"]);
        println!("{}", shell::words(&cargo));
        let output = cargo.stderr(Stdio::inherit()).output()?;
        ensure!(
            output.status.success(),
            "the programs for the guests do not build"
        );
        let said = String::from_utf8_lossy(&output.stdout);
        let executable = |name: &str| {
            said.lines()
                .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
                .find(|artifact| artifact.target.name == name && artifact.executable.is_some())
                .and_then(|artifact| artifact.executable)
                .with_context(|| format!("cargo does not say where {name} is"))
        };
        Ok(Self {
            sentinel: stripped(&executable("smtp-sentinel")?, "smtp-sentinel")?,
            scenarios: stripped(&executable("probes")?, "probes")?,
        })
    }

    fn pack(&self, to: &Path, busybox: &Path, modules: &[PathBuf]) -> Result<()> {
        let mut archive = Archive::create(to)?;
        archive.console()?;
        archive.file("/init", include_bytes!("kernels/guest.sh"))?;
        archive.file("/bin/busybox", &fs::read(busybox)?)?;
        archive.program(&self.sentinel, "/bin/smtp-sentinel")?;
        archive.program(&self.scenarios, "/bin/probes")?;
        for program in ["ip", "ss"] {
            let path = shell::find(program).with_context(|| format!("{program} is not installed"))?;
            archive.program(&path, &format!("/bin/{program}"))?;
        }
        for (nth, module) in modules.iter().enumerate() {
            archive.file(&format!("/modules/{nth}.ko"), &machine::module(busybox, module)?)?;
        }
        Ok(archive.finish()?)
    }
}

/// A copy without debugging information, a tenth of the size.
fn stripped(program: &Path, name: &str) -> Result<PathBuf> {
    let copy = archive::cache()?.join(name);
    shell::run(Command::new("strip").arg("-o").arg(&copy).arg(program))?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_is_not_well_and_a_number_that_nobody_compared_are_complaints() {
        let run = Run {
            kernel: &KERNELS[0],
            suite: "bullseye",
            version: "5.10.223-1".to_owned(),
            report: Report::parse(report::tests::GUEST).unwrap(),
        };
        let complaints = run.complaints();
        assert!(
            complaints.contains(&"probe overflow: netstat".to_owned()),
            "{complaints:?}"
        );
        assert!(complaints.contains(&"nothing was compared for: dropped ACKs, IPv6, kprobes".to_owned()));
        assert!(
            !complaints
                .iter()
                .any(|complaint| complaint.starts_with("probe state"))
        );
        let run = Run {
            kernel: &KERNELS[1],
            ..run
        };
        assert!(run.complaints().contains(&"is not 6.1".to_owned()));
    }

    #[test]
    fn kernels_are_chosen_by_name_or_by_age() {
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            let chosen = choose(&only)?;
            Ok::<_, anyhow::Error>(chosen.iter().map(|kernel| kernel.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["5.10", "6.1", "6.12", "7"]);
        assert_eq!(names(&["oldest", "newest"]).unwrap(), ["5.10", "7"]);
        assert_eq!(names(&["6.12"]).unwrap(), ["6.12"]);
        assert!(names(&["4.19"]).is_err());
    }
}
