//! The stateful firewall between network namespaces, with real clients: what begins on one side is answered from the other
//! without a rule for the answers, strictly held to its protocol; loss, floods and errors included.

mod common;

use common::appliance::{Flowgate, number, wait_for, workers};
use common::host::{Host, Lab};
use common::skip;

const CLIENT: [&str; 2] = ["10.77.0.1", "2001:db8:77::1"];
const SERVER: [&str; 2] = ["10.77.0.2", "2001:db8:77::2"];

/// Only what the client's side begins is allowed; everything that answers it needs no rule.
const POLICY: &str = r#"
    [pipeline]
    stages = ["guard", "conntrack", "cross", "acl"]
    [cross]
    wire = [{ ports = ["lan", "wan"] }]
    [conntrack]
    tracking = "strict"
    [[acl.rule]]
    name = "begun inside"
    from = "inside"
    to = "outside"
    service = ["tcp", "udp", "icmp/echo", "icmpv6/echo"]
    action = "allow"
"#;

struct Setting {
    lab: Lab,
    client: Host,
    server: Host,
    flowgate: Flowgate,
}

impl Setting {
    /// A client behind `lan`, a server behind `wan`, flowgate between them; none (and the test is skipped) where there can be
    /// no namespaces.
    fn new(name: &str, count: usize, policy: &str) -> Option<Setting> {
        let mut lab = Lab::new().map_err(|why| skip(name, &why)).ok()?;
        let [client, server] =
            [CLIENT, SERVER].map(|[v4, v6]| lab.host(&[&format!("{v4}/24"), &format!("{v6}/64")], 1500));
        let port = |number: usize, name: &str, zone: &str, host: &Host| {
            let device = format!("net_af_packet{number},iface={}", host.port);
            format!("[[port]]\nname = {name:?}\ndevice = {device:?}\nzone = {zone:?}\n")
        };
        let ports = port(0, "lan", "inside", &client) + &port(1, "wan", "outside", &server);
        let flowgate = Flowgate::start(lab.dir.path(), &[&ports, &workers(count), policy].join("\n"));
        Some(Setting { lab, client, server, flowgate })
    }

    /// Serves a folder with a large and a small file on port 80 of the server; returns the large file's bytes.
    fn web(&mut self, size: u32) -> Vec<u8> {
        let folder = self.lab.file("www");
        std::fs::create_dir_all(&folder).expect("a writable folder");
        let large: Vec<u8> = (0..size).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::fs::write(folder.join("large"), &large).expect("room");
        std::fs::write(folder.join("small"), "Hello through flowgate.").expect("writable");
        self.lab.web(&self.server.name, &folder, 80);
        large
    }

    fn fetch(&self, address: &str, file: &str) -> Vec<u8> {
        let got = self.lab.file("got");
        let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let url = format!("http://{address}/{file}");
        self.client.does(&["curl", "-sS", "-m", "150", "-o", got.to_str().expect("a name"), &url]);
        std::fs::read(got).expect("fetched")
    }

    /// Ends the run: nothing may have been dropped but for these reasons and full queues.
    fn end(self, expected: &[&str]) {
        let drops = self.flowgate.drops();
        let full = ["engine.tx-full", "engine.handoff-full"];
        let strange: Vec<_> = drops
            .iter()
            .filter(|(r, n)| **n > 0 && !full.contains(&r.as_str()) && !expected.contains(&r.as_str()))
            .collect();
        assert!(strange.is_empty(), "{drops:?}");
        self.flowgate.stop();
    }
}

fn counter(flowgate: &Flowgate, name: &str) -> u64 {
    let pipeline = flowgate.show("pipeline");
    let stages = pipeline["stages"].as_array().expect("a list");
    let stage = stages.iter().find(|stage| stage["stage"] == "conntrack").expect("conntrack");
    number(&stage["counters"][name])
}

