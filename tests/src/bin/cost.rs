//! What the daemon costs, measured: idle, and at five thousand connections a second on the watched port. `cargo xtask bench
//! --cost` builds it (optimized, since the figures are those of what people install) and runs it as root.
//!
//! `cost JSON MARKDOWN`: writes all figures to the one, and a table between the markers of the other.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use sentinel_lab::clock::{self, wait_until};
use sentinel_lab::netns::{Namespace, SERVER, require_root};
use sentinel_lab::packets::{self, Crowd, Manners, Packets};
use sentinel_lab::sentinel::{Daemon, Sentinel, Settings};
use sentinel_lab::stand_in::{Accepts, Programs, Role, StandIn};
use sentinel_lab::{Lab, usage::Usage};
use serde::Serialize;

/// Each figure is taken over this long: a clock tick is a sixty-thousandth of it.
const OVER: Duration = Duration::from_secs(60);

/// After the start, and after the load has come: what is paid once is not what is paid always.
const SETTLE: Duration = Duration::from_secs(10);

const PER_SECOND: u64 = 5_000;

/// What issue 4 of the project demands, and what was found.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    measured: f64,
    unit: &'static str,
    /// At most this; `None` where it is only told.
    bound: Option<f64>,
}

fn main() -> Result<()> {
    let mut arguments = env::args_os().skip(1);
    let (Some(json), Some(markdown)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: cost JSON MARKDOWN");
    };
    require_root()?;
    let mut figures = idle()?;
    figures.extend(busy()?);
    let table = table(&figures)?;
    println!("{table}");
    fs::write(&json, serde_json::to_vec_pretty(&figures)?)?;
    put_between_markers(Path::new(&markdown), &table)?;
    println!("written to {} and {}", json.display(), markdown.display());
    Ok(())
}

/// One real Postfix, and nobody who connects.
fn idle() -> Result<Vec<Figure>> {
    let lab = Lab::new()?;
    let sentinel = Sentinel::install(&lab)?;
    let daemon = sentinel.start()?;
    std::thread::sleep(SETTLE);
    let (share, after) = cpu_share(&daemon)?;
    Ok(vec![
        figure("CPU, idle", share * 100.0, "% of a core", Some(0.2)),
        figure(
            "resident memory, idle",
            mib(after.resident_bytes),
            "MiB",
            Some(20.0),
        ),
        figure(
            "memory of the BPF maps, in the kernel",
            mib(map_bytes(daemon.pid())?),
            "MiB",
            None,
        ),
    ])
}

/// Five thousand sessions a second that connect, read the greeting and leave. The server is a stand-in, as no Postfix on a
/// small machine serves so many; the clients are packets, so that no program runs for their end of a connection.
fn busy() -> Result<Vec<Figure>> {
    let base = tempfile::tempdir()?;
    let (server, clients) = (Namespace::new()?, Namespace::new()?);
    packets::join(&server, &clients)?;
    let role = Role {
        listens: vec![format!("{SERVER}:25").parse()?],
        smtpds: 20,
        limit: 100,
        connections: 0,
        accepts: Accepts::AndServes,
    };
    let programs = Programs::install(base.path())?;
    let postfix = StandIn::start(&server, &programs, base.path(), &role)?;
    let sentinel = Sentinel::install_for(
        base.path(),
        &[postfix.config_dir().to_owned()],
        &Settings::default(),
    )?;
    let daemon = sentinel.start()?;
    wait_until("the listener to be watched", SETTLE, || {
        Ok(daemon.metrics()?.sum(CONNECTIONS, &[]).is_some())
    })?;
    let crowd = Packets::start(
        &server,
        &clients,
        Crowd {
            manners: Manners::Polite,
            count: u64::MAX,
            per_second: PER_SECOND,
            stride: 1,
        },
    )?;
    std::thread::sleep(SETTLE);
    let statistics = enable_stats(Stats::RunTime).context("the kernel's statistics of BPF programs")?;
    let before = (crowd.tally(), Runs::of(daemon.pid())?);
    let (share, after) = cpu_share(&daemon)?;
    let (tally, programs) = (crowd.stop()?, Runs::of(daemon.pid())?);
    drop(statistics);

    let served = (tally.finished - before.0.finished) as f64;
    let rate = served / OVER.as_secs_f64();
    ensure!(
        rate > 0.9 * PER_SECOND as f64,
        "only {rate:.0} sessions a second were served: the machine is too busy to measure on"
    );
    let run = |name: &str| {
        let (runs, time) = programs.since(&before.1, name);
        (runs as f64 / served, time.as_nanos() as f64 / served)
    };
    let (state, greeting) = (run("state"), run("greeting"));
    Ok(vec![
        figure("sessions served", rate, "a second", None),
        figure("CPU at that rate", share * 100.0, "% of a core", Some(5.0)),
        figure(
            "resident memory at that rate",
            mib(after.resident_bytes),
            "MiB",
            None,
        ),
        figure("BPF runs a connection, probe `state`", state.0, "", None),
        figure("BPF runs a connection, probe `greeting`", greeting.0, "", None),
        figure("BPF time a connection, probe `state`", state.1, "ns", None),
        figure("BPF time a connection, probe `greeting`", greeting.1, "ns", None),
        figure(
            "BPF time a connection, both",
            state.1 + greeting.1,
            "ns",
            Some(1500.0),
        ),
    ])
}

