//! `snat`: what sources become.
//!
//! Owns what the file says, the judging and the counting; addresses and ports are chosen by `nat::source` when a flow is
//! admitted, so that what a rule of the acl denies costs none. It stands behind the stage that routes: rules know the port by
//! which a packet leaves, its new destination, and its source as it came. A flow for which there is no port is dropped, counted
//! and logged.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::config::source::At;
use crate::config::units::{Counted, Rate};
use crate::log::{Entry, Event};
use crate::nat::pool::{LOW, PORTS, Share};
use crate::nat::rules::{Match, Spans, Written, port_range};
use crate::nat::source::{Filtering, Fixed, Mapping, Origin, Slot, Sources};
use crate::nat::{HAIRPIN, Outbound};
use crate::packet::meta::flag;
use crate::packet::{BATCH, Batch, Mask, Meta, NO_RULE, bits};
use crate::stats::{Line, Lines, Reason};

use super::acl::gather;
use super::bucket::Bucket;
use super::dnat::{hit, needs};
use super::ingress::Ports;
use super::{Action, Cx, Depth, FlowCommit, FlowPlan, NO_SNAT, Plan, PlanCx, Stage, Verdict};

crate::lines! {
    /// Why a flow whose source is to be translated drops.
    pub enum Drops {
        /// All ports that were tried are taken; of a protocol without ports, another flow to the same remote end has the address.
        Exhausted = "exhausted",
        /// The port it leaves by has no address of its family to masquerade as.
        NoAddress = "no-address",
    }
}

crate::lines! {
    /// What is counted besides the rules' packets and bytes.
    pub enum Counters {
        /// Dropped flows that were logged.
        Logged = "logged",
        /// Dropped flows that were not logged because of `log_rate`.
        LogSuppressed = "log-suppressed",
        /// Dropped flows that were not logged because the ring to the log was full.
        LogLost = "log-lost",
    }
}

crate::section! {
    /// `[snat]`
    pub struct Config {
        /// Log entries a second for flows that get no port, over all workers: "10/s" unless given. What is above is counted.
        pub log_rate: Option<At<Rate>>,
        /// The rules, in the order in which they are asked, behind `dnat.one_to_one`; the first that matches decides.
        pub rule: Vec<At<RuleConfig>> = Vec::new(),
    }
}

crate::section! {
    /// `[[snat.rule]]`. A key that is left out matches everything.
    pub struct RuleConfig {
        /// Its name in counters; `rule[N]` if left out.
        pub name: Option<String>,
        /// Zones and ports the packet came from.
        pub from: Vec<At<String>> = Vec::new(),
        /// Zones and ports it leaves by.
        pub to: Vec<At<String>> = Vec::new(),
        /// Source addresses: addresses, prefixes, "@set".
        pub source: Vec<At<String>> = Vec::new(),
        /// Destination addresses, likewise.
        pub destination: Vec<At<String>> = Vec::new(),
        /// Services by name, or "tcp/443", "udp/1000-2000".
        pub service: Vec<At<String>> = Vec::new(),
        /// What the source becomes: "masquerade" (the first address of the port it leaves by); addresses, ranges, prefixes or "@set" to choose from; or "none". Packets of a family of which no address is given are not the rule's.
        pub to_source: At<Vec<At<String>>>,
        /// Ports to choose from, such as "20000-29999". If left out, 1024 to 65535, and 512 to 1023 for sources below 1024.
        pub ports: Option<At<String>>,
        /// "endpoint-dependent": each flow has a port of its own, and one port may serve flows to several remote ends; or "endpoint-independent": all flows of an inside address and port share one (RFC 4787), which needs `source`.
        pub mapping: Mapping = Mapping::Dependent,
        /// With endpoint-independent mapping, who may use it from outside: "endpoint-dependent" (whom the inside has sent to) or "endpoint-independent" (whomever the acl allows; what `dnat` forwards stays forwarded, but of the box's own services nothing is known here: behind an address of the box, give `ports` that these do not use).
        pub filtering: Filtering = Filtering::Dependent,
    }
}

/// The stage.
pub struct Snat;

/// Log entries a second unless the file says so, and the most it may say.
const DEFAULT_RATE: u64 = 10;
const MOST: u64 = 1_000_000;

