//! The capabilities that matter to us, by the names and numbers of include/uapi/linux/capability.h.

/// A capability that some step of ours asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    Chown = 0,
    DacOverride = 1,
    Fowner = 3,
    Kill = 5,
    Setgid = 6,
    Setuid = 7,
    NetBindService = 10,
    NetAdmin = 12,
    SysPtrace = 19,
    SysAdmin = 21,
    SysResource = 24,
    Perfmon = 38,
    Bpf = 39,
}

impl Capability {
    pub fn name(self) -> &'static str {
        match self {
            Self::Chown => "CAP_CHOWN",
            Self::DacOverride => "CAP_DAC_OVERRIDE",
            Self::Fowner => "CAP_FOWNER",
            Self::Kill => "CAP_KILL",
            Self::Setgid => "CAP_SETGID",
            Self::Setuid => "CAP_SETUID",
            Self::NetBindService => "CAP_NET_BIND_SERVICE",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// A set of capabilities, as the bits of capabilities(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    pub const NONE: Self = Self(0);

    /// As CapEff of /proc/PID/status has them.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub fn bits(self) -> u64 {
        self.0
    }

    /// The effective ones, from /proc/self/status. Where that cannot be read, all are assumed: the kernel will say no
    /// by itself.
    pub fn of_this_process() -> Self {
        procfs::process::Process::myself()
            .and_then(|process| process.status())
            .map_or(Self(u64::MAX), |status| Self(status.capeff))
    }

    #[must_use]
    pub fn with(self, capability: Capability) -> Self {
        Self(self.0 | 1 << capability as u8)
    }

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn has(self, capability: Capability) -> bool {
        self.0 >> (capability as u8) & 1 == 1
    }

    /// The names of those that are missing, joined for a sentence; None when all are there. CAP_SYS_ADMIN stands in for
    /// each of those that BPF asks for, as it did before 5.8 (kernel/bpf/syscall.c: bpf_capable, perfmon_capable,
    /// bpf_net_capable).
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
