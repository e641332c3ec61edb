//! The board on which the tick pins its latest [`Report`], and from which /metrics, the HTTP status and the control
//! socket read. Holds the counters that no single report can carry. Never waits for a reader, and reads no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Report;
use crate::controller::State;
use crate::probes::Evictions;
use crate::shed::Reason;

/// Above this many, the counters of instances and services that are gone are dropped. Until then they stay: the reload that a
/// master did not survive must not vanish together with the master.
const KEPT_COUNTERS: usize = 1024;

/// Services of one instance whose counters begin at 0; those of others begin with the first event.
const SERVICES: usize = 64;

/// Shared by reference; all methods take `&self`.
#[derive(Debug)]
pub struct Board {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    report: Option<Arc<Report>>,
    /// When the last report came; at first, when the daemon started.
    at: Instant,
    counters: Counters,
}

/// Since the daemon started, but for the kernel's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// By instance, service ("smtp/inet") and the state gone to.
    pub transitions: BTreeMap<(String, String, State), u64>,
    /// By instance.
    pub reloads: BTreeMap<(String, ReloadResult), u64>,
    /// Connections closed, by instance, service and the limit that they broke.
    pub sheds: BTreeMap<(String, String, Reason), u64>,
    /// By instance: ListenOverflows of its network namespace, since that began. Absent while not known, and where the
    /// probes count by listener.
    pub accept_overflows: BTreeMap<String, u64>,
    pub ticks: Ticks,
    /// How often an instance had to wait for a later tick, because the others took all the time of this one.
    pub deferred: u64,
    /// Absent without the BPF probes.
    pub evictions: Option<Evictions>,
}

/// How long the ticks took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ticks {
    /// Element i: ticks of at most the i-th of [`Ticks::BOUNDS_MS`], and longer than the one before; the last element:
    /// those that were longer than all.
    pub counts: [u64; Ticks::BOUNDS_MS.len() + 1],
    pub sum: Duration,
}

impl Ticks {
    /// 100 is the time between two ticks: what is longer makes the next one late.
    pub const BOUNDS_MS: [u64; 10] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];

    fn add(&mut self, took: Duration) {
        let bucket = Self::BOUNDS_MS
            .iter()
            .position(|bound| took <= Duration::from_millis(*bound))
            .unwrap_or(Self::BOUNDS_MS.len());
        self.counts[bucket] += 1;
        self.sum += took;
    }
}

/// How a reload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReloadResult {
    /// The master lives and new smtpd processes carry what was wanted.
    Done,
    Failed,
}

