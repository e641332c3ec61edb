//! Gives everything back: at the start of the daemon, at its end, and by `smtp-sentinel restore` without one.
//!
//! Finds what is ours by the marker in the file and by the open intents of the journal, either of which suffices.
//! Tells a master at most once, and only if it may still run with our setting and would survive reading the file.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::apply::duration_ms;
use super::entry::{Act, Action, HistoryEntry, Intent, Kind, Outcome};
use super::file::{ConfigDir, FileError, MASTER_CF};
use super::signal::{ReloadError, ReloadMode};
use super::undo::Taken;
use super::{ActError, Actuator, Place, replace, same_dir};
use crate::clock::Now;
use crate::postfix::{Master, ServiceId, edit};

/// What became of each master.cf.
#[derive(Debug, Default)]
pub struct RestoreReport {
    pub items: Vec<Restored>,
}

impl RestoreReport {
    /// Whether everything of ours is out, and no master is left that may still run with it.
    pub fn complete(&self) -> bool {
        self.items.iter().all(Restored::complete)
    }

    /// How many masters were told to reload.
    pub fn reloads(&self) -> usize {
        let told = |item: &&Restored| matches!(item.told, Told::Once);
        self.items.iter().filter(told).count()
    }
}

/// What became of one master.cf. Displays as a sentence for the operator.
#[derive(Debug)]
pub struct Restored {
    pub config_dir: PathBuf,
    /// The services that our lines were on.
    pub services: Vec<ServiceId>,
    pub found: Found,
    pub told: Told,
}

/// What was found, and done to the file.
#[derive(Debug)]
pub enum Found {
    /// Nothing of ours, in the file or in the journal.
    Nothing,
    /// Our lines are out, and the file is what it was before them.
    ByteForByte,
    /// Our lines are out; somebody else has changed the file since, and that stays.
    OthersWorkKept,
    /// Our lines are out; the journal knows of no edit, so that there is nothing to compare with.
    NotComparable,
    /// The journal tells of an edit that is not in the file (any more).
    AlreadyOut,
    /// Not done; our lines may still be there.
    Failed(ActError),
}

/// Whether the master was told.
#[derive(Debug)]
pub enum Told {
    /// It does not run with our setting.
    NotNeeded,
    /// None runs; the next one reads a clean file.
    NotRunning,
    Once,
    /// It may still run with our setting.
    Failed(ActError),
}

impl Restored {
    fn complete(&self) -> bool {
        !matches!(self.found, Found::Failed(_)) && !matches!(self.told, Told::Failed(_))
    }
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.config_dir.join(MASTER_CF).display())?;
        match &self.found {
            Found::Nothing => return f.write_str("nothing of ours"),
            Found::ByteForByte => f.write_str("restored byte for byte")?,
            Found::OthersWorkKept => f.write_str(
                "our lines are out; it was changed by somebody else after our edit, and those changes stay",
            )?,
            Found::NotComparable => f.write_str(
                "our lines are out; the journal does not know of them, so that the rest was not compared",
            )?,
            Found::AlreadyOut => f.write_str("our lines are not there (any more), nothing was changed")?,
            Found::Failed(error) => return write!(f, "NOT restored: {error}"),
        }
        match &self.told {
            Told::NotNeeded => Ok(()),
            Told::NotRunning => f.write_str("; no Postfix runs on it"),
            Told::Once => f.write_str("; Postfix was reloaded"),
            Told::Failed(error) => write!(
                f,
                "; Postfix was NOT reloaded and may still run with stress=yes: {error}"
            ),
        }
    }
}

/// Opens, restores, and lets go. Refuses while a daemon holds the state directory.
pub fn restore(
    state_dir: &Path,
    config_dirs: &[PathBuf],
    mode: ReloadMode,
    now: Now,
) -> Result<RestoreReport, ActError> {
    Ok(Actuator::open(state_dir, mode)?.restore(config_dirs, now))
}

impl Actuator {
    /// Gives back every master.cf that the journal or `config_dirs` name. One that fails does not keep the others.
    pub fn restore(&mut self, config_dirs: &[PathBuf], now: Now) -> RestoreReport {
        let mut dirs: Vec<PathBuf> = Vec::new();
        let known: Vec<_> = self
            .open_intents()
            .iter()
            .map(|intent| intent.config_dir.clone())
            .collect();
        for dir in known.iter().chain(config_dirs) {
            if !dirs.iter().any(|seen| seen == dir || same_dir(seen, dir)) {
                dirs.push(dir.clone());
            }
        }
        RestoreReport {
            items: dirs.into_iter().map(|dir| self.restore_one(dir, now)).collect(),
        }
    }

