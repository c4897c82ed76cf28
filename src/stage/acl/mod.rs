//! `acl`: the rules of a firewall.
//!
//! Rules stand in the file in the order in which they are asked; the first that matches a packet allows or denies it, and
//! the default decides of what none matches. A `count` rule counts what it matches and decides nothing: a packet counts for
//! every such rule that stands before the one that decides it. A `reject` rule denies and tells the sender (`exits`).
//!
//! `compile` makes programs of the rules: for each pair of ports that differ in which rules concern them, each family, and
//! packets with and without a transport header, the conditions that remain. `matcher` finds the first that is true: few by
//! comparing the batch with each, many through rte_acl with a key of only the fields they use. `classes` turns long lists of
//! addresses into one field. `linear` is the plain reading of the rules, which tests hold all of this against. `lint` finds
//! rules that do nothing.
//!
//! A later fragment shows no ports and no ICMP type: a rule that asks for either never matches it, whatever its bytes look
//! like; a rule that names a protocol only does. Where connections are tracked it has both of its first. `count` rules are compared in turn, which costs about half a nanosecond
//! per packet and condition (per flow with `conntrack`).

use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::de::{self, Deserializer, Visitor};

use crate::config::names::{Addresses as Named, Detail, Names};
use crate::config::source::{At, Mistakes};
use crate::config::units::Rate;
use crate::dpdk::eal::Eal;
use crate::flow::Tracking;
use crate::flow::limits::OfRule;
use crate::log::Event;
use crate::packet::{BATCH, Batch, Mask, Meta, NO_PORT, NO_RULE, bits};
use crate::stats::Reason;

use super::ingress::{ANY, Ports};
use super::{
    Action, Cx, Depth, EAL_MEMORY, Finding, FlowCommit, FlowPlan, Involved, LintCx, Plan, PlanCx, Stage, Verdict,
    rule_counter,
};

mod compile;
mod exits;
#[cfg(test)]
mod linear;
mod lint;
mod matcher;
pub mod range;
mod sets;

pub use compile::Addresses;
use compile::{Compiled, Limits, ProgramId, Rule, Shape};
use exits::{Counters, Exits, Terms};
pub use matcher::UNTAGGED;

crate::lines! {
    /// Why the acl drops.
    pub enum Drops {
        /// A rule denies the packet.
        Denied = "denied",
        /// A rule rejects the packet; counters tell how many senders were told so.
        Rejected = "rejected",
        /// No rule matches the packet, and the default is to deny.
        DeniedDefault = "denied-default",
        /// The packet is not IP, and its EtherType is not among those that may pass.
        DeniedNonIp = "denied-non-ip",
    }
}

crate::choice! {
    /// What happens to packets that no rule matches.
    pub enum Fallback {
        /// They pass.
        Allow = "allow",
        /// They are dropped.
        Deny = "deny"
    }
}

/// A number or a range of them, or `untagged`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// From the first to the last.
    Range(RangeInclusive<u16>),
    /// A packet without a VLAN tag.
    Untagged,
}

impl<'de> de::Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;
        impl Visitor<'_> for Reads {
            type Value = Numbers;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(NUMBERS)
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Numbers, E> {
                let number = u16::try_from(number).map_err(|_| E::custom(format!("{number} is out of range")))?;
                Ok(Numbers::Range(number..=number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Numbers, E> {
                if text == "untagged" {
                    return Ok(Numbers::Untagged);
                }
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                match (first.trim().parse(), last.trim().parse()) {
                    (Ok(first), Ok(last)) if first <= last => Ok(Numbers::Range(first..=last)),
                    (Ok(first), Ok(last)) => {
                        Err(E::custom(format!("{first} is above {last}: write \"{last}-{first}\"")))
                    }
                    _ => Err(E::custom(format!("found {text:?}"))),
                }
            }
        }
        deserializer.deserialize_any(Reads)
    }
}

const NUMBERS: &str = "a number or a range such as \"100-199\"";

crate::serde_key! {
    Numbers: "a number or a range such as \"100-199\"",
}

