//! One watched master.cf entry: its windows, its judge, its state machine, and the act of ours that is under way.

use std::time::Instant;

use crate::actuator::InFlight;
use crate::config::Config;
use crate::controller::{Controller, Dwell, State};
use crate::detector::{Detector, Verdict};
use crate::postfix::services::WatchedService;
use crate::signals::service::{ListenerLook, Look, ServiceSignals};
use crate::signals::{ListenerId, ProcessLimit, Sample};

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
}

/// What the last look came to.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) sample: Sample,
    pub(super) verdict: Verdict,
    pub(super) listeners: Vec<ListenerLook>,
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
        }
    }

    /// Our edit is on the entry.
    pub(super) fn in_force(&self) -> bool {
        self.controller.state() != State::Normal
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
        let sample = self.signals.sample(&look);
        let verdict = self.detector.step(&sample);
        self.seen = Some(Seen {
            sample,
            verdict,
            listeners: look.listeners,
        });
    }
}
