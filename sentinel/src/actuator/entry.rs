//! What the journal holds: intents, written before an act, and history entries, written after it.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::controller::State;
use crate::postfix::ServiceId;

/// SHA-256 of the bytes of a master.cf, in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(
            sha2::Sha256::digest(bytes)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        )
    }

    /// Enough of it for a file name that people read.
    pub fn short(&self) -> &str {
        self.0.get(..16).unwrap_or(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names an intent within its journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IntentId(pub u64);

/// What is about to be done to a master.cf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Put our lines in.
    Edit,
    /// Take them out.
    Undo,
}

/// Which file a name stood for: if all of it is the same, nobody has touched or replaced the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u64),
    /// Seconds and nanoseconds; the one that nobody can set back.
    pub ctime: (i64, u64),
}

/// Written and synced before the file is touched; open until a history entry settles it. An open intent is what
/// tells the next start that the file, or the master, may still carry our setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub id: IntentId,
    pub time: Timestamp,
    pub act: Act,
    pub instance: String,
    /// The container that it is in, by name; `None` where paths mean the same as to us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    pub config_dir: PathBuf,
    /// The one entry that it is about; `None` where all of ours are taken out at once.
    pub service: Option<ServiceId>,
    pub sha256_before: Digest,
    pub sha256_after: Digest,
    /// The file that was there before. Still there unchanged: the rename never happened, and no master has seen the
    /// edit.
    pub file_before: FileId,
    /// Where the bytes without our lines are kept, for people; `None` for an undo.
    pub backup: Option<PathBuf>,
    pub master_pid: Option<i32>,
    pub master_start_time: Option<u64>,
}

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
    pub detail: Value,
}

impl HistoryEntry {
    /// Says one thing more, beside what is in the detail already.
    pub(super) fn add_detail(&mut self, key: &str, value: &str) {
        match &mut self.detail {
            Value::Object(detail) => {
                detail.insert(key.to_owned(), value.into());
            }
            Value::Null => self.detail = json!({ key: value }),
            // Nothing of ours writes any other.
            _ => {}
        }
    }

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
            detail: Value::Null,
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
