//! The list of the pods on this node, and the watch that keeps it fresh.
//!
//! `kube::runtime::watcher` does the same and was left out (5.0.0) for what it hides from its caller: that the API answers
//! while no pod changes (it keeps bookmarks to itself, so freshness cannot be told from silence), an HTTP status 410 at
//! the start of a watch (it asks again with the same version for ever), and watches that are closed as soon as they are
//! open (it asks again without a pause).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use kube::Client;
use kube::core::Request;
use kube::core::params::{ListParams, VersionMatch, WatchParams};
use kube::core::watch::WatchEvent;
use tokio::sync::mpsc::WeakSender;
use tokio::time::{sleep, timeout};

use super::client::Timing;
use super::connection::describe;
use super::directory::{Directory, Pod, PodName, Wish};
use super::names::{Name, PodUid, bounded};
use super::notice::{Kind, Notice};
use super::object::{List, Object};
use super::shared::Shared;
use crate::clock::Now;

/// Served by every version.
const PODS: &str = "/api/v1/pods";

pub(super) struct Watcher {
    client: Client,
    selector: String,
    timing: Timing,
    shared: Arc<Shared>,
    notices: WeakSender<Notice>,
    clock: fn() -> Now,
    pods: Arc<Directory>,
    /// From where to watch on; `None`: the list is to be taken (again).
    version: Option<String>,
    /// The watch brought something, be it a bookmark.
    heard: bool,
}

/// Why a watch is over, other than by the server's own time limit.
#[derive(Debug)]
enum Trouble {
    /// 410: what has happened since is no longer known there.
    Expired,
    Failed(String),
}

impl Watcher {
    pub(super) fn new(
        client: Client,
        node: &Name,
        timing: Timing,
        shared: Arc<Shared>,
        notices: WeakSender<Notice>,
        clock: fn() -> Now,
    ) -> Self {
        Self {
            client,
            // Pods that have ended have no Postfix, and Jobs can leave thousands of them.
            selector: format!("spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed"),
            timing,
            shared,
            notices,
            clock,
            pods: Arc::default(),
            version: None,
            heard: false,
        }
    }

    pub(super) async fn run(mut self) -> Infallible {
        let mut pause = self.timing.pause;
        loop {
            let began = (self.clock)().mono;
            self.heard = false;
            match self.round().await {
                Ok(()) => {}
                Err(Trouble::Expired) => {
                    tracing::debug!("the Kubernetes API has forgotten where we were: listing again");
                    self.version = None;
                }
                Err(Trouble::Failed(reason)) => self.shared.lost(reason, Some((self.clock)().mono)),
            }
            let lasted = (self.clock)().mono.saturating_duration_since(began);
            // Doubled after every round that came to nothing, however it ended.
            pause = if self.heard || lasted >= self.timing.longest_pause {
                self.timing.pause
            } else {
                (pause * 2).min(self.timing.longest_pause)
            };
            // The sentinels of all nodes lose the same server at the same moment.
            sleep(pause.mul_f64(jitter((self.clock)()))).await;
        }
    }

