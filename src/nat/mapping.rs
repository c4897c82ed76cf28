//! Endpoint-independent mappings (RFC 4787 REQ-1): the one external address and port that all flows of an internal address and
//! port share.
//!
//! Each worker has its own, of its own ports. A mapping lives as long as a flow uses it; a flow's end is told by its table
//! (`Leases`), which knows no more of a mapping than its number. What nobody uses any longer stays until its room is wanted or
//! the sweep comes by, so that a host that begins again soon has its port again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::pool::scramble;

const NONE: u32 = u32::MAX;

/// One end of a mapping: where packets come from, or what stands for it outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// As in `Meta`.
    pub address: [u8; 16],
    /// The port, or the identifier of an echo.
    pub port: u16,
    /// The protocol.
    pub proto: u8,
    /// True for IPv6.
    pub v6: bool,
}

impl End {
    fn hash(&self, purpose: u64, key: u64) -> usize {
        let whole = u128::from_be_bytes(self.address);
        let rest = u64::from(self.port) | u64::from(self.proto) << 16 | u64::from(self.v6) << 24 | purpose << 32;
        (scramble(scramble(scramble(whole as u64 ^ key) ^ (whole >> 64) as u64) ^ rest) >> 32) as usize
    }
}

#[derive(Clone, Copy, Debug)]
struct Node {
    inside: End,
    outside: End,
    /// Slot of the rule that made it: rules do not share mappings.
    slot: u16,
    used: bool,
    next_inside: u32,
    /// Also the next of the free ones.
    next_outside: u32,
}

/// How many flows use each mapping of a worker. The words are shared with the worker's tables, which end flows; nobody but the
/// worker writes to them.
type Uses = Arc<[AtomicU32]>;

/// A flow's hold on a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Lease(u32);

impl Lease {
    /// Of a flow that has no mapping.
    pub const NONE: Lease = Lease(NONE);
}

/// The mappings of a worker.
#[derive(Debug)]
pub struct Mappings {
    nodes: Box<[Node]>,
    uses: Uses,
    /// Chains by internal end and slot, and by external end.
    inside: Box<[u32]>,
    outside: Box<[u32]>,
    free: u32,
    hand: u32,
    key: u64,
}

/// Mappings looked at for an unused one when a new one is made.
const SWEEP: usize = 8;
/// The same when there is no room left.
const SWEEP_FULL: usize = 1024;

impl Mappings {
    /// Room for this many at once. Nothing allocates after this. `key` is secret.
    pub fn new(capacity: usize, key: u64) -> Mappings {
        let nowhere = End { address: [0; 16], port: 0, proto: 0, v6: false };
        let node = |next_outside| Node {
            inside: nowhere,
            outside: nowhere,
            slot: 0,
            used: false,
            next_inside: NONE,
            next_outside,
        };
        let chains = if capacity == 0 { 0 } else { capacity.next_power_of_two() };
        Mappings {
            nodes: (0..capacity as u32)
                .map(|at| node(if at as usize + 1 < capacity { at + 1 } else { NONE }))
                .collect(),
            uses: (0..capacity).map(|_| AtomicU32::new(0)).collect(),
            inside: vec![NONE; chains].into(),
            outside: vec![NONE; chains].into(),
            free: if capacity == 0 { NONE } else { 0 },
            hand: 0,
            key,
        }
    }

    /// Bytes it takes.
    pub fn memory(&self) -> usize {
        size_of_val(&*self.nodes) + size_of_val(&*self.uses) + size_of_val(&*self.inside) + size_of_val(&*self.outside)
    }

    /// What a table needs to hold leases.
    pub fn leases(&self, entries: usize) -> Leases {
        Leases { uses: self.uses.clone(), by_entry: vec![Lease::NONE; entries].into() }
    }

    /// The external end that stands for an internal one by a slot's rule.
    #[inline]
    pub fn of_inside(&self, inside: &End, slot: u16) -> Option<(End, Lease)> {
        let mut at = *self.inside.get(self.inside_chain(inside, slot))?;
        while at != NONE {
            let node = &self.nodes[at as usize];
            if node.slot == slot && node.inside == *inside {
                return Some((node.outside, Lease(at)));
            }
            at = node.next_inside;
        }
        None
    }

    /// The internal end, and the slot of the rule, that an external one stands for.
    #[inline]
    pub fn of_outside(&self, outside: &End) -> Option<(End, u16, Lease)> {
        let mut at = *self.outside.get(self.outside_chain(outside))?;
        while at != NONE {
            let node = &self.nodes[at as usize];
            if node.outside == *outside {
                return Some((node.inside, node.slot, Lease(at)));
            }
            at = node.next_outside;
        }
        None
    }

    /// True if flows use the mapping.
    #[inline]
    pub fn in_use(&self, lease: Lease) -> bool {
        self.uses.get(lease.0 as usize).is_some_and(|uses| uses.load(Ordering::Relaxed) > 0)
    }

    /// Makes a mapping, neither of whose ends has one by this slot; `None` if no room was found.
    pub fn insert(&mut self, inside: End, outside: End, slot: u16) -> Option<Lease> {
        self.sweep(SWEEP);
        if self.free == NONE {
            self.sweep(SWEEP_FULL);
        }
        let at = self.free;
        let next_free = self.nodes.get(at as usize)?.next_outside;
        self.free = next_free;
        let (first, second) = (self.inside_chain(&inside, slot), self.outside_chain(&outside));
        let (next_inside, next_outside) = (self.inside[first], self.outside[second]);
        self.nodes[at as usize] = Node { inside, outside, slot, used: true, next_inside, next_outside };
        (self.inside[first], self.outside[second]) = (at, at);
        Some(Lease(at))
    }

