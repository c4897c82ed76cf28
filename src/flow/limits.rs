//! Limits on flows: how many a source or a rule may begin a second, and how many it may have at once.
//!
//! They are the appliance's, whatever the number of workers: all of them count in the same words, by one atomic operation on
//! each at a flow's beginning and one at its end, never for each packet. So the numbers are exact, and the load may move
//! between workers as it likes. A source or rule at its limit costs plain loads, a flood beyond it writes nothing.
//! A source is a prefix of its address. Sources that find no bucket (`shared`) share one with the limits of a single source.
//!
//! A new flow must be within the source's limits, then the rule's, then the source's within the rule; what an earlier rate
//! has taken is not given back, what was counted is. Over any interval `t` at most `rate * t + rate` flows begin: a second's
//! worth may come at once. Should two workers place a source at the same moment, or one give its idle bucket to another
//! source, each may count one flow in the other bucket; nothing is lost by that, since an end is counted where its beginning was.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::config::source::{At, Mistakes};
use crate::config::units::{Counted, Rate, Within};
use crate::packet::Meta;

use super::Drops;
use super::shared::{self, Bucket, CROWDED, FullAt};
use super::source::Prefixes;

/// Flows at once. More than any table holds.
pub type Flows = Within<1, 1_000_000_000>;

/// What `[conntrack.limit]` says of all sources.
#[derive(Clone, Debug)]
pub struct Sources {
    /// New flows a second.
    pub new_flows: Option<At<Rate>>,
    /// Flows at once.
    pub flows: Option<Flows>,
    /// Leading bits of an IPv4 and of an IPv6 address that make a source.
    pub prefixes: Prefixes,
    /// How many are told apart at the same time.
    pub count: usize,
}

crate::section! {
    /// What a rule says of the flows it allows: `limit = { flows = 5000 }`.
    pub struct OfRule {
        /// New flows a second, over all workers: "1000/s"; a second's worth may come at once. No limit if left out.
        pub new_flows: Option<At<Rate>>,
        /// Flows at once, over all workers. No limit if left out.
        pub flows: Option<Flows>,
        /// New flows a second of each source.
        pub new_flows_per_source: Option<At<Rate>>,
        /// Flows at once of each source.
        pub flows_per_source: Option<Flows>,
    }
}

/// A pair of limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    /// Flows at once.
    flows: u32,
    /// Nanoseconds that a new flow takes out of the bucket; 0 for no limit.
    each: u64,
    /// Nanoseconds that fill the bucket.
    burst: u64,
}

const SECOND: u64 = 1_000_000_000;

impl Bound {
    /// `Some(None)` if neither is given, `None` after noting what is wrong.
    fn plan(
        rate: Option<&At<Rate>>,
        flows: Option<Flows>,
        key: &str,
        mistakes: &mut Mistakes,
    ) -> Option<Option<Bound>> {
        if let Some(At { value: Rate { per_second, counted }, place }) = rate
            && (*counted == Counted::Bytes || !(1..=10_000_000).contains(per_second))
        {
            mistakes.at(place, key, "expected from \"1/s\" to \"10M/s\" new flows");
            return None;
        }
        let per_second = rate.map(|rate| rate.per_second);
        let each = per_second.map_or(0, |n| SECOND.div_ceil(n));
        let burst = each * per_second.unwrap_or(0);
        let bound = Bound { flows: flows.map_or(u32::MAX, |flows| flows.0 as u32), each, burst };
        Some((rate.is_some() || flows.is_some()).then_some(bound))
    }
}

/// What is known of a source's or a rule's flows.
#[derive(Debug, Default)]
struct Census {
    rate: FullAt,
    flows: AtomicU32,
}

/// A rule's own limits, and those of each source within it.
#[derive(Debug)]
struct RuleLimits {
    slot: u16,
    whole: Option<Bound>,
    each: Option<Bound>,
    census: Line,
}

/// On a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(Census);

impl Bucket for Census {
    fn is_idle(&self, now: u64) -> bool {
        self.flows.load(Ordering::Relaxed) == 0 && self.rate.is_idle(now)
    }
}

enum Over {
    Flows,
    NewFlows,
}

impl Census {
    /// Counts a new flow, if there is room for it.
    #[inline]
    fn enter(&self, bound: &Bound, now: u64) -> Result<(), Over> {
        if self.flows.load(Ordering::Relaxed) >= bound.flows {
            return Err(Over::Flows);
        }
        if bound.each > 0 && !self.rate.take(bound.each, bound.burst, now) {
            return Err(Over::NewFlows);
        }
        let room = |flows: u32| (flows < bound.flows).then(|| flows + 1);
        self.flows.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).map(|_| ()).map_err(|_| Over::Flows)
    }

    fn leave(&self) {
        let before = self.flows.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a flow ends once");
    }
}

