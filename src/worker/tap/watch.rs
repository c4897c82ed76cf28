//! A capture's part in a worker: which packets are meant, and their copies on the way to control.
//!
//! Control gives a watch all the memory it will ever use: chunks, which go to control when they are full (or a few
//! milliseconds old) and come back when they are read. Where none is left, packets are not copied, and counted as lost.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use pcap::BpfProgram;

use crate::flow::filter::{Filter, Ranges};
use crate::packet::{BATCH, Batch, Frame, Mask, Meta, NO_PORT, bits};
use crate::stage::track::Tracker;
use crate::stats::{Layout, Reason};

/// Chunks of a watch.
const CHUNKS: usize = 32;
/// Packets a chunk holds at most.
const PACKETS: usize = 1024;
/// Bytes of packets it holds at most.
const BYTES: usize = 128 << 10;
/// The longest copy of a packet.
pub const LONGEST: usize = u16::MAX as usize;

/// Where packets are looked at: bits of [`Wanted::places`].
pub mod place {
    /// As they came in.
    pub const IN: u8 = 1;
    /// As they are sent.
    pub const OUT: u8 = 2;
    /// As they are dropped.
    pub const DROPPED: u8 = 4;
}

/// Where a copied packet was, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It came in, and was sent, by `Meta::out`.
    Sent,
    /// It came in, and was dropped.
    Refused(Reason),
    /// It came in, and waits: for a neighbor, or the rest of its datagram.
    Held,
    /// It leaves by `Meta::out`.
    Out,
    /// It is dropped.
    Dropped(Reason),
}

impl Seen {
    fn reason(self) -> Option<Reason> {
        match self {
            Seen::Refused(reason) | Seen::Dropped(reason) => Some(reason),
            Seen::Sent | Seen::Held | Seen::Out => None,
        }
    }

    /// The port at which a packet with these facts was seen; `NO_PORT` if that is not known.
    pub fn port(self, facts: &Meta) -> u8 {
        match self {
            Seen::Out => facts.out,
            Seen::Dropped(_) if facts.port == NO_PORT => facts.out,
            _ => facts.port,
        }
    }
}

/// Which packets are meant: all that is given must hold.
pub struct Wanted {
    /// Where ([`place`]).
    pub places: u8,
    /// At which ports.
    pub ports: Option<Ranges<u8>>,
    /// Decided by which rules.
    pub rules: Option<Ranges<u16>>,
    /// Dropped for which reasons.
    pub reasons: Option<Ranges<u16>>,
    /// Of which flows.
    pub flows: Option<Filter>,
    /// What their bytes are.
    pub program: Option<BpfProgram>,
    /// Bytes that are copied of each.
    pub snap: usize,
    /// How many each worker copies at most.
    pub most: u64,
}

impl Wanted {
    fn sees(&self, port: u8, bytes: &[u8]) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(port))
            && self.program.as_ref().is_none_or(|program| program.filter(bytes))
    }

    fn decides(&self, facts: &Meta, seen: Seen, tracker: Option<&Tracker>) -> bool {
        self.reasons.as_ref().is_none_or(|list| seen.reason().is_some_and(|reason| list.contains(reason.0)))
            && self.rules.as_ref().is_none_or(|slots| slots.contains(facts.rule))
            && self.flows.as_ref().is_none_or(|filter| match tracker {
                Some(tracker) => tracker.meets(facts, filter),
                None => filter.matches_packet(facts),
            })
    }
}

/// A copied packet; its bytes are in its chunk.
#[derive(Clone, Debug)]
pub struct Copied {
    /// When: Unix nanoseconds.
    pub time: u64,
    /// The same for a packet that came in, what it became, and the answer to it; 0 if that is not known.
    pub id: u64,
    /// What was known of it.
    pub facts: Meta,
    /// Bytes of its frame.
    pub len: usize,
    /// Where its bytes lie in the chunk.
    pub at: usize,
    /// How many of them were copied.
    pub kept: usize,
    /// Where it was, and what became of it.
    pub seen: Seen,
}

/// Copies of packets.
pub struct Chunk {
    /// The packets.
    pub packets: Vec<Copied>,
    /// Their bytes.
    pub bytes: Vec<u8>,
}

impl Chunk {
    /// The bytes of a packet of this chunk.
    pub fn of(&self, packet: &Copied) -> &[u8] {
        &self.bytes[packet.at..][..packet.kept]
    }
}

/// What a watch and control have in common.
pub struct Shared {
    /// To control.
    pub full: ArrayQueue<Box<Chunk>>,
    /// Back.
    pub free: ArrayQueue<Box<Chunk>>,
    /// By port, the last for the box itself and where the port is not known: packets there was no room for. Written by the worker.
    pub lost: Vec<AtomicU64>,
    /// The worker has given up the watch: its pipeline was replaced.
    pub over: AtomicBool,
}

/// The watch.
pub struct Watch {
    /// Tells it from others.
    pub number: u64,
    /// Of the pipeline whose rules and reasons are meant.
    pub layout: Arc<Layout>,
    wanted: Wanted,
    shared: Arc<Shared>,
    chunk: Option<Box<Chunk>>,
    /// Packets of the batch that may be meant, copied before anything happens to them.
    staged: Mask,
    arrived: Vec<(Meta, usize, usize)>,
    bytes: Vec<u8>,
    left: u64,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watch({})", self.number)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
    }
}

