//! The way in: trip. And what trip and clear have in common: the journal's words, and the signal.

use serde_json::json;

use super::check::CheckError;
use super::entry::{Act, Action, Digest, HistoryEntry, Intent, IntentId, Kind, Outcome};
use super::file::{ConfigDir, Content, FileError, MASTER_CF};
use super::replace::{CommitError, Draft};
use super::signal::{self, ReloadError};
use super::verify::Expected;
use super::{ActError, Actuator, InFlight, Place, Target, Verification, backup};
use crate::clock::{self, Now};
use crate::postfix::Master;
use crate::postfix::edit::{self, Change};

/// What was done, for history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    Edit(Change),
    Undo,
}

/// What a change left behind on its way, for the journal.
#[derive(Default)]
pub(super) struct Trail {
    pub(super) before: Option<Digest>,
    pub(super) after: Option<Digest>,
    /// The intents that are done with, if the change ends here.
    pub(super) intents: Vec<IntentId>,
    pub(super) others_edited: bool,
}

impl Actuator {
    /// Puts the change on the service and tells the master. On an error master.cf is as it was, or without our lines if
    /// somebody else changed it meanwhile; only [`ActError::Stuck`] is otherwise, and says so.
    pub fn trip(
        &mut self,
        target: &Target,
        change: Change,
        reasons: &[String],
        now: Now,
    ) -> Result<InFlight, ActError> {
        let mut trail = Trail::default();
        let result = self.try_trip(target, change, now, &mut trail);
        self.conclude(Done::Edit(change), target, reasons, now, trail, &result);
        result
    }

    /// Everything that a trip would ask postconf(1), beforehand and without a trace, so that the trip need not wait for
    /// it.
    ///
    /// # Errors
    /// As the trip's own, for what can be told before the first write.
    pub fn rehearse(&mut self, target: &Target, change: Change, now: Now) -> Result<(), ActError> {
        let dir = ConfigDir::open(&target.master.config_dir)?;
        let original = dir.read()?;
        let path = dir.file(MASTER_CF);
        let candidate = change
            .apply(&original.bytes, &target.service, now.wall)
            .map_err(|source| ActError::Edit { path, source })?;
        self.checker(&target.master)
            .edited(dir.path(), &original.bytes, &candidate, &mut self.passed)?;
        Ok(self.bound(&target.master, &original.bytes)?)
    }

    /// Whether the master would live through reading its files as they are now, which every reload of ours is held to.
    /// An error of reading them is none here: whoever wants to change them meets it.
    pub fn reloadable(&mut self, master: &Master) -> Result<(), CheckError> {
        let bytes = ConfigDir::open(&master.config_dir).and_then(|dir| dir.read_followed());
        bytes.map_or(Ok(()), |bytes| self.survives(master, &bytes))
    }

    /// Whether a master would survive being told to read these bytes in place of its master.cf.
    pub(super) fn survives(&mut self, master: &Master, bytes: &[u8]) -> Result<(), CheckError> {
        self.checker(master).reloadable(&master.config_dir, bytes)?;
        self.bound(master, bytes)
    }

    fn try_trip(
        &mut self,
        target: &Target,
        change: Change,
        now: Now,
        trail: &mut Trail,
    ) -> Result<InFlight, ActError> {
        let dir = self.claim(&target.master.config_dir)?;
        self.steps
            .step("identify")
            .map_err(FileError::io("look at the master of", dir.path().to_owned()))?;
        if !self.masters.alive(&target.master) {
            return Err(gone(target).into());
        }
        self.steps
            .step("permission")
            .map_err(FileError::io("replace", dir.file(MASTER_CF)))?;
        dir.replaceable()?;
        let known = self.dead_copies(&dir);
        let draft = Draft::begin(&dir, &|bytes| known.contains(bytes), &mut self.steps)?;
        let (original, candidate) = match self.prepare(&dir, target, change, now, trail) {
            Ok(prepared) => prepared,
            Err(error) => {
                draft.abandon();
                return Err(error);
            }
        };
        let committed = draft.commit(&original, &candidate, &mut self.steps);
        let renamed = !matches!(&committed, Err(CommitError { renamed: false, .. }));
        let told = committed
            .map_err(|failure| ActError::from(failure.error))
            .and_then(|_| {
                let expected = match change.stress {
                    true => Expected::Stress,
                    false => Expected::Room,
                };
                self.announce(expected, &dir, target, &Digest::of(&candidate))
            });
        match told {
            Err(cause) if renamed => Err(self.put_back(&dir, target, cause, now, trail)),
            told => told,
        }
    }

