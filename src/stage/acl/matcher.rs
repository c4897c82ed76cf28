//! How the packets of a batch find the rule that decides them: by comparing the whole batch with one condition after the
//! other while there are few, by a classifier table beyond that.

use crate::dpdk::acl::{BuildError, Compare, Field, Table, Value};
use crate::dpdk::eal::Eal;
use crate::packet::meta::flag;
use crate::packet::{BATCH, Mask, Meta, bits};

use crate::stage::classes::{Classes, Prefix, prefix_mask};

/// IANA protocol numbers whose `Meta::detail` is a type and a code.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// What stands for the VLAN id of a packet without a tag; ids end at 4095.
pub const UNTAGGED: u16 = 0x1000;

/// Of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// From the first to the last, both included.
pub type Span = (u16, u16);
/// Every number of 16 bits.
pub const ALL: Span = (0, u16::MAX);

/// What is asked of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Its leading bits.
    Prefix(Prefix),
    /// Its class.
    Class(Span),
}

impl Side {
    /// Any address.
    pub const ANY: Side = Side::Prefix((0, 0));
}

/// One condition: everything it says must be true of a packet. A rule is one or more of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The rule, by its place in the file.
    pub rule: u32,
    /// Transport protocol.
    pub proto: Option<u8>,
    /// Source address.
    pub source: Side,
    /// Destination address.
    pub destination: Side,
    /// Source port.
    pub sport: Span,
    /// Destination port; or type and code of an ICMP message as one number.
    pub dport: Span,
    /// VLAN id, or `UNTAGGED`.
    pub vlan: Span,
}

impl Entry {
    /// True of every packet.
    pub fn is_always(&self) -> bool {
        let Entry { rule: _, proto, source, destination, sport, dport, vlan } = self;
        proto.is_none() && [source, destination] == [&Side::ANY; 2] && [sport, dport, vlan] == [&ALL; 3]
    }
}

/// Source and destination port as rules see them, or for ICMP zero and type and code; `None` for a packet whose transport
/// header is not there (a later fragment that has it not of its first) or has neither.
#[inline]
pub fn transport(meta: &Meta) -> Option<(u16, u16)> {
    if meta.flags & (flag::LATER_FRAGMENT | flag::BORROWED) == flag::LATER_FRAGMENT {
        None
    } else if meta.proto == ICMP || meta.proto == ICMPV6 {
        meta.any(flag::L4 | flag::BORROWED).then_some((0, u16::from_be_bytes(meta.detail)))
    } else {
        meta.has(flag::PORTS).then_some((meta.sport, meta.dport))
    }
}

/// The VLAN id as rules see it.
#[inline]
pub fn vlan(meta: &Meta) -> u16 {
    if meta.has(flag::VLAN) { meta.vlan & 0xfff } else { UNTAGGED }
}

/// An address as classes and prefixes know it.
#[inline]
pub fn address(bytes: &[u8; 16], family: Family) -> u128 {
    let number = u128::from_be_bytes(*bytes);
    match family {
        Family::V4 => number >> 96 << 96,
        Family::V6 => number,
    }
}

/// Columns of [`Lanes`].
mod column {
    pub const PROTO: usize = 0;
    pub const SPORT: usize = 1;
    pub const DPORT: usize = 2;
    pub const VLAN: usize = 3;
    pub const SOURCE_CLASS: usize = 4;
    pub const DESTINATION_CLASS: usize = 5;
    pub const SOURCE: usize = 6;
    pub const DESTINATION: usize = 10;
    pub const COUNT: usize = 14;
}

/// The facts of up to 64 packets, column by column, so that one comparison runs over many packets at once.
struct Lanes {
    columns: [[u32; BATCH]; column::COUNT],
    packets: usize,
}

