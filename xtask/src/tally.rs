//! Counting tests: from what libtest prints to the last line of `cargo xtask test`.

use std::fmt;
use std::ops::AddAssign;
use std::process::ExitCode;

/// Counts of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    /// One thing that failed and is no test: a build, a lint, a crashed test program.
    pub(crate) const FAILURE: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
    };

    /// Reads libtest's summary: `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; ...`; `None` for other lines.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let counts = line.strip_prefix("test result: ")?;
        let count = |name: &str| {
            let mut words = counts
                .split([' ', ';'])
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>()
                .into_iter();
            let mut before = words.next()?;
            words.find_map(|word| {
                let number = std::mem::replace(&mut before, word);
                (word == name).then(|| number.parse().ok())?
            })
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count("ignored")?,
        })
    }

    /// What to end with.
    pub(crate) fn exit_code(self) -> ExitCode {
        if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// How a line begins that tells what a test counted, for the table of `cargo xtask soak`.
pub(crate) const SOAKED: &str = "soak: ";

/// What came of some tests.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// What they say that they counted, in words.
    pub(crate) counts: Vec<String>,
}

impl Outcome {
    /// Takes in a line that a test program printed.
    pub(crate) fn read(&mut self, line: &str) {
        self.tally += Tally::parse(line).unwrap_or_default();
        self.counts.extend(line.strip_prefix(SOAKED).map(str::to_owned));
    }
}

impl From<Tally> for Outcome {
    fn from(tally: Tally) -> Self {
        Self {
            tally,
            counts: Vec::new(),
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(formatter, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_libtest_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.02s";
        assert_eq!(
            Tally::parse(line),
            Some(Tally {
                passed: 12,
                failed: 3,
                skipped: 1
            })
        );
        let line =
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(Tally::parse(line), Some(Tally::default()));
    }

    #[test]
    fn what_a_soak_counted_is_kept() {
        let mut outcome = Outcome::default();
        for line in [
            "soak: 12 files",
            "a soak: no",
            "test result: ok. 1 passed; 0 failed; 0 ignored;",
        ] {
            outcome.read(line);
        }
        assert_eq!(
            (outcome.counts, outcome.tally.passed),
            (vec!["12 files".to_owned()], 1)
        );
    }

    #[test]
    fn other_lines_are_not() {
        assert_eq!(Tally::parse("test result::parses ... ok"), None);
        assert_eq!(Tally::parse("test result: ok."), None);
        assert_eq!(Tally::parse(""), None);
    }

    #[test]
    fn the_last_line_names_what_was_skipped_only_if_something_was() {
        let mut tally = Tally {
            passed: 400,
            failed: 0,
            skipped: 0,
        };
        tally += Tally {
            passed: 12,
            failed: 0,
            skipped: 0,
        };
        assert_eq!(tally.to_string(), "412 passed, 0 failed");
        tally += Tally {
            passed: 0,
            failed: 1,
            skipped: 2,
        };
        assert_eq!(tally.to_string(), "412 passed, 1 failed, 2 skipped");
    }
}
