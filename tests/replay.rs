//! `flowgate replay` as a user runs it: the real binary over captures written here.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use etherparse::PacketBuilder;
use pcap_file::pcap::{PcapHeader, PcapTsResolution, PcapWriter, RawPcapPacket};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::PcapNgBlock;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
};
use pcap_file::pcapng::blocks::section_header::SectionHeaderBlock;
use pcap_file::{DataLink, Endianness};
use serde_json::Value;
use tempfile::TempDir;

mod common;

/// Where the captures begin: 2023-11-14 22:13:20 UTC, in nanoseconds.
const START: u64 = 1_700_000_000_000_000_000;
const NANO: PcapTsResolution = PcapTsResolution::NanoSecond;
const MICRO: PcapTsResolution = PcapTsResolution::MicroSecond;

/// A wire between lan and wan that lets web traffic through.
const CONFIG: &str = r#"[[port]]
name = "lan"
device = "net_null0"
zone = "inside"

[[port]]
name = "wan"
device = "net_null1"
zone = "outside"

[pipeline]
stages = ["cross", "acl"]

[cross]
wire = [{ ports = ["lan", "wan"] }]

[acl]
default = "deny"

[[acl.rule]]
name = "no printer"
destination = ["192.0.2.9"]
action = "deny"

[[acl.rule]]
name = "web"
from = "inside"
to = "outside"
service = ["tcp/80", "tcp/443"]
action = "allow"

[[acl.rule]]
name = "answers"
from = "outside"
to = "inside"
service = ["tcp"]
source_port = ["80", "443"]
action = "allow"
"#;

/// A folder with a config in it.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new(config: &str) -> Bench {
        let bench = Bench { dir: tempfile::tempdir().expect("a folder") };
        std::fs::write(bench.path("fw.toml"), config).expect("config written");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("file written");
    }

    /// Runs `flowgate replay fw.toml ...` inside the folder.
    fn replay(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowgate"));
        command.current_dir(self.dir.path()).args(["replay", "fw.toml"]).args(arguments);
        command.output().expect("flowgate runs")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Standard output's JSON lines, after checking the exit code.
fn json(output: &Output, code: i32) -> Vec<Value> {
    assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The last line's totals, checked to add up.
fn totals(lines: &[Value]) -> &Value {
    let totals = &lines.last().expect("a line")["totals"];
    let n = |name: &str| totals[name].as_u64().unwrap_or_else(|| panic!("{name} in {totals}"));
    assert_eq!(totals["balanced"], true);
    assert_eq!(n("packets"), n("received") + n("too_long"));
    assert_eq!(n("received") + n("created"), n("sent") + n("dropped") + n("consumed") + n("held"));
    let sum = |list: &str, of: &str| -> u64 {
        totals[list].as_array().expect("a list").iter().map(|row| row[of].as_u64().expect("a number")).sum()
    };
    assert_eq!(sum("ports", "in"), n("received"));
    assert_eq!(sum("ports", "out"), n("sent"));
    assert_eq!(sum("reasons", "packets"), n("dropped"));
    assert_eq!(sum("inputs", "packets"), n("packets"));
    totals
}

fn frame(source: [u8; 4], destination: [u8; 4]) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(source, destination, 64)
}

const HOST: [u8; 4] = [10, 0, 0, 5];
const SERVER: [u8; 4] = [192, 0, 2, 7];
const PRINTER: [u8; 4] = [192, 0, 2, 9];

/// A SYN from a host's port 40000.
fn syn(destination: [u8; 4], port: u16) -> Vec<u8> {
    let builder = frame(HOST, destination).tcp(40000, port, 1, 1024).syn();
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &[]).expect("built");
    bytes
}

/// What a server's port answers.
fn answer(port: u16, payload: &[u8]) -> Vec<u8> {
    let builder = frame(SERVER, HOST).tcp(port, 40000, 1, 1024).syn().ack(2);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).expect("built");
    bytes
}

