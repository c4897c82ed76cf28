//! Captures of a running appliance, read back by tshark, and the last drops: what is shown is what was sent, to the packet.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use common::appliance::{FLOWGATE, Flowgate, config, number, signal, unique, wait_for};
use common::frames::*;
use common::host::{Tap, dpdk_end};
use common::skip;

/// A capture under way, writing to a file.
struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    /// Begins one, and waits until the workers watch.
    fn start(dir: &Path, socket: &Path, words: &[&str]) -> Capture {
        let file = dir.join(format!("capture{}.pcapng", unique()));
        let mut command = Command::new(FLOWGATE);
        command.arg("capture").args(words).arg("--socket").arg(socket).arg("-w").arg(&file);
        let child = command.stderr(Stdio::piped()).spawn().expect("flowgate starts");
        // The head of the file comes when the workers watch.
        wait_for("the capture begins", || std::fs::metadata(&file).is_ok_and(|file| file.len() > 0));
        Capture { child, file }
    }

    /// Waits for its end, and returns what it said.
    fn end(self) -> (PathBuf, String) {
        let output = self.child.wait_with_output().expect("its output");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {said}", output.status);
        (self.file, said)
    }
}

/// A packet as tshark reads it.
#[derive(Debug)]
struct Row {
    interface: String,
    time: String,
    len: usize,
    kept: usize,
    comment: String,
}

fn tshark(file: &Path) -> Vec<Row> {
    let fields = ["frame.interface_name", "frame.time_epoch", "frame.len", "frame.cap_len", "frame.comment"];
    let mut command = Command::new("tshark");
    command.args(["-n", "-T", "fields", "-E", "separator=|", "-r"]).arg(file);
    let output = command.args(fields.iter().flat_map(|field| ["-e", field])).output().expect("tshark");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let row = |line: &str| {
        let mut cells = line.splitn(5, '|').map(str::to_owned);
        let mut next = || cells.next().unwrap_or_default();
        let (interface, time) = (next(), next());
        let mut size = || next().parse().expect("a number");
        Row { interface, time, len: size(), kept: size(), comment: next() }
    };
    text.lines().map(row).collect()
}

const RULES: &str = r#"
[pipeline]
stages = ["cross", "acl"]
[cross]
wire = [{ ports = ["lan", "wan"] }]
[acl]
default = "deny"
[[acl.rule]]
name = "dns"
service = "udp/53"
action = "allow"
[[acl.rule]]
name = "no telnet"
service = "tcp/23"
action = "deny"
"#;

/// The line of a config at which a rule is written.
fn line_of(toml: &Path, rule: &str) -> usize {
    let text = std::fs::read_to_string(toml).expect("the config");
    let name = text.lines().position(|line| line == format!("name = {rule:?}")).expect("the rule");
    // A rule begins at its header, the line before.
    name
}

fn last_drops(flowgate: &Flowgate, words: &[&str]) -> Vec<Value> {
    let words = [&["show", "drops", "--last", "50", "--json"], words].concat();
    let (good, text) = flowgate.command(&words);
    assert!(good, "{text}");
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    value["drops"].as_array().expect("a list").clone()
}

fn packets(rows: &[Value]) -> u64 {
    rows.iter().map(|row| number(&row["packets"])).sum()
}

