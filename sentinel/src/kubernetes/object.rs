//! A pod as the API server writes it, of which all but a few fields are passed over while it is read: the rest of it can
//! be a megabyte of somebody else's making.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::directory::{Pod, Wish};
use super::names::{ContainerId, Name, PodUid};

/// What a pod's owner asks for.
pub(super) const ANNOTATION: &str = "smtp-sentinel.io/mode";

/// Far above any pod; more are left without a name.
const CONTAINERS_MAX: usize = 64;

/// `v1.PodList`.
#[derive(Debug, Deserialize)]
pub(super) struct List {
    pub(super) metadata: ListMetadata,
    /// Go writes an empty list as null at times.
    #[serde(default)]
    pub(super) items: Option<Vec<Object>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMetadata {
    #[serde(default)]
    pub(super) resource_version: String,
}

/// `v1.Pod`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Object {
    metadata: Metadata,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    uid: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    annotations: Annotation,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    container_statuses: Option<Vec<Container>>,
    init_container_statuses: Option<Vec<Container>>,
    ephemeral_container_statuses: Option<Vec<Container>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Container {
    #[serde(default)]
    name: String,
    /// Empty or missing until it runs.
    #[serde(rename = "containerID", default)]
    id: Option<String>,
}

/// The one annotation of all that are there.
#[derive(Debug, Clone, Default)]
struct Annotation(Option<String>);

impl Object {
    pub(super) fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }

    /// Its identity, as far as it has one.
    pub(super) fn uid(&self) -> Option<PodUid> {
        PodUid::parse(&self.metadata.uid)
    }

    /// What is kept; `None` when its names are none.
    pub(super) fn trim(self) -> Option<(PodUid, Pod)> {
        let uid = self.uid()?;
        let status = self.status.unwrap_or_default();
        let containers: BTreeMap<ContainerId, Name> = [
            status.container_statuses,
            status.init_container_statuses,
            status.ephemeral_container_statuses,
        ]
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|one| Some((ContainerId::parse(one.id.as_deref()?)?, Name::label(&one.name)?)))
        .take(CONTAINERS_MAX)
        .collect();
        let pod = Pod {
            namespace: Name::label(&self.metadata.namespace)?,
            name: Name::subdomain(&self.metadata.name)?,
            containers,
            wish: Wish::of(self.metadata.annotations.0.as_deref()),
        };
        Some((uid, pod))
    }
}

impl<'de> Deserialize<'de> for Annotation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Find;

        impl<'de> Visitor<'de> for Find {
            type Value = Annotation;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_unit<E>(self) -> Result<Annotation, E> {
                Ok(Annotation::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotation, A::Error> {
                let mut found = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key == ANNOTATION {
                        found = Some(map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Annotation(found))
            }
        }

        deserializer.deserialize_any(Find)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::config::PodMode;

    fn trimmed(value: Value) -> Option<(PodUid, Pod)> {
        serde_json::from_value::<Object>(value).unwrap().trim()
    }

    /// As a 1.20 server writes it, cut down.
    fn pod() -> Value {
        json!({
            "metadata": {
                "name": "mail-0", "namespace": "post", "uid": "6f0f2e2a-0b5e-4a57-9d6e-1f6b0e0f7a11",
                "resourceVersion": "4711",
                "annotations": {"a": "b", "smtp-sentinel.io/mode": "enforce", "z": "y"},
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
            },
            "spec": {"nodeName": "worker-1", "containers": [{"name": "postfix", "image": "x"}]},
            "status": {
                "phase": "Running",
                "containerStatuses": [
                    {"name": "postfix", "containerID": "containerd://aa11", "ready": true},
                    {"name": "waits", "ready": false},
                    {"name": "starts", "containerID": ""},
                ],
                "initContainerStatuses": [{"name": "set-up", "containerID": "containerd://bb22"}],
            },
        })
    }

    #[test]
    fn of_a_pod_its_names_its_containers_and_its_wish_are_kept() {
        let (uid, pod) = trimmed(pod()).unwrap();
        assert_eq!(uid.to_string(), "6f0f2e2a-0b5e-4a57-9d6e-1f6b0e0f7a11");
        assert_eq!(pod.namespace.as_str(), "post");
        assert_eq!(pod.name.as_str(), "mail-0");
        assert_eq!(pod.wish, Wish::Mode(PodMode::Enforce));
        let names: Vec<_> = pod.containers.values().map(Name::as_str).collect();
        assert_eq!(names, ["postfix", "set-up"]);
    }

    #[test]
    fn a_pod_that_says_nothing_is_a_pod() {
        let bare = json!({"metadata": {"name": "a", "namespace": "b", "uid": "c", "annotations": null}, "status": null});
        let (_, pod) = trimmed(bare).unwrap();
        assert_eq!((pod.wish, pod.containers.len()), (Wish::None, 0));
    }

    #[test]
    fn names_that_are_none_do_not_get_in() {
        for (field, wrong) in [("name", "../../etc"), ("namespace", "a\u{1b}[2J"), ("uid", "")] {
            let mut hostile = pod();
            hostile["metadata"][field] = json!(wrong);
            assert_eq!(trimmed(hostile), None, "{field}");
        }
    }

    #[test]
    fn an_unknown_wish_is_told_in_bounds() {
        let mut hostile = pod();
        hostile["metadata"]["annotations"][ANNOTATION] = json!(format!("off\n{}", "x".repeat(1 << 18)));
        let Wish::Unknown(text) = trimmed(hostile).unwrap().1.wish else {
            panic!("a line more is another value");
        };
        assert!(text.starts_with("off\\nxxx") && text.len() <= 40, "{text}");
    }

    #[test]
    fn containers_are_counted() {
        let mut many = pod();
        let containers =
            (0..500).map(|n| json!({"name": format!("c{n}"), "containerID": format!("cri-o://{n:064x}")}));
        many["status"]["containerStatuses"] = containers.collect();
        assert_eq!(trimmed(many).unwrap().1.containers.len(), CONTAINERS_MAX);
    }

    proptest! {
        #[test]
        fn whatever_the_strings_are_what_is_kept_is_small_and_plain(
            name in "(?s).{0,300}", namespace in ".{0,80}", uid in "[-a-z0-9_/]{0,80}", wish in "(?s).{0,200}",
            container in ".{0,80}", id in "(containerd://)?[a-f0-9/]{0,140}",
        ) {
            let object = json!({
                "metadata": {"name": name, "namespace": namespace, "uid": uid, "annotations": {ANNOTATION: wish}},
                "status": {"containerStatuses": [{"name": container, "containerID": id}]},
            });
            if let Some((_, pod)) = trimmed(object) {
                let plain = |text: &str| !text.chars().any(|c| c.is_control() || c == '/');
                prop_assert!(plain(pod.name.as_str()) && plain(pod.namespace.as_str()));
                prop_assert!(pod.containers.values().all(|name| plain(name.as_str()) && name.as_str().len() < 64));
                if let Wish::Unknown(text) = pod.wish {
                    prop_assert!(text.len() <= 40 && !text.chars().any(char::is_control));
                }
            }
        }
    }
}
