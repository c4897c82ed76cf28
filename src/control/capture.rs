//! Captures: packets of the running appliance with what became of them, for as long as somebody listens.
//!
//! Owns the question in the config's words and a capture's life: each has a thread of its own, which takes what the workers
//! have copied, writes it and hands it to the connection. A listener that does not listen costs packets, which are counted,
//! and never a worker's time. When the config changes under a capture, it goes on with the new one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use hyper::body::Frame;
use pcap::Linktype;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::flows::{Refusal, Selection, ports, reasons};
use super::pcapng::{Packet, Section, Teller};
use super::{Live, Running};
use crate::packet::BATCH;
use crate::worker::Question;
use crate::worker::tap::{Chunk, LONGEST, Shared, WATCHES, Wanted, Watch, place};

/// How long a worker may take to begin or end a capture.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often copies are looked for.
const TICK: Duration = Duration::from_millis(5);
/// How often counts go into a capture, by which it is also noticed that nobody listens any more.
const COUNT: Duration = Duration::from_secs(1);
/// How long the end of a capture may take to be read.
const FAREWELL: Duration = Duration::from_secs(5);
/// Bytes handed to the connection at a time.
const BLOCK: usize = 64 << 10;
/// Bytes that may wait for the connection; until they are gone, the workers' copies wait.
const WAITING: usize = 1 << 20;
/// Captures remembered.
const REMEMBERED: usize = 32;

/// The header of an answer that says the capture's number.
pub const NUMBER: &str = "flowgate-capture";

/// Where packets are seen.
#[derive(
    clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// As they came in, with what became of them.
    In,
    /// As they are sent.
    Out,
    /// As they are dropped.
    Dropped,
}

/// What comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A pcapng file.
    #[default]
    Pcapng,
    /// A line of text for each packet.
    Text,
    /// A line of JSON for each packet.
    Json,
}

/// What is captured: all that is given must hold.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CaptureQuery {
    /// A tcpdump expression (pcap-filter(7)).
    #[arg(skip)]
    pub expression: String,
    /// At which ports, or those of which zones.
    #[arg(long, visible_alias = "zone", value_name = "PORT|ZONE")]
    pub port: Vec<String>,
    /// Where: as they came in, with what became of them; as they are sent; as they are dropped. "in" and "out" if not given,
    /// "dropped" if a --reason is.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub direction: Vec<Direction>,
    /// Dropped for which reasons: acl.denied, or all of a stage's: acl.
    #[arg(long)]
    pub reason: Vec<String>,
    /// End after so many packets.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "S")]
    pub seconds: Option<f64>,
    /// End before the file is larger than so many bytes.
    #[arg(long, value_name = "BYTES")]
    pub size: Option<u64>,
    /// Bytes of each packet at most.
    #[arg(long, value_name = "BYTES")]
    pub snap: Option<usize>,
    /// What comes.
    #[arg(skip)]
    pub format: Format,
    /// Of which flows.
    #[command(flatten)]
    pub flows: Selection,
}

impl CaptureQuery {
    /// Compiles it for what runs, once for each worker that is asked.
    fn compile(&self, running: &Running) -> Result<Wanted, String> {
        if self.flows.state.is_some() {
            return Err("--state: a packet has no state; \"show flows --state\" knows the flows that do".into());
        }
        if let Some(worker) = self.flows.worker.filter(|worker| *worker >= running.workers.len()) {
            return Err(format!("--worker: there is no worker {worker}"));
        }
        if self.seconds.is_some_and(|seconds| !(0.0..1e9).contains(&seconds)) {
            return Err("--seconds: expected a number of seconds".into());
        }
        let mut flows = self.flows.compile(&running.names, &running.blueprint)?;
        let rules = flows.rule.take();
        let of = |direction: &Direction| match direction {
            Direction::In => place::IN,
            Direction::Out => place::OUT,
            Direction::Dropped => place::DROPPED,
        };
        let places = match (self.direction.as_slice(), self.reason.is_empty()) {
            ([], true) => place::IN | place::OUT,
            ([], false) => place::DROPPED,
            (list, _) => list.iter().map(of).fold(0, |all, one| all | one),
        };
        let compiled = || pcap::Capture::dead(Linktype::ETHERNET)?.compile(&self.expression, true);
        let program = (!self.expression.trim().is_empty()).then(compiled).transpose();
        let program = program.map_err(|error| match error {
            pcap::Error::PcapError(why) => format!("{:?}: libpcap: {why}", self.expression),
            why => format!("{:?}: libpcap: {why}", self.expression),
        })?;
        Ok(Wanted {
            places,
            ports: ports(&self.port, "--port", &running.names)?,
            rules,
            reasons: reasons(&self.reason, running)?,
            flows: (!flows.is_open()).then_some(flows),
            program,
            snap: self.snap.unwrap_or(LONGEST),
            // A worker tells of a batch's packets as they leave before it tells how they came.
            most: self.count.map_or(u64::MAX, |count| count.saturating_add(4 * BATCH as u64)),
        })
    }
}

