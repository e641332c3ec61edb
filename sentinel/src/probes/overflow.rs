//! By which of its sources the probe "overflow" counts: the first that attaches.

use std::fmt;

use aya::programs::{FEntry, KProbe};
use aya::{Btf, Ebpf};

use super::Error;
use super::kernel::program;
use crate::privileges::{Capabilities, Capability};

/// A way to see, per listener, the connections that the kernel drops because the accept queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverflowSource {
    /// BPF trampolines; need the kernel's BTF.
    Fentry,
    /// Breakpoints, or ftrace where the kernel can; cost more a run.
    Kprobe,
}

impl OverflowSource {
    /// In the order in which they are tried.
    pub const ALL: [Self; 2] = [Self::Fentry, Self::Kprobe];

    /// The three programs, each with the function at whose entry it runs.
    fn programs(self) -> [(&'static str, &'static str); 3] {
        let [syn, ack_v4, ack_v6] = ["tcp_conn_request", "tcp_v4_syn_recv_sock", "tcp_v6_syn_recv_sock"];
        match self {
            Self::Fentry => [
                ("overflow_syn", syn),
                ("overflow_ack_v4", ack_v4),
                ("overflow_ack_v6", ack_v6),
            ],
            Self::Kprobe => [
                ("overflow_syn_kprobe", syn),
                ("overflow_ack_v4_kprobe", ack_v4),
                ("overflow_ack_v6_kprobe", ack_v6),
            ],
        }
    }
}

impl fmt::Display for OverflowSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobes",
        })
    }
}

/// Attaches the first of `sources` that attaches whole.
///
/// # Errors
/// Why each of them did not.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    sources: &[OverflowSource],
    capabilities: &Capabilities,
) -> Result<OverflowSource, Vec<(OverflowSource, Error)>> {
    let mut refusals = Vec::new();
    for &source in sources {
        match attach_source(ebpf, source, capabilities) {
            Ok(()) => return Ok(source),
            Err(error) => {
                detach(ebpf, source);
                refusals.push((source, error));
            }
        }
    }
    Err(refusals)
}

fn attach_source(ebpf: &mut Ebpf, source: OverflowSource, capabilities: &Capabilities) -> Result<(), Error> {
    if let Some(missing) = capabilities.missing(&[Capability::Bpf, Capability::Perfmon]) {
        return Err(Error::Capability { missing });
    }
    match source {
        OverflowSource::Fentry => {
            let btf = Btf::from_sys_fs().map_err(|error| Error::Attach {
                reason: error.to_string(),
            })?;
            for (name, function) in source.programs() {
                let program: &mut FEntry = program(ebpf, name)?;
                program.load(function, &btf)?;
                program.attach()?;
            }
        }
        OverflowSource::Kprobe => {
            for (name, function) in source.programs() {
                let program: &mut KProbe = program(ebpf, name)?;
                program.load()?;
                program.attach(function, 0)?;
            }
        }
    }
    Ok(())
}

/// Takes back what was attached of a source before one of its programs failed: half of it would count half.
fn detach(ebpf: &mut Ebpf, source: OverflowSource) {
    for (name, _) in source.programs() {
        // Those that never loaded say so, and that is what is wanted.
        let _ = match source {
            OverflowSource::Fentry => program::<FEntry>(ebpf, name).map(|program| program.unload().err()),
            OverflowSource::Kprobe => program::<KProbe>(ebpf, name).map(|program| program.unload().err()),
        };
    }
}
