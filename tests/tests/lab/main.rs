//! The end-to-end tests: the sentinel before a real Postfix, in one program, so that the lab and all below it is linked once
//! and the tests are spread evenly over its two threads. Each module is one subject; what several of them need is here.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail like the test itself")]

mod alarms;
mod bench;
mod bounds;
mod broken;
mod cluster;
mod containers;
mod crash;
mod flood;
mod ground;
mod hands;
mod headroom;
mod idle;
mod manifests;
mod master_cf;
mod monitoring;
mod pods;
mod postscreen;
mod privileges;
mod pulse;
mod refusals;
mod shed;
mod signals;
mod soak;

use std::time::Duration;

use sentinel_lab::sentinel::Settings;
use smtp_sentinel::status::{Instance, Service};

/// For what is bound to come, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// `cargo xtask soak` sets it, to how long a test is to go on; in every run of the tests it is not there.
fn soak() -> Option<Duration> {
    let seconds = std::env::var("SENTINEL_SOAK_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().unwrap()))
}

/// It only watches, and so nothing that it does changes what is measured.
fn observe() -> Settings {
    Settings {
        act: "mode = \"observe\"".to_owned(),
        ..Settings::default()
    }
}

/// Without shedding, which has tests of its own: the attackers are to leave when they want to.
fn without_shedding() -> Settings {
    Settings {
        act: format!("{}\nshed = false", Settings::default().act),
        ..Settings::default()
    }
}

/// The watched entry of the labs' Postfixes.
fn smtp(instance: &Instance) -> Option<&Service> {
    instance
        .services
        .iter()
        .find(|service| service.label() == "smtp/inet")
}
