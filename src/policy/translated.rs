//! Ranges of packets where destinations are translated: which parts of a range go where, as rules behind the translation see
//! them, and how a packet of such a part came.
//!
//! Exact but for rules with several targets, of which a packet gets one by its source: here it may get any.

use crate::config::names::{Detail, Service};
use crate::nat::destination::{Change, Destinations, Rule};
use crate::nat::rules::Spans;
use crate::stage::acl::range::dimension::{COUNT, DESTINATION, DPORT, PROTOCOL, SOURCE};
use crate::stage::acl::range::{Range, Set, Span};

/// A part of a range.
pub struct Part {
    /// As its packets come.
    came: Range,
    /// As rules behind the translation see them.
    pub judged: Range,
    /// What was added to destination addresses and ports, if that is how they were changed.
    added: [Option<u128>; 2],
}

impl Part {
    /// One that is not translated.
    pub fn unchanged(range: Range) -> Part {
        Part { came: range.clone(), judged: range, added: [Some(0); 2] }
    }

    /// How packets of the part came that look so behind the translation.
    pub fn before(&self, judged: &Range) -> Range {
        let mut before = judged.clone();
        for (dimension, added) in [DESTINATION, DPORT].into_iter().zip(self.added) {
            let came = &self.came.sets[dimension];
            before.sets[dimension] = match added {
                Some(added) => shifted(&judged.sets[dimension], 0u128.wrapping_sub(added)).and(came),
                None => came.clone(),
            };
        }
        before
    }
}

fn shifted(set: &Set, by: u128) -> Set {
    Set::of(set.ranges().iter().map(|(first, last)| (first.wrapping_add(by), last.wrapping_add(by))))
}

/// The parts of a range that arrives on a port.
pub fn parts(destinations: Option<&Destinations>, range: Range, port: u8) -> Vec<Part> {
    let (mut open, mut parts) = (vec![range], Vec::new());
    let rules = destinations.iter().flat_map(|of| of.rules.iter().map(move |rule| (*of, rule)));
    for (of, rule) in rules.filter(|(_, rule)| rule.asks.from.contains(port)) {
        let services = match rule.asks.services.as_slice() {
            [] => vec![None],
            services => services.iter().map(Some).collect(),
        };
        for service in services {
            for range in std::mem::take(&mut open) {
                match matched(of, rule, service, &range) {
                    Some((common, rest)) => {
                        open.extend(rest);
                        parts.push(translated(rule, service, common));
                    }
                    None => open.push(range),
                }
            }
        }
    }
    parts.extend(open.into_iter().map(Part::unchanged));
    parts
}

const ALL: Span = (0, u128::MAX);

/// What of a range a rule matches for one of its services, and the rest in parts; `None` if nothing.
fn matched(of: &Destinations, rule: &Rule, service: Option<&Service>, range: &Range) -> Option<(Range, Vec<Range>)> {
    if let Change::Spread(targets, _) = &rule.change
        && targets[usize::from(range.v6)].is_empty()
    {
        return None;
    }
    let addresses = |spans: &Option<Spans>| match spans {
        Some(spans) => Set::of(spans.family(range.v6).iter().copied()),
        None => Set::of([ALL]),
    };
    let mut asked: [Set; COUNT] = std::array::from_fn(|_| Set::of([ALL]));
    asked[SOURCE] = addresses(&rule.asks.source);
    asked[DESTINATION] = match (&rule.own, &rule.asks.destination) {
        (Some(ports), _) => {
            let own = ports.iter().filter_map(|port| match range.v6 {
                true => of.addresses.v6(port),
                false => of.addresses.v4(port).map(wide),
            });
            Set::of(own.map(|own| one(&own, range.v6)))
        }
        (None, None) => Set::of([ALL]).minus(&Set::of(groups(range.v6))),
        (None, named) => addresses(named),
    };
    if let Some(Service { proto, detail }) = service {
        asked[PROTOCOL] = Set::one((*proto).into());
        let number = |high: u8, low: u8| u128::from(u16::from_be_bytes([high, low]));
        asked[DPORT] = match detail {
            Detail::Any => Set::of([ALL]),
            _ if !range.transport => return None,
            Detail::Ports(ports) => Set::of([((*ports.start()).into(), (*ports.end()).into())]),
            Detail::Icmp(kind, code) => {
                Set::of([(number(*kind, code.unwrap_or(0)), number(*kind, code.unwrap_or(u8::MAX)))])
            }
        };
    }
    let common = Range { sets: std::array::from_fn(|d| range.sets[d].and(&asked[d])), ..range.clone() };
    if common.sets.iter().any(Set::is_empty) {
        return None;
    }
    let rest = (0..COUNT).filter_map(|d| {
        let rest = range.sets[d].minus(&asked[d]);
        let set = |at: usize| match at {
            at if at < d => common.sets[at].clone(),
            at if at == d => rest.clone(),
            at => range.sets[at].clone(),
        };
        (!rest.is_empty()).then(|| Range { sets: std::array::from_fn(set), ..range.clone() })
    });
    let rest = rest.collect();
    Some((common, rest))
}

/// What a rule makes of a range all of which it matches.
fn translated(rule: &Rule, service: Option<&Service>, came: Range) -> Part {
    let mut part = Part::unchanged(came);
    match &rule.change {
        Change::Nothing => {}
        Change::Fixed(fixed) => {
            let added = fixed.to.wrapping_sub(fixed.from);
            part.judged.sets[DESTINATION] = shifted(&part.came.sets[DESTINATION], added);
            part.added[0] = Some(added);
        }
        Change::Spread(targets, ports) => {
            let v6 = part.came.v6;
            part.judged.sets[DESTINATION] = Set::of(targets[usize::from(v6)].iter().map(|target| one(target, v6)));
            part.added[0] = None;
            match (ports, service.map(|service| &service.detail)) {
                (Some(ports), Some(Detail::Ports(asked))) if ports.len() > 1 => {
                    let added = u128::from(*ports.start()).wrapping_sub((*asked.start()).into());
                    part.judged.sets[DPORT] = shifted(&part.came.sets[DPORT], added);
                    part.added[1] = Some(added);
                }
                (Some(ports), _) => {
                    part.judged.sets[DPORT] = Set::one((*ports.start()).into());
                    part.added[1] = None;
                }
                (None, _) => {}
            }
        }
    }
    part
}

fn wide(address: [u8; 4]) -> [u8; 16] {
    std::array::from_fn(|at| address.get(at).copied().unwrap_or(0))
}

/// An address among addresses of ranges.
fn one(address: &[u8; 16], v6: bool) -> Span {
    let first = u128::from_be_bytes(*address);
    (first, if v6 { first } else { first | u128::MAX >> 32 })
}

/// Multicast and broadcast, which a rule without a destination does not mean.
fn groups(v6: bool) -> Vec<Span> {
    match v6 {
        true => vec![(0xff << 120, u128::MAX)],
        false => vec![(0xe << 124, (0xf << 124) - 1), (0xffff_ffff << 96, u128::MAX)],
    }
}
