//! What runs on the file: a Postfix that has yet to open a listener, is upgraded, restarted or stopped, and another sentinel.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use sentinel_lab::attackers::Attack;
use sentinel_lab::clock::{wait_for, wait_until};
use sentinel_lab::senders::{Tally, Traffic};
use sentinel_lab::sentinel::{Daemon, Sentinel, Settings};
use sentinel_lab::{Lab, master_cf};
use smtp_sentinel::controller::State;

use super::*;

/// The administrator adds a listener, and has not reloaded. The port is taken: master dies of the next reload, and it
/// must not be ours.
#[test]
fn a_listener_that_master_has_not_opened_is_not_forced_on_it() {
    let lab = lab();
    let original = text(&lab);
    let take = |port: u16| {
        lab.server()
            .run(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?))
            .unwrap()
    };
    let add = |port: u16| {
        let more = format!("{}{port} inet n - n - 0 discard\n", text(&lab));
        lab.postfix.replace_master_cf(more.as_bytes()).unwrap();
    };
    let sentinel = install(&lab);
    let daemon = sentinel.start().unwrap();
    let port = take(2525);
    add(2525);
    let attackers = flood(&lab);
    wait_until("the refusal", PATIENCE, || {
        Ok(sentinel
            .history()?
            .iter()
            .any(|entry| entry.kind == "refusal" && entry.tells("the listener 2525/inet")))
    })
    .unwrap();
    let instance = daemon.status().unwrap().instances.remove(0);
    assert!(!instance.actionable && instance.config_valid, "{instance:?}");
    assert_eq!(lab.postfix.reloads(), 0);
    // The port is free, and the administrator reloads.
    drop(port);
    lab.postfix.reload().unwrap();
    daemon.wait_state(State::Stressed).unwrap();
    wait_until("the trip's reload", PATIENCE, || Ok(lab.postfix.reloads() == 2)).unwrap();

    // The same while our lines are in the file: they go, and master is told when it is no risk.
    let port = take(2526);
    add(2526);
    wait_until("status to say so", PATIENCE, || {
        let report = daemon.status()?;
        Ok(report
            .instances
            .iter()
            .any(|one| one.reason.contains("2526/inet")))
    })
    .unwrap();
    attackers.stop().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    let wanted = format!("{original}2525 inet n - n - 0 discard\n2526 inet n - n - 0 discard\n");
    wait_bytes(&lab, "their two entries, and none of ours", &wanted);
    assert_eq!(lab.postfix.reloads(), 2);
    drop(port);
    lab.postfix.reload().unwrap();
    wait_until("ours, after theirs", PATIENCE, || Ok(lab.postfix.reloads() == 4)).unwrap();
    assert_eq!(daemon.terminate().unwrap(), Some(0));
    assert_eq!(text(&lab), wanted);
    assert!(lab.postfix.runs());
}

/// The package was upgraded, and the old master goes on with a program that has no name any more.
#[test]
fn a_postfix_that_is_upgraded_is_followed() {
    let mut lab = Lab::builder().maxproc(SLOTS).own_master().start().unwrap();
    let original = text(&lab);
    let sentinel = install(&lab);
    let daemon = sentinel.start().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    lab.postfix.upgrade().unwrap();
    let attackers = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    attackers.stop().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    assert_eq!(text(&lab), original);
    wait_until("two reloads", PATIENCE, || Ok(lab.postfix.reloads() == 2)).unwrap();

    // The restart that an upgrade brings, into the new program.
    lab.postfix.stop().unwrap();
    lab.postfix.start_again().unwrap();
    let pid = lab.postfix.master_pid();
    wait_until("the new master", PATIENCE, || {
        let report = daemon.status()?;
        Ok(report
            .instances
            .iter()
            .any(|one| one.master_pid == pid && one.actionable))
    })
    .unwrap();
    daemon.wait_verdict("calm").unwrap();
    assert_eq!(lab.postfix.reloads(), 2);
}

#[test]
fn the_second_of_two_sentinels_refuses() {
    let lab = lab();
    let original = text(&lab);
    let first = install(&lab);
    let daemon = first.start().unwrap();

    let answer = first.ask(&["run"]).unwrap();
    assert_ne!(answer.code, Some(0));
    assert!(answer.stderr.contains("already running"), "{answer:?}");

    let settings = Settings {
        name: "second".to_owned(),
        ..without_shedding()
    };
    let second = Sentinel::install_with(&lab, &settings).unwrap();
    let other = second.start().unwrap();
    wait_until("the second to refuse", PATIENCE, || {
        let report = other.status()?;
        Ok(report
            .instances
            .iter()
            .any(|one| !one.actionable && one.reason.contains("another smtp-sentinel")))
    })
    .unwrap();
    let _attackers = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    other.wait_verdict("hogged").unwrap();
    std::thread::sleep(A_WHILE);
    assert_eq!(lab.postfix.reloads(), 1);
    assert_ne!(
        text(&lab),
        original,
        "the first one's lines are not the second one's to take out"
    );
    let history = second.history().unwrap();
    assert_eq!(trips(&history), 0, "{history:#?}");
    assert_eq!(daemon.terminate().unwrap(), Some(0));
    assert_eq!(text(&lab), original);
    // Now it is the only one.
    other.wait_state(State::Stressed).unwrap();
}

