//! What the daemon does while nothing happens, told in system calls: on a quiet machine they are what it costs.

use std::collections::BTreeMap;

use sentinel_lab::Lab;
use sentinel_lab::sentinel::Sentinel;
use sentinel_lab::syscalls;

use super::PATIENCE;

/// Beside the sleep itself: one read per instance.
const QUIET_TICK: usize = 1;

/// Six seconds and more, with what is done once a second, every two and every five.
const TICKS: usize = 60;

#[test]
fn a_quiet_tick_is_one_read_of_proc() {
    let lab = Lab::new().unwrap();
    let sentinel = Sentinel::install(&lab).unwrap();
    let daemon = sentinel.start().unwrap();
    daemon
        .wait_service("an idle service to be watched", PATIENCE, |service| {
            service.busy == Some(0) && service.listeners.iter().any(|one| one.counts.is_some())
        })
        .unwrap();

    let ticks = syscalls::before_each_sleep(daemon.pid(), TICKS).unwrap();
    let mut sizes: Vec<usize> = ticks.iter().map(Vec::len).collect();
    sizes.sort_unstable();
    let mut by_number: BTreeMap<i64, usize> = BTreeMap::new();
    for call in ticks.iter().flatten() {
        *by_number.entry(*call).or_default() += 1;
    }
    println!("calls in each of {TICKS} ticks: {sizes:?}; by number: {by_number:?}");
    assert!(
        sizes[0] >= QUIET_TICK,
        "a tick in which nobody was looked at: {ticks:?}"
    );
    // One of ten looks at the files, one of twenty at the sockets. A machine that is slow to tick has more of them.
    assert_eq!(sizes[TICKS / 2], QUIET_TICK, "half of all ticks: {ticks:?}");
}
