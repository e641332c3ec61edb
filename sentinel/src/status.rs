//! What `status --json` says: the contract of DESIGN.md, as types. Also what /api/v1/status serves and what the
//! metrics are made of, so that the three cannot tell different stories.

mod board;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::controller::State;

pub use board::{Board, Counters, ReloadResult, Ticks};

/// The whole report.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    pub version: String,
    pub mode: Mode,
    /// What the daemon has kept of the privileges that it was started with, by the names of capabilities(7).
    #[serde(default)]
    pub capabilities: Vec<String>,
    pub probes: Vec<Probe>,
    /// Null where the cluster is not asked.
    #[serde(default)]
    pub kubernetes: Option<Kubernetes>,
    /// Null where there is none.
    #[serde(default)]
    pub unseen: Option<Unseen>,
    pub instances: Vec<Instance>,
}

/// Processes that may be a Postfix, and that could not be looked into for want of a privilege.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unseen {
    pub count: u32,
    /// What was not permitted, of the first.
    pub reason: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    #[serde(rename = "enforce")]
    Enforce,
    #[default]
    #[serde(rename = "observe")]
    Observe,
    #[serde(rename = "dry-run")]
    DryRun,
}

/// Health of one probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    pub name: String,
    pub state: ProbeState,
    /// Why it is not ok, and what is done instead. When it is ok: which of its sources serves, or empty.
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeState {
    Ok,
    /// A lesser source stands in.
    Fallback,
    /// This kernel or these capabilities do not have it.
    Unsupported,
    /// It should work and does not.
    Broken,
}

/// How it stands with the API of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    pub state: KubernetesState,
    /// Why it is not ok, and what holds instead; when it is ok, what is left to be desired, or empty.
    pub reason: String,
    /// Pods of this node that are known.
    pub pods: u32,
    pub events: KubernetesEvents,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KubernetesState {
    Ok,
    /// The API does not answer; what it said before still counts.
    Stale,
    /// The API has not answered, or not for too long.
    Unavailable,
}

/// Events on pods, since the daemon started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesEvents {
    pub created: u64,
    /// Not sent because they repeat the one before, or because there were too many.
    pub suppressed: u64,
    /// Not sent because too many were waiting.
    pub dropped: u64,
    /// The API did not take them.
    pub failed: u64,
}

/// One running Postfix master.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Instance {
    pub id: String,
    /// Below the root of the container, where it is in one.
    pub config_dir: String,
    /// The container that it is in; absent where paths mean the same to it as to us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// The pod that it is in, as the cluster has it; absent where the cluster is not asked, and in no pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    pub master_pid: i32,
    /// Null when not known.
    pub postfix_version: Option<String>,
    pub actionable: bool,
    /// Why not actionable; empty when it is.
    pub reason: String,
    /// Whether Postfix would live through reading its configuration files as they are now.
    pub config_valid: bool,
    /// The name of each field above that is null because it is not known, and why.
    #[serde(default)]
    pub unavailable: BTreeMap<String, String>,
    pub services: Vec<Service>,
}

/// A container, as it can be told apart from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its short id, by the cgroup path; one that a container of its own made stands behind it.
    pub name: String,
    pub pod_uid: Option<String>,
    /// What it calls itself; in Kubernetes the name of the pod.
    pub hostname: Option<String>,
}

/// What the cluster says of the container that an instance is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// These are null while the API does not name them.
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub container: Option<String>,
    /// What may be done with it: `off`, `observe` or `enforce`. The daemon's own mode is the most that counts.
    pub mode: String,
    /// Where that mode is from.
    pub reason: String,
}

