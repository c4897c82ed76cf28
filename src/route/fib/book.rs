//! The writer's side of one family's table: which prefixes there are, and how a change of them is brought to the trie.
//!
//! For each node of the trie stands what it was made of: its own prefixes and its children. A change paints the node anew. If the
//! runs it has suffice, its entries change in place; else a new block takes its place by one store, and the old one waits until no
//! worker can be in it. Runs begin where prefixes begin and end, whatever their hops: so a replaced hop and a removed prefix need no
//! memory, and cannot fail for want of it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::space::Space;
use super::trie::{FIRST_LINE, LINE, NODE, ROOT, SLOTS, Starts, TOP, Trie, lines_for, runs};
use super::{Full, Occupancy};
use crate::route::epoch::Epochs;

/// Bits of an address, the first 16 of which select a slot of the root.
const ROOT_BITS: u8 = 16;
/// No node.
const NONE: u32 = u32::MAX;
/// Blocks taken out of sight before an epoch is begun for them.
const LOT: usize = 64;
/// How long to wait for workers when there is no room: much longer than a turn takes.
const PATIENCE: Duration = Duration::from_millis(100);

/// A prefix in a node: a one and its bits there (1 to 8), so that longer ones are larger. Behind them, children by slot.
type Key = u16;
const CHILDREN: Key = 512;

fn item(key: Key, value: u32) -> u64 {
    u64::from(key) << 32 | u64::from(value)
}

fn parts(item: u64) -> (Key, u32) {
    ((item >> 32) as Key, item as u32)
}

/// The first slot of a prefix in a node, and how many it has.
fn span(key: Key) -> (usize, usize) {
    let bits = key.ilog2();
    ((usize::from(key) - (1 << bits)) << (8 - bits), 1 << (8 - bits))
}

/// What a node is made of.
#[derive(Debug)]
struct Node {
    /// Prefixes with their hops and children with their nodes, by key.
    items: Vec<u64>,
    /// Its first line.
    line: u32,
}

impl Node {
    fn find(&self, key: Key) -> Result<usize, usize> {
        self.items.binary_search_by_key(&key, |item| parts(*item).0)
    }

    fn value(&self, key: Key) -> Option<u32> {
        self.find(key).ok().map(|at| parts(self.items[at]).1)
    }

    fn add(&mut self, at: usize, item: u64) {
        if self.items.len() == self.items.capacity() {
            // Most nodes stay small: growing by a half wastes less than by the whole.
            self.items.reserve_exact(1 + self.items.len() / 2);
        }
        self.items.insert(at, item);
    }

    fn children(&self) -> impl Iterator<Item = (u8, u32)> {
        let first = self.find(CHILDREN).unwrap_or_else(|at| at);
        self.items[first..].iter().map(|item| parts(*item)).map(|(key, node)| ((key - CHILDREN) as u8, node))
    }
}

/// The nodes on the way to a prefix, as far as there are any.
#[derive(Debug)]
struct Trail {
    slot: usize,
    nodes: [u32; 16],
    len: usize,
}

/// A block that no lookup finds any more.
#[derive(Clone, Copy, Debug)]
struct Retired {
    /// When it may be used again; not known of the last ones.
    epoch: u64,
    line: u32,
    size: u32,
}

/// The writer of one trie.
#[derive(Debug)]
pub(super) struct Book {
    trie: Arc<Trie>,
    space: Space,
    epochs: Arc<Epochs>,
    /// Prefixes of up to 16 bits: the hop at a one and their bits.
    short: Vec<u32>,
    /// The node at each slot of the root.
    roots: Vec<u32>,
    /// By first byte: slots of the root that are not empty.
    longer: [u16; TOP],
    nodes: Vec<Node>,
    unused: Vec<u32>,
    retired: VecDeque<Retired>,
    /// Of these, the last whose epoch is not known yet.
    undated: usize,
    /// Lines in `retired`.
    waiting: usize,
    prefixes: usize,
}

