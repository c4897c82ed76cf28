//! The last packets that a worker dropped: their headers, why and when, kept for whoever asks afterwards.
//!
//! Each reason has a ring of its own, so that a flood of drops for one does not push out the others. In it, packets that are
//! alike (same ends, ports, rule) take one place, with their number; and no more than [`KEPT`] new ones a second are kept,
//! so that the ring of a reason reaches back a second at least, whatever comes. Once made it never grows, and a drop costs a
//! bounded number of steps.

use crate::packet::meta::flag;
use crate::packet::{Frame, Meta};
use crate::stats::Reason;

/// Bytes of a packet that are kept.
pub const HEADER: usize = 128;
/// Packets kept of each reason.
pub const KEPT: usize = 32;
/// Nanoseconds between two that are kept of one reason, after [`KEPT`] at once.
const PAUSE: u64 = 1_000_000_000 / KEPT as u64;
/// Packets copied for control at a time.
pub const COPIED: usize = 128;

/// A packet that was dropped, and those like it.
#[derive(Clone, Debug)]
pub struct Dropped {
    /// When the last of them was dropped: Unix nanoseconds.
    pub time: u64,
    /// When the first was.
    pub first: u64,
    /// How many there were.
    pub packets: u64,
    /// Bytes of the first one's frame.
    pub len: u16,
    /// How many of them are in `header`.
    pub kept: u16,
    /// Why.
    pub reason: Reason,
    /// What was known of the first.
    pub facts: Meta,
    /// Its first bytes.
    pub header: [u8; HEADER],
}

impl Dropped {
    const NONE: Dropped = Dropped {
        time: 0,
        first: 0,
        packets: 0,
        len: 0,
        kept: 0,
        reason: Reason::NONE,
        facts: Meta::UNKNOWN,
        header: [0; HEADER],
    };

    /// The bytes of the first that were kept.
    pub fn bytes(&self) -> &[u8] {
        &self.header[..usize::from(self.kept).min(HEADER)]
    }
}

/// What is kept of one reason; the packets themselves lie apart, so that the tags are close together.
#[derive(Clone)]
#[repr(align(64))]
struct Ring {
    /// By place; 0 where packets are alike to none.
    tags: [u32; KEPT],
    /// The place to be used next.
    next: usize,
    /// When the next one may be kept, had there been no pause to be made up for.
    due: u64,
}

/// A worker's rings, by reason.
pub struct Drops {
    rings: Vec<Ring>,
    packets: Vec<Dropped>,
}

impl Drops {
    /// Empty rings for so many reasons.
    pub fn new(reasons: usize) -> Drops {
        let ring = Ring { tags: [0; KEPT], next: 0, due: 0 };
        Drops { rings: vec![ring; reasons], packets: vec![Dropped::NONE; reasons * KEPT] }
    }

    /// Keeps a packet that is dropped now.
    #[inline(never)]
    pub fn record(&mut self, now: u64, frame: &Frame, facts: &Meta, reason: Reason) {
        let at = usize::from(reason.0);
        let Some(ring) = self.rings.get_mut(at) else { return };
        let packets = &mut self.packets[at * KEPT..][..KEPT];
        let tag = tag(facts);
        // All of them, without a branch: the compiler makes a few vector instructions of it.
        let alike = ring.tags.iter().enumerate().fold(0_u32, |alike, (i, known)| alike | u32::from(*known == tag) << i);
        if tag != 0 && alike != 0 {
            let packet = &mut packets[alike.trailing_zeros() as usize % KEPT];
            (packet.time, packet.packets) = (now, packet.packets + 1);
            return;
        }
        let due = ring.due.max(now.saturating_sub(PAUSE * (KEPT as u64 - 1)));
        if due > now {
            return;
        }
        ring.due = due + PAUSE;
        let place = ring.next % KEPT;
        ring.next = place + 1;
        ring.tags[place] = tag;
        let packet = &mut packets[place];
        let bytes = &frame.bytes()[..frame.len().min(HEADER)];
        packet.header[..bytes.len()].copy_from_slice(bytes);
        (packet.time, packet.first, packet.packets) = (now, now, 1);
        (packet.len, packet.kept, packet.reason) = (frame.len() as u16, bytes.len() as u16, reason);
        packet.facts = facts.clone();
    }

