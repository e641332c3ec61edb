//! The probes: loads the BPF programs of `sentinel-ebpf`, tells them which listeners to count, and reads the counts.
//!
//! Owns the programs, their maps and their health. Starting never fails: what the kernel or the capabilities do not
//! give is said in [`Probes::health`], and the daemon runs on sock_diag alone. Nothing here judges a number, and none is
//! made up: what is not counted is absent.
//!
//! The programs are detached when [`Probes`] is dropped.

use std::collections::HashMap;
use std::time::Instant;

use crate::privileges::Capabilities;
use crate::signals::{AcceptQueue, ListenerId};
use crate::status::{ListenerCounts, Probe, ProbeState};

mod error;
mod evictions;
mod high_water;
mod kernel;
mod log;
mod offsets;
mod overflow;
mod quantile;
mod self_test;
mod slots;
mod sources;
mod watched;

pub use error::Error;
pub use evictions::Evictions;
pub use overflow::OverflowSource;
pub use quantile::quantile_ms;
pub use sources::{SourcePrefix, Sources};

use high_water::Epochs;
use kernel::Kernel;
use slots::Slots;
use watched::{Sees, Watched};

/// The running probes, or what is left of them.
pub struct Probes {
    /// None without BPF.
    kernel: Option<Kernel>,
    log: Option<log::Drain>,
    /// In the order of the probes' names below.
    health: [Probe; 5],
    sees: Sees,
    watched: HashMap<ListenerId, Watched>,
    slots: Slots,
    /// None until the first reading brings a time.
    epochs: Option<Epochs>,
}

/// Connections, early disconnects, sources: raw tracepoint inet_sock_set_state.
const STATE: usize = 0;
/// Greeting latency: sock_ops.
const GREETING: usize = 1;
/// The accept queue's exact depth; rests on "state" and on the self-test.
const DEPTH: usize = 2;
/// Warnings of the BPF programs.
const LOG: usize = 3;
/// Connections dropped at a full accept queue, by listener: fentry or kprobes.
const OVERFLOW: usize = 4;
/// The probes' names, in that order.
const NAMES: [&str; 5] = ["state", "greeting", "depth", "log", "overflow"];

/// What has been counted of one listener.
#[derive(Debug, Clone, PartialEq)]
pub struct ListenerReading {
    /// Since the listener has been watched. Never goes down.
    pub counts: ListenerCounts,
    /// `depth` and `limit` as they were right after the last arrival (sock_diag has the present depth), `high_water`
    /// over the last minute: the deepest that any arrival made the queue, exactly. None before the first arrival, and
    /// where the self-test failed.
    pub queue: Option<AcceptQueue>,
    /// Arrivals that filled the queue, so that the kernel would drop the next one.
    pub filled: u64,
    /// Connections that SOCK_DESTROY closed.
    pub destroyed: u64,
    /// Greetings without a latency, because they were sent more than once.
    pub greetings_unsure: u64,
}

impl Probes {
    /// Loads and attaches what can be, and tries it on a listener of its own (well under 100 ms in all, plus the time
    /// that reading the kernel's BTF takes).
    pub fn start() -> Self {
        Self::start_with(&OverflowSource::ALL)
    }

    /// Tries only these sources of overflows by listener, in this order. For tests, which hold each against the kernel.
    pub fn start_with(sources: &[OverflowSource]) -> Self {
        let capabilities = Capabilities::of_this_process();
        let started = match Kernel::load(&capabilities) {
            Ok(kernel) => Self::with(kernel, sources, &capabilities),
            Err(error) => Self::without(error.state(), &error.to_string()),
        };
        give_memory_back();
        started
    }

    /// No BPF at all, for tests and for those who forbid it; `reason` is what health says.
    pub fn disabled(reason: &str) -> Self {
        Self::without(ProbeState::Unsupported, reason)
    }

    /// Health of each probe: "state", "greeting", "depth", "log" and "overflow".
    pub fn health(&self) -> &[Probe] {
        &self.health
    }

    /// Whether the calling thread may read the counts, with the capabilities that it has. Without BPF there are none.
    pub fn readable(&self) -> bool {
        self.kernel.as_ref().is_none_or(Kernel::readable)
    }

    /// Whether overflows are counted by listener. If not, there is only the count of a whole network namespace
    /// ([`crate::signals::overflows`]).
    pub fn sees_overflows(&self) -> bool {
        self.sees.overflows
    }

