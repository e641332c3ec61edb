//! Pods, as podman and runc run them: the sentinel's image under what the DaemonSet says, and Postfix in the forms in which
//! people run it in containers.

use std::fs;

use sentinel_lab::attackers::{Attack, Attackers};
use sentinel_lab::clock::wait_until;
use sentinel_lab::pods::node::Node;
use sentinel_lab::pods::pod::{Form, Pod, SLOTS};
use sentinel_lab::pods::sentinel::{Plan, Sentinel};
use sentinel_lab::senders::Traffic;
use smtp_sentinel::controller::State;
use smtp_sentinel::privileges::{Capabilities, NEEDS};
use smtp_sentinel::status::{Instance, ProbeState};

use crate::{PATIENCE, smtp};

fn node() -> Node {
    Node::start().unwrap_or_else(|error| panic!("no containers here: {error:#}"))
}

fn start<'a>(node: &'a Node, name: &str, form: Form) -> Pod<'a> {
    Pod::start(node, name, form).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Enough to trip, and not so many that master's own stress mode goes on, with which there is nothing to toggle.
fn flood(pod: &Pod<'_>) -> Attackers {
    silent(pod, 22)
}

fn silent(pod: &Pod<'_>, count: usize) -> Attackers {
    pod.attack(Attack::flood(count)).unwrap()
}

fn wait(sentinel: &Sentinel<'_>, pod: &Pod<'_>, what: &str, wanted: impl Fn(&Instance) -> bool) -> Instance {
    sentinel
        .wait(pod, what, wanted)
        .unwrap_or_else(|error| panic!("{error:#}"))
}

fn wait_state(sentinel: &Sentinel<'_>, pod: &Pod<'_>, state: State) {
    wait(sentinel, pod, &format!("to be {state}"), |one| {
        smtp(one).is_some_and(|service| service.state == state)
    });
}

fn wait_reloads(pod: &Pod<'_>, count: usize) {
    wait_until(&format!("reload {count} of {}", pod.name), PATIENCE, || {
        Ok(pod.reloads() == count)
    })
    .unwrap();
}

/// The capabilities of a line of /proc/PID/status, and those of the DaemonSet as such a line has them.
fn bits(line: &str) -> u64 {
    u64::from_str_radix(line, 16).unwrap()
}

fn bits_of(names: &[String]) -> u64 {
    let needs = NEEDS.iter().map(|need| need.capability);
    let given: Vec<_> = needs
        .filter(|capability| {
            names
                .iter()
                .any(|name| format!("CAP_{name}") == capability.name())
        })
        .collect();
    assert_eq!(
        given.len(),
        names.len(),
        "docs/privileges.md has a line for each of {names:?}"
    );
    given
        .into_iter()
        .fold(Capabilities::NONE, Capabilities::with)
        .bits()
}

#[test]
fn a_flood_in_one_pod_is_answered_in_that_pod_and_in_no_other() {
    let node = node();
    let plan = Plan::read(&node).unwrap();
    let web = start(&node, "web-0", Form::First);
    let under_shell = start(&node, "web-1", Form::UnderShell);
    let original = web.master_cf().unwrap();
    let untouched = under_shell.master_cf().unwrap();
    let sentinel = plan.start(&[]).unwrap_or_else(|error| panic!("{error:#}"));

    // What the DaemonSet gives is what it has, and no more.
    let process = sentinel.process().unwrap();
    assert_eq!(bits(&process["CapBnd"]), bits_of(plan.capabilities()));
    assert_eq!(bits(&process["CapEff"]) & !bits(&process["CapBnd"]), 0);
    assert_eq!(
        (process["Seccomp"].as_str(), process["NoNewPrivs"].as_str()),
        ("2", "1")
    );

    for pod in [&web, &under_shell] {
        let instance = wait(&sentinel, pod, "to be found", |one| {
            one.actionable && smtp(one).is_some()
        });
        assert_eq!(instance.config_dir, "/etc/postfix");
        assert_eq!(smtp(&instance).unwrap().limit, Some(SLOTS));
    }
    let probes = sentinel.status().unwrap().probes;
    assert!(
        probes.iter().all(|probe| probe.state != ProbeState::Broken),
        "{probes:#?}"
    );
    assert!(
        probes.iter().any(|probe| probe.state == ProbeState::Ok),
        "BPF, PERFMON and NET_ADMIN are there for this: {probes:#?}"
    );

    let _senders = web.senders(Traffic::new(2.0)).unwrap();
    let attackers = flood(&web);
    wait_state(&sentinel, &web, State::Stressed);
    assert_ne!(web.master_cf().unwrap(), original);
    wait_reloads(&web, 1);
    wait_until("an smtpd with stress=yes", PATIENCE, || web.has_stressed_smtpd()).unwrap();
    wait_until("connections to be closed (SOCK_DESTROY)", PATIENCE, || {
        let closed = sentinel
            .metrics()?
            .sum("smtp_sentinel_shed_connections_total", &[]);
        Ok(closed.is_some_and(|closed| closed > 0.0))
    })
    .unwrap();
    attackers.stop().unwrap();
    wait_state(&sentinel, &web, State::Normal);
    wait_reloads(&web, 2);
    assert_eq!(web.master_cf().unwrap(), original);
    assert_eq!(under_shell.master_cf().unwrap(), untouched);
    assert_eq!(under_shell.reloads(), 0);

    // The other one: a shell is its first process, and master is none of the first.
    let _senders = under_shell.senders(Traffic::new(2.0)).unwrap();
    let _attackers = flood(&under_shell);
    wait_state(&sentinel, &under_shell, State::Stressed);
    wait_reloads(&under_shell, 1);
    let id = under_shell.short_id().unwrap();
    let history = sentinel.history().unwrap();
    assert!(
        history.iter().any(|entry| entry.is_transition_to("stressed")
            && entry
                .instance
                .as_ref()
                .is_some_and(|instance| instance.contains(&id))),
        "{history:#?}"
    );
    assert_eq!(web.reloads(), 2);
    let answer = sentinel.ask(&["status"]).unwrap();
    assert!(answer.stdout.contains("host name web-1"), "{answer:?}");

    // The end of the pod, as the kubelet has it.
    sentinel.terminate().unwrap();
    assert_eq!(under_shell.master_cf().unwrap(), untouched);
    wait_reloads(&under_shell, 2);
}

