//! One core's loop: receive, decode, steer, process, send, settle the accounts.
//!
//! A worker owns everything it writes to. It knows no protocol: decode does, and the stages. A turn allocates and frees
//! nothing and makes no system call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::arch::{Clock, cycles};
use crate::dpdk::ring::{Consumer, Producer};
use crate::io::Io;
use crate::log::Log;
use crate::nat::steer::Steering;
use crate::packet::batch::Await;
use crate::packet::decode::{decode, strip_tag};
use crate::packet::meta::flag;
use crate::packet::reply::{self, Answer, reject};
use crate::packet::steer::{Key, owner, steer};
use crate::packet::{BATCH, Batch, Frame, Mask, Meta, SELF_PORT, bits};
use crate::route::epoch::Presence;
use crate::route::vlan::Vlans;
use crate::stage::apply::Routed;
use crate::stage::bucket::Bucket;
use crate::stage::conntrack::Tables;
use crate::stage::pipeline::{Blueprint, Pipeline, Witness, port_counter};
use crate::stage::synproxy::Note;
use crate::stage::visit::Visit;
use crate::stage::{Cx, Depth, Row};
use crate::stats::{Account, Engine, Layout, Published, Reason, Sheet};
use crate::wire::ethernet::{Ethernet, Rewrite};

mod adopt;
mod cut;
mod fragments;
pub mod gauge;
mod hold;
mod own;
pub mod tap;

pub use adopt::Next;

use fragments::Following;
use gauge::Gauge;
use hold::Holding;
pub use hold::ROOM as HELD;
pub use own::Own;
use tap::{Dropped, Tap, Watch};

/// Bytes of the two VLAN tags a frame may have, which the MTU does not count.
const TAGS: usize = 8;

/// What is told of every packet's end. The one that is told nothing costs nothing.
pub trait Observer: Witness {
    /// False if nobody listens; then the datapath may forward frames unread.
    const LISTENS: bool;
    /// A packet was handed to a port.
    fn sent(&mut self, frame: &Frame, meta: &Meta);
    /// A packet was dropped.
    fn dropped(&mut self, frame: &Frame, meta: &Meta, reason: Reason);
    /// A packet is held until its neighbor answers.
    fn held(&mut self, _meta: &Meta, _awaited: &Await) {}
}

impl Observer for () {
    const LISTENS: bool = false;
    #[inline]
    fn sent(&mut self, _frame: &Frame, _meta: &Meta) {}
    #[inline]
    fn dropped(&mut self, _frame: &Frame, _meta: &Meta, _reason: Reason) {}
}

/// A question, which travels to a worker and back with the answer. Whatever the answer needs of memory comes with it.
#[derive(Debug)]
pub struct Ask {
    /// Tells its answer from those to questions that nobody waits for any more.
    pub number: u64,
    /// What is asked.
    pub question: Question,
    /// True if nothing is left to answer.
    pub done: bool,
}

/// What a worker may be asked.
#[derive(Debug)]
pub enum Question {
    /// A copy of a stage's state.
    Stage {
        /// Position of the stage in the pipeline.
        position: usize,
        /// Where copying goes on.
        cursor: usize,
        /// What was copied; it is filled up to the capacity it came with.
        rows: Vec<Row>,
    },
    /// A copy of the entry of a packet's flow.
    Flow {
        /// The packet's facts.
        facts: Meta,
        /// The entry, if there is one.
        rows: Vec<Row>,
    },
    /// The next of the flows that are meant.
    Visit(Visit),
    /// To go on with another pipeline; the answer has what was replaced.
    Adopt(Box<Next>),
    /// The last drops.
    Drops {
        /// Becomes the one whose reasons they name.
        layout: Option<Arc<Layout>>,
        /// Where copying goes on.
        cursor: usize,
        /// What was copied; it is filled up to the capacity it came with.
        rows: Vec<Dropped>,
    },
    /// Begin this capture; comes back if there are too many, or if it is one of another pipeline.
    Watch(Option<Box<Watch>>),
    /// End the capture with this number; comes back with it, if it was there.
    Unwatch(u64, Option<Box<Watch>>),
}

/// Where control asks a worker, and the worker answers.
#[derive(Debug)]
pub struct Mailbox {
    /// To the worker.
    pub asks: ArrayQueue<Box<Ask>>,
    /// From the worker; as large as `asks`, so that an answer always fits.
    pub answers: ArrayQueue<Box<Ask>>,
}

impl Default for Mailbox {
    fn default() -> Self {
        Mailbox { asks: ArrayQueue::new(8), answers: ArrayQueue::new(8) }
    }
}

/// The ends of the rings that lead to and from a worker.
pub struct Handoff {
    /// Which worker this is.
    pub me: usize,
    /// To each worker, packets that it owns; none to itself.
    pub to: Vec<Option<Producer>>,
    /// From the other workers, packets that this one owns.
    pub from: Vec<Consumer>,
    /// By port: to the worker that has the transmit queue this one lacks.
    pub out: Vec<Option<Producer>>,
    /// Frames of other workers, each to be sent by the port it names.
    pub sends: Vec<Consumer>,
}

/// Frames on their way out of the worker, to a port or another worker.
struct Outbox {
    frames: [Frame; BATCH],
    len: usize,
}

impl Outbox {
    fn new() -> Outbox {
        Outbox { frames: [const { Frame::EMPTY }; BATCH], len: 0 }
    }

