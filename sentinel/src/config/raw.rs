//! What the file says, before anything of it is believed. Every value keeps its place in the file, so that a refusal
//! can name the line; every key may be missing, and a key that is not listed here is refused by serde.

use serde::Deserialize;
use toml::Spanned;

/// A value with its place in the file, or nothing when the key is not there.
pub(super) type Key<T> = Option<Spanned<T>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) discovery: Discovery,
    pub(super) watch: Watch,
    pub(super) detect: Detect,
    pub(super) act: Act,
    pub(super) metrics: Metrics,
    pub(super) kubernetes: Kubernetes,
    pub(super) paths: Paths,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Discovery {
    pub(super) config_dirs: Key<Vec<String>>,
    pub(super) containers: Key<bool>,
    pub(super) cgroups: Key<Vec<String>>,
    pub(super) max_instances: Key<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Watch {
    pub(super) services: Key<Vec<String>>,
    pub(super) ports: Key<Vec<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Detect {
    pub(super) trip: Key<f64>,
    pub(super) clear: Key<f64>,
    pub(super) dwell: Key<String>,
    pub(super) trip_dwell: Key<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Act {
    pub(super) mode: Key<String>,
    pub(super) reload: Key<String>,
    pub(super) min_interval: Key<String>,
    pub(super) max_reloads_per_hour: Key<i64>,
    pub(super) shed: Key<bool>,
    pub(super) min_patience: Key<String>,
    pub(super) headroom: Key<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Metrics {
    pub(super) listen: Key<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Kubernetes {
    pub(super) enabled: Key<bool>,
    pub(super) default_mode: Key<String>,
    pub(super) without_api: Key<String>,
    pub(super) keep: Key<String>,
    pub(super) events: Key<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Paths {
    pub(super) state_dir: Key<String>,
    pub(super) runtime_dir: Key<String>,
}
