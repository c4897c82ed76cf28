//! `conntrack`: marks the place in the pipeline where packets are looked up in the flow table.
//!
//! What stands before it sees every packet as received. Behind it, only a flow's first packet is judged by the flow stages;
//! later ones replay what was decided, in both directions. This file has the stage's configuration and what is compiled from
//! it; `track` has what a worker does with it.

use std::io;
use std::sync::Arc;

use crate::config::reader::{FromToml, Item, Key as KeyDoc, Reader};
use crate::config::source::At;
use crate::config::units::{Rate, Within};
use crate::flow::entry::{EntryV4, EntryV6, Scope};
use crate::flow::limits::{Flows, Limits, Sources};
use crate::flow::region::Placement;
use crate::flow::source::Prefixes;
use crate::flow::table::Table;
use crate::flow::timeout::{Class, Timeouts};
use crate::flow::{Drops, Tracking};
use crate::packet::steer;
use crate::stats::{Line, Lines, ReasonBase};

use super::{Depth, Plan, PlanCx, Stage};

/// Half-open flows among all entries, as a share or as a number.
#[derive(Clone, Copy, PartialEq)]
pub enum Share {
    /// Per cent of the entries.
    Percent(f64),
    /// So many, over all workers.
    Count(u32),
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Share::Percent(percent) => write!(f, "\"{percent}%\""),
            Share::Count(count) => write!(f, "{count}"),
        }
    }
}

impl FromToml for Share {
    const EXPECTED: &'static str = "a share such as \"10%\" or a number";
    const KEYS: &'static [KeyDoc] = &[];
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if let Some(text) = item.as_str() {
            let percent = text.strip_suffix('%').and_then(|digits| digits.trim().parse::<f64>().ok());
            let share = percent.filter(|percent| *percent > 0.0 && *percent <= 100.0).map(Share::Percent);
            if share.is_none() {
                reader.wrong(&item, format!("expected {}, found {text:?}", Self::EXPECTED));
            }
            return share;
        }
        let count = crate::config::units::Within::<1, 1_073_741_824>::from_toml(item, reader)?;
        Some(Share::Count(count.0 as u32))
    }
}

impl Share {
    /// Of `entries` in one of `workers` tables.
    fn of(self, entries: usize, workers: usize) -> usize {
        let share = match self {
            Share::Percent(percent) => (entries as f64 * percent / 100.0).ceil() as usize,
            Share::Count(count) => (count as usize).div_ceil(workers),
        };
        share.clamp(1, entries)
    }
}

crate::section! {
    /// `[conntrack]`
    pub struct Config {
        /// How closely flows are held to their protocol, unless a rule says otherwise. "strict": what state and windows do not allow is dropped. "normal": a segment outside the windows passes if it cannot change the connection's state. "loose": as normal, and connections may be picked up in mid-stream. "sloppy": no windows, and one direction may be all that is seen.
        pub tracking: Tracking = Tracking::Strict,
        /// IPv6 neighbor discovery and multicast listener discovery pass on a wire without a rule (RFC 4890 sections 4.3.2 and 4.4).
        pub neighbor_discovery: bool = true,
        /// How long a flow may be silent before it is forgotten.
        pub timeout: Timeouts = Timeouts::default(),
        /// What flows may take.
        pub limit: Limit = Limit::default(),
    }
}

