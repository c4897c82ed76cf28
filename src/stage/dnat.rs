//! `dnat`: what destinations become.
//!
//! Owns what the file says and the counting; rules, targets and their meaning are `nat::destination`. It stands before the
//! stage that routes: that and all behind it judge by the new destination, and by the source as it came. Only a flow's first
//! packet is asked about; what is decided is the flow's as long as it lives.

use std::sync::Arc;

use crate::config::names::{Detail, SELF, WITH_PORTS, address_or_prefix};
use crate::config::source::{At, Place};
use crate::nat::destination::{Change, Destinations, Rule, Target, fixed, wide};
use crate::nat::rules::{Match, Spans, Written};
use crate::nat::source::Fixed;
use crate::nat::{HAIRPIN, OneToOne};
use crate::packet::meta::flag;
use crate::packet::{BATCH, Batch, Mask, Meta, bits};

use super::acl::gather;
use super::ingress::Ports;
use super::{Action, Cx, Depth, FlowCommit, FlowPlan, Plan, PlanCx, Stage, Verdict, rule_counter};

crate::section! {
    /// `[dnat]`
    pub struct Config {
        /// The rules, in the order in which they are asked; the first that matches decides.
        pub rule: Vec<At<RuleConfig>> = Vec::new(),
        /// Hosts that are known outside by addresses of their own, both ways: asked behind the rules here, and before those of `snat`.
        pub one_to_one: Vec<At<PairConfig>> = Vec::new(),
    }
}

crate::section! {
    /// `[[dnat.rule]]`. A key that is left out matches everything.
    pub struct RuleConfig {
        /// Its name in counters; `rule[N]` if left out.
        pub name: Option<String>,
        /// Zones and ports the packet came from.
        pub from: Vec<At<String>> = Vec::new(),
        /// Source addresses: addresses, prefixes, "@set".
        pub source: Vec<At<String>> = Vec::new(),
        /// Destination addresses, likewise; "self" for the first addresses of the ports in `from`.
        pub destination: Vec<At<String>> = Vec::new(),
        /// Services by name, or "tcp/443", "udp/1000-2000".
        pub service: Vec<At<String>> = Vec::new(),
        /// Where packets go: an address; with a port, or as many ports as the service has; a range or a list of addresses, chosen by the packet's source; a prefix as long as the one in `destination`, whose host bits stay; or "none".
        pub to_destination: At<Vec<At<String>>>,
        /// Let hosts that share a network with the target use the same address: they match too, wherever `from` is, and get a source of ours, so that answers come back. True if `from` and `destination` are given.
        pub hairpin: Option<At<bool>>,
    }
}

crate::section! {
    /// `[[dnat.one_to_one]]`
    pub struct PairConfig {
        /// Its name in counters; `one_to_one[N]` if left out.
        pub name: Option<String>,
        /// Zones and ports of the outside.
        pub zone: Vec<At<String>>,
        /// The hosts' own addresses: a prefix.
        pub inside: At<String>,
        /// Those they are known by outside: a prefix as long.
        pub outside: At<String>,
    }
}

/// The stage.
pub struct Dnat;

impl Stage for Dnat {
    const NAME: &'static str = "dnat";
    const DOC: &'static str = "Translates destinations: port forwarding, servers behind public addresses, one-to-one \
                               translation both ways. It stands before \"route\".";
    const JUDGES: bool = true;
    const DEPTH: Depth = Depth::L4;
    type Config = Config;

    fn plan(config: &Config, cx: &mut PlanCx<'_>) -> Option<Plan> {
        let before = cx.mistakes.len();
        let first = config.rule.first().map(|rule| &rule.place);
        needs(first.or(config.one_to_one.first().map(|pair| &pair.place)), cx);
        let (mut rules, mut counted) = (Vec::new(), Vec::new());
        for (number, rule) in config.rule.iter().enumerate() {
            let key = format!("{}.rule[{number}]", cx.instance);
            rules.extend(compile(rule, &key, cx));
            let name = rule.name.clone().unwrap_or_else(|| format!("rule[{number}]"));
            let to: Vec<&str> = rule.to_destination.iter().map(|to| to.value.as_str()).collect();
            counted.push(cx.rule(&name, &rule.place, &format!("to {}", to.join(", ")))?);
        }
        for (number, pair) in config.one_to_one.iter().enumerate() {
            let key = format!("{}.one_to_one[{number}]", cx.instance);
            let name = pair.name.clone().unwrap_or_else(|| format!("one_to_one[{number}]"));
            let slot = cx.rule(&name, &pair.place, &format!("to {}", pair.inside.value))?;
            counted.push(slot);
            if let Some((ports, inward, asks)) = pair_up(pair, &key, cx) {
                rules.push(Rule { asks, own: None, hairpin: true, change: Change::Fixed(inward) });
                cx.nat.one_to_one.push(OneToOne { outside: ports, fixed: inward.reversed(), rule: slot });
            }
        }
        if cx.mistakes.len() > before {
            return None;
        }
        if !config.one_to_one.is_empty() {
            cx.nat.pairs_at = config.one_to_one.first().map(|pair| (pair.place.clone(), cx.instance.clone()));
        }
        let hits = counted.iter().map(|slot| cx.rules.slot(*slot).expect("just declared").counters).collect();
        let destinations = Arc::new(Destinations { rules, addresses: cx.nat.addresses.clone() });
        cx.nat.destinations = Some(destinations.clone());
        Some(Plan::Flow(Arc::new(Judge(Arc::new(Compiled { destinations, hits })))))
    }
}

