//! Up to 64 packets that travel together, and what is to become of each.
//!
//! A batch knows which of its packets are live, leaving, held, moved or dead, and nothing about what is in them: it neither
//! parses nor counts nor frees. Every packet is in exactly one of these masks from the moment it is pushed.

use super::frame::Frame;
use super::meta::{Meta, NO_PORT};
use super::reply::Answer;
use crate::stats::Reason;

/// Packets in a batch.
pub const BATCH: usize = 64;

/// One bit per packet of a batch.
pub type Mask = u64;

/// The positions set in a mask, lowest first.
#[inline]
pub fn bits(mask: Mask) -> Bits {
    Bits(mask)
}

/// Iterator of [`bits`].
#[derive(Clone, Copy, Debug)]
pub struct Bits(Mask);

impl Iterator for Bits {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let at = self.0.trailing_zeros() as usize & (BATCH - 1);
        self.0 &= self.0 - 1;
        Some(at)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let n = self.0.count_ones() as usize;
        (n, Some(n))
    }
}

/// What a packet waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Await {
    /// The adjacency it will leave by, `GLEAN` if its neighbor has none yet.
    pub adjacency: u32,
    /// The logical port.
    pub out: u8,
    /// The address of the neighbor, if that is where it goes.
    pub neighbor: [u8; 16],
}

/// The packets of one receive, from one port or one worker.
#[derive(Debug)]
pub struct Batch {
    /// The bytes. Slots beyond `len` are empty.
    pub frames: [Frame; BATCH],
    /// What is known of each packet, valid after decode.
    pub metas: [Meta; BATCH],
    /// Why each dead packet died.
    pub reasons: [Reason; BATCH],
    /// Still on their way through the pipeline.
    pub live: Mask,
    /// Live, and without a flow entry: to be judged.
    pub fresh: Mask,
    /// To be sent to `metas[i].out`.
    pub leaving: Mask,
    /// Moved elsewhere (handed to another worker, consumed): the slot is empty.
    pub moved: Mask,
    /// Dropped; the frame is still here until the batch is settled.
    pub dead: Mask,
    /// Of the dead, those whose senders are to be told, by a reply that the frame becomes.
    pub refused: Mask,
    /// What each of these becomes.
    pub answers: [Answer; BATCH],
    /// Waiting for the answer of a neighbor; their frames are here until the batch is settled.
    pub held: Mask,
    /// What each of these waits for.
    pub awaits: [Await; BATCH],
    /// Fragments, first and later, as decode found them; live or not.
    pub fragments: Mask,
    /// What decode could not read at a glance; live or not. The others are whole IP packets without tags or options; if decode
    /// went to L4, of TCP or UDP.
    pub uncommon: Mask,
    len: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Batch {
            frames: [const { Frame::EMPTY }; BATCH],
            metas: [const { Meta::UNKNOWN }; BATCH],
            reasons: [Reason::NONE; BATCH],
            live: 0,
            fresh: 0,
            leaving: 0,
            moved: 0,
            dead: 0,
            refused: 0,
            answers: [Answer::Nothing; BATCH],
            held: 0,
            awaits: [Await { adjacency: 0, out: NO_PORT, neighbor: [0; 16] }; BATCH],
            fragments: 0,
            uncommon: 0,
            len: 0,
        }
    }
}

impl Batch {
    /// Packets in the batch, in whatever state.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if no packet was received into it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes the first `len` frames, which the caller has just filled, the live packets.
    #[inline]
    pub fn begin(&mut self, len: usize) {
        debug_assert!(len <= BATCH);
        self.len = len;
        self.live = if len >= BATCH { Mask::MAX } else { (1 << len) - 1 };
        self.fresh = 0;
        self.leaving = 0;
        self.moved = 0;
        self.dead = 0;
        self.refused = 0;
        self.held = 0;
        self.fragments = 0;
        // Until decode has looked.
        self.uncommon = Mask::MAX;
    }

    /// Drops packet `i`, which is live, for `reason`.
    #[inline]
    pub fn drop(&mut self, i: usize, reason: Reason) {
        debug_assert!(self.live & (1 << i) != 0, "only a live packet can be dropped");
        self.reasons[i] = reason;
        self.live &= !(1 << i);
        self.dead |= 1 << i;
    }

    /// Drops the live packets of `mask`, all for `reason`.
    pub fn drop_all(&mut self, mask: Mask, reason: Reason) {
        for i in bits(mask & self.live) {
            self.drop(i, reason);
        }
    }

    /// Takes packet `i`, which is live, out of the batch: the caller owns it now.
    #[inline]
    pub fn take(&mut self, i: usize) -> Frame {
        debug_assert!(self.live & (1 << i) != 0);
        self.live &= !(1 << i);
        self.moved |= 1 << i;
        self.frames[i].take()
    }

    /// Lets packet `i`, which is dead, become an answer to its sender.
    #[inline]
    pub fn refuse(&mut self, i: usize, answer: Answer) {
        debug_assert!(self.dead & (1 << i) != 0, "only a dead packet is answered");
        self.answers[i] = answer;
        self.refused |= 1 << i;
    }

    /// Keeps packet `i`, which is live, until its neighbor has answered.
    #[inline]
    pub fn hold(&mut self, i: usize, awaited: Await) {
        debug_assert!(self.live & (1 << i) != 0);
        self.live &= !(1 << i);
        self.held |= 1 << i;
        self.awaits[i] = awaited;
    }

    /// Sends the live packets of `mask` on to their `metas[i].out`.
    #[inline]
    pub fn leave(&mut self, mask: Mask) {
        let mask = mask & self.live;
        self.live &= !mask;
        self.leaving |= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_walks_lowest_first() {
        assert_eq!(bits(0).count(), 0);
        assert_eq!(bits(1 << 63 | 0b101).collect::<Vec<_>>(), [0, 2, 63]);
    }

    #[test]
    fn every_packet_is_in_one_mask() {
        let mut batch = Batch::default();
        batch.begin(3);
        batch.drop(1, Reason::NONE);
        batch.leave(0b001);
        assert_eq!((batch.live, batch.leaving, batch.dead), (0b100, 0b001, 0b010));
        batch.begin(64);
        assert_eq!(batch.live, Mask::MAX);
    }
}
