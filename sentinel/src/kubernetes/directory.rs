//! What is known of the pods of this node, and what follows from it for one container. Pure: time is an argument.
//!
//! Bounded by construction: of a pod only its names, its containers and its annotation are kept, and a node cannot have
//! more than [`PODS_MAX`] of them here.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::names::{ContainerId, Name, PodUid};
use super::place::Place;
use crate::config;
use crate::config::PodMode;

/// The kubelet's own limit is 110 pods (maxPods), and the largest that providers set is 737.
pub const PODS_MAX: usize = 1024;

/// What is kept of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub namespace: Name,
    pub name: Name,
    pub containers: BTreeMap<ContainerId, Name>,
    pub wish: Wish,
}

/// What the annotation `smtp-sentinel.io/mode` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// There is no such annotation.
    None,
    Mode(PodMode),
    /// None of the known words; bounded and escaped. Counts as `observe`.
    Unknown(String),
}

impl Wish {
    /// Longest that an unknown value is told with.
    const SHOWN: usize = 40;

    pub fn of(annotation: Option<&str>) -> Self {
        let Some(text) = annotation else {
            return Self::None;
        };
        match PodMode::parse(text) {
            Some(mode) => Self::Mode(mode),
            None => Self::Unknown(super::names::bounded(text, Self::SHOWN)),
        }
    }
}

/// The pods of this node, as last heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    pods: BTreeMap<PodUid, Arc<Pod>>,
    /// Pods that were left out because [`PODS_MAX`] was reached.
    refused: usize,
}

impl Directory {
    /// Takes a pod in, or what has changed of it. `false` when nothing has changed by it.
    pub fn apply(&mut self, uid: PodUid, pod: Pod) -> bool {
        let full = self.pods.len() >= PODS_MAX;
        match self.pods.entry(uid) {
            Entry::Occupied(known) if **known.get() == pod => false,
            Entry::Occupied(mut known) => {
                known.insert(Arc::new(pod));
                true
            }
            Entry::Vacant(_) if full => {
                self.refused = self.refused.saturating_add(1);
                true
            }
            Entry::Vacant(new) => {
                new.insert(Arc::new(pod));
                true
            }
        }
    }

    /// `false` when it was not known.
    pub fn remove(&mut self, uid: &PodUid) -> bool {
        self.pods.remove(uid).is_some()
    }

    pub fn get(&self, uid: &PodUid) -> Option<&Arc<Pod>> {
        self.pods.get(uid)
    }

    pub fn len(&self) -> usize {
        self.pods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Since the last list: pods of this node that are not in here for want of room.
    pub fn refused(&self) -> usize {
        self.refused
    }

    /// The pod of a container. The uid in the cgroup of a static pod is not the one that the API knows its mirror by, so
    /// the container decides where the uid is not known.
    fn find(&self, place: &Place) -> Option<&Arc<Pod>> {
        self.pods.get(&place.uid).or_else(|| {
            let container = place.container.as_ref()?;
            self.pods
                .values()
                .find(|pod| pod.containers.contains_key(container))
        })
    }
}

/// How it stands with the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contact {
    /// Nothing has been heard yet, and why.
    Never(String),
    Live,
    /// It was there; since when it is not, and why.
    Lost {
        since: Instant,
        reason: String,
    },
}

/// All that the tick gets to see, at one instant.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub contact: Contact,
    pub pods: Arc<Directory>,
}

/// What is known of one container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `None` when the API does not name it, or not any more.
    pub named: Option<PodName>,
    pub mode: PodMode,
    /// Why that mode, in words that read on after the mode.
    pub why: String,
}

/// Namespace, pod, and container where that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    pub uid: PodUid,
    pub namespace: Name,
    pub pod: Name,
    /// The kubelet tells the API of a new container some time after it has begun.
    pub container: Option<Name>,
}

impl fmt::Display for PodName {
    /// `namespace/pod/container`, or `namespace/pod`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)?;
        match &self.container {
            Some(container) => write!(f, "/{container}"),
            None => Ok(()),
        }
    }
}

impl Answer {
    /// For a container that is a kubelet's, and of which no pod is told: no annotation and no API can speak for it, and what is
    /// not known is not acted on.
    pub fn untold(policy: &config::Kubernetes) -> Self {
        Self {
            named: None,
            mode: policy.default_mode.min(PodMode::Observe),
            why: "its cgroup is of a kubelet and names no pod in a layout that is known".into(),
        }
    }
}

impl Snapshot {
    /// Before anything was heard.
    pub fn none(reason: impl Into<String>) -> Self {
        Self {
            contact: Contact::Never(reason.into()),
            pods: Arc::default(),
        }
    }

    /// Whether the last answers still count at `now`, and if not, why.
    pub fn trusted(&self, policy: &config::Kubernetes, now: Instant) -> Result<(), &str> {
        match &self.contact {
            Contact::Live => Ok(()),
            Contact::Lost { since, .. } if now.saturating_duration_since(*since) <= policy.keep => Ok(()),
            Contact::Lost { reason, .. } | Contact::Never(reason) => Err(reason),
        }
    }

    /// Names a container of a pod, and says what may be done with the Postfix in it.
    pub fn ask(&self, place: &Place, policy: &config::Kubernetes, now: Instant) -> Answer {
        if let Err(reason) = self.trusted(policy, now) {
            return Answer {
                named: None,
                mode: policy.without_api,
                why: format!("kubernetes.without_api, for the API is not there: {reason}"),
            };
        }
        let Some(pod) = self.pods.find(place) else {
            return Answer {
                named: None,
                // What is not known is not acted on, whatever holds for pods without the annotation.
                mode: policy.default_mode.min(PodMode::Observe),
                why: "the API does not know this pod, or not yet".into(),
            };
        };
        let (mode, why) = match &pod.wish {
            Wish::None => (
                policy.default_mode,
                "kubernetes.default_mode, for the pod has no annotation smtp-sentinel.io/mode".into(),
            ),
            Wish::Mode(mode) => (*mode, "the pod's annotation smtp-sentinel.io/mode".into()),
            Wish::Unknown(text) => (
                PodMode::Observe,
                format!("the pod's annotation smtp-sentinel.io/mode has the unknown value \"{text}\""),
            ),
        };
        Answer {
            named: Some(PodName {
                // Of a static pod too: `kubectl describe` looks for the Events of its mirror by this one.
                uid: place.uid.clone(),
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                container: place
                    .container
                    .as_ref()
                    .and_then(|container| pod.containers.get(container).cloned()),
            }),
            mode,
            why,
        }
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