crate::section! {
    /// `[conntrack.limit]`
    pub struct Limit {
        /// Flows that may be half-open at a time (no answer seen, or a TCP handshake not finished): beyond, the oldest of them goes.
        pub half_open: Share = Share::Percent(10.0),
        /// When SYNs that the rules allow are answered by flowgate itself, with a cookie, and reach the server only when the client has proven its address: "auto", while more than 80 % of what may be half-open is; "always"; "off".
        pub syn_proxy: SynProxy = SynProxy::Auto,
        /// The segment size told to clients whose SYN is answered so; over IPv6 it is 20 less.
        pub syn_proxy_mss: Within<536, 9000> = Within(1460),
        /// New flows a second that a source may begin, over all workers: "200/s"; a second's worth may come at once. No limit if left out.
        pub new_flows_per_source: Option<At<Rate>>,
        /// Flows a source may have at once, over all workers. No limit if left out.
        pub flows_per_source: Option<Flows>,
        /// Leading bits of an IPv4 address that make a source.
        pub source_prefix_v4: Within<0, 32> = Within(32),
        /// Leading bits of an IPv6 address that make a source.
        pub source_prefix_v6: Within<0, 128> = Within(64),
        /// How many sources are told apart at the same time, each rule with limits by source taking another place; the others count as one.
        pub sources: Within<64, 16777216> = Within(65536),
    }
}

impl Default for Limit {
    fn default() -> Limit {
        Limit {
            half_open: Share::Percent(10.0),
            syn_proxy: SynProxy::Auto,
            syn_proxy_mss: Within(1460),
            new_flows_per_source: None,
            flows_per_source: None,
            source_prefix_v4: Within(32),
            source_prefix_v6: Within(64),
            sources: Within(65536),
        }
    }
}

impl Limit {
    fn sources(&self) -> Sources {
        Sources {
            new_flows: self.new_flows_per_source.clone(),
            flows: self.flows_per_source,
            prefixes: Prefixes::new(self.source_prefix_v4.0 as u8, self.source_prefix_v6.0 as u8),
            count: self.sources.0 as usize,
        }
    }
}

crate::choice! {
    /// When clients are answered with cookies.
    pub enum SynProxy {
        /// While the budget of half-open flows is nearly spent.
        Auto = "auto",
        /// Always.
        Always = "always",
        /// Never.
        Off = "off",
    }
}

crate::lines! {
    /// What connection tracking counts.
    pub enum Counters {
        /// Flows in the table.
        Flows = "flows",
        /// Half-open flows in the table.
        HalfOpen = "half-open",
        /// Flows in the table whose addresses or ports are translated.
        Translated = "translated",
        /// Flows that began.
        New = "new",
        /// Flows forgotten after their time.
        Expired = "expired",
        /// Half-open flows that had to go for new ones.
        Evicted = "evicted",
        /// Flows judged again and found to be forbidden now.
        Revoked = "revoked",
        /// Flows that the operator had removed.
        Flushed = "flushed",
        /// TCP segments that passed without being believed.
        Ignored = "ignored",
        /// ICMP errors that passed with the flow they are about.
        Errors = "errors",
        /// Flows whose source found no bucket of its own, and shares the one kept for such sources.
        Crowded = "crowded",
        /// SYNs answered with a cookie.
        Challenged = "challenged",
        /// Connections of clients that acknowledged a cookie.
        Proven = "proven",
    }
}

/// The stage.
pub struct Conntrack;

impl Stage for Conntrack {
    const NAME: &'static str = "conntrack";
    const DOC: &'static str = "Marks where packets are looked up in the flow table: behind it, a flow's first packet is \
                               judged, and later ones replay what was decided, in both directions, held to their protocol. \
                               Fragments count as part of their datagram, before all stages: they have the ports of its \
                               first fragment, which the others wait for, and those that overlap are dropped.";
    const DEPTH: Depth = Depth::L4;
    const REASONS: &'static [Line] = Drops::LINES;
    const COUNTERS: &'static [Line] = Counters::LINES;
    type Config = Config;

    fn plan(config: &Config, cx: &mut PlanCx<'_>) -> Option<Plan> {
        let of_each = |entries: u32| (entries as usize).div_ceil(cx.workers).max(64);
        let (v4, v6) = (of_each(cx.flows.0), of_each(cx.flows.1));
        let reasons = cx.reasons::<Drops>();
        let counters = cx.counters::<Counters>();
        Some(Plan::Conntrack(Arc::new(Settings {
            translates: false,
            tracking: config.tracking,
            neighbor_discovery: config.neighbor_discovery,
            timeouts: config.timeout.ticks(),
            v4,
            v6,
            budget_v4: config.limit.half_open.of(v4, cx.workers),
            budget_v6: config.limit.half_open.of(v6, cx.workers),
            sources: config.limit.sources(),
            syn_proxy: config.limit.syn_proxy,
            mss: config.limit.syn_proxy_mss.0 as u16,
            reasons,
            counters,
        })))
    }
}

