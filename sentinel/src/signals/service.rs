//! From one look at a service to its [`Sample`]: the raw finds of all sources in, readings out.
//!
//! Keeps the windows that rates, quantiles and peaks are taken over. Reads nothing itself: what was found is handed
//! in, so that every rule here is tested without a kernel.

use std::time::{Duration, Instant};

use super::connections::holders;
use super::window::{Peak, Window};
use super::{AcceptQueue, GreetingLatency, Holders, ListenerId, ProcessLimit, Reading, Sample};
use crate::postfix::processes::Smtpd;
use crate::probes::{ListenerReading, quantile_ms};
use crate::sock_diag::{Connection, ListenSocket};

/// The rate of early disconnects is taken over this long.
const EARLY_OVER: Duration = Duration::from_secs(5);

/// Greeting quantiles and the high-water mark look back this far, as the BPF side does for its own mark.
const LOOK_BACK: Duration = Duration::from_secs(60);

/// What one look at a service found.
#[derive(Debug)]
pub struct Look {
    pub at: Instant,
    pub limit: Reading<ProcessLimit>,
    /// The administrator's maxproc, while headroom of ours is in force.
    pub own_limit: Option<u32>,
    /// Its smtpd processes.
    pub smtpd: Reading<Vec<Smtpd>>,
    pub slots: Slots,
    /// Its listening sockets, as this look found them.
    pub listeners: Vec<ListenerLook>,
    /// Why there are no listeners to look at; empty when there are.
    pub no_listeners: String,
    /// The queue of the socket through which postscreen hands connections over, for a pass service.
    pub handover: Option<Reading<AcceptQueue>>,
}

/// How the busy slots of the service can be seen.
#[derive(Debug)]
pub enum Slots {
    /// By the accepted connections of its listeners.
    Connections(Reading<Vec<Connection>>),
    /// By the lock that idle processes wait for, where the sockets cannot be seen: how many, not what they do.
    BusyByLock(Reading<u32>),
}

/// One listening socket of the service.
#[derive(Debug, Clone)]
pub struct ListenerLook {
    pub id: ListenerId,
    pub socket: ListenSocket,
    /// What the BPF probes counted; `None` without them.
    pub probed: Option<ListenerReading>,
}

/// The windows of one service.
#[derive(Debug)]
pub struct ServiceSignals {
    early: Window<u64>,
    greetings: Window<Vec<u64>>,
    polled_depth: Peak,
}

impl Default for ServiceSignals {
    fn default() -> Self {
        Self {
            early: Window::new(EARLY_OVER),
            greetings: Window::new(LOOK_BACK),
            polled_depth: Peak::new(LOOK_BACK),
        }
    }
}

impl ServiceSignals {
    /// Makes the sample of this look.
    pub fn sample(&mut self, look: &Look, held_without_stress: Reading<f64>) -> Sample {
        let at = look.at;
        let (busy, holders) = slots(look);
        Sample {
            at,
            limit: look.limit.clone(),
            own_limit: look.own_limit,
            busy,
            holders,
            processes: look
                .smtpd
                .as_ref()
                .map(|smtpd| u32::try_from(smtpd.len()).unwrap_or(u32::MAX)),
            queue: self.queue(look),
            early_disconnects_per_s: self.early_rate(look),
            greeting: self.greeting(look),
            native_stress: native_stress(look),
            held_without_stress,
        }
    }

    fn queue(&mut self, look: &Look) -> Reading<AcceptQueue> {
        if let Some(handover) = &look.handover {
            let polled = &mut self.polled_depth;
            return handover.clone().map(|queue| AcceptQueue {
                high_water: polled.see(look.at, queue.depth),
                ..queue
            });
        }
        let Some(fullest) = look
            .listeners
            .iter()
            .map(|listener| listener.socket)
            .max_by_key(|socket| socket.depth)
        else {
            return Reading::unavailable(&look.no_listeners);
        };
        let polled = self.polled_depth.see(look.at, fullest.depth);
        // `None` before the first arrival, and where the probes do not see the queue at all.
        let exact = look
            .listeners
            .iter()
            .filter_map(|l| l.probed.as_ref()?.queue)
            .map(|q| q.high_water)
            .max();
        let queue = AcceptQueue {
            depth: fullest.depth,
            limit: fullest.backlog,
            // What waited before the probes were attached was only polled.
            high_water: exact.unwrap_or(0).max(polled),
        };
        if exact.is_some() {
            Reading::exact(queue, look.at)
        } else {
            Reading::sampled(queue, look.at)
        }
    }

