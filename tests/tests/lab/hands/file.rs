//! The file: lines that others add, change and take away, whole files that they put in its place, and the place itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sentinel_lab::clock::wait_until;
use sentinel_lab::senders::Traffic;
use sentinel_lab::sentinel::{Sentinel, Settings};
use sentinel_lab::{Lab, master_cf};
use smtp_sentinel::controller::State;
use smtp_sentinel::postfix::{ServiceId, edit};

use super::*;

#[test]
fn what_an_administrator_appends_stays_in_every_state() {
    let lab = Lab::builder()
        .master_cf(master_cf::weathered(SLOTS))
        .start()
        .unwrap();
    let sentinel = install(&lab);
    let daemon = sentinel.start().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    let mut wanted = text(&lab);
    let mut append = |name: &str| {
        let line = format!("\n{name} unix - - n - 0 discard\n");
        wanted.push_str(&line);
        let whole = text(&lab) + &line;
        fs::write(lab.postfix.master_cf_path(), whole).unwrap();
        lab.postfix.reload().unwrap();
        wanted.clone()
    };

    append("calm");
    let _senders = lab.senders(Traffic::new(2.0)).unwrap();
    let attackers = flood(&lab);
    daemon.wait_state(State::Stressed).unwrap();
    append("attacked");
    wait_told(&sentinel, "changed master.cf");
    attackers.stop().unwrap();
    daemon.wait_state(State::Recovering).unwrap();
    let wanted = append("over");
    daemon.wait_state(State::Normal).unwrap();
    wait_bytes(&lab, "their three lines, and none of ours", &wanted);
    wait_until("two reloads of ours, and their three", PATIENCE, || {
        Ok(lab.postfix.reloads() == 5)
    })
    .unwrap();
    assert_eq!(trips(&sentinel.history().unwrap()), 1);
}

#[test]
fn a_file_that_configuration_management_replaces_is_theirs() {
    let lab = lab();
    let sentinel = install(&lab);
    let (daemon, _attackers, _senders) = trip(&lab, &sentinel);
    let theirs = master_cf::plain(29);
    lab.postfix.replace_master_cf(theirs.as_bytes()).unwrap();
    let service = daemon.wait_state(State::Normal).unwrap();
    assert_eq!(service.limit, Some(29));
    wait_told(&sentinel, "took them out");
    // The attack goes on, and it says that it would act, but for them.
    wait_until("the daemon to say why it does not act", PATIENCE, || {
        Ok(sentinel
            .history()?
            .iter()
            .any(|entry| entry.kind == "refusal" && entry.tells("taken our lines out")))
    })
    .unwrap();
    std::thread::sleep(A_WHILE);
    assert_eq!(text(&lab), theirs);
    assert_eq!(lab.postfix.reloads(), 2, "the trip, and that the lines are out");
    assert_eq!(trips(&sentinel.history().unwrap()), 1);
    assert_eq!(daemon.terminate().unwrap(), Some(0));
    assert_eq!(text(&lab), theirs);
    assert_eq!(lab.postfix.reloads(), 2);
}

/// Trips, lets `spoil` have the file, and sees that it becomes `wanted` and stays so while the attack goes on.
fn spoilt_while_stressed(spoil: impl Fn(&str) -> String, wanted: impl Fn(&str) -> String, told: &str) {
    let lab = lab();
    let original = text(&lab);
    let sentinel = install(&lab);
    let (daemon, _attackers, _senders) = trip(&lab, &sentinel);
    let spoilt = spoil(&text(&lab));
    lab.postfix.replace_master_cf(spoilt.as_bytes()).unwrap();
    daemon.wait_state(State::Normal).unwrap();
    wait_told(&sentinel, told);
    let wanted = wanted(&original);
    wait_bytes(&lab, "their work, and none of ours", &wanted);
    std::thread::sleep(A_WHILE);
    assert_eq!(text(&lab), wanted, "nothing is put back");
    let history = sentinel.history().unwrap();
    assert_eq!(trips(&history), 1, "{history:#?}");
    assert_eq!(lab.postfix.reloads(), 2, "the trip, and that it is over");
    assert!(lab.postfix.runs());
}

