//! What the acl tells, of packets that rules ask it for: answers to the senders of what was rejected, and log entries.
//!
//! Both are within a rate for the whole appliance, of which each worker has an even share, and a tenth of a second's worth at
//! once (one at least): where the load sits on one worker, it gets that share and no more. Errors must be limited (RFC 1812
//! section 4.3.2.8, RFC 4443 section 2.4 (f)), resets are counted among them. What is above the rate, or must never be
//! answered, is dropped in silence; the drop's reason is the rule's in any case, and the counters tell the difference.

use crate::config::source::{At, Mistakes};
use crate::config::units::{Counted, Rate};
use crate::log::{Entry, Event};
use crate::packet::reply::{Answer, can_reject};
use crate::packet::{BATCH, Batch, Mask, bits};
use crate::stage::bucket::Bucket;
use crate::stage::{Action, Cx};
use crate::stats::Reason;

crate::lines! {
    /// What the acl counts besides its rules' packets and bytes.
    pub enum Counters {
        /// Rejected packets that were answered.
        Answered = "answered",
        /// Rejected packets that were not answered because of `reject_rate`.
        AnswersLimited = "answers-limited",
        /// Rejected packets that must not be answered: resets, ICMP errors, broadcasts.
        Unanswerable = "unanswerable",
        /// Packets logged.
        Logged = "logged",
        /// Packets not logged because of `log_rate`.
        LogSuppressed = "log-suppressed",
        /// Packets not logged because the ring to the log was full.
        LogLost = "log-lost",
    }
}

/// How many replies, and how many log entries, a second unless the file says so.
const DEFAULT_RATE: u64 = 1_000;
/// The most of either.
const MOST: u64 = 1_000_000;

/// The rate of a key, in things a second; none after noting what is wrong with it.
pub fn rate(given: &Option<At<Rate>>, key: &str, mistakes: &mut Mistakes) -> Option<u64> {
    let Some(At { value, place }) = given else { return Some(DEFAULT_RATE) };
    if value.counted == Counted::Bytes || value.per_second > MOST {
        mistakes.at(place, key, "expected a number a second from \"0/s\" to \"1M/s\"");
        return None;
    }
    Some(value.per_second)
}

/// What is shared by all workers.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Answers a second, the appliance's.
    pub answers: u64,
    /// Log entries a second, the appliance's.
    pub entries: u64,
    /// How many workers share them.
    pub workers: usize,
    /// What an allowed packet is in the log.
    pub allowed: Event,
    /// First of the [`Counters`] in the sheet.
    pub counters: usize,
}

/// One worker's part.
pub struct Exits {
    terms: Terms,
    answers: Bucket,
    entries: Bucket,
}

impl Exits {
    /// A worker's even share.
    pub fn new(terms: Terms) -> Exits {
        let share = |rate| Bucket::new(rate, terms.workers);
        Exits { terms, answers: share(terms.answers), entries: share(terms.entries) }
    }

    /// Logs those of `judged` whose actions ask for it, and marks those of the dead that are to be answered.
    pub fn conclude(&mut self, judged: Mask, batch: &mut Batch, actions: &[Action; BATCH], cx: &mut Cx<'_>) {
        for i in bits(judged) {
            if actions[i].log {
                let told = self.log(i, batch, &actions[i], cx);
                cx.sheet.counters[self.terms.counters + told as usize] += 1;
            }
            if actions[i].reject && batch.dead & (1 << i) != 0 {
                let told = self.answer(i, batch, cx.now);
                cx.sheet.counters[self.terms.counters + told as usize] += 1;
            }
        }
    }

    fn answer(&mut self, i: usize, batch: &mut Batch, now: u64) -> Counters {
        // Whether it may be answered can take a checksum: not for each packet of a flood.
        if !self.answers.has(now) {
            return Counters::AnswersLimited;
        }
        if !can_reject(&batch.frames[i], &batch.metas[i]) {
            return Counters::Unanswerable;
        }
        self.answers.take(now);
        batch.refuse(i, Answer::Reject);
        Counters::Answered
    }

    fn log(&mut self, i: usize, batch: &Batch, action: &Action, cx: &Cx<'_>) -> Counters {
        if !self.entries.has(cx.now) {
            return Counters::LogSuppressed;
        }
        self.entries.take(cx.now);
        let mut facts = batch.metas[i].clone();
        facts.out = action.out;
        let (event, reason) = match batch.dead & (1 << i) {
            0 => (self.terms.allowed, Reason::NONE),
            _ => (Event::Denied, batch.reasons[i]),
        };
        match cx.log.push(Entry { time: cx.now, facts, event, reason }) {
            true => Counters::Logged,
            false => Counters::LogLost,
        }
    }
}