impl Lanes {
    /// The columns of `wanted` (a bit for each), of the packets in `mask`.
    #[inline]
    fn of(wanted: u32, mask: Mask, facts: &[Meta; BATCH], family: Family, classes: Option<&Classes>) -> Lanes {
        let mut lanes = Lanes { columns: [[0; BATCH]; column::COUNT], packets: mask.count_ones() as usize };
        let class = |at: &[u8; 16]| classes.map_or(0, |classes| u32::from(classes.class(address(at, family))));
        for wanted in bits(wanted.into()) {
            match wanted {
                column::PROTO => lanes.fill(column::PROTO, mask, facts, |meta| meta.proto.into()),
                column::SPORT => lanes.fill(column::SPORT, mask, facts, |meta| ports_of(meta).0.into()),
                column::DPORT => lanes.fill(column::DPORT, mask, facts, |meta| ports_of(meta).1.into()),
                column::VLAN => lanes.fill(column::VLAN, mask, facts, |meta| vlan(meta).into()),
                column::SOURCE_CLASS => lanes.fill(column::SOURCE_CLASS, mask, facts, |meta| class(&meta.src)),
                column::DESTINATION_CLASS => {
                    lanes.fill(column::DESTINATION_CLASS, mask, facts, |meta| class(&meta.dst))
                }
                word if word < column::DESTINATION => {
                    lanes.fill(word, mask, facts, |meta| word_of(&meta.src, word - column::SOURCE));
                }
                word => lanes.fill(word, mask, facts, |meta| word_of(&meta.dst, word - column::DESTINATION)),
            }
        }
        lanes
    }

    /// Fills one column: a tight loop over all packets, of which there are mostly no gaps.
    #[inline]
    fn fill(&mut self, column: usize, mask: Mask, facts: &[Meta; BATCH], fact: impl Fn(&Meta) -> u32) {
        let lane = &mut self.columns[column];
        if mask & mask.wrapping_add(1) == 0 {
            lane.iter_mut().zip(&facts[..self.packets]).for_each(|(lane, meta)| *lane = fact(meta));
        } else {
            lane.iter_mut().zip(bits(mask)).for_each(|(lane, i)| *lane = fact(&facts[i]));
        }
    }
}

/// The numbers a rule compares as ports, zeros if there are none.
#[inline]
fn ports_of(meta: &Meta) -> (u16, u16) {
    transport(meta).unwrap_or((0, 0))
}

#[inline]
fn word_of(address: &[u8; 16], word: usize) -> u32 {
    let bytes = address[4 * word..4 * word + 4].first_chunk().expect("four bytes");
    u32::from_be_bytes(*bytes)
}

/// One comparison of one column.
#[derive(Clone, Copy, Debug)]
enum Test {
    Equal {
        column: u8,
        value: u32,
        mask: u32,
    },
    /// Both ends below 2^31.
    Range {
        column: u8,
        first: u32,
        last: u32,
    },
}

/// Conditions compared one after the other: a batch costs some tens of cycles for each.
#[derive(Debug, Default)]
pub struct Linear {
    tests: Vec<Test>,
    /// The rule of each condition, and where its tests end.
    entries: Vec<(u32, u32)>,
    /// A bit for each column that some test looks at.
    columns: u32,
}

/// Packets compared at a time: their differences stay in registers.
const STRIDE: usize = 16;

impl Linear {
    fn new(entries: &[Entry]) -> Linear {
        let mut linear = Linear::default();
        for entry in entries {
            linear.push_tests(entry);
            linear.entries.push((entry.rule, linear.tests.len() as u32));
        }
        let column = |test: &Test| match *test {
            Test::Equal { column, .. } | Test::Range { column, .. } => column,
        };
        linear.columns = linear.tests.iter().fold(0, |columns, test| columns | 1 << column(test));
        linear
    }

    fn push_tests(&mut self, entry: &Entry) {
        if let Some(proto) = entry.proto {
            self.push_range(column::PROTO, (proto.into(), proto.into()));
        }
        self.push_range(column::SPORT, entry.sport);
        self.push_range(column::DPORT, entry.dport);
        self.push_range(column::VLAN, entry.vlan);
        for (side, class, first_word) in [
            (entry.source, column::SOURCE_CLASS, column::SOURCE),
            (entry.destination, column::DESTINATION_CLASS, column::DESTINATION),
        ] {
            match side {
                Side::Class(span) => self.push_range(class, span),
                Side::Prefix((bits, len)) => {
                    let mask = prefix_mask(len);
                    for word in 0..4 {
                        let part = |of: u128| (of >> (96 - 32 * word)) as u32;
                        if part(mask) != 0 {
                            let column = (first_word + word) as u8;
                            self.tests.push(Test::Equal { column, value: part(bits), mask: part(mask) });
                        }
                    }
                }
            }
        }
    }

    fn push_range(&mut self, column: usize, (first, last): Span) {
        let (column, first, last) = (column as u8, u32::from(first), u32::from(last));
        match (first, last) {
            (0, 0xffff) => {}
            _ if first == last => self.tests.push(Test::Equal { column, value: first, mask: u32::MAX }),
            _ => self.tests.push(Test::Range { column, first, last }),
        }
    }

