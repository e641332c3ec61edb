//! What kernel and privileges give.

use std::path::Path;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use procfs::process::Process;

use super::{Finding, Verdict};
use crate::config::Config;
use crate::privileges::{
    AfterStart, Capabilities, Capability, Circumstances, NEEDS, Need, When, circumstances,
};

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// The oldest that the BPF programs have been run on.
const KERNEL_MIN: (u16, u16) = (5, 10);

/// `other_network`: a Postfix runs in another network namespace than this process.
pub(super) fn findings(config: &Config, other_network: bool) -> Vec<Finding> {
    let here = Circumstances {
        other_network,
        ..circumstances(config)
    };
    let mut findings = vec![kernel(), btf(Path::new(BTF))];
    findings.extend(own_capabilities(here));
    findings.extend([cgroup2(), inet_diag()]);
    findings
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if version(&release).is_some_and(|version| version >= KERNEL_MIN) {
        return Finding::yes("kernel", release);
    }
    let (major, minor) = KERNEL_MIN;
    let advice = format!(
        "nothing older than {major}.{minor} has been tried; watch with [act] mode = \"observe\" first"
    );
    Finding::new(Verdict::Degraded, "kernel", release, advice)
}

fn version(release: &str) -> Option<(u16, u16)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn btf(path: &Path) -> Finding {
    match path.metadata() {
        Ok(_) => Finding::yes("kernel BTF", path.display().to_string()),
        Err(error) => Finding::new(
            Verdict::Degraded,
            "kernel BTF",
            format!("{}: {error}", path.display()),
            "the BPF probes cannot run, and sock_diag stands in; boot a kernel built with CONFIG_DEBUG_INFO_BTF",
        ),
    }
}

fn own_capabilities(here: Circumstances) -> Vec<Finding> {
    match Process::myself().and_then(|me| me.status()) {
        Ok(status) => capabilities(Capabilities::from_bits(status.capeff), here),
        Err(error) => vec![Finding::new(
            Verdict::No,
            "capabilities",
            error.to_string(),
            "mount /proc",
        )],
    }
}

/// One finding for each line of the table.
fn capabilities(effective: Capabilities, here: Circumstances) -> Vec<Finding> {
    NEEDS
        .iter()
        .map(|need| capability(need, effective, here))
        .collect()
}

fn capability(need: &Need, effective: Capabilities, here: Circumstances) -> Finding {
    let name = need.capability.name();
    let subject = format!("capability {name}");
    let purpose = need.purpose;
    // Before 5.8, and still today, CAP_SYS_ADMIN holds the two that were split off it.
    let by_admin = [Capability::Bpf, Capability::Perfmon].contains(&need.capability)
        && effective.has(Capability::SysAdmin);
    if effective.has(need.capability) || by_admin {
        let after_start = match need.after_start {
            AfterStart::Kept if need.when.applies(here) || need.when == When::OtherNetwork => "kept",
            AfterStart::DroppedIfMapsStayReadable => {
                "dropped after the start where the kernel lets maps be read without it"
            }
            AfterStart::Kept | AfterStart::Dropped => "dropped after the start",
        };
        return Finding::yes(subject, format!("to {purpose}; {after_start}"));
    }
    if !need.when.applies(here) {
        return Finding::yes(
            subject,
            format!("missing, and not needed here; it is to {purpose}"),
        );
    }
    let verdict = if need.vital {
        Verdict::No
    } else {
        Verdict::Degraded
    };
    let advice = format!(
        "run as root, or give it with CapabilityBoundingSet= and AmbientCapabilities= of the unit, or with \
         securityContext.capabilities.add ({name})"
    );
    Finding::new(
        verdict,
        subject,
        format!("missing; needed to {purpose}; without it: {}", need.without),
        advice,
    )
}

fn cgroup2() -> Finding {
    let mounts = match Process::myself().and_then(|me| me.mountinfo()) {
        Ok(mounts) => mounts,
        Err(error) => return Finding::new(Verdict::No, "cgroup2", error.to_string(), "mount /proc"),
    };
    match mounts.into_iter().find(|mount| mount.fs_type == "cgroup2") {
        Some(mount) => Finding::yes("cgroup2", format!("mounted at {}", mount.mount_point.display())),
        None => Finding::new(
            Verdict::Degraded,
            "cgroup2",
            "not mounted",
            "the greeting latency is not measured; run: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
        ),
    }
}

