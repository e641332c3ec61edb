//! What nobody outside may make large: memory by the number of clients, the tick by the number of instances, and /metrics by
//! either.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sentinel_lab::clock::wait_until;
use sentinel_lab::netns::{Namespace, SERVER};
use sentinel_lab::packets::{self, Crowd, Manners, Packets};
use sentinel_lab::sentinel::{Daemon, Sentinel};
use sentinel_lab::stand_in::{Accepts, Programs, Role, StandIn};

use crate::{PATIENCE, observe};

fn sum(daemon: &Daemon<'_>, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let scrape = daemon.metrics().expect("/metrics answers");
    scrape.sum(&format!("smtp_sentinel_{name}"), labels)
}

/// A stand-in that greets whoever comes, and the wire on which anybody can come.
struct Exposed {
    // Fields drop in this order.
    postfix: StandIn,
    server: Namespace,
    clients: Namespace,
    base: tempfile::TempDir,
}

impl Exposed {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let (server, clients) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        packets::join(&server, &clients).unwrap();
        let role = Role {
            listens: vec![format!("{SERVER}:25").parse().unwrap()],
            smtpds: 2,
            limit: 20,
            connections: 0,
            accepts: Accepts::AndServes,
        };
        let programs = Programs::install(base.path()).unwrap();
        let postfix = StandIn::start(&server, &programs, base.path(), &role).unwrap();
        Self {
            postfix,
            server,
            clients,
            base,
        }
    }

    fn sentinel(&self) -> Sentinel {
        let config_dirs = [self.postfix.config_dir().to_owned()];
        Sentinel::install_for(self.base.path(), &config_dirs, &observe()).unwrap()
    }

    /// `count` clients, every one from a /24 of its own.
    fn crowd(&self, manners: Manners, count: u64) -> Packets {
        let crowd = Crowd {
            manners,
            count,
            per_second: 20_000,
            addresses: u32::MAX,
            stride: 256,
        };
        Packets::start(&self.server, &self.clients, crowd).unwrap()
    }
}

fn wait_counting(daemon: &Daemon<'_>) {
    wait_until("the listener to be counted", PATIENCE, || {
        Ok(sum(daemon, "connections_total", &[]).is_some())
    })
    .unwrap();
}

/// The memory that the daemon has taken since `before`, as a part of that.
fn growth(daemon: &Daemon<'_>, before: u64) -> f64 {
    daemon.usage().unwrap().resident_bytes as f64 / before as f64
}

/// There are 32,768 places for each kind of source; half as many clients again must push others out. `cargo xtask soak` sends
/// a million.
#[test]
fn more_source_prefixes_than_places_evict_the_oldest_and_take_no_memory() {
    const PLACES: f64 = 32_768.0;
    let soak = crate::soak().is_some();
    let clients = if soak { 1_000_000 } else { 49_152 };
    let lab = Exposed::new();
    let sentinel = lab.sentinel();
    let daemon = sentinel.start().unwrap();
    wait_counting(&daemon);
    let before = daemon.usage().unwrap();

    let crowd = lab.crowd(Manners::Reset, clients);
    wait_until("all clients to have come", 10 * PATIENCE, || {
        Ok(crowd.tally().syns == clients)
    })
    .unwrap();
    let counted = || sum(&daemon, "connections_total", &[]).unwrap();
    let evicted = |prefix| sum(&daemon, "source_evictions_total", &[("prefix", prefix)]).unwrap();
    // Packets can be lost on a wire; there must be enough left to prove the point.
    wait_until("every client beyond the places to push one out", PATIENCE, || {
        let beyond = counted() - PLACES;
        Ok(beyond > 0.2 * PLACES && evicted("ipv4_32") >= beyond && evicted("ipv4_24") >= beyond)
    })
    .unwrap();
    // Places are handed out in sets, so that some are pushed out before all of the others are taken; most are not.
    assert!(
        evicted("ipv4_32") < 0.5 * counted() || soak,
        "{}",
        evicted("ipv4_32")
    );
    assert_eq!(evicted("ipv6_64"), 0.0);
    // They have all left again, so not one of them had to be forgotten.
    assert_eq!(sum(&daemon, "connection_evictions_total", &[]), Some(0.0));
    let growth = growth(&daemon, before.resident_bytes);
    assert!(growth < 1.1, "resident memory grew to {growth} of what it was");
    // A request that is being served has one of its own.
    assert!(daemon.usage().unwrap().descriptors <= before.descriptors + 1);
    println!(
        "soak: {} connections, each from a /24 of its own, {} of which were forgotten; resident memory went to {growth:.3} of \
         what it was",
        counted(),
        evicted("ipv4_24")
    );
}

