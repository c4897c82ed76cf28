//! `talkers`: who sends most: packets and bytes per source address, in bounded memory and with a stated error.
//!
//! The algorithm is Space-Saving with its Stream-Summary (Metwally, Agrawal, El Abbadi: "Efficient computation of frequent
//! and top-k elements in data streams", ICDT 2005): a fixed number of counters; a source without one takes over the
//! smallest, with its count as the possible error. Of N packets and m counters no count is too high by more than N/m, none
//! is too low, and every source with more than N/m packets has a counter. While all sources fit, the counts are exact.
//! Each worker counts by itself; merging adds, for a worker whose counters are all taken and which does not know a source,
//! the smallest count it has, so the bound over all workers is the sum of theirs.
//!
//! Bytes are counted from the moment a source gets its counter: exact where the error is 0, otherwise never too many.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::config::units::Within;
use crate::flow::source::{HashKey, Prefixes, Source};
use crate::packet::{Batch, bits};
use crate::stats::{Line, Lines};

use super::{Cx, Depth, PacketPlan, PacketStage, Plan, PlanCx, Row, Stage};

crate::lines! {
    /// What talkers count.
    pub enum Counters {
        /// Packets counted by source.
        Counted = "counted",
        /// Packets that have no IP source and were not counted.
        NotIp = "not-ip",
        /// Sources that took over the counter of another; zero as long as all counts are exact.
        Replaced = "replaced",
    }
}

crate::section! {
    /// `[talkers]`
    pub struct Config {
        /// How many sources `show talkers` lists.
        pub top: Within<1, 65536> = Within(100),
        /// Sources each worker counts at the same time; with more of them, counts of small ones get an error of at most packets / capacity.
        pub capacity: Within<16, 1048576> = Within(4096),
        /// Leading bits of an IPv6 source that count: 64 sums up what a host with changing addresses sends.
        pub ipv6_prefix: Within<1, 128> = Within(128),
    }
}

/// The stage.
pub struct Talkers;

impl Stage for Talkers {
    const NAME: &'static str = "talkers";
    const DOC: &'static str = "Counts packets and bytes per source address in bounded memory (Space-Saving): each count is at \
                               most packets / capacity too high, and exact while all sources fit. Drops nothing.";
    const DEPTH: Depth = Depth::L3;
    const COUNTERS: &'static [Line] = Counters::LINES;
    type Config = Config;

    fn plan(config: &Config, cx: &mut PlanCx<'_>) -> Option<Plan> {
        Some(Plan::Packet(Arc::new(Compiled {
            top: config.top.0 as usize,
            capacity: config.capacity.0 as usize,
            ipv6_prefix: config.ipv6_prefix.0 as u8,
            key: HashKey::random(),
            counters: cx.counters::<Counters>(),
        })))
    }
}

#[derive(Debug)]
struct Compiled {
    top: usize,
    capacity: usize,
    ipv6_prefix: u8,
    key: HashKey,
    counters: usize,
}

/// Words of a row: `[kind, worker, ...]`, then for a source its address (2), packets, bytes, error; for the row with which
/// each worker begins its packets and the smallest count, if all its counters are taken.
const HEAD: u64 = 0;
const V4: u64 = 4;
const V6: u64 = 6;

impl PacketPlan for Compiled {
    fn start(&self, worker: usize) -> Box<dyn PacketStage> {
        Box::new(Counting {
            worker: worker as u64,
            prefixes: Prefixes::new(32, self.ipv6_prefix),
            summary: Summary::new(self.capacity, self.key),
            counters: self.counters,
        })
    }

    fn describe(&self) -> Vec<String> {
        let memory = self.capacity * (size_of::<Counter>() + 4 + size_of::<Block>() + 16);
        vec![format!(
            "{} sources per worker ({} KiB); beyond that a count is at most packets / {0} too high",
            self.capacity,
            memory >> 10
        )]
    }

