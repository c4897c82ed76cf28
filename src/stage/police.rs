//! `police`: packets above a rate are dropped; the rate is the appliance's, whatever the number of workers.
//!
//! **By port and by rule.** Each port or rule of a limit is a token bucket (rte_meter). Every worker has one of its own and a
//! share of rate and burst. A few times a second control sets the shares in proportion to what each worker was offered since
//! the last time (passed or not, read from the published counters), so that a load that sits on one worker gets the rate; a
//! sixty-fourth is kept back and spread evenly, so that a worker whose load begins does not start from nothing. Over any
//! interval `t` all workers together pass at most
//! `rate * t + burst + workers * SMALLEST + rate * (one turn + 16 us)`: the last term because workers take over new shares
//! at their next batch. Where load moves from one worker to another, less than the rate passes until the next balance;
//! settled, at least 63/64 of it does.
//!
//! **By source.** There are too many sources to share out in advance, and a source's flows may live on one worker or on all.
//! So the bucket itself is shared: one word per source, the time at which the bucket will be full (the theoretical arrival
//! time of GCRA, ITU-T I.371), from which a worker borrows an eighth of the burst over the number of workers at once and
//! spends it by itself. That is the one place where workers write to shared memory: one compare-and-swap for each chunk, not
//! for each packet, and a source over its limit costs a plain load. All workers together pass at most
//! `rate * t + burst + burst / 8` per source, and a source alone on one worker gets the whole rate. It is not rte_meter because
//! that has 24 bytes of state without an atomic update; this is one word, exact to a nanosecond.
//! A bucket that is full again says nothing, so its slot goes to the next source that needs one. Sources that find no slot
//! share one bucket of the same rate: a flood of them is limited, not let through. Slots know sources by a keyed hash of 64
//! bits: two sources among 65,536 share one with probability 2^-33.
//!
//! A packet that several limits apply to must pass them all, in file order; what an earlier one has taken is not given back.
//! Bytes are those of the frame without its check sequence.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::source::At;
use crate::config::units::{Counted, Rate, Within};
use crate::dpdk::meter::Meter;
use crate::packet::{Batch, Meta, bits};
use crate::stats::{Line, Lines, Reason, Sheet, Unit};

use super::ingress::Ports;
use super::source::{HashKey, Prefixes};
use super::{Cx, Depth, PacketPlan, PacketStage, Plan, PlanCx, Stage};

crate::lines! {
    /// Why police drops.
    pub enum Drops {
        /// The packet is above the rate of a limit.
        OverLimit = "over-limit",
    }
}

crate::lines! {
    /// What police counts besides each limit's packets and bytes.
    pub enum Counters {
        /// Packets whose source found no bucket of its own and shared the one kept for such sources.
        Crowded = "crowded",
    }
}

crate::choice! {
    /// What has a bucket of its own.
    pub enum By {
        /// Each port packets come from.
        Port = "port",
        /// Each rule.
        Rule = "rule",
        /// Each source prefix.
        Source = "source"
    }
}

crate::section! {
    /// `[police]`
    pub struct Config {
        /// The limits.
        pub limit: Vec<Limit>,
    }
}

crate::section! {
    /// `[[police.limit]]`
    pub struct Limit {
        /// Its name, for counters.
        pub name: At<String>,
        /// What has a bucket of its own: each "port" packets come from, each "rule", or each "source".
        pub by: By,
        /// What each bucket lets through, over all workers: "10Mbit/s", "1.5MB/s", "5000pps".
        pub rate: At<Rate>,
        /// How much of the rate may pass at once, as a time from "1ms" to "10s"; never less than one jumbo frame. "50ms" unless given.
        pub burst: Option<At<Duration>>,
        /// Only packets from these ports or zones.
        pub from: Vec<At<String>> = vec![],
        /// Only packets that these rules of an `acl` let pass; the acl must stand before.
        pub rules: Vec<At<String>> = vec![],
        /// By source: leading bits of an IPv4 source that share a bucket.
        pub ipv4_prefix: Within<0, 32> = Within(32),
        /// By source: leading bits of an IPv6 source that share a bucket.
        pub ipv6_prefix: Within<0, 128> = Within(64),
        /// By source: how many sources have a bucket at the same time; the others share one.
        pub sources: Within<64, 16777216> = Within(65536),
    }
}

/// The smallest depth of a bucket in bytes: a jumbo frame must fit.
pub const SMALLEST: u64 = 10_000;

/// The stage.
pub struct Police;

