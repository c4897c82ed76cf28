//! What a policy is meant to do, written beside it: `[[test]]`, and whether it holds.
//!
//! A test of one packet takes it through the whole pipeline, as `explain` does. A test of a range (a prefix, a set, `any`)
//! speaks of every packet in it and is decided exactly, on the rules of the `acl` stages (and of `dnat`, which say what those
//! see) alone: what a packet stage such as `guard` drops besides is not looked at. Each failure comes with one packet that shows it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;

use serde::Serialize;

use crate::config::Config;
use crate::config::names::{Names, WITH_PORTS};
use crate::config::notation::{Endpoint, Notation, Offset, Tag};
use crate::config::source::{At, Mistake, Mistakes, Place};
use crate::explain::{End, Explainer, frame};
use crate::packet::NO_PORT;
use crate::stage::acl::range::{Decided, Range, Span, Walk, Wanted, dimension};
use crate::stage::acl::{self, Acl};
use crate::stage::classes::Prefix;
use crate::stage::ingress::Ports;
use crate::stage::pipeline::Blueprint;
use crate::stage::{Plan, Rule, Stage};
use crate::verdict;
use crate::wire::protocol;

mod translated;

use translated::Part;

crate::choice! {
    /// What is to become of packets.
    pub enum Expect {
        /// They are sent.
        Allow = "allow",
        /// They are not, whether their senders are told or not.
        Deny = "deny",
        /// They are not, and their senders are told.
        Reject = "reject"
    }
}

crate::section! {
    /// `[[test]]`
    pub struct Test {
        /// What it says, in a few words.
        pub name: At<String>,
        /// Packets, such as "tcp 10.0.0.5:40000 > 192.0.2.7:443 syn in lan". With a prefix, a range of addresses, "@set" or "any" for an address, or a range of ports, "any" or none for the destination port, it is a range of packets, and the test is about every one of them: any protocol if it is "any", any port, ICMP type and VLAN that is not said. Behind "in" stands a port or a zone.
        pub packet: Vec<At<Notation>>,
        /// What is to become of them: "allow", "deny" (with an answer or without) or "reject".
        pub expect: Expect,
        /// The rule that must decide.
        pub rule: Option<At<String>>,
        /// The port by which they must leave; "self" if they must be for the box itself.
        pub out: Option<At<String>>,
        /// Rules whose packets the test is not about, in a range: "nothing else".
        pub except: Vec<At<String>> = Vec::new(),
    }
}

/// Comparisons of parts of a range with rules before a test is given up.
const WORK: u64 = 20_000_000;

/// Notes what can be known to be wrong with tests before anything is compiled.
pub fn check(tests: &[Test], names: &Names, mistakes: &mut Mistakes) {
    for (number, test) in tests.iter().enumerate() {
        let key = format!("test[{number}].packet");
        for packet in &test.packet {
            let at = |offset: Offset| {
                // The text begins behind its quotation mark.
                Place { column: packet.place.column + 1 + offset.0 as u32, ..packet.place.clone() }
            };
            let from = At { value: packet.from.clone(), place: at(packet.from_at) };
            Ports::resolve(&[from], names, &key, mistakes);
            for side in [&packet.source, &packet.destination] {
                let text = At { value: side.addresses.clone(), place: at(side.at) };
                names.resolve_addresses(&[text], &key, mistakes);
            }
        }
        if let Some(out) = test.out.as_ref().filter(|out| names.port_or_self(out).is_none()) {
            let known = names.ports.iter().map(|port| port.name.as_str());
            mistakes.unknown(&out.place, &format!("test[{number}].out"), "port", out, known);
        }
        if let (Some(except), true) = (test.except.first(), test.packet.iter().all(|packet| packet.is_single())) {
            mistakes.at(
                &except.place,
                &format!("test[{number}].except"),
                "is for ranges, and this is about single packets",
            );
        }
    }
}

/// How a test ended.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Its name.
    pub test: String,
    /// Where it is written.
    #[serde(flatten)]
    pub place: Place,
    /// `ok`, `failed` or `undecided`.
    pub result: &'static str,
    /// What was expected.
    pub expected: String,
    /// What is the case instead.
    pub got: Option<String>,
    /// A packet that shows it; `explain` takes it as it is.
    pub packet: Option<String>,
    /// The rule that decided of that packet.
    pub rule: Option<String>,
    /// Where that rule is written.
    pub decided_at: Option<Place>,
}