/// Downloads, uploads, echoes and errors; then what nobody on the inside began.
fn clients(name: &str, count: usize) {
    let Some(mut setting) = Setting::new(name, count, POLICY) else { return };
    let large = setting.web(5_000_000);
    setting.lab.serve(&setting.server.name, 5201, &["iperf3", "-s"]);
    for (from, to) in CLIENT.iter().zip(SERVER) {
        setting.client.pings(to, 3, 56);
        assert_eq!(setting.fetch(to, "small"), b"Hello through flowgate.");
        assert!(setting.fetch(to, "large") == large, "5 MB came out different");
        for back in [&[][..], &["-R"]] {
            let report = setting.client.does(&[&["iperf3", "-J", "-n", "4M", "-c", to], back].concat());
            let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
            assert!(number(&report["end"]["sum_received"]["bytes"]) > 0, "{}", report["end"]);
        }
        // An error about a datagram comes back to its sender.
        setting.client.python(UDP_REFUSED, &[to]);
        // The other way round nothing is allowed.
        setting.server.fails(&["ping", "-n", "-c", "1", "-W", "1", from]);
    }
    assert!(counter(&setting.flowgate, "errors") >= 2);
    let rules = setting.flowgate.show("rules");
    assert!(number(&rules[0]["flows"]) >= 12, "{rules}");
    setting.end(&["acl.denied-default"]);
}

#[test]
fn what_begins_inside_is_answered_with_one_worker() {
    clients("stateful-one-worker", 1);
}

#[test]
fn what_begins_inside_is_answered_with_two_workers() {
    clients("stateful-two-workers", 2);
}

/// Sends to a closed UDP port until the kernel has heard that it is closed.
const UDP_REFUSED: &str = "
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 9))
s.settimeout(1)
for attempt in range(20):
    try:
        s.send(b'?')
        s.recv(1)
    except TimeoutError:
        pass
    except ConnectionRefusedError:
        sys.exit(0)
sys.exit('never refused')
";

#[test]
fn lost_segments_are_made_good_and_none_is_invalid() {
    let Some(mut setting) = Setting::new("stateful-loss", 1, POLICY) else { return };
    let large = setting.web(3_000_000);
    // Lost behind the firewall: it sees segments again that it has seen, and answers to segments that it has not.
    for host in [&setting.client, &setting.server] {
        host.does(&["nft", "add table inet lossy"]);
        for hook in ["input", "output"] {
            host.does(&["nft", &format!("add chain inet lossy {hook} {{ type filter hook {hook} priority 0; }}")]);
            host.does(&["nft", &format!("add rule inet lossy {hook} meta l4proto tcp numgen random mod 100 < 2 drop")]);
        }
    }
    for to in SERVER {
        assert!(setting.fetch(to, "large") == large, "3 MB came out different");
    }
    setting.end(&["acl.denied-default"]);
}

#[test]
fn many_short_connections() {
    let Some(mut setting) = Setting::new("stateful-short", 2, POLICY) else { return };
    setting.web(10);
    let script = "
import socket, sys
for n in range(600):
    to = sys.argv[1 + n % 2]
    with socket.create_connection((to, 80), timeout=30) as s:
        s.sendall(b'GET /small HTTP/1.0\\r\\n\\r\\n')
        text = b''
        while True:
            more = s.recv(4096)
            if not more: break
            text += more
        assert text.endswith(b'Hello through flowgate.'), text
";
    setting.client.python(script, &SERVER);
    assert!(counter(&setting.flowgate, "new") >= 600);
    setting.end(&["acl.denied-default"]);
}

/// Writes the first byte of each datagram it gets on UDP port 4000 into a file, after a first byte that says it is there.
const COLLECT: &str = "
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
s.bind(('::', 4000))
with open(sys.argv[1], 'wb', buffering=0) as log:
    log.write(b'.')
    while True:
        data = s.recv(65536)
        log.write(data[:1] if data[1:] == bytes(range(256)) * 12 else b'?')
";

/// Sends 200 datagrams in shuffled fragments, all mixed, some fragments twice: `a` whole, `b` with two fragments that overlap,
/// `c` without the last. IPv6 alone: net_af_packet lets the kernel put IPv4 fragments together before it hands them out.
const SHUFFLE: &str = "
import random, socket, struct, sys, time
interface, theirs = sys.argv[1], sys.argv[2]
mac = lambda text: bytes.fromhex(text.replace(':', ''))
link = mac(theirs) + mac(open('/sys/class/net/' + interface + '/address').read().strip())
ends = b''.join(socket.inet_pton(socket.AF_INET6, text) for text in sys.argv[3:5])
def total(data):
    n = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while n >> 16: n = (n & 0xffff) + (n >> 16)
    return ~n & 0xffff