    #[inline]
    fn push(&mut self, frame: Frame) {
        self.frames[self.len & (BATCH - 1)] = frame;
        self.len += 1;
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.len == BATCH
    }
}

/// What a worker is started with.
pub struct Setup {
    /// The compiled pipeline.
    pub blueprint: Blueprint,
    /// Which worker it is.
    pub index: usize,
    /// Packets a receive takes at most.
    pub burst: usize,
    /// By port: the largest packet it sends, without Ethernet header and tags.
    pub mtus: Vec<u16>,
    /// Bit per port: VLAN tags are taken out of what it receives here, since the port cannot.
    pub strip: u64,
    /// Bit per port: its link is up. Written by control.
    pub links: Arc<AtomicU64>,
    /// Hashes tuples; the same in all workers.
    pub key: Key,
    /// The flow tables, if the pipeline tracks connections.
    pub tables: Option<Tables>,
    /// Rings to other workers; none for a single worker.
    pub handoff: Option<Handoff>,
    /// Rings to control, for what is for the box itself.
    pub own: Option<Own>,
}

/// One core's part of the datapath.
pub struct Worker<I: Io, O: Observer = ()> {
    io: I,
    observer: O,
    pipeline: Pipeline,
    batch: Box<Batch>,
    sheet: Sheet,
    log: Log,
    depth: Depth,
    burst: usize,
    /// Ports this worker receives from, and for each the port all its frames leave by if they pass unread.
    receive: Vec<(u8, Option<(u8, Rewrite)>)>,
    outboxes: Vec<Outbox>,
    /// By worker.
    handing: Vec<Outbox>,
    mtus: Vec<u16>,
    /// What a frame may be longer than MTU and the header that was read: room for tags nobody looked for.
    unread: usize,
    port_counters: Vec<usize>,
    /// By port: the one with the device by which its frames leave.
    carriers: Vec<u8>,
    /// Bit per port: it has VLANs that are ports themselves, which count their own packets.
    crowded: u64,
    vlans: Option<Arc<Vlans>>,
    strip: u64,
    links: Arc<AtomicU64>,
    key: Key,
    handoff: Option<Handoff>,
    /// Packets are given to the workers that own them.
    steered: bool,
    following: Option<Following>,
    /// Where packets wait for their neighbors, if they are routed.
    holding: Option<Holding>,
    desk: Option<own::Desk>,
    routed: Option<Routed>,
    /// ICMP errors that may be sent.
    errors: Bucket,
    /// Says between turns that nothing of the routing tables is in use.
    presence: Option<Presence>,
    asks: bool,
    /// Whose a packet is where addresses are translated.
    steering: Option<Arc<Steering>>,
    /// Where counters go from now on, if that has changed.
    newly_published: Option<Arc<Published>>,
    gauge: Gauge,
    tap: Tap,
}

/// The worker of `workers` that owns a packet whose hash is known and, of a fragment, whose datagram's facts.
#[inline]
fn whose(steering: Option<&Steering>, meta: &Meta, frame: &Frame, key: Key, workers: usize) -> usize {
    let Some(steering) = steering else { return owner(meta.hash, workers) };
    match meta.has(flag::ICMP_ERROR) {
        true => steering.owner_of_error(meta, frame, key, workers).unwrap_or(owner(meta.hash, workers)),
        false => steering.owner(meta, meta.hash, key, workers),
    }
}

impl<I: Io, O: Observer> Worker<I, O> {
    /// A worker over its ports.
    pub fn new(io: I, observer: O, setup: Setup) -> Worker<I, O> {
        let blueprint = &setup.blueprint;
        let devices =
            blueprint.carriers.iter().enumerate().filter(|(at, carrier)| *at == usize::from(**carrier)).count();
        let receive = (0..devices as u8).filter(|port| io.receives(*port)).map(|port| (port, None)).collect();
        // Who owns a packet is decided by its ports too.
        let steered = setup.handoff.is_some() && blueprint.depth >= Depth::L3;
        let depth = if steered || blueprint.follows { Depth::L4 } else { blueprint.depth };
        let following = blueprint.follows.then(Following::new);
        let routed = blueprint.ways.routed.clone();
        let holding = routed.as_ref().map(|routed| Holding::new(routed.routing.clone(), routed.reasons));
        // One who only asks is no worker, and comes behind them.
        let index = if blueprint.asks { blueprint.workers } else { setup.index };
        let presence = routed.as_ref().map(|routed| routed.routing.epochs.presence(index));
        // Who asks now and then is there while asking: nobody could wait for the next time.
        presence.iter().filter(|_| !blueprint.asks).for_each(Presence::enter);
        let asks = blueprint.asks;
        let errors = Bucket::new(routed.as_ref().map_or(0, |routed| routed.errors), blueprint.workers);
        let workers = setup.handoff.as_ref().map_or(0, |handoff| handoff.to.len());
        let relay = blueprint.relay.clone();
        let mut worker = Worker {
            observer,
            pipeline: blueprint.start(setup.index, setup.tables, setup.key, steered),
            key: setup.key,
            batch: Box::default(),
            sheet: blueprint.layout.sheet(),
            log: blueprint.logs.get(setup.index).cloned().unwrap_or(Log::NONE),
            depth,
            burst: setup.burst.clamp(1, BATCH),
            receive,
            outboxes: (0..devices).map(|_| Outbox::new()).collect(),
            handing: (0..workers).map(|_| Outbox::new()).collect(),
            mtus: setup.mtus,
            unread: if depth >= Depth::L2 { 0 } else { TAGS },
            port_counters: blueprint.port_counters.clone(),
            carriers: blueprint.carriers.clone(),
            crowded: blueprint.carriers[devices..].iter().fold(0, |bits, carrier| bits | 1 << carrier),
            vlans: blueprint.vlans.clone(),
            strip: setup.strip,
            links: setup.links,
            handoff: setup.handoff,
            steered,
            following,
            holding,
            desk: setup.own.map(own::Desk::new),
            routed,
            errors,
            presence,
            asks,
            steering: blueprint.nat.as_ref().map(|nat| nat.steering.clone()),
            newly_published: None,
            gauge: Gauge::default(),
            tap: Tap::new(blueprint, setup.index),
            io,
        };
        worker.relay_by(relay.as_deref());
        worker
    }