    /// Everything before the rename: what was read, and what is to take its place.
    fn prepare(
        &mut self,
        dir: &ConfigDir,
        target: &Target,
        change: Change,
        now: Now,
        trail: &mut Trail,
    ) -> Result<(Content, Vec<u8>), ActError> {
        self.steps
            .step("read")
            .map_err(FileError::io("read", dir.file(MASTER_CF)))?;
        let original = dir.read()?;
        trail.before = Some(original.sha.clone());
        self.steps
            .step("candidate")
            .map_err(FileError::io("edit", dir.file(MASTER_CF)))?;
        let candidate = change
            .apply(&original.bytes, &target.service, now.wall)
            .map_err(|source| ActError::Edit {
                path: dir.file(MASTER_CF),
                source,
            })?;
        trail.after = Some(Digest::of(&candidate));
        self.steps
            .step("check")
            .map_err(FileError::io("check", dir.file(MASTER_CF)))?;
        self.checker(&target.master)
            .edited(dir.path(), &original.bytes, &candidate, &mut self.passed)?;
        self.bound(&target.master, &original.bytes)?;
        // Where another service of this file is ours already, the original is the file without those lines.
        let plain = edit::remove(&original.bytes).bytes;
        let kept = backup::keep(&self.state_dir, &target.instance, &plain, &mut self.steps)?;
        let intent = Intent {
            service: Some(target.service.clone()),
            backup: Some(kept),
            ..self.intent(Act::Edit, target.place(), &original, &candidate, now)
        };
        trail.intents.push(intent.id);
        self.journal.intend(intent, &mut self.steps)?;
        Ok((original, candidate))
    }

    pub(super) fn intent(
        &self,
        act: Act,
        place: Place<'_>,
        original: &Content,
        candidate: &[u8],
        now: Now,
    ) -> Intent {
        Intent {
            id: self.journal.next_id(),
            time: now.wall,
            act,
            instance: place.instance.to_owned(),
            config_dir: place.config_dir.to_owned(),
            service: None,
            sha256_before: original.sha.clone(),
            sha256_after: Digest::of(candidate),
            file_before: original.id,
            backup: None,
            master_pid: place.master.map(|master| master.pid),
            master_start_time: place.master.map(|master| master.start_time),
        }
    }

    /// Tells the master, and makes of that what is to be verified.
    pub(super) fn announce(
        &mut self,
        expected: Expected,
        dir: &ConfigDir,
        target: &Target,
        digest: &Digest,
    ) -> Result<InFlight, ActError> {
        let signalled_ticks = self.tell(dir, &target.master, digest)?;
        let service = target.service.clone();
        let verification = Verification {
            expected,
            service,
            signalled: clock::now().mono,
            signalled_ticks,
        };
        Ok(InFlight {
            target: target.clone(),
            verification,
        })
    }

    /// Tells the master, unless somebody has broken the file since `expected` was put there. Returns the clock ticks
    /// since boot just before: a worker that starts in the same instant must not count as a new one.
    pub(super) fn tell(
        &mut self,
        dir: &ConfigDir,
        master: &Master,
        expected: &Digest,
    ) -> Result<u64, ActError> {
        self.steps
            .step("look again")
            .map_err(FileError::io("read", dir.file(MASTER_CF)))?;
        let current = dir.read_followed()?;
        if Digest::of(&current) != *expected {
            self.survives(master, &current)?;
        }
        let ticks = clock::boot_ticks().map_err(FileError::io("read", "/proc/uptime".into()))?;
        let not_sent = |source| ReloadError::NotSent {
            pid: master.pid,
            source,
        };
        self.steps.step("signal").map_err(not_sent)?;
        self.masters.reload(master, self.mode)?;
        Ok(ticks)
    }

