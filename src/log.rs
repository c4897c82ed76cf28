//! The packet log's way from the workers to control: entries of fixed size in a bounded ring for each worker.
//!
//! Owns the entry and the ring. What is logged, and how much of it, the stages decide; words are made of it by control.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::packet::Meta;
use crate::stats::Reason;

/// Entries a worker's ring holds until control takes them, ten times a second.
const RING: usize = 4096;

/// What happened to the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is the first of a new flow, which may pass.
    New,
    /// It may pass; flows are not tracked.
    Allowed,
    /// It was dropped for `Entry::reason`.
    Denied,
}

/// One packet, as the worker saw it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When, in Unix nanoseconds.
    pub time: u64,
    /// Its facts; `out` is the port it leaves by, or would have left by.
    pub facts: Meta,
    /// What happened.
    pub event: Event,
    /// Why it was dropped, or `Reason::NONE`.
    pub reason: Reason,
}

/// One worker's ring. Clones are the same ring.
#[derive(Clone, Debug)]
pub struct Log(Option<Arc<ArrayQueue<Entry>>>);

impl Log {
    /// The log of a pipeline that logs nothing.
    pub const NONE: Log = Log(None);

    /// An empty log. Nothing allocates after this.
    pub fn new() -> Log {
        Log(Some(Arc::new(ArrayQueue::new(RING))))
    }

    /// Adds an entry; false if it is lost because the ring is full.
    pub fn push(&self, entry: Entry) -> bool {
        self.0.as_ref().is_some_and(|ring| ring.push(entry).is_ok())
    }

    /// Takes the entries that are there now, oldest first.
    pub fn take(&self) -> impl Iterator<Item = Entry> {
        // Those that come meanwhile wait for the next time, so that this ends.
        let ring = self.0.as_deref();
        (0..ring.map_or(0, ArrayQueue::len)).map_while(move |_| ring?.pop())
    }
}

impl Default for Log {
    fn default() -> Log {
        Log::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_says_so_and_keeps_the_oldest() {
        let log = Log::new();
        let entry = |time| Entry { time, facts: Meta::UNKNOWN, event: Event::New, reason: Reason::NONE };
        assert!((0..RING as u64).all(|time| log.push(entry(time))));
        assert!(!log.push(entry(9)));
        let times: Vec<u64> = log.clone().take().map(|entry| entry.time).collect();
        assert!(times.len() == RING && times.is_sorted());
        assert!(log.push(entry(1)) && log.take().count() == 1);
        assert!(!Log::NONE.push(entry(0)) && Log::NONE.take().count() == 0);
    }
}
