//! The same way in a container: below a root that is not ours, and against whoever lives in there.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, makedev, mknodat};

use super::*;
use crate::postfix::root::Container;

/// The directory of the bench as a container's root.
fn pod(bench: &Bench) -> Paper {
    let root = fs::File::open(bench.home.path()).unwrap().into();
    let container = Container::new(root, "3f2a9c1b4d5e".into(), "3f2a9c1b4d5e".into(), None, 1).unwrap();
    Paper {
        master: Master {
            root: Root::Container(Arc::new(container)),
            config_dir: "/etc".into(),
            ..bench.paper.master.clone()
        },
        told: Arc::clone(&bench.paper.told),
    }
}

fn actuator(bench: &Bench, pod: &Paper) -> Actuator {
    let masters = Box::new(pod.clone());
    Actuator::open_with(&bench.state(), ReloadMode::Signal, masters, Steps::default()).unwrap()
}

fn target(pod: &Paper) -> Target {
    Target {
        instance: pod.master.home().name(),
        master: pod.master.clone(),
        service: id("smtp"),
    }
}

fn why() -> Vec<String> {
    vec!["because".into()]
}

#[test]
fn in_and_out_again_with_owner_and_mode() {
    let bench = Bench::new();
    let pod = pod(&bench);
    let mut actuator = actuator(&bench, &pod);
    actuator
        .trip(&target(&pod), STRESS_AND_ROOM, &why(), clock::now())
        .unwrap();
    assert_eq!(edit::ours(&bench.bytes()), [id("smtp")]);
    let intent = &actuator.open_intents()[0];
    assert_eq!(intent.container.as_deref(), Some("3f2a9c1b4d5e"));
    assert_eq!(intent.config_dir, Path::new("/etc"), "as it is called in there");
    actuator.clear(&target(&pod), &why(), clock::now()).unwrap();
    drop(actuator);
    assert_eq!(bench.reloads().len(), 2);
    bench.assert_original("cleared");
}

/// The next start knows the container by name only.
#[test]
fn given_back_by_the_next_start_and_closed_when_the_container_is_gone() {
    for gone in [false, true] {
        let bench = Bench::new();
        let pod = pod(&bench);
        actuator(&bench, &pod)
            .trip(&target(&pod), STRESS_AND_ROOM, &why(), clock::now())
            .unwrap();
        let edited = bench.bytes();
        bench.paper.told.lock().unwrap().dead = gone;
        let mut next = actuator(&bench, &pod);
        let report = next.restore(&[], clock::now());
        let [restored] = &report.items[..] else {
            panic!("{report:?}")
        };
        assert!(report.complete() && next.open_intents().is_empty(), "{report:?}");
        drop(next);
        if gone {
            assert!(matches!(restored.found, Found::ContainerGone), "{report:?}");
            assert_eq!(bench.bytes(), edited, "what is left of it is nobody's to write");
        } else {
            assert!(matches!(restored.found, Found::ByteForByte), "{report:?}");
            bench.assert_original("restored");
        }
    }
}

/// One that has stopped is given back, and those that have not are left as they are.
#[test]
fn giving_one_back_leaves_the_others() {
    let (bench, other) = (Bench::new(), Bench::new());
    let mut actuator = bench.actuator();
    actuator
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
        .unwrap();
    let edited = bench.bytes();
    let report = actuator.restore_only(&[other.paper.master.home()], clock::now());
    assert_eq!(report.items.len(), 1);
    assert_eq!(bench.bytes(), edited);
    assert_eq!(actuator.open_intents().len(), 1);
}

/// What a container can put in our way, and the words for it. `true` when it could be made here.
#[test]
fn what_is_not_a_plain_file_is_neither_opened_nor_replaced() {
    type Spoil = fn(&Path) -> bool;
    let node = |dir: &Path, name: &str, kind, device| {
        mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o600), device).is_ok()
    };
    let cases: [(&str, Spoil); 6] = [
        ("is in the way", |dir| {
            mknodat(
                CWD,
                dir.join("master.cf.tmp"),
                FileType::Fifo,
                Mode::from_raw_mode(0o600),
                0,
            )
            .is_ok()
        }),
        ("is in the way", |dir| {
            symlink("/etc/passwd", dir.join("master.cf.tmp")).is_ok()
        }),
        ("setuid", |dir| {
            fs::set_permissions(dir.join("master.cf"), PermissionsExt::from_mode(0o4755)).is_ok()
        }),
        ("through a symbolic link", |dir| {
            fs::rename(dir, dir.with_file_name("real")).unwrap();
            symlink("real", dir).is_ok()
        }),
        ("\"=\"", |dir| {
            fs::write(dir.join("main.cf"), "no equals sign\n").is_ok()
        }),
        ("would stop Postfix", |dir| {
            fs::write(dir.join("master.cf"), format!("{ORIGINAL}x inet n\n")).is_ok()
        }),
    ];
    for (words, spoil) in cases {
        let bench = Bench::new();
        let pod = pod(&bench);
        assert!(spoil(bench.dir()), "{words}");
        let before = fs::read(bench.dir().join("master.cf")).unwrap();
        let refused = actuator(&bench, &pod).trip(&target(&pod), STRESS_AND_ROOM, &why(), clock::now());
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert_eq!(
            fs::read(bench.dir().join("master.cf")).unwrap(),
            before,
            "{words}"
        );
        assert!(bench.reloads().is_empty());
    }
    // A device is looked at in the same way; where none may be made, the FIFO has to do.
    let bench = Bench::new();
    let pod = pod(&bench);
    if node(
        bench.dir(),
        "master.cf.tmp",
        FileType::CharacterDevice,
        makedev(1, 3),
    ) {
        let refused = actuator(&bench, &pod).trip(&target(&pod), STRESS_AND_ROOM, &why(), clock::now());
        assert!(refused.unwrap_err().to_string().contains("is in the way"));
    }
}

/// Somebody in there holds the lock of the directory, which only sentinels have a use for: it is not waited for.
#[test]
fn a_lock_that_is_held_is_not_waited_for() {
    let bench = Bench::new();
    let pod = pod(&bench);
    let held = fs::File::open(bench.dir()).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    let mut actuator = actuator(&bench, &pod);
    assert!(matches!(
        actuator.claim(&pod.master.home()),
        Err(ActError::Lock(LockError::Claimed { .. }))
    ));
    drop(held);
    let dir = actuator.claim(&pod.master.home()).unwrap();
    assert!(dir.patience(std::time::Duration::from_secs(2)) < std::time::Duration::from_secs(1));
}
