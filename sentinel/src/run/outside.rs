//! Other hands on master.cf: what they did is seen, said, and never undone. What goes is our own lines, and where
//! somebody has decided against them they stay out for as long as the attack lasts: nobody fights over the file.

use std::time::Duration;

use super::hands::{Done, Hands};
use super::instance::{Instance, Reread};
use super::service::Service;
use crate::clock::Now;
use crate::controller::State;
use crate::postfix::edit;
use crate::status::Mode;

/// A script that edits in a loop does not fill the history.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Lines of another sentinel that is in charge are looked at again after this long.
const OTHERS_FOR: Duration = Duration::from_secs(60);

const TAKEN_OUT: &str =
    "our lines are no longer in master.cf: somebody else took them out, and they stay out";
const TAKEN_OVER: &str = "somebody else has changed our lines in master.cf; the -o stress= that is there now is theirs, and we leave it";
const OUT_AND_WAITING: &str =
    "our lines are no longer in master.cf, and stay out; the master is told when it would survive a reload";
const ENTRY_GONE: &str = "the entry is no longer in master.cf, and our lines went with it";
const CHANGED: &str = "somebody else has changed master.cf; that stays, and in the end only our lines go";
const SET_ANEW: &str =
    "maxproc is no longer what we had raised it to: somebody else has set it, and it stays so";
const CAME_BACK: &str = "our lines are in master.cf without an act of ours: somebody else put them back, or they could not be taken out; they go";

/// Takes in what a new look at master.cf showed.
pub(super) fn notice(instance: &mut Instance, reread: Reread, hands: &mut Hands, now: Now) {
    let mut given_up = Vec::new();
    let dangerous = instance.danger.is_some();
    for mut service in reread.gone {
        give_up(&instance.id, &mut service, ENTRY_GONE, hands, now);
        given_up.push(None);
    }
    for (index, service) in instance.services.iter_mut().enumerate() {
        if service.headroom.raised() && service.watched.own_limit.is_none() {
            set_anew(&instance.id, service, hands, now);
            if !service.in_force() {
                given_up.push(Some(index));
            }
        }
        if !service.in_force() {
            if let (true, Err(reason)) = (service.headroom.raised(), &service.watched.actionable) {
                let why = format!("{reason}: our headroom goes");
                give_up(&instance.id, service, &why, hands, now);
                given_up.push(Some(index));
            }
            continue;
        }
        let why = if service.lines_in_file {
            match &service.watched.actionable {
                Err(reason) => format!("{reason}: our lines go"),
                Ok(()) => {
                    if reread.others_changed {
                        tell_changed(&instance.id, service, hands, now);
                    }
                    continue;
                }
            }
        } else if dangerous {
            OUT_AND_WAITING.to_owned()
        } else if edit::admin_stress(&reread.bytes, &service.watched.id).is_empty() {
            TAKEN_OUT.to_owned()
        } else {
            TAKEN_OVER.to_owned()
        };
        give_up(&instance.id, service, &why, hands, now);
        given_up.push(Some(index));
    }
    if !given_up.is_empty() {
        settle(instance, &given_up, hands, now);
    }
}

/// maxproc is the number of somebody else now, and no headroom of ours any more.
fn set_anew(instance: &str, service: &mut Service, hands: &mut Hands, now: Now) {
    let state = service.controller.state();
    hands.outside_edit(instance, &service.watched.id, SET_ANEW, state, now);
    service.headroom.lost(now.mono);
}

fn tell_changed(instance: &str, service: &mut Service, hands: &mut Hands, now: Now) {
    let told = service.outside_told;
    if told.is_none_or(|at| now.mono.saturating_duration_since(at) >= TELL_EVERY) {
        service.outside_told = Some(now.mono);
        hands.outside_edit(
            instance,
            &service.watched.id,
            CHANGED,
            service.controller.state(),
            now,
        );
    }
}

