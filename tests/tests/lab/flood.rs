//! The main job: a flood is seen, stress mode goes on in time, mail keeps flowing, and master.cf is in the end what it was.
//! And what must not happen: edits where an administrator has decided, or where stress mode would do nothing.

use std::time::Duration;

use sentinel_lab::attackers::{Attack, Attackers};
use sentinel_lab::clock::wait_until;
use sentinel_lab::senders::{Tally, Traffic};
use sentinel_lab::sentinel::Sentinel;
use sentinel_lab::{Lab, master_cf};
use smtp_sentinel::controller::State;

use crate::{PATIENCE, observe, without_shedding};

/// Slots of smtp/inet.
const SLOTS: u32 = 30;

/// Takes 22 of 30 slots and sits. That is just above the trip threshold, and leaves enough for the senders on a slow day: at
/// the last slot but one master's own stress mode comes on, and there is nothing to toggle.
fn flood(lab: &Lab) -> Attackers {
    lab.attack(Attack::flood(22)).unwrap()
}

/// The lines that `new` has beyond those of `old`; `None` when a line of `old` is changed, moved or gone.
fn added_lines(old: &[u8], new: &[u8]) -> Option<Vec<String>> {
    let mut added = Vec::new();
    let mut rest = new.split_inclusive(|&byte| byte == b'\n');
    for wanted in old.split_inclusive(|&byte| byte == b'\n') {
        loop {
            let line = rest.next()?;
            if line == wanted {
                break;
            }
            added.push(String::from_utf8_lossy(line).into_owned());
        }
    }
    added.extend(rest.map(|line| String::from_utf8_lossy(line).into_owned()));
    Some(added)
}

#[test]
fn a_flood_trips_and_its_end_gives_every_byte_back() {
    let lab = Lab::builder()
        .master_cf(master_cf::weathered(SLOTS))
        .start()
        .unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = Sentinel::install_with(&lab, &without_shedding()).unwrap();
    let daemon = sentinel.start().unwrap();
    let senders = lab.senders(Traffic::new(2.0)).unwrap();
    wait_until("mail to flow", PATIENCE, || Ok(senders.so_far().len() >= 5)).unwrap();
    daemon.wait_state(State::Normal).unwrap();
    assert_eq!(
        lab.postfix.master_cf().unwrap(),
        original,
        "calm is no reason to edit"
    );

    let attackers = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    let edited = lab.postfix.master_cf().unwrap();
    let added = added_lines(&original, &edited).expect("every line of the administrator is still there");
    assert_eq!(
        added.len(),
        2,
        "one argument line and one comment line: {added:?}"
    );
    let (comment, argument) = (
        added.iter().find(|line| line.starts_with('#')),
        &added.iter().find(|line| !line.starts_with('#')),
    );
    assert!(
        comment.is_some_and(|line| line.contains("smtp-sentinel")),
        "{added:?}"
    );
    assert!(
        argument.is_some_and(|line| line.trim() == "-o stress=yes"),
        "{added:?}"
    );
    let youngest = lab
        .postfix
        .wait_youngest("in stress", PATIENCE, |one| {
            one.stress_of_master_cf() == Some("yes")
        })
        .unwrap();
    assert_eq!(youngest.stress(), Some("yes"));
    assert_eq!(lab.postfix.reloads(), 1);

    // Those that came before the trip keep their 300 s: a reload frees no slot.
    let toll = attackers.toll();
    assert!(toll.holding >= 10, "{toll:?}");
    attackers.stop().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    wait_until("the second reload", PATIENCE, || Ok(lab.postfix.reloads() == 2)).unwrap();
    lab.postfix
        .wait_youngest("without our argument", PATIENCE, |one| {
            one.stress_of_master_cf().is_none()
        })
        .unwrap();

    let tally = Tally::of(&senders.stop().unwrap());
    assert_eq!(tally.delivered, tally.tried, "{tally:?}");

    let history = sentinel.history().unwrap();
    let states: Vec<_> = history
        .iter()
        .filter(|entry| entry.kind == "transition")
        .filter_map(|entry| entry.to.as_deref())
        .collect();
    assert_eq!(states.first(), Some(&"stressed"), "{history:#?}");
    assert_eq!(states.last(), Some(&"normal"), "{history:#?}");
    let trip = history
        .iter()
        .find(|entry| entry.is_transition_to("stressed"))
        .unwrap();
    assert!(
        trip.reasons.iter().any(|reason| reason.contains("30")),
        "the reasons tell how many slots there are: {trip:?}"
    );
    let done = |action: &str| {
        history
            .iter()
            .filter(|entry| {
                entry.action.as_deref() == Some(action) && entry.outcome.as_deref() == Some("done")
            })
            .count()
    };
    assert_eq!((done("edit"), done("undo")), (1, 1), "{history:#?}");

    // A reload counts once it is seen to have taken, which is after the state.
    for (name, labels, value) in [
        ("reloads_total", &[("result", "done")][..], 2.0),
        ("transitions_total", &[("to", "stressed")], 1.0),
        ("transitions_total", &[("to", "normal")], 1.0),
        ("state", &[("service", "smtp/inet"), ("state", "normal")], 1.0),
    ] {
        wait_until(&format!("{name} {labels:?} to be {value}"), PATIENCE, || {
            Ok(daemon.metrics()?.sum(&format!("smtp_sentinel_{name}"), labels) == Some(value))
        })
        .unwrap();
    }
}

