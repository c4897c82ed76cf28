//! Rules that do nothing, found by exact set algebra over the resolved rules.
//!
//! - *Shadowed*: earlier rules decide all that the rule matches, at least some of it otherwise than it would.
//! - *Redundant*: earlier rules decide all that it matches, and alike; or what it alone decides would be decided alike without
//!   it, by later rules or the default.
//! - *Never matches*: no packet can be what it asks for.
//! - *Never counts*: a `count` rule behind rules that decide all that it matches.
//!
//! All rules found, or any of them, can be removed, and no packet is decided otherwise: what makes a rule redundant is not
//! itself found, and a rule that keeps another in the shadow is not redundant. Rules that overlap in part and contradict each
//! other are how exceptions are written, and are no finding.
//!
//! A packet is a point in six dimensions (the pair of ports it takes, its addresses, its service, its source port, its VLAN)
//! of one of two families, a rule a product of sets in each family. Packets are those that decode makes and that the stages
//! before let come here; an earlier `acl`, or what else may have dropped them, is not looked at.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::names::{Detail, Names};
use crate::packet::NO_PORT;
use crate::stage::classes::prefix_mask;
use crate::stage::ingress::Ports;

use super::PORT_PROTOCOLS;
use super::compile::{Action, Rule, port_classes};
use super::matcher::{Family, UNTAGGED};
use super::sets::{DIMENSIONS, Exhausted, Index, Product, Search, Set};

/// The dimensions of a packet.
mod dimension {
    /// The pair of ports, by its place in `Universe::pairs`.
    pub const PAIR: usize = 0;
    pub const SOURCE: usize = 1;
    pub const DESTINATION: usize = 2;
    /// Protocol, then whether the transport header shows, then the destination port or ICMP type and code.
    pub const SERVICE: usize = 3;
    pub const SOURCE_PORT: usize = 4;
    /// VLAN id, or `UNTAGGED`.
    pub const VLAN: usize = 5;
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Bits behind the protocol in a service number: one for the header, sixteen for the detail.
const SERVICE_BITS: u32 = 17;
/// The transport header shows.
const SHOWN: u128 = 1 << 16;

/// What is wrong with a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Earlier rules decide all of it, some of it otherwise.
    Shadowed,
    /// Earlier rules decide all of it alike.
    RedundantBehind,
    /// Later rules or the default would decide alike what it decides.
    RedundantBefore,
    /// No packet takes a way from its `from` to its `to`.
    NoWay,
    /// No packet of the families of its addresses has its services.
    NoService,
    /// A count rule behind rules that decide all of it.
    NeverCounts,
    /// The work allowed was not enough to tell.
    Undecided,
}

/// A rule that does nothing, or of which that could not be told. Rules are places in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The rule.
    pub rule: usize,
    /// What is wrong with it.
    pub kind: Kind,
    /// A packet that it matches.
    pub witness: Option<Packet>,
    /// Who decides that packet instead, or would without the rule; none if that is the default.
    pub by: Option<usize>,
    /// A few rules that together do to all of it what `kind` says; `by` is among them.
    pub involved: Vec<usize>,
}

/// A packet that rules can tell from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The port it came from.
    pub from: u8,
    /// The port it leaves by, or `NO_PORT`.
    pub to: u8,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol.
    pub proto: u8,
    /// Destination port, or ICMP type and code; none if it shows no transport header that rules could ask for.
    pub detail: Option<u16>,
    /// Source port.
    pub sport: u16,
    /// VLAN id, or `UNTAGGED`.
    pub vlan: u16,
}

/// How much work may be done.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// For one rule that no other has left any.
    pub floor: u64,
    /// For one rule at most.
    pub each: u64,
    /// For all of them.
    pub all: u64,
}

impl Work {
    /// A few seconds.
    pub const DEFAULT: Work = Work { floor: 5_000, each: 10_000_000, all: 150_000_000 };
}

/// True if packets of the protocol show what rules ask of transport headers: ports, or a type and a code (of ICMPv4 in IPv4
/// and of ICMPv6 in IPv6 only).
fn shows(proto: u8, family: Family) -> bool {
    let icmp = if family == Family::V4 { ICMP } else { ICMPV6 };
    proto == icmp || PORT_PROTOCOLS.contains(&proto)
}

/// All packets there can be.
struct Universe {
    /// Pairs of ports that some rule tells from the others, by one of them each.
    pairs: Vec<(u8, u8)>,
    /// Every coordinate, by family.
    all: [Product; 2],
}

impl Universe {
    /// `exits`: by port, those by which its packets may leave; none of what is no port.
    fn new(rules: &[Rule], exits: &[Ports]) -> Universe {
        let (from_class, _) = port_classes(rules.iter().map(|rule| rule.from), exits.len());
        let (to_class, _) = port_classes(rules.iter().map(|rule| rule.to), exits.len());
        let mut pairs = Vec::new();
        let mut known = HashMap::new();
        for (from, exits) in exits.iter().enumerate() {
            for to in (0..=NO_PORT).filter(|to| exits.contains(*to)) {
                known
                    .entry((from_class[from], to_class[usize::from(to)]))
                    .or_insert_with(|| pairs.push((from as u8, to)));
            }
        }
        let all = FAMILIES.map(|family| {
            let address = Set::of([(0, if family == Family::V4 { u32::MAX.into() } else { u128::MAX })]);
            let service = Set::of((0..=255).flat_map(|proto| whole(proto, family)));
            let mut all = [(); DIMENSIONS].map(|()| address.clone());
            all[dimension::PAIR] = Set::of((0..pairs.len() as u128).map(|pair| (pair, pair)));
            all[dimension::SERVICE] = service;
            all[dimension::SOURCE_PORT] = Set::of([(0, u16::MAX.into())]);
            all[dimension::VLAN] = Set::of([(0, UNTAGGED.into())]);
            Product(all)
        });
        Universe { pairs, all }
    }

