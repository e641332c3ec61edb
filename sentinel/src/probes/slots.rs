//! Which slot of the kernel's array counts which listener.

use std::collections::VecDeque;

use sentinel_ebpf::{MAX_LISTENERS, SlotId};

/// The free slots. The one that has been free for longest is given away first, under a new [`SlotId`]: connections that
/// still carry the old one are not counted on its next owner.
#[derive(Debug)]
pub(super) struct Slots {
    free: VecDeque<SlotId>,
}

impl Slots {
    pub(super) const COUNT: u32 = MAX_LISTENERS;

    pub(super) fn new() -> Self {
        // The first ids are not 0: that is what the slots of a new map say.
        Self {
            free: (0..MAX_LISTENERS).map(|index| SlotId(index).next()).collect(),
        }
    }

    pub(super) fn take(&mut self) -> Option<SlotId> {
        self.free.pop_front()
    }

    pub(super) fn free(&mut self, slot: SlotId) {
        self.free.push_back(slot.next());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_slot_comes_back_under_another_id() {
        let mut slots = Slots::new();
        let all: Vec<SlotId> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(all.len(), MAX_LISTENERS as usize);
        assert_eq!(
            all.iter().map(|slot| slot.index()).collect::<HashSet<_>>().len(),
            all.len()
        );
        slots.free(all[7]);
        let again = slots.take().unwrap();
        assert_eq!(again.index(), all[7].index());
        assert_ne!(again, all[7]);
    }
}