    fn show(&self, rows: &[Row]) -> Option<Value> {
        let mut heads = HashMap::<u64, (u64, u64)>::new();
        let mut sources = HashMap::<Source, HashMap<u64, [u64; 3]>>::new();
        for [kind, worker, a, b, packets, bytes, error, _] in rows {
            if *kind == HEAD {
                heads.insert(*worker, (*a, *b));
            } else {
                let source = Source { bits: u128::from(*a) << 64 | u128::from(*b), v6: *kind == V6 };
                sources.entry(source).or_default().insert(*worker, [*packets, *bytes, *error]);
            }
        }
        let mut talkers: Vec<(Source, [u64; 3])> = sources
            .iter()
            .map(|(source, workers)| {
                let mut sum = [0; 3];
                for (worker, (_, smallest)) in &heads {
                    let known = workers.get(worker).copied().unwrap_or([*smallest, 0, *smallest]);
                    sum.iter_mut().zip(known).for_each(|(sum, n)| *sum += n);
                }
                (*source, sum)
            })
            .collect();
        talkers.sort_by_key(|(source, [packets, ..])| (std::cmp::Reverse(*packets), *source));
        let packets: u64 = heads.values().map(|(packets, _)| packets).sum();
        let bound: u64 =
            heads.values().filter(|(_, smallest)| *smallest > 0).map(|(n, _)| n / self.capacity as u64).sum();
        let top: Vec<Value> = talkers
            .iter()
            .take(self.top)
            .map(|(source, [packets, bytes, error])| {
                let address = match source.address() {
                    address if source.v6 && self.ipv6_prefix < 128 => format!("{address}/{}", self.ipv6_prefix),
                    address => address.to_string(),
                };
                json!({ "source": address, "packets": packets, "bytes": bytes, "error": error })
            })
            .collect();
        Some(json!({ "talkers": top, "sources": talkers.len(), "packets": packets, "error_bound": bound }))
    }
}

struct Counting {
    worker: u64,
    prefixes: Prefixes,
    summary: Summary,
    counters: usize,
}

impl PacketStage for Counting {
    fn process(&mut self, batch: &mut Batch, cx: &mut Cx<'_>) {
        let (mut counted, mut other, before) = (0, 0, self.summary.replaced);
        for i in bits(batch.live) {
            match self.prefixes.source(&batch.metas[i]) {
                Some(source) => {
                    self.summary.count(source, batch.frames[i].len() as u64);
                    counted += 1;
                }
                None => other += 1,
            }
        }
        let counters = &mut cx.sheet.counters[self.counters..];
        counters[Counters::Counted as usize] += counted;
        counters[Counters::NotIp as usize] += other;
        counters[Counters::Replaced as usize] += self.summary.replaced - before;
    }

    fn snapshot(&self, cursor: &mut usize, rows: &mut Vec<Row>) -> bool {
        let summary = &self.summary;
        while rows.len() < rows.capacity() {
            if *cursor == 0 {
                rows.push([HEAD, self.worker, summary.packets, summary.smallest(), 0, 0, 0, 0]);
            } else if let Some(counter) = summary.counters.get(*cursor - 1) {
                let (source, count) = (&counter.source, summary.packets_of(counter));
                let kind = if source.v6 { V6 } else { V4 };
                let (high, low) = ((source.bits >> 64) as u64, source.bits as u64);
                if count > 0 {
                    rows.push([kind, self.worker, high, low, count, counter.bytes, counter.error, 0]);
                }
            } else {
                return true;
            }
            *cursor += 1;
        }
        *cursor > summary.counters.len()
    }
}

/// One source's counter. Its packets stand in its block.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    source: Source,
    bytes: u64,
    error: u64,
    /// Its place in `order`.
    place: u32,
    block: u32,
}

/// Neighbours in `order` with the same count.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    packets: u64,
    /// The first place that belongs to it, and the first behind.
    first: u32,
    end: u32,
}

