//! Writing what was decided into the packet: the one place where the pipeline changes bytes on behalf of flow stages.
//!
//! A packet leaves by a fixed rewrite of its link-layer header (`cross`), or by an adjacency of the routing tables, which may
//! not be there yet, or may not take it. That is found out before anything is written ([`Ways::look`]): whoever is told of the
//! packet's end gets it quoted as it came.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use crate::packet::batch::Await;
use crate::packet::meta::flag;
use crate::packet::reply::Answer;
use crate::packet::{BATCH, Batch, Frame, Mask, Meta, SELF_PORT, bits, forward, mss};
use crate::route::Routing;
use crate::route::adjacency::{Adjacency, GLEAN, ROUTED, Reader, SILENT, State, Stored};
use crate::route::used::{self, Marks};
use crate::stats::{Reason, ReasonBase};
use crate::wire::ethernet::{Ethernet, Rewrite};
use crate::wire::tcp::SYN;
use crate::wire::{ipv4, protocol};

use super::Action;
use super::route::{Drops, answer};

/// How packets of a flow leave, by index: the link-layer rewrite. The first leaves frames as they are.
#[derive(Clone, Debug)]
pub struct Adjacencies(Vec<Rewrite>);

impl Default for Adjacencies {
    fn default() -> Self {
        Adjacencies(vec![Rewrite::NOTHING])
    }
}

impl Adjacencies {
    /// The index of a rewrite, added if it is new.
    pub fn index(&mut self, rewrite: Rewrite) -> u32 {
        let at = self.0.iter().position(|known| *known == rewrite).unwrap_or_else(|| {
            self.0.push(rewrite);
            self.0.len() - 1
        });
        at as u32
    }

    /// The rewrite at an index.
    #[inline]
    pub fn at(&self, index: u32) -> &Rewrite {
        &self.0[index as usize]
    }
}

/// What routing adds.
#[derive(Clone)]
pub struct Routed {
    /// The published tables.
    pub routing: Arc<Routing>,
    /// Of [`Drops`].
    pub reasons: ReasonBase,
    /// ICMP errors a second, the appliance's.
    pub errors: u64,
    /// True if the MSS of TCP handshakes is lowered to what the ways take.
    pub clamp: bool,
    /// How packets leave that would have to wait for a neighbor, for those who only ask.
    pub assumed: Option<Adjacency>,
    /// The worker's marks of the ways by which something has left.
    pub used: Marks,
}

/// All ways by which packets leave.
#[derive(Clone)]
pub struct Ways {
    /// Fixed rewrites.
    pub fixed: Arc<Adjacencies>,
    /// Routing, if it is in the pipeline.
    pub routed: Option<Routed>,
}

/// A way that is open to a packet.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// A fixed rewrite.
    Fixed(u32),
    /// By an adjacency.
    Routed(Stored),
}

/// Why a packet does not go the way it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It waits for its neighbor's answer.
    Wait,
    /// It is dropped, and its sender is told.
    Drop(Reason, Answer),
}

impl Ways {
    /// The way of a packet whose action has this adjacency; changes nothing.
    #[inline(always)]
    pub fn look(&self, adjacency: u32, frame: &Frame, meta: &Meta) -> Result<Way, Stop> {
        match &self.routed {
            Some(routed) if adjacency & ROUTED != 0 => routed.look(adjacency, frame, meta).map(Way::Routed),
            _ => Ok(Way::Fixed(adjacency)),
        }
    }

    /// Makes the packet leave that way: TTL, MSS, link-layer header.
    #[inline(always)]
    pub fn write(&self, way: Way, frame: &mut Frame, meta: &mut Meta) {
        match way {
            Way::Fixed(0) => {}
            Way::Fixed(index) => self.fixed.at(index).write(frame.bytes_mut()),
            Way::Routed(stored) => {
                let clamp = self.routed.as_ref().is_some_and(|routed| routed.clamp);
                if clamp && meta.proto == protocol::TCP && meta.detail[0] & SYN != 0 {
                    mss::clamp(frame, meta, stored.mtu());
                }
                let plain = stored.is_plain() && meta.port != SELF_PORT && !meta.any(flag::TAGS);
                if !(plain && forward::plain(frame, meta, stored.macs())) {
                    go(stored.whole(), frame, meta);
                }
            }
        }
    }
}

/// What the common packet's way out needs, at hand.
#[derive(Clone, Copy)]
struct Hurry<'a> {
    adjacencies: Reader<'a>,
    used: &'a [AtomicU8],
    clamp: bool,
}

