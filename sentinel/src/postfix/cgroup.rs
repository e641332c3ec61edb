//! Which container a process is in, and which pod, by the path of its control group: what the runtime and the kubelet wrote
//! there, and nothing that the container says of itself. Pure.
//!
//! A container may make groups below its own and give them any name. So the outermost name decides whose a process is
//! ([`Dwelling::group`]) and in which pod, and an inner one only tells apart those that share it.

/// Where a process lives, as far as its cgroups tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dwelling {
    /// What its inhabitants cannot choose: the container that the host started, or the user of a login session.
    pub group: String,
    /// Identity of the innermost container.
    id: Option<String>,
    pub pod: Pod,
}

/// The pod of Kubernetes that a process is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pod {
    /// It is in none.
    None,
    /// A kubelet's name is in its path, and no pod that only a kubelet can have named.
    Untold,
    Told {
        /// With dashes.
        uid: String,
        /// The whole id of the outermost container; a layout that is not known here may name none.
        container: Option<String>,
    },
}

impl Pod {
    pub fn uid(&self) -> Option<&str> {
        match self {
            Self::Told { uid, .. } => Some(uid),
            Self::None | Self::Untold => None,
        }
    }

    /// How much it says, for a choice between hierarchies.
    fn rank(&self) -> usize {
        match self {
            Self::Told {
                container: Some(_), ..
            } => 3,
            Self::Told { container: None, .. } => 2,
            Self::Untold => 1,
            Self::None => 0,
        }
    }
}

impl Dwelling {
    /// From the text of /proc/PID/cgroup. With version 1 not every hierarchy need have the groups of the pods or of the
    /// containers: of each the first that says most counts.
    pub fn of(text: &str) -> Self {
        let all: Vec<Self> = paths(text).map(Self::at).collect();
        let first = |says: &dyn Fn(&Self) -> usize| {
            // Of equals the last is taken, and that is the first of them from the end.
            all.iter().rev().max_by_key(|one| says(one))
        };
        let container = |one: &Self| one.id.as_ref().map_or(one.group.len(), |_| usize::MAX);
        match (first(&container), first(&|one| one.pod.rank())) {
            (Some(dwelling), Some(of_pod)) => Self {
                pod: of_pod.pod.clone(),
                ..dwelling.clone()
            },
            _ => Self::at(""),
        }
    }

    fn at(path: &str) -> Self {
        let parts: Vec<&str> = parts(path).collect();
        let owned = parts.iter().position(|part| owner(part).is_some());
        Self {
            // No layout that we know: the host gives the first names.
            group: owned
                .and_then(|at| owner(parts[at]))
                .unwrap_or_else(|| parts[..parts.len().min(2)].join("/")),
            id: parts.iter().rev().find_map(|part| container_id(part)).map(short),
            pod: pod(path, &parts, owned),
        }
    }

    /// Names the container among all on this machine, also when it is started again with the same files. Where no cgroup
    /// names it, its mount namespace has to do, which is another one at each start.
    pub fn name(&self, mount_namespace: u64) -> String {
        let id = match &self.id {
            Some(id) if *id == self.group => return id.clone(),
            Some(id) => id.clone(),
            None => format!("mnt-{mount_namespace}"),
        };
        if self.group.is_empty() {
            id
        } else {
            format!("{}/{id}", self.group)
        }
    }
}

/// Whether a process is in one of `cgroups`, paths or parts of paths like `kubepods` or `machine.slice/libpod-1.scope`;
/// an empty list stands for all. A part may begin anywhere: in a cgroup namespace of our own (every container has one
/// with cgroup v2) the paths of others begin with `/..`, and the upper names are not to be seen.
pub fn within(text: &str, cgroups: &[String]) -> bool {
    cgroups.is_empty()
        || paths(text).any(|path| {
            let path: Vec<&str> = parts(path).collect();
            cgroups.iter().any(|wanted| {
                let wanted: Vec<&str> = parts(wanted).collect();
                path.windows(wanted.len().max(1)).any(|run| run == wanted)
            })
        })
}