impl Book {
    pub(super) fn new(lines: usize, epochs: Arc<Epochs>) -> io::Result<Book> {
        let trie = Arc::new(Trie::new(lines)?);
        Ok(Book {
            space: Space::new(&trie),
            trie,
            epochs,
            short: vec![0; 2 * ROOT],
            roots: vec![NONE; ROOT],
            longer: [0; TOP],
            nodes: Vec::new(),
            unused: Vec::new(),
            retired: VecDeque::new(),
            undated: 0,
            waiting: 0,
            prefixes: 0,
        })
    }

    pub(super) fn trie(&self) -> &Arc<Trie> {
        &self.trie
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        let lines = self.trie.end() - FIRST_LINE;
        let items: usize = self.nodes.iter().map(|node| node.items.capacity() * size_of::<u64>()).sum();
        let numbers = self.short.len() + self.roots.len() + self.unused.capacity();
        Occupancy {
            prefixes: self.prefixes,
            used: (lines - self.space.free() - self.waiting) * LINE,
            waiting: self.waiting * LINE,
            total: self.trie.end() * LINE,
            book: items
                + self.nodes.capacity() * size_of::<Node>()
                + numbers * size_of::<u32>()
                + self.retired.capacity() * size_of::<Retired>()
                + self.space.bytes(),
            hugepages: self.trie.hugepages(),
        }
    }

    /// The hop of exactly this prefix.
    pub(super) fn get(&self, address: &[u8; 16], len: u8) -> Option<u32> {
        if len <= ROOT_BITS {
            return Some(self.short[short_key(address, len)]).filter(|hop| *hop != 0);
        }
        let (depth, key) = place(address, len);
        let trail = self.walk(address, depth);
        if trail.len <= depth { None } else { self.node(trail.nodes[depth]).value(key) }
    }

    /// The nodes towards an address, down to `depth`.
    fn walk(&self, address: &[u8; 16], depth: usize) -> Trail {
        let mut trail = Trail { slot: root_slot(address), nodes: [NONE; 16], len: 0 };
        let mut node = self.roots[trail.slot];
        while node != NONE {
            trail.nodes[trail.len] = node;
            trail.len += 1;
            if trail.len > depth {
                break;
            }
            let slot = address[1 + trail.len];
            node = self.node(node).value(CHILDREN + Key::from(slot)).unwrap_or(NONE);
        }
        trail
    }

    fn node(&self, node: u32) -> &Node {
        &self.nodes[node as usize]
    }

    fn node_mut(&mut self, node: u32) -> &mut Node {
        &mut self.nodes[node as usize]
    }

    /// Adds a prefix or replaces its hop, the old one of which is returned.
    pub(super) fn insert(&mut self, address: &[u8; 16], len: u8, hop: u32) -> Result<Option<u32>, Full> {
        let old = if len <= ROOT_BITS {
            let old = std::mem::replace(&mut self.short[short_key(address, len)], hop);
            self.paint_short(address, len);
            (old != 0).then_some(old)
        } else {
            self.insert_long(address, len, hop)?
        };
        self.prefixes += usize::from(old.is_none());
        Ok(old)
    }

    fn insert_long(&mut self, address: &[u8; 16], len: u8, hop: u32) -> Result<Option<u32>, Full> {
        let (depth, key) = place(address, len);
        let trail = self.walk(address, depth);
        if trail.len <= depth {
            return self.grow(address, &trail, depth, item(key, hop)).map(|()| None);
        }
        let here = self.node_mut(trail.nodes[depth]);
        let (at, old) = match here.find(key) {
            Ok(at) => (at, Some(parts(std::mem::replace(&mut here.items[at], item(key, hop))).1)),
            Err(at) => {
                here.add(at, item(key, hop));
                (at, None)
            }
        };
        let done = self.repaint(address, &trail, depth, span(key));
        if done.is_err() {
            // A replaced hop needs no room, so it was added.
            self.node_mut(trail.nodes[depth]).items.remove(at);
        }
        done.map(|()| old)
    }