crate::section! {
    /// `[acl]`
    pub struct Config {
        /// What happens to packets that no rule matches: "allow" or "deny" (the default).
        pub default: Fallback = Fallback::Deny,
        /// EtherTypes, by name or as "0x88cc", of packets other than IP that may pass; with "!" in front, that may not. All others follow `default`. ["arp"] if left out.
        pub non_ip: Option<Vec<At<String>>>,
        /// The most memory the compiled rules may take, in MiB.
        pub memory: u32 = 512,
        /// Answers a second to rejected packets, over all workers, each of which has an even share: "1000/s" unless given. What is above is dropped unanswered.
        pub reject_rate: Option<At<Rate>>,
        /// Log entries a second, likewise: "1000/s" unless given. What is above is counted.
        pub log_rate: Option<At<Rate>>,
        /// Log the packets that no rule matches: each that is denied; if they may pass, each new flow (each packet without `conntrack`).
        pub log_default: bool = false,
        /// The rules, in the order in which they are asked.
        pub rule: Vec<At<RuleConfig>> = Vec::new(),
    }
}

crate::section! {
    /// `[[acl.rule]]`. A key that is left out matches everything.
    pub struct RuleConfig {
        /// Its name in counters and verdicts; `rule[N]` if left out.
        pub name: Option<String>,
        /// Zones and ports the packet came from; "self" for what the box itself sends. Left out, or "any": all of them, "self" included.
        pub from: Vec<At<String>> = Vec::new(),
        /// Zones and ports it leaves by; "self" for what is for the box itself. Left out, or "any": all of them, "self" included.
        pub to: Vec<At<String>> = Vec::new(),
        /// Source addresses: addresses, prefixes, "@set".
        pub source: Vec<At<String>> = Vec::new(),
        /// Destination addresses, likewise.
        pub destination: Vec<At<String>> = Vec::new(),
        /// Services by name, or "tcp/443", "udp/1000-2000", "icmp/echo", "proto/89".
        pub service: Vec<At<String>> = Vec::new(),
        /// Source ports; only with services of protocols that have ports.
        pub source_port: Vec<At<Numbers>> = Vec::new(),
        /// Ids of the outer VLAN tag, or "untagged".
        pub vlan: Vec<At<Numbers>> = Vec::new(),
        /// "allow"; "deny"; "reject" (denies and answers: TCP with a reset, anything else with ICMP "administratively prohibited"); or "count" (counts and goes on to the next rule).
        pub action: compile::Action,
        /// Log what it decides: each new flow it allows (each packet without `conntrack`), each packet it denies or rejects.
        pub log: bool = false,
        /// How closely flows that it allows are tracked; `[conntrack]`'s if left out.
        pub tracking: Option<At<Tracking>>,
        /// How many flows it may allow; what is above is dropped.
        pub limit: Option<At<OfRule>>,
    }
}

/// The stage.
pub struct Acl;

impl Stage for Acl {
    const NAME: &'static str = "acl";
    const DOC: &'static str = "Rules by zone or port, addresses, service and VLAN: the first that matches decides, and the \
                               default decides of what none matches.";
    const JUDGES: bool = true;
    const DEPTH: Depth = Depth::L4;
    const AFTER_EGRESS: bool = true;
    const REASONS: &'static [crate::stats::Line] = <Drops as crate::stats::Lines>::LINES;
    const COUNTERS: &'static [crate::stats::Line] = <Counters as crate::stats::Lines>::LINES;
    type Config = Config;