    /// What a rule matches in a family.
    fn part(&self, rule: &Rule, family: Family) -> Product {
        let mut part = self.all[family as usize].clone();
        let mut ask = |dimension: usize, ranges: Vec<(u128, u128)>| {
            let all = &mut part.0[dimension];
            let asked = Set::of(ranges);
            if !asked.covers(all) {
                *all = all.and(&asked);
            }
        };
        let pairs = self.pairs.iter().enumerate();
        let pairs = pairs.filter(|(_, (from, to))| rule.from.contains(*from) && rule.to.contains(*to));
        ask(dimension::PAIR, pairs.map(|(at, _)| (at as u128, at as u128)).collect());
        let shift = if family == Family::V4 { 96 } else { 0 };
        let sides = [(dimension::SOURCE, &rule.source), (dimension::DESTINATION, &rule.destination)];
        for (dimension, addresses) in sides {
            let range = |(bits, len): &(u128, u8)| (bits >> shift, (bits | !prefix_mask(*len)) >> shift);
            ask(dimension, addresses.of(family).iter().map(range).collect());
        }
        if !rule.services.is_empty() {
            let bare = rule.source_ports.is_empty();
            let mut services = Vec::new();
            for service in &rule.services {
                let first = u128::from(service.proto) << SERVICE_BITS | SHOWN;
                let detail = match &service.detail {
                    Detail::Any if bare => {
                        services.extend(whole(service.proto, family));
                        continue;
                    }
                    Detail::Any => (0, u16::MAX),
                    Detail::Ports(range) => (*range.start(), *range.end()),
                    Detail::Icmp(kind, code) => {
                        let number = |code| u16::from_be_bytes([*kind, code]);
                        (number(code.unwrap_or(0)), number(code.unwrap_or(u8::MAX)))
                    }
                };
                if shows(service.proto, family) {
                    services.push((first | u128::from(detail.0), first | u128::from(detail.1)));
                }
            }
            ask(dimension::SERVICE, services);
        }
        for (dimension, ranges) in [(dimension::SOURCE_PORT, &rule.source_ports), (dimension::VLAN, &rule.vlans)] {
            if !ranges.is_empty() {
                ask(dimension, ranges.iter().map(|range| ((*range.start()).into(), (*range.end()).into())).collect());
            }
        }
        part
    }

    /// The plainest packet of a product that is not empty.
    fn packet(&self, point: &Point) -> Packet {
        let Point { family, at } = point;
        let address = |number: u128| match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(number as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
        };
        let (from, to) = self.pairs[at[dimension::PAIR] as usize];
        let service = at[dimension::SERVICE];
        Packet {
            from,
            to,
            source: address(at[dimension::SOURCE]),
            destination: address(at[dimension::DESTINATION]),
            proto: (service >> SERVICE_BITS) as u8,
            detail: (service & SHOWN != 0).then_some(service as u16),
            sport: at[dimension::SOURCE_PORT] as u16,
            vlan: at[dimension::VLAN] as u16,
        }
    }
}

/// A protocol with all there is of it.
fn whole(proto: u8, family: Family) -> impl Iterator<Item = (u128, u128)> {
    let bare = u128::from(proto) << SERVICE_BITS;
    let shown = shows(proto, family).then_some((bare | SHOWN, bare | SHOWN | u128::from(u16::MAX)));
    [(bare, bare)].into_iter().chain(shown)
}

/// One packet as numbers.
#[derive(Clone, Copy, Debug)]
struct Point {
    family: Family,
    at: [u128; DIMENSIONS],
}

impl Point {
    /// The plainest of a product that is not empty: addresses of examples or else the first (not a network's own), TCP, port
    /// 1024, no VLAN.
    fn of(family: Family, product: &Product) -> Point {
        let first = |set: &Set| set.ranges()[0].0;
        let or_first = |set: &Set, wish: u128| if set.contains(wish) { wish } else { first(set) };
        let host = |set: &Set, wish: u128| match set.ranges()[0] {
            _ if set.contains(wish) => wish,
            (first, last) if last - first > 1 => first + 1,
            (first, _) => first,
        };
        // 10.0.0.1 and 192.0.2.1; 2001:db8::1 and 2001:db8:1::1 (RFC 5737, RFC 3849).
        let [source, destination] = match family {
            Family::V4 => [0x0a00_0001, 0xc000_0201],
            Family::V6 => [0x2001_0db8 << 96 | 1, 0x2001_0db8_0001 << 80 | 1],
        };
        let set = &product.0[dimension::SERVICE];
        let (icmp, echo) = if family == Family::V4 { (ICMP, 8) } else { (ICMPV6, 128) };
        let [tcp, udp, others @ ..] = [6, 17, icmp, 132, 33, 136].map(|proto: u8| {
            let first = u128::from(proto) << SERVICE_BITS | SHOWN;
            let wish = first | if proto == icmp { echo << 8 } else { 1024 };
            let shown = set.and(&Set::of([(first, first | u128::from(u16::MAX))]));
            (!shown.is_empty()).then(|| or_first(&shown, wish))
        });
        let mut at = std::array::from_fn(|dimension| first(&product.0[dimension]));
        let service = tcp.or(udp).or(others.into_iter().flatten().next());
        at[dimension::SERVICE] = service.unwrap_or(at[dimension::SERVICE]);
        at[dimension::SOURCE] = host(&product.0[dimension::SOURCE], source);
        at[dimension::DESTINATION] = host(&product.0[dimension::DESTINATION], destination);
        at[dimension::SOURCE_PORT] = or_first(&product.0[dimension::SOURCE_PORT], 1024);
        at[dimension::VLAN] = or_first(&product.0[dimension::VLAN], UNTAGGED.into());
        Point { family, at }
    }