/// What is compiled from the stage's configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Flows may be translated: tables have room for all of them to be.
    pub translates: bool,
    /// How closely flows are held to their protocol unless a rule says otherwise.
    pub tracking: Tracking,
    /// Neighbor discovery passes without a rule.
    pub neighbor_discovery: bool,
    /// Ticks of silence by class.
    pub timeouts: [u32; Class::ALL.len()],
    /// IPv4 entries of each worker.
    pub v4: usize,
    /// IPv6 entries of each worker.
    pub v6: usize,
    /// How many of `v4` may be half-open.
    pub budget_v4: usize,
    /// How many of `v6` may be half-open.
    pub budget_v6: usize,
    /// Limits by source.
    pub sources: Sources,
    /// When clients are answered with cookies.
    pub syn_proxy: SynProxy,
    /// The segment size they are told, over IPv4.
    pub mss: u16,
    /// Of [`Drops`].
    pub reasons: ReasonBase,
    /// The first of [`Counters`] in the sheet.
    pub counters: usize,
}

impl Settings {
    /// One worker's tables.
    pub fn tables(&self, placement: Placement) -> io::Result<Tables> {
        let (v4, v6) = (self.translated(self.v4), self.translated(self.v6));
        let v4 = Table::translating(self.v4, v4, self.budget_v4, placement)?;
        Ok(Tables { v4, v6: Table::translating(self.v6, v6, self.budget_v6, placement)? })
    }

    /// How many of so many flows may be translated.
    fn translated(&self, entries: usize) -> usize {
        if self.translates { entries } else { 0 }
    }

    /// Tables for a handful of flows: what explains one packet needs no more.
    pub fn few_tables() -> io::Result<Tables> {
        const FEW: usize = 64;
        let v4 = Table::translating(FEW, FEW, FEW, Placement::default())?;
        Ok(Tables { v4, v6: Table::translating(FEW, FEW, FEW, Placement::default())? })
    }

    /// Lines for `check` and `describe`.
    pub fn describe(&self) -> Vec<String> {
        let (v4, v6) = (self.translated(self.v4), self.translated(self.v6));
        let bytes = (Table::<EntryV4>::bytes_per_flow(self.v4, v4), Table::<EntryV6>::bytes_per_flow(self.v6, v6));
        let memory = (self.v4 * bytes.0 + self.v6 * bytes.1).div_ceil(1 << 20);
        let (v4, v6) = (self.v4, self.v6);
        let twice = if self.translates { ", translated ones in the index twice" } else { "" };
        vec![format!(
            "{v4} IPv4 flows of {} bytes and {v6} IPv6 flows of {} bytes per worker{twice}, {memory} MiB; half-open at most {} and {}",
            bytes.0, bytes.1, self.budget_v4, self.budget_v6
        )]
    }
}

/// One worker's tables.
#[derive(Debug)]
pub struct Tables {
    /// IPv4 flows.
    pub v4: Table<EntryV4>,
    /// IPv6 flows.
    pub v6: Table<EntryV6>,
}

impl Tables {
    /// Says how packets are hashed, before the first translated flow is filed.
    pub fn hash_by(&mut self, key: steer::Key) {
        self.v4.hash_by(key);
        self.v6.hash_by(key);
    }
}

