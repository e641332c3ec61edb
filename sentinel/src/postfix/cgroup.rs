//! Which container a process is in, by the path of its control group: what the runtime wrote there, and nothing that the
//! container says of itself. Pure.
//!
//! A container may make groups below its own and give them any name. So the outermost name decides whose a process is
//! ([`Dwelling::group`]), and an inner one only tells apart those that share it.

/// Where a process lives, as far as its cgroups tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dwelling {
    /// What its inhabitants cannot choose: the container that the host started, or the user of a login session.
    pub group: String,
    /// Identity of the innermost container.
    id: Option<String>,
    /// Of the outermost pod, with dashes.
    pub pod_uid: Option<String>,
}

impl Dwelling {
    /// From the text of /proc/PID/cgroup. Of its hierarchies the first that names a container counts, else the one that
    /// says most.
    pub fn of(text: &str) -> Self {
        let mut all: Vec<Self> = paths(text).map(|path| Self::at(&path)).collect();
        let best = all
            .iter()
            .position(|one| one.id.is_some())
            .or_else(|| (0..all.len()).max_by_key(|&at| all[at].group.len()));
        best.map_or_else(|| Self::at(&[]), |best| all.swap_remove(best))
    }

    fn at(path: &[&str]) -> Self {
        let ids: Vec<&str> = path.iter().filter_map(|part| container_id(part)).collect();
        // Everything below the slice of a user is in that user's hands (systemd's Delegate=).
        let owner = path.iter().find_map(|part| match container_id(part) {
            Some(id) => Some(short(id)),
            None if part.starts_with("user-") && part.ends_with(".slice") => Some((*part).to_owned()),
            None => None,
        });
        // No layout that we know: the host gives the first names.
        let group = owner.unwrap_or_else(|| path[..path.len().min(2)].join("/"));
        Self {
            group,
            id: ids.last().map(|id| short(id)),
            pod_uid: path.iter().find_map(|part| pod_uid(part)),
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
            cgroups.iter().any(|wanted| {
                let wanted: Vec<&str> = parts(wanted).collect();
                path.windows(wanted.len().max(1)).any(|run| run == wanted)
            })
        })
}

/// The parts of each hierarchy's path: `12:cpu,cpuacct:/a/b`, `0::/a/b`.
fn paths(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .map(|path| parts(path).collect())
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !matches!(*part, "" | "." | ".."))
}

/// `<64 hex digits>` alone, or as `docker-<64>.scope`, `cri-containerd-<64>.scope`, `crio-<64>.scope`,
/// `libpod-<64>.scope`; and `lxc.payload.NAME`.
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

/// `pod<UID>` of the cgroupfs driver, or `kubepods-burstable-pod<UID>.slice` of the systemd one, with `_` for `-`.
fn pod_uid(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let uid = match part.strip_prefix("pod") {
        Some(uid) => uid,
        None => part.strip_prefix("kubepods")?.rsplit_once("-pod")?.1,
    };
    let plain =
        uid.len() >= 32 && uid.len() <= 36 && uid.chars().all(|c| c.is_ascii_hexdigit() || "-_".contains(c));
    plain.then(|| uid.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2a9c1b4d5e6f708192a3b4c5d6e7f83f2a9c1b4d5e6f708192a3b4c5d6e7f8";
    const OTHER: &str = "aaaaaaaaaaaa6f708192a3b4c5d6e7f83f2a9c1b4d5e6f708192a3b4c5d6e7f8";
    const POD: &str = "0b4a4c3e-93a5-4f0e-8a3c-6f1f0c9b7d11";

    fn named(path: &str) -> (String, Option<String>) {
        let dwelling = Dwelling::of(&format!("0::{path}\n"));
        (dwelling.name(77), dwelling.pod_uid)
    }

    #[test]
    fn runtimes_and_drivers() {
        let pod = || Some(POD.to_owned());
        let underscored = POD.replace('-', "_");
        for (path, name, pod_uid) in [
            (
                format!("/kubepods/burstable/pod{POD}/{ID}"),
                "3f2a9c1b4d5e",
                pod(),
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{underscored}.slice/cri-containerd-{ID}.scope"
                ),
                "3f2a9c1b4d5e",
                pod(),
            ),
            (format!("/../../pod{POD}/{ID}"), "3f2a9c1b4d5e", pod()),
            (format!("/docker/{ID}"), "3f2a9c1b4d5e", None),
            (
                format!("/machine.slice/libpod-{ID}.scope/container"),
                "3f2a9c1b4d5e",
                None,
            ),
            ("/lxc.payload.web/init.scope".to_owned(), "lxc.payload.web", None),
            ("/".to_owned(), "mnt-77", None),
            (
                "/system.slice/a.service/x/y".to_owned(),
                "system.slice/a.service/mnt-77",
                None,
            ),
        ] {
            assert_eq!(named(&path), (name.to_owned(), pod_uid), "{path}");
        }
    }

    #[test]
    fn the_hierarchy_that_names_a_container_counts() {
        let text = format!("3:cpuset:/\n2:memory:/docker/{ID}\n0::/\n");
        assert_eq!(Dwelling::of(&text).name(1), "3f2a9c1b4d5e");
        assert_eq!(Dwelling::of("").name(1), "mnt-1");
    }

    /// A container that names a group of its own like another container stays in its own group.
    #[test]
    fn a_borrowed_name_stands_behind_the_own_one() {
        let borrowed = Dwelling::of(&format!("0::/docker/{ID}/docker/{OTHER}\n"));
        assert_eq!(borrowed.group, "3f2a9c1b4d5e");
        assert_eq!(borrowed.name(1), "3f2a9c1b4d5e/aaaaaaaaaaaa");
        let in_disguise = format!("0::/docker/{ID}/user.slice/user-7.slice\n");
        assert_eq!(Dwelling::of(&in_disguise).group, "3f2a9c1b4d5e");
        let of_a_user = format!("0::/user.slice/user-1000.slice/user@1000.service/libpod-{OTHER}.scope\n");
        assert_eq!(Dwelling::of(&of_a_user).group, "user-1000.slice");
        assert_eq!(Dwelling::of(&of_a_user).name(1), "user-1000.slice/aaaaaaaaaaaa");
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
