//! What a translation rule asks of a packet: its ports, addresses and services, compared in turn.
//!
//! A rule is asked once for each new flow, and for each packet only where packets may have to change the worker, so that a
//! plain comparison will do.

use std::ops::RangeInclusive;

use crate::config::names::{Detail, Names, Service};
use crate::config::source::{At, Mistakes};
use crate::packet::Meta;
use crate::packet::meta::flag;
use crate::stage::acl::{Addresses, gather};
use crate::stage::classes::prefix_mask;
use crate::stage::ingress::Ports;
use crate::wire::protocol;

/// Addresses of both families: sorted, disjoint ranges of numbers; an IPv4 address stands in the first 32 of 128 bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

impl Spans {
    /// From prefixes.
    pub fn of(addresses: &Addresses) -> Spans {
        let spans = |prefixes: &[(u128, u8)]| {
            let mut spans: Vec<_> = prefixes.iter().map(|(bits, len)| (*bits, bits | !prefix_mask(*len))).collect();
            spans.sort_unstable();
            spans
        };
        Spans { v4: spans(&addresses.v4), v6: spans(&addresses.v6) }
    }

    /// The ranges of a family.
    pub fn family(&self, v6: bool) -> &[(u128, u128)] {
        if v6 { &self.v6 } else { &self.v4 }
    }

    /// Adds the addresses of others.
    pub fn extend(&mut self, other: &Spans) {
        let merged = |spans: &mut Vec<(u128, u128)>, more: &[(u128, u128)]| {
            spans.extend_from_slice(more);
            spans.sort_unstable();
            let mut merged: Vec<(u128, u128)> = Vec::with_capacity(spans.len());
            for (first, last) in spans.drain(..) {
                match merged.last_mut() {
                    Some(before) if first <= before.1 => before.1 = before.1.max(last),
                    _ => merged.push((first, last)),
                }
            }
            *spans = merged;
        };
        merged(&mut self.v4, &other.v4);
        merged(&mut self.v6, &other.v6);
    }

    /// Without the addresses of families of which others have none.
    pub fn of_families(mut self, others: &Spans) -> Spans {
        if others.v4.is_empty() {
            self.v4.clear();
        }
        if others.v6.is_empty() {
            self.v6.clear();
        }
        self
    }

    /// All addresses.
    pub fn all() -> Spans {
        Spans { v4: vec![(0, u128::MAX)], v6: vec![(0, u128::MAX)] }
    }

    /// True if nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// True if an address of `Meta`, of the given family, is in it.
    #[inline]
    pub fn contains(&self, address: &[u8; 16], v6: bool) -> bool {
        let number = u128::from_be_bytes(*address);
        // The tail of an IPv4 range is all ones, the address's all zeros: first <= address <= last holds as it should.
        let spans = self.family(v6);
        spans.get(spans.partition_point(|(_, last)| *last < number)).is_some_and(|(first, _)| *first <= number)
    }
}

/// The part of rules that both stages have, as written.
#[derive(Clone, Copy)]
pub struct Written<'a> {
    /// Zones and ports packets come from.
    pub from: &'a [At<String>],
    /// Zones and ports they leave by.
    pub to: &'a [At<String>],
    /// Source addresses.
    pub source: &'a [At<String>],
    /// Destination addresses.
    pub destination: &'a [At<String>],
    /// Services.
    pub service: &'a [At<String>],
}

/// What a rule asks of a packet.
#[derive(Clone, Debug)]
pub struct Match {
    /// Ports packets come from.
    pub from: Ports,
    /// Ports they leave by.
    pub to: Ports,
    /// Source addresses; any if not given.
    pub source: Option<Spans>,
    /// Destination addresses; any if not given.
    pub destination: Option<Spans>,
    /// Services; any if empty.
    pub services: Vec<Service>,
}

