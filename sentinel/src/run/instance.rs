//! One watched Postfix: what its configuration says, what its kernel side shows, and the services in it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::engine::{QUICK_TICK, TICK};
use super::eyes::{Eyes, Found};
use super::hands::Danger;
use super::service::Service;
use crate::actuator::{ConfigDir, Digest, Target};
use crate::config::Config;
use crate::controller::{Budget, Controller};
use crate::postfix::endpoint::same_service;
use crate::postfix::main_cf::Settings;
use crate::postfix::master_cf::MasterCf;
use crate::postfix::postconf::Postconf;
use crate::postfix::processes::{Processes, Smtpd};
use crate::postfix::services::{Listen, screened, watched};
use crate::postfix::{Master, ServiceId, discovery, edit};
use crate::signals::Reading;
use crate::sock_diag::SockDiag;

/// How often the configuration files are looked at for changes of other hands.
const CONFIGURATION_EVERY: Duration = Duration::from_secs(1);

/// How often a quiet service gets a full look: the walk over the established connections is what costs.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The same while slots are running out.
const LOOK_CLOSELY_EVERY: Duration = Duration::from_millis(100);

/// How often it is looked how many more slots the machine bears, while slots are running out.
const ROOM_EVERY: Duration = Duration::from_secs(1);

/// From this share of the trip threshold on every tick is a full look. Busy slots cannot be more than processes, and
/// those are counted at every tick for next to nothing.
const LOOK_CLOSELY_FROM: f64 = 0.5;

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
    /// Why it must not be reloaded with its configuration files as they are now.
    pub(super) danger: Option<Danger>,
    /// Whether master.cf could be replaced, as of a few seconds ago; else why not.
    pub(super) replaceable: Result<(), String>,
    /// A configuration file has changed, whether or not it could be read, and nobody has asked yet whether a master would
    /// survive it.
    pub(super) changed: bool,
    processes: Processes,
    eyes: Eyes,
    /// Where postscreen listens, if it does.
    screened: Vec<Listen>,
    stamp: Stamp,
    /// A new stamp, of a file that may still be being written.
    unsettled: Option<Stamp>,
    stamped_at: Option<Instant>,
    /// master.cf without our lines, as it was read last.
    plain: Option<Digest>,
    looked_at: Option<Instant>,
    room_at: Option<Instant>,
    /// Slots are running out: it is looked at closely.
    close: bool,
    /// Number of smtpd processes, and start time of the newest.
    newest: (usize, u64),
    gone_since: Option<Instant>,
    workers: Vec<Smtpd>,
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

    /// The very files of `before` with other bytes in one: somebody writes in place, and may be in the midst of it.
    /// One that was renamed into its place is whole.
    fn written_in_place(&self, before: &Self) -> bool {
        let inode = |one: &Option<(u64, i64, i64, u64)>| one.map(|(inode, ..)| inode);
        self != before && self.0.iter().map(inode).eq(before.0.iter().map(inode))
    }
}

/// What reading master.cf again showed.
#[derive(Debug)]
pub(super) struct Reread {
    pub(super) bytes: Vec<u8>,
    /// Something other than our lines is not as it was.
    pub(super) others_changed: bool,
    /// Services with an edit of ours in force whose entry is no longer there.
    pub(super) gone: Vec<Service>,
}

impl Instance {
    pub(super) fn new(master: Master, config: &Config) -> Self {
        let eyes = Eyes::open(&master);
        Self {
            id: master.config_dir.display().to_string(),
            version: None,
            budget: Budget::new(config.act.min_interval, config.act.max_reloads_per_hour),
            services: Vec::new(),
            trouble: String::new(),
            danger: None,
            replaceable: Ok(()),
            changed: false,
            processes: Processes::default(),
            eyes,
            screened: Vec::new(),
            stamp: Stamp::default(),
            unsettled: None,
            stamped_at: None,
            plain: None,
            looked_at: None,
            room_at: None,
            close: false,
            newest: (0, 0),
            gone_since: None,
            workers: Vec::new(),
            master,
        }
    }

    /// Postfix was restarted: the same configuration under another process. Decisions and edits live on.
    pub(super) fn replace_master(&mut self, master: Master) {
        self.processes = Processes::default();
        self.eyes = Eyes::open(&master);
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
        &self.workers
    }

    pub(super) fn alive(&self) -> bool {
        discovery::alive(&self.master)
    }

    pub(super) fn master_cf(&self) -> PathBuf {
        self.master.config_dir.join("master.cf")
    }

    /// Looks whether master.cf could be replaced, so that status says so before it matters. `claimed` is whether no
    /// other sentinel is in charge of it.
    pub(super) fn try_replaceable(&mut self, claimed: Result<(), String>) {
        let could_not = self.replaceable.is_err();
        self.replaceable = claimed.and_then(|()| {
            ConfigDir::open(&self.master.config_dir)
                .and_then(|dir| dir.replaceable().and_then(|()| dir.read().map(drop)))
                .map_err(|error| error.to_string())
        });
        if could_not && self.replaceable.is_ok() {
            let controllers = self.services.iter_mut().map(|service| &mut service.controller);
            controllers.for_each(Controller::try_again);
        }
    }

