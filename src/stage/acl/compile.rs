//! From the rules of the file to programs: which rules a packet meets depends on its ports, its family and whether it has a
//! transport header, and each such case that differs is compiled by itself.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use crate::config::names::{Detail, Service};
use crate::dpdk::eal::Eal;
use crate::packet::meta::flag;
use crate::packet::{Meta, NO_PORT};

use super::matcher::{ALL, Counter, Entry, Family, Matcher, Side, Span, transport};
use crate::stage::classes::{Classes, Prefix};
use crate::stage::ingress::Ports;

crate::choice! {
    /// What a rule does.
    pub enum Action {
        /// Lets the packet pass.
        Allow = "allow",
        /// Drops it.
        Deny = "deny",
        /// Drops it and tells its sender.
        Reject = "reject",
        /// Counts it, and leaves the decision to the rules that follow.
        Count = "count"
    }
}

/// Addresses of both families, disjoint prefixes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4, in the first 32 bits.
    pub v4: Vec<Prefix>,
    /// IPv6.
    pub v6: Vec<Prefix>,
}

impl Addresses {
    /// Every address.
    pub fn any() -> Addresses {
        Addresses { v4: vec![(0, 0)], v6: vec![(0, 0)] }
    }

    /// Those of a family.
    pub fn of(&self, family: Family) -> &[Prefix] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

/// A rule of the file with all names resolved.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Ports it may have come from, `SELF_PORT` among them if the box itself may have sent it.
    pub from: Ports,
    /// Ports it may leave by, `SELF_PORT` if it may be for the box itself; `NO_PORT` if it need not leave.
    pub to: Ports,
    /// Source addresses.
    pub source: Addresses,
    /// Destination addresses.
    pub destination: Addresses,
    /// Protocols and ports; any if empty.
    pub services: Vec<Service>,
    /// Source ports; any if empty. They need services whose protocols have ports.
    pub source_ports: Vec<RangeInclusive<u16>>,
    /// VLAN ids, `UNTAGGED` included; any if empty.
    pub vlans: Vec<RangeInclusive<u16>>,
    /// What it does.
    pub action: Action,
}

/// What the compiled form may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Conditions up to which none is put into a table.
    pub few: usize,
    /// Bytes of all tables.
    pub memory: usize,
}

/// The most conditions of one program.
const MOST_CONDITIONS: usize = 2_000_000;
/// Lists of more prefixes become classes.
const LONG: usize = 64;
/// Rules of more pairs of source and destination have the longer list become a class.
const PAIRS: usize = 256;

/// Packets of which a program decides: by family, and whether they show a transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    family: Family,
    transport: bool,
}

impl Shape {
    /// How many there are.
    pub const COUNT: usize = 4;
    const ALL: [Shape; Shape::COUNT] = [
        Shape { family: Family::V4, transport: true },
        Shape { family: Family::V4, transport: false },
        Shape { family: Family::V6, transport: true },
        Shape { family: Family::V6, transport: false },
    ];

    /// The place in `ALL` of a packet's shape; `None` if it is not IP.
    #[inline]
    pub fn index(meta: &Meta) -> Option<usize> {
        let family = if meta.has(flag::IPV4) {
            0
        } else if meta.has(flag::IPV6) {
            2
        } else {
            return None;
        };
        Some(family + usize::from(transport(meta).is_none()))
    }

    fn name(self) -> &'static str {
        match (self.family, self.transport) {
            (Family::V4, true) => "IPv4",
            (Family::V4, false) => "IPv4 without transport header",
            (Family::V6, true) => "IPv6",
            (Family::V6, false) => "IPv6 without transport header",
        }
    }
}

/// How packets of one kind are decided and counted.
#[derive(Debug)]
pub struct Program {
    /// Finds the rule that allows or denies.
    pub decide: Matcher,
    /// Finds the rules that count.
    pub count: Counter,
    family: Family,
}

/// Number of a program.
pub type ProgramId = u16;

/// All rules, compiled.
#[derive(Debug)]
pub struct Compiled {
    from_class: [u8; 256],
    to_class: [u8; 256],
    to_classes: usize,
    /// By class of ingress and egress port: the program of each shape.
    by_ports: Vec<[ProgramId; Shape::COUNT]>,
    programs: Vec<Program>,
    classes: [Option<Classes>; 2],
}

/// Why rules could not be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The first of the rules concerned, if not all of them are.
    pub rule: usize,
    /// What is wrong.
    pub message: String,
}

