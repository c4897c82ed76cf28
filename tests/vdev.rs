//! The real binary over virtual devices: capture files, the null device, memif with testpmd at the other end. Every run ends
//! with the laws: accounts balance, drops add up by reason, no buffer is missing, nothing is left behind.

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::appliance::{Account, FLOWGATE, Flowgate, config, cpus, example, number, run_to_end, wait_for, workers};
use common::frames::*;
use common::skip;
use common::testpmd::{self, Testpmd};

/// A wire between two ports `lan` (zone inside) and `wan` (zone outside) over capture files.
struct Files {
    dir: tempfile::TempDir,
    sent: u64,
}

impl Files {
    fn new(lan: &[Frame], wan: &[Frame]) -> Files {
        let files = Files { dir: tempfile::tempdir().expect("a folder"), sent: (lan.len() + wan.len()) as u64 };
        write_pcap(&files.path("lan-in"), lan);
        write_pcap(&files.path("wan-in"), wan);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name).with_extension("pcap")
    }

    fn device(&self, number: usize, port: &str) -> String {
        let file = |kind| self.path(&format!("{port}-{kind}"));
        format!("net_pcap{number},rx_pcap={},tx_pcap={}", file("in").display(), file("out").display())
    }

    /// The two `[[port]]` tables, with more keys for both.
    fn ports(&self, keys: &str) -> String {
        let port = |number, name, zone| {
            format!("[[port]]\nname = {name:?}\ndevice = {:?}\nzone = {zone:?}\n{keys}\n", self.device(number, name))
        };
        port(0, "lan", "inside") + &port(1, "wan", "outside")
    }

    /// Starts flowgate with the ports and the rest of a config, and lets it take in all that is there.
    fn run(&self, rest: &str) -> Flowgate {
        self.run_with("", rest)
    }

    fn run_with(&self, keys: &str, rest: &str) -> Flowgate {
        let flowgate = Flowgate::start(self.dir.path(), &[&self.ports(keys), rest].join("\n"));
        flowgate.settled(self.sent);
        flowgate
    }

    /// What left by a port.
    fn out(&self, port: &str) -> Vec<Frame> {
        read_pcap(&self.path(&format!("{port}-out")))
    }
}

const CROSS: &str = "[pipeline]\nstages = [\"cross\"]\n[cross]\nwire = [{ ports = [\"lan\", \"wan\"] }]\n";
const OPEN: &str = "[pipeline]\nstages = [\"cross\", \"acl\"]\n[cross]\nwire = [{ ports = [\"lan\", \"wan\"] }]\n\
                    [acl]\ndefault = \"allow\"\n";

fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// Bytes without a meaning, the same in every run.
fn noise(count: usize, mut length: impl FnMut(usize) -> usize) -> Vec<Frame> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..count).map(|i| (0..length(i)).map(|_| byte()).collect()).collect()
}

#[test]
fn a_cross_alone_forwards_frames_unread() {
    let lan = noise(1500, |i| 1 + i);
    let wan = noise(700, |i| 1514 - i);
    let files = Files::new(&lan, &wan);
    let flowgate = files.run(CROSS);
    assert_eq!(flowgate.show("pipeline")["frames_unread"], true);
    assert_eq!(flowgate.drops(), counts(&[]));
    flowgate.stop();
    assert_same("lan to wan", &files.out("wan"), &lan);
    assert_same("wan to lan", &files.out("lan"), &wan);
}

#[test]
fn a_cross_may_rewrite_macs_and_nothing_else() {
    let (a, b) = (ip("10.0.0.1"), ip("10.0.0.2"));
    let lan: Vec<Frame> =
        (0..300).map(|i| udp(a, 1000 + i, b, 53, &[i as u8; 100])).chain(noise(300, |i| 14 + i)).collect();
    let wan: Vec<Frame> = (0..300).map(|i| tcp(b, 80, a, 1000 + i, ACK, &[i as u8; 200])).collect();
    let files = Files::new(&lan, &wan);
    let peers = "rewrite_mac = true, peers = [\"02:00:00:00:0a:0a\", \"02:00:00:00:0b:0b\"]";
    let flowgate = files.run(&CROSS.replace("] }]", &format!("], {peers} }}]")));
    let mac = |port: &str| -> Vec<u8> {
        let port = flowgate.port(port);
        let text = port["mac"].as_str().expect("a MAC").to_owned();
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect()
    };
    let macs = [("lan", mac("lan")), ("wan", mac("wan"))];
    flowgate.stop();
    for ((port, mac), (sent, peer)) in macs.iter().zip([(&wan, 0x0a), (&lan, 0x0b)]) {
        let rewritten: Vec<Frame> =
            sent.iter().map(|frame| [&[0x02, 0, 0, 0, peer, peer], &mac[..], &frame[12..]].concat()).collect();
        assert_same(port, &files.out(port), &rewritten);
    }
}

#[test]
fn acl_passes_and_counts_exactly_what_its_rules_say() {
    let acl = r#"
        [pipeline]
        stages = ["cross", "acl"]
        [cross]
        wire = [{ ports = ["lan", "wan"] }]
        [set]
        office = ["10.0.0.0/24", "2001:db8:1::/64"]
        [service]
        web = ["tcp/80", "tcp/443"]
        [acl]
        default = "deny"
        [[acl.rule]]
        name = "no telnet"
        service = "tcp/23"
        action = "deny"
        [[acl.rule]]
        name = "web"
        from = "inside"
        to = "outside"
        source = "@office"
        service = "web"
        action = "allow"
        [[acl.rule]]
        name = "high ports"
        from = "inside"
        service = "udp/6000-6999"
        action = "allow"
        [[acl.rule]]
        name = "pings"
        service = ["icmp/echo", "icmpv6/echo"]
        action = "allow"
        [[acl.rule]]
        name = "one host"
        from = "outside"
        source = ["192.0.2.7", "2001:db8:2::7"]
        action = "allow"
    "#;
    let families = [
        ["10.0.0.5", "10.9.0.5", "192.0.2.7", "192.0.2.8"],
        ["2001:db8:1::5", "2001:db8:9::5", "2001:db8:2::7", "2001:db8:2::8"],
    ];
    let (mut lan, mut wan) = (Vec::new(), Vec::new());
    let mut hits: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let (mut want_lan, mut want_wan, mut denied, mut unmatched) = (Vec::new(), Vec::new(), 0, 0);
    for round in 0..40_u16 {
        for addresses in families {
            let [office, other, host, stranger] = addresses.map(ip);
            let body = vec![round as u8; 10 + usize::from(round)];
            let port = 40_000 + round;
            // (frame, arrives on lan, rule, passes)
            let cases = [
                (tcp(office, port, host, 23, SYN, &body), true, "no telnet", false),
                (tcp(host, port, office, 23, SYN, &body), false, "no telnet", false),
                (tcp(office, port, host, 80, SYN, &body), true, "web", true),
                (tcp(office, port, stranger, 443, SYN, &body), true, "web", true),
                (tcp(other, port, stranger, 443, SYN, &body), true, "default", false),
                (tcp(stranger, port, office, 443, SYN, &body), false, "default", false),
                (tcp(office, port, stranger, 444, SYN, &body), true, "default", false),
                (udp(office, port, host, 443, &body), true, "default", false),
                (udp(other, port, host, 6000, &body), true, "high ports", true),
                (udp(other, port, host, 6999, &body), true, "high ports", true),
                (udp(other, port, host, 7000, &body), true, "default", false),
                (udp(stranger, port, other, 6500, &body), false, "default", false),
                (echo(stranger, other, false, round, &body), false, "pings", true),
                (echo(other, stranger, true, round, &body), true, "default", false),
                (udp(host, 9, other, port, &body), false, "one host", true),
                (udp(stranger, 9, other, port, &body), false, "default", false),
            ];
            for (frame, on_lan, rule, passes) in cases {
                if rule == "default" {
                    unmatched += 1;
                } else {
                    denied += u64::from(!passes);
                    let hit = hits.entry(rule.to_owned()).or_default();
                    *hit = (hit.0 + 1, hit.1 + frame.len() as u64);
                }
                let (input, output) = if on_lan { (&mut lan, &mut want_wan) } else { (&mut wan, &mut want_lan) };
                if passes {
                    output.push(frame.clone());
                }
                input.push(frame);
            }
        }
    }
    let files = Files::new(&lan, &wan);
    let flowgate = files.run(acl);
    assert_eq!(flowgate.rules(), hits);
    assert_eq!(flowgate.drops(), counts(&[("acl.denied", denied), ("acl.denied-default", unmatched)]));
    for port in ["lan", "wan"] {
        let state = flowgate.port(port);
        let (sent, left) = if port == "lan" { (&lan, &want_lan) } else { (&wan, &want_wan) };
        assert_eq!(number(&state["rx_packets"]), sent.len() as u64);
        assert_eq!(number(&state["tx_packets"]), left.len() as u64);
    }
    // Every rule tells where it stands.
    let line = |name: &str| acl.lines().position(|line| line.contains(name)).expect("in the text");
    let shown = flowgate.show("rules");
    let place = |name: &str| {
        let row = shown.as_array().expect("a list").iter().find(|row| row["rule"] == name);
        number(&row.expect("a rule")["line"])
    };
    assert_eq!(place("one host") - place("no telnet"), (line("one host") - line("no telnet")) as u64);
    flowgate.stop();
    assert_same("lan to wan", &files.out("wan"), &want_wan);
    assert_same("wan to lan", &files.out("lan"), &want_lan);
}

