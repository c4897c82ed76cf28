//! Big sets of addresses: one lookup maps an address to its class, which says in which of the sets it is.
//!
//! Rules then ask for classes, so that a set of 100,000 prefixes is as cheap in a rule as a single one. The table is a
//! poptrie (Asai and Ohara, SIGCOMM 2015): 16 bits of the address by index, then six at a time by nodes whose two bitmaps
//! say where the slots continue and where their values change. Addresses are numbers of 128 bits; an IPv4 address stands in
//! the first 32.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::memory::Table;

/// Addresses by prefix: leading bits, and how many of them count.
pub type Prefix = (u128, u8);

/// The bits of a prefix that count.
pub fn prefix_mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

/// Which class each address is in. Class 0 is in none of the sets.
#[derive(Debug)]
pub struct Classes {
    direct: Vec<u32>,
    nodes: Table<Node>,
    values: Table<u16>,
    /// For each set the classes within it, as few ranges as possible.
    members: Vec<Vec<RangeInclusive<u16>>>,
    count: usize,
}

/// What is being built.
#[derive(Default)]
struct Slots {
    nodes: Vec<Node>,
    values: Vec<u16>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// Slots that continue in a node.
    inner: u64,
    /// Slots that do not, and whose value differs from the one before.
    change: u64,
    first_node: u32,
    first_value: u32,
}

/// Where an interval that reaches up to the next begins, and its class.
type Start = (u128, u16);

/// Marks a value in `direct`, which else holds the index of a node.
const VALUE: u32 = 1 << 31;
const DIRECT_BITS: u32 = 16;

impl Classes {
    /// The classes of some sets; `None` if the sets overlap in more ways than there are classes.
    pub fn new(sets: &[&[Prefix]]) -> Option<Classes> {
        let mut edges: Vec<(u128, usize, bool)> = Vec::new();
        for (set, prefixes) in sets.iter().enumerate() {
            for (bits, len) in prefixes.iter() {
                let (first, last) = (bits & prefix_mask(*len), bits | !prefix_mask(*len));
                edges.push((first, set, true));
                if let Some(behind) = last.checked_add(1) {
                    edges.push((behind, set, false));
                }
            }
        }
        edges.sort_unstable();
        // How often each set covers the addresses from `at` on; prefixes of a set may nest.
        let mut depth = BTreeMap::<usize, u32>::new();
        let mut starts: Vec<(u128, Vec<usize>)> = vec![(0, Vec::new())];
        for edges in edges.chunk_by(|a, b| a.0 == b.0) {
            for (_, set, enters) in edges {
                let depth = depth.entry(*set).or_default();
                *depth = if *enters { *depth + 1 } else { *depth - 1 };
            }
            depth.retain(|_, depth| *depth > 0);
            let within: Vec<usize> = depth.keys().copied().collect();
            if edges[0].0 == 0 {
                starts.clear();
            }
            if starts.last().is_none_or(|(_, before)| *before != within) {
                starts.push((edges[0].0, within));
            }
        }
        // In lexical order the classes of a set that contains others are mostly adjacent.
        let mut classes: BTreeMap<&Vec<usize>, u16> = starts.iter().map(|(_, within)| (within, 0)).collect();
        let nowhere = Vec::new();
        classes.insert(&nowhere, 0);
        if classes.len() > usize::from(u16::MAX) {
            return None;
        }
        let mut members = vec![Vec::<RangeInclusive<u16>>::new(); sets.len()];
        for (class, (within, number)) in classes.iter_mut().enumerate() {
            *number = class as u16;
            for set in within.iter() {
                match members[*set].last_mut() {
                    Some(last) if *last.end() + 1 == class as u16 => *last = *last.start()..=class as u16,
                    _ => members[*set].push(class as u16..=class as u16),
                }
            }
        }
        let count = classes.len();
        let starts: Vec<Start> = starts.iter().map(|(at, within)| (*at, classes[within])).collect();
        let (mut direct, mut slots) = (vec![0; 1 << DIRECT_BITS], Slots::default());
        let mut at = 0;
        for slot in 0..1u128 << DIRECT_BITS {
            let first = slot << (128 - DIRECT_BITS);
            let last = first | (u128::MAX >> DIRECT_BITS);
            let within = part(&starts, &mut at, first, last);
            direct[slot as usize] = match within {
                [(_, class)] => VALUE | u32::from(*class),
                _ => {
                    slots.nodes.push(Node::default());
                    let node = slots.nodes.len() - 1;
                    slots.fill(node, first, DIRECT_BITS, within);
                    node as u32
                }
            };
        }
        Some(Classes { direct, nodes: Table::new(slots.nodes), values: Table::new(slots.values), members, count })
    }

