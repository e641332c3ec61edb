//! What `status --json` says: the contract of DESIGN.md, as types. Also what /api/v1/status serves and what the
//! metrics are made of, so that the three cannot tell different stories.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::controller::State;

/// The whole report.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    pub version: String,
    pub mode: Mode,
    pub probes: Vec<Probe>,
    pub instances: Vec<Instance>,
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
    /// Why it is not ok, and what is done instead; empty when it is ok.
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

/// One running Postfix master.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Instance {
    pub id: String,
    pub config_dir: String,
    pub master_pid: i32,
    pub postfix_version: Option<String>,
    pub actionable: bool,
    /// Why not actionable; empty when it is.
    pub reason: String,
    pub services: Vec<Service>,
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
    /// Greetings by latency: element i counts those of [2^i, 2^(i+1)) microseconds, element 0 also those below 1.
    pub greeting_log2_us: Vec<u64>,
    /// Sum of all greeting latencies, microseconds.
    pub greeting_sum_us: u64,
}