#[test]
fn rejected_packets_are_answered_and_logged() {
    let (host, server) = (ip("10.0.0.5"), ip("192.0.2.7"));
    let lan = [
        tcp(host, 40_000, server, 443, SYN, &[]),
        tcp(host, 40_001, server, 25, SYN, &[]),
        udp(host, 40_002, server, 53, &[7; 40]),
        udp(ip("2001:db8::5"), 40_003, ip("2001:db8::7"), 53, &[7; 40]),
    ];
    let wan = [udp(server, 53, host, 40_002, &[7; 40])];
    let rules = "[pipeline]\nstages = [\"cross\", \"acl\"]\n[cross]\nwire = [{ ports = [\"lan\", \"wan\"] }]\n[acl]\n\
                 log_default = true\n[[acl.rule]]\nname = \"web server\"\nservice = \"tcp/443\"\naction = \"allow\"\n\
                 log = true\n[[acl.rule]]\nname = \"rest\"\nfrom = \"inside\"\naction = \"reject\"\nlog = true\n";
    // With two, each has the transmit queue of one port only.
    for count in [1, 2] {
        let files = Files::new(&lan, &wan);
        let flowgate = files.run(&[rules, &workers(count)].join("\n"));
        assert_eq!(flowgate.drops(), counts(&[("acl.denied-default", 1), ("acl.rejected", 3)]));
        let stopped = flowgate.stop();
        assert_eq!((stopped.total.created, stopped.total.dropped, stopped.total.sent), (3, 4, 4));
        assert_same("lan to wan", &files.out("wan"), &lan[..1]);
        let mut answers = files.out("lan");
        answers.sort_by_key(|frame| (frame[12] != 8, if frame[12] == 8 { frame[23] } else { frame[20] }));
        // Protocol and, of the errors, type and code.
        let told: Vec<_> = answers.iter().map(|frame| if frame[12] == 8 { frame[23] } else { frame[20] }).collect();
        assert_eq!(told, [1, 6, 58]);
        assert_eq!((&answers[0][34..36], &answers[2][54..56]), (&[3, 13][..], &[1, 1][..]));
        assert_eq!(ends(&answers[0]), (server, host));
        for line in [
            "allowed rule=\"web server\" tcp 10.0.0.5:40000 > 192.0.2.7:443 [S] in lan out wan",
            "denied acl.rejected rule=\"rest\" tcp 10.0.0.5:40001 > 192.0.2.7:25 [S] in lan out wan",
            "denied acl.rejected rule=\"rest\" udp 10.0.0.5:40002 > 192.0.2.7:53 in lan out wan",
            "denied acl.rejected rule=\"rest\" udp [2001:db8::5]:40003 > [2001:db8::7]:53 in lan out wan",
            "denied acl.denied-default udp 192.0.2.7:53 > 10.0.0.5:40002 in wan out lan",
        ] {
            let logged =
                stopped.log.lines().filter(|logged| logged.starts_with("flowgate: ") && logged.ends_with(line));
            assert_eq!(logged.count(), 1, "{line}: {}", stopped.log);
        }
    }
}

