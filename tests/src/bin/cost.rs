//! What the daemon costs, measured: idle, and at five thousand connections a second on the watched port. `cargo xtask bench
//! --cost` builds it (optimized, since the figures are those of what people install) and runs it as root.
//!
//! `cost JSON MARKDOWN [SECONDS]`: writes all figures to the one, and a table between the markers of the other. Each figure
//! is the median of three rounds of so many seconds; a bound that is missed is printed as missed, and is no error.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use sentinel_lab::Lab;
use sentinel_lab::clock::{self, wait_until};
use sentinel_lab::netns::{Namespace, SERVER, require_root};
use sentinel_lab::packets::{self, Crowd, Manners, Packets};
use sentinel_lab::sentinel::{Daemon, Sentinel, Settings};
use sentinel_lab::stand_in::{Accepts, Programs, Role, StandIn};
use serde::Serialize;

const ROUNDS: usize = 3;
/// Seconds of a round, unless the command line says otherwise.
const ROUND: u64 = 20;

/// After the start, and after the load has come: what is paid once is not what is paid always.
const SETTLE: Duration = Duration::from_secs(10);

const PATIENCE: Duration = Duration::from_secs(60);

const PER_SECOND: u64 = 5_000;

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    /// As issue 4 of the project demands it.
    AtMost(f64),
    /// Else the other figures of the load are those of a lesser one.
    AtLeast(f64),
    /// Only told.
    None,
}

#[derive(Debug, Serialize)]
struct Figure {
    load: &'static str,
    name: &'static str,
    unit: &'static str,
    bound: Bound,
    /// One a round, in order of size.
    measured: Vec<f64>,
}

/// What one round measured, in the order in which it is told.
type Round = Vec<(&'static str, &'static str, Bound, f64)>;

fn main() -> Result<()> {
    let mut arguments = env::args_os().skip(1);
    let (Some(json), Some(markdown)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: cost JSON MARKDOWN [SECONDS]");
    };
    let seconds = arguments
        .next()
        .map_or(Ok(ROUND), |text| text.to_string_lossy().parse())?;
    let round = Duration::from_secs(seconds);
    require_root()?;
    let mut figures = idle(round)?;
    for load in &LOADS {
        figures.extend(busy(load, round)?);
    }
    let table = table(&figures)?;
    println!("{table}");
    fs::write(&json, serde_json::to_vec_pretty(&figures)?)?;
    put_between_markers(Path::new(&markdown), &table)?;
    println!("written to {} and {}", json.display(), markdown.display());
    Ok(())
}

/// One real Postfix, and nobody who connects.
fn idle(round: Duration) -> Result<Vec<Figure>> {
    let lab = Lab::new()?;
    let sentinel = Sentinel::install(&lab)?;
    let daemon = sentinel.start()?;
    std::thread::sleep(SETTLE);
    let maps = mib(map_bytes(daemon.pid())?);
    rounds("nobody connects", || {
        Ok(vec![
            (
                "CPU",
                "% of a core",
                Bound::AtMost(0.2),
                cpu_share(&daemon, round)?,
            ),
            ("resident memory", "MiB", Bound::AtMost(20.0), resident(&daemon)?),
            ("memory of the BPF maps, in the kernel", "MiB", Bound::None, maps),
        ])
    })
}

/// Five thousand sessions a second that connect, read the greeting and leave.
struct Load {
    name: &'static str,
    /// From how many addresses they come, in turn.
    addresses: u32,
    /// Slots of the hundred that silent clients hold all the time, so that every tick looks closely.
    held: u32,
}

const LOADS: [Load; 3] = [
    Load {
        name: "5,000 sessions/s, 1,000 clients",
        addresses: 1000,
        held: 0,
    },
    Load {
        name: "5,000 sessions/s, no client twice",
        addresses: u32::MAX,
        held: 0,
    },
    Load {
        name: "5,000 sessions/s, 80 of 100 slots held",
        addresses: 1000,
        held: 80,
    },
];

/// The server is a stand-in, as no Postfix on a small machine serves so many; the clients are packets, so that no program
/// runs for their end of a connection.
fn busy(load: &Load, round: Duration) -> Result<Vec<Figure>> {
    let base = tempfile::tempdir()?;
    let (server, clients) = (Namespace::new()?, Namespace::new()?);
    packets::join(&server, &clients)?;
    let role = Role {
        listens: vec![format!("{SERVER}:25").parse()?],
        smtpds: 100,
        limit: 100,
        connections: load.held,
        accepts: Accepts::AndServes,
    };
    let programs = Programs::install(base.path())?;
    let postfix = StandIn::start(&server, &programs, base.path(), &role)?;
    // It decides all that it would in earnest; a reload would be the end of the stand-in.
    let observe = Settings {
        act: "mode = \"observe\"".to_owned(),
        ..Settings::default()
    };
    let sentinel = Sentinel::install_for(base.path(), &[postfix.config_dir().to_owned()], &observe)?;
    let daemon = sentinel.start()?;
    wait_until("the listener to be watched", PATIENCE, || {
        let busy = daemon.find_service("smtp/inet")?.and_then(|service| service.busy);
        Ok(daemon.metrics()?.sum(CONNECTIONS, &[]).is_some() && busy == Some(load.held))
    })?;
    let crowd = Crowd {
        manners: Manners::Polite,
        count: u64::MAX,
        per_second: PER_SECOND,
        addresses: load.addresses,
        stride: 1,
    };
    let crowd = Packets::start(&server, &clients, crowd)?;
    std::thread::sleep(SETTLE);
    let _counted_while_open =
        enable_stats(Stats::RunTime).context("the kernel's statistics of BPF programs")?;
    let figures = rounds(load.name, || under_load(&daemon, &crowd, round))?;
    crowd.stop()?;
    Ok(figures)
}