    /// Copies the next packets from `cursor` on, [`COPIED`] at most and as many as `into` has room for. True if none is left.
    pub fn copy(&self, cursor: &mut usize, into: &mut Vec<Dropped>) -> bool {
        let mut room = COPIED.min(into.capacity() - into.len());
        while let Some(packet) = self.packets.get(*cursor) {
            if packet.packets == 0 {
                // Places fill in order: the rest of this reason's are empty too.
                *cursor = (*cursor / KEPT + 1) * KEPT;
                continue;
            }
            if room == 0 {
                return false;
            }
            into.push(packet.clone());
            (*cursor, room) = (*cursor + 1, room - 1);
        }
        true
    }
}

/// The same for packets that are alike, hardly ever for others; 0 if too little is known of a packet.
#[inline]
fn tag(facts: &Meta) -> u32 {
    if !facts.any(flag::IPV4 | flag::IPV6 | flag::ARP) {
        return 0;
    }
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        product as u64 ^ (product >> 64) as u64
    };
    let halves = |address: &[u8; 16]| {
        let wide = u128::from_ne_bytes(*address);
        (wide as u64, (wide >> 64) as u64)
    };
    let ((s0, s1), (d0, d1)) = (halves(&facts.src), halves(&facts.dst));
    let ports = u64::from(facts.sport) << 48 | u64::from(facts.dport) << 32;
    let ports = ports | u64::from(facts.rule) << 16 | u64::from(facts.vlan);
    let rest = u64::from(facts.proto) << 32 | u64::from(facts.port) << 24 | u64::from(facts.out) << 16;
    let rest = rest | u64::from(u16::from_ne_bytes(facts.detail));
    let hash = fold(s0 ^ 0x9e37_79b9_7f4a_7c15, d0 ^ 0xc2b2_ae3d_27d4_eb4f)
        ^ fold(s1 ^ 0x1656_67b1_9e37_79f9, d1 ^ 0x27d4_eb2f_1656_67c5)
        ^ fold(ports ^ 0xd6e8_feb8_6659_fd93, rest ^ 0xa076_1d64_78bd_642f);
    (hash ^ hash >> 32) as u32 | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::frame::Heap;

    fn facts(source: u8) -> Meta {
        Meta { src: [source; 16], flags: flag::IPV6, ..Meta::UNKNOWN }
    }

    fn all(drops: &Drops) -> Vec<Dropped> {
        let (mut cursor, mut all) = (0, Vec::new());
        loop {
            let mut part = Vec::with_capacity(5);
            let done = drops.copy(&mut cursor, &mut part);
            all.append(&mut part);
            if done {
                return all;
            }
        }
    }

    #[test]
    fn a_flood_leaves_other_reasons_alone_and_what_is_alike_takes_one_place() {
        let mut heap = Heap::new(1, 300);
        let frame = heap.frame(&[7; 200]).expect("free");
        let (mut drops, second) = (Drops::new(3), 1_000_000_000);
        drops.record(second, &frame, &facts(1), Reason(0));
        for n in 0..10_000_u64 {
            // Different packets of one reason, and one packet again and again of another.
            let other = Meta { sport: n as u16, ..facts(2) };
            drops.record(second + n * 1000, &frame, &other, Reason(1));
            drops.record(second + n * 1000, &frame, &facts(3), Reason(2));
        }
        // No ring for it: nothing happens.
        drops.record(second, &frame, &facts(1), Reason(9));
        heap.give_back(frame);
        let all = all(&drops);
        let of = |reason| all.iter().filter(|packet| packet.reason == Reason(reason)).collect::<Vec<_>>();
        assert_eq!((of(0).len(), of(1).len(), of(2).len()), (1, KEPT, 1));
        assert_eq!((of(2)[0].packets, of(2)[0].first, of(2)[0].time), (10_000, second, second + 9_999_000));
        assert_eq!((of(0)[0].bytes(), of(0)[0].len), (&[7; HEADER][..], 200));
        // 32 at once, and none for the next 10 ms.
        assert_eq!(of(1).iter().map(|packet| packet.first).max(), Some(second + 31_000));
    }

    #[test]
    fn the_oldest_goes_and_little_known_packets_stay_apart() {
        let mut heap = Heap::new(1, 300);
        let frame = heap.frame(&[7; 14]).expect("free");
        let mut drops = Drops::new(1);
        for n in 0..40 {
            drops.record(n * PAUSE, &frame, &Meta::UNKNOWN, Reason(0));
        }
        heap.give_back(frame);
        let mut times: Vec<u64> = all(&drops).iter().map(|packet| packet.time / PAUSE).collect();
        times.sort_unstable();
        assert_eq!(times, (8..40).collect::<Vec<_>>());
    }
}
