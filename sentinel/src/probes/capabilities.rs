//! Which of the capabilities that BPF needs this process has.

/// Effective capabilities, as the bits of capabilities(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

/// A capability that a probe needs (include/uapi/linux/capability.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// sock_ops: load and attach.
    NetAdmin = 12,
    SysAdmin = 21,
    /// Reading kernel memory.
    Perfmon = 38,
    /// Maps and programs.
    Bpf = 39,
}

impl Capability {
    fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

impl Capabilities {
    /// From /proc/self/status. Where that cannot be read, all are assumed: the kernel will say no by itself.
    pub fn of_this_process() -> Self {
        procfs::process::Process::myself()
            .and_then(|process| process.status())
            .map_or(Self(u64::MAX), |status| Self(status.capeff))
    }

    /// The names of those that are missing, joined for a sentence; None when all are there. CAP_SYS_ADMIN stands in for
    /// each of them, as it did before 5.8 (kernel/bpf/syscall.c: bpf_capable, perfmon_capable, bpf_net_capable).
    pub fn missing(self, needed: &[Capability]) -> Option<String> {
        if self.has(Capability::SysAdmin) {
            return None;
        }
        let missing: Vec<&str> = needed
            .iter()
            .filter(|capability| !self.has(**capability))
            .map(|capability| capability.name())
            .collect();
        (!missing.is_empty()).then(|| missing.join(" and "))
    }

    fn has(self, capability: Capability) -> bool {
        self.0 >> (capability as u8) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_missing() {
        let needed = [Capability::Bpf, Capability::Perfmon];
        assert_eq!(
            Capabilities(0).missing(&needed).as_deref(),
            Some("CAP_BPF and CAP_PERFMON")
        );
        assert_eq!(
            Capabilities(1 << 39).missing(&needed).as_deref(),
            Some("CAP_PERFMON")
        );
        assert_eq!(Capabilities(1 << 39 | 1 << 38).missing(&needed), None);
        assert_eq!(Capabilities(1 << 21).missing(&needed), None);
    }
}