impl Watch {
    /// A watch with all its memory, and control's end of it. `ports` is the number of ports.
    pub fn new(number: u64, layout: Arc<Layout>, wanted: Wanted, ports: usize) -> (Watch, Arc<Shared>) {
        let snap = wanted.snap.min(LONGEST);
        let (full, free) = (ArrayQueue::new(CHUNKS), ArrayQueue::new(CHUNKS));
        for _ in 0..CHUNKS {
            let chunk = Chunk { packets: Vec::with_capacity(PACKETS), bytes: Vec::with_capacity(BYTES) };
            // There is room for all of them.
            let _ = free.push(Box::new(chunk));
        }
        let lost = (0..=ports).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared { full, free, lost, over: AtomicBool::new(false) });
        let watch = Watch {
            number,
            layout,
            left: wanted.most,
            wanted: Wanted { snap, ..wanted },
            shared: shared.clone(),
            chunk: None,
            staged: 0,
            arrived: vec![(Meta::UNKNOWN, 0, 0); BATCH],
            bytes: Vec::with_capacity(BATCH * snap),
        };
        (watch, shared)
    }

    /// Copies what may be meant of a batch that has just been decoded.
    pub fn stage(&mut self, batch: &Batch) {
        self.staged = 0;
        self.bytes.clear();
        if self.wanted.places & place::IN == 0 {
            return;
        }
        for i in bits(batch.live | batch.dead) {
            let (frame, meta) = (&batch.frames[i], &batch.metas[i]);
            // What was not decoded does not know its port yet.
            let meta = Meta { port: frame.port, ..meta.clone() };
            if self.wanted.sees(meta.port, frame.bytes()) {
                let kept = &frame.bytes()[..frame.len().min(self.wanted.snap)];
                self.arrived[i] = (meta, self.bytes.len(), frame.len());
                self.bytes.extend_from_slice(kept);
                self.staged |= 1 << i;
            }
        }
    }

    /// Forgets packets that another worker will see.
    pub fn forget(&mut self, mask: Mask) {
        self.staged &= !mask;
    }

    /// Takes what was meant of the batch that came in, now that it is known what became of it.
    pub fn conclude(&mut self, batch: &Batch, died: Mask, now: u64, id: u64, tracker: Option<&Tracker>) {
        for i in bits(std::mem::take(&mut self.staged)) {
            let (end, bit) = (&batch.metas[i], 1 << i);
            let seen = if (died | batch.dead) & bit != 0 {
                Seen::Refused(batch.reasons[i])
            } else if batch.leaving & bit != 0 {
                Seen::Sent
            } else {
                Seen::Held
            };
            let (facts, at, len) = &self.arrived[i];
            let (at, len) = (*at, *len);
            let facts = Meta { rule: end.rule, flow: end.flow, out: end.out, ..facts.clone() };
            if self.wanted.decides(&facts, seen, tracker) {
                let kept = len.min(self.wanted.snap);
                let copied = Copied { time: now, id: id + i as u64, facts, len, at: 0, kept, seen };
                keep(&mut self.chunk, &self.shared, &mut self.left, copied, &self.bytes[at..][..kept]);
            }
        }
    }

    /// Takes a packet that leaves or is dropped, if it is meant.
    pub fn see(&mut self, frame: &Frame, facts: &Meta, seen: Seen, now: u64, id: u64, tracker: Option<&Tracker>) {
        let place = if seen == Seen::Out { place::OUT } else { place::DROPPED };
        if self.wanted.places & place == 0
            || !self.wanted.decides(facts, seen, tracker)
            || !self.wanted.sees(seen.port(facts), frame.bytes())
        {
            return;
        }
        let kept = frame.len().min(self.wanted.snap);
        let copied = Copied { time: now, id, facts: facts.clone(), len: frame.len(), at: 0, kept, seen };
        keep(&mut self.chunk, &self.shared, &mut self.left, copied, &frame.bytes()[..kept]);
    }

    /// Gives control what there is.
    pub fn flush(&mut self) {
        if self.chunk.as_ref().is_some_and(|chunk| !chunk.packets.is_empty()) {
            send(&mut self.chunk, &self.shared);
        }
    }
}

fn send(chunk: &mut Option<Box<Chunk>>, shared: &Shared) {
    if let Some(full) = chunk.take() {
        // Never full: it holds as many as there are.
        let _ = shared.full.push(full);
    }
}

/// Puts a packet into the chunk, or the next one, or counts it as lost.
fn keep(chunk: &mut Option<Box<Chunk>>, shared: &Shared, left: &mut u64, packet: Copied, bytes: &[u8]) {
    if *left == 0 {
        return;
    }
    let fits = |chunk: &Chunk| chunk.packets.len() < PACKETS && chunk.bytes.len() + bytes.len() <= BYTES;
    if chunk.as_deref().is_some_and(|chunk| !fits(chunk)) {
        send(chunk, shared);
    }
    if chunk.is_none() {
        *chunk = shared.free.pop();
    }
    let Some(chunk) = chunk else {
        let port = usize::from(packet.seen.port(&packet.facts)).min(shared.lost.len() - 1);
        shared.lost[port].store(shared.lost[port].load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        return;
    };
    *left -= 1;
    chunk.packets.push(Copied { at: chunk.bytes.len(), ..packet });
    chunk.bytes.extend_from_slice(bytes);
}