    /// Calls `found` with the rule of each condition and the lanes it is true of, until `found` says that is enough.
    #[inline]
    fn run(&self, lanes: &Lanes, mut found: impl FnMut(u32, Mask) -> bool) {
        let mut start = 0;
        for (rule, end) in &self.entries {
            let tests = &self.tests[start..*end as usize];
            start = *end as usize;
            let mut matching = 0;
            for first in (0..lanes.packets).step_by(STRIDE) {
                let mut differ = [0u32; STRIDE];
                for test in tests {
                    match *test {
                        Test::Equal { column, value, mask } => {
                            let lane = &lanes.columns[usize::from(column)][first..first + STRIDE];
                            differ.iter_mut().zip(lane).for_each(|(differ, lane)| *differ |= (lane ^ value) & mask);
                        }
                        // Outside the range one of the differences is negative.
                        Test::Range { column, first: low, last } => {
                            let lane = &lanes.columns[usize::from(column)][first..first + STRIDE];
                            differ.iter_mut().zip(lane).for_each(|(differ, lane)| {
                                *differ |= (lane.wrapping_sub(low) | last.wrapping_sub(*lane)) & 0x8000_0000;
                            });
                        }
                    }
                }
                matching |= zeros(&differ) << first;
            }
            let present = Mask::MAX.checked_shr((BATCH - lanes.packets) as u32).unwrap_or(0);
            if !found(*rule, matching & present) {
                break;
            }
        }
    }
}

/// One bit for each zero.
#[inline]
fn zeros(differ: &[u32; STRIDE]) -> Mask {
    let mut bytes = [0u8; STRIDE];
    bytes.iter_mut().zip(differ).for_each(|(byte, differ)| *byte = u8::from(*differ == 0));
    // Multiplying gathers the lowest bits of eight bytes in the highest byte.
    let gather = |half: &[u8; 8]| u64::from_le_bytes(*half).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    let (low, high) = (bytes.first_chunk().expect("eight"), bytes.last_chunk().expect("eight"));
    gather(low) | gather(high) << 8
}

/// Which groups of four bytes the key of a table has, in this order behind the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    source: bool,
    destination: bool,
    ports: bool,
    vlan: bool,
    classes: bool,
}

impl Groups {
    fn of(entries: &[Entry]) -> Groups {
        let class = |side: Side| matches!(side, Side::Class(_));
        let prefix = |side: Side| !class(side) && side != Side::ANY;
        Groups {
            source: entries.iter().any(|entry| prefix(entry.source)),
            destination: entries.iter().any(|entry| prefix(entry.destination)),
            ports: entries.iter().any(|entry| (entry.sport, entry.dport) != (ALL, ALL)),
            vlan: entries.iter().any(|entry| entry.vlan != ALL),
            classes: entries.iter().any(|entry| class(entry.source) || class(entry.destination)),
        }
    }

    /// The fields of the key, which begins with the protocol.
    fn fields(self, family: Family) -> Vec<Field> {
        let words = family.words();
        let mut fields = vec![Field { compare: Compare::Prefix, size: 1, group: 0, offset: 0 }];
        let mut group = 1;
        let mut add = |word: usize, compare: Compare, sizes: &[u8]| {
            let mut offset = 4 * word as u32;
            for size in sizes {
                fields.push(Field { compare, size: *size, group, offset });
                offset += u32::from(*size);
            }
            group += 1;
        };
        for word in (0..words).filter(|_| self.source) {
            add(1 + word, Compare::Prefix, &[4]);
        }
        for word in (0..words).filter(|_| self.destination) {
            add(1 + words + word, Compare::Prefix, &[4]);
        }
        for behind in
            [self.ports, self.vlan, self.classes].into_iter().enumerate().filter_map(|(n, is)| is.then_some(n))
        {
            add(1 + 2 * words + behind, Compare::Range, &[2, 2]);
        }
        fields
    }

    /// What an entry asks of the fields, in their order.
    fn values(self, family: Family, entry: &Entry, values: &mut Vec<Value>) {
        let range = |(first, last): Span| Value { a: first.into(), b: last.into() };
        values.push(entry.proto.map_or(Value { a: 0, b: 0 }, |proto| Value { a: proto.into(), b: 8 }));
        for (present, side) in [(self.source, entry.source), (self.destination, entry.destination)] {
            let (bits, len) = match side {
                Side::Prefix(prefix) => prefix,
                Side::Class(_) => (0, 0),
            };
            for word in (0..family.words() as u32).filter(|_| present) {
                let b = u32::from(len).saturating_sub(32 * word).min(32);
                values.push(Value { a: (bits >> (96 - 32 * word)) as u32, b });
            }
        }
        if self.ports {
            values.extend([range(entry.sport), range(entry.dport)]);
        }
        if self.vlan {
            values.extend([range(entry.vlan), range(ALL)]);
        }
        if self.classes {
            values.extend([entry.source, entry.destination].map(|side| match side {
                Side::Class(span) => range(span),
                Side::Prefix(_) => range(ALL),
            }));
        }
    }
}