const ARGUMENT: &str = "    -o stress=yes\n";

fn is_our_comment(line: &str) -> bool {
    line.starts_with("# smtp-sentinel:")
}

fn without(text: &str, unwanted: impl Fn(&str) -> bool) -> String {
    text.split_inclusive('\n')
        .filter(|line| !unwanted(line))
        .collect()
}

#[test]
fn our_argument_line_removed() {
    let argument = |text: &str| without(text, |line| line == ARGUMENT);
    spoilt_while_stressed(argument, str::to_owned, "took them out");
}

#[test]
fn both_our_lines_removed() {
    let both = |text: &str| without(text, |line| line == ARGUMENT || is_our_comment(line));
    spoilt_while_stressed(both, str::to_owned, "took them out");
}

/// Without its comment nothing says that the argument is ours: it is whoever's who took the comment away.
#[test]
fn our_comment_removed() {
    let comment = |text: &str| without(text, is_our_comment);
    let theirs = |original: &str| original.replacen("smtpd\n", &format!("smtpd\n{ARGUMENT}"), 1);
    spoilt_while_stressed(comment, theirs, "is theirs");
}

#[test]
fn a_stress_of_the_administrators_own_ends_ours() {
    let own = "    -o stress=\n";
    let both = |text: &str| text.replacen(ARGUMENT, &format!("{ARGUMENT}{own}"), 1);
    let theirs = |original: &str| original.replacen("smtpd\n", &format!("smtpd\n{own}"), 1);
    spoilt_while_stressed(both, theirs, "which is law");
}

#[test]
fn the_entry_commented_out() {
    let commented = |text: &str| text.replacen("smtp      inet", "#smtp     inet", 1);
    let theirs = |original: &str| original.replacen("smtp      inet", "#smtp     inet", 1);
    let lab = Lab::builder()
        .master_cf(master_cf::with_inner(&format!(
            "{}2525 inet n - n - 5 smtpd\n",
            master_cf::smtp(SLOTS)
        )))
        .start()
        .unwrap();
    let original = text(&lab);
    let sentinel = install(&lab);
    let (_daemon, _attackers, _senders) = trip(&lab, &sentinel);
    lab.postfix
        .replace_master_cf(commented(&text(&lab)).as_bytes())
        .unwrap();
    wait_told(&sentinel, "went with it");
    wait_bytes(&lab, "their comment, and none of ours", &theirs(&original));
    wait_until("the state to follow", PATIENCE, || {
        Ok(sentinel
            .history()?
            .iter()
            .any(|entry| entry.is_transition_to("normal")))
    })
    .unwrap();
    wait_until("the second reload", PATIENCE, || Ok(lab.postfix.reloads() == 2)).unwrap();
    assert!(lab.postfix.runs());
}

#[test]
fn what_is_added_to_our_entry_stays_by_hand_and_by_postconf() {
    let lab = lab();
    let sentinel = install(&lab);
    let (daemon, attackers, _senders) = trip(&lab, &sentinel);
    let by_hand = text(&lab).replacen(ARGUMENT, &format!("{ARGUMENT}  -o smtpd_hard_error_limit=7\n"), 1);
    fs::write(lab.postfix.master_cf_path(), by_hand).unwrap();
    wait_told(&sentinel, "changed master.cf");
    // It rewrites the entry, and moves our comment out of it.
    postconf(&lab, &["-P", "smtp/inet/smtpd_soft_error_limit=9"]);
    lab.postfix.reload().unwrap();
    std::thread::sleep(A_WHILE);
    assert_ne!(
        daemon.find_service("smtp/inet").unwrap().unwrap().state,
        State::Normal,
        "our lines are still in force"
    );

    attackers.stop().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    let left = text(&lab);
    assert!(!left.contains("stress") && !left.contains("sentinel"), "{left}");
    let entry = postconf(&lab, &["-M", "smtp/inet"]);
    let arguments = entry.split_once("smtpd ").unwrap().1.trim();
    assert_eq!(
        arguments,
        "-o smtpd_hard_error_limit=7 -o smtpd_soft_error_limit=9"
    );
    wait_until("two reloads of ours, and one of theirs", PATIENCE, || {
        Ok(lab.postfix.reloads() == 3)
    })
    .unwrap();
}

