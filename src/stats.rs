//! Counting: what is counted (`Layout`), where a worker counts it (`Sheet`), and how others see it (`Published`).
//!
//! A sheet is plain memory inside its worker. Between turns the worker publishes it as one consistent set, and nobody else
//! ever reads anything but such a set. Labels live beside the numbers, never in them: the same layout names the words in
//! `show`, in metrics and in the reference.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use serde::Serialize;

use crate::worker::gauge::{Burst, Latency};

/// Why a packet was dropped: an index into the layout's reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Reason(pub u16);

impl Reason {
    /// Of a packet that was not dropped.
    pub const NONE: Reason = Reason(u16::MAX);
}

/// One drop reason or counter, as declared by the code that counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Kebab-case name, seen from the packet (`ttl-expired`).
    pub name: &'static str,
    /// One sentence for the reference.
    pub doc: &'static str,
}

/// A list of drop reasons or counters declared by [`lines!`](crate::lines).
pub trait Lines: Copy + 'static {
    /// All of them, in order of their index.
    const LINES: &'static [Line];
    /// Likewise, themselves.
    const ALL: &'static [Self];
    /// Position in `LINES`.
    fn index(self) -> usize;
    /// The one that a reason is, of those declared from `base` on.
    fn of(base: ReasonBase, reason: Reason) -> Option<Self> {
        Self::ALL.get(usize::from(reason.0.checked_sub(base.0)?)).copied()
    }
}

/// Declares an enum whose variants are drop reasons or counters, one line each:
/// `lines! { pub enum Drops { /// Doc. Denied = "denied", } }`.
#[macro_export]
macro_rules! lines {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $(#[doc = $doc:literal] $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        $vis enum $name { $(#[doc = $doc] $variant),* }

        impl $crate::stats::Lines for $name {
            const LINES: &'static [$crate::stats::Line] =
                &[$($crate::stats::Line { name: $text, doc: $doc.trim_ascii() }),*];
            const ALL: &'static [Self] = &[$(Self::$variant),*];
            #[inline]
            fn index(self) -> usize { self as usize }
        }
    };
}

lines! {
    /// Drops that belong to no stage.
    pub enum Engine {
        /// A defect of flowgate's own: report it, the packet was dropped instead of trusted.
        Bug = "bug",
        /// The packet came in several chained buffers; raise the port's MTU so that one buffer holds it.
        Chained = "chained",
        /// The egress port's transmit queue was full.
        TxFull = "tx-full",
        /// The egress port's link was down.
        LinkDown = "link-down",
        /// The ring to the worker that owns the packet was full.
        HandoffFull = "handoff-full",
        /// The packet would have been handed between workers a third time.
        HandoffLoop = "handoff-loop",
        /// No stage chose a port for the packet to leave by.
        NoEgress = "no-egress",
        /// The packet is longer than the egress port's MTU allows.
        TooBig = "too-big",
        /// No port has a VLAN of the packet's tags.
        UnknownVlan = "unknown-vlan",
        /// No packet buffer was free for what the box itself sends, or for a piece of a packet that is too long for its link.
        NoBuffer = "no-buffer",
        /// It is for the box itself, whose kernel's interface is down or not there.
        KernelDown = "kernel-down",
        /// It was between two workers, or held, when flowgate stopped.
        Stopping = "stopping",
        /// Dropped for reasons of an earlier config, which the one that runs now does not have.
        Former = "former",
    }
}

impl From<Engine> for Reason {
    #[inline]
    fn from(reason: Engine) -> Reason {
        Reason(reason as u16)
    }
}

/// Index of the first decode reason: they follow the engine's.
pub const DECODE_REASONS: u16 = Engine::LINES.len() as u16;
/// Index of the first reason of `flow::fragments`: they follow decode's.
pub const FRAGMENT_REASONS: u16 = DECODE_REASONS + crate::packet::decode::Malformed::LINES.len() as u16;

