//! One worker's table of flows of one family.
//!
//! A bucket is a cache line: eight tags of 16 bits, and the eight entries they stand for. An entry is filed under its hash in
//! one of two buckets (cuckoo hashing: the second follows from the first and the tag, and again the first from the second), in
//! the first if there is room; a bucket counts those of its own that had to go elsewhere, so that nearly every lookup is one
//! bucket and one entry. Both directions of a flow find the same entry: their hash is equal.
//!
//! **A translated flow** has another tuple on the way back, and so another hash: its entry is filed twice, and a slot says by
//! which tuple its packets find it, so that neither is mistaken for the other. Every tuple belongs to one flow at most, as a
//! key or as a reply key: a flow one of whose tuples another has is refused.
//!
//! **Full is a policy.** Half-open flows have a budget of their own and stand in a list by age; beyond the budget, or when no
//! entry is free, the oldest of them goes. Flows that are open are never evicted: then a new one is refused.
//!
//! **Expiry** is a hand that goes round over a bounded number of entries per tick.
//!
//! Lookups come in three passes over a batch, so that the lines they need are under way at once: [`Table::prefetch`] for the
//! bucket, [`Table::candidate`] for the entry, [`Table::find`].

use std::io;

use bytemuck::{Pod, Zeroable};

use crate::arch;
use crate::nat::mapping::{Lease, Leases};
use crate::packet::steer::{self, Key as HashKey};
use crate::packet::{BATCH, Mask, bits};

use super::entry::{Body, Entry, Key, mark};
use super::limits::{Ledger, Token};
use super::region::{Array, Kind, Placement, Region};
use super::timeout::has_passed;
use super::{ORIGINAL, REPLY};

/// Changes with every change of what entries look like; a saved table of another version is refused.
pub const LAYOUT: u32 = 2;

const SLOTS: usize = 8;
const NONE: u32 = u32::MAX;
/// In a bucket beside an entry's index: its flow is translated, and found here by its reply key.
const BACK: u32 = 1 << 31;
/// Entries (of translated flows, twice) per hundred slots when every entry is taken.
const LOAD: usize = 60;
/// Entries that the hand visits at a time.
const STRIDE: usize = 32;
/// Buckets looked at for a place that can be freed.
const REACH: usize = 64;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Bucket {
    /// 0 of an empty slot.
    tags: [u16; SLOTS],
    /// Index, and [`BACK`].
    entries: [u32; SLOTS],
    /// How many slots whose first bucket this is are in their second.
    elsewhere: u32,
    _rest: [u32; 3],
}

/// Neighbors of a half-open flow by age; of a free entry, the next free one in `newer`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Link {
    older: u32,
    newer: u32,
}

/// Where a table begins.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Head {
    magic: [u8; 8],
    layout: u32,
    entry_size: u32,
    entries: u64,
    buckets: u64,
    _rest: [u64; 4],
}

const MAGIC: [u8; 8] = *b"flowgate";

/// The entry that a tuple's flow has, if it has any; to be compared yet.
#[derive(Clone, Copy, Debug)]
pub struct Candidate(u32);

impl Candidate {
    /// There is no flow of the tuple.
    pub const NONE: Candidate = Candidate(NONE);
    /// It may be in its other bucket.
    const ELSEWHERE: Candidate = Candidate(NONE - 1);
}

/// Why a flow got no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The table is full of flows that may not be evicted.
    Full,
    /// Packets of another flow have its tuple, or that of its way back; or it is translated so that both are the same.
    Taken,
}

/// What becomes of an entry that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// It stays.
    Keep,
    /// It goes.
    Remove,
    /// It stays for now, and is the first to be looked at next time.
    Pause,
}

/// How full a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Entries there are.
    pub entries: u32,
    /// Entries in use.
    pub used: u32,
    /// Of these, translated: they are in the index twice.
    pub translated: u32,
    /// Of those in use, half-open.
    pub half_open: u32,
    /// How many may be half-open.
    pub budget: u32,
}

/// The table.
#[derive(Debug)]
pub struct Table<E> {
    buckets: Array<Bucket>,
    entries: Array<E>,
    links: Array<Link>,
    kind: Kind,
    /// First free entry of those that were in use.
    free: u32,
    /// The first entry that was never in use.
    untouched: u32,
    oldest: u32,
    newest: u32,
    occupancy: Occupancy,
    hand: u32,
    /// Where flows are counted, if there are limits.
    ledger: Option<Ledger>,
    /// Which mappings translated flows use, if there are mappings.
    leases: Option<Leases>,
    /// By which tuples are hashed; without it no translated flow can be filed.
    key: Option<HashKey>,
}

/// Bytes of memory a table of `entries` takes, of which so many may be translated.
fn footprint<E>(entries: usize, translated: usize) -> usize {
    let buckets = buckets_for(entries + translated);
    let lines = |bytes: usize| bytes.next_multiple_of(64);
    64 + lines(buckets * 64) + lines(entries * size_of::<E>()) + lines(entries * size_of::<Link>())
}

fn buckets_for(filed: usize) -> usize {
    (filed * 100).div_ceil(LOAD * SLOTS).max(2)
}

impl<E: Entry> Table<E> {
    /// Bytes a flow takes, its share of the index included, in a table of so many of which so many may be translated.
    pub fn bytes_per_flow(entries: usize, translated: usize) -> usize {
        footprint::<E>(entries, translated).div_ceil(entries.max(1))
    }