    /// Lets what is not read leave as soon as it comes, where all frames of a port leave by one other.
    fn relay_by(&mut self, relay: Option<&[(u8, Rewrite)]>) {
        let relay = relay.filter(|_| !O::LISTENS);
        for at in 0..self.receive.len() {
            let port = self.receive[at].0;
            let relay = relay.map(|relay| relay[usize::from(port)]);
            self.receive[at].1 = relay.filter(|(out, _)| self.passes_unread(port, *out));
        }
    }

    /// What passes unread is not measured either: only a port that takes whatever the other can receive will do.
    fn passes_unread(&self, port: u8, out: u8) -> bool {
        let mtu = |port: u8| self.mtus[usize::from(port)];
        self.io.transmits(out) && mtu(port) <= mtu(out) && self.strip & (1 << port) == 0
    }

    /// Lets it take the time of packets; without, it takes none.
    pub fn measure(&mut self, gauge: Gauge) {
        self.gauge = gauge;
    }

    /// Its counters, complete after each turn.
    pub fn sheet(&self) -> &Sheet {
        &self.sheet
    }

    /// Its ports.
    pub fn io(&mut self) -> &mut I {
        &mut self.io
    }

    /// What listens to it.
    pub fn observer(&mut self) -> &mut O {
        &mut self.observer
    }

    /// Both at once.
    pub fn parts(&mut self) -> (&mut I, &mut O) {
        (&mut self.io, &mut self.observer)
    }

    /// Its pipeline.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Its pipeline, to be changed between turns.
    pub fn pipeline_mut(&mut self) -> &mut Pipeline {
        &mut self.pipeline
    }

    /// One turn at time `now` (Unix nanoseconds): everything that can be received goes to its end. Returns the number of
    /// packets that came in.
    pub fn turn(&mut self, now: u64) -> usize {
        if let Some(presence) = &self.presence {
            if self.asks { presence.enter() } else { presence.pass() }
        }
        self.tap.set_time(now);
        let links = self.links.load(Ordering::Relaxed);
        let mut handled = self.take_over(now) + self.send_own(now);
        if self.is_holding_due(now) {
            self.take_up(now);
            handled += 1;
        }
        for at in 0..self.receive.len() {
            let (port, relay) = self.receive[at];
            match relay {
                // Frames that are captured are not unread.
                Some((out, rewrite)) if links & (1 << out) != 0 && !self.tap.is_watching() => {
                    handled += self.relay(port, out, &rewrite, now);
                }
                _ => handled += self.receive(port, now),
            }
        }
        if handled > 0 {
            self.flush(links);
        }
        if self.asks {
            self.presence.iter().for_each(Presence::leave);
        }
        handled
    }

    /// Forwards a burst unread.
    #[inline]
    fn relay(&mut self, port: u8, out: u8, rewrite: &Rewrite, now: u64) -> usize {
        let (received, sent) = self.io.relay(port, out, self.burst, rewrite);
        if received > 0 {
            self.sheet.account(Account::Received, received as u64);
            self.sheet.account(Account::Processed, received as u64);
            self.sheet.account(Account::Sent, sent as u64);
            gauge::burst(&mut self.sheet, received);
            if sent > 0 && self.gauge.looks() {
                self.gauge.note(now as u32, &mut self.sheet);
            }
            self.count(port, port_counter::RX, received);
            self.count(out, port_counter::TX, sent);
            if sent < received {
                self.tally(Engine::TxFull.into(), received - sent);
                self.count(out, port_counter::TX_DROPPED, received - sent);
            }
        }
        received
    }

    #[inline]
    fn receive(&mut self, port: u8, now: u64) -> usize {
        let received = self.io.rx(port, self.burst, &mut self.batch.frames);
        if received > 0 {
            for frame in &mut self.batch.frames[..received] {
                frame.port = port;
                frame.rx_time = now as u32;
            }
            if self.strip & (1 << port) != 0 {
                self.batch.frames[..received].iter_mut().for_each(strip_tag);
            }
            self.sheet.account(Account::Received, received as u64);
            gauge::burst(&mut self.sheet, received);
            self.count(port, port_counter::RX, received);
            self.run(received, now);
        }
        received
    }

    /// Takes what other workers handed over: packets to process, and frames to send.
    #[inline]
    fn take_over(&mut self, now: u64) -> usize {
        let Some(handoff) = &self.handoff else { return 0 };
        let (sources, sends) = (handoff.from.len(), handoff.sends.len());
        let mut handled = 0;
        for at in 0..sources {
            let Some(handoff) = &mut self.handoff else { break };
            let n = handoff.from[at].pop(&mut self.batch.frames);
            if n > 0 {
                self.sheet.account(Account::HandedIn, n as u64);
                self.run(n, now);
                handled += n;
            }
        }
        for at in 0..sends {
            let Some(handoff) = &mut self.handoff else { break };
            let n = handoff.sends[at].pop(&mut self.batch.frames);
            self.sheet.account(Account::HandedIn, n as u64);
            for i in 0..n {
                let frame = self.batch.frames[i].take();
                self.put_out(frame.port, frame);
            }
            handled += n;
        }
        handled
    }

