use super::*;
use crate::actuator::entry::{Act, Digest, FileId, Kind};
use std::os::unix::fs::MetadataExt as _;

fn intent(id: u64) -> Intent {
    Intent {
        id: IntentId(id),
        time: jiff::Timestamp::UNIX_EPOCH,
        act: Act::Edit,
        instance: "postfix".into(),
        container: None,
        config_dir: "/nowhere".into(),
        service: None,
        sha256_before: Digest::of(b"a"),
        sha256_after: Digest::of(b"b"),
        file_before: FileId {
            dev: 1,
            ino: 2,
            size: 3,
            mtime: (4, 5),
            ctime: (6, 7),
        },
        backup: None,
        master_pid: Some(8),
        master_start_time: Some(9),
    }
}

fn entry(reason: &str) -> HistoryEntry {
    HistoryEntry {
        reasons: vec![reason.into()],
        ..HistoryEntry::new(jiff::Timestamp::UNIX_EPOCH, Kind::Action)
    }
}

fn open_ids(journal: &Journal) -> Vec<u64> {
    journal.open_intents().iter().map(|intent| intent.id.0).collect()
}

#[test]
fn survives_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    let mut steps = Steps::default();
    journal.intend(intent(1), &mut steps).unwrap();
    journal.intend(intent(2), &mut steps).unwrap();
    journal.record(entry("x"), vec![IntentId(1)], &mut steps).unwrap();
    drop(journal);
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.open_intents(), [intent(2)]);
    assert_eq!(journal.next_id(), IntentId(3));
    assert_eq!(read_history(dir.path()).unwrap(), [entry("x")]);
    assert_eq!(
        std::fs::metadata(dir.path().join(CURRENT)).unwrap().mode() & 0o7777,
        0o600
    );
}

/// Cut after every byte: the whole lines before the cut are read, the torn one is not, and what is appended
/// afterwards is read again.
#[test]
fn torn_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    let mut steps = Steps::default();
    journal.intend(intent(1), &mut steps).unwrap();
    journal.record(entry("x"), vec![], &mut steps).unwrap();
    let path = dir.path().join(CURRENT);
    let whole = std::fs::read(&path).unwrap();
    let first = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        assert_eq!(
            open_ids(&journal).len(),
            usize::from(cut >= first - 1),
            "cut at {cut}"
        );
        journal.record(entry("after"), vec![], &mut steps).unwrap();
        let history = read_history(dir.path()).unwrap();
        assert_eq!(history.last(), Some(&entry("after")), "cut at {cut}");
        assert_eq!(
            history.len(),
            1 + usize::from(cut == whole.len() - 1),
            "cut at {cut}"
        );
    }
}

#[test]
fn no_flipped_bit_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    journal.intend(intent(1), &mut Steps::default()).unwrap();
    let path = dir.path().join(CURRENT);
    let whole = std::fs::read(&path).unwrap();
    for bit in 0..(whole.len() - 1) * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bytes).unwrap();
        let read = read(dir.path()).unwrap();
        // A flip outside of the entry's text (in a key's quoting, say) may leave it whole; it is never another.
        assert!(read.open.is_empty() || read.open == [intent(1)], "bit {bit}");
        assert!(read.damaged > 0 || read.open == [intent(1)], "bit {bit}");
    }
}

#[test]
fn garbage_between_lines_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    journal.intend(intent(1), &mut Steps::default()).unwrap();
    let mut bytes = b"\xff\xfe\0 not ours\n{\"sum\":\"00000000\",\"entry\":{}}\n\n".to_vec();
    bytes.extend(std::fs::read(dir.path().join(CURRENT)).unwrap());
    std::fs::write(dir.path().join(CURRENT), bytes).unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.damaged(), 2);
    assert_eq!(open_ids(&journal), [1]);
}