    /// Makes the nodes that a trail lacks down to `depth`, the last of them with `prefix` alone.
    fn grow(&mut self, address: &[u8; 16], trail: &Trail, depth: usize, prefix: u64) -> Result<(), Full> {
        // Each has one item, and so three runs at most.
        let size = lines_for(3);
        let mut below = NONE;
        for at in (trail.len..=depth).rev() {
            let Some(line) = self.take(size, true) else {
                self.forget(below);
                return Err(Full);
            };
            let items = if at == depth { prefix } else { child(address, at, below) };
            below = self.enlist(Node { items: vec![items], line });
            let (mut entries, starts) = ([0; SLOTS], self.starts(below));
            self.paint(below, &mut entries);
            self.cover(below, &mut entries, (0, SLOTS));
            self.trie.build(line, &starts, 0, &entries);
        }
        let line = self.node(below).line;
        let Some(last) = trail.len.checked_sub(1) else {
            self.trie.put(Trie::cover_at(line), self.short_hop(trail.slot));
            self.put_root(trail.slot, NODE | line);
            self.roots[trail.slot] = below;
            return Ok(());
        };
        let here = self.node_mut(trail.nodes[last]);
        let new = child(address, last, below);
        let at = here.find(parts(new).0).unwrap_or_else(|at| at);
        here.add(at, new);
        let slot = usize::from(address[2 + last]);
        let done = self.repaint(address, trail, last, (slot, 1));
        if done.is_err() {
            self.node_mut(trail.nodes[last]).items.remove(at);
            self.forget(below);
        }
        done
    }

    /// Removes a prefix, the hop of which is returned. Needs no memory.
    pub(super) fn remove(&mut self, address: &[u8; 16], len: u8) -> Option<u32> {
        let old = if len <= ROOT_BITS {
            let old = std::mem::replace(&mut self.short[short_key(address, len)], 0);
            self.paint_short(address, len);
            (old != 0).then_some(old)
        } else {
            self.remove_long(address, len)
        };
        self.prefixes -= usize::from(old.is_some());
        old
    }

    fn remove_long(&mut self, address: &[u8; 16], len: u8) -> Option<u32> {
        let (depth, key) = place(address, len);
        let trail = self.walk(address, depth);
        let here = self.nodes.get_mut(trail.nodes[depth] as usize)?;
        let (_, old) = parts(here.items.remove(here.find(key).ok()?));
        let (mut at, mut changed, mut kept) = (depth, span(key), depth + 1);
        while self.node(trail.nodes[at]).items.is_empty() {
            kept = at;
            let Some(above) = at.checked_sub(1) else {
                self.roots[trail.slot] = NONE;
                self.put_root(trail.slot, self.short_hop(trail.slot));
                break;
            };
            let slot = address[2 + above];
            let parent = self.node_mut(trail.nodes[above]);
            if let Ok(child) = parent.find(CHILDREN + Key::from(slot)) {
                parent.items.remove(child);
            }
            (at, changed) = (above, (usize::from(slot), 1));
        }
        if self.roots[trail.slot] != NONE {
            let done = self.repaint(address, &trail, at, changed);
            debug_assert!(done.is_ok(), "what is left needs no more runs than there were");
        }
        // Now that none of them is found any more.
        for node in &trail.nodes[kept..=depth] {
            let line = self.node(*node).line;
            self.unlist(*node);
            self.retire(line);
        }
        Some(old)
    }

    /// What the node at `at` of a trail looks like now becomes visible; of its slots, those of `changed` (first, count) may have
    /// changed. Fails, with nothing changed, only if more runs are needed than there were.
    fn repaint(&mut self, address: &[u8; 16], trail: &Trail, at: usize, changed: (usize, usize)) -> Result<(), Full> {
        let node = trail.nodes[at];
        let line = self.node(node).line;
        let starts = self.starts(node);
        let had = self.trie.starts(line);
        let (need, size) = (lines_for(runs(&starts)), lines_for(runs(&had)));
        let block = if starts.iter().zip(&had).any(|(new, had)| new & !had != 0) {
            Some(self.take(need, true).ok_or(Full)?)
        } else if need < size {
            self.take(need, false)
        } else {
            None
        };
        let mut entries = [0; SLOTS];
        self.paint(node, &mut entries);
        self.cover(node, &mut entries, changed);
        let Some(block) = block else {
            self.trie.fill(line, &had, &entries);
            return Ok(());
        };
        self.trie.build(block, &starts, self.trie.value(Trie::cover_at(line)), &entries);
        let entry = match at.checked_sub(1) {
            None => Trie::root_at(trail.slot),
            Some(above) => self.trie.run_at(self.node(trail.nodes[above]).line, address[2 + above]),
        };
        self.trie.put(entry, NODE | block);
        self.node_mut(node).line = block;
        self.retire(line);
        Ok(())
    }

