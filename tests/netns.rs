//! The real binary between network namespaces, with real clients: ping, curl, iperf3, UDP programs. Also frames by hand over
//! veth pairs, where a test has to know which packet went where.

mod common;

use std::path::Path;
use std::process::Command;

use common::appliance::{Account, FLOWGATE, Flowgate, config, example, number, wait_for, workers};
use common::frames::*;
use common::host::{Host, Lab, Tap, dpdk_end, host_end, inside};
use common::skip;

const V4: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const V6: [&str; 2] = ["2001:db8:77::1", "2001:db8:77::2"];

/// An empty lab; without one the test is skipped.
fn lab(name: &str) -> Option<Lab> {
    Lab::new().map_err(|why| skip(name, &why)).ok()
}

/// Client and server, on one network.
fn two_hosts(lab: &mut Lab, mtu: u16) -> [Host; 2] {
    [0, 1].map(|i| lab.host(&[&format!("{}/24", V4[i]), &format!("{}/64", V6[i])], mtu))
}

/// Ports `lan` (zone inside) and `wan` (zone outside) on two interfaces.
fn ports(interfaces: [&str; 2], arguments: &str, keys: &str) -> String {
    let port = |number: usize, name: &str, zone: &str| {
        let device = format!("net_af_packet{number},iface={}{arguments}", interfaces[number]);
        format!("[[port]]\nname = {name:?}\ndevice = {device:?}\nzone = {zone:?}\n{keys}\n")
    };
    port(0, "lan", "inside") + &port(1, "wan", "outside")
}

const FIREWALL: &str = r#"
    [pipeline]
    stages = ["guard", "talkers", "cross", "acl"]
    [cross]
    wire = [{ ports = ["lan", "wan"] }]
    [guard]
    drop = ["10.77.0.66"]
    [talkers]
    top = 10
    [acl]
    default = "allow"
    [[acl.rule]]
    name = "refused"
    from = "inside"
    service = ["tcp/81", "udp/81"]
    action = "deny"
    [[acl.rule]]
    name = "errors"
    service = ["icmp/3", "icmpv6/1"]
    action = "count"
"#;

/// Answers every UDP datagram with itself, or with its digest.
const UDP_ECHO: &str = "
import hashlib, socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(('::', int(sys.argv[1])))
while True:
    data, who = s.recvfrom(65535)
    s.sendto(hashlib.sha256(data).digest() if 'digest' in sys.argv else data, who)
";

/// Sends datagrams of the sizes given and compares what comes back. UDP may be lost where CPUs are shared, so a few tries.
const UDP_ASK: &str = "
import hashlib, os, socket, sys
digest = sys.argv[1] == '-digest' and sys.argv.pop(1)
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.settimeout(1)
for size in map(int, sys.argv[3:]):
    for attempt in range(10):
        data = os.urandom(size)
        s.sendto(data, (sys.argv[1], int(sys.argv[2])))
        try:
            while s.recv(65535) != (hashlib.sha256(data).digest() if digest else data):
                pass
            break
        except TimeoutError:
            pass
    else:
        sys.exit('no answer to %d bytes' % size)
";

/// Sends to a closed UDP port until the kernel has heard that it is closed.
const UDP_REFUSED: &str = "
import socket, sys, time
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 9))
s.settimeout(1)
for attempt in range(20):
    try:
        s.send(b'?' * int(sys.argv[2]))
        s.recv(1)
    except TimeoutError:
        pass
    except ConnectionRefusedError:
        sys.exit(0)
sys.exit('never refused')
";

fn ping(client: &Host, target: &str, size: usize) {
    client.does(&["ping", "-n", "-M", "do", "-c", "2", "-i", "0.05", "-W", "10", "-s", &size.to_string(), target]);
}

fn url(address: &str, port: u16, file: &str) -> String {
    if address.contains(':') {
        format!("http://[{address}]:{port}/{file}")
    } else {
        format!("http://{address}:{port}/{file}")
    }
}

fn fetch<'a>(url: &'a str, to: &'a str) -> [&'a str; 7] {
    ["curl", "-sS", "-m", "150", "-o", to, url]
}

