//! The tick: looks, judges, decides, acts, verifies, and pins the report on the board.
//!
//! Synchronous, on a thread of its own: an act blocks the next look, never a scrape.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hands::{Danger, Done, Hands};
use super::instance::Instance;
use super::roster::{self, Roster};
use super::service::Service;
use super::turns::Turns;
use super::{outside, report, room};
use crate::actuator::{InFlight, Progress};
use crate::clock::{self, Now};
use crate::config::Config;
use crate::controller::{Act, Controller, Gate, Plan};
use crate::detector::STALE_AFTER;
use crate::postfix::{Home, Master};
use crate::probes::{ListenerReading, Probes};
use crate::signals::ListenerId;
use crate::signals::overflows::listen_overflows;
use crate::status::{Board, Mode, Report};

/// Between two ticks. What a quiet tick costs is one small read of /proc per instance.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// The same while slots are running out: from the threshold to the signal every 10 ms count.
pub(super) const QUICK_TICK: Duration = Duration::from_millis(20);

/// Between two reports on the board when nothing new was seen.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Between two readings of the drops of a whole network namespace, which only the metrics want: the kernel adds up hundreds
/// of counters for it.
const OVERFLOWS_EVERY: Duration = Duration::from_secs(5);

pub(super) struct Engine {
    config: Config,
    hands: Hands,
    probes: Probes,
    board: Arc<Board>,
    /// The names of the capabilities that are left, for the report.
    capabilities: Vec<String>,
    roster: Roster,
    reported_at: Option<Instant>,
    totals_at: Option<Instant>,
    overflows_at: Option<Instant>,
    watched: BTreeSet<ListenerId>,
    turns: Turns,
    /// Whose questions are asked next.
    asking: Turns,
}

pub(super) type Probed = HashMap<ListenerId, ListenerReading>;

/// What the probes have counted, read at most once a tick, and not at all in a tick that has no use for it.
pub(super) struct Counted<'a> {
    probes: &'a mut Probes,
    at: Instant,
    read: Option<Probed>,
}

impl Counted<'_> {
    pub(super) fn get(&mut self) -> &Probed {
        self.read.get_or_insert_with(|| self.probes.read(self.at))
    }
}

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
            roster: Roster::default(),
            reported_at: None,
            totals_at: None,
            overflows_at: None,
            watched: BTreeSet::new(),
            turns: Turns::default(),
            asking: Turns::default(),
        }
    }

    /// Gives back what an earlier run left behind, and writes down what the probes can do.
    pub(super) fn begin(&mut self, now: Now) {
        if self.hands.mode() != Mode::DryRun {
            let configured = self.config.discovery.config_dirs.iter().map(Home::own);
            let running = roster::running(&self.config).masters;
            let homes: Vec<Home> = configured.chain(running.iter().map(Master::home)).collect();
            self.hands.restore(&homes, now);
        }
        for probe in self.probes.health() {
            self.hands.probe(probe, now);
        }
    }

    pub(super) fn tick(&mut self, now: Now) {
        self.roster.keep(&self.config, &mut self.hands, now);
        self.ask_in_turn();
        let saw = self.attend_in_turn(clock::now());
        let due = |at: Instant| now.mono.saturating_duration_since(at) >= REPORT_EVERY;
        if saw || self.reported_at.is_none_or(due) {
            self.reported_at = Some(now.mono);
            self.watch_listeners();
            self.report(now);
        }
        if self.totals_at.is_none_or(due) {
            self.totals_at = Some(now.mono);
            self.read_totals(now);
        }
    }

    /// How long after a tick that took so long the next one is due.
    pub(super) fn pause(&self, took: Duration) -> Duration {
        self.board.count_tick(took);
        let pace = self
            .roster
            .instances
            .iter()
            .map(Instance::pace)
            .min()
            .unwrap_or(TICK);
        // However much there is to look at, half of the time is others'.
        pace.saturating_sub(took).max(took.min(TICK / 2))
    }

    /// As many instances as the tick has time for. `true` when something new was seen.
    fn attend_in_turn(&mut self, began: Now) -> bool {
        let mut counted = Counted {
            probes: &mut self.probes,
            at: began.mono,
            read: None,
        };
        let mut saw = false;
        for (nth, index) in self.turns.order(self.roster.instances.len()).enumerate() {
            let now = clock::now();
            if !Turns::may_begin(nth, now.mono.saturating_duration_since(began.mono)) {
                self.turns.resume_at(index);
                self.board
                    .count_deferred((self.roster.instances.len() - nth) as u64);
                break;
            }
            let instance = &mut self.roster.instances[index];
            saw |= attend(instance, &mut self.hands, &self.config, &mut counted, now);
        }
        saw
    }

    /// Has the questions asked that there are, of as many instances as there is time for. All are looked at between these
    /// and the next: an answer can take a second, and one who waits for it is not acted on.
    fn ask_in_turn(&mut self) {
        let began = clock::now().mono;
        let instances = &mut self.roster.instances;
        for (nth, index) in self.asking.order(instances.len()).enumerate() {
            let now = clock::now();
            if !instances[index].has_questions() {
                continue;
            }
            if !Turns::may_begin(nth, now.mono.saturating_duration_since(began)) {
                self.asking.resume_at(index);
                break;
            }
            ask(&mut instances[index], &mut self.hands, &self.config, now);
        }
    }

    /// The daemon stops.
    pub(super) fn end(&mut self, now: Now) {
        self.roster.end(&mut self.hands, now);
    }

    fn watch_listeners(&mut self) {
        let wanted: BTreeSet<ListenerId> = self
            .roster
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

    /// What the kernel counts for the metrics alone, not for a decision.
    fn read_totals(&mut self, now: Now) {
        self.board.set_evictions(self.probes.evictions());
        let due = |at: Instant| now.mono.saturating_duration_since(at) >= OVERFLOWS_EVERY;
        if !self.overflows_at.is_none_or(due) {
            return;
        }
        self.overflows_at = Some(now.mono);
        for instance in &self.roster.instances {
            // Either by listener or for the whole namespace, never both: their sum would count drops twice.
            let of_namespace = if self.probes.sees_overflows() {
                None
            } else {
                listen_overflows(instance.master.pid).ok()
            };
            self.board.set_accept_overflows(&instance.id, of_namespace);
        }
    }

    fn report(&self, now: Now) {
        let instances = self
            .roster
            .instances
            .iter()
            .map(|one| report::instance(one, &instance_actionable(one, &self.hands), self.hands.pods()));
        let report = Report {
            version: env!("CARGO_PKG_VERSION").into(),
            mode: self.hands.mode(),
            capabilities: self.capabilities.clone(),
            probes: self.probes.health().to_vec(),
            kubernetes: self.hands.pods().report(now.mono),
            unseen: self.roster.unseen(),
            instances: instances.collect(),
        };
        self.board.publish(report, now.mono);
    }
}

