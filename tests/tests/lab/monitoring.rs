//! What operators load into Prometheus and Grafana: rules that fire and that do not, expressions that find something, names
//! that the daemon serves, and a dashboard of the shape that Grafana reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sentinel_lab::monitoring::{dashboard, deploy, episode, families, picture};

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rules() -> String {
    read(&deploy().join("prometheus/smtp-sentinel.rules.yml"))
}

/// Runs to a good end.
fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; `cargo xtask setup` brings it"));
    let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {words}");
}

#[test]
fn the_rules_hold_their_tests() {
    let directory = deploy().join("prometheus");
    run(Command::new("promtool")
        .args(["check", "rules", "smtp-sentinel.rules.yml"])
        .current_dir(&directory));
    run(Command::new("promtool")
        .args(["check", "config", "--syntax-only", "scrape.example.yml"])
        .current_dir(&directory));
    run(Command::new("promtool")
        .args(["test", "rules", "smtp-sentinel.test.yml"])
        .current_dir(&directory));
}

#[test]
fn each_alert_is_seen_to_fire_and_not_to_fire_and_is_explained() {
    let tests = read(&deploy().join("prometheus/smtp-sentinel.test.yml"));
    let mut expected: BTreeMap<&str, BTreeSet<bool>> = BTreeMap::new();
    let mut alert = "";
    for line in tests.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("alertname: ") {
            alert = name;
        } else if let Some(alerts) = line.strip_prefix("exp_alerts:") {
            expected.entry(alert).or_default().insert(alerts.is_empty());
        }
    }
    let rules = rules();
    let alerts: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    let page = read(&deploy().join("../docs/monitoring.md"));
    for alert in alerts {
        assert_eq!(
            expected.get(alert),
            Some(&BTreeSet::from([false, true])),
            "{alert} has to be seen both to fire and not to fire"
        );
        assert!(
            page.contains(&format!("`{alert}`")),
            "docs/monitoring.md explains {alert}"
        );
    }
}

#[test]
fn an_episode_is_on_the_dashboard_and_every_name_is_served() {
    let episode = episode::play(episode::Pace {
        calm: Duration::from_secs(5),
        flood: Duration::from_secs(3),
        after: Duration::from_secs(1),
    })
    .unwrap();

    let known: BTreeSet<_> = families::served(&episode.exposition)
        .into_iter()
        .chain(families::recorded(&rules()))
        .collect();
    for file in [
        "prometheus/smtp-sentinel.rules.yml",
        "prometheus/smtp-sentinel.test.yml",
        "grafana/smtp-sentinel.json",
        "kubernetes/examples/hpa.yaml",
        "kubernetes/examples/prometheus-adapter.yaml",
    ] {
        let spoken_of = families::spoken_of(&read(&deploy().join(file)));
        assert!(!spoken_of.is_empty(), "{file}");
        let unknown: Vec<_> = spoken_of.difference(&known).collect();
        assert!(
            unknown.is_empty(),
            "{file} has names that the daemon does not serve: {unknown:?}"
        );
    }

    let panels = dashboard::panels("5s").unwrap();
    let answers = episode.ask(&panels).unwrap();
    for panel in &panels {
        for (expression, found) in panel.expressions.iter().zip(&answers[&panel.title]) {
            let points: usize = found.iter().map(|course| course.points().count()).sum();
            assert!(points > 0, "{}: nothing is found by {expression}", panel.title);
        }
    }
    // The state is drawn as the state was: from normal over stressed to normal.
    let states: Vec<_> = answers["State"][0][0].points().map(|(_, value)| value).collect();
    assert!(states.contains(&2.0), "{states:?}");
    assert_eq!(
        (states.first(), states.last()),
        (Some(&0.0), Some(&0.0)),
        "{states:?}"
    );
    let alerts = episode
        .prometheus
        .range(
            "ALERTS{alertname=\"SmtpSentinelStressed\", alertstate=\"firing\"}",
            episode.start,
            episode.end,
        )
        .unwrap();
    assert_eq!(alerts.len(), 1, "the real episode raises the alert, once");
    picture::draw(&answers, episode.start..episode.end).unwrap();
}

#[test]
fn the_dashboard_is_what_grafana_reads() {
    let types = std::env::var_os("SENTINEL_GRAFANA_TYPES")
        .expect("`cargo xtask test` sets it to where it has put @grafana/schema and tsc");
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path();
    std::os::unix::fs::symlink(Path::new(&types).join("node_modules"), at.join("node_modules")).unwrap();
    fs::copy(deploy().join("grafana/check/types.ts"), at.join("types.ts")).unwrap();
    let compile = |json: &str| {
        let text = format!(
            "import type {{ Sentinel }} from './types';\nexport const dashboard: Sentinel = {json};\n"
        );
        fs::write(at.join("dashboard.ts"), text).unwrap();
        let output = Command::new("node")
            .arg("node_modules/typescript/bin/tsc")
            .args(["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022"])
            .args([
                "--module",
                "esnext",
                "--moduleResolution",
                "bundler",
                "dashboard.ts",
            ])
            .current_dir(at)
            .output()
            .expect("node runs; `cargo xtask setup` installs it");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let json = read(&dashboard::file());
    let (good, words) = compile(&json);
    assert!(good, "{words}");
    // A check that lets everything pass would be none.
    let (good, words) = compile(&json.replacen("\"rowHeight\": 0.8", "\"rowHeight\": \"0.8\"", 1));
    assert!(
        !good && words.contains("'string' is not assignable to type 'number'"),
        "{words}"
    );
}