/// Compiles rules for an appliance of `ports` ports. `eal` is asked for when a table is needed.
pub fn compile(
    rules: &[Rule],
    ports: usize,
    limits: Limits,
    eal: &mut dyn FnMut() -> Result<&'static Eal, String>,
) -> Result<Compiled, Refusal> {
    let sets = [Family::V4, Family::V6].map(|family| Sets::of(rules, family));
    let [v4, v6] = &sets;
    let classes = [v4.classes()?, v6.classes()?];
    let (from_class, from_classes) = port_classes(rules.iter().map(|rule| rule.from), ports);
    let (to_class, to_classes) = port_classes(rules.iter().map(|rule| rule.to), ports);
    let mut compiled = Compiled {
        from_class,
        to_class,
        to_classes: to_classes.len(),
        by_ports: Vec::new(),
        programs: Vec::new(),
        classes,
    };
    let mut known_rules = HashMap::<Vec<usize>, [ProgramId; Shape::COUNT]>::new();
    let mut known_programs = HashMap::<(Family, Vec<Entry>, Vec<Entry>), ProgramId>::new();
    let mut memory = limits.memory;
    for (from, to) in from_classes.iter().flat_map(|from| to_classes.iter().map(move |to| (*from, *to))) {
        let applicable: Vec<usize> =
            (0..rules.len()).filter(|rule| rules[*rule].from.contains(from) && rules[*rule].to.contains(to)).collect();
        if let Some(programs) = known_rules.get(&applicable) {
            compiled.by_ports.push(*programs);
            continue;
        }
        let mut programs = [0; Shape::COUNT];
        for (program, shape) in programs.iter_mut().zip(Shape::ALL) {
            let refuse = |message| Refusal { rule: applicable.first().copied().unwrap_or(0), message };
            let (mut decide, mut count) = (Vec::new(), Vec::new());
            for rule in &applicable {
                let into = if rules[*rule].action == Action::Count { &mut count } else { &mut decide };
                sets[shape.family as usize].entries(*rule, &rules[*rule], shape, &compiled.classes, into);
                if into.len() > MOST_CONDITIONS {
                    return Err(refuse(format!("the rules amount to more than {MOST_CONDITIONS} conditions")));
                }
            }
            let key = (shape.family, decide, count);
            *program = match known_programs.get(&key) {
                Some(program) => *program,
                None => {
                    let (_, decide, count) = &key;
                    let conditions = decide.len();
                    let matcher = Matcher::new(shape.family, decide, limits.few, memory, &mut *eal).map_err(|why| {
                        let mib = limits.memory >> 20;
                        refuse(format!("{conditions} conditions cannot be compiled in {mib} MiB: {why}"))
                    })?;
                    memory = memory.saturating_sub(matcher.bytes());
                    let count = Counter::new(shape.family, count);
                    let id = compiled.programs.len() as ProgramId;
                    if id == ProgramId::MAX {
                        return Err(refuse("the ports meet in too many ways".into()));
                    }
                    compiled.programs.push(Program { decide: matcher, count, family: shape.family });
                    known_programs.insert(key, id);
                    id
                }
            };
        }
        known_rules.insert(applicable, programs);
        compiled.by_ports.push(programs);
    }
    Ok(compiled)
}

/// Ports that the same rules speak of are one class. Gives each port its class, and each class one of its ports; a port
/// that does not exist is in a class of its own.
pub fn port_classes(sets: impl Iterator<Item = Ports>, ports: usize) -> ([u8; 256], Vec<u8>) {
    let mut distinct: Vec<Ports> = Vec::new();
    for set in sets {
        if !distinct.contains(&set) {
            distinct.push(set);
        }
    }
    let mut classes = HashMap::<Vec<bool>, u8>::new();
    let mut of_port = [0; 256];
    let mut first = Vec::new();
    // Existing ports first: there may be 255 of them, so that together with "none" they still have room.
    let order = (0..ports.min(usize::from(NO_PORT)) as u8).chain([NO_PORT]);
    for port in order.chain((ports.min(255)..255).map(|port| port as u8)) {
        let speak: Vec<bool> = distinct.iter().map(|set| set.contains(port)).collect();
        let next = first.len() as u8;
        of_port[usize::from(port)] = *classes.entry(speak).or_insert_with(|| {
            first.push(port);
            next
        });
    }
    (of_port, first)
}

/// The lists of prefixes of one family that are long enough to become classes.
struct Sets<'r> {
    family: Family,
    lists: Vec<&'r [Prefix]>,
    /// Which of them stands for a rule's source and destination.
    of_rule: Vec<[Option<usize>; 2]>,
}

