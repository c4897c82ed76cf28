//! Routing: what control knows of routes and neighbors, and the tables it publishes for the workers.
//!
//! Workers read [`Routing`] and nothing else here: the forwarding table, what its hops lead to, and how packets leave. All of
//! it is changed in place by one writer, on control, while they read.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use ipnet::IpNet;

pub mod adjacency;
pub mod epoch;
pub mod fib;
pub mod hop;
pub mod neighbor;
pub mod own;
pub mod rib;
pub mod router;
pub mod show;
pub mod used;
pub mod vlan;

use epoch::Epochs;
use fib::Fib;
use hop::{Hop, Hops};

/// What control publishes and workers read.
#[derive(Debug)]
pub struct Routing {
    /// Addresses to hops.
    pub fib: Fib,
    /// When workers have let go of what was changed.
    pub epochs: Arc<Epochs>,
    /// What hops lead to.
    pub hops: Arc<Hops>,
    /// How packets leave.
    pub adjacencies: Arc<adjacency::Table>,
    /// The ports' own addresses.
    pub addresses: Arc<Addresses>,
    /// By which of these packets have left of late.
    pub used: used::Used,
    /// Which addresses are the box's, at a glance.
    pub own: own::Own,
    /// The ports' own MAC addresses.
    pub macs: Macs,
    /// Changes with every change of routes: flows that were routed before are routed again.
    pub generation: AtomicU32,
    /// Changes when a neighbor has answered or is given up: what is held is looked at again.
    pub settled: AtomicU32,
    /// Neighbors that packets wait for, for control to ask.
    pub wants: ArrayQueue<Want>,
}

/// Hops there is room for: a next hop or group of routes each, and one for each neighbor.
const HOPS: usize = 1 << 17;
/// Adjacencies: one for each neighbor that a route or a packet leads to.
const ADJACENCIES: usize = 1 << 16;
/// Neighbors that packets may ask for at a time.
const WANTS: usize = 1024;

impl Routing {
    /// Tables without routes, for ports with these MAC addresses and so many workers.
    pub fn new(fib: Fib, epochs: Arc<Epochs>, macs: Macs, workers: usize) -> Routing {
        let ports = macs.first.len();
        Routing {
            fib,
            epochs,
            hops: Arc::new(Hops::new(HOPS)),
            adjacencies: Arc::new(adjacency::Table::new(ADJACENCIES)),
            addresses: Arc::new(Addresses::new(ports)),
            used: used::Used::new(workers, ADJACENCIES),
            own: own::Own::default(),
            macs,
            generation: AtomicU32::new(0),
            settled: AtomicU32::new(0),
            wants: ArrayQueue::new(WANTS),
        }
    }

    /// What an address leads to, an IPv4 one in the first four bytes.
    pub fn hop(&self, v4: bool, address: &[u8; 16]) -> Hop {
        let [a, b, c, d, ..] = *address;
        self.hops.at(if v4 { self.fib.lookup_v4([a, b, c, d]) } else { self.fib.lookup_v6(address) })
    }

