//! Walks the way of a change up to, and not including, the first write, and tells what would have happened.

use serde_json::json;

use super::apply::{duration_ms, gone, history};
use super::check::{Checker, Passed};
use super::entry::{Action, Digest, HistoryEntry, Outcome};
use super::file::MASTER_CF;
use super::signal::{Masters, System};
use super::{ActError, ConfigDir, Target};
use crate::clock::Now;
use crate::postfix::edit::Change;
use crate::postfix::postconf::Postconf;

/// An actuator that only reports. Needs no state directory and holds no lock.
pub struct DryRun {
    masters: Box<dyn Masters>,
}

impl Default for DryRun {
    fn default() -> Self {
        Self::with(Box::new(System))
    }
}

impl DryRun {
    /// With other masters than this machine's.
    pub fn with(masters: Box<dyn Masters>) -> Self {
        Self { masters }
    }

    /// Everything that a trip would ask before it writes; the entry says what it would have done.
    pub fn trip(
        &mut self,
        target: &Target,
        change: Change,
        reasons: &[String],
        now: Now,
    ) -> Result<HistoryEntry, ActError> {
        if !self.masters.alive(&target.master) {
            return Err(gone(target).into());
        }
        let dir = ConfigDir::open(&target.master.config_dir)?;
        dir.replaceable()?;
        let original = dir.read()?;
        let candidate = change
            .apply(&original.bytes, &target.service, now.wall)
            .map_err(|source| ActError::Edit {
                path: dir.path().join(MASTER_CF),
                source,
            })?;
        Checker(Postconf::find(&target.master.daemon_dir)).edited(
            dir.path(),
            &original.bytes,
            &candidate,
            &mut Passed::default(),
        )?;
        Ok(HistoryEntry {
            reasons: reasons.to_vec(),
            outcome: Some(Outcome::DryRun),
            detail: json!({
                "path": dir.path().join(MASTER_CF),
                "sha256_before": original.sha,
                "sha256_after": Digest::of(&candidate),
                "maxproc": change.maxproc,
                "master_pid": target.master.pid,
                "duration_ms": duration_ms(now),
            }),
            ..history(
                target,
                now,
                if change.stress {
                    Action::Edit
                } else {
                    Action::Headroom
                },
            )
        })
    }

    /// The way back of a trip that was not made: there is nothing of ours to read.
    pub fn clear(&self, target: &Target, reasons: &[String], now: Now) -> HistoryEntry {
        HistoryEntry {
            reasons: reasons.to_vec(),
            outcome: Some(Outcome::DryRun),
            detail: json!({ "path": target.master.config_dir.join(MASTER_CF) }),
            ..history(target, now, Action::Undo)
        }
    }
}
