//! The metric families of DESIGN.md, made of the board at scrape time.
//!
//! A value that is not known is absent: a 0 in its place would be a lie that alerts are built on. Labels come from
//! bounded sets only (instances, services, listeners, probes), never from clients.

mod rows;

use std::collections::BTreeSet;
use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use self::rows::{Omitted, Row, accept_queues, connections, services};
use super::exposition;
use crate::controller::State;
use crate::status::{
    Board, Counters, Kubernetes, KubernetesEvents, KubernetesState, ProbeState, ReloadResult, Report, Ticks,
};

/// Makes the text of /metrics.
#[derive(Debug)]
pub struct Exposition {
    registry: Registry,
}

impl Exposition {
    pub fn new(board: Arc<Board>) -> Self {
        let mut registry = Registry::with_prefix("smtp_sentinel");
        registry.register_collector(Box::new(Families { board }));
        Self { registry }
    }

    /// OpenMetrics 1.0 text.
    ///
    /// # Errors
    /// Only when the encoder itself fails; writing to a string does not.
    pub fn openmetrics(&self) -> Result<String, Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Prometheus text format 0.0.4, for scrapers that do not ask for OpenMetrics.
    ///
    /// # Errors
    /// As [`Self::openmetrics`].
    pub fn prometheus(&self) -> Result<String, Error> {
        self.openmetrics().map(|text| exposition::to_prometheus(&text))
    }
}

#[derive(Debug)]
struct Families {
    board: Arc<Board>,
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let counters = self.board.counters();
        let report = self.board.report();
        build_info(&mut encoder)?;
        own_work(&mut encoder, &counters)?;
        actions(&mut encoder, &counters)?;
        let Some(report) = report else { return Ok(()) };
        probes(&mut encoder, &report)?;
        kubernetes(&mut encoder, report.kubernetes.as_ref())?;
        instances(&mut encoder, &report)?;
        places(&mut encoder, &report)?;
        pods(&mut encoder, &report)?;
        let (rows, omitted) = Row::of(&report);
        omissions(&mut encoder, omitted)?;
        services(&mut encoder, &rows)?;
        overflows(&mut encoder, &counters, &rows)?;
        accept_queues(&mut encoder, &rows)?;
        connections(&mut encoder, &rows)
    }
}

fn build_info(encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let mut family = gauge(
        encoder,
        "build_info",
        "Always 1; the version of smtp-sentinel is in the label",
    )?;
    value(&mut family, &[("version", env!("CARGO_PKG_VERSION"))], 1_u32)
}

