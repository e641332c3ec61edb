//! The journal: what we are about to do, and what came of it. Append-only, a checksum a line.
//!
//! A line is `{"sum":"<crc32 in hex>","entry":{...}}`; the sum is over the very bytes of the entry's text. A line
//! that is torn, flipped or foreign counts as if it had never been written: it is skipped and counted, and never
//! keeps a daemon from starting or an undo from being done. Nothing here decides; [`super::undo`] does.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::entry::{HistoryEntry, Intent, IntentId};
use super::steps::Steps;

const CURRENT: &str = "journal.jsonl";
const PREVIOUS: &str = "journal.jsonl.1";
const NEXT: &str = "journal.jsonl.new";

/// Above this size the journal moves on to a new generation; one old one is kept. About 15,000 entries.
const ROTATE_AT: u64 = 8 << 20;

/// No more than this is read of one generation: four times what we ever write, so only a foreign file is cut.
const READ_AT_MOST: u64 = 4 * ROTATE_AT;

/// Why the journal could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("cannot read the journal {}: {source}; run this as root, or see what is wrong with that file", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "cannot write the journal {}: {source}; without it a crash could not be undone, so nothing was changed",
        .path.display()
    )]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot put this entry into words for the journal: {0}")]
    Encode(#[from] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Intent(Intent),
    History {
        #[serde(flatten)]
        entry: HistoryEntry,
        /// The intents that are done with now.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        settles: Vec<IntentId>,
    },
}

#[derive(Serialize, Deserialize)]
struct Line<'a> {
    sum: String,
    #[serde(borrow)]
    entry: &'a RawValue,
}

/// What both generations hold, oldest first.
#[derive(Default)]
struct Contents {
    history: Vec<HistoryEntry>,
    open: Vec<Intent>,
    highest_id: u64,
    damaged: usize,
}

/// Every history entry, oldest first. Takes no lock: the daemon may be writing.
pub fn read_history(state_dir: &Path) -> Result<Vec<HistoryEntry>, JournalError> {
    Ok(read(state_dir)?.history)
}

/// The journal of a state directory, open for writing. The caller holds the state directory's lock.
pub(super) struct Journal {
    dir: PathBuf,
    file: File,
    size: u64,
    rotate_at: u64,
    /// The last line has no newline (a crash, or a full disk): the next entry must not be glued to it.
    torn: bool,
    open: Vec<Intent>,
    next_id: u64,
    damaged: usize,
}

impl Journal {
    pub(super) fn open(state_dir: &Path) -> Result<Self, JournalError> {
        let contents = read(state_dir)?;
        let path = state_dir.join(CURRENT);
        let (file, size, torn) = open_for_append(state_dir, &path).map_err(|source| JournalError::Write {
            path: path.clone(),
            source,
        })?;
        if contents.damaged > 0 {
            let lines = contents.damaged;
            tracing::warn!(path = %path.display(), lines, "damaged lines in the journal were skipped");
        }
        Ok(Self {
            dir: state_dir.to_owned(),
            file,
            size,
            rotate_at: ROTATE_AT,
            torn,
            open: contents.open,
            next_id: contents.highest_id + 1,
            damaged: contents.damaged,
        })
    }

    /// The intents that nothing has settled yet, oldest first.
    pub(super) fn open_intents(&self) -> &[Intent] {
        &self.open
    }

    /// How many lines of both generations were damaged when the journal was opened.
    pub(super) fn damaged(&self) -> usize {
        self.damaged
    }

    /// The id for the next intent. Above every id that any readable line names, so a lost line cannot bring one back.
    pub(super) fn next_id(&self) -> IntentId {
        IntentId(self.next_id)
    }

    /// On the disk when this returns.
    pub(super) fn intend(&mut self, intent: Intent, steps: &mut Steps) -> Result<(), JournalError> {
        self.append(&Entry::Intent(intent.clone()), steps)?;
        self.next_id = self.next_id.max(intent.id.0 + 1);
        self.open.push(intent);
        Ok(())
    }

    /// On the disk when this returns; then the intents in `settles` are no longer open.
    pub(super) fn record(
        &mut self,
        entry: HistoryEntry,
        settles: Vec<IntentId>,
        steps: &mut Steps,
    ) -> Result<(), JournalError> {
        let entry = Entry::History { entry, settles };
        self.append(&entry, steps)?;
        if let Entry::History { settles, .. } = entry {
            self.open.retain(|intent| !settles.contains(&intent.id));
        }
        Ok(())
    }

