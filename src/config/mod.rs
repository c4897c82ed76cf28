//! The configuration: TOML text to checked values, with the place of every mistake.
//!
//! Owns what can be known from the text alone. Whether a machine has the devices and cores a file names is found out at
//! start; whether a stage's config makes sense with the rest is found out when the stage is planned.

use std::collections::HashMap;
use std::ops::Range;

use toml::de::DeTable;

use crate::policy::{self, Test};
use crate::stage::{AnyConfig, Kind, REGISTRY};

pub mod address;
pub mod api;
pub mod kernel;
mod lists;
pub mod machine;
pub mod metrics;
pub mod names;
pub mod neighbor;
pub mod notation;
pub mod port;
mod ports;
pub mod reader;
pub mod source;
pub mod units;

use api::Api;
use kernel::Kernel;
use lists::is_word;
use machine::{Control, Eal, Memory, Worker};
use metrics::Metrics;
use names::Names;
use neighbor::Neighbor;
use port::Port;
use reader::{FromToml, Item, Key, MISSING, Reader, Table};
use source::{At, Mistake, Mistakes, Place, Source, near_miss};

/// A whole configuration file, understood.
#[derive(Clone)]
pub struct Config {
    /// The file.
    pub source: Source,
    /// `[worker]`
    pub worker: Worker,
    /// `[memory]`
    pub memory: Memory,
    /// `[[port]]`, in the order of `names.ports`.
    pub ports: Vec<Port>,
    /// Ports, zones, sets and services.
    pub names: Names,
    /// The stages in order.
    pub pipeline: Vec<StageConfig>,
    /// Where the list of stages stands.
    pub pipeline_place: Place,
    /// `[control]`
    pub control: Control,
    /// `[api]`
    pub api: Api,
    /// `[kernel]`
    pub kernel: Kernel,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[eal]`
    pub eal: Eal,
    /// `[neighbor]`
    pub neighbor: Neighbor,
    /// `[[test]]`
    pub tests: Vec<Test>,
}

/// One stage of the pipeline, as configured.
#[derive(Clone)]
pub struct StageConfig {
    /// Its word in the list (`bpf:noise`).
    pub instance: String,
    /// Its kind.
    pub kind: &'static Kind,
    /// Its table; none only in what [`Config::read`] returns with mistakes.
    pub config: Option<AnyConfig>,
    /// Where it stands in the list.
    pub place: Place,
}

crate::section! {
    /// `[pipeline]`
    pub struct Pipeline {
        /// The stages in their order of work: the name of a kind, or `kind:name` for a further one of it, configured in `[kind.name]`.
        pub stages: At<Vec<At<String>>>,
    }
}

/// The tables of a file that are not a stage's, for the reference.
pub const SECTIONS: &[(&str, &str, &[Key])] = &[
    ("[worker]", "The workers: one thread each, pinned to a core of its own.", Worker::KEYS),
    ("[memory]", "Packet buffers and the memory DPDK takes.", Memory::KEYS),
    ("[[port]]", "A DPDK device under a name; one table for each.", Port::KEYS),
    ("[pipeline]", "What happens to packets.", Pipeline::KEYS),
    ("[control]", "How the running process is asked, and what it prints.", Control::KEYS),
    ("[api]", "The API over the network: TLS, who may ask, and how much is taken from whom.", Api::KEYS),
    ("[kernel]", "The host's own network stack beside the datapath.", Kernel::KEYS),
    ("[metrics]", "What is measured beside counting.", Metrics::KEYS),
    ("[eal]", "DPDK's own arguments.", Eal::KEYS),
    ("[neighbor]", "How neighbors are resolved by ARP and IPv6 neighbor discovery.", Neighbor::KEYS),
    (
        "[[test]]",
        "What the policy is meant to do: `flowgate test` and `check` say whether it does, and `run` starts nothing \
                  that does not. A test of one packet takes it through the whole pipeline, as `explain` does; a test of a range \
                  of packets is decided exactly, for all of them, on the rules of `acl` alone.",
        Test::KEYS,
    ),
];

/// The kind of stage by which a pipeline routes.
const ROUTE: &str = "route";

/// Where the running process answers unless the file says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/flowgate.sock";

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &str) -> Result<Config, Vec<Mistake>> {
        let source = Source::read(path).map_err(|error| {
            let message = format!("cannot read {path:?}: {error}");
            vec![Mistake { place: None, key: String::new(), message, help: None }]
        })?;
        Config::parse(&source)
    }

    /// Reads and checks a text; list files are looked for beside it.
    pub fn parse(source: &Source) -> Result<Config, Vec<Mistake>> {
        let (config, mistakes) = Config::read(source);
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// Reads a text as far as it can be understood. With mistakes, the config holds defaults for tables that could not be
    /// read, all names nonetheless, and stages without a config: good only to find more mistakes in.
    pub fn read(source: &Source) -> (Config, Vec<Mistake>) {
        let mut mistakes = Mistakes::default();
        let (table, errors) = DeTable::parse_recoverable(source.text());
        let syntax = syntax_mistakes(source, &errors, &mut mistakes);
        let mut reader = Reader { source, mistakes: &mut mistakes };
        let config = read_root(Table::root(table), &mut reader);
        syntax.forget_consequences(&mut mistakes);
        (config, mistakes.into_sorted())
    }

    /// The ports that have a device: the first ones.
    pub fn devices(&self) -> &[Port] {
        &self.ports[..self.ports.iter().take_while(|port| port.parent.is_none()).count()]
    }

    /// By port: the largest packet it sends, without Ethernet header and tags, in bytes.
    pub fn mtus(&self) -> Vec<u16> {
        let parent = |port: &Port| self.devices().iter().find(|of| Some(&of.name.value) == port.parent.as_deref());
        let mtu = |port: &Port| match (&port.mtu, parent(port)) {
            (None, Some(parent)) => parent.own_mtu(),
            _ => port.own_mtu(),
        };
        self.ports.iter().map(mtu).collect()
    }

    /// Bit per port: the file asks for the VLAN tag to be taken out of what it receives.
    pub fn strips(&self) -> u64 {
        self.devices().iter().enumerate().map(|(at, port)| u64::from(port.vlan_strip) << at).sum()
    }

    /// The MAC addresses that addresses of a port with a device, and of its VLANs, are bound to.
    pub fn macs(&self, port: &Port) -> Vec<[u8; 6]> {
        let own = |of: &&Port| of.name.value == port.name.value || of.parent.as_deref() == Some(&port.name.value);
        let addresses = self.ports.iter().filter(own).flat_map(|of| &of.address);
        let mut macs: Vec<[u8; 6]> = addresses.filter_map(|address| Some(address.mac.as_ref()?.0)).collect();
        macs.sort_unstable();
        macs.dedup();
        macs
    }

    /// Whether a port receives frames for other stations too.
    pub fn promiscuous(&self, port: &Port) -> bool {
        port.promiscuous.unwrap_or_else(|| self.pipeline.iter().any(|stage| stage.kind.name == "cross"))
    }
}

/// Where the text is no TOML.
struct Syntax {
    lines: Vec<u32>,
    /// The line from which on the text was read as part of a list or table that is not closed.
    unclosed: Option<u32>,
}

/// Notes syntax errors, one a line: a parser that goes on finds most of them several times.
fn syntax_mistakes(source: &Source, errors: &[toml::de::Error], mistakes: &mut Mistakes) -> Syntax {
    let mut errors: Vec<(Range<usize>, &str)> =
        errors.iter().map(|error| (error.span().unwrap_or_default(), error.message())).collect();
    errors.sort_by_key(|(span, _)| span.start);
    let mut syntax = Syntax { lines: Vec::new(), unclosed: None };
    let open = ["array", "inline table"]
        .into_iter()
        .find(|what| errors.iter().any(|(_, message)| message.starts_with("unclosed") && message.contains(what)));
    for (span, message) in errors {
        let place = source.start(&span);
        if syntax.lines.contains(&place.line) || syntax.unclosed.is_some() {
            continue;
        }
        if open.is_some_and(|what| message.contains(what)) {
            syntax.unclosed = Some(place.line);
            mistakes.with_help(&place, "", message, "a list or table above is not closed");
        } else if span.is_empty() && message.starts_with("string values must be quoted") {
            mistakes.at(&place, "", "expected a value behind \"=\"");
        } else {
            mistakes.at(&place, "", message);
        }
        syntax.lines.push(place.line);
    }
    syntax
}

impl Syntax {
    /// Removes what is only a consequence of the text being no TOML: all else on the same lines, and what seems missing.
    fn forget_consequences(&self, mistakes: &mut Mistakes) {
        if self.lines.is_empty() {
            return;
        }
        mistakes.retain(|mistake| {
            let line = mistake.place.as_ref().map_or(0, |place| place.line);
            let swallowed = self.unclosed.is_some_and(|from| line > from) || self.lines.contains(&line);
            mistake.key.is_empty() || !(swallowed || mistake.message.starts_with(MISSING))
        });
    }
}

fn read_root(mut root: Table<'_>, reader: &mut Reader<'_>) -> Config {
    let worker = section::<Worker>(&mut root, "worker", reader);
    worker.check(reader.mistakes);
    let memory = section::<Memory>(&mut root, "memory", reader);
    let control = section::<Control>(&mut root, "control", reader);
    let api = section::<Api>(&mut root, "api", reader);
    api.check(reader.mistakes);
    let kernel = section::<Kernel>(&mut root, "kernel", reader);
    let metrics = section::<Metrics>(&mut root, "metrics", reader);
    let eal = section::<Eal>(&mut root, "eal", reader);
    let mut names = Names::default();
    let ports = ports::read_ports(&mut root, &mut names, reader);
    let neighbor = root.key::<Option<At<Neighbor>>>("neighbor", None, reader).flatten();
    let neighbor = neighbor.map_or_else(Neighbor::default, |neighbor| {
        neighbor.check(&neighbor.place, &names, reader.mistakes);
        neighbor.value
    });
    if let Some(item) = root.take("set") {
        lists::read_sets(item, &mut names, reader);
    }
    if let Some(item) = root.take("service") {
        lists::read_services(item, &mut names, reader);
    }
    let stages = root.key::<Pipeline>("pipeline", None, reader).map(|pipeline| pipeline.stages);
    let pipeline_place = stages.as_ref().map_or_else(|| reader.place_of(&root.span()), |stages| stages.place.clone());
    let pipeline = match &stages {
        Some(stages) => read_stages(stages, &mut root, reader),
        None => {
            // Nobody can say which tables are stages': what is in them is read all the same.
            for kind in REGISTRY {
                if let Some(item) = root.take(kind.name) {
                    (kind.read)(item, reader);
                }
            }
            Vec::new()
        }
    };
    REGISTRY.iter().for_each(|kind| root.know(kind.name));
    names.routes = pipeline.iter().any(|stage| stage.kind.name == ROUTE);
    ports::check_routed(&ports, &names, reader.mistakes);
    let tests = root.key::<Vec<Test>>("test", Some(Vec::new), reader).unwrap_or_default();
    policy::check(&tests, &names, reader.mistakes);
    root.finish(reader);
    Config {
        source: reader.source.clone(),
        worker,
        memory,
        ports,
        names,
        pipeline,
        pipeline_place,
        control,
        api,
        kernel,
        metrics,
        eal,
        neighbor,
        tests,
    }
}

/// Reads a table that may be left out, or that could not be read: either gives its defaults.
fn section<T: FromToml>(root: &mut Table<'_>, name: &'static str, reader: &mut Reader<'_>) -> T {
    root.take(name).and_then(|item| T::from_toml(item, reader)).unwrap_or_else(|| {
        let absent = Table::absent(name, 0..0).into_item();
        T::from_toml(absent, reader).expect("every key of these tables has a default")
    })
}

/// Reads the tables of the stages in the pipeline, and notes those of stages that are not in it.
fn read_stages(stages: &[At<String>], root: &mut Table<'_>, reader: &mut Reader<'_>) -> Vec<StageConfig> {
    const KEY: &str = "pipeline.stages";
    let mut listed: Vec<(&At<String>, &'static Kind)> = Vec::new();
    for stage in stages {
        let (word, name) = split(stage);
        if !name.is_none_or(is_word) {
            let message = format!("{:?} is no name for a stage", stage.value);
            reader.mistakes.with_help(&stage.place, KEY, message, format!("name it as in \"{word}:other\""));
        } else if listed.iter().any(|(earlier, _)| earlier.value == stage.value) {
            let message = format!("{:?} stands twice", stage.value);
            reader.mistakes.with_help(
                &stage.place,
                KEY,
                message,
                format!("name the second one, as in \"{word}:other\""),
            );
        } else if let Some(kind) = REGISTRY.iter().find(|kind| kind.name == word) {
            listed.push((stage, kind));
        } else {
            let known = || REGISTRY.iter().map(|kind| kind.name);
            reader.mistakes.unknown(&stage.place, KEY, "stage", word, known());
            // Its table is read as that of the stage it was probably meant to be.
            let near = near_miss(word, known());
            listed.extend(REGISTRY.iter().find(|kind| Some(kind.name) == near).map(|kind| (stage, kind)));
        }
    }
    let mut configs: HashMap<&str, AnyConfig> = HashMap::new();
    for kind in REGISTRY {
        let here: Vec<&At<String>> =
            listed.iter().filter(|(_, k)| k.name == kind.name).map(|(stage, _)| *stage).collect();
        let table = root.take(kind.name);
        if here.is_empty() {
            if let Some(item) = table {
                not_listed(&item, kind.name, reader);
            }
            continue;
        }
        let mut table = match table {
            None => None,
            Some(item) => match reader.table(item) {
                Some(table) => Some(table),
                None => continue,
            },
        };
        for stage in here.iter().filter(|stage| split(stage).1.is_some()) {
            let name = split(stage).1.unwrap_or_default();
            if kind.keys.iter().any(|key| key.name == name) {
                let message = format!("{name:?} is a key of [{}] and cannot be the name of a stage", kind.name);
                reader.mistakes.at(&stage.place, KEY, message);
                continue;
            }
            let path = format!("{}.{name}", kind.name);
            let own = table.as_mut().and_then(|table| table.take_named(name));
            let item = own.unwrap_or_else(|| absent(&path, stage, reader));
            configs.extend((kind.read)(item, reader).map(|config| (stage.value.as_str(), config)));
        }
        let plain = here.iter().find(|stage| split(stage).1.is_none());
        match (plain, table) {
            (Some(stage), table) => {
                let item = table.map_or_else(|| absent(kind.name, stage, reader), Table::into_item);
                configs.extend((kind.read)(item, reader).map(|config| (stage.value.as_str(), config)));
            }
            (None, Some(table)) => {
                for (name, _, item) in table.rest() {
                    let is_key = kind.keys.iter().any(|key| key.name == name);
                    let word = if is_key { kind.name.to_owned() } else { format!("{}:{name}", kind.name) };
                    not_listed(&item, &word, reader);
                }
            }
            (None, None) => {}
        }
    }
    let complete = |(stage, kind): (&At<String>, &'static Kind)| StageConfig {
        instance: stage.value.clone(),
        kind,
        config: configs.get(stage.value.as_str()).cloned(),
        place: stage.place.clone(),
    };
    listed.into_iter().map(complete).collect()
}

/// `bpf:noise` as `bpf` and `noise`.
fn split(stage: &str) -> (&str, Option<&str>) {
    match stage.split_once(':') {
        Some((kind, name)) => (kind, Some(name)),
        None => (stage, None),
    }
}

/// The table of a stage that has none: what is missing in it is missed where the stage is listed.
fn absent<'i>(path: &str, stage: &At<String>, reader: &Reader<'_>) -> Item<'i> {
    let start = reader.source.offset(&stage.place);
    Table::absent(path, start..start).into_item()
}

fn not_listed(item: &Item<'_>, word: &str, reader: &mut Reader<'_>) {
    let message = format!("is configured, but {word:?} is not in pipeline.stages");
    reader.wrong_but(item, message, format!("list {word:?} there, or remove the table"));
}

#[cfg(test)]
mod tests {
    use super::lists::MOST_OF_A_FILE;
    use super::*;

    const GOOD: &str = r#"
[worker]
cores = [2, 3]

[[port]]
name = "lan"
device = "net_tap0,iface=lan0"
zone = "inside"

[[port]]
name = "wan"
device = "0000:3b:00.1"
zone = "outside"
mtu = 9000

[set]
office = ["10.0.0.0/24", "10.0.1.0/24", "2001:db8:1::/64"]
all = ["@office", "192.0.2.1-192.0.2.3"]

[service]
web = ["tcp/80", "tcp/443", "dns"]
dns = "udp/53"

[pipeline]
stages = ["cross"]

[[cross.wire]]
ports = ["lan", "wan"]
"#;

    fn mistakes(text: &str) -> Vec<String> {
        let (_, mistakes) = Config::read(&Source::new("t.toml", text));
        mistakes.iter().map(Mistake::to_string).collect()
    }

    /// The mistakes of the good file after a change.
    fn after(from: &str, to: &str) -> Vec<String> {
        assert!(GOOD.contains(from), "{from:?}");
        mistakes(&GOOD.replacen(from, to, 1))
    }

    #[track_caller]
    fn only(mistakes: Vec<String>, contains: &str) {
        assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
        assert!(mistakes[0].contains(contains), "{}", mistakes[0]);
    }

    #[test]
    fn a_good_file() {
        let config = Config::parse(&Source::new("t.toml", GOOD)).expect("good");
        assert_eq!(config.mtus()[1], 9000);
        assert_eq!(config.names.zones, ["inside", "outside"]);
        assert_eq!(config.names.port("wan"), Some(1));
        let all = config.names.set("all").expect("there");
        assert_eq!(
            all.v4.iter().map(|n| n.to_string()).collect::<Vec<_>>(),
            ["10.0.0.0/23", "192.0.2.1/32", "192.0.2.2/31"]
        );
        assert_eq!(all.v6.len(), 1);
        assert_eq!(config.names.services[0].services.len(), 3);
        assert_eq!(config.pipeline[0].instance, "cross");
        assert!(config.promiscuous(&config.ports[0]));
        assert_eq!(config.pipeline_place.to_string(), "t.toml:25:10");
    }

    #[test]
    fn tables_that_must_be_there() {
        let mistakes = mistakes("");
        assert_eq!(mistakes.len(), 2, "{mistakes:#?}");
        assert!(mistakes.iter().any(|m| m.contains("port: is missing")));
        assert!(mistakes.iter().any(|m| m.contains("pipeline: is missing")));
        only(after("[pipeline]", "[pipline]"), "did you mean \"pipeline\"?");
        only(after("stages =", "stage ="), "did you mean \"stages\"?");
        only(mistakes_without_wires(), "t.toml:25:11: cross.wire: is missing");
    }

    fn mistakes_without_wires() -> Vec<String> {
        mistakes(GOOD.split("[[cross").next().expect("there"))
    }

    #[test]
    fn stages_and_their_tables() {
        only(
            after("[\"cross\"]", "[\"cros\"]"),
            "t.toml:25:11: pipeline.stages: there is no stage \"cros\"; did you mean",
        );
        only(after("[\"cross\"]", "[]"), "cross: is configured, but \"cross\" is not in pipeline.stages");
        only(after("[\"cross\"]", "[\"cross\", \"cross\"]"), "stands twice");
        only(after("[\"cross\"]", "[\"cross\", \"cross:\"]"), "no name for a stage");
        only(after("[\"cross\"]", "[\"cross\", \"cross:wire\"]"), "is a key of [cross]");
        only(after("[\"cross\"]", "[\"cross\", \"cross:b\"]"), "t.toml:25:20: cross.b.wire: is missing");
        only(after("[[cross.wire]]", "[[cross.b.wire]]\nports = []\n[[cross.wire]]"), "there is no table \"b\"");
        let named = GOOD.replace("[\"cross\"]", "[\"cross:b\"]").replace("[[cross.wire]]", "[[cross.b.wire]]");
        assert!(mistakes(&named).is_empty());
        only(mistakes(&named.replace("[\"cross:b\"]", "[\"cross:b\", \"cross:c\"]")), "cross.c.wire: is missing");
        only(mistakes(&(named + "[cross.d]\n")), "\"cross:d\" is not in pipeline.stages");
    }

    #[test]
    fn ports() {
        only(after("\"wan\"", "\"lan\""), "exists already, at t.toml:6:8");
        only(after("\"wan\"", "\"w/n\""), "cannot be the name of a port");
        only(after("0000:3b:00.1", "net_tap0"), "\"net_tap0\" is taken already, at t.toml:7:10");
        only(after("0000:3b:00.1", "3b:00"), "expected a PCI address");
        only(after("9000", "67"), "t.toml:14:7: port[1].mtu: expected an integer from 68 to 9600, found 67");
        only(after("9000", "\"big\""), "expected an integer from 68 to 9600, found a string");
        only(after("\"outside\"", "\"self\""), "cannot be the name of a zone");
        only(after("mtu = 9000", "rx_queues = 0"), "expected an integer from 1 to 128 or \"auto\", found 0");
        only(after("mtu = 9000", "rss = \"of\""), "expected \"auto\" or \"off\", found \"of\"; did you mean \"off\"?");
    }

    #[test]
    fn workers() {
        only(after("[2, 3]", "[2, 2]"), "t.toml:3:13: worker.cores: core 2 is taken twice");
        only(after("[2, 3]", "[]"), "expected a list of core numbers or \"auto\", found an empty one");
        only(after("[2, 3]", "\"all\""), "expected a list of core numbers or \"auto\", found a string");
        only(after("[2, 3]", "[2, 3]\nmain_core = 3"), "core 3 is a worker's");
        only(after("[2, 3]", "[2, 3]\nburst = 65"), "from 1 to 64, found 65");
        assert!(after("[2, 3]", "[2, 2]\noversubscribe = true").is_empty());
    }

    #[test]
    fn sets_and_services() {
        only(after("\"@office\"", "\"@offise\""), "there is no set \"offise\"; did you mean \"office\"?");
        only(after("\"10.0.1.0/24\"", "\"@all\""), "includes itself");
        only(after("\"10.0.1.0/24\"", "\"@office\""), "t.toml:17:26: set.office: the set \"office\" includes itself");
        only(
            after("\"10.0.1.0/24\"", "\"10.0.1.1/24\""),
            "set.office[1]: \"10.0.1.1/24\" has bits set behind its prefix",
        );
        only(after("\"udp/53\"", "\"web\""), "includes itself");
        only(after("\"udp/53\"", "\"upd/53\""), "did you mean \"udp/53\"?");
        only(after("\"dns\"]", "\"dsn\"]"), "there is no service \"dsn\"; did you mean \"dns\"?");
        only(after("dns = ", "tcp = 'udp/1'\ndns = "), "\"tcp\" is the name of a protocol");
        only(after("office = ", "\"a b\" = []\noffice = "), "cannot be the name of a set");
    }

    #[test]
    fn text_that_is_no_toml() {
        only(after("cores = [2, 3]", "cores = [2, 3"), "a list or table above is not closed");
        only(after("mtu = 9000", "mtu = "), "t.toml:14:7: expected a value behind \"=\"");
        only(after("mtu = 9000", "mtu = big"), "must be quoted");
        only(after("\"wan\"", "\"wan"), "t.toml:11");
        only(after("mtu = 9000", "mtu = 9000\nmtu = 1"), "duplicate key");
        let two = GOOD.replace("mtu = 9000", "mtu = \nmut = 5").replace("[2, 3]", "[2 3]");
        let mistakes = mistakes(&two);
        assert_eq!(mistakes.len(), 3, "{mistakes:#?}");
    }

    #[test]
    fn list_files() {
        use std::fmt::Write;
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
        let read = |file: &str| {
            let path = directory.path().join("t.toml").display().to_string();
            let text = GOOD.replacen("office = [\"10.0.0.0/24\", \"10.0.1.0/24\", \"2001:db8:1::/64\"]", file, 1);
            Config::read(&Source::new(&path, &text))
        };
        let mut text = String::from("# bad\n\n  2001:db8::/32  # documentation\n");
        for i in 0..100_000u32 {
            writeln!(text, "{}/32", std::net::Ipv4Addr::from(0x0a00_0000 + 2 * i)).expect("a string");
        }
        write("bad.txt", &text);
        let (config, mistakes) = read("office = { file = 'bad.txt' }");
        assert!(mistakes.is_empty(), "{mistakes:?}");
        let office = config.names.set("office").expect("there");
        assert_eq!((office.v4.len(), office.v6.len()), (100_000, 1));

        write("wrong.txt", "10.0.0.0/8\n é 10.0.0.1/8\n   10.0.0.1/8 # host bits\n");
        let (_, mistakes) = read("office = { file = 'wrong.txt' }");
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        let shown = mistakes[1].to_string();
        assert!(shown.contains("wrong.txt:3:4: set.office.file: ") && shown.contains("\"10.0.0.0/8\""), "{shown}");
        let long = "x\n".repeat(1000);
        write("long.txt", &long);
        let (_, mistakes) = read("office = { file = 'long.txt' }");
        assert_eq!(mistakes.len(), MOST_OF_A_FILE + 1);
        for (file, message) in [("none.txt", "cannot read"), (".", "not a regular file")] {
            let (_, mistakes) = read(&format!("office = {{ file = '{file}' }}"));
            assert!(mistakes.len() == 1 && mistakes[0].message.contains(message), "{mistakes:?}");
        }
    }

    mod any_text {
        use super::*;
        use proptest::prelude::*;

        proptest! {
            #[test]
            fn is_read_without_panic(text in "\\PC{0,200}") {
                Config::read(&Source::new("t.toml", &text));
            }

            #[test]
            fn near_a_good_file_is_read_without_panic(
                changes in prop::collection::vec((0..GOOD.len(), 0usize..12, "[\\[\\]{}=\"'@,.\\n#a-z0-9é/:-]{0,6}"), 1..8),
            ) {
                let mut text: Vec<char> = GOOD.chars().collect();
                for (at, cut, new) in changes {
                    let at = at.min(text.len());
                    let end = (at + cut).min(text.len());
                    text.splice(at..end, new.chars());
                }
                let text: String = text.into_iter().collect();
                let (_, mistakes) = Config::read(&Source::new("t.toml", &text));
                for mistake in &mistakes {
                    prop_assert!(!mistake.message.is_empty() && mistake.place.is_some());
                }
            }
        }
    }
}
