//! The actuator behind the mode, and the pen: whatever is done, refused or changed is journaled, logged and counted
//! here in one go, so that none of the three can know less than the others.

use std::sync::Arc;

use serde_json::json;

use super::pods::{Pods, pod_of};
use super::shedding::Tally;
use crate::actuator::{
    ActError, Action, Actuator, CheckError, DryRun, Found, HistoryEntry, InFlight, Intent, Kind, Outcome,
    RestoreReport, Target, Told, read_followed,
};
use crate::clock::Now;
use crate::config::PodMode;
use crate::controller::{State, Transition};
use crate::postfix::edit::{self, Change};
use crate::postfix::endpoint::same_service;
use crate::postfix::root::Container;
use crate::postfix::{Home, Master, ServiceId};
use crate::shed::Offender;
use crate::sock_diag::SockDiag;
use crate::status::{Board, Mode, Probe, ProbeState, ReloadResult};

pub(super) struct Hands {
    mode: Mode,
    actuator: Actuator,
    dry_run: DryRun,
    board: Arc<Board>,
    pods: Pods,
    /// SOCK_DESTROY failed, and that has been said.
    cannot_close: bool,
}

/// What a plan came to.
#[derive(Debug)]
pub(super) enum Done {
    /// The master was told; whether it took is still to be seen.
    InFlight(Box<InFlight>),
    /// Dry run: nothing was touched.
    Pretended,
}

/// Why a Postfix must not be reloaded, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Danger {
    /// It would stop.
    Broken(String),
    /// It would open a new listener, and stop if it does not get it.
    Unopened(String),
}

impl Danger {
    pub(super) fn sentence(&self) -> &str {
        match self {
            Self::Broken(sentence) | Self::Unopened(sentence) => sentence,
        }
    }

    /// What would stop it for sure.
    pub(super) fn broken(&self) -> Option<&str> {
        match self {
            Self::Broken(sentence) => Some(sentence),
            Self::Unopened(_) => None,
        }
    }
}

