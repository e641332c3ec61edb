//! One watched Postfix: what its configuration says, what its kernel side shows, and the services in it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use procfs::process::{FDTarget, Process};

use super::engine::{Counted, Probed};
use super::service::Service;
use crate::actuator::ConfigDir;
use crate::config::Config;
use crate::controller::Budget;
use crate::postfix::endpoint::same_service;
use crate::postfix::main_cf::Settings;
use crate::postfix::master_cf::MasterCf;
use crate::postfix::postconf::Postconf;
use crate::postfix::processes::{Processes, Smtpd};
use crate::postfix::services::{WatchedService, watched};
use crate::postfix::{Master, ServiceId, discovery, edit, locks};
use crate::probes::ListenerReading;
use crate::signals::service::{ListenerLook, Look, Slots};
use crate::signals::{ListenerId, Reading};
use crate::sock_diag::{ListenSocket, Owners, SockDiag};

/// How often the configuration files are looked at for changes of other hands.
const CONFIGURATION_EVERY: Duration = Duration::from_secs(1);

/// How often a quiet service gets a full look: the walk over the established connections is what costs.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// From this share of the trip threshold on every tick is a full look.
const LOOK_CLOSELY_FROM: f64 = 0.5;

/// How long it is taken for known which sockets are the master's, while the listening sockets are the same: that costs a
/// readlink for each of its hundred descriptors and more.
const OWNED_FOR: Duration = Duration::from_secs(10);

/// One running master and what is watched of it.
#[derive(Debug)]
pub(super) struct Instance {
    /// Names it in status, metrics and history: the configuration directory.
    pub(super) id: String,
    pub(super) master: Master,
    pub(super) version: Option<String>,
    /// The reloads that it may still be asked for.
    pub(super) budget: Budget,
    pub(super) services: Vec<Service>,
    /// Why nothing of it can be watched; empty when it can.
    pub(super) trouble: String,
    /// Whether master.cf could be replaced, as of a few seconds ago; else why not.
    pub(super) replaceable: Result<(), String>,
    processes: Processes,
    sockets: Result<SockDiag, String>,
    stamp: Stamp,
    stamped_at: Option<Instant>,
    looked_at: Option<Instant>,
    gone_since: Option<Instant>,
    /// As of the last tick.
    smtpd: Reading<Vec<Smtpd>>,
    owned: Option<Owned>,
}

/// What tells that a configuration file was changed or replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Stamp(Vec<Option<(u64, i64, i64, u64)>>);

impl Stamp {
    fn of(config_dir: &Path) -> Self {
        let one = |name| {
            let meta = fs::metadata(config_dir.join(name)).ok()?;
            Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
        };
        Self(vec![one("master.cf"), one("main.cf")])
    }
}

impl Instance {
    pub(super) fn new(master: Master, config: &Config) -> Self {
        let sockets = open_sockets(&master);
        Self {
            id: master.config_dir.display().to_string(),
            version: None,
            budget: Budget::new(config.act.min_interval, config.act.max_reloads_per_hour),
            services: Vec::new(),
            trouble: String::new(),
            replaceable: Ok(()),
            processes: Processes::default(),
            sockets,
            stamp: Stamp::default(),
            stamped_at: None,
            looked_at: None,
            gone_since: None,
            smtpd: Reading::unavailable("the processes have not been counted yet"),
            owned: None,
            master,
        }
    }

    /// Postfix was restarted: the same configuration under another process. Decisions and edits live on.
    pub(super) fn replace_master(&mut self, master: Master) {
        self.processes = Processes::default();
        self.sockets = open_sockets(&master);
        self.stamp = Stamp::default();
        self.stamped_at = None;
        self.gone_since = None;
        self.master = master;
    }

    /// The master is not there at `now`.
    pub(super) fn gone(&mut self, now: Instant) {
        self.gone_since.get_or_insert(now);
    }

    /// For how long the master has been gone; `None` while it is there.
    pub(super) fn gone_for(&self, now: Instant) -> Option<Duration> {
        self.gone_since.map(|since| now.saturating_duration_since(since))
    }

