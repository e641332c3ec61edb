//! The table of capabilities: what each is for, when, what is lost without it, and whether the running daemon keeps it.
//! `check` and docs/privileges.md are both made from it, and so is what the daemon drops.

use std::fmt::Write as _;

use super::capabilities::{Capabilities, Capability};

/// One line of the table.
#[derive(Debug)]
pub struct Need {
    pub capability: Capability,
    /// Ends the sentence "needed to ...".
    pub purpose: &'static str,
    pub when: When,
    /// What becomes of the daemon without it, where it is needed.
    pub without: &'static str,
    /// Without it the daemon is of no use, where it is needed.
    pub vital: bool,
    pub after_start: AfterStart,
}

/// Where a capability is of use at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Always,
    /// A Postfix in another network namespace than ours (a container).
    OtherNetwork,
    /// `[act] reload = "command"`.
    ReloadByCommand,
    /// `[metrics] listen` on a port below 1024.
    LowPort,
    /// A kernel before 5.11, with a limit on locked memory.
    LockedMemoryCounts,
}

/// What becomes of a capability when the set-up is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterStart {
    Kept,
    Dropped,
    /// Dropped unless the maps cannot be read without it: before 5.19, kernel.unprivileged_bpf_disabled forbids every
    /// command of bpf(2) to those without it, later only the making of maps and programs (kernel/bpf/syscall.c,
    /// __sys_bpf()). It is tried, not guessed from a version.
    DroppedIfMapsStayReadable,
}

/// What decides whether a [`When`] applies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Circumstances {
    pub other_network: bool,
    pub reload_by_command: bool,
    pub low_port: bool,
    pub locked_memory_counts: bool,
}

pub const NEEDS: [Need; 13] = [
    Need {
        capability: Capability::SysPtrace,
        purpose: "tell which processes are Postfix, and which sockets they hold (/proc/PID/exe, cwd, environ, ns and fd)",
        when: When::Always,
        without: "no Postfix is found",
        vital: true,
        after_start: AfterStart::Kept,
    },
    Need {
        capability: Capability::Bpf,
        purpose: "load the BPF probes",
        when: When::Always,
        without: "no probes: early disconnects, greeting latency and the exact accept queue are not known; sock_diag stands in",
        vital: false,
        after_start: AfterStart::DroppedIfMapsStayReadable,
    },
    Need {
        capability: Capability::Perfmon,
        purpose: "load BPF probes that read kernel memory",
        when: When::Always,
        without: "no probes, as without CAP_BPF",
        vital: false,
        after_start: AfterStart::Dropped,
    },
    Need {
        capability: Capability::NetAdmin,
        purpose: "attach the probe of the greeting latency, and close connections (SOCK_DESTROY)",
        when: When::Always,
        without: "the greeting latency is not known, and no connection can be closed",
        vital: false,
        after_start: AfterStart::Kept,
    },
    Need {
        capability: Capability::DacOverride,
        purpose: "read and replace files of Postfix that belong to another user than root",
        when: When::Always,
        without: "a master.cf that root's own permissions do not reach is neither read nor edited",
        vital: false,
        after_start: AfterStart::Kept,
    },
    Need {
        capability: Capability::Chown,
        purpose: "keep the owner of a master.cf that is not root's",
        when: When::Always,
        without: "such a master.cf is left as it is: the edit fails before the rename",
        vital: false,
        after_start: AfterStart::Kept,
    },
    Need {
        capability: Capability::Fowner,
        purpose: "keep the mode and the attributes of a master.cf that is not root's",
        when: When::Always,
        without: "such a master.cf is left as it is: the edit fails before the rename",
        vital: false,
        after_start: AfterStart::Kept,
    },
    Need {
        capability: Capability::Kill,
        purpose: "signal a master that is not root in our user namespace",
        when: When::OtherNetwork,
        without: "the reload of such a master fails, and its master.cf is put back",
        vital: false,
        after_start: AfterStart::Kept,
    },
    Need {
        capability: Capability::SysAdmin,
        purpose: "look at the sockets of a Postfix in another network namespace (setns)",
        when: When::OtherNetwork,
        without: "such a Postfix is found, its sockets are not seen, and it is not acted on",
        vital: false,
        after_start: AfterStart::Kept,
    },
    Need {
        capability: Capability::Setgid,
        purpose: "let postfix(1) reload: its postsuper(1) becomes the user of the mail system",
        when: When::ReloadByCommand,
        without: "every reload fails, and master.cf is put back",
        vital: true,
        after_start: AfterStart::Kept,
    },
    Need {
        capability: Capability::Setuid,
        purpose: "let postfix(1) reload: its postsuper(1) becomes the user of the mail system",
        when: When::ReloadByCommand,
        without: "every reload fails, and master.cf is put back",
        vital: true,
        after_start: AfterStart::Kept,
    },
    Need {
        capability: Capability::NetBindService,
        purpose: "serve HTTP on a port below 1024",
        when: When::LowPort,
        without: "the daemon does not start",
        vital: true,
        after_start: AfterStart::Dropped,
    },
    Need {
        capability: Capability::SysResource,
        purpose: "lift the limit on locked memory for BPF maps",
        when: When::LockedMemoryCounts,
        without: "no probes, as without CAP_BPF, unless the service has LimitMEMLOCK=infinity",
        vital: false,
        after_start: AfterStart::Dropped,
    },
];