impl Stage for Snat {
    const NAME: &'static str = "snat";
    const DOC: &'static str = "Translates sources: masquerade behind the address of a port, pools of addresses, one-to-one. It \
                               stands behind \"route\", and behind \"acl\", which then sees sources as they came.";
    const JUDGES: bool = true;
    const DEPTH: Depth = Depth::L4;
    const AFTER_EGRESS: bool = true;
    const REASONS: &'static [Line] = Drops::LINES;
    const COUNTERS: &'static [Line] = Counters::LINES;
    type Config = Config;

    fn plan(config: &Config, cx: &mut PlanCx<'_>) -> Option<Plan> {
        let before = cx.mistakes.len();
        let reasons = cx.reasons::<Drops>();
        let counters = cx.counters::<Counters>();
        needs(config.rule.first().map(|rule| &rule.place), cx);
        let mut draft = Parts::new();
        cx.nat.pairs_at = None;
        for pair in std::mem::take(&mut cx.nat.one_to_one) {
            let slot = draft.add(Slot { origin: Origin::Fixed(pair.fixed), ..Slot::MASQUERADE }, pair.rule);
            let inside = gather_fixed(&pair.fixed);
            let from = Ports::all(cx.names.ports.len());
            let asks = Match { from, to: pair.outside, source: Some(inside), destination: None, services: Vec::new() };
            draft.rules.push(Rule { asks, slot: Some(slot) });
            cx.nat.one_to_one.push(pair);
        }
        for (number, rule) in config.rule.iter().enumerate() {
            let key = format!("{}.rule[{number}]", cx.instance);
            let name = rule.name.clone().unwrap_or_else(|| format!("rule[{number}]"));
            let to: Vec<&str> = rule.to_source.iter().map(|to| to.value.as_str()).collect();
            let counted = cx.rule(&name, &rule.place, &format!("to {}", to.join(", ")))?;
            let (Some(mut asks), Some(slot)) = (asks(rule, &key, cx), slot(rule, &key, cx)) else { continue };
            let to = asks.to;
            if let Some(Slot { origin: Origin::Masquerade, .. }) = &slot {
                draft.masquerade.extend(to);
            }
            if let Some(Slot { origin: Origin::Pool(pool), .. }) = &slot {
                if !asks.restrict(pool) {
                    let message = "never matches: what it asks for and what sources become are of different families";
                    cx.mistakes.at(&rule.to_source.place, &format!("{key}.to_source"), message);
                }
                draft.pools.extend(pool);
            }
            if let Some(Slot { mapping: Mapping::Independent, .. }) = &slot {
                asks.source.iter().for_each(|source| draft.independent.extend(source));
            }
            let slot = slot.map(|slot| draft.add(slot, counted));
            draft.rules.push(Rule { asks, slot });
        }
        // Whoever comes back to where it came from gets the address of any port.
        if cx.nat.destinations.as_ref().is_some_and(|of| of.rules.iter().any(|rule| rule.hairpin)) {
            draft.masquerade.extend(Ports::all(cx.names.ports.len()));
        }
        let rate = match &config.log_rate {
            None => DEFAULT_RATE,
            Some(At { value, place }) => {
                if value.counted == Counted::Bytes || value.per_second > MOST {
                    let message = "expected a number a second from \"0/s\" to \"1M/s\"";
                    cx.mistakes.at(place, &format!("{}.log_rate", cx.instance), message);
                }
                value.per_second
            }
        };
        if cx.mistakes.len() > before {
            return None;
        }
        let counters_of = |rule: &u16| cx.rules.slot(*rule).map(|rule| rule.counters);
        let hits = draft.slot_rules.iter().map(counters_of).collect();
        let sources = Arc::new(Sources { slots: draft.slots, addresses: cx.nat.addresses.clone() });
        let reasons = [reasons.at(Drops::Exhausted), reasons.at(Drops::NoAddress)];
        cx.nat.outbound = Some(Outbound {
            sources,
            pools: draft.pools,
            masquerade: draft.masquerade,
            independent: draft.independent,
            rules: draft.slot_rules,
            reasons,
        });
        let zone = |port: usize| cx.names.ports.get(port).and_then(|port| port.zone);
        // A port without a zone is one of its own.
        let zones = Box::new(std::array::from_fn(|port| zone(port).map_or(1 << 16 | port as u32, |zone| zone as u32)));
        Some(Plan::Flow(Arc::new(Judge(Arc::new(Compiled {
            rules: draft.rules,
            independent: draft.independent_slots,
            hits,
            zones,
            reasons,
            counters,
            bucket: Bucket::new(rate, cx.workers),
        })))))
    }
}