    /// The smtpd processes of the last tick, as the verification of a reload wants them.
    pub(super) fn workers(&self) -> &[Smtpd] {
        self.smtpd.value().map_or(&[], Vec::as_slice)
    }

    pub(super) fn alive(&self) -> bool {
        discovery::alive(&self.master)
    }

    pub(super) fn master_cf(&self) -> PathBuf {
        self.master.config_dir.join("master.cf")
    }

    /// Looks whether master.cf could be replaced, so that status says so before it matters.
    pub(super) fn try_replaceable(&mut self) {
        self.replaceable = ConfigDir::open(&self.master.config_dir)
            .and_then(|dir| dir.replaceable().and_then(|()| dir.read().map(drop)))
            .map_err(|error| error.to_string());
    }

    /// Reads master.cf and main.cf again if they have changed since. `true` when they have.
    pub(super) fn refresh(&mut self, config: &Config, now: Instant) -> bool {
        if self
            .stamped_at
            .is_some_and(|at| now.saturating_duration_since(at) < CONFIGURATION_EVERY)
        {
            return false;
        }
        self.stamped_at = Some(now);
        let stamp = Stamp::of(&self.master.config_dir);
        if stamp == self.stamp {
            return false;
        }
        self.stamp = stamp;
        self.read_configuration(config);
        true
    }