/// A frame with some of its bytes changed, and the IPv4 header checksum made right again.
fn changed(frame: &Frame, changes: &[(usize, u8)]) -> Frame {
    let mut frame = frame.clone();
    for (at, value) in changes {
        frame[*at] = *value;
    }
    if frame[12..14] == [8, 0] {
        let header = 14 + usize::from(frame[14] & 15).max(5) * 4;
        let header = header.min(frame.len());
        frame[24..26].fill(0);
        let sum: u32 = frame[14..header].chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

#[test]
fn malformed_frames_are_counted_each_under_its_reason() {
    let (a, b) = (ip("10.0.0.1"), ip("10.0.0.2"));
    let (a6, b6) = (ip("2001:db8::1"), ip("2001:db8::2"));
    let good = udp(a, 1, b, 2, &[7; 60]);
    let good6 = udp(a6, 1, b6, 2, &[7; 60]);
    let tcp4 = tcp(a, 1, b, 2, SYN, &[7; 60]);
    let v4 = |proto, fragment, payload: &[u8]| ethernet(0x0800, &ipv4(a, b, proto, 9, fragment, payload));
    let v6 = |next, payload: &[u8]| ethernet(0x86dd, &ipv6(a6, b6, next, payload));
    let mut bad_sum = good.clone();
    bad_sum[24] ^= 1;
    let cases = [
        ("short-frame", good[..13].to_vec()),
        ("short-tag", tagged(&good, &[(0x8100, 5)])[..17].to_vec()),
        ("too-many-tags", tagged(&good, &[(0x88a8, 5), (0x8100, 6), (0x8100, 7)])),
        ("short-arp", arp(a, b)[..41].to_vec()),
        ("foreign-arp", changed(&arp(a, b), &[(15, 6)])),
        ("short-ip", good[..33].to_vec()),
        ("short-ip", good6[..53].to_vec()),
        ("bad-version", changed(&good, &[(14, 0x65)])),
        ("bad-version", changed(&good6, &[(14, 0x40)])),
        ("bad-ihl", changed(&good, &[(14, 0x44)])),
        ("header-beyond-frame", changed(&good, &[(14, 0x4f)])[..60].to_vec()),
        ("total-length-short", changed(&good, &[(16, 0), (17, 19)])),
        ("length-beyond-frame", changed(&good, &[(17, good[17] + 1)])),
        ("length-beyond-frame", changed(&good6, &[(19, good6[19] + 1)])),
        ("bad-header-checksum", bad_sum),
        ("bad-fragment-length", v4(17, 0x2000, &[0; 63])),
        ("fragment-beyond-end", v4(17, 0x1fff, &[0; 64])),
        ("short-first-fragment", v4(6, 0x2000, &[0; 16])),
        (
            "second-fragment-header",
            v6(44, &[&[44, 0, 0, 1, 0, 0, 0, 1, 17, 0, 0, 1, 0, 0, 0, 1][..], &[0; 16]].concat()),
        ),
        ("jumbogram", changed(&v6(0, &[17, 0, 0xc2, 4, 0, 1, 0, 0]), &[(18, 0), (19, 0)])),
        ("short-extension", v6(60, &[17, 9, 0, 0, 0, 0, 0, 0])),
        ("late-hop-by-hop", v6(60, &[0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0])),
        ("too-many-extensions", v6(60, &[[60, 0, 1, 4, 0, 0, 0, 0]; 9].concat())),
        ("short-transport", v4(17, 0, &[0; 7])),
        ("short-transport", v6(58, &[128, 0, 0])),
        ("bad-tcp-offset", changed(&tcp4, &[(46, 0x40)])),
        ("bad-tcp-offset", v4(6, 0, &[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0xf0, 2, 0, 0, 0, 0, 0, 0])),
        ("bad-udp-length", changed(&good, &[(39, 7)])),
        ("bad-udp-length", changed(&good, &[(39, good[39] + 1)])),
    ];
    let mut want: BTreeMap<String, u64> = BTreeMap::new();
    let mut input = Vec::new();
    for (i, (reason, frame)) in cases.iter().enumerate() {
        // A good one after each shows that nothing else is harmed.
        for _ in 0..=i % 3 {
            input.extend([frame.clone(), good.clone()]);
            *want.entry(format!("decode.{reason}")).or_default() += 1;
        }
    }
    let files = Files::new(&input, &[]);
    let flowgate = files.run(OPEN);
    assert_eq!(flowgate.drops(), want);
    flowgate.stop();
    let passed = input.iter().filter(|frame| **frame == good).cloned().collect::<Vec<_>>();
    assert_same("what is well formed", &files.out("wan"), &passed);
}

#[test]
fn tags_and_jumbo_frames_pass_as_they_came() {
    let (a, b) = (ip("10.0.0.1"), ip("10.0.0.2"));
    let (a6, b6) = (ip("2001:db8::1"), ip("2001:db8::2"));
    // The MTU counts from the network header on: 9000 with IPv4 and UDP headers are 8972 of payload.
    let bodies = [vec![1; 18], vec![2; 1472], vec![3; 8900], vec![4; 8972]];
    let mut input = Vec::new();
    for body in &bodies {
        for frame in [udp(a, 1, b, 2, body), udp(a6, 1, b6, 2, &body[..body.len().saturating_sub(20)])] {
            input.push(frame.clone());
            input.push(tagged(&frame, &[(0x8100, 100)]));
            input.push(tagged(&frame, &[(0x88a8, 7), (0x8100, 100)]));
        }
    }
    let files = Files::new(&input, &[]);
    let flowgate = files.run_with("mtu = 9000", OPEN);
    assert_eq!(flowgate.drops(), counts(&[]));
    flowgate.stop();
    assert_same("tagged and jumbo", &files.out("wan"), &input);

    // Rules read behind the tags, and the VLAN itself.
    let files = Files::new(&input, &[]);
    let rule = "[[acl.rule]]\nname = \"guests\"\nvlan = 100\nservice = \"udp/2\"\naction = \"deny\"\n";
    let flowgate = files.run_with("mtu = 9000", &[OPEN, rule].concat());
    let outer_100: Vec<&Frame> = input.iter().filter(|frame| frame[12..16] == [0x81, 0, 0, 100]).collect();
    assert_eq!(flowgate.rules()["guests"].0, outer_100.len() as u64);
    flowgate.stop();
    let rest: Vec<Frame> = input.iter().filter(|frame| !outer_100.contains(frame)).cloned().collect();
    assert_same("all but VLAN 100", &files.out("wan"), &rest);
}

#[test]
fn a_frame_longer_than_the_mtu_is_too_big() {
    let (a, b) = (ip("10.0.0.1"), ip("10.0.0.2"));
    let fits = udp(a, 1, b, 2, &[1; 1472]);
    let fits_tagged = tagged(&fits, &[(0x88a8, 7), (0x8100, 100)]);
    let longer = udp(a, 1, b, 2, &[1; 1600]);
    let input = [fits.clone(), longer.clone(), fits_tagged.clone(), longer];
    for pipeline in [OPEN, CROSS] {
        let files = Files::new(&input, &[]);
        // What comes in may be longer than what may go out.
        let ports = files.ports("mtu = 1500").replacen("mtu = 1500", "mtu = 3000", 1);
        let flowgate = Flowgate::start(files.dir.path(), &[&ports, pipeline].join("\n"));
        flowgate.settled(4);
        assert_eq!(flowgate.drops(), counts(&[("engine.too-big", 2)]), "{pipeline}");
        flowgate.stop();
        assert_same("what fits", &files.out("wan"), &[fits.clone(), fits_tagged.clone()]);
    }
}

/// Two null devices, which give packets for ever and take them all.
const NULL: &str = "[[port]]\nname = \"lan\"\ndevice = \"net_null0,size=64\"\n[[port]]\nname = \"wan\"\ndevice = \"net_null1,size=64\"\n";

#[test]
fn stops_cleanly_under_full_load() {
    for (count, pipeline) in [(1, CROSS), (2, CROSS), (1, OPEN), (2, OPEN)] {
        let dir = tempfile::tempdir().expect("a folder");
        let flowgate = Flowgate::start(dir.path(), &[NULL, &workers(count), pipeline].join("\n"));
        wait_for("every worker is at work", || flowgate.accounts().iter().all(|a| a.received > 10_000));
        let before = Account::total(&flowgate.accounts()).received;
        assert!(flowgate.stop().total.received >= before);
    }
}

/// Two memif ports, waiting for the other end.
fn memif_ports(dir: &Path) -> String {
    let port = |number: usize, name: &str| {
        let socket = dir.join(format!("{name}.memif"));
        let device = format!("net_memif{number},role=server,rsize=14,socket-abstract=no,socket={}", socket.display());
        format!("[[port]]\nname = {name:?}\ndevice = {device:?}\n")
    };
    port(0, "lan") + &port(1, "wan")
}

fn memif_client(dir: &Path, number: usize, port: &str) -> String {
    let socket = dir.join(format!("{port}.memif"));
    format!("net_memif{number},role=client,rsize=14,socket-abstract=no,socket={}", socket.display())
}

#[test]
fn what_testpmd_sends_through_arrives_byte_for_byte() {
    if let Some(why) = testpmd::missing() {
        return skip("testpmd", &why);
    }
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let (a, b) = (ip("10.0.0.1"), ip("10.0.0.2"));
    let dport = |i: u16| if i.is_multiple_of(5) { 9999 } else { 80 };
    let rule = "[[acl.rule]]\nname = \"refused\"\nservice = \"tcp/9999\"\naction = \"deny\"\n";
    // Fewer than the rings of memif hold, and those between workers, so that none is lost however the CPUs are shared.
    let filtered = [OPEN, rule].concat();
    for (count, frames, pipeline) in [(1, 6000, CROSS), (1, 6000, &filtered), (2, 450, &filtered)] {
        let body = |i: u16, longest: u16| vec![i as u8; usize::from(i % longest)];
        let inside: Vec<Frame> = (0..frames).map(|i| tcp(a, i, b, dport(i), ACK, &body(i, 1400))).collect();
        let outside: Vec<Frame> = (0..frames).map(|i| udp(b, 53, a, i, &body(i, 1300))).collect();
        let frames = u64::from(frames);
        write_pcap(&dir.join("inside"), &inside);
        write_pcap(&dir.join("outside"), &outside);
        let flowgate = Flowgate::start(dir, &[&memif_ports(dir), &workers(count), pipeline].join("\n"));
        let files = |number: usize, source: &str, sink: &str| {
            format!("net_pcap{number},rx_pcap={},tx_pcap={}", dir.join(source).display(), dir.join(sink).display())
        };
        let devices = [
            memif_client(dir, 0, "lan"),
            files(0, "inside", "back"),
            memif_client(dir, 1, "wan"),
            files(1, "outside", "through"),
        ];
        let mut testpmd = Testpmd::start(dir, &devices, &[]);
        flowgate.wait_for_link("lan", "up");
        flowgate.wait_for_link("wan", "up");
        testpmd.prime("0,2", "0,1,2,3");
        testpmd.forward("io");
        flowgate.settled(2 * frames);
        let refused = pipeline.contains("refused");
        let want: Vec<Frame> =
            inside.iter().filter(|f| !refused || f[36..38] != 9999_u16.to_be_bytes()).cloned().collect();
        let denied = (inside.len() - want.len()) as u64;
        let drops = if refused { counts(&[("acl.denied", denied)]) } else { counts(&[]) };
        assert_eq!(flowgate.drops(), drops);
        wait_for("testpmd has taken everything", || {
            let stats = testpmd.stats();
            (stats[1].tx, stats[3].tx) == (frames, want.len() as u64)
        });
        let stats = testpmd.stats();
        assert_eq!((stats[0].tx, stats[2].tx), (frames, frames), "all were sent into flowgate");
        testpmd.stop();
        testpmd.quit();
        flowgate.stop();
        if count == 1 {
            assert_same("inside to outside", &read_pcap(&dir.join("through")), &want);
            assert_same("outside to inside", &read_pcap(&dir.join("back")), &outside);
        } else {
            // Two workers keep the order within a flow, and here each frame is a flow of its own.
            let sorted = |mut frames: Vec<Frame>| {
                frames.sort();
                frames
            };
            assert_same("inside to outside", &sorted(read_pcap(&dir.join("through"))), &sorted(want));
            assert_same("outside to inside", &sorted(read_pcap(&dir.join("back"))), &sorted(outside.clone()));
        }
    }
}

#[test]
fn testpmd_and_flowgate_count_alike_to_the_packet() {
    if let Some(why) = testpmd::missing() {
        return skip("testpmd", &why);
    }
    for count in [1, 2] {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = dir.path();
        let flowgate = Flowgate::start(dir, &[&memif_ports(dir), &workers(count), OPEN].join("\n"));
        let mut testpmd = Testpmd::start(dir, &[memif_client(dir, 0, "lan"), memif_client(dir, 1, "wan")], &[]);
        flowgate.wait_for_link("lan", "up");
        flowgate.wait_for_link("wan", "up");
        testpmd.forward("flowgen");
        wait_for("packets by the hundred thousand", || Account::total(&flowgate.accounts()).received > 200_000);
        testpmd.stop();
        // What is under way is taken in without sending anything new.
        testpmd.forward("rxonly");
        let sent = testpmd.stats();
        flowgate.settled(sent[0].tx + sent[1].tx);
        for (port, theirs) in [("lan", 0), ("wan", 1)] {
            let ours = flowgate.port(port);
            assert_eq!(number(&ours["rx_packets"]), sent[theirs].tx, "{port}");
            let left = number(&ours["tx_packets"]);
            wait_for("testpmd has taken everything", || testpmd.stats()[theirs].rx == left);
        }
        // Nothing but a full ring ever stops a packet of this load.
        let drops = flowgate.drops();
        let full = ["engine.tx-full", "engine.handoff-full"];
        assert!(drops.keys().all(|reason| full.contains(&reason.as_str())), "{drops:?}");
        testpmd.stop();
        testpmd.quit();
        flowgate.stop();
    }
}

#[test]
fn links_are_followed() {
    if let Some(why) = testpmd::missing() {
        return skip("testpmd", &why);
    }
    let (a, b) = (ip("10.0.0.1"), ip("10.0.0.2"));
    let input: Vec<Frame> = (0..500).map(|i| udp(a, i, b, 2, b"nobody is there")).collect();
    for pipeline in [CROSS, OPEN] {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = dir.path();
        write_pcap(&dir.join("in"), &input);
        let file = format!("[[port]]\nname = \"lan\"\ndevice = \"net_pcap0,rx_pcap={}\"\n", dir.join("in").display());
        let ports = memif_ports(dir);
        let wan = ports.rfind("[[port]]").expect("two ports");
        let flowgate = Flowgate::start(dir, &[&file, &ports[wan..], pipeline].join("\n"));
        flowgate.settled(500);
        assert_eq!(flowgate.port("wan")["link"], "down");
        assert_eq!(number(&flowgate.port("wan")["tx_dropped"]), 500);
        assert_eq!(flowgate.drops(), counts(&[("engine.link-down", 500)]), "{pipeline}");
        for _ in 0..2 {
            let testpmd = Testpmd::start(dir, &[memif_client(dir, 1, "wan")], &[]);
            flowgate.wait_for_link("wan", "up");
            testpmd.quit();
            flowgate.wait_for_link("wan", "down");
        }
        let log = flowgate.stop().log;
        assert!(log.contains("wan: link up") && log.contains("wan: link down"), "{log}");
    }
}

/// A conversation in both directions: what comes in at `lan` and at `wan`, in order.
struct Conversation {
    lan: Vec<Frame>,
    wan: Vec<Frame>,
}

/// Of each kind of traffic some flows, each a few packets long. The payload says which packet it is.
fn conversations() -> Vec<Conversation> {
    let mut all = Vec::new();
    for n in 0..24_u16 {
        let (a, b) = match n % 2 {
            0 => (ip(&format!("10.0.{n}.1")), ip("192.0.2.1")),
            _ => (ip(&format!("2001:db8:{n}::1")), ip("2001:db8:ffff::1")),
        };
        let (sport, dport) = (30_000 + n * 7, 53 + n % 3);
        let body = |i: u16| format!("flow {n} packet {i}").into_bytes();
        let mut flow = Conversation { lan: Vec::new(), wan: Vec::new() };
        for i in 0..10 {
            match n % 3 {
                0 => {
                    flow.lan.push(tcp(a, sport, b, dport, ACK, &body(i)));
                    flow.wan.push(tcp(b, dport, a, sport, ACK, &body(i)));
                }
                1 => {
                    let request = udp(a, sport, b, dport, &body(i));
                    // Every third is answered with an error, which belongs to the flow it quotes.
                    flow.wan.push(if i % 3 == 2 { unreachable(&request) } else { udp(b, dport, a, sport, &body(i)) });
                    flow.lan.push(request);
                }
                _ => {
                    flow.lan.push(echo(a, b, false, sport, &body(i)));
                    flow.wan.push(echo(b, a, true, sport, &body(i)));
                }
            }
        }
        all.push(flow);
        // A datagram in fragments is a flow of its own for the workers.
        let big: Vec<u8> = (0..4000).map(|i| (i as u16 + n) as u8).collect();
        all.push(Conversation { lan: fragments(a, sport, b, dport, &big, n, 1000), wan: Vec::new() });
    }
    all
}

/// The flows' packets taken in turns.
fn interleaved<'a>(flows: impl Iterator<Item = &'a Vec<Frame>> + Clone) -> Vec<Frame> {
    let longest = flows.clone().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|i| flows.clone().filter_map(move |flow| flow.get(i).cloned())).collect()
}

