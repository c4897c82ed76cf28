//! The datapath on a bench: one worker over ports of memory, from a few lines of TOML; push packets, look where they end.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::config::Config;
use crate::config::names::Names;
use crate::config::source::Source;
use crate::control::flows::Selection;
use crate::flow::file::{Unfit, Writer};
use crate::flow::region::Placement;
use crate::io::memory::MemoryIo;
use crate::packet::steer::Key;
use crate::packet::{Frame, Meta};
use crate::route::router::Router;
use crate::stage::conntrack::Tables;
use crate::stage::pipeline::{self, Blueprint, compile};
use crate::stage::restore::{Restored, Saved, saved_names};
use crate::stage::track::Tracker;
use crate::stage::visit::{Task, Visit};
use crate::stats::{Account, Carry, Reason, Sheet};
use crate::worker::{Ask, Mailbox, Next, Observer, Question, Setup, Worker};

/// Where a packet ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It left by a port, with these bytes.
    Sent {
        /// The port's name.
        port: String,
        /// The frame as sent.
        bytes: Vec<u8>,
        /// The rule that let it pass, if one did.
        rule: Option<String>,
    },
    /// It was dropped.
    Dropped {
        /// `stage.reason`.
        reason: String,
        /// The rule that denied it, if one did.
        rule: Option<String>,
    },
}

impl End {
    /// The drop reason, or `sent`.
    pub fn reason(&self) -> &str {
        match self {
            End::Sent { .. } => "sent",
            End::Dropped { reason, .. } => reason,
        }
    }

    /// The rule that decided, or nothing.
    pub fn rule(&self) -> &str {
        match self {
            End::Sent { rule, .. } | End::Dropped { rule, .. } => rule.as_deref().unwrap_or_default(),
        }
    }

    /// The bytes that were sent.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            End::Sent { bytes, .. } => Some(bytes),
            End::Dropped { .. } => None,
        }
    }
}

/// Remembers the end of every packet, in the order they came to it.
#[derive(Default)]
struct Witness {
    ends: VecDeque<(Option<Vec<u8>>, Meta, Reason)>,
}

impl pipeline::Witness for Witness {}

impl Observer for Witness {
    const LISTENS: bool = true;
    fn sent(&mut self, frame: &Frame, meta: &Meta) {
        self.ends.push_back((Some(frame.bytes().to_vec()), meta.clone(), Reason::NONE));
    }
    fn dropped(&mut self, _frame: &Frame, meta: &Meta, reason: Reason) {
        self.ends.push_back((None, meta.clone(), reason));
    }
}

/// Two ports, which a bench has unless its TOML declares ports of its own: `lan` in zone `inside`, `wan` in zone `outside`.
pub const TWO_PORTS: &str = "\
[[port]]\nname = 'lan'\ndevice = 'net_null0'\nzone = 'inside'\n\
[[port]]\nname = 'wan'\ndevice = 'net_null1'\nzone = 'outside'\n";

/// One worker on the bench.
pub struct Bench {
    worker: Worker<MemoryIo, Witness>,
    blueprint: Blueprint,
    names: Names,
    ports: Vec<String>,
    /// Packets flowgate has made itself so far.
    created: u64,
    /// Packets that are held.
    held: usize,
    /// The time of the next turn, Unix nanoseconds.
    pub now: u64,
}

impl Bench {
    /// A bench for a whole config, or for one without ports (then it gets [`TWO_PORTS`]). Panics with all mistakes.
    pub fn new(toml: &str) -> Bench {
        Bench::start(toml, |_, _, _| ())
    }

    /// As [`Bench::new`], with a file of flows to go on with at `now`.
    pub fn resume(toml: &str, file: &Path, now: u64) -> Result<(Bench, Restored), Unfit> {
        let mut restored = Ok(Restored::default());
        let mut bench = Bench::start(toml, |blueprint, names, tables| {
            let load = |saved: Saved<'_>| saved.load(tables.as_mut_slice(), Key::seeded(1), now);
            restored = Saved::check(file, blueprint, names).and_then(load);
        });
        bench.now = now;
        restored.map(|restored| (bench, restored))
    }

    /// Goes over to another config, as a running appliance does. Panics with all mistakes.
    pub fn go_over(&mut self, toml: &str) {
        let text = if toml.contains("[[port]]") { toml.to_owned() } else { format!("{TWO_PORTS}{toml}") };
        let mistakes = |list: Vec<crate::config::source::Mistake>| -> String {
            list.iter().map(|mistake| format!("{mistake}\n")).collect()
        };
        let config =
            Config::parse(&Source::new("bench.toml", &text)).unwrap_or_else(|list| panic!("{}", mistakes(list)));
        let blueprint = pipeline::compile_after(Some(&self.blueprint), &config, 1, &[]);
        let blueprint = blueprint.unwrap_or_else(|list| panic!("{}", mistakes(list)));
        let carry = Arc::new(Carry::new(&self.blueprint.layout, &blueprint.layout));
        let published = Arc::new(blueprint.layout.published());
        let next = Next::new(&blueprint, 0, Key::seeded(1), carry, published).expect("memory");
        let mailbox = Mailbox::default();
        let ask = Ask { number: 1, question: Question::Adopt(Box::new(next)), done: false };
        mailbox.asks.push(Box::new(ask)).expect("room");
        self.worker.housekeep(self.now, &mailbox);
        assert!(mailbox.answers.pop().is_some_and(|answer| answer.done));
        (self.blueprint, self.names) = (blueprint, config.names);
    }