    /// An empty table of `entries` flows, of which `budget` may be half-open. Its index has no room set aside for translated
    /// flows; there is some for three quarters of the entries.
    pub fn new(entries: usize, budget: usize, placement: Placement) -> io::Result<Table<E>> {
        Table::translating(entries, 0, budget, placement)
    }

    /// The same with room to translate so many of the flows, each of which takes 14 bytes more then.
    pub fn translating(entries: usize, translated: usize, budget: usize, placement: Placement) -> io::Result<Table<E>> {
        // An index and a direction fit into 32 bits, and some are left that are none.
        let entries = entries.clamp(1, 1 << 30);
        let translated = translated.min(entries);
        let buckets = buckets_for(entries + translated);
        let mut region = Region::new(footprint::<E>(entries, translated), placement)?;
        let short = || io::Error::from(io::ErrorKind::OutOfMemory);
        let mut head: Array<Head> = region.array(1).ok_or_else(short)?;
        head[0] = Head {
            magic: MAGIC,
            layout: LAYOUT,
            entry_size: size_of::<E>() as u32,
            entries: entries as u64,
            buckets: buckets as u64,
            _rest: [0; 4],
        };
        Ok(Table {
            buckets: region.array(buckets).ok_or_else(short)?,
            entries: region.array(entries).ok_or_else(short)?,
            links: region.array(entries).ok_or_else(short)?,
            kind: region.kind(),
            free: NONE,
            untouched: 0,
            oldest: NONE,
            newest: NONE,
            occupancy: Occupancy {
                entries: entries as u32,
                budget: budget.clamp(1, entries) as u32,
                ..Occupancy::default()
            },
            hand: 0,
            ledger: None,
            leases: None,
            key: None,
        })
    }

    /// Says how packets are hashed, before the first translated flow is filed.
    pub fn hash_by(&mut self, key: HashKey) {
        self.key = Some(key);
    }

    /// What its memory lies on.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How full it is.
    pub fn occupancy(&self) -> Occupancy {
        self.occupancy
    }

    /// The entry at an index that a lookup or insertion has given.
    #[inline(always)]
    pub fn entry(&self, index: u32) -> &E {
        &self.entries[index as usize]
    }

    /// Likewise, to be changed.
    #[inline(always)]
    pub fn entry_mut(&mut self, index: u32) -> &mut E {
        &mut self.entries[index as usize]
    }

    /// First pass: the bucket of a hash is asked for. The result is its number.
    #[inline(always)]
    pub fn prefetch(&self, hash: u32) -> u32 {
        let first = self.first(hash);
        arch::prefetch(&self.buckets[first]);
        first as u32
    }

    /// Second pass: the first entry of the bucket that may be it is asked for, its second line too if `whole`.
    #[inline(always)]
    pub fn candidate(&self, bucket: u32, hash: u32, whole: bool) -> Candidate {
        let bucket = &self.buckets[bucket as usize];
        let found = matching(bucket, tag(hash));
        if found == 0 {
            return if bucket.elsewhere == 0 { Candidate::NONE } else { Candidate::ELSEWHERE };
        }
        let slot = bucket.entries[found.trailing_zeros() as usize & (SLOTS - 1)];
        if let Some(entry) = self.entries.get((slot & !BACK) as usize) {
            // A translation is in the last line.
            let whole = whole || slot & BACK != 0;
            arch::prefetch(entry);
            let lines: &[[u8; 64]] = bytemuck::cast_slice(std::slice::from_ref(entry));
            if whole || size_of::<E>() > 128 {
                arch::prefetch(&lines[1]);
            }
            if whole && size_of::<E>() > 128 {
                arch::prefetch(&lines[2]);
            }
        }
        Candidate(slot)
    }

    /// Third pass: the flow of a tuple, as `(index << 1) | direction`.
    #[inline(always)]
    pub fn find(&self, hash: u32, candidate: Candidate, key: &E::Key) -> Option<u32> {
        match self.entries.get(candidate.0 as usize) {
            Some(entry) if entry.key().is(key) => Some(candidate.0 << 1 | ORIGINAL as u32),
            Some(entry) if entry.key().is(&key.reversed()) && !entry.body().has(mark::TRANSLATED) => {
                Some(candidate.0 << 1 | REPLY as u32)
            }
            None if candidate.0 == NONE => None,
            _ => self.find_further(hash, candidate, key),
        }
    }

    /// The candidate may be a way back, or another than the first of its bucket.
    #[inline(never)]
    fn find_further(&self, hash: u32, candidate: Candidate, key: &E::Key) -> Option<u32> {
        self.is_of(candidate.0, key).or_else(|| self.search(hash, key))
    }

    /// Looks at all entries of both buckets that may be it.
    fn search(&self, hash: u32, key: &E::Key) -> Option<u32> {
        let first = self.first(hash);
        let bucket = &self.buckets[first];
        let found = self.among(bucket, tag(hash), key);
        if found.is_some() || bucket.elsewhere == 0 {
            return found;
        }
        self.among(&self.buckets[self.other(first, tag(hash))], tag(hash), key)
    }

    #[inline]
    fn among(&self, bucket: &Bucket, tag: u16, key: &E::Key) -> Option<u32> {
        slots(matching(bucket, tag)).find_map(|slot| self.is_of(bucket.entries[slot], key))
    }

