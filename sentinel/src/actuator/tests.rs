//! The whole way, in temporary directories: what a trip and its undo leave behind, under every failure and every
//! crash that the steps allow, and with other hands on the file.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::signal::tests::FakeMaster;
use super::*;
use crate::clock;
use crate::postfix::edit;

const ORIGINAL: &str = "\
# The admin's own words.
smtp      inet  n       -       y       -       20      smtpd
    -o smtpd_client_restrictions=permit
submission inet n       -       y       -       -       smtpd
\t-o smtpd_tls_security_level=encrypt
pickup    unix  n       -       y       60      1       pickup
";

fn id(name: &str) -> ServiceId {
    ServiceId {
        name: name.into(),
        kind: "inet".into(),
    }
}

/// What the masters were told, and how they answer.
#[derive(Default)]
struct Told {
    /// What master.cf was at each reload.
    reloads: Vec<Vec<u8>>,
    dead: bool,
    answer: Option<fn() -> ReloadError>,
}

/// One master that is not there, and notes what it would read.
#[derive(Clone)]
struct Paper {
    master: Master,
    told: Arc<Mutex<Told>>,
}

impl Masters for Paper {
    fn running(&mut self, config_dirs: &[PathBuf]) -> Result<Vec<Master>, ReloadError> {
        let here = config_dirs.contains(&self.master.config_dir) && !self.told.lock().unwrap().dead;
        Ok(here.then(|| self.master.clone()).into_iter().collect())
    }

    fn alive(&mut self, _: &Master) -> bool {
        !self.told.lock().unwrap().dead
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
    let in_flight = actuator.trip(&bench.target(), &why(), clock::now()).unwrap();
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
        actuator.trip(target, &why(), clock::now()).unwrap();
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
        .trip(&bench.target(), &why(), clock::now())
        .unwrap();
    bench.reloads();
    let report = bench.restore();
    assert!(report.complete());
    assert!(matches!(
        report.items[..],
        [Restored {
            found: Found::ByteForByte,
            told: super::Told::Once,
            ..
        }]
    ));
    assert_eq!(bench.reloads(), [ORIGINAL.as_bytes()]);
    bench.assert_original("restored");
    assert_eq!(bench.history().last().unwrap().kind, Kind::Restore);
}

/// What a fault does when its step comes.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    /// This call fails, those after it do not.
    Once(rustix::io::Errno),
    /// This call fails and so does everything after it, as on a disk that is full or read-only.
    FromHereOn(rustix::io::Errno),
    /// The process dies here: nothing in memory survives, and the kernel closes what was open.
    Crash,
}

struct Crashed;

/// Steps that count, note their names, and strike at the `nth`.
fn faulty(nth: usize, fault: Fault, names: Arc<Mutex<Vec<&'static str>>>) -> Steps {
    Steps::hooked(Box::new(move |name| {
        let mut names = names.lock().unwrap();
        names.push(name);
        let at = names.len() - 1;
        drop(names);
        match fault {
            Fault::Once(error) if at == nth => Err(error.into()),
            Fault::FromHereOn(error) if at >= nth => Err(error.into()),
            // Unwinding runs no clean-up of ours but the closing of files: nothing in this room has a Drop that
            // touches the disk. The panic hook, which would print, is not called.
            Fault::Crash if at == nth => resume_unwind(Box::new(Crashed)),
            _ => Ok(()),
        }
    }))
}

fn faults() -> Vec<Fault> {
    use rustix::io::Errno;
    let errors = [Errno::NOSPC, Errno::ROFS, Errno::IO, Errno::ACCESS, Errno::BUSY];
    let once = errors.map(Fault::Once);
    let lasting = errors.map(Fault::FromHereOn);
    once.into_iter().chain(lasting).chain([Fault::Crash]).collect()
}

