//! What a guest reported, read and judged.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::tally::Tally;

/// One boot of one kernel.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Report {
    /// `uname -r`.
    pub(crate) release: String,
    /// What `smtp-sentinel check` says of each probe: its name, whether it is well, and the sentence with it.
    pub(crate) probes: BTreeMap<String, Health>,
    /// By name, whether it passed.
    pub(crate) scenarios: BTreeMap<String, bool>,
    pub(crate) tally: Tally,
    /// What the scenarios measured beside what the kernel says.
    pub(crate) facts: BTreeMap<String, Fact>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) well: bool,
    pub(crate) detail: String,
}

/// Our number and the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) ours: String,
    pub(crate) kernel: String,
}

#[derive(Deserialize)]
struct Check {
    findings: Vec<Finding>,
}

#[derive(Deserialize)]
struct Finding {
    subject: String,
    ok: String,
    detail: String,
}

impl Report {
    /// Reads what guest.sh wrote.
    ///
    /// # Errors
    /// The guest did not come to its end, or wrote what it should not.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let text = text.replace('\r', "");
        ensure!(text.contains("\n@end"), "the guest stopped before its end");
        let release = text
            .lines()
            .find_map(|line| line.strip_prefix("@kernel "))
            .context("the guest did not say which kernel it runs")?;
        let tests = section(&text, "@tests")?;
        let tally = tests.lines().find_map(Tally::parse);
        Ok(Self {
            release: release.to_owned(),
            probes: probes(section(&text, "@check")?)?,
            scenarios: tests.lines().filter_map(scenario).collect(),
            tally: tally.context("the scenarios did not come to their end")?,
            facts: tests.lines().filter_map(fact).collect(),
        })
    }
}

/// From the marker's line to the next marker.
fn section<'a>(text: &'a str, marker: &str) -> Result<&'a str> {
    let (_, rest) = text
        .split_once(&format!("{marker}\n"))
        .with_context(|| format!("the guest's report has no part {marker}"))?;
    Ok(rest.split("\n@").next().unwrap_or(rest))
}

fn probes(json: &str) -> Result<BTreeMap<String, Health>> {
    let check: Check =
        serde_json::from_str(json).with_context(|| format!("`smtp-sentinel check --json` said: {json}"))?;
    let of_probe = |finding: Finding| {
        let name = finding.subject.strip_prefix("probe ")?.to_owned();
        let health = Health {
            well: finding.ok == "yes",
            detail: finding.detail,
        };
        Some((name, health))
    };
    Ok(check.findings.into_iter().filter_map(of_probe).collect())
}

/// libtest's `test queue::name ... ok`.
fn scenario(line: &str) -> Option<(String, bool)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    Some((name.to_owned(), outcome == "ok"))
}

/// `fact NAME ours=1 kernel=1`, as sentinel/tests/probes prints them.
fn fact(line: &str) -> Option<(String, Fact)> {
    let (name, numbers) = line.strip_prefix("fact ")?.split_once(" ours=")?;
    let (ours, kernel) = numbers.split_once(" kernel=")?;
    let fact = Fact {
        ours: ours.to_owned(),
        kernel: kernel.to_owned(),
    };
    Some((name.to_owned(), fact))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const GUEST: &str = "@kernel 5.10.0-32-amd64\r\n@check\r\n{\"ok\":false,\"findings\":[\
        {\"subject\":\"probe state\",\"ok\":\"yes\",\"detail\":\"tried\",\"advice\":\"\"},\
        {\"subject\":\"probe overflow\",\"ok\":\"degraded\",\"detail\":\"netstat\",\"advice\":\"\"},\
        {\"subject\":\"postfix\",\"ok\":\"no\",\"detail\":\"none\",\"advice\":\"\"}]}\r\n@tests\r\n\
        test queue::one ... ok\r\ntest queue::two ... FAILED\r\n---- queue::one stdout ----\r\n\
        fact depth ours=10 kernel=10\r\n\r\n\
        test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 3 filtered out; finished in 9.99s\r\n\
        @uptime 12.00 1.00\r\n@end\r\n";

    #[test]
    fn a_report_is_read() {
        let report = Report::parse(GUEST).unwrap();
        assert_eq!(report.release, "5.10.0-32-amd64");
        assert!(report.probes["state"].well);
        assert_eq!(report.probes["overflow"].detail, "netstat");
        assert_eq!(report.probes.len(), 2);
        assert!(!report.scenarios["queue::two"]);
        assert_eq!((report.tally.passed, report.tally.failed), (1, 1));
        assert_eq!(report.facts["depth"].kernel, "10");
    }

    #[test]
    fn a_guest_that_died_is_no_report() {
        assert!(Report::parse(GUEST.split("@uptime").next().unwrap()).is_err());
        assert!(Report::parse(&GUEST.replace("test result", "panicked")).is_err());
    }
}