impl Stage for Police {
    const NAME: &'static str = "police";
    const DOC: &'static str = "Drops what is above a rate, by port, by rule or by source. The rate is the appliance's, \
                               however many workers there are.";
    const DEPTH: Depth = Depth::L3;
    const REASONS: &'static [Line] = Drops::LINES;
    const COUNTERS: &'static [Line] = Counters::LINES;
    type Config = Config;

    fn plan(config: &Config, cx: &mut PlanCx<'_>) -> Option<Plan> {
        let over = cx.reasons::<Drops>().at(Drops::OverLimit);
        let crowded = cx.counters::<Counters>() + Counters::Crowded as usize;
        let before = cx.mistakes.len();
        let limits: Vec<Compiled> =
            config.limit.iter().enumerate().filter_map(|(i, limit)| plan_limit(i, limit, cx)).collect();
        (cx.mistakes.len() == before).then(|| {
            Plan::Packet(Arc::new(Limits { limits: limits.into(), over, crowded, workers: cx.workers.max(1) }))
        })
    }
}

fn plan_limit(i: usize, limit: &Limit, cx: &mut PlanCx<'_>) -> Option<Compiled> {
    let key = format!("{}.limit[{i}]", cx.instance);
    let before = cx.mistakes.len();
    let rate = limit.rate.per_second;
    if rate == 0 || rate > 1 << 40 {
        cx.mistakes.at(
            &limit.rate.place,
            &format!("{key}.rate"),
            "expected a rate from 1 to 2^40 bytes or packets a second",
        );
    }
    let burst = limit.burst.as_ref().map_or(Duration::from_millis(50), |burst| burst.value);
    if let Some(At { place, .. }) = &limit.burst
        && !(Duration::from_millis(1)..=Duration::from_secs(10)).contains(&burst)
    {
        cx.mistakes.at(place, &format!("{key}.burst"), "expected a time from \"1ms\" to \"10s\"");
    }
    let from = Ports::resolve(&limit.from, cx.names, &format!("{key}.from"), cx.mistakes);
    let mut rules = Vec::new();
    // Only an acl leaves its rule with a packet that goes on.
    let is_acl = |stage: &str| stage == "acl" || stage.starts_with("acl:");
    for name in &limit.rules {
        let known = || cx.rules.all().iter().enumerate().filter(|(_, rule)| is_acl(&rule.stage));
        let slots: Vec<usize> = known().filter(|(_, rule)| rule.name == name.value).map(|(slot, _)| slot).collect();
        if slots.is_empty() {
            let key = format!("{key}.rules");
            if known().next().is_none() {
                let message = format!("there is no rule {:?} before {}", name.value, cx.instance);
                cx.mistakes.with_help(&name.place, &key, message, "an \"acl\" must stand before it in the pipeline");
            } else {
                cx.mistakes.unknown(&name.place, &key, "rule", name, known().map(|(_, rule)| rule.name.as_str()));
            }
        }
        rules.push(slots);
    }
    if limit.by == By::Rule && limit.rules.is_empty() {
        cx.mistakes.at(&limit.name.place, &format!("{key}.rules"), "is missing: by = \"rule\" asks for the rules");
    }
    let from = from?;
    if cx.mistakes.len() > before {
        return None;
    }
    let depth = |rate: u64| (u128::from(rate) * burst.as_nanos() / 1_000_000_000) as u64;
    let buckets: Vec<(String, Vec<usize>)> = match limit.by {
        By::Port => (0..cx.names.ports.len())
            .filter(|port| from.contains(*port as u8))
            .map(|port| (format!("/{}", cx.names.ports[port].name), vec![port]))
            .collect(),
        By::Rule => limit.rules.iter().zip(&rules).map(|(name, at)| (format!("/{}", name.value), at.clone())).collect(),
        By::Source => vec![(String::new(), Vec::new())],
    };
    let mut bucket_of = vec![NONE; buckets.iter().flat_map(|(_, at)| at).max().map_or(0, |last| last + 1)];
    for (bucket, (_, at)) in buckets.iter().enumerate() {
        at.iter().for_each(|at| bucket_of[*at] = bucket as u16);
    }
    let counters = buckets
        .iter()
        .map(|(name, _)| {
            let scope = format!("{}/{}{name}", cx.instance, limit.name.value);
            let first = cx.layout.counter(&scope, "passed-packets", Unit::Count, "Packets within the limit.");
            cx.layout.counter(&scope, "passed-bytes", Unit::Bytes, "Their bytes.");
            cx.layout.counter(&scope, "dropped-packets", Unit::Count, "Packets above the limit.");
            cx.layout.counter(&scope, "dropped-bytes", Unit::Bytes, "Their bytes.");
            first
        })
        .collect();
    let smallest = if limit.rate.counted == Counted::Bytes { SMALLEST } else { 1 };
    let workers = cx.workers.max(1);
    let kind = if limit.by == By::Source {
        Kind::Source(Arc::new(Sources::new(
            Prefixes::new(limit.ipv4_prefix.0 as u8, limit.ipv6_prefix.0 as u8),
            limit.sources.0 as usize,
            rate,
            depth(rate).max(smallest),
            workers,
        )))
    } else {
        Kind::Buckets(Arc::new(Shares::new(rate, buckets.len(), workers)))
    };
    Some(Compiled {
        name: limit.name.value.clone(),
        by: limit.by,
        from,
        rules: (!rules.is_empty()).then(|| {
            rules.iter().flatten().fold(vec![false; cx.rules.all().len()], |mut all, slot| {
                all[*slot] = true;
                all
            })
        }),
        bytes: limit.rate.counted == Counted::Bytes,
        burst,
        smallest,
        bucket_of: bucket_of.into(),
        counters,
        kind,
    })
}

