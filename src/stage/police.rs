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
//! Sources that find no bucket share one (`flow::shared`).
//!
//! A packet that several limits apply to must pass them all, in file order; what an earlier one has taken is not given back.
//! Bytes are those of the frame without its check sequence.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::source::At;
use crate::config::units::{Counted, Rate, Within};
use crate::dpdk::meter::Meter;
use crate::flow::shared::{self, CROWD, FullAt};
use crate::flow::source::Prefixes;
use crate::packet::{Batch, Meta, bits};
use crate::stats::{Line, Lines, Reason, Sheet, Unit};

use super::ingress::Ports;
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
            cx.layout.counter(&scope, "passed-bytes", Unit::Bytes, "Bytes within the limit.");
            cx.layout.counter(&scope, "dropped-packets", Unit::Count, "Packets above the limit.");
            cx.layout.counter(&scope, "dropped-bytes", Unit::Bytes, "Bytes above the limit.");
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
                    sources.full_at.sources(),
                    sources.full_at.memory() >> 10,
                    (sources.full_at.sources() * size_of::<Credit>()) >> 10
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
                        let key = purse.sources.full_at.key(&source, 0);
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

/// Credits a worker looks at for a source.
const CREDITS: usize = 4;
/// Bits behind the point of a nanosecond.
const FRACTION: u32 = 20;

