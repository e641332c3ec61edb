//! Who is watched: looks for masters, follows what the cluster says of their pods, and lets go of those that are to be
//! watched no longer, with everything of ours taken out of their files.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::engine::carry_out;
use super::hands::{Danger, Hands};
use super::instance::Instance;
use super::room;
use super::service::Service;
use crate::clock::Now;
use crate::config::{Config, PodMode};
use crate::controller::{Act, State, Transition};
use crate::postfix::discovery::{Survey, Unseen};
use crate::postfix::root::Container;
use crate::postfix::{Home, Master, discovery, fair};
use crate::status;

/// Between two searches through /proc for masters; one that has died is looked for at once.
const DISCOVER_EVERY: Duration = Duration::from_secs(5);
const DISCOVER_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Between two questions to what is known of the cluster.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A Postfix that is restarted is back within this; after it, what is ours in its files is given back.
const RESTART_WITHIN: Duration = Duration::from_secs(10);

/// Between two attempts to rid a Postfix of our lines, beside those that an act of ours has. Each that fails is in history.
const TRY_AGAIN: Duration = Duration::from_secs(600);

const SWITCHED_OFF: &str = "the mode of its pod is off";

/// The instances that are watched.
#[derive(Default)]
pub(super) struct Roster {
    pub(super) instances: Vec<Instance>,
    discovered_at: Option<Instant>,
    asked_at: Option<Instant>,
    /// How many masters there was no room for.
    passed_over: usize,
    /// What may be a Postfix and could not be looked into, as of the last search.
    unseen: Unseen,
}

impl Roster {
    pub(super) fn keep(&mut self, config: &Config, hands: &mut Hands, now: Now) {
        self.discover(config, hands, now);
        self.follow_pods(hands, now);
    }

    /// The daemon stops: whatever is in force is given back, with one reload an instance.
    pub(super) fn end(&mut self, hands: &mut Hands, now: Now) {
        for instance in &mut self.instances {
            give_back(instance, hands, "the daemon stops", now);
        }
    }

    fn discover(&mut self, config: &Config, hands: &mut Hands, now: Now) {
        let every = if self.instances.iter().any(Instance::is_gone) {
            DISCOVER_AT_MOST_EVERY
        } else {
            DISCOVER_EVERY
        };
        if self
            .discovered_at
            .is_some_and(|at| now.mono.saturating_duration_since(at) < every)
        {
            return;
        }
        self.discovered_at = Some(now.mono);
        let survey = running(config);
        self.note_unseen(survey.unseen);
        let running = self.wanted(survey.masters, hands, now);
        let (masters, over) = fair::choose(running, config.discovery.max_instances);
        self.pass_over(&over, hands, now);
        for master in masters {
            let count = self.instances.len();
            let id = master.home().name();
            match self.instances.iter_mut().find(|instance| instance.id == id) {
                // Whoever claims the place of one that lives is not believed.
                Some(instance) if instance.alive() => {}
                Some(instance) => {
                    tracing::info!(instance = %id, pid = master.pid, "Postfix was restarted");
                    instance.replace_master(master);
                }
                None if count < config.discovery.max_instances => {
                    tracing::info!(instance = %id, pid = master.pid, "Postfix found");
                    self.instances.push(Instance::new(master, config));
                }
                // One that has stopped keeps its place for a moment.
                None => {}
            }
        }
        self.forget_stopped(hands, now);
        for instance in &mut self.instances {
            let claimed = hands.claim(&instance.master.home());
            instance.try_replaceable(claimed);
            // A listener that was missing is opened by a reload, which leaves no trace in the files.
            instance.changed |= matches!(instance.danger, Some(Danger::Unopened(_)));
        }
    }

    /// Once, and not for each process or each search.
    fn note_unseen(&mut self, unseen: Unseen) {
        if self.unseen.count == 0 && unseen.count > 0 {
            tracing::warn!(
                count = unseen.count,
                "processes called master could not be looked into, and may be a Postfix that is not watched: {}",
                unseen.reason
            );
        }
        self.unseen = unseen;
    }

    /// For the report.
    pub(super) fn unseen(&self) -> Option<status::Unseen> {
        let Unseen { count, reason } = &self.unseen;
        (*count > 0).then(|| status::Unseen {
            count: u32::try_from(*count).unwrap_or(u32::MAX),
            reason: reason.clone(),
        })
    }

    /// Those that there is no room for, and lets go of those of them that were watched so far.
    fn pass_over(&mut self, over: &[Master], hands: &mut Hands, now: Now) {
        if over.len() != std::mem::replace(&mut self.passed_over, over.len()) {
            tracing::warn!(
                count = over.len(),
                "masters that are not watched: discovery.max_instances is reached"
            );
        }
        self.instances.retain_mut(|instance| {
            let displaced = over.contains(&instance.master);
            if displaced {
                let why = "another container has none watched yet, and there is room for no more";
                tracing::warn!(instance = %instance.id, "no longer watched: {why}");
                let_go(instance, hands, why, now);
            }
            !displaced
        });
    }