/// The frames of a flow in the order they left in.
fn of_flow(out: &[Frame], flow: &[Frame]) -> Vec<Frame> {
    out.iter().filter(|frame| flow.contains(frame)).cloned().collect()
}

#[test]
fn two_workers_share_the_flows_and_keep_their_order() {
    let flows = conversations();
    // Fewer than a ring between workers holds: nothing may be lost.
    let lan = interleaved(flows.iter().map(|flow| &flow.lan));
    let wan = interleaved(flows.iter().map(|flow| &flow.wan));
    assert!(lan.len() + wan.len() < 1000);
    let files = Files::new(&lan, &wan);
    let flowgate = files.run(&[&workers(2), OPEN].join("\n"));
    assert_eq!(flowgate.drops(), counts(&[]));
    let accounts = flowgate.accounts();
    assert_eq!(accounts.len(), 2);
    let total = Account::total(&accounts);
    assert_eq!(total.handed_in, total.handed_out);
    assert!(accounts.iter().all(|account| account.handed_in > 0 || account.received > 0), "{accounts:?}");
    assert!(total.handed_in > 0, "a device of one queue needs the rings: {accounts:?}");
    flowgate.stop();
    let (out_lan, out_wan) = (files.out("lan"), files.out("wan"));
    assert_eq!((out_lan.len(), out_wan.len()), (wan.len(), lan.len()));
    for (i, flow) in flows.iter().enumerate() {
        assert_same(&format!("flow {i} from lan"), &of_flow(&out_wan, &flow.lan), &flow.lan);
        assert_same(&format!("flow {i} from wan"), &of_flow(&out_lan, &flow.wan), &flow.wan);
    }
}