/// One watched master.cf entry. A value that is not known is null, with its reason in `unavailable`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub state: State,
    /// Whether the sentinel would touch this entry, and if not, why.
    pub actionable: bool,
    pub reason: String,
    pub pressure: Option<f64>,
    pub busy: Option<u32>,
    pub processes: Option<u32>,
    /// maxproc; null when unlimited (then `unavailable.limit` says so) or not known.
    pub limit: Option<u32>,
    /// What the administrator has there, while headroom of ours is in force; else null.
    #[serde(default)]
    pub own_limit: Option<u32>,
    pub native_stress: Option<bool>,
    /// A person's order with an expiry; always null until there is one.
    #[serde(rename = "override")]
    pub order: Option<serde_json::Value>,
    pub accept_queue: Option<AcceptQueue>,
    pub greeting_ms: Option<GreetingMs>,
    pub early_disconnects_per_s: Option<f64>,
    pub verdict: Verdict,
    /// The name of each field above that is null, and why.
    pub unavailable: BTreeMap<String, String>,
    /// Since the daemon watches it, for the counters of /metrics.
    pub listeners: Vec<Listener>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AcceptQueue {
    pub depth: u32,
    pub limit: u32,
    pub high_water: u32,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct GreetingMs {
    pub p50: f64,
    pub p99: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    pub kind: String,
    pub reasons: Vec<String>,
}

/// One listening socket of a service, with its counts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Listener {
    /// `address:port`, IPv6 in brackets.
    pub address: String,
    pub accept_queue: Option<AcceptQueue>,
    /// Null without the BPF probes.
    pub counts: Option<ListenerCounts>,
}

/// Counters since the daemon began to watch the listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerCounts {
    pub connections: u64,
    /// Early disconnects while still in the accept queue.
    pub early_queued: u64,
    /// Early disconnects after accept, before the first byte of the greeting.
    pub early_before_greeting: u64,
    /// Connections that the kernel dropped because the accept queue was full; null where it cannot be counted by
    /// listener.
    pub overflows: Option<u64>,
    /// Greetings by latency: element i counts those of [2^i, 2^(i+1)) microseconds, element 0 also those below 1.
    pub greeting_log2_us: Vec<u64>,
    /// Sum of all greeting latencies, microseconds.
    pub greeting_sum_us: u64,
}