impl Outcome {
    /// True if the policy does what the test says.
    pub fn is_good(&self) -> bool {
        self.result == "ok"
    }
}

/// What becomes of a packet, or of all packets of a part of a range.
struct Fate<'a> {
    verdict: Expect,
    rule: Option<&'a Rule>,
    /// The port it leaves by, or `NO_PORT`.
    out: u8,
    /// Why it is not sent, if no rule says so.
    reason: String,
}

/// Why a test does not hold.
enum Fault {
    /// A packet that is not treated as expected, and how it is.
    Packet(String, String, Option<Box<Rule>>),
    /// It cannot be told, and why.
    Undecided(String),
}

/// Runs all tests of a config against the pipeline compiled from it. The error lists what the tests name and the pipeline has
/// not.
pub fn run(config: &Config, blueprint: &Blueprint) -> Result<Vec<Outcome>, Vec<Mistake>> {
    let mut mistakes = Mistakes::default();
    let known: BTreeSet<&str> = blueprint.rules.all().iter().map(|rule| rule.name.as_str()).collect();
    for (number, test) in config.tests.iter().enumerate() {
        let rule = test.rule.iter().map(|rule| ("rule", rule));
        for (key, rule) in rule.chain(test.except.iter().map(|rule| ("except", rule))) {
            if !known.contains(rule.as_str()) {
                mistakes.unknown(&rule.place, &format!("test[{number}].{key}"), "rule", rule, known.iter().copied());
            }
        }
    }
    if !mistakes.is_empty() {
        return Err(mistakes.into_sorted());
    }
    let bench =
        Bench { config, blueprint, explainer: Explainer::new(config, blueprint), walks: walks(config, blueprint) };
    Ok(config.tests.iter().map(|test| bench.test(test)).collect())
}

/// Tests that do not hold, as mistakes of the file; and what is wrong with them.
pub fn findings(config: &Config, blueprint: &Blueprint) -> Vec<Mistake> {
    let outcomes = match run(config, blueprint) {
        Ok(outcomes) => outcomes,
        Err(mistakes) => return mistakes,
    };
    let mistake = |(number, outcome): (usize, &Outcome)| {
        let Outcome { test, expected, got, packet, .. } = outcome;
        let got = got.as_deref().unwrap_or_default();
        let message = format!("{test:?} {}: expected {expected}, {got}", outcome.result);
        let help = packet.as_ref().map(|packet| format!("flowgate explain {} '{packet}'", config.source.path()));
        Mistake { place: Some(outcome.place.clone()), key: format!("test[{number}]"), message, help }
    };
    outcomes.iter().enumerate().filter(|(_, outcome)| !outcome.is_good()).map(mistake).collect()
}

/// The `acl` stages in their order, with their rules' names.
fn walks(config: &Config, blueprint: &Blueprint) -> Vec<(Walk, Vec<Rule>)> {
    let acls = config.pipeline.iter().filter(|stage| stage.kind.name == Acl::NAME);
    let walk = |stage: &crate::config::StageConfig| {
        let config_of = stage.config.as_ref()?.downcast_ref::<acl::Config>()?;
        let rules = blueprint.rules.all().iter().filter(|rule| rule.stage == stage.instance).cloned().collect();
        Some((Walk::new(config_of, &config.names), rules))
    };
    acls.filter_map(walk).collect()
}

/// What tests are run with.
struct Bench<'a> {
    config: &'a Config,
    blueprint: &'a Blueprint,
    explainer: Explainer,
    walks: Vec<(Walk, Vec<Rule>)>,
}

