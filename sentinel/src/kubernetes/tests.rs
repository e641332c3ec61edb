//! The client against a local API server that speaks the real JSON over HTTPS.

use std::time::Duration;

use sentinel_cluster::{ApiServer, Cut, Expiry, NODE};
use serde_json::{Value, json};

use super::client::Timing;
use super::names::Name;
use super::notice::{Kind, Notice};
use super::{Answer, Connection, ContainerId, Kubernetes, Place, PodName, PodUid, directory};
use crate::clock;
use crate::config::{self, Config, PodMode};
use crate::status::KubernetesState;

/// Patience with a busy machine: never waited for unless something is wrong.
const DEADLINE: Duration = Duration::from_secs(60);

/// As in earnest, but for the pauses.
fn timing() -> Timing {
    Timing {
        pause: Duration::from_millis(5),
        longest_pause: Duration::from_millis(80),
        ..Timing::default()
    }
}

fn policy() -> config::Kubernetes {
    config::Kubernetes {
        enabled: true,
        ..Config::default().kubernetes
    }
}

fn connection(server: &ApiServer) -> Connection {
    Connection {
        server: server.address(),
        account: server.account().to_owned(),
        node: Name::subdomain(NODE).unwrap(),
    }
}

fn connect(server: &ApiServer) -> Kubernetes {
    Kubernetes::connect(policy(), connection(server), timing(), clock::now)
}

fn uid(n: u32) -> String {
    format!("6f0f2e2a-0b5e-4a57-9d6e-{n:012x}")
}

fn pod(n: u32, mode: Option<&str>) -> Value {
    let mut pod = json!({
        "metadata": {"name": format!("mail-{n}"), "namespace": "post", "uid": uid(n), "annotations": {"other": "x"}},
        "spec": {"nodeName": NODE, "containers": [{"name": "postfix"}]},
        "status": {"phase": "Running", "containerStatuses": [
            {"name": "postfix", "containerID": format!("containerd://{n:064x}")}]},
    });
    if let Some(mode) = mode {
        pod["metadata"]["annotations"]["smtp-sentinel.io/mode"] = json!(mode);
    }
    pod
}

fn ask(kubernetes: &Kubernetes, n: u32) -> Answer {
    let place = Place {
        uid: PodUid::parse(&uid(n)).unwrap(),
        container: ContainerId::parse(&format!("{n:064x}")),
    };
    kubernetes.ask(&place, clock::now().mono)
}

/// `namespace/pod/container mode`, as far as known.
fn told(kubernetes: &Kubernetes, n: u32) -> String {
    let answer = ask(kubernetes, n);
    let name = answer.named.map_or("?".to_owned(), |name| {
        let container = name.container.as_ref().map_or("?", Name::as_str);
        format!("{}/{}/{container}", name.namespace, name.pod)
    });
    format!("{name} {}", answer.mode)
}

fn state(kubernetes: &Kubernetes) -> KubernetesState {
    kubernetes.report(clock::now().mono).state
}