/// Runs `act` on a fresh bench with every fault at every step that it takes, and `judge` afterwards.
fn at_every_step(
    prepare: impl Fn(&Bench),
    act: impl Fn(&Bench, &mut Actuator) -> Result<(), String>,
    judge: impl Fn(&Bench, &str, Result<(), String>),
) {
    let run = |nth, fault| {
        let bench = Bench::new();
        prepare(&bench);
        bench.reloads();
        let names = Arc::new(Mutex::new(Vec::new()));
        let mut actuator = bench.actuator_with(faulty(nth, fault, Arc::clone(&names)));
        actuator.postconf = |_| None;
        let ended = catch_unwind(AssertUnwindSafe(|| act(&bench, &mut actuator)));
        drop(actuator);
        let names = names.lock().unwrap().clone();
        (bench, names, ended.unwrap_or_else(|_| Err("crashed".into())))
    };
    let (_, names, ended) = run(usize::MAX, Fault::Crash);
    ended.unwrap();
    assert!(names.len() > 8, "{names:?}");
    for fault in faults() {
        for (nth, name) in names.iter().enumerate() {
            let (bench, _, ended) = run(nth, fault);
            judge(&bench, &format!("{fault:?} at step {nth}, {name}"), ended);
        }
    }
}

#[test]
fn every_fault_at_every_step_of_a_trip() {
    let act = |bench: &Bench, actuator: &mut Actuator| {
        actuator
            .trip(&bench.target(), &why(), clock::now())
            .map(drop)
            .map_err(|error| error.to_string())
    };
    at_every_step(
        |_| {},
        act,
        |bench, context, ended| {
            let stuck = ended
                .as_ref()
                .is_err_and(|error| error.contains("smtp-sentinel restore"));
            let crashed = ended.as_ref().is_err_and(|error| error == "crashed");
            if ended.is_err() && !stuck && !crashed {
                assert_eq!(bench.bytes(), ORIGINAL.as_bytes(), "{context}");
                assert!(bench.reloads().is_empty(), "{context}");
            }
            bench.reloads();
            let report = bench.restore();
            assert!(report.complete(), "{context}: {report:?}");
            let reloads = bench.reloads();
            assert!(reloads.len() <= 1, "{context}");
            assert!(
                reloads.iter().all(|file| file == ORIGINAL.as_bytes()),
                "{context}"
            );
            bench.assert_original(context);
            assert!(
                bench.restore().complete() && bench.reloads().is_empty(),
                "{context}: not idempotent"
            );
        },
    );
}

#[test]
fn every_fault_at_every_step_of_a_clear() {
    let prepare = |bench: &Bench| {
        let mut actuator = bench.actuator();
        actuator.postconf = |_| None;
        actuator.trip(&bench.target(), &why(), clock::now()).unwrap();
    };
    let act = |bench: &Bench, actuator: &mut Actuator| {
        actuator
            .clear(&bench.target(), &why(), clock::now())
            .map(drop)
            .map_err(|error| error.to_string())
    };
    at_every_step(prepare, act, |bench, context, ended| {
        let told = !bench.reloads().is_empty();
        if ended.is_ok() {
            assert!(told, "{context}");
        }
        let report = bench.restore();
        assert!(report.complete(), "{context}: {report:?}");
        let reloads = bench.reloads();
        // If the master has not read the clean file yet, it does now.
        assert!(
            reloads.len() <= 1 && (told || reloads == [ORIGINAL.as_bytes()]),
            "{context}"
        );
        bench.assert_original(context);
        assert!(
            bench.restore().complete() && bench.reloads().is_empty(),
            "{context}: not idempotent"
        );
    });
}

#[test]
fn every_fault_at_every_step_of_a_rollback() {
    let act = |bench: &Bench, actuator: &mut Actuator| {
        let in_flight = actuator
            .trip(&bench.target(), &why(), clock::now())
            .map_err(|error| error.to_string())?;
        actuator
            .rollback(in_flight, "no stress", clock::now())
            .map_err(|error| error.to_string())
    };
    at_every_step(
        |_| {},
        act,
        |bench, context, _| {
            bench.reloads();
            assert!(bench.restore().complete(), "{context}");
            assert!(bench.reloads().len() <= 1, "{context}");
            bench.assert_original(context);
        },
    );
}

