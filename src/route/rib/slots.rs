//! Slots of an array that workers read: handed out in blocks of a power of two, and reused only after every worker has let
//! go of them.

use std::collections::{BTreeSet, VecDeque};

/// Blocks have at most `1 << ORDERS - 1` slots.
const ORDERS: usize = 9;

/// Everything given back before a seal was set is free once the seal is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seal(u64);

/// Slots in use, free, and in between.
#[derive(Debug)]
pub struct Slots {
    /// Free blocks by the logarithm of their size, none of which has its neighbor beside it.
    free: [BTreeSet<u32>; ORDERS],
    /// What was given back: since which seal, the first slot, the logarithm of how many.
    retired: VecDeque<(Seal, u32, u8)>,
    seal: Seal,
    used: usize,
}

impl Slots {
    /// Of an array of `room` slots, those from `first` on.
    pub fn new(first: usize, room: usize) -> Slots {
        let mut slots = Slots { free: Default::default(), retired: VecDeque::new(), seal: Seal(0), used: 0 };
        (first..room).for_each(|slot| slots.put(slot as u32, 0));
        slots
    }

    /// A block of `1 << order` slots.
    pub fn take(&mut self, order: u8) -> Option<u32> {
        let from = (usize::from(order)..ORDERS).find(|larger| !self.free[*larger].is_empty())?;
        let first = self.free[from].pop_first()?;
        (usize::from(order)..from).for_each(|half| {
            self.free[half].insert(first + (1 << half));
        });
        self.used += 1 << order;
        Some(first)
    }

    /// Gives a block back: it waits until the next seal is released.
    pub fn retire(&mut self, first: u32, order: u8) {
        self.retired.push_back((self.seal, first, order));
    }

    /// Puts a seal on what was given back so far.
    pub fn seal(&mut self) -> Seal {
        let seal = self.seal;
        self.seal = Seal(seal.0 + 1);
        seal
    }

    /// Frees what was given back before the seal was set; `freed` is told of every slot.
    pub fn release(&mut self, seal: Seal, mut freed: impl FnMut(u32)) {
        while let Some((_, first, order)) = self.retired.front().copied().filter(|(since, ..)| *since <= seal) {
            self.retired.pop_front();
            self.used -= 1 << order;
            (first..first + (1 << order)).for_each(&mut freed);
            self.put(first, order);
        }
    }

    /// How many are in use, those that wait included.
    pub fn used(&self) -> usize {
        self.used
    }

    /// True if some wait for a release.
    pub fn waiting(&self) -> bool {
        !self.retired.is_empty()
    }

    fn put(&mut self, mut first: u32, order: u8) {
        let mut order = usize::from(order);
        while order + 1 < ORDERS && self.free[order].remove(&(first ^ 1 << order)) {
            first &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_reused_before_its_release() {
        let mut slots = Slots::new(1, 3);
        assert_eq!((slots.take(0), slots.take(0), slots.take(0)), (Some(1), Some(2), None));
        slots.retire(1, 0);
        let seal = slots.seal();
        slots.retire(2, 0);
        assert_eq!((slots.take(0), slots.used()), (None, 2));
        let mut freed = Vec::new();
        slots.release(seal, |slot| freed.push(slot));
        assert_eq!((freed, slots.take(0), slots.take(0), slots.waiting()), (vec![1], Some(1), None, true));
        let seal = slots.seal();
        slots.release(seal, |_| ());
        assert_eq!((slots.take(0), slots.waiting()), (Some(2), false));
    }

    proptest! {
        #[test]
        fn blocks_are_aligned_and_never_overlap(
            ops in prop::collection::vec((0_u8..9, any::<prop::sample::Index>(), 0..4_u8), 1..200)
        ) {
            let mut slots = Slots::new(5, 2000);
            let (mut taken, mut waiting) = (Vec::<(u32, u8)>::new(), Vec::<(u32, u8)>::new());
            for (order, index, what) in ops {
                match what {
                    0 if !taken.is_empty() => {
                        let (first, order) = taken.swap_remove(index.index(taken.len()));
                        slots.retire(first, order);
                        waiting.push((first, order));
                    }
                    1 => {
                        let seal = slots.seal();
                        slots.release(seal, |_| ());
                        waiting.clear();
                    }
                    _ => {
                        let Some(first) = slots.take(order) else { continue };
                        let end = first + (1 << order);
                        prop_assert!(first % (1 << order) == 0 && first >= 5 && end <= 2000);
                        prop_assert!(taken.iter().chain(&waiting).all(|(f, o)| f + (1 << o) <= first || end <= *f));
                        taken.push((first, order));
                    }
                }
            }
            taken.drain(..).for_each(|(first, order)| slots.retire(first, order));
            let seal = slots.seal();
            slots.release(seal, |_| ());
            prop_assert_eq!(slots.used(), 0);
            prop_assert!(slots.take(8).is_some(), "what is free grows together again");
        }
    }
}
