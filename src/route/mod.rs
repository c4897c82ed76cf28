//! Routing: what control knows of routes and neighbors, and the tables it publishes for the workers.
//!
//! Workers read [`Routing`] and nothing else here: the forwarding table, what its hops lead to, and how packets leave. All of
//! it is changed in place by one writer, on control, while they read.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ipnet::IpNet;

pub mod adjacency;
pub mod hop;
pub mod rib;

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