def packet(id, start, part, more):
    head = struct.pack('!IHBB', 6 << 28, 8 + len(part), 44, 64) + ends
    return link + b'\\x86\\xdd' + head + struct.pack('!BBHI', 17, 0, start | more, id) + part
batch, s = [], socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((interface, 0))
for n in range(200):
    kind = random.choice(b'aaabc') if n else ord('a')
    data = bytes([kind]) + bytes(range(256)) * 12
    udp = struct.pack('!HHHH', 3000 + n, 4000, 8 + len(data), 0)
    check = total(ends + struct.pack('!IHBB', 8 + len(data), 0, 0, 17) + udp + data + b'\\0')
    all = udp[:6] + struct.pack('!H', check or 0xffff) + data
    parts = [(at, all[at:at + 400], at + 400 < len(all)) for at in range(0, len(all), 400)]
    if kind == ord('b'):
        at = random.randrange(1, len(parts) - 2) * 400
        parts.append((at + 200, all[at + 200:at + 600], True))
    elif kind == ord('c'):
        parts.pop()
    elif random.random() < 0.3:
        parts.append(random.choice(parts[1:-1]))
    batch += [(random.random() + n / 3, packet(500 + n, *part)) for part in parts]
    print(chr(kind), end='')
for _, frame in sorted(batch):
    s.send(frame)
    time.sleep(0.0005)
";

/// What the server's kernel puts together of fragments in any order, and what it does not.
fn fragments(name: &str, count: usize) {
    let Some(mut setting) = Setting::new(name, count, POLICY) else { return };
    let got = setting.lab.file("collected");
    let collect = ["/usr/bin/python3", "-c", COLLECT, got.to_str().expect("a name")];
    setting.lab.spawn(&setting.server.name, &collect);
    let collected = || std::fs::read_to_string(&got).unwrap_or_default();
    wait_for("the server listens", || collected() == ".");
    // The hosts know each other.
    setting.client.pings(SERVER[1], 3, 5000);
    let mac = setting.server.does(&["cat", "/sys/class/net/eth0/address"]);
    let sent = setting.client.python(SHUFFLE, &["eth0", mac.trim(), CLIENT[1], SERVER[1]]);
    let whole = sent.matches('a').count();
    wait_for("all whole datagrams arrive", || collected().matches('a').count() == whole);
    // An overlap that comes when the others have all passed comes too late.
    assert!(!collected().contains(['c', '?']), "{}", collected());
    assert!(collected().matches('b').count() < sent.matches('b').count() / 2 + 1, "{sent}: {}", collected());
    let drops = setting.flowgate.drops();
    assert!(drops["fragment.overlap"] > 0, "{drops:?}");
    setting.end(&["acl.denied-default", "fragment.overlap", "fragment.duplicate"]);
}

#[test]
fn fragments_pass_in_any_order_with_one_worker() {
    fragments("stateful-fragments-one", 1);
}

#[test]
fn fragments_pass_in_any_order_with_two_workers() {
    fragments("stateful-fragments-two", 2);
}

/// Sends forged SYNs from ever new sources to the server's port 80, as fast as it can, until it is killed.
const FLOOD: &str = "
import random, socket, struct, sys
interface, destination = sys.argv[1], socket.inet_aton(sys.argv[2])
mac = lambda text: bytes.fromhex(text.replace(':', ''))
ethernet = mac(sys.argv[3]) + bytes([2, 0, 0, 0, 0, 9]) + b'\\x08\\x00'
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((interface, 0))
def total(data):
    n = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while n >> 16: n = (n & 0xffff) + (n >> 16)
    return ~n & 0xffff
