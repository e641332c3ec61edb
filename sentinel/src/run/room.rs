//! More slots by themselves: where stress mode is not what helps, or is on already without us. With a trip they come in the
//! trip's own edit, and go with it.

use super::engine::{instance_actionable, set_off};
use super::hands::{Done, Hands};
use super::instance::Instance;
use super::service::{Seen, Service};
use crate::actuator::ActError;
use crate::clock::Now;
use crate::controller::{RoomGate, RoomPlan};
use crate::postfix::edit::Change;

/// Takes in what the last look at a service came to.
pub(super) fn decide(instance: &mut Instance, index: usize, hands: &mut Hands, now: Now) {
    let service = &mut instance.services[index];
    let Some(seen) = service.seen.as_ref().filter(|_| service.at_leisure(now.mono)) else {
        return;
    };
    let verdict = seen.verdict.clone();
    let gate = gate(instance, index, hands, now);
    let service = &mut instance.services[index];
    let clear_dwell = service.controller.clear_dwell();
    match service.headroom.step(now.mono, &verdict, clear_dwell, &gate) {
        RoomPlan::Nothing => {}
        RoomPlan::Alert { reasons } => {
            if let Some((why, rest)) = reasons.split_first() {
                hands.refusal(&instance.id, &service.watched.id, why.clone(), rest, now);
            }
        }
        RoomPlan::Raise { maxproc, reasons } => {
            let change = Change {
                stress: false,
                maxproc: Some(maxproc),
            };
            let result = hands.trip(&instance.target(index), change, &reasons, now);
            let service = &mut instance.services[index];
            if told(service, hands, result) {
                instance.budget.trip(now.mono);
                service.raised_to(change.maxproc, now.mono);
            } else {
                service.headroom.settle(now.mono, true, false);
            }
        }
        RoomPlan::Lower { reasons } => lower(instance, index, &reasons, hands, now),
    }
}

/// The slots that were more are taken back.
pub(super) fn lower(instance: &mut Instance, index: usize, reasons: &[String], hands: &mut Hands, now: Now) {
    let result = hands.clear(&instance.target(index), reasons, now);
    let service = &mut instance.services[index];
    if told(service, hands, result) {
        instance.budget.clear(now.mono);
        service.lowered(now.mono);
    } else {
        service.headroom.settle(now.mono, false, false);
    }
}

fn gate(instance: &Instance, index: usize, hands: &Hands, now: Now) -> RoomGate {
    let service = &instance.services[index];
    let native = |seen: &Seen| seen.sample.native_stress.value() == Some(&true);
    RoomGate {
        state: service.controller.state(),
        native_stress: service.watched.native && service.seen.as_ref().is_some_and(native),
        room: service.room.clone(),
        actionable: instance_actionable(instance, hands).and_then(|()| service.watched.actionable.clone()),
        budget: instance.budget.may_trip(now.mono),
    }
}

/// Whether the act was done; one that the master was told of is under way from here on.
fn told(service: &mut Service, hands: &Hands, result: Result<Done, ActError>) -> bool {
    match result {
        Ok(Done::InFlight(in_flight)) => {
            set_off(service, hands, *in_flight);
            true
        }
        Ok(Done::Pretended) => true,
        Err(_) => false,
    }
}
