//! What the cluster says of the instances that are in pods: how they are called, and what may be done with each. Keeps the
//! last answer for each instance, so that whatever is told of it has the name of its pod.

use std::collections::HashMap;
use std::fs;
use std::time::Instant;

use crate::clock::Now;
use crate::config::PodMode;
use crate::controller::{State, Transition};
use crate::kubernetes::{Answer, Kind, Kubernetes, Notice, Place};
use crate::postfix::cgroup::{Dwelling, Pod};
use crate::postfix::{Master, ServiceId, discovery};
use crate::status;

/// The pod that a master is in; [`Pod::None`] also for one that is no more.
pub(super) fn pod_of(master: &Master) -> Pod {
    match fs::read_to_string(format!("/proc/{}/cgroup", master.pid)) {
        // The text was of this very master, and not of the next process by that number.
        Ok(cgroup) if discovery::alive(master) => Dwelling::of(&cgroup).pod,
        Ok(_) | Err(_) => Pod::None,
    }
}

/// The answers, by instance.
pub(super) struct Pods {
    /// `None` where the configuration does not want it asked.
    cluster: Option<Kubernetes>,
    answers: HashMap<String, Answer>,
}

impl Pods {
    pub(super) fn new(cluster: Option<Kubernetes>) -> Self {
        Self {
            cluster,
            answers: HashMap::new(),
        }
    }

    /// Whether there is anybody to ask.
    pub(super) fn asks(&self) -> bool {
        self.cluster.is_some()
    }

    /// Asks anew about an instance, and returns what may be done with it. One that is in no pod is nobody's business here.
    pub(super) fn ask(&mut self, instance: &str, pod: &Pod, now: Instant) -> PodMode {
        let (Some(cluster), Pod::Told { .. } | Pod::Untold) = (&self.cluster, pod) else {
            return PodMode::Enforce;
        };
        let mut answer = match Place::of(pod) {
            Some(place) => cluster.ask(&place, now),
            None => cluster.untold(),
        };
        let last = self.answers.remove(instance);
        let news = last
            .as_ref()
            .is_none_or(|last| (last.mode, &last.why) != (answer.mode, &answer.why));
        // A container is called the same for as long as it lives, also when the API has gone away.
        answer.named = answer.named.or(last.and_then(|last| last.named));
        let mode = answer.mode;
        if news {
            let pod = answer.named.as_ref().map(ToString::to_string);
            tracing::info!(%instance, pod, "{mode} by {}", answer.why);
        }
        self.answers.insert(instance.to_owned(), answer);
        mode
    }

    /// Returns which of them it had known.
    pub(super) fn forget(&mut self, gone: impl Fn(&str) -> bool) -> Vec<String> {
        let forgotten: Vec<_> = self.answers.keys().filter(|one| gone(one)).cloned().collect();
        for instance in &forgotten {
            self.answers.remove(instance);
        }
        forgotten
    }