const CONNECTIONS: &str = "smtp_sentinel_connections_total";

fn under_load(daemon: &Daemon<'_>, crowd: &Packets, round: Duration) -> Result<Round> {
    let (tally, runs, start) = (crowd.tally(), Runs::of(daemon.pid())?, clock::now());
    let share = cpu_share(daemon, round)?;
    let (served, took) = (crowd.tally().finished - tally.finished, start.elapsed());
    let runs = Runs::of(daemon.pid())?.since(&runs);
    let served = served as f64;
    let of = |program: &str| {
        let (count, time) = runs.0.get(program).copied().unwrap_or_default();
        (count as f64 / served, time.as_nanos() as f64 / served)
    };
    let (state, greeting) = (of("state"), of("greeting"));
    let enough = Bound::AtLeast(0.95 * PER_SECOND as f64);
    Ok(vec![
        ("sessions served", "a second", enough, served / took.as_secs_f64()),
        ("CPU", "% of a core", Bound::AtMost(5.0), share),
        ("resident memory", "MiB", Bound::None, resident(daemon)?),
        ("BPF runs a session, probe `state`", "", Bound::None, state.0),
        (
            "BPF runs a session, probe `greeting`",
            "",
            Bound::None,
            greeting.0,
        ),
        ("BPF time a session, probe `state`", "ns", Bound::None, state.1),
        (
            "BPF time a session, probe `greeting`",
            "ns",
            Bound::None,
            greeting.1,
        ),
        (
            "BPF time a session, both",
            "ns",
            Bound::AtMost(1500.0),
            state.1 + greeting.1,
        ),
    ])
}

/// Takes the rounds and puts each figure's together.
fn rounds(load: &'static str, mut take: impl FnMut() -> Result<Round>) -> Result<Vec<Figure>> {
    let mut figures: Vec<Figure> = Vec::new();
    for nth in 0..ROUNDS {
        for (at, (name, unit, bound, value)) in take()?.into_iter().enumerate() {
            if nth == 0 {
                figures.push(Figure {
                    load,
                    name,
                    unit,
                    bound,
                    measured: Vec::new(),
                });
            }
            figures[at].measured.push(value);
        }
    }
    figures
        .iter_mut()
        .for_each(|figure| figure.measured.sort_by(f64::total_cmp));
    Ok(figures)
}

/// Percent.
fn cpu_share(daemon: &Daemon<'_>, over: Duration) -> Result<f64> {
    let (before, start) = (daemon.usage()?, clock::now());
    std::thread::sleep(over);
    let (after, took) = (daemon.usage()?, start.elapsed());
    Ok(100.0 * (after.cpu - before.cpu).as_secs_f64() / took.as_secs_f64())
}

fn resident(daemon: &Daemon<'_>) -> Result<f64> {
    Ok(mib(daemon.usage()?.resident_bytes))
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

    fn since(mut self, before: &Self) -> Self {
        for (name, (runs, time)) in &mut self.0 {
            let (runs_before, time_before) = before.0.get(name).copied().unwrap_or_default();
            *runs -= runs_before;
            *time -= time_before;
        }
        self
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

/// What the kernel charges for the maps, which is in no process's resident memory. Programs have the field too, a page each.
fn map_bytes(pid: u32) -> Result<u64> {
    Ok(fdinfo(pid, "memlock")?.iter().sum())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn table(figures: &[Figure]) -> Result<String> {
    let mut text = format!(
        "{}\n\n| load | figure | median | least to most | bound | holds |\n|---|---|---|---|---|---|\n",
        machine()?
    );
    for figure in figures {
        let number = |value: f64| {
            let digits = if value < 10.0 { 2 } else { 0 };
            format!("{value:.digits$}")
        };
        let measured = &figure.measured;
        let median = measured[measured.len() / 2];
        let (bound, holds) = match figure.bound {
            Bound::AtMost(most) => (format!("at most {most}"), median <= most),
            Bound::AtLeast(least) => (format!("at least {least}"), median >= least),
            Bound::None => (String::new(), true),
        };
        let holds = match (bound.is_empty(), holds) {
            (true, _) => "",
            (false, true) => "yes",
            (false, false) => "**no**",
        };
        text += &format!(
            "| {} | {} | {} {} | {} to {} | {bound} | {holds} |\n",
            figure.load,
            figure.name,
            number(median),
            figure.unit,
            number(measured[0]),
            number(measured[measured.len() - 1]),
        );
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
        "Measured on {count} cores of {}, Linux {}, load average {load} at the end; {ROUNDS} rounds.",
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
