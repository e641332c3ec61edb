//! How soon the daemon acts: from the moment that the condition for a trip is there to the signal to the master.
//!
//! By the daemon's own account in its history, since nothing outside sees when a threshold is crossed. Its first part counts
//! from the last look that did not find the condition yet, so the sum is an upper bound.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::report::Machine;
use crate::Lab;
use crate::attackers::{Arrival, Attack};
use crate::clock::{wait_for, wait_until};
use crate::senders::Traffic;
use crate::sentinel::{Sentinel, Settings};

const PATIENCE: Duration = Duration::from_secs(60);

/// Many trips, each of them the answer to 30 silent clients that come within 2 s.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reaction {
    pub machine: Machine,
    pub trips: Vec<Trip>,
    /// Rounds in which master's own stress mode was there first.
    pub native: usize,
}

/// The parts of one reaction, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trip {
    /// From the last look without the condition to the first with it.
    pub unseen_ms: f64,
    /// How long the condition had to last.
    pub dwell_ms: f64,
    /// From the decision to the signal: the edit.
    pub act_ms: f64,
}

impl Trip {
    /// Without the dwell, which is a wait on purpose.
    pub fn reaction_ms(self) -> f64 {
        self.unseen_ms + self.act_ms
    }
}

/// Lets the attackers come `rounds` times, each time to a daemon that has just been started.
///
/// # Errors
/// The lab cannot be set up, or the daemon does not trip.
pub fn measure(rounds: usize) -> Result<Reaction> {
    let lab = Lab::new()?;
    let sentinel = Sentinel::install_with(
        &lab,
        &Settings {
            act: String::new(),
            detect: String::new(),
            ..Settings::default()
        },
    )?;
    let _senders = lab.senders(Traffic::new(4.0))?;
    let mut reaction = Reaction {
        machine: Machine::this(),
        trips: Vec::new(),
        native: 0,
    };
    for round in 0..rounds {
        let daemon = sentinel.start()?;
        daemon.wait_service("smtp/inet to be watched", PATIENCE, |service| {
            service.busy.is_some()
        })?;
        let before = sentinel.history()?.len();
        let mut attack = Attack::silent(Arrival::Evenly {
            count: 30,
            within: Duration::from_secs(2),
        });
        attack.seed = attack.seed.wrapping_add(round as u64);
        let attackers = lab.attack(attack)?;
        let answer = wait_for("a trip", PATIENCE, || {
            let history = sentinel.history()?;
            let new = history.get(before..).unwrap_or_default();
            let trip = new.iter().find(|entry| entry.is_transition_to("stressed"));
            let native = new.iter().any(|entry| entry.kind == "refusal");
            Ok(match trip {
                Some(entry) => Some(Some(entry.detail["reaction"].clone())),
                None if native => Some(None),
                None => None,
            })
        })?;
        match answer {
            Some(parts) => reaction
                .trips
                .push(serde_json::from_value(parts).context("a transition tells its reaction")?),
            None => reaction.native += 1,
        }
        attackers.stop()?;
        daemon.terminate()?;
        wait_until("the slots to be free", PATIENCE, || Ok(lab.sockets()?.held < 3))?;
    }
    Ok(reaction)
}

/// Nearest rank; `None` of nothing.
pub fn quantile(values: impl IntoIterator<Item = f64>, part: f64) -> Option<f64> {
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let rank = (part * values.len() as f64).ceil() as usize;
    values.get(rank.max(1) - 1).copied()
}

/// Markdown.
pub fn table(reaction: &Reaction) -> String {
    type Part = (&'static str, fn(Trip) -> f64);
    let parts: [Part; 4] = [
        (
            "from the condition to the signal (without the dwell)",
            Trip::reaction_ms,
        ),
        ("of it: until it is seen, at most", |trip| trip.unseen_ms),
        (
            "of it: the edit, checked and on the disk, and the signal",
            |trip| trip.act_ms,
        ),
        ("the dwell", |trip| trip.dwell_ms),
    ];
    let mut text = String::from("| | p50 | p99 | most |\n|---|---|---|---|\n");
    for (name, part) in parts {
        let cell = |of: f64| {
            let figure = quantile(reaction.trips.iter().copied().map(part), of);
            figure.map_or("-".to_owned(), |figure| format!("{figure:.0} ms"))
        };
        text.push_str(&format!(
            "| {name} | {} | {} | {} |\n",
            cell(0.5),
            cell(0.99),
            cell(1.0)
        ));
    }
    let machine = &reaction.machine;
    text.push_str(&format!(
        "\n{} trips; in {} rounds more master's own stress mode was there first. {} processors ({}), Linux {}, Postfix {}.\n",
        reaction.trips.len(),
        reaction.native,
        machine.processors,
        machine.processor,
        machine.kernel,
        machine.postfix
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(values, 0.5), Some(2.0));
        assert_eq!(quantile(values, 0.99), Some(4.0));
        assert_eq!(quantile(values, 0.0), Some(1.0));
        assert_eq!(quantile([], 0.5), None);
    }

    #[test]
    fn the_table_leaves_the_dwell_out_of_the_sum() {
        let trip = |unseen_ms, dwell_ms, act_ms| Trip {
            unseen_ms,
            dwell_ms,
            act_ms,
        };
        let reaction = Reaction {
            machine: Machine::this(),
            trips: vec![trip(20.0, 100.0, 10.0), trip(10.0, 90.0, 8.0)],
            native: 1,
        };
        let text = table(&reaction);
        assert!(
            text.contains("(without the dwell) | 18 ms | 30 ms | 30 ms |"),
            "{text}"
        );
        assert!(text.contains("2 trips; in 1 rounds more"), "{text}");
    }
}