    /// Flows that were routed before are routed again from now on.
    pub fn changed(&self) {
        self.generation.store(self.generation.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// What is held is looked at again.
    pub fn settle(&self) {
        self.settled.store(self.settled.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }
}

/// A neighbor that packets wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// A host on a port's link.
    Host {
        /// The logical port.
        port: u8,
        /// Its address.
        address: IpAddr,
    },
    /// The neighbor behind an adjacency.
    Adjacency(u32),
}

/// The MAC addresses by which frames are for the box, by logical port.
#[derive(Debug)]
pub struct Macs {
    first: Vec<u64>,
    more: Vec<Vec<[u8; 6]>>,
}

impl Macs {
    /// By port: its own, and those it has besides (RFC 9568: the virtual router's).
    pub fn new(ports: impl Iterator<Item = ([u8; 6], Vec<[u8; 6]>)>) -> Macs {
        let (first, more): (Vec<_>, Vec<_>) = ports.unzip();
        Macs { first: first.into_iter().map(number).collect(), more }
    }

    /// True for the port's own.
    #[inline(always)]
    pub fn is_first(&self, port: u8, mac: [u8; 6]) -> bool {
        self.first.get(usize::from(port)).is_some_and(|first| *first == number(mac))
    }

    /// By port: its own, the first byte lowest.
    #[inline(always)]
    pub fn first(&self) -> &[u64] {
        &self.first
    }

    /// True for any of the port's.
    pub fn is_one(&self, port: u8, mac: [u8; 6]) -> bool {
        self.is_first(port, mac) || self.more.get(usize::from(port)).is_some_and(|more| more.contains(&mac))
    }

    /// The port's own.
    pub fn of(&self, port: u8) -> Option<[u8; 6]> {
        let [a, b, c, d, e, f, ..] = self.first.get(usize::from(port))?.to_le_bytes();
        Some([a, b, c, d, e, f])
    }
}

#[inline(always)]
fn number([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// A route, as one source has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: IpNet,
    /// What becomes of packets.
    pub target: Target,
    /// Among routes of one source to one prefix the lowest wins.
    pub metric: u32,
}

/// What a route says of its packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// They go on: by one of these, chosen by flow.
    Via(Vec<Gateway>),
    /// Dropped, and nobody is told.
    Blackhole,
    /// Dropped, and the sender is told that the network cannot be reached.
    Unreachable,
    /// Dropped, and the sender is told that it is forbidden.
    Prohibit,
}

/// One of a route's ways.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// The router; none if the destination is itself on the link.
    pub via: Option<IpAddr>,
    /// The logical port; none if it follows from how `via` is reached.
    pub port: Option<u8>,
    /// Its share: flows per sum of all weights. 1 to 256.
    pub weight: u16,
}

/// Where a route comes from, the most believed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// An address of a port.
    Connected,
    /// The file.
    Static,
    /// The kernel's tables, and so whoever writes there: a routing daemon, a DHCP client.
    Kernel,
}

/// A port's own addresses as workers need them: to be the source of what the box itself says.
#[derive(Debug)]
pub struct Addresses {
    v4: Box<[AtomicU32]>,
    /// Two words for each port, and a third that is odd while they are being written.
    v6: Box<[[AtomicU64; 3]]>,
}

impl Addresses {
    /// Of so many logical ports, none of which has an address.
    pub fn new(ports: usize) -> Addresses {
        Addresses {
            v4: (0..ports).map(|_| AtomicU32::new(0)).collect(),
            v6: (0..ports).map(|_| std::array::from_fn(|_| AtomicU64::new(0))).collect(),
        }
    }

    /// A port's first IPv4 address, in wire order.
    pub fn v4(&self, port: u8) -> Option<[u8; 4]> {
        let word = self.v4.get(usize::from(port))?.load(Ordering::Relaxed);
        (word != 0).then(|| word.to_ne_bytes())
    }

    /// A port's first IPv6 address that is valid beyond the link, or else its link-local one; in wire order.
    pub fn v6(&self, port: u8) -> Option<[u8; 16]> {
        let [a, b, version] = self.v6.get(usize::from(port))?;
        loop {
            let before = version.load(Ordering::Acquire);
            let words = [a.load(Ordering::Relaxed), b.load(Ordering::Relaxed)];
            std::sync::atomic::fence(Ordering::Acquire);
            if before & 1 == 0 && version.load(Ordering::Relaxed) == before {
                return (words != [0; 2]).then(|| bytemuck::cast(words));
            }
            std::hint::spin_loop();
        }
    }

    /// Sets both; called by control alone.
    pub fn set(&self, port: u8, v4: Option<[u8; 4]>, v6: Option<[u8; 16]>) {
        let (Some(word), Some([a, b, version])) = (self.v4.get(usize::from(port)), self.v6.get(usize::from(port)))
        else {
            return;
        };
        word.store(v4.map_or(0, u32::from_ne_bytes), Ordering::Relaxed);
        let words: [u64; 2] = bytemuck::cast(v6.unwrap_or_default());
        let before = version.load(Ordering::Relaxed);
        version.store(before.wrapping_add(1), Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::Release);
        a.store(words[0], Ordering::Relaxed);
        b.store(words[1], Ordering::Relaxed);
        version.store(before.wrapping_add(2), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ports_addresses() {
        let addresses = Addresses::new(2);
        assert_eq!((addresses.v4(0), addresses.v6(1), addresses.v4(9)), (None, None, None));
        addresses.set(1, Some([10, 0, 0, 1]), Some([0x20; 16]));
        assert_eq!((addresses.v4(1), addresses.v6(1)), (Some([10, 0, 0, 1]), Some([0x20; 16])));
        addresses.set(1, None, None);
        assert_eq!((addresses.v4(1), addresses.v6(1)), (None, None));
    }
}
