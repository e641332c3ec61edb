//! The way back: clear, and rollback of a trip that did not take. Takes our lines out of whatever master.cf is by
//! now; the work of others in it stays.

use std::path::Path;

use serde_json::json;

use super::apply::{Done, Trail, duration_ms, gone, history};
use super::entry::{Act, Action, Digest, FileId, HistoryEntry, Intent, IntentId, Outcome};
use super::file::{ConfigDir, FileError, MASTER_CF};
use super::replace::{CommitError, Draft};
use super::signal::ReloadError;
use super::verify::Expected;
use super::{ActError, Actuator, InFlight, Place, Target, check, same_dir};
use crate::clock::Now;
use crate::postfix::endpoint::same_service;
use crate::postfix::{Master, ServiceId, edit};

/// What master.cf is after our lines were taken out, or found to be out already.
pub(super) struct Taken {
    pub(super) bytes: Vec<u8>,
    pub(super) before: Digest,
    pub(super) after: Digest,
    /// The services of which something was taken out; a comment of ours that has lost its argument line counts for none.
    pub(super) removed: Vec<ServiceId>,
    /// There was nothing of ours, and this file was not touched.
    pub(super) file: Option<FileId>,
    pub(super) intent: Option<IntentId>,
}

/// What a temporary file of a crashed run may hold.
pub(super) struct DeadCopies {
    digests: Vec<Digest>,
    plain: Option<Vec<u8>>,
}

impl DeadCopies {
    /// Whether these are the bytes of an edit or an undo that died, and so nobody's work.
    pub(super) fn contains(&self, bytes: &[u8]) -> bool {
        self.digests.contains(&Digest::of(bytes))
            || self
                .plain
                .as_deref()
                .is_some_and(|plain| edit::remove(bytes).bytes == plain)
    }
}

impl Actuator {
    /// Takes `-o stress=yes` and the headroom off the service and tells the master. Where the lines are gone already (an admin took
    /// them out), the master is only told. The file comes first: when the signal fails, our lines stay out, and the
    /// intent stays open so that the next clear or restore tells the master.
    pub fn clear(&mut self, target: &Target, reasons: &[String], now: Now) -> Result<InFlight, ActError> {
        let mut trail = Trail::default();
        let result = self.try_clear(target, now, &mut trail);
        self.conclude(Done::Undo, target, reasons, now, trail, &result);
        result
    }

    fn try_clear(&mut self, target: &Target, now: Now, trail: &mut Trail) -> Result<InFlight, ActError> {
        let dir = self.claim(&target.master.config_dir)?;
        let open = self.intents_about(target);
        let taken = self.take_back(&dir, target.place(), Some(&target.service), now)?;
        if taken.file.is_some() && open.is_empty() {
            let path = dir.file(MASTER_CF);
            return Err(ActError::NothingOfOurs {
                path,
                service: target.service.clone(),
            });
        }
        // Only the last of ours leaves what the first of them found.
        let whole = |intent: &Intent| intent.act == Act::Edit && intent.sha256_before == taken.after;
        trail.others_edited = taken.file.is_some()
            || edit::is_plain(&taken.bytes) && !self.intents_of(&target.master.config_dir).iter().any(whole);
        trail.before = Some(taken.before);
        trail.after = Some(taken.after.clone());
        let ends: Vec<_> = open.iter().map(|intent| intent.id).chain(taken.intent).collect();
        let Some(master) = self.master_now(target)? else {
            // Whatever master starts next reads a file without our lines.
            trail.intents = ends;
            return Err(gone(target).into());
        };
        // Not only when it is another file than the one that we wrote: others may have broken it long ago.
        self.survives(&master, &taken.bytes)?;
        let target = Target {
            master,
            ..target.clone()
        };
        let in_flight = self.announce(Expected::Nothing, &dir, &target, &taken.after)?;
        trail.intents = ends;
        Ok(in_flight)
    }

    /// After [`super::Progress::Failed`]: takes the lines of a trip out again and, if the master lives, has it read
    /// the file once more. After a clear there is nothing to take back; it is written down.
    pub fn rollback(&mut self, in_flight: InFlight, reason: &str, now: Now) -> Result<(), ActError> {
        let InFlight { target, verification } = in_flight;
        let failed = HistoryEntry {
            reasons: vec![reason.to_owned()],
            outcome: Some(Outcome::Failed),
            detail: json!({ "master_pid": target.master.pid, "step": "verify" }),
            ..history(&target, now, Action::Reload)
        };
        self.write_down(failed, Vec::new());
        if verification.expected == Expected::Nothing {
            return Ok(());
        }
        let ended = self.try_rollback(&target, now);
        let (settles, error, told) = match &ended {
            Ok((settles, told)) => (settles.clone(), None, *told),
            Err(error) => (Vec::new(), Some(error.to_string()), false),
        };
        let entry = HistoryEntry {
            reasons: vec![reason.to_owned()],
            outcome: Some(if error.is_none() {
                Outcome::Done
            } else {
                Outcome::Failed
            }),
            detail: json!({
                "path": target.master.config_dir.join(MASTER_CF),
                "intents": settles,
                "reloaded": told,
                "error": error,
                "duration_ms": duration_ms(now),
            }),
            ..history(&target, now, Action::Undo)
        };
        self.settle(entry, settles);
        ended.map(drop)
    }