#[test]
fn a_pod_whose_container_is_made_anew_is_followed() {
    let node = node();
    let plan = Plan::read(&node).unwrap();
    let web = start(&node, "web-0", Form::First);
    let original = web.master_cf().unwrap();
    let sentinel = plan.start(&[]).unwrap_or_else(|error| panic!("{error:#}"));
    let attackers = flood(&web);
    wait_state(&sentinel, &web, State::Stressed);
    wait_reloads(&web, 1);
    attackers.stop().unwrap();
    drop(web);
    node.remove("web-0", 0).unwrap();

    let web = start(&node, "web-0", Form::First);
    assert_eq!(web.master_cf().unwrap(), original, "a fresh layer");
    let _senders = web.senders(Traffic::new(2.0)).unwrap();
    wait_state(&sentinel, &web, State::Normal);
    let attackers = flood(&web);
    wait_state(&sentinel, &web, State::Stressed);
    wait_reloads(&web, 1);
    attackers.stop().unwrap();
    wait_state(&sentinel, &web, State::Normal);
    wait_reloads(&web, 2);
    assert_eq!(web.master_cf().unwrap(), original);
}

/// Where a link in a pod points: a file of the sentinel's own, in the one directory that it can write.
const OF_THE_SENTINEL: &str = "/var/lib/smtp-sentinel/master.cf";