lines! {
    /// The terms of the first law, per worker: received + created + handed-in + held before = sent + consumed + dropped +
    /// merged + handed-out + held after.
    pub enum Account {
        /// Packets received from ports.
        Received = "received",
        /// Packets flowgate made itself.
        Created = "created",
        /// Packets taken over from other workers, or by them from the slow path and the other way round.
        HandedIn = "handed-in",
        /// Packets handed to a port's transmit queue.
        Sent = "sent",
        /// Packets that ended in flowgate as intended.
        Consumed = "consumed",
        /// Packets dropped, for whatever reason.
        Dropped = "dropped",
        /// Fragments that became part of another packet.
        Merged = "merged",
        /// Packets handed over to other workers or the slow path, and by that to a worker.
        HandedOut = "handed-out",
        /// Packets held at this moment.
        Held = "held",
        /// Packets taken through the pipeline here. No term of the law: it shows which worker a flow belongs to.
        Processed = "processed",
        /// Turns of the worker's loop.
        Turns = "turns",
        /// Turns that found at least one packet.
        BusyTurns = "busy-turns",
        /// Time spent in turns that found at least one packet, in TSC cycles.
        BusyCycles = "busy-cycles",
        /// Time passed in TSC cycles.
        Cycles = "cycles",
    }
}

/// What a counter word means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Counts up, in things.
    Count,
    /// Counts up, in bytes.
    Bytes,
    /// A moment: Unix time in nanoseconds, 0 for never; over workers the latest counts.
    Time,
    /// A level.
    Gauge,
}

/// A named word of a sheet.
#[derive(Clone, Debug, Serialize)]
pub struct Label {
    /// Who counts: `engine`, `decode`, `fragment`, a stage (`guard`, `bpf:noise`), `port:lan`, `acl/rule`.
    pub scope: String,
    /// What: a reason's or counter's name, or the name of a rule.
    pub name: String,
    /// Its meaning.
    pub unit: Unit,
    /// One sentence.
    pub doc: String,
}

/// Names and places of everything a worker counts; built once by the pipeline compiler.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    reasons: Vec<Label>,
    counters: Vec<Label>,
}

/// Where a stage's reasons begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonBase(u16);

impl ReasonBase {
    /// The reason for `line` of the stage's own enum.
    #[inline]
    pub fn at(self, line: impl Lines) -> Reason {
        Reason(self.0 + line.index() as u16)
    }
}

impl Layout {
    /// A layout with the lines of the engine, of decode and of fragments, which every pipeline has.
    pub fn new() -> Layout {
        let mut layout = Layout::default();
        layout.reasons::<Engine>("engine");
        layout.reasons::<crate::packet::decode::Malformed>("decode");
        layout.reasons::<crate::flow::fragments::Drops>("fragment");
        layout.counters::<Account>("account");
        layout.counters::<Burst>("burst");
        layout.counters::<Latency>("latency");
        layout
    }

    /// Adds a stage's drop reasons.
    pub fn reasons<E: Lines>(&mut self, scope: &str) -> ReasonBase {
        let base = self.reasons.len();
        self.reasons.extend(E::LINES.iter().map(|line| label(scope, line.name, Unit::Count, line.doc)));
        ReasonBase(u16::try_from(base).expect("a pipeline has fewer than 65,535 drop reasons"))
    }

    /// Adds a stage's counters; the result is the index of the first.
    pub fn counters<E: Lines>(&mut self, scope: &str) -> usize {
        let base = self.counters.len();
        self.counters.extend(E::LINES.iter().map(|line| label(scope, line.name, Unit::Count, line.doc)));
        base
    }

    /// Adds one counter by hand (a rule's, a port's); the result is its index.
    pub fn counter(&mut self, scope: &str, name: &str, unit: Unit, doc: &str) -> usize {
        self.counters.push(label(scope, name, unit, doc));
        self.counters.len() - 1
    }