    /// Takes the first `n` frames of the batch through the pipeline.
    #[inline]
    fn run(&mut self, n: usize, now: u64) {
        self.batch.begin(n);
        self.read();
        if self.tap.is_watching() {
            self.tap.arrived(&self.batch);
        }
        self.process(now);
        if self.has_decided() {
            self.let_go(None, now);
        }
    }

    /// Decodes the batch and gives each frame its logical port. One that has it already, because it was held or handed over,
    /// keeps it.
    #[inline]
    fn read(&mut self) {
        decode(&mut self.batch, self.depth);
        let Some(vlans) = &self.vlans else { return };
        let batch = &mut *self.batch;
        // The dead too: senders of some are told.
        for i in bits((batch.live | batch.dead) & batch.uncommon) {
            let (frame, meta) = (&mut batch.frames[i], &mut batch.metas[i]);
            match vlans.classify(frame, meta) {
                Some(port) if port == meta.port => {}
                Some(port) => {
                    (frame.port, meta.port) = (port, port);
                    self.sheet.counters[self.port_counters[usize::from(port)] + port_counter::RX] += 1;
                }
                None if batch.live & (1 << i) == 0 => {}
                None => batch.drop(i, Engine::UnknownVlan.into()),
            }
        }
    }

    /// Takes the decoded batch to its end.
    #[inline]
    fn process(&mut self, now: u64) {
        let (placed, complete) = if self.batch.fragments != 0 { self.follow(now) } else { (0, 0) };
        if self.steered {
            self.steer(placed, complete);
        }
        self.sheet.account(Account::Processed, u64::from(self.batch.live.count_ones()));
        self.finish(now, false);
    }

    /// Takes the batch through the pipeline, from its start or from where packets were held.
    #[inline]
    fn finish(&mut self, now: u64, held: bool) {
        let mut cx = Cx { now, sheet: &mut self.sheet, log: &self.log };
        match held {
            false => self.pipeline.process(&mut self.batch, &mut cx, &mut self.observer),
            true => self.pipeline.resume(&mut self.batch, &mut cx, &mut self.observer),
        }
        if self.batch.held != 0 {
            self.hold();
        }
        let died = self.batch.dead;
        if self.batch.refused != 0 {
            self.answer(now);
        }
        self.send(now);
        self.settle();
        if self.tap.is_watching() {
            self.tap.concluded(&self.batch, died, self.pipeline.tracker());
        }
        while let Some(note) = self.pipeline.take_note() {
            self.make(&note);
        }
    }

    /// Sends a packet of our own. Without a buffer there is none.
    #[inline(never)]
    fn make(&mut self, note: &Note) {
        let Some(mut frame) = self.io.create() else { return };
        self.sheet.account(Account::Created, 1);
        if !note.write(&mut frame) {
            self.tally(Engine::TooBig.into(), 1);
            return self.io.free(std::slice::from_mut(&mut frame));
        }
        if O::LISTENS {
            self.observer.sent(&frame, &note.meta);
        }
        if self.tap.is_watching() {
            self.tap.created(&frame, &note.meta, self.pipeline.tracker());
        }
        self.put_out(note.meta.out, frame);
    }

    /// Hands packets that another worker owns over to it. The hash of those `placed` is known; `complete` are fragments that have
    /// the facts of their datagrams, the others are their datagrams'.
    fn steer(&mut self, placed: Mask, complete: Mask) {
        let Some(handoff) = &self.handoff else { return };
        let (me, key, workers) = (handoff.me, self.key, handoff.to.len());
        let batch = &mut *self.batch;
        let moved = batch.moved;
        for i in bits(batch.live) {
            if placed & (1 << i) == 0 {
                steer(&mut batch.metas[i], &batch.frames[i], key);
            }
            let steering = self.steering.as_deref().filter(|_| (batch.fragments & !complete) & (1 << i) == 0);
            let to = whose(steering, &batch.metas[i], &batch.frames[i], key, workers);
            if to == me {
                continue;
            }
            if batch.frames[i].hops >= 2 {
                batch.drop(i, Engine::HandoffLoop.into());
                continue;
            }
            let mut frame = batch.take(i);
            frame.hops += 1;
            self.handing[to].push(frame);
        }
        if self.tap.is_watching() {
            self.tap.handed_over(self.batch.moved & !moved);
        }
        // At once: an outbox has room for one batch.
        for to in 0..self.handing.len() {
            if self.handing[to].len > 0 {
                self.hand_over(to);
            }
        }
    }