    /// Lists if it must, and watches until the server ends that.
    async fn round(&mut self) -> Result<(), Trouble> {
        let version = match self.version.clone() {
            Some(version) => version,
            None => self.list().await?,
        };
        let params = WatchParams::default()
            .fields(&self.selector)
            .timeout(seconds(self.timing.watch));
        let request = Request::new(PODS)
            .watch(&params, &version)
            .map_err(|error| Trouble::Failed(error.to_string()))?;
        let stream = self.client.request_events::<Object>(request);
        let stream = self.answer(stream).await?;
        let mut stream = std::pin::pin!(stream);
        self.shared.live(&self.pods);
        loop {
            // The server ends it in time; one that does not is no longer there.
            match timeout(self.timing.watch + self.timing.answer, stream.try_next()).await {
                Err(_) => return Err(Trouble::Failed("the watch has gone silent".into())),
                Ok(Err(error)) => return Err(self.broken(&error)),
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(event))) => self.take(event)?,
            }
        }
    }

    /// Takes the pods as they are now. Returns the version to watch on from.
    async fn list(&mut self) -> Result<String, Trouble> {
        let params = ListParams {
            field_selector: Some(self.selector.clone()),
            // From the API server's cache, which knows pods by their node; else etcd reads all pods of the cluster.
            resource_version: Some("0".into()),
            version_match: Some(VersionMatch::NotOlderThan),
            ..ListParams::default()
        };
        let request = Request::new(PODS)
            .list(&params)
            .map_err(|error| Trouble::Failed(error.to_string()))?;
        // Read here and not by the client, which logs the whole text when it does not understand it.
        let text = self.answer(self.client.request_text(request)).await?;
        let list: List = serde_json::from_str(&text)
            .map_err(|error| Trouble::Failed(format!("the list of pods is not understood: {error}")))?;
        let mut pods = Directory::default();
        for object in list.items.unwrap_or_default() {
            if let Some((uid, pod)) = object.trim() {
                self.warn_of_unknown_mode(&uid, &pod);
                pods.apply(uid, pod);
            }
        }
        if *self.pods != pods {
            self.pods = Arc::new(pods);
        }
        self.shared.live(&self.pods);
        let version = list.metadata.resource_version;
        self.version = Some(version.clone());
        Ok(version)
    }

    fn take(&mut self, event: WatchEvent<Object>) -> Result<(), Trouble> {
        let version = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let version = object.resource_version().to_owned();
                if let Some((uid, pod)) = object.trim() {
                    self.warn_of_unknown_mode(&uid, &pod);
                    // Most changes of a pod are none of what is kept of it.
                    if self.pods.get(&uid).is_none_or(|known| **known != pod) {
                        Arc::make_mut(&mut self.pods).apply(uid, pod);
                    }
                }
                version
            }
            WatchEvent::Deleted(object) => {
                if let Some(uid) = object.uid().filter(|uid| self.pods.get(uid).is_some()) {
                    Arc::make_mut(&mut self.pods).remove(&uid);
                }
                object.resource_version().to_owned()
            }
            WatchEvent::Bookmark(bookmark) => bookmark.metadata.resource_version,
            WatchEvent::Error(status) => return Err(self.broken(&kube::Error::Api(status))),
        };
        self.heard = true;
        self.shared.live(&self.pods);
        if !version.is_empty() {
            self.version = Some(version);
        }
        Ok(())
    }

    /// Once for each pod: an annotation that says nothing new is not new.
    fn warn_of_unknown_mode(&self, uid: &PodUid, pod: &Pod) {
        let Wish::Unknown(text) = &pod.wish else { return };
        let known = self.pods.get(uid);
        if known.is_some_and(|known| matches!(known.wish, Wish::Unknown(_))) {
            return;
        }
        let notice = Notice {
            pod: PodName {
                uid: uid.clone(),
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                container: None,
            },
            kind: Kind::UnknownMode,
            service: String::new(),
            reasons: vec![format!(
                "annotation {}: \"{text}\" is none of enforce, observe and off, and counts as observe",
                super::object::ANNOTATION
            )],
            at: (self.clock)(),
        };
        if let Some(notices) = self.notices.upgrade()
            && notices.try_send(notice).is_err()
        {
            self.shared.count(|events| events.dropped += 1);
        }
    }

    async fn answer<T>(&self, asked: impl Future<Output = kube::Result<T>>) -> Result<T, Trouble> {
        match timeout(self.timing.answer, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.broken(&error)),
            Err(_) => Err(Trouble::Failed(format!(
                "the API server has not answered within {} s",
                self.timing.answer.as_secs()
            ))),
        }
    }

    fn broken(&self, error: &kube::Error) -> Trouble {
        match error {
            kube::Error::Api(status) if status.code == 410 => Trouble::Expired,
            // What cannot be read now cannot be read the next time either: not from here on.
            kube::Error::SerdeError(error) => {
                tracing::debug!(
                    "a watch event is not understood: {}",
                    bounded(&error.to_string(), 200)
                );
                Trouble::Expired
            }
            _ => Trouble::Failed(describe(error)),
        }
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// From 0.5 to 1.5, of what the clock happens to end in.
fn jitter(now: Now) -> f64 {
    0.5 + f64::from(now.wall.subsec_nanosecond().unsigned_abs() / 1000 % 1000) / 1000.0
}