/// The buckets of a limit by source.
struct Sources {
    prefixes: Prefixes,
    full_at: shared::Table<FullAt>,
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
            full_at: shared::Table::new(sources),
            each: (second << FRACTION).div_ceil(u128::from(rate)),
            // One more for rounding up: a packet as large as the bucket must pass.
            burst: burst + 1,
            chunk: burst / (8 * workers as u64),
        }
    }

    /// Takes `time` nanoseconds' worth out of a source's bucket, if there is so much; `None` if it has no bucket.
    fn borrow(&self, key: u64, time: u64, now: u64) -> Option<bool> {
        let slot = self.full_at.find(key, now)?;
        Some(self.full_at.at(slot).take(time, self.burst, now))
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
        Purse { sources: sources.clone(), credits: vec![Credit::default(); sources.full_at.sources()].into() }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config as File;
    use crate::config::source::Source as Text;
    use crate::log::Log;
    use crate::packet::decode::decode;
    use crate::packet::frame::Heap;
    use crate::stage::pipeline::{Blueprint, compile};
    use crate::testkit::bench::{Bench, TWO_PORTS};
    use crate::testkit::packets::{Packet, batch, give_back};

    const CROSS: &str = "[pipeline]\nstages = ['police', 'cross']\n[[cross.wire]]\nports = ['lan', 'wan']\n";
    const START: u64 = 1_700_000_000_000_000_000;
    const MS: u64 = 1_000_000;

    fn blueprint(police: &str, workers: usize) -> Result<Blueprint, Vec<String>> {
        let text = format!("{TWO_PORTS}{police}");
        let words = |list: Vec<crate::config::source::Mistake>| list.iter().map(|m| m.to_string()).collect::<Vec<_>>();
        let file = File::parse(&Text::new("t.toml", &text)).map_err(words)?;
        compile(&file, workers, &[]).map_err(words)
    }

    /// Workers with police alone.
    struct Crew {
        plan: Arc<dyn PacketPlan>,
        stages: Vec<(Box<dyn PacketStage>, Sheet)>,
        heap: Heap,
    }

    impl Crew {
        fn new(police: &str, workers: usize) -> Crew {
            let blueprint = blueprint(&format!("{CROSS}{police}"), workers).expect("good");
            let Plan::Packet(plan) = blueprint.stages[0].plan.clone() else { panic!("police sees packets") };
            let stages = (0..workers).map(|worker| (plan.start(worker), blueprint.layout.sheet())).collect();
            Crew { plan, stages, heap: Heap::new(64, 2048) }
        }

        /// Offers packets to a worker; returns how many of them passed, and their bytes.
        fn offer(&mut self, worker: usize, now: u64, packets: &[Vec<u8>]) -> (u64, u64) {
            let mut batch = batch(&mut self.heap, packets);
            decode(&mut batch, Depth::L3);
            let (stage, sheet) = &mut self.stages[worker];
            stage.process(&mut batch, &mut Cx { now, sheet, log: &Log::NONE });
            let passed: Vec<u64> = bits(batch.live).map(|i| batch.frames[i].len() as u64).collect();
            give_back(&mut self.heap, &mut batch);
            (passed.len() as u64, passed.iter().sum())
        }

        fn balance(&self) {
            let sheets: Vec<Sheet> = self.stages.iter().map(|(_, sheet)| sheet.clone()).collect();
            self.plan.balance(&sheets);
        }
    }

    fn packets(source: &str, n: usize) -> Vec<Vec<u8>> {
        vec![Packet::udp(&format!("{source}:1"), "192.0.2.1:2").payload(&[0; 958]).bytes(); n]
    }

    const BY_PORT: &str = "[[police.limit]]\nname = 'all'\nby = 'port'\nrate = '8Mbit/s'\nburst = '20ms'\n";

    /// Two workers for five seconds, their loads chosen per millisecond; bytes passed in each second.
    fn run(crew: &mut Crew, load: impl Fn(u64, usize) -> usize) -> Vec<u64> {
        let all = packets("10.0.0.1", 64);
        let mut seconds = vec![0; 5];
        for ms in 0..5_000 {
            for worker in 0..2 {
                let (_, bytes) = crew.offer(worker, START + ms * MS, &all[..load(ms, worker)]);
                seconds[(ms / 1000) as usize] += bytes;
            }
            if ms % 250 == 249 {
                crew.balance();
            }
        }
        seconds
    }

    #[test]
    fn two_workers_keep_the_appliances_rate() {
        let (rate, burst) = (1_000_000, 20_000 + 2 * SMALLEST);
        // Everything on one worker; both; 9 to 1; alternating every second.
        let loads: [fn(u64, usize) -> usize; 4] =
            [|_, w| 4 * (1 - w), |_, _| 4, |_, w| [9, 1][w], |ms, w| if ms / 1000 % 2 == w as u64 { 5 } else { 0 }];
        for (case, load) in loads.into_iter().enumerate() {
            let seconds = run(&mut Crew::new(BY_PORT, 2), load);
            let sum: u64 = seconds.iter().sum();
            assert!(sum <= 5 * rate + burst + rate / 1000, "case {case}: {seconds:?}");
            // The steady loads reach the rate once balanced; the alternating one misses a quarter of a second each time.
            let least = if case == 3 { rate * 7 / 10 } else { rate * 63 / 64 };
            for (second, passed) in seconds.iter().enumerate().skip(1) {
                assert!(*passed + 2 * 1000 >= least, "case {case}, second {second}: {seconds:?}");
                assert!(*passed <= rate + burst + rate / 1000, "case {case}, second {second}: {seconds:?}");
            }
        }
    }

    #[test]
    fn below_the_rate_nothing_is_dropped() {
        // 0.9 MB/s, two thirds of it on one worker.
        let seconds = run(&mut Crew::new(BY_PORT, 2), |ms, w| usize::from(ms % 10 < [6, 3][w]));
        let each = packets("10.0.0.1", 1)[0].len() as u64;
        assert_eq!(seconds[1..], [900 * each; 4]);
    }

    #[test]
    fn each_source_has_its_rate_on_one_worker_or_two() {
        let text = "[[police.limit]]\nname = 'each'\nby = 'source'\nrate = '1000pps'\nburst = '80ms'\n";
        for workers in 1..=2 {
            for spread in 1..=workers {
                let mut crew = Crew::new(text, workers);
                let all: Vec<Vec<Vec<u8>>> = (1..=3).map(|n| packets(&format!("10.0.0.{n}"), 8)).collect();
                let mut passed = [0; 3];
                for ms in 0..3_000u64 {
                    for (source, packets) in all.iter().enumerate() {
                        // The third stays below its rate: one packet every second millisecond.
                        let n = if source == 2 { (ms % 2) as usize } else { 8 / spread };
                        for worker in (0..spread).skip((source == 2) as usize * (spread - 1)) {
                            passed[source] += crew.offer(worker, START + ms * MS, &packets[..n]).0;
                        }
                    }
                }
                let bounds = 3_000 - 20..=3_000 + 80 + 10;
                assert!(bounds.contains(&passed[0]) && bounds.contains(&passed[1]), "{workers} {spread}: {passed:?}");
                assert_eq!(passed[2], 1_500);
            }
        }
    }

    #[test]
    fn sources_without_room_share_a_bucket() {
        let text = "[[police.limit]]\nname = 'each'\nby = 'source'\nrate = '10pps'\nburst = '1s'\nsources = 64\n";
        let mut crew = Crew::new(text, 1);
        let mut passed = 0;
        for n in 0..2_000u32 {
            let source = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).to_string();
            passed += crew.offer(0, START, &packets(&source, 20)).0;
        }
        // 128 slots and the shared bucket, ten packets each.
        assert!((64 * 10..=129 * 10).contains(&passed), "{passed}");
        // Full buckets give their slots away.
        let later = crew.offer(0, START + 3_000 * MS, &packets("10.9.9.9", 20)).0;
        assert_eq!(later, 10);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn a_source_never_exceeds_its_bound(
            rate in 1u64..50_000_000, depth in 10_000u64..1_000_000, workers in 1usize..4,
            steps in proptest::collection::vec((0u64..3_000_000, 0usize..4, 60u32..9_000), 1..400),
        ) {
            let sources = Arc::new(Sources::new(Prefixes::new(32, 64), 64, rate, depth, workers));
            let mut purses: Vec<Purse> = (0..workers).map(|_| Purse::new(&sources)).collect();
            let (mut now, mut passed) = (START, 0u128);
            for (wait, worker, amount) in steps {
                now += wait;
                if purses[worker % workers].spend(77, amount, now) == Some(true) {
                    passed += u128::from(amount);
                }
                let in_time = u128::from(now - START + 2) * u128::from(rate) / 1_000_000_000;
                proptest::prop_assert!(passed <= u128::from(depth) + in_time + 1, "{} at {}", passed, now - START);
            }
        }
    }

    #[test]
    fn by_rule_behind_an_acl() {
        let text = "[pipeline]\nstages = ['cross', 'acl', 'police']\n[[cross.wire]]\nports = ['lan', 'wan']\n\
                    [[acl.rule]]\nname = 'dns'\nservice = 'udp/53'\naction = 'allow'\n\
                    [[acl.rule]]\nname = 'rest'\naction = 'allow'\n\
                    [[police.limit]]\nname = 'few'\nby = 'rule'\nrules = 'dns'\nrate = '100pps'\nburst = '50ms'\n";
        let mut bench = Bench::new(text);
        let dns = Packet::udp("10.0.0.1:5", "192.0.2.1:53").bytes();
        let web = Packet::tcp("10.0.0.1:5", "192.0.2.1:80").bytes();
        let count =
            |ends: &[crate::testkit::bench::End], reason: &str| ends.iter().filter(|e| e.reason() == reason).count();
        let ends = bench.push_all("lan", &vec![dns; 20]);
        assert_eq!((count(&ends, "sent"), count(&ends, "police.over-limit")), (5, 15));
        assert_eq!(count(&bench.push_all("lan", &vec![web; 20]), "sent"), 20);
        assert_eq!(bench.counter("police/few/dns", "dropped-packets"), 15);
        assert_eq!(bench.counter("police/few/dns", "passed-packets"), 5);
    }

    #[test]
    fn mistakes_are_placed() {
        let limit = |rest: &str| format!("[[police.limit]]\nname = 'x'\n{rest}\n");
        let wrong = |pipeline: &str, rest: &str| {
            let list = blueprint(&format!("{pipeline}{}", limit(rest)), 1).err().unwrap_or_default();
            assert_eq!(list.len(), 1, "{list:?}");
            list[0].clone()
        };
        let acl = "[pipeline]\nstages = ['cross', 'acl', 'police']\n[[cross.wire]]\nports = ['lan', 'wan']\n\
                   [[acl.rule]]\nname = 'web'\naction = 'allow'\n";
        assert!(wrong(CROSS, "by = 'rule'\nrate = '1pps'\nrules = 'web'").contains("\"acl\" must stand before it"));
        assert!(wrong(acl, "by = 'rule'\nrate = '1pps'\nrules = 'wbe'").contains("did you mean \"web\"?"));
        assert!(wrong(CROSS, "by = 'rule'\nrate = '1pps'").contains("police.limit[0].rules: is missing"));
        assert!(wrong(CROSS, "by = 'port'\nrate = '0pps'").contains("police.limit[0].rate"));
        assert!(wrong(CROSS, "by = 'port'\nrate = '1pps'\nburst = '11s'").contains("police.limit[0].burst"));
        assert!(wrong(CROSS, "by = 'port'\nrate = '1pps'\nfrom = 'insde'").contains("did you mean \"inside\"?"));
    }
}
