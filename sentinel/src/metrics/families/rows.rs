//! The families that have a series for each service or listener, and which of those have one: as many as are bounded,
//! and none twice.

use std::collections::BTreeSet;
use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::{counter, gauge, optional, state_name, total, value};
use crate::controller::State;
use crate::status::{AcceptQueue, Listener, ListenerCounts, Report, Service};

/// What there is one of for each service.
pub(super) fn services(encoder: &mut DescriptorEncoder<'_>, rows: &[Row<'_>]) -> Result<(), Error> {
    let mut family = gauge(
        encoder,
        "pressure",
        "Busy smtpd processes over the process limit, 0 to 1",
    )?;
    for row in rows {
        optional(&mut family, &row.labels(), row.service.pressure)?;
    }
    let mut family = gauge(
        encoder,
        "processes",
        "smtpd processes of the service, by what they are doing",
    )?;
    for row in rows {
        optional(&mut family, &row.with("state", "busy"), row.service.busy)?;
        // The two are read one after the other, so busy can be ahead of the process count for a moment.
        let idle = row
            .service
            .processes
            .zip(row.service.busy)
            .map(|(all, busy)| all.saturating_sub(busy));
        optional(&mut family, &row.with("state", "idle"), idle)?;
    }
    let mut family = gauge(
        encoder,
        "process_limit",
        "maxproc of the service; absent when unlimited or not known",
    )?;
    for row in rows {
        optional(&mut family, &row.labels(), row.service.limit)?;
    }
    let mut family = gauge(
        encoder,
        "headroom_slots",
        "Slots of process_limit that were added by us and go again; absent while process_limit is",
    )?;
    for row in rows {
        let own = row.service.own_limit;
        let added = |limit: u32| own.map_or(0, |own| limit.saturating_sub(own));
        optional(&mut family, &row.labels(), row.service.limit.map(added))?;
    }
    let mut family = gauge(
        encoder,
        "state",
        "1 for the state that the service is in, 0 for the others",
    )?;
    for row in rows {
        for state in [State::Normal, State::Stressed, State::Recovering] {
            let is = u32::from(row.service.state == state);
            value(&mut family, &row.with("state", state_name(state)), is)?;
        }
    }
    let help = "1 when the master's own stress mode is on for the service, 0 when not";
    let mut family = gauge(encoder, "native_stress", help)?;
    for row in rows {
        optional(
            &mut family,
            &row.labels(),
            row.service.native_stress.map(u32::from),
        )?;
    }
    Ok(())
}

pub(super) fn accept_queues(encoder: &mut DescriptorEncoder<'_>, rows: &[Row<'_>]) -> Result<(), Error> {
    type Part = fn(&AcceptQueue) -> u32;
    let families: [(&str, &str, Part); 3] = [
        (
            "accept_queue_depth",
            "Connections that wait for accept",
            |queue| queue.depth,
        ),
        (
            "accept_queue_limit",
            "Connections that may wait for accept: the backlog",
            |queue| queue.limit,
        ),
        (
            "accept_queue_high_water",
            "The deepest that the accept queue was within the last minute",
            |queue| queue.high_water,
        ),
    ];
    for (name, help, part) in families {
        let mut family = gauge(encoder, name, help)?;
        for row in rows {
            for listener in &row.listeners {
                let depth = listener.accept_queue.as_ref().map(part);
                optional(&mut family, &row.with("listener", &listener.address), depth)?;
            }
            // A pass service has no TCP listener of its own; should its Unix socket's queue be known, it counts.
            if row.service.listeners.is_empty() {
                optional(
                    &mut family,
                    &row.labels(),
                    row.service.accept_queue.as_ref().map(part),
                )?;
            }
        }
    }
    Ok(())
}

