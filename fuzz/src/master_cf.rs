//! Any bytes as master.cf: reading, checking and editing them ends, without a panic, and our edit can be taken back.

#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use smtp_sentinel::postfix::ServiceId;
use smtp_sentinel::postfix::edit::{self, EditError};
use smtp_sentinel::postfix::endpoint::same_service;
use smtp_sentinel::postfix::master_cf::{MasterCf, validate};

/// Entries that are edited in one input; more of them teach nothing new and cost time.
const EDITED: usize = 8;

/// How each comment of ours begins.
const TRACE: &[u8] = b"# smtp-sentinel: ";

fuzz_target!(|bytes: &[u8]| {
    let file = MasterCf::parse(bytes);
    let _ = file.warnings();
    remove_is_final(bytes);
    for entry in file.in_force().take(EDITED) {
        match edit::insert(bytes, &entry.id, Timestamp::UNIX_EPOCH) {
            Ok(after) => holds(bytes, &after, &entry.id),
            Err(EditError::NoSuchEntry(id)) => panic!("{id} is in force and was not found"),
            Err(_) => {}
        }
    }
});

fn remove_is_final(bytes: &[u8]) {
    let removal = edit::remove(bytes);
    let removed = removal.removed.is_empty() && removal.foreign.iter().all(|one| one.service.is_none());
    if !contains(bytes, TRACE) {
        assert_eq!(removal.bytes, bytes, "there was nothing of ours in it");
    }
    if removed {
        assert_eq!(removal.bytes, bytes, "nothing was removed");
    }
    let again = edit::remove(&removal.bytes);
    assert_eq!(again.removed, [], "something was left");
    assert_eq!(again.bytes, removal.bytes);
}

/// What must be true of an edit.
fn holds(before: &[u8], after: &[u8], id: &ServiceId) {
    assert!(
        edit::only_ours_differs(before, after),
        "more than our lines differ"
    );
    if !contains(before, TRACE) {
        assert_eq!(edit::remove(after).bytes, before, "it cannot be taken back");
        assert_eq!(edit::remove_of(after, id).bytes, before);
    }
    assert!(
        edit::ours(after).iter().any(|one| same_service(one, id)),
        "it is not known again"
    );
    assert_eq!(
        validate(before).is_ok(),
        validate(after).is_ok(),
        "it changes what master thinks of the file"
    );
    let (old, new) = (MasterCf::parse(before), MasterCf::parse(after));
    let stress = |file: &MasterCf<'_>| {
        let entries = file.entries().iter();
        entries
            .map(|entry| entry.overrides("stress").len())
            .sum::<usize>()
    };
    assert_eq!(
        stress(&new),
        stress(&old) + 1,
        "it is not exactly one option more"
    );
    assert_eq!(old.entries().len(), new.entries().len());
    let edited = new.find(id).map(|entry| entry.overrides("stress"));
    assert_eq!(
        edited,
        Some(vec![&b"yes"[..]]),
        "it is not on the entry that counts"
    );
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
