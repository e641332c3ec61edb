//! What the thread of the client and the tick both see. Locked for as long as it takes to copy a pointer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::directory::{Contact, Directory, PODS_MAX, Snapshot};
use crate::config;
use crate::status::{self, KubernetesEvents, KubernetesState};

#[derive(Debug)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    snapshot: Arc<Snapshot>,
    events: KubernetesEvents,
}

impl Shared {
    pub(super) fn new(snapshot: Snapshot) -> Self {
        Self {
            inner: Mutex::new(Inner {
                snapshot: Arc::new(snapshot),
                events: KubernetesEvents::default(),
            }),
        }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.lock().snapshot)
    }

    /// The API answers, and these are the pods.
    #[cfg(feature = "kubernetes")]
    pub(super) fn live(&self, pods: &Arc<Directory>) {
        let mut inner = self.lock();
        let was_live = inner.snapshot.contact == Contact::Live;
        if was_live && Arc::ptr_eq(&inner.snapshot.pods, pods) {
            return;
        }
        let refused = (inner.snapshot.pods.refused(), pods.refused());
        inner.snapshot = Arc::new(Snapshot {
            contact: Contact::Live,
            pods: Arc::clone(pods),
        });
        drop(inner);
        if !was_live {
            tracing::info!("the Kubernetes API answers: {} pods on this node", pods.len());
        }
        if let (0, 1..) = refused {
            tracing::warn!("{}", too_many(pods));
        }
    }

    /// The API does not answer as of `at`, which is `None` when it never can.
    pub(super) fn lost(&self, reason: String, at: Option<Instant>) {
        let mut inner = self.lock();
        let contact = match (&inner.snapshot.contact, at) {
            (Contact::Live, Some(since)) => Contact::Lost { since, reason },
            (Contact::Lost { since, .. }, _) => Contact::Lost {
                since: *since,
                reason,
            },
            (Contact::Never(_), _) | (Contact::Live, None) => Contact::Never(reason),
        };
        if contact == inner.snapshot.contact {
            return;
        }
        let sentence = match &contact {
            Contact::Never(reason) => format!(
                "no pod is known: {reason}; the configuration alone decides ([kubernetes] without_api, [discovery])"
            ),
            Contact::Lost { reason, .. } => {
                format!("the Kubernetes API has gone away: {reason}; what it said before counts for a while")
            }
            Contact::Live => String::new(),
        };
        inner.snapshot = Arc::new(Snapshot {
            contact,
            pods: Arc::clone(&inner.snapshot.pods),
        });
        drop(inner);
        tracing::warn!("{sentence}");
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut KubernetesEvents)) {
        add(&mut self.lock().events);
    }

    pub(super) fn report(&self, policy: &config::Kubernetes, now: Instant) -> status::Kubernetes {
        let (snapshot, events) = {
            let inner = self.lock();
            (Arc::clone(&inner.snapshot), inner.events)
        };
        let (state, reason) = match (&snapshot.contact, snapshot.trusted(policy, now)) {
            (_, Err(reason)) => (
                KubernetesState::Unavailable,
                format!(
                    "{reason}; mode \"{}\" for every pod (kubernetes.without_api)",
                    policy.without_api
                ),
            ),
            (Contact::Lost { reason, .. }, Ok(())) => (
                KubernetesState::Stale,
                format!("{reason}; what the API said before still counts"),
            ),
            (Contact::Live | Contact::Never(_), Ok(())) if snapshot.pods.refused() > 0 => {
                (KubernetesState::Ok, too_many(&snapshot.pods))
            }
            (Contact::Live | Contact::Never(_), Ok(())) => (KubernetesState::Ok, String::new()),
        };
        let pods = match state {
            KubernetesState::Ok | KubernetesState::Stale => snapshot.pods.len(),
            KubernetesState::Unavailable => 0,
        };
        status::Kubernetes {
            state,
            reason,
            pods: u32::try_from(pods).unwrap_or(u32::MAX),
            events,
        }
    }

    /// A panic of another thread leaves whole values behind: nothing in here is changed in two steps.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_many(pods: &Directory) -> String {
    format!(
        "more than {PODS_MAX} pods on this node: {} are not known, and only observed",
        pods.refused()
    )
}