/// Where a flow is counted: to be given back when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Token {
    /// Slot of the source.
    source: u32,
    /// Slot of the source within the rule.
    within: u32,
    /// Index into `Limits::rules`.
    rule: u16,
}

const NONE: u32 = u32::MAX;
const NO_LIMITS: u16 = u16::MAX;

impl Token {
    /// Of a flow that is counted nowhere.
    pub const UNLIMITED: Token = Token { source: NONE, within: NONE, rule: NO_LIMITS };

    /// True if its source found no bucket of its own.
    pub fn is_crowded(self) -> bool {
        self.source == CROWDED as u32 || self.within == CROWDED as u32
    }
}

/// The limits of an appliance, compiled, and what they count. Shared by all workers.
#[derive(Debug)]
pub struct Limits {
    prefixes: Prefixes,
    source: Option<Bound>,
    rules: Box<[RuleLimits]>,
    /// By rule slot: index into `rules`, or `NO_LIMITS`.
    of_rule: Box<[u16]>,
    sources: shared::Table<Census>,
}

impl Limits {
    /// Compiles what the file says of sources and of rules (by slot, with the key to name in mistakes); `None` after noting
    /// at least one mistake.
    pub fn plan(
        config: &Sources,
        rules: impl IntoIterator<Item = (u16, OfRule, String)>,
        mistakes: &mut Mistakes,
    ) -> Option<Limits> {
        let key = "conntrack.limit.new_flows_per_source";
        let source = Bound::plan(config.new_flows.as_ref(), config.flows, key, mistakes);
        let (mut compiled, mut of_rule, mut good) = (Vec::new(), Vec::new(), source.is_some());
        for (slot, rule, key) in rules {
            let whole = Bound::plan(rule.new_flows.as_ref(), rule.flows, &format!("{key}.new_flows"), mistakes);
            let rate = rule.new_flows_per_source.as_ref();
            let each = Bound::plan(rate, rule.flows_per_source, &format!("{key}.new_flows_per_source"), mistakes);
            let (Some(whole), Some(each)) = (whole, each) else {
                good = false;
                continue;
            };
            of_rule.resize(of_rule.len().max(usize::from(slot) + 1), NO_LIMITS);
            of_rule[usize::from(slot)] = compiled.len() as u16;
            compiled.push(RuleLimits { slot, whole, each, census: Line::default() });
        }
        let by_source = source.flatten().is_some() || compiled.iter().any(|rule| rule.each.is_some());
        good.then(|| Limits {
            prefixes: config.prefixes,
            source: source.flatten(),
            rules: compiled.into(),
            of_rule: of_rule.into(),
            sources: shared::Table::new(if by_source { config.count } else { 0 }),
        })
    }

    /// True if the other limits the same flows alike, so that what was counted here may stay.
    pub fn is_same(&self, other: &Limits) -> bool {
        let rules =
            |limits: &Limits| limits.rules.iter().map(|rule| (rule.slot, rule.whole, rule.each)).collect::<Vec<_>>();
        self.prefixes == other.prefixes
            && self.source == other.source
            && self.of_rule == other.of_rule
            && rules(self) == rules(other)
            && self.sources.memory() == other.sources.memory()
    }

    /// True if there is any limit.
    pub fn any(&self) -> bool {
        self.source.is_some() || !self.rules.is_empty()
    }

    /// A line for `check` and `--describe`.
    pub fn describe(&self) -> String {
        let kib = self.sources.memory() >> 10;
        format!("limits on flows: by source in {kib} KiB, of {} rule(s)", self.rules.len())
    }

    /// Counts a new flow of the packet's source, admitted by a rule slot, if it is within all limits. `now` is Unix time in
    /// nanoseconds.
    pub fn admit(&self, first: &Meta, rule: u16, now: u64) -> Result<Token, Drops> {
        self.count(first, rule, now, false)
    }

    /// Counts a flow that exists already (loaded from a file, or now of another rule), however many there are.
    pub fn restore(&self, first: &Meta, rule: u16, now: u64) -> Token {
        self.count(first, rule, now, true).unwrap_or(Token::UNLIMITED)
    }