    /// Reads master.cf and main.cf again if they have changed since, and can be read.
    pub(super) fn refresh(&mut self, config: &Config, now: Instant) -> Option<Reread> {
        if self
            .stamped_at
            .is_some_and(|at| now.saturating_duration_since(at) < CONFIGURATION_EVERY)
        {
            return None;
        }
        self.stamped_at = Some(now);
        let stamp = Stamp::of(&self.master.config_dir);
        if stamp == self.stamp {
            return None;
        }
        if stamp.written_in_place(&self.stamp) && self.unsettled.as_ref() != Some(&stamp) {
            self.unsettled = Some(stamp);
            return None;
        }
        self.unsettled = None;
        self.stamp = stamp;
        self.changed = true;
        self.read_configuration(config)
    }

    fn read_configuration(&mut self, config: &Config) -> Option<Reread> {
        let path = self.master_cf();
        let read = ConfigDir::open(&self.master.config_dir)
            .and_then(|dir| dir.read_followed())
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                let settings = Settings::of_running(&self.master.config_dir, &self.master.daemon_dir);
                settings
                    .map(|settings| (bytes, settings))
                    .map_err(|error| error.to_string())
            });
        let (bytes, settings) = match read {
            Ok(read) => read,
            Err(reason) => {
                self.trouble = reason;
                return None;
            }
        };
        self.trouble.clear();
        let without_ours = edit::remove(&bytes);
        let plain = Digest::of(&without_ours.bytes);
        let others_changed = self
            .plain
            .replace(plain.clone())
            .is_some_and(|before| before != plain);
        self.version = settings.version.clone();
        let mut known: HashMap<ServiceId, Service> = self
            .services
            .drain(..)
            .map(|service| (service.watched.id.clone(), service))
            .collect();
        self.screened = screened(&MasterCf::parse(&bytes), &settings);
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
        let ours = without_ours.removed;
        for service in &mut self.services {
            service.lines_in_file = ours.iter().any(|id| same_service(id, &service.watched.id));
        }
        if self.services.is_empty() {
            self.trouble = format!("{} has no smtpd service that is to be watched", path.display());
        }
        Some(Reread {
            bytes,
            others_changed,
            gone: known.into_values().filter(Service::has_ours).collect(),
        })
    }

    /// Counts processes, and looks closely at the sockets where that says that it is worth it. `None`: nothing to
    /// look at yet.
    pub(super) fn look(&mut self, config: &Config, now: Instant) -> Option<Vec<Found>> {
        let smtpd = match self.processes.update(&self.master) {
            Ok(smtpd) => {
                self.workers = smtpd.clone();
                Reading::exact(smtpd, now)
            }
            Err(error) => Reading::unavailable(format!("cannot list the processes of the master: {error}")),
        };
        self.close = self.worth_a_look(config, &smtpd);
        let newest = smtpd.value().map_or((0, 0), |all| {
            (all.len(), all.iter().map(|one| one.start_time).max().unwrap_or(0))
        });
        // A slot is taken by a new process, or by an idle one, which then are fewer: the former shows at once, the
        // latter at the next close look.
        let changed = std::mem::replace(&mut self.newest, newest) != newest;
        let every = match (self.close, changed) {
            (true, true) => Duration::ZERO,
            (true, false) => LOOK_CLOSELY_EVERY,
            (false, _) => LOOK_EVERY,
        };
        if self
            .looked_at
            .is_some_and(|at| now.saturating_duration_since(at) < every)
        {
            return None;
        }
        self.looked_at = Some(now);
        if self.close && config.act.headroom > 1.0 && self.room_is_due(now) {
            let master = self.master.pid;
            for service in self.services.iter_mut().filter(|service| !service.has_ours()) {
                service.look_for_room(config.act.headroom, master, &self.workers);
            }
        }
        let services = self.services.iter().map(|service| &service.watched);
        Some(self.eyes.look(services, &self.screened, &smtpd, now))
    }

    fn room_is_due(&mut self, now: Instant) -> bool {
        let due = self
            .room_at
            .is_none_or(|at| now.saturating_duration_since(at) >= ROOM_EVERY);
        if due {
            self.room_at = Some(now);
        }
        due
    }

    fn worth_a_look(&self, config: &Config, smtpd: &Reading<Vec<Smtpd>>) -> bool {
        let from = config.detect.thresholds.trip() * LOOK_CLOSELY_FROM;
        self.services.iter().any(|service| {
            let count = smtpd.value().map_or(0, |all| {
                all.iter().filter(|one| one.service == service.watched.id).count()
            });
            service.has_ours()
                || service
                    .slots()
                    .is_some_and(|slots| count as f64 >= f64::from(slots) * from)
        })
    }

    /// How soon it wants the next tick.
    pub(super) fn pace(&self) -> Duration {
        if self.close { QUICK_TICK } else { TICK }
    }

    /// What an act on a service is aimed at.
    pub(super) fn target(&self, index: usize) -> Target {
        Target {
            instance: self.id.clone(),
            master: self.master.clone(),
            service: self.services[index].watched.id.clone(),
        }
    }

    /// A service, and the window on its sockets.
    pub(super) fn service_and_sockets(&mut self, index: usize) -> Option<(&mut Service, &mut SockDiag)> {
        Some((self.services.get_mut(index)?, self.eyes.window()?))
    }
}
