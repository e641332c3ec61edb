//! Changes: puts `-o stress=yes` on a service and takes it back, such that a crash between any two steps is undone by
//! the next start or by `smtp-sentinel restore`.
//!
//! Owns the one edit of master.cf, the signal to the master, the journal and the backups. Never signals an smtpd,
//! never undoes somebody else's work, never lets a file take master.cf's place that it has not checked, and never has
//! a broken master.cf reloaded, whoever broke it.
//!
//! The way of a change: claim, look at the master, lock the draft (`replace`), read (`file`), make the candidate
//! ([`crate::postfix::edit`]), check it (`check`), keep the old bytes (`backup`), journal the intent
//! (`journal`), rename, look again, signal (`signal`). After that it is in flight until `verify` says that it
//! took. Everything blocks: some milliseconds as a rule, seconds when postconf(1) holds its lock.

mod apply;
mod backup;
mod check;
mod command;
mod dry_run;
mod entry;
mod error;
mod file;
mod journal;
mod lock;
mod replace;
mod restore;
mod signal;
mod sockets;
mod steps;
mod undo;
mod verify;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use check::CheckError;
pub use dry_run::DryRun;
pub use entry::{Act, Action, Digest, FileId, HistoryEntry, Intent, IntentId, Kind, Outcome};
pub use error::ActError;
pub use file::{ConfigDir, Content, FileError, read_followed};
pub use journal::{JournalError, read_history};
pub use lock::LockError;
pub use restore::{Found, RestoreReport, Restored, Told, restore};
pub use signal::{Masters, ReloadError, ReloadMode, System};
pub use steps::{Hook, Steps};
pub use verify::{LIVES_FOR, NEW_WORKER_WITHIN, Progress, Verification};

use crate::postfix::postconf::Postconf;
use crate::postfix::{Home, Master, Root, ServiceId};

/// History entries that could not be written are kept for the next attempt; more than this many are let go.
const UNWRITTEN_LIMIT: usize = 256;

/// Which entry of which instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As it is named in status and history.
    pub instance: String,
    pub master: Master,
    pub service: ServiceId,
}

impl Target {
    fn place(&self) -> Place<'_> {
        Place {
            instance: &self.instance,
            master: Some(&self.master),
        }
    }
}

/// Whose master.cf: there need not be a master for lines of ours to be taken out.
#[derive(Clone, Copy)]
struct Place<'a> {
    instance: &'a str,
    master: Option<&'a Master>,
}

/// A change that the master has been told of. [`InFlight::verification`] says when it is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    pub target: Target,
    pub verification: Verification,
}

/// The one that changes things. There is one for a state directory, as long as it lives.
pub struct Actuator {
    state_dir: PathBuf,
    _lock: lock::StateLock,
    journal: journal::Journal,
    mode: ReloadMode,
    masters: Box<dyn Masters>,
    /// Where the postconf(1) of a master is.
    postconf: fn(&Master) -> Option<Postconf>,
    steps: Steps,
    /// By [`Home::name`].
    claimed: BTreeMap<String, Arc<ConfigDir>>,
    /// By instance: what its pod is called.
    pods: BTreeMap<String, String>,
    unwritten: VecDeque<(HistoryEntry, Vec<IntentId>)>,
    passed: check::Passed,
    /// By [`Home::name`]: the file that was seen last, if its master had every socket of it.
    bound: BTreeMap<String, Digest>,
}

impl Actuator {
    /// Takes the lock and reads the journal. Call [`Actuator::restore`] before anything else.
    pub fn open(state_dir: &Path, mode: ReloadMode) -> Result<Self, ActError> {
        Self::open_with(state_dir, mode, Box::new(System), Steps::default())
    }

    /// With other masters than this machine's, and steps that somebody listens to.
    pub fn open_with(
        state_dir: &Path,
        mode: ReloadMode,
        masters: Box<dyn Masters>,
        steps: Steps,
    ) -> Result<Self, ActError> {
        let lock = lock::StateLock::take(state_dir)?;
        let journal = journal::Journal::open(state_dir)?;
        Ok(Self {
            state_dir: state_dir.to_owned(),
            _lock: lock,
            journal,
            mode,
            masters,
            postconf: Postconf::of,
            steps,
            claimed: BTreeMap::new(),
            pods: BTreeMap::new(),
            unwritten: VecDeque::new(),
            passed: check::Passed::default(),
            bound: BTreeMap::new(),
        })
    }