    /// Makes refused packets the replies to them: the request ends here, and what leaves in its buffer is a packet of our own.
    #[inline(never)]
    fn answer(&mut self, now: u64) {
        for i in bits(self.batch.refused & self.batch.dead) {
            self.bury(i);
            self.sheet.account(Account::Dropped, 1);
            let batch = &mut *self.batch;
            batch.dead &= !(1 << i);
            let (frame, meta) = (&mut batch.frames[i], &mut batch.metas[i]);
            let answered = match (batch.answers[i], &self.routed) {
                (Answer::Reject, _) => reject(frame, meta),
                (answer, Some(routed)) if self.errors.has(now) => {
                    // RFC 1812 section 4.3.2.4: from an address of the port it leaves by, which is where the packet came in.
                    let (v4, v6) = (routed.routing.addresses.v4(meta.port), routed.routing.addresses.v6(meta.port));
                    let made = reply::answer(frame, meta, answer, v4, v6);
                    if made {
                        self.errors.take(now);
                    }
                    made
                }
                _ => false,
            };
            if answered {
                batch.leaving |= 1 << i;
                self.sheet.account(Account::Created, 1);
            } else {
                batch.moved |= 1 << i;
                self.io.free(std::slice::from_mut(&mut batch.frames[i]));
            }
        }
    }

    /// Tells of the end of a dead packet, and counts it by reason.
    #[inline]
    fn bury(&mut self, i: usize) {
        let reason = self.batch.reasons[i];
        if O::LISTENS {
            self.observer.dropped(&self.batch.frames[i], &self.batch.metas[i], reason);
        }
        // A stage that dropped without a reason is a defect, which must not take the worker with it.
        let known = usize::from(reason.0) < self.sheet.reasons.len();
        debug_assert!(known, "a packet was dropped without a reason");
        let reason = if known { reason } else { Engine::Bug.into() };
        self.tap.dropped(i, &self.batch, reason, self.pipeline.tracker());
        self.sheet.reasons[usize::from(reason.0)] += 1;
    }

    /// Sends the leaving packets: all at once if they leave by one port, else through the ports' outboxes.
    #[inline]
    fn send(&mut self, now: u64) {
        let batch = &mut *self.batch;
        let Some(first) = bits(batch.leaving).next() else { return };
        let out = batch.metas[first].out;
        let longest = self.mtus.get(usize::from(out)).map_or(0, |mtu| usize::from(*mtu) + self.unread);
        let untagged = longest + Ethernet::LEN;
        let mut together = true;
        for i in bits(batch.leaving) {
            let len = batch.frames[i].len();
            let fits = len <= untagged || len <= longest + batch.metas[i].l3();
            together &= fits && batch.metas[i].out == out;
        }
        // No gaps: nothing of the batch died or moved, or only what stood behind.
        together &= batch.leaving & batch.leaving.wrapping_add(1) == 0;
        let Some(&carrier) = self.carriers.get(usize::from(out)) else { return self.send_each(now) };
        let waiting = self.outboxes[usize::from(carrier)].len > 0;
        let up = self.links.load(Ordering::Relaxed) & (1 << carrier) != 0;
        if !together || waiting || !up || !self.io.transmits(carrier) {
            return self.send_each(now);
        }
        let len = batch.leaving.count_ones() as usize;
        if O::LISTENS {
            bits(batch.leaving).for_each(|i| self.observer.sent(&batch.frames[i], &batch.metas[i]));
        }
        let came = batch.frames[0].rx_time;
        if self.tap.is_watching() {
            self.tap.all_left(batch.leaving, batch, self.pipeline.tracker());
        }
        let sent = self.io.tx(carrier, &mut batch.frames[..len]);
        if sent > 0 && self.gauge.looks() {
            self.gauge.note(came, &mut self.sheet);
        }
        self.sheet.account(Account::Sent, sent as u64);
        self.sheet.counters[self.port_counters[usize::from(carrier)] + port_counter::TX] += sent as u64;
        if sent < len {
            (sent..len).for_each(|i| self.tap.dropped(i, batch, Engine::TxFull.into(), self.pipeline.tracker()));
            self.io.free(&mut batch.frames[sent..len]);
            self.tally(Engine::TxFull.into(), len - sent);
            self.count(carrier, port_counter::TX_DROPPED, len - sent);
        }
        if carrier != out {
            self.count(out, port_counter::TX, sent);
            self.count(out, port_counter::TX_DROPPED, len - sent);
        }
    }

    /// Moves the leaving packets to their ports' outboxes.
    fn send_each(&mut self, now: u64) {
        let mut unsendable: Mask = 0;
        for i in bits(self.batch.leaving) {
            let out = usize::from(self.batch.metas[i].out);
            let header = self.batch.metas[i].l3() + self.unread;
            match self.mtus.get(out).copied() {
                Some(mtu) if self.batch.frames[i].len() <= usize::from(mtu) + header => {
                    if O::LISTENS {
                        self.observer.sent(&self.batch.frames[i], &self.batch.metas[i]);
                    }
                    if self.tap.is_watching() {
                        self.tap.all_left(1 << i, &self.batch, self.pipeline.tracker());
                    }
                    let frame = self.batch.frames[i].take();
                    self.put_out(out as u8, frame);
                }
                None if self.batch.metas[i].out == SELF_PORT => {
                    if let Err(reason) = self.receive_own(i, now) {
                        self.batch.reasons[i] = reason;
                        unsendable |= 1 << i;
                    }
                }
                Some(mtu) if self.routed.is_some() && self.cut(i, mtu) => {}
                known => {
                    let reason = if known.is_some() { Engine::TooBig } else { Engine::NoEgress };
                    self.batch.reasons[i] = reason.into();
                    unsendable |= 1 << i;
                }
            }
        }
        self.batch.leaving &= !unsendable;
        self.batch.dead |= unsendable;
    }

    /// Puts a frame into the outbox of the device by which a port's frames leave.
    #[inline]
    fn put_out(&mut self, port: u8, mut frame: Frame) {
        let carrier = self.carriers[usize::from(port)];
        // Read again where the frame is sent.
        frame.port = port;
        let outbox = &mut self.outboxes[usize::from(carrier)];
        outbox.push(frame);
        if outbox.is_full() {
            let links = self.links.load(Ordering::Relaxed);
            self.flush_port(carrier, links);
        }
    }