const NONE: u16 = u16::MAX;

/// Positions behind a bucket's first counter.
const PASSED: usize = 0;
const DROPPED: usize = 2;
const WORDS: usize = 4;

/// A limit, compiled.
struct Compiled {
    name: String,
    by: By,
    from: Ports,
    /// By slot: the rules it applies to; none for all packets.
    rules: Option<Vec<bool>>,
    bytes: bool,
    burst: Duration,
    smallest: u64,
    /// By port or rule slot.
    bucket_of: Box<[u16]>,
    /// By bucket.
    counters: Vec<usize>,
    kind: Kind,
}

enum Kind {
    Buckets(Arc<Shares>),
    Source(Arc<Sources>),
}

impl Compiled {
    #[inline]
    fn applies(&self, meta: &Meta) -> bool {
        self.from.contains(meta.port)
            && self.rules.as_ref().is_none_or(|rules| rules.get(usize::from(meta.rule)).is_some_and(|listed| *listed))
    }

    fn depth(&self, rate: u64) -> u64 {
        ((u128::from(rate) * self.burst.as_nanos() / 1_000_000_000) as u64).max(self.smallest)
    }
}

/// Who gets how much of each bucket's rate.
struct Shares {
    rate: u64,
    workers: usize,
    /// Rates by bucket and worker. Written by control, read by workers when `version` has changed.
    rates: Box<[AtomicU64]>,
    version: AtomicU64,
    /// What each worker had been offered when shares were last set, as `rates`. Control's alone.
    seen: Mutex<Vec<u64>>,
}

impl Shares {
    fn new(rate: u64, buckets: usize, workers: usize) -> Shares {
        let words = buckets * workers;
        Shares {
            rate,
            workers,
            rates: (0..words).map(|_| AtomicU64::new(rate / workers as u64)).collect(),
            version: AtomicU64::new(0),
            seen: Mutex::new(vec![0; words]),
        }
    }

    /// Sets the shares by what each worker has been offered in all, by bucket and worker.
    fn balance(&self, offered: impl Fn(usize, usize) -> u64) {
        if self.workers < 2 {
            return;
        }
        let mut seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for (bucket, seen) in seen.chunks_mut(self.workers).enumerate() {
            let deltas: Vec<u64> = seen
                .iter_mut()
                .enumerate()
                .map(|(worker, seen)| {
                    let now = offered(bucket, worker);
                    now.saturating_sub(std::mem::replace(seen, now))
                })
                .collect();
            let sum: u128 = deltas.iter().map(|delta| u128::from(*delta)).sum();
            if sum == 0 {
                continue;
            }
            let kept = self.rate / 64;
            for (worker, delta) in deltas.iter().enumerate() {
                let by_load = u128::from(self.rate - kept) * u128::from(*delta) / sum;
                let share = by_load as u64 + kept / self.workers as u64;
                self.rates[bucket * self.workers + worker].store(share, Ordering::Relaxed);
            }
        }
        self.version.fetch_add(1, Ordering::Release);
    }
}

struct Limits {
    limits: Arc<[Compiled]>,
    over: Reason,
    crowded: usize,
    workers: usize,
}

impl PacketPlan for Limits {
    fn start(&self, worker: usize) -> Box<dyn PacketStage> {
        let parts = self
            .limits
            .iter()
            .map(|limit| match &limit.kind {
                Kind::Buckets(shares) => {
                    let meter = |bucket: usize| {
                        let rate = shares.rates[bucket * shares.workers + worker].load(Ordering::Relaxed);
                        Meter::new(rate, limit.depth(rate))
                    };
                    Part::Buckets { meters: (0..limit.counters.len()).map(meter).collect(), version: 0 }
                }
                Kind::Source(sources) => Part::Source(Purse::new(sources)),
            })
            .collect();
        Box::new(Policing { limits: self.limits.clone(), parts, worker, over: self.over, crowded: self.crowded })
    }