    fn start(toml: &str, prepare: impl FnOnce(&Blueprint, &Names, &mut Option<Tables>)) -> Bench {
        let text = if toml.contains("[[port]]") { toml.to_owned() } else { format!("{TWO_PORTS}{toml}") };
        let mistakes = |list: Vec<crate::config::source::Mistake>| -> String {
            list.iter().map(|mistake| format!("{mistake}\n")).collect()
        };
        let config =
            Config::parse(&Source::new("bench.toml", &text)).unwrap_or_else(|list| panic!("{}", mistakes(list)));
        let blueprint = compile(&config, 1, &[]).unwrap_or_else(|list| panic!("{}", mistakes(list)));
        let ports: Vec<String> = config.names.ports.iter().map(|port| port.name.clone()).collect();
        let mtus = config.mtus();
        let mut tables = blueprint.tables(Placement::default()).expect("memory for flow tables");
        prepare(&blueprint, &config.names, &mut tables);
        let setup = Setup {
            blueprint: blueprint.clone(),
            index: 0,
            burst: 64,
            mtus,
            strip: config.strips(),
            links: Arc::new(AtomicU64::new(u64::MAX)),
            key: Key::seeded(1),
            tables,
            handoff: None,
            own: None,
        };
        let worker = Worker::new(MemoryIo::new(ports.len(), 4096, 9700), Witness::default(), setup);
        Bench { worker, blueprint, names: config.names, ports, created: 0, held: 0, now: 1_700_000_000_000_000_000 }
    }

    /// Puts one frame into a port, a VLAN's without its tags, and says where it ended. Time moves on by a microsecond.
    pub fn push(&mut self, port: &str, bytes: &[u8]) -> End {
        let mut ends = self.push_all(port, &[bytes]);
        ends.remove(0)
    }

    /// Puts frames into a port, all at once, and says where each ended: those that were sent, in order, and those that were
    /// dropped, in order, with replies of flowgate's own among those that were sent. Checks the first law.
    pub fn push_all<B: AsRef<[u8]>>(&mut self, port: &str, frames: &[B]) -> Vec<End> {
        self.push_with(port, frames, |_| {})
    }

    /// As [`Bench::push_all`], after `prepare` has marked each frame as the port would have.
    pub fn push_with<B: AsRef<[u8]>>(&mut self, port: &str, frames: &[B], prepare: impl Fn(&mut Frame)) -> Vec<End> {
        let index = self.port(port);
        let carrier = self.names.ports[usize::from(index)].carrier;
        for frame in frames {
            let tagged = carrier.map(|carrier| carrier.tagged(frame.as_ref()));
            let (device, bytes) = (carrier.map_or(index, |carrier| carrier.parent), tagged.as_deref());
            let bytes = bytes.unwrap_or(frame.as_ref());
            assert!(self.worker.io().push(device, bytes, &prepare), "the bench takes 4096 frames of 9700 bytes");
        }
        loop {
            self.worker.turn(self.now);
            self.now += 1_000;
            if self.worker.io().waiting() == 0 {
                break;
            }
        }
        for port in 0..self.ports.len() {
            while self.worker.io().pull(port as u8, |_| ()).is_some() {}
        }
        self.worker.sheet().check_law(0).expect("every packet is accounted for");
        let held = self.worker.sheet().of(Account::Held) as usize;
        assert_eq!(self.worker.io().in_use(), held, "every buffer came back, but for those of held packets");
        let ends: Vec<_> = self.worker.observer().ends.drain(..).collect();
        let created = self.worker.sheet().of(Account::Created);
        let made = (created - std::mem::replace(&mut self.created, created)) as usize;
        let before = std::mem::replace(&mut self.held, held);
        assert_eq!(ends.len() + held, frames.len() + made + before, "every packet ended somewhere or is held");
        ends.into_iter().map(|(bytes, meta, reason)| self.end(bytes, &meta, reason)).collect()
    }

    /// Lets the box itself send a frame by a port, and says where it ended.
    pub fn send(&mut self, by: &str, bytes: &[u8]) -> End {
        let by = self.port(by);
        self.worker.send_for_box(by, bytes, self.now);
        self.now += 1_000;
        for port in 0..self.ports.len() {
            while self.worker.io().pull(port as u8, |_| ()).is_some() {}
        }
        let (bytes, meta, reason) = self.worker.observer().ends.pop_front().expect("the frame ended");
        self.created = self.worker.sheet().of(Account::Created);
        self.end(bytes, &meta, reason)
    }

