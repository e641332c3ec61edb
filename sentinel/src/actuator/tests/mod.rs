//! The whole way, in temporary directories: what a trip and its undo leave behind.

mod faults;
mod hands;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::signal::tests::FakeMaster;
use super::*;
use crate::clock;
use crate::postfix::edit::{self, Change};

const ORIGINAL: &str = "\
# The admin's own words.
smtp      inet  n       -       y       -       20      smtpd
    -o smtpd_client_restrictions=permit
submission inet n       -       y       -       -       smtpd
\t-o smtpd_tls_security_level=encrypt
pickup    unix  n       -       y       60      1       pickup
";

/// Everything that an edit can be, for whoever looks for a step that leaves something behind.
const STRESS_AND_ROOM: Change = Change {
    stress: true,
    maxproc: Some(80),
};

fn id(name: &str) -> ServiceId {
    ServiceId {
        name: name.into(),
        kind: "inet".into(),
    }
}

/// What the masters were told, and how they answer.
#[derive(Default)]
struct Notes {
    /// What master.cf was at each reload.
    reloads: Vec<Vec<u8>>,
    dead: bool,
    answer: Option<fn() -> ReloadError>,
    listening: Option<Vec<SocketAddr>>,
}

/// One master that is not there, and notes what it would read.
#[derive(Clone)]
struct Paper {
    master: Master,
    told: Arc<Mutex<Notes>>,
}

impl Masters for Paper {
    fn running(&mut self, config_dirs: &[PathBuf]) -> Result<Vec<Master>, ReloadError> {
        let here = config_dirs.contains(&self.master.config_dir) && !self.told.lock().unwrap().dead;
        Ok(here.then(|| self.master.clone()).into_iter().collect())
    }

    fn alive(&mut self, master: &Master) -> bool {
        *master == self.master && !self.told.lock().unwrap().dead
    }

    fn listening(&mut self, _: &Master) -> Option<Vec<SocketAddr>> {
        self.told.lock().unwrap().listening.clone()
    }

    fn reload(&mut self, _: &Master, _: ReloadMode) -> Result<(), ReloadError> {
        let mut told = self.told.lock().unwrap();
        if let Some(answer) = told.answer.take() {
            return Err(answer());
        }
        let file = std::fs::read(self.master.config_dir.join("master.cf")).unwrap();
        told.reloads.push(file);
        Ok(())
    }
}

/// A configuration directory, a state directory and a master on paper.
struct Bench {
    home: tempfile::TempDir,
    paper: Paper,
}

impl Bench {
    fn new() -> Self {
        Self::with(ORIGINAL.as_bytes())
    }

    fn with(original: &[u8]) -> Self {
        // In memory where there is such a place: a thousand runs with a dozen fsyncs each.
        let home = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let config_dir = home.path().join("etc");
        std::fs::create_dir(&config_dir).unwrap();
        std::fs::write(config_dir.join("main.cf"), "compatibility_level = 3.6\n").unwrap();
        std::fs::write(config_dir.join("master.cf"), original).unwrap();
        std::fs::set_permissions(config_dir.join("master.cf"), PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(config_dir.join("master.cf"), Some(1234), Some(4321)).unwrap();
        let master = Master {
            pid: 4242,
            start_time: 99,
            config_dir,
            queue_dir: "/nowhere".into(),
            daemon_dir: "/nowhere".into(),
            netns: 0,
        };
        Self {
            home,
            paper: Paper {
                master,
                told: Arc::default(),
            },
        }
    }

    fn dir(&self) -> &Path {
        &self.paper.master.config_dir
    }

    fn file(&self) -> PathBuf {
        self.dir().join("master.cf")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.file()).unwrap()
    }

    fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    fn target(&self) -> Target {
        self.target_of("smtp")
    }

    fn target_of(&self, service: &str) -> Target {
        Target {
            instance: "postfix".into(),
            master: self.paper.master.clone(),
            service: id(service),
        }
    }

    fn actuator(&self) -> Actuator {
        self.actuator_with(Steps::default())
    }

    fn actuator_with(&self, steps: Steps) -> Actuator {
        Actuator::open_with(
            &self.state(),
            ReloadMode::Signal,
            Box::new(self.paper.clone()),
            steps,
        )
        .unwrap()
    }

    fn restore(&self) -> RestoreReport {
        let mut actuator = self.actuator();
        actuator.postconf = |_| None;
        actuator.restore(&[self.dir().to_owned()], clock::now())
    }

    fn reloads(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.paper.told.lock().unwrap().reloads)
    }

    fn history(&self) -> Vec<HistoryEntry> {
        read_history(&self.state()).unwrap()
    }

    /// The original's bytes, mode and owner, alone in its directory, and nothing left to do.
    #[track_caller]
    fn assert_original(&self, context: &str) {
        assert_eq!(String::from_utf8(self.bytes()).unwrap(), ORIGINAL, "{context}");
        let meta = std::fs::metadata(self.file()).unwrap();
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (0o640, 1234, 4321),
            "{context}"
        );
        let mut names: Vec<_> = std::fs::read_dir(self.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["main.cf", "master.cf"], "{context}");
        assert!(self.actuator().open_intents().is_empty(), "{context}");
    }
}

