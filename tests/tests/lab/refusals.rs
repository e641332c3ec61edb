//! What is wrong around the daemon: each is one sentence that says what to do, and the right exit code.

use std::path::PathBuf;
use std::time::Duration;

use sentinel_lab::Lab;
use sentinel_lab::attackers::{Arrival, Attack};
use sentinel_lab::clock::wait_until;
use sentinel_lab::sentinel::{Answer, Sentinel, Settings};
use smtp_sentinel::controller::State;
use smtp_sentinel::status::ProbeState;

use crate::PATIENCE;

/// One sentence on standard error that names `word`, and this exit code.
fn assert_refused(answer: &Answer, code: i32, word: &str) {
    assert_eq!(answer.code, Some(code), "{answer:?}");
    assert_eq!(answer.stderr.trim_end().lines().count(), 1, "{answer:?}");
    assert!(answer.stderr.contains(word), "{word:?} in {answer:?}");
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let lab = Lab::new().unwrap();
    let settings = Settings {
        detect: "tripp = 0.8".to_owned(),
        ..Settings::default()
    };
    let sentinel = Sentinel::install_with(&lab, &settings).unwrap();
    for command in ["run", "check", "restore"] {
        let answer = sentinel.ask(&[command]).unwrap();
        assert_refused(&answer, 78, "tripp");
        assert!(answer.stderr.contains("line 7"), "{answer:?}");
    }
}

#[test]
fn without_a_daemon_status_says_so() {
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    assert_refused(&sentinel.ask(&["status"]).unwrap(), 69, "not running");
    assert_refused(&sentinel.ask(&["status", "--json"]).unwrap(), 69, "not running");
}

#[test]
fn an_unknown_command_is_a_usage_error() {
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    assert_eq!(sentinel.ask(&["strees"]).unwrap().code, Some(64));
}

#[test]
fn without_postfix_check_says_no() {
    let lab = Lab::new().unwrap();
    let nowhere = PathBuf::from("/nonexistent/postfix");
    let settings = Settings {
        config_dir: Some(nowhere),
        ..Settings::default()
    };
    let sentinel = Sentinel::install_with(&lab, &settings).unwrap();
    let answer = sentinel.ask(&["check"]).unwrap();
    assert_eq!(answer.code, Some(1), "{answer:?}");
    let words = format!("{}{}", answer.stdout, answer.stderr);
    assert!(words.contains("/nonexistent/postfix"), "{words}");

    // A Postfix may start later: the daemon waits for it, and says so.
    let daemon = sentinel.start().unwrap();
    assert!(
        daemon
            .status()
            .unwrap()
            .instances
            .iter()
            .all(|instance| !instance.actionable)
    );
}

#[test]
fn check_finds_the_lab_in_order() {
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let answer = sentinel.ask(&["check"]).unwrap();
    assert_eq!(answer.code, Some(0), "{answer:?}");
    let answer = sentinel.ask(&["check", "--json"]).unwrap();
    assert_eq!(answer.code, Some(0), "{answer:?}");
    serde_json::from_str::<serde_json::Value>(&answer.stdout).unwrap();
}

#[test]
fn without_the_right_to_load_bpf_it_runs_on_less_and_says_what_is_missing() {
    // CAP_SYS_ADMIN implies CAP_BPF (kernel, bpf_capable()), so both must go.
    const WITHOUT_BPF: [&str; 3] = ["setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin"];
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start_under(&WITHOUT_BPF).unwrap();
    let service = daemon
        .wait_service("smtp/inet to be watched all the same", PATIENCE, |_| true)
        .unwrap();
    let probes = daemon.status().unwrap().probes;
    let lesser: Vec<_> = probes
        .iter()
        .filter(|probe| probe.state != ProbeState::Ok)
        .collect();
    assert!(!lesser.is_empty(), "{probes:?}");
    assert!(
        lesser.iter().any(|probe| probe.reason.contains("CAP_BPF")),
        "{lesser:?}"
    );
    // What is not known is told as such, with its reason.
    assert!(service.greeting_ms.is_none());
    assert!(
        service.unavailable.contains_key("greeting_ms"),
        "{:?}",
        service.unavailable
    );
    assert_eq!(
        daemon
            .metrics()
            .unwrap()
            .sum("smtp_sentinel_greeting_seconds_count", &[]),
        None
    );
}

#[test]
fn a_master_cf_that_cannot_be_written_is_said_and_left_alone() {
    let lab = Lab::builder().read_only_master_cf().start().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let mounts = format!("--mount=/proc/{}/ns/mnt", lab.postfix.master_pid());
    let beside_master = ["nsenter", mounts.as_str()];

    let answer = sentinel.ask_under(&beside_master, &["check"]).unwrap();
    assert_eq!(answer.code, Some(1), "{answer:?}");
    let path = lab.postfix.master_cf_path();
    let words = format!("{}{}", answer.stdout, answer.stderr);
    assert!(words.contains(path.to_str().unwrap()), "{words}");

    let daemon = sentinel.start_under(&beside_master).unwrap();
    let attack = Attack::silent(Arrival::Evenly {
        count: 15,
        within: Duration::from_secs(3),
    });
    let _attackers = lab.attack(attack).unwrap();
    // Whether it sees it beforehand or at the attempt, it says so, with the file.
    wait_until(
        "the daemon to say that it cannot write master.cf",
        PATIENCE,
        || {
            let report = daemon.status()?;
            let instance = report.instances.first().filter(|instance| !instance.actionable);
            let seen = instance.is_some_and(|instance| instance.reason.contains("master.cf"));
            let tried = sentinel.history()?.iter().any(|entry| {
                matches!(entry.outcome.as_deref(), Some("failed" | "refused")) && entry.tells("master.cf")
            });
            Ok(seen || tried)
        },
    )
    .unwrap();
    let service = daemon.find_service("smtp/inet").unwrap().unwrap();
    assert_eq!(service.state, State::Normal);
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    assert_eq!(lab.postfix.reloads(), 0);
}
