//! Adjacencies: how packets leave by a port toward one neighbor.
//!
//! A slot is half a cache line that control changes in place, behind its index, when a neighbor answers, moves or falls
//! silent; flows that use it need not be touched. Workers read it under a sequence count.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Marks `Action::adjacency` as an index into [`Table`]; without it, it is one of the pipeline's fixed rewrites.
pub const ROUTED: u32 = 1 << 31;
/// The destination is on the link, and nobody has asked for it yet: never resolved.
pub const GLEAN: u32 = ROUTED | (ROUTED - 1);
/// The destination is on the link, and does not answer.
pub const SILENT: u32 = GLEAN - 1;

/// How often a slot is read again while it is being written.
const PATIENCE: usize = 1000;

/// What a slot is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// For nothing: it is not in use.
    Free = 0,
    /// The neighbor is not known yet: packets are held.
    Unresolved = 1,
    /// The neighbor does not answer: packets are refused.
    Failed = 2,
    /// Packets get a new link-layer header and are sent.
    Forward = 3,
    /// The link-layer header is somebody else's (the kernel's) and stays; tags are added.
    Keep = 4,
}

impl State {
    #[inline(always)]
    fn from_byte(byte: u8) -> State {
        match byte {
            1 => State::Unresolved,
            2 => State::Failed,
            3 => State::Forward,
            4 => State::Keep,
            _ => State::Free,
        }
    }
}

/// How packets leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adjacency {
    /// What it is good for.
    pub state: State,
    /// Logical port.
    pub port: u8,
    /// Largest network-layer packet, in bytes.
    pub mtu: u16,
    /// The neighbor's MAC.
    pub destination: [u8; 6],
    /// Our own.
    pub source: [u8; 6],
    /// VLAN tags as on the wire, the outer one first; zero where there is none.
    pub tags: [[u8; 4]; 2],
}

impl Adjacency {
    /// A slot not in use.
    pub const FREE: Adjacency =
        Adjacency { state: State::Free, port: 0, mtu: 0, destination: [0; 6], source: [0; 6], tags: [[0; 4]; 2] };

    fn words(&self) -> [u64; 3] {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (self.destination, self.source);
        let [m, n] = self.mtu.to_le_bytes();
        let tagged = if self.tags == [[0; 4]; 2] { 0 } else { TAGGED };
        [
            u64::from_le_bytes([a, b, c, d, e, f, self.port, self.state as u8 | tagged]),
            u64::from_le_bytes([g, h, i, j, k, l, m, n]),
            bytemuck::cast(self.tags),
        ]
    }

    fn from_words(words: [u64; 3]) -> Adjacency {
        let [a, b, c, d, e, f, port, state] = words[0].to_le_bytes();
        let [g, h, i, j, k, l, m, n] = words[1].to_le_bytes();
        Adjacency {
            state: State::from_byte(state & !TAGGED),
            port,
            mtu: u16::from_le_bytes([m, n]),
            destination: [a, b, c, d, e, f],
            source: [g, h, i, j, k, l],
            tags: bytemuck::cast(words[2]),
        }
    }
}

/// Beside the state: there are tags.
const TAGGED: u8 = 0x80;

/// An adjacency as it is stored: whoever only sends by it need not take it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored([u64; 3]);

impl From<&Adjacency> for Stored {
    fn from(adjacency: &Adjacency) -> Stored {
        Stored(adjacency.words())
    }
}

impl Stored {
    /// Taken apart.
    pub fn whole(self) -> Adjacency {
        Adjacency::from_words(self.0)
    }

    /// What it is good for.
    #[inline(always)]
    pub fn state(self) -> State {
        State::from_byte((self.0[0] >> 56) as u8 & !TAGGED)
    }

    /// Logical port.
    #[inline(always)]
    pub fn port(self) -> u8 {
        (self.0[0] >> 48) as u8
    }

    /// True if packets get a new link-layer header and are sent.
    #[inline(always)]
    pub fn forwards(self) -> bool {
        self.state() == State::Forward
    }

    /// True if that header is without tags.
    #[inline(always)]
    pub fn is_plain(self) -> bool {
        (self.0[0] >> 56) as u8 == State::Forward as u8
    }

    /// Largest network-layer packet, in bytes.
    #[inline(always)]
    pub fn mtu(self) -> u16 {
        (self.0[1] >> 48) as u16
    }

    /// The first eight and the other four bytes of an Ethernet header.
    #[inline(always)]
    pub fn macs(self) -> ([u8; 8], [u8; 4]) {
        let Stored([destination, source, _]) = self;
        ((destination << 16 >> 16 | source << 48).to_le_bytes(), ((source >> 16) as u32).to_le_bytes())
    }
}

