//! The running Postfix masters, and whether they can be watched and acted on.

use std::os::unix::fs::MetadataExt;

use super::{Finding, Verdict, headroom, postfix_config};
use crate::config::{ActMode, Config};
use crate::postfix::discovery::Survey;
use crate::postfix::main_cf::Settings;
use crate::postfix::master_cf::MasterCf;
use crate::postfix::services::watched;
use crate::postfix::{Master, discovery};

/// What there is to say of Postfix.
pub(super) struct Look {
    pub(super) findings: Vec<Finding>,
    /// A master that is watched runs in another network namespace than this process.
    pub(super) other_network: bool,
}

pub(super) fn look(config: &Config) -> Look {
    match discovery::survey(&config.discovery.config_dirs) {
        Ok(survey) => Look {
            other_network: survey.masters.iter().any(|master| !in_our_network(master)),
            findings: findings(config, &survey),
        },
        Err(error) => {
            let detail = format!("cannot look for running masters: {error}");
            Look {
                findings: vec![Finding::new(Verdict::No, "Postfix", detail, "mount /proc")],
                other_network: false,
            }
        }
    }
}

fn in_our_network(master: &Master) -> bool {
    std::fs::metadata("/proc/self/ns/net").is_ok_and(|own| own.ino() == u64::from(master.netns))
}

fn findings(config: &Config, survey: &Survey) -> Vec<Finding> {
    let mut findings: Vec<Finding> = survey
        .ignored
        .iter()
        .map(|one| {
            Finding::yes(
                format!("master {}", one.pid),
                format!("left alone: {}", one.reason),
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
    findings.extend(headroom::findings(master, &entries, config.act.headroom));
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
