//! A bucket for each source, shared by all workers, for limits that are the appliance's.
//!
//! There are too many sources to give each a bucket for life. A bucket that is idle says nothing, so its slot goes to the next
//! source that needs one; sources that find no slot share one bucket with the same limits: a flood of them is limited, not
//! let through. Slots know sources by a keyed hash of 64 bits: two sources among 65,536 share one with probability 2^-33.
//!
//! Workers write here by atomic operations, which is why nobody does so for each packet: once for a chunk of credit, or once
//! at a flow's beginning and end.

use std::sync::atomic::{AtomicU64, Ordering};

use super::source::{HashKey, Source};

/// What a source has.
pub trait Bucket: Default {
    /// True if it says no more than a new one would, so that another source may have it. `now` is Unix time in nanoseconds.
    fn is_idle(&self, now: u64) -> bool;
}

/// A source's slot.
#[derive(Debug, Default)]
struct Slot<B> {
    /// Hash of the source; 0 for none yet.
    key: AtomicU64,
    bucket: B,
}

/// The key of sources that found no slot.
pub const CROWD: u64 = 1;
/// The slot of sources that found none.
pub const CROWDED: usize = 0;
const FIRST_KEY: u64 = 2;
/// Slots a source may be in.
const WAYS: usize = 8;

/// The buckets of sources.
#[derive(Debug)]
pub struct Table<B> {
    hash: HashKey,
    /// `CROWDED`, and behind it sets of `WAYS`.
    slots: Box<[Slot<B>]>,
}

impl<B: Bucket> Table<B> {
    /// A table for this many sources at once, with as many slots again to spare.
    pub fn new(sources: usize) -> Table<B> {
        let slots = (sources * 2).next_power_of_two().max(WAYS);
        Table { hash: HashKey::random(), slots: (0..=slots).map(|_| Slot::default()).collect() }
    }

    /// Sources it is made for, a power of two.
    pub fn sources(&self) -> usize {
        self.slots.len() / 2
    }

    /// Bytes it takes.
    pub fn memory(&self) -> usize {
        size_of_val(&*self.slots)
    }

    /// The key of a source for one of several purposes, each with buckets of its own.
    #[inline]
    pub fn key(&self, source: &Source, purpose: u64) -> u64 {
        self.hash.hash_for(source, purpose).max(FIRST_KEY)
    }

    /// The bucket in a slot.
    #[inline]
    pub fn at(&self, slot: usize) -> &B {
        &self.slots[slot].bucket
    }

    /// The slot of a source, an idle one if it has none; `None` if all it may have are taken.
    #[inline]
    pub fn find(&self, key: u64, now: u64) -> Option<usize> {
        if key == CROWD {
            return Some(CROWDED);
        }
        let first = 1 + (key as usize & (self.slots.len() - 2) & !(WAYS - 1));
        let set = first..first + WAYS;
        // The first one counts: should two workers place a source at the same moment in two slots, they agree on the next
        // look, and the other slot falls idle.
        if let Some(slot) = set.clone().find(|slot| self.slots[*slot].key.load(Ordering::Relaxed) == key) {
            return Some(slot);
        }
        set.into_iter().find(|slot| {
            let Slot { key: held, bucket } = &self.slots[*slot];
            let old = held.load(Ordering::Relaxed);
            bucket.is_idle(now)
                && match held.compare_exchange(old, key, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => true,
                    Err(other) => other == key,
                }
        })
    }
}

/// A token bucket in one word: the time at which it will be full again, Unix nanoseconds (the theoretical arrival time of
/// GCRA, ITU-T I.371).
#[derive(Debug, Default)]
pub struct FullAt(AtomicU64);

impl FullAt {
    /// Takes `time` nanoseconds' worth, if there is so much in a bucket that fills in `burst` nanoseconds. One that lacks it
    /// costs a plain load.
    #[inline]
    pub fn take(&self, time: u64, burst: u64, now: u64) -> bool {
        let latest = now.saturating_add(burst);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            full_at.max(now).checked_add(time).filter(|then| *then <= latest)
        });
        taken.is_ok()
    }
}

impl Bucket for FullAt {
    #[inline]
    fn is_idle(&self, now: u64) -> bool {
        self.0.load(Ordering::Relaxed) <= now
    }
}
