//! `bpf`: packets pass or are dropped by a program: a tcpdump expression, or a function of the user's own.
//!
//! An expression is compiled by libpcap and run as machine code by rte_bpf; an object file is read by [`object`] and verified
//! by rte_bpf. The program is the one indirect call per packet in the fast path. It decides and does nothing else: it neither
//! changes packets nor remembers them.

use std::path::Path;
use std::sync::Arc;

use pcap::{Capture, Linktype};

use crate::config::source::{At, Mistake, Place};
use crate::dpdk::bpf::{Filter, Object, Runner};
use crate::packet::Batch;
use crate::stats::{Line, Lines, Reason};

use super::{Cx, Depth, PacketPlan, PacketStage, Plan, PlanCx, Stage};

mod object;

crate::lines! {
    /// Why a bpf stage drops.
    pub enum Drops {
        /// The stage's expression or program decided against the packet.
        Denied = "denied",
    }
}

crate::lines! {
    /// What a bpf stage counts.
    pub enum Counters {
        /// Packets that passed the stage.
        Passed = "passed",
        /// Packets that the expression matched, or for which the program returned non-zero.
        Matched = "matched",
    }
}

crate::section! {
    /// `[bpf]` or `[bpf.NAME]`: exactly one of the keys.
    pub struct Config {
        /// A tcpdump expression (pcap-filter(7)): only packets that match pass.
        pub allow: Option<At<String>>,
        /// A tcpdump expression: packets that match are dropped.
        pub deny: Option<At<String>>,
        /// An eBPF object file, relative to this file, whose section `flowgate` holds one function of the packet's bytes and their number: zero drops, anything else passes.
        pub object: Option<At<String>>,
    }
}

/// The stage.
pub struct Bpf;