    /// Makes `listeners` the ones that are counted: new ones begin at zero, missing ones are forgotten, the rest goes on.
    /// Those beyond what the maps hold are left out, and health says so. Costs no system call when nothing changes.
    pub fn watch(&mut self, listeners: &[ListenerId]) {
        let Some(kernel) = &mut self.kernel else { return };
        let forgotten = forget_others(kernel, &mut self.watched, &mut self.slots, listeners);
        let added = add_new(kernel, &mut self.watched, &mut self.slots, listeners);
        let ports = kernel.set_ports(self.watched.keys().map(|listener| listener.address.port()));

        self.health[STATE] = match (forgotten.and(ports), added) {
            (Err(error), _) | (_, Err(error)) => broken(
                "state",
                ProbeState::Broken,
                format!("not every listener is counted rightly: {error}"),
            ),
            (Ok(()), Ok(0)) => ok("state"),
            (Ok(()), Ok(left_out)) => {
                let room = Slots::COUNT;
                broken(
                    "state",
                    ProbeState::Fallback,
                    format!("{left_out} listeners are not counted: there is room for {room}"),
                )
            }
        };
    }

    /// The counts of every watched listener. Costs one system call a listener. Carries the warnings of the BPF programs
    /// into [`tracing`] on the way.
    pub fn read(&mut self, now: Instant) -> HashMap<ListenerId, ListenerReading> {
        if let Some(log) = &mut self.log {
            log.drain();
        }
        let Some(kernel) = &mut self.kernel else {
            return HashMap::new();
        };
        let epochs = self.epochs.get_or_insert_with(|| Epochs::new(now));
        let oldest = epochs.oldest_within_a_minute(now);
        let mut readings = HashMap::with_capacity(self.watched.len());
        for (listener, watched) in &mut self.watched {
            match kernel.stats(watched.slot()) {
                Ok(stats) => drop(readings.insert(*listener, watched.read(&stats, oldest, self.sees))),
                Err(error) => {
                    tracing::warn!(listener = %listener.address, %error, "cannot read the counts of a listener")
                }
            }
        }
        // After the reading: what it has not seen of the old epoch, the programs keep through the next one.
        if let Some(epoch) = epochs.due(now) {
            match kernel.set_epoch(epoch) {
                Ok(()) => epochs.advance(now),
                Err(error) => {
                    tracing::warn!(%error, "high-water marks reach further back than a minute: no new epoch")
                }
            }
        }
        readings
    }

    /// What the maps had to forget so far; `None` without BPF. Costs a few system calls.
    pub fn evictions(&self) -> Option<Evictions> {
        let read = self.kernel.as_ref()?.evictions();
        read.inspect_err(|error| tracing::warn!(%error, "cannot read how much the BPF maps have forgotten"))
            .ok()
    }

    /// The `top` source prefixes with the most early disconnects, then connections, over all listeners that are or were
    /// watched. Walks whole maps, up to some ten thousand system calls: for a person's question, not for every tick.
    pub fn sources(&self, top: usize) -> Sources {
        let Some(kernel) = &self.kernel else {
            return Sources::default();
        };
        kernel.sources(top).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the source prefixes");
            Sources::default()
        })
    }

    fn with(mut kernel: Kernel, sources: &[OverflowSource], capabilities: &Capabilities) -> Self {
        let (log, log_health) = match kernel.take_log() {
            Ok(log) => (Some(log), ok("log")),
            Err(error) => (
                None,
                broken(
                    "log",
                    error.state(),
                    format!("{error}; BPF warnings are not seen"),
                ),
            ),
        };
        if let Err(error) = kernel.attach_state() {
            return Self::without(error.state(), &error.to_string());
        }
        let greeting = match kernel.attach_greeting(capabilities) {
            Ok(None) => ok("greeting"),
            Ok(Some(limitation)) => broken("greeting", ProbeState::Fallback, limitation),
            Err(error) => broken(
                "greeting",
                error.state(),
                format!("{error}; greeting latency is unknown"),
            ),
        };
        let overflow = overflow_health(kernel.attach_overflow(sources, capabilities));
        let mut slots = Slots::new();
        let depth = match self_test::run(&mut kernel, &mut slots) {
            Ok(()) => ok("depth"),
            Err(failure) => broken(
                "depth",
                ProbeState::Fallback,
                format!("self-test: {failure}; {POLLING}"),
            ),
        };

        Self {
            kernel: Some(kernel),
            log,
            sees: Sees {
                queue: depth.state == ProbeState::Ok,
                overflows: overflow.state == ProbeState::Ok,
            },
            health: [ok("state"), greeting, depth, log_health, overflow],
            watched: HashMap::new(),
            slots,
            epochs: None,
        }
    }

    fn without(state: ProbeState, reason: &str) -> Self {
        let mut health = NAMES.map(|name| broken(name, state, reason.to_owned()));
        health[STATE].reason = format!("{reason}; early disconnects are not counted");
        health[GREETING].reason = format!("{reason}; greeting latency is unknown");
        health[DEPTH] = broken("depth", ProbeState::Fallback, format!("{reason}; {POLLING}"));
        health[LOG].state = ProbeState::Unsupported;
        health[OVERFLOW] = broken("overflow", ProbeState::Fallback, format!("{reason}; {NETSTAT}"));
        Self {
            kernel: None,
            log: None,
            health,
            sees: Sees {
                queue: false,
                overflows: false,
            },
            watched: HashMap::new(),
            slots: Slots::new(),
            epochs: None,
        }
    }
}

