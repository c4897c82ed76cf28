//! When what workers no longer find may be used again: as soon as each has passed from one turn to the next.
//!
//! Control takes something out of sight, then begins an epoch ([`Epochs::advance`]). A worker says between its turns which
//! epoch it has seen ([`Presence::pass`]): one load and one store. What went out of sight before an epoch began that all of
//! them have seen ([`Epochs::safe`]) is in nobody's hands.
//!
//! A worker that merely counted its turns would not do: its next turn's loads may overtake the store of the count, unless a
//! fence stands between. That it has seen the epoch, and with it all that went before, needs none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// What an absent worker has seen: it holds nothing.
const ABSENT: u64 = u64::MAX;

/// The epoch each worker has seen, on a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Seen(AtomicU64);

/// Epochs, and which of them the workers have seen.
#[derive(Debug)]
pub struct Epochs {
    now: AtomicU64,
    workers: Box<[Seen]>,
}

impl Epochs {
    /// For so many workers, all of them absent yet.
    pub fn new(workers: usize) -> Arc<Epochs> {
        let workers = (0..workers).map(|_| Seen(AtomicU64::new(ABSENT))).collect();
        Arc::new(Epochs { now: AtomicU64::new(0), workers })
    }

    /// A worker's side, absent at first. One per worker: the number must be below what [`Epochs::new`] was told.
    pub fn presence(self: &Arc<Epochs>, worker: usize) -> Presence {
        assert!(worker < self.workers.len(), "there are {} workers", self.workers.len());
        Presence { epochs: self.clone(), worker }
    }

    /// Begins an epoch: what the caller took out of sight before may be used again once [`Epochs::safe`] has reached the result.
    pub fn advance(&self) -> u64 {
        let epoch = self.now.fetch_add(1, Ordering::AcqRel) + 1;
        // Of a worker that `safe` finds absent now, `enter` says that it finds nothing of what went out of sight before.
        fence(Ordering::SeqCst);
        epoch
    }

    /// The latest epoch that every present worker has seen; `u64::MAX` if none is present.
    pub fn safe(&self) -> u64 {
        self.workers.iter().map(|seen| seen.0.load(Ordering::Acquire)).min().unwrap_or(ABSENT)
    }
}

/// A worker's side of the epochs. Dropped, the worker is absent.
#[derive(Debug)]
pub struct Presence {
    epochs: Arc<Epochs>,
    worker: usize,
}

impl Presence {
    #[inline(always)]
    fn seen(&self) -> &AtomicU64 {
        &self.epochs.workers[self.worker].0
    }

    /// Between two turns of a present worker: it holds nothing that it found in the turn before.
    #[inline(always)]
    pub fn pass(&self) {
        // Acquire: the next turn finds what control did before the epoch. Release: the last turn's loads are done.
        self.seen().store(self.epochs.now.load(Ordering::Acquire), Ordering::Release);
    }

    /// Before the first turn, and the first after [`Presence::leave`].
    pub fn enter(&self) {
        self.pass();
        // Either control finds the worker present, or the worker finds what control did before it looked.
        fence(Ordering::SeqCst);
    }

    /// Before a pause of unknown length (sleep, the end of a worker): nobody waits for it until it enters again.
    pub fn leave(&self) {
        self.seen().store(ABSENT, Ordering::Release);
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_safe_once_all_have_seen_it() {
        let epochs = Epochs::new(2);
        assert!(epochs.safe() >= epochs.advance(), "nobody is present");
        let (one, two) = (epochs.presence(0), epochs.presence(1));
        one.enter();
        two.enter();
        let epoch = epochs.advance();
        assert!(epochs.safe() < epoch);
        one.pass();
        assert!(epochs.safe() < epoch);
        two.pass();
        assert_eq!(epochs.safe(), epoch);
    }

    #[test]
    fn who_is_absent_is_not_waited_for() {
        let epochs = Epochs::new(2);
        let (one, two) = (epochs.presence(0), epochs.presence(1));
        one.enter();
        two.enter();
        two.leave();
        let epoch = epochs.advance();
        assert!(epochs.safe() < epoch);
        drop(one);
        assert!(epochs.safe() >= epoch);
        two.enter();
        assert_eq!(epochs.safe(), epoch);
    }
}
