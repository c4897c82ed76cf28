//! The real datapath over capture files: one worker on ports made of memory, its clock the captures'.
//!
//! Owns how packets come to the worker and what is kept of them; decides nothing about a packet. No EAL, no root.
//!
//! **Time.** A turn's time is that of the latest packet in it, and never runs backwards: a packet older than the one before it
//! is handled at the time reached. Upkeep happens every [`UPKEEP`] of capture time.
//!
//! **Batches.** Packets travel together as they do live: those that follow each other in the merged order, arrived on one
//! port, and are no further apart than [`SPREAD`]. The order between ports is kept, and no stage sees a time that is off by
//! more than that.
//!
//! **Neighbors**, where packets are routed, see [`neighbors`].

use std::io;
use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::config::Config;
use crate::flow::region::Placement;
use crate::io::capture::{Merge, Writer};
use crate::io::memory::MemoryIo;
use crate::packet::frame::Heap;
use crate::packet::steer::Key;
use crate::packet::{BATCH, Frame, Meta};
use crate::stage::pipeline::{Blueprint, Witness};
use crate::stats::{Account, Reason, Sheet};
use crate::verdict::{Namer, Outcome, Record, summary};
use crate::worker::{Mailbox, Observer, Setup, Worker};

mod neighbors;
pub use neighbors::Neighbors;
use neighbors::{Heard, Router};

/// How far apart the packets of a batch are at most, in nanoseconds.
pub const SPREAD: u64 = 10_000;
/// Capture time between two upkeeps, in nanoseconds.
pub const UPKEEP: u64 = 100_000_000;
/// Upkeeps made up for after a gap in the captures.
const CATCH_UP: u64 = 256;
/// The longest packet a buffer holds.
pub const LONGEST: usize = u16::MAX as usize - Heap::HEADROOM;
/// Buffers, for the batch and what stages hold back.
const BUFFERS: usize = 1024;

/// Where a buffer's packet came from.
#[derive(Clone, Copy, Debug, Default)]
struct Origin {
    /// Its number, from 1; 0 if flowgate made it itself.
    number: u64,
    time: u64,
    length: u32,
    cut: u32,
}

/// The end of a packet, as the worker told it.
struct End {
    origin: Origin,
    facts: Meta,
    outcome: Outcome,
    summary: String,
}

/// Hears of every packet's end.
struct Listener {
    /// By the token of the buffer.
    origins: Vec<Origin>,
    listens: bool,
    ends: Vec<End>,
    /// What control is to hear, if packets are routed.
    heard: Option<Vec<Heard>>,
}

impl Listener {
    fn end(&mut self, frame: &Frame, facts: &Meta, outcome: Outcome) {
        if self.listens {
            let mut origin = self.origins[frame.token() as usize];
            if origin.number == 0 {
                origin.length = frame.len() as u32;
            }
            self.ends.push(End { origin, facts: facts.clone(), outcome, summary: summary(frame, facts) });
        }
    }
}

impl Witness for Listener {}

impl Observer for Listener {
    const LISTENS: bool = true;

    fn sent(&mut self, frame: &Frame, meta: &Meta) {
        if let Some(heard) = &mut self.heard {
            heard.extend(Heard::of(frame, meta));
        }
        self.end(frame, meta, Outcome::Sent);
    }

    fn dropped(&mut self, frame: &Frame, meta: &Meta, reason: Reason) {
        self.end(frame, meta, Outcome::Dropped(reason));
        self.origins[frame.token() as usize] = Origin::default();
    }
}

/// A replay under way.
pub struct Replay {
    worker: Worker<MemoryIo, Listener>,
    blueprint: Blueprint,
    namer: Namer,
    outputs: Vec<Option<Writer>>,
    mailbox: Mailbox,
    router: Option<Router>,
    /// Time of the first packet.
    first: Option<u64>,
    clock: u64,
    upkeep_at: Option<u64>,
    packets: u64,
    too_long: u64,
    cut: u64,
}

/// Why a replay cannot go on.
#[derive(Debug)]
pub struct Unwritable {
    /// The output file.
    pub file: String,
    /// What happened.
    pub error: io::Error,
}

