//! The SYN proxy's place in tracking: when SYNs are answered, what proves a client, and which way the segments of a proxied
//! connection are changed before and after they are held to the server's numbers. What is written into them is
//! `synproxy`'s matter.

use std::cell::Cell;

use crate::flow::cookie::Cookies;
use crate::flow::entry::{Body, Entry, Scope, mark};
use crate::flow::table::Table;
use crate::flow::tcp::{self, Segment};
use crate::flow::{Drops, ORIGINAL, REPLY};
use crate::packet::meta::flag;
use crate::packet::steer::Key;
use crate::packet::{Frame, Meta};
use crate::stage::Cx;
use crate::stage::conntrack::{Settings, SynProxy};
use crate::stage::synproxy::{self, Proof, Shift};
use crate::wire::tcp::{ACK, RST, SYN};

use super::Desk;

/// What answers SYNs.
pub(super) struct Proxy {
    always: bool,
    cookies: Cookies,
    mss: u16,
    /// No cookie of ours is good after this, Unix nanoseconds.
    until: Cell<u64>,
}

/// Longer than a cookie lives.
const COOKIE_LIFE: u64 = 130_000_000_000;

impl Proxy {
    /// One worker's; none if none is wanted. The cookies' key follows from that of the hash, so that all workers know them.
    pub(super) fn new(settings: &Settings, key: Key) -> Option<Proxy> {
        (settings.syn_proxy != SynProxy::Off).then(|| Proxy {
            always: settings.syn_proxy == SynProxy::Always,
            cookies: Cookies::of(key.0),
            mss: settings.mss,
            until: Cell::new(0),
        })
    }

    /// True if a SYN is to be answered: more than four fifths of the budget are spent.
    pub(super) fn is_due<E: Entry>(&self, table: &Table<E>) -> bool {
        let occupancy = table.occupancy();
        self.always || u64::from(occupancy.half_open) * 5 > u64::from(occupancy.budget) * 4
    }

    /// What a segment proves that belongs to no flow, or to one whose server has not answered.
    #[inline]
    pub(super) fn prove(&self, frame: &Frame, meta: &Meta, scope: Scope, now: u64) -> Option<Proof> {
        (now <= self.until.get()).then(|| synproxy::prove(frame, meta, &self.cookies, domain(scope), now)).flatten()
    }
}

/// A scope as a number.
fn domain(scope: Scope) -> u32 {
    u32::from(scope.domain) | u32::from(scope.wire) << 16
}

/// Makes a SYN the SYN-ACK with a cookie, if it may be answered.
#[cold]
pub(super) fn challenge(proxy: &Proxy, frame: &mut Frame, meta: &mut Meta, scope: Scope, cx: &Cx<'_>) -> bool {
    let mss = if meta.has(flag::IPV4) { proxy.mss } else { proxy.mss - 20 };
    let done = synproxy::challenge(frame, meta, &proxy.cookies, domain(scope), mss, cx.now);
    if done {
        proxy.until.set(cx.now + COOKIE_LIFE);
    }
    done
}

/// What is done to a segment of a proxied connection before it is held to the server's numbers.
#[inline(never)]
pub(super) fn toward_server(
    body: &Body,
    direction: usize,
    frame: &mut Frame,
    meta: &mut Meta,
    desk: &Desk<'_>,
    cx: &Cx<'_>,
) -> Result<(), Drops> {
    if direction == REPLY {
        return Ok(());
    }
    if !body.has(mark::CONNECTING) {
        let (l4, end) = (meta.l4(), meta.end());
        synproxy::translate(&mut frame.bytes_mut()[l4..end], ORIGINAL, &shift(body));
        return Ok(());
    }
    // A SYN or a reset is what it would be without a proxy; anything else brings the SYN to the server again.
    if meta.detail[0] & (SYN | RST) != 0 {
        return Ok(());
    }
    let scope = desk.around.scope(meta);
    let proof = desk.proxy.and_then(|proxy| proxy.prove(frame, meta, scope, cx.now));
    let proof = proof.filter(|proof| proof.cookie == body.delta).ok_or(Drops::BadState)?;
    synproxy::open(frame, meta, &proof).then_some(()).ok_or(Drops::BadState)
}

/// What is done to a segment of the server that has been held to its numbers. True if it goes back to the server.
#[inline(never)]
pub(super) fn toward_client(
    body: &mut Body,
    frame: &mut Frame,
    meta: &mut Meta,
    desk: &mut Desk<'_>,
) -> Result<bool, Drops> {
    let flags = meta.detail[0];
    let window = body.tcp.ends[ORIGINAL].window >> body.tcp.scale[ORIGINAL].min(14);
    let window = window.min(0xffff) as u16;
    if !body.has(mark::CONNECTING) {
        if flags & (SYN | ACK) == SYN | ACK {
            return synproxy::acknowledge(frame, meta, window).then_some(true).ok_or(Drops::BadState);
        }
        let (l4, end) = (meta.l4(), meta.end());
        synproxy::translate(&mut frame.bytes_mut()[l4..end], REPLY, &shift(body));
        return Ok(false);
    }
    if flags & RST != 0 {
        return synproxy::refuse(frame, meta, body.delta).then_some(false).ok_or(Drops::BadState);
    }
    let found = synproxy::shift(frame, meta, body.delta, body.stamp(), body.has(mark::SCALED));
    let found = found.ok_or(Drops::BadState)?;
    let segment = frame.bytes().get(meta.l4()..meta.end()).and_then(Segment::read).ok_or(Drops::BadState)?;
    desk.notes.put(frame, meta, |frame, meta| synproxy::acknowledge(frame, meta, window));
    if !synproxy::welcome(frame, meta, &found) {
        return Err(Drops::BadState);
    }
    body.delta = found.sequence;
    body.set_stamp(found.stamp);
    body.flags &= !mark::CONNECTING;
    // The acknowledgment is the client's, as far as the server is told.
    let (sequence, acknowledgment) = (segment.acknowledgment, segment.sequence.wrapping_add(1));
    let answer = Segment { sequence, acknowledgment, window, flags: ACK, ..Segment::default() };
    let (class, tracking) = (body.class(), body.tracking());
    let followed = tcp::follow(&mut body.states, &mut body.tcp, class, ORIGINAL, &answer, tracking);
    if let tcp::Verdict::Valid(class) = followed {
        body.class = class as u8;
        body.expires = desk.deadline(class as u8);
    }
    Ok(false)
}

/// By what a proxied connection's numbers are moved.
fn shift(body: &Body) -> Shift {
    let scale = body.has(mark::SCALED).then_some(body.tcp.scale[REPLY]);
    Shift { sequence: body.delta, stamp: body.stamp(), scale }
}
