//! The running Postfix masters, and whether they can be watched and acted on.

use super::{Finding, Verdict, postfix_config};
use crate::config::{ActMode, Config};
use crate::postfix::main_cf::Settings;
use crate::postfix::master_cf::MasterCf;
use crate::postfix::services::watched;
use crate::postfix::{Master, discovery};

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let survey = match discovery::survey(&config.discovery.config_dirs) {
        Ok(survey) => survey,
        Err(error) => {
            let detail = format!("cannot look for running masters: {error}");
            return vec![Finding::new(Verdict::No, "Postfix", detail, "mount /proc")];
        }
    };
    let mut findings: Vec<Finding> = survey
        .ignored
        .iter()
        .map(|one| {
            Finding::new(
                Verdict::Degraded,
                format!("master {}", one.pid),
                format!("passed over: {}", one.reason),
                "",
            )
        })
        .collect();
    if survey.masters.is_empty() {
        let (detail, advice) = if config.discovery.config_dirs.is_empty() {
            (
                "no master is running in this mount namespace",
                "start Postfix; the daemon finds it within seconds",
            )
        } else {
            (
                "no master is running for [discovery] config_dirs",
                "start that Postfix, or correct config_dirs",
            )
        };
        findings.push(Finding::new(Verdict::No, "Postfix", detail, advice));
    }
    for dir in config
        .discovery
        .config_dirs
        .iter()
        .filter(|dir| !survey.masters.iter().any(|m| &m.config_dir == *dir))
    {
        findings.push(postfix_config(dir, config.act.mode));
    }
    for master in &survey.masters {
        findings.push(Finding::yes(
            format!("master {}", master.pid),
            format!(
                "configuration {}, network namespace {}",
                master.config_dir.display(),
                master.netns
            ),
        ));
        findings.push(postfix_config(&master.config_dir, config.act.mode));
        findings.extend(services(master, config));
    }
    findings
}

fn services(master: &Master, config: &Config) -> Vec<Finding> {
    let path = master.config_dir.join("master.cf");
    let subject = |what: &dyn std::fmt::Display| format!("{} {what}", master.config_dir.display());
    let read = std::fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()));
    let settings = Settings::of(&master.config_dir, &master.daemon_dir).map_err(|error| error.to_string());
    let (bytes, settings) = match (read, settings) {
        (Ok(bytes), Ok(settings)) => (bytes, settings),
        (Err(reason), _) | (_, Err(reason)) => {
            return vec![Finding::new(
                Verdict::No,
                subject(&"services"),
                reason,
                "make it readable for this user",
            )];
        }
    };
    let entries = watched(&MasterCf::parse(&bytes), &settings, &config.watch.names());
    let mut findings: Vec<Finding> = entries
        .iter()
        .map(|entry| match &entry.actionable {
            Ok(()) => Finding::yes(
                subject(&entry.id),
                format!("watched and acted on, {}", slots(entry.limit)),
            ),
            Err(why) => Finding::yes(subject(&entry.id), format!("watched, never touched: {why}")),
        })
        .collect();
    if config.act.mode == ActMode::Enforce && !entries.iter().any(|entry| entry.actionable.is_ok()) {
        findings.push(Finding::new(
            Verdict::No,
            subject(&"services"),
            "no smtpd service that may be acted on",
            "name one in [watch] services, or watch only, with [act] mode = \"observe\"",
        ));
    }
    findings
}

fn slots(limit: crate::signals::ProcessLimit) -> String {
    match limit {
        crate::signals::ProcessLimit::Of(limit) => format!("{limit} slots"),
        crate::signals::ProcessLimit::Unlimited => "no limit".into(),
    }
}