#[test]
fn the_fragments_of_a_datagram_meet_in_one_worker() {
    let (a, b) = (ip("10.0.0.1"), ip("192.0.2.1"));
    for id in 0..4 {
        let lan = fragments(a, 1000, b, 53, &[id as u8; 8000], id, 800);
        let files = Files::new(&lan, &[]);
        let flowgate = files.run(&[&workers(2), OPEN].join("\n"));
        let shown = flowgate.show("workers");
        let processed: Vec<u64> =
            shown.as_array().expect("a list").iter().map(|worker| number(&worker["account"]["processed"])).collect();
        assert!(
            [[0, lan.len() as u64], [lan.len() as u64, 0]].contains(&[processed[0], processed[1]]),
            "{processed:?}"
        );
        flowgate.stop();
        assert_same("fragments", &files.out("wan"), &lan);
    }
}

#[test]
fn instances_live_side_by_side() {
    let input = noise(200, |i| 60 + i);
    let (first, second) = (Files::new(&input, &[]), Files::new(&[], &input));
    let one = first.run(CROSS);
    // In the first one's folder, and so with the same folder for runtime files.
    let two = Flowgate::start(first.dir.path(), &[&second.ports(""), CROSS].join("\n"));
    two.settled(200);
    let refused = {
        // A third with the first one's socket: refused, and the first goes on.
        let files = Files::new(&[], &[]);
        let (file, own) = config(files.dir.path(), &[&files.ports(""), CROSS].join("\n"));
        let text = std::fs::read_to_string(&file).expect("just written");
        let taken = one.socket.to_str().expect("a name");
        std::fs::write(&file, text.replace(own.to_str().expect("a name"), taken)).expect("writable");
        run_to_end(&file)
    };
    assert_eq!(refused.status.code(), Some(3));
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(message.contains(one.socket.to_str().expect("a name")), "{message}");
    one.check_laws();
    one.stop();
    two.stop_by("TERM");
    assert_same("first", &first.out("wan"), &input);
    assert_same("second", &second.out("lan"), &input);
}

#[test]
fn a_crash_stops_no_later_start() {
    for hugepages in ["off", "auto"] {
        let dir = tempfile::tempdir().expect("a folder");
        let memory = format!("[memory]\nhugepages = {hugepages:?}\npackets = 8192\n");
        let (file, socket) = config(dir.path(), &[NULL, &memory, OPEN].join("\n"));
        for _ in 0..2 {
            let flowgate = Flowgate::start_file(&file, &socket);
            wait_for("work", || Account::total(&flowgate.accounts()).received > 0);
            flowgate.crash();
        }
        Flowgate::start_file(&file, &socket).stop();
    }
}

/// What flowgate says when it refuses to start, which it must do with one message, an exit code and nothing left behind.
fn refusal(toml: &str, code: i32) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let (file, socket) = config(dir.path(), toml);
    let output = run_to_end(&file);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    // A mistake in the file is shown with its line.
    assert!(code == 1 || message.trim().lines().count() == 1, "one message, on one line:\n{message}");
    assert!(!socket.exists(), "the socket is left behind");
    message
}

#[test]
fn what_cannot_start_says_why() {
    let with = |worker: &str, memory: &str| format!("{NULL}\n{worker}\n{memory}\n{CROSS}");
    let has = |message: &str, words: &[&str]| {
        assert!(words.iter().all(|word| message.contains(word)), "expected {words:?} in: {message}");
    };
    let device = |device: &str| {
        format!(
            "[[port]]\nname = \"lan\"\ndevice = {device:?}\n{}\n{CROSS}",
            &NULL[NULL.rfind("[[port]]").expect("two")..]
        )
    };
    has(&refusal(&device("net_af_packet0,iface=nosuchif"), 3), &["lan", "nosuchif"]);
    has(&refusal(&device("net_nosuch0"), 3), &["lan", "net_nosuch0"]);
    has(&refusal(&device("net_pcap0,rx_pcap=/nonexistent/x.pcap"), 3), &["lan", "/nonexistent/x.pcap"]);
    has(&refusal(&device("0000:ff:1f.7"), 3), &["lan", "0000:ff:1f.7"]);
    let beyond = cpus().last().expect("a CPU") + 1;
    has(&refusal(&with(&format!("[worker]\ncores = [{beyond}]\n"), ""), 1), &["worker.cores", &beyond.to_string()]);
    has(&refusal(&with("[worker]\ncores = [0, 0]\n", ""), 1), &["core 0 is taken twice"]);
    has(&refusal(&with("", "[memory]\nhugepages = \"require\"\npackets = 16000000\n"), 3), &["hugepages"]);
}