impl Match {
    /// Resolves names; `None` after noting at least one mistake.
    pub fn resolve(written: Written<'_>, key: &str, names: &Names, mistakes: &mut Mistakes) -> Option<Match> {
        let from = Ports::resolve(written.from, names, &format!("{key}.from"), mistakes);
        let to = Ports::resolve(written.to, names, &format!("{key}.to"), mistakes);
        let mut spans = |list: &[At<String>], word: &str| match list {
            [] => Some(None),
            list if list.iter().any(|text| text.value == "any") => Some(None),
            list => {
                let named = names.resolve_addresses(list, &format!("{key}.{word}"), mistakes)?;
                Some(Some(Spans::of(&gather(&named, names))))
            }
        };
        let (source, destination) = (spans(written.source, "source"), spans(written.destination, "destination"));
        let services = names.resolve_services(written.service, &format!("{key}.service"), mistakes);
        Some(Match { from: from?, to: to?, source: source?, destination: destination?, services: services? })
    }

    /// Asks for packets of the families alone that a translation to these addresses can be of; false if there are none.
    pub fn restrict(&mut self, to: &Spans) -> bool {
        let source = self.source.take().unwrap_or_else(Spans::all).of_families(to);
        let both = self.destination.as_ref().map_or(source.clone(), |spans| source.clone().of_families(spans));
        self.source = Some(source);
        !both.is_empty()
    }

    /// True of the addresses of an IP packet. Without a destination in the rule, multicast and broadcast are none: who names
    /// no destination does not mean those.
    #[inline]
    pub fn is_between(&self, meta: &Meta) -> bool {
        let v6 = meta.has(flag::IPV6);
        self.source.as_ref().is_none_or(|spans| spans.contains(&meta.src, v6))
            && match &self.destination {
                Some(spans) => spans.contains(&meta.dst, v6),
                None if v6 => meta.dst[0] != 0xff,
                None => meta.dst[0] & 0xf0 != 0xe0 && meta.dst[..4] != [0xff; 4],
            }
    }

    /// Which of its services the packet is of, the first; 0 if it names none.
    #[inline]
    pub fn service(&self, meta: &Meta) -> Option<usize> {
        if self.services.is_empty() {
            return Some(0);
        }
        let told = meta.flags & (flag::LATER_FRAGMENT | flag::BORROWED) != flag::LATER_FRAGMENT;
        let icmp = matches!(meta.proto, protocol::ICMP | protocol::ICMPV6);
        self.services.iter().position(|service| {
            service.proto == meta.proto
                && match &service.detail {
                    Detail::Any => true,
                    Detail::Ports(range) => told && !icmp && meta.has(flag::PORTS) && range.contains(&meta.dport),
                    Detail::Icmp(kind, code) => {
                        let shown = told && icmp && meta.any(flag::L4 | flag::BORROWED);
                        shown && meta.detail[0] == *kind && code.is_none_or(|code| code == meta.detail[1])
                    }
                }
        })
    }
}

/// Reads `8000` or `8000-8010`.
pub fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_hold_what_their_prefixes_hold() {
        let v4 = |text: &str| {
            let net: ipnet::Ipv4Net = text.parse().expect("prefix");
            (u128::from(u32::from(net.network())) << 96, net.prefix_len())
        };
        let mut spans = Spans::of(&Addresses { v4: vec![v4("192.0.2.8/29"), v4("10.0.0.0/8")], v6: vec![] });
        spans.extend(&Spans::of(&Addresses { v4: vec![v4("192.0.2.9/32"), v4("192.0.2.0/29")], v6: vec![] }));
        let wide = |address: [u8; 4]| std::array::from_fn(|at| address.get(at).copied().unwrap_or(0));
        for (address, within) in
            [([192, 0, 2, 15], true), ([192, 0, 2, 16], false), ([192, 0, 2, 0], true), ([9, 255, 255, 255], false)]
        {
            assert_eq!(spans.contains(&wide(address), false), within, "{address:?}");
            assert!(!spans.contains(&wide(address), true));
        }
        assert_eq!(
            (port_range("80"), port_range("80 - 90"), port_range("90-80")),
            (Some(80..=80), Some(80..=90), None)
        );
    }
}