    fn early_rate(&mut self, look: &Look) -> Reading<f64> {
        let total = total(look, |probed| {
            probed.counts.early_queued + probed.counts.early_before_greeting
        });
        total.map(|total| {
            self.early.mark(look.at, total);
            match self.early.oldest(look.at) {
                Some((age, then)) if !age.is_zero() => total.saturating_sub(*then) as f64 / age.as_secs_f64(),
                _ => 0.0,
            }
        })
    }

    fn greeting(&mut self, look: &Look) -> Reading<GreetingLatency> {
        let mut sum: Vec<u64> = Vec::new();
        for listener in &look.listeners {
            let Some(probed) = &listener.probed else {
                return Reading::unavailable("no BPF probe sees the greetings");
            };
            sum.resize(sum.len().max(probed.counts.greeting_log2_us.len()), 0);
            for (all, one) in sum.iter_mut().zip(&probed.counts.greeting_log2_us) {
                *all += one;
            }
        }
        if look.listeners.is_empty() {
            return Reading::unavailable(&look.no_listeners);
        }
        self.greetings.mark(look.at, sum.clone());
        let recent: Vec<u64> = match self.greetings.oldest(look.at) {
            Some((_, then)) => sum
                .iter()
                .enumerate()
                .map(|(bucket, count)| count.saturating_sub(then.get(bucket).copied().unwrap_or(0)))
                .collect(),
            None => sum,
        };
        match (quantile_ms(&recent, 0.5), quantile_ms(&recent, 0.99)) {
            (Some(p50_ms), Some(p99_ms)) => Reading::exact(
                GreetingLatency {
                    p50_ms,
                    p99_ms,
                    count: recent.iter().sum(),
                },
                look.at,
            ),
            _ => Reading::unavailable("nobody was greeted in the last minute"),
        }
    }
}

fn slots(look: &Look) -> (Reading<u32>, Reading<Holders>) {
    match &look.slots {
        Slots::Connections(connections) => {
            let holders = connections.clone().map(|connections| holders(&connections));
            (holders.clone().map(|holders| holders.total()), holders)
        }
        Slots::BusyByLock(busy) => (
            busy.clone(),
            Reading::unavailable("the sockets of the service cannot be seen"),
        ),
    }
}

/// The sum over all listeners, known only when every one of them is probed.
fn total(look: &Look, count: impl Fn(&ListenerReading) -> u64) -> Reading<u64> {
    if look.listeners.is_empty() {
        return Reading::unavailable(&look.no_listeners);
    }
    match look
        .listeners
        .iter()
        .map(|listener| listener.probed.as_ref().map(&count))
        .sum::<Option<u64>>()
    {
        Some(total) => Reading::exact(total, look.at),
        None => Reading::unavailable("no BPF probe counts the connections"),
    }
}

/// Master's own stress as the newest smtpd shows it: master decides anew at each fork (src/master/master_spawn.c).
fn native_stress(look: &Look) -> Reading<bool> {
    match &look.smtpd {
        Reading::Unavailable(reason) => Reading::unavailable(reason),
        Reading::Known { value, at, .. } => {
            match value.iter().max_by_key(|smtpd| (smtpd.start_time, smtpd.pid)) {
                None => Reading::unavailable("no smtpd is running"),
                Some(newest) => match newest.native_stress {
                    Some(on) => Reading::exact(on, *at),
                    // Loopback-only, maxproc 0 or 1: master gives such a service no `-o stress=` (master_ent.c).
                    None => Reading::exact(false, *at),
                },
            }
        }
    }
}
