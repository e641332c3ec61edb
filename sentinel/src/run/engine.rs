//! The tick: discovers, looks, judges, decides, acts, verifies, and pins the report on the board.
//!
//! Synchronous, on a thread of its own: an act blocks the next look, never a scrape.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hands::{Done, Hands};
use super::instance::Instance;
use super::report;
use super::service::Service;
use crate::actuator::Progress;
use crate::clock::Now;
use crate::config::Config;
use crate::controller::{Act, Gate, Plan, State, Transition};
use crate::postfix::discovery;
use crate::probes::{ListenerReading, Probes};
use crate::signals::ListenerId;
use crate::signals::overflows::listen_overflows;
use crate::status::{Board, Mode, Report};

/// Between two ticks. What a quiet tick costs is one small file of /proc per instance.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// The same while slots are running out: from the threshold to the signal every 10 ms count.
pub(super) const QUICK_TICK: Duration = Duration::from_millis(20);

/// Between two searches through /proc for masters; one that has died is looked for at once.
const DISCOVER_EVERY: Duration = Duration::from_secs(5);
const DISCOVER_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Between two reports on the board when nothing new was seen.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// A Postfix that is restarted is back within this; after it, what is ours in its files is given back.
const RESTART_WITHIN: Duration = Duration::from_secs(10);

pub(super) struct Engine {
    config: Config,
    hands: Hands,
    probes: Probes,
    board: Arc<Board>,
    /// The names of the capabilities that are left, for the report.
    capabilities: Vec<String>,
    instances: Vec<Instance>,
    discovered_at: Option<Instant>,
    reported_at: Option<Instant>,
    watched: BTreeSet<ListenerId>,
}

type Probed = HashMap<ListenerId, ListenerReading>;

impl Engine {
    pub(super) fn new(
        config: Config,
        hands: Hands,
        probes: Probes,
        board: Arc<Board>,
        capabilities: Vec<String>,
    ) -> Self {
        Self {
            config,
            hands,
            probes,
            board,
            capabilities,
            instances: Vec::new(),
            discovered_at: None,
            reported_at: None,
            watched: BTreeSet::new(),
        }
    }

    /// Gives back what an earlier run left behind, and writes down what the probes can do.
    pub(super) fn begin(&mut self, now: Now) {
        if self.hands.mode() != Mode::DryRun {
            let mut dirs = self.config.discovery.config_dirs.clone();
            dirs.extend(self.running().into_iter().map(|master| master.config_dir));
            self.hands.restore(&dirs, now);
        }
        for probe in self.probes.health() {
            self.hands.probe(probe, now);
        }
    }

    pub(super) fn tick(&mut self, now: Now) {
        self.discover(now);
        let probed = self.probes.read(now.mono);
        let mut saw = false;
        for instance in &mut self.instances {
            saw |= attend(instance, &mut self.hands, &self.config, &probed, now);
        }
        self.watch_listeners();
        let due = self
            .reported_at
            .is_none_or(|at| now.mono.saturating_duration_since(at) >= REPORT_EVERY);
        if saw || due {
            self.reported_at = Some(now.mono);
            self.report(now);
        }
    }

    /// How soon the next tick is due.
    pub(super) fn pace(&self) -> Duration {
        self.instances.iter().map(Instance::pace).min().unwrap_or(TICK)
    }

    /// The daemon stops: whatever is in force is given back, with one reload an instance.
    pub(super) fn end(&mut self, now: Now) {
        for instance in &mut self.instances {
            give_back(instance, &mut self.hands, "the daemon stops", now);
        }
    }

    fn running(&self) -> Vec<crate::postfix::Master> {
        discovery::masters(&self.config.discovery.config_dirs).unwrap_or_else(|error| {
            tracing::error!("cannot look for running masters: {error}");
            Vec::new()
        })
    }

    fn discover(&mut self, now: Now) {
        let every = if self.instances.iter().all(Instance::alive) {
            DISCOVER_EVERY
        } else {
            DISCOVER_AT_MOST_EVERY
        };
        if self
            .discovered_at
            .is_some_and(|at| now.mono.saturating_duration_since(at) < every)
        {
            return;
        }
        self.discovered_at = Some(now.mono);
        let room = self.config.discovery.max_instances;
        for master in self.running() {
            let count = self.instances.len();
            let id = master.config_dir.display().to_string();
            match self.instances.iter_mut().find(|instance| instance.id == id) {
                Some(instance) if instance.master == master => {}
                Some(instance) => {
                    tracing::info!(instance = %id, pid = master.pid, "Postfix was restarted");
                    instance.replace_master(master);
                }
                None if count < room => {
                    tracing::info!(instance = %id, pid = master.pid, "Postfix found");
                    self.instances.push(Instance::new(master, &self.config));
                }
                None => tracing::warn!(instance = %id, "not watched: discovery.max_instances is reached"),
            }
        }
        self.forget_stopped(now);
        self.instances.iter_mut().for_each(Instance::try_replaceable);
    }

