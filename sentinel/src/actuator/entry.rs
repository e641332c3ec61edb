//! What the journal holds: intents, written before an act, and history entries, written after it.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
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
    /// An object, empty where there is nothing more to say.
    #[serde(deserialize_with = "object")]
    pub detail: Value,
}

/// Earlier journals have a null where there is nothing to say.
fn object<'de, D: Deserializer<'de>>(detail: D) -> Result<Value, D::Error> {
    let detail = Option::<serde_json::Map<String, Value>>::deserialize(detail)?;
    Ok(Value::Object(detail.unwrap_or_default()))
}

impl HistoryEntry {
    /// Says one thing more, beside what is in the detail already.
    pub(super) fn add_detail(&mut self, key: &str, value: &str) {
        if let Value::Object(detail) = &mut self.detail {
            detail.insert(key.to_owned(), value.into());
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
            detail: json!({}),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The names and words are the contract of DESIGN.md; other people's scripts hang on them.
    #[test]
    fn the_json_has_the_names_that_were_promised() {
        let time = "2026-03-01T02:03:04.5Z".parse().unwrap();
        let entry = HistoryEntry {
            instance: Some("/etc/postfix".to_owned()),
            service: Some("smtp/inet".to_owned()),
            from: Some(State::Normal),
            to: Some(State::Recovering),
            action: Some(Action::Edit),
            reasons: vec!["a".to_owned()],
            outcome: Some(Outcome::DryRun),
            detail: json!({ "b": 1 }),
            ..HistoryEntry::new(time, Kind::OutsideEdit)
        };
        assert_eq!(
            serde_json::to_value(entry).unwrap(),
            json!({
                "time": "2026-03-01T02:03:04.5Z", "kind": "outside_edit", "instance": "/etc/postfix", "service": "smtp/inet",
                "from": "normal", "to": "recovering", "action": "edit", "reasons": ["a"], "outcome": "dry_run",
                "detail": { "b": 1 },
            })
        );
        assert_eq!(
            serde_json::to_value(HistoryEntry::new(time, Kind::Probe)).unwrap(),
            json!({
                "time": "2026-03-01T02:03:04.5Z", "kind": "probe", "instance": null, "service": null,
                "from": null, "to": null, "action": null, "reasons": [], "outcome": null, "detail": {},
            })
        );
        let kinds = [
            Kind::Transition,
            Kind::Action,
            Kind::Refusal,
            Kind::Override,
            Kind::OutsideEdit,
            Kind::Restore,
            Kind::Probe,
        ];
        assert_eq!(
            json!(kinds),
            json!([
                "transition",
                "action",
                "refusal",
                "override",
                "outside_edit",
                "restore",
                "probe"
            ])
        );
        let actions = [
            Action::Edit,
            Action::Reload,
            Action::Shed,
            Action::Headroom,
            Action::Undo,
        ];
        assert_eq!(
            json!(actions),
            json!(["edit", "reload", "shed", "headroom", "undo"])
        );
        let outcomes = [Outcome::Done, Outcome::Failed, Outcome::Refused, Outcome::DryRun];
        assert_eq!(json!(outcomes), json!(["done", "failed", "refused", "dry_run"]));
    }

    #[test]
    fn a_detail_that_an_earlier_journal_has_as_null_is_an_empty_object() {
        let mut old = serde_json::to_value(HistoryEntry::new(Timestamp::UNIX_EPOCH, Kind::Probe)).unwrap();
        old["detail"] = Value::Null;
        let entry: HistoryEntry = serde_json::from_value(old).unwrap();
        assert_eq!(entry.detail, json!({}));
    }
}
