//! One watched master.cf entry: its windows, its judge, its state machine, and the act of ours that is under way.

use std::time::{Duration, Instant};

use super::engine::Probed;
use super::shedding::Shedding;
use crate::actuator::InFlight;
use crate::config::Config;
use crate::controller::{Controller, Dwell, Headroom, State};
use crate::detector::{Detector, Verdict};
use crate::headroom;
use crate::postfix::Master;
use crate::postfix::edit::Change;
use crate::postfix::processes::Smtpd;
use crate::postfix::services::WatchedService;
use crate::shed::Situation;
use crate::signals::service::{ListenerLook, Look, ServiceSignals, Slots};
use crate::signals::{ListenerId, ProcessLimit, Reading, Sample};
use crate::sock_diag::Connection;

/// How often the kernel is asked for the connections of a service although nobody can be there.
const WALK_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Service {
    pub(super) watched: WatchedService,
    pub(super) signals: ServiceSignals,
    pub(super) detector: Detector,
    pub(super) controller: Controller,
    pub(super) headroom: Headroom,
    /// How far maxproc may go, as of the last close look; else why nowhere.
    pub(super) room: Result<u32, String>,
    pub(super) seen: Option<Seen>,
    /// An edit that has been signalled and is not yet known to have taken hold.
    pub(super) under_way: Option<InFlight>,
    /// The change that was last rehearsed, on the file as it is.
    pub(super) rehearsed: Option<Change>,
    /// Our lines were on the entry when master.cf was last read.
    pub(super) lines_in_file: bool,
    /// When the history was told last that somebody else edits the file while our lines are in it.
    pub(super) outside_told: Option<Instant>,
    /// When lines on the entry were last found to be of another sentinel.
    pub(super) others_seen: Option<Instant>,
    pub(super) shedding: Shedding,
    /// When the kernel was last asked for its connections.
    pub(super) walked_at: Option<Instant>,
}

/// What the last look came to.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) sample: Sample,
    pub(super) verdict: Verdict,
    pub(super) listeners: Vec<ListenerLook>,
    /// Of its listeners, accepted or waiting; empty when they are not known.
    pub(super) connections: Vec<Connection>,
}

impl Service {
    pub(super) fn new(watched: WatchedService, config: &Config) -> Self {
        let dwell = Dwell {
            trip: config.detect.trip_dwell,
            clear: config.detect.dwell,
        };
        Self {
            watched,
            signals: ServiceSignals::default(),
            detector: Detector::new(config.detect.thresholds),
            controller: Controller::new(dwell),
            headroom: Headroom::new(dwell),
            room: Err("how much room there is has not been looked at yet".into()),
            seen: None,
            under_way: None,
            rehearsed: None,
            lines_in_file: false,
            outside_told: None,
            others_seen: None,
            shedding: Shedding::new(config.detect.dwell),
            walked_at: None,
        }
    }

    /// Our edit is on the entry.
    pub(super) fn in_force(&self) -> bool {
        self.controller.state() != State::Normal
    }

    /// Something of ours is in master.cf.
    pub(super) fn has_ours(&self) -> bool {
        self.in_force() || self.headroom.raised()
    }

    /// What a trip would put on the entry: headroom too, where there is room and it is not there already.
    pub(super) fn change(&self, stress: bool) -> Change {
        let maxproc = self.room.as_ref().ok().filter(|_| !self.headroom.raised());
        Change {
            stress,
            maxproc: maxproc.copied(),
        }
    }

    /// maxproc is this from now on, if it is anything; the file is read again only a while later.
    pub(super) fn raised_to(&mut self, maxproc: Option<u32>, now: Instant) {
        if let Some(maxproc) = maxproc {
            self.headroom.settle(now, true, true);
            self.watched.own_limit = self.slots();
            self.watched.limit = ProcessLimit::Of(maxproc);
        }
    }

    /// maxproc is the administrator's again.
    pub(super) fn lowered(&mut self, now: Instant) {
        self.headroom.settle(now, false, true);
        if let Some(own) = self.watched.own_limit.take() {
            self.watched.limit = ProcessLimit::Of(own);
        }
    }

    /// Looks how many more slots the machine bears. `workers` are the smtpd of the instance.
    pub(super) fn look_for_room(&mut self, factor: f64, master: &Master, workers: &[Smtpd]) {
        let room = self.find_room(factor, master, workers);
        // A little more than before is no news: each new number has to be rehearsed.
        match (&self.room, &room) {
            (Ok(old), Ok(new)) if old <= new && new - old < old / 4 => {}
            _ => self.room = room,
        }
    }

