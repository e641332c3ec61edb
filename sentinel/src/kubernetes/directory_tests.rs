use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::clock;
use crate::config::Config;

fn uid(n: usize) -> PodUid {
    PodUid::parse(&format!("pod-{n}")).unwrap()
}

fn container(n: usize) -> ContainerId {
    ContainerId::parse(&format!("{n:064x}")).unwrap()
}

fn place(pod: usize, of: usize) -> Place {
    Place {
        uid: uid(pod),
        container: Some(container(of)),
    }
}

fn pod(n: usize, wish: Wish) -> Pod {
    Pod {
        namespace: Name::label("post").unwrap(),
        name: Name::subdomain(&format!("mail-{n}")).unwrap(),
        containers: BTreeMap::from([(container(n), Name::label("postfix").unwrap())]),
        wish,
    }
}

fn snapshot(contact: Contact, pods: impl IntoIterator<Item = (PodUid, Pod)>) -> Snapshot {
    let mut directory = Directory::default();
    for (uid, pod) in pods {
        directory.apply(uid, pod);
    }
    Snapshot {
        contact,
        pods: Arc::new(directory),
    }
}

fn policy() -> config::Kubernetes {
    Config::default().kubernetes
}

#[test]
fn the_annotation_decides_and_else_the_default() {
    let now = clock::now().mono;
    for (annotation, default_mode, mode) in [
        (Some("enforce"), PodMode::Off, PodMode::Enforce),
        (Some("off"), PodMode::Enforce, PodMode::Off),
        (Some("observe"), PodMode::Enforce, PodMode::Observe),
        (None, PodMode::Enforce, PodMode::Enforce),
        (None, PodMode::Off, PodMode::Off),
        // What was meant is not known: neither acted on nor out of sight.
        (Some("Enforce"), PodMode::Enforce, PodMode::Observe),
        (Some(""), PodMode::Off, PodMode::Observe),
    ] {
        let policy = config::Kubernetes {
            default_mode,
            ..policy()
        };
        let known = snapshot(Contact::Live, [(uid(1), pod(1, Wish::of(annotation)))]);
        let answer = known.ask(&place(1, 1), &policy, now);
        assert_eq!(answer.mode, mode, "{annotation:?} {default_mode}");
    }
}

#[test]
fn a_pod_that_is_not_known_is_never_acted_on() {
    let now = clock::now().mono;
    let known = snapshot(Contact::Live, []);
    for (default_mode, mode) in [(PodMode::Enforce, PodMode::Observe), (PodMode::Off, PodMode::Off)] {
        let policy = config::Kubernetes {
            default_mode,
            ..policy()
        };
        let answer = known.ask(&place(1, 1), &policy, now);
        assert_eq!((answer.mode, answer.named), (mode, None));
    }
}

#[test]
fn a_container_is_named_once_the_api_knows_it_and_finds_a_static_pod() {
    let now = clock::now().mono;
    let known = snapshot(Contact::Live, [(uid(1), pod(1, Wish::None))]);
    let name = |pod, container| known.ask(&place(pod, container), &policy(), now).named;
    assert_eq!(name(1, 1).unwrap().container, Name::label("postfix"));
    assert_eq!(name(1, 2).unwrap().container, None);
    // The cgroup of a static pod has a uid of the kubelet's, and so must the Event.
    let of_static_pod = name(7, 1).unwrap();
    assert_eq!(
        (of_static_pod.uid, of_static_pod.pod.as_str()),
        (uid(7), "mail-1")
    );
}

#[test]
fn a_directory_that_is_full_says_so_and_takes_in_what_it_knows() {
    let mut directory = Directory::default();
    for n in 0..PODS_MAX + 2 {
        directory.apply(uid(n), pod(n, Wish::None));
    }
    assert_eq!((directory.len(), directory.refused()), (PODS_MAX, 2));
    assert!(directory.apply(uid(0), pod(0, Wish::Mode(PodMode::Enforce))));
    assert_eq!(directory.get(&uid(0)).unwrap().wish, Wish::Mode(PodMode::Enforce));
    assert!(
        !directory.apply(uid(0), pod(0, Wish::Mode(PodMode::Enforce))),
        "nothing new"
    );
}

proptest! {
    /// The last answers count for `keep` and not a moment longer, and what counts then is `without_api` alone.
    #[test]
    fn answers_go_stale(keep in 60..86400_u64, age in 0..200_000_u64, enforce: bool) {
        let now = clock::now().mono + Duration::from_secs(1_000_000);
        let without_api = if enforce { PodMode::Enforce } else { PodMode::Off };
        let policy = config::Kubernetes { keep: Duration::from_secs(keep), without_api, ..policy() };
        let since = now - Duration::from_secs(age);
        let lost = Contact::Lost { since, reason: "gone".into() };
        let known = snapshot(lost, [(uid(1), pod(1, Wish::Mode(PodMode::Observe)))]);
        let answer = known.ask(&place(1, 1), &policy, now);
        if age <= keep {
            prop_assert_eq!(answer.mode, PodMode::Observe);
            prop_assert!(answer.named.is_some());
        } else {
            prop_assert_eq!(answer.mode, without_api);
            prop_assert!(answer.named.is_none() && answer.why.contains("gone"));
        }
        let never = Snapshot::none("nobody there").ask(&place(1, 1), &policy, now);
        prop_assert_eq!(never.mode, without_api);
    }
}