impl Family {
    /// Words of an address.
    const fn words(self) -> usize {
        match self {
            Family::V4 => 1,
            Family::V6 => 4,
        }
    }
}

/// Words of a key: protocol, two addresses, ports, VLAN, classes.
const V4_WORDS: usize = 4 + 2 * Family::V4.words();
const V6_WORDS: usize = 4 + 2 * Family::V6.words();

/// A classifier table and the rule of each of its entries. rte_acl itself makes several tries where one would grow too
/// large; cutting the list into several tables takes more memory, not less.
#[derive(Debug)]
struct Trie {
    table: Table,
    rules: Vec<u32>,
    fields: usize,
}

impl Trie {
    fn build(eal: &'static Eal, family: Family, entries: &[Entry], max_bytes: usize) -> Result<Trie, BuildError> {
        let groups = Groups::of(entries);
        let fields = groups.fields(family);
        let mut values = Vec::with_capacity(entries.len() * fields.len());
        entries.iter().for_each(|entry| groups.values(family, entry, &mut values));
        let table = Table::build(eal, &fields, &values, max_bytes.max(1))?;
        if table.bytes() > max_bytes {
            return Err(BuildError::TooLarge);
        }
        Ok(Trie { table, rules: entries.iter().map(|entry| entry.rule + 1).collect(), fields: fields.len() })
    }

    #[inline]
    fn find<const WORDS: usize>(&self, keys: &[[u32; WORDS]], found: &mut [u32; BATCH]) {
        self.table.classify(keys, found);
        for found in &mut found[..keys.len()] {
            *found = (*found as usize).checked_sub(1).map_or(0, |entry| self.rules[entry]);
        }
    }
}

/// The key of each packet of `mask`, in the wire's byte order. `ADDRESS` is the words of an address.
#[inline]
fn keys<const ADDRESS: usize, const WORDS: usize>(
    mask: Mask,
    facts: &[Meta; BATCH],
    family: Family,
    classes: Option<&Classes>,
) -> [[u32; WORDS]; BATCH] {
    let mut keys = [[0; WORDS]; BATCH];
    for (key, i) in keys.iter_mut().zip(bits(mask)) {
        let meta = &facts[i];
        let (sport, dport) = transport(meta).unwrap_or((0, 0));
        key[0] = u32::from_ne_bytes([meta.proto, 0, 0, 0]);
        for word in 0..ADDRESS {
            key[1 + word] = word_of(&meta.src, word).to_be();
            key[1 + ADDRESS + word] = word_of(&meta.dst, word).to_be();
        }
        key[1 + 2 * ADDRESS] = (u32::from(sport) << 16 | u32::from(dport)).to_be();
        key[2 + 2 * ADDRESS] = (u32::from(vlan(meta)) << 16).to_be();
        if let Some(classes) = classes {
            let (source, destination) = (address(&meta.src, family), address(&meta.dst, family));
            let both = u32::from(classes.class(source)) << 16 | u32::from(classes.class(destination));
            key[3 + 2 * ADDRESS] = both.to_be();
        }
    }
    keys
}

/// How many conditions are still compared one after the other: beyond, a table is faster.
pub const FEW: usize = 4;

/// How packets of one family find their rule.
#[derive(Debug)]
enum How {
    Nothing,
    Linear(Linear),
    Trie(Trie),
}

/// Finds the first condition that is true of a packet.
#[derive(Debug)]
pub struct Matcher {
    family: Family,
    how: How,
    /// The rule of packets that none is true of, from 1; 0 if there is none.
    otherwise: u32,
    /// True if some condition asks for a class.
    classes: bool,
}

