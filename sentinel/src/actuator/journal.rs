//! The journal: append-only, a checksum a line. A line that is torn, flipped or foreign counts as never written.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::entry::HistoryEntry;

/// Why the journal could not be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("cannot read the journal {}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
}

#[derive(Deserialize)]
struct Line<'a> {
    sum: String,
    #[serde(borrow)]
    entry: &'a RawValue,
}

#[derive(Deserialize)]
struct Entry {
    history: HistoryEntry,
}

/// Every history entry, oldest first.
pub fn read_history(state_dir: &Path) -> Result<Vec<HistoryEntry>, JournalError> {
    let path = state_dir.join("journal.jsonl");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(JournalError::Read { path, source }),
    };
    Ok(text.split(|byte| *byte == b'\n').filter_map(entry).collect())
}

fn entry(line: &[u8]) -> Option<HistoryEntry> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    let whole = line.sum == format!("{:08x}", crc32fast::hash(line.entry.get().as_bytes()));
    let entry: Entry = whole
        .then(|| serde_json::from_str(line.entry.get()).ok())
        .flatten()?;
    Some(entry.history)
}
