//! kill -9 on a live Postfix, at the moments when it hurts: around each change of master.cf, of its temporary file and of
//! the journal, while a trip or a clear is under way. Whatever is left behind, the next start or `restore` ends with the
//! original bytes, one reload at most more, and a running master.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sentinel_lab::attackers::{Attack, Attackers};
use sentinel_lab::clock::{self, wait_until};
use sentinel_lab::sentinel::{Daemon, Sentinel, Settings};
use sentinel_lab::{Lab, master_cf};
use smtp_sentinel::controller::State;

use crate::{PATIENCE, without_shedding};

/// What is watched for the moment to kill.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// The journal grows: an intent is being written.
    Intent,
    /// The temporary file is there.
    Draft,
    /// master.cf is another file: renamed, and the master perhaps not told yet.
    Renamed,
}

/// From the moment to the kill. The whole act takes some milliseconds.
const DELAYS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(6)];

/// As in the tests of other hands: enough below the last slot for the senders.
const SLOTS: u32 = 30;
const ATTACKERS: usize = 22;

/// What the steps of an act leave in the file system.
#[derive(PartialEq)]
struct Trace {
    journal: u64,
    draft: bool,
    inode: u64,
}

struct Scene {
    lab: Lab,
    sentinel: Sentinel,
    original: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::builder()
            .master_cf(master_cf::weathered(SLOTS))
            .start()
            .unwrap();
        // Clear is just below trip, and the dwells are short: acts follow at once upon the attack and its end.
        let settings = Settings {
            detect: "clear = 0.69\ntrip_dwell = \"200ms\"\ndwell = \"200ms\"".to_owned(),
            ..without_shedding()
        };
        let sentinel = Sentinel::install_with(&lab, &settings).unwrap();
        Self {
            original: lab.postfix.master_cf().unwrap(),
            lab,
            sentinel,
        }
    }

    fn flood(&self) -> Attackers {
        self.lab.attack(Attack::burst(ATTACKERS)).unwrap()
    }

    fn trace(&self) -> Trace {
        let journal = self.sentinel.state_dir().join("journal.jsonl");
        let size = |path: PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
        Trace {
            journal: size(journal),
            draft: self.draft().exists(),
            inode: fs::metadata(self.lab.postfix.master_cf_path()).map_or(0, |meta| meta.ino()),
        }
    }

    fn draft(&self) -> PathBuf {
        self.lab.postfix.config_dir().join("master.cf.tmp")
    }

    /// Kills the daemon `delay` after the first such moment since `before`. Spins, since a poll with a pause would miss it.
    fn kill_at(&self, daemon: Daemon<'_>, before: &Trace, moment: Moment, delay: Duration) {
        let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
        let start = clock::now();
        loop {
            let now = self.trace();
            let come = match moment {
                Moment::Intent => now.journal > before.journal && (now.draft || now.inode != before.inode),
                Moment::Draft => now.draft,
                Moment::Renamed => now.inode != before.inode,
            };
            // The temporary file may come and go unseen; what follows it will do.
            if come || now.inode != before.inode {
                break;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{moment:?} did not come:\n{}",
                self.sentinel.log()
            );
        }
        let seen = clock::now();
        while seen.elapsed() < delay {
            std::hint::spin_loop();
        }
        kill(pid, Signal::SIGKILL).unwrap();
        daemon.kill().unwrap();
    }

    /// Undoes what the kill left, by a new start or by `restore`, and judges it. `most` is how many reloads there may have
    /// been in all by now.
    fn judge(&self, restart: bool, most: usize, what: &str) {
        if restart {
            assert_eq!(
                self.sentinel.start().unwrap().terminate().unwrap(),
                Some(0),
                "{what}"
            );
        } else {
            let answer = self.sentinel.ask(&["restore"]).unwrap();
            assert_eq!(answer.code, Some(0), "{what}: {answer:?}");
        }
        assert_eq!(
            String::from_utf8_lossy(&self.lab.postfix.master_cf().unwrap()),
            String::from_utf8_lossy(&self.original),
            "{what}"
        );
        assert!(!self.draft().exists(), "{what}: a temporary file is left");
        // There is nothing left to be done twice.
        let again = self.sentinel.ask(&["restore"]).unwrap();
        assert_eq!(again.code, Some(0), "{what}: {again:?}");
        // The master answers, so it has taken the signals that were sent before: they are handled between two events.
        let mut client = self.lab.connect(1).unwrap();
        let (greeting, _) = client.read_line().unwrap();
        assert!(greeting.starts_with("220 "), "{what}: {greeting}");
        assert!(self.lab.postfix.runs(), "{what}");
        let reloads = self.lab.postfix.reloads();
        assert!(reloads <= most, "{what}: {reloads} reloads, at most {most}");
    }

    /// Waits until no smtpd of this attack is left: master counts them until they have ended, and together with those of
    /// the next it would come to its last slot, and switch its own stress mode on before us.
    fn settle(&self) {
        self.lab.postfix.reload().unwrap();
        wait_until("the end of every smtpd", PATIENCE, || {
            Ok(self.lab.postfix.smtpds()?.is_empty())
        })
        .unwrap();
    }
}

/// Every moment with every delay, and whether a new start or `restore` has to cope.
fn runs(delays: &[Duration]) -> impl Iterator<Item = (Moment, Duration, bool)> {
    let moments = [Moment::Intent, Moment::Draft, Moment::Renamed];
    let all = moments
        .into_iter()
        .flat_map(|moment| delays.iter().map(move |delay| (moment, *delay)));
    all.enumerate()
        .map(|(number, (moment, delay))| (moment, delay, number % 2 == 0))
}

#[test]
fn killed_in_the_midst_of_a_trip() {
    let scene = Scene::new();
    for (moment, delay, restart) in runs(&DELAYS) {
        let before = scene.lab.postfix.reloads();
        let daemon = scene.sentinel.start().unwrap();
        let trace = scene.trace();
        let attackers = scene.flood();
        scene.kill_at(daemon, &trace, moment, delay);
        attackers.stop().unwrap();
        // The trip's own, and one that takes it back.
        scene.judge(restart, before + 2, &format!("trip, {moment:?} + {delay:?}"));
        scene.settle();
    }
}

#[test]
fn killed_in_the_midst_of_a_clear() {
    let scene = Scene::new();
    for (moment, delay, restart) in runs(&DELAYS[..2]) {
        let before = scene.lab.postfix.reloads();
        let daemon = scene.sentinel.start().unwrap();
        let attackers = scene.flood();
        daemon.wait_state(State::Stressed).unwrap();
        let trace = scene.trace();
        attackers.stop().unwrap();
        scene.kill_at(daemon, &trace, moment, delay);
        // The trip's, the clear's, and one more.
        scene.judge(restart, before + 3, &format!("clear, {moment:?} + {delay:?}"));
        scene.settle();
    }
}

#[test]
fn killed_while_stressed_the_next_start_reloads_once() {
    let scene = Scene::new();
    let daemon = scene.sentinel.start().unwrap();
    let attackers = scene.flood();
    daemon.wait_state(State::Stressed).unwrap();
    wait_until("the trip's reload", PATIENCE, || {
        Ok(scene.lab.postfix.reloads() == 1)
    })
    .unwrap();
    daemon.kill().unwrap();
    attackers.stop().unwrap();
    scene.judge(true, 2, "stressed");
    wait_until("one reload more", PATIENCE, || {
        Ok(scene.lab.postfix.reloads() == 2)
    })
    .unwrap();
}
