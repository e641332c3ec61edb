//! Both text formats of a report that has something of everything, hostile names included: one before the real
//! promtool, the other before a parser that is as strict as the OpenMetrics 1.0 text.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::families::Exposition;
use crate::clock;
use crate::controller::State;
use crate::probes::Evictions;
use crate::status::tests::report;
use crate::status::{Board, Listener, ReloadResult};

fn exposition() -> Exposition {
    let board = Board::new(clock::now().mono);
    let report = report();
    let (first, second) = (report.instances[0].id.clone(), report.instances[1].id.clone());
    board.publish(report, clock::now().mono);
    board.count_transition(&first, "smtp/inet", State::Stressed);
    board.count_reload(&first, ReloadResult::Done);
    board.count_reload(&second, ReloadResult::Failed);
    board.set_accept_overflows(&second, Some(12));
    board.set_evictions(Some(Evictions::default()));
    Exposition::new(Arc::new(board))
}

/// What is in the report is an administrator's doing, or that of a pod's owner; how much of it Prometheus has to carry is
/// ours.
#[test]
fn series_are_bounded_however_many_services_and_listeners_there_are() {
    let (some, many) = (crowded(600, 1), crowded(6000, 3));
    let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series(&some) < 20_000, "{}", series(&some));
    assert!(
        series(&many) <= series(&some),
        "{} {}",
        series(&many),
        series(&some)
    );
    for omitted in ["services\"} 5488", "listeners\"} 17744"] {
        let line = format!("\nsmtp_sentinel_omitted{{what=\"{omitted}\n");
        assert!(many.contains(&line), "{line}");
    }
}

/// The exposition of one instance with so many services, and each with so many listeners.
fn crowded(services: usize, listeners: usize) -> String {
    let mut report = report();
    report.instances.truncate(1);
    let service = report.instances[0].services[0].clone();
    let named = |n: usize| {
        let mut service = service.clone();
        service.name = format!("192.0.2.1:{n}");
        let listener = service.listeners[0].clone();
        service.listeners = (0..listeners)
            .map(|m| Listener {
                address: format!("192.0.2.{m}:{n}"),
                ..listener.clone()
            })
            .collect();
        service
    };
    report.instances[0].services = (0..services).map(named).collect();
    let board = Board::new(clock::now().mono);
    board.publish(report, clock::now().mono);
    Exposition::new(Arc::new(board)).prometheus().unwrap()
}

#[test]
fn promtool_accepts_the_prometheus_text() {
    let text = exposition().prometheus().unwrap();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("no promtool ({error}): `cargo xtask setup` unpacks it below target/tools, which has to be in PATH")
        });
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{}\n{text}",
        String::from_utf8_lossy(&said)
    );
    assert!(
        said.is_empty(),
        "promtool complains: {}",
        String::from_utf8_lossy(&said)
    );
}

#[test]
fn the_families_are_those_that_were_promised() {
    let families = parse(&exposition().openmetrics().unwrap()).unwrap();
    let names: Vec<_> = families
        .keys()
        .map(|name| name.strip_prefix("smtp_sentinel_").unwrap())
        .collect();
    // Without `_total`, which in OpenMetrics belongs to the sample.
    let promised = [
        "accept_overflows",
        "accept_queue_depth",
        "accept_queue_high_water",
        "accept_queue_limit",
        "actionable",
        "build_info",
        "config_valid",
        "connection_evictions",
        "connections",
        "container_info",
        "early_disconnects",
        "greeting_seconds",
        "headroom_slots",
        "instances_deferred",
        "kubernetes_events",
        "kubernetes_pods",
        "kubernetes_up",
        "native_stress",
        "omitted",
        "pod_info",
        "pressure",
        "probe_up",
        "process_limit",
        "processes",
        "reloads",
        "shed_connections",
        "source_evictions",
        "state",
        "tick_seconds",
        "transitions",
    ];
    assert_eq!(names, promised);
}