/// The Stream-Summary: counters in ascending order, in blocks of equal counts, so that counting one packet is a swap to the
/// end of its block and a step into the next. The paper's linked buckets, laid out as arrays.
#[derive(Debug)]
struct Summary {
    key: HashKey,
    /// All of them from the start; those without a source have counted nothing, and are no one's in `slots`.
    counters: Box<[Counter]>,
    order: Box<[u32]>,
    blocks: Box<[Block]>,
    /// Blocks that are not in use.
    spare: Vec<u32>,
    /// Open addressing with linear probing: index of a counter, or `EMPTY`.
    slots: Box<[u32]>,
    packets: u64,
    replaced: u64,
}

const EMPTY: u32 = u32::MAX;

impl Summary {
    fn new(capacity: usize, key: HashKey) -> Summary {
        let counter = |place: u32| Counter { place, ..Counter::default() };
        // One block more than there are counters: a step takes the new block before it gives the old one back.
        let mut blocks: Box<[Block]> = vec![Block::default(); capacity + 1].into();
        blocks[0].end = capacity as u32;
        Summary {
            key,
            counters: (0..capacity as u32).map(counter).collect(),
            order: (0..capacity as u32).collect(),
            blocks,
            spare: (1..=capacity as u32).rev().collect(),
            slots: vec![EMPTY; (capacity * 2).next_power_of_two()].into(),
            packets: 0,
            replaced: 0,
        }
    }

    fn packets_of(&self, counter: &Counter) -> u64 {
        self.blocks[counter.block as usize].packets
    }

    /// The smallest count, 0 while there are counters without a source: what a source without a counter may have sent.
    fn smallest(&self) -> u64 {
        self.packets_of(&self.counters[self.order[0] as usize])
    }

    /// Counts one packet.
    #[inline]
    fn count(&mut self, source: Source, bytes: u64) {
        self.packets += 1;
        let at = match self.find(&source) {
            Ok(at) => at,
            Err(_) => self.replace(source),
        };
        self.counters[at].bytes += bytes;
        self.step(at);
    }