/// The programs that a pair of hosts runs through flowgate, and what must come of each.
fn clients(lab: &mut Lab, [client, server]: &[Host; 2], flowgate: &Flowgate) {
    let folder = lab.file("www");
    std::fs::create_dir_all(&folder).expect("a writable folder");
    let large: Vec<u8> = (0..20_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(folder.join("large"), &large).expect("room for 20 MB");
    std::fs::write(folder.join("small"), "Hello through flowgate.").expect("writable");
    for port in [80, 81] {
        lab.web(&server.name, &folder, port);
    }
    lab.serve(&server.name, 5201, &["iperf3", "-s"]);
    lab.spawn(&server.name, &["/usr/bin/python3", "-c", UDP_ECHO, "7"]);

    for (address, largest) in [(V4[1], 1472), (V6[1], 1452)] {
        for size in [0, 1, 17, 56, 511, 1400, largest - 1, largest] {
            ping(client, address, size);
        }
    }
    ping(server, V4[0], 56);
    ping(server, V6[0], 56);

    let got = lab.file("got");
    let to = got.to_str().expect("a name");
    for address in [V4[1], V6[1]] {
        client.does(&fetch(&url(address, 80, "small"), to));
        assert_eq!(std::fs::read_to_string(&got).expect("fetched"), "Hello through flowgate.");
        client.does(&fetch(&url(address, 80, "large"), to));
        assert!(std::fs::read(&got).expect("fetched") == large, "20 MB came out different");
        let before = flowgate.rules()["refused"].0;
        client.fails(&["curl", "-sS", "-m", "1", "-o", to, &url(address, 81, "small")]);
        assert!(flowgate.rules()["refused"].0 > before, "the refused packets were not counted");
        client.python(UDP_ASK, &[address, "7", "1", "100", "1400"]);
        let before = flowgate.rules()["errors"].0;
        client.python(UDP_REFUSED, &[address, "10"]);
        assert!(flowgate.rules()["errors"].0 > before, "the error was not counted");
    }
    let iperf = |arguments: &[&str]| -> serde_json::Value {
        let report = client.does(&[&["iperf3", "-J", "-c"], arguments].concat());
        serde_json::from_str(&report).expect("JSON")
    };
    for arguments in [&[V4[1]][..], &[V4[1], "-R"], &[V6[1]]] {
        let report = iperf(&[arguments, &["-n", "8M"]].concat());
        let end = &report["end"];
        assert!(number(&end["sum_sent"]["bytes"]) >= 8 << 20 && number(&end["sum_received"]["bytes"]) > 0, "{end}");
    }
    let report = iperf(&[V4[1], "-u", "-b", "20M", "-n", "2M"]);
    assert!(number(&report["end"]["sum"]["packets"]) > 0, "{}", report["end"]);

    // Whom guard refuses.
    inside(&client.name, &["ip", "addr", "add", "10.77.0.66/24", "dev", &client.interface]).status().expect("ip");
    client.fails(&["ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-I", "10.77.0.66", V4[1]]);
    assert!(flowgate.drops()["guard.blocked-source"] >= 2);

    let talkers = flowgate.show("talkers");
    let named: Vec<&str> =
        talkers["talkers"].as_array().expect("a list").iter().filter_map(|row| row["source"].as_str()).collect();
    for address in V4.iter().chain(&V6) {
        assert!(named.contains(address), "{address} in {named:?}");
    }
}

/// Reasons that a run with good traffic may end with: what it was told to refuse, and queues that a busy machine filled.
fn only_expected(flowgate: &Flowgate, more: &[&str]) {
    let full = ["engine.tx-full", "engine.handoff-full", "acl.denied", "guard.blocked-source"];
    let drops = flowgate.drops();
    let strange: Vec<&String> =
        drops.keys().filter(|r| !full.contains(&r.as_str()) && !more.contains(&r.as_str())).collect();
    assert!(strange.is_empty(), "{drops:?}");
}

fn hosts_talk(name: &str, count: usize) {
    let Some(mut lab) = lab(name) else { return };
    let hosts = two_hosts(&mut lab, 1500);
    let toml = [&ports([&hosts[0].port, &hosts[1].port], "", ""), &workers(count), FIREWALL].join("\n");
    let flowgate = Flowgate::start(lab.dir.path(), &toml);
    clients(&mut lab, &hosts, &flowgate);
    only_expected(&flowgate, &[]);
    if count > 1 {
        let accounts = flowgate.accounts();
        assert!(accounts.iter().all(|account| account.received + account.handed_in > 0), "{accounts:?}");
    }
    flowgate.stop();
}

#[test]
fn hosts_talk_through_one_worker() {
    hosts_talk("netns-one-worker", 1);
}

#[test]
fn hosts_talk_through_two_workers() {
    hosts_talk("netns-two-workers", 2);
}

#[test]
fn hosts_talk_over_several_queues() {
    // Each worker has a transmit queue of its own, and the kernel spreads what comes in.
    let Some(mut lab) = lab("netns-queues") else { return };
    let hosts = two_hosts(&mut lab, 1500);
    let toml = [&ports([&hosts[0].port, &hosts[1].port], ",qpairs=2", ""), &workers(2), FIREWALL].join("\n");
    let flowgate = Flowgate::start(lab.dir.path(), &toml);
    assert_eq!(number(&flowgate.port("lan")["rx_queues"]), 2);
    clients(&mut lab, &hosts, &flowgate);
    only_expected(&flowgate, &[]);
    flowgate.stop();
}

#[test]
fn fragments_and_errors_find_their_way_with_two_workers() {
    // IPv6 only: the sockets of net_af_packet have the kernel reassemble IPv4 fragments (PACKET_FANOUT_FLAG_DEFRAG). For
    // IPv4 see the tap device.
    let Some(mut lab) = lab("netns-fragments") else { return };
    let hosts = two_hosts(&mut lab, 1500);
    let toml = [&ports([&hosts[0].port, &hosts[1].port], "", ""), &workers(2), FIREWALL].join("\n");
    let flowgate = Flowgate::start(lab.dir.path(), &toml);
    let [client, server] = &hosts;
    lab.spawn(&server.name, &["/usr/bin/python3", "-c", UDP_ECHO, "7"]);
    client.pings(V6[1], 3, 20_000);
    client.python(UDP_ASK, &[V6[1], "7", "1453", "2953", "5000", "20000", "65000"]);
    // Errors that quote a whole datagram, and errors that quote a first fragment.
    let before = flowgate.rules()["errors"].0;
    client.python(UDP_REFUSED, &[V6[1], "10"]);
    client.python(UDP_REFUSED, &[V6[1], "5000"]);
    assert!(flowgate.rules()["errors"].0 >= before + 2);
    only_expected(&flowgate, &[]);
    flowgate.stop();
}

#[test]
fn jumbo_frames_between_hosts() {
    let Some(mut lab) = lab("netns-jumbo") else { return };
    let hosts = two_hosts(&mut lab, 9000);
    let ring = ",blocksz=65536,framesz=16384,framecnt=256";
    let toml = [&ports([&hosts[0].port, &hosts[1].port], ring, "mtu = 9000"), FIREWALL].join("\n");
    // net_af_packet learned to say what its ring takes after DPDK 22.11.
    let (file, socket) = config(lab.dir.path(), &toml);
    let flowgate = Flowgate::spawn(&file, &socket);
    let mut refused = None;
    wait_for("flowgate answers or refuses", || {
        refused = flowgate.log().lines().find(|line| line.contains("MTU 9000 asked of")).map(str::to_owned);
        refused.is_some() || flowgate.log().contains("answering on")
    });
    if let Some(why) = refused {
        return skip("netns-jumbo", &why);
    }
    for (address, largest) in [(V4[1], 8972), (V6[1], 8952)] {
        for size in [56, 1473, 4000, largest] {
            ping(&hosts[0], address, size);
        }
    }
    only_expected(&flowgate, &[]);
    flowgate.stop();
}

#[test]
fn tagged_hosts() {
    let Some(mut lab) = lab("netns-vlan") else { return };
    let hosts = two_hosts(&mut lab, 1500);
    for (i, host) in hosts.iter().enumerate() {
        let made = host.output(&["ip", "link", "add", "link", "eth0", "name", "eth0.100", "type", "vlan", "id", "100"]);
        if !made.status.success() {
            return skip("netns-vlan", "the kernel has no 8021q");
        }
        host_end(&host.name, "eth0.100", &[&format!("10.78.0.{}/24", i + 1)]);
    }
    let rule = "[[acl.rule]]\nname = \"guests\"\nvlan = 100\naction = \"count\"\n";
    let toml = [&ports([&hosts[0].port, &hosts[1].port], "", ""), FIREWALL, rule].join("\n");
    let flowgate = Flowgate::start(lab.dir.path(), &toml);
    for size in [0, 56, 1472] {
        ping(&hosts[0], "10.78.0.2", size);
    }
    assert!(flowgate.rules()["guests"].0 >= 12);
    only_expected(&flowgate, &[]);
    flowgate.stop();
}

/// flowgate with a client's tap device and a server behind a veth pair.
fn tap_and_host(lab: &mut Lab, count: usize) -> ([Host; 2], Flowgate) {
    let server = lab.host(&[&format!("{}/24", V4[1]), &format!("{}/64", V6[1])], 1500);
    // flowgate runs in the client's namespace: its tap is the client's interface, and the veth end moves in beside it.
    let client = Host { name: lab.namespace(), port: "fgtap".into(), interface: "fgtap".into() };
    let moved = Command::new("ip").args(["link", "set", &server.port, "netns", &client.name]).status().expect("ip");
    assert!(moved.success());
    dpdk_end(Some(&client.name), &server.port);
    let toml = ports(["fgtap", &server.port], "", "").replacen("net_af_packet0", "net_tap0", 1);
    let flowgate = {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &client.name, FLOWGATE]);
        Flowgate::start_by(command, lab.dir.path(), &[&toml, &workers(count), FIREWALL].join("\n"))
    };
    host_end(&client.name, "fgtap", &[&format!("{}/24", V4[0]), &format!("{}/64", V6[0])]);
    ([client, server], flowgate)
}