/// The path of each hierarchy: `12:cpu,cpuacct:/a/b`, `0::/a/b` (cgroups(7)).
fn paths(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2))
}

/// A colon parts as well: of a runtime that is set to another driver than its kubelet comes one name for the three parts
/// `kubepods-pod<UID>.slice:cri-containerd:<64>`.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split(['/', ':'])
        .filter(|part| !matches!(*part, "" | "." | ".."))
}

/// In whose hands everything below this part is: those of a container, of one that systemd-machined(8) has registered, or of a
/// user (systemd's Delegate=).
fn owner(part: &str) -> Option<String> {
    let of_machine = part.starts_with("machine-") && part.ends_with(".scope");
    let of_user = part.starts_with("user-") && part.ends_with(".slice");
    match container_id(part) {
        Some(id) => Some(short(id)),
        None => (of_machine || of_user).then(|| part.to_owned()),
    }
}

/// `owned` is where the first of `parts` is that has an owner: what is below it names no pod.
fn pod(path: &str, parts: &[&str], owned: Option<usize>) -> Pod {
    let above = &parts[..owned.unwrap_or(parts.len())];
    // In a cgroup namespace of our own the kubelet's name may be among those that are hidden.
    let of_kubelet = path.starts_with("/..") || above.iter().any(|part| is_of_kubelet(part));
    let uid = above.iter().find_map(|part| pod_uid(part));
    if let Some(uid) = uid.filter(|_| of_kubelet) {
        let container = owned.and_then(|at| container_id(parts[at]));
        return Pod::Told {
            uid,
            container: container.map(str::to_owned),
        };
    }
    if parts.iter().any(|part| is_of_kubelet(part)) {
        Pod::Untold
    } else {
        Pod::None
    }
}

/// `kubepods` of the cgroupfs driver, `kubepods.slice`, `kubelet-kubepods-burstable.slice` and the like of the systemd one.
fn is_of_kubelet(part: &str) -> bool {
    part.strip_suffix(".slice")
        .unwrap_or(part)
        .split('-')
        .any(|name| name == "kubepods")
}

