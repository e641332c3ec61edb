//! One watched Postfix: what its configuration says, what its kernel side shows, and the services in it.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::engine::{Counted, Probed, QUICK_TICK, TICK};
use super::eyes::{Eyes, Found};
use super::hands::Danger;
use super::service::Service;
use crate::actuator::{ConfigDir, Digest, Target, read_followed};
use crate::clock;
use crate::config::Config;
use crate::controller::{Budget, Controller};
use crate::postfix::endpoint::same_service;
use crate::postfix::main_cf::Settings;
use crate::postfix::master_cf::MasterCf;
use crate::postfix::processes::{Processes, Smtpd};
use crate::postfix::services::{Listen, screened, watched};
use crate::postfix::{Home, Master, Root, ServiceId, discovery, edit};
use crate::signals::Reading;
use crate::sock_diag::SockDiag;

/// How often the configuration files are looked at for changes of other hands.
const CONFIGURATION_EVERY: Duration = Duration::from_secs(1);

/// After a reading of them that failed, this long until the next one, and twice as long after each further failure.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(10);
const READ_AGAIN_AT_MOST: Duration = Duration::from_secs(300);

/// How often a quiet service gets a full look: the walk over the established connections is what costs.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The same while slots are running out.
const LOOK_CLOSELY_EVERY: Duration = Duration::from_millis(100);

/// From this share of the trip threshold on, while the slots fill, every tick is a full look.
const LOOK_AT_EVERY_TICK_FROM: f64 = 0.7;

/// How often it is looked how many more slots the machine bears, while slots are running out.
const ROOM_EVERY: Duration = Duration::from_secs(1);

/// From this share of the trip threshold on it is looked at closely.
const LOOK_CLOSELY_FROM: f64 = 0.5;

/// Each is a row in status and a dozen series of metrics, and a file of a container can have thousands of them.
const SERVICES_OF_CONTAINER: usize = 32;

/// One running master and what is watched of it.
#[derive(Debug)]
pub(super) struct Instance {
    /// Names it in status, metrics and history; see [`Home::name`].
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
    /// The configuration files are to be read.
    unread: bool,
    /// They could not be read, or not all of what they mean.
    read_again: Option<Retry>,
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
    /// When it was last tried in vain to take what is ours out of its files, for its pod was switched off.
    pub(super) rid_at: Option<Instant>,
    /// As of the last tick.
    smtpd: Reading<Rc<[Smtpd]>>,
}

/// What tells that a configuration file was changed or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp(Vec<Option<(u64, i64, u64, u64)>>);

impl Stamp {
    fn of(home: &Home) -> Self {
        let one = |name| {
            let stat = home.root.stat(&home.config_dir.join(name)).ok()?;
            let size = stat.st_size.cast_unsigned();
            Some((stat.st_ino, stat.st_mtime, stat.st_mtime_nsec, size))
        };
        Self(vec![one("master.cf"), one("main.cf")])
    }

    /// The very files of `before` with other bytes in one: somebody writes in place, and may be in the midst of it.
    /// One that was renamed into its place is whole.
    fn written_in_place(&self, before: &Self) -> bool {
        let inode = |one: &Option<(u64, i64, u64, u64)>| one.map(|(inode, ..)| inode);
        self != before && self.0.iter().map(inode).eq(before.0.iter().map(inode))
    }
}