fn postconf(lab: &Lab, arguments: &[&str]) -> String {
    let output = Command::new("postconf")
        .arg("-c")
        .arg(lab.postfix.config_dir())
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "postconf {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Ends the editor also when the test fails, or the scope would wait for it for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Both lock master.cf.tmp. Whoever reads the file before the lock, or renames without it, loses an edit here.
#[test]
fn postconf_at_the_same_moment_loses_nothing_and_neither_do_we() {
    let lab = lab();
    let settings = Settings {
        detect: "clear = 0.69\ndwell = \"200ms\"\ntrip_dwell = \"200ms\"".to_owned(),
        ..without_shedding()
    };
    let sentinel = Sentinel::install_with(&lab, &settings).unwrap();
    let daemon = sentinel.start().unwrap();
    let _senders = lab.senders(Traffic::new(4.0)).unwrap();
    let over = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let end = Over(&over);
        let editor = scope.spawn(|| {
            let mut round = 0;
            while !over.load(Ordering::Relaxed) {
                round += 1;
                postconf(
                    &lab,
                    &[
                        "-M",
                        "-e",
                        &format!("hand{round}/unix=hand{round} unix - - n - 0 discard"),
                    ],
                );
                postconf(
                    &lab,
                    &["-P", &format!("smtp/inet/smtpd_hard_error_limit={round}")],
                );
                std::thread::sleep(Duration::from_millis(20));
            }
            round
        });
        for _ in 0..2 {
            let attackers = flood(&lab);
            daemon.wait_state(State::Stressed).unwrap();
            attackers.stop().unwrap();
            daemon.wait_state(State::Normal).unwrap();
        }
        drop(end);
        editor.join().unwrap()
    });
    assert_eq!(daemon.terminate().unwrap(), Some(0));
    let left = text(&lab);
    assert!(!left.contains("stress") && !left.contains("sentinel"), "{left}");
    assert!(
        left.contains(&format!("smtpd_hard_error_limit={round}", round = rounds)),
        "{left}"
    );
    for round in 1..=rounds {
        assert!(
            left.contains(&format!("\nhand{round} ")),
            "edit {round} of {rounds} is lost:\n{left}"
        );
    }
    assert!(rounds >= 10, "only {rounds} edits");
    assert!(lab.postfix.runs());
}

#[test]
fn a_link_in_its_place_is_said_and_left_alone() {
    let lab = lab();
    let original = text(&lab);
    let (file, elsewhere) = (lab.postfix.master_cf_path(), lab.base().join("master.cf.kept"));
    let sentinel = install(&lab);
    fs::rename(&file, &elsewhere).unwrap();
    symlink(&elsewhere, &file).unwrap();
    let daemon = sentinel.start().unwrap();
    let _senders = lab.senders(Traffic::new(2.0)).unwrap();
    let attackers = flood(&lab);
    daemon.wait_verdict("hogged").unwrap();
    wait_until("the refusal", PATIENCE, || {
        Ok(sentinel
            .history()?
            .iter()
            .any(|entry| entry.kind == "refusal" && entry.tells("symbolic link")))
    })
    .unwrap();
    assert_eq!(lab.postfix.reloads(), 0);

    // A file again: it may act. And a link once more, while our lines are in it.
    fs::rename(&elsewhere, &file).unwrap();
    daemon.wait_state(State::Stressed).unwrap();
    fs::rename(&file, &elsewhere).unwrap();
    symlink(&elsewhere, &file).unwrap();
    let stressed = text(&lab);
    attackers.stop().unwrap();
    wait_until("the failure to be told", PATIENCE, || {
        Ok(sentinel
            .history()?
            .iter()
            .any(|entry| entry.outcome.as_deref() == Some("failed") && entry.tells("symbolic link")))
    })
    .unwrap();
    assert_eq!(text(&lab), stressed);
    assert!(file.is_symlink());
    fs::rename(&elsewhere, &file).unwrap();
    daemon.wait_state(State::Normal).unwrap();
    assert_eq!(text(&lab), original);
    wait_until("the second reload", PATIENCE, || Ok(lab.postfix.reloads() == 2)).unwrap();
}