    /// The flow of a slot if this tuple finds it there, with the direction.
    #[inline]
    fn is_of(&self, slot: u32, key: &E::Key) -> Option<u32> {
        let index = slot & !BACK;
        let entry = self.entries.get(index as usize)?;
        if slot & BACK != 0 {
            return entry.reply_key().is(key).then_some(index << 1 | REPLY as u32);
        }
        if entry.key().is(key) {
            return Some(index << 1 | ORIGINAL as u32);
        }
        let back = !entry.body().has(mark::TRANSLATED) && entry.key().is(&key.reversed());
        back.then_some(index << 1 | REPLY as u32)
    }

    /// All three passes for one tuple.
    pub fn lookup(&self, hash: u32, key: &E::Key) -> Option<u32> {
        self.find(hash, self.candidate(self.first(hash) as u32, hash, false), key)
    }

    /// Files a flow that is not in the table, untranslated; it counts as half-open if `body` says so. `evicted` is called with a
    /// flow that has to go for it.
    pub fn insert(&mut self, key: E::Key, body: Body, evicted: impl FnMut(&E)) -> Result<u32, Refused> {
        self.insert_entry(E::new(key, body), evicted)
    }

    /// The same of an entry, which may be translated. Where it is refused because one of its tuples is taken, nothing has
    /// changed.
    pub fn insert_entry(&mut self, mut entry: E, mut evicted: impl FnMut(&E)) -> Result<u32, Refused> {
        let body = entry.body();
        let (hash, half_open, translated) = (body.hash, body.has(mark::HALF_OPEN), body.has(mark::TRANSLATED));
        let hash_back = if translated { self.hash_back(&entry).ok_or(Refused::Full)? } else { hash };
        let circular = translated && entry.key().is(&entry.reply_key());
        if circular || self.find_rival(&entry, hash_back).is_some() {
            return Err(Refused::Taken);
        }
        let crowded = half_open && self.occupancy.half_open >= self.occupancy.budget;
        if crowded || self.occupancy.used >= self.occupancy.entries {
            if self.oldest == NONE {
                return Err(Refused::Full);
            }
            let oldest = self.oldest;
            evicted(&self.entries[oldest as usize]);
            self.remove(oldest);
        }
        let fresh = self.free == NONE;
        let index = if fresh { self.untouched } else { self.free };
        // Slots are moved by the entries they stand for.
        entry.body_mut().flags |= mark::USED;
        self.entries[index as usize] = entry;
        let filed =
            self.file(hash, index) && (!translated || self.file(hash_back, index | BACK) || !self.unfile(hash, index));
        if !filed {
            self.entries[index as usize].body_mut().flags = 0;
            return Err(Refused::Full);
        }
        if fresh {
            self.untouched += 1;
        } else {
            self.free = self.links[index as usize].newer;
        }
        self.occupancy.used += 1;
        self.occupancy.translated += u32::from(translated);
        if half_open {
            self.append(index);
        }
        Ok(index)
    }

    /// The index of a flow in the table that has one of the tuples of an entry that is not.
    pub fn rival(&self, entry: &E) -> Option<u32> {
        self.find_rival(entry, self.hash_back(entry).unwrap_or(entry.body().hash))
    }

    #[inline]
    fn find_rival(&self, entry: &E, hash_back: u32) -> Option<u32> {
        let find = |hash: u32, key: E::Key| {
            let bucket = &self.buckets[self.first(hash)];
            let maybe = matching(bucket, tag(hash)) != 0 || bucket.elsewhere != 0;
            maybe.then(|| self.search(hash, &key)).flatten()
        };
        let flow = find(entry.body().hash, *entry.key()).or_else(|| find(hash_back, entry.reply_key()));
        flow.map(|flow| flow >> 1)
    }

    /// The hash of packets of a flow's way back; none if it is not known how they are hashed.
    fn hash_back(&self, entry: &E) -> Option<u32> {
        // Equal in both directions, but what a reply key says of some messages is no message.
        self.key.map(|key| steer::hash(&entry.translated().facts(), key))
    }

    /// The hash by which a slot is where it is.
    fn hash_of(&self, slot: u32) -> u32 {
        let entry = &self.entries[(slot & !BACK) as usize];
        let back = if slot & BACK != 0 { self.hash_back(entry) } else { None };
        back.unwrap_or(entry.body().hash)
    }

    /// Fills a slot for a hash; false if there is none.
    #[inline]
    fn file(&mut self, hash: u32, entry: u32) -> bool {
        let Some((bucket, slot)) = self.place(hash) else { return false };
        self.buckets[bucket].tags[slot] = tag(hash);
        self.buckets[bucket].entries[slot] = entry;
        true
    }

    /// Empties the slot of a hash; false if there is none.
    #[inline]
    fn unfile(&mut self, hash: u32, entry: u32) -> bool {
        let first = self.first(hash);
        let slot_in = |bucket: &Bucket| slots(matching(bucket, tag(hash))).find(|slot| bucket.entries[*slot] == entry);
        if let Some(slot) = slot_in(&self.buckets[first]) {
            self.buckets[first].tags[slot] = 0;
            return true;
        }
        let second = self.other(first, tag(hash));
        let Some(slot) = slot_in(&self.buckets[second]) else { return false };
        self.buckets[second].tags[slot] = 0;
        self.buckets[first].elsewhere -= 1;
        true
    }