pub(super) fn connections(encoder: &mut DescriptorEncoder<'_>, rows: &[Row<'_>]) -> Result<(), Error> {
    let counted = || {
        rows.iter().flat_map(|row| {
            let listeners = row.listeners.iter();
            listeners.filter_map(move |one| Some((row.with("listener", &one.address), one.counts.as_ref()?)))
        })
    };
    let mut family = counter(encoder, "connections", "TCP connections established")?;
    for (labels, counts) in counted() {
        total(&mut family, &labels, counts.connections)?;
    }
    let help =
        "Clients that left before the greeting: while queued for accept, or accepted and not yet greeted";
    let mut family = counter(encoder, "early_disconnects", help)?;
    for ([instance, service, listener], counts) in counted() {
        for (phase, n) in [
            ("queued", counts.early_queued),
            ("before_greeting", counts.early_before_greeting),
        ] {
            total(&mut family, &[instance, service, listener, ("phase", phase)], n)?;
        }
    }
    let help = "From a connection established to the first byte of the greeting";
    let mut family =
        encoder.encode_descriptor("greeting", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for (labels, counts) in counted() {
        let (sum, count, buckets) = greeting_histogram(counts);
        family
            .encode_family(&&labels[..])?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}

/// Sum in seconds, count, and each bucket's own count with its upper bound in seconds.
///
/// Element i counts whole microseconds below 2^(i+1), so every bound is one of ours. The last element also holds
/// whatever is longer, so its only bound is +Inf.
fn greeting_histogram(counts: &ListenerCounts) -> (f64, u64, Vec<(f64, u64)>) {
    const MICROS: f64 = 1e6;
    let (last, bounded) = match counts.greeting_log2_us.split_last() {
        Some((last, bounded)) => (*last, bounded),
        None => (0, &[][..]),
    };
    let upper_bounds = (1_u8..).map(|i| f64::from(i).exp2() / MICROS);
    let mut buckets: Vec<_> = upper_bounds.zip(bounded.iter().copied()).collect();
    buckets.push((f64::INFINITY, last));
    (
        counts.greeting_sum_us as f64 / MICROS,
        counts.greeting_log2_us.iter().sum(),
        buckets,
    )
}

/// A service with what its series are labelled by.
pub(super) struct Row<'a> {
    instance: &'a str,
    label: String,
    service: &'a Service,
    pub(super) listeners: Vec<&'a Listener>,
}

/// Services in one exposition, over all instances. Their number is an administrator's; that of the series must not be.
const MOST_SERVICES: usize = 512;

/// Listeners in one exposition, over all services: as many as the probes count.
const MOST_LISTENERS: usize = sentinel_ebpf::MAX_LISTENERS as usize;

/// How many there were besides.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Omitted {
    pub(super) services: usize,
    pub(super) listeners: usize,
}

impl Row<'_> {
    /// Each pair of labels once, whatever the report holds: Prometheus drops the whole scrape over one series that is
    /// there twice, and master.cf can name a service twice.
    pub(super) fn of(report: &Report) -> (Vec<Row<'_>>, Omitted) {
        let mut rows: Vec<Row<'_>> = Vec::new();
        let mut omitted = Omitted::default();
        let mut seen = BTreeSet::new();
        let mut room = MOST_LISTENERS;
        for instance in &report.instances {
            for service in &instance.services {
                let label = service.label();
                if !seen.insert((&instance.id, label.clone())) {
                    continue;
                }
                if rows.len() == MOST_SERVICES {
                    omitted.services += 1;
                    omitted.listeners += service.listeners.len();
                    continue;
                }
                let mut addresses = BTreeSet::new();
                let mut listeners: Vec<_> = service
                    .listeners
                    .iter()
                    .filter(|one| addresses.insert(&one.address))
                    .collect();
                // Those that are counted come first.
                listeners.sort_by_key(|one| one.counts.is_none());
                omitted.listeners += listeners.len().saturating_sub(room);
                listeners.truncate(room);
                room -= listeners.len();
                rows.push(Row {
                    instance: &instance.id,
                    label,
                    service,
                    listeners,
                });
            }
        }
        (rows, omitted)
    }

    fn labels(&self) -> [(&str, &str); 2] {
        [("instance", self.instance), ("service", &self.label)]
    }

    pub(super) fn with<'a>(&'a self, name: &'a str, value: &'a str) -> [(&'a str, &'a str); 3] {
        let [instance, service] = self.labels();
        [instance, service, (name, value)]
    }
}