/// Notes what a stage that translates cannot do without.
pub(super) fn needs(first: Option<&Place>, cx: &mut PlanCx<'_>) {
    let Some(place) = first else { return };
    if !cx.conntrack {
        let help = "add \"conntrack\" to the pipeline";
        cx.mistakes.with_help(place, &cx.instance, "translation needs flows to be tracked", help);
    }
    if !cx.names.routes {
        let help = "add \"route\" to the pipeline, behind \"dnat\" and before \"snat\"";
        cx.mistakes.with_help(place, &cx.instance, "translation needs packets to be routed", help);
    }
}

/// Compiles a rule; `None` after noting at least one mistake.
fn compile(rule: &At<RuleConfig>, key: &str, cx: &mut PlanCx<'_>) -> Option<Rule> {
    let before = cx.mistakes.len();
    let (own, destination): (Vec<_>, Vec<_>) = rule.destination.iter().cloned().partition(|text| text.value == SELF);
    if let (Some(own), Some(_)) = (own.first(), destination.first()) {
        let help = "make two rules of it";
        cx.mistakes.with_help(&own.place, &format!("{key}.destination"), "\"self\" stands alone", help);
    }
    let written =
        Written { from: &rule.from, to: &[], source: &rule.source, destination: &destination, service: &rule.service };
    let asks = Match::resolve(written, key, cx.names, cx.mistakes);
    let targets: Vec<Target> = rule.to_destination.iter().filter_map(|text| target(text, key, cx)).collect();
    let mut asks = asks?;
    if cx.mistakes.len() > before {
        return None;
    }
    let change = change(rule, targets, &asks, &destination, key, cx)?;
    let named = asks.destination.is_some() || !own.is_empty();
    let hairpin = match &rule.hairpin {
        Some(At { value: true, place }) if !named => {
            let help = "name the addresses in `destination`, or leave `hairpin` out";
            let message = "without a destination this would catch whatever comes from inside";
            cx.mistakes.with_help(place, &format!("{key}.hairpin"), message, help);
            return None;
        }
        Some(given) => given.value,
        None => named && !rule.from.is_empty(),
    };
    let own = (!own.is_empty()).then_some(asks.from);
    if hairpin {
        asks.from.extend(Ports::all(cx.names.ports.len()));
    }
    Some(Rule { asks, own, hairpin, change })
}

fn target(text: &At<String>, key: &str, cx: &mut PlanCx<'_>) -> Option<Target> {
    let parsed = Target::parse(text);
    parsed.map_err(|message| cx.mistakes.at(&text.place, &format!("{key}.to_destination"), message)).ok()
}

/// What targets come to; `None` after noting what is wrong.
fn change(
    rule: &RuleConfig,
    targets: Vec<Target>,
    asks: &Match,
    destination: &[At<String>],
    key: &str,
    cx: &mut PlanCx<'_>,
) -> Option<Change> {
    let place = &rule.to_destination.place;
    let key_to = format!("{key}.to_destination");
    let mut spread: [Vec<[u8; 16]>; 2] = Default::default();
    let mut ports = None;
    match targets.as_slice() {
        [] => {
            cx.mistakes.with_help(place, &key_to, "there is no target", "write \"none\" to leave packets as they are");
            return None;
        }
        [Target::None] => return Some(Change::Nothing),
        [Target::Prefix(to)] => {
            let from = match destination {
                [only] => address_or_prefix(only).ok(),
                _ => None,
            };
            let map = from.and_then(|from| fixed(from, *to));
            if map.is_none() {
                let help = format!("write it as a prefix of the same family with {} bits", to.prefix_len());
                let message =
                    "to a prefix only another prefix of the same length can be translated, alone in `destination`";
                cx.mistakes.with_help(place, &key_to, message, help);
            }
            return map.map(Change::Fixed);
        }
        several => {
            for (number, target) in several.iter().enumerate() {
                let Target::Addresses(addresses, range) = target else {
                    let place = &rule.to_destination[number].place;
                    cx.mistakes.at(place, &key_to, "\"none\" or a prefix stands alone, not in a list");
                    return None;
                };
                if number > 0 && ports != *range {
                    let place = &rule.to_destination[number].place;
                    cx.mistakes.at(place, &key_to, "all targets of a rule must have the same ports");
                    return None;
                }
                ports = range.clone();
                addresses.iter().for_each(|address| spread[usize::from(address.is_ipv6())].push(wide(*address)));
            }
        }
    }
    if let Some(range) = &ports {
        let fits = |detail: &Detail, proto| match detail {
            Detail::Ports(asked) => range.len() == 1 || asked.len() == range.len(),
            Detail::Any => range.len() == 1 && WITH_PORTS.contains(&proto),
            Detail::Icmp(..) => false,
        };
        if asks.services.is_empty() || !asks.services.iter().all(|service| fits(&service.detail, service.proto)) {
            let message = match range.len() {
                1 => "a port needs services of protocols that have ports".to_owned(),
                n => format!("{n} ports need services of {n} ports each, such as \"tcp/9000-{}\"", 8999 + n),
            };
            cx.mistakes.with_help(place, &key_to, message, "name such services only, or leave the port out");
            return None;
        }
    }
    if let Some(spans) = &asks.destination
        && (0..2).all(|family| spread[family].is_empty() || spans.family(family == 1).is_empty())
    {
        cx.mistakes.at(place, &key_to, "never matches: destination and target are of different families");
        return None;
    }
    Some(Change::Spread(spread, ports))
}