impl Stage for Bpf {
    const NAME: &'static str = "bpf";
    const DOC: &'static str = "Passes or drops packets by a tcpdump expression, or by an eBPF program of your own. Both see \
        the whole Ethernet frame, padding included, but not a VLAN tag that the port has removed (`vlan-strip`).\n\n\
        An expression is compiled by libpcap; names of hosts in it are looked up once, when the file is read.\n\n\
        A program is compiled with `clang -O2 -target bpf -mcpu=v2 -c`. Its function is marked \
        `__attribute__((section(\"flowgate\")))`, takes the frame's bytes (`const unsigned char *`) and their number \
        (`unsigned`), and returns zero to drop the packet (mind that XDP's numbers mean something else). It has no maps, no \
        helpers and no loops, and may look at the first 16,384 bytes of a frame, as far as DPDK's verifier can see that it \
        stays within them; bytes behind the frame's end are zero. It sees a copy: what it writes is forgotten.";
    const DEPTH: Depth = Depth::Nothing;
    const REASONS: &'static [Line] = Drops::LINES;
    const COUNTERS: &'static [Line] = Counters::LINES;
    type Config = At<Config>;

    fn plan(config: &At<Config>, cx: &mut PlanCx<'_>) -> Option<Plan> {
        let denied = cx.reasons::<Drops>().at(Drops::Denied);
        let counters = cx.counters::<Counters>();
        let table = cx.instance.replace(':', ".");
        let given = [("allow", &config.allow), ("deny", &config.deny), ("object", &config.object)];
        let mut given = given.iter().filter_map(|(key, value)| Some((*key, value.as_ref()?)));
        let (Some((key, value)), None) = (given.next(), given.next()) else {
            cx.mistakes.at(&config.place, &table, "needs exactly one of allow, deny, object");
            return None;
        };
        let key_path = format!("{table}.{key}");
        let (program, wanted) = match key {
            "object" => (load(value, &key_path, cx)?, true),
            _ => (compile(value, &key_path, cx)?, key == "allow"),
        };
        let text = format!("{key} {:?}", value.value);
        Some(Plan::Packet(Arc::new(Judge { program, wanted, denied, counters, text })))
    }
}

/// Compiles an expression.
fn compile(expression: &At<String>, key: &str, cx: &mut PlanCx<'_>) -> Option<Program> {
    if expression.trim().is_empty() {
        cx.mistakes.at(&expression.place, key, "expected a tcpdump expression, found an empty string");
        return None;
    }
    let compiled = Capture::dead(Linktype::ETHERNET).and_then(|dead| dead.compile(expression, true));
    let filter = match compiled {
        Ok(classic) => Filter::new(&classic).map_err(|why| format!("DPDK cannot run the expression: {why}")),
        Err(pcap::Error::PcapError(why)) => Err(format!("libpcap: {why}")),
        Err(why) => Err(format!("libpcap: {why}")),
    };
    filter
        .map(|filter| Program::Filter(Arc::new(filter)))
        .map_err(|why| cx.mistakes.at(&expression.place, key, why))
        .ok()
}

/// Reads and verifies an object.
fn load(path: &At<String>, key: &str, cx: &mut PlanCx<'_>) -> Option<Program> {
    let file = Path::new(&*path.place.file).with_file_name(&path.value);
    let mut refuse = |place: &Place, why: &str, help: Option<&str>| {
        let message = format!("{}: {why}", file.display());
        cx.mistakes.push(Mistake {
            place: Some(place.clone()),
            key: key.to_owned(),
            message,
            help: help.map(str::to_owned),
        });
    };
    let code = match std::fs::read(&file).map_err(|error| vec![error.to_string()]).and_then(|b| object::Code::read(&b))
    {
        Ok(code) => code,
        Err(all) => {
            all.iter().for_each(|why| refuse(&path.place, why, None));
            return None;
        }
    };
    match Object::new(&code.instructions) {
        Ok(object) => Some(Program::Object { object: Arc::new(object), instructions: code.instructions.len() }),
        Err(words) => {
            let words = format!("DPDK's verifier refuses the program: {}", code.place(&words, Object::LEAD));
            let help = format!("every read must provably stay within {} bytes, and nothing may loop", Object::REACH);
            refuse(&path.place, &words, Some(&help));
            None
        }
    }
}

/// What decides.
enum Program {
    Filter(Arc<Filter>),
    Object { object: Arc<Object>, instructions: usize },
}

/// The plan.
struct Judge {
    program: Program,
    /// The program's answer for packets that pass.
    wanted: bool,
    denied: Reason,
    counters: usize,
    text: String,
}

impl PacketPlan for Judge {
    fn start(&self, _worker: usize) -> Box<dyn PacketStage> {
        let running = match &self.program {
            Program::Filter(filter) => Running::Filter(filter.clone()),
            Program::Object { object, .. } => Running::Object(Runner::new(object.clone())),
        };
        Box::new(Judging { running, wanted: self.wanted, denied: self.denied, counters: self.counters })
    }

    fn describe(&self) -> Vec<String> {
        let what = match &self.program {
            Program::Filter(filter) => {
                format!("{} classic, {} eBPF instructions, {}", filter.classic, filter.instructions, filter.form())
            }
            Program::Object { object, instructions } => {
                let writes = if object.writes() { " (may write to its copy)" } else { "" };
                let (reach, form) = (object.reach(), object.form());
                format!("{instructions} instructions, {form}, reads the first {reach} bytes{writes}")
            }
        };
        vec![format!("{}: {what}", self.text)]
    }
}

/// What decides, in one worker.
enum Running {
    Filter(Arc<Filter>),
    Object(Runner),
}

/// The plan in one worker.
struct Judging {
    running: Running,
    wanted: bool,
    denied: Reason,
    counters: usize,
}

impl PacketStage for Judging {
    fn process(&mut self, batch: &mut Batch, cx: &mut Cx<'_>) {
        let matched = match &mut self.running {
            Running::Filter(filter) => filter.matches(&batch.frames, batch.live),
            Running::Object(runner) => runner.passes(&batch.frames, batch.live),
        };
        let passed = if self.wanted { matched } else { batch.live & !matched };
        cx.sheet.counters[self.counters + Counters::Passed.index()] += u64::from(passed.count_ones());
        cx.sheet.counters[self.counters + Counters::Matched.index()] += u64::from(matched.count_ones());
        batch.drop_all(!passed, self.denied);
    }
}