    /// Forgets a mapping that no flow uses.
    pub fn remove(&mut self, Lease(at): Lease) {
        let Some(node) = self.nodes.get(at as usize).copied().filter(|node| node.used) else { return };
        let (first, second) = (self.inside_chain(&node.inside, node.slot), self.outside_chain(&node.outside));
        unlink(&mut self.inside[first], &mut self.nodes, at, |node| &mut node.next_inside);
        unlink(&mut self.outside[second], &mut self.nodes, at, |node| &mut node.next_outside);
        let node = &mut self.nodes[at as usize];
        (node.used, node.next_outside) = (false, self.free);
        self.free = at;
    }

    /// Forgets those of the next `count` mappings that no flow uses.
    pub fn sweep(&mut self, count: usize) {
        for _ in 0..count.min(self.nodes.len()) {
            let at = self.hand;
            self.hand = if at as usize + 1 < self.nodes.len() { at + 1 } else { 0 };
            if self.nodes[at as usize].used && !self.in_use(Lease(at)) {
                self.remove(Lease(at));
            }
        }
    }

    fn inside_chain(&self, inside: &End, slot: u16) -> usize {
        inside.hash(u64::from(slot), self.key) & self.inside.len().wrapping_sub(1)
    }

    fn outside_chain(&self, outside: &End) -> usize {
        outside.hash(1 << 16, self.key) & self.outside.len().wrapping_sub(1)
    }
}

/// Takes a node out of the chain that begins at `head`.
fn unlink(head: &mut u32, nodes: &mut [Node], at: u32, next: impl Fn(&mut Node) -> &mut u32) {
    let after = *next(&mut nodes[at as usize]);
    if *head == at {
        *head = after;
        return;
    }
    let mut before = *head;
    while before != NONE {
        let link = next(&mut nodes[before as usize]);
        if *link == at {
            *link = after;
            return;
        }
        before = *link;
    }
}

/// Which mapping each flow of a table uses, by entry: what a flow's end gives back, however it ends.
#[derive(Debug)]
pub struct Leases {
    uses: Uses,
    by_entry: Box<[Lease]>,
}

impl Leases {
    /// Notes the mapping that the flow in an entry uses; the one it used before is given back.
    #[inline]
    pub fn keep(&mut self, entry: u32, lease: Lease) {
        self.count(lease, 1);
        let before = std::mem::replace(&mut self.by_entry[entry as usize], lease);
        self.count(before, u32::MAX);
    }

    fn count(&self, lease: Lease, change: u32) {
        if let Some(uses) = self.uses.get(lease.0 as usize) {
            let before = uses.load(Ordering::Relaxed);
            debug_assert!(change == 1 || before > 0, "a lease ends once");
            uses.store(before.wrapping_add(change), Ordering::Relaxed);
        }
    }

    /// Ends the flow in an entry. A second time changes nothing.
    #[inline]
    pub fn end(&mut self, entry: u32) {
        self.keep(entry, Lease::NONE);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn end(n: u8) -> End {
        End { address: [n & 3; 16], port: u16::from(n >> 2), proto: 17, v6: false }
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_map(steps in prop::collection::vec((0u8..4, 0u8..32, 0u8..32, 0u32..16), 1..300)) {
            let mut mappings = Mappings::new(8, 7);
            let mut leases = mappings.leases(16);
            // By external end: the internal one, the slot, and how many flows use it.
            let mut model: HashMap<u8, (u8, u16)> = HashMap::new();
            let mut flows: HashMap<u32, u8> = HashMap::new();
            for (step, inside, outside, entry) in steps {
                let slot = u16::from(inside & 1);
                let used = |model: &HashMap<u32, u8>, outside: u8| model.values().any(|used| *used == outside);
                match step {
                    0 | 1 => {
                        let known = mappings.of_inside(&end(inside), slot);
                        let free = mappings.of_outside(&end(outside)).is_none();
                        let lease = match known {
                            Some((_, lease)) => Some(lease),
                            None if free => mappings.insert(end(inside), end(outside), slot),
                            None => None,
                        };
                        if let Some(lease) = lease {
                            let at = (0..32).find(|n| mappings.of_outside(&end(*n)).is_some_and(|found| found.2 == lease));
                            let at = at.expect("it is there");
                            model.insert(at, (inside, slot));
                            leases.keep(entry, lease);
                            flows.insert(entry, at);
                        } else if known.is_none() && free {
                            let mut live: Vec<u8> = flows.values().copied().collect();
                            live.sort_unstable();
                            live.dedup();
                            prop_assert!(live.len() == 8, "refused though only {} of 8 are in use", live.len());
                        }
                    }
                    2 => {
                        leases.end(entry);
                        flows.remove(&entry);
                    }
                    _ => mappings.sweep(3),
                }
                for (outside, (inside, slot)) in &model {
                    let found = mappings.of_outside(&end(*outside));
                    if used(&flows, *outside) {
                        let (of, by, lease) = found.expect("what is used stays");
                        prop_assert_eq!((of, by), (end(*inside), *slot));
                        prop_assert!(mappings.in_use(lease));
                        prop_assert_eq!(mappings.of_inside(&of, by), Some((end(*outside), lease)));
                    } else {
                        prop_assert!(found.is_none_or(|(.., lease)| !mappings.in_use(lease)));
                    }
                }
            }
        }
    }

    #[test]
    fn without_room_there_is_nothing() {
        let mut mappings = Mappings::new(0, 1);
        assert_eq!(mappings.of_inside(&end(1), 0), None);
        assert_eq!(mappings.of_outside(&end(1)), None);
        assert_eq!(mappings.insert(end(1), end(2), 0), None);
        mappings.sweep(9);
    }
}
