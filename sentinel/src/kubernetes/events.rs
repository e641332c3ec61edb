//! Notices become Events (events.k8s.io/v1, which 1.19 and all later versions serve). Created and never changed, so that
//! the one verb `create` is enough: what repeats itself is counted in the next one's note.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::core::Request;
use kube::core::params::PostParams;
use tokio::sync::mpsc::Receiver;
use tokio::time::{sleep, timeout};

use super::client::Timing;
use super::connection::describe;
use super::names::Name;
use super::notice::{Kind, Notice};
use super::shared::Shared;
use super::throttle::{Admission, Throttle};
use crate::clock::Now;

/// Who reports, as `kubectl describe` shows it.
const CONTROLLER: &str = "smtp-sentinel.io/smtp-sentinel";

/// reportingInstance may have 128 characters (pkg/apis/core/validation/events.go, ReportingInstanceLengthLimit).
const INSTANCE_MAX: usize = 128;

/// An Event that did not get through is tried again so often.
const ATTEMPTS: u32 = 3;

pub(super) struct Poster {
    client: Client,
    /// The node: there is one sentinel on each.
    instance: String,
    enabled: bool,
    timing: Timing,
    shared: Arc<Shared>,
    throttle: Throttle,
    /// Makes names of Events unique within one instant.
    sequence: u32,
    /// The API does not take Events, and that has been said.
    refused: bool,
}

/// How an attempt ended.
#[derive(Debug)]
enum Sent {
    Created,
    /// The next attempt will end like this one.
    Refused(String),
    NotNow(String),
}

impl Poster {
    pub(super) fn new(
        client: Client,
        node: &Name,
        enabled: bool,
        timing: Timing,
        shared: Arc<Shared>,
        now: Now,
    ) -> Self {
        Self {
            client,
            instance: node.as_str().chars().take(INSTANCE_MAX).collect(),
            enabled,
            timing,
            shared,
            throttle: Throttle::new(now.mono),
            sequence: 0,
            refused: false,
        }
    }

    /// Until the queue is closed and empty.
    pub(super) async fn run(mut self, mut waiting: Receiver<Notice>) {
        while let Some(notice) = waiting.recv().await {
            self.tell(&notice).await;
        }
    }

    async fn tell(&mut self, notice: &Notice) {
        let Admission::Send { suppressed } = self.throttle.admit(notice) else {
            self.shared.count(|events| events.suppressed += 1);
            return;
        };
        // The others have been logged where they happened.
        if notice.kind == Kind::UnknownMode {
            tracing::warn!(namespace = %notice.pod.namespace, pod = %notice.pod.pod, "{}", notice.note(suppressed));
        }
        if !self.enabled {
            return;
        }
        self.sequence = self.sequence.wrapping_add(1);
        let event = event(notice, suppressed, &self.instance, self.sequence);
        let mut pause = self.timing.pause;
        for attempt in 1..=ATTEMPTS {
            let reason = match self.create(notice, &event).await {
                Sent::Created => {
                    self.refused = false;
                    self.shared.count(|events| events.created += 1);
                    return;
                }
                Sent::NotNow(_) if attempt < ATTEMPTS => {
                    sleep(pause).await;
                    pause = (pause * 4).min(self.timing.longest_pause);
                    continue;
                }
                Sent::NotNow(reason) | Sent::Refused(reason) => reason,
            };
            self.shared.count(|events| events.failed += 1);
            if !std::mem::replace(&mut self.refused, true) {
                tracing::warn!(namespace = %notice.pod.namespace, "cannot create an Event: {reason}");
            }
            return;
        }
    }

    async fn create(&self, notice: &Notice, event: &Event) -> Sent {
        let path = format!(
            "/apis/events.k8s.io/v1/namespaces/{}/events",
            notice.pod.namespace
        );
        let body = match serde_json::to_vec(event) {
            Ok(body) => body,
            Err(error) => return Sent::Refused(error.to_string()),
        };
        let request = match Request::new(path).create(&PostParams::default(), body) {
            Ok(request) => request,
            Err(error) => return Sent::Refused(error.to_string()),
        };
        match timeout(self.timing.answer, self.client.request_text(request)).await {
            Ok(Ok(_)) => Sent::Created,
            // An earlier attempt got through, and its answer did not.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Sent::Created,
            Ok(Err(error @ kube::Error::Api(_))) if refuses(&error) => Sent::Refused(describe(&error)),
            Ok(Err(error)) => Sent::NotNow(describe(&error)),
            Err(_) => Sent::NotNow("the API server does not answer".into()),
        }
    }
}

/// Whether the server has understood, and does not want it.
fn refuses(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429)
}

fn event(notice: &Notice, suppressed: u32, instance: &str, sequence: u32) -> Event {
    let pod = &notice.pod;
    Event {
        metadata: ObjectMeta {
            // The pod's uid keeps pods apart, the instant and the number keep those of one pod apart.
            name: Some(format!(
                "smtp-sentinel.{}.{:x}-{sequence:x}",
                pod.uid.to_string().to_ascii_lowercase(),
                notice.at.wall.as_microsecond()
            )),
            namespace: Some(pod.namespace.to_string()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(notice.at.wall)),
        type_: Some(notice.kind.severity().into()),
        reason: Some(notice.kind.reason().into()),
        action: Some(notice.kind.action().into()),
        note: Some(notice.note(suppressed)),
        regarding: Some(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod.namespace.to_string()),
            name: Some(pod.pod.to_string()),
            uid: Some(pod.uid.to_string()),
            field_path: pod
                .container
                .as_ref()
                .map(|name| format!("spec.containers{{{name}}}")),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.into()),
        reporting_instance: Some(instance.into()),
        ..Event::default()
    }
}