#[test]
fn values_arrive_with_their_labels_and_unknown_ones_are_absent() {
    let families = parse(&exposition().openmetrics().unwrap()).unwrap();
    let of = |family: &str, labels: &[(&str, &str)]| {
        let labels: Labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let family = &families[&format!("smtp_sentinel_{family}")];
        family
            .samples
            .iter()
            .find(|sample| sample.labels == labels)
            .map(|sample| sample.value)
    };
    assert_eq!(of("kubernetes_up", &[]), Some(0.0));
    assert_eq!(of("kubernetes_pods", &[]), Some(3.0));
    assert_eq!(of("kubernetes_events", &[("result", "failed")]), Some(1.0));
    let hostile = report().instances[1].id.clone();
    let pod = [
        ("instance", &*hostile),
        ("namespace", "post"),
        ("pod", "mail-0"),
        ("container", ""),
        ("mode", "observe"),
    ];
    assert_eq!(of("pod_info", &pod), Some(1.0));
    for instance in ["/etc/postfix", &hostile] {
        let smtp = [("instance", instance), ("service", "smtp/inet")];
        let [i, s] = smtp;
        assert_eq!(of("pressure", &smtp), Some(0.93));
        assert_eq!(of("process_limit", &smtp), Some(100.0));
        assert_eq!(of("native_stress", &smtp), Some(0.0));
        assert_eq!(of("processes", &[i, s, ("state", "busy")]), Some(93.0));
        assert_eq!(of("processes", &[i, s, ("state", "idle")]), Some(2.0));
        assert_eq!(of("state", &[i, s, ("state", "stressed")]), Some(1.0));
        assert_eq!(of("state", &[i, s, ("state", "normal")]), Some(0.0));
        let listener = ("listener", "[::]:25");
        assert_eq!(of("accept_queue_high_water", &[i, s, listener]), Some(42.0));
        assert_eq!(of("connections", &[i, s, listener]), Some(1234.0));
        assert_eq!(
            of("early_disconnects", &[i, s, listener, ("phase", "queued")]),
            Some(20.0)
        );
        assert_eq!(
            of(
                "early_disconnects",
                &[i, s, listener, ("phase", "before_greeting")]
            ),
            Some(3.0)
        );
        // A listener without counts has none, not 0.
        assert_eq!(of("connections", &[i, s, ("listener", "192.0.2.1:2525")]), None);
    }
    let smtpd = [("instance", "/etc/postfix"), ("service", "smtpd/pass")];
    for family in ["pressure", "process_limit", "native_stress", "accept_queue_depth"] {
        assert_eq!(of(family, &smtpd), None, "{family}");
    }
    assert_eq!(of("processes", &[smtpd[0], smtpd[1], ("state", "idle")]), None);
    assert_eq!(of("probe_up", &[("probe", "accept_queue")]), Some(1.0));
    assert_eq!(of("probe_up", &[("probe", "greeting")]), Some(0.0));
    // One kind or the other: both in one instance would count a drop twice in its sum.
    let by_listener = |instance| {
        let (service, listener) = (("service", "smtp/inet"), ("listener", "[::]:25"));
        of("accept_overflows", &[("instance", instance), service, listener])
    };
    assert_eq!(of("accept_overflows", &[("instance", &hostile)]), Some(12.0));
    assert_eq!(by_listener(&hostile), None);
    assert_eq!(of("accept_overflows", &[("instance", "/etc/postfix")]), None);
    assert_eq!(by_listener("/etc/postfix"), Some(8.0));
    assert_eq!(
        of("reloads", &[("instance", "/etc/postfix"), ("result", "done")]),
        Some(1.0)
    );
    assert_eq!(
        of("reloads", &[("instance", "/etc/postfix"), ("result", "failed")]),
        Some(0.0)
    );
    let stressed = [smtpd[0], ("service", "smtp/inet"), ("to", "stressed")];
    assert_eq!(of("transitions", &stressed), Some(1.0));
}