impl Board {
    /// An empty board of a daemon that starts at `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            inner: Mutex::new(Inner {
                report: None,
                at: now,
                counters: Counters::default(),
            }),
        }
    }

    /// Pins the report that was made at `now`, and begins the counters of whatever is new in it at 0: a counter that
    /// first appears as 1 shows Prometheus no increase.
    pub fn publish(&self, report: Report, now: Instant) {
        let mut inner = self.lock();
        inner.counters.begin(&report);
        inner.report = Some(Arc::new(report));
        inner.at = now;
    }

    /// The latest report; `None` before the first sample.
    pub fn report(&self) -> Option<Arc<Report>> {
        self.lock().report.clone()
    }

    /// A copy of the counters as they are.
    pub fn counters(&self) -> Counters {
        self.lock().counters.clone()
    }

    /// How long ago, at `now`, the last report came, or the daemon started.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.lock().at)
    }

    /// Counts that `service` ("smtp/inet") of `instance` went to `to`.
    pub fn count_transition(&self, instance: &str, service: &str, to: State) {
        let key = (instance.to_owned(), service.to_owned(), to);
        *self.lock().counters.transitions.entry(key).or_insert(0) += 1;
    }

    /// Counts a reload of `instance`.
    pub fn count_reload(&self, instance: &str, result: ReloadResult) {
        *self
            .lock()
            .counters
            .reloads
            .entry((instance.to_owned(), result))
            .or_insert(0) += 1;
    }

    /// Counts a connection of `service` ("smtp/inet") of `instance` that was closed for `reason`.
    pub fn count_shed(&self, instance: &str, service: &str, reason: Reason) {
        let key = (instance.to_owned(), service.to_owned(), reason);
        *self.lock().counters.sheds.entry(key).or_insert(0) += 1;
    }

    /// Says what ListenOverflows of the network namespace of `instance` stands at; `None` when that cannot be read, or
    /// is not wanted because the listeners have counts of their own.
    pub fn set_accept_overflows(&self, instance: &str, total: Option<u64>) {
        let overflows = &mut self.lock().counters.accept_overflows;
        match total {
            Some(total) => overflows.insert(instance.to_owned(), total),
            None => overflows.remove(instance),
        };
    }

    /// Counts a tick.
    pub fn count_tick(&self, took: Duration) {
        self.lock().counters.ticks.add(took);
    }

    /// Counts `instances` that had to wait for a later tick.
    pub fn count_deferred(&self, instances: u64) {
        self.lock().counters.deferred += instances;
    }

    /// Says how much the BPF maps have forgotten by now; `None` when there are none.
    pub fn set_evictions(&self, evictions: Option<Evictions>) {
        self.lock().counters.evictions = evictions;
    }

    /// A panic of another thread leaves whole values behind: nothing in here is changed in two steps.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counters {
    fn begin(&mut self, report: &Report) {
        for instance in &report.instances {
            for result in [ReloadResult::Done, ReloadResult::Failed] {
                self.reloads.entry((instance.id.clone(), result)).or_insert(0);
            }
            for service in instance.services.iter().take(SERVICES) {
                for reason in Reason::ALL {
                    self.sheds
                        .entry((instance.id.clone(), service.label(), reason))
                        .or_insert(0);
                }
                for to in [State::Normal, State::Stressed, State::Recovering] {
                    self.transitions
                        .entry((instance.id.clone(), service.label(), to))
                        .or_insert(0);
                }
            }
        }
        // What the kernel counts is not ours to remember: an instance that is gone has no namespace to read it from.
        let present: BTreeSet<&str> = report
            .instances
            .iter()
            .map(|instance| instance.id.as_str())
            .collect();
        self.accept_overflows
            .retain(|instance, _| present.contains(instance.as_str()));
        if self.transitions.len() + self.reloads.len() + self.sheds.len() > KEPT_COUNTERS {
            let services: BTreeSet<(&str, String)> = report
                .instances
                .iter()
                .flat_map(|instance| {
                    let labels = instance.services.iter().map(super::Service::label);
                    labels.map(|service| (instance.id.as_str(), service))
                })
                .collect();
            let kept = |instance: &str, service: &String| services.contains(&(instance, service.clone()));
            self.sheds
                .retain(|(instance, service, _), _| kept(instance, service));
            self.transitions
                .retain(|(instance, service, _), _| kept(instance, service));
            self.reloads
                .retain(|(instance, _), _| present.contains(instance.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    fn start() -> Instant {
        crate::clock::now().mono
    }

    #[test]
    fn counters_begin_at_zero_and_outlive_their_instance() {
        let board = Board::new(start());
        board.publish(report(), start());
        let id = report().instances[0].id.clone();
        assert_eq!(board.counters().reloads[&(id.clone(), ReloadResult::Failed)], 0);
        board.count_reload(&id, ReloadResult::Failed);
        board.count_transition(&id, "smtp/inet", State::Stressed);
        board.set_accept_overflows(&id, Some(7));
        board.publish(Report::default(), start());
        let counters = board.counters();
        assert_eq!(counters.reloads[&(id.clone(), ReloadResult::Failed)], 1);
        assert_eq!(
            counters.transitions[&(id, "smtp/inet".to_owned(), State::Stressed)],
            1
        );
        assert!(counters.accept_overflows.is_empty());
    }

    #[test]
    fn counters_are_bounded_however_many_instances_come_and_go() {
        let board = Board::new(start());
        for n in 0..2000 {
            let mut report = report();
            report.instances.truncate(1);
            report.instances[0].id = format!("/pods/{n}");
            board.publish(report, start());
        }
        let counters = board.counters();
        assert!(counters.reloads.len() + counters.transitions.len() + counters.sheds.len() <= KEPT_COUNTERS);
        assert!(
            counters
                .reloads
                .contains_key(&("/pods/1999".to_owned(), ReloadResult::Done))
        );
    }

    /// Who may write a master.cf can give an entry another name every second.
    #[test]
    fn counters_are_bounded_however_many_services_come_and_go() {
        let board = Board::new(start());
        let mut report = report();
        report.instances.truncate(1);
        report.instances[0].services.truncate(1);
        let id = report.instances[0].id.clone();
        for n in 0..2000 {
            report.instances[0].services[0].name = format!("192.0.2.1:{n}");
            board.publish(report.clone(), start());
            board.count_transition(&id, &format!("192.0.2.1:{n}/inet"), State::Stressed);
        }
        let counters = board.counters();
        assert!(counters.transitions.len() + counters.sheds.len() <= KEPT_COUNTERS);
        let last = (id, "192.0.2.1:1999/inet".to_owned(), State::Stressed);
        assert_eq!(counters.transitions[&last], 1);
    }

    #[test]
    fn age_runs_from_the_start_and_then_from_the_last_report() {
        let t0 = start();
        let board = Board::new(t0);
        let later = |s| t0 + Duration::from_secs(s);
        assert_eq!(board.age(later(3)), Duration::from_secs(3));
        assert!(board.report().is_none());
        board.publish(Report::default(), later(5));
        assert_eq!(board.age(later(6)), Duration::from_secs(1));
        assert_eq!(board.age(later(4)), Duration::ZERO);
    }
}