#[test]
fn captures_and_the_last_drops_tell_of_every_packet() {
    if Command::new("tshark").arg("--version").output().is_err() {
        return skip("capture", "tshark is not installed");
    }
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let names = ["l", "w"].map(|end| format!("fgc{}{end}", std::process::id() % 1_000_000));
    let port = |at: usize, name: &str, zone: &str| {
        format!("[[port]]\nname = {name:?}\ndevice = \"net_tap{at},iface={}\"\nzone = {zone:?}\n", names[at])
    };
    let toml = port(0, "lan", "inside") + &port(1, "wan", "outside") + RULES;
    let (file, socket) = config(dir, &toml);
    let flowgate = Flowgate::start_file(&file, &socket);
    names.iter().for_each(|name| dpdk_end(None, name));
    let [mut lan, mut wan] = names.each_ref().map(|name| Tap::open(name));
    flowgate.wait_for_link("lan", "up");
    flowgate.wait_for_link("wan", "up");

    let start = |words: &[&str]| Capture::start(dir, &socket, words);
    let everything = "udp port 53 or tcp port 23 or udp port 99";
    let arrived = start(&["--port", "lan", "--direction", "in", "--count", "35", everything]);
    let of_rule = start(&["--rule", "no telnet", "--direction", "in,dropped", "--count", "20"]);
    let dropped = start(&["--reason", "acl", "--zone", "inside", "--count", "15", everything]);
    let sent = start(&["--direction", "out", "--snap", "50", "--count", "20", "udp", "port", "53"]);
    let (good, said) = flowgate.command(&["capture"]);
    assert!(!good && said.contains("4 captures are under way"), "{said}");

    let (a, b) = (ip("10.0.0.1"), ip("192.0.2.1"));
    for n in 0..20 {
        lan.send(&udp(a, 1000 + n, b, 53, &[7; 60]));
    }
    for n in 0..10 {
        lan.send(&tcp(a, 2000 + n, b, 23, SYN, &[]));
    }
    for _ in 0..5 {
        lan.send(&udp(a, 3000, b, 99, &[1; 20]));
    }
    let place = |rule: &str| format!("rule {rule} {}:{}", file.display(), line_of(&file, rule));

    let (capture, said) = arrived.end();
    assert!(said.contains("35 packets captured") && !said.contains("lost"), "{said}");
    let rows = tshark(&capture);
    assert_eq!(rows.len(), 35);
    assert!(rows.iter().all(|row| row.interface == "lan" && row.len == row.kept), "{rows:?}");
    assert!(rows.iter().all(|row| row.time.split('.').nth(1).is_some_and(|part| part.len() == 9)), "{rows:?}");
    assert!(rows.iter().any(|row| !row.time.ends_with("000")), "nanoseconds: {rows:?}");
    let with = |rows: &[Row], words: &str| rows.iter().filter(|row| row.comment.contains(words)).count();
    assert_eq!(with(&rows, &format!("in: sent by wan; {}", place("dns"))), 20, "{rows:#?}");
    assert_eq!(with(&rows, "in: dropped: acl."), 15, "{rows:#?}");
    assert_eq!(with(&rows, &place("no telnet")), 10, "{rows:#?}");

    let (capture, _) = of_rule.end();
    let by_rule = tshark(&capture);
    assert_eq!((by_rule.len(), with(&by_rule, &place("no telnet"))), (20, 20), "{by_rule:#?}");
    // Coming in and being dropped are the same packet's.
    let id = |row: &Row| row.comment.rsplit("; packet ").next().map(str::to_owned);
    let (ins, drops): (Vec<_>, Vec<_>) = by_rule.iter().partition(|row| row.comment.starts_with("in: "));
    let ids = |rows: &[&Row]| rows.iter().map(|row| id(row)).collect::<std::collections::BTreeSet<_>>();
    assert_eq!((ids(&ins).len(), ids(&ins)), (10, ids(&drops)));

    let (capture, _) = dropped.end();
    let rows = tshark(&capture);
    assert_eq!((rows.len(), with(&rows, "dropped: acl.")), (15, 15), "{rows:#?}");

    let (capture, _) = sent.end();
    let rows = tshark(&capture);
    assert_eq!(rows.len(), 20);
    assert!(rows.iter().all(|row| row.interface == "wan" && (row.kept, row.len) == (50, 102)), "{rows:?}");
    assert_eq!(with(&rows, &format!("out: came by lan; {}", place("dns"))), 20, "{rows:#?}");
    assert_eq!(wan.receive(20).len(), 20);

    // The drops, afterwards. Ten ends, and five packets that are alike.
    let rows = last_drops(&flowgate, &[]);
    let expected = flowgate.drops().iter().filter(|(name, _)| name.starts_with("acl.")).map(|(_, n)| n).sum::<u64>();
    // The kernel may have said something by itself.
    assert!(expected >= 15);
    let of_acl = last_drops(&flowgate, &["--reason", "acl"]);
    assert_eq!(packets(&of_acl), expected, "{rows:#?}");
    let telnet = last_drops(&flowgate, &["--rule", "no telnet"]);
    assert_eq!((telnet.len(), packets(&telnet)), (10, 10), "{telnet:#?}");
    assert_eq!(telnet[0]["packet"], "tcp 10.0.0.1:2009 > 192.0.2.1:23 [S]");
    assert_eq!(
        (telnet[0]["port"].as_str(), number(&telnet[0]["line"])),
        (Some("lan"), line_of(&file, "no telnet") as u64)
    );
    let alike = rows.iter().find(|row| row["packet"] == "udp 10.0.0.1:3000 > 192.0.2.1:99").expect("the last ones");
    assert_eq!(number(&alike["packets"]), 5);
    let headers = dir.join("drops.pcapng");
    let words = ["show", "drops", "--last", "50", "--reason", "acl", "-w", headers.to_str().expect("a name")];
    assert!(flowgate.command(&words).0);
    let rows = tshark(&headers);
    assert_eq!((rows.len(), with(&rows, "5 alike")), (of_acl.len(), 1), "{rows:#?}");

    // Another config: the names of before stay, and a capture goes on.
    let during = start(&["--rule", "no telnet", "--direction", "in", "--count", "2"]);
    lan.send(&tcp(a, 4000, b, 23, SYN, &[]));
    wait_for("the drop", || packets(&last_drops(&flowgate, &["--rule", "no telnet"])) == 11);
    let before = line_of(&file, "no telnet");
    let text = std::fs::read_to_string(&file).expect("the config");
    let more = "[[acl.rule]]\nname = \"ntp\"\nservice = \"udp/123\"\naction = \"allow\"\n[[acl.rule]]\nname = \"dns\"";
    let next = dir.join("next.toml");
    std::fs::write(&next, text.replacen("[[acl.rule]]\nname = \"dns\"", more, 1)).expect("writable");
    let (good, said) = flowgate.command(&["apply", next.to_str().expect("a name")]);
    assert!(good, "{said}");
    // As long as the capture is going over, it sees nothing.
    let mut sends = 0;
    let mut during = during;
    wait_for("the capture's end", || {
        lan.send(&tcp(a, 5000, b, 23, SYN, &[]));
        sends += 1;
        during.child.try_wait().expect("its own child").is_some()
    });
    let rows = tshark(&during.file);
    let line = |rows: &[Row], at: usize| rows[at].comment.contains(&format!(":{before};"));
    assert_eq!((rows.len(), line(&rows, 0), line(&rows, 1)), (2, true, false), "{rows:#?}");
    let telnet = last_drops(&flowgate, &["--rule", "no telnet"]);
    let lines = |line: usize| telnet.iter().filter(|row| number(&row["line"]) == line as u64).count();
    assert_eq!((lines(before), lines(before + 4)), (11, 1), "{telnet:#?}");
    assert!(sends > 0);
    flowgate.stop();
}