/// Ports to the outside, the translation inward, and what it asks of packets.
fn pair_up(pair: &PairConfig, key: &str, cx: &mut PlanCx<'_>) -> Option<(Ports, Fixed, Match)> {
    let ports = Ports::resolve(&pair.zone, cx.names, &format!("{key}.zone"), cx.mistakes);
    let outside = std::slice::from_ref(&pair.outside);
    let named = cx.names.resolve_addresses(outside, &format!("{key}.outside"), cx.mistakes);
    let net = |text: &At<String>| address_or_prefix(text).ok();
    let map = net(&pair.outside).zip(net(&pair.inside)).and_then(|(outside, inside)| fixed(outside, inside));
    if map.is_none() && named.is_some() {
        let message = format!("expected a prefix as long as {:?}, without host bits", pair.outside.value);
        cx.mistakes.at(&pair.inside.place, &format!("{key}.inside"), message);
    }
    let (ports, map, named) = (ports?, map?, named?);
    let asks = Match {
        from: Ports::all(cx.names.ports.len()),
        to: Ports::default(),
        source: None,
        destination: Some(Spans::of(&gather(&named, cx.names))),
        services: Vec::new(),
    };
    Some((ports, map, asks))
}

/// The rules, and where each counts.
struct Compiled {
    destinations: Arc<Destinations>,
    hits: Vec<usize>,
}

/// The plan.
struct Judge(Arc<Compiled>);

impl FlowPlan for Judge {
    fn judge(&self, todo: Mask, facts: &mut [Meta; BATCH], actions: &mut [Action; BATCH]) -> Mask {
        for i in bits(todo) {
            let meta = &mut facts[i];
            if !meta.any(flag::IPV4 | flag::IPV6) {
                continue;
            }
            let Some(found) = self.0.destinations.find(meta) else { continue };
            let Some((dst, dport)) = found.to else { continue };
            meta.dst = dst;
            // Both fields hold an echo's identifier, which is its source's.
            if !meta.has(flag::ECHO) {
                meta.dport = dport;
            }
            if found.hairpin {
                actions[i].snat = HAIRPIN;
            }
        }
        0
    }

    fn start(&self, _worker: usize) -> Box<dyn FlowCommit> {
        Box::new(Hits(self.0.clone()))
    }

    fn describe(&self) -> Vec<String> {
        let rules = &self.0.destinations.rules;
        vec![format!("{} rule(s) for destinations", rules.len())]
    }
}

/// Counts, in one worker, what rules match.
struct Hits(Arc<Compiled>);

impl FlowCommit for Hits {
    fn commit(&mut self, judged: Mask, batch: &Batch, actions: &[Action; BATCH], cx: &mut Cx<'_>) {
        for i in bits(judged).filter(|i| batch.metas[*i].any(flag::IPV4 | flag::IPV6)) {
            // Facts of the batch are as the packet came, so this is what was found before.
            let Some(found) = self.0.destinations.find(&batch.metas[i]) else { continue };
            hit(self.0.hits[found.rule], batch.frames[i].len(), actions[i].verdict != Verdict::Deny, cx);
        }
    }
}

/// Counts the first packet of a flow for a rule, and the flow if it may be.
pub(super) fn hit(counters: usize, bytes: usize, admitted: bool, cx: &mut Cx<'_>) {
    let words = cx.sheet.range(counters..counters + rule_counter::COUNT);
    words[rule_counter::PACKETS] += 1;
    words[rule_counter::BYTES] += bytes as u64;
    words[rule_counter::LAST_HIT] = cx.now;
    words[rule_counter::FLOWS] += u64::from(admitted);
}

#[cfg(test)]
mod tests;