fn why() -> Vec<String> {
    vec!["17 of 20 slots are held in silence".into()]
}

#[test]
fn there_and_back() {
    let bench = Bench::new();
    let mut actuator = bench.actuator();
    let in_flight = actuator
        .trip(&bench.target(), Change::STRESS, &why(), clock::now())
        .unwrap();
    assert_eq!(in_flight.target, bench.target());
    assert_eq!(edit::ours(&bench.bytes()), [id("smtp")]);
    assert_eq!(bench.reloads(), [bench.bytes()]);
    let meta = std::fs::metadata(bench.file()).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid()),
        (0o640, 1234, 4321)
    );
    let [intent] = actuator.open_intents() else {
        panic!()
    };
    let backup = intent.backup.clone().unwrap();
    assert_eq!(std::fs::read(&backup).unwrap(), ORIGINAL.as_bytes());
    assert_eq!(std::fs::metadata(&backup).unwrap().mode() & 0o7777, 0o600);

    actuator
        .clear(&bench.target(), &["the pressure is gone".into()], clock::now())
        .unwrap();
    drop(actuator);
    bench.assert_original("cleared");
    assert_eq!(bench.reloads(), [ORIGINAL.as_bytes()]);
    assert!(!backup.exists());
    let told: Vec<_> = bench
        .history()
        .into_iter()
        .map(|entry| (entry.action, entry.outcome))
        .collect();
    let done = |action| (Some(action), Some(Outcome::Done));
    assert_eq!(
        told,
        [Action::Edit, Action::Reload, Action::Undo, Action::Reload].map(done)
    );
    assert!(matches!(bench.restore().items[0].found, Found::Nothing));
    assert!(bench.reloads().is_empty());
}

/// Two services of one file: each is taken back alone, and the last one leaves the original.
#[test]
fn two_services_in_one_file() {
    let bench = Bench::new();
    let mut actuator = bench.actuator();
    let (smtp, submission) = (bench.target_of("smtp"), bench.target_of("submission"));
    for target in [&smtp, &submission] {
        actuator
            .trip(target, Change::STRESS, &why(), clock::now())
            .unwrap();
    }
    actuator.clear(&smtp, &why(), clock::now()).unwrap();
    assert_eq!(edit::ours(&bench.bytes()), [id("submission")]);
    assert_eq!(actuator.open_intents().len(), 1);
    actuator.clear(&submission, &why(), clock::now()).unwrap();
    drop(actuator);
    bench.assert_original("both cleared");
}

#[test]
fn killed_while_stressed() {
    let bench = Bench::new();
    bench
        .actuator()
        .trip(&bench.target(), Change::STRESS, &why(), clock::now())
        .unwrap();
    bench.reloads();
    let report = bench.restore();
    assert!(report.complete());
    assert!(matches!(
        report.items[..],
        [Restored {
            found: Found::ByteForByte,
            told: Told::Once,
            ..
        }]
    ));
    assert_eq!(bench.reloads(), [ORIGINAL.as_bytes()]);
    bench.assert_original("restored");
    assert_eq!(bench.history().last().unwrap().kind, Kind::Restore);
}

/// The failed trip says in the history at which step, and in what words.
#[test]
fn a_failure_names_its_step() {
    let bench = Bench::new();
    let steps = Steps::hooked(Box::new(|name| match name {
        "signal" => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
        _ => Ok(()),
    }));
    let error = bench
        .actuator_with(steps)
        .trip(&bench.target(), Change::STRESS, &why(), clock::now())
        .unwrap_err();
    assert!(error.not_permitted());
    let last = bench.history().pop().unwrap();
    assert_eq!(
        (last.action, last.outcome),
        (Some(Action::Edit), Some(Outcome::Failed))
    );
    assert_eq!(last.detail["step"], "signal");
    assert_eq!(last.detail["error"], error.to_string());
    bench.assert_original("failed signal");
}

#[test]
fn a_master_that_is_gone() {
    let bench = Bench::new();
    let gone: fn() -> ReloadError = || ReloadError::Gone {
        pid: 4242,
        config_dir: "/nowhere".into(),
    };
    bench.paper.told.lock().unwrap().answer = Some(gone);
    let error = bench
        .actuator()
        .trip(&bench.target(), Change::STRESS, &why(), clock::now())
        .unwrap_err();
    assert!(
        matches!(error, ActError::Reload(ReloadError::Gone { .. })),
        "{error}"
    );
    bench.assert_original("gone at the signal");
    bench.paper.told.lock().unwrap().dead = true;
    bench
        .actuator()
        .trip(&bench.target(), Change::STRESS, &why(), clock::now())
        .unwrap_err();
    bench.assert_original("gone before");
}

