//! How often one Postfix may be reloaded. A reload restarts every service of it: queue manager, connection cache,
//! anvil counters (Postfix src/master/master.c, master_refresh()), so it is spent like money.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3600);

/// The reloads of one instance, shared by its services.
#[derive(Debug, Clone)]
pub struct Budget {
    min_interval: Duration,
    per_hour: u32,
    spent: VecDeque<Instant>,
    last_trip: Option<Instant>,
    /// Services with stress in force; each has one reload set aside, so that letting go never waits for the budget.
    owed: u32,
}

impl Budget {
    /// At most `per_hour` reloads in any hour, and `min_interval` between two that switch stress on.
    pub fn new(min_interval: Duration, per_hour: u32) -> Self {
        Self {
            min_interval,
            per_hour,
            spent: VecDeque::new(),
            last_trip: None,
            owed: 0,
        }
    }

    /// Whether a trip can be paid for, with its clear; else why not.
    pub fn may_trip(&self, now: Instant) -> Result<(), String> {
        if let Some(wait) = self
            .last_trip
            .and_then(|last| self.min_interval.checked_sub(now.saturating_duration_since(last)))
            .filter(|wait| !wait.is_zero())
        {
            return Err(format!(
                "the last reload that switched stress on is less than {} s ago; {} s to go",
                self.min_interval.as_secs(),
                wait.as_secs_f64().ceil()
            ));
        }
        if self.in_last_hour(now) + self.owed + 2 > self.per_hour {
            return Err(format!(
                "the budget of {} reloads an hour is used up",
                self.per_hour
            ));
        }
        Ok(())
    }

    /// A trip reloads now, and owes a reload for its clear.
    pub fn trip(&mut self, now: Instant) {
        self.spend(now);
        self.last_trip = Some(now);
        self.owed += 1;
    }

    /// A clear reloads now, out of what was set aside for it.
    pub fn clear(&mut self, now: Instant) {
        self.spend(now);
        self.release();
    }

    /// Whether a reload can be paid for that gives back what nobody has set one aside for.
    pub fn may_give_back(&self, now: Instant) -> bool {
        self.in_last_hour(now) + self.owed < self.per_hour
    }

    /// Such a reload.
    pub fn give_back(&mut self, now: Instant) {
        self.spend(now);
    }

    /// What was set aside for a clear is not needed: somebody else has taken our lines out.
    pub fn release(&mut self) {
        self.owed = self.owed.saturating_sub(1);
    }

    fn spend(&mut self, now: Instant) {
        while self
            .spent
            .front()
            .is_some_and(|at| now.saturating_duration_since(*at) >= HOUR)
        {
            self.spent.pop_front();
        }
        self.spent.push_back(now);
    }

    fn in_last_hour(&self, now: Instant) -> u32 {
        let recent = self
            .spent
            .iter()
            .filter(|at| now.saturating_duration_since(**at) < HOUR)
            .count();
        u32::try_from(recent).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clear_is_paid_for_before_the_trip_is_allowed() {
        let start = crate::clock::now().mono;
        let mut budget = Budget::new(Duration::from_secs(60), 4);
        for episode in 0..2 {
            let at = start + Duration::from_secs(episode * 120);
            budget.may_trip(at).unwrap();
            budget.trip(at);
            budget.clear(at + Duration::from_secs(59));
        }
        let third = start + Duration::from_secs(240);
        assert!(budget.may_trip(third).unwrap_err().contains("4 reloads an hour"));
        budget.may_trip(start + HOUR + Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn two_services_in_force_keep_two_reloads_aside() {
        let start = crate::clock::now().mono;
        let mut budget = Budget::new(Duration::ZERO, 4);
        budget.trip(start);
        budget.may_trip(start).unwrap();
        budget.trip(start);
        budget.may_trip(start).unwrap_err();
    }

    /// Lines that somebody put back are given back out of what is left beside the clears.
    #[test]
    fn what_nobody_set_aside_is_paid_for_too() {
        let start = crate::clock::now().mono;
        let mut budget = Budget::new(Duration::ZERO, 4);
        budget.trip(start);
        for _ in 0..2 {
            assert!(budget.may_give_back(start));
            budget.give_back(start);
        }
        assert!(!budget.may_give_back(start), "the last one is the clear's");
        budget.clear(start);
        assert!(!budget.may_give_back(start + Duration::from_secs(3599)));
        assert!(budget.may_give_back(start + HOUR));
    }

    #[test]
    fn a_trip_waits_for_the_interval() {
        let start = crate::clock::now().mono;
        let mut budget = Budget::new(Duration::from_secs(60), 100);
        budget.trip(start);
        assert!(
            budget
                .may_trip(start + Duration::from_secs(45))
                .unwrap_err()
                .contains("15 s to go")
        );
        budget.may_trip(start + Duration::from_secs(60)).unwrap();
    }
}