impl Bench<'_> {
    fn test(&self, test: &Test) -> Outcome {
        let fault = test.packet.iter().find_map(|packet| self.hold(test, packet).err());
        let mut expected = test.expect.word().to_owned();
        if let Some(rule) = &test.rule {
            expected += &format!(" by rule {:?}", rule.value);
        }
        if let Some(out) = &test.out {
            expected += &format!(", leaving by {}", out.value);
        }
        let (result, got, packet, rule) = match fault {
            None => ("ok", None, None, None),
            Some(Fault::Packet(packet, got, rule)) => ("failed", Some(got), Some(packet), rule),
            Some(Fault::Undecided(why)) => ("undecided", Some(why), None, None),
        };
        Outcome {
            test: test.name.value.clone(),
            place: test.name.place.clone(),
            result,
            expected,
            got,
            packet,
            rule: rule.as_ref().map(|rule| rule.name.clone()),
            decided_at: rule.map(|rule| rule.place),
        }
    }

    /// Whether a test holds for a packet or a range, on every port it may arrive on.
    fn hold(&self, test: &Test, packet: &Notation) -> Result<(), Fault> {
        let names = &self.config.names;
        let from = At { value: packet.from.clone(), place: test.name.place.clone() };
        let ports = Ports::resolve(&[from], names, "", &mut Mistakes::default()).unwrap_or_default();
        for port in names.every_port().filter(|port| ports.contains(*port)) {
            let from = names.port_name(port).unwrap_or_default().to_owned();
            match frame(packet) {
                Some(mut bytes) => {
                    self.explainer.address(port, &mut bytes);
                    let fate = self.fate(port, &bytes);
                    if !self.is_met(test, &fate) {
                        let packet = Notation { from, ..packet.clone() };
                        return Err(self.fault(packet.to_string(), &fate));
                    }
                }
                None => self.hold_range(test, packet, port)?,
            }
        }
        Ok(())
    }

    /// What the datapath does to one packet.
    fn fate(&self, port: u8, bytes: &[u8]) -> Fate<'_> {
        let explanation = self.explainer.explain(port, bytes, 1, &[]);
        let rule = self.blueprint.rules.slot(explanation.facts.rule);
        let (sent, reason) = match explanation.end {
            End::Known(verdict::Outcome::Sent) => (true, String::new()),
            End::Known(verdict::Outcome::Dropped(reason)) => (false, self.blueprint.layout.reason_name(reason)),
            End::Kept | End::Held => (false, "kept".into()),
        };
        let verdict = verdict(rule, sent);
        Fate { verdict, rule, out: if verdict == Expect::Allow { explanation.facts.out } else { NO_PORT }, reason }
    }

    fn is_met(&self, test: &Test, fate: &Fate<'_>) -> bool {
        let verdict = fate.verdict == test.expect || (test.expect, fate.verdict) == (Expect::Deny, Expect::Reject);
        let rule = test.rule.as_ref().is_none_or(|name| fate.rule.is_some_and(|rule| rule.name == name.value));
        let leaves = |out: &At<String>| self.config.names.port_or_self(out) == Some(fate.out);
        verdict && rule && test.out.as_ref().is_none_or(leaves)
    }

    fn fault(&self, packet: String, fate: &Fate<'_>) -> Fault {
        let mut got = format!("got {}", fate.verdict.word());
        match fate.rule {
            Some(rule) => got += &format!(" by rule {:?} ({}:{})", rule.name, rule.place.file, rule.place.line),
            None if fate.reason.is_empty() => got += " by default",
            None => got += &format!(" ({})", fate.reason),
        }
        if let Some(port) = self.config.names.port_name(fate.out) {
            got += &format!(", leaving by {port}");
        }
        got += &format!(", for {packet}");
        Fault::Packet(packet, got, fate.rule.cloned().map(Box::new))
    }

    /// Whether a test holds for every packet of a range that arrives on `port`.
    fn hold_range(&self, test: &Test, packet: &Notation, port: u8) -> Result<(), Fault> {
        let mut work = WORK;
        let Some(out) = self.egress(port) else { return self.hold_anywhere(test, packet, port, &mut work) };
        for range in self.wanted(packet).ranges() {
            let Some(out) = out else {
                let fate = Fate { verdict: Expect::Deny, rule: None, out: NO_PORT, reason: "no egress".into() };
                if self.is_met(test, &fate) {
                    continue;
                }
                return Err(self.fault(self.witness(&range, port), &fate));
            };
            let part = Part::unchanged(range);
            self.walk(test, part.judged.clone(), (port, out, &part), &self.walks, None, &mut work)?;
        }
        Ok(())
    }

    /// Whether a test holds for every packet of a range wherever routes lead it. If it does not hold for one that leads
    /// nowhere in fact, that cannot be told.
    fn hold_anywhere(&self, test: &Test, packet: &Notation, port: u8, work: &mut u64) -> Result<(), Fault> {
        if let Some(out) = &test.out {
            let why = format!("cannot be told of a range: whether its packets leave by {} is up to routes", out.value);
            return Err(Fault::Undecided(why));
        }
        let destinations = self.blueprint.nat.as_ref().map(|nat| &*nat.steering.destinations);
        for out in self.config.names.every_port().filter(|out| *out != port || port != crate::packet::SELF_PORT) {
            let ranges = self.wanted(packet).ranges().into_iter();
            for part in ranges.flat_map(|range| translated::parts(destinations, range, port)) {
                let Err(fault) = self.walk(test, part.judged.clone(), (port, out, &part), &self.walks, None, work)
                else {
                    continue;
                };
                let Fault::Packet(text, ..) = &fault else { return Err(fault) };
                let single = Notation::parse(text).ok().and_then(|notation| frame(&notation));
                let met = single.is_none_or(|mut bytes| {
                    self.explainer.address(port, &mut bytes);
                    self.is_met(test, &self.fate(port, &bytes))
                });
                if !met {
                    return Err(fault);
                }
                let out = self.config.names.port_name(out).unwrap_or("-");
                let why = format!(
                    "cannot be told: it does not hold for packets that leave by {out}, if routes lead any there"
                );
                return Err(Fault::Undecided(why));
            }
        }
        Ok(())
    }

    /// Takes a range through the `acl` stages that are left, as they see it; `rule` is what allowed it so far.
    fn walk<'s>(
        &'s self,
        test: &Test,
        range: Range,
        (from, to, part): (u8, u8, &Part),
        left: &'s [(Walk, Vec<Rule>)],
        rule: Option<&'s Rule>,
        work: &mut u64,
    ) -> Result<(), Fault> {
        let judge = |range: &Range, rule: Option<&Rule>, allowed: bool, reason: &str| {
            let verdict = verdict(rule, allowed);
            let out = if verdict == Expect::Allow { to } else { NO_PORT };
            let fate = Fate { verdict, rule, out, reason: reason.into() };
            let excepted = rule.is_some_and(|rule| test.except.iter().any(|name| name.value == rule.name));
            match excepted || self.is_met(test, &fate) {
                true => Ok(()),
                false => Err(self.fault(self.witness(&part.before(range), from), &fate)),
            }
        };
        let Some(((walk, rules), rest)) = left.split_first() else {
            return judge(&range, rule, true, "");
        };
        let mut passing = Vec::new();
        let tell = |range: Range, Decided { rule, allows }: Decided| {
            let rule = rule.and_then(|at| rules.get(at));
            if allows {
                passing.push((range, rule));
                return ControlFlow::Continue(());
            }
            match judge(&range, rule, false, "denied by default") {
                Ok(()) => ControlFlow::Continue(()),
                Err(fault) => ControlFlow::Break(fault),
            }
        };
        match walk.decide(range, (from, to), work, tell) {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(fault)) => return Err(fault),
            Err(_) => return Err(Fault::Undecided("takes too long to tell: say it of smaller ranges".into())),
        }
        passing.into_iter().try_for_each(|(range, rule)| self.walk(test, range, (from, to, part), rest, rule, work))
    }

    /// Where everything that arrives on a port leaves: `Some(None)` is nowhere, `None` that it depends on more.
    fn egress(&self, port: u8) -> Option<Option<u8>> {
        let stage = self.blueprint.stages.iter().find(|stage| stage.kind.egress)?;
        let Plan::Flow(plan) = &stage.plan else { return None };
        match plan.relay(port) {
            Some(action) => Some(Some(action.out)),
            // On no wire.
            None => (stage.kind.name == crate::stage::cross::Cross::NAME).then_some(None),
        }
    }

    /// What a notation says a range is of.
    fn wanted(&self, packet: &Notation) -> Wanted {
        let place = Place { file: "".into(), line: 1, column: 1 };
        let addresses = |side: &Endpoint| -> [Vec<Prefix>; 2] {
            let text = At { value: side.addresses.clone(), place: place.clone() };
            let mut named = self.config.names.resolve_addresses(&[text], "", &mut Mistakes::default());
            let all = named.take().map(|named| acl::gather(&named, &self.config.names)).unwrap_or_default();
            [all.v4, all.v6]
        };
        let ports = |side: &Endpoint| {
            let ports = side.ports.as_ref().filter(|ports| **ports != (0..=u16::MAX));
            ports.map(|ports| ((*ports.start()).into(), (*ports.end()).into()))
        };
        let typed = |(kind, code): (u8, Option<u8>)| -> Span {
            let [first, last] = [code.unwrap_or(0), code.unwrap_or(u8::MAX)];
            (u16::from_be_bytes([kind, first]).into(), u16::from_be_bytes([kind, last]).into())
        };
        // Behind connection tracking, a fragment that continues a packet is judged as its packet was.
        let tracked = self.blueprint.stages.iter().any(|stage| matches!(stage.plan, Plan::Conntrack(_)));
        Wanted {
            protocol: packet.protocol,
            source: addresses(&packet.source),
            destination: addresses(&packet.destination),
            sport: ports(&packet.source),
            dport: packet.icmp.map(typed).or(ports(&packet.destination)),
            vlan: packet.vlan.map(|tag| match tag {
                Tag::Id(id) => id,
                Tag::Untagged => acl::UNTAGGED,
            }),
            fragment: if packet.fragment { Some(true) } else { tracked.then_some(false) },
        }
    }

    /// A packet of a range, as one would write it.
    fn witness(&self, range: &Range, port: u8) -> String {
        let set = |dimension: usize| range.sets[dimension].ranges();
        let number = pick(set(dimension::PROTOCOL), &[6, 17, if range.v6 { 58 } else { 1 }], 1) as u8;
        let shows = range.transport && WITH_PORTS.contains(&number);
        let endpoint = |address: u128, ports: Option<u128>| {
            let address = address_of(address, range.v6);
            let ports = ports.map(|port| port as u16..=port as u16);
            Endpoint { addresses: address.to_string(), address: Some(address), ports, at: Offset(0) }
        };
        let likely = if range.v6 { ["2001:db8::5", "2001:db8::7"] } else { ["198.51.100.5", "10.0.0.5"] }.map(bits_of);
        let step = if range.v6 { 1 } else { 1 << 96 };
        let source = pick(set(dimension::SOURCE), &likely, step);
        // Not the same: a packet to its own source is odd for other reasons.
        let others: Vec<u128> = likely.into_iter().rev().filter(|address| *address != source).collect();
        let destination = pick(set(dimension::DESTINATION), &others, step);
        let sport = shows.then(|| pick(set(dimension::SPORT), &[40000], 1));
        let dport = shows.then(|| pick(set(dimension::DPORT), &[443], 1));
        let is_icmp = range.transport && !shows;
        let vlan = pick(set(dimension::VLAN), &[acl::UNTAGGED.into()], 1) as u16;
        let notation = Notation {
            protocol: Some(number),
            source: endpoint(source, sport),
            destination: endpoint(destination, dport),
            flags: None,
            sequence: None,
            acknowledgment: None,
            window: None,
            payload: None,
            ttl: None,
            icmp: is_icmp.then(|| {
                let echo = if range.v6 { 128 << 8 } else { 8 << 8 };
                let [kind, code] = (pick(set(dimension::DPORT), &[echo], 1) as u16).to_be_bytes();
                (kind, Some(code))
            }),
            id: None,
            fragment: !range.transport
                && (WITH_PORTS.contains(&number) || number == protocol::ICMP || number == protocol::ICMPV6),
            vlan: (vlan != acl::UNTAGGED).then_some(Tag::Id(vlan)),
            from: self.config.names.ports[usize::from(port)].name.clone(),
            from_at: Offset(0),
        };
        notation.to_string()
    }
}

/// What a rule's word and the packet's end come to.
fn verdict(rule: Option<&Rule>, sent: bool) -> Expect {
    match rule {
        Some(rule) if rule.action == Expect::Reject.word() => Expect::Reject,
        _ if sent => Expect::Allow,
        _ => Expect::Deny,
    }
}

/// One number of a set that is not empty: a likely one if there is one, else one that is `step` away from its edge if it can be.
fn pick(set: &[Span], likely: &[u128], step: u128) -> u128 {
    let within = |number: &&u128| set.iter().any(|span| (span.0..=span.1).contains(number));
    let inner = |span: &Span| if span.1 - span.0 >= step { span.0 + step } else { span.0 };
    likely.iter().find(within).copied().or_else(|| set.first().map(inner)).unwrap_or_default()
}

/// An address as sets have it.
fn bits_of(text: &str) -> u128 {
    match text.parse() {
        Ok(IpAddr::V4(address)) => u128::from(address.to_bits()) << 96,
        Ok(IpAddr::V6(address)) => address.to_bits(),
        Err(_) => 0,
    }
}

fn address_of(bits: u128, v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::from_bits(bits).into() } else { Ipv4Addr::from_bits((bits >> 96) as u32).into() }
}

#[cfg(test)]
mod tests;
