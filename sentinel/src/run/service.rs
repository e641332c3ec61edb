//! One watched master.cf entry: its windows, its judge, its state machine, and the act of ours that is under way.

use std::time::Instant;

use super::shedding::Shedding;
use crate::actuator::InFlight;
use crate::config::Config;
use crate::controller::{Controller, Dwell, State};
use crate::detector::{Detector, Verdict};
use crate::postfix::services::WatchedService;
use crate::shed::Situation;
use crate::signals::service::{ListenerLook, Look, ServiceSignals, Slots};
use crate::signals::{ListenerId, ProcessLimit, Reading, Sample};
use crate::sock_diag::Connection;

#[derive(Debug)]
pub(super) struct Service {
    pub(super) watched: WatchedService,
    pub(super) signals: ServiceSignals,
    pub(super) detector: Detector,
    pub(super) controller: Controller,
    pub(super) seen: Option<Seen>,
    /// An edit that has been signalled and is not yet known to have taken hold.
    pub(super) under_way: Option<InFlight>,
    /// Our lines were on the entry when master.cf was last read.
    pub(super) lines_in_file: bool,
    /// When the history was told last that somebody else edits the file while our lines are in it.
    pub(super) outside_told: Option<Instant>,
    pub(super) shedding: Shedding,
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
            seen: None,
            under_way: None,
            lines_in_file: false,
            outside_told: None,
            shedding: Shedding::new(config.detect.dwell),
        }
    }

    /// Our edit is on the entry.
    pub(super) fn in_force(&self) -> bool {
        self.controller.state() != State::Normal
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