    fn plan(config: &Config, cx: &mut PlanCx<'_>) -> Option<Plan> {
        let reasons = cx.reasons::<Drops>();
        let counters = cx.counters::<Counters>();
        let before = cx.mistakes.len();
        let mut rules = Vec::new();
        let mut hits = Vec::new();
        let mut outcomes = vec![Outcome {
            rule: NO_RULE,
            deny: (config.default == Fallback::Deny).then(|| reasons.at(Drops::DeniedDefault)),
            reject: false,
            log: config.log_default,
            tracking: None,
        }];
        for (number, rule) in config.rule.iter().enumerate() {
            let key = format!("{}.rule[{number}]", cx.instance);
            let name = name_of(rule, number);
            rules.extend(resolve(rule, &key, cx.names, cx.mistakes));
            check_keys(rule, &key, cx);
            let slot = cx.rule(&name, &rule.place, rule.action.word())?;
            hits.push(cx.rules.slot(slot).expect("just declared").counters);
            let deny = match rule.action {
                compile::Action::Deny => Some(reasons.at(Drops::Denied)),
                compile::Action::Reject => Some(reasons.at(Drops::Rejected)),
                compile::Action::Allow | compile::Action::Count => None,
            };
            let reject = rule.action == compile::Action::Reject;
            let tracking = rule.tracking.as_ref().map(|tracking| tracking.value);
            cx.rules.0[usize::from(slot)].tracking = tracking;
            cx.rules.0[usize::from(slot)].limit =
                rule.limit.as_ref().map(|limit| (limit.value.clone(), format!("{key}.limit")));
            outcomes.push(Outcome { rule: slot, deny, reject, log: rule.log, tracking });
        }
        let answers = exits::rate(&config.reject_rate, &format!("{}.reject_rate", cx.instance), cx.mistakes);
        let entries = exits::rate(&config.log_rate, &format!("{}.log_rate", cx.instance), cx.mistakes);
        let non_ip = non_ip(config, &cx.instance, cx.mistakes);
        if cx.mistakes.len() > before {
            return None;
        }
        let limits = Limits { few: matcher::FEW, memory: (config.memory as usize) << 20 };
        // Only starts one where none runs: in `check` and `replay`.
        let mut eal = || Eal::offline(EAL_MEMORY).map_err(|error| error.to_string());
        let compiled = match compile::compile(&rules, cx.names.ports.len(), limits, &mut eal) {
            Ok(compiled) => compiled,
            Err(refusal) => {
                let help = "have fewer or simpler rules, or raise acl.memory (and DPDK's own, if that is what ran out)";
                cx.mistakes.with_help(&config.rule[refusal.rule].place, &cx.instance, refusal.message, help);
                return None;
            }
        };
        let terms = Terms {
            answers: answers?,
            entries: entries?,
            workers: cx.workers,
            allowed: if cx.conntrack { Event::New } else { Event::Allowed },
            counters,
        };
        let concludes = outcomes.iter().any(|outcome| outcome.log || outcome.reject);
        let first_slot = outcomes.get(1).map_or(0, |outcome| outcome.rule);
        Some(Plan::Flow(Arc::new(Rules(Arc::new(Judge {
            compiled,
            outcomes,
            non_ip,
            denied_non_ip: reasons.at(Drops::DeniedNonIp),
            first_slot,
            hits,
            terms,
            concludes,
            counting: config.rule.iter().any(|rule| rule.action == compile::Action::Count),
            ports: cx
                .names
                .every_port()
                .filter_map(|port| Some((port, cx.names.port_name(port)?.to_owned())))
                .collect(),
        })))))
    }

    fn lint(config: &Config, cx: &LintCx<'_>) -> Vec<Finding> {
        let key = |number: usize| format!("{}.rule[{number}]", cx.instance);
        let resolved = config.rule.iter().enumerate().map(|(number, rule)| {
            // What is wrong with a rule was told when it was planned.
            resolve(rule, &key(number), cx.names, &mut Mistakes::default())
        });
        let Some(rules) = resolved.collect::<Option<Vec<Rule>>>() else { return Vec::new() };
        let default = match config.default {
            Fallback::Allow => compile::Action::Allow,
            Fallback::Deny => compile::Action::Deny,
        };
        let found = lint::lint(&rules, default, cx.exits, lint::Work::DEFAULT);
        found.iter().map(|found| finding(found, config, &key(found.rule), cx)).collect()
    }
}

/// A rule's name in counters and verdicts.
fn name_of(rule: &RuleConfig, number: usize) -> String {
    rule.name.clone().unwrap_or_else(|| format!("rule[{number}]"))
}

