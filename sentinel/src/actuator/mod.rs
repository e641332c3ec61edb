//! Changes, and the journal of what was changed.

mod entry;
mod journal;

pub use entry::{Action, HistoryEntry, Kind, Outcome};
pub use journal::{JournalError, read_history};
