//! The manifests for Kubernetes: both ways to install make the same objects, which the oldest and the newest version of
//! Kubernetes take as they are, and their configuration is one that the daemon takes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use sentinel_lab::manifests::{self, Rendered, VERSIONS};
use sentinel_lab::tools;
use serde_json::{Map, Value};
use smtp_sentinel::config::{ActMode, Config};

/// All that differs from the defaults in one way or the other.
const SETTINGS: [&[&str]; 5] = [
    &[],
    &["--set", "mode=enforce"],
    &[
        "--set",
        "podMonitor.create=true,podMonitor.labels.release=prometheus",
    ],
    &[
        "--set",
        "serviceAccount.create=false,priorityClass.create=false,networkPolicy.create=false,enterNetworkNamespaces=false",
        "--set-json",
        "resources={},tolerations=[]",
    ],
    &[
        "--set-json",
        r#"imagePullSecrets=[{"name":"registry"}],nodeSelector={"mail":"yes"},podLabels={"team":"mail"},podAnnotations={"note":"1"}"#,
        "--set-json",
        r#"affinity={"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"mail","operator":"Exists"}]}]}}}"#,
    ],
];

/// kustomize's component for the Prometheus operator, on top of the rest.
fn with_pod_monitor() -> Rendered {
    // Resources of a kustomization are named by relative paths.
    let directory = tempfile::tempdir_in(tools::repository("deploy")).unwrap();
    fs::write(
        directory.path().join("kustomization.yaml"),
        "resources: [../kubernetes]\ncomponents: [../kubernetes/podmonitor]\n",
    )
    .unwrap();
    manifests::kustomize(directory.path()).unwrap()
}

fn assert_valid(rendered: &Rendered, what: &str) {
    for version in VERSIONS {
        let faults = rendered.faults(version).unwrap();
        // A kind of the Prometheus operator; Kubernetes has no schema of it.
        let unexpected: Vec<_> = faults
            .iter()
            .filter(|fault| !(fault.contains("Couldn't find schema") && fault.contains("PodMonitor")))
            .collect();
        assert!(
            unexpected.is_empty(),
            "{what}, Kubernetes {version}: {unexpected:#?}"
        );
    }
}

#[test]
fn kustomize_renders_what_kubernetes_takes() {
    assert_valid(&manifests::plain().unwrap(), "plain");
    let with = with_pod_monitor();
    assert!(
        with.objects()
            .unwrap()
            .iter()
            .any(|object| object["kind"] == "PodMonitor")
    );
    assert_valid(&with, "with the component podmonitor");
}

#[test]
fn the_examples_are_what_kubernetes_takes() {
    let path = tools::repository("deploy/kubernetes/examples/hpa.yaml");
    let text = fs::read_to_string(path).unwrap();
    assert_valid(&Rendered { text }, "hpa.yaml");
}

#[test]
fn the_chart_renders_what_kubernetes_takes() {
    for settings in SETTINGS {
        assert_valid(&manifests::chart(settings).unwrap(), &format!("{settings:?}"));
    }
}

/// What the two tests above rest on: that the validator sees what is wrong.
#[test]
fn a_field_that_kubernetes_does_not_know_is_found() {
    let mut plain = manifests::plain().unwrap();
    plain.text = plain.text.replace("hostPID: true", "hostPid: true");
    for version in VERSIONS {
        let faults = plain.faults(version).unwrap();
        assert!(faults.iter().any(|fault| fault.contains("hostPid")), "{faults:?}");
    }
}

#[test]
fn helm_lint_has_nothing_against_the_chart() {
    let output = Command::new(tools::unpacked("helm").unwrap())
        .args(["lint", "--strict", "--quiet"])
        .arg(manifests::chart_directory())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{words}");
}

/// Labels and annotations by which helm and kustomize mark what they made.
const MARKS: [&str; 6] = [
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
    "checksum/config",
    "helm.sh/chart",
];