    fn read_configuration(&mut self, config: &Config) {
        let path = self.master_cf();
        let read = ConfigDir::open(&self.master.config_dir)
            .and_then(|dir| dir.read_followed())
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                let settings = Settings::of(&self.master.config_dir, &self.master.daemon_dir);
                settings
                    .map(|settings| (bytes, settings))
                    .map_err(|error| error.to_string())
            });
        let (bytes, settings) = match read {
            Ok(read) => read,
            Err(reason) => {
                self.trouble = reason;
                return;
            }
        };
        self.trouble.clear();
        self.version = settings.version.clone();
        let mut known: HashMap<ServiceId, Service> = self
            .services
            .drain(..)
            .map(|service| (service.watched.id.clone(), service))
            .collect();
        for entry in watched(&MasterCf::parse(&bytes), &settings, &config.watch.names()) {
            let service = match known.remove(&entry.id) {
                Some(mut service) => {
                    service.watched = entry;
                    service
                }
                None => Service::new(entry, config),
            };
            self.services.push(service);
        }
        let postconf = Postconf::find(&self.master.daemon_dir);
        let master_cf = MasterCf::parse(&bytes);
        for service in self
            .services
            .iter_mut()
            .filter(|service| service.watched.actionable.is_ok())
        {
            if let Some(entry) = master_cf.find(&service.watched.id) {
                service
                    .shedding
                    .configure(postconf.as_ref(), &self.master.config_dir, entry);
            }
        }
        let ours = edit::ours(&bytes);
        for service in &mut self.services {
            service.lines_in_file = ours.iter().any(|id| same_service(id, &service.watched.id));
        }
        // An entry that somebody removed with our lines on it: what was decided of it went with it.
        for lost in known.into_values().filter(Service::in_force) {
            tracing::warn!(instance = %self.id, service = %lost.watched.id, "the entry is gone from master.cf, and our lines with it");
        }
        if self.services.is_empty() {
            self.trouble = format!("{} has no smtpd service that is to be watched", path.display());
        }
    }

    /// Counts the smtpd processes, which costs next to nothing.
    pub(super) fn count_processes(&mut self, now: Instant) {
        self.smtpd = match self.processes.update(&self.master) {
            Ok(smtpd) => Reading::exact(smtpd, now),
            Err(error) => Reading::unavailable(format!("cannot list the processes of the master: {error}")),
        };
    }

    /// Whether the sockets are worth a look in this tick.
    pub(super) fn wants_a_look(&self, config: &Config, counted: &mut Counted<'_>, now: Instant) -> bool {
        let due = |at: Instant| now.saturating_duration_since(at) >= LOOK_EVERY;
        self.looked_at.is_none_or(due)
            || self
                .services
                .iter()
                .any(|service| self.may_fill(service, config, counted))
    }

    /// Whether this many slots may be busy that every tick counts. There are never more busy slots than processes, and
    /// idle processes stay for max_idle; there are never more than were held at the last look and have come since.
    fn may_fill(&self, service: &Service, config: &Config, counted: &mut Counted<'_>) -> bool {
        if service.in_force() {
            return true;
        }
        let Some(slots) = service.slots() else {
            return false;
        };
        let from = f64::from(slots) * config.detect.thresholds.trip() * LOOK_CLOSELY_FROM;
        let processes = self.workers().iter();
        let processes = processes.filter(|one| one.service == service.watched.id).count();
        processes as f64 >= from
            && service
                .busy_at_most(counted.get())
                .is_none_or(|busy| busy as f64 >= from)
    }

    /// Looks at the sockets.
    pub(super) fn look(&mut self, probed: &Probed, now: Instant) -> Vec<SocketsAndProcesses> {
        self.looked_at = Some(now);
        let sockets = self.listening(now);
        (0..self.services.len())
            .map(|index| self.look_at(index, &sockets, probed, now))
            .collect()
    }

    /// A service, and the window on its sockets.
    pub(super) fn service_and_sockets(&mut self, index: usize) -> Option<(&mut Service, &mut SockDiag)> {
        Some((self.services.get_mut(index)?, self.sockets.as_mut().ok()?))
    }

    fn listening(&mut self, now: Instant) -> Result<Listening, String> {
        let diag = self.sockets.as_mut().map_err(|reason| reason.clone())?;
        let all = diag
            .listeners()
            .map_err(|error| format!("sock_diag does not list the listening sockets: {error}"))?;
        let names: Vec<_> = all.iter().map(|socket| (socket.address, socket.inode)).collect();
        let known = self.owned.take_if(|known| {
            known.listening == names && now.saturating_duration_since(known.at) < OWNED_FOR
        });
        let known = match known {
            Some(known) => known,
            None => Owned {
                at: now,
                sockets: socket_inodes(self.master.pid).map_err(|error| {
                    format!("cannot list the sockets of master {}: {error}", self.master.pid)
                })?,
                listening: names,
            },
        };
        let owned = known.sockets.clone();
        self.owned = Some(known);
        Ok(Listening { all, owned })
    }

    fn look_at(
        &mut self,
        index: usize,
        sockets: &Result<Listening, String>,
        probed: &Probed,
        now: Instant,
    ) -> SocketsAndProcesses {
        let watched = &self.services[index].watched;
        let smtpd = self.smtpd.as_ref().map(|all| {
            let ours = all.iter().filter(|one| one.service == watched.id);
            ours.cloned().collect::<Vec<_>>()
        });
        if watched.id.kind == "pass" && watched.lock_tells_idle() {
            let busy = match (&smtpd, locks::idle_by_lock(&self.master, &watched.id)) {
                (Reading::Unavailable(reason), _) => Reading::unavailable(reason),
                (_, Err(error)) => {
                    Reading::unavailable(format!("cannot tell idle smtpd by their lock: {error}"))
                }
                (Reading::Known { value, .. }, Ok(idle)) => {
                    Reading::sampled(count(value.iter().filter(|one| !idle.contains(&one.pid))), now)
                }
            };
            return SocketsAndProcesses {
                smtpd,
                slots: Slots::BusyByLock(busy),
                listeners: Vec::new(),
                no_listeners: "a pass service has no TCP listener; its connections come through postscreen"
                    .into(),
            };
        }
        let ours = match sockets {
            Ok(listening) => listening.of(watched),
            Err(reason) => return SocketsAndProcesses::blind(smtpd, reason),
        };
        if ours.is_empty() {
            return SocketsAndProcesses::blind(smtpd, "the master listens on no socket for this service");
        }
        let slots = if self.services[index].is_empty(&ours, probed, now) {
            Reading::exact(Vec::new(), now)
        } else {
            self.services[index].walked_at = Some(now);
            self.connections(sockets, &ours, now)
        };
        SocketsAndProcesses {
            smtpd,
            slots: Slots::Connections(slots),
            listeners: ours,
            no_listeners: String::new(),
        }
    }

    fn connections(
        &mut self,
        sockets: &Result<Listening, String>,
        ours: &[ListenSocket],
        now: Instant,
    ) -> Reading<Vec<crate::sock_diag::Connection>> {
        let (Ok(listening), Ok(diag)) = (sockets, self.sockets.as_mut()) else {
            return Reading::unavailable("sock_diag is not available");
        };
        // A wildcard listener does not own what came in through somebody else's socket on the very address.
        let ports: HashSet<u16> = ours.iter().map(|socket| socket.address.port()).collect();
        let on_port: Vec<_> = listening
            .all
            .iter()
            .map(|socket| socket.address)
            .filter(|address| ports.contains(&address.port()))
            .collect();
        let our_addresses: HashSet<_> = ours.iter().map(|socket| socket.address).collect();
        let owners = Owners::among(on_port.iter().copied());
        match diag.connections(&on_port) {
            Ok(all) => {
                let mine = all.into_iter().filter(|one| {
                    owners
                        .of(one.local)
                        .is_some_and(|socket| our_addresses.contains(&socket))
                });
                Reading::sampled(mine.collect(), now)
            }
            Err(error) => Reading::unavailable(format!("sock_diag does not list the connections: {error}")),
        }
    }

    /// The readings of a look, with what the probes counted in.
    pub(super) fn combine(
        &self,
        index: usize,
        found: SocketsAndProcesses,
        probed: &HashMap<ListenerId, ListenerReading>,
        now: Instant,
    ) -> Look {
        let listeners = found.listeners.into_iter().map(|socket| {
            let id = ListenerId {
                netns: self.master.netns,
                address: socket.address,
            };
            ListenerLook {
                id,
                socket,
                probed: probed.get(&id).cloned(),
            }
        });
        Look {
            at: now,
            limit: Reading::exact(self.services[index].watched.limit, now),
            smtpd: found.smtpd,
            slots: found.slots,
            listeners: listeners.collect(),
            no_listeners: found.no_listeners,
        }
    }
}

