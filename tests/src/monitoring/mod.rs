//! What `deploy/prometheus` and `deploy/grafana` are worth on real data: a Prometheus that scrapes a daemon through an episode
//! in the lab ([`episode`]), the expressions of the dashboard asked of it ([`dashboard`]), and a picture of the answers
//! ([`picture`]). Nothing here has expressions of its own; they are the ones that operators load.

pub mod dashboard;
pub mod episode;
pub mod families;
pub mod picture;
pub mod prometheus;

use std::path::{Path, PathBuf};

/// `deploy/` of the workspace.
pub fn deploy() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    workspace.unwrap_or(Path::new(".")).join("deploy")
}