/// A rule, compiled.
#[derive(Debug)]
struct Rule {
    asks: Match,
    /// `None` if sources stay as they are.
    slot: Option<u16>,
}

/// What becomes of the rules.
struct Parts {
    rules: Vec<Rule>,
    slots: Vec<Slot>,
    /// By slot: its rule.
    slot_rules: Vec<u16>,
    independent_slots: Vec<bool>,
    pools: Spans,
    masquerade: Ports,
    independent: Spans,
}

/// The slot of those who come back to where they came from.
const BACK: u16 = 0;

impl Parts {
    fn new() -> Parts {
        Parts {
            rules: Vec::new(),
            slots: vec![Slot::MASQUERADE],
            slot_rules: vec![NO_RULE],
            independent_slots: vec![false],
            pools: Spans::default(),
            masquerade: Ports::default(),
            independent: Spans::default(),
        }
    }

    fn add(&mut self, slot: Slot, rule: u16) -> u16 {
        self.independent_slots.push(slot.mapping == Mapping::Independent);
        self.slot_rules.push(rule);
        self.slots.push(slot);
        // There are no more slots than rules, and of those fewer than `HAIRPIN`.
        (self.slots.len() - 1) as u16
    }
}

fn gather_fixed(fixed: &Fixed) -> Spans {
    let prefix = (fixed.from, if fixed.v6 { 128 } else { 32 } - fixed.host.count_ones() as u8);
    let (v4, v6) = if fixed.v6 { (vec![], vec![prefix]) } else { (vec![prefix], vec![]) };
    Spans::of(&super::acl::Addresses { v4, v6 })
}

fn asks(rule: &RuleConfig, key: &str, cx: &mut PlanCx<'_>) -> Option<Match> {
    let RuleConfig { from, to, source, destination, service, .. } = rule;
    Match::resolve(Written { from, to, source, destination, service }, key, cx.names, cx.mistakes)
}

/// How a rule translates, `None` inside if it does not; `None` after noting at least one mistake.
fn slot(rule: &RuleConfig, key: &str, cx: &mut PlanCx<'_>) -> Option<Option<Slot>> {
    let before = cx.mistakes.len();
    let to = &rule.to_source;
    let key_to = format!("{key}.to_source");
    let single = |word: &str| to.iter().find(|text| text.value == word);
    let origin = match (single("masquerade"), single("none")) {
        (Some(word), _) | (_, Some(word)) if to.len() > 1 => {
            cx.mistakes.at(&word.place, &key_to, format!("{:?} stands alone, not in a list", word.value));
            None
        }
        (Some(_), _) => Some(Origin::Masquerade),
        (_, Some(_)) => None,
        (None, None) if to.is_empty() => {
            let help = "write \"none\" to leave packets as they are";
            cx.mistakes.with_help(&to.place, &key_to, "there is no source to translate to", help);
            None
        }
        (None, None) => {
            let named = cx.names.resolve_addresses(to, &key_to, cx.mistakes)?;
            Some(Origin::Pool(Spans::of(&gather(&named, cx.names))))
        }
    };
    if let Some(any) = single("any") {
        cx.mistakes.with_help(&any.place, &key_to, "not every address is ours", "name the addresses that are");
    }
    let ports = ports(rule, key, cx);
    let independent = rule.mapping == Mapping::Independent;
    if independent && (rule.source.is_empty() || rule.source.iter().any(|text| text.value == "any")) {
        let help = "name the inside networks: by these workers share the flows";
        cx.mistakes.with_help(
            &to.place,
            &format!("{key}.mapping"),
            "endpoint-independent mapping needs `source`",
            help,
        );
    }
    if !independent && rule.filtering == Filtering::Independent {
        let help = "set mapping = \"endpoint-independent\"";
        let message = "only what is mapped endpoint-independently can be reached by others";
        cx.mistakes.with_help(&to.place, &format!("{key}.filtering"), message, help);
    }
    if cx.mistakes.len() > before {
        return None;
    }
    let Some(origin) = origin else { return Some(None) };
    Some(Some(Slot { origin, ports, mapping: rule.mapping, filtering: rule.filtering }))
}