/// `<64 hex digits>` alone; as `docker-<64>.scope`, `cri-containerd-<64>.scope`, `crio-<64>.scope`, `libpod-<64>.scope` of the
/// systemd driver; as `crio-<64>`, `libpod-<64>` of the cgroupfs one; and `lxc.payload.NAME`.
fn container_id(part: &str) -> Option<&str> {
    if part.starts_with("lxc.payload.") {
        return Some(part);
    }
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let id = part.rsplit('-').next()?;
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

/// As docker(1) and crictl(1) shorten it.
fn short(id: &str) -> String {
    if id.starts_with("lxc.") {
        id.to_owned()
    } else {
        id.chars().take(12).collect()
    }
}

/// `pod<UID>` of the cgroupfs driver; `kubepods-burstable-pod<UID>.slice`, `kubelet-kubepods-pod<UID>.slice` and the like of the
/// systemd one, with `_` for `-` (pkg/kubelet/cm, GetPodContainerName and ToSystemd). That of a static pod is 32 digits.
fn pod_uid(part: &str) -> Option<String> {
    let uid = match part.strip_suffix(".slice") {
        Some(slice) => {
            slice
                .rsplit_once("-pod")
                .filter(|(above, _)| is_of_kubelet(above))?
                .1
        }
        None => part.strip_prefix("pod")?,
    };
    let plain =
        (32..=36).contains(&uid.len()) && uid.chars().all(|c| c.is_ascii_hexdigit() || "-_".contains(c));
    plain.then(|| uid.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2a9c1b4d5e6f708192a3b4c5d6e7f83f2a9c1b4d5e6f708192a3b4c5d6e7f8";
    const OTHER: &str = "aaaaaaaaaaaa6f708192a3b4c5d6e7f83f2a9c1b4d5e6f708192a3b4c5d6e7f8";
    const POD: &str = "0b4a4c3e-93a5-4f0e-8a3c-6f1f0c9b7d11";
    const OTHER_POD: &str = "00000000-93a5-4f0e-8a3c-6f1f0c9b7d11";

    fn of(path: &str) -> Dwelling {
        Dwelling::of(&format!("0::{path}\n"))
    }

    fn told(container: Option<&str>) -> Pod {
        Pod::Told {
            uid: POD.to_owned(),
            container: container.map(str::to_owned),
        }
    }

    #[test]
    fn each_runtime_and_each_driver_of_a_kubelet() {
        let slice = POD.replace('-', "_");
        let systemd = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice");
        let nested = "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice";
        for path in [
            format!("/kubepods/burstable/pod{POD}/{ID}"),
            format!("/kubepods/pod{POD}/{ID}"),
            format!("/kubepods/burstable/pod{POD}/crio-{ID}"),
            format!("/kubepods/besteffort/pod{POD}/libpod-{ID}"),
            format!("/{systemd}/cri-containerd-{ID}.scope"),
            format!("/{systemd}/crio-{ID}.scope/container"),
            format!("/{systemd}/docker-{ID}.scope"),
            format!("/kubepods.slice/kubepods-pod{slice}.slice/crio-{ID}.scope"),
            format!("/{nested}/kubelet-kubepods-besteffort-pod{slice}.slice/cri-containerd-{ID}.scope"),
            format!(
                "/system.slice/containerd.service/kubepods-burstable-pod{slice}.slice:cri-containerd:{ID}"
            ),
            // As a sentinel sees it that has a cgroup namespace of its own.
            format!("/../../pod{POD}/{ID}"),
            format!("/../../kubepods-burstable-pod{slice}.slice/cri-containerd-{ID}.scope/system.slice"),
        ] {
            let dwelling = of(&path);
            assert_eq!(dwelling.pod, told(Some(ID)), "{path}");
            assert_eq!(dwelling.name(77), "3f2a9c1b4d5e", "{path}");
        }
        let of_hash = "0123456789abcdef0123456789abcdef";
        let static_pod = of(&format!("/kubepods/pod{of_hash}/{ID}"));
        assert_eq!(static_pod.pod.uid(), Some(of_hash));
    }

    #[test]
    fn a_pod_is_known_also_where_its_container_is_not() {
        for path in [
            format!("/kubepods/pod{POD}"),
            format!("/kubepods/pod{POD}/of-a-runtime-to-come/{OTHER_POD}"),
        ] {
            assert_eq!(of(&path).pod, told(None), "{path}");
        }
    }

    #[test]
    fn containers_in_no_pod() {
        for (path, name) in [
            (format!("/docker/{ID}"), "3f2a9c1b4d5e"),
            (format!("/system.slice/docker-{ID}.scope"), "3f2a9c1b4d5e"),
            (
                format!("/machine.slice/libpod-{ID}.scope/container"),
                "3f2a9c1b4d5e",
            ),
            ("/lxc.payload.web/init.scope".to_owned(), "lxc.payload.web"),
            ("/".to_owned(), "mnt-77"),
            (
                "/system.slice/a.service/x/y".to_owned(),
                "system.slice/a.service/mnt-77",
            ),
            (format!("/system.slice/podman-{ID}.scope"), "3f2a9c1b4d5e"),
            (format!("/system.slice/a.service/pod{POD}/{ID}"), "3f2a9c1b4d5e"),
        ] {
            let dwelling = of(&path);
            assert_eq!(
                (dwelling.name(77).as_str(), dwelling.pod),
                (name, Pod::None),
                "{path}"
            );
        }
    }

    #[test]
    fn a_kubelet_s_group_that_tells_no_pod_is_not_taken_for_none() {
        for path in [
            format!("/kubepods/{ID}"),
            format!("/kubepods/podlet/{ID}"),
            format!("/kubepods.slice/kubepods-burstable.slice/cri-containerd-{ID}.scope"),
            "/kubepods".to_owned(),
            // Of a kubelet in a container, and of a user's: whoever made the groups may have chosen the names.
            format!("/docker/{ID}/kubelet/kubepods/pod{POD}/{OTHER}"),
            format!(
                "/user.slice/user-1000.slice/user@1000.service/kubelet.service/kubepods/pod{POD}/{OTHER}"
            ),
        ] {
            assert_eq!(of(&path).pod, Pod::Untold, "{path}");
        }
    }

    #[test]
    fn with_version_1_the_hierarchy_that_says_most_counts() {
        let text = format!("3:cpuset:/\n2:memory:/docker/{ID}\n0::/\n");
        assert_eq!(Dwelling::of(&text).name(1), "3f2a9c1b4d5e");
        assert_eq!(Dwelling::of("").name(1), "mnt-1");
        let text =
            format!("12:name=systemd:/\n4:cpuset:/{OTHER}\n3:cpu,cpuacct:/kubepods/pod{POD}/{ID}\n0::/\n");
        assert_eq!(Dwelling::of(&text).pod, told(Some(ID)));
        assert_eq!(
            Dwelling::of(&format!("1:a:/kubepods\n2:b:/docker/{ID}\n")).pod,
            Pod::Untold
        );
    }

    /// A container that names a group of its own like another container stays in its own group, and in its own pod.
    #[test]
    fn a_borrowed_name_stands_behind_the_own_one() {
        let borrowed = of(&format!("/docker/{ID}/docker/{OTHER}"));
        assert_eq!(borrowed.group, "3f2a9c1b4d5e");
        assert_eq!(borrowed.name(1), "3f2a9c1b4d5e/aaaaaaaaaaaa");
        let in_disguise = of(&format!("/docker/{ID}/user.slice/user-7.slice"));
        assert_eq!(in_disguise.group, "3f2a9c1b4d5e");
        let of_a_user = of(&format!(
            "/user.slice/user-1000.slice/user@1000.service/libpod-{OTHER}.scope"
        ));
        assert_eq!(of_a_user.group, "user-1000.slice");
        assert_eq!(of_a_user.name(1), "user-1000.slice/aaaaaaaaaaaa");
        for inside in [
            format!("/kubepods/pod{POD}/{ID}/kubepods/pod{OTHER_POD}/{OTHER}"),
            format!("/../../pod{POD}/{ID}/../pod{OTHER_POD}/{OTHER}"),
        ] {
            assert_eq!(of(&inside).pod, told(Some(ID)), "{inside}");
        }
        // One in no pod does not get into one either, nor does a user.
        for outside in [
            format!("/docker/{ID}/kubepods/pod{POD}/{OTHER}"),
            format!("/docker/{ID}/pod{POD}/{OTHER}"),
            format!("/machine.slice/machine-box.scope/payload/kubepods/pod{POD}/{OTHER}"),
            format!("/user.slice/user-1000.slice/pod{POD}/{OTHER}"),
        ] {
            assert_eq!(of(&outside).pod.uid(), None, "{outside}");
        }
    }

    #[test]
    fn a_filter_names_whole_parts() {
        let text = format!("1:name=systemd:/\n0::/../kubepods/burstable/pod{POD}/{ID}\n");
        let within = |wanted: &str| within(&text, &[wanted.to_owned()]);
        assert!(super::within(&text, &[]));
        assert!(within("/kubepods") && within("kubepods/burstable/") && within(&format!("pod{POD}")));
        assert!(!within("kube") && !within("burstable/kubepods") && !within("pod"));
        assert!(!super::within("0::/\n", &["kubepods".to_owned()]));
    }
}