/// A pcap file of packets at nanoseconds after `START`.
fn pcap(
    endianness: Endianness,
    ts_resolution: PcapTsResolution,
    link: DataLink,
    packets: &[(u64, Vec<u8>)],
) -> Vec<u8> {
    let header = PcapHeader { endianness, ts_resolution, datalink: link, ..PcapHeader::default() };
    let mut writer = PcapWriter::with_header(Vec::new(), header).expect("header");
    for (after, bytes) in packets {
        let time = START + after;
        let unit = if ts_resolution == NANO { 1 } else { 1000 };
        let packet = RawPcapPacket {
            ts_sec: (time / 1_000_000_000) as u32,
            ts_frac: (time % 1_000_000_000 / unit) as u32,
            incl_len: bytes.len() as u32,
            orig_len: bytes.len() as u32,
            data: bytes.into(),
        };
        writer.write_raw_packet(&packet).expect("packet");
    }
    writer.into_inner()
}

fn ethernet(packets: &[(u64, Vec<u8>)]) -> Vec<u8> {
    pcap(Endianness::Little, NANO, DataLink::ETHERNET, packets)
}

/// A pcapng file of packets on a microsecond and a nanosecond interface: (interface, nanoseconds after `START`, bytes).
fn pcapng(endianness: Endianness, packets: &[(u32, u64, Vec<u8>)]) -> Vec<u8> {
    let header = SectionHeaderBlock { endianness, ..SectionHeaderBlock::default() };
    let mut writer = PcapNgWriter::with_section_header(Vec::new(), header).expect("section");
    let micro = InterfaceDescriptionBlock::new(DataLink::ETHERNET, 0);
    let mut nano = micro.clone();
    nano.options.push(InterfaceDescriptionOption::IfTsResol(InterfaceTsResolution::NANO));
    writer.write_block(&micro.into_block()).expect("interface");
    writer.write_block(&nano.into_block()).expect("interface");
    for (interface_id, after, bytes) in packets {
        let block = EnhancedPacketBlock {
            interface_id: *interface_id,
            timestamp: Duration::from_nanos(START + after),
            original_len: bytes.len() as u32,
            data: bytes.into(),
            options: vec![],
        };
        writer.write_block(&block.into_block()).expect("packet");
    }
    writer.into_inner()
}

/// The packets of a pcap file that flowgate wrote: nanoseconds after `START`, original length, bytes.
fn written(path: &Path) -> Vec<(u64, u32, Vec<u8>)> {
    let bytes = std::fs::read(path).expect("output read");
    let (mut rest, parser) = pcap_file::pcap::PcapParser::new(&bytes).expect("a pcap file");
    assert_eq!((parser.header().ts_resolution, parser.header().datalink), (NANO, DataLink::ETHERNET));
    let mut packets = Vec::new();
    while !rest.is_empty() {
        let (behind, packet) = parser.next_packet(rest).expect("a packet");
        let time = packet.timestamp().as_nanos() as u64 - START;
        packets.push((time, packet.orig_len(), packet.data().to_vec()));
        rest = behind;
    }
    packets
}

/// The line of the config at which a rule begins.
fn rule_line(name: &str) -> u64 {
    let at = CONFIG.lines().position(|line| line == format!("name = {name:?}")).expect("the rule");
    at as u64
}

