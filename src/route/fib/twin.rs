//! The table's twin: the same answers by trying every length, for tests to compare with.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::NO_ROUTE;

/// Prefixes with their hops.
#[derive(Clone, Debug, Default)]
pub struct Twin(HashMap<IpNet, u32>);

impl Twin {
    /// As [`FibWriter::insert`](super::FibWriter::insert), but never full.
    pub fn insert(&mut self, prefix: IpNet, hop: u32) -> Option<u32> {
        self.0.insert(prefix.trunc(), hop)
    }

    /// As [`FibWriter::remove`](super::FibWriter::remove).
    pub fn remove(&mut self, prefix: IpNet) -> Option<u32> {
        self.0.remove(&prefix.trunc())
    }

    /// As [`Fib::lookup`](super::Fib::lookup).
    pub fn lookup(&self, address: IpAddr) -> u32 {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefixes = (0..=longest).rev().filter_map(|len| Some(IpNet::new(address, len).ok()?.trunc()));
        prefixes.filter_map(|prefix| self.0.get(&prefix)).copied().next().unwrap_or(NO_ROUTE)
    }

    /// All prefixes with their hops, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, u32)> {
        self.0.iter().map(|(prefix, hop)| (*prefix, *hop))
    }
}
