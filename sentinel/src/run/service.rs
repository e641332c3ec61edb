//! One watched master.cf entry: its windows, its judge, its state machine, and the act of ours that is under way.

use crate::actuator::InFlight;
use crate::config::Config;
use crate::controller::{Controller, Dwell, State};
use crate::detector::{Detector, Verdict};
use crate::postfix::services::WatchedService;
use crate::signals::service::{ListenerLook, Look, ServiceSignals};
use crate::signals::{ListenerId, ProcessLimit, Sample};

#[derive(Debug)]
pub struct Service {
    pub watched: WatchedService,
    pub signals: ServiceSignals,
    pub detector: Detector,
    pub controller: Controller,
    pub seen: Option<Seen>,
    /// An edit that has been signalled and is not yet known to have taken hold.
    pub under_way: Option<InFlight>,
    /// Our lines were on the entry when master.cf was last read.
    pub lines_in_file: bool,
}

/// What the last look came to.
#[derive(Debug)]
pub struct Seen {
    pub sample: Sample,
    pub verdict: Verdict,
    pub listeners: Vec<ListenerLook>,
}

impl Service {
    pub fn new(watched: WatchedService, config: &Config) -> Self {
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
        }
    }

    /// Our edit is on the entry.
    pub fn in_force(&self) -> bool {
        self.controller.state() != State::Normal
    }

    /// maxproc, when there is a limit.
    pub fn slots(&self) -> Option<u32> {
        match self.watched.limit {
            ProcessLimit::Of(slots) => Some(slots),
            ProcessLimit::Unlimited => None,
        }
    }

    pub fn listener_ids(&self) -> impl Iterator<Item = ListenerId> {
        self.seen
            .iter()
            .flat_map(|seen| &seen.listeners)
            .map(|listener| listener.id)
    }

    /// Takes a look in: readings, then the verdict on them.
    pub fn see(&mut self, look: Look) {
        let sample = self.signals.sample(&look);
        let verdict = self.detector.step(&sample);
        self.seen = Some(Seen {
            sample,
            verdict,
            listeners: look.listeners,
        });
    }
}
