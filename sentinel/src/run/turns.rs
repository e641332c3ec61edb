//! Whose turn it is. When the instances together want more time than a tick has, each still gets its look, only less
//! often, and the tick stays short: with it the answer to whatever happens in the first of them.

use std::time::Duration;

/// No instance is begun later than this into a tick; half of it, so that the last one begun has the other half.
const BEGIN_WITHIN: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Where the next tick begins.
    first: usize,
}

impl Turns {
    /// The order of this tick over `count` instances: each once, the one that has waited longest first.
    pub(super) fn order(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let first = if self.first < count { self.first } else { 0 };
        (first..count).chain(0..first)
    }

    /// Whether an instance may be begun, `spent` into the tick, as the `nth` of its order. The first may always, so
    /// that nothing can keep all of them from their turn.
    pub(super) fn may_begin(nth: usize, spent: Duration) -> bool {
        nth == 0 || spent < BEGIN_WITHIN
    }

    /// This one was not begun: the next tick begins with it.
    pub(super) fn resume_at(&mut self, index: usize) {
        self.first = index;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever each costs, and however their number changes, none waits for longer than all the others need.
        #[test]
        fn everyone_gets_a_turn(costs in prop::collection::vec(1u64..120, 1..40)) {
            let mut turns = Turns::default();
            let mut begun = vec![0_u32; costs.len()];
            for _ in 0..costs.len() {
                let mut spent = Duration::ZERO;
                for (nth, index) in turns.order(costs.len()).enumerate() {
                    if !Turns::may_begin(nth, spent) {
                        turns.resume_at(index);
                        break;
                    }
                    begun[index] += 1;
                    spent += Duration::from_millis(costs[index]);
                }
                // All but the last one that was begun fit.
                prop_assert!(spent < BEGIN_WITHIN + Duration::from_millis(120));
            }
            prop_assert!(begun.iter().all(|times| *times >= 1), "{begun:?}");
        }
    }

    #[test]
    fn an_order_has_each_once_even_when_there_are_fewer_than_before() {
        let mut turns = Turns::default();
        turns.resume_at(2);
        assert_eq!(turns.order(4).collect::<Vec<_>>(), [2, 3, 0, 1]);
        assert_eq!(turns.order(2).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(turns.order(0).count(), 0);
    }
}