    fn product(&self) -> Product {
        Product(self.at.map(Set::one))
    }
}

/// A rule's part in a family, with the rule's place.
type Part<'l> = (usize, &'l Product);

/// The rules while they are looked at.
struct Lint<'r> {
    rules: &'r [Rule],
    default: Action,
    universe: Universe,
    /// By family and rule; none if it matches nothing there.
    parts: [Vec<Option<Product>>; 2],
    index: [Index; 2],
    /// Rules that are there for others: not those found to do nothing.
    live: Vec<bool>,
}

/// Finds the rules that do nothing, in their order. `exits`: by port, those by which its packets may leave; none of
/// what is no port.
pub fn lint(rules: &[Rule], default: Action, exits: &[Ports], work: Work) -> Vec<Found> {
    let universe = Universe::new(rules, exits);
    let parts = FAMILIES.map(|family| -> Vec<Option<Product>> {
        let part = |rule| Some(universe.part(rule, family)).filter(|part| !part.is_empty());
        rules.iter().map(part).collect()
    });
    let index = [0, 1].map(|family: usize| Index::new(parts[family].iter().map(Option::as_ref)));
    let mut lint = Lint { rules, default, universe, parts, index, live: vec![true; rules.len()] };
    // Every rule is looked at twice at most.
    let mut purse = Purse { work, rules: 2 * rules.len() as u64 };
    let mut found = Vec::new();
    let mut own = vec![None; rules.len()];
    for (rule, own) in own.iter_mut().enumerate() {
        let mut search = purse.search();
        match lint.behind(rule, &mut search) {
            Ok(Sight::Decides(point)) => *own = Some(point),
            Ok(Sight::Nothing(nothing)) => {
                lint.live[rule] = false;
                found.push(nothing);
            }
            Err(Exhausted) => found.push(undecided(rule)),
        }
        purse.take_back(&search);
    }
    for (rule, own) in own.iter().enumerate().rev() {
        let Some(own) = own.filter(|_| lint.decides(rule)) else { continue };
        let mut search = purse.search();
        match lint.before(rule, own, &mut search) {
            Ok(None) => {}
            Ok(Some(spare)) => {
                lint.live[rule] = false;
                found.push(spare);
            }
            Err(Exhausted) => found.push(undecided(rule)),
        }
        purse.take_back(&search);
    }
    found.sort_by_key(|found| found.rule);
    found
}

fn undecided(rule: usize) -> Found {
    Found { rule, kind: Kind::Undecided, witness: None, by: None, involved: Vec::new() }
}

/// The work left, shared out so that each rule is sure of the floor.
struct Purse {
    work: Work,
    /// Searches still to come.
    rules: u64,
}

impl Purse {
    fn search(&mut self) -> Search {
        self.rules -= 1;
        let Work { floor, each, all } = self.work;
        let granted = all.saturating_sub(floor * self.rules).min(each).max(floor);
        self.work.all = all.saturating_sub(granted);
        Search::new(granted)
    }

    fn take_back(&mut self, search: &Search) {
        self.work.all += search.work;
    }
}

/// What a rule does, seen from the rules before it.
enum Sight {
    /// It decides, or counts, this packet at least.
    Decides(Point),
    /// Nothing.
    Nothing(Found),
}