impl<'r> Sets<'r> {
    fn of(rules: &'r [Rule], family: Family) -> Sets<'r> {
        let mut known = HashMap::<&[Prefix], usize>::new();
        let mut sets = Sets { family, lists: Vec::new(), of_rule: Vec::new() };
        for rule in rules {
            let sides = [rule.source.of(family), rule.destination.of(family)];
            let [source, destination] = sides.map(<[_]>::len);
            let crowded = source * destination > PAIRS;
            let long = [
                source > LONG || crowded && source >= destination,
                destination > LONG || crowded && destination > source,
            ];
            let mut of_rule = [None; 2];
            for (set, (list, long)) in of_rule.iter_mut().zip(sides.into_iter().zip(long)) {
                *set = long.then(|| {
                    *known.entry(list).or_insert_with(|| {
                        sets.lists.push(list);
                        sets.lists.len() - 1
                    })
                });
            }
            sets.of_rule.push(of_rule);
        }
        sets
    }

    fn classes(&self) -> Result<Option<Classes>, Refusal> {
        if self.lists.is_empty() {
            return Ok(None);
        }
        let first = self.of_rule.iter().position(|sets| *sets != [None; 2]).unwrap_or(0);
        let message = "the sets of addresses overlap in more than 65,535 ways".into();
        Classes::new(&self.lists).map(Some).ok_or(Refusal { rule: first, message })
    }

    /// Adds the conditions of a rule for packets of a shape.
    fn entries(&self, at: usize, rule: &Rule, shape: Shape, classes: &[Option<Classes>; 2], into: &mut Vec<Entry>) {
        let sides = [(&rule.source, self.of_rule[at][0]), (&rule.destination, self.of_rule[at][1])];
        let [sources, destinations] = sides.map(|(addresses, set)| match (set, &classes[self.family as usize]) {
            (Some(set), Some(classes)) => {
                classes.of_set(set).iter().map(|range| Side::Class((*range.start(), *range.end()))).collect()
            }
            _ => addresses.of(self.family).iter().map(|prefix| Side::Prefix(*prefix)).collect::<Vec<Side>>(),
        });
        let spans = |ranges: &[RangeInclusive<u16>]| -> Vec<Span> {
            match ranges {
                [] => vec![ALL],
                some => some.iter().map(|range| (*range.start(), *range.end())).collect(),
            }
        };
        let (sports, vlans) = (spans(&rule.source_ports), spans(&rule.vlans));
        let mut services = Vec::new();
        if rule.services.is_empty() && rule.source_ports.is_empty() {
            services.push((None, ALL));
        }
        for service in &rule.services {
            let bare = service.detail == Detail::Any && rule.source_ports.is_empty();
            let dport = match &service.detail {
                Detail::Any => ALL,
                Detail::Ports(range) => (*range.start(), *range.end()),
                Detail::Icmp(kind, Some(code)) => {
                    (u16::from_be_bytes([*kind, *code]), u16::from_be_bytes([*kind, *code]))
                }
                Detail::Icmp(kind, None) => (u16::from_be_bytes([*kind, 0]), u16::from_be_bytes([*kind, 0xff])),
            };
            if bare || shape.transport {
                services.push((Some(service.proto), dport));
            }
        }
        for (proto, dport) in services {
            for source in &sources {
                for destination in &destinations {
                    for sport in &sports {
                        into.extend(vlans.iter().map(|vlan| Entry {
                            rule: at as u32,
                            proto,
                            source: *source,
                            destination: *destination,
                            sport: *sport,
                            dport,
                            vlan: *vlan,
                        }));
                    }
                }
            }
        }
    }
}

impl Compiled {
    /// The programs of packets that came in on `port` and leave by `out`, by [`Shape::index`].
    #[inline]
    pub fn programs_of(&self, port: u8, out: u8) -> &[ProgramId; Shape::COUNT] {
        let from = usize::from(self.from_class[usize::from(port)]);
        let to = usize::from(self.to_class[usize::from(out)]);
        &self.by_ports[from * self.to_classes + to]
    }

    /// A program and the classes of its family.
    #[inline]
    pub fn program(&self, id: ProgramId) -> (&Program, Option<&Classes>) {
        let program = &self.programs[usize::from(id)];
        (program, self.classes[program.family as usize].as_ref())
    }

    /// Lines for people: every program that decides something, for which ports, and how large it is.
    pub fn describe(&self, ports: &[(u8, String)]) -> Vec<String> {
        let mut lines = Vec::new();
        for (id, program) in self.programs.iter().enumerate() {
            let (mut pairs, mut shapes) = (Vec::new(), Vec::new());
            for (from, to) in (0..ports.len()).flat_map(|from| (0..ports.len()).map(move |to| (from, to))) {
                let class_of = |classes: &[u8; 256], at: usize| usize::from(classes[usize::from(ports[at].0)]);
                let class = class_of(&self.from_class, from) * self.to_classes + class_of(&self.to_class, to);
                let mine =
                    self.by_ports[class].iter().zip(Shape::ALL).filter(|(program, _)| usize::from(**program) == id);
                for (_, shape) in mine.filter(|_| from != to) {
                    pairs.push((from, to));
                    shapes.push(shape.name());
                }
            }
            pairs.dedup();
            shapes.sort_unstable();
            shapes.dedup();
            let Some((from, to)) = pairs.first() else { continue };
            let others = match pairs.len() {
                1 => String::new(),
                some => format!(" and {} more", some - 1),
            };
            let counts = match program.count.len() {
                0 => String::new(),
                some => format!("; {some} conditions that count, compared in turn"),
            };
            let (from, to, shapes) = (&ports[*from].1, &ports[*to].1, shapes.join(" and "));
            lines.push(format!("{from} > {to}{others}, {shapes}: {}{counts}", program.decide.describe()));
        }
        for (name, classes) in ["IPv4", "IPv6"].into_iter().zip(&self.classes) {
            if let Some(classes) = classes {
                let (count, kib) = (classes.count(), classes.bytes().div_ceil(1024));
                let place = if classes.hugepages() { " on hugepages" } else { "" };
                lines.push(format!("{name} sets: {count} classes of addresses, {kib} KiB{place}"));
            }
        }
        lines
    }
}