/// The objects by kind and name, without the marks and the hash in the name of the ConfigMap.
fn compared(rendered: &Rendered) -> BTreeMap<(String, String), Value> {
    let mut objects = rendered.objects().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let generated: Vec<String> = objects
        .iter()
        .filter(|object| object["kind"] == "ConfigMap")
        .map(|object| text(&object["metadata"]["name"]))
        .collect();
    for object in &mut objects {
        unmark(object, &generated);
    }
    objects
        .into_iter()
        .map(|object| ((text(&object["kind"]), text(&object["metadata"]["name"])), object))
        .collect()
}

fn unmark(value: &mut Value, generated: &[String]) {
    match value {
        Value::Object(object) => {
            object.retain(|key, _| !MARKS.contains(&key.as_str()));
            object.values_mut().for_each(|inner| unmark(inner, generated));
            // helm has `labels: {}` where nothing is left, kustomize nothing at all.
            object.retain(|key, inner| key != "labels" || *inner != Value::Object(Map::new()));
        }
        Value::Array(all) => all.iter_mut().for_each(|inner| unmark(inner, generated)),
        Value::String(text) if generated.contains(text) => "smtp-sentinel".clone_into(text),
        _ => {}
    }
}

fn assert_same(chart: &Rendered, plain: &Rendered) {
    let (chart, mut plain) = (compared(chart), compared(plain));
    // helm makes the namespace itself (--create-namespace), or it is there.
    assert!(
        plain
            .remove(&("Namespace".to_owned(), "smtp-sentinel".to_owned()))
            .is_some()
    );
    assert_eq!(chart.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>());
    for (key, object) in &chart {
        assert_eq!(object, &plain[key], "left: helm; right: kustomize");
    }
}

#[test]
fn the_chart_with_its_defaults_is_what_kustomize_makes() {
    assert_same(&manifests::chart(&[]).unwrap(), &manifests::plain().unwrap());
    let chart = manifests::chart(&["--set", "podMonitor.create=true"]).unwrap();
    assert_same(&chart, &with_pod_monitor());
}

fn configuration(rendered: &Rendered) -> Config {
    let map: Value = rendered.object("ConfigMap").unwrap();
    let text = map["data"]["config.toml"].as_str().unwrap();
    Config::parse(text, Path::new("config.toml")).unwrap()
}

#[test]
fn the_configuration_is_one_that_the_daemon_takes() {
    let read = |path: &str| fs::read_to_string(tools::repository(path)).unwrap();
    assert_eq!(
        read("deploy/helm/smtp-sentinel/files/config.toml"),
        read("deploy/kubernetes/config.toml"),
        "the chart has a copy, since helm reads nothing outside of it"
    );
    let plain = configuration(&manifests::plain().unwrap());
    assert_eq!(plain.act.mode, ActMode::Observe);
    assert!(plain.discovery.containers);
    let enforcing = configuration(&manifests::chart(&["--set", "mode=enforce"]).unwrap());
    assert_eq!(enforcing.act.mode, ActMode::Enforce);
    let own = manifests::chart(&["--set-string", "config=[act]\nmode = \"enforce\"\n"]).unwrap();
    let own = configuration(&own);
    assert_eq!(own.act.mode, ActMode::Enforce);
    assert!(!own.discovery.containers, "nothing but what it says");
}

/// A change of the configuration has to reach the pods.
#[test]
fn another_configuration_is_another_pod_template() {
    let template = |rendered: &Rendered| -> Value {
        let set: Value = rendered.object("DaemonSet").unwrap();
        set["spec"]["template"].clone()
    };
    let observing = template(&manifests::chart(&[]).unwrap());
    assert_eq!(observing, template(&manifests::chart(&[]).unwrap()));
    let enforcing = template(&manifests::chart(&["--set", "mode=enforce"]).unwrap());
    assert_ne!(observing, enforcing);
}

#[test]
fn a_value_that_is_none_is_refused() {
    for (setting, word) in [
        ("mode=enforced", "mode"),
        ("modes=enforce", "modes"),
        ("networkPolicy.apiServerPorts={70000}", "apiServerPorts"),
        ("stateDir=var/lib/x", "stateDir"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
    ] {
        let refusal = manifests::chart(&["--set", setting]).unwrap_err();
        let refusal = format!("{refusal:#}");
        assert!(
            refusal.contains("don't meet the specifications of the schema") && refusal.contains(word),
            "{setting}: {refusal}"
        );
    }
}