    /// Takes back a flow's count, at its end.
    pub fn release(&self, token: Token) {
        for slot in [token.source, token.within] {
            if slot != NONE {
                self.sources.at(slot as usize).leave();
            }
        }
        if let Some(rule) = self.rules.get(usize::from(token.rule)) {
            rule.census.0.leave();
        }
    }

    #[inline]
    fn count(&self, first: &Meta, rule: u16, now: u64, restored: bool) -> Result<Token, Drops> {
        let mut token = Token::UNLIMITED;
        if let Some(bound) = &self.source {
            token.source = self.enter_source(first, 0, bound, now, restored).map_err(|over| match over {
                Over::Flows => Drops::TooManyFlows,
                Over::NewFlows => Drops::TooManyNewFlows,
            })?;
        }
        let at = self.of_rule.get(usize::from(rule)).copied().unwrap_or(NO_LIMITS);
        let Some(limits) = self.rules.get(usize::from(at)) else { return Ok(token) };
        let entered = match &limits.whole {
            Some(bound) => limits.census.0.enter(&bound.for_restored(restored), now),
            None => Ok(()),
        };
        let entered = entered.and_then(|()| {
            if limits.whole.is_some() {
                token.rule = at;
            }
            if let Some(bound) = &limits.each {
                token.within = self.enter_source(first, u64::from(limits.slot) + 1, bound, now, restored)?;
            }
            Ok(())
        });
        match entered {
            Ok(()) => Ok(token),
            Err(over) => {
                self.release(token);
                Err(match over {
                    Over::Flows => Drops::RuleTooManyFlows,
                    Over::NewFlows => Drops::RuleTooManyNewFlows,
                })
            }
        }
    }

    /// Counts a flow for its source; the slot it is counted in. What is not IP is not counted.
    #[inline]
    fn enter_source(&self, first: &Meta, purpose: u64, bound: &Bound, now: u64, restored: bool) -> Result<u32, Over> {
        let Some(source) = self.prefixes.source(first) else { return Ok(NONE) };
        let slot = self.sources.find(self.sources.key(&source, purpose), now).unwrap_or(CROWDED);
        self.sources.at(slot).enter(&bound.for_restored(restored), now)?;
        Ok(slot as u32)
    }
}

impl Bound {
    /// The bound for a flow that is counted in any case.
    fn for_restored(&self, restored: bool) -> Bound {
        if restored { Bound { flows: u32::MAX, each: 0, burst: 0 } } else { *self }
    }
}

/// Where each flow of a table is counted, by entry: what a flow's end gives back, however it ends.
#[derive(Debug)]
pub struct Ledger {
    limits: Arc<Limits>,
    tokens: Box<[Token]>,
}

impl Ledger {
    /// For a table with this many entries.
    pub fn new(limits: Arc<Limits>, entries: usize) -> Ledger {
        Ledger { limits, tokens: vec![Token::UNLIMITED; entries].into() }
    }

    /// Notes where the flow in an entry is counted; where it was counted before, it is no longer.
    #[inline]
    pub fn keep(&mut self, entry: u32, token: Token) {
        let before = std::mem::replace(&mut self.tokens[entry as usize], token);
        self.limits.release(before);
    }