/// A `postfix reload` that never ended may have told the master of lines that are out again: it is told once more.
#[test]
fn a_reload_of_unknown_end_is_followed_by_one() {
    let bench = Bench::new();
    let unknown: fn() -> ReloadError = || ReloadError::Unknown {
        config_dir: "/nowhere".into(),
        limit_s: 30,
    };
    bench.paper.told.lock().unwrap().answer = Some(unknown);
    bench
        .actuator()
        .trip(&bench.target(), Change::STRESS, &why(), clock::now())
        .unwrap_err();
    assert_eq!(bench.reloads(), [ORIGINAL.as_bytes()]);
    bench.assert_original("unknown end");
}

#[test]
fn rollback_of_a_master_that_died_does_not_signal() {
    let bench = Bench::new();
    let mut actuator = bench.actuator();
    let in_flight = actuator
        .trip(&bench.target(), Change::STRESS, &why(), clock::now())
        .unwrap();
    bench.reloads();
    bench.paper.told.lock().unwrap().dead = true;
    actuator
        .rollback(in_flight, "the master exited", clock::now())
        .unwrap();
    drop(actuator);
    assert!(bench.reloads().is_empty());
    bench.assert_original("rolled back");
    let undo = bench.history().pop().unwrap();
    assert_eq!(
        (undo.action, undo.outcome),
        (Some(Action::Undo), Some(Outcome::Done))
    );
}

/// Restarted by an admin while our lines were in: the new master was started with them, and is told.
#[test]
fn a_master_that_was_restarted_meanwhile() {
    let bench = Bench::new();
    let stale = Target {
        master: Master {
            pid: 1,
            ..bench.paper.master.clone()
        },
        ..bench.target()
    };
    for rolling_back in [false, true] {
        let mut actuator = bench.actuator();
        let in_flight = actuator
            .trip(&bench.target(), Change::STRESS, &why(), clock::now())
            .unwrap();
        bench.reloads();
        if rolling_back {
            let in_flight = InFlight {
                target: stale.clone(),
                ..in_flight
            };
            actuator
                .rollback(in_flight, "the master exited", clock::now())
                .unwrap();
        } else {
            let in_flight = actuator.clear(&stale, &why(), clock::now()).unwrap();
            assert_eq!(in_flight.target.master, bench.paper.master);
        }
        assert_eq!(bench.reloads(), [ORIGINAL.as_bytes()]);
        drop(actuator);
        bench.assert_original("told the new one");
    }
}

/// The history of a full disk is written when there is room again.
#[test]
fn history_waits_for_room() {
    let bench = Bench::new();
    let full = Arc::new(Mutex::new(true));
    let seen = Arc::clone(&full);
    let steps = Steps::hooked(Box::new(move |name| match name {
        "journal.write" if *seen.lock().unwrap() => Err(io::Error::from(io::ErrorKind::StorageFull)),
        _ => Ok(()),
    }));
    let mut actuator = bench.actuator_with(steps);
    actuator
        .trip(&bench.target(), Change::STRESS, &why(), clock::now())
        .unwrap_err();
    assert!(bench.history().is_empty());
    *full.lock().unwrap() = false;
    actuator.record(HistoryEntry::new(clock::now().wall, Kind::Probe));
    let kinds: Vec<_> = bench.history().iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [Kind::Action, Kind::Probe]);
}

#[test]
fn dry_run_writes_nothing() {
    let bench = Bench::new();
    let listing = || {
        let mut names: Vec<_> = std::fs::read_dir(bench.home.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        (names, std::fs::metadata(bench.dir()).unwrap().mtime_nsec())
    };
    let before = listing();
    let mut dry = DryRun::with(Box::new(bench.paper.clone()));
    let entry = dry
        .trip(&bench.target(), Change::STRESS, &why(), clock::now())
        .unwrap();
    assert_eq!(entry.outcome, Some(Outcome::DryRun));
    assert_eq!(entry.reasons, why());
    assert_eq!(listing(), before);
    assert!(bench.reloads().is_empty());
    let missing = bench.target_of("nonesuch");
    assert!(matches!(
        dry.trip(&missing, Change::STRESS, &why(), clock::now()),
        Err(ActError::Edit { .. })
    ));
}

/// A real process, a real SIGHUP.
#[test]
fn a_real_signal() {
    let bench = Bench::new();
    let fake = FakeMaster::start(bench.dir());
    let target = Target {
        master: fake.master.clone(),
        ..bench.target()
    };
    let mut actuator = Actuator::open(&bench.state(), ReloadMode::Signal).unwrap();
    actuator
        .trip(&target, Change::STRESS, &why(), clock::now())
        .unwrap();
    assert_eq!(fake.hangups(1), 1);
    actuator.clear(&target, &why(), clock::now()).unwrap();
    assert_eq!(fake.hangups(2), 2);
    drop(actuator);
    bench.assert_original("signalled");
}