    /// The class of an address.
    #[inline]
    pub fn class(&self, address: u128) -> u16 {
        let mut at = self.direct[(address >> (128 - DIRECT_BITS)) as usize];
        let mut rest = address << DIRECT_BITS;
        while at & VALUE == 0 {
            let node = &self.nodes[at as usize];
            let slot = (rest >> 122) as u32;
            let up_to = u64::MAX >> (63 - slot);
            if node.inner >> slot & 1 == 0 {
                return self.values[(node.first_value + (node.change & up_to).count_ones() - 1) as usize];
            }
            at = node.first_node + (node.inner & up_to).count_ones() - 1;
            rest <<= 6;
        }
        at as u16
    }

    /// The classes that make up a set, by its place in the list the table was made of.
    pub fn of_set(&self, set: usize) -> &[RangeInclusive<u16>] {
        &self.members[set]
    }

    /// How many classes there are, the one outside all sets included.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        self.direct.len() * 4 + self.nodes.len() * size_of::<Node>() + self.values.len() * 2
    }

    /// True if its larger part is on huge pages.
    pub fn hugepages(&self) -> bool {
        self.nodes.hugepages()
    }
}

impl Slots {
    /// Builds the node for the addresses that share their first `depth` bits with `first`.
    fn fill(&mut self, node: usize, first: u128, depth: u32, starts: &[Start]) {
        let mut built = Node { first_value: self.values.len() as u32, ..Node::default() };
        let mut inner = Vec::new();
        let mut before = None;
        let mut at = 0;
        // The last node of a path has four bits left, not six: of four slots only the first is ever asked for.
        let left = (128 - depth).min(6);
        for slot in 0..64u128 {
            let from = first | (slot >> (6 - left)) << (128 - depth - left);
            let to = from | u128::MAX.checked_shr(depth + left).unwrap_or(0);
            match part(starts, &mut at, from, to) {
                [(_, class)] => {
                    if before != Some(*class) {
                        built.change |= 1 << slot;
                        self.values.push(*class);
                        before = Some(*class);
                    }
                }
                within => {
                    built.inner |= 1 << slot;
                    inner.push((from, within));
                }
            }
        }
        built.first_node = self.nodes.len() as u32;
        self.nodes.resize(self.nodes.len() + inner.len(), Node::default());
        self.nodes[node] = built;
        for (i, (from, within)) in inner.into_iter().enumerate() {
            self.fill(built.first_node as usize + i, from, depth + 6, within);
        }
    }
}

/// The intervals that `first..=last` meets, looking from `at` on, where the next call may go on looking.
fn part<'s>(starts: &'s [Start], at: &mut usize, first: u128, last: u128) -> &'s [Start] {
    while starts.get(*at + 1).is_some_and(|(start, _)| *start <= first) {
        *at += 1;
    }
    let beyond = starts[*at..].iter().position(|(start, _)| *start > last).unwrap_or(starts.len() - *at);
    &starts[*at..*at + beyond]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_sets_all_is_outside() {
        let classes = Classes::new(&[]).expect("one class");
        assert_eq!((classes.class(0), classes.class(u128::MAX), classes.count()), (0, 0, 1));
    }

    #[test]
    fn nested_sets_are_adjacent_classes() {
        let outer: &[Prefix] = &[(0x0a << 120, 8)];
        let inner: &[Prefix] = &[(0x0a01 << 112, 16), (0xff << 120, 8)];
        let classes = Classes::new(&[outer, inner]).expect("few classes");
        assert_eq!(classes.count(), 4);
        assert_eq!(classes.of_set(0).len(), 1);
        let class = |address: u128| classes.class(address);
        assert_eq!(class(0x0b << 120), 0);
        assert!(classes.of_set(1).iter().any(|range| range.contains(&class(u128::MAX))));
        assert!(classes.of_set(0)[0].contains(&class(0x0a01 << 112)));
        assert!(!classes.of_set(0)[0].contains(&class(u128::MAX)));
    }

    fn prefix() -> impl Strategy<Value = Prefix> {
        // Few distinct leading bits, so that prefixes nest and touch; lengths up to the very end.
        (0u128..8, 0u128..4, any::<u8>(), 0u8..=128).prop_map(|(high, mid, low, len)| {
            let bits = high << 125 | mid << 100 | mid << 40 | u128::from(low);
            (bits & prefix_mask(len), len)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn a_class_says_which_sets(sets in prop::collection::vec(prop::collection::vec(prefix(), 0..12), 0..6),
                                   others in prop::collection::vec(any::<u128>(), 8)) {
            let slices: Vec<&[Prefix]> = sets.iter().map(Vec::as_slice).collect();
            let classes = Classes::new(&slices).expect("few classes");
            let edges = sets.iter().flatten().flat_map(|(bits, len)| {
                let last = bits | !prefix_mask(*len);
                [*bits, bits.wrapping_sub(1), last, last.wrapping_add(1)]
            });
            for address in edges.chain(others) {
                let class = classes.class(address);
                for (set, prefixes) in sets.iter().enumerate() {
                    let within = prefixes.iter().any(|(bits, len)| (address ^ bits) & prefix_mask(*len) == 0);
                    let said = classes.of_set(set).iter().any(|range| range.contains(&class));
                    prop_assert_eq!(within, said, "{:x} in {:?}", address, prefixes);
                }
            }
        }
    }
}
