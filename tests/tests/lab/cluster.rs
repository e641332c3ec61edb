//! One node of a cluster: the daemon's image as the DaemonSet says it, a Postfix in a pod's cgroup, and an API server that
//! speaks with the daemon as a real one does. What a pod's annotation says is done, and what is done is told by the pod's name.

use std::time::Duration;

use sentinel_cluster::Expiry;
use sentinel_lab::attackers::{Arrival, Attack};
use sentinel_lab::clock::wait_until;
use sentinel_lab::pods::cluster::Cluster;
use sentinel_lab::pods::node::Node;
use sentinel_lab::pods::pod::Pod;
use sentinel_lab::pods::sentinel::{Plan, Sentinel};
use sentinel_lab::senders::Traffic;
use smtp_sentinel::controller::State;
use smtp_sentinel::status::{Instance, KubernetesState};

const PATIENCE: Duration = Duration::from_secs(90);

const NAMESPACE: &str = "post";
const UID: &str = "6f0f2e2a-0b5e-4a57-9d6e-1f6b0e0f7a11";

/// As history has the container.
const NAME: &str = "post/mail-0/postfix";

/// All that the course needs at hand.
struct Scene<'a> {
    cluster: Cluster,
    pod: Pod<'a>,
    sentinel: Sentinel<'a>,
    original: Vec<u8>,
}

impl Scene<'_> {
    fn annotate(&self, mode: Option<&str>) {
        self.cluster.put(&self.pod, NAMESPACE, UID, mode).unwrap();
    }

    fn wait(&self, what: &str, wanted: impl Fn(&Instance) -> bool) -> Instance {
        self.sentinel
            .wait(&self.pod, what, wanted)
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn wait_mode(&self, mode: &str, by: &str) -> Instance {
        self.wait(&format!("to be of mode {mode} by {by}"), |one| {
            one.pod
                .as_ref()
                .is_some_and(|pod| pod.mode == mode && pod.reason.contains(by))
        })
    }

    fn wait_state(&self, state: State) -> Instance {
        self.wait(&format!("to be {state}"), |one| {
            one.services
                .iter()
                .any(|service| service.label() == "smtp/inet" && service.state == state)
        })
    }

    fn wait_api(&self, state: KubernetesState) -> String {
        let mut reason = String::new();
        self.until(&format!("the API to be {state:?}"), || {
            let report = self.sentinel.status().unwrap().kubernetes.unwrap();
            reason = report.reason;
            report.state == state
        });
        reason
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        wait_until(what, PATIENCE, || Ok(holds()))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.sentinel.log()));
    }

    /// Byte for byte, and the master was told so for the `nth` time.
    fn wait_given_back(&self, reloads: usize) {
        self.until("master.cf to be as it was", || {
            self.pod.master_cf().is_ok_and(|bytes| bytes == self.original)
        });
        self.until(&format!("reload {reloads}"), || self.pod.reloads() == reloads);
    }

    /// The Events on the pod with this reason.
    fn events(&self, reason: &str) -> Vec<serde_json::Value> {
        let events = self.cluster.server.events().into_iter();
        events.filter(|event| event["reason"] == reason).collect()
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.sentinel.metrics().unwrap().sum(name, labels)
    }
}

