use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::Path;
use std::process::Command;

use super::*;
use crate::postfix::Home;

const OLD: &[u8] = b"smtp      inet  n       -       y       -       -       smtpd\n";
const NEW: &[u8] = b"smtp      inet  n       -       y       -       -       smtpd\n    -v\n";

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join(MASTER_CF), OLD).unwrap();
    std::fs::write(home.path().join("main.cf"), "compatibility_level = 3.6\n").unwrap();
    home
}

fn replace(home: &Path) -> Result<(), FileError> {
    let dir = ConfigDir::open(&Home::own(home))?;
    let mut steps = Steps::default();
    let draft = Draft::begin(&dir, &|bytes| bytes == NEW, &mut steps)?;
    let original = match dir.read() {
        Ok(original) => original,
        Err(error) => {
            draft.abandon();
            return Err(error);
        }
    };
    draft
        .commit(&original, NEW, &mut steps)
        .map(drop)
        .map_err(|failure| failure.error)
}

fn bytes(home: &Path) -> Vec<u8> {
    std::fs::read(home.join(MASTER_CF)).unwrap()
}

/// An ACL as setxattr(2) takes it: version 2, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for &(tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// user::rw-, user:1000:perm, group::r--, mask::rw-, other::---
fn acl_with(permissions: u16) -> Vec<u8> {
    let none = u32::MAX;
    acl(&[
        (1, 6, none),
        (2, permissions, 1000),
        (4, 4, none),
        (0x10, 6, none),
        (0x20, 0, none),
    ])
}

#[test]
fn mode_owner_and_attributes_come_along() {
    let home = home();
    let file = home.path().join(MASTER_CF);
    std::os::unix::fs::chown(&file, Some(1234), Some(4321)).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    xattr::set(&file, "user.note", b"by hand").unwrap();
    xattr::set(&file, "trusted.note", b"by root").unwrap();
    xattr::set(&file, ACL, &acl_with(6)).unwrap();
    let listing = || {
        let mut all: Vec<_> = xattr::list(&file)
            .unwrap()
            .map(|name| (xattr::get(&file, &name).unwrap(), name))
            .collect();
        all.sort();
        let meta = std::fs::metadata(&file).unwrap();
        (all, meta.mode(), meta.uid(), meta.gid())
    };
    let before = listing();
    assert!(before.0.len() >= 3);
    replace(home.path()).unwrap();
    assert_eq!(bytes(home.path()), NEW);
    assert_eq!(listing(), before);
}

/// A default ACL gives every new file of the directory an ACL that the old one did not have.
#[test]
fn a_default_acl_does_not_rub_off() {
    let home = home();
    xattr::set(home.path(), "system.posix_acl_default", &acl_with(6)).unwrap();
    std::fs::set_permissions(home.path().join(MASTER_CF), PermissionsExt::from_mode(0o644)).unwrap();
    replace(home.path()).unwrap();
    let file = home.path().join(MASTER_CF);
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o644);
    assert!(!xattr::list(&file).unwrap().any(|name| name == OsStr::new(ACL)));
}

#[test]
fn special_mode_bits_come_along() {
    for mode in [0o600, 0o400, 0o4755, 0o2664] {
        let home = home();
        let file = home.path().join(MASTER_CF);
        std::os::unix::fs::chown(&file, Some(1234), Some(4321)).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        replace(home.path()).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, mode);
    }
}

/// What a crash at any moment can have left under the temporary name, ours or postconf's.
#[test]
fn leftovers_are_taken_over_or_removed() {
    let cases: [(&[u8], u32); 5] = [
        (b"", 0o600),
        (&NEW[..20], 0o600),
        (b"others' half", 0o600),
        (b"", 0o644),
        (NEW, 0o644),
    ];
    for (left, mode) in cases {
        for sweeping in [false, true] {
            let home = home();
            let temp = home.path().join(MASTER_CF_TMP);
            std::fs::write(&temp, left).unwrap();
            std::fs::set_permissions(&temp, PermissionsExt::from_mode(mode)).unwrap();
            if sweeping {
                sweep(&ConfigDir::open(&Home::own(home.path())).unwrap(), &|bytes| {
                    bytes == NEW
                })
                .unwrap();
                assert_eq!(bytes(home.path()), OLD);
            } else {
                replace(home.path()).unwrap();
                assert_eq!(bytes(home.path()), NEW);
            }
            assert!(!temp.exists());
        }
    }
}