/// Gives the kernel back what reading its BTF took, once for the offsets and once for fentry: 25 MiB in small pieces, which
/// glibc would keep for a program that never wants them again.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "malloc_trim(3) has no safe wrapper")]
    // SAFETY: takes no pointer, and only gives back pages that nobody has allocated.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Ends the watch of what is not in `wanted`. One that cannot be ended keeps its slot: another's counts would be mixed
/// with its own.
fn forget_others(
    kernel: &mut Kernel,
    watched: &mut HashMap<ListenerId, Watched>,
    slots: &mut Slots,
    wanted: &[ListenerId],
) -> Result<(), Error> {
    let others: Vec<ListenerId> = watched
        .keys()
        .filter(|listener| !wanted.contains(listener))
        .copied()
        .collect();
    for listener in others {
        kernel.unwatch(&listener)?;
        if let Some(old) = watched.remove(&listener) {
            slots.free(old.slot());
        }
    }
    Ok(())
}

/// Begins the watch of what is new in `wanted`, and says for how many there was no slot.
fn add_new(
    kernel: &mut Kernel,
    watched: &mut HashMap<ListenerId, Watched>,
    slots: &mut Slots,
    wanted: &[ListenerId],
) -> Result<usize, Error> {
    let mut left_out = 0;
    for listener in wanted {
        if watched.contains_key(listener) {
            continue;
        }
        let Some(slot) = slots.take() else {
            left_out += 1;
            continue;
        };
        if let Err(error) = kernel.watch(listener, slot) {
            slots.free(slot);
            return Err(error);
        }
        watched.insert(*listener, Watched::new(slot));
    }
    Ok(left_out)
}

const POLLING: &str = "the accept queue is polled by sock_diag, and peaks between two looks are missed";

const NETSTAT: &str = "overflows are those of the whole network namespace, by netstat's ListenOverflows";

/// The one probe that says of itself even when it is ok: which of its sources serves.
fn overflow_health(attached: Result<OverflowSource, Vec<(OverflowSource, Error)>>) -> Probe {
    match attached {
        Ok(source) => Probe {
            reason: format!("counted by listener, by {source}"),
            ..ok("overflow")
        },
        Err(refusals) => {
            let why: String = refusals
                .iter()
                .map(|(source, error)| format!("{source}: {error}; "))
                .collect();
            broken("overflow", ProbeState::Fallback, format!("{why}{NETSTAT}"))
        }
    }
}

fn ok(name: &str) -> Probe {
    Probe {
        name: name.to_owned(),
        state: ProbeState::Ok,
        reason: String::new(),
    }
}

fn broken(name: &str, state: ProbeState, reason: String) -> Probe {
    Probe {
        name: name.to_owned(),
        state,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use aya::sys::{Stats, enable_stats};

    use super::*;

    /// The promise of "light enough to leave on". Needs root with BPF.
    #[test]
    fn the_programs_run_once_a_connection_and_not_once_a_packet() {
        const ROUND_TRIPS: u64 = 20_000;
        let _counted_while_open = enable_stats(Stats::RunTime).unwrap();
        let mut probes = Probes::start();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        probes.watch(&[kernel::listener_here(address.ip(), address.port()).unwrap()]);
        let mut client = TcpStream::connect(address).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();

        let before = probes.kernel.as_ref().unwrap().runs();
        for _ in 0..ROUND_TRIPS {
            accepted.write_all(b"2").unwrap();
            client.read_exact(&mut [0]).unwrap();
            client.write_all(b"N").unwrap();
            accepted.read_exact(&mut [0]).unwrap();
        }
        // Every connection on this machine runs them, those of the other tests too.
        let runs = probes.kernel.as_ref().unwrap().runs() - before;
        assert!(runs < ROUND_TRIPS / 2, "{runs} runs in {ROUND_TRIPS} round trips");
    }

    #[test]
    fn disabled_probes_read_nothing_and_say_why() {
        let mut probes = Probes::disabled("switched off for a test");
        let listener = ListenerId {
            netns: 1,
            address: "127.0.0.1:25".parse().unwrap(),
        };
        probes.watch(&[listener]);
        assert!(probes.read(crate::clock::now().mono).is_empty());
        assert_eq!(probes.sources(10), Sources::default());
        let names: Vec<&str> = probes.health().iter().map(|probe| probe.name.as_str()).collect();
        assert_eq!(names, NAMES);
        assert_eq!(probes.health()[OVERFLOW].state, ProbeState::Fallback);
        assert!(!probes.sees_overflows());
        assert!(
            probes
                .health()
                .iter()
                .all(|probe| probe.reason.starts_with("switched off for a test"))
        );
        assert_eq!(probes.health()[DEPTH].state, ProbeState::Fallback);
    }
}