/// A SYN is not a connection: no place is taken for one that is not followed up.
#[test]
fn a_syn_flood_leaves_nothing_behind() {
    const SYNS: u64 = 30_000;
    let lab = Exposed::new();
    let sentinel = lab.sentinel();
    let daemon = sentinel.start().unwrap();
    wait_counting(&daemon);
    let before = daemon.usage().unwrap();

    let crowd = lab.crowd(Manners::Silent, SYNS);
    wait_until("all SYNs to be sent", PATIENCE, || Ok(crowd.tally().syns == SYNS)).unwrap();
    let received: u64 = received_segments(&lab.server);
    assert!(
        received as f64 > 0.9 * SYNS as f64,
        "the server got {received} segments"
    );
    // A polite client after them is the mark by which the counts are known to be up to date.
    crowd.stop().unwrap();
    let honest = lab.crowd(Manners::Polite, 1);
    wait_until("the one client to be counted", PATIENCE, || {
        Ok(sum(&daemon, "connections_total", &[]) >= Some(1.0))
    })
    .unwrap();
    honest.stop().unwrap();
    assert_eq!(sum(&daemon, "connections_total", &[]), Some(1.0));
    for prefix in ["ipv4_32", "ipv4_24"] {
        let evicted = sum(&daemon, "source_evictions_total", &[("prefix", prefix)]);
        assert_eq!(evicted, Some(0.0), "{prefix}");
    }
    let growth = growth(&daemon, before.resident_bytes);
    assert!(growth < 1.1, "resident memory grew to {growth} of what it was");
}

/// Tcp InSegs of the namespace.
fn received_segments(server: &Namespace) -> u64 {
    let text = server.output("cat", &["/proc/thread-self/net/snmp"]).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == "InSegs").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// Fifty instances in as many network namespaces, 200 listeners, 1,000 smtpd, and 20,000 connections in the accept queues
/// and on the slots, so that every instance is one to be looked at in every tick. Each of them still gets its turn, and the
/// tick takes no longer than the time between two.
#[test]
fn a_thousand_smtpd_in_fifty_namespaces_are_seen_in_time() {
    const INSTANCES: usize = 50;
    let base = tempfile::tempdir().unwrap();
    let programs = Programs::install(base.path()).unwrap();
    let role = Role {
        listens: (1..=4)
            .map(|host| format!("10.76.0.{host}:25").parse().unwrap())
            .collect(),
        smtpds: 20,
        limit: 20,
        connections: 400,
        accepts: Accepts::AndKeeps(5),
    };
    let (_postfixes, config_dirs): (Vec<_>, Vec<PathBuf>) = (0..INSTANCES)
        .map(|number| {
            let namespace = Namespace::new().unwrap();
            namespace
                .ip(&["route", "add", "local", "10.76.0.0/16", "dev", "lo"])
                .unwrap();
            let postfix = instance(
                &namespace,
                &programs,
                &base.path().join(number.to_string()),
                &role,
            );
            let config_dir = postfix.config_dir().to_owned();
            ((postfix, namespace), config_dir)
        })
        .unzip();
    let sentinel = Sentinel::install_for(base.path(), &config_dirs, &observe()).unwrap();
    let daemon = sentinel.start().unwrap();
    let all_seen = || {
        let services = daemon
            .status()?
            .instances
            .into_iter()
            .flat_map(|one| one.services);
        let seen = services.filter(|one| {
            one.busy == Some(20)
                && one.processes == Some(20)
                && one.accept_queue.is_some_and(|queue| queue.depth == 95)
        });
        Ok(seen.count() == INSTANCES)
    };
    // The first look at each asks postconf(1) several times, one instance after the other.
    wait_until("all instances to be seen", 10 * PATIENCE, all_seen).unwrap();
    assert_eq!(sum(&daemon, "process_limit", &[]), Some(1000.0));
    // Counted from the look after the one that found them.
    wait_until("all listeners to be counted", PATIENCE, || {
        let series = daemon.metrics()?.series;
        let listeners = series
            .iter()
            .filter(|one| one.name == "smtp_sentinel_connections_total");
        Ok(listeners.count() == 4 * INSTANCES)
    })
    .unwrap();

    // From here on nothing is new, and every tick has more to do than it has time for. Its time is told in CPU time, of which
    // a busy neighbour takes none away.
    let ticks = || sum(&daemon, "tick_seconds_count", &[]).unwrap();
    let (start, cpu) = (ticks(), daemon.usage().unwrap().cpu);
    wait_until("a hundred ticks", PATIENCE, || Ok(ticks() >= start + 100.0)).unwrap();
    let (ticks, cpu) = (ticks() - start, daemon.usage().unwrap().cpu - cpu);
    let each = cpu.div_f64(ticks);
    let deferred = sum(&daemon, "instances_deferred_total", &[]).unwrap();
    println!("{ticks} ticks of {each:?} of CPU time, {deferred} instances deferred");
    assert!(
        each < Duration::from_millis(100),
        "{cpu:?} of CPU in {ticks} ticks"
    );
    wait_until("all instances to be seen again", PATIENCE, all_seen).unwrap();
}

fn instance(namespace: &Namespace, programs: &Programs, base: &Path, role: &Role) -> StandIn {
    StandIn::start(namespace, programs, base, role).unwrap()
}
