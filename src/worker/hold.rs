//! The worker's part in waiting for neighbors: packets are kept as they came until control has an answer, and are then looked
//! up and judged again.
//!
//! A few for each neighbor (RFC 1122 section 2.3.2.2: at least the latest; RFC 4861 section 7.2.2), and not many in all. Who is
//! first to wait for a neighbor tells control of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::io::Io;
use crate::packet::batch::Await;
use crate::packet::meta::flag;
use crate::packet::{BATCH, Frame, Meta, NO_FLOW, bits};
use crate::route::adjacency::GLEAN;
use crate::route::{Routing, Want};
use crate::stage::route::{Drops, answer};
use crate::stats::{Account, Engine, Reason, ReasonBase};

use super::{Observer, Worker};

/// Packets a worker holds.
pub const ROOM: usize = 256;
/// Of these, for one neighbor.
const EACH: usize = 8;
/// How long one waits, in nanoseconds: a little longer than control asks (RFC 4861 section 10: three times, a second apart).
const PATIENCE: u32 = 3_500_000_000;

struct Held {
    frame: Frame,
    meta: Meta,
    awaited: Await,
}

/// What a worker has where packets are routed.
pub(super) struct Holding {
    routing: Arc<Routing>,
    reasons: ReasonBase,
    held: Vec<Held>,
    /// `Routing::settled` when they were last looked at.
    seen: u32,
}

impl Holding {
    pub(super) fn new(routing: Arc<Routing>, reasons: ReasonBase) -> Holding {
        Holding { routing, reasons, held: Vec::with_capacity(ROOM), seen: 0 }
    }

    /// From now on drops count as these.
    pub(super) fn count_as(&mut self, reasons: ReasonBase) {
        self.reasons = reasons;
    }

    /// True if something may have become of what is held. To be asked before each turn: what is held in it was looked up after
    /// what was seen here.
    #[inline]
    pub(super) fn is_due(&mut self, now: u64) -> bool {
        let settled = self.routing.settled.load(Ordering::Acquire);
        let Some(oldest) = self.held.first() else {
            self.seen = settled;
            return false;
        };
        settled != self.seen || is_late(&oldest.meta, now)
    }
}

/// True if a packet has waited for too long.
fn is_late(meta: &Meta, now: u64) -> bool {
    (now as u32).wrapping_sub(meta.rx_time) > PATIENCE
}

impl<I: Io, O: Observer> Worker<I, O> {
    /// Keeps the packets of the batch that wait for their neighbors, or drops them.
    #[cold]
    pub(super) fn hold(&mut self) {
        let Some(Holding { routing, reasons, held, .. }) = &mut self.holding else { return };
        let batch = &mut *self.batch;
        for i in bits(batch.held) {
            let (awaited, meta) = (batch.awaits[i], &batch.metas[i]);
            let same = |other: &&Held| {
                let known = other.awaited;
                known.adjacency == awaited.adjacency
                    && known.out == awaited.out
                    && (awaited.adjacency != GLEAN || known.neighbor == awaited.neighbor)
            };
            let before = held.iter().filter(same).count();
            if O::LISTENS {
                self.observer.held(meta, &awaited);
            }
            if before == 0 && !self.asks {
                // A full queue means that control is busy asking; the packet's sender will try again.
                let _ = routing.wants.push(want(meta, &awaited));
            }
            batch.held &= !(1 << i);
            if before >= EACH || held.len() >= ROOM {
                batch.reasons[i] = reasons.at(Drops::HoldFull);
                batch.dead |= 1 << i;
                continue;
            }
            // Its flow may be another by then, or none.
            held.push(Held { frame: batch.frames[i].take(), meta: Meta { flow: NO_FLOW, ..meta.clone() }, awaited });
            batch.moved |= 1 << i;
            self.sheet.account(Account::Held, 1);
        }
    }

    /// True if packets that are held should be looked at.
    #[inline]
    pub(super) fn is_holding_due(&mut self, now: u64) -> bool {
        self.holding.as_mut().is_some_and(|holding| holding.is_due(now))
    }

    /// Takes what is held up again: it goes on, or is held as before, or has waited too long.
    #[cold]
    pub(super) fn take_up(&mut self, now: u64) {
        let Some(Holding { routing, reasons, held, seen }) = &mut self.holding else { return };
        // Before they are looked at: what changes meanwhile is seen next time.
        *seen = routing.settled.load(Ordering::Acquire);
        let (reason, mut left) = (reasons.at(Drops::Unanswered), held.len());
        while left > 0 {
            let Some(Holding { held, .. }) = &mut self.holding else { return };
            let n = left.min(BATCH);
            left -= n;
            for (i, Held { frame, meta, .. }) in held.drain(..n).enumerate() {
                (self.batch.frames[i], self.batch.metas[i]) = (frame, meta);
            }
            self.sheet.release(n as u64);
            let batch = &mut *self.batch;
            batch.begin(n);
            for i in bits(batch.live) {
                if is_late(&batch.metas[i], now) {
                    batch.drop(i, reason);
                    batch.refuse(i, answer(Drops::Unanswered, 0));
                }
            }
            self.finish(now, true);
        }
    }

    /// Gives back what is held.
    pub(super) fn stop_holding(&mut self) {
        let Some(Holding { held, .. }) = &mut self.holding else { return };
        let n = held.len();
        for Held { mut frame, meta, .. } in std::mem::take(held) {
            if O::LISTENS {
                self.observer.dropped(&frame, &meta, Reason::from(Engine::Stopping));
            }
            self.io.free(std::slice::from_mut(&mut frame));
        }
        self.sheet.release(n as u64);
        self.tally(Engine::Stopping.into(), n);
    }
}

fn want(meta: &Meta, awaited: &Await) -> Want {
    let &Await { adjacency, out, neighbor } = awaited;
    if adjacency != GLEAN {
        return Want::Adjacency(adjacency);
    }
    let [a, b, c, d, ..] = neighbor;
    let address = if meta.has(flag::IPV4) { IpAddr::from([a, b, c, d]) } else { IpAddr::from(neighbor) };
    Want::Host { port: out, address }
}
