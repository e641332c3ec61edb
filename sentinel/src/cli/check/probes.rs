//! The BPF probes: loaded, attached and tried for real, and taken off again.

use super::{Finding, Verdict};
use crate::probes::Probes;
use crate::status::ProbeState;

pub(super) fn findings() -> Vec<Finding> {
    Probes::start()
        .health()
        .iter()
        .map(|probe| {
            let subject = format!("probe {}", probe.name);
            match probe.state {
                ProbeState::Ok if probe.reason.is_empty() => {
                    Finding::yes(subject, "loaded, attached and tried")
                }
                ProbeState::Ok => Finding::yes(subject, &probe.reason),
                ProbeState::Fallback | ProbeState::Unsupported | ProbeState::Broken => Finding::new(
                    Verdict::Degraded,
                    subject,
                    &probe.reason,
                    "the daemon runs without it",
                ),
            }
        })
        .collect()
}