#[test]
fn a_postfix_that_restarts_reloads_and_grows_is_followed() {
    let mut lab = lab();
    let sentinel = install(&lab);
    let daemon = sentinel.start().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    let pid_is = |daemon: &Daemon<'_>, pid: i32| {
        let seen = wait_for("the new master", PATIENCE, || {
            Ok(daemon
                .status()?
                .instances
                .into_iter()
                .find(|instance| instance.master_pid == pid))
        });
        assert!(seen.unwrap().actionable);
    };
    lab.postfix.stop().unwrap();
    lab.postfix.start_again().unwrap();
    pid_is(&daemon, lab.postfix.master_pid());

    // They come back, as attackers do: Postfix drops them when it stops.
    let attack = Attack {
        reconnect: Some(Duration::from_millis(200)),
        ..Attack::burst(ATTACKERS)
    };
    let attackers = lab.attack(attack).unwrap();
    let senders = lab.senders(Traffic::new(2.0)).unwrap();
    daemon.wait_state(State::Stressed).unwrap();
    wait_until("the reload to be seen to have taken", PATIENCE, || {
        Ok(daemon
            .metrics()?
            .sum("smtp_sentinel_reloads_total", &[("result", "done")])
            == Some(1.0))
    })
    .unwrap();
    lab.postfix.stop().unwrap();
    lab.postfix.start_again().unwrap();
    pid_is(&daemon, lab.postfix.master_pid());
    let service = daemon.find_service("smtp/inet").unwrap().unwrap();
    assert_ne!(service.state, State::Normal, "what was decided lives on");

    let more = text(&lab).replacen("30      smtpd", "40      smtpd", 1);
    lab.postfix.replace_master_cf(more.as_bytes()).unwrap();
    lab.postfix.reload().unwrap();
    daemon
        .wait_service("the new limit", PATIENCE, |service| service.limit == Some(40))
        .unwrap();
    attackers.stop().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    assert_eq!(text(&lab), master_cf::plain(40));
    let history = sentinel.history().unwrap();
    assert_eq!(trips(&history), 1, "{history:#?}");
    wait_until("two reloads of ours, and one of theirs", PATIENCE, || {
        Ok(lab.postfix.reloads() == 3)
    })
    .unwrap();
    let tally = Tally::of(&senders.stop().unwrap());
    assert!(tally.delivered > 0, "{tally:?}");
}

#[test]
fn a_postfix_that_stops_under_stress_gets_its_file_back() {
    let mut lab = lab();
    let original = text(&lab);
    let sentinel = install(&lab);
    let (daemon, _attackers, _senders) = trip(&lab, &sentinel);
    lab.postfix.stop().unwrap();
    wait_bytes(&lab, "the original bytes", &original);
    wait_until("status to know of no instance", PATIENCE, || {
        Ok(daemon.status()?.instances.is_empty())
    })
    .unwrap();
    assert!(!lab.postfix.runs());

    lab.postfix.start_again().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    let again = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    again.stop().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    assert_eq!(text(&lab), original);
}

/// Who only observes was there first, and neither keeps the other one from acting nor takes its lines out.
#[test]
fn who_observes_leaves_a_file_to_who_acts() {
    let lab = lab();
    let original = text(&lab);
    let observer = Sentinel::install_with(&lab, &observing()).unwrap();
    let watching = observer.start().unwrap();
    watching.wait_state(State::Normal).unwrap();
    let sentinel = install(&lab);
    let (daemon, _attackers, _senders) = trip(&lab, &sentinel);
    let ours = text(&lab);
    watching.wait_verdict("hogged").unwrap();
    std::thread::sleep(A_WHILE);
    assert_eq!(text(&lab), ours);
    assert_ne!(ours, original);
    assert_eq!(lab.postfix.reloads(), 1);
    let history = observer.history().unwrap();
    assert!(
        history.iter().all(|entry| entry.kind != "outside_edit"),
        "{history:#?}"
    );
    assert_eq!(watching.terminate().unwrap(), Some(0));
    assert_eq!(text(&lab), ours);
    assert_eq!(daemon.terminate().unwrap(), Some(0));
    assert_eq!(text(&lab), original);
}
