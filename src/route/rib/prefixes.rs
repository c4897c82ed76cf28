//! Prefixes and what there is of each, in few bytes: a million of them is the ordinary case.
//!
//! Found by a hash of address and length. The longest match asks once for each length there is: nothing a worker does, and
//! seldom done on control.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::slab::Slab;

/// Nothing, where an index could be.
pub const NONE: u32 = u32::MAX;

/// Marks the index of an IPv6 prefix.
const V6: u32 = 1 << 31;

/// What there is of a prefix.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// The best of its routes, which leads to the others.
    pub first: u32,
    /// The hop that stands in the forwarding table; 0 if it is not there.
    pub written: u32,
}

/// Address in wire order, then the length.
type Key<const N: usize> = [u8; N];

#[derive(Clone, Copy, Debug)]
struct Record<const N: usize> {
    key: Key<N>,
    held: Held,
}

impl<const N: usize> Default for Record<N> {
    fn default() -> Record<N> {
        Record { key: [0; N], held: Held { first: NONE, written: 0 } }
    }
}

#[derive(Debug)]
struct Family<const N: usize> {
    indices: HashMap<Key<N>, u32>,
    records: Slab<Record<N>>,
    /// How many there are of each length.
    lengths: Vec<u32>,
}

impl<const N: usize> Family<N> {
    const BITS: usize = (N - 1) * 8;

    fn new() -> Family<N> {
        Family { indices: HashMap::new(), records: Slab::new(), lengths: vec![0; Self::BITS + 1] }
    }

    fn insert(&mut self, key: Key<N>) -> u32 {
        *self.indices.entry(key).or_insert_with(|| {
            self.lengths[usize::from(key[N - 1])] += 1;
            self.records.insert(Record { key, ..Record::default() })
        })
    }

    fn remove(&mut self, index: u32) {
        let key = self.records.remove(index).key;
        self.lengths[usize::from(key[N - 1])] -= 1;
        self.indices.remove(&key);
    }

    /// Those that cover an address, the longest first.
    fn covering(&self, mut key: Key<N>) -> impl Iterator<Item = u32> + '_ {
        (0..=Self::BITS).rev().filter_map(move |length| {
            if length < Self::BITS {
                key[length / 8] &= !(0x80 >> (length % 8));
            }
            key[N - 1] = length as u8;
            (self.lengths[length] > 0).then(|| self.indices.get(&key).copied()).flatten()
        })
    }
}

fn key4(net: Ipv4Net) -> Key<5> {
    let [a, b, c, d] = net.network().octets();
    [a, b, c, d, net.prefix_len()]
}

fn key6(net: Ipv6Net) -> Key<17> {
    let mut key = [0; 17];
    key[..16].copy_from_slice(&net.network().octets());
    key[16] = net.prefix_len();
    key
}

/// All prefixes of both families.
#[derive(Debug)]
pub struct Prefixes {
    v4: Family<5>,
    v6: Family<17>,
}

impl Prefixes {
    /// None.
    pub fn new() -> Prefixes {
        Prefixes { v4: Family::new(), v6: Family::new() }
    }

    /// The index of a prefix, which is remembered if it was not. Bits behind its length do not count.
    pub fn insert(&mut self, net: IpNet) -> u32 {
        match net {
            IpNet::V4(net) => self.v4.insert(key4(net)),
            IpNet::V6(net) => self.v6.insert(key6(net)) | V6,
        }
    }

    /// The index of a prefix, if it is known.
    pub fn find(&self, net: IpNet) -> Option<u32> {
        match net {
            IpNet::V4(net) => self.v4.indices.get(&key4(net)).copied(),
            IpNet::V6(net) => self.v6.indices.get(&key6(net)).map(|index| index | V6),
        }
    }

    /// Forgets one.
    pub fn remove(&mut self, index: u32) {
        if index & V6 == 0 { self.v4.remove(index) } else { self.v6.remove(index & !V6) }
    }

    /// The prefix at an index.
    pub fn net(&self, index: u32) -> IpNet {
        if index & V6 == 0 {
            let [a, b, c, d, length] = self.v4.records[index].key;
            Ipv4Net::new_assert([a, b, c, d].into(), length).into()
        } else {
            let key = self.v6.records[index & !V6].key;
            let octets: [u8; 16] = std::array::from_fn(|at| key[at]);
            Ipv6Net::new_assert(octets.into(), key[16]).into()
        }
    }

    /// What there is of it.
    pub fn at(&self, index: u32) -> Held {
        if index & V6 == 0 { self.v4.records[index].held } else { self.v6.records[index & !V6].held }
    }

    /// The same, to change it.
    pub fn at_mut(&mut self, index: u32) -> &mut Held {
        if index & V6 == 0 { &mut self.v4.records[index].held } else { &mut self.v6.records[index & !V6].held }
    }

    /// Those that cover an address, the longest first.
    pub fn covering(&self, address: IpAddr) -> impl Iterator<Item = u32> + '_ {
        let (v4, v6) = match address {
            IpAddr::V4(address) => (Some(self.v4.covering(key4(address.into()))), None),
            IpAddr::V6(address) => (None, Some(self.v6.covering(key6(address.into())).map(|index| index | V6))),
        };
        v4.into_iter().flatten().chain(v6.into_iter().flatten())
    }

    /// All indices.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.v4.indices.values().copied().chain(self.v6.indices.values().map(|index| index | V6))
    }

    /// How many there are, IPv4 and IPv6.
    pub fn len(&self) -> (usize, usize) {
        (self.v4.records.len(), self.v6.records.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_prefix_takes_few_bytes() {
        assert_eq!((size_of::<Record<5>>(), size_of::<(Key<5>, u32)>()), (16, 12));
        assert_eq!((size_of::<Record<17>>(), size_of::<(Key<17>, u32)>()), (28, 24));
    }

    proptest! {
        #[test]
        fn the_longest_match_is_the_naive_one(
            nets in prop::collection::vec((any::<u32>(), 0_u8..33, 0_u8..129, any::<bool>()), 1..60),
            probes in prop::collection::vec(any::<u32>(), 1..40),
        ) {
            // Few different bits, so that prefixes nest.
            let v4 = |n: u32| std::net::Ipv4Addr::from(n & 0xc081_0103);
            let v6 = |n: u32| std::net::Ipv6Addr::from(u128::from(n & 0xc081_0103) * 0x0001_0000_8000_0001_0000_0001);
            let (mut prefixes, mut naive) = (Prefixes::new(), Vec::<IpNet>::new());
            for (n, short, long, away) in nets {
                for net in [
                    IpNet::from(Ipv4Net::new_assert(v4(n), short).trunc()),
                    Ipv6Net::new_assert(v6(n), long).trunc().into(),
                ] {
                    let index = prefixes.insert(net);
                    prop_assert_eq!(prefixes.net(index), net);
                    prop_assert_eq!(prefixes.find(net), Some(index));
                    naive.retain(|other| *other != net);
                    if away { prefixes.remove(index) } else { naive.push(net) }
                }
            }
            prop_assert_eq!(prefixes.len().0 + prefixes.len().1, naive.len());
            for probe in probes {
                for address in [IpAddr::from(v4(probe)), v6(probe).into()] {
                    let found: Vec<IpNet> = prefixes.covering(address).map(|index| prefixes.net(index)).collect();
                    let mut expected: Vec<IpNet> = naive.iter().filter(|net| net.contains(&address)).copied().collect();
                    expected.sort_by_key(|net| std::cmp::Reverse(net.prefix_len()));
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }
}
