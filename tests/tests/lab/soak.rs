//! What grows a little each time is seen only after many times: attack and calm in turn, as fast as the daemon's settings let
//! it trip and clear. In every run of the tests a few of them; `cargo xtask soak` goes on for as long as it says.

use std::time::Duration;

use sentinel_lab::Lab;
use sentinel_lab::attackers::{Arrival, Attack};
use sentinel_lab::clock::{self, wait_until};
use sentinel_lab::sentinel::{Daemon, Sentinel, Settings};
use sentinel_lab::usage::Usage;

use crate::PATIENCE;

/// Cycles in every run of the tests.
const CYCLES: usize = 6;

/// Cycles before the first that counts.
const WARM_UP: usize = 2;

/// All that makes an episode short.
fn hasty() -> Settings {
    Settings {
        detect: "dwell = \"100ms\"\ntrip_dwell = \"100ms\"".to_owned(),
        act: "min_interval = \"1s\"\nmax_reloads_per_hour = 3600\nmin_patience = \"2s\"".to_owned(),
        ..Settings::default()
    }
}

fn wait_state(daemon: &Daemon<'_>, state: &str) {
    wait_until(&format!("smtp/inet to be {state}"), PATIENCE, || {
        Ok(daemon.metrics()?.sum("smtp_sentinel_state", &[("state", state)]) == Some(1.0))
    })
    .unwrap();
}

/// Of so many attacks, one goes on until its first client is closed. The sentinel holds on to stress mode for half a minute
/// after that; of the others, it lets go at once.
const STUBBORN: usize = 8;

/// One attack, the `nth`, from its first client to the end of stress mode.
fn episode(lab: &Lab, daemon: &Daemon<'_>, nth: usize) -> Usage {
    let shed = || {
        daemon
            .metrics()
            .map(|scrape| scrape.sum("smtp_sentinel_shed_connections_total", &[]))
    };
    let before = shed().unwrap();
    let attack = Attack::silent(Arrival::Evenly {
        count: 9,
        within: Duration::from_millis(300),
    });
    let attackers = lab.attack(attack).unwrap();
    wait_state(daemon, "stressed");
    if nth.is_multiple_of(STUBBORN) {
        wait_until("a client to be closed", PATIENCE, || Ok(shed()? > before)).unwrap();
    }
    attackers.stop().unwrap();
    wait_state(daemon, "normal");
    daemon.usage().unwrap()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

#[test]
fn cycles_of_attack_and_calm_leave_memory_and_descriptors_flat() {
    let lab = Lab::builder().maxproc(10).start().unwrap();
    let original = lab.postfix.master_cf().unwrap();
    let sentinel = Sentinel::install_with(&lab, &hasty()).unwrap();
    let daemon = sentinel.start().unwrap();
    wait_state(&daemon, "normal");
    // What is touched for the first time is touched in these.
    for nth in 0..WARM_UP {
        episode(&lab, &daemon, nth);
    }

    let (start, duration) = (clock::now(), crate::soak().unwrap_or_default());
    let mut usages = Vec::new();
    while start.elapsed() < duration || usages.len() < CYCLES {
        usages.push(episode(&lab, &daemon, WARM_UP + usages.len()));
    }
    assert_eq!(lab.postfix.master_cf().unwrap(), original);
    let trips = daemon.metrics().unwrap();
    let trips = trips.sum("smtp_sentinel_transitions_total", &[("to", "stressed")]);
    assert!(
        trips >= Some(usages.len() as f64),
        "{trips:?} trips in {} episodes",
        usages.len()
    );

    let (first, second) = usages.split_at(usages.len() / 2);
    let resident = |half: &[Usage]| mean(half.iter().map(|usage| usage.resident_bytes as f64));
    let ratio = resident(second) / resident(first);
    // The least: a request that is being served and a postconf(1) that is being asked have some for a moment, and one that
    // is left behind in each cycle stays.
    let least = |half: &[Usage]| half.iter().map(|usage| usage.descriptors).min();
    assert!(ratio < 1.05, "resident memory grows: {usages:#?}");
    assert!(
        least(second) <= least(first).map(|least| least + 1),
        "descriptors grow: {usages:#?}"
    );
    println!(
        "soak: {} cycles of trip and clear in {} s, resident memory {:.1} MiB in their first half and {:.1} MiB in the second",
        usages.len(),
        start.elapsed().as_secs(),
        resident(first) / f64::from(1 << 20),
        resident(second) / f64::from(1 << 20),
    );
    let threads = |half: &[Usage]| half.iter().map(|usage| usage.threads).max();
    assert_eq!(threads(second), threads(first), "threads grow: {usages:#?}");
}
