//! What is told of a pod: one notice becomes at most one Event.

use super::directory::PodName;
use super::names::bounded;
use crate::clock::Now;

/// A thing that the operator of a pod wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub pod: PodName,
    pub kind: Kind,
    /// `smtp/inet`; empty for what concerns the pod as a whole.
    pub service: String,
    /// Sentences; bounded and escaped when they are sent.
    pub reasons: Vec<String>,
    pub at: Now,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Stress mode was decided on.
    Trip,
    /// The pressure is gone, and so is stress mode.
    Clear,
    /// It would be time to act, and something forbids it.
    Refusal,
    /// The annotation has a value that is not known.
    UnknownMode,
}

impl Kind {
    /// `type`: `kubectl get events` can be asked for warnings alone.
    pub fn severity(self) -> &'static str {
        match self {
            Self::Clear => "Normal",
            Self::Trip | Self::Refusal | Self::UnknownMode => "Warning",
        }
    }

    /// `reason`: why, in one word for machines.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Trip => "SlotsRunOut",
            Self::Clear => "PressureGone",
            Self::Refusal => "StressModeRefused",
            Self::UnknownMode => "UnknownMode",
        }
    }

    /// `action`: what was done about it, in one word for machines.
    pub fn action(self) -> &'static str {
        match self {
            Self::Trip => "SwitchStressModeOn",
            Self::Clear => "SwitchStressModeOff",
            Self::Refusal => "None",
            Self::UnknownMode => "Observe",
        }
    }
}

impl Notice {
    /// The API server refuses notes above 1 kB (pkg/apis/core/validation/events.go, NoteLengthLimit).
    const NOTE_MAX: usize = 1024;

    /// `note`: for people. `suppressed`: how many like it were not told since the last one that was.
    pub fn note(&self, suppressed: u32) -> String {
        let reasons = self.reasons.join("; ");
        let note = match (self.kind, self.service.as_str()) {
            (Kind::Trip, service) => format!("{service}: stress mode on: {reasons}"),
            (Kind::Clear, service) => format!("{service}: stress mode off: {reasons}"),
            (Kind::Refusal, service) => format!("{service}: not acting: {reasons}"),
            (Kind::UnknownMode, _) => reasons,
        };
        let more = match suppressed {
            0 => String::new(),
            n => format!(" ({n} more like this since the last Event)"),
        };
        bounded(&note, Self::NOTE_MAX - more.len()) + &more
    }
}
