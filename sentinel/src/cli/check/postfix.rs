//! The running Postfix masters, and whether they can be watched and acted on.

use std::os::unix::fs::MetadataExt;

use super::{Finding, TO_BE_SEEN, Verdict, headroom, postfix_config};
use crate::actuator::{ConfigDir, read_followed};
use crate::config::{ActMode, Config};
use crate::postfix::discovery::{Survey, Unseen};
use crate::postfix::main_cf::Settings;
use crate::postfix::master_cf::MasterCf;
use crate::postfix::services::watched;
use crate::postfix::{Home, Master, Root, discovery};

/// What there is to say of Postfix.
pub(super) struct Look {
    pub(super) findings: Vec<Finding>,
    /// A master that is watched runs in another network namespace than this process.
    pub(super) other_network: bool,
}

pub(super) fn look(config: &Config) -> Look {
    match discovery::survey(&config.discovery.scope()) {
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
    if survey.unseen.count > 0 {
        let Unseen { count, reason } = &survey.unseen;
        findings.push(Finding::new(
            Verdict::Degraded,
            "not looked into",
            format!("{count} processes called master, which may be Postfix: {reason}"),
            TO_BE_SEEN,
        ));
    }
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
                master.home().name(),
                master.netns
            ),
        ));
        findings.push(match master.root {
            Root::Own => postfix_config(&master.config_dir, config.act.mode),
            Root::Container(_) => in_container(&master.home()),
        });
        findings.extend(services(master, config));
    }
    findings
}

/// What cannot be edited in a container is no fault of this machine: it is watched, and `status` says so too.
fn in_container(home: &Home) -> Finding {
    let subject = format!("{}/master.cf", home.name());
    match ConfigDir::open(home).and_then(|dir| dir.replaceable().and_then(|()| dir.read().map(drop))) {
        Ok(()) => Finding::yes(subject, "can be edited"),
        Err(error) => Finding::new(
            Verdict::Degraded,
            subject,
            error.to_string(),
            "it is watched, and stress mode is not switched there; see docs/containers.md",
        ),
    }
}

fn services(master: &Master, config: &Config) -> Vec<Finding> {
    let subject = |what: &dyn std::fmt::Display| format!("{} {what}", master.home().name());
    let read = read_followed(&master.home()).map_err(|error| error.to_string());
    let settings = Settings::of(master).map_err(|error| error.to_string());
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