fn give_up(instance: &str, service: &mut Service, why: &str, hands: &mut Hands, now: Now) {
    let id = service.watched.id.clone();
    hands.outside_edit(instance, &id, why, service.controller.state(), now);
    if let Some(overtaken) = service.under_way.take() {
        hands.confirmed(
            &overtaken,
            "the master lives; somebody else's edit came before a new smtpd was started",
        );
    }
    if service.headroom.raised() {
        service.lowered(now.mono);
        service.headroom.lost(now.mono);
    }
    if let Some(change) = service.controller.yielded(why.to_owned()) {
        hands.transition(instance, &id, change, now);
    }
}

/// Our lines are out of a file that must not be reloaded yet: the state follows the file, the master is told later.
pub(super) fn out_and_waiting(instance: &mut Instance, index: usize, hands: &mut Hands, now: Now) {
    let service = &mut instance.services[index];
    service.lines_in_file = false;
    if let Some(change) = service.controller.yielded(OUT_AND_WAITING.to_owned()) {
        hands.transition(&instance.id, &service.watched.id, change, now);
    }
    instance.budget.release();
}

/// Closes the journal's account of these services, takes out what is left of ours, and tells the master once if it may
/// still run with it. Of an entry that is gone (`None`) there is nothing to take out; while another one is still in
/// force, its account is closed with that one's.
fn settle(instance: &mut Instance, given_up: &[Option<usize>], hands: &mut Hands, now: Now) {
    let mut told = 0;
    if instance.services.iter().any(Service::has_ours) {
        for &index in given_up.iter().flatten() {
            let target = instance.target(index);
            if let Ok(Done::InFlight(in_flight)) = hands.clear(&target, &[TAKEN_OUT.to_owned()], now) {
                instance.services[index].under_way = Some(*in_flight);
                told += 1;
            }
        }
    } else {
        let report = hands.give_back(&instance.master.home(), now);
        told = report.reloads();
    }
    for service in given_up.iter().flatten() {
        let service = &mut instance.services[*service];
        service.lines_in_file = false;
    }
    for number in 0..given_up.len() {
        if number < told {
            instance.budget.clear(now.mono);
        } else {
            instance.budget.release();
        }
    }
}

/// Takes out lines of ours that no act of this run stands for, when the budget has a reload for it: also where new edits
/// are forbidden, by the configuration or by the mode of the pod. What is ours is given back.
pub(super) fn give_back_strays(instance: &mut Instance, hands: &mut Hands, now: Now) {
    // They may be another sentinel's.
    if hands.mode() == Mode::DryRun || instance.replaceable.is_err() {
        return;
    }
    let home = instance.master.home();
    for index in 0..instance.services.len() {
        let service = &instance.services[index];
        let mark = service.watched.own_limit.is_some() && !service.headroom.raised();
        let stray = !service.in_force() && (service.lines_in_file || mark) && service.at_leisure(now.mono);
        if !stray || service.controller.waits(now.mono) || !instance.budget.may_give_back(now.mono) {
            continue;
        }
        let seen = &mut instance.services[index].others_seen;
        if seen.is_some_and(|at| now.mono.saturating_duration_since(at) < OTHERS_FOR) {
            continue;
        }
        // Who only observes holds no claim that would have told.
        if !hands.may_take_out(&home) {
            *seen = Some(now.mono);
            continue;
        }
        let target = instance.target(index);
        hands.outside_edit(&target.instance, &target.service, CAME_BACK, State::Normal, now);
        let result = hands.clear(&target, &[CAME_BACK.to_owned()], now);
        let service = &mut instance.services[index];
        match result {
            Ok(Done::InFlight(in_flight)) => {
                service.under_way = Some(*in_flight);
                service.lines_in_file = false;
                service.lowered(now.mono);
                instance.budget.give_back(now.mono);
            }
            Ok(Done::Pretended) => {}
            Err(_) => service.controller.failed(now.mono),
        }
        hands.let_others(&home);
    }
}