#[test]
fn sigterm_gives_back_what_is_ours() {
    let lab = Lab::builder().maxproc(SLOTS).start().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    let _attackers = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    assert_eq!(daemon.terminate().unwrap(), Some(0), "{}", sentinel.log());
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    wait_until("the second reload", PATIENCE, || Ok(lab.postfix.reloads() == 2)).unwrap();
    let history = sentinel.history().unwrap();
    assert!(
        history
            .iter()
            .any(|entry| entry.action.as_deref() == Some("undo")),
        "{history:#?}"
    );
}

#[test]
fn restore_undoes_what_a_killed_daemon_left() {
    let lab = Lab::builder()
        .master_cf(master_cf::weathered(SLOTS))
        .start()
        .unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    let _attackers = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    daemon.kill().unwrap();
    assert_ne!(lab.postfix.master_cf().unwrap(), original);

    let answer = sentinel.ask(&["restore"]).unwrap();
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    wait_until("the second reload", PATIENCE, || Ok(lab.postfix.reloads() == 2)).unwrap();

    let again = sentinel.ask(&["restore"]).unwrap();
    assert_eq!(again.code, Some(0), "nothing to restore is no failure: {again:?}");
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    assert_eq!(lab.postfix.reloads(), 2, "it reloads once");
}

#[test]
fn the_next_start_undoes_what_a_killed_daemon_left() {
    let lab = Lab::builder().maxproc(SLOTS).start().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    let attackers = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    daemon.kill().unwrap();
    assert_ne!(lab.postfix.master_cf().unwrap(), original);
    attackers.stop().unwrap();
    wait_until("the slots to be free", PATIENCE, || Ok(lab.sockets()?.held == 0)).unwrap();

    let daemon = sentinel.start().unwrap();
    wait_until("the original bytes", PATIENCE, || {
        Ok(lab.postfix.master_cf()? == original)
    })
    .unwrap();
    daemon.wait_state(State::Normal).unwrap();
    wait_until("the second reload", PATIENCE, || Ok(lab.postfix.reloads() == 2)).unwrap();
    assert_eq!(daemon.terminate().unwrap(), Some(0));
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    assert_eq!(lab.postfix.reloads(), 2, "it reloads once");
}

#[test]
fn a_stress_of_the_administrators_own_is_law() {
    let services = format!("{}  -o stress=\n", master_cf::smtp(SLOTS));
    let lab = Lab::builder()
        .master_cf(master_cf::with_inner(&services))
        .start()
        .unwrap();
    assert_untouched_in_a_flood(&lab, "stress");
}

#[test]
fn observing_decides_and_touches_nothing() {
    let lab = Lab::builder().maxproc(SLOTS).start().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = Sentinel::install_with(&lab, &observe()).unwrap();
    let daemon = sentinel.start().unwrap();
    let attackers = flood(&lab);
    daemon.wait_verdict("hogged").unwrap();
    attackers.stop().unwrap();
    daemon.wait_verdict("calm").unwrap();
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    assert_eq!(lab.postfix.reloads(), 0);
}

#[test]
fn a_service_on_loopback_only_is_watched_and_left_alone() {
    let lab = Lab::builder()
        .main_cf("inet_interfaces = loopback-only")
        .start()
        .unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    let service = daemon
        .wait_service("smtp/inet to be watched", PATIENCE, |_| true)
        .unwrap();
    assert!(!service.actionable);
    assert!(service.reason.contains("loopback"), "{}", service.reason);
}

/// Floods a service that the sentinel must not touch, and sees it say so and keep its hands off.
fn assert_untouched_in_a_flood(lab: &Lab, word: &str) {
    let original = lab.postfix.master_cf().expect("master.cf is there");
    let sentinel = Sentinel::install(lab).expect("the sentinel is built");
    let daemon = sentinel.start().expect("it starts");
    let _attackers = flood(lab);
    daemon.wait_verdict("hogged").unwrap();
    let service = daemon
        .find_service("smtp/inet")
        .expect("status answers")
        .expect("the service is watched");
    assert!(!service.actionable);
    assert!(service.reason.contains(word), "{}", service.reason);
    assert_eq!(service.state, State::Normal);
    // As long as the trip dwell, several times over.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(lab.postfix.master_cf().expect("master.cf is there"), original);
    assert_eq!(lab.postfix.reloads(), 0);
}