/// What one look found of one service, before the probes' counts are added.
#[derive(Debug)]
pub(super) struct SocketsAndProcesses {
    pub(super) smtpd: Reading<Vec<Smtpd>>,
    pub(super) slots: Slots,
    pub(super) listeners: Vec<ListenSocket>,
    pub(super) no_listeners: String,
}

impl SocketsAndProcesses {
    fn blind(smtpd: Reading<Vec<Smtpd>>, reason: &str) -> Self {
        Self {
            smtpd,
            slots: Slots::Connections(Reading::unavailable(reason)),
            listeners: Vec::new(),
            no_listeners: reason.to_owned(),
        }
    }
}

/// Which sockets are the master's, as of a moment ago.
#[derive(Debug)]
struct Owned {
    at: Instant,
    sockets: HashSet<u64>,
    /// The listening sockets that there were then.
    listening: Vec<(SocketAddr, u32)>,
}

/// The listening sockets of the master's network namespace, and which sockets are the master's.
#[derive(Debug)]
struct Listening {
    all: Vec<ListenSocket>,
    owned: HashSet<u64>,
}

impl Listening {
    fn of(&self, service: &WatchedService) -> Vec<ListenSocket> {
        let ours = |socket: &&ListenSocket| {
            self.owned.contains(&u64::from(socket.inode))
                && service
                    .listens
                    .iter()
                    .any(|listen| listen.matches(socket.address))
        };
        self.all.iter().filter(ours).copied().collect()
    }
}

fn open_sockets(master: &Master) -> Result<SockDiag, String> {
    let own = fs::metadata("/proc/self/ns/net").map(|meta| meta.ino());
    let opened = match own {
        Ok(inode) if inode == u64::from(master.netns) => SockDiag::open(),
        _ => SockDiag::open_in(Path::new(&format!("/proc/{}/ns/net", master.pid))),
    };
    opened.map_err(|error| {
        format!(
            "cannot open sock_diag in the network namespace of master {}: {error}",
            master.pid
        )
    })
}

fn socket_inodes(pid: i32) -> Result<HashSet<u64>, procfs::ProcError> {
    let mut inodes = HashSet::new();
    for entry in Process::new(pid)?.fd()?.flatten() {
        if let FDTarget::Socket(inode) = entry.target {
            inodes.insert(inode);
        }
    }
    Ok(inodes)
}

fn count(items: impl Iterator) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
