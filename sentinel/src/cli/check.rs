//! `check`: can it work here? Looks and changes nothing; each finding says what it means and what to do about it.

mod files;
mod headroom;
mod postfix;
mod probes;
mod system;

use std::path::Path;

use serde::Serialize;

use super::plain::printable;
use super::{Code, ConfigFile, Failure, print, print_json};
use crate::config::{ActMode, Config};

/// What lets us look into processes that were closed to us.
pub(super) const TO_BE_SEEN: &str =
    "as root it takes CAP_SYS_PTRACE, and CAP_DAC_OVERRIDE where Postfix is of a user namespace";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    file: ConfigFile,
    /// Print the findings as one JSON document
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: "kernel", "capability CAP_BPF", a path.
    pub subject: String,
    pub ok: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do; empty when it is ok.
    pub advice: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Yes,
    /// It works with less: a lesser source, or watching without acting.
    Degraded,
    No,
}

impl Finding {
    pub fn yes(subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Verdict::Yes, subject, detail, "")
    }

    pub fn new(
        ok: Verdict,
        subject: impl Into<String>,
        detail: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            subject: subject.into(),
            ok,
            detail: detail.into(),
            advice: advice.into(),
        }
    }
}

pub(super) fn execute(args: &Args) -> Result<Code, Failure> {
    let config = args.file.load()?;
    let mut findings = vec![Finding::yes("configuration", args.file.name())];
    findings.extend(look(&config));
    let ok = findings.iter().all(|finding| finding.ok != Verdict::No);
    if args.json {
        print_json(&serde_json::json!({ "ok": ok, "findings": findings }))?;
    } else {
        print(&text(&findings))?;
    }
    Ok(if ok { Code::Done } else { Code::No })
}

fn look(config: &Config) -> Vec<Finding> {
    let postfix = postfix::look(config);
    let mut findings = system::findings(config, postfix.other_network);
    findings.extend(probes::findings());
    findings.extend(postfix.findings);
    findings.push(files::own_dir("state_dir", &config.paths.state_dir));
    findings.push(files::own_dir("runtime_dir", &config.paths.runtime_dir));
    findings
}

/// Whether master.cf in `dir` could be edited. Only who is to act must be able to.
pub(super) fn postfix_config(dir: &Path, mode: ActMode) -> Finding {
    let finding = files::master_cf(dir);
    match (finding.ok, mode) {
        (Verdict::No, ActMode::Observe) => Finding {
            ok: Verdict::Degraded,
            ..finding
        },
        _ => finding,
    }
}

fn text(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| printable(&finding.subject).chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for Finding {
        subject,
        ok,
        detail,
        advice,
    } in findings
    {
        let word = match ok {
            Verdict::Yes => "ok",
            Verdict::Degraded => "degraded",
            Verdict::No => "NO",
        };
        let (subject, detail, advice) = (printable(subject), printable(detail), printable(advice));
        text += &format!("{word:<8}  {subject:<width$}  {detail}\n");
        if !advice.is_empty() {
            text += &format!("{:<8}  {:<width$}  -> {advice}\n", "", "");
        }
    }
    let count = |ok| findings.iter().filter(|finding| finding.ok == ok).count();
    let (degraded, no) = (count(Verdict::Degraded), count(Verdict::No));
    text += &match (no, degraded) {
        (0, 0) => "it can work here\n".to_owned(),
        (0, n) => format!(
            "it can work here, with less in {n} of {} points\n",
            findings.len()
        ),
        (n, _) => format!("it cannot work here: {n} of {} points say no\n", findings.len()),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_to_do_and_sums_up() {
        let findings = [
            Finding::yes("kernel", "6.18.0"),
            Finding::new(Verdict::No, "/etc/a\u{1b}b", "read-only", "remount it"),
        ];
        assert_eq!(
            text(&findings),
            "ok        kernel         6.18.0\n\
             NO        /etc/a\\u{1b}b  read-only\n\
             \x20                        -> remount it\n\
             it cannot work here: 1 of 2 points say no\n"
        );
    }

    #[test]
    fn a_master_cf_that_cannot_be_written_matters_only_to_who_acts() {
        let nowhere = Path::new("/nonexistent/postfix");
        assert_eq!(postfix_config(nowhere, ActMode::Enforce).ok, Verdict::No);
        assert_eq!(postfix_config(nowhere, ActMode::Observe).ok, Verdict::Degraded);
    }
}
