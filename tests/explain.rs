//! The real binary's `explain` and `test`: what they say, and how they exit.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flowgate::io::capture::Writer;
use flowgate::testkit::packets::Packet;

fn flowgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flowgate"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// A config without hugepages and NICs, with tests behind it, on a socket of its own.
fn config(folder: &Path, tests: &str) -> PathBuf {
    let socket = folder.join("fg.sock").display().to_string();
    let text = format!(
        "[worker]\ncores = [0]\n[memory]\nhugepages = \"off\"\npackets = 2048\n\
         [[port]]\nname = \"lan\"\ndevice = \"net_null0\"\nzone = \"inside\"\n\
         [[port]]\nname = \"wan\"\ndevice = \"net_null1\"\nzone = \"outside\"\n\
         [pipeline]\nstages = [\"cross\", \"acl\"]\n[cross]\nwire = [{{ ports = [\"lan\", \"wan\"] }}]\n\
         [[acl.rule]]\nname = \"web\"\nfrom = \"inside\"\nservice = \"tcp/443\"\naction = \"allow\"\n\
         [control]\nsocket = \"{socket}\"\n{tests}"
    );
    let file = folder.join("policy.toml");
    std::fs::write(&file, text).expect("writable");
    file
}

const GOOD: &str = "[[test]]\nname = \"web goes out\"\npacket = \"tcp any > any:443 in inside\"\nexpect = \"allow\"\nrule = \"web\"\n\
                    [[test]]\nname = \"nothing else\"\npacket = \"any any > any in inside\"\nexpect = \"deny\"\nexcept = \"web\"\n";
const BAD: &str = "[[test]]\nname = \"closed\"\npacket = [\"any any > any in outside\", \"any any > any in inside\"]\nexpect = \"deny\"\n";

#[test]
fn a_packet_is_explained_stage_by_stage() {
    let output = flowgate(&["explain", "config/demo.toml", "tcp 10.77.0.1:40000 > 10.77.0.2:443 syn in lan"]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for part in ["\nguard      lets it pass\n", "cross      it leaves by wan\n", "by rule \"web\" (config/demo.toml:"] {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
    let json = flowgate(&["explain", "--json", "config/demo.toml", "tcp 10.77.0.66:4 > 10.77.0.2:443 syn in lan"]);
    let told: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&told["verdict"]["stage"], &told["verdict"]["reason"]), (&"guard".into(), &"blocked-source".into()));
    assert_eq!(told["headers"][2]["fields"]["destination_port"], 443);
}

#[test]
fn a_packet_comes_out_of_a_capture() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a.pcap");
    let mut capture = Writer::create(&file).expect("created");
    for port in [80, 22] {
        let frame = Packet::tcp("10.77.0.1:40000", &format!("10.77.0.2:{port}")).bytes();
        capture.write(1_700_000_000_000_000_000, &frame, 0).expect("written");
    }
    capture.finish().expect("written");
    let file = file.display().to_string();
    let explain =
        |more: &[&str]| flowgate(&[&["explain", "config/demo.toml", "--json", "--pcap", &file], more].concat());
    for (number, verdict) in [("1", "sent"), ("2", "dropped")] {
        let output = explain(&["--packet", number, "--in", "lan"]);
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(told["verdict"]["verdict"], verdict);
        assert_eq!(told["verdict"]["time"], "1700000000.000000000");
    }
    let beyond = explain(&["--packet", "3", "--in", "lan"]);
    assert_eq!(beyond.status.code(), Some(2));
    assert!(text(&beyond.stderr).contains("has 2 packets, and no packet 3"));
    let nowhere = explain(&["--in", "lam"]);
    assert!(text(&nowhere.stderr).contains("--in lam: there is no port \"lam\"; did you mean \"lan\"?"));
    assert_eq!(explain(&[]).status.code(), Some(2), "the port is missing");
}

#[test]
fn what_cannot_be_explained_is_said_with_its_place() {
    let output = flowgate(&["explain", "config/demo.toml", "tcp 10.77.0.1:40000 > 10.77.0.2:443 sin in lan"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("\"sin\" says nothing here; did you mean"), "{said}");
    let place = format!("  {}^\n", " ".repeat(36));
    assert!(said.ends_with(&place), "{said}");
    assert_eq!(flowgate(&["explain", "config/demo.toml"]).status.code(), Some(2));
    let nobody = flowgate(&["explain", "--live", "--socket", "/nonexistent.sock", "udp 10.0.0.1 > 10.0.0.2:5 in lan"]);
    assert_eq!(nobody.status.code(), Some(3));
    assert!(text(&nobody.stderr).contains("is flowgate running"));
}

#[test]
fn a_policy_that_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = config(folder.path(), GOOD).display().to_string();
    let output = flowgate(&["test", &file]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    assert!(shown.contains("ok      nothing else  ") && shown.ends_with("\n2 of 2 tests hold\n"), "{shown}");
    assert_eq!(flowgate(&["check", &file]).status.code(), Some(0));
    let demo = flowgate(&["test", "config/demo.toml", "--json"]);
    let list: Vec<serde_json::Value> = serde_json::from_slice(&demo.stdout).expect("JSON");
    assert!(demo.status.success() && list.len() >= 4 && list.iter().all(|test| test["result"] == "ok"), "{list:#?}");
}

#[test]
fn a_policy_that_does_not_hold() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = config(folder.path(), BAD).display().to_string();
    let output = flowgate(&["test", &file]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    let packet = "tcp 198.51.100.5:40000 > 10.0.0.5:443 in lan";
    let got = format!("got allow by rule \"web\" ({file}:18), leaving by wan, for {packet}");
    for part in ["failed  closed  ", &got, &format!("flowgate explain {file} '{packet}'\n"), "0 of 1 tests hold"] {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
    let output = flowgate(&["test", &file, "--json"]);
    let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), &list[0]["line"]), (Some(1), &26.into()));
    assert_eq!((&list[0]["packet"], &list[0]["decided_at"]["line"]), (&packet.into(), &18.into()));
    // The packet shows what the test says it does.
    let told = flowgate(&["explain", "--json", &file, packet]);
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).expect("JSON");
    assert_eq!((&told["verdict"]["verdict"], &told["verdict"]["rule"]), (&"sent".into(), &"web".into()));

    let check = flowgate(&["check", &file]);
    assert_eq!(check.status.code(), Some(1));
    let said = text(&check.stdout);
    assert!(said.contains(&format!("{file}:26:8: test[0]: \"closed\" failed: expected deny, got allow")), "{said}");
    let run = flowgate(&["run", &file]);
    assert_eq!(run.status.code(), Some(1), "{}", text(&run.stderr));
    assert!(text(&run.stderr).contains("\"closed\" failed: expected deny"), "{}", text(&run.stderr));
}