/// What was found of a rule, in words.
fn finding(found: &lint::Found, config: &Config, key: &str, cx: &LintCx<'_>) -> Finding {
    let rule = &config.rule[found.rule];
    let by = found.by.map_or("the default".into(), |by| format!("{:?}", name_of(&config.rule[by], by)));
    let action = rule.action.word();
    let (kind, message, help) = match found.kind {
        lint::Kind::Shadowed => (
            "shadowed",
            format!("shadowed: earlier rules decide all it would {action}, some of it otherwise, as {by} does"),
            "move it before them, or remove it",
        ),
        lint::Kind::RedundantBehind => (
            "redundant",
            format!("redundant: earlier rules {action} all that it would {action}, as {by} does"),
            "remove it, or move it before them if it shall count",
        ),
        lint::Kind::RedundantBefore => (
            "redundant",
            format!("redundant: without it, what it decides would be decided alike, as {by} does"),
            "remove it, unless it shall count",
        ),
        lint::Kind::NoWay => (
            "never-matches",
            "never matches: no packet takes a way from its ports to its ports".into(),
            "correct `from` or `to`, or remove it",
        ),
        lint::Kind::NoService => (
            "never-matches",
            "never matches: no packet of its addresses' families is of its services".into(),
            "correct the addresses or the services, or remove it",
        ),
        lint::Kind::NeverCounts => (
            "never-counts",
            format!("never counts: earlier rules decide all that it would count, as {by} does"),
            "move it before them, or remove it",
        ),
        lint::Kind::Undecided => (
            "undecided",
            "undecided: whether it is shadowed or redundant takes too long to find out".into(),
            "nothing is known to be wrong with it; fewer rules that overlap it in part would help",
        ),
    };
    let involved = |rule: &usize| Involved {
        rule: name_of(&config.rule[*rule], *rule),
        action: config.rule[*rule].action.word().to_owned(),
        place: config.rule[*rule].place.clone(),
    };
    Finding {
        kind,
        place: rule.place.clone(),
        key: key.to_owned(),
        rule: name_of(rule, found.rule),
        message,
        witness: found.witness.map(|packet| packet.text(cx.names, cx.exits)),
        involved: found.involved.iter().map(involved).collect(),
        help: Some(help.to_owned()),
    }
}

/// Notes keys that say something which the rule's action cannot do.
fn check_keys(rule: &At<RuleConfig>, key: &str, cx: &mut PlanCx<'_>) {
    if rule.log && rule.action == compile::Action::Count {
        let help = "log where the decision is taken: in the rules that allow, deny or reject";
        cx.mistakes.with_help(&rule.place, &format!("{key}.log"), "a rule that counts decides nothing to log", help);
    }
    let tracking = rule.tracking.as_ref().map(|tracking| ("tracking", &tracking.place));
    let limit = rule.limit.as_ref().map(|limit| ("limit", &limit.place));
    for (word, place) in tracking.into_iter().chain(limit) {
        let key = format!("{key}.{word}");
        if rule.action != compile::Action::Allow {
            cx.mistakes.at(place, &key, "only flows that a rule allows are tracked");
        } else if !cx.conntrack {
            cx.mistakes.with_help(place, &key, "flows are not tracked", "add \"conntrack\" to the pipeline");
        }
    }
}

