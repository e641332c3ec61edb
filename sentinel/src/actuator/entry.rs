//! What the journal holds: history entries, written after an act.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::controller::State;

/// One line of `history --json`; DESIGN.md has the contract. Absent values are null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// RFC 3339 in UTC.
    pub time: Timestamp,
    pub kind: Kind,
    pub instance: Option<String>,
    /// As [`ServiceId`] displays it: `smtp/inet`.
    pub service: Option<String>,
    pub from: Option<State>,
    pub to: Option<State>,
    pub action: Option<Action>,
    pub reasons: Vec<String>,
    pub outcome: Option<Outcome>,
    pub detail: serde_json::Value,
}

impl HistoryEntry {
    /// An entry with everything absent but its time and kind.
    pub fn new(time: Timestamp, kind: Kind) -> Self {
        Self {
            time,
            kind,
            instance: None,
            service: None,
            from: None,
            to: None,
            action: None,
            reasons: Vec::new(),
            outcome: None,
            detail: serde_json::Value::Null,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Transition,
    Action,
    Refusal,
    Override,
    OutsideEdit,
    Restore,
    Probe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Edit,
    Reload,
    Shed,
    Headroom,
    Undo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Done,
    Failed,
    Refused,
    DryRun,
}
