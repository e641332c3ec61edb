//! One watched listener: from the counts of the CPUs to one reading that never goes down.

use sentinel_ebpf::{GREETING_BUCKETS, ListenerStats, SlotId};

use super::ListenerReading;
use super::high_water::HighWater;
use crate::signals::AcceptQueue;
use crate::status::ListenerCounts;

/// What the programs count rightly on this kernel; the rest of a reading is left out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sees {
    /// The self-test has shown that a new connection carries its listener's queue.
    pub(super) queue: bool,
    /// A source of overflows by listener is attached.
    pub(super) overflows: bool,
}

#[derive(Debug)]
pub(super) struct Watched {
    slot: SlotId,
    high_water: HighWater,
    /// The highest that was ever told: a retraction must not make a counter fall.
    early_queued: u64,
}

impl Watched {
    pub(super) fn new(slot: SlotId) -> Self {
        Self {
            slot,
            high_water: HighWater::default(),
            early_queued: 0,
        }
    }

    pub(super) fn slot(&self) -> SlotId {
        self.slot
    }

    /// `oldest` is the first epoch of the last minute.
    pub(super) fn read(&mut self, cpus: &[ListenerStats], oldest: u32, sees: Sees) -> ListenerReading {
        let sum = |count: fn(&ListenerStats) -> u64| cpus.iter().map(count).sum::<u64>();
        // Arrival and retraction may be counted on different CPUs, read one after the other.
        let net = sum(|cpu| cpu.early_queued).saturating_sub(sum(|cpu| cpu.early_queued_retracted));
        self.early_queued = self.early_queued.max(net);
        let mut log2 = vec![0; GREETING_BUCKETS];
        for cpu in cpus {
            log2.iter_mut()
                .zip(cpu.greetings_log2_us)
                .for_each(|(total, count)| *total += count);
        }
        ListenerReading {
            counts: ListenerCounts {
                connections: sum(|cpu| cpu.connections),
                early_queued: self.early_queued,
                early_before_greeting: sum(|cpu| cpu.early_before_greeting),
                overflows: sees.overflows.then(|| sum(|cpu| cpu.overflows)),
                greeting_log2_us: log2,
                greeting_sum_us: sum(|cpu| cpu.greetings_sum_us),
            },
            queue: if sees.queue {
                self.queue(cpus, oldest)
            } else {
                None
            },
            filled: sum(|cpu| cpu.filled),
            destroyed: sum(|cpu| cpu.destroyed),
            greetings_unsure: sum(|cpu| cpu.greetings_unsure),
        }
    }

    fn queue(&mut self, cpus: &[ListenerStats], oldest: u32) -> Option<AcceptQueue> {
        for cpu in cpus.iter().filter(|cpu| cpu.last_ns > 0) {
            self.high_water
                .note(cpu.epoch, cpu.high_water, cpu.previous_high_water);
        }
        let last = cpus
            .iter()
            .filter(|cpu| cpu.last_ns > 0)
            .max_by_key(|cpu| cpu.last_ns)?;
        Some(AcceptQueue {
            depth: last.last_depth,
            limit: last.last_limit,
            high_water: self.high_water.since(oldest),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Sees = Sees {
        queue: true,
        overflows: true,
    };
    const NOTHING: Sees = Sees {
        queue: false,
        overflows: false,
    };

    fn cpu() -> ListenerStats {
        ListenerStats::new(SlotId(0))
    }

    #[test]
    fn no_arrival_no_queue() {
        assert_eq!(Watched::new(SlotId(0)).read(&[cpu(), cpu()], 0, ALL).queue, None);
    }

    #[test]
    fn sums_the_cpus_and_takes_the_last_depth() {
        let one = ListenerStats {
            connections: 2,
            last_ns: 5,
            last_depth: 9,
            last_limit: 10,
            high_water: 9,
            ..cpu()
        };
        let two = ListenerStats {
            connections: 3,
            last_ns: 6,
            last_depth: 1,
            last_limit: 20,
            high_water: 4,
            overflows: 7,
            ..cpu()
        };
        let reading = Watched::new(SlotId(0)).read(&[one, two], 0, ALL);
        assert_eq!(reading.counts.connections, 5);
        assert_eq!(
            reading.queue,
            Some(AcceptQueue {
                depth: 1,
                limit: 20,
                high_water: 9
            })
        );
        assert_eq!(reading.counts.overflows, Some(7));
        let reading = Watched::new(SlotId(0)).read(&[one, two], 0, NOTHING);
        assert_eq!((reading.queue, reading.counts.overflows), (None, None));
    }

    #[test]
    fn a_retraction_does_not_make_the_counter_fall() {
        let mut watched = Watched::new(SlotId(0));
        let mut stats = ListenerStats {
            early_queued: 3,
            ..cpu()
        };
        assert_eq!(watched.read(&[stats], 0, ALL).counts.early_queued, 3);
        stats.early_queued_retracted = 1;
        assert_eq!(watched.read(&[stats], 0, ALL).counts.early_queued, 3);
        stats.early_queued = 5;
        assert_eq!(watched.read(&[stats], 0, ALL).counts.early_queued, 4);
    }
}
