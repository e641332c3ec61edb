//! The probes in a daemon that has given up what it needed to load them.

use std::thread;

use smtp_sentinel::privileges::{Capabilities, Capability, Circumstances, confine, least};

use crate::harness::{Server, probes, read_when};

/// Kernels differ: before 5.19 the maps are closed to those without CAP_BPF, and the daemon finds out by trying.
#[test]
fn a_daemon_with_what_it_keeps_watches_and_counts() {
    let mut probes = probes();
    let server = Server::new(16);
    // CAP_SYS_ADMIN would stand in for CAP_BPF, and the unit file does not give it.
    let own = Capabilities::of_this_process().bits() & !(1 << Capability::SysAdmin as u8);
    let keep = least(Capabilities::from_bits(own), Circumstances::default(), || {
        probes.readable()
    });
    assert!(!keep.has(Capability::Perfmon) && !keep.has(Capability::SysAdmin));
    println!("CAP_BPF is kept: {}", keep.has(Capability::Bpf));
    thread::scope(|scope| {
        scope.spawn(|| {
            confine(keep).unwrap();
            probes.watch(&[server.id]);
            let _client = server.connect();
            let reading = read_when(&mut probes, server.id, |reading| reading.counts.connections > 0);
            assert_eq!(reading.counts.connections, 1);
            probes.watch(&[]);
        });
    });
}