impl<'a> Hurry<'a> {
    fn new(routed: &'a Routed) -> Hurry<'a> {
        Hurry { adjacencies: routed.routing.adjacencies.reader(), used: &routed.used, clamp: routed.clamp }
    }

    /// Makes a packet leave by an adjacency at once, if that is the common case: one hop more behind a header without tags,
    /// which it fits. Else it is as it was.
    #[inline(always)]
    fn leaves(self, adjacency: u32, frame: &mut Frame, meta: &Meta) -> bool {
        if adjacency & ROUTED == 0 || meta.port == SELF_PORT || meta.any(flag::TAGS) {
            return false;
        }
        let stored = self.adjacencies.stored(adjacency);
        let handshake = meta.proto == protocol::TCP && meta.detail[0] & SYN != 0;
        let left = stored.is_plain()
            && meta.end.wrapping_sub(Ethernet::LEN as u16) <= stored.mtu()
            && !(handshake && self.clamp)
            && forward::plain(frame, meta, stored.macs());
        if left {
            used::mark(self.used, adjacency);
        }
        left
    }
}

/// Takes a hop of a packet that has come from somewhere, and gives it the link-layer header of an adjacency.
#[inline(never)]
fn go(adjacency: Adjacency, frame: &mut Frame, meta: &mut Meta) {
    if meta.port != SELF_PORT {
        forward::hop(frame, meta);
    }
    // Buffers have room in front for two tags.
    let done = match adjacency.state {
        State::Keep => forward::retag(frame, meta, &adjacency.tags),
        _ => forward::relink(frame, meta, adjacency.destination, adjacency.source, &adjacency.tags),
    };
    debug_assert!(done);
}

impl Routed {
    #[inline(always)]
    fn look(&self, index: u32, frame: &Frame, meta: &Meta) -> Result<Stored, Stop> {
        let stored = self.routing.adjacencies.stored(index);
        let fits = packet_len(meta) <= stored.mtu();
        // A packet of one hop more is the common case, and so is one that fits.
        if stored.forwards() && fits && meta.port != SELF_PORT && forward::hops_left(frame, meta) > 1 {
            used::mark(&self.used, index);
            return Ok(stored);
        }
        self.look_closer(index, stored, frame, meta)
    }

    #[cold]
    fn look_closer(&self, index: u32, mut stored: Stored, frame: &Frame, meta: &Meta) -> Result<Stored, Stop> {
        let drop = |drop: Drops, mtu: u16| Err(Stop::Drop(self.reasons.at(drop), answer(drop, mtu)));
        // RFC 1812 section 5.3.1, RFC 8200 section 3: what the box itself sends is not forwarded.
        if meta.port != SELF_PORT && forward::hops_left(frame, meta) <= 1 {
            return drop(Drops::TtlExpired, stored.mtu());
        }
        match (index, stored.state()) {
            (SILENT, _) | (_, State::Failed) => return drop(Drops::HostUnreachable, stored.mtu()),
            // If it is free, its routes have just changed: they are asked again.
            (GLEAN, _) | (_, State::Unresolved | State::Free) => match &self.assumed {
                None => return Err(Stop::Wait),
                Some(assumed) => stored = assumed.into(),
            },
            (_, State::Forward | State::Keep) => {}
        }
        // RFC 791 section 3.2, RFC 8200 section 5: only IPv4 is fragmented on its way, and only where it may be.
        if packet_len(meta) > stored.mtu() && (meta.has(flag::IPV6) || may_not_fragment(frame, meta)) {
            return drop(Drops::TooBig, stored.mtu());
        }
        used::mark(&self.used, index);
        Ok(stored)
    }
}

/// Bytes of the network-layer packet.
#[inline(always)]
fn packet_len(meta: &Meta) -> u16 {
    meta.end.wrapping_sub(meta.l3() as u16)
}

fn may_not_fragment(frame: &Frame, meta: &Meta) -> bool {
    let word = frame.bytes().get(meta.l3() + 6..meta.l3() + 8);
    word.is_none_or(|word| u16::from_be_bytes([word[0], word[1]]) & ipv4::DF != 0)
}

/// Carries out the actions of the live packets in `todo`: rule, domain and egress go into their facts, and they are written.
/// Those whose way is not open are held or dropped; they are the result. `subjects` are the facts that were judged, if not those
/// of the batch.
#[inline]
pub fn apply(
    todo: Mask,
    batch: &mut Batch,
    subjects: Option<&[Meta; BATCH]>,
    actions: &[Action; BATCH],
    ways: &Ways,
) -> Mask {
    let mut stopped = 0;
    let hurry = ways.routed.as_ref().map(Hurry::new);
    for i in bits(todo & batch.live) {
        let action = &actions[i];
        let (frame, meta) = (&mut batch.frames[i], &mut batch.metas[i]);
        if hurry.is_some_and(|hurry| hurry.leaves(action.adjacency, frame, meta)) {
            meta.rule = action.rule;
            meta.domain = action.domain;
            meta.out = action.out;
            continue;
        }
        match ways.look(action.adjacency, frame, meta) {
            Ok(way) => {
                meta.rule = action.rule;
                meta.domain = action.domain;
                meta.out = action.out;
                ways.write(way, frame, meta);
            }
            Err(stop) => {
                meta.rule = action.rule;
                stopped |= 1 << i;
                let neighbor = subjects.map_or(meta.dst, |subjects| subjects[i].dst);
                let awaited = Await { adjacency: action.adjacency, out: action.out, neighbor };
                halt(stop, i, batch, awaited);
            }
        }
    }
    stopped
}

/// Holds or drops a live packet.
#[cold]
pub fn halt(stop: Stop, i: usize, batch: &mut Batch, awaited: Await) {
    match stop {
        Stop::Wait => batch.hold(i, awaited),
        Stop::Drop(reason, answer) => {
            batch.drop(i, reason);
            if answer != Answer::Nothing {
                batch.refuse(i, answer);
            }
        }
    }
}

/// Drops the denied for the reasons their actions give.
#[inline]
pub fn refuse(denied: Mask, batch: &mut Batch, actions: &[Action; BATCH]) {
    for i in bits(denied & batch.live) {
        batch.metas[i].rule = actions[i].rule;
        batch.drop(i, actions[i].reason);
    }
}
