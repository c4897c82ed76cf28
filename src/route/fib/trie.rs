//! What workers see of one family's table: the root, the nodes, and the walk from one to the other.
//!
//! The first byte of an address selects a slot of the **top**, which has the hop of the longest prefix of up to 8 bits, and
//! whether there are longer ones. If so, the first 16 bits select a slot of the **root**, and from there on there is a **node** per 8
//! bits: 256 slots, in which neighbors within the same prefixes are one *run*. A node is a block of consecutive lines: which
//! slots begin a run (8 words of 32 bits), runs before each of these words (8 bytes), the hop of the slot above (the *cover*),
//! and an entry of 32 bits per run, of which the first five are on the line itself. An entry is a hop, a node further down, or nothing: then the cover counts, or the one above it. So
//! a change, however short its prefix, touches 256 places at most.
//!
//! Words are atomics that one writer stores to. What a reader can reach is whole at any time: a node is built aside and appears by
//! one store. Entries and covers change in place, each by itself, so that every address has its old or its new hop.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

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
const COVER: usize = 10;
const RUNS: usize = 11;
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
struct Line([AtomicU32; PER_LINE]);

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

    /// The entry at a position counted in entries.
    #[inline(always)]
    fn entry(&self, at: usize) -> u32 {
        // Acquire: what an entry leads to is whole.
        self.lines[at / PER_LINE].0[at % PER_LINE].load(Ordering::Acquire)
    }

    /// The root and the top, where a slot needs no looking whether it is there.
    #[inline(always)]
    fn front(&self) -> (&[Line; TOP_LINE], &[Line; FIRST_LINE - TOP_LINE]) {
        let front = self.lines.split_first_chunk().and_then(|(root, rest)| Some((root, rest.first_chunk()?)));
        front.expect("no table is shorter")
    }

    /// What the first two bytes say: the hop of the longest prefix of up to 16 bits, or the node that knows more.
    #[inline(always)]
    fn begin((root, top): (&[Line; TOP_LINE], &[Line; FIRST_LINE - TOP_LINE]), address: &[u8; 16]) -> (u32, u32) {
        let at = |lines: &[Line], slot: usize| lines[slot / PER_LINE].0[slot % PER_LINE].load(Ordering::Acquire);
        let short = at(top, address[0].into());
        if short & NODE == 0 {
            return (short, 0);
        }
        (short & !NODE, at(root, u16::from_be_bytes([address[0], address[1]]).into()))
    }

    /// Where the entry of a slot of the node at `line` is, counted from the node's first, and the node's cover.
    #[inline(always)]
    fn run(words: &[AtomicU32; PER_LINE], slot: u8) -> (usize, u32) {
        let (word, bit) = (usize::from(slot >> 5), u32::from(slot & 31));
        let counts = words[BEFORE + word / 4].load(Ordering::Acquire);
        let before = (counts >> (8 * (word % 4))) as usize & 0xff;
        let among = arch::ones(u64::from(words[word].load(Ordering::Acquire) << (31 - bit))) as usize;
        (RUNS - 1 + before + among, words[COVER].load(Ordering::Acquire))
    }

    /// The hop of an address, 0 if no prefix covers it. An IPv4 address is the first four bytes.
    #[inline]
    pub(super) fn lookup(&self, address: &[u8; 16]) -> u32 {
        let (mut hop, mut entry) = Trie::begin(self.front(), address);
        for slot in &address[2..] {
            if entry & NODE == 0 {
                break;
            }
            let line = (entry & !NODE) as usize;
            let (at, cover) = Trie::run(&self.lines[line].0, *slot);
            hop = if cover == 0 { hop } else { cover };
            entry = self.entry(line * PER_LINE + at);
        }
        if entry == 0 { hop } else { entry }
    }

    /// The same for the packets of a batch that `mask` names and that have an address; the others are the result. Level by
    /// level, so that the lines they need are under way at once.
    #[inline(always)]
    pub(super) fn lookup_batch<'a>(
        &self,
        mask: Mask,
        address: impl Fn(usize) -> Option<&'a [u8; 16]>,
        hops: &mut [u32; BATCH],
    ) -> Mask {
        let (lines, front) = (&*self.lines, self.front());
        // The node a packet is at, or the entry.
        let mut places = [0usize; BATCH];
        let (mut under_way, mut others): (Mask, Mask) = (0, 0);
        for i in bits(mask) {
            let Some(address) = address(i) else {
                others |= 1 << i;
                continue;
            };
            let (hop, entry) = Trie::begin(front, address);
            hops[i] = hop;
            under_way |= step(lines, entry, &mut places[i], &mut hops[i], i);
        }
        let mut depth = 2;
        while under_way != 0 && depth < 16 {
            let (mut further, mut behind): (Mask, Mask) = (0, 0);
            for i in bits(under_way) {
                let Some(address) = address(i) else { continue };
                let Some(Line(words)) = lines.get(places[i]) else { continue };
                let (at, cover) = Trie::run(words, address[depth]);
                hops[i] = if cover == 0 { hops[i] } else { cover };
                if let Some(entry) = words.get(at) {
                    further |= step(lines, entry.load(Ordering::Acquire), &mut places[i], &mut hops[i], i);
                    continue;
                }
                places[i] = places[i] * PER_LINE + at;
                if let Some(line) = lines.get(places[i] / PER_LINE) {
                    arch::prefetch(line);
                }
                behind |= 1 << i;
            }
            for i in bits(behind) {
                let entry = self.entry(places[i]);
                further |= step(lines, entry, &mut places[i], &mut hops[i], i);
            }
            under_way = further;
            depth += 1;
        }
        others
    }
}

