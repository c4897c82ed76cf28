//! Which lines of a trie are free: blocks of any size, neighbors merged at once, so that churn does not crumble them.
//!
//! A free block says in its own words how long it is and which others are about as long; beside the trie stands one bit per line,
//! set at the two ends of a free block. Touches none but free lines.

use super::trie::{FIRST_LINE, SLOTS, Trie, lines_for};

/// The longest block that is asked for.
const LONGEST: usize = lines_for(SLOTS);
/// Lists of free blocks: by exact size, the last of all that are longer.
const LISTS: usize = LONGEST + 2;
const LAST_LIST: usize = LISTS - 1;

/// Words of a free block: in its first line, neighbors in its list and its size; in its last line, the first.
const BEFORE: usize = 0;
const NEXT: usize = 1;
const SIZE: usize = 2;
const FIRST: usize = 3;

/// No block: line 0 is the root's.
const NONE: u32 = 0;

#[derive(Debug)]
pub(super) struct Space {
    /// Lines at which a free block begins or ends.
    edges: Vec<u64>,
    lists: [u32; LISTS],
    /// Lists that are not empty.
    filled: u32,
    free: usize,
}

impl Space {
    /// All lines of a new trie.
    pub(super) fn new(trie: &Trie) -> Space {
        let mut space = Space { edges: vec![0; trie.end().div_ceil(64)], lists: [NONE; LISTS], filled: 0, free: 0 };
        if trie.end() > FIRST_LINE {
            space.give(trie, FIRST_LINE as u32, trie.end() - FIRST_LINE);
        }
        space
    }

    /// Free lines.
    pub(super) fn free(&self) -> usize {
        self.free
    }

    /// Memory beside the trie, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.edges.len() * size_of::<u64>()
    }

    /// A block of `size` lines, the shortest that is long enough.
    pub(super) fn take(&mut self, trie: &Trie, size: usize) -> Option<u32> {
        let list = (self.filled >> size).trailing_zeros() as usize + size;
        let block = *self.lists.get(list)?;
        let had = self.unlink(trie, block);
        self.free -= had;
        if had > size {
            self.give(trie, block + size as u32, had - size);
        }
        Some(block)
    }

    /// Frees a block.
    pub(super) fn give(&mut self, trie: &Trie, block: u32, size: usize) {
        self.free += size;
        let (mut first, mut size) = (block, size);
        if self.is_edge(first as usize - 1) {
            let before = trie.free_word(first as usize - 1, FIRST);
            size += self.unlink(trie, before);
            first = before;
        }
        if self.is_edge(first as usize + size) {
            size += self.unlink(trie, first + size as u32);
        }
        self.link(trie, first, size);
    }

    fn is_edge(&self, line: usize) -> bool {
        self.edges.get(line / 64).is_some_and(|word| word >> (line % 64) & 1 != 0)
    }

    fn mark(&mut self, line: usize, edge: bool) {
        let word = &mut self.edges[line / 64];
        *word = *word & !(1 << (line % 64)) | u64::from(edge) << (line % 64);
    }

    fn link(&mut self, trie: &Trie, block: u32, size: usize) {
        let list = size.min(LAST_LIST);
        let next = self.lists[list];
        if next != NONE {
            set_links(trie, next, block, links(trie, next).1);
        }
        set_links(trie, block, NONE, next);
        trie.set_free_word(block as usize, SIZE, size as u32);
        let last = block as usize + size - 1;
        trie.set_free_word(last, FIRST, block);
        self.mark(block as usize, true);
        self.mark(last, true);
        self.lists[list] = block;
        self.filled |= 1 << list;
    }

    fn unlink(&mut self, trie: &Trie, block: u32) -> usize {
        let size = trie.free_word(block as usize, SIZE) as usize;
        let (before, next) = links(trie, block);
        if next != NONE {
            set_links(trie, next, before, links(trie, next).1);
        }
        if before != NONE {
            set_links(trie, before, links(trie, before).0, next);
        } else {
            let list = size.min(LAST_LIST);
            self.lists[list] = next;
            self.filled &= !(u32::from(next == NONE) << list);
        }
        self.mark(block as usize, false);
        self.mark(block as usize + size - 1, false);
        size
    }
}

fn links(trie: &Trie, block: u32) -> (u32, u32) {
    (trie.free_word(block as usize, BEFORE), trie.free_word(block as usize, NEXT))
}

fn set_links(trie: &Trie, block: u32, before: u32, next: u32) {
    trie.set_free_word(block as usize, BEFORE, before);
    trie.set_free_word(block as usize, NEXT, next);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn blocks_never_overlap_and_all_come_back(steps in prop::collection::vec((1usize..=LONGEST, any::<prop::sample::Index>(), any::<bool>()), 1..300)) {
            const LINES: usize = 500;
            let trie = Trie::new(LINES).expect("memory");
            let mut space = Space::new(&trie);
            let mut held: Vec<(u32, usize)> = Vec::new();
            for (size, which, take) in steps {
                if take {
                    match space.take(&trie, size) {
                        Some(block) => {
                            let end = block as usize + size;
                            prop_assert!(block as usize >= FIRST_LINE && end <= trie.end());
                            prop_assert!(held.iter().all(|(at, len)| end <= *at as usize || *at as usize + len <= block as usize));
                            held.push((block, size));
                        }
                        None => {
                            // No gap between the blocks is long enough.
                            let mut at = FIRST_LINE;
                            held.sort_unstable();
                            for (block, len) in held.iter().chain([&(trie.end() as u32, 0)]) {
                                prop_assert!(*block as usize - at < size);
                                at = *block as usize + len;
                            }
                        }
                    }
                } else if !held.is_empty() {
                    let (block, size) = held.swap_remove(which.index(held.len()));
                    space.give(&trie, block, size);
                }
                prop_assert_eq!(space.free(), LINES - held.iter().map(|(_, len)| len).sum::<usize>());
            }
            for (block, size) in held {
                space.give(&trie, block, size);
            }
            prop_assert_eq!(space.free(), LINES);
            // All in one piece again.
            for _ in 0..LINES / LONGEST {
                prop_assert!(space.take(&trie, LONGEST).is_some());
            }
        }
    }
}