#[derive(Debug)]
#[repr(align(32))]
struct Slot {
    words: [AtomicU64; 3],
    /// Odd while the words are being written.
    version: AtomicU64,
}

/// All adjacencies.
#[derive(Debug)]
pub struct Table(Box<[Slot]>);

impl Table {
    /// Room for so many, all free.
    pub fn new(room: usize) -> Table {
        let slot = |_| Slot { words: std::array::from_fn(|_| AtomicU64::new(0)), version: AtomicU64::new(0) };
        Table((0..room.clamp(1, SILENT as usize & 0xff_ffff)).map(slot).collect())
    }

    /// How many there is room for.
    pub fn room(&self) -> usize {
        self.0.len()
    }

    /// The adjacency at an index, with or without [`ROUTED`]; a free one if there is none.
    pub fn at(&self, index: u32) -> Adjacency {
        self.stored(index).whole()
    }

    /// The same as it is stored.
    #[inline(always)]
    pub fn stored(&self, index: u32) -> Stored {
        self.reader().stored(index)
    }

    /// For whoever looks up many.
    #[inline(always)]
    pub fn reader(&self) -> Reader<'_> {
        Reader(&self.0)
    }

    /// Sets it; called by control alone.
    pub fn set(&self, index: u32, adjacency: Adjacency) {
        let Some(slot) = self.0.get((index & !ROUTED) as usize) else { return };
        let before = slot.version.load(Ordering::Relaxed);
        slot.version.store(before.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in slot.words.iter().zip(adjacency.words()) {
            word.store(value, Ordering::Relaxed);
        }
        slot.version.store(before.wrapping_add(2), Ordering::Release);
    }
}

/// The slots, at hand.
#[derive(Clone, Copy)]
pub struct Reader<'a>(&'a [Slot]);

impl Reader<'_> {
    /// The adjacency at an index, with or without [`ROUTED`], as it is stored; a free one if there is none. One whose change
    /// takes longer than it should, as control was interrupted in the midst of it, reads as free too: what would leave by it is
    /// held until the change is done, and no worker waits for control.
    #[inline(always)]
    pub fn stored(self, index: u32) -> Stored {
        let Some(slot) = self.0.get((index & !ROUTED) as usize) else { return Stored([0; 3]) };
        for _ in 0..PATIENCE {
            let before = slot.version.load(Ordering::Acquire);
            let words = [
                slot.words[0].load(Ordering::Relaxed),
                slot.words[1].load(Ordering::Relaxed),
                slot.words[2].load(Ordering::Relaxed),
            ];
            fence(Ordering::Acquire);
            if before & 1 == 0 && slot.version.load(Ordering::Relaxed) == before {
                return Stored(words);
            }
            std::hint::spin_loop();
        }
        Stored([0; 3])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjacency(n: u8) -> Adjacency {
        Adjacency {
            state: State::Forward,
            port: n,
            mtu: u16::from(n) * 257,
            destination: [n; 6],
            source: [n; 6],
            tags: [[n; 4]; 2],
        }
    }

    #[test]
    fn read_as_written() {
        let table = Table::new(4);
        assert_eq!((table.at(3), table.at(99), table.at(GLEAN)), (Adjacency::FREE, Adjacency::FREE, Adjacency::FREE));
        for state in [State::Unresolved, State::Failed, State::Forward, State::Keep, State::Free] {
            let one = Adjacency { state, destination: [1, 2, 3, 4, 5, 6], ..adjacency(7) };
            table.set(3, one);
            assert_eq!((table.at(3), table.at(3 | ROUTED)), (one, one));
            let stored = table.stored(3);
            assert_eq!((stored.state(), stored.port(), stored.mtu()), (state, one.port, one.mtu));
            let (front, rest) = stored.macs();
            assert_eq!([&front[..], &rest].concat(), [one.destination, one.source].concat());
            table.set(3, Adjacency { tags: [[0; 4]; 2], ..one });
            assert_eq!((stored.is_plain(), table.stored(3).is_plain()), (false, state == State::Forward));
        }
        table.set(99, adjacency(1));
    }

    #[test]
    fn nobody_waits_for_a_writer_that_was_interrupted() {
        let table = Table::new(1);
        table.set(0, adjacency(1));
        table.0[0].version.fetch_add(1, Ordering::Relaxed);
        assert_eq!(table.at(0), Adjacency::FREE);
        table.0[0].version.fetch_add(1, Ordering::Relaxed);
        assert_eq!(table.at(0), adjacency(1));
    }

    #[test]
    fn never_read_half_written() {
        let table = Table::new(1);
        table.set(0, adjacency(0));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..20_000_u32).for_each(|n| table.set(0, adjacency(n as u8))));
            while !writer.is_finished() {
                let read = table.at(0);
                assert!(read == adjacency(read.port) || read == Adjacency::FREE, "{read:?}");
            }
        });
    }
}