/// What an entry says of packet `i`: its bit if there is a node to go to.
#[inline(always)]
fn step(lines: &[Line], entry: u32, place: &mut usize, hop: &mut u32, i: usize) -> Mask {
    if entry & NODE == 0 {
        *hop = if entry == 0 { *hop } else { entry };
        return 0;
    }
    *place = (entry & !NODE) as usize;
    if let Some(line) = lines.get(*place) {
        arch::prefetch(line);
    }
    1 << i
}

/// The writer's side. There is one writer, so that a word may be read, changed and stored.
impl Trie {
    pub(super) fn put(&self, at: usize, value: u32) {
        if self.entry(at) != value {
            // Release: what the entry leads to is whole.
            self.lines[at / PER_LINE].0[at % PER_LINE].store(value, Ordering::Release);
        }
    }

    /// The word at a position of a free block.
    pub(super) fn free_word(&self, line: usize, word: usize) -> u32 {
        self.lines[line].0[word].load(Ordering::Relaxed)
    }

    /// Changes it.
    pub(super) fn set_free_word(&self, line: usize, word: usize, value: u32) {
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
        line as usize * PER_LINE + Trie::run(&self.lines[line as usize].0, slot).0
    }

    pub(super) fn value(&self, at: usize) -> u32 {
        self.entry(at)
    }

    /// Which slots of a node begin a run.
    pub(super) fn starts(&self, line: u32) -> Starts {
        let half = |word: usize| u64::from(self.entry(line as usize * PER_LINE + word));
        std::array::from_fn(|word| half(2 * word) | half(2 * word + 1) << 32)
    }

    /// Makes a node of a block that no reader can reach. `entries` holds the entry of each slot.
    pub(super) fn build(&self, line: u32, starts: &Starts, cover: u32, entries: &[u32; SLOTS]) {
        let at = line as usize * PER_LINE;
        let mut before = 0;
        let mut counts = [0; 8];
        let halves = starts.iter().flat_map(|starts| [*starts as u32, (starts >> 32) as u32]);
        for (word, (half, count)) in halves.zip(&mut counts).enumerate() {
            self.set_free_word(line as usize, word, half);
            // No more than 224, whatever the last word has.
            *count = before as u8;
            before += half.count_ones();
        }
        let [counts, more] = bytemuck::cast::<[u8; 8], [u32; 2]>(counts).map(u32::from_le);
        self.put(at + BEFORE, counts);
        self.put(at + BEFORE + 1, more);
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