    /// An empty slot in one of the two buckets of a hash, made if need be.
    fn place(&mut self, hash: u32) -> Option<(usize, usize)> {
        let first = self.first(hash);
        if let Some(slot) = empty(&self.buckets[first]) {
            return Some((first, slot));
        }
        let second = self.other(first, tag(hash));
        let (bucket, slot) = match empty(&self.buckets[second]) {
            Some(slot) => (second, slot),
            None => self.make_room(first, second)?,
        };
        if bucket != first {
            self.buckets[first].elsewhere += 1;
        }
        Some((bucket, slot))
    }

    /// Moves entries to their other buckets, along the shortest way that ends at an empty slot; the result is the slot that
    /// becomes empty in one of the two.
    #[cold]
    fn make_room(&mut self, first: usize, second: usize) -> Option<(usize, usize)> {
        // Buckets reached: from which of them, by moving the entry of which slot.
        let mut reached = [(0, 0, 0); REACH];
        (reached[0], reached[1]) = ((first, usize::MAX, 0), (second, usize::MAX, 0));
        let (mut next, mut count) = (0, 2);
        while next < count {
            let (bucket, ..) = reached[next];
            for slot in 0..SLOTS {
                let to = self.other(bucket, self.buckets[bucket].tags[slot]);
                if let Some(free) = empty(&self.buckets[to]) {
                    return Some(self.shift(&reached, next, slot, (to, free)));
                }
                if count < REACH && reached[..count].iter().all(|(known, ..)| *known != to) {
                    reached[count] = (to, next, slot);
                    count += 1;
                }
            }
            next += 1;
        }
        None
    }

    /// Carries out the moves that lead to `free`, the last first.
    fn shift(
        &mut self,
        reached: &[(usize, usize, usize); REACH],
        mut at: usize,
        mut slot: usize,
        mut free: (usize, usize),
    ) -> (usize, usize) {
        loop {
            let (bucket, before, by) = reached[at];
            let (tag, index) = (self.buckets[bucket].tags[slot], self.buckets[bucket].entries[slot]);
            self.buckets[free.0].tags[free.1] = tag;
            self.buckets[free.0].entries[free.1] = index;
            let home = self.first(self.hash_of(index));
            if bucket != free.0 {
                if home == bucket {
                    self.buckets[home].elsewhere += 1;
                } else {
                    self.buckets[home].elsewhere -= 1;
                }
            }
            self.buckets[bucket].tags[slot] = 0;
            if before == usize::MAX {
                return (bucket, slot);
            }
            free = (bucket, slot);
            (at, slot) = (before, by);
        }
    }

    /// Forgets a flow.
    pub fn remove(&mut self, index: u32) {
        let body = self.entries[index as usize].body();
        debug_assert!(body.has(mark::USED));
        let (hash, half_open, translated) = (body.hash, body.has(mark::HALF_OPEN), body.has(mark::TRANSLATED));
        let filed = self.unfile(hash, index);
        debug_assert!(filed, "an entry in use is in one of its buckets");
        if translated {
            let filed = self.unfile(self.hash_of(index | BACK), index | BACK);
            debug_assert!(filed, "that of a translated flow once more");
        }
        if half_open {
            self.unlink(index);
        }
        if let Some(ledger) = self.ledger.as_mut().filter(|_| self.entries[index as usize].body().has(mark::LIMITED)) {
            ledger.end(index);
        }
        if let Some(leases) = self.leases.as_mut().filter(|_| translated) {
            leases.end(index);
        }
        self.entries[index as usize].body_mut().flags = 0;
        self.links[index as usize].newer = self.free;
        self.free = index;
        self.occupancy.used -= 1;
        self.occupancy.translated -= u32::from(translated);
    }

    /// Lets flows count against limits from now on.
    pub fn keep_ledger(&mut self, ledger: impl Into<Option<Ledger>>) {
        self.ledger = ledger.into();
    }

    /// Notes where a flow is counted, until it ends.
    pub fn charge(&mut self, index: u32, token: Token) {
        if let Some(ledger) = &mut self.ledger {
            ledger.keep(index, token);
            self.entries[index as usize].body_mut().flags |= mark::LIMITED;
        }
    }

    /// Lets translated flows hold on to mappings from now on.
    pub fn keep_leases(&mut self, leases: Leases) {
        self.leases = Some(leases);
    }

    /// Notes the mapping that a translated flow uses, until it ends.
    pub fn lease(&mut self, index: u32, lease: Lease) {
        if let Some(leases) = self.leases.as_mut().filter(|_| self.entries[index as usize].body().has(mark::TRANSLATED))
        {
            leases.keep(index, lease);
        }
    }

    /// A half-open flow has become open: it leaves the budget, and cannot be evicted any more.
    pub fn establish(&mut self, index: u32) {
        self.unlink(index);
        self.entries[index as usize].body_mut().flags &= !mark::HALF_OPEN;
    }

    fn append(&mut self, index: u32) {
        self.links[index as usize] = Link { older: self.newest, newer: NONE };
        match self.newest {
            NONE => self.oldest = index,
            newest => self.links[newest as usize].newer = index,
        }
        self.newest = index;
        self.occupancy.half_open += 1;
    }