#[test]
fn allows_and_denies_with_the_rule_that_did() {
    let bench = Bench::new(CONFIG);
    bench.file(
        "lan.pcap",
        &ethernet(&[(0, syn(SERVER, 443)), (1000, syn(PRINTER, 443)), (2_000_000_007, syn(SERVER, 25))]),
    );
    bench.file("wan.pcap", &ethernet(&[(1_000_000, answer(443, b"hello"))]));
    let arguments =
        ["--in", "lan=lan.pcap", "--in", "wan=wan.pcap", "--out", "wan=to-wan.pcap", "--out", "lan=to-lan.pcap"];
    let output = bench.replay(&[&arguments[..], &["--json", "--verbose"]].concat());
    let lines = json(&output, 0);
    assert_eq!(lines.len(), 5, "four records and the totals");
    let field = |at: usize, name: &str| lines[at][name].clone();
    let expected = [
        ("lan", "sent", Some("web"), None, Some("wan"), "tcp 10.0.0.5:40000 > 192.0.2.7:443 [S]"),
        ("lan", "dropped", Some("no printer"), Some("denied"), None, "tcp 10.0.0.5:40000 > 192.0.2.9:443 [S]"),
        ("wan", "sent", Some("answers"), None, Some("lan"), "tcp 192.0.2.7:443 > 10.0.0.5:40000 [SA]"),
        ("lan", "dropped", None, Some("denied-default"), None, "tcp 10.0.0.5:40000 > 192.0.2.7:25 [S]"),
    ];
    for (at, (port, verdict, rule, reason, out, packet)) in expected.into_iter().enumerate() {
        assert_eq!(field(at, "number"), at as u64 + 1);
        assert_eq!(field(at, "port"), port);
        assert_eq!(field(at, "verdict"), verdict);
        assert_eq!(field(at, "stage"), "acl");
        assert_eq!(field(at, "out"), Value::from(out));
        assert_eq!(field(at, "packet"), packet);
        assert_eq!(field(at, "rule"), Value::from(rule), "{}", lines[at]);
        assert_eq!(field(at, "file"), Value::from(rule.map(|_| "fw.toml")));
        assert_eq!(field(at, "line"), Value::from(rule.map(rule_line)));
        assert_eq!(field(at, "reason"), Value::from(reason));
    }
    assert_eq!(lines[3]["time"], "1700000002.000000007");
    let totals = totals(&lines);
    assert_eq!((&totals["sent"], &totals["dropped"]), (&Value::from(2), &Value::from(2)));
    let web = totals["rules"].as_array().expect("rules").iter().find(|rule| rule["rule"] == "web").expect("web");
    assert_eq!((web["packets"].as_u64(), web["bytes"].as_u64()), (Some(1), Some(syn(SERVER, 443).len() as u64)));
    assert_eq!(
        (&web["last_hit"], web["line"].as_u64()),
        (&Value::from("1700000000.000001000"), Some(rule_line("web")))
    );

    let to_wan = written(&bench.path("to-wan.pcap"));
    assert_eq!(to_wan, [(0, syn(SERVER, 443).len() as u32, syn(SERVER, 443))]);
    let back = answer(443, b"hello");
    assert_eq!(written(&bench.path("to-lan.pcap")), [(1_000_000, back.len() as u32, back)]);
    readable_by_tshark(&bench.path("to-lan.pcap"), "1700000000.001000000\t192.0.2.7\t443\t0x0012\n");

    let human = bench.replay(&[&arguments[..], &["--verbose"]].concat());
    assert_eq!(human.status.code(), Some(0));
    let human = text(&human.stdout);
    let record = human.lines().nth(2).expect("the second packet's line");
    for part in ["1700000000.000001000", "lan", "dropped", "acl.denied", "no printer fw.toml:", "192.0.2.9:443 [S]"] {
        assert!(record.contains(part), "{part} in {record}");
    }
    let columns: Vec<usize> =
        human.lines().take(5).map(|line| line.find("  tcp ").or(line.find("  packet")).expect(line)).collect();
    assert!(columns.iter().all(|column| *column == columns[0]), "aligned: {human}");
    assert!(human.contains("2 sent, 2 dropped") && human.contains("4 packets"), "{human}");
}