/// A rule with its names resolved; `None` after noting at least one mistake.
fn resolve(rule: &At<RuleConfig>, key: &str, names: &Names, mistakes: &mut Mistakes) -> Option<Rule> {
    let before = mistakes.len();
    let from = Ports::resolve(&rule.from, names, &format!("{key}.from"), mistakes);
    let mut to = Ports::resolve(&rule.to, names, &format!("{key}.to"), mistakes);
    if let Some(to) = &mut to
        && (rule.to.is_empty() || rule.to.iter().any(|name| name.value == ANY))
    {
        to.insert(NO_PORT);
    }
    let mut addresses = |list: &[At<String>], key: String| match list {
        [] => Some(Addresses::any()),
        some => names.resolve_addresses(some, &key, mistakes).map(|named| gather(&named, names)),
    };
    let source = addresses(&rule.source, format!("{key}.source"));
    let destination = addresses(&rule.destination, format!("{key}.destination"));
    let services = names.resolve_services(&rule.service, &format!("{key}.service"), mistakes);
    let mut numbers = |list: &[At<Numbers>], key: String, last: u16, untagged: Option<u16>| {
        let mut ranges = Vec::new();
        for numbers in list {
            match (&numbers.value, untagged) {
                (Numbers::Range(range), _) if *range.end() <= last => ranges.push(range.clone()),
                (Numbers::Range(_), _) => {
                    mistakes.at(&numbers.place, &key, format!("expected numbers from 0 to {last}"))
                }
                (Numbers::Untagged, Some(number)) => ranges.push(number..=number),
                (Numbers::Untagged, None) => mistakes.at(&numbers.place, &key, format!("expected {NUMBERS}")),
            }
        }
        ranges
    };
    let source_ports = numbers(&rule.source_port, format!("{key}.source_port"), u16::MAX, None);
    let vlans = numbers(&rule.vlan, format!("{key}.vlan"), 4095, Some(UNTAGGED));
    let (from, to, source, destination, services) = (from?, to?, source?, destination?, services?);
    if let Some(first) = rule.source_port.first() {
        let portless =
            |detail: &Detail, proto: u8| matches!(detail, Detail::Icmp(..)) || !PORT_PROTOCOLS.contains(&proto);
        if services.is_empty() || services.iter().any(|service| portless(&service.detail, service.proto)) {
            let help = "name services of tcp, udp, sctp, dccp or udplite only";
            let message = "source ports need a service whose protocol has ports";
            mistakes.with_help(&first.place, &format!("{key}.source_port"), message, help);
        }
    }
    if (source.v4.is_empty() || destination.v4.is_empty()) && (source.v6.is_empty() || destination.v6.is_empty()) {
        let message = "never matches: no address family has both a source and a destination";
        mistakes.at(&rule.place, key, message);
    }
    let action = rule.action;
    (mistakes.len() == before).then_some(Rule { from, to, source, destination, services, source_ports, vlans, action })
}

/// Protocols with ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
const PORT_PROTOCOLS: [u8; 5] = [6, 17, 33, 132, 136];

/// The prefixes written in a rule and those of its sets, merged.
pub fn gather(named: &Named, names: &Names) -> Addresses {
    let sets = || named.sets.iter().map(|set| &names.sets[*set]);
    let v4: Vec<_> = named.v4.iter().chain(sets().flat_map(|set| &set.v4)).copied().collect();
    let v6: Vec<_> = named.v6.iter().chain(sets().flat_map(|set| &set.v6)).copied().collect();
    Addresses {
        v4: ipnet::Ipv4Net::aggregate(&v4)
            .iter()
            .map(|net| (u128::from(u32::from(net.network())) << 96, net.prefix_len()))
            .collect(),
        v6: ipnet::Ipv6Net::aggregate(&v6).iter().map(|net| (net.network().into(), net.prefix_len())).collect(),
    }
}

/// EtherTypes by name (IEEE 802 numbers); `llc` stands for every length field of an 802.3 frame.
const ETHERTYPES: &[(&str, u16)] = &[
    ("arp", 0x0806),
    ("llc", 0),
    ("lldp", 0x88cc),
    ("lacp", 0x8809),
    ("eapol", 0x888e),
    ("macsec", 0x88e5),
    ("mpls", 0x8847),
    ("pppoe-discovery", 0x8863),
    ("pppoe", 0x8864),
    ("ptp", 0x88f7),
];

/// What may pass and what may not of the packets that are not IP.
#[derive(Debug)]
struct NonIp {
    listed: Vec<(u16, bool)>,
    others: bool,
}

impl NonIp {
    #[inline]
    fn allows(&self, meta: &Meta) -> bool {
        let ethertype = meta.ethertype();
        let ethertype = if ethertype < 0x0600 { 0 } else { ethertype };
        self.listed.iter().find(|(listed, _)| *listed == ethertype).map_or(self.others, |(_, allow)| *allow)
    }
}

fn non_ip(config: &Config, instance: &str, mistakes: &mut Mistakes) -> NonIp {
    let key = format!("{instance}.non_ip");
    let mut all = NonIp { listed: Vec::new(), others: config.default == Fallback::Allow };
    let Some(list) = &config.non_ip else {
        all.listed.push((0x0806, true));
        return all;
    };
    for text in list {
        let (name, allow) = text.strip_prefix('!').map_or((text.as_str(), true), |name| (name, false));
        let number = name.strip_prefix("0x").and_then(|digits| u16::from_str_radix(digits, 16).ok());
        let known = ETHERTYPES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
        match known.or(number.filter(|number| *number >= 0x0600)) {
            Some(0x0800 | 0x86dd) => mistakes.at(&text.place, &key, "rules decide of IPv4 and IPv6"),
            Some(number) => all.listed.push((number, allow)),
            None => {
                let known = ETHERTYPES.iter().map(|(known, _)| *known);
                mistakes.unknown(&text.place, &key, "EtherType (0x0600 to 0xffff, or a name)", name, known);
            }
        }
    }
    all
}

