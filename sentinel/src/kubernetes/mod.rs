//! What the cluster knows of the containers on this node: how a pod is called, what its annotation
//! `smtp-sentinel.io/mode` asks for, and a place to leave Events.
//!
//! Owns the one connection to the API server, on a thread of its own. The tick never waits for it: it asks a
//! [`Snapshot`] and leaves [`Notice`]s in a bounded queue. Lists and watches the pods of its own node and creates Events,
//! nothing else; no other verb is in here. What the API says is the word of whoever may create a pod: names are parsed,
//! texts are bounded and escaped ([`names`]), and none of it becomes part of a file path.
//!
//! The client itself is behind the Cargo feature `kubernetes`, which the container image is built with. Without it
//! everything here is the same and says that there is no API.

pub mod directory;
pub mod names;
pub mod notice;
pub mod place;

#[cfg(feature = "kubernetes")]
mod connection;
#[cfg(feature = "kubernetes")]
mod events;
#[cfg(feature = "kubernetes")]
mod object;
#[cfg(feature = "kubernetes")]
mod throttle;
#[cfg(feature = "kubernetes")]
mod watch;

#[cfg(feature = "kubernetes")]
mod client;
mod shared;

use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "kubernetes")]
pub use connection::{Connection, ConnectionError};
pub use directory::{Answer, PodName, Snapshot};
pub use names::{ContainerId, PodUid};
pub use notice::{Kind, Notice};
pub use place::Place;

use self::shared::Shared;
use crate::clock::Now;
use crate::config;
use crate::status;

/// Notices that may wait for the API; what comes on top is dropped, and counted.
#[cfg(feature = "kubernetes")]
const WAITING_MAX: usize = 64;

/// The way to the cluster. Stops its thread when it is dropped, after a moment for what is still to be told.
pub struct Kubernetes {
    policy: config::Kubernetes,
    shared: Arc<Shared>,
    notices: Option<tokio::sync::mpsc::Sender<Notice>>,
    #[cfg(feature = "kubernetes")]
    thread: Option<client::Thread>,
}

impl Kubernetes {
    /// Begins to ask; `None` when the configuration does not want it. What is missing for it is said in
    /// [`Self::report`], and never an error: the daemon goes on without.
    ///
    /// Makes a thread, which has the capabilities of the calling one: to be called when those have been dropped.
    pub fn start(policy: &config::Kubernetes, clock: fn() -> Now) -> Option<Self> {
        policy.enabled.then(|| Self::begin(policy.clone(), clock))
    }

    #[cfg(feature = "kubernetes")]
    fn begin(policy: config::Kubernetes, clock: fn() -> Now) -> Self {
        match Connection::of_this_pod() {
            Ok(connection) => Self::connect(policy, connection, client::Timing::default(), clock),
            Err(error) => Self::without(policy, &error.to_string()),
        }
    }

    #[cfg(not(feature = "kubernetes"))]
    fn begin(policy: config::Kubernetes, _: fn() -> Now) -> Self {
        let reason = "this smtp-sentinel was built without the feature \"kubernetes\"; use that of the container image";
        Self::without(policy, reason)
    }

    /// For tests of others: an API that has said this, and what it is told.
    #[cfg(test)]
    pub(crate) fn that_says(
        policy: config::Kubernetes,
        snapshot: Snapshot,
    ) -> (Self, tokio::sync::mpsc::Receiver<Notice>) {
        let (notices, waiting) = tokio::sync::mpsc::channel(8);
        let mut kubernetes = Self::without(policy, "");
        kubernetes.notices = Some(notices);
        kubernetes.shared = Arc::new(Shared::new(snapshot));
        (kubernetes, waiting)
    }

    /// There is no API, and will not be.
    fn without(policy: config::Kubernetes, reason: &str) -> Self {
        let shared = Shared::new(Snapshot::none("not asked yet"));
        shared.lost(reason.to_owned(), None);
        Self {
            policy,
            shared: Arc::new(shared),
            notices: None,
            #[cfg(feature = "kubernetes")]
            thread: None,
        }
    }

    #[cfg(feature = "kubernetes")]
    fn connect(
        policy: config::Kubernetes,
        connection: Connection,
        timing: client::Timing,
        clock: fn() -> Now,
    ) -> Self {
        let shared = Arc::new(Shared::new(Snapshot::none("the API server has not answered yet")));
        let (notices, waiting) = tokio::sync::mpsc::channel(WAITING_MAX);
        let room = client::Room {
            connection,
            timing,
            shared: Arc::clone(&shared),
            notices: notices.downgrade(),
            events: policy.events,
            clock,
        };
        match room.open(waiting) {
            Ok(thread) => Self {
                policy,
                shared,
                notices: Some(notices),
                thread: Some(thread),
            },
            Err(error) => Self::without(policy, &format!("cannot start a thread for it: {error}")),
        }
    }

    /// Names a container of a pod, and says what may be done with the Postfix in it. Never waits.
    pub fn ask(&self, place: &Place, now: Instant) -> Answer {
        self.shared.snapshot().ask(place, &self.policy, now)
    }

    /// What may be done with the Postfix in a container of a kubelet's whose pod is not told.
    pub fn untold(&self) -> Answer {
        Answer::untold(&self.policy)
    }

    /// Leaves word for the pod's owner. Never waits, and never fails: what cannot be told is counted.
    pub fn tell(&self, notice: Notice) {
        let Some(notices) = self.notices.as_ref().filter(|_| self.policy.events) else {
            return;
        };
        if notices.try_send(notice).is_err() {
            self.shared.count(|events| events.dropped += 1);
        }
    }

    /// How it goes, for status and metrics.
    pub fn report(&self, now: Instant) -> status::Kubernetes {
        self.shared.report(&self.policy, now)
    }
}

#[cfg(feature = "kubernetes")]
impl Drop for Kubernetes {
    fn drop(&mut self) {
        // The queue is closed first, so that the thread ends as soon as it is empty.
        drop(self.notices.take());
        drop(self.thread.take());
    }
}

#[cfg(test)]
#[cfg(feature = "kubernetes")]
mod tests;
