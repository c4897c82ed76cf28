//! Is an address in a list of prefixes? One table lookup per family, however long the list.
//!
//! Owns the step from what the file names (prefixes, sets) to the class tables; the tables themselves are `classes`.

use crate::config::names::{Addresses, Names};
use crate::packet::Meta;
use crate::packet::meta::flag;

use super::classes::{Classes, Prefix};

/// A set of addresses of both families.
#[derive(Debug)]
pub struct PrefixSet {
    v4: Option<Classes>,
    v6: Option<Classes>,
    prefixes: usize,
}

impl PrefixSet {
    /// The set a resolved list of addresses covers; `None` if it covers nothing.
    pub fn new(addresses: &Addresses, names: &Names) -> Option<PrefixSet> {
        let sets = || addresses.sets.iter().filter_map(|set| names.sets.get(*set));
        let v4: Vec<Prefix> = sets()
            .flat_map(|set| &set.v4)
            .chain(&addresses.v4)
            .map(|net| (u128::from(u32::from(net.network())) << 96, net.prefix_len()))
            .collect();
        let v6: Vec<Prefix> = sets()
            .flat_map(|set| &set.v6)
            .chain(&addresses.v6)
            .map(|net| (u128::from(net.network()), net.prefix_len()))
            .collect();
        PrefixSet::from_prefixes(&v4, &v6)
    }

    /// The same from bits: an IPv4 prefix in the first 32 of 128.
    pub fn from_prefixes(v4: &[Prefix], v6: &[Prefix]) -> Option<PrefixSet> {
        // One set has two classes at most, so the table always has room for them.
        let table = |prefixes: &[Prefix]| (!prefixes.is_empty()).then(|| Classes::new(&[prefixes])).flatten();
        let prefixes = v4.len() + v6.len();
        (prefixes > 0).then(|| PrefixSet { v4: table(v4), v6: table(v6), prefixes })
    }

    /// True if `address`, the source or destination of the packet that `meta` is about, is in the set. The sender of an ARP
    /// message counts as an IPv4 address.
    #[inline]
    pub fn contains(&self, meta: &Meta, address: &[u8; 16]) -> bool {
        let table = if meta.has(flag::IPV6) {
            &self.v6
        } else if meta.any(flag::IPV4 | flag::ARP) {
            &self.v4
        } else {
            return false;
        };
        // In `Meta` an IPv4 address is four bytes with zeros behind: the first 32 bits, as the table wants it.
        table.as_ref().is_some_and(|table| table.class(u128::from_be_bytes(*address)) != 0)
    }

    /// Its size and place, for people.
    pub fn describe(&self) -> String {
        let hugepages = [&self.v4, &self.v6].into_iter().flatten().any(Classes::hugepages);
        let place = if hugepages { " on hugepages" } else { "" };
        format!("{} prefixes, {} KiB{place}", self.prefixes, self.bytes() >> 10)
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        [&self.v4, &self.v6].into_iter().flatten().map(Classes::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::classes::prefix_mask;
    use proptest::prelude::*;

    fn of(flags: u16, address: u128) -> Meta {
        Meta { flags, src: address.to_be_bytes(), ..Meta::UNKNOWN }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn agrees_with_a_scan(
            v4 in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..40),
            v6 in proptest::collection::vec((any::<u128>(), 0u8..=128), 0..40),
            near in any::<prop::sample::Index>(), noise in any::<u128>(), keep in 0u8..=128,
        ) {
            let v4: Vec<Prefix> = v4.iter().map(|(bits, len)| (u128::from(*bits) << 96, *len)).collect();
            let naive = |list: &[Prefix], address: u128| {
                list.iter().any(|(bits, len)| (address ^ bits) & prefix_mask(*len) == 0)
            };
            let set = PrefixSet::from_prefixes(&v4, &v6);
            for (list, flags, width) in [(&v4, flag::IPV4, 32), (&v6, flag::IPV6, 128)] {
                // An address that shares `keep` bits with a prefix of the list, so that both answers come up.
                let base = if list.is_empty() { noise } else { list[near.index(list.len())].0 };
                let address = (base & prefix_mask(keep) | noise & !prefix_mask(keep)) & prefix_mask(width);
                let meta = of(flags, address);
                prop_assert_eq!(set.as_ref().is_some_and(|set| set.contains(&meta, &meta.src)), naive(list, address));
            }
        }
    }

    #[test]
    fn a_hundred_thousand_prefixes() {
        let v4: Vec<Prefix> = (0..100_000u128).map(|n| (((n * 40_503) & 0x00ff_ffff) << 104, 24)).collect();
        let set = PrefixSet::from_prefixes(&v4, &[]).expect("not empty");
        let all = v4.iter().all(|(bits, _)| {
            let meta = of(flag::IPV4, bits | 7 << 96);
            set.contains(&meta, &meta.src)
        });
        assert!(all);
        let listed: std::collections::HashSet<u128> = v4.iter().map(|(bits, _)| bits >> 104).collect();
        let absent = (0..1 << 24).find(|n| !listed.contains(n)).expect("room") << 104;
        let meta = of(flag::IPV4, absent);
        assert!(!set.contains(&meta, &meta.src));
        assert!(set.bytes() < 8 << 20, "{}", set.bytes());
    }

    #[test]
    fn families_do_not_mix() {
        let set = PrefixSet::from_prefixes(&[(0, 0)], &[]).expect("not empty");
        let meta = of(flag::IPV6, 1);
        assert!(!set.contains(&meta, &meta.src));
        let meta = of(flag::ARP, 1 << 127);
        assert!(set.contains(&meta, &meta.src));
        assert!(PrefixSet::from_prefixes(&[], &[]).is_none());
    }
}
