//! Which container of which pod a process is in, by the path of its control group: the word of the kubelet and the
//! runtime, not of the container.

use super::names::{ContainerId, PodUid};

/// A container of a pod, as a cgroup names the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub uid: PodUid,
    pub container: ContainerId,
}

impl Place {
    /// From the text of /proc/PID/cgroup; `None` for a process that is in no pod.
    pub fn of(cgroup: &str) -> Option<Self> {
        // hierarchy-ID:controllers:path (cgroups(7)); with version 1 not every hierarchy need have the pod's groups.
        cgroup
            .lines()
            .filter_map(|line| line.splitn(3, ':').nth(2))
            .find_map(Self::at)
    }

    /// From above to below, and no further than the first container: what is below that, a container can have made itself.
    fn at(path: &str) -> Option<Self> {
        let mut uid = None;
        for part in path.split('/') {
            if let Some(id) = container(part) {
                return Some(Self {
                    uid: uid?,
                    container: ContainerId::parse(id)?,
                });
            }
            uid = uid.or_else(|| pod(part));
        }
        None
    }
}

/// `pod<uid>` of the cgroupfs driver; `kubepods-burstable-pod<uid>.slice` and the like of the systemd driver
/// (pkg/kubelet/cm, GetPodContainerName and ToSystemd).
fn pod(part: &str) -> Option<PodUid> {
    let uid = match part.strip_suffix(".slice") {
        Some(slice) => {
            slice
                .rsplit_once("-pod")
                .filter(|(above, _)| above.contains("kubepods"))?
                .1
        }
        None => part.strip_prefix("pod")?,
    };
    PodUid::parse(uid).filter(|_| uid.len() >= 32)
}

/// `<id>`, or `cri-containerd-<id>.scope`, `crio-<id>.scope`, `docker-<id>.scope`.
fn container(part: &str) -> Option<&str> {
    let id = match part.strip_suffix(".scope") {
        Some(scope) => scope.rsplit_once('-')?.1,
        None => part,
    };
    (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6f0f2e2a-0b5e-4a57-9d6e-1f6b0e0f7a11";
    const OTHER: &str = "00000000-0b5e-4a57-9d6e-1f6b0e0f7a11";

    fn id(digit: &str) -> String {
        digit.repeat(64)
    }

    fn place(digit: &str) -> Option<Place> {
        Some(Place {
            uid: PodUid::parse(UID).unwrap(),
            container: ContainerId::parse(&id(digit)).unwrap(),
        })
    }

    #[test]
    fn each_driver_and_each_runtime() {
        let (a, slice) = (id("a"), UID.replace('-', "_"));
        for path in [
            format!("/kubepods/burstable/pod{UID}/{a}"),
            format!("/kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-{a}.scope"),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{slice}.slice/crio-{a}.scope"
            ),
            // As a sentinel sees it that has a cgroup namespace of its own.
            format!("/../../pod{UID}/{a}/system.slice"),
        ] {
            assert_eq!(Place::of(&format!("0::{path}\n")), place("a"), "{path}");
        }
        let version_1 = format!("12:name=systemd:/\n3:cpu,cpuacct:/kubepods/pod{UID}/{a}\n0::/\n");
        assert_eq!(Place::of(&version_1), place("a"));
    }

    #[test]
    fn what_is_in_no_pod_has_no_place() {
        let a = id("a");
        for path in [
            "/".to_owned(),
            format!("/docker/{a}"),
            format!("/kubepods/pod{UID}"),
            format!("/system.slice/podman-{a}.scope"),
            format!("/kubepods/podlet/{a}"),
        ] {
            assert_eq!(Place::of(&format!("0::{path}\n")), None, "{path}");
        }
        assert_eq!(Place::of(""), None);
    }

    #[test]
    fn a_container_cannot_move_into_another_pod_by_naming_a_group() {
        let (a, b) = (id("a"), id("b"));
        let inside = format!("0::/kubepods/pod{UID}/{a}/kubepods/pod{OTHER}/{b}\n");
        assert_eq!(Place::of(&inside), place("a"));
        let of_docker = format!("0::/docker/{a}/kubepods/pod{UID}/{b}\n");
        assert_eq!(Place::of(&of_docker), None);
    }
}
