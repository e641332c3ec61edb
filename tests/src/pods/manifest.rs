//! The DaemonSet as kustomize renders it, as far as it decides what the daemon's container may do and sees. A field that is
//! not known here fails the test, until somebody has decided what it means for the container.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::manifests::Rendered;

#[derive(Debug, Deserialize)]
struct DaemonSet {
    spec: DaemonSetSpec,
}

#[derive(Debug, Deserialize)]
struct DaemonSetSpec {
    template: Template,
}

#[derive(Debug, Deserialize)]
struct Template {
    spec: PodSpec,
}

/// The pod; what only a cluster has a use for is ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodSpec {
    #[serde(rename = "hostPID")]
    pub host_pid: bool,
    pub termination_grace_period_seconds: u32,
    pub containers: [Container; 1],
    pub volumes: Vec<Volume>,
    #[serde(rename = "serviceAccountName")]
    _service_account_name: IgnoredAny,
    #[serde(rename = "priorityClassName")]
    _priority_class_name: IgnoredAny,
    #[serde(rename = "tolerations")]
    _tolerations: IgnoredAny,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Container {
    pub name: String,
    pub args: Vec<String>,
    pub env: Vec<Variable>,
    pub security_context: SecurityContext,
    pub volume_mounts: Vec<Mount>,
    pub resources: Resources,
    #[serde(rename = "image")]
    _image: IgnoredAny,
    #[serde(rename = "imagePullPolicy")]
    _image_pull_policy: IgnoredAny,
    #[serde(rename = "ports")]
    _ports: IgnoredAny,
    #[serde(rename = "startupProbe")]
    _startup_probe: IgnoredAny,
    #[serde(rename = "livenessProbe")]
    _liveness_probe: IgnoredAny,
    #[serde(rename = "readinessProbe")]
    _readiness_probe: IgnoredAny,
}

/// Of a field of the pod.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Variable {
    pub name: String,
    pub value_from: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecurityContext {
    pub run_as_user: u32,
    pub run_as_group: u32,
    pub privileged: bool,
    pub allow_privilege_escalation: bool,
    pub read_only_root_filesystem: bool,
    pub seccomp_profile: BTreeMap<String, String>,
    pub capabilities: Capabilities,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    pub drop: Vec<String>,
    pub add: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub name: String,
    pub mount_path: String,
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Debug, Deserialize)]
pub struct Resources {
    pub limits: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    pub name: String,
    #[serde(flatten)]
    pub source: Source,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    #[serde(rename_all = "camelCase")]
    ConfigMap {
        default_mode: u32,
    },
    #[serde(rename_all = "camelCase")]
    EmptyDir {
        medium: String,
        size_limit: String,
    },
    HostPath {
        path: String,
    },
}

/// The pod of the DaemonSet.
///
/// # Errors
/// It has a field that is not known here, or lacks one.
pub fn pod(rendered: &Rendered) -> Result<PodSpec> {
    let set: DaemonSet = rendered.object("DaemonSet")?;
    Ok(set.spec.template.spec)
}

/// The text of the configuration.
///
/// # Errors
/// There is none.
pub fn configuration(rendered: &Rendered) -> Result<String> {
    #[derive(Deserialize)]
    struct ConfigMap {
        data: BTreeMap<String, String>,
    }
    let mut map: ConfigMap = rendered.object("ConfigMap")?;
    let text = map.data.remove("config.toml");
    ensure!(map.data.is_empty(), "more files than config.toml: {:?}", map.data);
    text.ok_or_else(|| anyhow::anyhow!("the ConfigMap has no config.toml"))
}
