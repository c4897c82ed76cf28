//! What watches the real binary: metrics as Prometheus and OpenMetrics read them, the dashboard in a browser, `flowgate top`;
//! and that all of them say the same, to the packet.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::appliance::{FLOWGATE, Flowgate, PATIENCE, number, wait_for, workers};
use common::frames::*;
use common::skip;
use serde_json::Value;

/// Asks for a resource as `curl` would: status, headers, body.
fn get(socket: &Path, path: &str, accept: &str) -> (u16, String, String) {
    let mut stream = UnixStream::connect(socket).expect("flowgate answers");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: flowgate\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")
        .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("headers and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, head.to_lowercase(), body.to_owned())
}

/// The samples of a scrape, by name and labels as they are written.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(flowgate: &Flowgate) -> Scrape {
        let (status, _, text) = get(&flowgate.socket, "/metrics", "*/*");
        assert_eq!(status, 200, "{text}");
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a value");
            (name.to_owned(), value.parse().expect("a number"))
        });
        let mut all = BTreeMap::new();
        for (name, value) in samples {
            assert!(all.insert(name.clone(), value).is_none(), "{name} is told twice");
        }
        Scrape(all)
    }

    fn value(&self, name: &str) -> u64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no {name} in {:#?}", self.0.keys())) as u64
    }

    /// The samples of a name, added up.
    fn sum(&self, name: &str) -> u64 {
        self.0.iter().filter(|(key, _)| key.split('{').next() == Some(name)).map(|(_, value)| *value as u64).sum()
    }

    /// Every worker's account closes, drops add up by reason, and bursts hold what was received.
    fn check(&self, workers: usize) {
        for worker in 0..workers {
            let term = |name: &str| self.value(&format!("flowgate_worker_{name}_packets_total{{worker=\"{worker}\"}}"));
            let held = self.value(&format!("flowgate_worker_held_packets{{worker=\"{worker}\"}}"));
            let came = term("received") + term("created") + term("handed_in");
            let went = ["sent", "consumed", "dropped", "merged", "handed_out"].map(term).iter().sum::<u64>() + held;
            assert_eq!(came, went, "worker {worker}");
            let bursts = self.value(&format!("flowgate_worker_burst_packets_sum{{worker=\"{worker}\"}}"));
            assert_eq!(bursts, term("received"));
        }
        assert_eq!(self.sum("flowgate_dropped_packets_total"), self.sum("flowgate_worker_dropped_packets_total"));
        assert_eq!(self.sum("flowgate_port_rx_packets_total"), self.sum("flowgate_worker_received_packets_total"));
        assert_eq!(self.sum("flowgate_port_tx_packets_total"), self.sum("flowgate_worker_sent_packets_total"));
    }
}