#[test]
fn what_is_reported_twice_is_exposed_once() {
    let once = exposition().openmetrics().unwrap();
    let mut doubled = report();
    doubled.probes.extend(report().probes);
    doubled.instances.extend(report().instances);
    for service in doubled
        .instances
        .iter_mut()
        .flat_map(|instance| &mut instance.services)
    {
        service.listeners.extend(service.listeners.clone());
    }
    let board = Board::new(clock::now().mono);
    board.publish(doubled, clock::now().mono);
    let families = parse(&Exposition::new(Arc::new(board)).openmetrics().unwrap()).unwrap();
    let count = |family: &str| families[family].samples.len();
    let expected = parse(&once).unwrap();
    for family in [
        "smtp_sentinel_state",
        "smtp_sentinel_probe_up",
        "smtp_sentinel_connections",
    ] {
        assert_eq!(count(family), expected[family].samples.len(), "{family}");
    }
}

/// 5 greetings of 4 to 7 us, 10 of 8 to 15, 3 of 32 to 63, 1 longer than the last bound.
#[test]
fn greeting_buckets_are_cumulative_with_bounds_in_seconds() {
    let families = parse(&exposition().openmetrics().unwrap()).unwrap();
    let greeting = &families["smtp_sentinel_greeting_seconds"];
    let buckets: Vec<(String, f64)> = greeting
        .samples
        .iter()
        .filter(|s| s.suffix == "_bucket" && s.labels["instance"] == "/etc/postfix")
        .map(|s| (s.labels["le"].clone(), s.value))
        .collect();
    let expected = [
        ("0.000002", 0.0),
        ("0.000004", 0.0),
        ("0.000008", 5.0),
        ("0.000016", 15.0),
        ("0.000032", 15.0),
        ("0.000064", 18.0),
        ("0.000128", 18.0),
        ("+Inf", 19.0),
    ];
    assert_eq!(buckets, expected.map(|(le, n)| (le.to_owned(), n)));
    let sum = greeting.samples.iter().find(|s| s.suffix == "_sum").unwrap();
    assert_eq!(sum.value.to_bits(), 0.0007_f64.to_bits());
}

/// The parser must be able to say no, or the tests above prove nothing.
#[test]
fn the_parser_refuses_what_openmetrics_forbids() {
    let good = "# HELP a A\n# TYPE a counter\na_total{x=\"1\"} 1\n# EOF\n";
    assert!(parse(good).is_ok());
    for bad in [
        "# HELP a A\n# TYPE a counter\na_total 1\n",
        "# HELP a A\n# TYPE a counter\na 1\n# EOF\n",
        "# HELP a A\n# TYPE a counter\na_total{x=\"\\q\"} 1\n# EOF\n",
        "# HELP a A\n# TYPE a counter\na_total{x=\"1\ny\"} 1\n# EOF\n",
        "# HELP a A\n# TYPE a counter\na_total 1\na_total 2\n# EOF\n",
        "# HELP a A\n# TYPE a gauge\na 1\n# EOF\n# EOF\n",
        "# HELP a_s A\n# TYPE a_s gauge\n# UNIT a_s seconds\na_s 1\n# EOF\n",
        "# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n# EOF\n",
        "# TYPE a histogram\na_bucket{le=\"1\"} 1\na_sum 1\na_count 1\n# EOF\n",
        "# TYPE a histogram\na_bucket{le=\"+Inf\"} 3\na_sum 1\na_count 1\n# EOF\n",
    ] {
        assert!(parse(bad).is_err(), "accepted: {bad:?}");
    }
}

type Labels = BTreeMap<String, String>;

#[derive(Debug, Default)]
struct Family {
    kind: String,
    samples: Vec<Sample>,
}

#[derive(Debug)]
struct Sample {
    suffix: String,
    labels: Labels,
    value: f64,
}

