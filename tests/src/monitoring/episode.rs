//! A short attack, from calm to calm, with a Prometheus looking on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use smtp_sentinel::controller::State;

use super::dashboard::Panel;
use super::picture::Answers;
use super::prometheus::Prometheus;
use crate::Lab;
use crate::attackers::{Arrival, Attack, Manner};
use crate::clock::wait_until;
use crate::senders::Traffic;
use crate::sentinel::{Sentinel, Settings};

const SLOTS: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the quiet parts are; what happens between them takes the time that it takes.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub calm: Duration,
    /// After the first connection was shed.
    pub flood: Duration,
    /// After the clear.
    pub after: Duration,
}

/// An episode that is over, with the server that saw it still there to be asked.
#[derive(Debug)]
pub struct Episode {
    // Fields drop in this order: the server before its namespace.
    pub prometheus: Prometheus,
    _lab: Lab,
    /// Seconds since the epoch.
    pub start: f64,
    pub end: f64,
    /// /metrics of the daemon at the end.
    pub exposition: String,
}

impl Episode {
    /// Asks for each panel what it would show of the whole episode.
    ///
    /// # Errors
    /// Prometheus refuses an expression.
    pub fn ask(&self, panels: &[Panel]) -> Result<Answers> {
        let ask = |expression: &String| self.prometheus.range(expression, self.start, self.end);
        let answers = panels.iter().map(|panel| {
            let answers = panel.expressions.iter().map(ask).collect::<Result<_>>()?;
            Ok((panel.title.clone(), answers))
        });
        answers.collect()
    }
}

/// Plays it: legitimate senders all the time; then attackers that sit, and some that leave at once; a trip, a crowd, sheds,
/// the end of the attack, a clear.
///
/// # Errors
/// Something that was waited for did not come.
pub fn play(pace: Pace) -> Result<Episode> {
    let lab = Lab::builder().maxproc(SLOTS).start()?;
    let settings = Settings {
        detect: "dwell = \"4s\"\ntrip_dwell = \"500ms\"".to_owned(),
        act: "mode = \"enforce\"\nmin_interval = \"1s\"".to_owned(),
        beside_postfix: true,
        ..Settings::default()
    };
    let sentinel = Sentinel::install_with(&lab, &settings)?;
    let wrapper = sentinel.beside_postfix();
    let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
    let daemon = sentinel.start_under(&wrapper)?;
    let prometheus = Prometheus::start(lab.server(), lab.base(), sentinel.http())?;
    let start = epoch();

    let senders = lab.senders(Traffic::new(5.0))?;
    std::thread::sleep(pace.calm);
    let in_all = |count: usize, per_second: f64| Arrival::Evenly {
        count,
        within: Duration::from_secs_f64(count as f64 / per_second),
    };
    // Slower than the trip dwell takes from the threshold to the last slot, as in the demo.
    let sitting = lab.attack(Attack::silent(in_all(500, 1.2)))?;
    let leaving = lab.attack(Attack {
        manner: Manner::Leave,
        ..Attack::silent(in_all(1000, 4.0))
    })?;
    daemon.wait_service("the trip", PATIENCE, |service| service.state == State::Stressed)?;
    // More than there are slots: those that are left over wait in the accept queue until others have been shed.
    let crowd = lab.attack(Attack::silent(in_all(40, 20.0)))?;
    wait_until("a connection to be shed", PATIENCE, || {
        let shed = daemon.metrics()?.sum("smtp_sentinel_shed_connections_total", &[]);
        Ok(shed.is_some_and(|shed| shed > 0.0))
    })?;
    std::thread::sleep(pace.flood);
    sitting.stop()?;
    crowd.stop()?;
    leaving.stop()?;
    daemon.wait_service("the clear", PATIENCE, |service| service.state == State::Normal)?;
    std::thread::sleep(pace.after);
    senders.stop()?;
    let exposition = daemon.metrics_text()?;
    // The last scrape may be a second old, and the rules are evaluated after it.
    wait_until("Prometheus to have seen the clear", PATIENCE, || {
        Ok(prometheus
            .now("smtp_sentinel_state{state=\"normal\"} == 1")?
            .len()
            == 1)
    })?;
    Ok(Episode {
        prometheus,
        start,
        end: epoch(),
        exposition,
        _lab: lab,
    })
}

/// By the clock that Prometheus stamps its samples with.
#[expect(
    clippy::disallowed_methods,
    reason = "Prometheus keeps real time, and is asked by it"
)]
fn epoch() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}
