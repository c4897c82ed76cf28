//! What workers see of one family's table: the root, the nodes, and the walk from one to the other.
//!
//! The first byte of an address selects a slot of the **top**, which has the hop of the longest prefix of up to 8 bits, and
//! whether there are longer ones. If so, the first 16 bits select a slot of the **root**, and from there on there is a **node** per 8
//! bits: 256 slots, in which neighbors within the same prefixes are one *run*. A node is a block of consecutive lines: which slots begin a run (4 words of 64 bits), runs before
//! each of these words (4 bytes), the hop of the slot above (the *cover*), and an entry of 32 bits per run, of which the first
//! six are on the line itself. An entry is a hop, a node further down, or nothing: then the cover counts, or the one above it. So
//! a change, however short its prefix, touches 256 places at most.
//!
//! Words are atomics that one writer stores to. What a reader can reach is whole at any time: a node is built aside and appears by
//! one store. Entries and covers change in place, each by itself, so that every address has its old or its new hop.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::Zeroable;

use crate::arch;
use crate::memory::Shared;
use crate::packet::{BATCH, Mask, bits};

/// Marks an entry that leads to a node: its first line. In the top, that there are longer prefixes.
pub(super) const NODE: u32 = 1 << 31;
/// Bytes of a line.
pub(super) const LINE: usize = size_of::<Line>();
/// Entries in a line.
pub(super) const PER_LINE: usize = 16;
/// Slots of a node.
pub(super) const SLOTS: usize = 256;
/// Positions in a node, in entries: the runs before each word, the cover, the first run.
const BEFORE: usize = 8;
const COVER: usize = 9;
const RUNS: usize = 10;
/// Slots of the root, and of the top.
pub(super) const ROOT: usize = 1 << 16;
pub(super) const TOP: usize = 1 << 8;
/// The first line of the top, which follows the root, and of the nodes.
const TOP_LINE: usize = ROOT / PER_LINE;
pub(super) const FIRST_LINE: usize = TOP_LINE + TOP / PER_LINE;

/// Which slots of a node begin a run.
pub(super) type Starts = [u64; 4];

/// Lines of a node with so many runs.
pub(super) const fn lines_for(runs: usize) -> usize {
    (RUNS + runs).div_ceil(PER_LINE)
}

#[derive(Debug, Zeroable)]
#[repr(C, align(64))]
struct Line([AtomicU64; 8]);

/// One family's table.
#[derive(Debug)]
pub(super) struct Trie {
    lines: Shared<Line>,
}

impl Trie {
    /// An empty one, with room for so many lines of nodes.
    pub(super) fn new(lines: usize) -> io::Result<Trie> {
        let lines = lines.min(NODE as usize - FIRST_LINE) + FIRST_LINE;
        Ok(Trie { lines: Shared::zeroed(lines)? })
    }

    /// Lines there are, the first of them [`FIRST_LINE`] below this.
    pub(super) fn end(&self) -> usize {
        self.lines.len()
    }

    /// True if it is on huge pages.
    pub(super) fn hugepages(&self) -> bool {
        self.lines.hugepages()
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        // Acquire: what an entry leads to is whole.
        self.lines[at / 8].0[at % 8].load(Ordering::Acquire)
    }

    /// The entry at a position counted in entries.
    #[inline(always)]
    fn entry(&self, at: usize) -> u32 {
        (self.word(at / 2) >> (at % 2 * 32)) as u32
    }

    #[inline(always)]
    fn top(address: &[u8; 16]) -> usize {
        TOP_LINE * PER_LINE + usize::from(address[0])
    }

    #[inline(always)]
    fn root(address: &[u8; 16]) -> usize {
        usize::from(u16::from_be_bytes([address[0], address[1]]))
    }

    /// Where the entry of a slot of the node at `line` is, and the node's cover.
    #[inline(always)]
    fn run(&self, line: u32, slot: u8) -> (usize, u32) {
        let line = line as usize;
        let words = &self.lines[line].0;
        let (word, bit) = (usize::from(slot >> 6), u32::from(slot & 63));
        let counts = words[BEFORE / 2].load(Ordering::Acquire);
        let before = (counts >> (8 * word)) as usize & 0xff;
        let among = arch::ones(words[word].load(Ordering::Acquire) << (63 - bit)) as usize;
        (line * PER_LINE + RUNS - 1 + before + among, (counts >> 32) as u32)
    }

    /// The hop of an address, 0 if no prefix covers it. An IPv4 address is the first four bytes.
    #[inline]
    pub(super) fn lookup(&self, address: &[u8; 16]) -> u32 {
        let top = self.entry(Trie::top(address));
        if top & NODE == 0 {
            return top;
        }
        let mut hop = top & !NODE;
        let mut entry = self.entry(Trie::root(address));
        for slot in &address[2..] {
            if entry & NODE == 0 {
                break;
            }
            let (at, cover) = self.run(entry & !NODE, *slot);
            hop = if cover == 0 { hop } else { cover };
            entry = self.entry(at);
        }
        if entry == 0 { hop } else { entry }
    }

