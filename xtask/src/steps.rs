//! The steps of a run: what came of each, and how long it took.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::shell;
use crate::tally::Tally;

/// What was done so far. A step that fails does not keep the others from running, so that one run tells all.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    tally: Tally,
    took: Vec<(String, Duration)>,
}

impl Steps {
    /// Does a step that counts tests; one that cannot be done counts as a failure.
    pub(crate) fn count(&mut self, name: &str, step: impl FnOnce() -> Result<Tally>) {
        println!("--- {name}");
        let start = now();
        self.tally += step().unwrap_or_else(|error| {
            eprintln!("{name}: {error:#}");
            Tally::FAILURE
        });
        self.took.push((name.to_owned(), start.elapsed()));
    }

    /// Does a step with nothing to count unless it fails.
    pub(crate) fn check(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        self.count(name, || step().map(|()| Tally::default()));
    }

    /// Runs a command as a step.
    pub(crate) fn command(&mut self, name: &str, command: &mut Command) {
        self.check(name, || {
            println!("{}", shell::words(command));
            shell::run(command)
        });
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// A line for each step, in the order in which they were done.
    pub(crate) fn times(&self) -> String {
        let lines = self
            .took
            .iter()
            .map(|(name, took)| format!("{:>5} s  {name}\n", took.as_secs()));
        lines.collect()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a compiler took is told to a person; nothing hangs on it"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_fails_is_counted_and_the_next_is_done() {
        let mut steps = Steps::default();
        steps.check("first", || anyhow::bail!("no"));
        steps.count("second", || {
            Ok(Tally {
                passed: 2,
                ..Tally::default()
            })
        });
        assert_eq!((steps.tally().failed, steps.tally().passed), (1, 2));
        let times = steps.times();
        let names: Vec<_> = times.lines().map(|line| line.split("s  ").nth(1)).collect();
        assert_eq!(names, [Some("first"), Some("second")], "{times}");
    }
}