fn run(program: &str, args: &[&str], input: &str) -> Option<Output> {
    let command =
        Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = command.ok()?;
    // What does not read to the end says why.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    Some(child.wait_with_output().expect("it ends"))
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

const FIREWALL: &str = r#"
    [pipeline]
    stages = ["guard", "conntrack", "cross", "acl"]
    [cross]
    wire = [{ ports = ["lan", "wan"] }]
    [metrics]
    latency_sample = 1
    rules = 2
    [acl]
    default = "deny"
    [[acl.rule]]
    name = "a \"quoted\" \\ name"
    service = "tcp/443"
    action = "allow"
    [[acl.rule]]
    name = "dns"
    service = "udp/53"
    action = "allow"
    [[acl.rule]]
    name = "third"
    service = "udp/54"
    action = "allow"
    [[acl.rule]]
    name = "fourth"
    service = "udp/55"
    action = "allow"
"#;

/// Frames of some hosts that pass by three rules, and some that do not.
fn traffic() -> Vec<Frame> {
    let server = ip("192.0.2.7");
    let of = |i: u16| {
        let host = ip(&format!("10.0.0.{}", i % 20 + 1));
        match i % 5 {
            0 => tcp(host, 40_000 + i, server, 443, SYN, &[]),
            1 => udp(host, 40_000 + i, server, 53, &vec![1; usize::from(i)]),
            2 => udp(host, 40_000 + i, server, 54, &[2; 100]),
            3 => udp(host, 40_000 + i, server, 55, &[3; 200]),
            _ => udp(host, 40_000 + i, server, 99, &[4; 300]),
        }
    };
    (0..200).map(of).collect()
}

/// Ports `lan`, which receives a capture (for ever, if `forever`), and `wan`, which takes all.
fn ports(dir: &Path, frames: &[Frame], forever: bool) -> String {
    let path = dir.join("lan.pcap");
    write_pcap(&path, frames);
    let forever = if forever { ",infinite_rx=1" } else { "" };
    format!(
        "[[port]]\nname = 'lan'\ndevice = 'net_pcap0,rx_pcap={}{forever}'\nzone = 'inside'\n\
         [[port]]\nname = 'wan'\ndevice = 'net_pcap1,rx_pcap={},tx_pcap={}'\nzone = 'outside'\n",
        path.display(),
        dir.join("none.pcap").display(),
        dir.join("wan.pcap").display()
    )
}

#[test]
fn everybody_says_the_same_to_the_packet() {
    let dir = tempfile::tempdir().expect("a folder");
    let frames = traffic();
    write_pcap(&dir.path().join("none.pcap"), &[]);
    let flowgate = Flowgate::start(dir.path(), &(ports(dir.path(), &frames, false) + FIREWALL));
    flowgate.settled(200);
    let scrape = Scrape::of(&flowgate);
    scrape.check(1);
    let (status, _, overview) = get(&flowgate.socket, "/v1/overview", "*/*");
    let overview: Value = serde_json::from_str(&overview).expect("JSON");
    assert_eq!(status, 200);

    // Ports: flowgate's counters, the device's, those of its queues, the file that was written.
    let (lan, wan) = (flowgate.port("lan"), flowgate.port("wan"));
    let sent = read_pcap(&dir.path().join("wan.pcap")).len() as u64;
    for (port, at, way, count) in [(&lan, 0, "rx", 200), (&wan, 1, "tx", sent)] {
        let name = port["name"].as_str().expect("a name");
        let key = format!("{way}_packets");
        assert_eq!(number(&port[&key]), count);
        assert_eq!(number(&port["device_counters"][&key]), count);
        assert_eq!(scrape.value(&format!("flowgate_port_{key}_total{{port=\"{name}\"}}")), count);
        assert_eq!(scrape.value(&format!("flowgate_device_{key}_total{{port=\"{name}\"}}")), count);
        assert_eq!(scrape.value(&format!("flowgate_queue_{key}_total{{port=\"{name}\",queue=\"0\"}}")), count);
        assert_eq!(overview["ports"][at][&key], count);
        assert_eq!(overview["ports"][at]["device"][&key], count);
    }
    let bytes: usize = frames.iter().map(Vec::len).sum();
    assert_eq!(scrape.value("flowgate_device_rx_bytes_total{port=\"lan\"}"), bytes as u64);

    // Drops and rules. The first two rules have metrics of their own.
    assert_eq!(flowgate.drops(), BTreeMap::from([("acl.denied-default".to_owned(), 40)]));
    assert_eq!(scrape.value("flowgate_dropped_packets_total{stage=\"acl\",reason=\"denied-default\"}"), 40);
    assert_eq!(overview["drops"][0]["packets"], 40);
    let of = |rule: &str| scrape.value(&format!("flowgate_rule_packets_total{{stage=\"acl\",rule=\"{rule}\"}}"));
    let shown = flowgate.rules();
    assert_eq!((of("a \\\"quoted\\\" \\\\ name"), of("dns"), of("others")), (40, shown["dns"].0, 80));
    assert_eq!(shown["third"].0 + shown["fourth"].0, of("others"));
    let most = overview["rules"]["most_hit"].as_array().expect("a list");
    assert_eq!(
        most.iter().map(|row| number(&row["packets"])).sum::<u64>(),
        shown.values().map(|(packets, _)| packets).sum::<u64>()
    );

    // Flows: the stage's own count, the count by state, the tables.
    let counted: Value =
        serde_json::from_str(&flowgate.command(&["show", "flows", "--count", "state", "--json"]).1).expect("JSON");
    assert_eq!(number(&counted["flows"]), 160);
    assert_eq!(scrape.value("flowgate_conntrack_flows{stage=\"conntrack\"}"), 160);
    assert_eq!(
        (scrape.value("flowgate_conntrack_new_total{stage=\"conntrack\"}"), scrape.sum("flowgate_flows")),
        (160, 160)
    );
    assert_eq!(scrape.value("flowgate_flow_table_used_entries{family=\"ipv4\"}"), 160);
    assert_eq!((number(&overview["flows"]["now"]), number(&overview["talkers"]["seen"])), (160, 160));
    let talkers = overview["talkers"]["rows"].as_array().expect("a list");
    assert_eq!(talkers.iter().map(|row| number(&row["packets"])).sum::<u64>(), 160);
    assert!(talkers.windows(2).all(|two| number(&two[0]["bytes"]) >= number(&two[1]["bytes"])));

    // Every burst sent was timed, and each has the same number in both.
    let timed = scrape.sum("flowgate_worker_latency_seconds_count");
    let classes = overview["latency"]["classes"].as_array().expect("a list");
    let told = classes.iter().map(|class| number(&class[1])).sum::<u64>() + number(&overview["latency"]["longer"]);
    assert!(timed > 0 && timed == told, "{timed} {told}");

    // flowgate top, once.
    let (good, text) = flowgate.command(&["top", "--once", "--json", "--interval", "0.1"]);
    let top: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(good && top["ports"][0]["rx_packets"] == 200 && top["rates"]["received"] == 0.0, "{text}");
    for (view, word) in
        [("overview", "denied-default"), ("rules", "fourth"), ("talkers", "10.0.0.19"), ("flows", "udp")]
    {
        let (good, text) = flowgate.command(&["top", "--once", "--interval", "0.1", "--view", view]);
        assert!(good && text.contains(word), "{view}: {text}");
    }
    flowgate.stop();
}

#[test]
fn scrapes_close_under_load_and_a_browser_shows_them() {
    let dir = tempfile::tempdir().expect("a folder");
    write_pcap(&dir.path().join("none.pcap"), &[]);
    let ports = ports(dir.path(), &traffic(), true);
    // What leaves is dropped at once: a file would grow.
    let null = ports.lines().map(|line| if line.contains("net_pcap1") { "device = 'net_null0,no-rx=1'" } else { line });
    let config = null.collect::<Vec<_>>().join("\n") + FIREWALL + &workers(2);
    let flowgate = Flowgate::start(dir.path(), &config);
    wait_for("packets come", || Scrape::of(&flowgate).sum("flowgate_worker_received_packets_total") > 10_000);
    let mut last = 0;
    for _ in 0..20 {
        let scrape = Scrape::of(&flowgate);
        scrape.check(2);
        let received = scrape.sum("flowgate_worker_received_packets_total");
        assert!(received >= last);
        last = received;
    }

    // Both formats, as others read them.
    let (_, head, text) = get(&flowgate.socket, "/metrics", "text/plain;version=0.0.4");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    match run("promtool", &["check", "metrics"], &text) {
        Some(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        None => skip("promtool", "promtool is not installed"),
    }
    let (_, head, text) = get(&flowgate.socket, "/metrics", "application/openmetrics-text;version=1.0.0,*/*;q=0.1");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    let parse = "import sys\nfrom prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
                 print(len(list(parse(sys.stdin.read()))))";
    match run("/usr/bin/python3", &["-c", parse], &text) {
        Some(output) if String::from_utf8_lossy(&output.stderr).contains("ModuleNotFoundError") => {
            skip("openmetrics-parser", "python3-prometheus-client is not installed");
        }
        Some(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let families = text.lines().filter(|line| line.starts_with("# TYPE")).count().to_string();
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), families);
        }
        None => skip("openmetrics-parser", "python3 is not installed"),
    }

    documented(&text);
    page_is_drawn(&flowgate, dir.path());
    top_in_a_terminal(&flowgate);
    flowgate.stop();
}