    /// All reasons, by `Reason` index.
    pub fn reason_labels(&self) -> &[Label] {
        &self.reasons
    }

    /// All counters, by index.
    pub fn counter_labels(&self) -> &[Label] {
        &self.counters
    }

    /// `stage.reason`, as `show drops` prints it.
    pub fn reason_name(&self, reason: Reason) -> String {
        match self.reasons.get(usize::from(reason.0)) {
            Some(label) => format!("{}.{}", label.scope, label.name),
            None => "none".into(),
        }
    }

    /// The reason called `stage.reason`.
    pub fn reason(&self, name: &str) -> Option<Reason> {
        let at = self
            .reasons
            .iter()
            .position(|l| name.strip_prefix(&l.scope).and_then(|r| r.strip_prefix('.')) == Some(&l.name))?;
        Some(Reason(at as u16))
    }

    /// An empty sheet for a worker.
    pub fn sheet(&self) -> Sheet {
        Sheet { reasons: vec![0; self.reasons.len()].into(), counters: vec![0; self.counters.len()].into() }
    }

    /// Where a worker publishes its sheet.
    pub fn published(&self) -> Published {
        let words = self.reasons.len() + self.counters.len();
        Published { sequence: AtomicU64::new(0), words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }
}

fn label(scope: &str, name: &str, unit: Unit, doc: &str) -> Label {
    Label { scope: scope.to_owned(), name: name.to_owned(), unit, doc: doc.to_owned() }
}

/// Which words of an old layout go on as which of a new one: those with the same scope, name and unit.
#[derive(Clone, Debug, Default)]
pub struct Carry {
    /// Indices of reasons, old and new.
    pub reasons: Vec<(u32, u32)>,
    /// Indices of counters, old and new.
    pub counters: Vec<(u32, u32)>,
}

impl Carry {
    /// From one layout to another.
    pub fn new(old: &Layout, new: &Layout) -> Carry {
        let pairs = |old: &[Label], new: &[Label]| {
            let name = |label: &Label| (label.scope.clone(), label.name.clone(), label.unit as u8);
            // Several with one name, as a rule's packets and flows, keep their order.
            let mut known = HashMap::<_, VecDeque<u32>>::new();
            (0..).zip(old).for_each(|(at, label)| known.entry(name(label)).or_default().push_back(at));
            let found = (0..).zip(new).filter_map(|(at, label)| Some((known.get_mut(&name(label))?.pop_front()?, at)));
            found.collect()
        };
        Carry { reasons: pairs(&old.reasons, &new.reasons), counters: pairs(&old.counters, &new.counters) }
    }
}

/// A worker's counters: plain words, written by it alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sheet {
    /// Packets dropped, by `Reason`.
    pub reasons: Box<[u64]>,
    /// Everything else.
    pub counters: Box<[u64]>,
}

impl Sheet {
    /// Adds to one of the accounts.
    #[inline]
    pub fn account(&mut self, account: Account, n: u64) {
        self.counters[account as usize] += n;
    }

    /// Packets held until now that no longer are.
    #[inline]
    pub fn release(&mut self, n: u64) {
        self.counters[Account::Held as usize] -= n;
    }

    /// One of the accounts.
    pub fn of(&self, account: Account) -> u64 {
        self.counters[account as usize]
    }

    /// One stage's words.
    #[inline]
    pub fn range(&mut self, range: Range<usize>) -> &mut [u64] {
        &mut self.counters[range]
    }