    /// Where the runs of a node begin.
    fn starts(&self, node: u32) -> Starts {
        let mut starts = [1, 0, 0, 0];
        for item in &self.node(node).items {
            let (first, count) = match parts(*item).0 {
                key if key < CHILDREN => span(key),
                key => (usize::from(key - CHILDREN), 1),
            };
            for slot in [first, first + count] {
                if let Some(word) = starts.get_mut(slot / 64) {
                    *word |= 1 << (slot % 64);
                }
            }
        }
        starts
    }

    /// The hop of each slot of a node.
    fn paint(&self, node: u32, hops: &mut [u32; SLOTS]) {
        let prefixes = self.node(node).items.iter().map(|item| parts(*item));
        for (key, hop) in prefixes.take_while(|(key, _)| *key < CHILDREN) {
            let (first, count) = span(key);
            hops[first..first + count].fill(hop);
        }
    }

    /// Makes the hops of a node's slots its entries: those with children lead to them, and there the hop becomes the cover, as far as
    /// it is among those that changed (first, count).
    fn cover(&self, node: u32, entries: &mut [u32; SLOTS], changed: (usize, usize)) {
        let changed = changed.0..changed.0 + changed.1;
        for (slot, below) in self.node(node).children() {
            let (slot, line) = (usize::from(slot), self.node(below).line);
            if changed.contains(&slot) {
                self.trie.put(Trie::cover_at(line), entries[slot]);
            }
            entries[slot] = NODE | line;
        }
    }

    /// Brings the slots of a prefix of up to 16 bits up to date.
    fn paint_short(&mut self, address: &[u8; 16], len: u8) {
        let slot = root_slot(address);
        if len <= 8 {
            let (first, count) = (slot >> 8 & !(0xff >> len), 1 << (8 - len));
            return (first..first + count).for_each(|slot| self.put_top(slot));
        }
        let count = 1 << (16 - len);
        let first = slot & !(count - 1);
        for slot in first..first + count {
            let hop = self.short_hop(slot);
            match self.nodes.get(self.roots[slot] as usize) {
                Some(node) => self.trie.put(Trie::cover_at(node.line), hop),
                None => self.put_root(slot, hop),
            }
        }
    }

    fn put_root(&mut self, slot: usize, entry: u32) {
        let old = self.trie.value(Trie::root_at(slot));
        self.trie.put(Trie::root_at(slot), entry);
        let longer = &mut self.longer[slot >> 8];
        *longer = *longer + u16::from(entry != 0) - u16::from(old != 0);
        if (entry != 0) != (old != 0) {
            self.put_top(slot >> 8);
        }
    }

    fn put_top(&mut self, slot: usize) {
        let longer = if self.longer[slot] == 0 { 0 } else { NODE };
        self.trie.put(Trie::top_at(slot), longer | self.longest(slot << 8, 0..=8));
    }

    /// The hop that the root has for a slot: of the longest prefix of 9 to 16 bits.
    fn short_hop(&self, slot: usize) -> u32 {
        self.longest(slot, 9..=ROOT_BITS)
    }

    fn longest(&self, slot: usize, lens: std::ops::RangeInclusive<u8>) -> u32 {
        lens.rev().map(|len| self.short[1 << len | slot >> (16 - len)]).find(|hop| *hop != 0).unwrap_or(0)
    }