/// The table of docs/monitoring.md says of every metric that is no stage's what a scrape says. FLOWGATE_WRITE_DOCS=1 makes it so.
fn documented(scrape: &str) {
    let told = |word: &str| {
        let lines = scrape.lines().filter_map(|line| line.strip_prefix(&format!("# {word} "))?.split_once(' '));
        lines.map(|(name, text)| (name.to_owned(), text.to_owned())).collect::<BTreeMap<_, _>>()
    };
    let (help, kinds) = (told("HELP"), told("TYPE"));
    let of_stage = |name: &str| {
        ["guard", "conntrack", "cross", "acl"].iter().any(|kind| name.starts_with(&format!("flowgate_{kind}_")))
    };
    let mut table = String::from("| metric | type | meaning |\n|---|---|---|\n");
    for (name, kind) in kinds.iter().filter(|(name, _)| !of_stage(name)) {
        let total = if kind == "counter" { "_total" } else { "" };
        table += &format!("| `{name}{total}` | {kind} | {} |\n", help[name].replace("\\\"", "\""));
    }
    let path = file("docs/monitoring.md");
    let page = std::fs::read_to_string(&path).expect("the page");
    let (before, rest) = page.split_once("<!-- metrics -->\n").expect("where the table begins");
    let (there, after) = rest.split_once("<!-- end of metrics -->").expect("where it ends");
    if std::env::var_os("FLOWGATE_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}<!-- metrics -->\n{table}<!-- end of metrics -->{after}"))
            .expect("writable");
    } else {
        assert_eq!(there, table, "FLOWGATE_WRITE_DOCS=1 cargo test --test monitoring writes it");
    }
}

