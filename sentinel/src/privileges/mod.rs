//! Gives up what the daemon needs only to set itself up, for good: for itself and for every program that it starts.
//!
//! Owns the list of what each capability is for ([`NEEDS`]). Never asks for more than the process was given, and never
//! gets anything back.
//!
//! Capabilities belong to a thread (capabilities(7)), and a thread that is made later has those of its maker. So they
//! are dropped while there is only one thread, and [`drop_to`] makes sure of that.

mod capabilities;
mod needs;

use std::thread;
use std::{fs, io};

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::config::{Config, Reload};

pub use capabilities::{Capabilities, Capability};
pub use needs::{AfterStart, Circumstances, NEEDS, Need, When, kept, markdown};

/// Why the privileges could not be dropped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot {what}: {source}; allow the system calls prctl, capget and capset in the filter of this service"
    )]
    Refused { what: &'static str, source: io::Error },
    #[error("cannot look at the own threads in /proc/self/task: {0}; mount /proc")]
    Threads(io::Error),
    #[error(
        "{count} threads run already, and dropping the capabilities of one leaves the others theirs; \
         this is a fault of ours, please report it"
    )]
    TooLate { count: usize },
}

/// What configuration and machine make of the table.
pub fn circumstances(config: &Config) -> Circumstances {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    Circumstances {
        // Not to be known beforehand; see `kept`.
        other_network: false,
        reload_by_command: config.act.reload == Reload::Command,
        low_port: config
            .metrics
            .listen
            .is_some_and(|address| (1..1024).contains(&address.port())),
        locked_memory_counts: limit.is_some() && before_5_11(),
    }
}

/// Since then the memory of BPF maps counts for the memory cgroup (kernel/bpf/syscall.c).
fn before_5_11() -> bool {
    let release = rustix::system::uname();
    let mut numbers = release
        .release()
        .to_bytes()
        .split(|byte| !byte.is_ascii_digit())
        .map(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok());
    let version = (numbers.next().flatten(), numbers.next().flatten());
    matches!(version, (Some(major), Some(minor)) if (major, minor) < (5, 11))
}

/// Drops what is not kept, from this thread and from all that come after it, and sets no_new_privs. `readable` says
/// whether the probes can be read; it runs on a thread that has already lost what this one is about to lose.
///
/// # Errors
/// When a thread besides this one is running, or the kernel refuses, which only a filter of system calls makes it do.
/// The process may then have lost some of it already, and should end.
pub fn drop_to(here: Circumstances, readable: impl Fn() -> bool + Sync) -> Result<Capabilities, Error> {
    let count = fs::read_dir("/proc/self/task").map_err(Error::Threads)?.count();
    if count != 1 {
        return Err(Error::TooLate { count });
    }
    let given = rustix::thread::capabilities(None).map_err(refused("read the own capabilities"))?;
    let given = Capabilities::from_bits(given.permitted.bits());
    let least = given.and(kept(here, false));
    let keep = if works_with(least, readable) {
        least
    } else {
        given.and(kept(here, true))
    };

    rustix::thread::set_no_new_privs(true).map_err(refused("set no_new_privs"))?;
    narrow_bounding_set(keep);
    confine(keep)?;
    Ok(keep)
}

/// As the table names them; those that it does not have are of no use to us.
pub fn names(set: Capabilities) -> Vec<String> {
    NEEDS
        .iter()
        .filter(|need| set.has(need.capability))
        .map(|need| need.capability.name().to_owned())
        .collect()
}

fn works_with(least: Capabilities, readable: impl Fn() -> bool + Sync) -> bool {
    // A thread that cannot be tried must not cost us the probes.
    thread::scope(|scope| {
        let trial = scope.spawn(|| confine(least).is_ok() && readable());
        trial.join().unwrap_or(false)
    })
}

/// A program that root starts gets the whole bounding set. no_new_privs keeps it from that as well (security/commoncap.c,
/// cap_bprm_creds_from_file()), so this is the second lock on the door, and without CAP_SETPCAP it is left open.
fn narrow_bounding_set(keep: Capabilities) {
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if keep.bits() & one.bits() == 0 && rustix::thread::remove_capability_from_bounding_set(one).is_err()
        {
            // EPERM without CAP_SETPCAP; EINVAL beyond the last that this kernel knows.
            break;
        }
    }
}

/// The ambient set follows: what is not permitted cannot be ambient.
fn confine(keep: Capabilities) -> Result<(), Error> {
    let keep = CapabilitySet::from_bits_retain(keep.bits());
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(refused("drop capabilities"))
}

fn refused(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Error {
    move |errno| Error::Refused {
        what,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_other_threads_running_it_refuses() {
        // The test harness has threads of its own.
        assert!(matches!(
            drop_to(Circumstances::default(), || true),
            Err(Error::TooLate { count }) if count > 1
        ));
    }

    #[test]
    fn the_trial_runs_with_less_and_leaves_this_thread_alone() {
        let effective = || rustix::thread::capabilities(None).unwrap().effective.bits();
        let before = effective();
        let least = Capabilities::from_bits(before).and(Capabilities::NONE.with(Capability::NetAdmin));
        assert!(works_with(least, || effective() == least.bits()));
        assert!(!works_with(least, || false));
        assert_eq!(effective(), before);
    }
}