impl Lint<'_> {
    fn decides(&self, rule: usize) -> bool {
        self.rules[rule].action != Action::Count
    }

    fn parts(&self, rule: usize) -> impl Iterator<Item = (Family, &Product)> {
        FAMILIES.into_iter().filter_map(move |family| Some((family, self.parts[family as usize][rule].as_ref()?)))
    }

    /// The rules that decide, are `wanted` and meet `product`, in order.
    fn meeting(&self, family: Family, product: &Product, wanted: impl Fn(usize) -> bool) -> Vec<Part<'_>> {
        let near = self.index[family as usize].near(product).into_iter();
        let near = near.filter(|rule| self.decides(*rule) && wanted(*rule));
        let parts = near.filter_map(|rule| Some((rule, self.parts[family as usize][rule].as_ref()?)));
        parts.filter(|(_, part)| part.overlaps(product)).collect()
    }

    /// The live rules before one that decide and meet a part of it.
    fn earlier(&self, family: Family, product: &Product, rule: usize) -> Vec<Part<'_>> {
        self.meeting(family, product, |other| other < rule && self.live[other])
    }

    /// The first of the rules that decides a packet, if those `wanted` were all.
    fn first(&self, point: &Point, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        self.meeting(point.family, &point.product(), wanted).first().map(|(rule, _)| *rule)
    }

    fn found(&self, rule: usize, kind: Kind, point: Option<&Point>, by: Option<usize>, few: BTreeSet<usize>) -> Found {
        let mut involved = few;
        involved.extend(by);
        let witness = point.map(|point| self.universe.packet(point));
        Found { rule, kind, witness, by, involved: involved.into_iter().collect() }
    }

    /// A rule seen from those before it.
    fn behind(&self, rule: usize, search: &mut Search) -> Result<Sight, Exhausted> {
        let Some((family, part)) = self.parts(rule).next() else {
            let no_way = self
                .universe
                .pairs
                .iter()
                .all(|(from, to)| !(self.rules[rule].from.contains(*from) && self.rules[rule].to.contains(*to)));
            let kind = if no_way { Kind::NoWay } else { Kind::NoService };
            return Ok(Sight::Nothing(self.found(rule, kind, None, None, BTreeSet::new())));
        };
        let some = Point::of(family, part);
        let earlier: Vec<_> =
            self.parts(rule).map(|(family, part)| (family, part, self.earlier(family, part, rule))).collect();
        for (family, part, earlier) in &earlier {
            if let Some(free) = search.escape((*part).clone(), earlier)? {
                return Ok(Sight::Decides(Point::of(*family, &free)));
            }
        }
        let covers = |few: &BTreeSet<usize>, search: &mut Search| {
            for (_, part, earlier) in &earlier {
                let few: Vec<_> = earlier.iter().copied().filter(|(rule, _)| few.contains(rule)).collect();
                if search.escape((*part).clone(), &few)?.is_some() {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let used = std::mem::take(&mut search.used);
        let (kind, point, by) = match self.otherwise(rule, &earlier, search)? {
            Some((point, by)) => (Kind::Shadowed, point, Some(by)),
            None => {
                let kind = if self.decides(rule) { Kind::RedundantBehind } else { Kind::NeverCounts };
                (kind, some, self.earlier(some.family, &some.product(), rule).first().map(|(by, _)| *by))
            }
        };
        let few = fewer(used, search, covers);
        Ok(Sight::Nothing(self.found(rule, kind, Some(&point), by, few)))
    }

    /// A packet that an earlier rule decides otherwise than `rule` would, and that rule.
    fn otherwise(
        &self,
        rule: usize,
        earlier: &[(Family, &Product, Vec<Part<'_>>)],
        search: &mut Search,
    ) -> Result<Option<(Point, usize)>, Exhausted> {
        for (family, part, earlier) in earlier.iter().filter(|_| self.decides(rule)) {
            for (at, (other, taken)) in earlier.iter().enumerate().filter(|(_, (other, _))| !self.alike(*other, rule)) {
                if let Some(free) = search.escape(part.and(taken), &earlier[..at])? {
                    return Ok(Some((Point::of(*family, &free), *other)));
                }
            }
        }
        Ok(None)
    }

    fn alike(&self, one: usize, other: usize) -> bool {
        self.rules[one].action == self.rules[other].action
    }

    /// Whether a rule that decides `own` can be spared because of those behind it and the default.
    fn before(&self, rule: usize, own: Point, search: &mut Search) -> Result<Option<Found>, Exhausted> {
        let action = self.rules[rule].action;
        // Rules found before still decide otherwise if only this one is removed; but none of them is a reason to remove it.
        let after = |other: usize| other > rule && (self.live[other] || !self.alike(other, rule));
        let next = self.first(&own, after);
        if next.map_or(self.default, |next| self.rules[next].action) != action {
            return Ok(None);
        }
        let around = |other: usize| other < rule && self.live[other] || after(other);
        let meeting: Vec<_> =
            self.parts(rule).map(|(family, part)| (part, self.meeting(family, part, around))).collect();
        // Only these of the later rules that decide alike are left in; all of them if none is given.
        let spares = |few: Option<&BTreeSet<usize>>, search: &mut Search| {
            for (part, others) in &meeting {
                let mut gone: Vec<Part<'_>> = Vec::new();
                for (other, taken) in others {
                    if *other < rule || self.alike(*other, rule) {
                        let kept = *other < rule || few.is_none_or(|few| few.contains(other));
                        gone.extend(kept.then_some((*other, *taken)));
                    } else if search.escape(part.and(taken), &gone)?.is_some() {
                        return Ok(false);
                    }
                }
                if self.default != action {
                    // Those that decide otherwise were seen to meet nothing of what is left.
                    if search.escape((*part).clone(), &gone)?.is_some() {
                        return Ok(false);
                    }
                }
            }
            Ok(true)
        };
        if !spares(None, search)? {
            return Ok(None);
        }
        let used: BTreeSet<usize> = std::mem::take(&mut search.used).into_iter().filter(|used| *used > rule).collect();
        let few = fewer(used, search, |few, search| spares(Some(few), search));
        Ok(Some(self.found(rule, Kind::RedundantBefore, Some(&own), next, few)))
    }
}

/// The most rules among which one looks for some that are not needed.
const MOST_TO_THIN: usize = 64;

/// Leaves out of rules, the last first, those without which `enough` is still true, as far as the work allows.
fn fewer(
    mut all: BTreeSet<usize>,
    search: &mut Search,
    enough: impl Fn(&BTreeSet<usize>, &mut Search) -> Result<bool, Exhausted>,
) -> BTreeSet<usize> {
    if all.len() <= MOST_TO_THIN {
        for rule in all.clone().into_iter().rev() {
            all.remove(&rule);
            if enough(&all, search) != Ok(true) {
                all.insert(rule);
            }
        }
    }
    search.used.clear();
    all
}

impl Packet {
    /// The packet in the notation of `flowgate explain`; the egress is named if the ingress leaves it open.
    pub fn text(&self, names: &Names, exits: &[Ports]) -> String {
        let Packet { from, to, source, destination, proto, detail, sport, vlan } = *self;
        let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
        let name = match proto {
            6 => "tcp",
            17 => "udp",
            33 => "dccp",
            132 => "sctp",
            136 => "udplite",
            ICMP if family == Family::V4 => "icmp",
            ICMPV6 if family == Family::V6 => "icmpv6",
            _ => "",
        };
        let mut text = if name.is_empty() { format!("proto/{proto}") } else { name.to_owned() };
        // Writing to a string cannot fail.
        let _ = match (detail, PORT_PROTOCOLS.contains(&proto), source) {
            (Some(port), true, IpAddr::V4(_)) => write!(text, " {source}:{sport} > {destination}:{port}"),
            (Some(port), true, IpAddr::V6(_)) => write!(text, " [{source}]:{sport} > [{destination}]:{port}"),
            _ => write!(text, " {source} > {destination}"),
        };
        if let (Some(detail), false) = (detail, PORT_PROTOCOLS.contains(&proto)) {
            let _ = match (detail.to_be_bytes(), family) {
                ([8, 0], Family::V4) | ([128, 0], Family::V6) => write!(text, " echo"),
                ([kind, code], _) => write!(text, " {kind}/{code}"),
            };
        }
        let port = |port: u8| names.port_name(port).unwrap_or("nowhere");
        let _ = write!(text, " in {}", port(from));
        if (0..=NO_PORT).filter(|to| exits[usize::from(from)].contains(*to)).nth(1).is_some() {
            let _ = write!(text, " out {}", port(to));
        }
        if vlan != UNTAGGED {
            let _ = write!(text, " vlan {vlan}");
        }
        if detail.is_none() && shows(proto, family) {
            text.push_str(" fragment");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::compile::Addresses;
    use super::super::linear;
    use super::*;
    use crate::config::names::Service;
    use crate::packet::Meta;
    use crate::packet::SELF_PORT;
    use crate::packet::meta::flag;
    use crate::stage::classes::Prefix;

    /// All the work it takes.
    const UNLIMITED: Work = Work { floor: 1 << 40, each: 1 << 40, all: 1 << 60 };

    impl Packet {
        /// The packet as decode would make it of its frame.
        fn meta(&self) -> Meta {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96).to_be_bytes(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let icmp = matches!(self.proto, ICMP | ICMPV6);
            let shape = match self.detail {
                Some(_) if icmp => flag::L4,
                Some(_) => flag::L4 | flag::PORTS,
                None if PORT_PROTOCOLS.contains(&self.proto) || icmp => flag::LATER_FRAGMENT,
                None => 0,
            };
            let family = if self.source.is_ipv4() { flag::IPV4 } else { flag::IPV6 };
            Meta {
                src: octets(self.source),
                dst: octets(self.destination),
                proto: self.proto,
                detail: if icmp { self.detail.unwrap_or(0).to_be_bytes() } else { [0x10, 0] },
                sport: if icmp { 0 } else { self.sport },
                dport: if icmp { 0 } else { self.detail.unwrap_or(0) },
                vlan: self.vlan & 0xfff,
                flags: family | shape | if self.vlan == UNTAGGED { 0 } else { flag::VLAN },
                port: self.from,
                ..Meta::UNKNOWN
            }
        }
    }

    /// The small universe: ports 0 and 1 on a wire, port 2 from which packets go anywhere, the box itself, which sends to port 0; sources of 192.0.2.0/29 and
    /// destinations of its first half, and one beside each; two of IPv6 and one beside; a few services and source ports; tagged
    /// and not.
    fn small_exits() -> Vec<Ports> {
        let mut all = vec![Ports::default(); usize::from(SELF_PORT) + 1];
        for (from, exits) in [(0, &[1][..]), (1, &[0]), (2, &[0, 1, SELF_PORT, NO_PORT]), (SELF_PORT, &[0])] {
            exits.iter().for_each(|port| all[usize::from(from)].insert(*port));
        }
        all
    }

    fn small_packets() -> Vec<(Packet, Meta)> {
        let v4 = |n: u128| IpAddr::V4(Ipv4Addr::from(0xc000_0200 + n as u32));
        let v6 = |n: u128| IpAddr::V6(Ipv6Addr::from(0x2001_0db8 << 96 | n));
        let mut addresses = Vec::new();
        addresses.extend((0..45).map(|n| (v4(n % 9), v4(n / 9))));
        addresses.extend((0..9).map(|n| (v6(n % 3), v6(n / 3))));
        // A number stands for those around it that no rule tells from it.
        let mut services: Vec<(u8, Option<u16>, u16)> = [6, 17, ICMP, ICMPV6, 47].map(|proto| (proto, None, 0)).into();
        let ported = [(6, 0), (6, 1), (6, 2), (6, 3), (6, 4), (17, 1), (17, 2)];
        services.extend(ported.iter().flat_map(|(proto, port)| [1, 5, 9].map(|sport| (*proto, Some(*port), sport))));
        services.extend([0x800, 0x801, 0x900].map(|icmp| (ICMP, Some(icmp), 0)));
        services.extend([0x800, 0x801, 0x900].map(|icmp| (ICMPV6, Some(icmp), 0)));
        let mut packets = Vec::new();
        for (from, to) in [(0, 1), (1, 0), (2, 0), (2, 1), (2, SELF_PORT), (2, NO_PORT), (SELF_PORT, 0)] {
            for &(source, destination) in &addresses {
                let family = if source.is_ipv4() { Family::V4 } else { Family::V6 };
                for &(proto, detail, sport) in services.iter().filter(|(p, d, _)| d.is_none() || shows(*p, family)) {
                    for vlan in [UNTAGGED, 7] {
                        let packet = Packet { from, to, source, destination, proto, detail, sport, vlan };
                        packets.push((packet, packet.meta()));
                    }
                }
            }
        }
        packets
    }

    fn small_prefixes(bits: u128, longest: u8, shortest: u8) -> impl Strategy<Value = Vec<Prefix>> {
        let hosts = 1u128 << (longest - shortest);
        let shift = if longest == 32 { 96 } else { 0 };
        let prefix = (0..hosts, shortest..=longest)
            .prop_map(move |(host, len)| ((bits + host) << shift & prefix_mask(len), len));
        prop_oneof![3 => Just(vec![(0, 0)]), 5 => prop::collection::vec(prefix, 1..4), 1 => Just(Vec::new())]
    }

    fn small_addresses(shortest: u8) -> impl Strategy<Value = Addresses> {
        (small_prefixes(0xc000_0200, 32, shortest), small_prefixes(0x2001_0db8 << 96, 128, 127))
            .prop_map(|(v4, v6)| Addresses { v4, v6 })
    }

    fn small_rule() -> impl Strategy<Value = Rule> {
        let ports = || {
            prop_oneof![3 => Just(16 + 8 + 7u8), 2 => 1u8..32].prop_map(|mask| {
                let mut ports = Ports::default();
                [0, 1, 2, SELF_PORT, NO_PORT].iter().enumerate().filter(|(at, _)| mask >> at & 1 != 0).for_each(
                    |(_, port)| {
                        ports.insert(*port);
                    },
                );
                ports
            })
        };
        let service = prop_oneof![
            prop::sample::select(vec![6u8, 17, ICMP, ICMPV6, 47]).prop_map(|proto| (proto, Detail::Any)),
            // From zero to three, or to the end, so that the packets stand for all.
            (0u16..4, prop_oneof![0u16..4, Just(u16::MAX)]).prop_map(|(a, b)| (6, Detail::Ports(a.min(b)..=a.max(b)))),
            prop::sample::select(vec![0..=1u16, 2..=u16::MAX, 0..=u16::MAX])
                .prop_map(|range| (17, Detail::Ports(range))),
            (prop::sample::select(vec![ICMP, ICMPV6]), prop::option::of(Just(0u8)))
                .prop_map(|(proto, code)| (proto, Detail::Icmp(8, code))),
        ]
        .prop_map(|(proto, detail)| Service { proto, detail });
        let sports = prop::sample::select(vec![vec![], vec![], vec![], vec![0..=8u16], vec![9..=u16::MAX, 0..=3]]);
        let vlans = prop::sample::select(vec![vec![], vec![], vec![], vec![0..=4095], vec![UNTAGGED..=UNTAGGED]]);
        let action = prop_oneof![4 => Just(Action::Allow), 4 => Just(Action::Deny), 1 => Just(Action::Count)];
        let services = prop_oneof![1 => Just(Vec::new()), 2 => prop::collection::vec(service, 1..4)];
        ((ports(), ports()), (small_addresses(29), small_addresses(30)), services, sports, vlans, action).prop_map(
            |((from, to), (source, destination), services, sports, vlans, action)| {
                let ported = |service: &Service| {
                    PORT_PROTOCOLS.contains(&service.proto) && !matches!(service.detail, Detail::Icmp(..))
                };
                let source_ports =
                    if !services.is_empty() && services.iter().all(ported) { sports } else { Vec::new() };
                Rule { from, to, source, destination, services, source_ports, vlans, action }
            },
        )
    }

    /// What the definitions say, packet by packet: the kind of each rule with one.
    fn brute(rules: &[Rule], default: Action, packets: &[(Packet, Meta)]) -> Vec<(usize, Vec<Kind>)> {
        let matching: Vec<Vec<bool>> = rules
            .iter()
            .map(|rule| {
                let alone = [Rule { action: Action::Allow, ..rule.clone() }];
                packets.iter().map(|packet| judged(&alone, Action::Deny, packet).0.is_some()).collect()
            })
            .collect();
        let decides = |rule: usize| rules[rule].action != Action::Count;
        let first = |packet: usize, mut among: std::ops::Range<usize>, kept: &[bool]| {
            among.find(|rule| kept[*rule] && decides(*rule) && matching[*rule][packet])
        };
        let mut kept = vec![true; rules.len()];
        let mut found = Vec::new();
        for rule in 0..rules.len() {
            let mine: Vec<usize> = (0..packets.len()).filter(|packet| matching[rule][*packet]).collect();
            if mine.is_empty() {
                found.push((rule, vec![Kind::NoWay, Kind::NoService]));
            } else if mine.iter().all(|packet| first(*packet, 0..rule, &kept).is_some()) {
                let otherwise = |packet: &usize| {
                    first(*packet, 0..rule, &kept).is_some_and(|first| rules[first].action != rules[rule].action)
                };
                let kind = match (decides(rule), mine.iter().any(otherwise)) {
                    (false, _) => Kind::NeverCounts,
                    (true, true) => Kind::Shadowed,
                    (true, false) => Kind::RedundantBehind,
                };
                found.push((rule, vec![kind]));
            } else {
                continue;
            }
            kept[rule] = false;
        }
        for rule in (0..rules.len()).rev().filter(|rule| decides(*rule)) {
            let own = |packet: &usize| matching[rule][*packet] && first(*packet, 0..rule, &kept).is_none();
            // Until a rule that is kept decides alike, none may decide otherwise, whether it is kept or not.
            let alike = |packet: usize| {
                let after = (rule + 1..rules.len()).filter(|other| decides(*other) && matching[*other][packet]);
                let mut after = after.map(|other| (rules[other].action == rules[rule].action, kept[other]));
                after.find(|(alike, kept)| !alike || *kept).map_or(default == rules[rule].action, |(alike, _)| alike)
            };
            if kept[rule] && (0..packets.len()).filter(own).all(alike) {
                kept[rule] = false;
                found.push((rule, vec![Kind::RedundantBefore]));
            }
        }
        found.sort_by_key(|(rule, _)| *rule);
        found
    }

    fn judged(rules: &[Rule], default: Action, (packet, meta): &(Packet, Meta)) -> (Option<usize>, Action) {
        let by = linear::judge(rules, meta, packet.to).0;
        (by, by.map_or(default, |by| rules[by].action))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_found_is_what_the_packets_say(
            rules in prop::collection::vec(small_rule(), 1..9),
            default in prop::sample::select(vec![Action::Allow, Action::Deny]),
            spared in prop_oneof![Just(0), any::<u8>()],
        ) {
            let packets = small_packets();
            let found = lint(&rules, default, &small_exits(), UNLIMITED);
            let expected = brute(&rules, default, &packets);
            let places: Vec<usize> = found.iter().map(|found| found.rule).collect();
            prop_assert_eq!(&places, &expected.iter().map(|(rule, _)| *rule).collect::<Vec<_>>(), "{:#?}", found);
            for (found, (_, kinds)) in found.iter().zip(&expected) {
                prop_assert!(kinds.contains(&found.kind), "{:?} is {:?}", found, kinds);
            }
            // Witnesses, told by the plain reading.
            for Found { rule, kind, witness, by, involved } in &found {
                let Some(packet) = witness else {
                    prop_assert!(matches!(kind, Kind::NoWay | Kind::NoService) && involved.is_empty());
                    continue;
                };
                let alone = [Rule { action: Action::Allow, ..rules[*rule].clone() }];
                let packet = &(*packet, packet.meta());
                prop_assert_eq!(judged(&alone, Action::Deny, packet).0, Some(0), "it matches its witness");
                let (decided, _) = judged(&rules, default, packet);
                match kind {
                    Kind::RedundantBefore => {
                        prop_assert_eq!(decided, Some(*rule));
                        let action = by.map_or(default, |by| rules[by].action);
                        prop_assert_eq!(action, rules[*rule].action);
                    }
                    _ => prop_assert_eq!(decided, *by),
                }
                if *kind != Kind::NeverCounts {
                    let otherwise = decided.is_some_and(|by| rules[by].action != rules[*rule].action);
                    prop_assert_eq!(*kind == Kind::Shadowed, otherwise);
                }
                prop_assert!(by.is_none_or(|by| involved.contains(&by)));
                // The others involved are enough.
                if *kind != Kind::RedundantBefore {
                    let mut few: Vec<Rule> = involved.iter().map(|rule| rules[*rule].clone()).collect();
                    few.extend(alone);
                    prop_assert!(packets.iter().all(|packet| judged(&few, default, packet).0 != Some(few.len() - 1)));
                }
            }
            // Without all of them, or some, every packet is decided alike.
            let kept = (0..rules.len()).filter(|rule| !places.contains(rule) || spared >> rule & 1 != 0);
            let kept: Vec<Rule> = kept.map(|rule| rules[rule].clone()).collect();
            for packet in &packets {
                prop_assert_eq!(judged(&rules, default, packet).1, judged(&kept, default, packet).1, "{:?}", packet);
            }
        }
    }

    fn any_ports() -> Ports {
        let mut ports = Ports::all(2);
        ports.insert(NO_PORT);
        ports
    }

    fn wire() -> Vec<Ports> {
        small_exits()[..2].to_vec()
    }

    fn plain(source: Prefix, destination: Prefix, service: Service, action: Action) -> Rule {
        let side = |prefix| Addresses { v4: vec![prefix], v6: Vec::new() };
        Rule {
            from: any_ports(),
            to: any_ports(),
            source: side(source),
            destination: side(destination),
            services: vec![service],
            source_ports: Vec::new(),
            vlans: Vec::new(),
            action,
        }
    }

    /// Rules of random prefixes, services and actions; every five-hundredth is a part of one before.
    fn many(count: usize) -> (Vec<Rule>, Vec<usize>) {
        let mut state = 1u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut rules, mut parts): (Vec<Rule>, Vec<usize>) = (Vec::new(), Vec::new());
        for at in 0..count {
            let mut prefix = || {
                let len = 12 + random(20) as u8;
                (u128::from(random(1 << 31) as u32) << 97 & prefix_mask(len), len)
            };
            let (source, destination) = (prefix(), prefix());
            let first = random(60_000) as u16;
            let detail = Detail::Ports(first..=first + random(5_000) as u16);
            let proto = if random(2) == 0 { 6 } else { 17 };
            let action = if random(3) == 0 { Action::Deny } else { Action::Allow };
            let mut rule = plain(source, destination, Service { proto, detail }, action);
            if at % 500 == 499 {
                rule = Rule { action, ..rules[at - 400].clone() };
                rule.source.v4[0].1 = 32;
                parts.push(at);
            }
            rules.push(rule);
        }
        (rules, parts)
    }

    #[test]
    fn ten_thousand_rules() {
        let (rules, parts) = many(10_000);
        let found = lint(&rules, Action::Deny, &wire(), Work::DEFAULT);
        assert!(found.iter().all(|found| found.kind != Kind::Undecided), "{found:#?}");
        for part in parts {
            let of = found.iter().find(|found| found.rule == part).expect("the part of another rule");
            let dead = [Kind::Shadowed, Kind::RedundantBehind];
            assert!(dead.contains(&of.kind) && of.involved.iter().all(|other| *other < part), "{of:?}");
            let by = of.by.expect("a rule before");
            assert!(by <= part - 400, "the first that takes it");
            assert_eq!(of.kind == Kind::Shadowed, rules[by].action != rules[part].action);
        }
    }

    /// Many rules cover one, and lists of thousands of prefixes each other.
    #[test]
    fn sets_stay_sets() {
        let hosts = |first: u32, step: u32| -> Vec<Prefix> {
            (0..4096).map(|n| (u128::from(first + n * step) << 96, 32)).collect()
        };
        let tcp = Service { proto: 6, detail: Detail::Any };
        let from = |sources: Vec<Prefix>, action| {
            let mut rule = plain((0, 0), (0, 0), tcp.clone(), action);
            rule.source.v4 = sources;
            rule
        };
        let mut rules: Vec<Rule> =
            (0..256).map(|n| from(vec![(u128::from(0x0a00_0000u32 + n) << 96, 32)], Action::Allow)).collect();
        rules.push(from(vec![(0x0a00_0000 << 96, 24)], Action::Allow));
        // Odd addresses, then all of the first half of those, then even ones.
        rules.push(from(hosts(0x0b00_0001, 2), Action::Deny));
        rules.push(from(hosts(0x0b00_0000, 1), Action::Allow));
        rules.push(from(hosts(0x0b00_0000, 2), Action::Deny));
        let look = |default| {
            let found = lint(&rules, default, &wire(), Work::DEFAULT);
            found.iter().map(|found| (found.rule, found.kind, found.involved.len())).collect::<Vec<_>>()
        };
        assert_eq!(
            look(Action::Deny),
            [(256, Kind::RedundantBehind, 256), (259, Kind::RedundantBefore, 0)],
            "without the last, the default denies"
        );
        let allowed = look(Action::Allow);
        assert_eq!(allowed.len(), 257, "the first 256 and the one they cover: {allowed:?}");
        assert!(allowed.iter().all(|(rule, ..)| *rule <= 256));
    }

    #[test]
    fn what_takes_too_long_is_undecided() {
        let (rules, _) = many(500);
        let found = lint(&rules, Action::Deny, &wire(), Work { floor: 0, each: 0, all: 0 });
        assert!(!found.is_empty() && found.iter().all(|found| found.kind == Kind::Undecided));
    }

    #[test]
    fn packets_are_written_plainly() {
        let place = crate::config::source::Place { file: "t".into(), line: 1, column: 1 };
        let port = |name: &str| crate::config::names::PortName {
            name: name.into(),
            zone: None,
            mac: None,
            carrier: None,
            place: place.clone(),
        };
        let names = Names { ports: ["lan", "wan", "dmz"].map(port).into(), ..Names::default() };
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let (source, destination) = (address("10.0.0.5"), address("192.0.2.7"));
        let plain =
            Packet { from: 0, to: 1, source, destination, proto: 6, detail: Some(443), sport: 40000, vlan: UNTAGGED };
        let six = Packet { source: address("2001:db8::1"), destination: address("2001:db8::2"), ..plain };
        for (packet, text) in [
            (plain, "tcp 10.0.0.5:40000 > 192.0.2.7:443 in lan"),
            (Packet { vlan: 100, ..plain }, "tcp 10.0.0.5:40000 > 192.0.2.7:443 in lan vlan 100"),
            (Packet { detail: None, proto: 17, ..plain }, "udp 10.0.0.5 > 192.0.2.7 in lan fragment"),
            (Packet { detail: Some(0x800), proto: 1, ..plain }, "icmp 10.0.0.5 > 192.0.2.7 echo in lan"),
            (Packet { detail: Some(0x304), proto: 1, ..plain }, "icmp 10.0.0.5 > 192.0.2.7 3/4 in lan"),
            (Packet { detail: None, proto: 89, ..plain }, "proto/89 10.0.0.5 > 192.0.2.7 in lan"),
            (six, "tcp [2001:db8::1]:40000 > [2001:db8::2]:443 in lan"),
            (Packet { detail: Some(0x8000), proto: 58, ..six }, "icmpv6 2001:db8::1 > 2001:db8::2 echo in lan"),
            (Packet { from: 2, ..plain }, "tcp 10.0.0.5:40000 > 192.0.2.7:443 in dmz out wan"),
        ] {
            assert_eq!(packet.text(&names, &small_exits()), text);
        }
    }
}