/// What goes to a listener.
struct Blocks(Receiver<Bytes>);

impl hyper::body::Body for Blocks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        self.0.poll_recv(cx).map(|block| block.map(|block| Ok(Frame::data(block))))
    }
}

/// Captures under way, and all there ever were.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);
static EVER: AtomicU64 = AtomicU64::new(0);
/// What became of the latest.
static LATEST: Mutex<VecDeque<Status>> = Mutex::new(VecDeque::new());

/// How a capture is getting on.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    /// Tells it from others.
    pub number: u64,
    /// What is captured.
    pub what: CaptureQuery,
    /// False once it has ended.
    pub under_way: bool,
    /// Packets written.
    pub packets: u64,
    /// Packets for which there was no room.
    pub lost: u64,
    /// Bytes written.
    pub bytes: u64,
}

/// The latest captures, and how many may be under way at a time.
pub fn latest() -> serde_json::Value {
    let latest = LATEST.lock().unwrap_or_else(PoisonError::into_inner);
    serde_json::json!({ "captures": &*latest, "at_a_time": WATCHES })
}

/// The right to capture.
struct Turn;

impl Turn {
    fn take() -> Option<Turn> {
        let one_more = |under_way| (under_way < WATCHES).then_some(under_way + 1);
        UNDER_WAY.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok().then(|| Turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Begins a capture; what comes back is its number, and what the listener gets. To be called where blocking is allowed.
pub fn start(live: Live, capture: CaptureQuery) -> Result<(u64, Body), Refusal> {
    let Some(turn) = Turn::take() else {
        let message = format!("{WATCHES} captures are under way, and no more at a time; end one of them first");
        return Err(Refusal::Late(message));
    };
    let running = live.now();
    let (sender, receiver) = channel(4);
    let mut session = Session::new(&running, capture, sender, turn)?;
    session.begin(&running)?;
    session.tell(true);
    drop(running);
    let number = session.number;
    let thread = std::thread::Builder::new().name("capture".into());
    thread
        .spawn(move || session.run(&live))
        .map_err(|error| Refusal::Late(format!("cannot start a thread: {error}")))?;
    Ok((number, Body::new(Blocks(receiver))))
}

/// A capture under way.
struct Session {
    capture: CaptureQuery,
    number: u64,
    watched: Vec<(usize, Arc<Shared>)>,
    teller: Teller,
    section: Section,
    /// What is ready to go.
    ready: Vec<u8>,
    sender: Sender<Bytes>,
    size: u64,
    packets: u64,
    /// By interface: packets written, and lost in watches that are over.
    counts: Vec<(u64, u64)>,
    _turn: Turn,
}

/// Why a capture ended.
enum End {
    /// It has what it was to have.
    Done,
    /// Nobody listens.
    Alone,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

impl Session {
    fn new(running: &Running, capture: CaptureQuery, sender: Sender<Bytes>, turn: Turn) -> Result<Session, Refusal> {
        let snap = capture.snap.unwrap_or(LONGEST).min(LONGEST);
        let section = Section::new(running, snap, &capture.expression).map_err(Refusal::Question)?;
        let counts = vec![(0, 0); running.ports.len() + 1];
        let mut session = Session {
            number: EVER.fetch_add(1, Ordering::Relaxed) + 1,
            watched: Vec::new(),
            teller: Teller::new(running),
            section,
            ready: Vec::new(),
            sender,
            size: 0,
            packets: 0,
            counts,
            _turn: turn,
            capture,
        };
        let head = session.section.take();
        if session.capture.format == Format::Pcapng {
            session.size = head.len() as u64;
            session.ready = head;
        }
        Ok(session)
    }

    /// Lets the workers watch.
    fn begin(&mut self, running: &Running) -> Result<(), Refusal> {
        self.teller = Teller::new(running);
        let only = self.capture.flows.worker;
        for worker in (0..running.workers.len()).filter(|worker| only.is_none_or(|only| only == *worker)) {
            let wanted = self.capture.compile(running).map_err(Refusal::Question)?;
            let layout = running.blueprint.layout.clone();
            let (watch, shared) = Watch::new(self.number, layout, wanted, running.ports.len());
            let asked = running.ask(worker, Question::Watch(Some(Box::new(watch))), PATIENCE);
            match asked.map(|answer| matches!(answer.question, Question::Watch(None))) {
                Ok(true) => self.watched.push((worker, shared)),
                Ok(false) => {
                    self.end(running);
                    return Err(Refusal::Late("the pipeline is being replaced; ask again".into()));
                }
                Err(late) => {
                    self.end(running);
                    return Err(Refusal::Late(late));
                }
            }
        }
        Ok(())
    }

    /// Lets the workers watch no more.
    fn end(&self, running: &Running) {
        for (worker, shared) in &self.watched {
            if !shared.over.load(Ordering::Acquire) {
                // One that does not answer has worse problems; the watch goes with it.
                let _ = running.ask(*worker, Question::Unwatch(self.number, None), PATIENCE);
            }
        }
    }

    fn run(mut self, live: &Live) {
        let began = Instant::now();
        let until = self.capture.seconds.map(|seconds| began + Duration::from_secs_f64(seconds));
        let mut counted = began;
        let end = loop {
            if self.ready.len() < WAITING
                && let Err(end) = self.take()
            {
                break end;
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                break End::Done;
            }
            if self.watched.iter().any(|(_, shared)| shared.over.load(Ordering::Acquire)) && !self.go_over(live) {
                break End::Done;
            }
            if counted.elapsed() >= COUNT {
                counted = Instant::now();
                self.tell(true);
                if self.ready.len() < WAITING {
                    self.count();
                }
            }
            if self.sender.is_closed() || !self.hand_over() {
                break End::Alone;
            }
            std::thread::sleep(TICK);
        };
        self.end(&live.now());
        // What was copied before the workers ended it.
        let _ = self.take();
        self.tell(false);
        if matches!(end, End::Alone) {
            return;
        }
        self.count();
        let farewell = Instant::now();
        while !self.ready.is_empty() && farewell.elapsed() < FAREWELL && self.hand_over() {
            std::thread::sleep(TICK);
        }
    }

    /// Goes on where the workers run another pipeline; false if the capture means nothing there.
    fn go_over(&mut self, live: &Live) -> bool {
        for _ in 0..100 {
            let running = live.now();
            self.end(&running);
            for (port, count) in self.counts.iter_mut().enumerate() {
                count.1 += self.watched.iter().map(|(_, shared)| lost(shared, port)).sum::<u64>();
            }
            self.watched.clear();
            match self.begin(&running) {
                Ok(()) => return true,
                Err(Refusal::Question(_) | Refusal::Unknown(_)) => return false,
                // The workers have gone over, and control is about to.
                Err(Refusal::Late(_)) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        false
    }

    /// Writes what the workers have copied, oldest first.
    fn take(&mut self) -> Result<(), End> {
        let mut chunks: Vec<(usize, Box<Chunk>)> = Vec::new();
        for (at, (_, shared)) in self.watched.iter().enumerate() {
            chunks.extend(std::iter::from_fn(|| shared.full.pop()).map(|chunk| (at, chunk)).take(8));
        }
        let of_chunk = |(at, (_, chunk)): (usize, &(usize, Box<Chunk>))| (0..chunk.packets.len()).map(move |n| (at, n));
        let mut order: Vec<(usize, usize)> = chunks.iter().enumerate().flat_map(of_chunk).collect();
        order.sort_by_key(|(at, n)| {
            let packet = &chunks[*at].1.packets[*n];
            (packet.time, packet.id, matches!(packet.seen, crate::worker::tap::Seen::Out))
        });
        let mut ended = Ok(());
        for (at, n) in order {
            let chunk = &chunks[at].1;
            let copied = &chunk.packets[n];
            let packet = Packet {
                time: copied.time,
                id: copied.id,
                facts: &copied.facts,
                len: copied.len,
                bytes: chunk.of(copied),
                seen: copied.seen,
            };
            ended =
                write(&self.capture, &mut self.teller, &mut self.section, &packet).map_or(Err(End::Done), |bytes| {
                    let size = self.size + bytes.len() as u64;
                    let over = self.capture.count.is_some_and(|count| self.packets >= count)
                        || self.capture.size.is_some_and(|most| size > most);
                    if over {
                        return Err(End::Done);
                    }
                    self.ready.extend(bytes);
                    (self.size, self.packets) = (size, self.packets + 1);
                    let interface = usize::from(packet.seen.port(packet.facts)).min(self.counts.len() - 1);
                    self.counts[interface].0 += 1;
                    Ok(())
                });
            if ended.is_err() {
                break;
            }
        }
        for (at, mut chunk) in chunks {
            chunk.packets.clear();
            chunk.bytes.clear();
            // There is room for all of them.
            let _ = self.watched[at].1.free.push(chunk);
        }
        let enough = self.capture.count.is_some_and(|count| self.packets >= count);
        if enough { Err(End::Done) } else { ended }
    }

    /// By interface: packets written, and lost.
    fn counted(&self) -> Vec<(u64, u64)> {
        let lost = |port: usize| self.watched.iter().map(|(_, shared)| lost(shared, port)).sum::<u64>();
        self.counts.iter().enumerate().map(|(port, (written, before))| (*written, before + lost(port))).collect()
    }

    /// Says how it is getting on.
    fn tell(&self, under_way: bool) {
        let lost = self.counted().iter().map(|(_, lost)| lost).sum();
        let (number, packets, bytes) = (self.number, self.packets, self.size);
        let status = Status { number, what: self.capture.clone(), under_way, packets, lost, bytes };
        let mut latest = LATEST.lock().unwrap_or_else(PoisonError::into_inner);
        match latest.iter_mut().find(|known| known.number == number) {
            Some(known) => *known = status,
            None => latest.push_back(status),
        }
        if latest.len() > REMEMBERED {
            latest.pop_front();
        }
    }

    /// Writes what was counted so far.
    fn count(&mut self) {
        let counts = self.counted();
        match self.capture.format {
            Format::Pcapng => {
                if self.section.statistics(now(), &counts).is_ok() {
                    self.ready.extend(self.section.take());
                }
            }
            // Told by `latest`.
            Format::Text | Format::Json => {}
        }
    }

    /// Hands what is ready to the connection, as far as that takes it; false if there is none.
    fn hand_over(&mut self) -> bool {
        while !self.ready.is_empty() {
            let n = self.ready.len().min(BLOCK);
            match self.sender.try_reserve() {
                Ok(place) => place.send(self.ready.drain(..n).collect()),
                Err(TrySendError::Full(())) => return true,
                Err(TrySendError::Closed(())) => return false,
            }
        }
        true
    }
}

fn lost(shared: &Shared, port: usize) -> u64 {
    shared.lost.get(port).map_or(0, |lost| lost.load(Ordering::Relaxed))
}

/// A packet as the capture's format has it; none if it cannot be written.
fn write(capture: &CaptureQuery, teller: &mut Teller, section: &mut Section, packet: &Packet<'_>) -> Option<Vec<u8>> {
    Some(match capture.format {
        Format::Pcapng => {
            let comment = teller.comment(packet);
            section.packet(packet, comment).ok()?;
            section.take()
        }
        Format::Text => teller.line(packet).into_bytes(),
        Format::Json => format!("{}\n", teller.json(packet)).into_bytes(),
    })
}
