//! Judges: samples in, [`Verdict`] out. Pure: no I/O, no clock; the time is in the sample.

use serde::Serialize;

/// What the detector makes of the samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub kind: VerdictKind,
    /// Busy slots over maxproc, 0 to 1; `None` when one of the two is not known or there is no limit.
    pub pressure: Option<f64>,
    /// Why, in sentences for the operator.
    pub reasons: Vec<String>,
}

/// The conditions that are told apart. Only [`VerdictKind::Hogged`] is one that stress mode cures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    /// Slots are free.
    Calm,
    /// The slots run out, and clients that sit on them in silence hold them: stress mode helps.
    Hogged,
    /// The slots run out under sessions that do something: stress mode hardly helps.
    Surge,
    /// The slots are held by connections that our own side has not greeted (DNS, policy, milter): stay out.
    SlowGreeting,
    /// The slots are held by sessions that wait for our own side's reply (filter, milter, cleanup): stay out.
    BehindFilter,
    /// Not enough is known, or what is known is too old.
    Unknown,
}