#[test]
fn rejected_packets_are_answered_with_packets_of_our_own() {
    let bench = Bench::new(&CONFIG.replace("action = \"deny\"", "action = \"reject\""));
    bench.file("lan.pcap", &ethernet(&[(0, syn(PRINTER, 443)), (1_000, syn(SERVER, 443))]));
    let output = bench.replay(&["--in", "lan=lan.pcap", "--out", "lan=to-lan.pcap", "--json", "--verbose"]);
    let lines = json(&output, 0);
    assert_eq!(lines.len(), 4, "two packets, the answer and the totals: {lines:#?}");
    let field = |at: usize, name: &str| lines[at][name].clone();
    assert_eq!((field(0, "verdict"), field(0, "reason")), ("dropped".into(), "rejected".into()));
    assert_eq!((field(1, "verdict"), field(1, "out")), ("sent".into(), "wan".into()));
    assert_eq!((field(2, "number"), field(2, "verdict"), field(2, "out")), (0.into(), "sent".into(), "lan".into()));
    assert_eq!(field(2, "packet"), "tcp 192.0.2.9:443 > 10.0.0.5:40000 [RA]");
    let totals = totals(&lines);
    let terms = ["received", "created", "sent", "dropped"].map(|term| totals[term].as_u64());
    assert_eq!(terms, [Some(2), Some(1), Some(2), Some(1)]);
    let answers = written(&bench.path("to-lan.pcap"));
    assert_eq!((answers.len(), answers[0].0, answers[0].1), (1, 1_000, 60));
    readable_by_tshark(&bench.path("to-lan.pcap"), "1700000000.000001000\t192.0.2.9\t443\t0x0014\n");
}

fn readable_by_tshark(path: &Path, expected: &str) {
    let fields = ["frame.time_epoch", "ip.src", "tcp.srcport", "tcp.flags"];
    let mut command = Command::new("tshark");
    command.arg("-r").arg(path).args(["-T", "fields"]).args(fields.iter().flat_map(|field| ["-e", field]));
    match command.output() {
        Err(_) => common::skip("tshark", "tshark is not installed"),
        Ok(output) => assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr)),
    }
}

#[test]
fn merges_inputs_of_every_form_by_time() {
    let bench = Bench::new(CONFIG);
    let packet = |mark: u8| answer(443, &[mark; 3]);
    bench.file("a.pcap", &pcap(Endianness::Big, MICRO, DataLink::ETHERNET, &[(1_000, packet(1)), (9_000, packet(5))]));
    bench
        .file("b.pcap", &pcap(Endianness::Little, NANO, DataLink::ETHERNET, &[(1_000, packet(2)), (9_001, packet(6))]));
    bench
        .file("c.pcapng", &pcapng(Endianness::Big, &[(1, 1_001, packet(3)), (0, 8_000, packet(4)), (1, 7, packet(7))]));
    bench.file("d.pcapng", &pcapng(Endianness::Little, &[(1, 9_002, packet(8)), (0, 2_000_000_000, packet(9))]));
    bench.file("e.pcap", &ethernet(&[]));
    let inputs = [
        "--in",
        "wan=a.pcap",
        "--in",
        "wan=b.pcap",
        "--in",
        "wan=c.pcapng",
        "--in",
        "wan=d.pcapng",
        "--in",
        "wan=e.pcap",
    ];
    let output = bench.replay(&[&inputs[..], &["--out", "lan=out.pcap", "--json"]].concat());
    let lines = json(&output, 0);
    assert_eq!(lines.len(), 1, "without --verbose only the totals");
    assert_eq!(totals(&lines)["sent"], 9);
    assert_eq!(totals(&lines)["last"], "1700000002.000000000");
    let order: Vec<(u64, u8)> =
        written(&bench.path("out.pcap")).iter().map(|(time, _, bytes)| (*time, bytes[bytes.len() - 1])).collect();
    // Ties as given; a time that runs backwards within a capture stays in its place.
    let expected = [
        (1_000, 1),
        (1_000, 2),
        (1_001, 3),
        (8_000, 4),
        (7, 7),
        (9_000, 5),
        (9_001, 6),
        (9_002, 8),
        (2_000_000_000, 9),
    ];
    assert_eq!(order, expected);
}

