//! Another config for the running binary: under traffic, by hand, from a bad file, and by a process that is killed in the midst.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::appliance::{Flowgate, SMALL, signal, wait_for, workers};
use common::frames::*;

/// A box between an endless source of two flows, one frame each in turn, and nothing.
struct Box {
    dir: tempfile::TempDir,
    workers: String,
}

/// The rules of a box: flow `a` is always allowed.
struct Rules<'a> {
    b: &'a str,
    more: usize,
    rest: &'a str,
}

const BOTH: Rules<'_> = Rules { b: "allow", more: 0, rest: "" };
const ONE: Rules<'_> = Rules { b: "deny", more: 3, rest: "" };

impl Box {
    fn new(count: usize) -> Box {
        let frames: Vec<Frame> =
            (0..512).map(|at| udp(ip("10.0.0.1"), 1000, ip("192.0.2.1"), 53 + at % 2, &[0; 20])).collect();
        let made = Box { dir: tempfile::tempdir().expect("a folder"), workers: workers(count) };
        write_pcap(&made.dir.path().join("in.pcap"), &frames);
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn toml(&self, Rules { b, more, rest }: Rules<'_>) -> String {
        let rule = |name: &str, port: u32, action: &str| {
            format!("[[acl.rule]]\nname = {name:?}\nfrom = ['inside']\nservice = ['udp/{port}']\naction = {action:?}\n")
        };
        let more: String = (0..more).map(|n| rule(&format!("more-{n}"), 2000 + n as u32, "deny")).collect();
        [
            "[[port]]\nname = 'lan'\nzone = 'inside'",
            &format!("device = 'net_pcap0,rx_pcap={},tx_pcap=/dev/null,infinite_rx=1'", self.path("in.pcap").display()),
            "[[port]]\nname = 'wan'\nzone = 'outside'\ndevice = 'net_null0,no-rx=1'",
            "[set]\nbad = ['198.51.100.0/24']",
            "[pipeline]\nstages = ['guard', 'conntrack', 'cross', 'acl']\n[guard]\ndrop = ['@bad']",
            "[cross]\nwire = [{ ports = ['lan', 'wan'] }]",
            &more,
            &rule("a", 53, "allow"),
            &rule("b", 54, b),
            rest,
            &self.workers,
            SMALL,
            &format!("[control]\nsocket = {:?}\nhistory = {:?}\n", self.path("fg.sock"), self.path("history")),
        ]
        .join("\n")
    }

    /// Writes a file.
    fn put(&self, name: &str, rules: Rules<'_>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, self.toml(rules)).expect("a writable folder");
        path
    }

    fn start(&self) -> Flowgate {
        Flowgate::start_file(&self.put("run.toml", BOTH), &self.path("fg.sock"))
    }
}

fn apply(flowgate: &Flowgate, file: &Path, more: &[&str]) -> String {
    let (good, said) = flowgate.command(&[&["apply", &file.display().to_string()], more].concat());
    assert!(good, "{said}\n{}", flowgate.log());
    said
}

fn packets(flowgate: &Flowgate) -> BTreeMap<String, u64> {
    flowgate.rules().into_iter().map(|(name, (packets, _))| (name, packets)).collect()
}

fn denied(flowgate: &Flowgate) -> u64 {
    flowgate.drops().get("acl.denied").copied().unwrap_or_default()
}

fn resident(flowgate: &Flowgate) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", flowgate.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux says so");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// One config after the other, ten a second; `FLOWGATE_APPLY_SECONDS` says for how long.
fn reload_under_traffic(count: usize) {
    let seconds = std::env::var("FLOWGATE_APPLY_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let made = Box::new(count);
    let flowgate = made.start();
    let files = [made.put("one.toml", ONE), made.put("both.toml", BOTH)];
    wait_for("traffic", || packets(&flowgate)["a"] > 1000);
    let (until, mut turns, mut before) = (Instant::now() + Duration::from_secs(seconds), 0, 0);
    while Instant::now() < until || turns % 2 == 0 {
        let next = Instant::now() + Duration::from_millis(100);
        apply(&flowgate, &files[turns % 2], &[]);
        if turns % 2 == 0 {
            // Within the time between two looks at the rules, no packet of `b` went anywhere but to its end.
            let dropped = denied(&flowgate);
            let (first, then) = (packets(&flowgate), packets(&flowgate));
            let dropped = denied(&flowgate) - dropped;
            assert!(dropped >= then["b"] - first["b"], "{} of b, {dropped} denied", then["b"] - first["b"]);
        }
        turns += 1;
        if turns == 8 {
            before = resident(&flowgate);
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let after = resident(&flowgate);
    assert!(turns > 10, "{turns} turns");
    assert!(after < before + 8192, "{before} KiB resident grew to {after} after {turns} turns");
    let reasons: Vec<String> = flowgate.drops().into_keys().collect();
    if count == 1 {
        // The flows come in turn, so that as many packets of one as of the other were taken by their rules; a batch may be cut.
        let counted = packets(&flowgate);
        assert!(counted["a"].abs_diff(counted["b"]) <= 64, "{counted:?}");
        assert_eq!(reasons, ["acl.denied"]);
    } else {
        // The source is faster than the worker that packets are handed to.
        assert!(reasons.iter().all(|reason| reason == "acl.denied" || reason == "engine.handoff-full"), "{reasons:?}");
    }
    flowgate.stop();
}

#[test]
fn configs_change_under_traffic_without_a_lost_packet() {
    reload_under_traffic(1);
}

#[test]
fn configs_change_under_traffic_with_two_workers() {
    reload_under_traffic(2);
}

#[test]
fn what_an_operator_does_to_a_running_box() {
    let made = Box::new(1);
    let flowgate = made.start();
    let run = made.path("run.toml");
    let text = |path: &Path| std::fs::read_to_string(path).expect("it is there");
    let say = |words: &[&str]| flowgate.command(words);
    wait_for("traffic", || packets(&flowgate)["b"] > 1000);

    // What would change, and whom it would hit.
    let one = made.put("one.toml", ONE);
    let (same, said) = say(&["diff", &one.display().to_string(), "--flows", "5"]);
    assert!(!same && said.contains("+ acl.rule[b].action = \"deny\""), "{said}");
    assert!(said.contains("Ends 1 of 2 flows"), "{said}");
    assert!(said.contains("acl/b"), "{said}");
    let before = text(&run);

    // A bad file: all its mistakes, and nothing else.
    let bad =
        made.put("bad.toml", Rules { rest: "[[acl.rule]]\nname = 'x'\naction = 'alow'\nfrom = ['nowhere']\n", ..ONE });
    let (good, said) = say(&["apply", &bad.display().to_string()]);
    assert!(!good && said.contains("alow") && said.contains("bad.toml:"), "{said}");
    assert_eq!((text(&run), packets(&flowgate).len()), (before.clone(), 2));

    // A test of the policy that does not hold.
    let test = "[[test]]\npacket = 'udp 10.0.0.1:9 > 192.0.2.1:54 in lan'\nexpect = 'allow'\n";
    let failing = made.put("failing.toml", Rules { rest: test, ..ONE });
    let (good, said) = say(&["apply", &failing.display().to_string()]);
    assert!(!good && said.contains("test[0]"), "{said}");
    assert_eq!(packets(&flowgate).len(), 2);

    // What needs a restart.
    let other = made.path("other.toml");
    std::fs::write(&other, before.replace("packets = 8192", "packets = 16384")).expect("written");
    let (good, said) = say(&["apply", &other.display().to_string()]);
    assert!(!good && said.contains("only a restart changes memory.packets"), "{said}");

    // To be confirmed: the file stays what it was until then, and nobody does.
    apply(&flowgate, &one, &["--confirm", "2s"]);
    assert_eq!((packets(&flowgate).len(), text(&run)), (5, before.clone()));
    wait_for("it goes back", || packets(&flowgate).len() == 2);
    let (good, said) = say(&["confirm"]);
    assert!(!good && said.contains("nothing to confirm"), "{said}");

    // Confirmed.
    apply(&flowgate, &one, &["--confirm", "60s"]);
    assert!(say(&["confirm"]).0);
    assert_eq!((packets(&flowgate).len(), text(&run)), (5, text(&one)));
    assert!(apply(&flowgate, &one, &[]).contains("runs already"));
    assert!(apply(&flowgate, &one, &["--check"]).contains("No difference"));
    assert_eq!(say(&["show", "config"]), (true, text(&one)));

    // Back.
    let (good, said) = say(&["rollback"]);
    assert!(good, "{said}");
    assert_eq!((packets(&flowgate).len(), text(&run)), (2, before.clone()));
    let (_, history) = say(&["history"]);
    assert!(history.contains("rollback") && history.contains("not confirmed"), "{history}");

    // The file again, by signal; a bad one too.
    std::fs::write(&run, text(&one)).expect("written");
    signal("HUP", flowgate.pid());
    wait_for("the file is read", || packets(&flowgate).len() == 5);
    std::fs::write(&run, text(&bad)).expect("written");
    signal("HUP", flowgate.pid());
    wait_for("it says no", || flowgate.log().contains("not applied; what runs keeps running"));
    assert_eq!(packets(&flowgate).len(), 5);
    flowgate.stop();
}

#[test]
fn sets_change_without_another_config() {
    let made = Box::new(1);
    let flowgate = made.start();
    let blocked = || flowgate.drops().get("guard.blocked-source").copied().unwrap_or_default();
    wait_for("traffic", || packets(&flowgate)["a"] > 1000);
    assert_eq!(blocked(), 0);
    let (good, said) = flowgate.command(&["set", "add", "bad", "10.0.0.1", "--for", "3s"]);
    assert!(good, "{said}");
    wait_for("it is blocked", || blocked() > 0);
    // It survives another config.
    apply(&flowgate, &made.put("one.toml", ONE), &[]);
    let (first, _) = (blocked(), std::thread::sleep(Duration::from_millis(100)));
    assert!(blocked() > first);
    wait_for("its time passes", || {
        let at = blocked();
        std::thread::sleep(Duration::from_millis(100));
        blocked() == at
    });
    let list = made.path("list.txt");
    std::fs::write(&list, "10.0.0.0/8 # ours\n2001:db8::/32\n").expect("written");
    assert!(flowgate.command(&["set", "replace", "bad", &list.display().to_string()]).0);
    let (_, shown) = flowgate.command(&["set", "show", "bad"]);
    assert_eq!(shown, "10.0.0.0/8\n2001:db8::/32\n");
    let (good, said) = flowgate.command(&["set", "add", "bda", "10.0.0.1"]);
    assert!(!good && said.contains("did you mean \"bad\"?"), "{said}");
    flowgate.stop();

    // And another start.
    let flowgate = Flowgate::start_file(&made.path("run.toml"), &made.path("fg.sock"));
    assert_eq!(flowgate.command(&["set", "show", "bad"]).1, "10.0.0.0/8\n2001:db8::/32\n");
    assert!(flowgate.command(&["set", "reset", "bad"]).0);
    assert_eq!(flowgate.command(&["set", "show", "bad"]).1, "198.51.100.0/24\n");
    flowgate.stop();
}

#[test]
fn a_process_that_is_killed_leaves_the_old_or_the_new_file() {
    let made = Box::new(1);
    let one = made.put("one.toml", ONE);
    let (old, new) = (made.toml(BOTH), made.toml(ONE));
    for turn in 0..8 {
        let flowgate = made.start();
        let run = made.path("run.toml");
        let asking = std::process::Command::new(common::appliance::FLOWGATE)
            .args(["apply", &one.display().to_string(), "--socket", &made.path("fg.sock").display().to_string()])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        std::thread::sleep(Duration::from_millis(turn * 12));
        flowgate.crash();
        let _ = asking.expect("it starts").wait();
        let text = std::fs::read_to_string(&run).expect("it is there");
        assert!(text == old || text == new, "{text}");
        let count = if text == old { 2 } else { 5 };
        let again = Flowgate::start_file(&run, &made.path("fg.sock"));
        assert_eq!(packets(&again).len(), count);
        again.stop();
    }
}