pub(super) fn instance_actionable(instance: &Instance, hands: &Hands) -> Result<(), String> {
    if !instance.trouble.is_empty() {
        return Err(instance.trouble.clone());
    }
    if let Some(danger) = &instance.danger {
        return Err(danger.sentence().to_owned());
    }
    hands
        .permitted(&instance.id)
        .and_then(|()| instance.replaceable.clone())
}

/// One tick of one instance. `true` when something new was seen.
fn attend(
    instance: &mut Instance,
    hands: &mut Hands,
    config: &Config,
    counted: &mut Counted<'_>,
    now: Now,
) -> bool {
    instance.count_processes(now.mono);
    if !instance.is_there(now.mono) {
        verify(instance, hands, false, now);
        return false;
    }
    instance.look_for_changes(now.mono);
    outside::give_back_strays(instance, hands, now);
    if !instance.wants_a_look(config, counted, now.mono) {
        return false;
    }
    let probed = counted.get();
    let found = instance.look(config, probed, now.mono);
    let judged = clock::now();
    for (index, found) in found.into_iter().enumerate() {
        let service = &mut instance.services[index];
        let look = found.combine(&service.watched, instance.master.netns, probed, judged.mono);
        service.see(look);
        decide(instance, index, hands, judged);
        room::decide(instance, index, hands, judged);
        if judged.mono.saturating_duration_since(now.mono) <= STALE_AFTER {
            shed(instance, index, hands, config, judged);
        }
    }
    verify(instance, hands, true, judged);
    true
}

/// Asks postconf(1) what there is to ask about an instance, in small portions: whatever waits for an answer keeps every
/// instance waiting.
fn ask(instance: &mut Instance, hands: &mut Hands, config: &Config, now: Now) {
    if let Some(index) = instance.unrehearsed() {
        rehearse(instance, index, hands, now);
        return;
    }
    let reread = instance.read_changes(config, now.mono);
    if std::mem::take(&mut instance.changed) {
        notice_danger(instance, hands, now);
    }
    let Some(reread) = reread else {
        return;
    };
    for service in &mut instance.services {
        service.rehearsed = None;
    }
    if hands.enforces(&instance.id) {
        outside::notice(instance, reread, hands, now);
    }
}

/// Has the questions of the trip that may come asked beforehand.
fn rehearse(instance: &mut Instance, index: usize, hands: &mut Hands, now: Now) {
    let change = instance.services[index].change(true);
    instance.services[index].rehearsed = Some(change);
    hands.rehearse(&instance.target(index), change, now);
}

