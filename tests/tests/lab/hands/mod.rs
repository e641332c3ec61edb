//! Other hands on the file and on Postfix, while the daemon is in any state: their work stays, only our lines go, nobody
//! fights, what was seen is said, and there are no more reloads than the budget has.

mod file;
mod postfix;

use std::time::Duration;

use sentinel_lab::Lab;
use sentinel_lab::attackers::{Attack, Attackers};
use sentinel_lab::clock::wait_until;
use sentinel_lab::senders::{Senders, Traffic};
use sentinel_lab::sentinel::{Daemon, Entry, Sentinel, Settings};
use smtp_sentinel::controller::State;

use crate::{PATIENCE, without_shedding};

/// Long enough for several trips in a row, if the daemon were to put back what somebody took out.
const A_WHILE: Duration = Duration::from_secs(4);

/// Slots of smtp/inet, and how many of them attackers take: above the trip threshold, and enough below the last slot for
/// the senders, since at that one master's own stress mode comes on, and there is nothing to toggle.
const SLOTS: u32 = 30;
const ATTACKERS: usize = 22;

fn lab() -> Lab {
    Lab::builder().maxproc(SLOTS).start().unwrap()
}

fn install(lab: &Lab) -> Sentinel {
    Sentinel::install_with(lab, &without_shedding()).unwrap()
}

/// Without leave to edit.
fn observing() -> Settings {
    Settings {
        name: "observer".to_owned(),
        act: "mode = \"observe\"".to_owned(),
        ..Settings::default()
    }
}

fn flood(lab: &Lab) -> Attackers {
    lab.attack(Attack::burst(ATTACKERS)).unwrap()
}

/// The senders make master fork: a new smtpd shows at once that a reload has taken.
fn trip<'a>(lab: &Lab, sentinel: &'a Sentinel) -> (Daemon<'a>, Attackers, Senders) {
    let daemon = sentinel.start().unwrap();
    let senders = lab.senders(Traffic::new(2.0)).unwrap();
    let attackers = flood(lab);
    daemon.wait_state(State::Stressed).unwrap();
    (daemon, attackers, senders)
}

fn text(lab: &Lab) -> String {
    String::from_utf8(lab.postfix.master_cf().unwrap()).unwrap()
}

fn count<'a>(history: &'a [Entry], wanted: impl Fn(&&'a Entry) -> bool) -> usize {
    history.iter().filter(wanted).count()
}

fn trips(history: &[Entry]) -> usize {
    count(history, |entry| {
        entry.is_transition_to("stressed") && entry.from.as_deref() == Some("normal")
    })
}

/// An `outside_edit` that tells this.
fn wait_told(sentinel: &Sentinel, what: &str) {
    wait_until(&format!("an outside_edit that tells {what:?}"), PATIENCE, || {
        Ok(sentinel
            .history()?
            .iter()
            .any(|entry| entry.kind == "outside_edit" && entry.tells(what)))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{:#?}", sentinel.history()));
}

fn wait_bytes(lab: &Lab, what: &str, wanted: &str) {
    wait_until(what, PATIENCE, || {
        Ok(lab.postfix.master_cf()? == wanted.as_bytes())
    })
    .unwrap_or_else(|error| panic!("{error:#}; it is:\n{}", text(lab)));
}