    fn forget_stopped(&mut self, now: Now) {
        let hands = &mut self.hands;
        self.instances.retain_mut(|instance| {
            if instance
                .gone_for(now.mono)
                .is_none_or(|gone| gone < RESTART_WITHIN)
            {
                return true;
            }
            tracing::info!(instance = %instance.id, "Postfix has stopped");
            give_back(instance, hands, "Postfix has stopped", now);
            false
        });
    }

    fn watch_listeners(&mut self) {
        let wanted: BTreeSet<ListenerId> = self
            .instances
            .iter()
            .flat_map(|instance| &instance.services)
            .flat_map(Service::listener_ids)
            .collect();
        if wanted != self.watched {
            let listeners: Vec<_> = wanted.iter().copied().collect();
            self.probes.watch(&listeners);
            self.watched = wanted;
        }
    }

    fn report(&self, now: Now) {
        let permitted = self.hands.permitted();
        for instance in &self.instances {
            // Either by listener or for the whole namespace, never both: their sum would count drops twice.
            let of_namespace = if self.probes.sees_overflows() {
                None
            } else {
                listen_overflows(instance.master.pid).ok()
            };
            self.board.set_accept_overflows(&instance.id, of_namespace);
        }
        let instances = self
            .instances
            .iter()
            .map(|one| report::instance(one, &instance_actionable(one, &permitted)));
        let report = Report {
            version: env!("CARGO_PKG_VERSION").into(),
            mode: self.hands.mode(),
            capabilities: self.capabilities.clone(),
            probes: self.probes.health().to_vec(),
            kubernetes: None,
            instances: instances.collect(),
        };
        self.board.publish(report, now.mono);
    }
}

fn instance_actionable(instance: &Instance, permitted: &Result<(), String>) -> Result<(), String> {
    if !instance.trouble.is_empty() {
        return Err(instance.trouble.clone());
    }
    if let Some(broken) = &instance.broken {
        return Err(broken.clone());
    }
    permitted.clone().and_then(|()| instance.replaceable.clone())
}

/// One tick of one instance. `true` when something new was seen.
fn attend(instance: &mut Instance, hands: &mut Hands, config: &Config, probed: &Probed, now: Now) -> bool {
    if !instance.alive() {
        instance.gone(now.mono);
        verify(instance, hands, false, now);
        return false;
    }
    if instance.refresh(config, now.mono) {
        notice_broken_files(instance, hands, now);
        if hands.mode() == Mode::Enforce {
            notice_outside_edits(instance, hands, now);
        }
        for index in 0..instance.services.len() {
            let service = &instance.services[index];
            if instance.broken.is_none() && service.watched.actionable.is_ok() && !service.in_force() {
                hands.rehearse(&instance.target(index), now);
            }
        }
    }
    let Some(found) = instance.look(config, now.mono) else {
        return false;
    };
    for (index, found) in found.into_iter().enumerate() {
        let look = found.combine(&instance.services[index].watched, instance.master.netns, probed);
        instance.services[index].see(look);
        decide(instance, index, hands, now);
        shed(instance, index, hands, config, now);
    }
    verify(instance, hands, true, now);
    true
}

/// Somebody has broken the configuration, or mended it: an alarm, and its end.
fn notice_broken_files(instance: &mut Instance, hands: &mut Hands, now: Now) {
    let broken = hands.deadly(&instance.master);
    if broken == instance.broken {
        return;
    }
    hands.alarm(&instance.id, broken.as_deref(), now);
    instance.broken = broken;
    // A clear that came meanwhile took our lines out, and the master still runs with them.
    let waiting = instance.broken.is_none() && !instance.services.iter().any(Service::in_force);
    if waiting && hands.mode() == Mode::Enforce {
        hands.restore(std::slice::from_ref(&instance.master.config_dir), now);
    }
}

/// Somebody took our lines out: their file, their decision. The state follows, and nothing is put back.
fn notice_outside_edits(instance: &mut Instance, hands: &mut Hands, now: Now) {
    let mut lost = false;
    for service in instance
        .services
        .iter_mut()
        .filter(|service| service.in_force() && !service.lines_in_file)
    {
        let what = if instance.broken.is_some() {
            "our lines are no longer in master.cf, and stay out; the master is told when the file is whole again"
        } else {
            "our lines are no longer in master.cf: somebody else took them out, and they stay out"
        };
        hands.outside_edit(
            &instance.id,
            &service.watched.id,
            what,
            service.controller.state(),
            now,
        );
        service.under_way = None;
        if let Some(change) = service.controller.lost(now.mono, what.into()) {
            instance.budget.release();
            hands.transition(&instance.id, &service.watched.id, change, now);
        }
        lost = true;
    }
    // Nothing of ours is left in the file: the journal's account of it is closed, and the master told once if it may
    // still run with what is no longer written anywhere.
    if lost && !instance.services.iter().any(Service::in_force) {
        hands.restore(std::slice::from_ref(&instance.master.config_dir), now);
    }
}