impl Replay {
    /// A replay of the pipeline that was compiled from a config. `outputs` are by port; `tells` says whether records are wanted.
    pub fn new(blueprint: Blueprint, config: &Config, outputs: Vec<Option<Writer>>, tells: bool) -> Replay {
        // Buffers are numbered from 1.
        let listener =
            Listener { origins: vec![Origin::default(); BUFFERS + 1], listens: tells, ends: Vec::new(), heard: None };
        let router = Router::of(&blueprint);
        let heard = router.as_ref().map(|_| Vec::new());
        let listener = Listener { heard, ..listener };
        let setup = Setup {
            blueprint: blueprint.clone(),
            index: 0,
            burst: BATCH,
            mtus: config.mtus(),
            strip: config.strips(),
            links: Arc::new(AtomicU64::new(u64::MAX)),
            key: Key::seeded(1),
            tables: blueprint.tables(Placement::default()).expect("memory for flow tables"),
            handoff: None,
            own: None,
        };
        Replay {
            worker: Worker::new(MemoryIo::new(config.devices().len(), BUFFERS, LONGEST), listener, setup),
            namer: Namer::new(&blueprint, &config.names),
            blueprint,
            outputs,
            mailbox: Mailbox::default(),
            router,
            first: None,
            clock: 0,
            upkeep_at: None,
            packets: 0,
            too_long: 0,
            cut: 0,
        }
    }

    /// Says who answers for neighbors that are not given; before the first step.
    pub fn set_neighbors(&mut self, neighbors: Neighbors) {
        self.router.iter_mut().for_each(|router| router.neighbors = neighbors);
    }