    fn unlink(&mut self, index: u32) {
        let Link { older, newer } = self.links[index as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        self.occupancy.half_open -= 1;
    }

    /// Moves the hand over the next `count` entries and forgets those whose time has passed at `now` (ticks). `ended` is called
    /// with each. Returns how many went.
    pub fn expire(&mut self, now: u32, count: usize, ended: impl FnMut(&E)) -> usize {
        self.expire_and_age(now, count, |_| false, ended)
    }

    /// Likewise; entries whose generation is old get generation 0, which is nobody's, before its number comes round again.
    pub fn expire_and_age(
        &mut self,
        now: u32,
        count: usize,
        is_old: impl Fn(u16) -> bool,
        mut ended: impl FnMut(&E),
    ) -> usize {
        let mut gone = 0;
        let mut left = count.min(self.untouched as usize);
        while left > 0 {
            if self.hand >= self.untouched {
                self.hand = 0;
            }
            let stride = left.min(STRIDE).min((self.untouched - self.hand) as usize);
            gone += self.expire_stride(now, stride, &is_old, &mut ended);
            left -= stride;
        }
        gone
    }

    /// The same for a few entries in a row: first the lines that removing takes are asked for, of all of them at once.
    fn expire_stride(
        &mut self,
        now: u32,
        stride: usize,
        is_old: &impl Fn(u16) -> bool,
        ended: &mut impl FnMut(&E),
    ) -> usize {
        let first = self.hand as usize;
        let mut due: Mask = 0;
        for at in 0..stride {
            if let Some(ahead) = self.entries.get(first + at + STRIDE) {
                arch::prefetch(ahead);
            }
            if is_old(self.entries[first + at].body().generation) {
                self.entries[first + at].body_mut().generation = 0;
            }
            let body = self.entries[first + at].body();
            if body.has(mark::USED) && has_passed(body.expires, now) {
                due |= 1 << at;
                self.prefetch(body.hash);
                if body.has(mark::TRANSLATED) {
                    self.prefetch(self.hash_of((first + at) as u32 | BACK));
                }
                arch::prefetch(&self.links[first + at]);
            }
        }
        for at in bits(due) {
            ended(&self.entries[first + at]);
            self.remove((first + at) as u32);
        }
        self.hand += stride as u32;
        due.count_ones() as usize
    }

    /// Asks for what `count` insertions of half-open flows will evict, as far as the budget makes them.
    pub fn prefetch_oldest(&self, count: usize) {
        let count =
            count.min(BATCH).saturating_sub(self.occupancy.budget.saturating_sub(self.occupancy.half_open) as usize);
        let mut oldest = [NONE; BATCH];
        let mut at = self.oldest;
        for place in &mut oldest[..count] {
            let Some(entry) = self.entries.get(at as usize) else { break };
            arch::prefetch(entry);
            *place = at;
            at = self.links[at as usize].newer;
        }
        for index in &oldest[..count] {
            if let Some(entry) = self.entries.get(*index as usize) {
                self.prefetch(entry.body().hash);
                if entry.body().has(mark::TRANSLATED) {
                    self.prefetch(self.hash_of(*index | BACK));
                }
            }
        }
    }

    /// As [`walk`](Table::walk), and does with each entry what `with` says.
    pub fn sweep(&mut self, cursor: &mut u32, count: usize, mut with: impl FnMut(&E) -> Sweep) -> bool {
        for _ in 0..count {
            if *cursor >= self.untouched {
                return true;
            }
            let entry = &self.entries[*cursor as usize];
            if entry.body().has(mark::USED) {
                match with(entry) {
                    Sweep::Keep => {}
                    Sweep::Remove => self.remove(*cursor),
                    Sweep::Pause => return false,
                }
            }
            *cursor += 1;
        }
        *cursor >= self.untouched
    }

    /// Looks at the next `count` entries from `cursor` on, and calls `with` for those in use until it returns false; the cursor
    /// then stands at the entry it refused. True if the end is reached.
    pub fn walk(&self, cursor: &mut u32, count: usize, mut with: impl FnMut(u32, &E) -> bool) -> bool {
        for _ in 0..count {
            if *cursor >= self.untouched {
                return true;
            }
            let entry = &self.entries[*cursor as usize];
            if entry.body().has(mark::USED) && !with(*cursor, entry) {
                return false;
            }
            *cursor += 1;
        }
        *cursor >= self.untouched
    }

    /// The bucket a hash belongs to first. The upper bits of the hash have chosen the worker, so all bits are mixed.
    #[inline(always)]
    fn first(&self, hash: u32) -> usize {
        reduce(hash.wrapping_mul(0x9e37_79b1), self.buckets.len())
    }

    /// The other bucket of an entry that is in `bucket`.
    #[inline(always)]
    fn other(&self, bucket: usize, tag: u16) -> usize {
        let count = self.buckets.len();
        let sum = reduce(u32::from(tag).wrapping_mul(0x85eb_ca6b), count) + count - bucket;
        if sum >= count { sum - count } else { sum }
    }

    /// Everything that must hold, for tests: panics where it does not.
    #[doc(hidden)]
    pub fn check(&self) {
        let mut filed = std::collections::HashMap::new();
        let (mut elsewhere, mut translated) = (vec![0; self.buckets.len()], 0);
        for (at, bucket) in self.buckets.iter().enumerate() {
            for slot in (0..SLOTS).filter(|slot| bucket.tags[*slot] != 0) {
                let entry = bucket.entries[slot];
                let body = self.entries[(entry & !BACK) as usize].body();
                assert!(body.has(mark::USED), "a slot refers to a free entry");
                assert!(
                    entry & BACK == 0 || body.has(mark::TRANSLATED),
                    "one way back is the reverse of the way there"
                );
                translated += usize::from(entry & BACK == 0 && body.has(mark::TRANSLATED));
                let hash = self.hash_of(entry);
                assert_eq!(bucket.tags[slot], tag(hash));
                let first = self.first(hash);
                if first != at {
                    assert_eq!(self.other(first, tag(hash)), at);
                    elsewhere[first] += 1;
                }
                assert!(filed.insert(entry, at).is_none(), "a tuple is filed twice");
            }
        }
        for (bucket, elsewhere) in self.buckets.iter().zip(elsewhere) {
            assert_eq!(bucket.elsewhere, elsewhere);
        }
        let used = self.entries.iter().filter(|entry| entry.body().has(mark::USED)).count();
        assert_eq!((filed.len(), used), (used + translated, self.occupancy.used as usize));
        assert_eq!(translated, self.occupancy.translated as usize);
        let (mut at, mut before, mut half_open) = (self.oldest, NONE, 0);
        while at != NONE {
            assert!(self.entries[at as usize].body().has(mark::USED | mark::HALF_OPEN));
            assert_eq!(self.links[at as usize].older, before);
            (before, at, half_open) = (at, self.links[at as usize].newer, half_open + 1);
        }
        assert_eq!((self.newest, half_open), (before, self.occupancy.half_open));
        assert!(self.occupancy.half_open <= self.occupancy.budget);
        let (mut at, mut free) = (self.free, 0);
        while at != NONE {
            assert!(!self.entries[at as usize].body().has(mark::USED));
            (at, free) = (self.links[at as usize].newer, free + 1);
        }
        assert_eq!(free + self.occupancy.used, self.untouched);
    }
}

/// What of a hash stands in a bucket: never 0. The lower bits, which choose no worker.
#[inline(always)]
fn tag(hash: u32) -> u16 {
    (hash as u16).max(1)
}

/// A number below `count`, by multiplication.
#[inline(always)]
fn reduce(hash: u32, count: usize) -> usize {
    ((u64::from(hash) * count as u64) >> 32) as usize
}

/// The slots of a bucket that are set in a mask.
#[inline(always)]
fn slots(mask: u8) -> impl Iterator<Item = usize> {
    bits(mask.into()).map(|slot| slot & (SLOTS - 1))
}

/// A bit for each slot that has this tag.
#[inline(always)]
fn matching(bucket: &Bucket, tag: u16) -> u8 {
    arch::equal(&bucket.tags, tag)
}

#[inline(always)]
fn empty(bucket: &Bucket) -> Option<usize> {
    let free = matching(bucket, 0);
    (free != 0).then_some(free.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use proptest::prelude::*;

    use super::super::entry::{EntryV4, KeyV4};
    use super::*;

    fn key(n: u32) -> KeyV4 {
        KeyV4 { src: n.to_be_bytes(), dst: [10, 0, 0, 1], sport: 7, dport: 53, domain: 0, proto: 17, wire: 1 }
    }

    fn hash(n: u32) -> u32 {
        // Any mixing will do.
        let wide = u64::from(n).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (wide ^ wide >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) as u32 ^ (wide >> 32) as u32
    }

    fn body(n: u32, expires: u32, flags: u8) -> Body {
        Body { hash: hash(n), expires, flags, ..Body::zeroed() }
    }

    fn table(entries: usize, budget: usize) -> Table<EntryV4> {
        Table::new(entries, budget, Placement::default()).expect("memory")
    }

    #[test]
    fn it_fills_to_the_last_entry_and_then_refuses() {
        let mut table = table(20_000, 100);
        for n in 0..20_000 {
            table.insert(key(n), body(n, 9, 0), |_| panic!("nothing to evict")).expect("room");
        }
        table.check();
        assert_eq!(table.insert(key(20_000), body(20_000, 9, 0), |_| panic!("none may go")), Err(Refused::Full));
        for n in 0..20_000 {
            let there = table.lookup(hash(n), &key(n)).expect("found");
            assert_eq!(table.lookup(hash(n), &key(n).reversed()), Some(there | 1));
        }
        assert_eq!(table.lookup(hash(20_000), &key(20_000)), None);
        assert!(Table::<EntryV4>::bytes_per_flow(1_000_000, 0) <= 160);
        assert_eq!(table.expire(9, 20_000, |_| ()), 20_000);
        table.check();
        assert_eq!(table.occupancy().used, 0);
    }

    #[test]
    fn the_oldest_half_open_flow_goes_first_and_open_ones_never() {
        let mut table = table(10, 4);
        let mut evicted = Vec::new();
        for n in 0..6 {
            let index = table.insert(key(n), body(n, 9, mark::HALF_OPEN), |gone| evicted.push(gone.key().src[3]));
            if n == 1 {
                table.establish(index.expect("room"));
            }
        }
        assert_eq!(evicted, [0], "four half-open at most, and 1 is open");
        for n in 6..14 {
            table.insert(key(n), body(n, 9, 0), |gone| evicted.push(gone.key().src[3])).expect("room");
            table.check();
        }
        assert_eq!(evicted, [0, 2, 3, 4]);
        assert!(table.lookup(hash(1), &key(1)).is_some());
        table.insert(key(14), body(14, 9, mark::HALF_OPEN), |gone| evicted.push(gone.key().src[3])).expect("room");
        assert_eq!(evicted, [0, 2, 3, 4, 5]);
        table.insert(key(15), body(15, 9, mark::HALF_OPEN), |gone| evicted.push(gone.key().src[3])).expect("room");
        table.establish(table.lookup(hash(15), &key(15)).expect("there") >> 1);
        assert_eq!(table.insert(key(16), body(16, 9, mark::HALF_OPEN), |_| ()), Err(Refused::Full));
        table.check();
    }

    #[test]
    fn the_hand_looks_at_as_many_as_it_is_told() {
        let mut table = table(100, 100);
        for n in 0..60 {
            table.insert(key(n), body(n, n % 2 * 100, 0), |_| ()).expect("room");
        }
        let mut gone = 0;
        assert_eq!((0..6).map(|_| table.expire(50, 10, |_| gone += 1)).collect::<Vec<_>>(), [5; 6]);
        assert_eq!((gone, table.occupancy().used), (30, 30));
        table.check();
        let (mut cursor, mut seen) = (0, 0);
        while !table.walk(&mut cursor, 7, |_, _| {
            seen += 1;
            true
        }) {}
        assert_eq!(seen, 30);
    }

    const KEY: HashKey =
        HashKey([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89]);

    fn between(a: u8, b: u8) -> KeyV4 {
        KeyV4 { src: [10, 0, 0, a], dst: [10, 0, 0, b], sport: 1, dport: 1, domain: 0, proto: 17, wire: 0 }
    }

    /// A flow that leaves with another tuple.
    fn flow(key: KeyV4, translated: KeyV4, expires: u32, flags: u8) -> EntryV4 {
        let hash = steer::hash(&key.facts(), KEY);
        let mut entry = EntryV4::new(key, Body { hash, expires, flags, ..Body::zeroed() });
        entry.set_translation(translated);
        entry
    }

    fn seek(table: &Table<EntryV4>, key: KeyV4) -> Option<u32> {
        // As packets are hashed: as of either direction.
        table.lookup(steer::hash(&key.facts(), KEY), &key)
    }

    #[test]
    fn it_fills_with_translated_flows() {
        const FLOWS: u32 = 20_000;
        let masked = |n: u32| KeyV4 { src: [192, 0, 2, 1], sport: n as u16, ..key(n) };
        let mut table: Table<EntryV4> =
            Table::translating(FLOWS as usize, FLOWS as usize, 1, Placement::default()).expect("memory");
        assert_eq!(table.insert_entry(flow(key(0), masked(0), 9, 0), |_| ()), Err(Refused::Full), "not hashed yet");
        table.hash_by(KEY);
        for n in 0..FLOWS {
            table.insert_entry(flow(key(n), masked(n), 9, 0), |_| panic!("nothing to evict")).expect("room");
        }
        table.check();
        for n in 0..FLOWS {
            let there = seek(&table, key(n)).expect("found");
            assert_eq!(there & 1, 0);
            assert_eq!(seek(&table, masked(n).reversed()), Some(there | 1));
            assert_eq!((seek(&table, key(n).reversed()), seek(&table, masked(n))), (None, None));
        }
        assert_eq!(table.expire(9, FLOWS as usize, |_| ()), FLOWS as usize);
        table.check();
        // Without room set aside.
        let mut table = self::table(FLOWS as usize, 1);
        table.hash_by(KEY);
        let fits =
            (0..FLOWS).take_while(|n| table.insert_entry(flow(key(*n), masked(*n), 9, 0), |_| ()).is_ok()).count();
        assert!(fits * 4 >= FLOWS as usize * 3, "{fits}");
        table.check();
        assert_eq!(table.occupancy().used as usize, fits);
    }

    #[test]
    fn a_tuple_belongs_to_one_flow() {
        let mut table = table(100, 10);
        table.hash_by(KEY);
        table.insert_entry(flow(between(1, 2), between(3, 2), 9, 0), |_| ()).expect("room");
        let mut refused =
            |entry: EntryV4| assert_eq!(table.insert_entry(entry, |_| ()), Err(Refused::Taken), "{entry:?}");
        refused(flow(between(4, 2), between(3, 2), 9, 0));
        refused(flow(between(3, 2), between(3, 2), 9, 0));
        refused(flow(between(2, 3), between(2, 3), 9, 0));
        refused(flow(between(1, 2), between(5, 2), 9, 0));
        refused(flow(between(6, 7), between(2, 1), 9, 0));
        refused(flow(between(6, 7), between(7, 6), 9, 0));
        table.check();
        // What is nobody's is free: the reverse of what was translated, and what it was translated to from elsewhere.
        table.insert_entry(flow(between(2, 1), between(2, 4), 9, 0), |_| ()).expect("room");
        table.insert_entry(flow(between(3, 2), between(9, 2), 9, 0), |_| ()).expect("room");
        table.check();
    }

    proptest! {
        #[test]
        fn translated_flows_agree_with_a_map(
            steps in prop::collection::vec((0..10u8, 0..12u8, 0..12u8, 0..12u8, 0..12u8, 0..100u32), 1..250),
            entries in 1..64usize, budget in 1..32usize, room in any::<bool>(),
        ) {
            let translated = if room { entries } else { 0 };
            let mut table: Table<EntryV4> =
                Table::translating(entries, translated, budget, Placement::default()).expect("memory");
            table.hash_by(KEY);
            // By key: translation, expiry; and those that are half-open, by age.
            let mut known: HashMap<KeyV4, (KeyV4, u32)> = HashMap::new();
            let mut waiting: VecDeque<KeyV4> = VecDeque::new();
            for (step, a, b, c, d, n) in steps {
                let key = between(a, b);
                match step {
                    0..6 if a != b && c != d => {
                        let out = match step / 2 { 0 => key, 1 => between(c, b), _ => between(c, d) };
                        let half_open = step % 2 == 0;
                        let tuples = |key: KeyV4, out: KeyV4| [key, out.reversed()];
                        let mine = tuples(key, out);
                        let taken = mine[0] == mine[1]
                            || known.iter().any(|(key, (out, _))| tuples(*key, *out).iter().any(|tuple| mine.contains(tuple)));
                        let crowded = half_open && waiting.len() >= budget.clamp(1, entries) || known.len() == entries;
                        let mut evicted = None;
                        let entry = flow(key, out, n, if half_open { mark::HALF_OPEN } else { 0 });
                        let result = table.insert_entry(entry, |gone| evicted = Some(*gone.key()));
                        prop_assert_eq!(result == Err(Refused::Taken), taken);
                        let expected = if crowded && !taken { waiting.pop_front() } else { None };
                        prop_assert_eq!(evicted, expected);
                        if let Some(gone) = evicted { known.remove(&gone); }
                        if result.is_ok() {
                            known.insert(key, (out, n));
                            if half_open { waiting.push_back(key); }
                        } else if room && !taken {
                            prop_assert!(crowded && evicted.is_none());
                        }
                    }
                    6 | 7 => if let Some(flow) = seek(&table, key) {
                        let gone = *table.entry(flow >> 1).key();
                        table.remove(flow >> 1);
                        prop_assert!(known.remove(&gone).is_some());
                        waiting.retain(|other| *other != gone);
                    },
                    8 => if let Some(flow) = seek(&table, key).filter(|flow| table.entry(flow >> 1).body().has(mark::HALF_OPEN)) {
                        let open = *table.entry(flow >> 1).key();
                        table.establish(flow >> 1);
                        waiting.retain(|other| *other != open);
                    },
                    9 => {
                        table.expire(n, entries, |_| ());
                        known.retain(|_, (_, expires)| *expires > n);
                        waiting.retain(|key| known.contains_key(key));
                    }
                    _ => {}
                }
                table.check();
                if n % 8 != 0 {
                    continue;
                }
                // Every tuple finds the flow that has it, the right way round, and no other does.
                for (a, b) in (0..12).flat_map(|a| (0..12).map(move |b| (a, b))).filter(|(a, b)| a != b) {
                    let tuple = between(a, b);
                    let mut owners = known.iter().filter_map(|(key, (out, _))| match () {
                        () if *key == tuple => Some((*key, ORIGINAL)),
                        () if out.reversed() == tuple => Some((*key, REPLY)),
                        () => None,
                    });
                    let found = seek(&table, tuple).map(|flow| (*table.entry(flow >> 1).key(), (flow & 1) as usize));
                    prop_assert_eq!(found, owners.next());
                    prop_assert_eq!(owners.next(), None);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_map(
            steps in prop::collection::vec((0..6u8, 0..200u32), 1..600), entries in 1..100usize, budget in 1..50usize,
        ) {
            let mut table = table(entries, budget);
            let mut known: HashMap<u32, u32> = HashMap::new();
            let mut waiting = VecDeque::new();
            for (step, n) in steps {
                let found = table.lookup(hash(n), &key(n));
                prop_assert_eq!(found.is_some(), known.contains_key(&n));
                match (step, found) {
                    (0..3, None) => {
                        let flags = if step == 0 { 0 } else { mark::HALF_OPEN };
                        let crowded = step > 0 && waiting.len() >= budget.clamp(1, entries);
                        let gone = if crowded || known.len() == entries { waiting.pop_front() } else { None };
                        let full = (crowded || known.len() == entries) && gone.is_none();
                        if let Some(gone) = gone { known.remove(&gone); }
                        let mut evicted = None;
                        let result = table.insert(key(n), body(n, n, flags), |entry| evicted = Some(u32::from_be_bytes(entry.key().src)));
                        prop_assert_eq!(evicted, gone);
                        prop_assert_eq!(result.is_err(), full);
                        if !full {
                            known.insert(n, n);
                            if step > 0 { waiting.push_back(n); }
                        }
                    }
                    (3, Some(flow)) => {
                        table.remove(flow >> 1);
                        known.remove(&n);
                        waiting.retain(|other| *other != n);
                    }
                    (4, Some(flow)) if table.entry(flow >> 1).body().has(mark::HALF_OPEN) => {
                        table.establish(flow >> 1);
                        waiting.retain(|other| *other != n);
                    }
                    (5, _) => {
                        table.expire(n, entries, |_| ());
                        known.retain(|_, expires| *expires > n);
                        waiting.retain(|other| *other > n);
                    }
                    _ => {}
                }
            }
            table.check();
            prop_assert_eq!(table.occupancy().used as usize, known.len());
        }
    }
}