fn ports(rule: &RuleConfig, key: &str, cx: &mut PlanCx<'_>) -> Option<RangeInclusive<u16>> {
    let text = rule.ports.as_ref()?;
    let key = format!("{key}.ports");
    let Some(range) = port_range(text).filter(|range| *range.start() > 0) else {
        let message = format!("expected a range such as \"20000-29999\", from 1 to 65535, found {:?}", text.value);
        cx.mistakes.at(&text.place, &key, message);
        return None;
    };
    if (0..cx.workers).any(|worker| Share::new(&range, worker, cx.workers).is_empty()) {
        let message = format!("{} port(s) are too few for {} workers", range.len(), cx.workers);
        let help = format!("give {} at least", 2 * cx.workers);
        cx.mistakes.with_help(&text.place, &key, message, help);
        return None;
    }
    Some(range)
}

/// The rules, and all that judging and telling need.
struct Compiled {
    rules: Vec<Rule>,
    /// By slot: true if it maps endpoint-independently.
    independent: Vec<bool>,
    hits: Vec<Option<usize>>,
    /// By port: a number for its zone.
    zones: Box<[u32; 256]>,
    reasons: [Reason; 2],
    counters: usize,
    /// A worker's full bucket for log entries.
    bucket: Bucket,
}

impl Compiled {
    /// `Action::snat` for a packet.
    #[inline]
    fn decide(&self, meta: &Meta, action: &Action) -> u16 {
        let hairpin = action.snat == HAIRPIN;
        let asked =
            |asks: &Match| asks.from.contains(meta.port) && asks.is_between(meta) && asks.service(meta).is_some();
        if let Some(rule) = self.rules.iter().find(|rule| rule.asks.to.contains(action.out) && asked(&rule.asks)) {
            return rule.slot.unwrap_or(NO_SNAT);
        }
        if !hairpin || self.zones[usize::from(meta.port)] != self.zones[usize::from(action.out)] {
            return NO_SNAT;
        }
        // Who has an address and port of its own outside keeps them on the way back (RFC 4787 REQ-9a).
        let mapped =
            |rule: &&Rule| rule.slot.is_some_and(|slot| self.independent[usize::from(slot)]) && asked(&rule.asks);
        self.rules.iter().find(mapped).and_then(|rule| rule.slot).unwrap_or(BACK)
    }
}

/// The plan.
struct Judge(Arc<Compiled>);

impl FlowPlan for Judge {
    fn judge(&self, todo: Mask, facts: &mut [Meta; BATCH], actions: &mut [Action; BATCH]) -> Mask {
        for i in bits(todo) {
            actions[i].snat = match facts[i].any(flag::IPV4 | flag::IPV6) {
                true => self.0.decide(&facts[i], &actions[i]),
                false => NO_SNAT,
            };
        }
        0
    }

    fn start(&self, _worker: usize) -> Box<dyn FlowCommit> {
        Box::new(Hits { compiled: self.0.clone(), bucket: self.0.bucket.clone() })
    }

    fn concludes(&self) -> bool {
        true
    }

    fn describe(&self) -> Vec<String> {
        let ranges =
            format!("ports {}-{} ({}-{} for sources below 1024)", PORTS.start(), PORTS.end(), LOW.start(), LOW.end());
        vec![format!("{} rule(s) for sources; unless a rule says otherwise, {ranges}", self.0.rules.len())]
    }
}

/// Counts, in one worker, what rules match, and tells of flows that got no port.
struct Hits {
    compiled: Arc<Compiled>,
    bucket: Bucket,
}

impl FlowCommit for Hits {
    fn commit(&mut self, judged: Mask, batch: &Batch, actions: &[Action; BATCH], cx: &mut Cx<'_>) {
        for i in bits(judged).filter(|i| actions[*i].snat != NO_SNAT) {
            if let Some(Some(counters)) = self.compiled.hits.get(usize::from(actions[i].snat)) {
                hit(*counters, batch.frames[i].len(), actions[i].verdict != Verdict::Deny, cx);
            }
        }
    }

    fn conclude(&mut self, judged: Mask, batch: &mut Batch, actions: &[Action; BATCH], cx: &mut Cx<'_>) {
        for i in bits(judged & batch.dead).filter(|i| self.compiled.reasons.contains(&batch.reasons[*i])) {
            let told = if !self.bucket.has(cx.now) {
                Counters::LogSuppressed
            } else {
                self.bucket.take(cx.now);
                let mut facts = batch.metas[i].clone();
                facts.out = actions[i].out;
                let entry = Entry { time: cx.now, facts, event: Event::Denied, reason: batch.reasons[i] };
                if cx.log.push(entry) { Counters::Logged } else { Counters::LogLost }
            };
            cx.sheet.counters[self.compiled.counters + told.index()] += 1;
        }
    }
}

#[cfg(test)]
mod tests;