impl Matcher {
    /// Compiles conditions, the first taking precedence. `eal` is only asked for if there are more than `few`.
    pub fn new(
        family: Family,
        entries: &[Entry],
        few: usize,
        max_bytes: usize,
        eal: impl FnOnce() -> Result<&'static Eal, String>,
    ) -> Result<Matcher, String> {
        // What stands behind a condition that is always true is never reached.
        let reached = entries.iter().position(Entry::is_always);
        let otherwise = reached.map_or(0, |at| entries[at].rule + 1);
        let entries = &entries[..reached.unwrap_or(entries.len())];
        let how = match entries.len() {
            0 => How::Nothing,
            some if some <= few => How::Linear(Linear::new(entries)),
            _ => How::Trie(Trie::build(eal()?, family, entries, max_bytes).map_err(|error| error.to_string())?),
        };
        let classes = Groups::of(entries).classes;
        Ok(Matcher { family, how, otherwise, classes })
    }

    /// For each packet of `mask`, in order, the rule that decides it, counted from 1; 0 if none does. All are of the
    /// matcher's family.
    #[inline]
    pub fn find(&self, mask: Mask, facts: &[Meta; BATCH], classes: Option<&Classes>, found: &mut [u32; BATCH]) {
        let classes = if self.classes { classes } else { None };
        let packets = mask.count_ones() as usize;
        match &self.how {
            How::Nothing => found.fill(0),
            How::Linear(linear) => {
                found.fill(0);
                let lanes = Lanes::of(linear.columns, mask, facts, self.family, classes);
                let mut open = Mask::MAX.checked_shr((BATCH - packets) as u32).unwrap_or(0);
                linear.run(&lanes, |rule, matching| {
                    bits(matching & open).for_each(|n| found[n] = rule + 1);
                    open &= !matching;
                    open != 0
                });
            }
            How::Trie(trie) if self.family == Family::V4 => {
                let keys = keys::<{ Family::V4.words() }, V4_WORDS>(mask, facts, self.family, classes);
                trie.find(&keys[..packets], found);
            }
            How::Trie(trie) => {
                let keys = keys::<{ Family::V6.words() }, V6_WORDS>(mask, facts, self.family, classes);
                trie.find(&keys[..packets], found);
            }
        }
        if self.otherwise != 0 {
            found[..packets].iter_mut().filter(|found| **found == 0).for_each(|found| *found = self.otherwise);
        }
    }

    /// Memory of its tables.
    pub fn bytes(&self) -> usize {
        match &self.how {
            How::Trie(trie) => trie.table.bytes() + trie.rules.len() * 4,
            How::Nothing | How::Linear(_) => 0,
        }
    }

    /// How many conditions it has and how it finds one, for people.
    pub fn describe(&self) -> String {
        match &self.how {
            How::Nothing => "decided without a lookup".into(),
            How::Linear(linear) => format!("{} conditions, compared in turn", linear.entries.len()),
            How::Trie(trie) => {
                let classes = if self.classes { ", with set classes" } else { "" };
                let (fields, kib, algorithm) = (trie.fields, self.bytes().div_ceil(1024), trie.table.algorithm());
                format!("{} conditions on {fields} fields{classes}, {kib} KiB, {algorithm}", trie.rules.len())
            }
        }
    }
}

/// Finds every condition that is true of a packet.
#[derive(Debug)]
pub struct Counter {
    family: Family,
    linear: Linear,
    classes: bool,
}

impl Counter {
    /// Compiles conditions; those of one rule stand together.
    pub fn new(family: Family, entries: &[Entry]) -> Counter {
        Counter { family, linear: Linear::new(entries), classes: Groups::of(entries).classes }
    }

    /// True if it never finds anything.
    pub fn is_empty(&self) -> bool {
        self.linear.entries.is_empty()
    }

    /// How many conditions it has.
    pub fn len(&self) -> usize {
        self.linear.entries.len()
    }

    /// Calls `found` with each rule and the packets of `mask` that it matches.
    #[inline]
    pub fn find(&self, mask: Mask, facts: &[Meta; BATCH], classes: Option<&Classes>, mut found: impl FnMut(u32, Mask)) {
        let lanes = Lanes::of(self.linear.columns, mask, facts, self.family, if self.classes { classes } else { None });
        let mut rule = (u32::MAX, 0);
        let mut tell = |(rule, matching): (u32, Mask)| {
            if matching != 0 {
                let mut packets = 0;
                bits(mask).enumerate().for_each(|(n, i)| packets |= (matching >> n & 1) << i);
                found(rule, packets);
            }
        };
        self.linear.run(&lanes, |next, matching| {
            if next == rule.0 {
                rule.1 |= matching;
            } else {
                tell(rule);
                rule = (next, matching);
            }
            true
        });
        tell(rule);
    }
}