#[test]
fn what_a_pod_s_annotation_says_is_done_and_told_by_the_pod_s_name() {
    let node = Node::start().unwrap_or_else(|error| panic!("no containers here: {error:#}"));
    let cluster = Cluster::new(&node).unwrap();
    let plan = Plan::read(&node).unwrap().in_cluster(&cluster);
    let pod = Pod::start_in_pod(&node, "mail-0", UID).unwrap_or_else(|error| panic!("{error:#}"));
    let original = pod.master_cf().unwrap();
    let mut scene = Scene {
        sentinel: plan.start(&[]).unwrap_or_else(|error| panic!("{error:#}")),
        cluster,
        pod,
        original,
    };

    // There is no API yet: it says so, and no pod may be acted on (`without_api`).
    let instance = scene.wait_mode("observe", "kubernetes.without_api");
    assert!(!instance.actionable);
    assert_eq!(instance.container.unwrap().pod_uid.as_deref(), Some(UID));
    let reason = scene.wait_api(KubernetesState::Unavailable);
    assert!(reason.contains("without_api"), "{reason}");

    // It is there, and knows the pod, which asks for nothing.
    scene.annotate(None);
    scene.cluster.open(&scene.sentinel).unwrap();
    let instance = scene.wait_mode("observe", "no annotation");
    let named = instance.pod.unwrap();
    let names = [named.namespace, named.name, named.container].map(Option::unwrap_or_default);
    assert_eq!(names.join("/"), NAME);
    scene.wait_api(KubernetesState::Ok);

    // The annotation comes over the watch that is open.
    let asked = scene.cluster.server.requests("list").len();
    scene.annotate(Some("enforce"));
    assert!(scene.wait_mode("enforce", "annotation").services.len() == 1);
    scene.wait("to be acted on", |one| one.actionable);
    assert_eq!(scene.cluster.server.requests("list").len(), asked);

    let _senders = scene.pod.senders(Traffic::new(2.0)).unwrap();
    // Enough to trip, and not so many that master's own stress mode goes on.
    let attackers = scene
        .pod
        .attack(Attack::silent(Arrival::Evenly {
            count: 22,
            within: Duration::from_secs(3),
        }))
        .unwrap();
    scene.wait_state(State::Stressed);
    assert_ne!(scene.pod.master_cf().unwrap(), scene.original);
    scene.until("the first reload", || scene.pod.reloads() == 1);
    assert_told_by_name(&scene);

    // In its midst: what the watch would go on from is forgotten (410), so it lists anew and goes on.
    scene.cluster.server.compact(Expiry::Event);
    scene.until("another list", || {
        scene.cluster.server.requests("list").len() > asked
    });
    scene.wait_state(State::Stressed);
    scene.annotate(Some("observe"));
    scene.wait_mode("observe", "annotation");
    scene.wait_given_back(2);
    scene.wait_state(State::Normal);
    scene.until("the end to be told", || !scene.events("PressureGone").is_empty());

    // Neither watched nor named; and then as before, with the attackers still there.
    scene.annotate(Some("off"));
    let id = scene.pod.short_id().unwrap();
    scene.until("it to be watched no longer", || {
        let instances = scene.sentinel.status().unwrap().instances;
        instances.iter().all(|one| !one.id.contains(&id))
    });
    assert_eq!(scene.metric("smtp_sentinel_pod_info", &[("pod", "mail-0")]), None);
    scene.annotate(Some("enforce"));
    scene.wait_state(State::Stressed);
    scene.until("reload 3", || scene.pod.reloads() == 3);

    // The API goes away: what it said before counts, and that is said.
    scene.cluster.server.leave();
    let reason = scene.wait_api(KubernetesState::Stale);
    assert!(reason.contains("still counts"), "{reason}");
    assert_eq!(scene.metric("smtp_sentinel_kubernetes_up", &[]), Some(0.0));
    assert!(scene.wait_mode("enforce", "annotation").actionable);
    assert_ne!(scene.pod.master_cf().unwrap(), scene.original);
    scene.cluster.open(&scene.sentinel).unwrap();
    scene.wait_api(KubernetesState::Ok);

    // Off in the midst, while its file cannot be replaced: it is held until what is ours is out.
    scene.pod.cover_master_cf().unwrap();
    scene.wait("to be seen as mounted over", |one| {
        one.reason.contains("mount of its own")
    });
    scene.annotate(Some("off"));
    scene.until("an attempt to fail", || {
        let history = scene.sentinel.history().unwrap();
        history
            .iter()
            .any(|entry| entry.outcome.as_deref() == Some("failed"))
    });
    scene.wait_mode("off", "annotation");
    scene.wait_state(State::Stressed);
    scene.pod.uncover_master_cf().unwrap();
    scene.wait_given_back(4);
    scene.until("it to be watched no longer", || {
        let instances = scene.sentinel.status().unwrap().instances;
        instances.iter().all(|one| !one.id.contains(&id))
    });
    attackers.stop().unwrap();

    assert!(scene.cluster.server.requests("other").is_empty());
    scene.sentinel.terminate().unwrap();
    assert_eq!(scene.pod.master_cf().unwrap(), scene.original);
    assert_eq!(scene.pod.reloads(), 4);
}

/// The trip, by its pod: in an Event, in history, in status and in the metrics.
fn assert_told_by_name(scene: &Scene<'_>) {
    scene.until("the trip to be told", || !scene.events("SlotsRunOut").is_empty());
    let events = scene.events("SlotsRunOut");
    let regarding = &events[0]["regarding"];
    assert_eq!(
        (&regarding["kind"], &regarding["namespace"], &regarding["name"]),
        (&"Pod".into(), &NAMESPACE.into(), &"mail-0".into())
    );
    assert_eq!(
        (&regarding["uid"], &regarding["fieldPath"]),
        (&UID.into(), &"spec.containers{postfix}".into())
    );
    let history = scene.sentinel.history().unwrap();
    let trip = history.iter().find(|entry| entry.is_transition_to("stressed"));
    assert!(trip.is_some_and(|entry| entry.tells(NAME)), "{history:#?}");
    let status = scene.sentinel.ask(&["status"]).unwrap().stdout;
    assert!(status.contains(&format!("pod {NAME}, mode enforce")), "{status}");
    let labels = [
        ("namespace", NAMESPACE),
        ("pod", "mail-0"),
        ("container", "postfix"),
        ("mode", "enforce"),
    ];
    assert_eq!(scene.metric("smtp_sentinel_pod_info", &labels), Some(1.0));
}