impl Hands {
    pub(super) fn new(mode: Mode, actuator: Actuator, board: Arc<Board>, pods: Pods) -> Self {
        Self {
            mode,
            actuator,
            dry_run: DryRun::default(),
            board,
            pods,
            cannot_close: false,
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn pods(&self) -> &Pods {
        &self.pods
    }

    /// Asks the cluster what may be done with an instance; history calls it by its pod from then on.
    pub(super) fn ask(&mut self, instance: &str, master: &Master, now: Now) -> PodMode {
        if !self.pods.asks() {
            return PodMode::Enforce;
        }
        let mode = self.pods.ask(instance, &pod_of(master), now.mono);
        self.actuator.call(instance, self.pods.name(instance));
        mode
    }

    /// Forgets what the cluster said of instances that are no more.
    pub(super) fn forget_pods(&mut self, gone: impl Fn(&str) -> bool) {
        for instance in self.pods.forget(gone) {
            self.actuator.call(&instance, None);
        }
    }

    /// Whether master.cf and the connections of this instance are ours to change.
    pub(super) fn enforces(&self, instance: &str) -> bool {
        self.mode == Mode::Enforce && self.pods.permits(instance).is_ok()
    }

    /// Why the mode keeps its hands off this instance; `Ok` when it does not.
    pub(super) fn permitted(&self, instance: &str) -> Result<(), String> {
        match self.mode {
            Mode::Enforce | Mode::DryRun => self.pods.permits(instance),
            Mode::Observe => {
                Err("observe mode: stress mode would be switched on now; set act.mode = \"enforce\" to have it so".into())
            }
        }
    }

    /// Has the questions of a trip asked beforehand; what they would say against it is told when it matters.
    pub(super) fn rehearse(&mut self, target: &Target, change: Change, now: Now) {
        if self.enforces(&target.instance)
            && let Err(error) = self.actuator.rehearse(target, change, now)
        {
            tracing::warn!(instance = %target.instance, service = %target.service, "a trip would fail: {error}");
        }
    }

    /// Puts stress mode, headroom or both on the service.
    pub(super) fn trip(
        &mut self,
        target: &Target,
        change: Change,
        reasons: &[String],
        now: Now,
    ) -> Result<Done, ActError> {
        if self.mode == Mode::DryRun {
            let entry = self.dry_run.trip(target, change, reasons, now)?;
            self.actuator.record(entry);
            return Ok(Done::Pretended);
        }
        let result = self.actuator.trip(target, change, reasons, now);
        let what = match change {
            Change { maxproc: None, .. } => "stress=yes is in master.cf".to_owned(),
            Change {
                stress: true,
                maxproc: Some(maxproc),
            } => format!("stress=yes and maxproc {maxproc} are in master.cf"),
            Change {
                stress: false,
                maxproc: Some(maxproc),
            } => format!("maxproc {maxproc} is in master.cf"),
        };
        self.told(
            &target.instance,
            &target.service,
            &format!("{what}, and the master was told"),
            &result,
        );
        result.map(|act| Done::InFlight(Box::new(act)))
    }

    pub(super) fn clear(&mut self, target: &Target, reasons: &[String], now: Now) -> Result<Done, ActError> {
        if self.mode == Mode::DryRun {
            let entry = self.dry_run.clear(target, reasons, now);
            self.actuator.record(entry);
            return Ok(Done::Pretended);
        }
        let result = self.actuator.clear(target, reasons, now);
        self.told(
            &target.instance,
            &target.service,
            "our lines are out of master.cf, and the master was told",
            &result,
        );
        result.map(|act| Done::InFlight(Box::new(act)))
    }

    /// The reload took.
    pub(super) fn confirmed(&self, act: &InFlight, how: &str) {
        let Target {
            instance, service, ..
        } = &act.target;
        tracing::info!(%instance, %service, "reload verified: {how}");
        self.board.count_reload(instance, ReloadResult::Done);
    }

    /// The reload did not take: puts the old bytes back.
    pub(super) fn failed(&mut self, act: InFlight, why: &str, now: Now) {
        let Target {
            instance, service, ..
        } = act.target.clone();
        tracing::error!(%instance, %service, "reload failed: {why}; taking our lines out of master.cf");
        self.board.count_reload(&instance, ReloadResult::Failed);
        if let Err(error) = self.actuator.rollback(act, why, now) {
            tracing::error!(%instance, %service, "{error}");
        }
    }

    /// Makes sure that no other sentinel is in charge of this master.cf; else why ours keeps its hands off.
    pub(super) fn claim(&mut self, home: &Home) -> Result<(), String> {
        if self.mode != Mode::Enforce {
            return Ok(());
        }
        self.actuator
            .claim(home)
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// Whether the journal has something open about this master.cf.
    pub(super) fn owes(&self, home: &Home) -> bool {
        let about = |intent: &Intent| {
            intent.config_dir == home.config_dir && intent.container.as_deref() == home.root.name()
        };
        self.actuator.open_intents().iter().any(about)
    }

    /// Whether what is ours in this master.cf may be given back. Observe mode forbids new edits, and not that; but then
    /// what is there may as well be of a sentinel that acts, unless the journal says that it is ours.
    pub(super) fn may_give_back(&self, home: &Home) -> bool {
        match self.mode {
            Mode::Enforce => true,
            Mode::Observe => self.owes(home),
            Mode::DryRun => false,
        }
    }

    /// Whether lines that no act of this run stands for are ours to take out: not while another sentinel is in charge.
    /// Call [`Hands::let_others`] afterwards.
    pub(super) fn may_take_out(&mut self, home: &Home) -> bool {
        self.actuator.claim(home).is_ok()
    }

    /// Who only observes is in charge of a file for no longer than it takes to give something back.
    pub(super) fn let_others(&mut self, home: &Home) {
        if self.mode == Mode::Observe {
            self.actuator.release(home);
        }
    }

    /// Gives back whatever of ours is in these files, and in those that the journal names.
    pub(super) fn restore(&mut self, homes: &[Home], now: Now) {
        let report = self.actuator.restore(homes, now);
        self.tell_restored(&report);
        homes.iter().for_each(|home| self.let_others(home));
    }

    /// Gives back whatever of ours is in the file of one instance.
    pub(super) fn give_back(&mut self, home: &Home, now: Now) -> RestoreReport {
        let report = self.actuator.restore_only(std::slice::from_ref(home), now);
        self.tell_restored(&report);
        self.let_others(home);
        report
    }

    /// The container is gone, and with it what we had in there.
    pub(super) fn abandon(&mut self, container: &Container, home: &Home, now: Now) {
        if let Some(restored) = self.actuator.abandon(&container.name, &home.config_dir, now) {
            tracing::warn!("{restored}");
        }
    }

    /// Lets go of what is held open of an instance.
    pub(super) fn release(&mut self, home: &Home) {
        self.actuator.release(home);
    }

    fn tell_restored(&self, report: &RestoreReport) {
        for restored in report
            .items
            .iter()
            .filter(|restored| !matches!(restored.found, Found::Nothing))
        {
            tracing::warn!("{restored}");
            if matches!(restored.told, Told::Once) {
                self.board.count_reload(&restored.name, ReloadResult::Done);
            }
        }
    }

    /// Closes a connection that has broken a limit of stress mode. `true` when it was there to be closed.
    pub(super) fn close(
        &mut self,
        instance: &str,
        service: &ServiceId,
        sockets: &mut SockDiag,
        offender: &Offender,
    ) -> bool {
        let Offender {
            connection,
            reason,
            since,
        } = offender;
        match sockets.destroy(connection) {
            Ok(closed) => {
                if closed {
                    tracing::debug!(%instance, %service, client = %connection.remote, %reason, "closed after {} ms", since.as_millis());
                    self.board.count_shed(instance, &service.to_string(), *reason);
                }
                closed
            }
            Err(error) => {
                if !std::mem::replace(&mut self.cannot_close, true) {
                    tracing::error!(%instance, %service, "cannot close connections: {error}; SOCK_DESTROY needs CAP_NET_ADMIN and a kernel with CONFIG_INET_DIAG_DESTROY");
                }
                false
            }
        }
    }

    /// Writes down what was closed of late.
    pub(super) fn shed(&mut self, instance: &str, service: &ServiceId, tally: Tally, now: Now) {
        let words: Vec<_> = tally
            .reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        let sentence = format!("closed by the limits of stress mode: {}", words.join(", "));
        tracing::warn!(%instance, %service, "{sentence}");
        self.actuator.record(HistoryEntry {
            action: Some(Action::Shed),
            outcome: Some(Outcome::Done),
            reasons: vec![sentence],
            detail: json!({ "closed": tally.reasons, "clients": tally.addresses }),
            ..entry(Kind::Action, instance, service, now)
        });
    }

    pub(super) fn transition(&mut self, instance: &str, service: &ServiceId, change: Transition, now: Now) {
        self.transition_with(instance, service, change, json!({}), now);
    }

    /// With what else is known of it.
    pub(super) fn transition_with(
        &mut self,
        instance: &str,
        service: &ServiceId,
        change: Transition,
        detail: serde_json::Value,
        now: Now,
    ) {
        self.pods.transition(instance, service, &change, now);
        let Transition { from, to, reasons } = change;
        tracing::warn!(%instance, %service, "{from} -> {to}: {}", reasons.join("; "));
        self.board.count_transition(instance, &service.to_string(), to);
        self.actuator.record(HistoryEntry {
            from: Some(from),
            to: Some(to),
            reasons,
            detail,
            outcome: (self.mode == Mode::DryRun).then_some(Outcome::DryRun),
            ..entry(Kind::Transition, instance, service, now)
        });
    }

    pub(super) fn refusal(
        &mut self,
        instance: &str,
        service: &ServiceId,
        reason: String,
        verdict: &[String],
        now: Now,
    ) {
        tracing::warn!(%instance, %service, "not acting: {reason}; {}", verdict.join("; "));
        let reasons: Vec<_> = std::iter::once(reason).chain(verdict.iter().cloned()).collect();
        self.pods.refusal(instance, service, &reasons, now);
        self.actuator.record(HistoryEntry {
            reasons,
            outcome: Some(Outcome::Refused),
            ..entry(Kind::Refusal, instance, service, now)
        });
    }

    pub(super) fn outside_edit(
        &mut self,
        instance: &str,
        service: &ServiceId,
        what: &str,
        state: State,
        now: Now,
    ) {
        tracing::warn!(%instance, %service, %state, "{what}");
        self.actuator.record(HistoryEntry {
            reasons: vec![what.to_owned()],
            ..entry(Kind::OutsideEdit, instance, service, now)
        });
    }

    /// Why this Postfix must not be reloaded with its configuration files as they are now; `None` if it may.
    pub(super) fn danger(&mut self, master: &Master) -> Option<Danger> {
        let error = self.actuator.reloadable(master).err()?;
        let sentence = error.to_string();
        Some(match error {
            CheckError::Unbound { .. } => Danger::Unopened(sentence),
            _ => Danger::Broken(sentence),
        })
    }

    /// Whether master.cf has our lines on this service; not when it cannot be read.
    pub(super) fn ours_in(&self, target: &Target) -> bool {
        read_followed(&target.master.home()).is_ok_and(|bytes| {
            edit::ours(&bytes)
                .iter()
                .any(|id| same_service(id, &target.service))
        })
    }

    /// The alarm over configuration files that would stop Postfix, and its end. It is nobody's act of ours, so it has no
    /// outcome; and it counts until the files are whole, so its metric is a state and no counter.
    pub(super) fn alarm(&mut self, instance: &str, broken: Option<&str>, now: Now) {
        let sentence = match broken {
            Some(sentence) => {
                tracing::error!(%instance, "{sentence}");
                sentence
            }
            None => {
                let sentence = "the configuration files are whole again: Postfix would live through a reload";
                tracing::warn!(%instance, "{sentence}");
                sentence
            }
        };
        self.actuator.record(HistoryEntry {
            instance: Some(instance.to_owned()),
            reasons: vec![sentence.to_owned()],
            detail: json!({ "config_valid": broken.is_none() }),
            ..HistoryEntry::new(now.wall, Kind::OutsideEdit)
        });
    }

    pub(super) fn probe(&mut self, probe: &Probe, now: Now) {
        let how = if probe.reason.is_empty() {
            "loaded, attached and tried"
        } else {
            &probe.reason
        };
        let sentence = format!("probe {}: {how}", probe.name);
        match probe.state {
            ProbeState::Ok => tracing::info!("{sentence}"),
            ProbeState::Fallback | ProbeState::Unsupported | ProbeState::Broken => {
                tracing::warn!("{sentence}")
            }
        }
        self.actuator.record(HistoryEntry {
            reasons: vec![sentence],
            detail: json!({ "probe": probe.name, "state": probe.state }),
            ..HistoryEntry::new(now.wall, Kind::Probe)
        });
    }

    fn told(&self, instance: &str, service: &ServiceId, done: &str, result: &Result<InFlight, ActError>) {
        match result {
            Ok(_) => tracing::warn!(%instance, %service, "{done}"),
            Err(error) => {
                tracing::error!(%instance, %service, "{error}");
                if matches!(error, ActError::Reload(_)) {
                    self.board.count_reload(instance, ReloadResult::Failed);
                }
            }
        }
    }
}

fn entry(kind: Kind, instance: &str, service: &ServiceId, now: Now) -> HistoryEntry {
    HistoryEntry {
        instance: Some(instance.to_owned()),
        service: Some(service.to_string()),
        ..HistoryEntry::new(now.wall, kind)
    }
}