#[test]
fn who_lacks_permission_is_told_so() {
    let id = Command::new("id").arg("-u").output().expect("id").stdout;
    if id != b"0\n" {
        return skip("unprivileged", "only root can become somebody else");
    }
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("our folder");
    // The build's folder may be closed to others.
    let binary = dir.path().join("flowgate");
    std::fs::copy(FLOWGATE, &binary).expect("room for the binary");
    let ports = NULL.replace("net_null0,size=64", "net_af_packet0,iface=lo");
    let (file, socket) = config(dir.path(), &[&ports, CROSS].join("\n"));
    let output = Command::new("timeout")
        .args(["-s", "KILL", "60", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&binary)
        .arg("run")
        .arg(&file)
        .env("RUNTIME_DIRECTORY", dir.path())
        .output()
        .expect("setpriv");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    assert!(message.contains("\"lan\"") && message.contains("root"), "{message}");
    assert_eq!(message.trim().lines().count(), 1, "{message}");
    assert!(!socket.exists());
}

#[test]
fn first_xdp_counts_sources_and_drops_port_9999() {
    let (sources, target) = (["10.0.0.1", "10.0.0.2", "2001:db8::1"].map(ip), [ip("192.0.2.1"), ip("2001:db8:f::1")]);
    let mut input = Vec::new();
    let mut talkers: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (n, source) in sources.into_iter().enumerate() {
        let to = if source.is_ipv4() { target[0] } else { target[1] };
        for i in 0..100 * (n as u16 + 1) {
            let body = vec![0; usize::from(i)];
            let frame = match i % 4 {
                0 => tcp(source, 1000 + i, to, 9999, SYN, &body),
                1 => tcp(source, 9999, to, 1000 + i, ACK, &body),
                2 => udp(source, 1000 + i, to, 9999, &body),
                _ => tcp(source, 1000 + i, to, 80, SYN, &body),
            };
            let talker = talkers.entry(source.to_string()).or_default();
            *talker = (talker.0 + 1, talker.1 + frame.len() as u64);
            input.push(frame);
        }
    }
    let files = Files::new(&input, &[]);
    let text = example("first-xdp.toml");
    let text = text.replace("net_af_packet0,iface=veth-left", &files.device(0, "lan"));
    let text = text.replace("net_af_packet1,iface=veth-right", &files.device(1, "wan"));
    let flowgate = Flowgate::start(files.dir.path(), &text);
    flowgate.settled(files.sent);
    let refused = |frame: &Frame| {
        let l4 = if frame[12..14] == [8, 0] { 34 } else { 54 };
        let proto = if l4 == 34 { frame[23] } else { frame[20] };
        proto == 6 && frame[l4 + 2..l4 + 4] == 9999_u16.to_be_bytes()
    };
    let want: Vec<Frame> = input.iter().filter(|frame| !refused(frame)).cloned().collect();
    let dropped = (input.len() - want.len()) as u64;
    assert_eq!(flowgate.drops().values().sum::<u64>(), dropped);
    assert!(flowgate.drops().keys().all(|reason| reason.starts_with("bpf.")));
    let shown = flowgate.show("talkers");
    let rows = shown["talkers"].as_array().expect("a list").iter();
    let seen: BTreeMap<String, (u64, u64)> = rows
        .map(|row| {
            (row["source"].as_str().expect("an address").to_owned(), (number(&row["packets"]), number(&row["bytes"])))
        })
        .collect();
    assert_eq!(seen, talkers);
    flowgate.stop();
    assert_same("all but TCP to 9999", &files.out("wan"), &want);
}

#[test]
fn the_firewall_example_lets_its_servers_be_reached_and_nothing_else() {
    let (office, world, admin) = (ip("192.0.2.5"), ip("203.0.113.9"), ip("198.51.100.3"));
    let (server, other) = (ip("192.0.2.80"), ip("192.0.2.81"));
    let question = udp(office, 5000, world, 53, b"?");
    let good = [tcp(world, 40000, server, 443, SYN, b""), tcp(admin, 40001, server, 22, SYN, b"")];
    let bad = [tcp(world, 40002, server, 22, SYN, b""), tcp(world, 40003, other, 443, SYN, b"")];
    let ident = tcp(world, 40004, other, 113, SYN, b"");
    let from_world: Vec<Frame> = good.iter().chain(&bad).chain([&ident]).cloned().collect();
    let files = Files::new(std::slice::from_ref(&question), &from_world);
    let text = example("firewall.toml");
    let text = text.replace("0000:3b:00.0", &files.device(0, "lan")).replace("0000:3b:00.1", &files.device(1, "wan"));
    let flowgate = Flowgate::start(files.dir.path(), &text.replace("1_000_000", "10_000"));
    flowgate.settled(files.sent);
    assert_eq!(flowgate.drops().values().sum::<u64>(), 3);
    flowgate.stop();
    assert_same("the servers are reached", &files.out("lan"), &good);
    let to_world = files.out("wan");
    assert_eq!(to_world.iter().filter(|frame| **frame == question).count(), 1, "the office asks");
    let [_, _] = to_world.as_slice() else { panic!("a question and an answer, not {} frames", to_world.len()) };
    let answer = to_world.iter().find(|frame| **frame != question).expect("another");
    assert_eq!((answer[23], answer[47] & 0x14), (6, 0x14), "RST and ACK, at once");
}

/// The router example, with neighbors that are known: what goes on, what is for the box, and what is refused.
#[test]
fn the_router_example_routes() {
    let mac = |port: u8| [0x02, 0x70, 0x63, 0x61, 0x70, port];
    let to = |mac: [u8; 6], frame: Frame| [&mac[..], &frame[6..]].concat();
    let (office, world, gateway) = (ip("10.0.0.5"), ip("198.51.100.9"), [0x02, 0, 0, 0, 0, 0x22]);
    let [office6, world6] = ["2001:db8:1::5", "2001:db8:9::9"].map(ip);
    let lan: Vec<Frame> = [
        udp(office, 5000, world, 53, b"over IPv4"),
        udp(office6, 5000, world6, 53, b"over IPv6"),
        echo(office, ip("10.0.0.1"), false, 7, b"are you there?"),
        udp(office, 5001, ip("10.9.9.9"), 53, b"nowhere"),
        tcp(office, 5002, ip("10.0.0.1"), 23, SYN, b""),
    ]
    .map(|frame| to(mac(0), frame))
    .to_vec();
    let wan = [to(mac(1), tcp(world, 40000, ip("192.0.2.2"), 22, SYN, b""))];
    let files = Files::new(&lan, &wan);
    let mut text = example("router.toml").replace("1_000_000", "10_000");
    text = text.replace("0000:3b:00.0", &files.device(0, "lan")).replace("0000:3b:00.1", &files.device(1, "wan"));
    text = text.replace("[kernel]", "[kernel]\nenabled = false");
    for (port, address, mac) in [
        ("wan", "192.0.2.1", "02:00:00:00:00:22"),
        ("wan", "2001:db8:2::1", "02:00:00:00:00:22"),
        ("lan", "10.0.0.5", "02:00:00:00:00:05"),
    ] {
        text += &format!("\n[[neighbor.static]]\nport = {port:?}\naddress = {address:?}\nmac = {mac:?}\n");
    }
    let flowgate = Flowgate::start(files.dir.path(), &text);
    for port in ["lan", "wan"] {
        let shown = flowgate.port(port)["mac"].as_str().expect("a MAC").to_owned();
        let want = mac(u8::from(port == "wan")).map(|byte| format!("{byte:02x}")).join(":");
        assert_eq!(shown, want, "the frames are addressed to {port}");
        let addresses = flowgate.port(port)["addresses"].as_array().expect("a list").len();
        assert!(addresses >= 2, "those of the file");
    }
    flowgate.settled(files.sent);
    let drops = flowgate.drops();
    for (reason, count) in [("route.unreachable", 1), ("acl.denied-default", 2)] {
        assert_eq!(drops.get(reason), Some(&count), "{drops:?}");
    }
    let (good, shown) = flowgate.command(&["show", "routes"]);
    assert!(good && shown.contains("via 192.0.2.1") && shown.contains("unreachable"), "{shown}");
    let (good, shown) = flowgate.command(&["show", "routes", "198.51.100.9"]);
    assert!(good && shown.contains("the longest prefix that can be used"), "{shown}");
    let (good, shown) = flowgate.command(&["show", "routes", "--source", "static"]);
    assert!(good && shown.contains("10.20.0.0/16") && !shown.contains("10.0.0.0/24"), "{shown}");
    let (good, shown) = flowgate.command(&["show", "neighbors"]);
    assert!(good && shown.contains("02:00:00:00:00:22") && shown.contains("static"), "{shown}");
    let (good, shown) = flowgate.command(&["show", "routes", "--source", "kernle"]);
    assert!(!good && shown.contains("did you mean \"kernel\"?"), "{shown}");
    flowgate.stop();
    // What is sent besides, such as ARP, is the box's own business.
    let from = |port: &str, source: &[u8], at: usize| -> Vec<Frame> {
        files.out(port).into_iter().filter(|frame| frame.get(at..at + source.len()) == Some(source)).collect()
    };
    let out4 = from("wan", &[198, 51, 100, 9], 30);
    let [out4] = out4.as_slice() else { panic!("{out4:?}") };
    assert_eq!((&out4[..6], &out4[6..12], out4[22]), (&gateway[..], &mac(1)[..], lan[0][22] - 1));
    let std::net::IpAddr::V6(there) = world6 else { panic!("IPv6") };
    let out6 = from("wan", &there.octets(), 38);
    let [out6] = out6.as_slice() else { panic!("{out6:?}") };
    assert_eq!((&out6[..6], out6[21], &out6[22..]), (&gateway[..], lan[1][21] - 1, &lan[1][22..]));
    let answers = from("lan", &[10, 0, 0, 5], 30);
    let kinds: Vec<(u8, u8)> = answers.iter().filter(|frame| frame[23] == 1).map(|f| (f[34], f[35])).collect();
    assert!(kinds.contains(&(0, 0)) && kinds.contains(&(3, 1)), "an echo reply and host unreachable: {kinds:?}");
}

/// The border router without FRR beside it: what is connected is reached, and the peer may speak BGP to the box and nothing else.
#[test]
fn the_border_router_example_routes() {
    let mac = |port: u8| [0x02, 0x70, 0x63, 0x61, 0x70, port];
    let to = |mac: [u8; 6], frame: Frame| [&mac[..], &frame[6..]].concat();
    let (inner, peer, own) = (ip("198.51.100.9"), ip("192.0.2.2"), ip("192.0.2.1"));
    let lan = [to(mac(0), udp(inner, 5000, peer, 53, b"?")), to(mac(0), udp(inner, 5001, ip("203.0.113.9"), 53, b"?"))];
    let wan =
        [(own, 179), (own, 22), (inner, 80)].map(|(there, port)| to(mac(1), tcp(peer, 40000, there, port, SYN, b"")));
    let files = Files::new(&lan, &wan);
    let mut text = example("bgp.toml").replace("1_000_000", "10_000");
    text = text.replace("0000:3b:00.0", &files.device(0, "lan")).replace("0000:3b:00.1", &files.device(1, "wan"));
    assert!(!text.contains("[kernel]"), "none is set here then");
    text += "\n[kernel]\nenabled = false\n";
    for (port, address, mac) in
        [("wan", "192.0.2.2", "02:00:00:00:00:22"), ("lan", "198.51.100.9", "02:00:00:00:00:05")]
    {
        text += &format!("\n[[neighbor.static]]\nport = {port:?}\naddress = {address:?}\nmac = {mac:?}\n");
    }
    let flowgate = Flowgate::start(files.dir.path(), &text);
    flowgate.settled(files.sent);
    let (drops, rules) = (flowgate.drops(), flowgate.rules());
    assert_eq!((drops.get("acl.denied-default"), drops.get("route.no-route")), (Some(&2), Some(&1)), "{drops:?}");
    assert_eq!((rules["out"].0, rules["the peer"].0), (1, 1), "{rules:?}");
    flowgate.stop();
    let asked =
        files.out("wan").into_iter().filter(|frame| frame.get(30..34) == Some(&[192, 0, 2, 2]) && frame[23] == 17);
    assert_eq!(asked.count(), 1);
}

/// The example with its API on the network, with files made for it.
#[test]
fn the_api_example_answers() {
    let files = Files::new(&[], &[]);
    let path = |name: &str| files.dir.path().join(name).display().to_string();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-keyout", &path("api.key"), "-out", &path("api.crt")])
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::copy(path("api.crt"), path("clients.crt")).expect("room");
    let token = Command::new(FLOWGATE).args(["token", "grafana", &path("tokens")]).output().expect("it starts");
    assert!(token.status.success(), "{}", String::from_utf8_lossy(&token.stderr));
    // Asked for and given back: free a moment later still.
    let free =
        || std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let (v4, v6) = (free(), free());
    let text = example("api.toml").replace("/etc/flowgate", &files.dir.path().display().to_string());
    let text = text.replace("0.0.0.0:8443", &format!("127.0.0.1:{v4}")).replace("[::]:8443", &format!("[::1]:{v6}"));
    let socket = path("fg.sock");
    let text = text.replace("/run/flowgate.sock", &socket);
    let file = files.dir.path().join("api.toml");
    let rest = [workers(1), common::appliance::SMALL.to_owned()].join("\n");
    std::fs::write(&file, [text, rest].join("\n")).expect("room");
    let flowgate = Flowgate::start_file(&file, Path::new(&socket));
    for port in [v4, v6] {
        let url = format!("https://localhost:{port}/metrics");
        let got = Command::new("curl").args(["-sS", "--cacert", &path("api.crt"), &url]).output().expect("curl");
        let text = String::from_utf8_lossy(&got.stdout).into_owned();
        assert!(got.status.success() && text.contains("flowgate_"), "{url}: {}", String::from_utf8_lossy(&got.stderr));
        let code = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &path("api.crt")].map(str::to_owned);
        let ports = format!("https://localhost:{port}/v1/ports");
        let got = Command::new("curl").args(code).arg(ports).output().expect("curl");
        assert_eq!(String::from_utf8_lossy(&got.stdout), "401", "without a token");
    }
    flowgate.stop();
}

