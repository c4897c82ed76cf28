//! Where packets can be seen: the last drops, always, and captures, while somebody asks for them.
//!
//! Owns what the worker tells of its packets for people to look at. Its memory is control's gift: the worker allocates none.
//! While nobody captures, a batch that drops nothing pays for a test or two.

use std::sync::Arc;

use crate::packet::{BATCH, Batch, Frame, Mask, Meta, NO_PORT, bits};
use crate::stage::pipeline::Blueprint;
use crate::stage::track::Tracker;
use crate::stats::{Layout, Reason};

mod drops;
mod watch;

pub use drops::{COPIED, Dropped, Drops, HEADER, KEPT};
pub use watch::{Chunk, Copied, LONGEST, Seen, Shared, Wanted, Watch, place};

/// Captures that may be under way at a time.
pub const WATCHES: usize = 4;

/// A worker's tap. What it holds speaks of the reasons, rules and ports of one blueprint, and goes with that.
pub struct Tap {
    layout: Arc<Layout>,
    drops: Drops,
    watches: [Option<Box<Watch>>; WATCHES],
    watching: bool,
    /// The turn's time: Unix nanoseconds.
    now: u64,
    /// Of the first packet of the batch.
    id: u64,
}

impl Tap {
    /// For worker `index` of a blueprint. One who only asks keeps nothing.
    pub fn new(blueprint: &Blueprint, index: usize) -> Tap {
        let reasons = if blueprint.asks { 0 } else { blueprint.layout.reason_labels().len() };
        let id = (index as u64 + 1) << 48;
        let layout = blueprint.layout.clone();
        Tap { layout, drops: Drops::new(reasons), watches: [const { None }; WATCHES], watching: false, now: 0, id }
    }

    /// A turn begins, or upkeep.
    #[inline]
    pub fn set_time(&mut self, now: u64) {
        self.now = now;
    }

    /// True if somebody captures.
    #[inline]
    pub fn is_watching(&self) -> bool {
        self.watching
    }

    /// The packets of a batch are decoded, and nothing has happened to them yet.
    #[cold]
    pub fn arrived(&mut self, batch: &Batch) {
        self.watches.iter_mut().flatten().for_each(|watch| watch.stage(batch));
    }

    /// Packets of the batch are another worker's.
    #[cold]
    pub fn handed_over(&mut self, mask: Mask) {
        self.watches.iter_mut().flatten().for_each(|watch| watch.forget(mask));
    }

    /// It is known what became of the batch. `died` have been dropped, even if answers leave in their buffers.
    #[cold]
    pub fn concluded(&mut self, batch: &Batch, died: Mask, tracker: Option<&Tracker>) {
        for watch in self.watches.iter_mut().flatten() {
            watch.conclude(batch, died, self.now, self.id, tracker);
        }
        self.id += BATCH as u64;
    }

    /// Packet `i` of the batch, or a part of it, is sent.
    #[cold]
    pub fn left(&mut self, i: usize, frame: &Frame, facts: &Meta, tracker: Option<&Tracker>) {
        self.see(frame, facts, Seen::Out, self.id + i as u64, tracker);
    }

    /// All of `mask` are sent.
    #[cold]
    pub fn all_left(&mut self, mask: Mask, batch: &Batch, tracker: Option<&Tracker>) {
        bits(mask).for_each(|i| self.left(i, &batch.frames[i], &batch.metas[i], tracker));
    }

    /// A packet of our own is sent, which is no answer.
    #[cold]
    pub fn created(&mut self, frame: &Frame, facts: &Meta, tracker: Option<&Tracker>) {
        self.see(frame, facts, Seen::Out, 0, tracker);
    }

    /// Packet `i` of the batch is dropped.
    #[inline]
    pub fn dropped(&mut self, i: usize, batch: &Batch, reason: Reason, tracker: Option<&Tracker>) {
        let (frame, facts) = (&batch.frames[i], &batch.metas[i]);
        self.drops.record(self.now, frame, facts, reason);
        if self.watching {
            self.see(frame, facts, Seen::Dropped(reason), self.id + i as u64, tracker);
        }
    }

    /// Packets that had left the batch are dropped on their way out of the worker, by the ports `out` if that is known.
    #[cold]
    pub fn lost(&mut self, frames: &[Frame], leaving: bool, reason: Reason) {
        for frame in frames {
            let (port, out) = if leaving { (NO_PORT, frame.port) } else { (frame.port, NO_PORT) };
            let facts = Meta { port, out, ..Meta::UNKNOWN };
            self.drops.record(self.now, frame, &facts, reason);
            if self.watching {
                self.see(frame, &facts, Seen::Dropped(reason), 0, None);
            }
        }
    }

    #[cold]
    fn see(&mut self, frame: &Frame, facts: &Meta, seen: Seen, id: u64, tracker: Option<&Tracker>) {
        for watch in self.watches.iter_mut().flatten() {
            watch.see(frame, facts, seen, self.now, id, tracker);
        }
    }

    /// Copies the next of the last drops, and tells whose reasons they have; true if none is left.
    pub fn copy_drops(&self, layout: &mut Option<Arc<Layout>>, cursor: &mut usize, into: &mut Vec<Dropped>) -> bool {
        *layout = Some(self.layout.clone());
        self.drops.copy(cursor, into)
    }

    /// Begins a capture; gives it back if there are too many, or if it is one of another pipeline.
    pub fn watch(&mut self, watch: Box<Watch>) -> Option<Box<Watch>> {
        if !Arc::ptr_eq(&self.layout, &watch.layout) {
            return Some(watch);
        }
        match self.watches.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(watch),
            None => return Some(watch),
        }
        self.watching = true;
        None
    }

    /// Ends one, and gives it back.
    pub fn unwatch(&mut self, number: u64) -> Option<Box<Watch>> {
        let ends = |place: &&mut Option<Box<Watch>>| place.as_ref().is_some_and(|watch| watch.number == number);
        let mut ended = self.watches.iter_mut().find(ends)?.take();
        ended.iter_mut().for_each(|watch| watch.flush());
        self.watching = self.watches.iter().any(Option::is_some);
        ended
    }

    /// Gives control what has been copied.
    pub fn flush(&mut self) {
        self.watches.iter_mut().flatten().for_each(|watch| watch.flush());
    }
}
