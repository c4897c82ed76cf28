//! The real binary's `check` and `describe`: what they say, and how they exit.

use std::process::{Command, Output};

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

/// (place, key, a part of the message or of the help).
const TWELVE: &[(&str, &str, &str)] = &[
    ("tests/config/bad.txt:3:3", "set.bad.file", "expected an address"),
    ("tests/config/twelve.toml:4:13", "worker.cores", "core 2 is taken twice"),
    ("tests/config/twelve.toml:5:1", "worker.burts", "did you mean \"burst\"?"),
    ("tests/config/twelve.toml:8:13", "memory.hugepages", "did you mean \"off\"?"),
    (
        "tests/config/twelve.toml:9:11",
        "memory.packets",
        "expected an integer from 1024 to 16777216 or \"auto\", found 12",
    ),
    ("tests/config/twelve.toml:13:10", "port[0].device", "expected a PCI address such as"),
    ("tests/config/twelve.toml:19:7", "port[1].mtu", "expected an integer from 68 to 9600, found a string"),
    ("tests/config/twelve.toml:22:11", "set.office[0]", "did you mean \"10.0.0.0/8\"?"),
    ("tests/config/twelve.toml:22:25", "set.office[1]", "did you mean \"office\"?"),
    ("tests/config/twelve.toml:26:18", "service.web[1]", "did you mean \"tcp/443\"?"),
    ("tests/config/twelve.toml:32:17", "cross.wire[0].ports", "did you mean \"lan\"?"),
    ("tests/config/twelve.toml:35:9", "", "expected a value behind \"=\""),
];