fn inet_diag() -> Finding {
    match listeners() {
        Ok(()) => Finding::yes("inet_diag", "the kernel lists its listening sockets"),
        Err(error) => Finding::new(
            Verdict::No,
            "inet_diag",
            format!("the kernel does not list its listening sockets: {error}"),
            "run: modprobe -a inet_diag tcp_diag",
        ),
    }
}

/// Asks for the TCP listeners of our own network namespace, and takes any answer but an error for a yes.
fn listeners() -> std::io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family: AF_INET,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::LISTEN,
        socket_id: SocketId::new_v4(),
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(std::io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) => Err(error.to_io()),
        // Without tcp_diag the dump ends at once with ENOENT in its DONE (seen on Debian's 7.0).
        NetlinkPayload::Done(done) if done.code < 0 => Err(std::io::Error::from_raw_os_error(-done.code)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_off_any_release() {
        assert_eq!(version("6.18.0-rc1+"), Some((6, 18)));
        assert_eq!(version("5.10.0-32-amd64"), Some((5, 10)));
        assert_eq!(version("7.3-custom"), Some((7, 3)));
        assert_eq!(version("next"), None);
    }

    /// Where every line of the table applies.
    const EVERYTHING: Circumstances = Circumstances {
        other_network: true,
        reload_by_command: true,
        low_port: true,
        locked_memory_counts: true,
    };

    fn all_but(missing: &[Capability]) -> Capabilities {
        let bits = missing
            .iter()
            .fold(u64::MAX, |bits, &one| bits & !(1 << one as u8));
        Capabilities::from_bits(bits)
    }

    #[test]
    fn each_missing_capability_is_named_with_what_it_is_for() {
        let all = capabilities(all_but(&[]), EVERYTHING);
        assert!(
            all.iter()
                .all(|finding| finding.ok == Verdict::Yes && finding.advice.is_empty())
        );
        for (i, need) in NEEDS.iter().enumerate() {
            let findings = capabilities(all_but(&[need.capability, Capability::SysAdmin]), EVERYTHING);
            let bad: Vec<_> = findings
                .iter()
                .filter(|finding| finding.ok != Verdict::Yes && !finding.subject.ends_with("CAP_SYS_ADMIN"))
                .collect();
            if need.capability == Capability::SysAdmin {
                assert!(bad.is_empty() && findings[i].ok == Verdict::Degraded);
                continue;
            }
            let name = need.capability.name();
            assert_eq!(bad, [&findings[i]], "{name}");
            assert_eq!(findings[i].ok == Verdict::No, need.vital, "{name}");
            assert!(findings[i].subject.contains(name) && findings[i].advice.contains(name));
            assert!(findings[i].detail.contains(need.purpose) && findings[i].detail.contains(need.without));
        }
    }

    #[test]
    fn what_is_of_no_use_here_is_not_missed() {
        let nothing = capabilities(Capabilities::NONE, Circumstances::default());
        for (need, finding) in NEEDS.iter().zip(nothing) {
            assert_eq!(
                finding.ok == Verdict::Yes,
                need.when != When::Always,
                "{finding:?}"
            );
        }
    }

    #[test]
    fn sys_admin_stands_for_the_two_that_were_split_off_it() {
        let findings = capabilities(
            Capabilities::NONE.with(Capability::SysAdmin),
            Circumstances::default(),
        );
        let ok = |name: &str| findings.iter().find(|f| f.subject.ends_with(name)).unwrap().ok;
        assert_eq!((ok("CAP_BPF"), ok("CAP_PERFMON")), (Verdict::Yes, Verdict::Yes));
        assert_eq!(ok("CAP_NET_ADMIN"), Verdict::Degraded);
    }

    #[test]
    fn this_kernel_lists_its_listeners() {
        assert_eq!(inet_diag().ok, Verdict::Yes, "{:?}", inet_diag());
    }

    #[test]
    fn missing_btf_is_degraded() {
        assert_eq!(btf(Path::new("/nonexistent")).ok, Verdict::Degraded);
    }
}