#[test]
fn a_pod_whose_master_cf_must_not_be_changed_is_watched_and_left_alone() {
    let node = node();
    let plan = Plan::read(&node).unwrap();
    let forms = [
        (Form::ReadOnlyRoot, "Read-only file system"),
        (Form::ConfigMap, "mount of its own"),
        (Form::File, "mount of its own"),
        (Form::FileReadOnly, "mount of its own"),
        (Form::Escape(OF_THE_SENTINEL), "link"),
    ];
    let pods: Vec<_> = forms
        .iter()
        .enumerate()
        .map(|(number, &(form, reason))| (start(&node, &format!("web-{number}"), form), form, reason))
        .collect();
    let in_user_namespace = start(&node, "mapped", Form::UserNamespace);
    let before: Vec<_> = pods
        .iter()
        .map(|(pod, ..)| (pod.mounts().unwrap(), pod.master_cf().unwrap()))
        .collect();
    let sentinel = plan.start(&[]).unwrap_or_else(|error| panic!("{error:#}"));
    // Where a careless open would end up, with what would make it go on.
    let decoy = plan.state_directory().join("master.cf");
    fs::write(&decoy, &before[0].1).unwrap();

    for (pod, form, reason) in &pods {
        let instance = wait(&sentinel, pod, "to be found", |one| {
            !one.actionable && !one.reason.is_empty()
        });
        assert!(instance.reason.contains(reason), "{form:?}: {}", instance.reason);
        let labels = [("instance", instance.id.as_str())];
        wait_until("the metric that says so", PATIENCE, || {
            Ok(sentinel.metrics()?.sum("smtp_sentinel_actionable", &labels) == Some(0.0))
        })
        .unwrap();
    }
    // The control, and the one form of these in which it can act: files of user 200000, kept as they are.
    let original = in_user_namespace.master_cf().unwrap();
    let owner = |pod: &Pod<'_>| {
        let meta = fs::metadata(pod.path("/etc/postfix/master.cf")).unwrap();
        let (uid, gid) = (
            std::os::unix::fs::MetadataExt::uid(&meta),
            std::os::unix::fs::MetadataExt::gid(&meta),
        );
        (uid, gid)
    };
    assert_eq!(owner(&in_user_namespace), (200_000, 200_000));
    let _senders = in_user_namespace.senders(Traffic::new(2.0)).unwrap();

    let floods: Vec<_> = pods
        .iter()
        .map(|(pod, ..)| pod)
        .chain([&in_user_namespace])
        .map(flood)
        .collect();
    wait_state(&sentinel, &in_user_namespace, State::Stressed);
    assert_ne!(in_user_namespace.master_cf().unwrap(), original);
    assert_eq!(owner(&in_user_namespace), (200_000, 200_000));
    wait_reloads(&in_user_namespace, 1);
    for (pod, form, _) in &pods {
        if !matches!(form, Form::Escape(_)) {
            wait(&sentinel, pod, "to be seen as hogged", |one| {
                smtp(one).is_some_and(|service| service.verdict.kind == "hogged")
            });
        }
    }
    for flood in floods {
        flood.stop().unwrap();
    }
    wait_state(&sentinel, &in_user_namespace, State::Normal);
    assert_eq!(in_user_namespace.master_cf().unwrap(), original);
    for ((pod, form, _), before) in pods.iter().zip(&before) {
        assert_eq!(
            &(pod.mounts().unwrap(), pod.master_cf().unwrap()),
            before,
            "{form:?}"
        );
        assert_eq!(pod.reloads(), 0, "{form:?}");
    }
    assert_eq!(fs::read(&decoy).unwrap(), before[0].1, "the decoy is as it was");
}

/// What is left of the work without some capabilities; docs/privileges.md and docs/kubernetes.md have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// No Postfix is found that runs as root.
    Nothing,
    /// It is found; its sockets are not seen, and it is not acted on.
    Sight,
    /// There is no probe.
    NoProbe,
    /// The greeting latency is not known.
    NoGreeting,
    /// A Postfix of another user than root is not found: the environment of its master is that user's to read.
    OfRoot,
    /// It is watched, and its master.cf is left alone since it could not be kept as it is.
    File,
    /// It is acted on, and no connection is closed.
    NothingClosed,
    /// Everything: the kernel gives root of the node the right over what root of the node has started.
    All,
}

/// CAP_SYS_ADMIN contains what BPF, PERFMON and NET_ADMIN are for where it is given, so those are tried without it too.
const LEFT: [(&[&str], Left); 10] = [
    (&["SYS_PTRACE"], Left::Nothing),
    (&["SYS_ADMIN"], Left::Sight),
    (&["BPF", "SYS_ADMIN"], Left::NoProbe),
    (&["PERFMON", "SYS_ADMIN"], Left::NoProbe),
    (&["NET_ADMIN", "SYS_ADMIN"], Left::NoGreeting),
    (&["DAC_OVERRIDE"], Left::OfRoot),
    (&["CHOWN"], Left::File),
    (&["FOWNER"], Left::File),
    (&["NET_ADMIN"], Left::NothingClosed),
    (&["KILL"], Left::All),
];

