//! What would happen to this packet: the datapath itself, for one packet, with somebody watching.
//!
//! There is no second opinion here. The packet goes through a worker's turn on ports of memory (decode, every stage, apply,
//! the checks before sending), and what is told is what the worker told on the way. The worker starts anew for each packet:
//! no limit is used up, no program's map is filled, and no flow is known but the packet's own, if a copy of its entry is
//! given: then the worker finds it where the running one did. One exception: a `police` limit by source shares its
//! buckets with the appliance, so that in the running process a question costs its source one packet.
//!
//! Owns the watching and the telling; decides nothing.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::config::names::Names;
use crate::config::notation::{Error, Notation, protocol_name};
use crate::config::source::near_miss;
use crate::io::memory::MemoryIo;
use crate::packet::batch::Await;
use crate::packet::decode::{strip_tag, walk};
use crate::packet::frame::Heap;
use crate::packet::meta::flag;
use crate::packet::steer::{self, Key};
use crate::packet::translate::Tuple;
use crate::packet::{BATCH, Batch, Frame, Mask, Meta, NO_FLOW, NO_PORT, NO_RULE, SELF_PORT};
use crate::route::Routing;
use crate::route::adjacency::{Adjacency, GLEAN, ROUTED, State};
use crate::route::neighbor::stand_in;
use crate::route::router::Router;
use crate::route::show;
use crate::stage::Stage as _;
use crate::stage::dnat::Dnat;
use crate::stage::pipeline::{Blueprint, Witness};
use crate::stage::route::Route;
use crate::stage::snat::Snat;
use crate::stage::{Action, Depth, NO_SNAT, Row, Rule, Verdict};
use crate::stats::{Layout, Reason};
use crate::verdict::{Namer, Outcome, summary};
use crate::wire::ethernet::Ethernet;
use crate::wire::icmpv4::Icmpv4;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::Ipv6;
use crate::wire::protocol;
use crate::wire::tcp::Tcp;
use crate::worker::{Observer, Setup, Worker};

mod frame;
pub use frame::frame;

/// The longest packet that is explained.
pub const LONGEST: usize = u16::MAX as usize - Heap::HEADROOM;

/// Bytes of a buffer at least: an answer may be longer than what it answers.
const ROOM: usize = 2048;

/// What a stage decided of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A packet stage let it go on.
    Passed,
    /// A packet stage dropped it.
    Dropped(Reason),
    /// A packet stage took it, or sends it elsewhere at once.
    Taken,
    /// A flow stage chose the port it leaves by.
    Leads(u8),
    /// A flow stage allowed it.
    Allowed,
    /// A flow stage denied it.
    Denied(Reason),
    /// A flow stage had nothing to say.
    Nothing,
    /// Connection tracking knows its flow, and replays what was decided of its first packet.
    Replayed,
    /// Connection tracking knows no flow of it, or not this way: it is judged.
    Fresh,
    /// It was admitted, with an entry in the flow table from now on.
    Begins,
}

/// One stage's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The stage, by its place in the order of work.
    pub stage: usize,
    /// What it decided.
    pub decision: Decision,
    /// The rule that decided it, or `NO_RULE`.
    pub rule: u16,
    /// Of a stage that routes: for what destination, and the adjacency.
    way: Option<(IpAddr, u32)>,
    /// Of a flow stage: by what addresses and ports those behind it judge.
    judged: Option<Tuple>,
    /// Likewise, how the source is to be translated.
    snat: u16,
}

/// How the packet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Sent or dropped.
    Known(Outcome),
    /// Neither: a stage keeps it.
    Kept,
    /// It waits for the answer of a neighbor.
    Held,
}

/// A packet's way, as it was.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Every stage it came to, in the order of work.
    pub steps: Vec<Step>,
    /// How it ended.
    pub end: End,
    /// The facts of its end.
    pub facts: Meta,
    /// What its sender is told, in a few words, and the port that leaves by.
    pub answer: Option<(String, u8)>,
    /// The neighbor that is not known yet, and its port.
    awaited: Option<(IpAddr, u8)>,
    /// The facts of a packet that is not about another, as it came.
    received: Option<Meta>,
    /// In a few words.
    summary: String,
    headers: Vec<(&'static str, Map<String, Value>)>,
    time: u64,
    length: u32,
}

