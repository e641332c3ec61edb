//! What looks like an attack and is none: the daemon says what it is, edits nothing, and reloads nothing. And what is one,
//! but is over, or is in Postfix's own hands already.

use std::collections::BTreeSet;
use std::time::Duration;

use sentinel_lab::attackers::{Arrival, Attack, Manner};
use sentinel_lab::clock::{self, wait_until};
use sentinel_lab::senders::{Tally, Traffic};
use sentinel_lab::sentinel::{Daemon, Sentinel, Settings};
use sentinel_lab::{Lab, master_cf};
use smtp_sentinel::controller::State;

use crate::PATIENCE;

/// A lab with a daemon that must keep its hands off, and all that it says of smtp/inet meanwhile.
struct Watch<'a> {
    lab: &'a Lab,
    sentinel: &'a Sentinel,
    daemon: &'a Daemon<'a>,
    original: Vec<u8>,
    verdicts: BTreeSet<String>,
    pressure: f64,
    early_per_s: f64,
}

impl<'a> Watch<'a> {
    fn new(lab: &'a Lab, sentinel: &'a Sentinel, daemon: &'a Daemon<'a>) -> Self {
        daemon.wait_state(State::Normal).unwrap();
        Self {
            lab,
            sentinel,
            daemon,
            original: lab.postfix.master_cf().unwrap(),
            verdicts: BTreeSet::new(),
            pressure: 0.0,
            early_per_s: 0.0,
        }
    }

    fn look(&mut self) {
        let Some(service) = self.daemon.find_service("smtp/inet").unwrap() else {
            return;
        };
        assert_eq!(service.state, State::Normal, "{service:#?}");
        self.pressure = self.pressure.max(service.pressure.unwrap_or_default());
        self.early_per_s = self
            .early_per_s
            .max(service.early_disconnects_per_s.unwrap_or_default());
        self.verdicts.insert(service.verdict.kind);
    }