    fn append(&mut self, entry: &Entry, steps: &mut Steps) -> Result<(), JournalError> {
        let line = encode(entry)?;
        let path = self.dir.join(CURRENT);
        self.write_line(&line, steps)
            .map_err(|source| JournalError::Write { path, source })
    }

    fn write_line(&mut self, line: &[u8], steps: &mut Steps) -> io::Result<()> {
        if self.size > self.rotate_at {
            steps.step("journal.rotate")?;
            self.rotate()?;
        }
        steps.step("journal.write")?;
        let mut bytes = Vec::with_capacity(line.len() + 2);
        if self.torn {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        // Until it is known to be whole, it is torn: a full disk can take the first half of a line.
        self.torn = true;
        self.file.write_all(&bytes)?;
        self.size += bytes.len() as u64;
        steps.step("journal.sync")?;
        self.file.sync_data()?;
        self.torn = false;
        Ok(())
    }

    /// Starts a new generation that begins with what is still open. Whichever rename a crash comes between, the two
    /// generations together hold every open intent: readers always take both, and an intent that is in both is one.
    fn rotate(&mut self) -> io::Result<()> {
        let next = self.dir.join(NEXT);
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true);
        let mut file = private(&mut options).open(&next)?;
        let mut size = 0;
        for intent in &self.open {
            let mut line = encode(&Entry::Intent(intent.clone())).map_err(io::Error::other)?;
            line.push(b'\n');
            file.write_all(&line)?;
            size += line.len() as u64;
        }
        file.sync_all()?;
        let current = self.dir.join(CURRENT);
        std::fs::rename(&current, self.dir.join(PREVIOUS))?;
        std::fs::rename(&next, &current)?;
        sync_dir(&self.dir)?;
        let mut options = OpenOptions::new();
        self.file = private(options.append(true)).open(&current)?;
        self.size = size;
        self.torn = false;
        Ok(())
    }
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
}

fn open_for_append(dir: &Path, path: &Path) -> io::Result<(File, u64, bool)> {
    let mut options = OpenOptions::new();
    let mut file = private(options.read(true).append(true).create(true)).open(path)?;
    // A file is only there after a power loss if its directory is synced too.
    sync_dir(dir)?;
    let size = file.metadata()?.len();
    let mut last = [b'\n'];
    if size > 0 {
        io::Seek::seek(&mut file, io::SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok((file, size, last != [b'\n']))
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn encode(entry: &Entry) -> Result<Vec<u8>, serde_json::Error> {
    let raw = serde_json::value::to_raw_value(entry)?;
    serde_json::to_vec(&Line {
        sum: sum(raw.get()),
        entry: &raw,
    })
}

fn sum(text: &str) -> String {
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
}

fn decode(line: &[u8]) -> Option<Entry> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    (line.sum == sum(line.entry.get()))
        .then(|| serde_json::from_str(line.entry.get()).ok())
        .flatten()
}

fn read(state_dir: &Path) -> Result<Contents, JournalError> {
    let mut contents = Contents::default();
    let (mut known, mut settled) = (BTreeSet::new(), BTreeSet::new());
    for name in [PREVIOUS, CURRENT] {
        let path = state_dir.join(name);
        let bytes = read_generation(&path).map_err(|source| JournalError::Read { path, source })?;
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match decode(line) {
                Some(Entry::Intent(intent)) => {
                    contents.highest_id = contents.highest_id.max(intent.id.0);
                    // After a rotation it is in both generations.
                    if known.insert(intent.id) {
                        contents.open.push(intent);
                    }
                }
                Some(Entry::History { entry, settles }) => {
                    settled.extend(settles);
                    contents.history.push(entry);
                }
                None => contents.damaged += 1,
            }
        }
    }
    contents.open.retain(|intent| !settled.contains(&intent.id));
    contents.highest_id = contents.highest_id.max(settled.last().map_or(0, |id| id.0));
    Ok(contents)
}

fn read_generation(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match private(OpenOptions::new().read(true)).open(path) {
        Ok(file) => file.take(READ_AT_MOST).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(bytes)
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