    fn find_room(&self, factor: f64, master: &Master, workers: &[Smtpd]) -> Result<u32, String> {
        if factor <= 1.0 {
            return Err("act.headroom is 1.0, which is off".into());
        }
        // From inside a cgroup namespace, or with cgroup v1, they are not to be seen, and it would be killed for more.
        if master.root.container().is_some() {
            return Err(
                "it is in a container, whose limits of memory and processes need not be known to us".into(),
            );
        }
        let slots = self.watched.own_limit.or(self.slots());
        let slots = slots.ok_or("there is no limit that could be raised")?;
        let own = workers.iter().filter(|one| one.service == self.watched.id);
        let smtpd = headroom::of_processes(own.map(|one| one.pid))
            .ok_or("no smtpd of it runs, so how much memory one takes is not known")?;
        let machine = headroom::measure(master.pid)?;
        let target = headroom::target(slots, factor, smtpd, &machine)?;
        if !target.bound_by.is_empty() {
            tracing::debug!(service = %self.watched.id, maxproc = target.maxproc, "headroom is bounded by {}", target.bound_by);
        }
        Ok(target.maxproc)
    }

    /// Nothing is under way that the next act would have to wait for.
    pub(super) fn at_leisure(&self, now: Instant) -> bool {
        self.under_way
            .as_ref()
            .is_none_or(|act| act.verification.outlived(now))
    }

    /// maxproc, when there is a limit.
    pub(super) fn slots(&self) -> Option<u32> {
        match self.watched.limit {
            ProcessLimit::Of(slots) => Some(slots),
            ProcessLimit::Unlimited => None,
        }
    }

    pub(super) fn listener_ids(&self) -> impl Iterator<Item = ListenerId> {
        self.seen
            .iter()
            .flat_map(|seen| &seen.listeners)
            .map(|listener| listener.id)
    }

    /// The most slots that can be busy by now: those that were at the last look, and all who waited in the queue then or
    /// have come since. `None` when arrivals are not counted.
    pub(super) fn busy_at_most(&self, probed: &Probed) -> Option<u64> {
        let seen = self.seen.as_ref()?;
        let mut most = u64::from(*seen.sample.busy.value()?);
        for listener in &seen.listeners {
            let before = listener.probed.as_ref()?.counts.connections;
            let arrived = probed.get(&listener.id)?.counts.connections.checked_sub(before)?;
            most += u64::from(listener.socket.depth) + arrived;
        }
        (!seen.listeners.is_empty()).then_some(most)
    }

    /// Whether there can be no connection, so that the kernel need not be asked: there was none at the last look, and
    /// none has come since.
    pub(super) fn is_vacant(&self, probed: &Probed, now: Instant) -> bool {
        let recent = |at: Instant| now.saturating_duration_since(at) < WALK_EVERY;
        let empty = |seen: &Seen| seen.connections.is_empty();
        self.walked_at.is_some_and(recent)
            && self.seen.as_ref().is_some_and(empty)
            && self.busy_at_most(probed) == Some(0)
    }

    /// Takes a look in: readings, then the verdict on them.
    pub(super) fn see(&mut self, look: Look) {
        let connections = match &look.slots {
            Slots::Connections(Reading::Known { value, .. }) => value.clone(),
            _ => Vec::new(),
        };
        self.shedding.see(look.at, &connections);
        let held_without_stress = self.shedding.held_without_stress(look.at);
        let sample = self.signals.sample(&look, held_without_stress);
        let verdict = self.detector.step(&sample);
        self.seen = Some(Seen {
            sample,
            verdict,
            listeners: look.listeners,
            connections,
        });
    }

    /// Stress mode is on for its new sessions, by our edit or by master's own doing.
    pub(super) fn stressed(&self) -> bool {
        let native = || {
            self.seen
                .as_ref()
                .and_then(|seen| seen.sample.native_stress.value())
                == Some(&true)
        };
        self.in_force() || (self.watched.native && native())
    }

    /// How it stands, when that is known.
    pub(super) fn situation(&self) -> Option<Situation> {
        let seen = self.seen.as_ref()?;
        Some(Situation {
            slots: self.slots()?,
            busy: *seen.sample.busy.value()?,
            waiting: seen.sample.queue.value().map_or(0, |queue| queue.depth),
        })
    }
}