/// Of a foreign file so much is read as we might have written ourselves, and it takes no longer for being odd: with
/// tens of thousands of open intents, and with half as many lines as there are bytes.
#[test]
fn a_huge_foreign_file_is_read_in_part_and_in_linear_time() {
    let cpu = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        std::time::Duration::new(
            time.tv_sec.cast_unsigned(),
            time.tv_nsec.cast_unsigned().try_into().unwrap(),
        )
    };
    let lines: Vec<u8> = (1..)
        .flat_map(|id| [encode(&Entry::Intent(intent(id))).unwrap(), b"\n".to_vec()].concat())
        .take(usize::try_from(READ_AT_MOST).unwrap() + 1000)
        .collect();
    let short = b"x\n".repeat(usize::try_from(READ_AT_MOST / 2).unwrap() + 1000);
    for (bytes, most_damaged, least_open) in [(lines, 1, 1000), (short, READ_AT_MOST / 2, 0)] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CURRENT), &bytes).unwrap();
        let before = cpu();
        let read = read(dir.path()).unwrap();
        // Some seconds in a debug build; a quadratic one would take many minutes.
        assert!(cpu() - before < std::time::Duration::from_secs(120));
        assert!(read.damaged as u64 <= most_damaged, "{}", read.damaged);
        assert!(read.open.len() >= least_open, "{}", read.open.len());
    }
}

#[test]
fn a_full_disk_tears_a_line_and_the_next_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    let mut full = Steps::hooked(Box::new(|step| match step {
        "journal.sync" => Err(io::Error::from(io::ErrorKind::StorageFull)),
        _ => Ok(()),
    }));
    journal.intend(intent(1), &mut full).unwrap_err();
    assert!(journal.open_intents().is_empty());
    let path = dir.path().join(CURRENT);
    let half = std::fs::read(&path).unwrap();
    std::fs::write(&path, &half[..half.len() / 2]).unwrap();
    journal.record(entry("x"), vec![], &mut Steps::default()).unwrap();
    assert_eq!(read_history(dir.path()).unwrap(), [entry("x")]);
}

#[test]
fn rotation_keeps_what_is_open_and_one_old_generation() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    journal.rotate_at = 4096;
    let mut steps = Steps::default();
    journal.intend(intent(1), &mut steps).unwrap();
    for i in 0..200 {
        journal.record(entry(&i.to_string()), vec![], &mut steps).unwrap();
    }
    drop(journal);
    let total: u64 = [CURRENT, PREVIOUS]
        .iter()
        .map(|name| dir.path().join(name).metadata().unwrap().len())
        .sum();
    assert!(total < 3 * 4096, "{total}");
    assert_eq!(
        std::fs::metadata(dir.path().join(CURRENT)).unwrap().mode() & 0o7777,
        0o600
    );
    let mut journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.open_intents(), [intent(1)]);
    assert_eq!(read_history(dir.path()).unwrap().last(), Some(&entry("199")));
    journal
        .record(entry("settled"), vec![IntentId(1)], &mut steps)
        .unwrap();
    assert_eq!(open_ids(&Journal::open(dir.path()).unwrap()), [0; 0]);
}

/// Died between the two renames of a rotation.
#[test]
fn half_a_rotation_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(dir.path()).unwrap();
    journal.intend(intent(1), &mut Steps::default()).unwrap();
    drop(journal);
    std::fs::rename(dir.path().join(CURRENT), dir.path().join(PREVIOUS)).unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.open_intents(), [intent(1)]);
    assert_eq!(journal.next_id(), IntentId(2));
}

#[test]
fn history_is_the_contract() {
    let value = serde_json::to_value(entry("why")).unwrap();
    let keys: BTreeSet<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "time", "kind", "instance", "service", "from", "to", "action", "reasons", "outcome", "detail",
    ];
    assert_eq!(keys, BTreeSet::from(expected));
    assert_eq!(value["time"], "1970-01-01T00:00:00Z");
    assert_eq!(value["kind"], "action");
    assert!(value["outcome"].is_null());
}