/// The dashboard in a browser: no error, no outside, and the numbers of what runs.
fn page_is_drawn(flowgate: &Flowgate, dir: &Path) {
    let (status, head, page) = get(&flowgate.socket, "/", "text/html");
    assert!(status == 200 && head.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{head}");
    for (path, kind) in [("/dashboard.js", "text/javascript"), ("/dashboard.css", "text/css")] {
        let (status, head, text) = get(&flowgate.socket, path, "*/*");
        assert!(status == 200 && head.contains(kind) && page.contains(&path[1..]));
        assert!(!text.contains("://") && !page.contains("://"), "nothing comes from elsewhere");
    }
    let Some(_) = run("chromium", &["--version"], "") else { return skip("chromium", "chromium is not installed") };
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
    let forward = Command::new("socat")
        .arg(format!("TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"))
        .arg(format!("UNIX-CONNECT:{}", flowgate.socket.display()))
        .spawn();
    let Ok(mut forward) = forward else { return skip("socat", "socat is not installed") };
    wait_for("socat listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let profile = format!("--user-data-dir={}", dir.join("browser").display());
    let address = format!("http://127.0.0.1:{port}/");
    let quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
        "--v=0",
        "--virtual-time-budget=6000",
        "--window-size=1280,900",
        "--dump-dom",
    ];
    let output = Command::new("timeout").args(["60", "chromium"]).args(quiet).args([&profile, &address]).output();
    forward.kill().and_then(|()| forward.wait()).expect("socat ends");
    let output = output.expect("timeout is everywhere");
    let (dom, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}");
    let said = errors.lines().filter(|line| line.contains("CONSOLE")).collect::<Vec<_>>();
    assert!(said.is_empty(), "{said:#?}");
    for word in [
        "class=\"good\">live",
        "busiest worker",
        "lan in ",
        "acl.denied-default",
        "a \"quoted\" \\ name",
        "10.0.0.19",
        "worker 1",
        "closes",
    ] {
        assert!(dom.contains(word), "{word}: {dom}");
    }
    assert!(!dom.contains("NaN") && !dom.contains("undefined"), "{dom}");
}

/// `flowgate top` on a terminal of 80 by 24, which it leaves as it was.
fn top_in_a_terminal(flowgate: &Flowgate) {
    let socket = flowgate.socket.display();
    let command =
        format!("stty rows 24 cols 80; {FLOWGATE} top --interval 0.2 --socket {socket}; echo ended $?; stty -a");
    let terminal = |term: &str| {
        let mut child = Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .env("TERM", term)
            .env_remove("NO_COLOR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script, of bsdutils, is everywhere");
        let mut keys = child.stdin.take().expect("piped");
        for key in ["3", "s", "r", "7", "q"] {
            std::thread::sleep(std::time::Duration::from_millis(400));
            // It may have ended, which shows below.
            let _ = keys.write_all(key.as_bytes());
        }
        let output = child.wait_with_output().expect("it ends");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let text = terminal("xterm");
    for word in [
        "flowgate",
        "1overview",
        "acl.denied-default",
        "per s*",
        "closes",
        "ended 0",
        " echo ",
        "\u{1b}[?1049l",
        "\u{1b}[?25h",
    ] {
        assert!(text.contains(word), "{word:?}: {text:?}");
    }
    assert!(text.contains("\u{1b}[38;5;10m"), "colours: {text:?}");
    assert!(!terminal("dumb").contains("[38;5;"), "a terminal that has no colours is given none");
    let piped = Command::new(FLOWGATE).args(["top", "--socket"]).arg(&flowgate.socket).output().expect("it starts");
    assert!(piped.status.code() == Some(2) && String::from_utf8_lossy(&piped.stderr).contains("--once"));
    let nobody =
        Command::new(FLOWGATE).args(["top", "--once", "--socket", "/nowhere.sock"]).output().expect("it starts");
    assert_eq!(nobody.status.code(), Some(3));
}

/// The names of metrics in a text, without what a histogram adds to them.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let bare = |word: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
    };
    words.filter(|word| word.starts_with("flowgate_") && !word.ends_with('_')).map(bare).collect()
}

#[test]
fn what_prometheus_and_grafana_are_given_is_good() {
    let read = |name: &str| std::fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let known = names(&read("docs/monitoring.md"));
    for name in ["alerts.yml", "alerts_test.yml", "grafana.json"] {
        let unknown: Vec<String> =
            names(&read(&format!("scripts/monitoring/{name}"))).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{name} asks for what docs/monitoring.md does not know: {unknown:?}");
    }
    let dashboard: Value = serde_json::from_str(&read("scripts/monitoring/grafana.json")).expect("JSON");
    assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 10));
    // Every alert is tried out.
    let alerts = read("scripts/monitoring/alerts.yml");
    let tests = read("scripts/monitoring/alerts_test.yml");
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(&format!("        alertname: {alert}\n")), "{alert} has no test");
    }
    for words in [["check", "config"], ["check", "rules"], ["test", "rules"]] {
        let name = match words {
            ["check", "config"] => "prometheus.yml",
            ["check", _] => "alerts.yml",
            _ => "alerts_test.yml",
        };
        let path = file("scripts/monitoring").join(name);
        match run("promtool", &[words[0], words[1], &path.to_string_lossy()], "") {
            Some(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
            None => skip("promtool", "promtool is not installed"),
        }
    }
}