    /// The same for the addresses of a batch that `mask` names: level by level, so that the lines they need are under way at once.
    #[inline(always)]
    pub(super) fn lookup_batch<'a>(
        &self,
        mask: Mask,
        address: impl Fn(usize) -> &'a [u8; 16],
        hops: &mut [u32; BATCH],
    ) {
        let mut places = [0usize; BATCH];
        let (mut under_way, mut further): (Mask, Mask) = (0, 0);
        for i in bits(mask) {
            let address = address(i);
            let top = self.entry(Trie::top(address));
            hops[i] = top & !NODE;
            if top & NODE != 0 {
                arch::prefetch(&self.lines[Trie::root(address) / PER_LINE]);
                under_way |= 1 << i;
            }
        }
        for i in bits(under_way) {
            let entry = self.entry(Trie::root(address(i)));
            further |= self.step(i, entry, &mut places, hops);
        }
        under_way = further;
        let mut depth = 2;
        while under_way != 0 && depth < 16 {
            for i in bits(under_way) {
                let (at, cover) = self.run(places[i] as u32, address(i)[depth]);
                hops[i] = if cover == 0 { hops[i] } else { cover };
                places[i] = at;
                if let Some(line) = self.lines.get(at / PER_LINE) {
                    arch::prefetch(line);
                }
            }
            let mut further = 0;
            for i in bits(under_way) {
                let entry = self.entry(places[i]);
                further |= self.step(i, entry, &mut places, hops);
            }
            under_way = further;
            depth += 1;
        }
    }

    /// What an entry says of packet `i`: its bit if there is a node to go to.
    #[inline(always)]
    fn step(&self, i: usize, entry: u32, places: &mut [usize; BATCH], hops: &mut [u32; BATCH]) -> Mask {
        let line = (entry & !NODE) as usize;
        if entry & NODE == 0 {
            hops[i] = if entry == 0 { hops[i] } else { entry };
            return 0;
        }
        places[i] = line;
        if let Some(line) = self.lines.get(line) {
            arch::prefetch(line);
        }
        1 << i
    }
}

/// The writer's side. There is one writer, so that a word may be read, changed and stored.
impl Trie {
    pub(super) fn put(&self, at: usize, value: u32) {
        let old = self.word(at / 2);
        let shift = at % 2 * 32;
        let new = old & !(0xffff_ffff << shift) | u64::from(value) << shift;
        if new != old {
            // Release: what the entry leads to is whole.
            self.lines[at / 16].0[at / 2 % 8].store(new, Ordering::Release);
        }
    }

    /// The word at a position of a free block.
    pub(super) fn free_word(&self, line: usize, word: usize) -> u64 {
        self.lines[line].0[word].load(Ordering::Relaxed)
    }

    /// Changes it.
    pub(super) fn set_free_word(&self, line: usize, word: usize, value: u64) {
        self.lines[line].0[word].store(value, Ordering::Relaxed);
    }

    /// The entry of the root slot, to be changed with [`Trie::put`]; likewise of the top.
    pub(super) fn root_at(slot: usize) -> usize {
        slot
    }

    pub(super) fn top_at(slot: usize) -> usize {
        TOP_LINE * PER_LINE + slot
    }

    pub(super) fn cover_at(line: u32) -> usize {
        line as usize * PER_LINE + COVER
    }

    pub(super) fn run_at(&self, line: u32, slot: u8) -> usize {
        self.run(line, slot).0
    }

    pub(super) fn value(&self, at: usize) -> u32 {
        self.entry(at)
    }

    /// Which slots of a node begin a run.
    pub(super) fn starts(&self, line: u32) -> Starts {
        std::array::from_fn(|word| self.word(line as usize * 8 + word))
    }

    /// Makes a node of a block that no reader can reach. `entries` holds the entry of each slot.
    pub(super) fn build(&self, line: u32, starts: &Starts, cover: u32, entries: &[u32; SLOTS]) {
        let at = line as usize * PER_LINE;
        let mut before = 0;
        let mut counts = 0;
        for (word, starts) in starts.iter().enumerate() {
            self.set_free_word(line as usize, word, *starts);
            counts |= before << (8 * word);
            before += starts.count_ones();
        }
        self.put(at + BEFORE, counts);
        self.put(at + COVER, cover);
        self.fill(line, starts, entries);
    }

    /// Stores what differs of the entries of a node, whose runs are `starts`.
    pub(super) fn fill(&self, line: u32, starts: &Starts, entries: &[u32; SLOTS]) {
        let mut at = line as usize * PER_LINE + RUNS;
        for (word, starts) in starts.iter().enumerate() {
            for slot in bits(*starts) {
                self.put(at, entries[word * 64 + slot]);
                at += 1;
            }
        }
    }
}

/// Runs of a node.
pub(super) fn runs(starts: &Starts) -> usize {
    starts.iter().map(|word| word.count_ones() as usize).sum()
}
