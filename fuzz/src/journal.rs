//! Any bytes as journal: it is read to its end without a panic, and what is written behind them is read again.
//!
//! A line that begins with `!` is taken as it is; any other is given the checksum that makes the daemon look inside.

#![no_main]

use std::cell::LazyCell;
use std::fs;

use libfuzzer_sys::fuzz_target;
use smtp_sentinel::actuator::{Actuator, HistoryEntry, Kind, ReloadMode, read_history};
use tempfile::TempDir;

thread_local! {
    /// In memory where there is such a place. The journal alone is used: nothing in it is acted upon.
    static STATE: LazyCell<TempDir> = LazyCell::new(|| {
        tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .expect("a temporary directory")
    });
}

fuzz_target!(|bytes: &[u8]| {
    STATE.with(|state| {
        let state = state.path();
        // The first byte splits the input into the two generations.
        let (at, lines) = bytes.split_first().unwrap_or((&0, &[]));
        let (previous, current) = lines.split_at(usize::from(*at).min(lines.len()));
        fs::write(state.join("journal.jsonl.1"), journal(previous)).expect("space");
        fs::write(state.join("journal.jsonl"), journal(current)).expect("space");

        let read = read_history(state).expect("damage is no error");
        let mut actuator =
            Actuator::open(state, ReloadMode::Signal).expect("damage keeps nobody from starting");
        let open = actuator.open_intents().to_vec();
        let entry = HistoryEntry::new(jiff::Timestamp::UNIX_EPOCH, Kind::Probe);
        actuator.record(entry.clone());
        drop(actuator);

        let mut expected = read;
        expected.push(entry);
        assert_eq!(read_history(state).expect("readable"), expected);
        let actuator = Actuator::open(state, ReloadMode::Signal).expect("again");
        assert_eq!(actuator.open_intents(), open, "an entry that settles nothing");
    });
});

fn journal(lines: &[u8]) -> Vec<u8> {
    let mut journal = Vec::new();
    for line in lines.split_inclusive(|&byte| byte == b'\n') {
        if let Some(raw) = line.strip_prefix(b"!") {
            journal.extend_from_slice(raw);
            continue;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let sum = crc32fast::hash(text);
        journal.extend_from_slice(format!("{{\"sum\":\"{sum:08x}\",\"entry\":").as_bytes());
        journal.extend_from_slice(text);
        journal.extend_from_slice(b"}");
        journal.extend_from_slice(&line[text.len()..]);
    }
    journal
}