/// What the sentinel itself needs, and what it could not keep.
fn own_work(encoder: &mut DescriptorEncoder<'_>, counters: &Counters) -> Result<(), Error> {
    let help = "How long the sentinel's ticks took; one that takes more than 0.1 makes the next one late";
    let mut family = encoder.encode_descriptor("tick", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    let bounds = Ticks::BOUNDS_MS.map(|ms| ms as f64 / 1000.0);
    let buckets: Vec<_> = bounds
        .into_iter()
        .chain([f64::INFINITY])
        .zip(counters.ticks.counts)
        .collect();
    let count = counters.ticks.counts.iter().sum();
    family.encode_histogram::<NoLabelSet>(counters.ticks.sum.as_secs_f64(), count, &buckets, None)?;
    let help = "How often an instance had to wait for a later tick, because others took the time of this one";
    let mut family = counter(encoder, "instances_deferred", help)?;
    family.encode_counter::<NoLabelSet, u64, f64>(&counters.deferred, None)?;
    let Some(evictions) = counters.evictions else {
        return Ok(());
    };
    let help = "Source prefixes that were forgotten, to make room for newer ones";
    let mut family = counter(encoder, "source_evictions", help)?;
    for (kind, n) in [
        ("ipv4_32", evictions.v4_hosts),
        ("ipv4_24", evictions.v4_nets),
        ("ipv6_64", evictions.v6_nets),
    ] {
        total(&mut family, &[("prefix", kind)], n)?;
    }
    let help = "Open connections that were forgotten to make room for newer ones, so that their greeting and their end \
                are not counted";
    let mut family = counter(encoder, "connection_evictions", help)?;
    family.encode_counter::<NoLabelSet, u64, f64>(&evictions.connections, None)
}

fn omissions(encoder: &mut DescriptorEncoder<'_>, omitted: Omitted) -> Result<(), Error> {
    let help =
        "Services and listeners that have no series, because there are more than this exposition shows";
    let mut family = gauge(encoder, "omitted", help)?;
    for (what, n) in [("services", omitted.services), ("listeners", omitted.listeners)] {
        value(&mut family, &[("what", what)], n as u64)?;
    }
    Ok(())
}

/// What the sentinel did, and what the kernel dropped.
fn actions(encoder: &mut DescriptorEncoder<'_>, counters: &Counters) -> Result<(), Error> {
    let mut family = counter(
        encoder,
        "transitions",
        "Changes of a service's state, by the state gone to",
    )?;
    for ((instance, service, to), n) in &counters.transitions {
        let labels = [
            ("instance", &**instance),
            ("service", service),
            ("to", state_name(*to)),
        ];
        total(&mut family, &labels, *n)?;
    }
    let mut family = counter(
        encoder,
        "reloads",
        "Reloads of Postfix by the sentinel, by how they ended; counted when that is known, 2 to 30 s after the signal",
    )?;
    for ((instance, result), n) in &counters.reloads {
        let result = match result {
            ReloadResult::Done => "done",
            ReloadResult::Failed => "failed",
        };
        total(&mut family, &[("instance", instance), ("result", result)], *n)?;
    }
    let help = "Connections closed because they broke a limit of stress mode, by the limit";
    let mut family = counter(encoder, "shed_connections", help)?;
    for ((instance, service, reason), n) in &counters.sheds {
        let labels = [
            ("instance", &**instance),
            ("service", service),
            ("reason", &reason.to_string()),
        ];
        total(&mut family, &labels, *n)?;
    }
    Ok(())
}

/// By listener where the probes count them, else the one number that the kernel has for the instance's namespace.
fn overflows(
    encoder: &mut DescriptorEncoder<'_>,
    counters: &Counters,
    rows: &[Row<'_>],
) -> Result<(), Error> {
    let help = "Connections that the kernel dropped at a full accept queue: with a label listener those of that \
                listener since it is watched, without one those of all listeners in the network namespace of the \
                instance since that began; an instance has one kind or the other, as probe overflow tells";
    let mut family = counter(encoder, "accept_overflows", help)?;
    for (instance, n) in &counters.accept_overflows {
        total(&mut family, &[("instance", instance)], *n)?;
    }
    for row in rows {
        for listener in &row.listeners {
            if let Some(n) = listener.counts.as_ref().and_then(|counts| counts.overflows) {
                total(&mut family, &row.with("listener", &listener.address), n)?;
            }
        }
    }
    Ok(())
}

fn probes(encoder: &mut DescriptorEncoder<'_>, report: &Report) -> Result<(), Error> {
    let help = "1 when the probe works as it should; 0 when a lesser source stands in for it, or none";
    let mut family = gauge(encoder, "probe_up", help)?;
    let mut seen = BTreeSet::new();
    for probe in report.probes.iter().filter(|probe| seen.insert(&probe.name)) {
        value(
            &mut family,
            &[("probe", &probe.name)],
            u32::from(probe.state == ProbeState::Ok),
        )?;
    }
    Ok(())
}

/// Nothing where the cluster is not asked.
fn kubernetes(encoder: &mut DescriptorEncoder<'_>, cluster: Option<&Kubernetes>) -> Result<(), Error> {
    let Some(cluster) = cluster else { return Ok(()) };
    let help = "1 while the Kubernetes API answers; 0 when what it said before has to do, or the configuration alone";
    let mut family = gauge(encoder, "kubernetes_up", help)?;
    family.encode_gauge(&u32::from(cluster.state == KubernetesState::Ok))?;
    let mut family = gauge(encoder, "kubernetes_pods", "Pods of this node that are known")?;
    family.encode_gauge(&cluster.pods)?;
    let help = "Events on pods: created; suppressed because they repeat the one before or are too many; dropped \
                because too many were waiting; failed because the API did not take them";
    let mut family = counter(encoder, "kubernetes_events", help)?;
    let KubernetesEvents {
        created,
        suppressed,
        dropped,
        failed,
    } = cluster.events;
    for (result, n) in [
        ("created", created),
        ("suppressed", suppressed),
        ("dropped", dropped),
        ("failed", failed),
    ] {
        total(&mut family, &[("result", result)], n)?;
    }
    Ok(())
}

/// What there is one of for each instance.
fn instances(encoder: &mut DescriptorEncoder<'_>, report: &Report) -> Result<(), Error> {
    let help = "1 when Postfix would live through reading its configuration files as they are now; 0 when a reload by \
                anybody would stop it";
    let mut family = gauge(encoder, "config_valid", help)?;
    let mut seen = BTreeSet::new();
    for instance in report.instances.iter().filter(|one| seen.insert(&one.id)) {
        value(
            &mut family,
            &[("instance", &instance.id)],
            u32::from(instance.config_valid),
        )?;
    }
    Ok(())
}

/// Where an instance is, and whether stress mode could be switched there.
fn places(encoder: &mut DescriptorEncoder<'_>, report: &Report) -> Result<(), Error> {
    let each = || {
        let mut seen = BTreeSet::new();
        report.instances.iter().filter(move |one| seen.insert(&one.id))
    };
    let help = "1 when stress mode can be switched for the instance; 0 when it is only watched, for the reason that status \
                gives";
    let mut family = gauge(encoder, "actionable", help)?;
    for instance in each() {
        let labels = [("instance", instance.id.as_str())];
        value(&mut family, &labels, u32::from(instance.actionable))?;
    }
    let help = "Always 1, for an instance in a container; which one is in the labels";
    let mut family = gauge(encoder, "container_info", help)?;
    for (instance, container) in each().filter_map(|one| Some((one, one.container.as_ref()?))) {
        let labels = [
            ("instance", instance.id.as_str()),
            ("container", container.name.as_str()),
            ("pod_uid", container.pod_uid.as_deref().unwrap_or_default()),
            ("hostname", container.hostname.as_deref().unwrap_or_default()),
        ];
        value(&mut family, &labels, 1_u32)?;
    }
    Ok(())
}

/// Names for the instances in pods, to join with the others by their label.
fn pods(encoder: &mut DescriptorEncoder<'_>, report: &Report) -> Result<(), Error> {
    let help = "Always 1, for an instance in a pod; which one, and what may be done with it, is in the labels, empty while \
                the API does not name it";
    let mut family = gauge(encoder, "pod_info", help)?;
    let mut seen = BTreeSet::new();
    for instance in report.instances.iter().filter(|one| seen.insert(&one.id)) {
        let Some(pod) = &instance.pod else { continue };
        let labels = [
            ("instance", instance.id.as_str()),
            ("namespace", pod.namespace.as_deref().unwrap_or_default()),
            ("pod", pod.name.as_deref().unwrap_or_default()),
            ("container", pod.container.as_deref().unwrap_or_default()),
            ("mode", pod.mode.as_str()),
        ];
        value(&mut family, &labels, 1_u32)?;
    }
    Ok(())
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Normal => "normal",
        State::Stressed => "stressed",
        State::Recovering => "recovering",
    }
}

fn gauge<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
) -> Result<MetricEncoder<'e>, Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)
}

/// `name` is without `_total`, which the encoder adds.
fn counter<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
) -> Result<MetricEncoder<'e>, Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Counter)
}

fn value(
    family: &mut MetricEncoder<'_>,
    labels: &[(&str, &str)],
    v: impl EncodeGaugeValue,
) -> Result<(), Error> {
    family.encode_family(&labels)?.encode_gauge(&v)
}

/// No value, no series.
fn optional(
    family: &mut MetricEncoder<'_>,
    labels: &[(&str, &str)],
    v: Option<impl EncodeGaugeValue>,
) -> Result<(), Error> {
    v.map_or(Ok(()), |v| value(family, labels, v))
}

fn total(family: &mut MetricEncoder<'_>, labels: &[(&str, &str)], n: u64) -> Result<(), Error> {
    family
        .encode_family(&labels)?
        .encode_counter::<NoLabelSet, u64, f64>(&n, None)
}