    fn try_rollback(&mut self, target: &Target, now: Now) -> Result<(Vec<IntentId>, bool), ActError> {
        let dir = self.claim(&target.master.config_dir)?;
        let open = self.intents_about(target);
        let taken = self.take_back(&dir, target.place(), Some(&target.service), now)?;
        let master = self.master_now(target)?;
        let told = master.is_some();
        if let Some(master) = master {
            self.survives(&master, &taken.bytes)?;
            self.tell(&dir, &master, &taken.after)?;
        }
        Ok((
            open.iter().map(|intent| intent.id).chain(taken.intent).collect(),
            told,
        ))
    }

    /// The target's master, or the one that has taken its place since: it was started with our lines in the file.
    fn master_now(&mut self, target: &Target) -> Result<Option<Master>, ReloadError> {
        if self.masters.alive(&target.master) {
            return Ok(Some(target.master.clone()));
        }
        self.master_of(&target.master.config_dir)
    }

    /// The master that runs on a configuration directory.
    pub(super) fn master_of(&mut self, config_dir: &Path) -> Result<Option<Master>, ReloadError> {
        let masters = self.masters.running(&[config_dir.to_owned()])?;
        Ok(masters
            .into_iter()
            .find(|m| m.config_dir == config_dir || same_dir(&m.config_dir, config_dir)))
    }

    /// The open intents that are about this service and no other.
    fn intents_about(&self, target: &Target) -> Vec<Intent> {
        let about = |intent: &Intent| {
            intent
                .service
                .as_ref()
                .is_some_and(|service| same_service(service, &target.service))
        };
        self.intents_of(&target.master.config_dir)
            .into_iter()
            .filter(about)
            .collect()
    }

    /// Takes the lines of one service, or all of ours, out of master.cf. Does not tell the master.
    pub(super) fn take_back(
        &mut self,
        dir: &ConfigDir,
        place: Place<'_>,
        service: Option<&ServiceId>,
        now: Now,
    ) -> Result<Taken, ActError> {
        let remove = |bytes: &[u8]| match service {
            Some(service) => edit::remove_of(bytes, service),
            None => edit::remove(bytes),
        };
        // Where there is nothing of ours, nothing is locked, created or needed: the directory may be read-only.
        self.steps
            .step("undo.look")
            .map_err(FileError::io("read", dir.file(MASTER_CF)))?;
        let seen = dir.read()?;
        if remove(&seen.bytes).bytes == seen.bytes {
            let (before, after) = (seen.sha.clone(), seen.sha);
            return Ok(Taken {
                file: Some(seen.id),
                bytes: seen.bytes,
                before,
                after,
                removed: Vec::new(),
                intent: None,
            });
        }
        let known = self.dead_copies(dir);
        let draft = Draft::begin(dir, &|bytes| known.contains(bytes), &mut self.steps)?;
        let prepared = self
            .steps
            .step("undo.read")
            .map_err(FileError::io("read", dir.file(MASTER_CF)))
            .and_then(|()| dir.read())
            .map_err(ActError::from)
            .and_then(|original| {
                let removal = remove(&original.bytes);
                check::undone(dir.path(), &original.bytes, &removal)?;
                Ok((original, removal))
            });
        let (original, removal) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                draft.abandon();
                return Err(error);
            }
        };
        // Giving back is worth more than writing it down: the trip's own intent, or the marker in the file, already
        // tells the next start all that it needs.
        let undo = self.intent(Act::Undo, place, &original, &removal.bytes, now);
        let undo = Intent {
            service: service.cloned(),
            ..undo
        };
        let id = undo.id;
        let intent = self
            .journal
            .intend(undo, &mut self.steps)
            .inspect_err(|error| tracing::error!(%error, "giving back without an entry in the journal"))
            .ok()
            .map(|()| id);
        match draft.commit(&original, &removal.bytes, &mut self.steps) {
            Ok(_) => Ok(Taken {
                before: original.sha,
                after: Digest::of(&removal.bytes),
                removed: removal.services(),
                bytes: removal.bytes,
                file: None,
                intent,
            }),
            Err(CommitError { error, .. }) => Err(error.into()),
        }
    }

    pub(super) fn dead_copies(&self, dir: &ConfigDir) -> DeadCopies {
        let digests = self
            .intents_of(dir.path())
            .into_iter()
            .flat_map(|intent| [intent.sha256_before, intent.sha256_after]);
        let plain = dir.read().ok().map(|content| edit::remove(&content.bytes).bytes);
        DeadCopies {
            digests: digests.collect(),
            plain,
        }
    }
}
