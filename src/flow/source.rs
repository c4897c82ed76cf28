//! A packet's source as a key: the prefix it falls into, and a hash that an attacker cannot aim.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::Meta;
use crate::packet::meta::flag;

/// The source prefix of an IP packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// The address in wire order, masked, as a number; an IPv4 address is the first 32 bits.
    pub bits: u128,
    /// True for IPv6.
    pub v6: bool,
}

/// How much of a source address counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    v4: u128,
    v6: u128,
}

impl Prefixes {
    /// Prefix lengths of the two families, at most 32 and 128.
    pub fn new(v4: u8, v6: u8) -> Prefixes {
        let mask = |len: u8| u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        Prefixes { v4: mask(v4), v6: mask(v6) }
    }

    /// The source of a packet; `None` if it is not IP.
    #[inline]
    pub fn source(&self, meta: &Meta) -> Option<Source> {
        let bits = u128::from_be_bytes(meta.src);
        if meta.has(flag::IPV4) {
            Some(Source { bits: bits & self.v4, v6: false })
        } else if meta.has(flag::IPV6) {
            Some(Source { bits: bits & self.v6, v6: true })
        } else {
            None
        }
    }
}

impl Source {
    /// Its first address.
    pub fn address(&self) -> IpAddr {
        if self.v6 {
            IpAddr::V6(Ipv6Addr::from_bits(self.bits))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits((self.bits >> 96) as u32))
        }
    }
}

/// A key for hashing sources. Folded multiplication, as in wyhash: not linear, so that who does not know the key cannot
/// choose sources that collide.
#[derive(Clone, Copy, Debug)]
pub struct HashKey([u64; 3]);

impl HashKey {
    /// A key nobody knows.
    pub fn random() -> HashKey {
        // The standard library seeds this from the operating system.
        let state = RandomState::new();
        HashKey([0u8, 1, 2].map(|n| state.hash_one(n) | 1))
    }

    /// The hash of a source.
    #[inline]
    pub fn hash(&self, source: &Source) -> u64 {
        self.hash_for(source, 0)
    }

    /// The hash of a source for one of several purposes, below 2^63.
    #[inline]
    pub fn hash_for(&self, source: &Source, purpose: u64) -> u64 {
        let [a, b, c] = self.0;
        let first = fold((source.bits >> 64) as u64 ^ a, source.bits as u64 ^ b);
        fold(first ^ c, a ^ (purpose << 1 | u64::from(source.v6)))
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_mask_and_hashes_spread() {
        let mut meta = Meta { flags: flag::IPV4, ..Meta::UNKNOWN };
        meta.src[..4].copy_from_slice(&[192, 0, 2, 77]);
        let source = Prefixes::new(24, 64).source(&meta).expect("IP");
        assert_eq!(source.address().to_string(), "192.0.2.0");
        assert_eq!(Prefixes::new(0, 0).source(&meta).map(|s| s.bits), Some(0));
        meta.flags = flag::IPV6;
        meta.src = "2001:db8::1".parse::<Ipv6Addr>().expect("address").octets();
        assert_eq!(Prefixes::new(32, 64).source(&meta).expect("IP").address().to_string(), "2001:db8::");
        meta.flags = flag::ARP;
        assert_eq!(Prefixes::new(32, 128).source(&meta), None);

        let key = HashKey::random();
        let mut buckets = [0u32; 64];
        for n in 0..6_400u128 {
            buckets[(key.hash(&Source { bits: n << 96, v6: false }) & 63) as usize] += 1;
        }
        assert!(buckets.iter().all(|n| (40..200).contains(n)), "{buckets:?}");
    }
}
