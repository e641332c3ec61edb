//! Shedding: the sessions that began before stress mode are held to its limits, and nobody else is.

use std::time::Duration;

use sentinel_lab::Lab;
use sentinel_lab::attackers::{Attack, Attackers};
use sentinel_lab::clock::wait_until;
use sentinel_lab::senders::{Tally, Traffic};
use sentinel_lab::sentinel::{Daemon, Sentinel};
use smtp_sentinel::controller::State;

use crate::{PATIENCE, without_shedding};

/// Takes 15 of 20 slots and sits. Not all: at the last one master's own stress mode would come on.
fn flood(lab: &Lab) -> Attackers {
    lab.attack(Attack::flood(15)).unwrap()
}

fn closed(daemon: &Daemon<'_>) -> f64 {
    let scrape = daemon.metrics().expect("the daemon serves metrics");
    scrape
        .sum("smtp_sentinel_shed_connections_total", &[])
        .unwrap_or(0.0)
}

#[test]
fn who_hung_when_the_trip_came_is_closed_and_mail_flows() {
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    let senders = lab.senders(Traffic::new(2.0)).unwrap();
    let attackers = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    wait_until("every attacker to be dropped", PATIENCE, || {
        Ok(attackers.toll().dropped == 15)
    })
    .unwrap();

    // Long before the 300 s that they would have kept without shedding; some may have begun under stress, and those
    // smtpd itself ends.
    let closed = closed(&daemon);
    assert!((1.0..=15.0).contains(&closed), "{closed} closed");
    let early = daemon
        .metrics()
        .unwrap()
        .sum("smtp_sentinel_early_disconnects_total", &[]);
    assert_eq!(early, Some(0.0), "what we close is no early disconnect");
    let tally = Tally::of(&senders.stop().unwrap());
    assert_eq!(tally.delivered, tally.tried, "{tally:?}");

    wait_until("history to tell of each", PATIENCE, || {
        let history = sentinel.history()?;
        let shed = history
            .iter()
            .filter(|entry| entry.action.as_deref() == Some("shed"));
        let counts = shed.filter_map(|entry| entry.detail["closed"].as_object());
        let told: f64 = counts
            .flat_map(|reasons| reasons.values())
            .filter_map(|count| count.as_f64())
            .sum();
        Ok(told == closed)
    })
    .unwrap();
    attackers.stop().unwrap();
}

#[test]
fn without_shedding_they_keep_their_slots() {
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install_with(&lab, &without_shedding()).unwrap();
    let daemon = sentinel.start().unwrap();
    let attackers = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    let before = attackers.toll().holding;
    std::thread::sleep(Duration::from_secs(15));
    let after = attackers.toll().holding;
    assert_eq!(closed(&daemon), 0.0);
    // Those few that began under stress are gone by smtpd's own 10 s.
    assert!(after * 2 > before, "{after} of {before} are left");
    attackers.stop().unwrap();
}

#[test]
fn a_client_of_mynetworks_is_never_closed() {
    let lab = Lab::builder()
        .main_cf("mynetworks = 10.77.0.0/16\n")
        .start()
        .unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    let attackers = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    std::thread::sleep(Duration::from_secs(13));
    assert_eq!(closed(&daemon), 0.0);
    attackers.stop().unwrap();
}