    /// Lets control's side of routing do something, and then what is due; the frames it sends are the result. The next packets
    /// find what it has changed.
    pub fn route(&mut self, work: impl FnOnce(&mut Router, u64)) -> Vec<(u8, Vec<u8>)> {
        let router = self.blueprint.router.clone().expect("a pipeline that routes");
        let mut router = router.lock().expect("nobody panicked with it");
        work(&mut router, self.now);
        for _ in 0..2 {
            self.now += 10_000_000;
            router.serve(self.now);
        }
        std::mem::take(&mut router.sends)
    }

    /// Lets time pass; with upkeep at its end, several rounds of it.
    pub fn pass(&mut self, time: Duration, upkeep: bool) {
        self.now += time.as_nanos() as u64;
        for _ in 0..if upkeep { 16 } else { 0 } {
            self.worker.housekeep(self.now, &Mailbox::default());
        }
    }

    /// Lets a visit see all flows that are meant, one upkeep after the other; `part` is called after each.
    pub fn visit(&mut self, selection: &Selection, task: Task, mut part: impl FnMut(&mut Visit)) -> Result<(), String> {
        let filter = Arc::new(selection.compile(&self.names, &self.blueprint)?);
        let mailbox = Mailbox::default();
        let mut question = Question::Visit(Visit::new(filter, task));
        loop {
            let ask = Ask { number: 1, question, done: false };
            assert!(mailbox.asks.push(Box::new(ask)).is_ok(), "there is room for one");
            self.worker.housekeep(self.now, &mailbox);
            let answer = mailbox.answers.pop().expect("every upkeep answers one");
            let Question::Visit(mut visit) = answer.question else { panic!("another question came back") };
            part(&mut visit);
            if answer.done {
                return Ok(());
            }
            question = Question::Visit(visit);
        }
    }

    /// Saves all flows to a file.
    pub fn save(&mut self, file: &Path) {
        let names = saved_names("bench.toml", &self.names, &self.blueprint, Key::seeded(1));
        let mut writer = Writer::new(File::create(file).expect("a writable folder"), &names, self.now).expect("room");
        let everything = self.visit(&Selection::default(), Task::copy(), |visit| {
            let Task::Copy { v4, v6 } = &mut visit.task else { panic!("another task came back") };
            writer.add(v4).and_then(|()| writer.add(v6)).expect("room");
            v4.clear();
            v6.clear();
        });
        everything.expect("no filter");
        writer.finish().expect("room");
    }

    fn end(&self, bytes: Option<Vec<u8>>, meta: &Meta, reason: Reason) -> End {
        let rule = self.blueprint.rules.slot(meta.rule).map(|rule| rule.name.clone());
        match bytes {
            Some(bytes) => {
                let port = self.ports.get(usize::from(meta.out)).map_or("self", String::as_str).to_owned();
                End::Sent { port, bytes, rule }
            }
            None => End::Dropped { reason: self.blueprint.layout.reason_name(reason), rule },
        }
    }

    fn port(&self, name: &str) -> u8 {
        self.ports.iter().position(|port| port == name).expect("a port of the bench") as u8
    }

    /// The worker's counters.
    pub fn sheet(&self) -> &Sheet {
        self.worker.sheet()
    }

    /// The flow tables, if connections are tracked.
    pub fn tables(&self) -> Option<&Tables> {
        self.worker.pipeline().tracker().map(Tracker::tables)
    }

    /// The flows it knows, if connections are tracked.
    pub fn tracker(&self) -> Option<&Tracker> {
        self.worker.pipeline().tracker()
    }

    /// The compiled pipeline.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// A counter by scope and name (`"acl/rule"`, `"web"`: the first of that name).
    pub fn counter(&self, scope: &str, name: &str) -> u64 {
        let labels = self.blueprint.layout.counter_labels();
        let at = labels.iter().position(|label| label.scope == scope && label.name == name).expect("a counter");
        self.sheet().counters[at]
    }

    /// What a packet stage shows (`show talkers`).
    pub fn show(&self, instance: &str) -> Option<serde_json::Value> {
        let position = self.blueprint.stages.iter().position(|stage| stage.instance == instance).expect("a stage");
        let mut rows = Vec::with_capacity(1 << 16);
        let mut cursor = 0;
        while !self.worker.pipeline().packet_stage(position)?.snapshot(&mut cursor, &mut rows) {}
        match &self.blueprint.stages[position].plan {
            crate::stage::Plan::Packet(plan) => plan.show(&rows),
            crate::stage::Plan::Flow(_) | crate::stage::Plan::Conntrack(_) => None,
        }
    }
}