#[test]
fn a_file_that_is_moved_away_and_back() {
    let lab = lab();
    let original = text(&lab);
    let (file, away) = (lab.postfix.master_cf_path(), lab.base().join("master.cf.away"));
    let sentinel = install(&lab);
    let (daemon, attackers, _senders) = trip(&lab, &sentinel);
    fs::rename(&file, &away).unwrap();
    attackers.stop().unwrap();
    wait_until("status to say that it is missing", PATIENCE, || {
        let report = daemon.status()?;
        Ok(report
            .instances
            .iter()
            .any(|instance| !instance.actionable && instance.reason.contains("master.cf")))
    })
    .unwrap();
    // With the file gone master would die of a reload.
    std::thread::sleep(A_WHILE);
    assert!(!file.exists());
    assert_eq!(lab.postfix.reloads(), 1);
    fs::rename(&away, &file).unwrap();
    daemon.wait_state(State::Normal).unwrap();
    assert_eq!(text(&lab), original);
    wait_until("the second reload", PATIENCE, || Ok(lab.postfix.reloads() == 2)).unwrap();
    assert!(lab.postfix.runs());
}

/// An old copy, with our lines in it, is put back when they are long gone.
#[test]
fn our_lines_in_a_copy_that_is_put_back_go_again() {
    let lab = lab();
    let original = text(&lab);
    let sentinel = install(&lab);
    let (daemon, attackers, _senders) = trip(&lab, &sentinel);
    let copy = text(&lab);
    attackers.stop().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    wait_until("the second reload", PATIENCE, || Ok(lab.postfix.reloads() == 2)).unwrap();
    lab.postfix
        .replace_master_cf(format!("{copy}# kept\n").as_bytes())
        .unwrap();
    wait_told(&sentinel, "without an act of ours");
    wait_bytes(
        &lab,
        "their copy without our lines",
        &format!("{original}# kept\n"),
    );
    wait_until("the third reload", PATIENCE, || Ok(lab.postfix.reloads() == 3)).unwrap();
}

/// Observe mode forbids new edits. What is ours is given back in it too.
#[test]
fn our_lines_go_in_observe_mode_too_and_no_new_ones_come() {
    let lab = lab();
    let original = text(&lab);
    let sentinel = Sentinel::install_with(&lab, &observing()).unwrap();
    let daemon = sentinel.start().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    let smtp = ServiceId {
        name: "smtp".into(),
        kind: "inet".into(),
    };
    let copy = edit::insert(original.as_bytes(), &smtp, jiff::Timestamp::UNIX_EPOCH).unwrap();
    lab.postfix.replace_master_cf(&copy).unwrap();
    lab.postfix.reload().unwrap();
    wait_told(&sentinel, "without an act of ours");
    wait_bytes(&lab, "their copy without our lines", &original);
    wait_until("the reload after theirs", PATIENCE, || {
        Ok(lab.postfix.reloads() == 2)
    })
    .unwrap();
    let _attackers = flood(&lab);
    wait_until("the refusal", PATIENCE, || {
        let history = sentinel.history()?;
        Ok(count(&history, |entry| {
            entry.kind == "refusal" && entry.tells("observe mode")
        }) == 1)
    })
    .unwrap();
    assert_eq!(text(&lab), original);
    assert_eq!(lab.postfix.reloads(), 2);
}