/// Writes down what a worker tells of its only packet.
#[derive(Default)]
struct Recorder {
    steps: Vec<Step>,
    /// True while the packet is on its way.
    live: bool,
    action: Option<Action>,
    end: Option<(Outcome, Meta)>,
    answer: Option<(String, u8)>,
    held: Option<(Meta, Await)>,
}

impl Recorder {
    fn step(&mut self, stage: usize, decision: Decision, rule: u16) {
        self.steps.push(Step { stage, decision, rule, way: None, judged: None, snat: NO_SNAT });
    }
}

impl Witness for Recorder {
    fn enters(&mut self, batch: &Batch) {
        self.live = batch.live & 1 != 0;
        self.action = Some(Action::OPEN);
    }

    fn processed(&mut self, stage: usize, batch: &Batch) {
        if !self.live {
            return;
        }
        self.live = batch.live & 1 != 0;
        let decision = match (self.live, batch.dead & 1 != 0) {
            (true, _) => Decision::Passed,
            (false, true) => Decision::Dropped(batch.reasons[0]),
            (false, false) => Decision::Taken,
        };
        let rule = if self.live { NO_RULE } else { batch.metas[0].rule };
        self.step(stage, decision, rule);
    }

    fn found(&mut self, stage: usize, batch: &Batch) {
        if !self.live {
            return;
        }
        self.live = batch.live & 1 != 0;
        let (decision, rule) = match (self.live, batch.fresh & 1 != 0) {
            (true, true) => (Decision::Fresh, NO_RULE),
            (true, false) => (Decision::Replayed, batch.metas[0].rule),
            (false, _) => (Decision::Denied(batch.reasons[0]), NO_RULE),
        };
        self.step(stage, decision, rule);
    }

    fn admitted(&mut self, stage: usize, batch: &Batch) {
        if !self.live {
            return;
        }
        self.live = batch.live & 1 != 0;
        if !self.live {
            self.step(stage, Decision::Denied(batch.reasons[0]), NO_RULE);
        } else if batch.metas[0].flow != NO_FLOW {
            self.step(stage, Decision::Begins, NO_RULE);
        }
    }

    fn judged(&mut self, stage: usize, todo: Mask, denied: Mask, facts: &[Meta; BATCH], actions: &[Action; BATCH]) {
        if todo & 1 == 0 {
            return;
        }
        let (before, after) = (self.action.unwrap_or(Action::OPEN), actions[0]);
        self.action = Some(after);
        let decision = if denied & 1 != 0 {
            self.live = false;
            Decision::Denied(after.reason)
        } else if after.out != before.out {
            Decision::Leads(after.out)
        } else if after.verdict == Verdict::Allow {
            Decision::Allowed
        } else {
            Decision::Nothing
        };
        self.step(stage, decision, after.rule);
        let step = self.steps.last_mut().expect("just pushed");
        step.way = facts[0].destination().map(|to| (to, after.adjacency));
        (step.judged, step.snat) = (Some(Tuple::of(&facts[0])), after.snat);
    }
}

impl Observer for Recorder {
    const LISTENS: bool = true;

    fn sent(&mut self, frame: &Frame, meta: &Meta) {
        let own = self.action.is_some_and(|action| action.out == SELF_PORT) && meta.out != SELF_PORT;
        // What is sent behind its end is the answer to it, in its buffer.
        match self.end {
            // The box answers it at once.
            None if own => {
                self.end = Some((Outcome::Sent, Meta { out: SELF_PORT, ..meta.clone() }));
                self.answer = Some((summary(frame, &Meta::UNKNOWN), meta.out));
            }
            None => self.end = Some((Outcome::Sent, meta.clone())),
            Some(_) => self.answer = Some((summary(frame, &Meta::UNKNOWN), meta.out)),
        }
    }

    fn dropped(&mut self, _frame: &Frame, meta: &Meta, reason: Reason) {
        self.end = Some((Outcome::Dropped(reason), meta.clone()));
    }

    fn held(&mut self, meta: &Meta, awaited: &Await) {
        self.held = Some((meta.clone(), *awaited));
    }
}

/// Explains packets to a compiled pipeline.
pub struct Explainer {
    blueprint: Blueprint,
    names: Names,
    mtus: Vec<u16>,
    strip: u64,
    namer: Namer,
    /// True if neighbors that are not known are taken to answer.
    assumes: bool,
}