    fn for_a(&mut self, time: Duration) {
        let start = clock::now();
        while start.elapsed() < time {
            self.look();
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        wait_until(what, PATIENCE, || {
            self.look();
            Ok(holds(self))
        })
        .unwrap_or_else(|error| panic!("{error:#}; verdicts so far: {:?}", self.verdicts));
    }

    /// Nothing was done, and nothing would have been.
    fn kept_off(self) {
        assert!(!self.verdicts.contains("hogged"), "{:?}", self.verdicts);
        self.touched_nothing();
        let history = self.sentinel.history().unwrap();
        assert!(history.iter().all(|entry| entry.kind == "probe"), "{history:#?}");
    }

    fn touched_nothing(&self) {
        assert_eq!(self.lab.postfix.master_cf().unwrap(), self.original);
        assert_eq!(self.lab.postfix.reloads(), 0);
        let history = self.sentinel.history().unwrap();
        assert!(
            history
                .iter()
                .all(|entry| entry.kind != "transition" && entry.kind != "action"),
            "{history:#?}"
        );
    }
}

/// Accepted, and not greeted for 3 s. A few of them are calm; on every slot they are a condition of its own.
#[test]
fn slow_dns() {
    let lab = Lab::builder().greeting_delay(3).start().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    let mut watch = Watch::new(&lab, &sentinel, &daemon);
    let light = lab.senders(Traffic::new(1.5)).unwrap();
    watch.for_a(Duration::from_secs(8));
    assert!(!watch.verdicts.contains("slow_greeting"), "{:?}", watch.verdicts);

    let many = lab.senders(Traffic::new(10.0)).unwrap();
    watch.until("slow_greeting on every slot", |watch| {
        watch.verdicts.contains("slow_greeting") && watch.pressure >= 1.0
    });
    watch.for_a(Duration::from_secs(6));
    watch.kept_off();
    drop((light, many));
}

/// They come and go: the slots stay free, however many there are.
#[test]
fn port_scans_and_health_checks() {
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    let mut watch = Watch::new(&lab, &sentinel, &daemon);
    let senders = lab.senders(Traffic::new(1.0)).unwrap();
    for (per_second, seen_at_least) in [(50.0, 15.0), (200.0, 40.0)] {
        let scan = Attack {
            manner: Manner::Leave,
            ..Attack::silent(Arrival::PerSecond(per_second))
        };
        let scan = lab.attack(scan).unwrap();
        watch.for_a(Duration::from_secs(12));
        let connections = scan.stop().unwrap().len();
        assert!(connections >= 200, "a scan of {connections} connections is none");
        assert!(
            watch.early_per_s >= seen_at_least,
            "{} a second were seen",
            watch.early_per_s
        );
    }
    // A probe of a load balancer waits for the greeting and goes without a word.
    let probe = Attack {
        manner: Manner::Visit {
            stay: Duration::from_millis(300),
        },
        ..Attack::silent(Arrival::PerSecond(6.0))
    };
    let probes = lab.attack(probe).unwrap();
    watch.for_a(Duration::from_secs(6));
    let greeted = probes
        .stop()
        .unwrap()
        .iter()
        .filter(|hold| hold.greeted.is_some())
        .count();
    assert!(greeted > 0);
    watch.kept_off();
    let tally = Tally::of(&senders.stop().unwrap());
    assert_eq!(tally.delivered, tally.tried, "{tally:?}");
}

/// Every slot is busy for some seconds, with sessions that deliver.
#[test]
fn a_burst_of_legitimate_mail() {
    let lab = Lab::builder().maxproc(8).start().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    let mut watch = Watch::new(&lab, &sentinel, &daemon);
    let burst = Traffic {
        sessions: Some(60),
        pause: Duration::from_millis(200),
        ..Traffic::new(20.0)
    };
    let senders = lab.senders(burst).unwrap();
    watch.until("every message", |_| senders.so_far().len() == 60);
    assert!(
        watch.pressure >= 1.0,
        "the burst took {} of the slots",
        watch.pressure
    );
    watch.until("calm", |watch| watch.verdicts.contains("calm"));
    watch.kept_off();
    let tally = Tally::of(&senders.stop().unwrap());
    assert_eq!(tally.delivered, tally.tried, "{tally:?}");
}

/// The daemon stands still while the attack that it has seen ends: what it saw is stale.
#[test]
fn a_stalled_daemon_does_not_act_on_the_past() {
    // Seven of sixty fill slowly enough that the whole dwell of 3 s has to pass.
    let lab = Lab::builder().maxproc(60).start().unwrap();
    let settings = Settings {
        detect: "trip = 0.1\nclear = 0.05\ntrip_dwell = \"3s\"\ndwell = \"3s\"".to_owned(),
        ..Settings::default()
    };
    let sentinel = Sentinel::install_with(&lab, &settings).unwrap();
    let daemon = sentinel.start().unwrap();
    let watch = Watch::new(&lab, &sentinel, &daemon);
    for _ in 0..2 {
        let attackers = lab.attack(Attack::burst(7)).unwrap();
        daemon.wait_verdict("hogged").unwrap();
        daemon.freeze().unwrap();
        // Frozen too late, it has tripped with good reason, and this was no test.
        watch.touched_nothing();
        attackers.stop().unwrap();
        std::thread::sleep(Duration::from_secs(5));
        daemon.thaw().unwrap();
        daemon.wait_verdict("calm").unwrap();
        watch.touched_nothing();
    }
}

/// A restart takes the processes and the sockets away from under the daemon's eyes.
#[test]
fn postfix_restarting_under_load() {
    let mut lab = Lab::new().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    daemon.wait_state(State::Normal).unwrap();
    let senders = lab.senders(Traffic::new(8.0)).unwrap();
    for _ in 0..3 {
        let delivered = senders.so_far().len();
        wait_until("mail to flow", PATIENCE, || {
            Ok(senders.so_far().len() >= delivered + 10)
        })
        .unwrap();
        lab.postfix.stop().unwrap();
        lab.postfix.start_again().unwrap();
    }
    wait_until("the last master to be watched", PATIENCE, || {
        let report = daemon.status()?;
        Ok(report
            .instances
            .iter()
            .any(|one| one.master_pid == lab.postfix.master_pid() && one.actionable))
    })
    .unwrap();
    daemon.wait_verdict("calm").unwrap();
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    assert_eq!(lab.postfix.reloads(), 0);
    let history = sentinel.history().unwrap();
    assert!(history.iter().all(|entry| entry.kind == "probe"), "{history:#?}");
}

/// Master has put its own stress mode on: that is seen and shown, and there is nothing to toggle.
#[test]
fn masters_own_stress_is_shown_and_left_alone() {
    let lab = Lab::builder().master_cf(master_cf::plain(10)).start().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let _attackers = lab.attack(Attack::burst(10)).unwrap();
    // The last slot is taken before the daemon is there to see it come.
    lab.postfix
        .wait_youngest("under master's own stress", PATIENCE, |one| {
            one.stress() == Some("yes")
        })
        .unwrap();
    let daemon = sentinel.start().unwrap();
    let mut watch = Watch::new(&lab, &sentinel, &daemon);
    daemon
        .wait_service("native stress", PATIENCE, |service| {
            service.native_stress == Some(true)
        })
        .unwrap();
    watch.until("the attack to be seen", |watch| watch.verdicts.contains("hogged"));
    wait_until("the refusal", PATIENCE, || {
        Ok(sentinel
            .history()?
            .iter()
            .any(|entry| entry.kind == "refusal" && entry.tells("its own stress mode")))
    })
    .unwrap();
    watch.for_a(Duration::from_secs(3));
    watch.touched_nothing();
}