/// OpenMetrics 1.0 text, as far as we use it: no timestamps, no exemplars.
fn parse(text: &str) -> Result<BTreeMap<String, Family>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("no EOF at the end")?;
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in body.split_terminator('\n') {
        if let Some(metadata) = line.strip_prefix("# ") {
            let [keyword, name, rest] = metadata.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                return Err(format!("metadata: {line}"));
            };
            if name != current {
                if families.contains_key(name) {
                    return Err(format!("family in two places: {name}"));
                }
                families.insert(name.to_owned(), Family::default());
                current = name.to_owned();
            }
            let family = families.get_mut(name).ok_or("lost")?;
            match keyword {
                "TYPE" if family.kind.is_empty() => family.kind = rest.to_owned(),
                "UNIT" if name.ends_with(&format!("_{rest}")) => {}
                "HELP" if !rest.contains('\\') => {}
                _ => return Err(format!("metadata: {line}")),
            }
            continue;
        }
        let family = families
            .get_mut(&current)
            .ok_or(format!("sample before metadata: {line}"))?;
        let (name, labels, value) = sample(line)?;
        let suffix = name
            .strip_prefix(&current)
            .ok_or(format!("not of {current}: {line}"))?;
        let allowed: &[&str] = match &*family.kind {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_sum", "_count"],
            other => return Err(format!("type: {other}")),
        };
        if !allowed.contains(&suffix) {
            return Err(format!("suffix {suffix:?} in a {}", family.kind));
        }
        if family
            .samples
            .iter()
            .any(|s| s.suffix == suffix && s.labels == labels)
        {
            return Err(format!("series twice: {line}"));
        }
        family.samples.push(Sample {
            suffix: suffix.to_owned(),
            labels,
            value,
        });
    }
    families
        .values()
        .filter(|family| family.kind == "histogram")
        .try_for_each(histogram)?;
    Ok(families)
}

fn sample(line: &str) -> Result<(&str, Labels, f64), String> {
    let end = line.find(['{', ' ']).ok_or(format!("no value: {line}"))?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (key, after) = rest.split_once("=\"").ok_or(format!("label: {rest}"))?;
            if !key.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                return Err(format!("label name: {key}"));
            }
            let (value, after) = label_value(after)?;
            if labels.insert(key.to_owned(), value).is_some() {
                return Err(format!("label twice: {key}"));
            }
            rest = match after.strip_prefix(',') {
                Some(next) => next,
                None => {
                    rest = after.strip_prefix('}').ok_or(format!("labels: {after}"))?;
                    break;
                }
            };
        }
    }
    let number = rest.strip_prefix(' ').ok_or(format!("value: {rest}"))?;
    Ok((
        name,
        labels,
        number.parse().map_err(|_| format!("number: {number}"))?,
    ))
}

/// The value up to its closing quote, unescaped, and what follows.
fn label_value(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, c @ ('"' | '\\'))) => c,
                other => return Err(format!("escape: {other:?}")),
            }),
            c => value.push(c),
        }
    }
    Err("label value without an end".to_owned())
}

/// Bounds rise, counts do not fall, +Inf is there and is the count.
fn histogram(family: &Family) -> Result<(), String> {
    let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for bucket in family.samples.iter().filter(|s| s.suffix == "_bucket") {
        let mut labels = bucket.labels.clone();
        let le = labels.remove("le").ok_or("no le")?;
        let bound = if le == "+Inf" {
            f64::INFINITY
        } else {
            le.parse().map_err(|_| le)?
        };
        series.entry(labels).or_default().push((bound, bucket.value));
    }
    for (labels, buckets) in series {
        let of = |suffix: &str| {
            family
                .samples
                .iter()
                .find(|s| s.suffix == suffix && s.labels == labels)
        };
        let rising = buckets
            .windows(2)
            .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let count = of("_count").ok_or("no count")?.value;
        let whole = buckets
            .last()
            .is_some_and(|(le, n)| le.is_infinite() && n.to_bits() == count.to_bits());
        if !rising || !whole || of("_sum").is_none() {
            return Err(format!("histogram {labels:?}: {buckets:?}"));
        }
    }
    Ok(())
}