    /// Tallies the dead by reason and gives their frames back in one call.
    #[inline]
    fn settle(&mut self) {
        let dead = self.batch.dead;
        if dead == 0 {
            return;
        }
        let mut frames = [const { Frame::EMPTY }; BATCH];
        let mut n = 0;
        for i in bits(dead) {
            self.bury(i);
            frames[n] = self.batch.frames[i].take();
            n += 1;
        }
        self.sheet.account(Account::Dropped, n as u64);
        self.io.free(&mut frames[..n]);
    }

    /// Sends everything that is waiting to leave.
    #[inline]
    fn flush(&mut self, links: u64) {
        self.flush_own();
        for port in 0..self.outboxes.len() {
            if self.outboxes[port].len > 0 {
                self.flush_port(port as u8, links);
            }
        }
    }

    #[inline]
    fn flush_port(&mut self, port: u8, links: u64) {
        let outbox = &mut self.outboxes[usize::from(port)];
        let len = std::mem::take(&mut outbox.len);
        let frames = &mut outbox.frames[..len];
        let ring = self.handoff.as_mut().and_then(|handoff| handoff.out[usize::from(port)].as_mut());
        let (sent, reason) = match ring {
            Some(ring) => {
                let sent = ring.push(frames);
                self.sheet.account(Account::HandedOut, sent as u64);
                (sent, Engine::HandoffFull)
            }
            None if links & (1 << port) == 0 => (0, Engine::LinkDown),
            None => {
                let crowded = self.crowded & (1 << port) != 0;
                let ports = crowded
                    .then(|| std::array::from_fn::<u8, BATCH, _>(|at| frames.get(at).map_or(port, |frame| frame.port)));
                let came = frames[0].rx_time;
                let sent = self.io.tx(port, frames);
                if sent > 0 && self.gauge.looks() {
                    self.gauge.note(came, &mut self.sheet);
                }
                self.sheet.account(Account::Sent, sent as u64);
                self.sheet.counters[self.port_counters[usize::from(port)] + port_counter::TX] += sent as u64;
                // All of them, less those that were refused: of a bond, these need not be the last.
                for vlan in ports.iter().flatten().filter(|of| **of != port) {
                    self.sheet.counters[self.port_counters[usize::from(*vlan)] + port_counter::TX] += 1;
                }
                let refused = ports.iter().flat_map(|_| &frames[sent..]).map(|frame| frame.port);
                for vlan in refused.filter(|of| *of != port) {
                    self.sheet.counters[self.port_counters[usize::from(vlan)] + port_counter::TX] -= 1;
                }
                (sent, Engine::TxFull)
            }
        };
        if sent < len {
            for vlan in frames[sent..].iter().map(|frame| frame.port).filter(|of| *of != port) {
                self.sheet.counters[self.port_counters[usize::from(vlan)] + port_counter::TX_DROPPED] += 1;
            }
            self.tap.lost(&frames[sent..], true, reason.into());
            self.io.free(&mut frames[sent..]);
            self.tally(reason.into(), len - sent);
            self.count(port, port_counter::TX_DROPPED, len - sent);
        }
    }

    fn hand_over(&mut self, to: usize) {
        let outbox = &mut self.handing[to];
        let len = std::mem::take(&mut outbox.len);
        let frames = &mut outbox.frames[..len];
        let ring = self.handoff.as_mut().and_then(|handoff| handoff.to[to].as_mut());
        let taken = ring.map_or(0, |ring| ring.push(frames));
        self.sheet.account(Account::HandedOut, taken as u64);
        if taken < len {
            self.tap.lost(&frames[taken..], false, Engine::HandoffFull.into());
            self.io.free(&mut frames[taken..]);
            self.tally(Engine::HandoffFull.into(), len - taken);
        }
    }

    #[inline]
    fn tally(&mut self, reason: Reason, n: usize) {
        self.sheet.reasons[usize::from(reason.0)] += n as u64;
        self.sheet.account(Account::Dropped, n as u64);
    }

    #[inline]
    fn count(&mut self, port: u8, counter: usize, n: usize) {
        self.sheet.counters[self.port_counters[usize::from(port)] + counter] += n as u64;
    }

    /// Upkeep, every few hundred turns: a bounded amount of work for each stage, and for whoever asked for a snapshot.
    pub fn housekeep(&mut self, now: u64, mailbox: &Mailbox) {
        self.io.beat();
        let mut cx = Cx { now, sheet: &mut self.sheet, log: &self.log };
        self.pipeline.housekeep(&mut cx);
        self.tap.set_time(now);
        self.tap.flush();
        self.expire_fragments(now);
        let mut cx = Cx { now, sheet: &mut self.sheet, log: &self.log };
        if let Some(mut ask) = mailbox.asks.pop() {
            ask.done = match &mut ask.question {
                Question::Stage { position, cursor, rows } => {
                    self.pipeline.packet_stage(*position).is_none_or(|stage| stage.snapshot(cursor, rows))
                }
                Question::Flow { facts, rows } => {
                    self.pipeline.tracker().into_iter().for_each(|tracker| tracker.copy(facts, rows));
                    true
                }
                Question::Visit(visit) => self.pipeline.visit(visit, &mut cx),
                Question::Adopt(next) => {
                    self.adopt(next);
                    true
                }
                Question::Drops { layout, cursor, rows } => self.tap.copy_drops(layout, cursor, rows),
                Question::Watch(watch) => {
                    *watch = watch.take().and_then(|watch| self.tap.watch(watch));
                    true
                }
                Question::Unwatch(number, watch) => {
                    *watch = self.tap.unwatch(*number);
                    true
                }
            };
            // Never full: there are no more answers than asks, and as much room for them.
            let _ = mailbox.answers.push(ask);
        }
    }

