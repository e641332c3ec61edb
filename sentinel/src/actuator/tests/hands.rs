//! Other hands on master.cf, and another sentinel beside us.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn others_work_stays() {
    let bench = Bench::new();
    bench
        .actuator()
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
        .unwrap();
    bench.reloads();
    let theirs = b"relay     unix  -       -       y       -       -       smtp\n";
    std::fs::write(bench.file(), [bench.bytes().as_slice(), theirs].concat()).unwrap();
    let report = bench.restore();
    assert!(matches!(
        report.items[..],
        [Restored {
            found: Found::OthersWorkKept,
            told: Told::Once,
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

/// The wall clock is for people to read: no decision hangs on it.
#[test]
fn the_wall_clock_jumps() {
    for hours in [-48, 48] {
        let bench = Bench::new();
        let trip = clock::now();
        bench
            .actuator()
            .trip(&bench.target(), Change::STRESS, &why(), trip)
            .unwrap();
        let later = clock::Now {
            wall: trip.wall + jiff::SignedDuration::from_hours(hours),
            ..clock::now()
        };
        bench.actuator().clear(&bench.target(), &why(), later).unwrap();
        bench.assert_original("cleared");
        assert_eq!(bench.reloads().len(), 2);
        let times: Vec<_> = bench.history().iter().map(|entry| entry.time).collect();
        assert_eq!(
            times,
            [trip.wall, trip.wall, later.wall, later.wall],
            "in the order in which it happened"
        );
    }
}

/// A reload would have the master open a socket that it may not get.
#[test]
fn a_listener_that_is_not_open_yet_forbids_a_reload() {
    let bench = Bench::new();
    let open = |ports: &[u16]| {
        let sockets = ports.iter().map(|&port| ([0, 0, 0, 0], port).into());
        bench.paper.told.lock().unwrap().listening = Some(sockets.collect());
    };
    open(&[25]);
    let mut actuator = bench.actuator();
    let refused = actuator
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
        .unwrap_err();
    assert!(
        refused.to_string().contains("the listener submission/inet"),
        "{refused}"
    );
    assert_eq!(bench.bytes(), ORIGINAL.as_bytes());
    assert!(bench.reloads().is_empty());
    open(&[25, 587]);
    actuator
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
        .unwrap();
    bench.reloads();

    let theirs = b"2525      inet  n       -       y       -       -       smtpd\n";
    std::fs::write(bench.file(), [bench.bytes().as_slice(), theirs].concat()).unwrap();
    actuator.clear(&bench.target(), &why(), clock::now()).unwrap_err();
    drop(actuator);
    bench.restore();
    assert_eq!(bench.bytes(), [ORIGINAL.as_bytes(), theirs].concat());
    assert!(bench.reloads().is_empty());
    open(&[25, 587, 2525]);
    let mut actuator = bench.actuator();
    actuator.restore(&[bench.dir().to_owned()], clock::now());
    assert_eq!(bench.reloads().len(), 1, "what the master still ran with is over");

    // Taken away, reloaded, and put back: the same bytes as before, and no socket.
    let file = bench.bytes();
    std::fs::write(bench.file(), ORIGINAL).unwrap();
    actuator.reloadable(&bench.paper.master).unwrap();
    open(&[25, 587]);
    std::fs::write(bench.file(), file).unwrap();
    actuator.reloadable(&bench.paper.master).unwrap_err();
}

#[test]
fn the_journal_is_lost() {
    let bench = Bench::new();
    bench
        .actuator()
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
        .unwrap();
    bench.reloads();
    std::fs::remove_dir_all(bench.state()).unwrap();
    let report = bench.restore();
    assert!(matches!(
        report.items[..],
        [Restored {
            found: Found::NotComparable,
            told: Told::Once,
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
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
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
            told: Told::Once,
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
    actuator
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
        .unwrap();
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
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
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
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
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
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
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
    actuator
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
        .unwrap();
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
            .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
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
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
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
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
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
    let error = second
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
        .unwrap_err();
    assert!(
        matches!(error, ActError::Lock(LockError::Claimed { .. })),
        "{error}"
    );
    first
        .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
        .unwrap();
    let report = second.restore(&[bench.dir().to_owned()], clock::now());
    assert!(!report.complete());
    assert_eq!(edit::ours(&bench.bytes()), [id("smtp")]);
}

/// A postconf(1) that says what `script` says, where that of the master would be.
fn postconf_that(bench: &mut Bench, script: &str) {
    let daemons = bench.home.path().join("daemons");
    std::fs::create_dir_all(&daemons).unwrap();
    let program = daemons.join("postconf");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    bench.paper.master.daemon_dir = daemons;
}

/// Refused by postconf(1), seen otherwise by it, or refused by our own parser: the file is not touched, not even
/// replaced by its like.
#[test]
fn a_refused_candidate_never_reaches_the_file() {
    type Spoil = fn(&mut Bench);
    let spoils: [(&str, Spoil); 4] = [
        ("does not accept", |bench| {
            postconf_that(
                bench,
                "if grep -q stress=yes $2/master.cf; then echo fatal: no >&2; exit 1; fi; cat $2/master.cf",
            );
        }),
        ("another change", |bench| {
            postconf_that(
                bench,
                "grep -v pickup $2/master.cf; grep -c stress=yes $2/master.cf; true",
            )
        }),
        ("does not accept", |bench| {
            std::fs::write(bench.dir().join("main.cf"), "no equals sign\n").unwrap();
        }),
        ("would stop Postfix", |bench| {
            let broken = format!("{ORIGINAL}relay unix\n");
            std::fs::write(bench.file(), broken).unwrap();
        }),
    ];
    for (words, spoil) in spoils {
        let mut bench = Bench::new();
        spoil(&mut bench);
        let state = |bench: &Bench| {
            let meta = std::fs::metadata(bench.file()).unwrap();
            (meta.ino(), meta.mtime_nsec(), meta.ctime_nsec(), bench.bytes())
        };
        let before = state(&bench);
        let error = bench
            .actuator()
            .trip(&bench.target(), STRESS_AND_ROOM, &why(), clock::now())
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(state(&bench), before, "{words}");
        assert!(bench.reloads().is_empty());
        let entry = bench.history().pop().unwrap();
        assert_eq!(entry.outcome, Some(Outcome::Failed), "{words}");
        assert_eq!(entry.detail["step"], "check", "{words}");
        let names: Vec<_> = std::fs::read_dir(bench.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{words}: {names:?}");
    }
}