/// When the configuration files are read again, and how long that had to wait.
#[derive(Debug)]
struct Retry {
    wait: Duration,
    at: Instant,
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
            id: master.home().name(),
            version: None,
            budget: Budget::new(config.act.min_interval, config.act.max_reloads_per_hour),
            services: Vec::new(),
            trouble: "its configuration has not been read yet".into(),
            danger: None,
            replaceable: Ok(()),
            changed: true,
            unread: true,
            read_again: None,
            processes: Processes::default(),
            eyes,
            screened: Vec::new(),
            stamp: Stamp::of(&master.home()),
            unsettled: None,
            stamped_at: None,
            plain: None,
            looked_at: None,
            room_at: None,
            close: false,
            newest: (0, 0),
            gone_since: None,
            rid_at: None,
            smtpd: Reading::unavailable("the processes have not been counted yet"),
            master,
        }
    }

    /// Postfix was restarted: the same configuration under another process. Decisions and edits live on.
    pub(super) fn replace_master(&mut self, master: Master) {
        self.processes = Processes::default();
        self.eyes = Eyes::open(&master);
        self.stamp = Stamp::of(&master.home());
        (self.changed, self.unread) = (true, true);
        self.gone_since = None;
        self.master = master;
    }

    /// Whether the master is there at `now`, when its processes have just been counted. One that is back without having
    /// been away (a moment in which /proc could not be read) has not been gone.
    pub(super) fn is_there(&mut self, now: Instant) -> bool {
        let there = self.processes.show_life() || self.alive();
        self.gone_since = (!there).then(|| self.gone_since.unwrap_or(now));
        there
    }

    /// The master was not there in the last tick.
    pub(super) fn is_gone(&self) -> bool {
        self.gone_since.is_some()
    }

    /// For how long the master has been gone; `None` while it is there.
    pub(super) fn gone_for(&self, now: Instant) -> Option<Duration> {
        self.gone_since.map(|since| now.saturating_duration_since(since))
    }

    /// The smtpd processes of the last tick, as the verification of a reload wants them.
    pub(super) fn workers(&self) -> &[Smtpd] {
        self.smtpd.value().map_or(&[], Rc::as_ref)
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
        self.replaceable = claimed
            .and_then(|()| {
                ConfigDir::open(&self.master.home())
                    .and_then(|dir| dir.replaceable().and_then(|()| dir.read().map(drop)))
                    .map_err(|error| error.to_string())
            })
            .and_then(|()| self.main_cf_is_proven());
        if could_not && self.replaceable.is_ok() {
            let controllers = self.services.iter_mut().map(|service| &mut service.controller);
            controllers.for_each(Controller::try_again);
        }
    }

    /// About a container no postconf(1) can be asked whether a master would live through reading main.cf. But every
    /// process of Postfix reads all of it at its start (Postfix src/global/mail_params.c, mail_params_init()), as master
    /// does at a reload: one that was started after the last change, and lives, has proved it.
    fn main_cf_is_proven(&self) -> Result<(), String> {
        if self.master.root == Root::Own {
            return Ok(());
        }
        let path = self.master.config_dir.join("main.cf");
        let unknown = |error: io::Error| format!("when {} was changed is not known: {error}", path.display());
        let stat = self.master.root.stat(&path).map_err(unknown)?;
        let changed = jiff::Timestamp::new(stat.st_ctime, i32::try_from(stat.st_ctime_nsec).unwrap_or(0))
            .map_err(|error| unknown(io::Error::other(error)))?;
        let changed = clock::ticks_at(changed).map_err(unknown)?;
        if changed <= self.master.start_time.max(self.newest.1) {
            return Ok(());
        }
        Err(format!(
            "{} was changed after the last process of this Postfix was started, and nothing but a new one tells whether a \
             reload would be survived; the next connection starts one, or reload it yourself",
            path.display()
        ))
    }

    /// Looks whether master.cf and main.cf have changed since they were read, which costs next to nothing.
    pub(super) fn look_for_changes(&mut self, now: Instant) {
        if self
            .stamped_at
            .is_some_and(|at| now.saturating_duration_since(at) < CONFIGURATION_EVERY)
        {
            return;
        }
        self.stamped_at = Some(now);
        self.unread |= self.read_again.as_ref().is_some_and(|retry| now >= retry.at);
        let stamp = Stamp::of(&self.master.home());
        if stamp == self.stamp {
            return;
        }
        if stamp.written_in_place(&self.stamp) && self.unsettled.as_ref() != Some(&stamp) {
            self.unsettled = Some(stamp);
            return;
        }
        self.unsettled = None;
        self.stamp = stamp;
        self.changed = true;
        self.unread = true;
        self.read_again = None;
    }

    /// Whether there is something to ask postconf(1): an answer takes some 10 ms, and on a busy machine a second.
    pub(super) fn has_questions(&self) -> bool {
        !self.is_gone() && (self.unread || self.changed || self.unrehearsed().is_some())
    }

    /// The first service whose trip is to be rehearsed: once for each file and each number of slots.
    pub(super) fn unrehearsed(&self) -> Option<usize> {
        let wanted = |service: &Service| {
            service.watched.actionable.is_ok()
                && !service.in_force()
                && service.rehearsed != Some(service.change(true))
        };
        let settled = !self.unread && !self.changed && self.danger.is_none();
        settled.then(|| self.services.iter().position(wanted)).flatten()
    }

    /// Reads master.cf and main.cf, if they have changed and can be read.
    pub(super) fn read_changes(&mut self, config: &Config, now: Instant) -> Option<Reread> {
        if !std::mem::take(&mut self.unread) {
            return None;
        }
        let waited = self.read_again.take().map(|retry| retry.wait);
        let reread = self.read_configuration(config);
        if reread.is_none()
            || !self
                .services
                .iter()
                .all(|service| service.shedding.is_configured())
        {
            // A program that gave no answer in time may do so later, and nobody changes a file for that.
            let wait = waited.map_or(READ_AGAIN_AFTER, |last| (last * 2).min(READ_AGAIN_AT_MOST));
            self.read_again = Some(Retry { wait, at: now + wait });
        }
        reread
    }

    fn read_configuration(&mut self, config: &Config) -> Option<Reread> {
        let path = self.master_cf();
        let read = read_followed(&self.master.home())
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                Settings::of_running(&self.master)
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
        let mut entries = watched(&MasterCf::parse(&bytes), &settings, &config.watch.names());
        if self.master.root != Root::Own && entries.len() > SERVICES_OF_CONTAINER {
            tracing::warn!(instance = %self.id, "only the first {SERVICES_OF_CONTAINER} of its {} services are watched", entries.len());
            entries.truncate(SERVICES_OF_CONTAINER);
        }
        for entry in entries {
            let service = match known.remove(&entry.id) {
                Some(mut service) => {
                    service.watched = entry;
                    service
                }
                None => Service::new(entry, config),
            };
            self.services.push(service);
        }
        let master_cf = MasterCf::parse(&bytes);
        for service in self
            .services
            .iter_mut()
            .filter(|service| service.watched.actionable.is_ok())
        {
            if let Some(entry) = master_cf.find(&service.watched.id) {
                service.shedding.configure(&self.master, entry);
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

    /// Counts the smtpd processes, which costs next to nothing.
    pub(super) fn count_processes(&mut self, now: Instant) {
        self.smtpd = match self.processes.update(&self.master) {
            Ok(smtpd) => Reading::exact(smtpd, now),
            Err(error) => Reading::unavailable(format!("cannot list the processes of the master: {error}")),
        };
    }

    /// Whether the sockets are to be looked at in this tick.
    pub(super) fn wants_a_look(&mut self, config: &Config, counted: &mut Counted<'_>, now: Instant) -> bool {
        self.close = self
            .services
            .iter()
            .any(|service| self.may_fill(service, config, counted));
        let starts = self.workers().iter().map(|one| one.start_time);
        let newest = (self.workers().len(), starts.max().unwrap_or(0));
        // A slot is taken by a new process, or by an idle one, which then are fewer: the former shows at once, the
        // latter at the next close look.
        let changed = std::mem::replace(&mut self.newest, newest) != newest;
        let every = match (self.close, changed || self.filling(config)) {
            (true, true) => Duration::ZERO,
            (true, false) => LOOK_CLOSELY_EVERY,
            (false, _) => LOOK_EVERY,
        };
        self.looked_at
            .is_none_or(|at| now.saturating_duration_since(at) >= every)
    }

    /// Whether so many slots may be busy that it is worth to look closely. There are never more busy slots than
    /// processes, and those stay for max_idle; never more, either, than were held at the last look and have come since.
    fn may_fill(&self, service: &Service, config: &Config, counted: &mut Counted<'_>) -> bool {
        if service.has_ours() {
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

    /// Looks at the sockets. `probed` must have been read before: who comes in between is then still to come.
    pub(super) fn look(&mut self, config: &Config, probed: &Probed, now: Instant) -> Vec<Found> {
        self.looked_at = Some(now);
        if self.close && config.act.headroom > 1.0 && self.room_is_due(now) {
            let workers = self.smtpd.value().map_or(&[][..], Rc::as_ref);
            for service in self.services.iter_mut().filter(|service| !service.has_ours()) {
                service.look_for_room(config.act.headroom, &self.master, workers);
            }
        }
        let services = self.services.iter_mut().map(|service| {
            let vacant = service.is_vacant(probed, now);
            if !vacant {
                service.walked_at = Some(now);
            }
            (&service.watched, vacant)
        });
        self.eyes.look(services, &self.screened, &self.smtpd, now)
    }

    /// The last free slots are being taken: the moment to act is near, and each tick looks.
    fn filling(&self, config: &Config) -> bool {
        let near = config.detect.thresholds.trip() * LOOK_AT_EVERY_TICK_FROM;
        let verdicts = self
            .services
            .iter()
            .filter(|service| !service.in_force())
            .filter_map(|service| Some(&service.seen.as_ref()?.verdict));
        verdicts.into_iter().any(|verdict| {
            verdict.full_in.is_some_and(|left| !left.is_zero())
                && verdict.pressure.is_some_and(|pressure| pressure >= near)
        })
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// This process in the place of a master.
    fn master() -> Master {
        let pid = std::process::id().cast_signed();
        let stat = procfs::process::Process::new(pid).unwrap().stat().unwrap();
        Master {
            pid,
            start_time: stat.starttime,
            root: Root::Own,
            config_dir: "/nowhere".into(),
            queue_dir: "/nowhere".into(),
            daemon_dir: "/nowhere".into(),
            netns: 0,
        }
    }

    #[test]
    fn a_postconf_that_cannot_answer_is_asked_again_a_while_later() {
        let dir = tempfile::tempdir().unwrap();
        let program = |text: &str| {
            let path = dir.path().join("postconf");
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        };
        std::fs::write(dir.path().join("master.cf"), "smtp inet n - n - - smtpd\n").unwrap();
        let main_cf = std::fs::File::create(dir.path().join("main.cf")).unwrap();
        // postconf(1) waits until it is 2 s old.
        main_cf.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let config = Config::default();
        let mut instance = Instance::new(
            Master {
                config_dir: dir.path().into(),
                daemon_dir: dir.path().into(),
                ..master()
            },
            &config,
        );
        assert!(instance.trouble.contains("not been read yet") && instance.has_questions());
        let start = clock::now().mono;
        let look = |instance: &mut Instance, seconds: u64| {
            let now = start + Duration::from_secs(seconds);
            instance.look_for_changes(now);
            let asked = instance.has_questions();
            instance.changed = false;
            (asked, instance.read_changes(&config, now).is_some())
        };

        program("#!/nonexistent/shell\n");
        assert_eq!(look(&mut instance, 0), (true, false));
        assert!(instance.trouble.contains("cannot run"), "{}", instance.trouble);
        assert_eq!(look(&mut instance, 9), (false, false), "not at once");
        assert_eq!(look(&mut instance, 10), (true, false));
        program("#!/bin/sh\nexec /usr/sbin/postconf \"$@\"\n");
        assert_eq!(look(&mut instance, 20), (false, false), "twice as long");
        assert_eq!(look(&mut instance, 30), (true, true));
        assert_eq!((instance.trouble.as_str(), instance.services.len()), ("", 1));
        assert_eq!(instance.unrehearsed(), Some(0));
        instance.services[0].rehearsed = Some(instance.services[0].change(true));
        assert_eq!(look(&mut instance, 600), (false, false), "all is known");
    }

    #[test]
    fn a_master_that_was_not_seen_for_a_moment_has_not_been_gone() {
        let start = clock::now().mono;
        let mut instance = Instance::new(master(), &Config::default());
        assert!(instance.is_there(start));
        let seen = std::mem::replace(&mut instance.master.start_time, 0);
        assert!(!instance.is_there(start) && instance.is_gone());
        assert!(!instance.is_there(start + TICK));
        assert_eq!(
            instance.gone_for(start + TICK),
            Some(TICK),
            "since it was missed first"
        );
        instance.master.start_time = seen;
        assert!(instance.is_there(start + TICK * 2));
        assert_eq!(
            (instance.is_gone(), instance.gone_for(start + TICK * 300)),
            (false, None)
        );
        instance.master.start_time = 0;
        instance.is_there(start + TICK * 300);
        assert_eq!(instance.gone_for(start + TICK * 301), Some(TICK));
    }
}
