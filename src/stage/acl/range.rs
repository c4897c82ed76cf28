//! What the rules say of a whole range of packets, exactly: a first-match walk over sets.
//!
//! A range is a product of sets, one for each thing that rules ask of a packet. The walk takes from it what the first rule
//! matches, then from what is left what the second matches, and so on; the default decides of the rest. It reads the resolved
//! rules, not the compiled ones: that both agree is what the tests of the acl and of `policy` are for.
//!
//! Owns sets of packets; knows no expectation.

use std::ops::ControlFlow;

use crate::config::names::{Detail, Names};
use crate::config::source::Mistakes;
use crate::stage::classes::{Prefix, prefix_mask};
use crate::wire::{ipv6, protocol};

use super::compile::{Action, Rule};
use super::matcher::UNTAGGED;
use super::{Config, Fallback, PORT_PROTOCOLS, resolve};

/// From the first to the last number, both included.
pub type Span = (u128, u128);

/// What rules ask of a packet, in the order in which ranges are split.
pub mod dimension {
    /// IANA protocol number.
    pub const PROTOCOL: usize = 0;
    /// Destination port, or ICMP type and code as one number of 16 bits.
    pub const DPORT: usize = 1;
    /// Destination address; IPv4 in the first 32 of 128 bits.
    pub const DESTINATION: usize = 2;
    /// Source address, likewise.
    pub const SOURCE: usize = 3;
    /// Source port.
    pub const SPORT: usize = 4;
    /// VLAN id, or 4096 for none.
    pub const VLAN: usize = 5;
    /// How many there are.
    pub const COUNT: usize = 6;
}
use dimension::{COUNT, DESTINATION, DPORT, PROTOCOL, SOURCE, SPORT, VLAN};

/// Every number of so many values.
const fn all(values: u128) -> Span {
    (0, values - 1)
}
const PORTS: Span = all(1 << 16);
const VLANS: Span = all(UNTAGGED as u128 + 1);

/// A range of packets of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// IPv6.
    pub v6: bool,
    /// They show a transport header whose ports, or type and code, rules can see. Others (later fragments, and protocols
    /// without ports) are in ranges of their own, in which `DPORT` and `SPORT` mean nothing.
    pub transport: bool,
    /// By [`dimension`], disjoint and sorted.
    pub sets: [Vec<Span>; COUNT],
}

/// What a range is of, before it is known to which family and shape it belongs. Empty lists mean anything.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The protocol.
    pub protocol: Option<u8>,
    /// Source addresses, by family: prefixes.
    pub source: [Vec<Prefix>; 2],
    /// Destination addresses, likewise.
    pub destination: [Vec<Prefix>; 2],
    /// Source ports.
    pub sport: Option<Span>,
    /// Destination ports; or type and code.
    pub dport: Option<Span>,
    /// VLAN id, or 4096 for none.
    pub vlan: Option<u16>,
    /// True for later fragments only, false for whole packets only; none for both.
    pub fragment: Option<bool>,
}

impl Wanted {
    /// The ranges it stands for.
    pub fn ranges(&self) -> Vec<Range> {
        let mut ranges = Vec::new();
        for v6 in [false, true] {
            let addresses = |of: &[Vec<Prefix>; 2]| merge(of[usize::from(v6)].iter().map(span).collect());
            let (source, destination) = (addresses(&self.source), addresses(&self.destination));
            if source.is_empty() || destination.is_empty() {
                continue;
            }
            let icmp = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
            let shows = |number: u8| PORT_PROTOCOLS.contains(&number) || number == icmp;
            // In IPv6 an extension header's number is never the transport protocol's.
            let numbers = || (0..=255u8).filter(|n| self.protocol.is_none_or(|only| only == *n) && !(v6 && ipv6::is_extension(*n)));
            let vlan = vec![self.vlan.map_or(VLANS, |id| (id.into(), id.into()))];
            let mut add = |transport: bool, protocols: Vec<Span>, ports: [Span; 2]| {
                if !protocols.is_empty() {
                    let [sport, dport] = ports.map(|span| vec![span]);
                    let sets = [protocols, dport, destination.clone(), source.clone(), sport, vlan.clone()];
                    ranges.push(Range { v6, transport, sets });
                }
            };
            let spans = |numbers: &mut dyn Iterator<Item = u8>| merge(numbers.map(|n| (n.into(), n.into())).collect());
            if self.fragment != Some(true) {
                let ports = [self.sport.unwrap_or(PORTS), self.dport.unwrap_or(PORTS)];
                add(true, spans(&mut numbers().filter(|n| shows(*n))), ports);
            }
            if self.sport.is_none() && self.dport.is_none() {
                let fragments = self.fragment != Some(false);
                add(false, spans(&mut numbers().filter(|n| fragments || !shows(*n))), [(0, 0), (0, 0)]);
            }
        }
        ranges
    }
}