impl Explainer {
    /// For the pipeline of a running appliance: what waits for a neighbor is held.
    pub fn live(config: &Config, blueprint: &Blueprint) -> Explainer {
        Explainer { assumes: false, ..Explainer::new(config, blueprint) }
    }

    /// For the pipeline that was compiled from a config, where there is no network: neighbors that are not known are taken to
    /// answer.
    pub fn new(config: &Config, blueprint: &Blueprint) -> Explainer {
        Explainer {
            namer: Namer::new(blueprint, &config.names),
            blueprint: blueprint.apart(),
            names: config.names.clone(),
            mtus: config.mtus(),
            strip: config.strips(),
            assumes: true,
        }
    }

    /// The port with the device, and the frame there, of a frame that arrives on `port`: on a VLAN, without the VLAN's tags. What
    /// is longer than [`LONGEST`] is cut.
    fn received(&self, port: u8, bytes: &[u8]) -> (u8, Vec<u8>) {
        let (port, mut bytes) = match self.names.ports.get(usize::from(port)).and_then(|port| port.carrier) {
            Some(carrier) => (carrier.parent, carrier.tagged(bytes)),
            None => (port, bytes.to_vec()),
        };
        bytes.truncate(LONGEST);
        (port, bytes)
    }

    /// Takes one frame of at most [`LONGEST`] bytes through the datapath as it arrives on `port` at time `now` (Unix
    /// nanoseconds); what is longer is cut. `flow` is the entry of its flow, as a worker copied it for [`flow_of`](Explainer::flow_of); empty if there is none.
    pub fn explain(&self, port: u8, bytes: &[u8], now: u64, flow: &[Row]) -> Explanation {
        let told = self.pass(port, bytes, now, flow, None);
        match (told.held.as_ref(), self.routing()) {
            (Some((meta, awaited)), Some(routing)) => {
                let neighbor = self.neighbor(meta, awaited);
                let way = routing.adjacencies.at(ROUTED | u32::from(awaited.out));
                let source = routing.macs.of(awaited.out).unwrap_or_default();
                let destination = stand_in::mac(neighbor.0);
                let way = Adjacency { state: State::Forward, destination, source, ..way };
                let told = if self.assumes { self.pass(port, bytes, now, flow, Some(way)) } else { told };
                Explanation { awaited: Some(neighbor), ..self.tell(port, bytes, now, told) }
            }
            _ => self.tell(port, bytes, now, told),
        }
    }

    /// Takes a frame through a worker; what would wait for its neighbor leaves as `assumed` says.
    fn pass(&self, port: u8, bytes: &[u8], now: u64, flow: &[Row], assumed: Option<Adjacency>) -> Recorder {
        let facts = self.flow_of(port, bytes);
        let (device, mut bytes) = self.received(port, bytes);
        // Nobody knows the box's MAC addresses where it is not.
        if let (true, Some(mac), Some(station)) =
            (self.assumes, self.routing().and_then(|routing| routing.macs.of(port)), bytes.first_chunk_mut::<6>())
            && station[0] & 1 == 0
        {
            *station = mac;
        }
        let bytes = &bytes[..];
        let mut blueprint = self.blueprint.clone();
        blueprint.ways.routed.iter_mut().for_each(|routed| routed.assumed = assumed);
        let setup = Setup {
            blueprint,
            index: 0,
            burst: BATCH,
            mtus: self.mtus.clone(),
            strip: self.strip,
            links: Arc::new(AtomicU64::new(u64::MAX)),
            key: Key::seeded(1),
            tables: self.blueprint.few_tables().expect("memory for a few flows"),
            handoff: None,
            own: None,
        };
        let by = (port == SELF_PORT).then(|| self.leaves(facts.as_ref()));
        let mut worker =
            Worker::new(MemoryIo::new(self.mtus.len(), 64, bytes.len().max(ROOM)), Recorder::default(), setup);
        if let (Some(facts), Some(tracker), false) = (facts, worker.pipeline_mut().tracker_mut(), flow.is_empty()) {
            tracker.adopt(&facts, flow);
        }
        match by {
            Some(by) => worker.send_for_box(by.unwrap_or(NO_PORT), bytes, now),
            None => drop(worker.io().push(device, bytes, |_| ())),
        }
        worker.turn(now);
        let told = std::mem::take(worker.observer());
        worker.drain();
        // What was sent goes back to its heap, which could not be freed otherwise.
        (0..self.mtus.len()).for_each(|port| while worker.io().pull(port as u8, |_| ()).is_some() {});
        told
    }

