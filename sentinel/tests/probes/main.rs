//! The BPF programs against this machine's kernel: real connections, one trap of the kernel's a test.
//!
//! They need root with BPF, and fail without it: a kernel that the probes do not work on is what they are to find.
//! Every test has its own listeners on ephemeral ports of loopback and its own probes, so they run side by side.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod early;
mod greeting;
mod harness;
mod overflow;
mod queue;
mod sources;
mod watch;