    fn describe(&self) -> Vec<String> {
        self.limits
            .iter()
            .map(|limit| match &limit.kind {
                Kind::Buckets(_) => {
                    format!(
                        "{}: {} buckets by {}, over {} workers",
                        limit.name,
                        limit.counters.len(),
                        limit.by.word(),
                        self.workers
                    )
                }
                Kind::Source(sources) => format!(
                    "{}: buckets for {} sources ({} KiB, and {} KiB per worker)",
                    limit.name,
                    sources.slots.len() / 2,
                    sources.slots.len() * size_of::<Slot>() >> 10,
                    sources.slots.len() / 2 * size_of::<Credit>() >> 10
                ),
            })
            .collect()
    }

    fn balance(&self, sheets: &[Sheet]) {
        for limit in self.limits.iter() {
            if let Kind::Buckets(shares) = &limit.kind {
                let unit = usize::from(limit.bytes);
                shares.balance(|bucket, worker| {
                    let words = sheets.get(worker).and_then(|sheet| sheet.counters.get(limit.counters[bucket]..));
                    words.map_or(0, |words| words[PASSED + unit] + words[DROPPED + unit])
                });
            }
        }
    }
}

struct Policing {
    limits: Arc<[Compiled]>,
    parts: Box<[Part]>,
    worker: usize,
    over: Reason,
    crowded: usize,
}

/// What a worker has of a limit.
enum Part {
    Buckets { meters: Box<[Meter]>, version: u64 },
    Source(Purse),
}

impl PacketStage for Policing {
    fn process(&mut self, batch: &mut Batch, cx: &mut Cx<'_>) {
        for (limit, part) in self.limits.iter().zip(&mut self.parts) {
            take_over(limit, part, self.worker, cx.now);
            for i in bits(batch.live) {
                let meta = &batch.metas[i];
                if !limit.applies(meta) {
                    continue;
                }
                let length = batch.frames[i].len() as u32;
                let amount = if limit.bytes { length } else { 1 };
                let (bucket, passes) = match part {
                    Part::Buckets { meters, .. } => {
                        let at = if limit.by == By::Port { usize::from(meta.port) } else { usize::from(meta.rule) };
                        let bucket = usize::from(limit.bucket_of.get(at).copied().unwrap_or(NONE));
                        let Some(meter) = meters.get_mut(bucket) else { continue };
                        (bucket, meter.take(cx.now, amount))
                    }
                    Part::Source(purse) => {
                        let Some(source) = purse.sources.prefixes.source(meta) else { continue };
                        let key = purse.sources.key.hash(&source).max(FIRST_KEY);
                        let passes = purse.spend(key, amount, cx.now).unwrap_or_else(|| {
                            cx.sheet.counters[self.crowded] += 1;
                            purse.spend(CROWD, amount, cx.now).unwrap_or(false)
                        });
                        (0, passes)
                    }
                };
                let words = cx.sheet.range(limit.counters[bucket]..limit.counters[bucket] + WORDS);
                let at = if passes { PASSED } else { DROPPED };
                words[at] += 1;
                words[at + 1] += u64::from(length);
                if !passes {
                    batch.drop(i, self.over);
                }
            }
        }
    }

    fn housekeep(&mut self, cx: &mut Cx<'_>) {
        for (limit, part) in self.limits.iter().zip(&mut self.parts) {
            take_over(limit, part, self.worker, cx.now);
        }
    }
}

/// Takes over the shares control has set since the last time.
#[inline]
fn take_over(limit: &Compiled, part: &mut Part, worker: usize, now: u64) {
    if let (Kind::Buckets(shares), Part::Buckets { meters, version }) = (&limit.kind, part) {
        let latest = shares.version.load(Ordering::Acquire);
        if *version != latest {
            *version = latest;
            for (bucket, meter) in meters.iter_mut().enumerate() {
                let rate = shares.rates[bucket * shares.workers + worker].load(Ordering::Relaxed);
                meter.set(now, rate, limit.depth(rate));
            }
        }
    }
}

/// A source's bucket, shared by all workers. A slot is free when it is full, that is when `full_at` is past.
#[derive(Default)]
struct Slot {
    /// Hash of the source; 0 for none yet.
    key: AtomicU64,
    /// When the bucket will be full again, Unix nanoseconds.
    full_at: AtomicU64,
}