#[test]
fn twelve_mistakes_are_twelve_messages() {
    let output = flowgate(&["check", "tests/config/twelve.toml", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("a list");
    assert_eq!(list.len(), TWELVE.len(), "{list:#?}");
    for (mistake, (place, key, part)) in list.iter().zip(TWELVE) {
        let file = mistake["file"].as_str().expect("a place");
        assert_eq!(format!("{file}:{}:{}", mistake["line"], mistake["column"]), *place);
        assert_eq!(mistake["key"], *key);
        let said = format!("{} {}", mistake["message"].as_str().unwrap_or(""), mistake["help"].as_str().unwrap_or(""));
        assert!(said.contains(part), "{place}: {said}");
    }
}

#[test]
fn people_see_the_line_and_a_caret() {
    let output = flowgate(&["check", "tests/config/twelve.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output.stdout);
    for (place, ..) in TWELVE {
        assert!(text.contains(&format!("{place}: ")), "{place} in {text}");
    }
    assert!(text.contains(" 5 | burts = 32\n   | ^\n   = did you mean \"burst\"?\n"), "{text}");
    assert!(text.contains(" 3 |   192.0.2.300  # no such address\n   |   ^\n"), "{text}");
    assert!(text.ends_with("12 mistakes in tests/config/twelve.toml\n"), "{text}");
    assert!(!text.contains('\x1b'), "colours where there is no terminal");
}

#[test]
fn a_good_file_is_summed_up() {
    let output = flowgate(&["check", "tests/config/good.toml"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let text = text(&output.stdout);
    let expected = "tests/config/good.toml is good: 2 ports (lan, wan), 1 worker, 1 stage (cross), 0 rules.\n";
    assert!(text.starts_with(expected), "{text}");
    assert_eq!(flowgate(&["check", "tests/config/good.toml", "--json"]).stdout, b"[]\n");
    let output = flowgate(&["check", "config/api.toml", "--deny-warnings"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The rules of `tests/config/lint.toml` that do nothing: (line, kind, witness, lines of the rules involved).
const LINT: &[(u64, &str, &str, &[u64])] = &[
    (40, "shadowed", "tcp 10.0.0.1:1024 > 192.0.2.8:22 in lan", &[34]),
    (47, "redundant", "tcp 10.0.0.1:1024 > 192.0.2.1:443 in lan", &[20, 27]),
    (54, "never-counts", "tcp 10.0.0.1:1024 > 192.0.2.1:23 in lan", &[34]),
    (60, "never-matches", "", &[]),
    (66, "never-matches", "", &[]),
    (72, "redundant", "udp 10.0.0.1:1024 > 192.0.2.1:53 in lan vlan 100", &[79]),
    (85, "redundant", "tcp [2001:db8::1]:1024 > [2001:db8:1::1]:1024 in wan", &[]),
];

#[test]
fn rules_that_do_nothing_are_warned_of() {
    let output = flowgate(&["check", "tests/config/lint.toml", "--json"]);
    assert_eq!(output.status.code(), Some(0), "warnings are no mistakes");
    let list: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("a list");
    let lines = |finding: &serde_json::Value| -> Vec<u64> {
        let involved = finding["involved"].as_array().expect("a list");
        involved.iter().filter_map(|other| other["line"].as_u64()).collect()
    };
    let found: Vec<(u64, &str, &str, Vec<u64>)> = list
        .iter()
        .map(|finding| {
            let text = |key: &str| finding[key].as_str().unwrap_or_default();
            (finding["line"].as_u64().expect("a line"), text("kind"), text("witness"), lines(finding))
        })
        .collect();
    let expected: Vec<_> =
        LINT.iter().map(|(at, kind, packet, others)| (*at, *kind, *packet, others.to_vec())).collect();
    assert_eq!(found, expected);
    assert_eq!(list[0]["key"], "acl.rule[3]");
    assert_eq!(list[0]["involved"][0]["rule"], "no remote shells");
    assert_eq!(flowgate(&["check", "tests/config/lint.toml", "--deny-warnings"]).status.code(), Some(1));
    assert_eq!(flowgate(&["check", "tests/config/good.toml", "--deny-warnings"]).status.code(), Some(0));
}

#[test]
fn warnings_are_shown_with_their_lines() {
    let output = flowgate(&["check", "tests/config/lint.toml"]);
    assert_eq!(output.status.code(), Some(0));
    let text = text(&output.stdout);
    assert!(text.starts_with("tests/config/lint.toml is good: "), "{text}");
    let expected = "tests/config/lint.toml:40:1: warning: acl.rule[3] \"shell to the jump host\": shadowed: earlier rules \
                    decide all it would allow, some of it otherwise, as \"no remote shells\" does\n \
                    40 | [[acl.rule]]\n    | ^\n    = such as tcp 10.0.0.1:1024 > 192.0.2.8:22 in lan\n    \
                    = see tests/config/lint.toml:34:1: \"no remote shells\" (deny)\n    \
                    = move it before them, or remove it\n";
    assert!(text.contains(expected), "{text}");
    assert!(text.ends_with("7 warnings in tests/config/lint.toml\n"), "{text}");
}

#[test]
fn exit_codes() {
    assert_eq!(flowgate(&["check", "tests/config/none.toml"]).status.code(), Some(3));
    assert_eq!(flowgate(&["check"]).status.code(), Some(2));
    assert_eq!(flowgate(&["describe", "tests/config/twelve.toml"]).status.code(), Some(1));
    assert_eq!(flowgate(&["--version"]).status.code(), Some(0));
}

#[test]
fn a_pipeline_is_described() {
    let output = flowgate(&["--describe", "tests/config/good.toml"]);
    assert_eq!(output.status.code(), Some(0));
    let shown = text(&output.stdout);
    assert!(shown.contains("1. cross\n") && shown.contains("no-wire") && shown.contains("engine.tx-full"), "{shown}");
    let output = flowgate(&["--describe", "tests/config/good.toml", "--json"]);
    let described: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(described["stages"][0]["stage"], "cross");
    assert_eq!(described["stages"][0]["drops"][0]["name"], "no-wire");
    let all: serde_json::Value = serde_json::from_slice(&flowgate(&["describe", "--json"]).stdout).expect("JSON");
    assert!(
        all["stages"].as_array().is_some_and(|stages| stages.iter().any(|stage| stage["keys"][0]["name"] == "wire"))
    );
}

/// The configurations shown in the documentation are whole and good: those with ports are files of their own.
#[test]
fn documented_configurations_are_good() {
    let mut seen = 0;
    for page in ["README.md", "docs/bare-metal.md", "docs/design.md"] {
        let text = std::fs::read_to_string(page).expect("a page of the documentation");
        for block in text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            if !block.contains("[[port]]") {
                continue;
            }
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("documented.toml");
            std::fs::write(&file, block).expect("writable");
            let out = std::process::Command::new(env!("CARGO_BIN_EXE_flowgate"))
                .arg("check")
                .arg(&file)
                .output()
                .expect("flowgate runs");
            assert!(out.status.success(), "{page}: {}", String::from_utf8_lossy(&out.stdout));
            seen += 1;
        }
    }
    assert!(seen > 0, "the README shows a configuration");
    for file in ["config/demo.toml", "config/firewall.toml", "config/router.toml", "config/bgp.toml"] {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_flowgate"))
            .args(["check", "--deny-warnings", file])
            .output()
            .expect("flowgate runs");
        assert!(out.status.success(), "{file}: {}", String::from_utf8_lossy(&out.stdout));
    }
}
