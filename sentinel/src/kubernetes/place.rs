//! Which container of which pod a process is in, in the terms of the API.

use super::names::{ContainerId, PodUid};
use crate::postfix::cgroup::Pod;

/// A container of a pod, as a cgroup names the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub uid: PodUid,
    /// `None` where the runtime names its groups in a way that is not known.
    pub container: Option<ContainerId>,
}

impl Place {
    /// `None` where no pod is told.
    pub fn of(pod: &Pod) -> Option<Self> {
        match pod {
            Pod::None | Pod::Untold => None,
            Pod::Told { uid, container } => Some(Self {
                uid: PodUid::parse(uid)?,
                container: container.as_deref().and_then(ContainerId::parse),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postfix::cgroup::Dwelling;

    #[test]
    fn a_cgroup_and_the_api_name_the_same() {
        let (uid, id) = ("6f0f2e2a-0b5e-4a57-9d6e-1f6b0e0f7a11", "a".repeat(64));
        let slice = format!("kubepods-pod{}.slice", uid.replace('-', "_"));
        let place = |path: &str| Place::of(&Dwelling::of(&format!("0::{path}\n")).pod);
        let of_api = Place {
            uid: PodUid::parse(uid).unwrap(),
            container: ContainerId::parse(&format!("containerd://{id}")),
        };
        assert!(of_api.container.is_some());
        assert_eq!(
            place(&format!("/kubepods.slice/{slice}/cri-containerd-{id}.scope")),
            Some(of_api)
        );
        let unnamed = place(&format!("/kubepods/pod{uid}/of-a-runtime-to-come"));
        assert_eq!(unnamed.unwrap().container, None);
        assert_eq!(place(&format!("/kubepods/{id}")), None);
        assert_eq!(place("/"), None);
    }
}
