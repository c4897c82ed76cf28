//! Sets of prefixes in the shape of the Internet's tables, repeatable.
//!
//! Lengths as seen by a router without a default route in 2024; most prefixes inside or beside others.

use std::collections::HashSet;

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 prefixes by length, from /8 to /24.
const LENGTHS_V4: [u32; 17] =
    [16, 13, 40, 100, 300, 600, 1_200, 2_000, 13_500, 8_300, 14_000, 25_000, 44_000, 52_000, 108_000, 100_000, 590_000];
/// IPv6 lengths and how many in a thousand have them.
const LENGTHS_V6: [(u8, u32); 20] = [
    (20, 1),
    (24, 2),
    (28, 4),
    (29, 25),
    (30, 5),
    (32, 105),
    (33, 15),
    (34, 12),
    (35, 8),
    (36, 35),
    (38, 12),
    (40, 70),
    (42, 18),
    (44, 80),
    (45, 8),
    (46, 25),
    (47, 20),
    (48, 540),
    (56, 5),
    (64, 10),
];
/// What the registries give addresses of: first 16 bits, and how many values from there.
const BLOCKS_V6: [(u16, u16); 8] =
    [(0x2001, 1), (0x2400, 16), (0x2600, 8), (0x2610, 1), (0x2620, 1), (0x2800, 7), (0x2a00, 21), (0x2c0f, 1)];

/// A small generator of repeatable numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Numbered(pub u64);

impl Numbered {
    /// The next of 64 bits.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next below a bound.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// An address of a prefix.
    pub fn within(&mut self, prefix: IpNet) -> IpAddr {
        match prefix {
            IpNet::V4(net) => {
                let host = self.next() as u32 & u32::from(net.hostmask());
                Ipv4Addr::from(u32::from(net.network()) | host).into()
            }
            IpNet::V6(net) => {
                let host = (u128::from(self.next()) << 64 | u128::from(self.next())) & u128::from(net.hostmask());
                Ipv6Addr::from(u128::from(net.network()) | host).into()
            }
        }
    }
}

/// So many different IPv4 prefixes.
pub fn v4(count: usize, random: &mut Numbered) -> Vec<IpNet> {
    let weights: Vec<(u8, u32)> = (8..).zip(LENGTHS_V4).collect();
    let anywhere = |random: &mut Numbered| {
        let first = 1 + random.below(223) as u32;
        u128::from(first << 24 | random.next() as u32 >> 8) << 96
    };
    let of = |bits: u128, len| IpNet::new(Ipv4Addr::from((bits >> 96) as u32).into(), len);
    generate(count, random, &weights, anywhere, |bits, len| of(bits, len).ok())
}

/// So many different IPv6 prefixes.
pub fn v6(count: usize, random: &mut Numbered) -> Vec<IpNet> {
    let anywhere = |random: &mut Numbered| {
        let (first, values) = BLOCKS_V6[random.below(BLOCKS_V6.len())];
        u128::from(first + random.below(values.into()) as u16) << 112 | u128::from(random.next()) << 48
    };
    generate(count, random, &LENGTHS_V6, anywhere, |bits, len| IpNet::new(Ipv6Addr::from(bits).into(), len).ok())
}

fn generate(
    count: usize,
    random: &mut Numbered,
    weights: &[(u8, u32)],
    anywhere: impl Fn(&mut Numbered) -> u128,
    of: impl Fn(u128, u8) -> Option<IpNet>,
) -> Vec<IpNet> {
    let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
    let mut known: Vec<(u128, u8)> = Vec::with_capacity(count);
    let (mut prefixes, mut seen) = (Vec::with_capacity(count), HashSet::with_capacity(count));
    while prefixes.len() < count {
        let mut left = random.below(total as usize) as u32;
        let len = weights
            .iter()
            .find(|(_, weight)| {
                left < *weight || {
                    left -= weight;
                    false
                }
            })
            .map_or(0, |(len, _)| *len);
        let noise = u128::from(random.next()) << 64 | u128::from(random.next());
        let near = (!known.is_empty()).then(|| known[random.below(known.len())]);
        let bits = match near {
            // Three of four inside another one, which is given away in pieces, or next to one.
            Some((bits, outer)) if outer < len && random.below(4) != 0 => bits | noise >> outer,
            Some((bits, other)) if other == len && random.below(2) == 0 => bits ^ 1 << (128 - u32::from(len)),
            _ => anywhere(random),
        };
        if let Some(prefix) = of(bits, len).map(|prefix| prefix.trunc()).filter(|prefix| seen.insert(*prefix)) {
            known.push((bits & !(u128::MAX >> len), len));
            prefixes.push(prefix);
        }
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_asked_all_different_and_mostly_long() {
        for (prefixes, len) in [(v4(20_000, &mut Numbered(1)), 24), (v6(20_000, &mut Numbered(1)), 48)] {
            assert_eq!(prefixes.iter().collect::<HashSet<_>>().len(), 20_000);
            let long = prefixes.iter().filter(|prefix| prefix.prefix_len() == len).count();
            assert!((9_000..15_000).contains(&long), "{long} of /{len}");
            assert!(prefixes.iter().all(|prefix| prefix.addr() == prefix.network()));
        }
        assert_eq!(v4(100, &mut Numbered(5)), v4(100, &mut Numbered(5)));
    }

    #[test]
    fn addresses_are_within_their_prefix() {
        let mut random = Numbered(2);
        for prefix in v4(100, &mut Numbered(3)).into_iter().chain(v6(100, &mut Numbered(3))) {
            assert!(prefix.contains(&random.within(prefix)));
        }
    }
}