fn decide(instance: &mut Instance, index: usize, hands: &mut Hands, now: Now) {
    let actionable = instance_actionable(instance, &hands.permitted())
        .and_then(|()| instance.services[index].watched.actionable.clone());
    let budget = instance.budget.may_trip(now.mono);
    let service = &mut instance.services[index];
    // One act at a time: the next one waits until the last is known to have taken.
    let (Some(seen), None) = (&service.seen, &service.under_way) else {
        return;
    };
    let native_stress = service.watched.native && seen.sample.native_stress.value() == Some(&true);
    let verdict = seen.verdict.clone();
    let step = service.controller.step(
        now.mono,
        &verdict,
        &Gate {
            actionable,
            native_stress,
            budget,
        },
    );
    let id = service.watched.id.clone();
    if let Some(change) = step.transition {
        hands.transition(&instance.id, &id, change, now);
    }
    if let Some(reason) = step.refusal {
        hands.refusal(&instance.id, &id, reason, &verdict.reasons, now);
    }
    let (act, reasons) = match step.plan {
        Plan::Nothing => return,
        Plan::Trip { reasons } => (Act::Trip, reasons),
        Plan::Clear { reasons } => (Act::Clear, reasons),
    };
    carry_out(instance, index, act, reasons, hands, now);
}

fn carry_out(
    instance: &mut Instance,
    index: usize,
    act: Act,
    reasons: Vec<String>,
    hands: &mut Hands,
    now: Now,
) {
    let target = instance.target(index);
    let service = &mut instance.services[index];
    let id = service.watched.id.clone();
    let result = match act {
        Act::Trip => hands.trip(&target, &reasons, now),
        Act::Clear => hands.clear(&target, &reasons, now),
    };
    let done = result.is_ok();
    if done {
        match act {
            Act::Trip => instance.budget.trip(now.mono),
            Act::Clear => instance.budget.clear(now.mono),
        }
    }
    if let Ok(Done::InFlight(in_flight)) = result {
        service.under_way = Some(*in_flight);
    }
    if let Some(change) = service.controller.settle(now.mono, act, done, reasons) {
        hands.transition(&instance.id, &id, change, now);
    }
}

/// While the service is stressed: closes what breaks the limits of stress mode.
fn shed(instance: &mut Instance, index: usize, hands: &mut Hands, config: &Config, now: Now) {
    let permitted = config.act.shed && hands.mode() == Mode::Enforce;
    let id = instance.id.clone();
    let Some((service, sockets)) = instance.service_and_sockets(index) else {
        return;
    };
    if permitted && service.watched.actionable.is_ok() && service.stressed() {
        let (Some(seen), Some(situation)) = (&service.seen, service.situation()) else {
            return;
        };
        for offender in service
            .shedding
            .offenders(&seen.connections, situation, config.act.min_patience)
        {
            if hands.close(&id, &service.watched.id, sockets, &offender) {
                service.shedding.closed(now.mono, &offender);
            }
        }
    }
    let tally = if service.stressed() {
        service.shedding.due(now.mono)
    } else {
        service.shedding.rest()
    };
    if let Some(tally) = tally {
        hands.shed(&id, &service.watched.id, tally, now);
    }
}

/// Whether the reloads under way have taken.
fn verify(instance: &mut Instance, hands: &mut Hands, alive: bool, now: Now) {
    let workers = instance.workers().to_vec();
    for service in &mut instance.services {
        let Some(under_way) = &service.under_way else {
            continue;
        };
        match under_way.verification.step(now.mono, alive, &workers) {
            Progress::Pending => {}
            Progress::Confirmed(how) => {
                hands.confirmed(under_way, &how);
                service.under_way = None;
            }
            Progress::Failed(why) => {
                if let Some(under_way) = service.under_way.take() {
                    hands.failed(under_way, &why, now);
                }
                if let Some(change) = service.controller.lost(now.mono, why) {
                    instance.budget.clear(now.mono);
                    hands.transition(&instance.id, &service.watched.id, change, now);
                }
            }
        }
    }
}

/// Takes everything of ours out of the files of this instance.
fn give_back(instance: &mut Instance, hands: &mut Hands, why: &str, now: Now) {
    if !instance.services.iter().any(Service::in_force) {
        return;
    }
    if hands.mode() == Mode::Enforce {
        hands.restore(std::slice::from_ref(&instance.master.config_dir), now);
    }
    for service in instance.services.iter_mut().filter(|service| service.in_force()) {
        let change = Transition {
            from: service.controller.state(),
            to: State::Normal,
            reasons: vec![why.to_owned()],
        };
        hands.transition(&instance.id, &service.watched.id, change, now);
    }
}