    /// Asks the cluster anew what may be done with each, and lets go of what may not be held any longer.
    fn follow_pods(&mut self, hands: &mut Hands, now: Now) {
        let due = self
            .asked_at
            .is_none_or(|at| now.mono.saturating_duration_since(at) >= ASK_EVERY);
        if !due {
            return;
        }
        self.asked_at = Some(now.mono);
        self.instances
            .retain_mut(|instance| match hands.ask(&instance.id, &instance.master, now) {
                PodMode::Enforce => true,
                PodMode::Observe => {
                    stand_down(instance, hands, now);
                    true
                }
                PodMode::Off => {
                    stand_down(instance, hands, now);
                    let over = is_rid(instance, hands, now);
                    if over {
                        tracing::info!(instance = %instance.id, "no longer watched: {SWITCHED_OFF}");
                        hands.release(&instance.master.home());
                    }
                    !over
                }
            });
    }

    /// Those that the cluster wants watched.
    fn wanted(&self, mut masters: Vec<Master>, hands: &mut Hands, now: Now) -> Vec<Master> {
        let name = |master: &Master| master.home().name();
        let running: BTreeSet<_> = masters.iter().map(name).collect();
        let instances = &self.instances;
        let known = |id: &str| running.contains(id) || instances.iter().any(|one| one.id == id);
        hands.forget_pods(|id| !known(id));
        masters.retain(|master| hands.ask(&name(master), master, now) != PodMode::Off);
        masters
    }

    fn forget_stopped(&mut self, hands: &mut Hands, now: Now) {
        self.instances.retain_mut(|instance| {
            if instance
                .gone_for(now.mono)
                .is_none_or(|gone| gone < RESTART_WITHIN)
            {
                return true;
            }
            tracing::info!(instance = %instance.id, "Postfix has stopped");
            let_go(instance, hands, "Postfix has stopped", now);
            false
        });
    }
}

/// The masters that run now, watched or not.
pub(super) fn running(config: &Config) -> Survey {
    discovery::survey(&config.discovery.scope()).unwrap_or_else(|error| {
        tracing::error!("cannot look for running masters: {error}");
        Survey::default()
    })
}

/// The pod has lost the mode in which it may be acted on: what is in force goes, as at the end of an attack.
fn stand_down(instance: &mut Instance, hands: &mut Hands, now: Now) {
    let Err(why) = hands.permitted(&instance.id) else {
        return;
    };
    for index in 0..instance.services.len() {
        let service = &instance.services[index];
        if !service.at_leisure(now.mono) || service.controller.waits(now.mono) {
            continue;
        }
        if service.in_force() {
            carry_out(instance, index, Act::Clear, vec![why.clone()], hands, now);
        } else if service.has_ours() {
            room::lower(instance, index, std::slice::from_ref(&why), hands, now);
            let service = &mut instance.services[index];
            if service.has_ours() {
                service.controller.failed(now.mono);
            }
        }
    }
}

/// Whether nothing of ours is left in the files of an instance whose pod was switched off; what no act of this run stands for
/// is given back on the way. Until then it is held, since nobody else would take it out.
fn is_rid(instance: &mut Instance, hands: &mut Hands, now: Now) -> bool {
    let busy = |service: &Service| service.has_ours() || !service.at_leisure(now.mono);
    let recent = |at: Instant| now.mono.saturating_duration_since(at) < TRY_AGAIN;
    if instance.alive() && instance.services.iter().any(busy) || instance.rid_at.is_some_and(recent) {
        return false;
    }
    // Lines that the journal does not know of may be another sentinel's.
    if !give_back(instance, hands, SWITCHED_OFF, now) && hands.owes(&instance.master.home()) {
        instance.rid_at = Some(now.mono);
        return false;
    }
    for last in instance
        .services
        .iter_mut()
        .filter_map(|one| one.under_way.take())
    {
        hands.confirmed(&last, "the master lives, and is watched no longer");
    }
    true
}

/// It is watched no longer: others may have its master.cf.
fn let_go(instance: &mut Instance, hands: &mut Hands, why: &str, now: Now) {
    give_back(instance, hands, why, now);
    hands.release(&instance.master.home());
}

/// Takes everything of ours out of the files of this instance. `false` where something may be left.
fn give_back(instance: &mut Instance, hands: &mut Hands, why: &str, now: Now) -> bool {
    let mut complete = true;
    let ours = |service: &Service| service.has_ours() || service.lines_in_file;
    let home = instance.master.home();
    let any = instance.services.iter().any(ours) || hands.owes(&home);
    if any && hands.may_give_back(&home) {
        match gone_container(&home, instance.alive()) {
            Some(container) => hands.abandon(container, &home, now),
            None => complete = hands.give_back(&home, now).complete(),
        }
    }
    for service in instance.services.iter_mut().filter(|service| service.in_force()) {
        let change = Transition {
            from: service.controller.state(),
            to: State::Normal,
            reasons: vec![why.to_owned()],
        };
        hands.transition(&instance.id, &service.watched.id, change, now);
    }
    complete
}

/// The container of an instance, if nothing runs in it any more. What is left of its files is a file system that another
/// start of it may be using by now, and we write nothing there.
pub(super) fn gone_container(home: &Home, alive: bool) -> Option<&Container> {
    let container = home.root.container()?;
    (!alive && !discovery::inhabited(container.mount_namespace)).then_some(container)
}