#[test]
fn a_tap_device_and_a_host() {
    let Some(mut lab) = lab("netns-tap") else { return };
    let (hosts, flowgate) = tap_and_host(&mut lab, 1);
    clients(&mut lab, &hosts, &flowgate);
    only_expected(&flowgate, &[]);
    flowgate.stop();
}

#[test]
fn fragments_from_a_tap_device_with_two_workers() {
    let Some(mut lab) = lab("netns-tap-fragments") else { return };
    let ([client, server], flowgate) = tap_and_host(&mut lab, 2);
    // Answers are short: what comes back over the veth pair in fragments would be reassembled by the kernel.
    lab.spawn(&server.name, &["/usr/bin/python3", "-c", UDP_ECHO, "7", "digest"]);
    for address in [V4[1], V6[1]] {
        client.python(UDP_ASK, &["-digest", address, "7", "1473", "2953", "5000", "20000", "65000"]);
        let before = flowgate.rules()["errors"].0;
        client.python(UDP_REFUSED, &[address, "5000"]);
        assert!(flowgate.rules()["errors"].0 > before);
    }
    only_expected(&flowgate, &[]);
    flowgate.stop();
}

#[test]
fn a_flow_belongs_to_one_worker() {
    let Some(mut lab) = lab("netns-ownership") else { return };
    let ((lan, mut lan_far), (wan, mut wan_far)) = (lab.wire(), lab.wire());
    let pipeline = FIREWALL.replace("drop = [\"10.77.0.66\"]", "");
    let toml = [&ports([&lan, &wan], "", ""), &workers(2), pipeline.as_str()].join("\n");
    let flowgate = Flowgate::start(lab.dir.path(), &toml);
    flowgate.wait_for_link("lan", "up");
    flowgate.wait_for_link("wan", "up");
    let mut owners = [0; 2];
    let mut total = 0;
    for n in 0..30_u16 {
        let (a, b) = match n % 2 {
            0 => (ip(&format!("10.0.{n}.1")), ip("192.0.2.1")),
            _ => (ip(&format!("2001:db8:{n}::1")), ip("2001:db8:ffff::1")),
        };
        let (sport, dport) = (40_000 + n, 53);
        let request = udp(a, sport, b, dport, b"request");
        let (from_lan, from_wan) = match n / 2 % 3 {
            0 => (
                vec![tcp(a, sport, b, dport, SYN, b""), tcp(a, sport, b, dport, ACK, b"data")],
                vec![tcp(b, dport, a, sport, SYN | ACK, b""), tcp(b, dport, a, sport, ACK, b"more")],
            ),
            1 => (
                vec![request.clone(), request.clone()],
                vec![udp(b, dport, a, sport, b"answer"), unreachable(&request)],
            ),
            // The fragments of one datagram, which come from one side; of IPv4 the kernel would make one packet.
            _ if n % 2 == 0 => (vec![echo(a, b, false, n, b"?")], vec![echo(b, a, true, n, b"!")]),
            _ => (fragments(a, sport, b, dport, &[n as u8; 4000], n, 1000), Vec::new()),
        };
        let before = worked(&flowgate);
        let through = |from: &mut Tap, to: &mut Tap, frames: &[Frame]| {
            frames.iter().for_each(|frame| from.send(frame));
            assert_same(&format!("flow {n}"), &to.receive(frames.len()), frames);
        };
        through(&mut lan_far, &mut wan_far, &from_lan);
        through(&mut wan_far, &mut lan_far, &from_wan);
        total += (from_lan.len() + from_wan.len()) as u64;
        flowgate.settled(total);
        let after = worked(&flowgate);
        let at_work: Vec<usize> = (0..2).filter(|i| after[*i] > before[*i]).collect();
        assert_eq!(at_work.len(), 1, "flow {n} was on workers {at_work:?}");
        owners[at_work[0]] += 1;
    }
    assert!(owners.iter().all(|flows| *flows > 0), "both workers own flows: {owners:?}");
    only_expected(&flowgate, &[]);
    flowgate.stop();
}