fn span((bits, len): &Prefix) -> Span {
    (*bits, bits | !prefix_mask(*len))
}

/// Sorted and disjoint, neighbors made one.
fn merge(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for (first, last) in spans {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// Those that do not end before `number`.
fn behind(set: &[Span], number: u128) -> &[Span] {
    &set[set.partition_point(|span| span.1 < number)..]
}

fn and(a: &[Span], b: &[Span]) -> Vec<Span> {
    let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let mut common = Vec::new();
    for (first, last) in few {
        let met = behind(many, *first).iter().take_while(|span| span.0 <= *last);
        common.extend(met.map(|span| (span.0.max(*first), span.1.min(*last))));
    }
    common
}

fn minus(a: &[Span], b: &[Span]) -> Vec<Span> {
    let mut left = Vec::new();
    for (first, last) in a {
        let mut next = Some(*first);
        for hole in behind(b, *first).iter().take_while(|hole| hole.0 <= *last) {
            left.extend(next.filter(|next| *next < hole.0).map(|next| (next, hole.0 - 1)));
            next = hole.1.checked_add(1);
        }
        left.extend(next.filter(|next| next <= last).map(|next| (next, *last)));
    }
    left
}

/// What a rule matches for one of its services.
#[derive(Debug)]
struct Term {
    rule: usize,
    /// It asks for ports, or for type and code.
    transport_only: bool,
    /// Source and destination addresses, by family.
    addresses: [[Vec<Span>; 2]; 2],
    protocol: Vec<Span>,
    sport: Vec<Span>,
    dport: Vec<Span>,
    vlan: Vec<Span>,
}

impl Term {
    /// The set of a dimension, for packets of a range.
    fn set(&self, dimension: usize, range: &Range) -> &[Span] {
        let [source, destination] = &self.addresses[usize::from(range.v6)];
        match dimension {
            PROTOCOL => &self.protocol,
            DPORT => &self.dport,
            DESTINATION => destination,
            SOURCE => source,
            SPORT => &self.sport,
            VLAN => &self.vlan,
            _ => unreachable!("there are six dimensions"),
        }
    }
}

/// The rules of an `acl`, to be asked about ranges.
#[derive(Debug)]
pub struct Walk {
    rules: Vec<Rule>,
    default: Fallback,
}

/// What decides of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The rule's place in the list; none for the default.
    pub rule: Option<usize>,
    /// It lets packets pass.
    pub allows: bool,
}

/// The work allowed was not enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Walk {
    /// The rules of a config whose pipeline was compiled.
    pub fn new(config: &Config, names: &Names) -> Walk {
        let mut mistakes = Mistakes::default();
        let rules = config.rule.iter().filter_map(|rule| resolve(rule, "", names, &mut mistakes)).collect();
        debug_assert!(mistakes.is_empty(), "the pipeline was compiled");
        Walk { rules, default: config.default }
    }

    /// Tells, part by part, what decides of the packets of a range that arrive on port `from` and leave by `out`; the parts
    /// are disjoint and make up the range. Each comparison of a part with a rule takes one from `work`.
    pub fn decide<B>(
        &self,
        range: Range,
        (from, out): (u8, u8),
        work: &mut u64,
        mut tell: impl FnMut(Range, Decided) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, Exhausted> {
        let deciding = |rule: &&(usize, &Rule)| {
            rule.1.action != Action::Count && rule.1.from.contains(from) && rule.1.to.contains(out)
        };
        let terms: Vec<Term> = self.rules.iter().enumerate().filter(|r| deciding(&r)).flat_map(|(at, r)| terms(at, r)).collect();
        let mut open = vec![(range, 0)];
        'parts: while let Some((range, first)) = open.pop() {
            for (at, term) in terms.iter().enumerate().skip(first) {
                *work = work.checked_sub(1).ok_or(Exhausted)?;
                if term.transport_only && !range.transport {
                    continue;
                }
                let mut common: [Vec<Span>; COUNT] = Default::default();
                let met = (0..COUNT).all(|d| {
                    // Without a transport header there are no ports to compare.
                    let blind = !range.transport && matches!(d, DPORT | SPORT);
                    common[d] = if blind { range.sets[d].clone() } else { and(&range.sets[d], term.set(d, &range)) };
                    !common[d].is_empty()
                });
                if !met {
                    continue;
                }
                for d in (0..COUNT).filter(|d| range.transport || !matches!(*d, DPORT | SPORT)) {
                    let rest = minus(&range.sets[d], term.set(d, &range));
                    if !rest.is_empty() {
                        let set = |at: usize| match at {
                            at if at < d => common[at].clone(),
                            at if at == d => rest.clone(),
                            at => range.sets[at].clone(),
                        };
                        open.push((Range { sets: std::array::from_fn(set), ..range }, at + 1));
                    }
                }
                let allows = self.rules[term.rule].action == Action::Allow;
                let part = Range { sets: common, ..range };
                if let ControlFlow::Break(found) = tell(part, Decided { rule: Some(term.rule), allows }) {
                    return Ok(ControlFlow::Break(found));
                }
                continue 'parts;
            }
            let allows = self.default == Fallback::Allow;
            if let ControlFlow::Break(found) = tell(range, Decided { rule: None, allows }) {
                return Ok(ControlFlow::Break(found));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// A rule, service by service.
fn terms(at: usize, rule: &Rule) -> Vec<Term> {
    let spans = |ranges: &[std::ops::RangeInclusive<u16>], all: Span| match ranges {
        [] => vec![all],
        some => merge(some.iter().map(|range| ((*range.start()).into(), (*range.end()).into())).collect()),
    };
    let addresses = |prefixes: &[Prefix]| merge(prefixes.iter().map(span).collect());
    let term = |protocol: Span, transport_only: bool, dport: Span| Term {
        rule: at,
        transport_only,
        addresses: [
            [addresses(&rule.source.v4), addresses(&rule.destination.v4)],
            [addresses(&rule.source.v6), addresses(&rule.destination.v6)],
        ],
        protocol: vec![protocol],
        sport: spans(&rule.source_ports, PORTS),
        dport: vec![dport],
        vlan: spans(&rule.vlans, VLANS),
    };
    if rule.services.is_empty() {
        return vec![term(all(256), false, PORTS)];
    }
    let service = |service: &crate::config::names::Service| {
        let protocol = (service.proto.into(), service.proto.into());
        let typed = |kind: u8, code: u8| u128::from(u16::from_be_bytes([kind, code]));
        match &service.detail {
            Detail::Any => term(protocol, !rule.source_ports.is_empty(), PORTS),
            Detail::Ports(ports) => term(protocol, true, ((*ports.start()).into(), (*ports.end()).into())),
            Detail::Icmp(kind, Some(code)) => term(protocol, true, (typed(*kind, *code), typed(*kind, *code))),
            Detail::Icmp(kind, None) => term(protocol, true, (typed(*kind, 0), typed(*kind, 0xff))),
        }
    };
    rule.services.iter().map(service).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set() -> impl Strategy<Value = Vec<Span>> {
        prop::collection::vec((0u128..40, 0u128..6), 0..6)
            .prop_map(|list| merge(list.into_iter().map(|(first, len)| (first, first + len)).collect()))
    }

    fn has(set: &[Span], number: u128) -> bool {
        set.iter().any(|span| (span.0..=span.1).contains(&number))
    }

    proptest! {
        #[test]
        fn sets_are_sets(a in set(), b in set()) {
            let (common, rest) = (and(&a, &b), minus(&a, &b));
            for number in 0..50 {
                prop_assert_eq!(has(&common, number), has(&a, number) && has(&b, number));
                prop_assert_eq!(has(&rest, number), has(&a, number) && !has(&b, number));
            }
            for set in [&common, &rest] {
                prop_assert!(set.iter().all(|span| span.0 <= span.1) && set.is_sorted());
            }
        }
    }

    #[test]
    fn the_ends_of_the_numbers() {
        let everything = [(0, u128::MAX)];
        assert_eq!(minus(&everything, &everything), []);
        assert_eq!(minus(&everything, &[(0, 0), (u128::MAX, u128::MAX)]), [(1, u128::MAX - 1)]);
        assert_eq!(merge(vec![(5, u128::MAX), (0, 4)]), everything);
        assert_eq!([span(&(0, 0))], everything);
    }
}