#[test]
fn every_fault_at_every_step_of_a_restore() {
    let prepare = |bench: &Bench| {
        let mut actuator = bench.actuator();
        actuator.postconf = |_| None;
        actuator.trip(&bench.target(), &why(), clock::now()).unwrap();
    };
    let act = |bench: &Bench, actuator: &mut Actuator| {
        let report = actuator.restore(&[bench.dir().to_owned()], clock::now());
        if report.complete() {
            Ok(())
        } else {
            Err(format!("{report:?}"))
        }
    };
    at_every_step(prepare, act, |bench, context, _| {
        let told = bench.reloads();
        assert!(told.iter().all(|file| file == ORIGINAL.as_bytes()), "{context}");
        assert!(bench.restore().complete(), "{context}");
        let again = bench.reloads();
        assert!(
            told.len() <= 1 && again.len() <= 1 && told.len() + again.len() >= 1,
            "{context}"
        );
        bench.assert_original(context);
    });
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
        .trip(&bench.target(), &why(), clock::now())
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
        .trip(&bench.target(), &why(), clock::now())
        .unwrap_err();
    assert!(
        matches!(error, ActError::Reload(ReloadError::Gone { .. })),
        "{error}"
    );
    bench.assert_original("gone at the signal");
    bench.paper.told.lock().unwrap().dead = true;
    bench
        .actuator()
        .trip(&bench.target(), &why(), clock::now())
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
        .trip(&bench.target(), &why(), clock::now())
        .unwrap_err();
    assert_eq!(bench.reloads(), [ORIGINAL.as_bytes()]);
    bench.assert_original("unknown end");
}