#[test]
fn every_example_is_driven() {
    let tests = [include_str!("vdev.rs"), include_str!("netns.rs")].concat();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    for entry in std::fs::read_dir(folder).expect("config/") {
        let name = entry.expect("readable").file_name().into_string().expect("a plain name");
        let driven = tests.contains(&format!("example({name:?})"));
        assert!(driven || !name.ends_with(".toml"), "config/{name} is driven by no test");
    }
}

/// What is asked of the running process is answered with the flows it knows.
#[test]
fn explaining_with_the_flows_of_the_running_process() {
    let (inside, outside) = ("10.0.0.5".parse().expect("address"), "192.0.2.7".parse().expect("address"));
    let files = Files::new(&[udp(inside, 5000, outside, 53, b"?")], &[]);
    let rest = "[memory]\nhugepages = \"off\"\npackets = 8192\nflows = 1000\n\
                [pipeline]\nstages = [\"conntrack\", \"cross\", \"acl\"]\n[cross]\nwire = [{ ports = [\"lan\", \"wan\"] }]\n\
                [[acl.rule]]\nname = \"names\"\nfrom = \"inside\"\nservice = \"udp/53\"\naction = \"allow\"\n";
    let flowgate = files.run(rest);
    let explain = |packet: &str| {
        let mut asked = Command::new(FLOWGATE);
        asked.args(["explain", "--live", "--json", packet, "--socket"]).arg(&flowgate.socket);
        let output = asked.output().expect("flowgate starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let of = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
        (of(&told["stages"][0]["decision"]), of(&told["verdict"]["verdict"]), of(&told["verdict"]["rule"]))
    };
    let words = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    assert_eq!(explain("udp 192.0.2.7:53 > 10.0.0.5:5000 in wan"), words("replays", "sent", "names"));
    assert_eq!(explain("udp 192.0.2.7:53 > 10.0.0.5:5001 in wan"), words("fresh", "dropped", "-"));
    assert_eq!(explain("udp 10.0.0.5:5001 > 192.0.2.7:53 in lan"), words("fresh", "sent", "names"));
    // Asking changes nothing.
    assert_eq!(explain("udp 192.0.2.7:53 > 10.0.0.5:5001 in wan"), words("fresh", "dropped", "-"));
    let wrong = Command::new(FLOWGATE)
        .args(["explain", "--live", "udp 10.0.0.5 > 192.0.2.7:53 in lam", "--socket"])
        .arg(&flowgate.socket)
        .output();
    let said = String::from_utf8_lossy(&wrong.expect("flowgate starts").stderr).into_owned();
    assert!(said.contains("there is no port \"lam\"; did you mean \"lan\"?") && said.contains("^"), "{said}");
    flowgate.stop();
}

const TRACKED: &str = r#"
[pipeline]
stages = ["conntrack", "cross", "acl"]
[cross]
wire = [{ ports = ["lan", "wan"] }]
[[acl.rule]]
name = "dns"
from = "inside"
service = ["udp/53"]
action = "allow"
[[acl.rule]]
name = "web"
from = "inside"
service = ["tcp/80"]
action = "allow"
"#;

#[test]
fn flows_are_shown_removed_saved_and_go_on_in_another_process() {
    let (inside, dns, web) = (|n: u8| ip(&format!("10.0.0.{n}")), ip("192.0.2.53"), ip("192.0.2.80"));
    let mut lan: Vec<Frame> = (1..=30).map(|n| udp(inside(n), 1000, dns, 53, &[n; 40])).collect();
    lan.extend((1..=5).map(|n| tcp(inside(n), 2000, web, 80, SYN, &[])));
    lan.extend((1..=3).map(|_| udp(inside(7), 1000, dns, 53, &[1; 400])));
    let files = Files::new(&lan, &[]);
    let flowgate = files.run(TRACKED);
    let shown = |words: &[&str]| {
        let (good, text) = flowgate.command(&[&["show", "flows"], words].concat());
        assert!(good, "{words:?}: {text}");
        text
    };
    let json = |words: &[&str]| -> serde_json::Value {
        serde_json::from_str(&shown(&[words, &["--json"]].concat())).expect("JSON")
    };
    let busiest = json(&["--sort", "bytes", "--limit", "1"]);
    let first = &busiest["flows"][0];
    assert_eq!((busiest["flows"].as_array().map(Vec::len), &busiest["more"]), (Some(1), &true.into()));
    assert_eq!((first["source"].as_str(), first["destination_port"].as_u64()), (Some("10.0.0.7"), Some(53)));
    assert_eq!((first["packets"][0].as_u64(), first["rule"].as_str()), (Some(4), Some("dns")));
    let text = shown(&["--to-port", "80", "--source", "10.0.0.1", "--from", "inside"]);
    assert!(text.contains("10.0.0.1:2000") && text.contains("SYN_SENT/LISTEN") && text.contains("lan > wan"), "{text}");
    assert!(text.contains("IPv4: 35 of ") && text.lines().count() == 4, "{text}");
    assert_eq!(json(&["--count", "rule"])["rules"][0]["flows"], 30);
    assert_eq!(json(&["--count", "--protocol", "tcp"])["flows"], 5);

    let (good, told) = flowgate.command(&["flush", "flows"]);
    assert!(!good && told.contains("--all"), "{told}");
    let (good, told) = flowgate.command(&["flush", "flows", "--rule", "web", "--source", "10.0.0.1-10.0.0.2"]);
    assert!(good && told.contains("2 flows removed"), "{told}");
    let counted = shown(&["--count"]);
    assert!(counted.contains("33 flows") && counted.contains("udp"), "{counted}");

    let saved = files.dir.path().join("flows.saved");
    let (good, told) = flowgate.command(&["flows", "save", saved.to_str().expect("a name")]);
    assert!(good && told.contains("33 flows"), "{told}");
    assert_eq!(std::fs::metadata(&saved).expect("there").permissions().mode() & 0o777, 0o600);
    flowgate.crash();

    // Answers, which no rule allows by themselves.
    let wan: Vec<Frame> = (1..=31).map(|n| udp(dns, 53, inside(n), 1000, &[n; 40])).collect();
    let again = Files::new(&[], &wan);
    let toml = [&again.ports(""), TRACKED].join("\n");
    let flowgate = Flowgate::start_with_flows(again.dir.path(), &toml, &saved);
    flowgate.settled(again.sent);
    let (_, text) = flowgate.command(&["show", "flows", "--count", "--state", "replied"]);
    assert!(text.contains("30 flows"), "{text}");
    assert_eq!(flowgate.drops(), counts(&[("acl.denied-default", 1)]));
    let stopped = flowgate.stop();
    assert!(stopped.log.contains("33 flows go on"), "{}", stopped.log);
    assert_same("answers", &again.out("lan"), &wan[..30]);

    // Not where a rule is missing: then nothing starts.
    let (file, _) = config(again.dir.path(), &toml.replace("\"dns\"", "\"names\""));
    let mut run = Command::new("timeout");
    run.args(["-s", "KILL", "60", FLOWGATE, "run", "--flows"]).args([&saved, &file]);
    let refused = run.output().expect("flowgate starts");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("flows.saved: it has flows that rule \"acl/dns\" admitted"), "{told}");
}
