//! What the rules say of a whole range of packets, exactly: a first-match walk over products of sets.
//!
//! A range is a product of sets, one for each thing that rules ask of a packet. The walk takes from it what the first rule
//! matches, then from what is left what the second matches, and so on; the default decides of the rest. It reads the resolved
//! rules, not the compiled ones.
//!
//! Owns the walk; knows no expectation. What it says is held against the datapath in the tests of `policy`.

use std::ops::ControlFlow;

use crate::config::names::{Detail, Names};
use crate::config::source::Mistakes;
use crate::stage::classes::{Prefix, prefix_mask};
use crate::wire::{ipv6, protocol};

use super::compile::{Action, Rule};
use super::matcher::UNTAGGED;
pub use super::sets::{Exhausted, Range as Span, Set};
use super::{Config, Fallback, PORT_PROTOCOLS, resolve};

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
    /// By [`dimension`].
    pub sets: [Set; COUNT],
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
            let addresses = |of: &[Vec<Prefix>; 2]| Set::of(of[usize::from(v6)].iter().map(span));
            let (source, destination) = (addresses(&self.source), addresses(&self.destination));
            if source.is_empty() || destination.is_empty() {
                continue;
            }
            let icmp = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
            let shows = |number: u8| PORT_PROTOCOLS.contains(&number) || number == icmp;
            // In IPv6 an extension header's number is never the transport protocol's.
            let numbers = || {
                (0..=255u8).filter(|n| self.protocol.is_none_or(|only| only == *n) && !(v6 && ipv6::is_extension(*n)))
            };
            let vlan = Set::of([self.vlan.map_or(VLANS, |id| (id.into(), id.into()))]);
            let mut add = |transport: bool, protocols: Set, ports: [Span; 2]| {
                if !protocols.is_empty() {
                    let [sport, dport] = ports.map(|span| Set::of([span]));
                    let sets = [protocols, dport, destination.clone(), source.clone(), sport, vlan.clone()];
                    ranges.push(Range { v6, transport, sets });
                }
            };
            let spans = |numbers: &mut dyn Iterator<Item = u8>| Set::of(numbers.map(|n| (n.into(), n.into())));
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

/// What a rule matches for one of its services.
#[derive(Debug)]
struct Term {
    rule: usize,
    /// It asks for ports, or for type and code.
    transport_only: bool,
    /// Source and destination addresses, by family.
    addresses: [[Set; 2]; 2],
    protocol: Set,
    sport: Set,
    dport: Set,
    vlan: Set,
}

impl Term {
    /// The set of a dimension, for packets of a range.
    fn set(&self, dimension: usize, range: &Range) -> &Set {
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
        let terms: Vec<Term> =
            self.rules.iter().enumerate().filter(|r| deciding(&r)).flat_map(|(at, r)| terms(at, r)).collect();
        let mut open = vec![(range, 0)];
        'parts: while let Some((range, first)) = open.pop() {
            for (at, term) in terms.iter().enumerate().skip(first) {
                *work = work.checked_sub(1).ok_or(Exhausted)?;
                if term.transport_only && !range.transport {
                    continue;
                }
                // Without a transport header there are no ports to compare.
                let compared = |d: &usize| range.transport || !matches!(*d, DPORT | SPORT);
                if !(0..COUNT).filter(compared).all(|d| range.sets[d].overlaps(term.set(d, &range))) {
                    continue;
                }
                let common: [Set; COUNT] = std::array::from_fn(|d| match compared(&d) {
                    true => range.sets[d].and(term.set(d, &range)),
                    false => range.sets[d].clone(),
                });
                for d in (0..COUNT).filter(compared) {
                    let rest = range.sets[d].minus(term.set(d, &range));
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
        [] => Set::of([all]),
        some => Set::of(some.iter().map(|range| ((*range.start()).into(), (*range.end()).into()))),
    };
    let set = |prefixes: &[Prefix]| Set::of(prefixes.iter().map(span));
    let addresses =
        [[set(&rule.source.v4), set(&rule.destination.v4)], [set(&rule.source.v6), set(&rule.destination.v6)]];
    let (sport, vlan) = (spans(&rule.source_ports, PORTS), spans(&rule.vlans, VLANS));
    let term = |protocol: Span, transport_only: bool, dport: Span| Term {
        rule: at,
        transport_only,
        addresses: addresses.clone(),
        protocol: Set::of([protocol]),
        sport: sport.clone(),
        dport: Set::of([dport]),
        vlan: vlan.clone(),
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