/// What a rule, or the default, does to a packet.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    rule: u16,
    deny: Option<Reason>,
    reject: bool,
    log: bool,
    tracking: Option<Tracking>,
}

/// The compiled rules and all that judging needs.
#[derive(Debug)]
struct Judge {
    compiled: Compiled,
    /// The default, then each rule.
    outcomes: Vec<Outcome>,
    non_ip: NonIp,
    denied_non_ip: Reason,
    /// The slot of the first rule; the others follow.
    first_slot: u16,
    /// Each rule's counters in the sheet.
    hits: Vec<usize>,
    /// How much is told.
    terms: Terms,
    /// True if a rule or the default logs or rejects.
    concludes: bool,
    /// True if there is a `count` rule.
    counting: bool,
    /// For the description.
    ports: Vec<(u8, String)>,
}

/// The plan.
struct Rules(Arc<Judge>);

/// Calls `with` for each program and the packets of `todo` that it decides; returns the packets that are not IP.
#[inline]
fn by_program(
    compiled: &Compiled,
    todo: Mask,
    facts: &[Meta; BATCH],
    actions: &[Action; BATCH],
    mut with: impl FnMut(ProgramId, Mask),
) -> Mask {
    let mut programs = [ProgramId::MAX; BATCH];
    let (mut left, mut others): (Mask, Mask) = (0, 0);
    // Packets of a batch mostly have one program: how many do is found on the way.
    let (mut first, mut alike) = (None, true);
    let Some(start) = bits(todo).next() else { return 0 };
    let mut pair = (facts[start].port, actions[start].out);
    let mut row = compiled.programs_of(pair.0, pair.1);
    for i in bits(todo) {
        if (facts[i].port, actions[i].out) != pair {
            pair = (facts[i].port, actions[i].out);
            row = compiled.programs_of(pair.0, pair.1);
        }
        match Shape::index(&facts[i]) {
            Some(shape) => {
                let program = row[shape];
                programs[i] = program;
                left |= 1 << i;
                alike &= *first.get_or_insert(program) == program;
            }
            None => others |= 1 << i,
        }
    }
    if let (Some(program), true) = (first, alike) {
        with(program, left);
        return others;
    }
    while left != 0 {
        let program = programs[left.trailing_zeros() as usize & (BATCH - 1)];
        let mut same = 0;
        programs.iter().enumerate().for_each(|(i, other)| same |= Mask::from(*other == program) << i);
        with(program, same);
        left &= !same;
    }
    others
}

impl FlowPlan for Rules {
    fn judge(&self, todo: Mask, facts: &mut [Meta; BATCH], actions: &mut [Action; BATCH]) -> Mask {
        let judge = &*self.0;
        let mut rules = [0; BATCH];
        let non_ip = by_program(&judge.compiled, todo, facts, actions, |program, mask| {
            let (program, classes) = judge.compiled.program(program);
            let mut found = [0; BATCH];
            program.decide.find(mask, facts, classes, &mut found);
            bits(mask).zip(found).for_each(|(i, found)| rules[i] = found);
        });
        let mut denied = 0;
        for i in bits(todo & !non_ip) {
            let outcome = judge.outcomes[rules[i] as usize];
            let action = &mut actions[i];
            match outcome.deny {
                Some(reason) => {
                    action.deny(reason, outcome.rule);
                    action.reject = outcome.reject;
                    denied |= 1 << i;
                }
                None => {
                    (action.verdict, action.rule, action.tracking) = (Verdict::Allow, outcome.rule, outcome.tracking)
                }
            }
            action.log = outcome.log;
        }
        for i in bits(non_ip) {
            if judge.non_ip.allows(&facts[i]) {
                (actions[i].verdict, actions[i].rule) = (Verdict::Allow, NO_RULE);
            } else {
                actions[i].deny(judge.denied_non_ip, NO_RULE);
                actions[i].log = judge.outcomes[0].log;
                denied |= 1 << i;
            }
        }
        denied
    }