impl Service {
    /// `smtp/inet`: the name in labels and in text for people.
    pub fn label(&self) -> String {
        format!("{}/{}", self.name, self.kind)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report with something of everything: a service under attack, one behind postscreen of which little is known,
    /// and names that a hostile or careless administrator could give.
    pub(crate) fn report() -> Report {
        let queue = AcceptQueue {
            depth: 17,
            limit: 100,
            high_water: 42,
        };
        let counts = ListenerCounts {
            connections: 1234,
            early_queued: 20,
            early_before_greeting: 3,
            overflows: Some(8),
            greeting_log2_us: vec![0, 0, 5, 10, 0, 3, 0, 1],
            greeting_sum_us: 700,
        };
        let smtp = Service {
            name: "smtp".to_owned(),
            kind: "inet".to_owned(),
            state: State::Stressed,
            actionable: true,
            reason: String::new(),
            pressure: Some(0.93),
            busy: Some(93),
            processes: Some(95),
            limit: Some(100),
            own_limit: None,
            native_stress: Some(false),
            order: None,
            accept_queue: Some(queue),
            greeting_ms: Some(GreetingMs {
                p50: 1.5,
                p99: 870.25,
            }),
            early_disconnects_per_s: Some(4.25),
            verdict: Verdict {
                kind: "hogged".to_owned(),
                reasons: vec![
                    "93 of 100 slots are busy".to_owned(),
                    "80 clients are silent".to_owned(),
                ],
            },
            unavailable: BTreeMap::new(),
            listeners: vec![
                Listener {
                    address: "[::]:25".to_owned(),
                    accept_queue: Some(queue),
                    counts: Some(counts),
                },
                Listener {
                    address: "192.0.2.1:2525".to_owned(),
                    accept_queue: None,
                    counts: None,
                },
            ],
        };
        let why = "the kernel has no counts for a listener behind postscreen".to_owned();
        let smtpd = Service {
            name: "smtpd".to_owned(),
            kind: "pass".to_owned(),
            state: State::Normal,
            actionable: false,
            reason: "main.cf:3: an administrator's own -o stress= is law".to_owned(),
            pressure: None,
            busy: None,
            processes: Some(0),
            limit: None,
            own_limit: None,
            native_stress: None,
            order: None,
            accept_queue: None,
            greeting_ms: None,
            early_disconnects_per_s: None,
            verdict: Verdict {
                kind: "unknown".to_owned(),
                reasons: vec![],
            },
            unavailable: BTreeMap::from([("pressure".to_owned(), why.clone()), ("limit".to_owned(), why)]),
            listeners: vec![],
        };
        let by_namespace = |mut service: Service| {
            let counts = service.listeners.iter_mut().filter_map(|one| one.counts.as_mut());
            counts.for_each(|counts| counts.overflows = None);
            service
        };
        let hostile = "/srv/a \"b\\c\"\n\u{1b}[31md} 1\r#é".to_owned();
        let instance = |id: &str, services| Instance {
            id: id.to_owned(),
            config_dir: id.to_owned(),
            container: None,
            pod: None,
            master_pid: 4711,
            postfix_version: Some("3.7.11".to_owned()),
            actionable: true,
            reason: String::new(),
            config_valid: true,
            unavailable: BTreeMap::new(),
            services,
        };
        Report {
            version: "0.1.0".to_owned(),
            mode: Mode::Enforce,
            capabilities: vec!["CAP_SYS_PTRACE".to_owned(), "CAP_NET_ADMIN".to_owned()],
            kubernetes: Some(Kubernetes {
                state: KubernetesState::Stale,
                reason: "connection refused".to_owned(),
                pods: 3,
                events: KubernetesEvents {
                    created: 5,
                    suppressed: 4,
                    dropped: 2,
                    failed: 1,
                },
            }),
            unseen: None,
            probes: vec![
                Probe {
                    name: "accept_queue".to_owned(),
                    state: ProbeState::Ok,
                    reason: String::new(),
                },
                Probe {
                    name: "greeting".to_owned(),
                    state: ProbeState::Unsupported,
                    reason: "no cgroup2 mount; greeting latency is not measured".to_owned(),
                },
            ],
            instances: vec![
                instance("/etc/postfix", vec![smtp.clone(), smtpd]),
                // Where overflows cannot be counted by listener.
                Instance {
                    container: Some(Container {
                        name: "3f2a9c1b4d5e".to_owned(),
                        pod_uid: None,
                        hostname: Some(hostile.clone()),
                    }),
                    pod: Some(Pod {
                        namespace: Some("post".to_owned()),
                        name: Some("mail-0".to_owned()),
                        container: None,
                        mode: "observe".to_owned(),
                        reason: "the pod's annotation smtp-sentinel.io/mode".to_owned(),
                    }),
                    ..instance(&hostile, vec![by_namespace(smtp)])
                },
            ],
        }
    }

    fn has(value: &serde_json::Value, names: &[&str]) {
        for name in names {
            assert!(value.get(name).is_some(), "{name} in {value:#}");
        }
    }

    /// The names are the contract of DESIGN.md; other people's scripts hang on them.
    #[test]
    fn the_json_has_the_names_that_were_promised() {
        let json = serde_json::to_value(report()).unwrap();
        let instance = &json["instances"][0];
        has(&json, &["version", "mode", "probes", "instances"]);
        has(&json["probes"][0], &["name", "state", "reason"]);
        has(
            instance,
            &[
                "id",
                "config_dir",
                "master_pid",
                "postfix_version",
                "actionable",
                "reason",
                "services",
            ],
        );
        for service in instance["services"].as_array().unwrap() {
            has(
                service,
                &[
                    "name",
                    "type",
                    "state",
                    "pressure",
                    "busy",
                    "processes",
                    "limit",
                    "native_stress",
                    "override",
                    "accept_queue",
                    "greeting_ms",
                    "early_disconnects_per_s",
                    "verdict",
                    "unavailable",
                ],
            );
            has(&service["verdict"], &["kind", "reasons"]);
        }
        let service = &instance["services"][0];
        has(&service["accept_queue"], &["depth", "limit", "high_water"]);
        has(&service["greeting_ms"], &["p50", "p99"]);
        assert_eq!(json["mode"], "enforce");
        assert_eq!(json["probes"][1]["state"], "unsupported");
        assert_eq!(service["type"], "inet");
        assert_eq!(service["state"], "stressed");
        assert_eq!(service["override"], serde_json::Value::Null);
        assert_eq!(service["verdict"]["kind"], "hogged");
        let modes = serde_json::json!([Mode::Enforce, Mode::Observe, Mode::DryRun]);
        assert_eq!(modes, serde_json::json!(["enforce", "observe", "dry-run"]));
        let states = serde_json::json!([
            ProbeState::Ok,
            ProbeState::Fallback,
            ProbeState::Unsupported,
            ProbeState::Broken
        ]);
        assert_eq!(
            states,
            serde_json::json!(["ok", "fallback", "unsupported", "broken"])
        );
        assert_eq!(
            serde_json::json!(State::ALL),
            serde_json::json!(["normal", "stressed", "recovering"])
        );
        let again: Report = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(again).unwrap(), json);
    }
}
