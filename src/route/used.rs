//! By which adjacencies packets have left of late: what neighbor unreachability detection goes by (RFC 4861 section 7.3).
//!
//! Every worker has a byte for each adjacency, which it sets where it is not set; control takes them back. There is no
//! read-modify-write, and none is needed: whoever comes second, the byte says "used", or the next packet says so again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::adjacency::ROUTED;

/// A worker's marks, by adjacency.
pub type Marks = Arc<[AtomicU8]>;

/// Something leaves by an adjacency, whose index has [`ROUTED`] or not.
#[inline(always)]
pub fn mark(marks: &[AtomicU8], index: u32) {
    if let Some(mark) = marks.get((index & !ROUTED) as usize)
        && mark.load(Ordering::Relaxed) == 0
    {
        mark.store(1, Ordering::Relaxed);
    }
}

fn take(marks: &[AtomicU8], index: u32) -> bool {
    let used = marks.get((index & !ROUTED) as usize).filter(|mark| mark.load(Ordering::Relaxed) != 0);
    used.inspect(|mark| mark.store(0, Ordering::Relaxed)).is_some()
}

/// All workers' marks.
#[derive(Debug)]
pub struct Used(Box<[Marks]>);

impl Used {
    /// Of so many workers, for so many adjacencies.
    pub fn new(workers: usize, adjacencies: usize) -> Used {
        Used((0..workers).map(|_| (0..adjacencies).map(|_| AtomicU8::new(0)).collect()).collect())
    }

    /// Those of one worker; none for one who is no worker.
    pub fn of(&self, worker: usize) -> Marks {
        self.0.get(worker).cloned().unwrap_or_default()
    }

    /// True if something has left by an adjacency since this was last asked of it.
    pub fn take(&self, index: u32) -> bool {
        // Of all, though one would do.
        self.0.iter().fold(false, |used, marks| take(marks, index) | used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_any_worker_has_used_is_told_once() {
        let used = Used::new(2, 4);
        let (one, two, other) = (used.of(0), used.of(1), used.of(2));
        assert!(!used.take(3));
        mark(&one, ROUTED | 3);
        mark(&two, 3);
        mark(&two, 2);
        mark(&other, 1);
        mark(&one, 4);
        assert_eq!([used.take(3), used.take(3), used.take(ROUTED | 2), used.take(1)], [true, false, true, false]);
        mark(&one, 3);
        assert!(used.take(3));
    }
}