impl When {
    pub fn applies(self, here: Circumstances) -> bool {
        match self {
            Self::Always => true,
            Self::OtherNetwork => here.other_network,
            Self::ReloadByCommand => here.reload_by_command,
            Self::LowPort => here.low_port,
            Self::LockedMemoryCounts => here.locked_memory_counts,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OtherNetwork => "a Postfix in another network namespace (a container)",
            Self::ReloadByCommand => "`[act] reload = \"command\"`",
            Self::LowPort => "`[metrics] listen` on a port below 1024",
            Self::LockedMemoryCounts => "a kernel before 5.11 with a limit on locked memory",
        }
    }
}

/// What the daemon keeps of what it was given. A Postfix in another network namespace may come at any time, so what
/// that takes is kept wherever it was given; whoever does not want it does not give it, as our unit file.
pub fn kept(here: Circumstances, maps_need_bpf: bool) -> Capabilities {
    let here = Circumstances {
        other_network: true,
        ..here
    };
    NEEDS
        .iter()
        .filter(|need| need.when.applies(here))
        .filter(|need| match need.after_start {
            AfterStart::Kept => true,
            AfterStart::Dropped => false,
            AfterStart::DroppedIfMapsStayReadable => maps_need_bpf,
        })
        .fold(Capabilities::NONE, |set, need| set.with(need.capability))
}

/// The table as docs/privileges.md has it.
pub fn markdown() -> String {
    let mut text = String::from(
        "| capability | needed to | when | without it | after the start |\n|---|---|---|---|---|\n",
    );
    for need in &NEEDS {
        let after_start = match need.after_start {
            AfterStart::Kept => "kept",
            AfterStart::Dropped => "dropped",
            AfterStart::DroppedIfMapsStayReadable => {
                "dropped (kept where reading the maps takes it: before Linux 5.19)"
            }
        };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {after_start} |",
            need.capability.name(),
            need.purpose,
            need.when.words(),
            need.without,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_this_very_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/privileges.md");
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            text.contains(&markdown()),
            "docs/privileges.md must have this table:\n{}",
            markdown()
        );
    }

    #[test]
    fn what_is_kept_follows_the_configuration_and_the_kernel() {
        let has = |set: Capabilities, names: &[Capability]| names.iter().all(|&one| set.has(one));
        let plain = kept(Circumstances::default(), false);
        use Capability::{Bpf, NetAdmin, NetBindService, Perfmon, Setgid, Setuid, SysAdmin, SysPtrace};
        assert!(has(plain, &[NetAdmin, SysPtrace, SysAdmin]));
        for gone in [Bpf, Perfmon, Setuid, Setgid, NetBindService] {
            assert!(!plain.has(gone), "{gone:?}");
        }
        assert!(kept(Circumstances::default(), true).has(Bpf));
        let command = Circumstances {
            reload_by_command: true,
            low_port: true,
            ..Circumstances::default()
        };
        assert!(has(kept(command, false), &[Setuid, Setgid]));
        assert!(
            !kept(command, false).has(NetBindService),
            "the port is bound by then"
        );
    }
}