/// Packets each worker took through the pipeline so far.
fn worked(flowgate: &Flowgate) -> Vec<u64> {
    let workers = flowgate.show("workers");
    workers.as_array().expect("a list").iter().map(|worker| number(&worker["account"]["processed"])).collect()
}

#[test]
fn the_demonstration_allows_and_denies_as_its_file_says() {
    let Some(mut lab) = lab("netns-demo") else { return };
    let [client, server] = two_hosts(&mut lab, 1500);
    let text = example("demo.toml").replace("fgd-lan", &client.port).replace("fgd-wan", &server.port);
    let socket = lab.file("demo.sock");
    let text = text.replace("/run/flowgate-demo.sock", socket.to_str().expect("a name"));
    let file = lab.file("demo.toml");
    std::fs::write(&file, text).expect("writable");
    let flowgate = Flowgate::start_file(&file, &socket);
    for port in [80, 9999] {
        let folder = Path::new("/var/empty");
        lab.web(&server.name, if folder.exists() { folder } else { Path::new("/usr/share/doc/iproute2") }, port);
    }
    for i in [0, 1] {
        let blocked = ["10.77.0.66/24", "2001:db8:77::66/64"][i];
        inside(&client.name, &["ip", "addr", "add", blocked, "dev", "eth0"]).status().expect("ip");
        let (to, back) = ([V4, V6][i][1], [V4, V6][i][0]);
        let from = blocked.split('/').next().expect("an address");
        client.does(&["ping", "-n", "-c", "2", "-i", "0.1", "-W", "10", "-I", back, to]);
        client.does(&["curl", "-sS", "-m", "30", "-o", "/dev/null", "--interface", back, &url(to, 80, "")]);
        client.fails(&["curl", "-sS", "-m", "1", "-o", "/dev/null", "--interface", back, &url(to, 9999, "")]);
        client.fails(&["ping", "-n", "-c", "1", "-W", "1", "-I", from, to]);
        server.fails(&["ping", "-n", "-c", "1", "-W", "1", back]);
    }
    let rules = flowgate.rules();
    for name in ["ping", "web"] {
        assert!(rules[name].0 > 0, "{name}: {rules:?}");
    }
    let drops = flowgate.drops();
    assert!(drops["acl.denied-default"] > 0 && drops["guard.blocked-source"] > 0, "{drops:?}");
    only_expected(&flowgate, &["acl.denied-default", "guard.arp-sender"]);
    assert!(Account::total(&flowgate.accounts()).balances());
    flowgate.stop();
    wait_for("the interfaces are given back", || !socket.exists());
}