#[test]
fn rollback_of_a_master_that_died_does_not_signal() {
    let bench = Bench::new();
    let mut actuator = bench.actuator();
    let in_flight = actuator.trip(&bench.target(), &why(), clock::now()).unwrap();
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

#[test]
fn others_work_stays() {
    let bench = Bench::new();
    bench
        .actuator()
        .trip(&bench.target(), &why(), clock::now())
        .unwrap();
    bench.reloads();
    let theirs = b"relay     unix  -       -       y       -       -       smtp\n";
    std::fs::write(bench.file(), [bench.bytes().as_slice(), theirs].concat()).unwrap();
    let report = bench.restore();
    assert!(matches!(
        report.items[..],
        [Restored {
            found: Found::OthersWorkKept,
            told: super::Told::Once,
            ..
        }]
    ));
    assert!(report.items[0].to_string().contains("those changes stay"));
    assert_eq!(bench.bytes(), [ORIGINAL.as_bytes(), theirs].concat());
    assert!(
        bench
            .restore()
            .items
            .iter()
            .all(|item| matches!(item.found, Found::Nothing))
    );
}

#[test]
fn the_journal_is_lost() {
    let bench = Bench::new();
    bench
        .actuator()
        .trip(&bench.target(), &why(), clock::now())
        .unwrap();
    bench.reloads();
    std::fs::remove_dir_all(bench.state()).unwrap();
    let report = bench.restore();
    assert!(matches!(
        report.items[..],
        [Restored {
            found: Found::NotComparable,
            told: super::Told::Once,
            ..
        }]
    ));
    bench.assert_original("without a journal");
}

/// The admin puts a file of his own there: it stays, the intent is settled, and the master, which may still run with
/// our setting, reads it once.
#[test]
fn replaced_by_the_admin() {
    let bench = Bench::new();
    bench
        .actuator()
        .trip(&bench.target(), &why(), clock::now())
        .unwrap();
    bench.reloads();
    let theirs = b"smtp inet n - y - 50 smtpd\n";
    std::fs::remove_file(bench.file()).unwrap();
    std::fs::write(bench.file(), theirs).unwrap();
    let report = bench.restore();
    assert!(matches!(
        report.items[..],
        [Restored {
            found: Found::AlreadyOut,
            told: super::Told::Once,
            ..
        }]
    ));
    assert_eq!(bench.bytes(), theirs);
    assert!(matches!(bench.restore().items[0].found, Found::Nothing));
    assert_eq!(bench.reloads().len(), 1);
}

/// Broken by somebody else while we are in charge: our lines go, and the master, which would die of it, is not told
/// until it is whole again.
#[test]
fn broken_by_somebody_else() {
    let bench = Bench::new();
    let mut actuator = bench.actuator();
    actuator.trip(&bench.target(), &why(), clock::now()).unwrap();
    bench.reloads();
    let broken = [bench.bytes().as_slice(), b"relay unix\n"].concat();
    std::fs::write(bench.file(), &broken).unwrap();
    let error = actuator.clear(&bench.target(), &why(), clock::now()).unwrap_err();
    assert!(error.to_string().contains("would stop Postfix"), "{error}");
    assert_eq!(bench.bytes(), [ORIGINAL, "relay unix\n"].concat().into_bytes());
    assert!(!actuator.restore(&[], clock::now()).complete());
    assert!(bench.reloads().is_empty());
    std::fs::write(bench.file(), ORIGINAL).unwrap();
    assert!(actuator.restore(&[], clock::now()).complete());
    assert_eq!(bench.reloads(), [ORIGINAL.as_bytes()]);
    drop(actuator);
    bench.assert_original("mended");
}

/// Somebody breaks it between our rename and our signal.
#[test]
fn broken_just_before_the_signal() {
    let bench = Bench::new();
    let file = bench.file();
    let steps = Steps::hooked(Box::new(move |name| {
        if name == "look again" {
            let now = std::fs::read(&file)?;
            std::fs::write(&file, [now.as_slice(), b"relay unix\n"].concat())?;
        }
        Ok(())
    }));
    bench
        .actuator_with(steps)
        .trip(&bench.target(), &why(), clock::now())
        .unwrap_err();
    assert!(bench.reloads().is_empty());
    assert_eq!(bench.bytes(), [ORIGINAL, "relay unix\n"].concat().into_bytes());
}

#[test]
fn changed_while_we_were_at_it() {
    let bench = Bench::new();
    let file = bench.file();
    let steps = Steps::hooked(Box::new(move |name| match name {
        "recheck" => std::fs::write(&file, "smtp inet n - y - 7 smtpd\n"),
        _ => Ok(()),
    }));
    let error = bench
        .actuator_with(steps)
        .trip(&bench.target(), &why(), clock::now())
        .unwrap_err();
    assert!(matches!(error, ActError::File(FileError::Changed(_))), "{error}");
    assert_eq!(bench.bytes(), b"smtp inet n - y - 7 smtpd\n");
    assert!(bench.reloads().is_empty());
}

#[test]
fn an_admins_own_stress_is_refused() {
    let bench = Bench::with(b"smtp inet n - y - - smtpd -o stress=\n");
    bench
        .actuator()
        .trip(&bench.target(), &why(), clock::now())
        .unwrap_err();
    assert_eq!(bench.bytes(), b"smtp inet n - y - - smtpd -o stress=\n");
    assert_eq!(bench.history().pop().unwrap().outcome, Some(Outcome::Refused));
}

#[test]
fn clear_without_a_trip_is_refused_and_after_the_admins_removal_tells_the_master() {
    let bench = Bench::new();
    let mut actuator = bench.actuator();
    let error = actuator.clear(&bench.target(), &why(), clock::now()).unwrap_err();
    assert!(matches!(error, ActError::NothingOfOurs { .. }));
    actuator.trip(&bench.target(), &why(), clock::now()).unwrap();
    bench.reloads();
    std::fs::write(bench.file(), ORIGINAL).unwrap();
    actuator.clear(&bench.target(), &why(), clock::now()).unwrap();
    drop(actuator);
    assert_eq!(bench.reloads(), [ORIGINAL.as_bytes()]);
    bench.assert_original("removed by hand");
}

#[test]
fn what_must_not_be_replaced_is_not() {
    type Spoil = fn(&Bench);
    let cases: [(&str, Spoil); 5] = [
        ("symbolic link", |bench| {
            std::fs::rename(bench.file(), bench.dir().join("real")).unwrap();
            symlink("real", bench.file()).unwrap();
        }),
        ("hard links", |bench| {
            std::fs::hard_link(bench.file(), bench.dir().join("other")).unwrap()
        }),
        ("regular file", |bench| {
            std::fs::remove_file(bench.file()).unwrap();
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, bench.file(), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }),
        ("regular file", |bench| {
            std::fs::remove_file(bench.file()).unwrap();
            std::fs::create_dir(bench.file()).unwrap();
        }),
        ("too large", |bench| {
            std::fs::write(
                bench.file(),
                vec![b'#'; usize::try_from(file::SIZE_LIMIT).unwrap() + 1],
            )
            .unwrap();
        }),
    ];
    for (words, spoil) in cases {
        let bench = Bench::new();
        spoil(&bench);
        let before = std::fs::symlink_metadata(bench.file()).unwrap();
        let error = bench
            .actuator()
            .trip(&bench.target(), &why(), clock::now())
            .unwrap_err();
        assert!(error.to_string().contains(words), "{words}: {error}");
        let after = std::fs::symlink_metadata(bench.file()).unwrap();
        assert_eq!(
            (before.ino(), before.ctime_nsec()),
            (after.ino(), after.ctime_nsec()),
            "{words}"
        );
        assert!(bench.reloads().is_empty());
    }
}

/// Moved behind a link while stressed: we do not write through it, and say so, as long as our lines are in there.
#[test]
fn made_a_link_while_stressed() {
    let bench = Bench::new();
    bench
        .actuator()
        .trip(&bench.target(), &why(), clock::now())
        .unwrap();
    bench.reloads();
    std::fs::rename(bench.file(), bench.dir().join("real")).unwrap();
    symlink("real", bench.file()).unwrap();
    assert!(!bench.restore().complete());
    assert!(bench.reloads().is_empty());
    std::fs::write(bench.dir().join("real"), ORIGINAL).unwrap();
    let report = bench.restore();
    assert!(report.complete(), "{report:?}");
    assert_eq!(bench.reloads(), [ORIGINAL.as_bytes()]);
}

#[test]
fn a_file_that_is_missing_is_not_reloaded() {
    let bench = Bench::new();
    bench
        .actuator()
        .trip(&bench.target(), &why(), clock::now())
        .unwrap();
    bench.reloads();
    std::fs::remove_file(bench.file()).unwrap();
    assert!(!bench.restore().complete());
    assert!(bench.reloads().is_empty());
    std::fs::write(bench.file(), ORIGINAL).unwrap();
    assert!(bench.restore().complete());
    assert_eq!(bench.reloads().len(), 1);
}

#[test]
fn a_second_sentinel_is_refused() {
    let bench = Bench::new();
    let first = bench.actuator();
    let error = restore(&bench.state(), &[], ReloadMode::Signal, clock::now()).unwrap_err();
    assert!(error.to_string().contains("stop the daemon first"), "{error}");
    drop(first);

    let mut first = bench.actuator();
    first.claim(bench.dir()).unwrap();
    let elsewhere = bench.home.path().join("other-state");
    let masters = Box::new(bench.paper.clone());
    let mut second = Actuator::open_with(&elsewhere, ReloadMode::Signal, masters, Steps::default()).unwrap();
    let error = second.trip(&bench.target(), &why(), clock::now()).unwrap_err();
    assert!(
        matches!(error, ActError::Lock(LockError::Claimed { .. })),
        "{error}"
    );
    first.trip(&bench.target(), &why(), clock::now()).unwrap();
    let report = second.restore(&[bench.dir().to_owned()], clock::now());
    assert!(!report.complete());
    assert_eq!(edit::ours(&bench.bytes()), [id("smtp")]);
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
    actuator.trip(&bench.target(), &why(), clock::now()).unwrap_err();
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
    let entry = dry.trip(&bench.target(), &why(), clock::now()).unwrap();
    assert_eq!(entry.outcome, Some(Outcome::DryRun));
    assert_eq!(entry.reasons, why());
    assert_eq!(listing(), before);
    assert!(bench.reloads().is_empty());
    let missing = bench.target_of("nonesuch");
    assert!(matches!(
        dry.trip(&missing, &why(), clock::now()),
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
    actuator.trip(&target, &why(), clock::now()).unwrap();
    assert_eq!(fake.hangups(1), 1);
    actuator.clear(&target, &why(), clock::now()).unwrap();
    assert_eq!(fake.hangups(2), 2);
    drop(actuator);
    bench.assert_original("signalled");
}