    fn tell(&self, port: u8, bytes: &[u8], now: u64, told: Recorder) -> Explanation {
        let received = self.flow_of(port, bytes);
        let (_, bytes) = self.received(port, bytes);
        let Recorder { steps, end, answer, held, .. } = told;
        let kept = || (End::Kept, Meta { port, ..Meta::UNKNOWN });
        let (end, facts) = match (end, held) {
            (Some((outcome, facts)), _) => (End::Known(outcome), facts),
            (None, Some((facts, awaited))) => (End::Held, Meta { out: awaited.out, ..facts }),
            (None, None) => kept(),
        };
        let mut heap = Heap::new(1, bytes.len());
        let whole = heap.frame(&bytes).expect("a heap for this frame");
        let (headers, summary) = (headers(&whole, &self.blueprint.layout), summary(&whole, &Meta::UNKNOWN));
        heap.give_back(whole);
        let length = bytes.len() as u32;
        let received = received.filter(|_| !facts.has(flag::ICMP_ERROR));
        Explanation { steps, end, facts, answer, awaited: None, received, summary, headers, time: now, length }
    }

    fn router(&self) -> Option<MutexGuard<'_, Router>> {
        Some(self.blueprint.router.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn routing(&self) -> Option<&Routing> {
        self.blueprint.ways.routed.as_ref().map(|routed| &*routed.routing)
    }

    /// The neighbor that a packet waits for, and its port.
    fn neighbor(&self, meta: &Meta, awaited: &Await) -> (IpAddr, u8) {
        let gateway = self.router().and_then(|router| router.rib().neighbor_at(awaited.adjacency & !ROUTED));
        let [a, b, c, d, ..] = awaited.neighbor;
        let itself = || if meta.has(flag::IPV4) { [a, b, c, d].into() } else { awaited.neighbor.into() };
        match gateway.filter(|_| awaited.adjacency != GLEAN) {
            Some((port, ip)) => (ip, port),
            None => (itself(), awaited.out),
        }
    }

    /// The port by whose interface the box's kernel would send a packet.
    fn leaves(&self, facts: Option<&Meta>) -> Option<u8> {
        self.router()?.rib().lookup(facts?.destination()?).active?.next.first()?.port
    }

    /// Addresses a frame that was made of words to the port it arrives on, if that is anybody's.
    pub fn address(&self, port: u8, bytes: &mut [u8]) {
        let (Some(mac), Some(facts)) =
            (self.routing().and_then(|routing| routing.macs.of(port)), self.flow_of(port, bytes))
        else {
            return;
        };
        let to = match facts.destination() {
            Some(IpAddr::V4(Ipv4Addr::BROADCAST)) => [0xff; 6],
            // RFC 1112 section 6.4, RFC 2464 section 7.
            Some(IpAddr::V4(group)) if group.is_multicast() => {
                let [_, b, c, d] = group.octets();
                [1, 0, 0x5e, b & 0x7f, c, d]
            }
            Some(IpAddr::V6(group)) if group.is_multicast() => {
                let [.., a, b, c, d] = Ipv6Addr::octets(&group);
                [0x33, 0x33, a, b, c, d]
            }
            _ => mac,
        };
        bytes[..6].copy_from_slice(&to);
    }

    /// The facts by which a frame's flow is found; `None` if it belongs to none.
    pub fn flow_of(&self, port: u8, bytes: &[u8]) -> Option<Meta> {
        let (device, bytes) = self.received(port, bytes);
        let mut heap = Heap::new(1, bytes.len());
        let mut frame = heap.frame(&bytes)?;
        if device < 64 && self.strip & 1 << device != 0 {
            strip_tag(&mut frame);
        }
        let mut meta = Meta::UNKNOWN;
        let good = walk(&frame, Depth::L4, &mut meta).is_ok();
        // An ICMP error belongs to the flow that it quotes.
        let quoted = meta.has(flag::ICMP_ERROR).then(|| {
            let quote = frame.bytes().get(meta.l4() + Icmpv4::LEN..meta.end())?;
            steer::quoted(&meta, quote).map(|quoted| quoted.facts)
        });
        heap.give_back(frame);
        let facts = match quoted {
            Some(quoted) => {
                let facts = quoted?;
                Meta { vlan: meta.vlan, flags: facts.flags | meta.flags & flag::VLAN, ..facts }
            }
            None => meta,
        };
        (good && facts.any(flag::IPV4 | flag::IPV6)).then_some(Meta { port, ..facts })
    }

    /// The port of a name; the error is for the operator.
    pub fn port(&self, name: &str) -> Result<u8, String> {
        self.names.port_or_self(name).ok_or_else(|| {
            let known: Vec<&str> = self.names.ports.iter().map(|port| port.name.as_str()).collect();
            match near_miss(name, known.iter().copied()) {
                Some(near) => format!("there is no port {name:?}; did you mean {near:?}?"),
                None => format!("there is no port {name:?}; known: {}", known.join(", ")),
            }
        })
    }

    /// Reads one packet's notation: the port it arrives on, and its frame.
    pub fn read(&self, text: &str) -> Result<(u8, Vec<u8>), Error> {
        let notation = Notation::parse(text)?;
        let port = self.port(&notation.from).map_err(|message| Error::new(notation.from_at.0, message))?;
        let addressed = |mut frame: Vec<u8>| {
            self.address(port, &mut frame);
            (port, frame)
        };
        frame(&notation).map(addressed).ok_or_else(|| {
            notation.lack().unwrap_or_else(|| Error::new(0, "expected one packet, found a range of them"))
        })
    }

    /// What it is asked with.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// Ports and zones by name.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// An explanation as JSON: `headers`, `stages` in the order of work, and `verdict`, which is a verdict record.
    pub fn json(&self, explanation: &Explanation) -> Value {
        let stages = self.blueprint.in_order();
        let steps = explanation.steps.iter().map(|step| {
            let stage = stages[step.stage];
            let label = |reason: Reason| self.blueprint.layout.reason_labels().get(usize::from(reason.0));
            let (decision, reason, out) = match step.decision {
                Decision::Passed => ("passes", None, NO_PORT),
                Decision::Dropped(reason) => ("drops", label(reason), NO_PORT),
                Decision::Taken => ("takes", None, NO_PORT),
                Decision::Leads(out) => ("leads", None, out),
                Decision::Allowed => ("allows", None, NO_PORT),
                Decision::Denied(reason) => ("denies", label(reason), NO_PORT),
                Decision::Nothing => ("nothing", None, NO_PORT),
                Decision::Replayed => ("replays", None, NO_PORT),
                Decision::Fresh => ("fresh", None, NO_PORT),
                Decision::Begins => ("begins", None, NO_PORT),
            };
            let (decision, rule) = match self.translation(step, &stage.instance, stage.kind.name, explanation) {
                Some((true, rule)) => ("translates", rule),
                Some((false, _)) => ("nothing", None),
                None => (decision, self.blueprint.rules.slot(step.rule)),
            };
            let way = step.way.filter(|_| stage.kind.name == Route::NAME);
            let way = way.and_then(|(to, adjacency)| Some(self.way(&*self.router()?, to, adjacency)));
            json!({
                "route": way,
                "stage": stage.instance,
                "decision": decision,
                "reason": reason.map(|label| &label.name),
                "meaning": reason.map(|label| &label.doc),
                "out": self.names.port_name(out),
                "rule": rule.map(|rule| &rule.name),
                "action": rule.map(|rule| &rule.action),
                "file": rule.map(|rule| &*rule.place.file),
                "line": rule.map(|rule| rule.place.line),
            })
        });
        let reached: Vec<usize> = explanation.steps.iter().map(|step| step.stage).collect();
        let missed = stages.iter().enumerate().filter(|(at, _)| !reached.contains(at)).map(|(_, s)| &s.instance);
        let headers = explanation.headers.iter().map(|(name, fields)| json!({ "header": name, "fields": fields }));
        let port = self.names.port_name(explanation.facts.port);
        let Explanation { time, length, facts, summary, .. } = explanation;
        let verdict = match explanation.end {
            End::Known(outcome) => json!(self.namer.record(1, *time, *length, facts, outcome, summary.clone())),
            End::Kept => json!({ "port": port, "verdict": "kept", "packet": summary }),
            End::Held => {
                json!({ "port": port, "verdict": "held", "out": self.names.port_name(facts.out), "packet": summary })
            }
        };
        json!({
            "packet": summary,
            "in": port,
            "zone": self.names.zone_of(facts.port),
            "headers": headers.collect::<Vec<_>>(),
            "stages": steps.collect::<Vec<_>>(),
            "not_asked": missed.collect::<Vec<_>>(),
            "translated": self.translated(explanation),
            "verdict": verdict,
            "answer": explanation.answer.as_ref().map(|(packet, out)| {
                json!({ "packet": packet, "out": self.names.port_name(*out) })
            }),
            "awaits": explanation.awaited.map(|(neighbor, port)| {
                json!({ "neighbor": neighbor, "port": self.names.port_name(port), "assumed": explanation.end != End::Held })
            }),
        })
    }

    /// Of a step of a stage that translates: whether it translates the packet, and by which rule, if by one.
    fn translation(&self, step: &Step, instance: &str, kind: &str, of: &Explanation) -> Option<(bool, Option<&Rule>)> {
        let (nat, received) = (self.blueprint.nat.as_ref()?, of.received.as_ref()?);
        let rules = &self.blueprint.rules;
        match kind {
            Dnat::NAME => {
                let changes = step.judged.is_some_and(|to| (to.dst, to.dport) != (received.dst, received.dport));
                let found = nat.steering.destinations.find(received).filter(|_| changes);
                let rule =
                    found.and_then(|found| rules.all().iter().filter(|rule| rule.stage == instance).nth(found.rule));
                Some((changes, rule))
            }
            Snat::NAME => {
                let slot = nat.outbound.as_ref().and_then(|outbound| outbound.rules.get(usize::from(step.snat)));
                Some((slot.is_some(), slot.and_then(|slot| rules.slot(*slot))))
            }
            _ => None,
        }
    }

    /// The addresses and ports that a packet leaves with, if they are not those it came with.
    fn translated(&self, of: &Explanation) -> Option<Value> {
        let (received, facts) = (of.received.as_ref()?, &of.facts);
        let sent = of.end == End::Known(Outcome::Sent) && of.answer.is_none();
        let echo = facts.has(flag::ECHO);
        (sent && Tuple::of(received) != Tuple::of(facts)).then(|| {
            let ports = facts.has(flag::PORTS) && !echo;
            json!({
                "source": facts.source(),
                "source_port": ports.then_some(facts.sport),
                "destination": facts.destination(),
                "destination_port": ports.then_some(facts.dport),
                "id": echo.then_some(facts.sport),
            })
        })
    }

    /// The route that a destination takes, and by which neighbor.
    fn way(&self, router: &Router, to: IpAddr, adjacency: u32) -> Value {
        let mut value = json!(show::lookup(router, to).active);
        let gateway = router.rib().neighbor_at(adjacency & !ROUTED).filter(|_| adjacency & ROUTED != 0);
        let written = router.routing().adjacencies.at(adjacency);
        let mac = (gateway.is_some() && written.state == State::Forward).then(|| show::mac(written.destination));
        if value.is_object() {
            value["destination"] = json!(to);
            value["neighbor"] = json!(gateway.map(|(_, ip)| ip));
            value["mac"] = json!(mac);
        }
        value
    }
}

/// The headers of a frame, outermost first, as far as they make sense.
fn headers(frame: &Frame, layout: &Layout) -> Vec<(&'static str, Map<String, Value>)> {
    let fields =
        |pairs: &[(&str, Value)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let bytes = frame.bytes();
    let mut meta = Meta::UNKNOWN;
    let walked = walk(frame, Depth::L4, &mut meta);
    let mac = |mac: [u8; 6]| json!(mac.map(|byte| format!("{byte:02x}")).join(":"));
    let mut all = Vec::new();
    if let Some(ethernet) = Ethernet::parse(bytes) {
        let (source, destination) = (mac(ethernet.source()), mac(ethernet.destination()));
        let length = json!(bytes.len());
        all.push(("ethernet", fields(&[("source", source), ("destination", destination), ("bytes", length)])));
    }
    if meta.has(flag::VLAN) {
        all.push(("vlan", fields(&[("id", json!(meta.vlan))])));
    }
    let network = bytes.get(meta.l3()..).unwrap_or_default();
    let addresses = [("source", json!(meta.source())), ("destination", json!(meta.destination()))];
    let proto = ("protocol", json!(protocol_name(meta.proto)));
    if meta.has(flag::ARP) {
        all.push(("arp", fields(&[("operation", json!(meta.detail[0])), addresses[0].clone(), addresses[1].clone()])));
    } else if let (true, Some(ip)) = (meta.has(flag::IPV4), Ipv4::parse(network)) {
        let [source, destination] = addresses;
        let mut list = vec![source, destination, proto, ("ttl", json!(ip.ttl())), ("length", json!(ip.total_len()))];
        if meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT) {
            let more = ip.fragment() & ipv4::MF != 0;
            list.extend([("offset", json!(ip.offset())), ("more", json!(more)), ("id", json!(ip.id()))]);
        }
        all.push(("ipv4", fields(&list)));
    } else if let (true, Some(ip)) = (meta.has(flag::IPV6), Ipv6::parse(network)) {
        let [source, destination] = addresses;
        let mut list =
            vec![source, destination, proto, ("hop_limit", json!(ip.hop_limit())), ("length", json!(ip.payload_len()))];
        if meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT) {
            list.push(("fragment", json!(if meta.has(flag::FIRST_FRAGMENT) { "first" } else { "later" })));
        }
        all.push(("ipv6", fields(&list)));
    } else if walked.is_ok() && meta.end > 0 {
        all.push(("other", fields(&[("ethertype", json!(format!("0x{:04x}", meta.sport)))])));
    }
    let ip = meta.any(flag::IPV4 | flag::IPV6);
    let transport = bytes.get(meta.l4()..meta.end().min(bytes.len())).unwrap_or_default();
    let ports = [("source_port", json!(meta.sport)), ("destination_port", json!(meta.dport))];
    match meta.proto {
        _ if !ip || !meta.has(flag::L4) || walked.is_err() => {}
        protocol::TCP => {
            if let Some(tcp) = Tcp::parse(transport) {
                let names = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
                let set = names.iter().enumerate().filter(|(bit, _)| tcp.flags() & 1 << bit != 0);
                let flags: Vec<&str> = set.map(|(_, name)| *name).collect();
                let [source, destination] = ports;
                let payload = transport.len().saturating_sub(tcp.header_len());
                all.push((
                    "tcp",
                    fields(&[
                        source,
                        destination,
                        ("flags", json!(flags.join(" "))),
                        ("sequence", json!(tcp.sequence())),
                        ("acknowledgment", json!(tcp.acknowledgment())),
                        ("window", json!(tcp.window())),
                        ("payload", json!(payload)),
                    ]),
                ));
            }
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let mut list = vec![("type", json!(meta.detail[0])), ("code", json!(meta.detail[1]))];
            list.extend(meta.has(flag::ECHO).then(|| ("id", json!(meta.sport))));
            all.push((if meta.proto == protocol::ICMP { "icmp" } else { "icmp6" }, fields(&list)));
        }
        number if meta.has(flag::PORTS) => {
            let name = match number {
                protocol::UDP => "udp",
                protocol::SCTP => "sctp",
                protocol::DCCP => "dccp",
                _ => "udplite",
            };
            all.push((name, fields(&ports)));
        }
        _ => {}
    }
    if let Err(reason) = walked {
        all.push(("malformed", fields(&[("reason", json!(layout.reason_name(reason)))])));
    }
    all
}