#[test]
fn what_is_not_of_the_protocol_stays() {
    let spoils: [fn(&Path); 4] = [
        |temp| {
            std::fs::write(temp, "an admin's own copy").unwrap();
            std::fs::set_permissions(temp, PermissionsExt::from_mode(0o644)).unwrap();
        },
        |temp| std::os::unix::fs::symlink("main.cf", temp).unwrap(),
        |temp| std::fs::hard_link(temp.with_file_name("main.cf"), temp).unwrap(),
        |temp| std::fs::create_dir(temp).unwrap(),
    ];
    for spoil in spoils {
        let home = home();
        let temp = home.path().join(MASTER_CF_TMP);
        spoil(&temp);
        let error = replace(home.path()).unwrap_err();
        assert!(matches!(error, FileError::TempTaken(_)), "{error}");
        assert!(temp.symlink_metadata().is_ok());
        assert_eq!(bytes(home.path()), OLD);
        assert_eq!(
            std::fs::read(home.path().join("main.cf")).unwrap(),
            b"compatibility_level = 3.6\n"
        );
    }
}

/// A power loss in the middle of a rename can leave both names.
#[test]
fn one_file_under_both_names() {
    let home = home();
    std::fs::hard_link(home.path().join(MASTER_CF), home.path().join(MASTER_CF_TMP)).unwrap();
    replace(home.path()).unwrap();
    assert_eq!(bytes(home.path()), NEW);
}

#[test]
fn a_lock_that_is_never_given_up_is_waited_for_and_named() {
    let home = home();
    let temp = File::create(home.path().join(MASTER_CF_TMP)).unwrap();
    temp.set_permissions(PermissionsExt::from_mode(0o600)).unwrap();
    assert!(flock_within(&temp, Duration::ZERO).unwrap());
    assert!(matches!(replace(home.path()), Err(FileError::Busy { .. })));
    sweep(&ConfigDir::open(&Home::own(home.path())).unwrap(), &|_| true).unwrap();
    assert!(home.path().join(MASTER_CF_TMP).exists());
    drop(temp);
    replace(home.path()).unwrap();
}

/// The real postconf(1), while a draft of ours is open: it waits, and then edits our file, not the old one.
#[test]
fn postconf_waits_for_us() {
    let home = home();
    let dir = ConfigDir::open(&Home::own(home.path())).unwrap();
    let mut steps = Steps::default();
    let draft = Draft::begin(&dir, &|_| false, &mut steps).unwrap();
    let mut postconf = Command::new("postconf")
        .arg("-c")
        .arg(home.path())
        .args(["-M", "relay/unix=relay unix - - y - - smtp"])
        .spawn()
        .expect("Postfix is installed (cargo xtask setup)");
    std::thread::sleep(Duration::from_millis(300));
    assert!(postconf.try_wait().unwrap().is_none(), "it did not wait");
    let original = dir.read().unwrap();
    draft.commit(&original, NEW, &mut steps).unwrap();
    assert!(postconf.wait().unwrap().success());
    let after = String::from_utf8(bytes(home.path())).unwrap();
    assert!(after.contains("-v") && after.contains("relay"), "{after}");
}

/// Both at it at once, many times: no edit of postconf's is lost, and none of ours.
#[test]
fn postconf_and_we_take_turns() {
    const ROUNDS: usize = 15;
    let home = home();
    let path = home.path().to_owned();
    let theirs = std::thread::spawn(move || {
        for round in 0..ROUNDS {
            let entry = format!("p{round}/unix=p{round} unix - - y - - smtp");
            let status = Command::new("postconf")
                .arg("-c")
                .arg(&path)
                .arg("-M")
                .arg(entry)
                .status()
                .unwrap();
            assert!(status.success());
        }
    });
    let dir = ConfigDir::open(&Home::own(home.path())).unwrap();
    let mut steps = Steps::default();
    for round in 0..ROUNDS {
        let draft = Draft::begin(&dir, &|_| false, &mut steps).unwrap();
        let original = dir.read().unwrap();
        let new = [original.bytes.as_slice(), format!("# ours {round}\n").as_bytes()].concat();
        draft.commit(&original, &new, &mut steps).unwrap();
    }
    theirs.join().unwrap();
    let after = String::from_utf8(bytes(home.path())).unwrap();
    for round in 0..ROUNDS {
        assert!(
            after.contains(&format!("# ours {round}\n")),
            "ours {round} is lost:\n{after}"
        );
        assert!(
            after.contains(&format!("p{round} ")),
            "theirs {round} is lost:\n{after}"
        );
    }
    assert!(!home.path().join(MASTER_CF_TMP).exists());
}
