//! `bpf`: packets pass or are dropped by a program: a tcpdump expression, or a function of the user's own.
//!
//! An expression is compiled by libpcap and run as machine code by rte_bpf; an object file is read by [`object`] and verified
//! by rte_bpf. The program is the one indirect call per packet in the fast path. It decides and does nothing else: it neither
//! changes packets nor remembers them.

use std::path::Path;
use std::sync::Arc;

use pcap::{Capture, Linktype};

use crate::config::source::{At, Mistake, Place};
use crate::dpdk::Eal;
use crate::dpdk::bpf::{Filter, Object, Runner};
use crate::packet::Batch;
use crate::stats::{Line, Lines, Reason};

use super::{Cx, Depth, EAL_MEMORY, PacketPlan, PacketStage, Plan, PlanCx, Stage};

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
        Ok(classic) => Eal::offline(EAL_MEMORY)
            .map_err(|error| error.to_string())
            .and_then(|eal| Filter::new(eal, &classic))
            .map_err(|why| format!("DPDK cannot run the expression: {why}")),
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
    let (linked, origin) = code.linked();
    match Object::new(&linked) {
        Ok(object) => Some(Program::Object { object: Arc::new(object), instructions: code.len() }),
        Err(words) => {
            let words = format!("DPDK's verifier refuses the program: {}", code.place(&words, Object::LEAD, &origin));
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
                format!("{instructions} eBPF instructions, {form}, reads the first {reach} bytes{writes}")
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use toml::de::DeTable;

    use super::*;
    use crate::config::names::Names;

    use crate::config::reader::{FromToml, Reader, Table};
    use crate::config::source::{Mistakes, Source};
    use crate::log::Log;
    use crate::nat::Draft;
    use crate::packet::BATCH;
    use crate::packet::frame::Heap;
    use crate::stage::Rules;
    use crate::stage::apply::Adjacencies;
    use crate::stats::Layout;

    /// A plan with the layout it counts in, or the mistakes.
    type Planned = Result<(Arc<dyn PacketPlan>, Layout), Vec<String>>;

    /// Plans `[bpf.t]` as a file in `folder` has it.
    fn plan(folder: &Path, text: &str) -> Planned {
        let source = Source::new(&folder.join("t.toml").display().to_string(), text);
        let (mut mistakes, mut layout) = (Mistakes::default(), Layout::new());
        let table = Table::root(DeTable::parse(text).expect("syntax")).take("bpf").expect("a bpf table");
        let config = At::<Config>::from_toml(table, &mut Reader { source: &source, mistakes: &mut mistakes });
        let plan = config.and_then(|config| {
            let mut cx = PlanCx {
                instance: "bpf:t".into(),
                names: &Names::default(),
                layout: &mut layout,
                rules: &mut Rules::default(),
                adjacencies: &mut Adjacencies::default(),
                mistakes: &mut mistakes,
                workers: 1,
                conntrack: false,
                flows: (64, 64),
                routing: None,
                routed: &mut None,
                statics: &mut Vec::new(),
                nat: &mut Draft::default(),
            };
            Bpf::plan(&config, &mut cx)
        });
        let prefix = format!("{}/", folder.display());
        let mistakes: Vec<String> =
            mistakes.into_sorted().iter().map(|mistake| mistake.to_string().replace(&prefix, "")).collect();
        match plan {
            Some(Plan::Packet(plan)) if mistakes.is_empty() => Ok((plan, layout)),
            Some(_) => panic!("no packet stage, or one in spite of {mistakes:?}"),
            None => Err(mistakes),
        }
    }

    /// Which packets pass, having checked reasons, counters and that no packet has changed.
    fn passing((plan, layout): &(Arc<dyn PacketPlan>, Layout), packets: &[Vec<u8>], deny: bool) -> Vec<bool> {
        let (mut heap, mut batch, mut sheet) = (Heap::new(BATCH, 2000), Batch::default(), layout.sheet());
        for (slot, packet) in batch.frames.iter_mut().zip(packets) {
            *slot = heap.frame(packet).expect("room");
        }
        batch.begin(packets.len());
        plan.start(0).process(&mut batch, &mut Cx { now: 0, sheet: &mut sheet, log: &Log::NONE });
        let denied = layout.reason("bpf:t.denied").expect("declared");
        let verdicts: Vec<bool> = (0..packets.len()).map(|i| batch.live & 1 << i != 0).collect();
        for (i, packet) in packets.iter().enumerate() {
            assert_eq!(batch.frames[i].bytes(), packet);
            assert!(verdicts[i] || batch.dead & 1 << i != 0 && batch.reasons[i] == denied);
            heap.give_back(batch.frames[i].take());
        }
        let passed = verdicts.iter().filter(|passed| **passed).count();
        let matched = if deny { packets.len() - passed } else { passed };
        let counter =
            |name| layout.counter_labels().iter().position(|l| l.scope == "bpf:t" && l.name == name).expect(name);
        assert_eq!(sheet.counters[counter("passed")], passed as u64);
        assert_eq!(sheet.counters[counter("matched")], matched as u64);
        verdicts
    }

    /// An Ethernet frame of 60 bytes with IPv4, `options` words of options, and the first bytes of TCP or UDP.
    fn frame(proto: u8, port: u16, options: u8) -> Vec<u8> {
        let mut bytes = vec![2; 12];
        bytes.extend([0x08, 0x00, 0x45 + options, 0, 0, 46, 0, 0, 0, 0, 64, proto, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend(vec![1; usize::from(options) * 4]);
        bytes.extend(40000u16.to_be_bytes());
        bytes.extend(port.to_be_bytes());
        bytes.resize(bytes.len().max(60), 0);
        bytes
    }

    #[test]
    fn allow_and_deny_are_opposites() {
        let here = Path::new(".");
        let packets = [frame(6, 80, 0), frame(17, 80, 0), frame(6, 81, 0), vec![], vec![0; 13]];
        let allow = plan(here, "[bpf]\nallow = 'tcp port 80'\n").expect("good");
        assert_eq!(passing(&allow, &packets, false), [true, false, false, false, false]);
        let deny = plan(here, "[bpf]\ndeny = 'tcp port 80'\n").expect("good");
        assert_eq!(passing(&deny, &packets, true), [false, true, true, true, true]);
        let text = deny.0.describe().join("\n");
        assert!(text.starts_with("deny \"tcp port 80\": ") && text.contains("bytes of machine code"), "{text}");
    }

    #[test]
    fn mistakes_have_places_and_libpcaps_words() {
        let here = Path::new(".");
        let mistakes = |text| plan(here, text).err().expect("a mistake");
        assert_eq!(
            mistakes("[bpf]\nallow = 'tcp prot 80'\n"),
            ["t.toml:2:9: bpf.t.allow: libpcap: can't parse filter expression: syntax error"]
        );
        assert!(
            mistakes("[bpf]\ndeny = 'port 99999'\n")[0].starts_with("t.toml:2:8: bpf.t.deny: libpcap: illegal port")
        );
        let one = "bpf.t: needs exactly one of allow, deny, object";
        assert_eq!(mistakes("[bpf]\n"), [format!("t.toml:1:1: {one}")]);
        assert_eq!(mistakes("[bpf]\nallow = 'tcp'\ndeny = 'udp'\n"), [format!("t.toml:1:1: {one}")]);
        assert_eq!(mistakes("[bpf]\nallow = ' '\n").len(), 1);
        assert!(mistakes("[bpf]\nobject = 'none.o'\n")[0].contains("none.o: No such file"));
    }

    /// Compiles `tests/bpf/NAME.c` and plans it; `None` if there is no clang here.
    fn object(name: &str) -> Option<Planned> {
        let folder = tempfile::tempdir().expect("a folder");
        let source = format!("{}/tests/bpf/{name}.c", env!("CARGO_MANIFEST_DIR"));
        let output = folder.path().join("prog.o");
        let clang = Command::new("clang")
            .args(["-O2", "-g", "-Wall", "-target", "bpf", "-mcpu=v2", "-c", &source, "-o"])
            .arg(&output)
            .status();
        match clang {
            Ok(status) => assert!(status.success(), "clang fails on {source}"),
            Err(_) if std::env::var_os("FLOWGATE_REQUIRE").is_none() => {
                eprintln!("skipped: bpf-object: clang is not installed");
                return None;
            }
            Err(error) => panic!("clang: {error}"),
        }
        fs::write(folder.path().join("t.toml"), "").expect("written");
        Some(plan(folder.path(), "[bpf]\nobject = 'prog.o'\n"))
    }

    #[test]
    fn an_object_drops_tcp_to_port_9999() {
        let Some(plan) = object("drop_9999") else { return };
        let plan = plan.expect("good");
        let packets: Vec<_> = [(6, 9999, 0), (6, 9998, 0), (17, 9999, 0), (6, 9999, 4), (6, 9999, 10), (6, 0x0f27, 10)]
            .map(|(proto, port, options)| frame(proto, port, options))
            .into_iter()
            .chain([frame(6, 9999, 0)[..37].to_vec(), vec![]])
            .collect();
        assert_eq!(passing(&plan, &packets, false), [false, true, true, false, false, true, true, true]);
        let text = plan.0.describe().join("\n");
        assert!(text.contains("eBPF instructions, ") && text.contains("machine code, reads the first "), "{text}");
        assert!(!text.contains("may write"), "{text}");
    }

    #[test]
    fn what_a_program_writes_is_forgotten() {
        let Some(plan) = object("writes") else { return };
        let plan = plan.expect("good");
        let marked = [frame(6, 1, 0)[..20].to_vec(), vec![0xee; 60]].concat();
        assert_eq!(passing(&plan, &[frame(6, 1, 0), vec![1; 8], vec![1; 8], marked], false), [true, true, true, false]);
        assert!(plan.0.describe()[0].ends_with("(may write to its copy)"));
    }

    #[test]
    fn behind_a_frames_end_is_zero() {
        let Some(plan) = object("tail") else { return };
        let plan = plan.expect("good");
        assert_eq!(passing(&plan, &[vec![7; 101], vec![7; 100], vec![7; 101]], false), [true, false, true]);
    }

    #[test]
    fn what_flowgate_cannot_run_is_refused_by_name() {
        let refused: [(&str, &[&str]); 5] = [
            (
                "map",
                &[
                    "prog.o: instruction 3 of count uses the map counts; flowgate's programs have no maps",
                    "prog.o: instruction 5 of count calls the kernel helper bpf_map_lookup_elem; ",
                    "prog.o: instruction 8 of count calls the kernel helper bpf_ktime_get_ns; ",
                ],
            ),
            ("calls", &["instruction 1 of by_parity calls another function; inline it"]),
            ("global", &["instruction 0 of every_other uses a global variable in \".bss\"; "]),
            ("loop", &["of sum jumps back; unroll the loop"]),
            (
                "beyond",
                &["DPDK's verifier refuses the program: ", "memory boundary violation at instruction 6 of at_end"],
            ),
        ];
        for (name, expected) in refused {
            let Some(result) = object(name) else { return };
            let mistakes = result.err().expect(name);
            let text = mistakes.join("\n");
            assert!(mistakes.iter().all(|m| m.starts_with("t.toml:2:10: bpf.t.object: ")), "{text}");
            for words in expected {
                assert!(text.contains(words), "{name}: {words:?} is not in {text}");
            }
        }
    }
}