    /// The counter of a source, or the empty slot where it belongs.
    #[inline]
    fn find(&self, source: &Source) -> Result<usize, usize> {
        let mask = self.slots.len() - 1;
        let mut slot = self.key.hash(source) as usize & mask;
        // Ends: at most half of the slots are taken.
        loop {
            match self.slots[slot] {
                EMPTY => return Err(slot),
                at if self.counters[at as usize].source == *source => return Ok(at as usize),
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    /// Gives the smallest counter to another source.
    fn replace(&mut self, source: Source) -> usize {
        let at = self.order[0] as usize;
        let error = self.smallest();
        if error > 0 {
            let old = self.counters[at].source;
            self.forget(&old);
            self.replaced += 1;
        }
        if let Err(slot) = self.find(&source) {
            self.slots[slot] = at as u32;
        }
        let counter = &mut self.counters[at];
        (counter.source, counter.bytes, counter.error) = (source, 0, error);
        at
    }

    /// Empties the slot of a source, closing the gap (Knuth, The Art of Computer Programming 3, 6.4, algorithm R).
    fn forget(&mut self, source: &Source) {
        let mask = self.slots.len() - 1;
        let mut gap = self.key.hash(source) as usize & mask;
        while self.slots[gap] != EMPTY && self.counters[self.slots[gap] as usize].source != *source {
            gap = (gap + 1) & mask;
        }
        let mut slot = gap;
        loop {
            self.slots[gap] = EMPTY;
            loop {
                slot = (slot + 1) & mask;
                let at = self.slots[slot];
                if at == EMPTY {
                    return;
                }
                let home = self.key.hash(&self.counters[at as usize].source) as usize & mask;
                // It may move into the gap unless its home lies behind the gap, on the way to where it is.
                if (slot.wrapping_sub(home) & mask) >= (slot.wrapping_sub(gap) & mask) {
                    self.slots[gap] = at;
                    gap = slot;
                    break;
                }
            }
        }
    }

    /// Raises a counter by one packet.
    #[inline]
    fn step(&mut self, at: usize) {
        let block = self.counters[at].block as usize;
        let Block { packets, first, end } = self.blocks[block];
        let (place, last) = (self.counters[at].place, end - 1);
        if place != last {
            let other = self.order[last as usize];
            self.order.swap(place as usize, last as usize);
            self.counters[other as usize].place = place;
            self.counters[at].place = last;
        }
        let next = self.order.get(end as usize).map(|above| self.counters[*above as usize].block as usize);
        match next.filter(|next| self.blocks[*next].packets == packets + 1) {
            Some(next) => {
                self.blocks[next].first = last;
                self.counters[at].block = next as u32;
            }
            // Alone in its block: the block rises with it.
            None if first == last => {
                self.blocks[block].packets += 1;
                return;
            }
            None => {
                // There is one: no more blocks are in use than there are counters.
                let above = self.spare.pop().unwrap_or(0);
                self.blocks[above as usize] = Block { packets: packets + 1, first: last, end };
                self.counters[at].block = above;
            }
        }
        self.blocks[block].end = last;
        if first == last {
            self.spare.push(block as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Log;
    use crate::packet::Meta;
    use crate::packet::frame::Heap;
    use crate::packet::meta::flag;
    use crate::stats::Layout;
    use proptest::prelude::*;

    fn v4(n: u32) -> Source {
        Source { bits: u128::from(n) << 96, v6: false }
    }

    /// Order, blocks and slots agree with each other.
    fn check(summary: &Summary) {
        let mut at = 0;
        let mut last = None;
        while at < summary.order.len() {
            let block = summary.counters[summary.order[at] as usize].block;
            let Block { packets, first, end } = summary.blocks[block as usize];
            assert_eq!(first as usize, at);
            assert!(last < Some(packets), "ascending");
            for place in first..end {
                let counter = &summary.counters[summary.order[place as usize] as usize];
                assert_eq!((counter.place, counter.block), (place, block));
            }
            (at, last) = (end as usize, Some(packets));
        }
        let taken = summary.counters.iter().enumerate().filter(|(_, counter)| summary.packets_of(counter) > 0);
        for (at, counter) in taken.clone() {
            assert_eq!(summary.find(&counter.source), Ok(at));
        }
        assert_eq!(summary.slots.iter().filter(|at| **at != EMPTY).count(), taken.count());
    }

    proptest! {
        #[test]
        fn error_bound_holds(stream in proptest::collection::vec((0u32..60, 0u32..4), 1..2000), capacity in 1usize..80) {
            let mut summary = Summary::new(capacity, HashKey::random());
            let mut exact = HashMap::<Source, (u64, u64)>::new();
            for (n, skew) in stream {
                let source = v4(n >> (skew * 2));
                summary.count(source, u64::from(n) + 60);
                let entry = exact.entry(source).or_default();
                entry.0 += 1;
                entry.1 += u64::from(n) + 60;
            }
            check(&summary);
            let bound = summary.packets / capacity as u64;
            let mut sum = 0;
            for counter in summary.counters.iter().filter(|counter| summary.packets_of(counter) > 0) {
                let (packets, bytes) = exact[&counter.source];
                let count = summary.packets_of(counter);
                sum += count;
                prop_assert!(counter.error <= bound && count >= packets && count - counter.error <= packets);
                prop_assert!(counter.bytes <= bytes && (counter.error > 0 || counter.bytes == bytes));
            }
            prop_assert_eq!(sum, summary.packets);
            for (source, (packets, _)) in &exact {
                prop_assert!(*packets <= bound || summary.find(source).is_ok(), "a big one is missing");
                prop_assert!(*packets <= summary.smallest() || summary.find(source).is_ok());
            }
            if exact.len() <= capacity {
                prop_assert!(summary.counters.iter().all(|c| c.error == 0) && summary.replaced == 0);
            }
        }
    }

    fn plan(capacity: usize, top: usize) -> (Compiled, Layout) {
        let mut layout = Layout::new();
        let counters = layout.counters::<Counters>("talkers");
        (Compiled { top, capacity, ipv6_prefix: 64, key: HashKey::random(), counters }, layout)
    }

    fn rows(stage: &dyn PacketStage, room: usize) -> Vec<Row> {
        let (mut all, mut cursor) = (Vec::new(), 0);
        loop {
            let mut rows = Vec::with_capacity(room);
            let capacity = rows.capacity();
            let done = stage.snapshot(&mut cursor, &mut rows);
            assert_eq!(rows.capacity(), capacity, "did not grow");
            all.extend(rows);
            if done {
                return all;
            }
        }
    }

    #[test]
    fn two_workers_are_shown_as_one() {
        let (plan, layout) = plan(16, 2);
        let mut heap = Heap::new(64, 128);
        let mut all = Vec::new();
        for worker in 0..2 {
            let (mut stage, mut sheet, mut batch) = (plan.start(worker), layout.sheet(), Batch::default());
            for (i, last) in [1u8, 1, 2, 3, 9, 9].into_iter().enumerate() {
                batch.frames[i] = heap.frame(&[0; 100]).expect("room");
                batch.metas[i] = Meta { flags: if last == 9 { flag::IPV6 } else { flag::IPV4 }, ..Meta::UNKNOWN };
                batch.metas[i].src[..4].copy_from_slice(&[10, 0, worker as u8 * u8::from(last == 3), last]);
                batch.metas[i].src[15] = if last == 9 { i as u8 } else { 0 };
            }
            batch.frames[6] = heap.frame(&[0; 60]).expect("room");
            batch.metas[6] = Meta { flags: flag::ARP, ..Meta::UNKNOWN };
            batch.begin(7);
            stage.process(&mut batch, &mut Cx { now: 1, sheet: &mut sheet, log: &Log::NONE });
            assert_eq!(batch.live, 0x7f, "nothing is dropped");
            assert_eq!(sheet.counters[plan.counters..], [6, 1, 0]);
            all.extend(rows(&*stage, 2));
            batch.frames[..7].iter_mut().for_each(|frame| heap.give_back(frame.take()));
        }
        assert_eq!(
            plan.show(&all).expect("rows"),
            json!({
                "talkers": [
                    { "source": "10.0.0.1", "packets": 4, "bytes": 400, "error": 0 },
                    { "source": "a00:9::/64", "packets": 4, "bytes": 400, "error": 0 },
                ],
                "sources": 5, "packets": 12, "error_bound": 0,
            })
        );
    }

    #[test]
    fn merging_keeps_the_bound() {
        let (plan, _) = plan(16, 100);
        let mut exact = HashMap::<Source, u64>::new();
        let mut all = Vec::new();
        for worker in 0..3u32 {
            let mut summary = Summary::new(16, plan.key);
            for n in 0..3000u32 {
                let source = v4((n * n + worker) % 97);
                summary.count(source, 60);
                *exact.entry(source).or_default() += 1;
            }
            let stage = Counting { worker: worker.into(), prefixes: Prefixes::new(32, 128), summary, counters: 0 };
            all.extend(rows(&stage, 5));
        }
        let shown = plan.show(&all).expect("rows");
        let bound = shown["error_bound"].as_u64().expect("number");
        assert_eq!(bound, 3 * (3000 / 16));
        for talker in shown["talkers"].as_array().expect("list") {
            let address: std::net::Ipv4Addr = talker["source"].as_str().expect("text").parse().expect("address");
            let (packets, error) = (talker["packets"].as_u64().expect("n"), talker["error"].as_u64().expect("n"));
            let truth = exact[&v4(address.to_bits())];
            assert!(packets >= truth && packets - error <= truth && error <= bound, "{talker} is {truth}");
        }
    }
}
