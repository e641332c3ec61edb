//! More slots for a time: with stress mode in an attack, alone in a surge of mail that is at work, and maxproc the
//! administrator's own again after it, whatever happens in between.

use std::fs;
use std::time::Duration;

use sentinel_lab::attackers::{Attack, Attackers};
use sentinel_lab::clock::wait_until;
use sentinel_lab::senders::{Tally, Traffic};
use sentinel_lab::sentinel::{Daemon, Entry, Sentinel, Settings};
use sentinel_lab::{Lab, master_cf};
use smtp_sentinel::controller::State;

use crate::PATIENCE;

fn install(lab: &Lab, more: &str) -> Sentinel {
    let act = format!("{}\nheadroom = 4.0\n{more}", Settings::default().act);
    let settings = Settings {
        act,
        ..Settings::default()
    };
    Sentinel::install_with(lab, &settings).expect("the sentinel is built")
}

/// Takes 15 of 20 slots and sits.
fn flood(lab: &Lab) -> Attackers {
    lab.attack(Attack::flood(15)).unwrap()
}

fn wait_limit(daemon: &Daemon<'_>, limit: u32) {
    daemon
        .wait_service(&format!("{limit} slots"), PATIENCE, |service| {
            service.limit == Some(limit)
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
}

fn maxproc(lab: &Lab) -> String {
    let text = String::from_utf8(lab.postfix.master_cf().expect("it is there")).expect("it is text");
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut entries = text.lines().map(fields);
    let entry = entries.find(|fields| fields.starts_with(&["smtp".to_owned(), "inet".to_owned()]));
    entry.expect("there is smtp/inet")[6].clone()
}

#[test]
fn an_attack_brings_slots_and_stress_in_one_edit_and_both_go_byte_for_byte() {
    let lab = Lab::builder()
        .master_cf(master_cf::weathered(20))
        .start()
        .unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = install(&lab, "shed = false");
    let daemon = sentinel.start().unwrap();
    // Nobody at work beside them, so that what is seen is no surge first.
    let attackers = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    assert_eq!(maxproc(&lab), "80");
    wait_until("the reload", PATIENCE, || Ok(lab.postfix.reloads() >= 1)).unwrap();
    assert_eq!(lab.postfix.reloads(), 1, "one edit, one reload");
    daemon
        .wait_service("its own slots beside the new ones", PATIENCE, |service| {
            (service.limit, service.own_limit) == (Some(80), Some(20))
        })
        .unwrap();
    // Master takes it: twice as many clients as it had slots sit on it, and mail still flows.
    let senders = lab.senders(Traffic::new(4.0)).unwrap();
    let more = lab.attack(Attack::flood(25)).unwrap();
    wait_until("more clients than there were slots", PATIENCE, || {
        Ok(lab.sockets()?.held > 30)
    })
    .unwrap();
    attackers.stop().unwrap();
    more.stop().unwrap();

    daemon.wait_state(State::Normal).unwrap();
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    wait_limit(&daemon, 20);
    let tally = Tally::of(&senders.stop().unwrap());
    assert_eq!(tally.delivered, tally.tried, "{tally:?}");

    let history = sentinel.history().unwrap();
    let headroom = history
        .iter()
        .find(|entry| entry.action.as_deref() == Some("headroom"));
    let headroom = headroom.expect("history has the headroom");
    assert_eq!(headroom.detail["maxproc"], 80, "{headroom:?}");
    let metrics = daemon.metrics().unwrap();
    assert_eq!(metrics.sum("smtp_sentinel_headroom_slots", &[]), Some(0.0));
}

#[test]
fn a_surge_brings_slots_and_no_stress() {
    let lab = Lab::builder().maxproc(5).start().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = install(&lab, "");
    let daemon = sentinel.start().unwrap();
    // Sessions of 0.7 s, eight a second: more than five slots at work, and far fewer than twenty.
    let busy = Traffic {
        pause: Duration::from_millis(120),
        ..Traffic::new(8.0)
    };
    let senders = lab.senders(busy).unwrap();
    wait_limit(&daemon, 20);
    assert_eq!(maxproc(&lab), "20");
    let text = String::from_utf8(lab.postfix.master_cf().unwrap()).unwrap();
    assert!(!text.contains("stress="), "{text}");
    let tally = Tally::of(&senders.stop().unwrap());
    assert_eq!(tally.delivered, tally.tried, "{tally:?}");
    wait_until("maxproc to be the administrator's", PATIENCE, || {
        Ok(lab.postfix.master_cf()? == original)
    })
    .unwrap();
    // The entry of an act is written after it.
    let count = |history: &[Entry], action: &str| {
        let done = |entry: &&Entry| {
            entry.action.as_deref() == Some(action) && entry.outcome.as_deref() == Some("done")
        };
        history.iter().filter(done).count()
    };
    wait_until("history to have both ways", PATIENCE, || {
        let history = sentinel.history()?;
        let raised = count(&history, "headroom");
        Ok(raised >= 1 && raised == count(&history, "undo"))
    })
    .unwrap();
    let history = sentinel.history().unwrap();
    assert!(
        !history.iter().any(|entry| entry.is_transition_to("stressed")
            || matches!(entry.action.as_deref(), Some("shed" | "edit"))),
        "{history:#?}"
    );
}

#[test]
fn a_surge_without_headroom_is_an_alert_and_nothing_else() {
    let lab = Lab::builder().maxproc(5).start().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let _daemon = sentinel.start().unwrap();
    let senders = lab
        .senders(Traffic {
            pause: Duration::from_millis(120),
            ..Traffic::new(12.0)
        })
        .unwrap();
    wait_until("the alert", PATIENCE, || {
        let history = sentinel.history()?;
        Ok(history
            .iter()
            .any(|entry| entry.kind == "refusal" && entry.tells("more slots would help")))
    })
    .unwrap();
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    assert_eq!(lab.postfix.reloads(), 0);
    senders.stop().unwrap();
}

#[test]
fn what_a_killed_daemon_left_and_what_the_administrator_set_meanwhile() {
    let lab = Lab::new().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = install(&lab, "");
    let daemon = sentinel.start().unwrap();
    let attackers = flood(&lab);
    wait_limit(&daemon, 80);
    daemon.kill().unwrap();
    assert_eq!(maxproc(&lab), "80");
    let answer = sentinel.ask(&["restore"]).unwrap();
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.stdout.contains("byte for byte"), "{answer:?}");
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    attackers.stop().unwrap();
    wait_until("the slots to be free", PATIENCE, || Ok(lab.sockets()?.held == 0)).unwrap();

    let daemon = sentinel.start().unwrap();
    let _attackers = flood(&lab);
    wait_limit(&daemon, 80);
    let edited = String::from_utf8(lab.postfix.master_cf().unwrap()).unwrap();
    let path = lab.postfix.master_cf_path();
    let own = path.with_extension("own");
    fs::write(&own, edited.replacen(" 80 ", " 50 ", 1)).unwrap();
    fs::rename(&own, &path).unwrap();
    wait_limit(&daemon, 50);
    wait_until("it to be told", PATIENCE, || {
        let history = sentinel.history()?;
        Ok(history
            .iter()
            .any(|entry| entry.kind == "outside_edit" && entry.tells("maxproc")))
    })
    .unwrap();
    assert_eq!(daemon.terminate().unwrap(), Some(0), "{}", sentinel.log());
    let text = String::from_utf8(original).unwrap();
    let left = String::from_utf8(lab.postfix.master_cf().unwrap()).unwrap();
    assert_eq!(
        left,
        text.replacen(" 20 ", " 50 ", 1),
        "theirs stays, ours is gone"
    );
}
