//! Pods: real containers by podman and runc, Postfix in some of them and the sentinel's image in another, started as the
//! DaemonSet says. What no API server and no kubelet is needed for behaves as on a node; a local API server ([`cluster`]) stands
//! in for the first, and for the second what it gives to containers: groups, variables and the service account.
//!
//! All of it is in a pid, a mount and a network namespace of its own ([`node::Node`]), so the sentinel's `hostPID` shows it the
//! processes of this node and of nothing else, and the machine's own podman, /run and /etc are out of reach. The first process
//! of that namespace takes all others with it, however the test ends.
//!
//! Where podman, runc and the kernel do not get along the tests fail, with the words of whoever complained; none is skipped.

pub mod cluster;
mod images;
pub mod manifest;
pub mod node;
pub mod pod;
mod seccomp;
pub mod sentinel;