/// The key of sources that found no slot.
const CROWD: u64 = 1;
const FIRST_KEY: u64 = 2;
/// Slots a source may be in.
const WAYS: usize = 8;
/// Credits a worker looks at for a source.
const CREDITS: usize = 4;
/// Bits behind the point of a nanosecond.
const FRACTION: u32 = 20;

/// The buckets of a limit by source.
struct Sources {
    prefixes: Prefixes,
    key: HashKey,
    slots: Box<[Slot]>,
    crowd: Slot,
    /// Time that one byte or packet takes, in nanoseconds with `FRACTION` bits behind the point, rounded up.
    each: u128,
    /// Nanoseconds it takes to fill a bucket.
    burst: u64,
    /// Nanoseconds' worth that a worker borrows at once.
    chunk: u64,
}

impl Sources {
    fn new(prefixes: Prefixes, sources: usize, rate: u64, depth: u64, workers: usize) -> Sources {
        let second = 1_000_000_000u128;
        let burst = (u128::from(depth) * second / u128::from(rate)) as u64;
        Sources {
            prefixes,
            key: HashKey::random(),
            slots: (0..(sources * 2).next_power_of_two()).map(|_| Slot::default()).collect(),
            crowd: Slot::default(),
            each: (second << FRACTION).div_ceil(u128::from(rate)),
            // One more for rounding up: a packet as large as the bucket must pass.
            burst: burst + 1,
            chunk: burst / (8 * workers as u64),
        }
    }

    /// The slot of a source, a free one if it has none; none if all it may have are taken.
    #[inline]
    fn slot(&self, key: u64, now: u64) -> Option<&Slot> {
        if key == CROWD {
            return Some(&self.crowd);
        }
        let first = key as usize & (self.slots.len() - 1) & !(WAYS - 1);
        let set = &self.slots[first..first + WAYS];
        // The first one counts: should two workers place a source at the same moment in two slots, they agree on the next
        // look, and the other slot falls free.
        if let Some(slot) = set.iter().find(|slot| slot.key.load(Ordering::Relaxed) == key) {
            return Some(slot);
        }
        set.iter().find(|slot| {
            let old = slot.key.load(Ordering::Relaxed);
            let free = slot.full_at.load(Ordering::Relaxed) <= now;
            free && match slot.key.compare_exchange(old, key, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => true,
                Err(other) => other == key,
            }
        })
    }

    /// Takes `time` nanoseconds' worth out of a source's bucket, if there is so much; `None` if it has no bucket.
    fn borrow(&self, key: u64, time: u64, now: u64) -> Option<bool> {
        let full_at = &self.slot(key, now)?.full_at;
        let latest = now.saturating_add(self.burst);
        let taken = full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            full_at.max(now).checked_add(time).filter(|then| *then <= latest)
        });
        Some(taken.is_ok())
    }
}

/// Credit a worker has left of what it borrowed for a source.
#[derive(Clone, Copy, Default)]
struct Credit {
    key: u64,
    /// Nanoseconds with `FRACTION` bits behind the point.
    left: u64,
}

/// A worker's credits.
struct Purse {
    sources: Arc<Sources>,
    credits: Box<[Credit]>,
}

impl Purse {
    fn new(sources: &Arc<Sources>) -> Purse {
        Purse { sources: sources.clone(), credits: vec![Credit::default(); sources.slots.len() / 2].into() }
    }

    /// True if a source may pass `amount`; `None` if it has no bucket.
    #[inline]
    fn spend(&mut self, key: u64, amount: u32, now: u64) -> Option<bool> {
        let first = (key >> 32) as usize & (self.credits.len() - 1) & !(CREDITS - 1);
        let set = &mut self.credits[first..first + CREDITS];
        let at = match set.iter().position(|credit| credit.key == key) {
            Some(at) => at,
            None => {
                // What is left of the smallest credit is lost to its source: less than a chunk.
                let at = (0..CREDITS).min_by_key(|at| set[*at].left).unwrap_or(0);
                set[at] = Credit { key, left: 0 };
                at
            }
        };
        let cost = u64::try_from(self.sources.each * u128::from(amount)).unwrap_or(u64::MAX);
        let credit = &mut set[at];
        if credit.left < cost {
            let missing = (cost - credit.left).div_ceil(1 << FRACTION);
            let time = missing.max(self.sources.chunk);
            if !self.sources.borrow(key, time, now)? {
                return Some(false);
            }
            credit.left = credit.left.saturating_add(time.saturating_mul(1 << FRACTION));
        }
        credit.left = credit.left.saturating_sub(cost);
        Some(true)
    }
}
