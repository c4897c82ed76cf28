//! Hops: what the routes of the forwarding table lead to.
//!
//! Many routes share a hop, so that a change of it is one word, however many there are. Workers read the words; control
//! writes them, and gives an index to another hop only when no route and no worker uses it any more.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a hop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Nothing: there is no route.
    None,
    /// By an adjacency.
    Forward {
        /// Its index.
        adjacency: u32,
        /// The logical port it leaves by.
        port: u8,
    },
    /// Onto a link whose hosts are the destinations themselves.
    Glean {
        /// The logical port.
        port: u8,
    },
    /// An address of the box, on this port.
    Local {
        /// The logical port that has it.
        port: u8,
    },
    /// The broadcast address of a port's subnet (RFC 919).
    Broadcast {
        /// The logical port.
        port: u8,
    },
    /// One of several hops in a row, by the flow's hash; none of these is a group.
    Group {
        /// The first.
        first: u32,
        /// How many.
        count: u16,
    },
    /// Dropped without a word.
    Blackhole,
    /// Dropped as unreachable.
    Unreachable,
    /// Dropped as forbidden.
    Prohibit,
    /// The neighbor was asked for and has not answered.
    Silent {
        /// The logical port.
        port: u8,
    },
}

/// The lowest byte of a word that is [`Hop::Forward`].
const FORWARD: u8 = 1;

impl Hop {
    /// As a word: what it is in the lowest byte, the port or the count behind that, the index in the upper half.
    fn word(self) -> u64 {
        let word = |kind: u64, middle: u16, upper: u32| kind | u64::from(middle) << 8 | u64::from(upper) << 32;
        match self {
            Hop::None => 0,
            Hop::Forward { adjacency, port } => word(FORWARD.into(), port.into(), adjacency),
            Hop::Glean { port } => word(2, port.into(), 0),
            Hop::Local { port } => word(3, port.into(), 0),
            Hop::Broadcast { port } => word(4, port.into(), 0),
            Hop::Group { first, count } => word(5, count, first),
            Hop::Blackhole => 6,
            Hop::Unreachable => 7,
            Hop::Prohibit => 8,
            Hop::Silent { port } => word(9, port.into(), 0),
        }
    }

    #[inline]
    fn from_word(word: u64) -> Hop {
        let (port, count, upper) = ((word >> 8) as u8, (word >> 8) as u16, (word >> 32) as u32);
        match word as u8 {
            FORWARD => Hop::Forward { adjacency: upper, port },
            2 => Hop::Glean { port },
            3 => Hop::Local { port },
            4 => Hop::Broadcast { port },
            5 => Hop::Group { first: upper, count },
            6 => Hop::Blackhole,
            7 => Hop::Unreachable,
            8 => Hop::Prohibit,
            9 => Hop::Silent { port },
            _ => Hop::None,
        }
    }
}

/// All hops. The first is none.
#[derive(Debug)]
pub struct Hops(Box<[AtomicU64]>);

impl Hops {
    /// Room for so many.
    pub fn new(room: usize) -> Hops {
        Hops((0..room.max(1)).map(|_| AtomicU64::new(0)).collect())
    }

    /// How many there is room for.
    pub fn room(&self) -> usize {
        self.0.len()
    }

    /// The hop at an index.
    #[inline]
    pub fn at(&self, index: u32) -> Hop {
        self.0.get(index as usize).map_or(Hop::None, |word| Hop::from_word(word.load(Ordering::Acquire)))
    }

    /// For whoever looks up many.
    #[inline(always)]
    pub fn reader(&self) -> Reader<'_> {
        Reader(&self.0)
    }

    /// The hop at an index for a flow of this hash: one of the group, if it is one.
    #[inline]
    pub fn choose(&self, index: u32, hash: u32) -> Hop {
        match self.at(index) {
            // Even shares of the hash's range. Workers are chosen by the upper bits, hence the mixing.
            Hop::Group { first, count } => {
                let mixed = hash.wrapping_mul(0x9e37_79b1).rotate_left(16);
                self.at(first + ((u64::from(mixed) * u64::from(count)) >> 32) as u32)
            }
            hop => hop,
        }
    }

    /// Sets it; called by control alone.
    pub fn set(&self, index: u32, hop: Hop) {
        self.0[index as usize].store(hop.word(), Ordering::Release);
    }
}

/// The words, at hand.
#[derive(Clone, Copy)]
pub struct Reader<'a>(&'a [AtomicU64]);

impl Reader<'_> {
    /// The adjacency and the port of the hop at an index, if it is by an adjacency.
    #[inline(always)]
    pub fn forward(self, index: u32) -> Option<(u32, u8)> {
        let word = self.0.get(index as usize)?.load(Ordering::Acquire);
        (word as u8 == FORWARD).then_some(((word >> 32) as u32, (word >> 8) as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_are_read_as_they_were_written() {
        let hops = Hops::new(20);
        let all = [
            Hop::Forward { adjacency: 77_000, port: 200 },
            Hop::Glean { port: 3 },
            Hop::Local { port: 4 },
            Hop::Broadcast { port: 5 },
            Hop::Group { first: 1, count: 300 },
            Hop::Blackhole,
            Hop::Unreachable,
            Hop::Prohibit,
            Hop::Silent { port: 6 },
            Hop::None,
        ];
        for (index, hop) in (1..).zip(all) {
            hops.set(index, hop);
            assert_eq!(hops.at(index), hop);
            let forward = hops.reader().forward(index).map(|(adjacency, port)| Hop::Forward { adjacency, port });
            assert_eq!(forward, Some(hop).filter(|hop| matches!(hop, Hop::Forward { .. })));
        }
        assert_eq!((hops.at(0), hops.at(1000)), (Hop::None, Hop::None));
    }

    #[test]
    fn a_group_shares_flows_out_evenly() {
        let hops = Hops::new(8);
        (1..4).for_each(|port| hops.set(port, Hop::Glean { port: port as u8 }));
        hops.set(5, Hop::Group { first: 1, count: 3 });
        let mut shares = [0; 4];
        for flow in 0..30_000_u32 {
            let Hop::Glean { port } = hops.choose(5, flow.wrapping_mul(0x85eb_ca6b)) else {
                panic!("one of the group")
            };
            shares[usize::from(port)] += 1;
        }
        assert!(shares[1..].iter().all(|share| (9_000..11_000).contains(share)), "{shares:?}");
        assert_eq!(hops.choose(2, 99), Hop::Glean { port: 2 });
    }
}
