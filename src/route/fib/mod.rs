//! The forwarding table: which hop an address leads to, by its longest prefix.
//!
//! One writer ([`FibWriter`], control) changes it in place; workers read it ([`Fib`]) at any time, without a lock. A lookup finds
//! the table before or after a change, and for addresses the change does not concern the same in both. Owns neither routes nor
//! what a hop means: a hop is a number to it. A hop that no prefix leads to any more may still be in a worker's hands until the
//! worker's turn ends ([`super::epoch`]).
//!
//! `trie` is what workers walk, `book` brings changes to it, `space` divides its memory, `twin` is the same slow and simple.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::epoch::Epochs;
use crate::packet::{BATCH, Mask};

mod book;
mod space;
mod trie;
pub mod twin;

use book::Book;
use trie::{NODE, Trie};

/// The hop of an address that no prefix covers.
pub const NO_ROUTE: u32 = 0;
/// The largest hop.
pub const MAX_HOP: u32 = NODE - 1;

/// There is no room for a prefix, nor for the nodes that lead to it; the table is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// How many prefixes a table is to hold.
///
/// Room is for tables of the usual shape with half as much again, and for any other as far as it goes: a family's table takes 64 to
/// 1,200 bytes per 256 neighboring prefixes of equal length that it holds any of, and per step of 8 bits on the way there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// IPv4 prefixes.
    pub v4: usize,
    /// IPv6 prefixes.
    pub v6: usize,
}

impl Default for Capacity {
    fn default() -> Self {
        Capacity { v4: 1_000_000, v6: 250_000 }
    }
}

impl Capacity {
    /// Lines of 64 bytes for each family.
    fn lines(self) -> (usize, usize) {
        (self.v4 / 2 + 4096, self.v6 * 2 + 4096)
    }
}

/// How full one family's table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Prefixes in it.
    pub prefixes: usize,
    /// Bytes that its nodes take.
    pub used: usize,
    /// Bytes that wait for workers to pass a turn.
    pub waiting: usize,
    /// Bytes there are for nodes; on ordinary memory only those that were ever used are really taken.
    pub total: usize,
    /// Bytes of ordinary memory that the writer takes for its own books.
    pub book: usize,
    /// True if the table is on huge pages.
    pub hugepages: bool,
}

/// What workers read.
#[derive(Clone, Debug)]
pub struct Fib {
    v4: Arc<Trie>,
    v6: Arc<Trie>,
}

impl Fib {
    /// The hop of an IPv4 address, or [`NO_ROUTE`].
    #[inline]
    pub fn lookup_v4(&self, address: [u8; 4]) -> u32 {
        let [a, b, c, d] = address;
        self.v4.lookup(&[a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// The hop of an IPv6 address, or [`NO_ROUTE`].
    #[inline]
    pub fn lookup_v6(&self, address: &[u8; 16]) -> u32 {
        self.v6.lookup(address)
    }

    /// The hop of an address, or [`NO_ROUTE`].
    pub fn lookup(&self, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(address) => self.lookup_v4(address.octets()),
            IpAddr::V6(address) => self.lookup_v6(&address.octets()),
        }
    }

    /// The hops of the packets of a batch that `mask` names and that have an IPv4 address, in the first four bytes as in
    /// [`Meta`](crate::packet::Meta). The packets without one are the result; other hops stay as they are.
    #[inline]
    pub fn lookup_batch_v4<'a>(
        &self,
        mask: Mask,
        address: impl Fn(usize) -> Option<&'a [u8; 16]>,
        hops: &mut [u32; BATCH],
    ) -> Mask {
        self.v4.lookup_batch(mask, address, hops)
    }

    /// Likewise of those that have an IPv6 address.
    #[inline]
    pub fn lookup_batch_v6<'a>(
        &self,
        mask: Mask,
        address: impl Fn(usize) -> Option<&'a [u8; 16]>,
        hops: &mut [u32; BATCH],
    ) -> Mask {
        self.v6.lookup_batch(mask, address, hops)
    }
}

/// The one that changes it.
#[derive(Debug)]
pub struct FibWriter {
    v4: Book,
    v6: Book,
}

impl FibWriter {
    /// An empty table. The readers of [`FibWriter::fib`] must be the workers of `epochs`, present there whenever they look up.
    pub fn new(capacity: Capacity, epochs: &Arc<Epochs>) -> io::Result<FibWriter> {
        let (v4, v6) = capacity.lines();
        Ok(FibWriter { v4: Book::new(v4, epochs.clone())?, v6: Book::new(v6, epochs.clone())? })
    }

    /// What workers read.
    pub fn fib(&self) -> Fib {
        Fib { v4: self.v4.trie().clone(), v6: self.v6.trie().clone() }
    }

    /// Leads a prefix to a hop (1 to [`MAX_HOP`]); the old hop is returned if it had one, and is replaced even in a full table.
    /// Bits behind the prefix do not matter. A full table waits for workers that are in the midst of a turn before it gives up.
    pub fn insert(&mut self, prefix: IpNet, hop: u32) -> Result<Option<u32>, Full> {
        debug_assert!((1..=MAX_HOP).contains(&hop), "hop {hop} of {prefix}");
        let (book, address, len) = self.book_mut(prefix);
        book.insert(&address, len, hop)
    }

    /// Forgets a prefix; its hop is returned if it was there. Cannot fail, however full the table is.
    pub fn remove(&mut self, prefix: IpNet) -> Option<u32> {
        let (book, address, len) = self.book_mut(prefix);
        book.remove(&address, len)
    }

    /// The hop of exactly this prefix.
    pub fn get(&self, prefix: IpNet) -> Option<u32> {
        let (address, len) = key(prefix);
        if matches!(prefix, IpNet::V4(_)) { self.v4.get(&address, len) } else { self.v6.get(&address, len) }
    }

    /// All prefixes with their hops: IPv4 first, else in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, u32)> {
        let v4 = self.v4.iter().filter_map(|([a, b, c, d, ..], len, hop)| {
            Some((Ipv4Net::new(Ipv4Addr::new(a, b, c, d), len).ok()?.into(), hop))
        });
        let v6 = self
            .v6
            .iter()
            .filter_map(|(address, len, hop)| Some((Ipv6Net::new(Ipv6Addr::from(address), len).ok()?.into(), hop)));
        v4.chain(v6)
    }

    /// How full the tables for IPv4 and IPv6 are.
    pub fn occupancy(&self) -> (Occupancy, Occupancy) {
        (self.v4.occupancy(), self.v6.occupancy())
    }

    /// Frees memory that no worker can be reading any more. Changes do so by themselves; called now and then, it also frees what
    /// the last of them left.
    pub fn reclaim(&mut self) {
        self.v4.reclaim();
        self.v6.reclaim();
    }

    fn book_mut(&mut self, prefix: IpNet) -> (&mut Book, [u8; 16], u8) {
        let (address, len) = key(prefix);
        (if matches!(prefix, IpNet::V4(_)) { &mut self.v4 } else { &mut self.v6 }, address, len)
    }
}

/// A prefix as the tries take it.
fn key(prefix: IpNet) -> ([u8; 16], u8) {
    match prefix {
        IpNet::V4(prefix) => {
            let [a, b, c, d] = prefix.network().octets();
            ([a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], prefix.prefix_len())
        }
        IpNet::V6(prefix) => (prefix.network().octets(), prefix.prefix_len()),
    }
}

#[cfg(test)]
mod tests;
