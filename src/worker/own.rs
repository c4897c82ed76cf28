//! The worker's part in what is for the box itself: an echo request is answered here, everything else goes to control over a
//! ring, within a rate. What the box sends comes the same way.

use crate::dpdk::ring::{Consumer, Producer};
use crate::io::Io;
use crate::packet::echo::{self, Echo};
use crate::packet::meta::flag;
use crate::packet::{BATCH, Frame, Meta, SELF_PORT};
use crate::route::hop::Hop;
use crate::stage::bucket::Bucket;
use crate::stage::route::{Drops, martian};
use crate::stats::{Account, Engine, Reason, ReasonBase};
use crate::wire::protocol;

use super::{Observer, Outbox, Worker};

/// The rings between a worker and control, and what may go through.
pub struct Own {
    /// To control; `Frame::port` is the logical port it came by.
    pub to: Producer,
    /// From control, if this worker gets what the box sends: `Frame::port` is `SELF_PORT`, `vlan_tci` the logical port.
    pub from: Option<Consumer>,
    /// Of `route::Drops`.
    pub reasons: ReasonBase,
    /// How much of ARP, neighbor and router discovery control is given.
    pub discovery: Bucket,
    /// How much of everything else.
    pub rest: Bucket,
}

/// That, and what waits to go.
pub(super) struct Desk {
    own: Own,
    outbox: Outbox,
}

impl Desk {
    pub(super) fn new(own: Own) -> Desk {
        Desk { own, outbox: Outbox::new() }
    }

    /// From now on drops count as these.
    pub(super) fn count_as(&mut self, reasons: ReasonBase) {
        self.own.reasons = reasons;
    }
}

impl<I: Io, O: Observer> Worker<I, O> {
    /// What becomes of packet `i`, which leaves for the box itself: it is taken, or dropped for a reason.
    #[cold]
    pub(super) fn receive_own(&mut self, i: usize, now: u64) -> Result<(), Reason> {
        let (frame, meta) = (&mut self.batch.frames[i], &mut self.batch.metas[i]);
        let by = if meta.port == SELF_PORT { meta.vlan as u8 } else { meta.port };
        let Some(routed) = &self.routed else { return Err(Engine::NoEgress.into()) };
        let at = |drop| routed.reasons.at(drop);
        let mac = routed.routing.macs.of(by).unwrap_or_default();
        // Of a link's addresses the box's kernel knows best, if no port is known to have this one.
        let known = |meta: &Meta| {
            let of_link = meta.has(flag::IPV6) && martian::is_link_local(&meta.dst);
            !of_link || matches!(routed.routing.hop(false, &meta.dst), Hop::Local { .. })
        };
        if meta.has(flag::ECHO) && meta.port != SELF_PORT && known(meta) {
            match echo::reply(frame, meta, &mac) {
                Echo::Replied => {
                    let out = self.batch.metas[i].out;
                    let mtu = self.mtus.get(usize::from(out)).copied().unwrap_or_default();
                    if self.batch.frames[i].len() > usize::from(mtu) + self.batch.metas[i].l3() {
                        // A device may have put the request together from its fragments.
                        return if self.cut(i, mtu) { Ok(()) } else { Err(Engine::TooBig.into()) };
                    }
                    if O::LISTENS {
                        self.observer.sent(&self.batch.frames[i], &self.batch.metas[i]);
                    }
                    if self.tap.is_watching() {
                        self.tap.all_left(1 << i, &self.batch, self.pipeline.tracker());
                    }
                    let frame = self.batch.frames[i].take();
                    self.put_out(out, frame);
                    return Ok(());
                }
                Echo::BadChecksum => return Err(at(Drops::BadEcho)),
                Echo::Other => {}
            }
        }
        let Some(desk) = &mut self.desk else {
            // Nobody is there who would take it, in a replay or on a bench: it has arrived.
            self.arrived(i);
            return Ok(());
        };
        let discovery =
            !meta.any(flag::IPV4 | flag::IPV6) || meta.proto == protocol::ICMPV6 && matches!(meta.detail[0], 133..=137);
        let bucket = if discovery { &mut desk.own.discovery } else { &mut desk.own.rest };
        if !bucket.has(now) {
            return Err(at(Drops::Policed));
        }
        bucket.take(now);
        let mut frame = frame.take();
        // The kernel's interface has the port's own MAC, and no other.
        if let Some(station) = frame.bytes_mut().first_chunk_mut::<6>().filter(|station| station[0] & 1 == 0) {
            *station = mac;
        }
        frame.port = by;
        desk.outbox.push(frame);
        if desk.outbox.is_full() {
            self.flush_own();
        }
        Ok(())
    }

    /// Takes one frame that the box sends by a port through the datapath.
    pub fn send_for_box(&mut self, by: u8, bytes: &[u8], now: u64) {
        let Some(mut frame) = self.io.create() else { return };
        if !frame.set_len(bytes.len()) {
            return self.io.free(std::slice::from_mut(&mut frame));
        }
        frame.bytes_mut().copy_from_slice(bytes);
        (frame.port, frame.vlan_tci) = (SELF_PORT, by.into());
        self.batch.frames[0] = frame;
        self.sheet.account(Account::HandedIn, 1);
        self.run(1, now);
        self.flush(u64::MAX);
    }

    fn arrived(&mut self, i: usize) {
        if O::LISTENS {
            self.observer.sent(&self.batch.frames[i], &self.batch.metas[i]);
        }
        self.sheet.account(Account::Consumed, 1);
        let mut frame = self.batch.frames[i].take();
        self.io.free(std::slice::from_mut(&mut frame));
    }

    /// Gives control what is waiting for it.
    #[inline]
    pub(super) fn flush_own(&mut self) {
        let Some(desk) = &mut self.desk else { return };
        let len = std::mem::take(&mut desk.outbox.len);
        if len == 0 {
            return;
        }
        let taken = desk.own.to.push(&mut desk.outbox.frames[..len]);
        self.sheet.account(Account::HandedOut, taken as u64);
        if taken < len {
            let reason = desk.own.reasons.at(Drops::KernelFull);
            self.tap.lost(&desk.outbox.frames[taken..len], false, reason);
            self.io.free(&mut desk.outbox.frames[taken..len]);
            self.tally(reason, len - taken);
        }
    }

    /// Takes what the box sends.
    #[inline]
    pub(super) fn send_own(&mut self, now: u64) -> usize {
        let Some(Desk { own: Own { from: Some(from), .. }, .. }) = &mut self.desk else { return 0 };
        let n = from.pop(&mut self.batch.frames);
        if n > 0 {
            self.sheet.account(Account::HandedIn, n as u64);
            self.run(n, now);
        }
        n
    }

    /// Takes the next frames that control has sent and nobody will send any more.
    pub(super) fn unsent(&mut self, frames: &mut [Frame; BATCH]) -> usize {
        match &mut self.desk {
            Some(Desk { own: Own { from: Some(from), .. }, .. }) => from.pop(frames),
            _ => 0,
        }
    }
}