#[test]
fn without_a_capability_a_pod_gets_less_and_is_told_so() {
    let node = node();
    let plan = Plan::read(&node).unwrap();
    for capability in plan.capabilities() {
        let tried = LEFT.iter().any(|(left_out, _)| left_out[0] == capability);
        assert!(tried, "what is lost without {capability}?");
    }
    // Root of the node owns the user namespace that it made, and so needs no SYS_PTRACE there.
    let plain = start(&node, "plain", Form::First);
    // Its files and its master are of user 200000: it takes all of the others.
    let pod = start(&node, "mapped", Form::UserNamespace);
    let original = pod.master_cf().unwrap();
    let _senders = pod.senders(Traffic::new(2.0)).unwrap();
    let mut attackers = None;
    let mut reloads = 0;
    for (left_out, left) in LEFT {
        let sentinel = plan
            .start(left_out)
            .unwrap_or_else(|error| panic!("{left_out:?}: {error:#}"));
        assert_told(&sentinel, left_out[0]);
        if matches!(left, Left::File | Left::NothingClosed | Left::All) {
            attackers.get_or_insert_with(|| flood(&pod));
        }
        if left == Left::All {
            // Of those that came before some have been closed; those that are left go first, so that slots remain.
            drop(attackers.take());
            attackers = Some(flood(&pod));
        }
        match left {
            Left::Nothing => {
                let id = plain.short_id().unwrap();
                let mut instances = sentinel.status().unwrap().instances.into_iter();
                let found = instances.find(|one| one.id.contains(&id));
                assert!(found.is_none(), "{found:#?}");
                assert_unseen(&sentinel);
            }
            Left::Sight => {
                let instance = wait(&sentinel, &pod, "to be found", |one| smtp(one).is_some());
                let service = smtp(&instance).unwrap();
                let why = service.unavailable.get("accept_queue");
                assert!(
                    why.is_some_and(|why| why.contains("network namespace")),
                    "{service:#?}"
                );
            }
            Left::NoProbe => {
                let probes = sentinel.status().unwrap().probes;
                assert!(
                    probes.iter().all(|probe| probe.state != ProbeState::Ok),
                    "{left_out:?}: {probes:#?}"
                );
            }
            Left::NoGreeting => {
                let probes = sentinel.status().unwrap().probes;
                let greeting = probes.iter().find(|probe| probe.name == "greeting").unwrap();
                assert_eq!(greeting.state, ProbeState::Unsupported);
                assert!(greeting.reason.contains("CAP_NET_ADMIN"), "{greeting:?}");
            }
            Left::OfRoot => {
                wait(&sentinel, &plain, "to be found", |_| true);
                let id = pod.short_id().unwrap();
                let mut instances = sentinel.status().unwrap().instances.into_iter();
                assert!(instances.all(|one| !one.id.contains(&id)));
                assert_unseen(&sentinel);
            }
            Left::File => wait_refused(&sentinel, &pod, left_out),
            Left::NothingClosed | Left::All => {
                wait_state(&sentinel, &pod, State::Stressed);
                assert_ne!(pod.master_cf().unwrap(), original);
                // Once on, and once off at the end.
                wait_reloads(&pod, reloads + 1);
                reloads += 2;
            }
        }
        if left == Left::NothingClosed {
            // The control is the other pod, whose network root of the node owns by way of its user namespace: those who come
            // there later are closed, and so it is long the turn of those here.
            let _senders = plain.senders(Traffic::new(2.0)).unwrap();
            let here = flood(&plain);
            wait_state(&sentinel, &plain, State::Stressed);
            // A few: those of before may still be there.
            let there = silent(&pod, 3);
            wait_until("connections of the other pod to be closed", PATIENCE, || {
                Ok(there.toll().dropped > 0)
            })
            .unwrap();
            let instance = format!("{}:/etc/postfix", plain.short_id().unwrap());
            let scrape = sentinel.metrics().unwrap();
            let closed = scrape.sum("smtp_sentinel_shed_connections_total", &[("instance", &instance)]);
            assert!(closed.is_none_or(|closed| closed == 0.0), "{closed:?}");
            assert!(here.toll().standing > 0, "{:?}", here.toll());
        }
        sentinel.terminate().unwrap();
        assert_eq!(pod.master_cf().unwrap(), original, "{left_out:?}");
        wait_reloads(&pod, reloads);
    }
}

/// `check` in the running container says what is lost, in the words of the documentation.
fn assert_told(sentinel: &Sentinel<'_>, capability: &str) {
    let name = format!("CAP_{capability}");
    let need = NEEDS.iter().find(|need| need.capability.name() == name).unwrap();
    let answer = sentinel.ask(&["check", "--json"]).unwrap();
    let document: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    let findings = document["findings"].as_array().unwrap();
    let finding = findings
        .iter()
        .find(|finding| finding["subject"] == format!("capability {name}"));
    let detail = finding.unwrap()["detail"].as_str().unwrap();
    assert!(
        detail.contains("missing") && detail.contains(need.without),
        "{detail}"
    );
}

/// What is not found for want of a privilege is at least counted, in status and by `check`.
fn assert_unseen(sentinel: &Sentinel<'_>) {
    let unseen = sentinel.status().unwrap().unseen.unwrap();
    assert!(unseen.count > 0 && unseen.reason.contains("denied"), "{unseen:?}");
    let answer = sentinel.ask(&["check"]).unwrap();
    assert!(answer.stdout.contains("not looked into"), "{answer:?}");
}

/// Either it sees beforehand that it cannot, or the edit fails before the rename.
fn wait_refused(sentinel: &Sentinel<'_>, pod: &Pod<'_>, left_out: &[&str]) {
    let failed = |sentinel: &Sentinel<'_>| -> usize {
        let history = sentinel.history().unwrap();
        history
            .iter()
            .filter(|entry| entry.outcome.as_deref() == Some("failed"))
            .count()
    };
    let before = failed(sentinel);
    wait(
        sentinel,
        pod,
        &format!("to be left alone without {left_out:?}"),
        |one| (!one.actionable && one.reason.contains("master.cf")) || failed(sentinel) > before,
    );
}
