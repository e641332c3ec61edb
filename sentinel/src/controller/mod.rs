//! Decides: verdict in, state and [`Plan`] out. Pure: no I/O, no clock.

use serde::{Deserialize, Serialize};

/// The state of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No edit of ours.
    Normal,
    /// `-o stress=yes` is ours and in force.
    Stressed,
    /// Still in force; the pressure is below the clear threshold, and the dwell runs.
    Recovering,
}

/// What the actuator is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    Nothing,
    /// Put `-o stress=yes` on the service and reload.
    Trip { reasons: Vec<String> },
    /// Take our lines back and reload.
    Clear { reasons: Vec<String> },
}