fn reason(kubernetes: &Kubernetes) -> String {
    kubernetes.report(clock::now().mono).reason
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = clock::now().mono;
    while !holds() {
        assert!(clock::now().mono - began < DEADLINE, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn pods_of_this_node_are_known_by_name_and_mode_and_followed() {
    let server = ApiServer::start();
    server.put(pod(1, Some("enforce")));
    server.put(pod(2, None));
    let mut elsewhere = pod(3, Some("enforce"));
    elsewhere["spec"]["nodeName"] = json!("worker-2");
    server.put(elsewhere);
    let mut over = pod(4, Some("enforce"));
    over["status"]["phase"] = json!("Succeeded");
    server.put(over);
    let kubernetes = connect(&server);
    eventually("the list has come", || state(&kubernetes) == KubernetesState::Ok);
    assert_eq!(told(&kubernetes, 1), "post/mail-1/postfix enforce");
    assert_eq!(told(&kubernetes, 2), "post/mail-2/postfix observe");
    assert_eq!(told(&kubernetes, 3), "? observe");
    assert_eq!(kubernetes.report(clock::now().mono).pods, 2);

    server.put(pod(1, Some("off")));
    server.put(pod(5, Some("observe")));
    server.delete(&uid(2));
    eventually("the deletion has come", || told(&kubernetes, 2) == "? observe");
    assert_eq!(told(&kubernetes, 1), "post/mail-1/postfix off");
    assert_eq!(told(&kubernetes, 5), "post/mail-5/postfix observe");
    // One list, from the server's cache, and one watch: nothing is asked again and again.
    let lists = server.requests("list");
    assert_eq!(lists.len(), 1, "{lists:?}");
    assert!(lists[0].contains("resourceVersion=0"), "{lists:?}");
    assert!(lists[0].contains("spec.nodeName%3Dworker-1%2C"), "{lists:?}");
    assert_eq!(server.requests("watch").len(), 1);
    assert!(server.requests("other").is_empty());
}

/// The image has no certificates of a system, and needs none: the service account's are the ones that count.
#[test]
fn where_the_system_has_no_certificates_the_cluster_is_spoken_with_all_the_same() {
    let test = "kubernetes::tests::pods_of_this_node_are_known_by_name_and_mode_and_followed";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        // As an empty root: the client would look nowhere else.
        .env("SSL_CERT_FILE", "/dev/null")
        .env("SSL_CERT_DIR", "/dev/null")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn a_watch_that_ends_is_taken_up_where_the_last_bookmark_left_it() {
    for how in [Cut::Clean, Cut::Broken] {
        let server = ApiServer::start();
        server.put(pod(1, None));
        let kubernetes = connect(&server);
        eventually("it watches", || server.requests("watch").len() == 1);
        let version = server.bookmark();
        // Sent after the bookmark, and so seen after it.
        server.put(pod(1, Some("off")));
        eventually("the change has come", || told(&kubernetes, 1).ends_with("off"));
        let version = version + 1;
        server.cut(how);
        eventually("it watches again", || server.requests("watch").len() > 1);
        server.put(pod(1, Some("enforce")));
        eventually("the next change has come", || {
            told(&kubernetes, 1).ends_with("enforce")
        });
        let again = server.requests("watch").pop().unwrap();
        assert!(again.contains(&format!("resourceVersion={version}")), "{again}");
        assert!(again.contains("allowWatchBookmarks=true"), "{again}");
        assert_eq!(
            server.requests("list").len(),
            1,
            "nothing was lost, so nothing is listed again"
        );
    }
}

#[test]
fn a_quiet_watch_lives_on_its_bookmarks() {
    let server = ApiServer::start();
    server.put(pod(1, None));
    let kubernetes = connect(&server);
    eventually("it watches", || server.requests("watch").len() == 1);
    let version = server.bookmark();
    server.cut(Cut::Clean);
    eventually("it watches from the bookmark", || {
        let wanted = format!("resourceVersion={version}");
        server
            .requests("watch")
            .iter()
            .any(|query| query.contains(&wanted))
    });
    assert_eq!(state(&kubernetes), KubernetesState::Ok);
}

#[test]
fn what_has_expired_is_listed_again() {
    for how in [Expiry::Event, Expiry::Status] {
        let server = ApiServer::start();
        server.put(pod(1, None));
        server.put(pod(2, None));
        let kubernetes = connect(&server);
        eventually("it watches", || server.requests("watch").len() == 1);
        server.outage(Some(503));
        eventually("that is seen", || state(&kubernetes) == KubernetesState::Stale);
        server.put(pod(1, Some("enforce")));
        server.delete(&uid(2));
        server.compact(how);
        server.outage(None);
        eventually("what was missed has come", || {
            told(&kubernetes, 1).ends_with("enforce")
        });
        assert_eq!(told(&kubernetes, 2), "? observe");
        assert_eq!(server.requests("list").len(), 2);
        eventually("it is well again", || state(&kubernetes) == KubernetesState::Ok);
        server.put(pod(3, Some("off")));
        eventually("it watches from the new list", || {
            told(&kubernetes, 3).ends_with("off")
        });
    }
}

#[test]
fn answers_outlive_the_api_and_freshness_comes_back_without_a_change() {
    let server = ApiServer::start();
    server.put(pod(1, Some("enforce")));
    let kubernetes = connect(&server);
    eventually("the list has come", || state(&kubernetes) == KubernetesState::Ok);
    server.outage(Some(500));
    eventually("that is seen", || state(&kubernetes) == KubernetesState::Stale);
    assert!(reason(&kubernetes).contains("500"), "{}", reason(&kubernetes));
    assert_eq!(told(&kubernetes, 1), "post/mail-1/postfix enforce");
    let much_later = clock::now().mono + policy().keep + Duration::from_secs(3600);
    assert_eq!(kubernetes.report(much_later).state, KubernetesState::Unavailable);
    server.outage(None);
    eventually("it is well again", || state(&kubernetes) == KubernetesState::Ok);
    assert_eq!(server.requests("list").len(), 1);
}

#[test]
fn without_the_right_to_list_it_says_so_and_goes_on_asking() {
    let server = ApiServer::start();
    server.put(pod(1, Some("enforce")));
    server.outage(Some(403));
    let kubernetes = Kubernetes::connect(
        config::Kubernetes {
            without_api: PodMode::Off,
            ..policy()
        },
        connection(&server),
        timing(),
        clock::now,
    );
    eventually("the refusal has come", || reason(&kubernetes).contains("403"));
    assert_eq!(state(&kubernetes), KubernetesState::Unavailable);
    assert!(
        reason(&kubernetes).contains("give the service account"),
        "{}",
        reason(&kubernetes)
    );
    assert_eq!(told(&kubernetes, 1), "? off");
    server.outage(None);
    eventually("the right has come", || told(&kubernetes, 1).ends_with("enforce"));
}

#[test]
fn a_wrong_token_a_wrong_certificate_and_a_missing_account_are_told_apart() {
    let server = ApiServer::start();
    server.set_token("somebody else's");
    let kubernetes = connect(&server);
    eventually("the refusal has come", || {
        reason(&kubernetes).contains("token of the service account")
    });

    let mut foreign = connection(&server);
    foreign.account = server.foreign_account();
    let kubernetes = Kubernetes::connect(policy(), foreign, timing(), clock::now);
    eventually("the certificate is refused", || {
        reason(&kubernetes).contains("certificate")
    });

    let mut none = connection(&server);
    none.account = server.account().join("not mounted");
    let kubernetes = Kubernetes::connect(policy(), none, timing(), clock::now);
    eventually("the account is missed", || {
        reason(&kubernetes).contains("automountServiceAccountToken")
    });
}

#[test]
fn a_server_that_closes_every_watch_is_not_asked_without_a_pause() {
    let server = ApiServer::start();
    server.put(pod(1, None));
    let kubernetes = connect(&server);
    eventually("it watches", || server.requests("watch").len() == 1);
    server.close_at_once();
    let (began, before) = (clock::now().mono, server.requests("watch").len());
    eventually("twelve more watches", || {
        server.requests("watch").len() >= before + 12
    });
    // Half of 5, 10, 20, 40 and then 80 ms each, of which the first few may have passed before.
    let least = Duration::from_millis(7 * 40);
    assert!(
        clock::now().mono - began >= least,
        "twelve watches within {:?}",
        clock::now().mono - began
    );
    assert_eq!(state(&kubernetes), KubernetesState::Ok, "it does answer");
}

#[test]
fn a_list_that_would_fill_the_memory_is_refused() {
    let server = ApiServer::start();
    for n in 0..20 {
        let mut big = pod(n, None);
        big["metadata"]["annotations"]["hostile"] = json!("x".repeat(1 << 20));
        server.put(big);
    }
    let kubernetes = connect(&server);
    eventually("it is given up", || {
        reason(&kubernetes).contains("length limit exceeded")
    });
    assert_eq!(told(&kubernetes, 1), "? observe");
}

#[test]
fn more_pods_than_a_node_can_have_are_refused_and_that_is_said() {
    let server = ApiServer::start();
    let most = u32::try_from(directory::PODS_MAX).unwrap();
    for n in 0..most + 3 {
        server.put(pod(n, None));
    }
    let kubernetes = connect(&server);
    eventually("the list has come", || state(&kubernetes) == KubernetesState::Ok);
    assert_eq!(kubernetes.report(clock::now().mono).pods, most);
    assert!(
        reason(&kubernetes).contains("3 are not known"),
        "{}",
        reason(&kubernetes)
    );
}

fn notice(n: u32, kind: Kind, reason: &str) -> Notice {
    Notice {
        pod: PodName {
            uid: PodUid::parse(&uid(n)).unwrap(),
            namespace: Name::label("post").unwrap(),
            pod: Name::subdomain(&format!("mail-{n}")).unwrap(),
            container: Name::label("postfix"),
        },
        kind,
        service: "smtp/inet".into(),
        reasons: vec![reason.into()],
        at: clock::now(),
    }
}

#[test]
fn a_trip_and_a_clear_become_events_on_the_pod() {
    let server = ApiServer::start();
    let kubernetes = connect(&server);
    kubernetes.tell(notice(1, Kind::Trip, "93 of 100 slots\u{1b}[2J are busy"));
    kubernetes.tell(notice(1, Kind::Trip, "94 of 100 slots are busy"));
    kubernetes.tell(notice(1, Kind::Clear, "12 of 100 slots are busy"));
    kubernetes.tell(notice(2, Kind::Refusal, &"é".repeat(3000)));
    let counts = || kubernetes.report(clock::now().mono).events;
    eventually("three have come", || counts().created == 3);
    let events = server.events();
    let of = |n: usize, field: &str| events[n][field].as_str().unwrap_or_default().to_owned();
    assert_eq!(
        (of(0, "type"), of(0, "reason")),
        ("Warning".into(), "SlotsRunOut".into())
    );
    assert_eq!(
        of(0, "note"),
        "smtp/inet: stress mode on: 93 of 100 slots\\u{1b}[2J are busy"
    );
    assert_eq!(
        (of(1, "type"), of(1, "reason")),
        ("Normal".into(), "PressureGone".into())
    );
    assert_eq!(of(2, "reason"), "StressModeRefused");
    assert_eq!(
        events[0]["regarding"],
        json!({"apiVersion": "v1", "kind": "Pod", "namespace": "post", "name": "mail-1", "uid": uid(1),
            "fieldPath": "spec.containers{postfix}"})
    );
    assert_eq!((counts().suppressed, counts().failed), (1, 0));
}

#[test]
fn an_event_is_tried_again_and_never_made_twice() {
    let server = ApiServer::start();
    server.refuse("create", &[503, 429]);
    let kubernetes = connect(&server);
    kubernetes.tell(notice(1, Kind::Trip, "a"));
    eventually("it has come", || {
        kubernetes.report(clock::now().mono).events.created == 1
    });
    assert_eq!(server.requests("create").len(), 3);
    server.refuse("create", &[403, 503, 503, 503]);
    kubernetes.tell(notice(2, Kind::Trip, "a"));
    kubernetes.tell(notice(3, Kind::Trip, "a"));
    eventually("both are given up", || {
        kubernetes.report(clock::now().mono).events.failed == 2
    });
    assert_eq!(
        server.requests("create").len(),
        3 + 1 + 3,
        "a refusal is not tried again"
    );
    assert_eq!(server.events().len(), 1);
}

#[test]
fn a_stalled_server_costs_the_tick_nothing_but_events() {
    let server = ApiServer::start();
    let timing = Timing {
        answer: 2 * DEADLINE,
        ..timing()
    };
    let kubernetes = Kubernetes::connect(policy(), connection(&server), timing, clock::now);
    eventually("it is well", || state(&kubernetes) == KubernetesState::Ok);
    server.stall(true);
    for n in 0..200 {
        kubernetes.tell(notice(n, Kind::Trip, "a"));
    }
    // One is under way, or on its way into that; the queue holds 64.
    let dropped = kubernetes.report(clock::now().mono).events.dropped;
    assert!((200 - 66..=200 - 64).contains(&dropped), "{dropped}");
    // It ends after its last words, for which this server has no ear.
    let (began, patience) = (clock::now().mono, timing.answer);
    drop(kubernetes);
    assert!(clock::now().mono - began < patience, "it waited for the server");
}

#[test]
fn what_was_told_before_the_end_is_still_told() {
    let server = ApiServer::start();
    let timing = Timing {
        last_words: 2 * DEADLINE,
        ..timing()
    };
    let kubernetes = Kubernetes::connect(policy(), connection(&server), timing, clock::now);
    eventually("it is well", || state(&kubernetes) == KubernetesState::Ok);
    kubernetes.tell(notice(1, Kind::Clear, "the daemon stops"));
    let began = clock::now().mono;
    drop(kubernetes);
    assert_eq!(server.events().len(), 1);
    assert!(
        clock::now().mono - began < DEADLINE,
        "it waited with nothing left to say"
    );
}

#[test]
fn an_unknown_mode_is_observed_and_told_once() {
    let server = ApiServer::start();
    server.put(pod(1, Some("on")));
    server.put(pod(2, Some("enforce")));
    let kubernetes = connect(&server);
    eventually("the list has come", || {
        told(&kubernetes, 1) == "post/mail-1/postfix observe"
    });
    assert!(ask(&kubernetes, 1).why.contains("unknown value \"on\""));
    eventually("it was told", || server.events().len() == 1);
    server.put(pod(1, Some("yes")));
    server.compact(Expiry::Event);
    server.cut(Cut::Clean);
    eventually("it was listed again", || server.requests("list").len() == 2);
    // A notice behind it in the queue: when that has come, another one would have.
    server.put(pod(3, Some("nonsense")));
    eventually("the next one was told", || server.events().len() >= 2);
    let about: Vec<_> = server
        .events()
        .iter()
        .map(|event| event["regarding"]["name"].clone())
        .collect();
    assert_eq!(about, ["mail-1", "mail-3"]);
    assert_eq!(server.events()[0]["reason"], "UnknownMode");
}

#[test]
fn without_events_nothing_is_created() {
    let server = ApiServer::start();
    server.put(pod(1, Some("on")));
    let silent = config::Kubernetes {
        events: false,
        ..policy()
    };
    let kubernetes = Kubernetes::connect(silent, connection(&server), timing(), clock::now);
    kubernetes.tell(notice(1, Kind::Trip, "a"));
    eventually("the list has come", || state(&kubernetes) == KubernetesState::Ok);
    drop(kubernetes);
    assert!(server.requests("create").is_empty());
}
