//! From what the daemon holds to what [`status`](crate::status) says of it.

use std::collections::BTreeMap;

use super::hands::Danger;
use super::instance::Instance;
use super::pods::Pods;
use super::service::{Seen, Service};
use crate::postfix::root::Container;
use crate::signals::service::ListenerLook;
use crate::signals::{ProcessLimit, Reading};
use crate::status;

/// One instance, as it is now.
pub(super) fn instance(
    instance: &Instance,
    actionable: &Result<(), String>,
    pods: &Pods,
) -> status::Instance {
    let mut unavailable = BTreeMap::new();
    if instance.version.is_none() {
        let why = match instance.trouble.as_str() {
            "" => "only postconf(1) tells it, which gave no answer, and is not asked about a container",
            trouble => trouble,
        };
        unavailable.insert("postfix_version".to_owned(), why.to_owned());
    }
    status::Instance {
        id: instance.id.clone(),
        config_dir: instance.master.config_dir.display().to_string(),
        container: instance.master.root.container().map(container),
        pod: pods.pod(&instance.id),
        master_pid: instance.master.pid,
        postfix_version: instance.version.clone(),
        actionable: actionable.is_ok(),
        reason: actionable.as_ref().err().cloned().unwrap_or_default(),
        config_valid: instance.danger.as_ref().and_then(Danger::broken).is_none(),
        unavailable,
        services: instance.services.iter().map(service).collect(),
    }
}

fn container(container: &Container) -> status::Container {
    status::Container {
        name: container.name.clone(),
        pod_uid: container.pod_uid.clone(),
        hostname: container.hostname.clone(),
    }
}

fn service(service: &Service) -> status::Service {
    let mut unavailable = BTreeMap::new();
    let (verdict, listeners) = match &service.seen {
        Some(seen) => (verdict(seen), seen.listeners.iter().map(listener).collect()),
        None => (
            status::Verdict {
                kind: "unknown".into(),
                reasons: vec![NOT_YET.into()],
            },
            Vec::new(),
        ),
    };
    let mut known = Known {
        seen: service.seen.as_ref(),
        unavailable: &mut unavailable,
    };
    let limit = known.of("limit", |seen| seen.sample.limit.clone());
    let report = status::Service {
        name: service.watched.id.name.clone(),
        kind: service.watched.id.kind.clone(),
        state: service.controller.state(),
        actionable: service.watched.actionable.is_ok(),
        reason: service
            .watched
            .actionable
            .as_ref()
            .err()
            .cloned()
            .unwrap_or_default(),
        pressure: service.seen.as_ref().and_then(|seen| seen.verdict.pressure),
        busy: known.of("busy", |seen| seen.sample.busy.clone()),
        processes: known.of("processes", |seen| seen.sample.processes.clone()),
        limit: match limit {
            Some(ProcessLimit::Of(limit)) => Some(limit),
            Some(ProcessLimit::Unlimited) => {
                known.missing("limit", "maxproc is 0: as many processes as there are clients");
                None
            }
            None => None,
        },
        own_limit: service.watched.own_limit,
        native_stress: known.of("native_stress", |seen| seen.sample.native_stress.clone()),
        order: None,
        accept_queue: known
            .of("accept_queue", |seen| seen.sample.queue.clone())
            .map(|queue| status::AcceptQueue {
                depth: queue.depth,
                limit: queue.limit,
                high_water: queue.high_water,
            }),
        greeting_ms: known
            .of("greeting_ms", |seen| seen.sample.greeting.clone())
            .map(|greeting| status::GreetingMs {
                p50: greeting.p50_ms,
                p99: greeting.p99_ms,
            }),
        early_disconnects_per_s: known.of("early_disconnects_per_s", |seen| {
            seen.sample.early_disconnects_per_s.clone()
        }),
        verdict,
        unavailable: BTreeMap::new(),
        listeners,
    };
    if report.pressure.is_none() {
        unavailable.insert(
            "pressure".into(),
            report.verdict.reasons.first().cloned().unwrap_or_default(),
        );
    }
    status::Service {
        unavailable,
        ..report
    }
}

const NOT_YET: &str = "the first look has not been taken yet";

/// Takes readings apart: the value goes into its field, the reason for none into `unavailable`.
struct Known<'a> {
    seen: Option<&'a Seen>,
    unavailable: &'a mut BTreeMap<String, String>,
}

impl Known<'_> {
    fn of<T: Clone>(&mut self, field: &str, reading: impl Fn(&Seen) -> Reading<T>) -> Option<T> {
        match self.seen.map(reading) {
            Some(Reading::Known { value, .. }) => Some(value),
            Some(Reading::Unavailable(reason)) => {
                self.missing(field, &reason);
                None
            }
            None => {
                self.missing(field, NOT_YET);
                None
            }
        }
    }

    fn missing(&mut self, field: &str, reason: &str) {
        self.unavailable.insert(field.to_owned(), reason.to_owned());
    }
}

fn verdict(seen: &Seen) -> status::Verdict {
    status::Verdict {
        kind: seen.verdict.kind.to_string(),
        reasons: seen.verdict.reasons.clone(),
    }
}

fn listener(look: &ListenerLook) -> status::Listener {
    let probed_peak = look
        .probed
        .as_ref()
        .and_then(|probed| probed.queue)
        .map(|queue| queue.high_water);
    status::Listener {
        address: look.socket.address.to_string(),
        accept_queue: Some(status::AcceptQueue {
            depth: look.socket.depth,
            limit: look.socket.backlog,
            high_water: probed_peak.unwrap_or(0).max(look.socket.depth),
        }),
        counts: look.probed.as_ref().map(|probed| probed.counts.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::postfix::ServiceId;
    use crate::postfix::services::WatchedService;

    #[test]
    fn whatever_is_null_has_its_reason() {
        let watched = WatchedService {
            id: ServiceId {
                name: "smtp".into(),
                kind: "inet".into(),
            },
            limit: ProcessLimit::Of(20),
            own_limit: None,
            listens: vec![],
            native: true,
            actionable: Ok(()),
        };
        let report = service(&Service::new(watched, &Config::default()));
        let json = serde_json::to_value(report).unwrap();
        // Nothing is ours in master.cf, and there is no order: that is known.
        let known = ["own_limit", "override"];
        let nulls = json
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, value)| value.is_null());
        let mut nulls: Vec<_> = nulls
            .map(|(name, _)| name)
            .filter(|name| !known.contains(&name.as_str()))
            .collect();
        nulls.sort();
        let unavailable = json["unavailable"].as_object().unwrap();
        let mut explained: Vec<_> = unavailable.keys().collect();
        explained.sort();
        assert_eq!(nulls, explained);
        assert_eq!(nulls.len(), 8);
    }
}