/// What a pipeline's stages add to the settings: where tuples are valid, and where rules are counted.
#[derive(Clone, Debug)]
pub struct Around {
    /// By port: where the addresses of its packets are valid.
    pub scopes: Box<[Scope; 256]>,
    /// By slot of a rule: its first counter in the sheet.
    pub rules: Vec<usize>,
    /// True if flows may be picked up in mid-stream, by default or by some rule.
    pub mid_stream: bool,
    /// Of rules and routes; entries of another are judged again.
    pub generation: u16,
    /// The first of the present rules.
    pub rules_since: u16,
    /// How often the worker has gone on with other rules.
    pub adopted: u32,
    /// Limits on flows, if there are any.
    pub limits: Option<Arc<Limits>>,
}

/// Generations of routes: those below are of none.
const ROUTED_FROM: u16 = 2;
const ROUTED: u16 = u16::MAX - ROUTED_FROM;

impl Around {
    /// These are the rules after those of `former`: whatever was admitted so far is judged again.
    pub fn succeed(&mut self, former: &Around, changes: u32) {
        self.adopted = former.adopted.wrapping_add(1);
        self.rules_since = 0;
        self.routed(changes);
    }

    /// Routes have been changed so many times.
    #[inline]
    pub fn routed(&mut self, changes: u32) {
        let changes = changes.wrapping_add(self.adopted);
        self.generation = ROUTED_FROM + (changes % u32::from(ROUTED)) as u16;
        if self.rules_since < ROUTED_FROM {
            self.rules_since = self.generation;
        }
    }

    /// True if what has changed since that generation are routes, and no rules.
    pub fn only_routes_changed(&self, generation: u16) -> bool {
        let age = |of: u16| match self.generation.checked_sub(of) {
            Some(age) => age,
            None => ROUTED - (of - self.generation),
        };
        generation >= ROUTED_FROM && self.rules_since >= ROUTED_FROM && age(generation) <= age(self.rules_since)
    }

    /// True if an entry of that generation must be judged again before the number comes round.
    pub fn is_old(&self, generation: u16) -> bool {
        generation >= ROUTED_FROM && generation != self.generation && {
            let age = i32::from(self.generation) - i32::from(generation);
            age.rem_euclid(i32::from(ROUTED)) > i32::from(ROUTED / 4)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around() -> Around {
        Around {
            scopes: Box::new([Scope::default(); 256]),
            rules: Vec::new(),
            mid_stream: false,
            generation: 1,
            rules_since: 1,
            adopted: 0,
            limits: None,
        }
    }

    #[test]
    fn routes_have_generations_of_their_own() {
        let mut around = around();
        around.routed(7);
        let first = around.generation;
        around.routed(8);
        assert!(around.generation != first && around.only_routes_changed(first) && !around.is_old(first));
        // Of before the rules, or of nobody.
        around.rules_since = around.generation;
        around.routed(9);
        assert!(!around.only_routes_changed(first) && !around.only_routes_changed(0) && !around.only_routes_changed(1));
    }

    #[test]
    fn rules_that_follow_others_have_a_generation_of_their_own() {
        for changes in [None, Some(7)] {
            let mut former = around();
            changes.into_iter().for_each(|changes| former.routed(changes));
            for _ in 0..3 {
                let mut next = around();
                next.succeed(&former, changes.unwrap_or_default());
                assert!(next.generation != former.generation && !next.only_routes_changed(former.generation));
                let rules = next.generation;
                changes.into_iter().for_each(|changes| next.routed(changes + 1));
                assert!(changes.is_none() || next.only_routes_changed(rules));
                changes.into_iter().for_each(|changes| next.routed(changes));
                former = next;
            }
        }
    }

    #[test]
    fn a_generation_is_old_before_its_number_comes_round() {
        for start in [0, 40_000, 65_530] {
            let mut around = around();
            around.routed(start);
            let entry = around.generation;
            let mut found_old = false;
            for change in 1..u32::from(ROUTED) {
                around.routed(start + change);
                assert_ne!(around.generation, entry);
                found_old |= around.is_old(entry);
                assert!(found_old || change <= u32::from(ROUTED / 4));
            }
        }
    }
}