    /// Gives back every frame that is held or that the rings still hold, counted as dropped, when all workers have stopped
    /// turning.
    pub fn drain(&mut self) {
        self.stop_following();
        self.stop_holding();
        let mut frames = [const { Frame::EMPTY }; BATCH];
        loop {
            let n = self.unsent(&mut frames);
            if n == 0 {
                break;
            }
            self.io.free(&mut frames[..n]);
            self.sheet.account(Account::HandedIn, n as u64);
            self.tally(Engine::Stopping.into(), n);
        }
        while let Some(handoff) = &mut self.handoff {
            let rings = handoff.from.iter_mut().chain(&mut handoff.sends);
            let n = rings.map(|ring| ring.pop(&mut frames)).find(|n| *n > 0).unwrap_or(0);
            if n == 0 {
                break;
            }
            self.io.free(&mut frames[..n]);
            self.sheet.account(Account::HandedIn, n as u64);
            self.tally(Engine::Stopping.into(), n);
        }
    }
}

/// What a worker's loop shares with control: one cache line each way, plain loads and stores.
#[derive(Debug, Default)]
pub struct Signals {
    /// Set by control: finish the turn and leave.
    pub stop: AtomicBool,
}

/// How often counters are published and upkeep is done, in nanoseconds.
const UPKEEP: u64 = 5_000_000;
/// Turns between two looks at the clock for upkeep, at most.
const TURNS: u64 = 256;