#[test]
fn packets_cut_at_capture_are_handled_by_what_is_there() {
    let bench = Bench::new(CONFIG);
    let whole = answer(443, &[7; 100]);
    let mut file = ethernet(&[(0, whole.clone()), (1_000, whole.clone())]);
    // The first packet's original length, behind the file's header and three words of its own.
    file[24 + 12..24 + 16].copy_from_slice(&1500_u32.to_le_bytes());
    bench.file("wan.pcap", &file);
    let output = bench.replay(&["--in", "wan=wan.pcap", "--out", "lan=out.pcap", "--json"]);
    assert_eq!(totals(&json(&output, 0))["cut"], 1);
    assert!(text(&output.stderr).contains("1 of 2 packets had been cut"), "{}", text(&output.stderr));
    let lengths: Vec<u32> = written(&bench.path("out.pcap")).iter().map(|(_, original, _)| *original).collect();
    assert_eq!(lengths, [1500, whole.len() as u32]);
}

#[test]
fn malformed_packets_are_counted_by_reason() {
    let bench = Bench::new(CONFIG);
    let mut version = syn(SERVER, 443);
    version[14] = 0x55;
    bench.file("lan.pcap", &ethernet(&[(0, version), (1, vec![0; 7]), (2, syn(SERVER, 80)), (3, vec![])]));
    let lines = json(&bench.replay(&["--in", "lan=lan.pcap", "--json", "--verbose"]), 0);
    let stages: Vec<&Value> = lines[..4].iter().map(|line| &line["stage"]).collect();
    assert_eq!(stages, ["decode", "decode", "acl", "decode"]);
    assert_eq!((&totals(&lines)["sent"], &totals(&lines)["dropped"]), (&Value::from(1), &Value::from(3)));
}

#[test]
fn a_truncated_capture_is_processed_up_to_there_and_reported() {
    let bench = Bench::new(CONFIG);
    let whole = ethernet(&[(0, syn(SERVER, 443)), (1, syn(SERVER, 443)), (2, syn(SERVER, 443))]);
    bench.file("lan.pcap", &whole[..whole.len() - 9]);
    bench.file("wan.pcap", &ethernet(&[(10, answer(443, b""))]));
    let arguments = ["--in", "lan=lan.pcap", "--in", "wan=wan.pcap", "--out", "wan=out.pcap", "--json"];
    let output = bench.replay(&arguments);
    let lines = json(&output, 1);
    assert_eq!(totals(&lines)["sent"], 3);
    assert_eq!(written(&bench.path("out.pcap")).len(), 2);
    let message = "lan.pcap: packet 3: the file ends in the middle of it";
    assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
    assert_eq!(totals(&lines)["inputs"][0]["error"], message);
}

/// The exit code and the messages of a replay that must not have written anything.
fn refused(bench: &Bench, arguments: &[&str]) -> (i32, String) {
    let output = bench.replay(&[arguments, &["--out", "lan=never.pcap"]].concat());
    assert!(!bench.path("never.pcap").exists());
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    (output.status.code().expect("an exit code"), text(&output.stderr))
}

#[test]
fn what_is_no_ethernet_capture_is_refused() {
    let bench = Bench::new(CONFIG);
    bench.file("sll.pcap", &pcap(Endianness::Little, NANO, DataLink::LINUX_SLL, &[]));
    bench.file("text.pcap", b"this is not a capture at all, however long one looks at it");
    bench.file("empty.pcap", b"");
    let (code, message) = refused(
        &bench,
        &["--in", "lan=sll.pcap", "--in", "lan=text.pcap", "--in", "lan=empty.pcap", "--in", "lan=missing.pcap"],
    );
    assert_eq!(code, 1);
    for expected in [
        "sll.pcap: has link type LINUX_SLL (113): only Ethernet (1) can be replayed",
        "text.pcap: is neither a pcap nor a pcapng file",
        "empty.pcap: is empty",
        "missing.pcap: cannot be opened: ",
    ] {
        assert!(message.contains(expected), "{expected} in {message}");
    }
}