while True:
    source = bytes([random.randrange(11, 100), *random.randbytes(3)])
    head = struct.pack('!BBHHHBBH', 0x45, 0, 40, 1, 0, 64, 6, 0) + source + destination
    head = head[:10] + struct.pack('!H', total(head)) + head[12:]
    tcp = struct.pack('!HHIIBBHHH', random.randrange(1024, 65535), 80, random.getrandbits(32), 0, 0x50, 2, 1024, 0, 0)
    tcp = tcp[:16] + struct.pack('!H', total(source + destination + struct.pack('!HH', 6, 20) + tcp)) + tcp[18:]
    try:
        s.send(ethernet + head + tcp)
    except OSError:
        pass
";

fn flood(name: &str, count: usize) {
    let small = "[memory]\nhugepages = \"off\"\npackets = 8192\nflows = 2048\n";
    let Some(mut setting) = Setting::new(name, count, &format!("{small}{POLICY}")) else { return };
    setting.web(200_000);
    // A connection that lives through all of it and loses nothing.
    let script = "
import socket, sys
s = socket.create_server((sys.argv[1], 7))
c, _ = s.accept()
while True:
    data = c.recv(65536)
    if not data: break
    c.sendall(data)
";
    setting.lab.serve(&setting.server.name, 7, &["/usr/bin/python3", "-c", script, SERVER[0]]);
    let script = "
import os, socket, sys, time
s = socket.create_connection((sys.argv[1], 7), timeout=60)
print('open', flush=True)
while not os.path.exists(sys.argv[2]):
    s.sendall(b'still here')
    assert s.recv(100) == b'still here'
    time.sleep(0.01)
s.shutdown(socket.SHUT_WR)
assert s.recv(100) == b''
open(sys.argv[3], 'w').write('good')
";
    let (stop, good) = (setting.lab.file("stop"), setting.lab.file("good"));
    let name = |path: &std::path::Path| path.to_str().expect("a name").to_owned();
    let arguments = ["/usr/bin/python3", "-c", script, SERVER[0], &name(&stop), &name(&good)];
    setting.lab.spawn(&setting.client.name, &arguments);
    wait_for("the long connection is open", || counter(&setting.flowgate, "new") > 0);
    let mac = setting.server.does(&["cat", "/sys/class/net/eth0/address"]);
    setting.lab.spawn(&setting.client.name, &["/usr/bin/python3", "-c", FLOOD, "eth0", SERVER[0], mac.trim()]);
    wait_for("the flood is on", || proxied(&setting.flowgate) > 1000);
    for _ in 0..20 {
        assert_eq!(setting.fetch(SERVER[0], "small"), b"Hello through flowgate.");
        assert_eq!(setting.fetch(SERVER[0], "large").len(), 200_000);
    }
    let before = proxied(&setting.flowgate);
    wait_for("the flood goes on", || {
        assert_eq!(setting.fetch(SERVER[0], "small"), b"Hello through flowgate.");
        proxied(&setting.flowgate) > before + 1000
    });
    std::fs::write(&stop, "").expect("writable");
    wait_for("the long connection ends well", || std::fs::read_to_string(&good).is_ok_and(|text| text == "good"));
    setting.end(&["acl.denied-default", "conntrack.table-full", "conntrack.no-flow"]);
}

#[test]
fn real_connections_through_the_syn_proxy() {
    let policy = POLICY.replace("tracking = \"strict\"", "tracking = \"strict\"\nlimit.syn_proxy = \"always\"");
    let Some(mut setting) = Setting::new("stateful-proxy", 1, &policy) else { return };
    setting.web(200_000);
    for server in SERVER {
        for _ in 0..5 {
            assert_eq!(setting.fetch(server, "small"), b"Hello through flowgate.");
            assert_eq!(setting.fetch(server, "large").len(), 200_000);
        }
    }
    assert_eq!(counter(&setting.flowgate, "proven"), 20);
    setting.end(&["acl.denied-default"]);
}

/// Handshakes that were answered with a cookie.
fn proxied(flowgate: &Flowgate) -> u64 {
    counter(flowgate, "challenged")
}

#[test]
fn real_connections_live_and_begin_during_a_flood() {
    flood("stateful-flood", 1);
}

#[test]
fn real_connections_live_and_begin_during_a_flood_with_two_workers() {
    flood("stateful-flood-two", 2);
}