    /// Writes down what others did or saw: transitions, refusals, probes. An entry that cannot be written now is
    /// kept, and written before the next one.
    pub fn record(&mut self, entry: HistoryEntry) {
        self.write_down(entry, Vec::new());
    }

    /// What the pod of an instance is called; its entries say so from now on. `None`: nothing more of it.
    pub fn call(&mut self, instance: &str, pod: Option<String>) {
        match pod {
            Some(pod) => self.pods.insert(instance.to_owned(), pod),
            None => self.pods.remove(instance),
        };
    }

    /// What is not settled: the file, or the master, may carry our setting.
    pub fn open_intents(&self) -> &[Intent] {
        self.journal.open_intents()
    }

    /// How many damaged lines of the journal were skipped.
    pub fn damaged_lines(&self) -> usize {
        self.journal.damaged()
    }

    /// The directory, with its master.cf ours alone among sentinels for as long as we live.
    pub fn claim(&mut self, home: &Home) -> Result<Arc<ConfigDir>, ActError> {
        self.steps
            .step("claim")
            .map_err(FileError::io("open", home.config_dir.clone()))?;
        let name = home.name();
        if let Some(dir) = self.claimed.get(&name)
            && dir.home() == home
            && dir.still_named()
        {
            return Ok(Arc::clone(dir));
        }
        // The old claim first: a directory that was moved away and back would be claimed twice over.
        self.claimed.remove(&name);
        let dir = ConfigDir::open(home)?;
        dir.claim()?;
        let dir = Arc::new(dir);
        self.claimed.insert(name, Arc::clone(&dir));
        Ok(dir)
    }

    /// Lets go of a directory: what is held open in a container keeps its file system from going away.
    pub fn release(&mut self, home: &Home) {
        self.claimed.remove(&home.name());
        self.bound.remove(&home.name());
    }

    fn checker(&self, master: &Master) -> check::Checker {
        check::Checker {
            postconf: (self.postconf)(master),
            home: master.home(),
        }
    }

    /// A history entry, after those that could not be written earlier. The act that it tells of is done, and stays
    /// done, whether or not this can be written: without it the intent stays open, which costs a reload too many at
    /// the next start and nothing else.
    fn write_down(&mut self, mut entry: HistoryEntry, settles: Vec<IntentId>) {
        if let Some(pod) = entry
            .instance
            .as_ref()
            .and_then(|instance| self.pods.get(instance))
        {
            entry.add_detail("pod", pod);
        }
        self.unwritten.push_back((entry, settles));
        while let Some((entry, settles)) = self.unwritten.pop_front() {
            if let Err(error) = self
                .journal
                .record(entry.clone(), settles.clone(), &mut self.steps)
            {
                tracing::error!(%error, waiting = self.unwritten.len() + 1, "history is kept in memory for now");
                self.unwritten.push_front((entry, settles));
                self.unwritten.truncate(UNWRITTEN_LIMIT);
                return;
            }
        }
    }

    /// The open intents that are about this master.cf, whatever way its directory is spelled.
    fn intents_of(&self, home: &Home) -> Vec<Intent> {
        let same = |intent: &&Intent| {
            intent.container.as_deref() == home.root.name()
                && (intent.config_dir == home.config_dir
                    || home.root == Root::Own && same_dir(&intent.config_dir, &home.config_dir))
        };
        self.open_intents().iter().filter(same).cloned().collect()
    }

    /// Backups that no open intent names any more, of those that `settled` named.
    fn drop_backups(&self, settled: &[Intent]) {
        for path in settled.iter().filter_map(|intent| intent.backup.as_deref()) {
            if !self
                .open_intents()
                .iter()
                .any(|intent| intent.backup.as_deref() == Some(path))
            {
                backup::drop_kept(path);
            }
        }
    }
}

fn same_dir(a: &Path, b: &Path) -> bool {
    matches!((std::fs::canonicalize(a), std::fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}