    /// Why the mode of its pod keeps our hands off an instance; `Ok` when it does not.
    pub(super) fn permits(&self, instance: &str) -> Result<(), String> {
        match self.answers.get(instance) {
            Some(answer) if answer.mode < PodMode::Enforce => {
                Err(format!("mode {} of the pod, by {}", answer.mode, answer.why))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// For the report.
    pub(super) fn pod(&self, instance: &str) -> Option<status::Pod> {
        let answer = self.answers.get(instance)?;
        let name = |name: &dyn ToString| name.to_string();
        let named = answer.named.as_ref();
        Some(status::Pod {
            namespace: named.map(|named| name(&named.namespace)),
            name: named.map(|named| name(&named.pod)),
            container: named.and_then(|named| named.container.as_ref().map(|one| name(one))),
            mode: answer.mode.to_string(),
            reason: answer.why.clone(),
        })
    }

    /// `namespace/pod/container`, for history.
    pub(super) fn name(&self, instance: &str) -> Option<String> {
        Some(self.answers.get(instance)?.named.as_ref()?.to_string())
    }

    pub(super) fn report(&self, now: Instant) -> Option<status::Kubernetes> {
        self.cluster.as_ref().map(|cluster| cluster.report(now))
    }

    /// Only what an owner of the pod would call news: that stress mode holds on meanwhile is none.
    pub(super) fn transition(&self, instance: &str, service: &ServiceId, change: &Transition, now: Now) {
        let kind = match (change.from, change.to) {
            (State::Normal, State::Stressed) => Kind::Trip,
            (_, State::Normal) => Kind::Clear,
            (_, State::Stressed | State::Recovering) => return,
        };
        self.tell(instance, kind, service, &change.reasons, now);
    }

    pub(super) fn refusal(&self, instance: &str, service: &ServiceId, reasons: &[String], now: Now) {
        self.tell(instance, Kind::Refusal, service, reasons, now);
    }

    fn tell(&self, instance: &str, kind: Kind, service: &ServiceId, reasons: &[String], now: Now) {
        let named = self.answers.get(instance).and_then(|answer| answer.named.clone());
        if let (Some(cluster), Some(pod)) = (&self.cluster, named) {
            cluster.tell(Notice {
                pod,
                kind,
                service: service.to_string(),
                reasons: reasons.to_vec(),
                at: now,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::config::Config;
    use crate::kubernetes::directory::{self, Contact, Directory, Wish};
    use crate::kubernetes::names::Name;
    use crate::kubernetes::{ContainerId, PodUid, Snapshot};

    const CONTAINER: &str = "aa11";

    const UID: &str = "6f0f2e2a-0b5e-4a57-9d6e-1f6b0e0f7a11";

    fn told() -> Pod {
        Pod::Told {
            uid: UID.to_owned(),
            container: Some(CONTAINER.to_owned()),
        }
    }

    fn snapshot(contact: Contact, wish: Wish) -> Snapshot {
        let mut pods = Directory::default();
        let pod = directory::Pod {
            namespace: Name::label("post").unwrap(),
            name: Name::subdomain("mail-0").unwrap(),
            containers: [(
                ContainerId::parse(CONTAINER).unwrap(),
                Name::label("postfix").unwrap(),
            )]
            .into(),
            wish,
        };
        pods.apply(PodUid::parse(UID).unwrap(), pod);
        Snapshot {
            contact,
            pods: pods.into(),
        }
    }

    fn that_says(snapshot: Snapshot) -> (Kubernetes, tokio::sync::mpsc::Receiver<Notice>) {
        Kubernetes::that_says(Config::default().kubernetes, snapshot)
    }

    fn service() -> ServiceId {
        ServiceId {
            name: "smtp".into(),
            kind: "inet".into(),
        }
    }

    #[test]
    fn an_instance_in_no_pod_is_nobody_s_business() {
        let (cluster, mut told) = that_says(Snapshot::none("nobody there"));
        let mut pods = Pods::new(Some(cluster));
        let now = clock::now();
        assert_eq!(pods.ask("/etc/postfix", &Pod::None, now.mono), PodMode::Enforce);
        assert_eq!(pods.permits("/etc/postfix"), Ok(()));
        assert_eq!(pods.pod("/etc/postfix"), None);
        pods.refusal("/etc/postfix", &service(), &["a".into()], now);
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn where_the_cluster_is_not_asked_nothing_is_forbidden() {
        let mut pods = Pods::new(None);
        let now = clock::now().mono;
        for pod in [told(), Pod::Untold] {
            assert_eq!(pods.ask("a", &pod, now), PodMode::Enforce);
        }
        assert_eq!((pods.permits("a"), pods.report(now)), (Ok(()), None));
    }

    #[test]
    fn a_kubelet_s_container_whose_pod_is_not_told_is_observed_whatever_the_cluster_wants() {
        let (cluster, _told) = that_says(snapshot(Contact::Live, Wish::of(Some("enforce"))));
        let mut pods = Pods::new(Some(cluster));
        assert_eq!(pods.ask("a", &Pod::Untold, clock::now().mono), PodMode::Observe);
        let why = pods.permits("a").unwrap_err();
        assert!(why.contains("observe") && why.contains("names no pod"), "{why}");
        assert_eq!(pods.pod("a").unwrap().name, None);
    }

    #[test]
    fn the_annotation_permits_and_forbids_and_says_why() {
        let now = clock::now().mono;
        for (wish, permitted) in [("enforce", true), ("observe", false), ("off", false)] {
            let (cluster, _told) = that_says(snapshot(Contact::Live, Wish::of(Some(wish))));
            let mut pods = Pods::new(Some(cluster));
            assert_eq!(pods.ask("a", &told(), now).to_string(), wish);
            let permits = pods.permits("a");
            assert_eq!(permits.is_ok(), permitted, "{permits:?}");
            if let Err(why) = permits {
                assert!(why.contains(wish) && why.contains("annotation"), "{why}");
            }
        }
    }

    #[test]
    fn a_name_outlives_the_api_and_a_mode_does_not() {
        let lost = |since| Contact::Lost {
            since,
            reason: "gone".into(),
        };
        let now = clock::now().mono;
        let keep = Config::default().kubernetes.keep;
        let (cluster, _told) = that_says(snapshot(lost(now), Wish::of(Some("enforce"))));
        let mut pods = Pods::new(Some(cluster));
        assert_eq!(pods.ask("a", &told(), now), PodMode::Enforce);
        let later = now + keep + keep;
        assert_eq!(pods.ask("a", &told(), later), PodMode::Observe);
        assert_eq!(pods.name("a").as_deref(), Some("post/mail-0/postfix"));
        assert_eq!(pods.forget(|_| true), ["a"]);
        assert_eq!(pods.name("a"), None);
    }

    #[test]
    fn a_trip_and_a_clear_are_news_and_what_is_between_them_is_not() {
        use State::{Normal, Recovering, Stressed};
        let (cluster, mut notices) = that_says(snapshot(Contact::Live, Wish::of(Some("enforce"))));
        let mut pods = Pods::new(Some(cluster));
        let now = clock::now();
        pods.ask("a", &told(), now.mono);
        for (from, to) in [
            (Normal, Stressed),
            (Stressed, Recovering),
            (Recovering, Stressed),
            (Stressed, Recovering),
            (Recovering, Normal),
        ] {
            let reasons = vec![format!("{from} -> {to}")];
            pods.transition("a", &service(), &Transition { from, to, reasons }, now);
        }
        pods.refusal("a", &service(), &["the file is read-only".into()], now);
        let kinds: Vec<_> = std::iter::from_fn(|| notices.try_recv().ok())
            .map(|notice| (notice.kind, notice.pod.to_string()))
            .collect();
        let name = || "post/mail-0/postfix".to_owned();
        assert_eq!(
            kinds,
            [
                (Kind::Trip, name()),
                (Kind::Clear, name()),
                (Kind::Refusal, name())
            ]
        );
    }
}