    fn restore_one(&mut self, config_dir: PathBuf, now: Now) -> Restored {
        let intents = self.intents_of(&config_dir);
        let instance = intents
            .last()
            .map_or_else(|| config_dir.display().to_string(), |i| i.instance.clone());
        let mut ended: Vec<_> = intents.iter().map(|intent| intent.id).collect();
        let mut restored = Restored {
            services: Vec::new(),
            found: Found::Nothing,
            told: Told::NotNeeded,
            config_dir,
        };
        match self.give_back(&restored.config_dir, &instance, &intents, now) {
            Err(error) => restored.found = Found::Failed(error),
            Ok(None) => {}
            Ok(Some((found, told, taken))) => {
                (restored.found, restored.told) = (found, told);
                if let Some(taken) = taken {
                    ended.extend(taken.intent);
                    restored.services = taken.removed;
                }
            }
        }
        if !matches!(restored.found, Found::Nothing) {
            let complete = restored.complete();
            let entry = HistoryEntry {
                instance: Some(instance),
                service: restored.services.first().map(ToString::to_string),
                action: Some(Action::Undo),
                reasons: vec![restored.to_string()],
                outcome: Some(if complete { Outcome::Done } else { Outcome::Failed }),
                detail: json!({
                    "path": restored.config_dir.join(MASTER_CF),
                    "services": restored.services.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "reloaded": matches!(restored.told, Told::Once),
                    "intents": ended,
                    "step": (!complete).then(|| self.steps.last()),
                    "duration_ms": duration_ms(now),
                }),
                ..HistoryEntry::new(now.wall, Kind::Restore)
            };
            self.settle(entry, if complete { ended } else { Vec::new() });
        }
        restored
    }

    /// `None`: nothing of ours in the file, and nothing open in the journal.
    fn give_back(
        &mut self,
        config_dir: &Path,
        instance: &str,
        intents: &[Intent],
        now: Now,
    ) -> Result<Option<(Found, Told, Option<Taken>)>, ActError> {
        let dir = match self.claim(config_dir) {
            Ok(dir) => dir,
            // An instance that was taken away, or one that is configured and not there yet.
            Err(ActError::File(error)) if error.is_missing() => {
                return Ok((!intents.is_empty()).then_some((Found::AlreadyOut, Told::NotRunning, None)));
            }
            Err(error) => return Err(error),
        };
        self.sweep(&dir);
        let running = self.master_of(config_dir);
        let master = running.as_ref().ok().and_then(Option::as_ref);
        let place = Place {
            instance,
            config_dir,
            master,
        };
        let taken = match self.take_back(&dir, place, None, now) {
            Ok(taken) => Some(taken),
            Err(ActError::File(error)) => match nothing_in_there(&dir, &error) {
                true if intents.is_empty() => return Ok(None),
                true => None,
                false => return Err(error.into()),
            },
            Err(error) => return Err(error),
        };
        // As long as it is still the very file that an edit was going to replace, no master has seen that edit.
        let untouched = taken.as_ref().and_then(|taken| taken.file);
        let found = match &taken {
            Some(taken) if taken.file.is_none() => compare(taken, intents),
            _ if intents.is_empty() => return Ok(None),
            _ => Found::AlreadyOut,
        };
        let seen = untouched.is_none_or(|file| intents.iter().any(|intent| intent.file_before != file));
        let told = match (seen, &running) {
            (false, _) => Told::NotNeeded,
            (true, Err(error)) => Told::Failed(ReloadError::Discovery(error.to_string()).into()),
            (true, Ok(_)) => self.tell_once(&dir, master),
        };
        Ok(Some((found, told, taken)))
    }

    fn tell_once(&mut self, dir: &ConfigDir, master: Option<&Master>) -> Told {
        let Some(master) = master else {
            return Told::NotRunning;
        };
        let told = dir.read_followed().map_err(ActError::from).and_then(|bytes| {
            self.survives(master, &bytes)?;
            self.tell(dir, master, &super::Digest::of(&bytes))
        });
        match told {
            Ok(_) => Told::Once,
            Err(ActError::Reload(ReloadError::Gone { .. })) => Told::NotRunning,
            Err(error) => Told::Failed(error),
        }
    }

    /// Tidiness, no more: what stays behind is taken over by whoever edits next.
    fn sweep(&mut self, dir: &ConfigDir) {
        let known = self.dead_copies(dir);
        let swept = self
            .steps
            .step("sweep")
            .map_err(FileError::io("remove", dir.file(super::file::MASTER_CF_TMP)))
            .and_then(|()| replace::sweep(dir, &|bytes| known.contains(bytes)));
        if let Err(error) = swept {
            tracing::warn!(%error, "a temporary file stays behind");
        }
    }
}

fn compare(taken: &Taken, intents: &[Intent]) -> Found {
    let mut edits = intents.iter().filter(|intent| intent.act == Act::Edit).peekable();
    if edits.peek().is_none() {
        Found::NotComparable
    } else if edits.any(|intent| intent.sha256_before == taken.after) {
        Found::ByteForByte
    } else {
        Found::OthersWorkKept
    }
}

/// Where master.cf cannot be edited: whether it is there, can be read (through a link, if it is one by now), and has
/// nothing of ours in it. One that is missing may come back with our lines, and a master would not survive reading
/// it: neither settled nor reloaded.
fn nothing_in_there(dir: &ConfigDir, error: &FileError) -> bool {
    let odd = matches!(error, FileError::Symlink(_) | FileError::HardLink { .. });
    odd && dir
        .read_followed()
        .is_ok_and(|bytes| edit::remove(&bytes).bytes == bytes)
}
