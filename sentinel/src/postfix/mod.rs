//! What Postfix is and has: running masters, their master.cf and main.cf, their processes.
//!
//! Reads only. The one file of Postfix that we ever change is master.cf, and that is done by [`crate::actuator`]
//! with the bytes that [`edit`] makes.

pub mod discovery;
pub mod edit;
pub mod endpoint;
pub mod headroom;
pub mod limits;
mod lines;
pub mod locks;
pub mod main_cf;
pub mod master_cf;
pub mod mynetworks;
pub mod postconf;
pub mod processes;
pub mod services;
mod validate;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Identity of a master.cf entry: the two fields that master(8) tells entries apart by, as they stand in the file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceId {
    /// First field: `smtp`, `25`, `127.0.0.1:10025`, `smtpd`.
    pub name: String,
    /// Second field: `inet`, `pass`, `unix`.
    #[serde(rename = "type")]
    pub kind: String,
}

impl fmt::Display for ServiceId {
    /// `smtp/inet`, the way postconf(1) writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.kind)
    }
}

/// One running master(8), as /proc shows it. A pid alone is not an identity: it is reused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Master {
    /// In our own pid namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot (/proc/PID/stat field 22); pid and start time together are unique.
    pub start_time: u64,
    /// Directory of main.cf and master.cf.
    pub config_dir: PathBuf,
    /// $queue_directory: the working directory of master.
    pub queue_dir: PathBuf,
    /// Directory of the master executable: $daemon_directory.
    pub daemon_dir: PathBuf,
    /// Inode of its network namespace.
    pub netns: u32,
}