    fn start(&self, _worker: usize) -> Box<dyn FlowCommit> {
        Box::new(Hits { judge: self.0.clone(), exits: Exits::new(self.0.terms) })
    }

    fn concludes(&self) -> bool {
        self.0.concludes
    }

    fn describe(&self) -> Vec<String> {
        self.0.compiled.describe(&self.0.ports)
    }
}

/// Counts, in one worker, what rules match, and tells of it.
struct Hits {
    judge: Arc<Judge>,
    exits: Exits,
}

impl Hits {
    /// The place in the list of the rule that decided an action, the list's length for the default; `None` if it was
    /// another stage that decided.
    #[inline]
    fn decided_by(&self, action: &Action) -> Option<usize> {
        let rules = self.judge.hits.len();
        if action.rule != NO_RULE {
            return action.rule.checked_sub(self.judge.first_slot).map(usize::from).filter(|at| *at < rules);
        }
        let default = match self.judge.outcomes[0].deny {
            Some(reason) => action.verdict == Verdict::Deny && action.reason == reason,
            None => action.verdict == Verdict::Allow,
        };
        default.then_some(rules)
    }
}

impl FlowCommit for Hits {
    fn commit(&mut self, judged: Mask, batch: &Batch, actions: &[Action; BATCH], cx: &mut Cx<'_>) {
        let judge = &*self.judge;
        let mut decided = [0; BATCH];
        let mut mine = 0;
        // Packets that hit the same rule mostly come together: they are added up before they are counted.
        let mut run = Run { at: None, packets: 0, bytes: 0 };
        let mut before = None;
        for i in bits(judged) {
            let decision = (actions[i].rule, actions[i].verdict, actions[i].reason);
            if before != Some(decision) {
                run.count(judge, cx);
                run = Run { at: self.decided_by(&actions[i]), packets: 0, bytes: 0 };
                before = Some(decision);
            }
            if let Some(at) = run.at {
                decided[i] = at;
                mine |= 1 << i;
            }
            run.packets += 1;
            run.bytes += batch.frames[i].len() as u64;
        }
        run.count(judge, cx);
        if !judge.counting {
            return;
        }
        by_program(&judge.compiled, mine, &batch.metas, actions, |program, mask| {
            let (program, classes) = judge.compiled.program(program);
            if program.count.is_empty() {
                return;
            }
            program.count.find(mask, &batch.metas, classes, |rule, matching| {
                for i in bits(matching).filter(|i| decided[*i] > rule as usize) {
                    hit(judge.hits[rule as usize], 1, batch.frames[i].len() as u64, cx);
                }
            });
        });
    }

    fn conclude(&mut self, judged: Mask, batch: &mut Batch, actions: &[Action; BATCH], cx: &mut Cx<'_>) {
        // Of two acls, each tells of what it decided itself.
        let mut mine = 0;
        for i in bits(judged).filter(|i| actions[*i].log || actions[*i].reject) {
            let decided = actions[i].reason == self.judge.denied_non_ip || self.decided_by(&actions[i]).is_some();
            mine |= Mask::from(decided) << i;
        }
        self.exits.conclude(mine, batch, actions, cx);
    }
}

/// Packets in a row that one rule decided, by its place in the list.
struct Run {
    at: Option<usize>,
    packets: u64,
    bytes: u64,
}

impl Run {
    #[inline]
    fn count(&self, judge: &Judge, cx: &mut Cx<'_>) {
        if let Some(counters) = self.at.and_then(|at| judge.hits.get(at)) {
            hit(*counters, self.packets, self.bytes, cx);
        }
    }
}

/// Counts frames for a rule.
#[inline]
fn hit(counters: usize, packets: u64, bytes: u64, cx: &mut Cx<'_>) {
    let words = cx.sheet.range(counters..counters + rule_counter::COUNT);
    words[rule_counter::PACKETS] += packets;
    words[rule_counter::BYTES] += bytes;
    words[rule_counter::LAST_HIT] = cx.now;
}

#[cfg(test)]
mod tests;
