//! An exact maximum over the last minute, out of maxima that the BPF programs keep for one epoch each.
//!
//! An epoch is about a second. The programs keep the maximum of the current epoch and of the one before it, so that
//! what comes between a reading and the next epoch is not lost; here the past minute's are kept.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(60);
const EPOCH: Duration = Duration::from_secs(1);

/// The epochs of the last minute, for all listeners alike.
#[derive(Debug)]
pub(super) struct Epochs {
    current: u32,
    since: Instant,
    /// Past epochs and when each ended, oldest first.
    past: VecDeque<(u32, Instant)>,
}

impl Epochs {
    /// What the programs find in a new map.
    const FIRST: u32 = 0;

    pub(super) fn new(now: Instant) -> Self {
        Self {
            current: Self::FIRST,
            since: now,
            past: VecDeque::new(),
        }
    }

    /// The oldest epoch that reaches into the minute before `now`.
    pub(super) fn oldest_within_a_minute(&mut self, now: Instant) -> u32 {
        while self
            .past
            .front()
            .is_some_and(|(_, end)| now.saturating_duration_since(*end) >= WINDOW)
        {
            self.past.pop_front();
        }
        self.past.front().map_or(self.current, |(epoch, _)| *epoch)
    }

    /// The next epoch, if the current one is old enough and every listener has been read in it.
    pub(super) fn due(&self, now: Instant) -> Option<u32> {
        (now.saturating_duration_since(self.since) >= EPOCH).then_some(self.current + 1)
    }

    /// Begins the next epoch, once the programs have been told.
    pub(super) fn advance(&mut self, now: Instant) {
        self.past.push_back((self.current, now));
        self.current += 1;
        self.since = now;
    }
}

/// The maxima of one listener, by epoch, oldest first.
#[derive(Debug, Default)]
pub(super) struct HighWater {
    by_epoch: VecDeque<(u32, u32)>,
}

impl HighWater {
    /// Takes in what a CPU keeps: the maximum of `epoch`, the last in which it saw an arrival, and of the one before.
    pub(super) fn note(&mut self, epoch: u32, high_water: u32, previous: u32) {
        if let Some(before) = epoch.checked_sub(1) {
            self.note_one(before, previous);
        }
        self.note_one(epoch, high_water);
    }

    /// The maximum from epoch `oldest` on; what is older is forgotten.
    pub(super) fn since(&mut self, oldest: u32) -> u32 {
        while self.by_epoch.front().is_some_and(|(epoch, _)| *epoch < oldest) {
            self.by_epoch.pop_front();
        }
        self.by_epoch.iter().map(|(_, depth)| *depth).max().unwrap_or(0)
    }

    fn note_one(&mut self, epoch: u32, depth: u32) {
        // Nearly always the last or the last but one.
        let place = self.by_epoch.iter().rposition(|(known, _)| *known <= epoch);
        match place {
            Some(at) if self.by_epoch[at].0 == epoch => self.by_epoch[at].1 = self.by_epoch[at].1.max(depth),
            Some(at) => self.by_epoch.insert(at + 1, (epoch, depth)),
            None => self.by_epoch.push_front((epoch, depth)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock;

    /// What a BPF program keeps on one CPU (sentinel-ebpf, state.rs, note_queue).
    #[derive(Default)]
    struct Cpu {
        epoch: u32,
        high: u32,
        previous: u32,
    }

    impl Cpu {
        fn arrival(&mut self, epoch: u32, depth: u32) {
            if self.epoch != epoch {
                self.previous = if self.epoch + 1 == epoch { self.high } else { 0 };
                self.high = 0;
                self.epoch = epoch;
            }
            self.high = self.high.max(depth);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arrival {
            cpu: usize,
            depth: u32,
        },
        /// Arrivals between the reading of the maps and the new epoch are the case that the second maximum is for.
        Read {
            late: Option<(usize, u32)>,
        },
    }

    fn step() -> impl Strategy<Value = (u64, Step)> {
        let arrival = (0..2_usize, 1..1000_u32).prop_map(|(cpu, depth)| Step::Arrival { cpu, depth });
        let read = proptest::option::of((0..2_usize, 1..1000_u32)).prop_map(|late| Step::Read { late });
        (0..5000_u64, prop_oneof![arrival, read])
    }

    proptest! {
        /// Never less than any depth of the last minute; never a depth from before the epoch that was running then.
        #[test]
        fn is_the_maximum_of_the_last_minute(steps in proptest::collection::vec(step(), 1..200)) {
            let start = clock::now().mono;
            let mut epochs = Epochs::new(start);
            let mut high_water = HighWater::default();
            let mut cpus = [Cpu::default(), Cpu::default()];
            let mut arrivals: Vec<(Instant, u32)> = Vec::new();
            let mut beginnings = vec![start];
            let mut now = start;
            for (millis, step) in steps {
                now += Duration::from_millis(millis);
                match step {
                    Step::Arrival { cpu, depth } => {
                        cpus[cpu].arrival(epochs.current, depth);
                        arrivals.push((now, depth));
                    }
                    Step::Read { late } => {
                        let oldest = epochs.oldest_within_a_minute(now);
                        for cpu in &cpus {
                            high_water.note(cpu.epoch, cpu.high, cpu.previous);
                        }
                        let got = high_water.since(oldest);
                        let at_least = arrivals.iter().filter(|(at, _)| now - *at < WINDOW).map(|(_, depth)| *depth).max();
                        prop_assert!(got >= at_least.unwrap_or(0));
                        let bound = beginnings.iter().rev().find(|begin| now - **begin >= WINDOW);
                        let bound = bound.copied().unwrap_or(start);
                        let at_most = arrivals.iter().filter(|(at, _)| *at >= bound).map(|(_, depth)| *depth).max();
                        prop_assert!(got <= at_most.unwrap_or(0), "{got} > {at_most:?}");
                        if let Some((cpu, depth)) = late {
                            cpus[cpu].arrival(epochs.current, depth);
                            arrivals.push((now, depth));
                        }
                        if epochs.due(now).is_some() {
                            epochs.advance(now);
                            beginnings.push(now);
                        }
                    }
                }
            }
        }
    }
}