    fn enlist(&mut self, node: Node) -> u32 {
        match self.unused.pop() {
            Some(at) => {
                *self.node_mut(at) = node;
                at
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        }
    }

    fn unlist(&mut self, node: u32) {
        self.node_mut(node).items = Vec::new();
        self.unused.push(node);
    }

    /// Gives back a chain of new nodes that nobody has seen.
    fn forget(&mut self, top: u32) {
        let mut next = top;
        while next != NONE {
            let node = next;
            next = self.node(node).children().next().map_or(NONE, |(_, below)| below);
            self.space.give(&self.trie, self.node(node).line, lines_for(3));
            self.unlist(node);
        }
    }

    /// A block, waiting for workers if need be (and `patient`).
    fn take(&mut self, size: usize, patient: bool) -> Option<u32> {
        let mut block = self.space.take(&self.trie, size);
        let mut began = None;
        while block.is_none() && self.waiting > 0 {
            self.reclaim();
            block = self.space.take(&self.trie, size);
            if !patient || began.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                break;
            }
            if block.is_none() {
                std::thread::yield_now();
            }
        }
        block
    }

    /// Lays aside the block of a node that no lookup finds from now on.
    fn retire(&mut self, line: u32) {
        let size = lines_for(runs(&self.trie.starts(line)));
        self.retired.push_back(Retired { epoch: u64::MAX, line, size: size as u32 });
        self.undated += 1;
        self.waiting += size;
        if self.undated >= LOT {
            self.reclaim();
        }
    }

    /// Frees what no worker can be in any more.
    pub(super) fn reclaim(&mut self) {
        if self.undated > 0 {
            let epoch = self.epochs.advance();
            self.retired.iter_mut().rev().take(self.undated).for_each(|retired| retired.epoch = epoch);
            self.undated = 0;
        }
        let safe = self.epochs.safe();
        while let Some(Retired { line, size, .. }) = self.retired.front().copied().filter(|next| next.epoch <= safe) {
            self.retired.pop_front();
            self.waiting -= size as usize;
            self.space.give(&self.trie, line, size as usize);
        }
    }

    /// All prefixes with their hops, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = ([u8; 16], u8, u32)> {
        let short = self.short.iter().enumerate().skip(1).filter(|(_, hop)| **hop != 0).map(|(key, hop)| {
            let len = key.ilog2() as u8;
            let slot = ((key - (1 << len)) << (16 - len)) as u16;
            (padded(&slot.to_be_bytes()), len, *hop)
        });
        let roots = (0..ROOT).rev().filter(|slot| self.roots[*slot] != NONE);
        let mut left: Vec<(u32, [u8; 16], usize)> =
            roots.map(|slot| (self.roots[slot], padded(&(slot as u16).to_be_bytes()), 0)).collect();
        let mut at = 0;
        let long = std::iter::from_fn(move || {
            loop {
                let (node, path, depth) = *left.last()?;
                let (mut address, byte) = (path, 2 + depth);
                match self.node(node).items.get(at).map(|item| parts(*item)) {
                    Some((key, hop)) if key < CHILDREN => {
                        at += 1;
                        address[byte] = span(key).0 as u8;
                        return Some((address, (16 + 8 * depth) as u8 + key.ilog2() as u8, hop));
                    }
                    _ => {
                        left.pop();
                        at = 0;
                        left.extend(self.node(node).children().map(|(slot, below)| {
                            address[byte] = slot;
                            (below, address, depth + 1)
                        }));
                    }
                }
            }
        });
        short.chain(long)
    }
}

/// An item for the child that leads to `below`, in the node at `at` of the trail to an address.
fn child(address: &[u8; 16], at: usize, below: u32) -> u64 {
    item(CHILDREN + Key::from(address[2 + at]), below)
}

fn padded(bytes: &[u8]) -> [u8; 16] {
    let mut address = [0; 16];
    address[..bytes.len()].copy_from_slice(bytes);
    address
}

fn root_slot(address: &[u8; 16]) -> usize {
    usize::from(u16::from_be_bytes([address[0], address[1]]))
}

fn short_key(address: &[u8; 16], len: u8) -> usize {
    1 << len | root_slot(address) >> (16 - len)
}

/// The depth of the node that a prefix of more than 16 bits is in, and its key there.
fn place(address: &[u8; 16], len: u8) -> (usize, Key) {
    let depth = usize::from(len - ROOT_BITS - 1) / 8;
    let bits = len - ROOT_BITS - 8 * depth as u8;
    (depth, 1 << bits | Key::from(address[2 + depth] >> (8 - bits)))
}