/// Turns the worker until it is told to stop. `yields` lets other threads of a shared CPU run after idle turns.
pub fn run<I: Io, O: Observer>(
    worker: &mut Worker<I, O>,
    clock: &Clock,
    signals: &Signals,
    published: &Arc<Published>,
    mailbox: &Mailbox,
    yields: bool,
) {
    let mut published = published.clone();
    let mut upkeep_at = 0;
    let mut now = 0;
    let mut turns: u64 = 0;
    let mut before = cycles();
    while !signals.stop.load(Ordering::Relaxed) {
        now = clock.after(now);
        let handled = worker.turn(now);
        let after = cycles();
        let sheet = &mut worker.sheet;
        sheet.account(Account::Turns, 1);
        sheet.account(Account::Cycles, after - before);
        if handled > 0 {
            sheet.account(Account::BusyTurns, 1);
            sheet.account(Account::BusyCycles, after - before);
        } else if yields {
            std::thread::yield_now();
        }
        before = after;
        turns += 1;
        if (turns.is_multiple_of(TURNS) || handled == 0) && now >= upkeep_at {
            upkeep_at = now + UPKEEP;
            worker.housekeep(now, mailbox);
            if let Some(newly) = worker.newly_published.take() {
                published = newly;
            }
            published.publish(&worker.sheet);
        }
    }
    published.publish(&worker.sheet);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::source::Source;
    use crate::dpdk::ring::ring;
    use crate::io::memory::MemoryIo;
    use crate::stage::pipeline::compile;
    use crate::stats::Layout;
    use crate::testkit::bench::TWO_PORTS;
    use crate::testkit::packets::Packet;

    /// Reads as deep as `guard` does; without, frames pass unread.
    const READ: &str = "[pipeline]\nstages = ['guard', 'cross']\n[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n";
    const UNREAD: &str = "[pipeline]\nstages = ['cross']\n[cross]\nwire = [{ ports = ['lan', 'wan'] }]\n";

    fn worker(toml: &str, handoff: Option<Handoff>, links: u64) -> (Worker<MemoryIo>, Arc<Layout>) {
        let text = format!("{TWO_PORTS}{toml}");
        let config = Config::parse(&Source::new("worker.toml", &text)).unwrap_or_else(|list| panic!("{list:#?}"));
        let blueprint = compile(&config, 1, &[]).unwrap_or_else(|list| panic!("{list:#?}"));
        let (links, layout) = (Arc::new(AtomicU64::new(links)), blueprint.layout.clone());
        let strip = config.strips();
        let setup = Setup {
            blueprint,
            index: 0,
            burst: 32,
            mtus: vec![1500, 1500],
            strip,
            links,
            key: Key::seeded(3),
            tables: None,
            handoff,
            own: None,
        };
        (Worker::new(MemoryIo::new(2, 256, 2000), (), setup), layout)
    }

    fn drops(worker: &Worker<MemoryIo>, layout: &Layout, reason: &str) -> u64 {
        worker.sheet().reasons[usize::from(layout.reason(reason).expect("a reason").0)]
    }

    fn frame(source: u8, payload: usize) -> Vec<u8> {
        Packet::udp(&format!("10.0.0.{source}:1000"), "10.0.1.1:53").payload(&vec![7; payload]).bytes()
    }

    fn settled(worker: &mut Worker<MemoryIo>) {
        worker.sheet().check_law(0).expect("every packet is accounted for");
        for port in 0..2 {
            while worker.io().pull(port, |_| ()).is_some() {}
        }
        assert_eq!(worker.io().in_use(), 0, "every buffer came back");
    }

    #[test]
    fn a_full_port_and_a_dead_link_are_reasons() {
        for toml in [READ, UNREAD] {
            let (mut worker, layout) = worker(toml, None, u64::MAX);
            (0..50).for_each(|n| assert!(worker.io().push(0, &frame(n + 1, 20), |_| {})));
            worker.io().set_room(1, 10);
            while worker.turn(1) > 0 {}
            assert_eq!(worker.sheet().of(Account::Sent), 10);
            assert_eq!(drops(&worker, &layout, "engine.tx-full"), 40);
            settled(&mut worker);
        }
        for toml in [READ, UNREAD] {
            let (mut worker, layout) = worker(toml, None, 0b01);
            (0..50).for_each(|n| assert!(worker.io().push(0, &frame(n + 1, 20), |_| {})));
            assert!(worker.io().push(1, &frame(9, 20), |_| {}));
            while worker.turn(1) > 0 {}
            assert_eq!((drops(&worker, &layout, "engine.link-down"), worker.sheet().of(Account::Sent)), (50, 1));
            settled(&mut worker);
        }
    }

    #[test]
    fn the_mtu_counts_neither_header_nor_tags() {
        let (mut worker, layout) = worker(READ, None, u64::MAX);
        let longest = 1500 - 28;
        let tagged = |payload| Packet::udp("10.0.0.1:1000", "10.0.1.1:53").payload(&vec![7; payload]).vlan(5).bytes();
        for good in [frame(1, longest), tagged(longest)] {
            assert!(worker.io().push(0, &good, |_| {}));
        }
        for long in [frame(1, longest + 1), tagged(longest + 1)] {
            assert!(worker.io().push(0, &long, |_| {}));
        }
        worker.turn(1);
        assert_eq!((worker.sheet().of(Account::Sent), drops(&worker, &layout, "engine.too-big")), (2, 2));
        settled(&mut worker);
    }

    #[test]
    fn tags_are_taken_out_where_the_port_cannot() {
        let ports = "[[port]]\nname = 'lan'\ndevice = 'net_null0'\nvlan_strip = true\n[[port]]\nname = 'wan'\ndevice = 'net_null1'\n";
        let config = Config::parse(&Source::new("worker.toml", &format!("{ports}{UNREAD}"))).expect("good");
        let blueprint = compile(&config, 1, &[]).expect("good");
        let (mtus, links) = (vec![1500, 1500], Arc::new(AtomicU64::new(u64::MAX)));
        let setup = Setup {
            blueprint,
            index: 0,
            burst: 32,
            mtus,
            strip: 0b01,
            links,
            key: Key::seeded(3),
            tables: None,
            handoff: None,
            own: None,
        };
        let mut worker = Worker::new(MemoryIo::new(2, 256, 2000), (), setup);
        let (plain, tagged) =
            (frame(1, 20), Packet::udp("10.0.0.1:1000", "10.0.1.1:53").payload(&[7; 20]).vlan(5).bytes());
        for (port, bytes) in [(0, &tagged), (0, &plain), (1, &tagged)] {
            assert!(worker.io().push(port, bytes, |_| {}));
        }
        assert!(worker.io().push(0, &[1; 16], |_| {}), "too short for a tag");
        worker.turn(1);
        let mut sent = |port| worker.io().pull(port, |frame| frame.bytes().to_vec()).expect("sent");
        assert_eq!((sent(1), sent(1), sent(1)), (plain.clone(), plain.clone(), vec![1; 16]));
        assert_eq!(sent(0), tagged, "the other port was not asked to");
        settled(&mut worker);
    }

    #[test]
    fn what_another_worker_owns_is_handed_over_once_there_is_room() {
        let (to_other, mut at_other) = ring(32).expect("a ring");
        let (mut from_other, to_me) = ring(32).expect("a ring");
        let handoff = Handoff {
            me: 0,
            to: vec![None, Some(to_other)],
            from: vec![to_me],
            out: vec![None, None],
            sends: Vec::new(),
        };
        let (mut worker, layout) = worker(READ, Some(handoff), u64::MAX);
        (0..200).for_each(|n| assert!(worker.io().push(0, &frame(n, 20), |_| {})));
        while worker.turn(1) > 0 {}
        let sheet = worker.sheet();
        let (sent, handed) = (sheet.of(Account::Sent), sheet.of(Account::HandedOut));
        let full = drops(&worker, &layout, "engine.handoff-full");
        assert_eq!((sent + handed + full, handed), (200, 31), "the ring holds 31");
        assert!(sent > 50 && full > 0);

        // They come back, as if the other had been wrong twice: now they go no further.
        let mut frames = [const { Frame::EMPTY }; BATCH];
        let n = at_other.pop(&mut frames);
        frames[..n].iter_mut().for_each(|frame| frame.hops = 2);
        assert_eq!((n, from_other.push(&mut frames[..n])), (31, 31));
        worker.turn(2);
        assert_eq!(drops(&worker, &layout, "engine.handoff-loop"), 31);

        // What a ring still holds when everything has stopped is given back, with its reason.
        assert!(worker.io().push(0, &frame(1, 20), |_| {}));
        let mut one = [const { Frame::EMPTY }; BATCH];
        assert_eq!(worker.io().rx(0, 1, &mut one), 1);
        assert_eq!(from_other.push(&mut one[..1]), 1);
        worker.drain();
        assert_eq!(drops(&worker, &layout, "engine.stopping"), 1);
        settled(&mut worker);
    }
}
