//! Every failure and every crash, at every step that the code takes: the steps are found by running it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};

use super::*;

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
            .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
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
                assert!(!bench.dir().join("master.cf.tmp").exists(), "{context}");
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
        actuator
            .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
            .unwrap();
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
            .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
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
        actuator
            .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
            .unwrap();
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