#[test]
fn captures_are_bounded_and_a_listener_that_sleeps_costs_packets_and_no_worker() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let port = |at: usize, name: &str| format!("[[port]]\nname = {name:?}\ndevice = \"net_null{at},size=64\"\n");
    let cross = "[pipeline]\nstages = [\"cross\"]\n[cross]\nwire = [{ ports = [\"lan\", \"wan\"] }]\n";
    let (file, socket) = config(dir, &(port(0, "lan") + &port(1, "wan") + cross));
    let flowgate = Flowgate::start_file(&file, &socket);
    let start = |words: &[&str]| Capture::start(dir, &socket, words);

    let (capture, said) = start(&["--count", "1000"]).end();
    assert!(said.contains("1,000 packets captured") && !said.contains("lost"), "{said}");
    assert_eq!(tshark(&capture).len(), 1000);
    let (capture, _) = start(&["--size", "20000", "--snap", "20"]).end();
    let (rows, size) = (tshark(&capture), std::fs::metadata(&capture).expect("there").len());
    assert!(rows.iter().all(|row| (row.kept, row.len) == (20, 64)) && size > 19_000, "{size}");
    // What was counted comes behind the packets.
    assert!(size < 20_000 + 3 * 200, "{size} bytes");
    start(&["--seconds", "0.2", "--count", "100000000", "--port", "wan", "ether", "host", "1:2:3:4:5:6"]).end();
    for (words, why) in [
        (&["--port", "lam"][..], "did you mean \"lan\""),
        (&["--reason", "engine.tx-ful"], "did you mean \"engine.tx-full\""),
        (&["tcp", "prot", "5"], "libpcap"),
        (&["--rule", "x"], "there is no rule \"x\""),
    ] {
        let (good, said) = flowgate.command(&[&["capture"], words].concat());
        assert!(!good && said.contains(why), "{said}");
    }

    // Nobody reads.
    let mut sleeper = Command::new(FLOWGATE)
        .args(["capture", "-w", "-", "--socket"])
        .arg(&socket)
        .stdout(Stdio::piped())
        .spawn()
        .expect("flowgate starts");
    let status = || {
        let (good, text) = flowgate.command(&["show", "captures", "--json"]);
        assert!(good, "{text}");
        let all: Value = serde_json::from_str(&text).expect("JSON");
        all["captures"].as_array().expect("a list").last().expect("a capture").clone()
    };
    wait_for("packets are lost", || status()["under_way"] == true && number(&status()["lost"]) > 0);
    let received = || number(&flowgate.port("lan")["rx_packets"]);
    let before = received();
    wait_for("the worker goes on", || received() > before + 100_000);
    signal("KILL", sleeper.id());
    sleeper.wait().expect("its own child");
    wait_for("the capture ends with its listener", || status()["under_way"] == false);

    // Into a pipe, as Wireshark reads it.
    let pipe = dir.join("pipe.pcapng");
    let out = File::create(&pipe).expect("writable");
    let mut command = Command::new(FLOWGATE);
    command.args(["capture", "--count", "10", "-w", "-", "--socket"]).arg(&socket).stdout(out);
    assert!(command.status().expect("flowgate starts").success());
    assert_eq!(tshark(&pipe).len(), 10);
    let (good, text) = flowgate.command(&["capture", "--count", "3", "--direction", "in", "--json"]);
    assert!(good && text.lines().filter(|line| line.contains("\"direction\":\"in\"")).count() == 3, "{text}");
    flowgate.stop();
}