    /// Takes the next packets through the datapath: a batch of those that arrive on one port, `ports` being the port of each
    /// capture. False if there are none left.
    pub fn step(
        &mut self,
        captures: &mut Merge,
        ports: &[u8],
        mut tell: impl FnMut(&Namer, &Record<'_>),
    ) -> Result<bool, Unwritable> {
        let Some((at, packet)) = captures.peek() else {
            self.attend(true);
            // What is still held waits in vain.
            self.worker.drain();
            self.tell(&mut tell);
            self.write()?;
            return Ok(false);
        };
        let (port, latest) = (ports[at], packet.time.saturating_add(SPREAD));
        self.first = self.first.or(Some(packet.time));
        let mut now = 0;
        let most = self.router.as_ref().map_or(BATCH, Router::most);
        for _ in 0..most {
            let Some((at, packet)) = captures.peek() else { break };
            if ports[at] != port || packet.time > latest {
                break;
            }
            now = now.max(packet.time);
            self.packets += 1;
            self.cut += u64::from(packet.cut > 0);
            let mut token = 0;
            let router = self.router.as_ref();
            let prepare = |frame: &mut Frame| {
                token = frame.token() as usize;
                router.iter().for_each(|router| router.address(frame, port));
            };
            if self.worker.io().push(port, &packet.bytes, prepare) {
                self.worker.observer().origins[token] = Origin {
                    number: self.packets,
                    time: packet.time,
                    length: packet.bytes.len() as u32,
                    cut: packet.cut,
                };
            } else {
                self.too_long += 1;
            }
            captures.advance(at);
        }
        self.pass(now);
        self.worker.turn(self.clock);
        self.attend(false);
        self.tell(&mut tell);
        self.write()?;
        Ok(true)
    }

    /// Lets control hear what is for it, and what waits for neighbors go on; `last` if no packet follows.
    fn attend(&mut self, last: bool) {
        let Some(router) = &mut self.router else { return };
        let heard = self.worker.observer().heard.as_mut().map(take).unwrap_or_default();
        router.attend(self.clock, heard);
        for _ in 0..neighbors::ROUNDS {
            if self.worker.sheet().of(Account::Held) == 0 || !(last || router.is_waited_for()) {
                break;
            }
            router.settle(self.clock);
            self.worker.turn(self.clock);
        }
    }

    /// Tells of the packets that have come to their end since the last time.
    fn tell(&mut self, mut tell: impl FnMut(&Namer, &Record<'_>)) {
        // Records tell all that the packet log does.
        self.blueprint.logs.iter().for_each(|log| log.take().for_each(drop));
        let mut ends = take(&mut self.worker.observer().ends);
        // Behind the packets that were read, what flowgate made of them.
        ends.sort_by_key(|end| (end.origin.number == 0, end.origin.number));
        for End { origin, facts, outcome, summary } in ends.drain(..) {
            let time = if origin.number == 0 { self.clock } else { origin.time };
            tell(&self.namer, &self.namer.record(origin.number, time, origin.length, &facts, outcome, summary));
        }
        self.worker.observer().ends = ends;
    }

    /// Lets time pass, with the upkeep that falls into it.
    fn pass(&mut self, now: u64) {
        self.clock = self.clock.max(now);
        let upkeep_at = *self.upkeep_at.get_or_insert(self.clock.saturating_add(UPKEEP));
        let mut at = upkeep_at.max(self.clock.saturating_sub(CATCH_UP * UPKEEP));
        while at <= self.clock {
            self.upkeep(at);
            at += UPKEEP;
        }
        self.upkeep_at = Some(at);
    }

    fn upkeep(&mut self, now: u64) {
        self.worker.housekeep(now, &self.mailbox);
        self.blueprint.balance(std::slice::from_ref(self.worker.sheet()));
    }

    /// Writes what was sent to the ports' files.
    fn write(&mut self) -> Result<(), Unwritable> {
        let (io, listener) = self.worker.parts();
        for (port, output) in self.outputs.iter_mut().enumerate() {
            while let Some(written) = io.pull(port as u8, |frame| {
                let origin = take(&mut listener.origins[frame.token() as usize]);
                let time = if origin.number == 0 { self.clock } else { origin.time };
                output.as_mut().map_or(Ok(()), |output| output.write(time, frame.bytes(), origin.cut))
            }) {
                written.map_err(|error| unwritable(output, error))?;
            }
        }
        Ok(())
    }

    /// Ends the replay: last upkeep, files written out. Call it when `step` has returned false.
    pub fn finish(&mut self) -> Result<(), Unwritable> {
        self.upkeep(self.clock);
        self.write()?;
        for output in &mut self.outputs {
            if let Some(Err(error)) = output.as_mut().map(Writer::finish) {
                return Err(unwritable(output, error));
            }
        }
        Ok(())
    }

    /// The first law: every packet is accounted for, and no buffer is lost. The error says what is wrong.
    pub fn check_law(&mut self) -> Result<(), String> {
        let sheet = self.worker.sheet();
        sheet.check_law(0)?;
        let (received, held) = (sheet.of(Account::Received), sheet.of(Account::Held));
        if received + self.too_long != self.packets {
            return Err(format!("{} packets were read, {received} received", self.packets));
        }
        let in_use = self.worker.io().in_use() as u64;
        if in_use != held {
            return Err(format!("{in_use} buffers are in use, {held} packets are held"));
        }
        Ok(())
    }

    /// The counters.
    pub fn sheet(&self) -> &Sheet {
        self.worker.sheet()
    }

    /// What is replayed.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// The names behind the numbers.
    pub fn namer(&self) -> &Namer {
        &self.namer
    }

    /// The files written, by port.
    pub fn outputs(&self) -> &[Option<Writer>] {
        &self.outputs
    }

    /// Packets read.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Packets read that were longer than any frame ([`LONGEST`]) and did not enter the datapath.
    pub fn too_long(&self) -> u64 {
        self.too_long
    }

    /// Packets read that had been cut when they were captured.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// Times of the first and the latest packet, Unix nanoseconds.
    pub fn times(&self) -> (u64, u64) {
        (self.first.unwrap_or(0), self.clock)
    }
}

fn unwritable(output: &Option<Writer>, error: io::Error) -> Unwritable {
    Unwritable { file: output.as_ref().map_or(String::new(), |output| output.name().to_owned()), error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::source::Source;
    use crate::io::capture::Reader;
    use crate::stage::pipeline::compile;
    use crate::testkit::bench::TWO_PORTS;
    use crate::testkit::packets::Packet;

    #[test]
    fn what_waits_at_the_end_is_told_too() {
        let text =
            format!("{TWO_PORTS}[pipeline]\nstages = ['cross']\n[cross]\nwire = [{{ ports = ['lan', 'wan'] }}]\n");
        let config = Config::parse(&Source::new("replay.toml", &text)).expect("good");
        let mut blueprint = compile(&config, 1, &[]).expect("good");
        blueprint.follows = true;
        let parts = |id| Packet::udp("10.0.0.1:1", "10.0.0.2:2").payload(&[7; 40]).id(id).fragments(32);
        // A capture of the second fragment of a datagram, its first, and the second of another.
        let mut capture = Vec::new();
        capture.extend([0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1].map(u32::to_le_bytes).concat());
        for (at, bytes) in [&parts(1)[1], &parts(1)[0], &parts(2)[1]].into_iter().enumerate() {
            capture.extend([at as u32, 0, bytes.len() as u32, bytes.len() as u32].map(u32::to_le_bytes).concat());
            capture.extend(bytes);
        }
        let reader = Reader::new("capture".into(), Box::new(io::Cursor::new(capture))).expect("a capture");
        let mut merge = Merge::new([reader]);
        let mut replay = Replay::new(blueprint, &config, vec![None, None], true);
        let mut told = Vec::new();
        while replay
            .step(&mut merge, &[0], |_, record| told.push((record.number, record.reason.unwrap_or("sent").to_owned())))
            .expect("nothing is written")
        {}
        replay.finish().expect("nothing is written");
        replay.check_law().expect("every packet is accounted for");
        let told: Vec<_> = told.iter().map(|(number, end)| (*number, end.as_str())).collect();
        assert_eq!(told, [(1, "sent"), (2, "sent"), (3, "stopping")]);
    }
}