    /// The first law for this worker, `held_before` packets having been held when counting began. The error says which
    /// sides differ.
    pub fn check_law(&self, held_before: u64) -> Result<(), String> {
        let inflow = self.of(Account::Received) + self.of(Account::Created) + self.of(Account::HandedIn) + held_before;
        let outflow = self.of(Account::Sent)
            + self.of(Account::Consumed)
            + self.of(Account::Dropped)
            + self.of(Account::Merged)
            + self.of(Account::HandedOut)
            + self.of(Account::Held);
        let by_reason: u64 = self.reasons.iter().sum();
        if inflow != outflow {
            return Err(format!("{inflow} packets came in, {outflow} are accounted for"));
        }
        if by_reason != self.of(Account::Dropped) {
            return Err(format!("{} packets dropped, {by_reason} by reason", self.of(Account::Dropped)));
        }
        Ok(())
    }

    /// Adds another worker's sheet of the same layout; moments keep the later one.
    pub fn merge(&mut self, other: &Sheet, layout: &Layout) {
        for (mine, theirs) in self.reasons.iter_mut().zip(&other.reasons) {
            *mine += theirs;
        }
        for ((mine, theirs), label) in self.counters.iter_mut().zip(&other.counters).zip(&layout.counters) {
            match label.unit {
                Unit::Time => *mine = (*mine).max(*theirs),
                _ => *mine += theirs,
            }
        }
    }
}

/// A worker's sheet as others may see it: one consistent set, under a sequence count that is odd while it is written.
#[derive(Debug)]
pub struct Published {
    sequence: AtomicU64,
    words: Box<[AtomicU64]>,
}

impl Published {
    /// Writes a new set. Only the owning worker calls this, between turns.
    pub fn publish(&self, sheet: &Sheet) {
        let before = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(before + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (word, value) in self.words.iter().zip(sheet.reasons.iter().chain(&sheet.counters)) {
            word.store(*value, Ordering::Relaxed);
        }
        self.sequence.store(before + 2, Ordering::Release);
    }

    /// The latest set; waits out a write that is under way.
    pub fn read(&self, layout: &Layout) -> Sheet {
        let mut sheet = layout.sheet();
        loop {
            let before = self.sequence.load(Ordering::Acquire);
            if before.is_multiple_of(2) {
                let into = sheet.reasons.iter_mut().chain(sheet.counters.iter_mut());
                for (value, word) in into.zip(&self.words) {
                    *value = word.load(Ordering::Relaxed);
                }
                fence(Ordering::Acquire);
                if self.sequence.load(Ordering::Relaxed) == before {
                    return sheet;
                }
            }
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_indices_agree() {
        let mut layout = Layout::new();
        let base = layout.reasons::<Engine>("again");
        let reason = base.at(Engine::TxFull);
        assert_eq!(layout.reason_name(reason), "again.tx-full");
        assert_eq!(layout.reason("again.tx-full"), Some(reason));
        assert_eq!(layout.reason_name(Engine::TxFull.into()), "engine.tx-full");
        assert_eq!(layout.reason_labels()[usize::from(DECODE_REASONS)].scope, "decode");
        assert_eq!(layout.reason_name(crate::flow::fragments::Drops::Overlap.into()), "fragment.overlap");
    }

    #[test]
    fn law_names_the_difference() {
        let mut sheet = Layout::new().sheet();
        assert_eq!(sheet.check_law(0), Ok(()));
        sheet.account(Account::Received, 2);
        sheet.account(Account::Sent, 1);
        assert!(sheet.check_law(0).is_err());
        sheet.account(Account::Dropped, 1);
        assert!(sheet.check_law(0).unwrap_err().contains("by reason"));
        sheet.reasons[0] += 1;
        assert_eq!(sheet.check_law(0), Ok(()));
    }

    #[test]
    fn a_reader_never_sees_half_a_set() {
        let layout = Layout::new();
        let published = layout.published();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut sheet = layout.sheet();
                for n in 0..20_000 {
                    sheet.reasons.fill(n);
                    sheet.counters.fill(n);
                    published.publish(&sheet);
                }
            });
            for _ in 0..2_000 {
                let seen = published.read(&layout);
                assert!(seen.counters.iter().chain(&seen.reasons).all(|w| *w == seen.counters[0]));
            }
        });
    }
}