    /// Ends the flow in an entry. A second time changes nothing.
    #[inline]
    pub fn end(&mut self, entry: u32) {
        self.keep(entry, Token::UNLIMITED);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::config::source::Place;
    use crate::packet::meta::flag;

    const START: u64 = 1_700_000_000_000_000_000;

    fn place() -> Place {
        Place { file: "t.toml".into(), line: 1, column: 1 }
    }

    fn rate(per_second: u64) -> Option<At<Rate>> {
        Some(At { value: Rate { per_second, counted: Counted::Packets }, place: place() })
    }

    fn sources(new: Option<u64>, flows: Option<u64>, sources: usize) -> Sources {
        let prefixes = Prefixes::new(32, 64);
        Sources { new_flows: new.and_then(rate), flows: flows.map(Within), prefixes, count: sources }
    }

    fn of_rule(new: Option<u64>, flows: Option<u64>, each: (Option<u64>, Option<u64>)) -> OfRule {
        OfRule {
            new_flows: new.and_then(rate),
            flows: flows.map(Within),
            new_flows_per_source: each.0.and_then(rate),
            flows_per_source: each.1.map(Within),
        }
    }

    fn limits(config: &Sources, rules: Vec<(u16, OfRule)>) -> Limits {
        let rules = rules.into_iter().map(|(slot, rule)| (slot, rule, "acl.rule".to_owned()));
        Limits::plan(config, rules, &mut Mistakes::default()).expect("good")
    }

    fn from(n: u32) -> Meta {
        let mut meta = Meta { flags: flag::IPV4, ..Meta::UNKNOWN };
        meta.src[..4].copy_from_slice(&n.to_be_bytes());
        meta
    }

    /// Counts of all buckets that are not zero.
    fn counted(limits: &Limits) -> u64 {
        let slots = 0..limits.sources.sources() * 2;
        let sources = slots.map(|slot| u64::from(limits.sources.at(slot).flows.load(Ordering::Relaxed))).sum::<u64>();
        sources + limits.rules.iter().map(|r| u64::from(r.census.0.flows.load(Ordering::Relaxed))).sum::<u64>()
    }

    /// What a bucket is, told plainly: flows at once, and the times of those that began within the last second's worth.
    #[derive(Clone, Copy, Default)]
    struct Naive {
        flows: u64,
        full_at: u64,
    }

    #[derive(Default)]
    struct Model(HashMap<(u64, u32), Naive>);

    impl Model {
        fn enter(&mut self, key: (u64, u32), new: Option<u64>, flows: Option<u64>, now: u64) -> Result<(), bool> {
            let bucket = self.0.entry(key).or_default();
            if flows.is_some_and(|most| bucket.flows >= most) {
                return Err(true);
            }
            if let Some(rate) = new {
                let each = SECOND.div_ceil(rate);
                let full_at = bucket.full_at.max(now) + each;
                if full_at > now + each * rate {
                    return Err(false);
                }
                bucket.full_at = full_at;
            }
            bucket.flows += 1;
            Ok(())
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn counts_are_those_of_a_plain_map(
            new in prop::option::of(1u64..20), most in prop::option::of(1u64..8),
            rule_new in prop::option::of(1u64..20), rule_most in prop::option::of(1u64..12),
            each_new in prop::option::of(1u64..9), each_most in prop::option::of(1u64..5),
            steps in prop::collection::vec((0u64..200_000_000, 0u32..5, 0u16..4, 0usize..24, any::<bool>()), 1..300),
        ) {
            let rule = of_rule(rule_new, rule_most, (each_new, each_most));
            let limits = Arc::new(limits(&sources(new, most, 1024), vec![(1, rule.clone()), (3, rule)]));
            let mut ledger = Ledger::new(limits.clone(), 24);
            let mut model = Model::default();
            // By entry of the table: what the flow in it is counted in.
            let mut flows: Vec<Option<(u32, u16)>> = vec![None; 24];
            let mut now = START;
            for (wait, source, slot, entry, ends) in steps {
                now += wait;
                let limited = slot == 1 || slot == 3;
                if let Some((source, slot)) = flows[entry] {
                    if ends {
                        ledger.end(entry as u32);
                        ledger.end(entry as u32);
                        flows[entry] = None;
                        let limited = slot == 1 || slot == 3;
                        let mut leave = |key| model.0.entry(key).or_default().flows -= 1;
                        leave((0, source));
                        if limited {
                            leave((100 + u64::from(slot), 0));
                            leave((u64::from(slot), source));
                        }
                    }
                    continue;
                }
                let got = limits.admit(&from(source), slot, now);
                let mut expected = Ok(());
                if let Err(flows) = model.enter((0, source), new, most, now) {
                    expected = Err(if flows { Drops::TooManyFlows } else { Drops::TooManyNewFlows });
                } else if limited {
                    let rule = |flows| if flows { Drops::RuleTooManyFlows } else { Drops::RuleTooManyNewFlows };
                    let whole = (100 + u64::from(slot), 0);
                    if let Err(flows) = model.enter(whole, rule_new, rule_most, now) {
                        model.0.entry((0, source)).or_default().flows -= 1;
                        expected = Err(rule(flows));
                    } else if let Err(flows) = model.enter((u64::from(slot), source), each_new, each_most, now) {
                        model.0.entry((0, source)).or_default().flows -= 1;
                        model.0.entry(whole).or_default().flows -= 1;
                        expected = Err(rule(flows));
                    }
                }
                prop_assert_eq!(got.map(|_| ()), expected);
                if let Ok(token) = got {
                    prop_assert!(!token.is_crowded());
                    ledger.keep(entry as u32, token);
                    flows[entry] = Some((source, slot));
                }
            }
            (0..24).for_each(|entry| ledger.end(entry));
            prop_assert_eq!(counted(&limits), 0);
        }
    }

    #[test]
    fn two_workers_count_together() {
        let rule = of_rule(None, Some(1_500), (None, None));
        let limits = limits(&sources(None, Some(1_000), 64), vec![(0, rule)]);
        // Each source has its bucket before the race for what is in it.
        let first = [1, 2].map(|n| limits.admit(&from(n), 0, START).expect("the first"));
        let work = |worker: u32| {
            let admitted = (0..2_000).filter_map(|n| limits.admit(&from(1 + (n + worker) % 2), 0, START).ok());
            admitted.collect::<Vec<Token>>()
        };
        let (a, b) = std::thread::scope(|scope| {
            let a = scope.spawn(|| work(0));
            let b = scope.spawn(|| work(1));
            (a.join().expect("worker"), b.join().expect("worker"))
        });
        assert_eq!(a.len() + b.len() + 2, 1_500, "the rule's");
        assert_eq!(limits.admit(&from(3), 0, START), Err(Drops::RuleTooManyFlows));
        assert!(limits.admit(&from(3), 7, START).is_ok_and(|token| {
            limits.release(token);
            true
        }));
        a.into_iter().chain(b).chain(first).for_each(|token| limits.release(token));
        assert_eq!(counted(&limits), 0);
        let all = (0..2_000).filter(|_| limits.admit(&from(1), 9, START).is_ok()).count();
        assert_eq!(all, 1_000, "the source's");
    }

    #[test]
    fn a_second_s_worth_at_once_and_the_rate_after() {
        let limits = limits(&sources(Some(200), None, 64), vec![]);
        let begin = |now| (0..400).filter(|_| limits.admit(&from(1), 0, now).is_ok()).count();
        assert_eq!(begin(START), 200);
        assert_eq!(begin(START + SECOND / 2), 100);
        assert_eq!(begin(START + 5 * SECOND), 200);
    }

    #[test]
    fn sources_without_room_share_a_bucket() {
        let limits = limits(&sources(None, Some(3), 64), vec![]);
        let admitted: Vec<Token> = (0..40_000).filter_map(|n| limits.admit(&from(n / 4), 0, START).ok()).collect();
        assert_eq!(admitted.iter().filter(|token| token.is_crowded()).count(), 3);
        // 128 slots of three flows each, most of them taken, and the shared one.
        assert!((64 * 3..=129 * 3).contains(&admitted.len()), "{}", admitted.len());
        admitted.into_iter().for_each(|token| limits.release(token));
        assert_eq!(counted(&limits), 0);
        assert!(limits.admit(&from(99_999), 0, START).is_ok_and(|token| !token.is_crowded()));
    }

    #[test]
    fn a_network_of_ipv6_is_one_source_and_restored_flows_count() {
        let limits = limits(&sources(None, Some(2), 64), vec![]);
        let from = |text: &str| {
            let src = text.parse::<std::net::Ipv6Addr>().expect("address").octets();
            Meta { src, flags: flag::IPV6, ..Meta::UNKNOWN }
        };
        let one = limits.restore(&from("2001:db8::1"), 0, START);
        let more = [2, 3].map(|n| limits.restore(&from(&format!("2001:db8::{n}")), 0, START));
        assert_eq!(limits.admit(&from("2001:db8::9"), 0, START), Err(Drops::TooManyFlows));
        assert!(limits.admit(&from("2001:db8:0:1::9"), 0, START).is_ok());
        [one, more[0], more[1]].into_iter().for_each(|token| limits.release(token));
        assert!(limits.admit(&from("2001:db8::9"), 0, START).is_ok());
        assert_eq!(limits.restore(&Meta { flags: flag::ARP, ..Meta::UNKNOWN }, 0, START), Token::UNLIMITED);
    }

    #[test]
    fn rates_are_of_flows() {
        let refused = |config: Sources, rules: Vec<(u16, OfRule, String)>| {
            let mut mistakes = Mistakes::default();
            assert!(Limits::plan(&config, rules, &mut mistakes).is_none());
            mistakes.into_sorted()[0].to_string()
        };
        let source = "conntrack.limit.new_flows_per_source: expected from \"1/s\"";
        assert!(refused(sources(Some(0), None, 64), vec![]).contains(source));
        let bytes = Some(At { value: Rate::parse("1MB/s").expect("rate"), place: place() });
        assert!(refused(Sources { new_flows: bytes, ..sources(None, None, 64) }, vec![]).contains(source));
        let rule = (0, of_rule(Some(20_000_000), None, (None, None)), "acl.rule[0].limit".to_owned());
        let message = refused(sources(None, None, 64), vec![rule]);
        assert!(message.contains("acl.rule[0].limit.new_flows: expected from \"1/s\""), "{message}");
    }
}