const CONNECTIONS: &str = "smtp_sentinel_connections_total";

fn cpu_share(daemon: &Daemon<'_>) -> Result<(f64, Usage)> {
    let (before, start) = (daemon.usage()?, clock::now());
    std::thread::sleep(OVER);
    let (after, took) = (daemon.usage()?, start.elapsed());
    Ok(((after.cpu - before.cpu).as_secs_f64() / took.as_secs_f64(), after))
}

/// Runs and run time by program name.
struct Runs(BTreeMap<String, (u64, Duration)>);

impl Runs {
    /// The programs of this process alone: others on the machine may have some of the same names.
    fn of(pid: u32) -> Result<Self> {
        let own = fdinfo(pid, "prog_id")?;
        let mut programs = BTreeMap::new();
        for program in loaded_programs() {
            let program = program?;
            if own.contains(&u64::from(program.id())) {
                let name = String::from_utf8_lossy(program.name()).into_owned();
                programs.insert(name, (program.run_count(), program.run_time()));
            }
        }
        Ok(Self(programs))
    }

    fn since(&self, before: &Self, name: &str) -> (u64, Duration) {
        let of = |programs: &Self| programs.0.get(name).copied().unwrap_or_default();
        let ((runs, time), (runs_before, time_before)) = (of(self), of(before));
        (runs - runs_before, time - time_before)
    }
}

/// The values of one field over all descriptors of a process.
fn fdinfo(pid: u32, name: &str) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.extend(value.and_then(|value| value.trim().parse::<u64>().ok()));
    }
    Ok(found)
}

/// What the kernel charges for the maps, which is in no process's resident memory.
fn map_bytes(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        if field("map_id:").is_some() {
            sum += field("memlock:").unwrap_or(0);
        }
    }
    Ok(sum)
}

fn figure(name: &'static str, measured: f64, unit: &'static str, bound: Option<f64>) -> Figure {
    Figure {
        name,
        measured,
        unit,
        bound,
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn table(figures: &[Figure]) -> Result<String> {
    let mut text = format!(
        "{}\n\n| figure | measured | at most | holds |\n|---|---|---|---|\n",
        machine()?
    );
    for Figure {
        name,
        measured,
        unit,
        bound,
    } in figures
    {
        let number = |value: f64| {
            if value < 10.0 {
                format!("{value:.2}")
            } else {
                format!("{value:.0}")
            }
        };
        let (most, holds) = match bound {
            Some(bound) => (
                format!("{bound} {unit}"),
                if measured <= bound { "yes" } else { "**no**" },
            ),
            None => (String::new(), ""),
        };
        text += &format!("| {name} | {} {unit} | {most} | {holds} |\n", number(*measured));
    }
    Ok(text)
}

/// Without its name, which says nothing.
fn machine() -> Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let count = std::thread::available_parallelism()?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    Ok(format!(
        "Measured on {count} cores of {}, Linux {}, load average {load} at the end.",
        model.map_or("a processor without a name", |(_, name)| name.trim()),
        kernel.trim()
    ))
}

const BEGIN: &str = "<!-- written by cargo xtask bench --cost: begin -->";
const END: &str = "<!-- written by cargo xtask bench --cost: end -->";

fn put_between_markers(path: &Path, table: &str) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let parts = text
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.with_context(|| format!("{} has lost its markers", path.display()))?;
    Ok(fs::write(path, format!("{before}{BEGIN}\n{table}{END}{after}"))?)
}
