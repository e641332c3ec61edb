//! What `seccompProfile: RuntimeDefault` means. podman 4.3 allows bpf(2) and perf_event_open(2) with CAP_SYS_ADMIN only;
//! containerd (1.6 and later, which most clusters run) allows them with CAP_BPF and CAP_PERFMON as well, and its rule is what
//! is made here of podman's profile: with those two capabilities the calls are let through, and without they are refused.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Of Debian's package golang-github-containers-common, which podman comes with.
const OF_PODMAN: &str = "/usr/share/containers/seccomp.json";

/// Writes the profile to `to`.
pub(super) fn write(to: &Path) -> Result<()> {
    let text = fs::read_to_string(OF_PODMAN).with_context(|| format!("reading {OF_PODMAN}"))?;
    let mut profile: Value = serde_json::from_str(&text)?;
    as_containerd(&mut profile)?;
    Ok(fs::write(to, profile.to_string())?)
}

fn as_containerd(profile: &mut Value) -> Result<()> {
    let rules = profile["syscalls"].as_array_mut();
    let rules = rules.context("the profile has no list of system calls")?;
    for rule in rules.iter_mut().filter(|rule| rule["action"] == "SCMP_ACT_ERRNO") {
        if let Some(names) = rule["names"].as_array_mut() {
            names.retain(|name| name != "bpf" && name != "perf_event_open");
        }
    }
    for (call, capability) in [("bpf", "CAP_BPF"), ("perf_event_open", "CAP_PERFMON")] {
        // A rule is left out when the container has any one that it excludes; podman's own rule lets CAP_SYS_ADMIN through.
        rules.push(json!({
            "names": [call], "action": "SCMP_ACT_ALLOW", "args": [],
            "includes": {"caps": [capability]}, "excludes": {"caps": ["CAP_SYS_ADMIN"]}
        }));
        rules.push(json!({
            "names": [call], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "errno": "EPERM", "args": [],
            "includes": {}, "excludes": {"caps": [capability, "CAP_SYS_ADMIN"]}
        }));
    }
    Ok(())
}