#[test]
fn names_and_files_on_the_command_line_are_checked() {
    let bench = Bench::new(CONFIG);
    let capture = ethernet(&[(0, syn(SERVER, 443))]);
    bench.file("lan.pcap", &capture);
    let (code, message) = refused(&bench, &["--in", "lna=lan.pcap"]);
    assert_eq!(code, 2);
    assert!(message.contains("there is no port \"lna\"; did you mean \"lan\"?"), "{message}");
    let (code, message) = refused(&bench, &["--in", "lan=lan.pcap", "--out", "uplink=x.pcap"]);
    assert_eq!(code, 2);
    assert!(message.contains("there is no port \"uplink\"; fw.toml has: lan, wan"), "{message}");
    assert_eq!(refused(&bench, &["--in", "lan.pcap"]).0, 2);
    assert_eq!(refused(&bench, &[]).0, 2);
    let (code, message) = refused(&bench, &["--in", "lan=lan.pcap", "--out", "wan=./lan.pcap"]);
    assert_eq!(code, 2);
    assert!(message.contains("this is already the file of lan"), "{message}");
    assert_eq!(std::fs::read(bench.path("lan.pcap")).expect("still there"), capture);
    let output = bench.replay(&["--in", "lan=lan.pcap", "--out", "wan=/nonexistent/out.pcap"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("cannot write /nonexistent/out.pcap: "), "{}", text(&output.stderr));
}

#[test]
fn every_mistake_in_the_config_is_named() {
    let bench = Bench::new(
        &CONFIG.replace("default", "defualt").replace("\"cross\", \"acl\"", "\"cross\", \"acl\", \"gaurd\""),
    );
    bench.file("lan.pcap", &ethernet(&[]));
    let (code, message) = refused(&bench, &["--in", "lan=lan.pcap"]);
    assert_eq!(code, 1);
    for near in ["default", "guard"] {
        assert!(message.contains(&format!("did you mean {near:?}?")), "{near} in {message}");
    }
    assert!(message.contains("fw.toml:"), "{message}");
}

#[test]
fn many_packets_keep_their_order() {
    let bench = Bench::new(CONFIG);
    let packet = |at: u32| answer(443, &at.to_be_bytes());
    let side = |port: u32| -> Vec<(u64, Vec<u8>)> {
        // Packets that come alone, in small groups, and in floods longer than a batch.
        (0..3000u32)
            .map(|at| (u64::from(at / 200) * 50_000 + u64::from(at % 7 * port), packet(at * 2 + port)))
            .collect()
    };
    bench.file("a.pcap", &ethernet(&side(0)));
    bench.file("b.pcap", &ethernet(&side(1)));
    let output =
        bench.replay(&["--in", "wan=a.pcap", "--in", "wan=b.pcap", "--out", "lan=out.pcap", "--json", "--verbose"]);
    let lines = json(&output, 0);
    assert_eq!(totals(&lines)["sent"], 6000);
    let numbers: Vec<u64> = lines[..6000].iter().map(|line| line["number"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (1..=6000).collect::<Vec<_>>());
    let packets = written(&bench.path("out.pcap"));
    assert_eq!(packets.len(), 6000);
    for (at, (time, _, _)) in packets.iter().enumerate() {
        let text = format!("{}.{:09}", (START + time) / 1_000_000_000, (START + time) % 1_000_000_000);
        assert_eq!(lines[at]["time"], text, "packet {at} left with the time it came with");
    }
    for input in 0..2 {
        let marks: Vec<u32> = packets
            .iter()
            .map(|(_, _, bytes)| u32::from_be_bytes(*bytes.last_chunk().expect("a mark")))
            .filter(|mark| mark % 2 == input)
            .collect();
        assert!(marks.is_sorted() && marks.len() == 3000, "capture {input} in its own order");
    }
}
