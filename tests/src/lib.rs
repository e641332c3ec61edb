//! The lab: two network namespaces, a private Postfix in the one, clients in the other, and what the sentinel does about it.
//!
//! A [`Lab`] is the server's side and the wire; [`senders`] and [`attackers`] are the load; [`client`] is one scripted
//! client; [`sentinel`] is the daemon under test, run as the binary that people run and asked by its public contracts only
//! (command line, `status --json`, /metrics), so that the lab also stands for everybody who scripts against them.
//!
//! Loopback will not do: master(8) gives no stress argument to a service that listens on loopback only
//! (src/master/master_ent.c, get_master_ent()), so server and clients are joined by a veth pair.
//!
//! Nothing here touches the machine: no /etc/postfix, no sysctl, no named namespace, no port of the root namespace but the
//! free one that a daemon serves its metrics on. Everything ends with the process that made it, however that process ends.

pub mod attackers;
pub mod bench;
pub mod client;
pub mod clock;
pub mod container;
pub mod debian;
pub mod judge;
mod lab;
mod load;
pub mod manifests;
pub mod master_cf;
pub mod metrics;
pub mod monitoring;
pub mod netns;
pub mod packets;
pub mod pods;
pub mod postfix;
pub mod senders;
pub mod sentinel;
pub mod sockets;
pub mod stand_in;
pub mod syscalls;
pub mod tools;
pub mod unit;
pub mod usage;

pub use lab::{Builder, Lab};