/// An explanation's JSON as people read it.
pub fn text(value: &Value) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let list = |name: &str| value[name].as_array().cloned().unwrap_or_default();
    let place = |of: &Value| match of["rule"].as_str() {
        Some(rule) => format!(" by rule {rule:?} ({}:{})", word(&of["file"]), of["line"]),
        None => String::new(),
    };
    let reason = |of: &Value| match of["reason"].as_str() {
        Some(reason) => format!(", {reason}"),
        None => String::new(),
    };
    let mut rows = vec![("packet".to_owned(), word(&value["packet"]))];
    let zone = value["zone"].as_str().map_or(String::new(), |zone| format!(", zone {zone}"));
    rows.push(("in".into(), format!("{}{zone}", word(&value["in"]))));
    for header in list("headers") {
        let fields = header["fields"].as_object().into_iter().flatten();
        let said: Vec<String> =
            fields.map(|(name, value)| format!("{} {}", name.replace('_', " "), word(value))).collect();
        rows.push((word(&header["header"]), said.join(", ")));
    }
    let headers = rows.len();
    for step in list("stages") {
        let said = match step["decision"].as_str().unwrap_or_default() {
            "passes" => "lets it pass".to_owned(),
            "leads" if step["out"] == "self" => format!("it is for the box itself{}", route_words(&step["route"])),
            "leads" if step["route"].is_object() => {
                format!("it leaves by {}{}", word(&step["out"]), route_words(&step["route"]))
            }
            "takes" => "takes it".to_owned(),
            "leads" => format!("it leaves by {}", word(&step["out"])),
            "allows" if step["rule"].is_null() => "allows it by default".to_owned(),
            "allows" => format!("allows it{}", place(&step)),
            "nothing" => "has nothing to say".to_owned(),
            "translates" => format!("translates it{}", place(&step)),
            "fresh" => "knows no flow of it: it is judged".to_owned(),
            "begins" => "it begins a flow".to_owned(),
            "replays" => format!("knows its flow, admitted{}", place(&step)),
            drops => format!("{drops} it{}{}{}", place(&step), reason(&step), route_words(&step["route"])),
        };
        let meaning = step["meaning"].as_str().map_or(String::new(), |meaning| format!(": {meaning}"));
        rows.push((word(&step["stage"]), said + &meaning));
    }
    if let Some(neighbor) = value["awaits"]["neighbor"].as_str() {
        let then = if value["awaits"]["assumed"] == true { "here it is taken to answer" } else { "it is being asked" };
        let said = format!("{neighbor} on {} is not known yet: {then}", word(&value["awaits"]["port"]));
        rows.push(("neighbor".into(), said));
    }
    for stage in list("not_asked") {
        rows.push((word(&stage), "is not asked".into()));
    }
    if value["translated"].is_object() {
        let end = |of: &str| match (word(&value["translated"][of]), &value["translated"][format!("{of}_port")]) {
            (address, Value::Null) => address,
            (address, port) if address.contains(':') => format!("[{address}]:{port}"),
            (address, port) => format!("{address}:{port}"),
        };
        let id = value["translated"]["id"].as_u64().map_or(String::new(), |id| format!(" id {id}"));
        rows.push(("leaves as".into(), format!("{} > {}{id}", end("source"), end("destination"))));
    }
    let verdict = &value["verdict"];
    let said = match verdict["verdict"].as_str().unwrap_or_default() {
        "self" => format!("for the box itself{}", place(verdict)),
        "held" => format!("held until its neighbor answers, then leaves by {}", word(&verdict["out"])),
        "sent" => format!("sent, leaves by {}{}", word(&verdict["out"]), place(verdict)),
        "dropped" => {
            let stage = word(&verdict["stage"]);
            format!("dropped, {stage}.{}{}", word(&verdict["reason"]), place(verdict))
        }
        other => other.to_owned(),
    };
    let said = match value["answer"]["packet"].as_str() {
        Some(answer) => format!("{said}; answered by {}: {answer}", word(&value["answer"]["out"])),
        None => said,
    };
    let widest = rows.iter().map(|(name, _)| name.chars().count()).chain([7]).max().unwrap_or(7);
    let mut out = String::new();
    for (at, (name, said)) in rows.iter().chain([&("verdict".to_owned(), said)]).enumerate() {
        // Writing to a string cannot fail.
        let gap = if at == headers || at == rows.len() { "\n" } else { "" };
        let _ = writeln!(out, "{gap}{name:<widest$}  {said}");
    }
    out
}

/// A route in a few words.
fn route_words(route: &Value) -> String {
    let Some(to) = route["to"].as_str() else { return String::new() };
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let by = match (route["neighbor"].as_str(), route["type"].as_str().unwrap_or_default()) {
        (Some(neighbor), _) => match route["mac"].as_str() {
            Some(mac) => format!(" to {neighbor} ({mac})"),
            None => format!(" to {neighbor}"),
        },
        (None, "unicast") => format!(" to {} on the link", word(&route["destination"])),
        (None, kind) => format!(", {kind}"),
    };
    format!(", by route {to} ({}){by}", word(&route["source"]))
}

#[cfg(test)]
mod tests;
