//! The only place that reads time. Everywhere else an instant is an argument, so that replay and tests own it.

use std::time::Instant;

use jiff::Timestamp;

/// One reading of both clocks: the monotonic one decides, the wall clock is only written down for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic; every interval and every age is measured on it, so a jump of the wall clock changes nothing.
    pub mono: Instant,
    /// Wall clock, for the journal and for messages.
    pub wall: Timestamp,
}

/// Reads both clocks.
#[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
pub fn now() -> Now {
    Now {
        mono: Instant::now(),
        wall: Timestamp::now(),
    }
}