    /// After a trip that failed behind the rename: takes the lines out again, and returns what to report.
    fn put_back(
        &mut self,
        dir: &ConfigDir,
        target: &Target,
        cause: ActError,
        now: Now,
        trail: &mut Trail,
    ) -> ActError {
        let failed_at = self.steps.last();
        let taken = self.take_back(dir, target.place(), Some(&target.service), now);
        // A `postfix reload` that hangs may have told the master: then it has to be told again.
        let told = match (&taken, &cause) {
            (Ok(taken), ActError::Reload(ReloadError::Unknown { .. })) => self
                .survives(&target.master, &taken.bytes)
                .map_err(ActError::from)
                .and_then(|()| Ok(self.masters.reload(&target.master, signal::ReloadMode::Signal)?)),
            _ => Ok(()),
        };
        self.steps.resume(failed_at);
        match taken {
            Ok(taken) => {
                trail.others_edited = Some(&taken.after) != trail.before.as_ref();
                trail.intents.extend(taken.intent);
                if told.is_err() {
                    trail.intents.clear();
                }
                told.err().unwrap_or(cause)
            }
            Err(error) => {
                trail.intents.clear();
                ActError::Stuck {
                    path: dir.file(MASTER_CF),
                    cause: Box::new(cause),
                    error: Box::new(error),
                }
            }
        }
    }

    /// Writes down how a trip or a clear ended.
    pub(super) fn conclude(
        &mut self,
        done: Done,
        target: &Target,
        reasons: &[String],
        now: Now,
        trail: Trail,
        result: &Result<InFlight, ActError>,
    ) {
        let mut detail = json!({
            "path": target.master.config_dir.join(MASTER_CF),
            "sha256_before": trail.before,
            "sha256_after": trail.after,
            "intents": trail.intents,
            "others_edited": trail.others_edited,
            "master_pid": target.master.pid,
            "duration_ms": duration_ms(now),
        });
        // A headroom that comes with stress mode is an action of its own in history, after the edit that brought both.
        let (action, headroom) = match done {
            Done::Edit(Change {
                stress: true,
                maxproc,
            }) => (Action::Edit, maxproc),
            Done::Edit(Change {
                stress: false,
                maxproc,
            }) => {
                detail["maxproc"] = json!(maxproc);
                (Action::Headroom, None)
            }
            Done::Undo => (Action::Undo, None),
        };
        let mut entry = history(target, now, action);
        entry.reasons = reasons.to_vec();
        match result {
            Ok(_) => {
                entry.outcome = Some(Outcome::Done);
                entry.detail = detail;
                // A trip stays open until it is undone; a clear is the end of its own intents and of the trip's.
                let settles = if done == Done::Undo {
                    trail.intents
                } else {
                    Vec::new()
                };
                self.settle(entry, settles);
                if let Some(maxproc) = headroom {
                    let headroom = HistoryEntry {
                        reasons: reasons.to_vec(),
                        outcome: Some(Outcome::Done),
                        detail: json!({ "maxproc": maxproc }),
                        ..history(target, now, Action::Headroom)
                    };
                    self.write_down(headroom, Vec::new());
                }
                let reload = HistoryEntry {
                    reasons: reasons.to_vec(),
                    outcome: Some(Outcome::Done),
                    detail: json!({ "master_pid": target.master.pid, "mode": format!("{:?}", self.mode).to_lowercase() }),
                    ..history(target, now, Action::Reload)
                };
                self.write_down(reload, Vec::new());
            }
            Err(error) => {
                let refused = matches!(error, ActError::Edit { .. } | ActError::NothingOfOurs { .. });
                detail["step"] = json!(self.steps.last());
                detail["error"] = json!(error.to_string());
                entry.outcome = Some(if refused {
                    Outcome::Refused
                } else {
                    Outcome::Failed
                });
                entry.detail = detail;
                self.settle(entry, trail.intents);
            }
        }
    }

    /// A history entry that ends intents, and with them the need for their backups.
    pub(super) fn settle(&mut self, entry: HistoryEntry, settles: Vec<IntentId>) {
        let of = |intent: &&Intent| settles.contains(&intent.id);
        let settled: Vec<Intent> = self.open_intents().iter().filter(of).cloned().collect();
        self.write_down(entry, settles);
        self.drop_backups(&settled);
    }
}

pub(super) fn gone(target: &Target) -> ReloadError {
    ReloadError::Gone {
        pid: target.master.pid,
        config_dir: target.master.config_dir.clone(),
    }
}

pub(super) fn history(target: &Target, now: Now, action: Action) -> HistoryEntry {
    HistoryEntry {
        instance: Some(target.instance.clone()),
        service: Some(target.service.to_string()),
        action: Some(action),
        ..HistoryEntry::new(now.wall, Kind::Action)
    }
}

pub(super) fn duration_ms(since: Now) -> u64 {
    let elapsed = clock::now().mono.saturating_duration_since(since.mono);
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
