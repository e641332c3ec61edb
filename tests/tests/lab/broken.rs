//! Somebody else breaks master.cf: Postfix would die of the next reload, so there is none from us, and an alarm.

use std::fs;

use sentinel_lab::Lab;
use sentinel_lab::attackers::{Attack, Attackers};
use sentinel_lab::clock::wait_until;
use sentinel_lab::sentinel::{Daemon, Sentinel};
use smtp_sentinel::controller::State;

use crate::PATIENCE;

/// Fields are missing: master dies of it.
const DEADLY: &[u8] = b"relay unix\n";

/// A brace is not closed: master dies of it, while postconf(1) only warns.
const SECRETLY_DEADLY: &[u8] = b"relay unix - - n - - smtp { -v\n";

fn flood(lab: &Lab) -> Attackers {
    lab.attack(Attack::flood(15)).unwrap()
}

fn wait_alarm(sentinel: &Sentinel, words: &str) {
    wait_until(&format!("history to tell {words:?}"), PATIENCE, || {
        let history = sentinel.history()?;
        Ok(history
            .iter()
            .any(|entry| entry.kind == "outside_edit" && entry.tells(words)))
    })
    .unwrap();
    assert!(sentinel.log().contains(words), "{}", sentinel.log());
}

fn wait_valid(daemon: &Daemon<'_>, valid: bool) {
    wait_until(&format!("config_valid to be {valid}"), PATIENCE, || {
        let metrics = daemon.metrics()?;
        Ok(metrics.sum("smtp_sentinel_config_valid", &[]) == Some(f64::from(u8::from(valid))))
    })
    .unwrap();
}

fn append(lab: &Lab, line: &[u8]) -> Vec<u8> {
    let bytes = [&lab.postfix.master_cf().unwrap()[..], line].concat();
    fs::write(lab.postfix.master_cf_path(), &bytes).unwrap();
    bytes
}

fn lives(lab: &Lab) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", lab.postfix.master_pid()))
        .is_ok_and(|stat| stat.contains("(master) S") || stat.contains("(master) R"))
}

#[test]
fn broken_while_we_are_in_charge_it_is_not_reloaded_until_it_is_whole() {
    let lab = Lab::new().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    wait_valid(&daemon, true);
    let attackers = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    let reloads = lab.postfix.reloads();

    append(&lab, DEADLY);
    wait_alarm(&sentinel, "would stop Postfix");
    wait_valid(&daemon, false);
    let report = daemon.status().unwrap();
    assert!(report.instances[0].reason.contains("master.cf"), "{report:?}");

    // The attack ends: our lines may go, and the broken file is not for the master.
    drop(attackers);
    wait_until("our lines to be out", PATIENCE, || {
        Ok(lab.postfix.master_cf()? == [&original[..], DEADLY].concat())
    })
    .unwrap();
    daemon.wait_state(State::Normal).unwrap();
    assert_eq!(lab.postfix.reloads(), reloads);

    fs::write(lab.postfix.master_cf_path(), &original).unwrap();
    wait_alarm(&sentinel, "whole again");
    wait_valid(&daemon, true);
    wait_until("the master to be told at last", PATIENCE, || {
        Ok(lab.postfix.reloads() == reloads + 1)
    })
    .unwrap();
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    assert!(lives(&lab));
    assert_eq!(daemon.terminate().unwrap(), Some(0));
    assert_eq!(lab.postfix.reloads(), reloads + 1);
}

#[test]
fn broken_beforehand_it_is_neither_edited_nor_reloaded() {
    broken_beforehand(SECRETLY_DEADLY);
}

/// postconf(1) tells nothing at all then, and the attack is seen without it.
#[test]
fn broken_for_all_to_see_it_is_still_watched() {
    broken_beforehand(DEADLY);
}

fn broken_beforehand(line: &[u8]) {
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let broken = append(&lab, line);
    let daemon = sentinel.start().unwrap();
    wait_alarm(&sentinel, "would stop Postfix");
    let _attackers = flood(&lab);
    wait_until("the refusal", PATIENCE, || {
        let history = sentinel.history()?;
        Ok(history
            .iter()
            .any(|entry| entry.kind == "refusal" && entry.tells("would stop Postfix")))
    })
    .unwrap();
    assert_eq!(lab.postfix.master_cf().unwrap(), broken);
    assert_eq!(lab.postfix.reloads(), 0);
    assert!(lives(&lab));
    // An alarm is raised once, not ten times a second.
    let alarms = sentinel.history().unwrap();
    let alarms = alarms.iter().filter(|entry| entry.kind == "outside_edit").count();
    assert_eq!(alarms, 1);
    assert_eq!(daemon.terminate().unwrap(), Some(0));
}