/// Somebody has made a reload dangerous, or has mended it: an alarm where the files are broken, and its end.
fn notice_danger(instance: &mut Instance, hands: &mut Hands, now: Now) {
    let danger = hands.danger(&instance.master);
    if danger == instance.danger {
        return;
    }
    let was = std::mem::replace(&mut instance.danger, danger);
    let broken = instance.danger.as_ref().and_then(Danger::broken);
    if was.as_ref().and_then(Danger::broken) != broken {
        hands.alarm(&instance.id, broken, now);
    }
    if let Some(Danger::Unopened(sentence)) = &instance.danger {
        tracing::warn!(instance = %instance.id, "{sentence}");
    }
    if instance.danger.is_none() {
        let controllers = instance
            .services
            .iter_mut()
            .map(|service| &mut service.controller);
        controllers.for_each(Controller::try_again);
    }
    // A clear that came meanwhile took our lines out, and the master still runs with them.
    let waiting = instance.danger.is_none() && !instance.services.iter().any(Service::has_ours);
    let home = instance.master.home();
    if waiting && hands.may_give_back(&home) {
        hands.give_back(&home, now);
    }
}

fn decide(instance: &mut Instance, index: usize, hands: &mut Hands, now: Now) {
    let actionable = instance_actionable(instance, hands)
        .and_then(|()| instance.services[index].watched.actionable.clone());
    let budget = instance.budget.may_trip(now.mono);
    let service = &mut instance.services[index];
    let Some(seen) = &service.seen else {
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
    // A plan is made anew at each look: none is lost by waiting until the master has outlived the last signal.
    if !service.at_leisure(now.mono) {
        return;
    }
    carry_out(instance, index, act, reasons, hands, now);
}

pub(super) fn carry_out(
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
    let (change, had_ours) = (service.change(true), service.has_ours());
    let crossing = service.controller.crossing().filter(|_| act == Act::Trip);
    let result = match act {
        Act::Trip => hands.trip(&target, change, &reasons, now),
        Act::Clear => hands.clear(&target, &reasons, now),
    };
    let done = result.is_ok();
    if done {
        match act {
            Act::Trip => {
                instance.budget.trip(now.mono);
                if had_ours {
                    // One clear takes both back.
                    instance.budget.release();
                }
                service.raised_to(change.maxproc, now.mono);
            }
            Act::Clear => {
                instance.budget.clear(now.mono);
                service.lowered(now.mono);
            }
        }
    }
    let mut detail = serde_json::json!({});
    if let Ok(Done::InFlight(in_flight)) = result {
        if let Some(crossing) = crossing {
            detail = reaction(crossing, now.mono, in_flight.verification.signalled());
        }
        service.lines_in_file = act == Act::Trip;
        set_off(service, hands, *in_flight);
    }
    if let Some(change) = service.controller.settle(now.mono, act, done, reasons) {
        hands.transition_with(&instance.id, &id, change, detail, now);
    }
    // The file came first and is without our lines; only the master could not be told, since it must not be reloaded.
    if act == Act::Clear && !done && instance.danger.is_some() && !hands.ours_in(&target) {
        outside::out_and_waiting(instance, index, hands, now);
    }
}

/// The master was told; what was under way before has not been seen to fail.
pub(super) fn set_off(service: &mut Service, hands: &Hands, in_flight: InFlight) {
    if let Some(last) = service.under_way.replace(in_flight) {
        hands.confirmed(
            &last,
            "the master lives; the next act came before a new smtpd was started",
        );
    }
}

/// How soon a trip came, in parts: until the condition was seen, how long it had to last, and until the master was told.
fn reaction((before, seen): (Instant, Instant), decided: Instant, signalled: Instant) -> serde_json::Value {
    let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
    serde_json::json!({ "reaction": {
        "unseen_ms": ms(before, seen),
        "dwell_ms": ms(seen, decided),
        "act_ms": ms(decided, signalled),
    } })
}

/// While the service is stressed: closes what breaks the limits of stress mode.
fn shed(instance: &mut Instance, index: usize, hands: &mut Hands, config: &Config, now: Now) {
    let permitted = config.act.shed && hands.enforces(&instance.id);
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
                    let home = under_way.target.master.home();
                    match roster::gone_container(&home, alive) {
                        Some(container) => hands.abandon(container, &home, now),
                        None => hands.failed(under_way, &why, now),
                    }
                }
                if service.has_ours() {
                    instance.budget.clear(now.mono);
                }
                if service.headroom.raised() {
                    service.lowered(now.mono);
                    service.headroom.lost(now.mono);
                }
                if let Some(change) = service.controller.lost(now.mono, why) {
                    hands.transition(&instance.id, &service.watched.id, change, now);
                }
            }
        }
    }
}
