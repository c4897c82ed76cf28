use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use proptest::prelude::*;

use crate::config::Config;
use crate::dpdk::ring::ring;
use crate::flow::entry::Entry;
use crate::flow::region::Placement;
use crate::io::memory::MemoryIo;
use crate::packet::steer::Key;
use crate::route::{Gateway, Route, Source, Target};
use crate::stage::pipeline::compile;
use crate::testkit::bench::{Bench, End};
use crate::testkit::packets::Packet;
use crate::worker::{Handoff, Setup, Worker};

mod ends;
mod two;

const HOST: [u8; 6] = [2, 1, 1, 1, 1, 1];
const PEER: [u8; 6] = [2, 2, 2, 2, 2, 2];
const LAN: [u8; 6] = [2, 0, 0, 0, 0, 0];
const WAN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER: &str = "198.51.100.9";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Port lan is 10.0.0.1/24 and 2001:db8:1::1/64, with hosts .5 to .7; wan 192.0.2.1/24 and 2001:db8:2::1/64, where .2 is the
/// default router.
fn bench(rest: &str) -> Bench {
    let stages = "[pipeline]\nstages = ['conntrack', 'dnat', 'route', 'acl', 'snat']\n";
    let acl = if rest.contains("[acl]") { "" } else { "[acl]\ndefault = 'allow'\n" };
    let dnat = if rest.contains("[dnat") || rest.contains("[[dnat") { "" } else { "[dnat]\n" };
    let toml = format!("[memory]\nflows = 1000\n[neighbor]\ndad_probes = 0\n{stages}{acl}{dnat}{rest}");
    let mut bench = Bench::new(&toml);
    bench.route(|router, now| {
        for (port, net) in [(0, "10.0.0.1/24"), (0, "2001:db8:1::1/64"), (1, "192.0.2.1/24"), (1, "2001:db8:2::1/64")] {
            router.address(port, net.parse().expect("an address"), true, now);
        }
        router.start(u64::MAX, &[0, 1], now);
        for host in ["10.0.0.5", "10.0.0.6", "10.0.0.7", "2001:db8:1::5"] {
            router.add_static(0, ip(host), HOST, now);
        }
        for (port, gateway, all) in [(1, "192.0.2.2", "0.0.0.0/0"), (1, "2001:db8:2::2", "::/0")] {
            router.add_static(port, ip(gateway), PEER, now);
            let target = Target::Via(vec![Gateway { via: Some(ip(gateway)), port: None, weight: 1 }]);
            router.route(Source::Static, &Route { to: all.parse().expect("a prefix"), target, metric: 0 }, true);
        }
    });
    bench
}

/// The same as a config says it, which is there from the start.
const STATIC: &str = "\
[[port]]\nname = 'lan'\ndevice = 'net_null0'\nzone = 'inside'\naddress = '10.0.0.1/24'\n\
[[port]]\nname = 'wan'\ndevice = 'net_null1'\nzone = 'outside'\naddress = '192.0.2.1/24'\n\
[memory]\nflows = 1000\n[pipeline]\nstages = ['conntrack', 'dnat', 'route', 'acl', 'snat']\n\
[neighbor]\nstatic = [{ port = 'lan', address = '10.0.0.5', mac = '02:01:01:01:01:01' },\
 { port = 'lan', address = '10.0.0.6', mac = '02:01:01:01:01:01' },\
 { port = 'wan', address = '192.0.2.2', mac = '02:02:02:02:02:02' }]\n\
[[route.static]]\nto = '0.0.0.0/0'\nvia = '192.0.2.2'\n[acl]\ndefault = 'allow'\n";
const START: u64 = 1_700_000_000_000_000_000;

const MASQUERADE: &str = "[snat]\n[[snat.rule]]\nfrom = 'inside'\nto = 'outside'\nto_source = 'masquerade'\n";

/// Pushes a packet that arrives with 64 hops on a port; the result is what left by the other.
fn push(bench: &mut Bench, port: &str, packet: &Packet) -> Vec<u8> {
    match end(bench, port, packet) {
        End::Sent { bytes, .. } => bytes,
        other => panic!("{packet:?}: {other:?}"),
    }
}

fn end(bench: &mut Bench, port: &str, packet: &Packet) -> End {
    let packet = packet.clone().ttl(64);
    let bytes = if port == "lan" { packet.macs(HOST, LAN) } else { packet.macs(PEER, WAN) }.bytes();
    let mut ends = bench.push_all(port, &[bytes]);
    ends.remove(0)
}

/// What a packet looks like when it has left by a port.
fn left(port: &str, packet: Packet) -> Vec<u8> {
    let packet = packet.ttl(63);
    if port == "lan" { packet.macs(LAN, HOST) } else { packet.macs(WAN, PEER) }.bytes()
}

/// The source port of what was sent.
fn sport(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[34], bytes[35]])
}

type Make = fn(&str, &str) -> Packet;

fn udp(from: &str, to: &str) -> Packet {
    Packet::udp(from, to).payload(b"question")
}

fn syn(from: &str, to: &str) -> Packet {
    Packet::tcp(from, to).flags(2).sequence(100)
}

#[test]
fn masquerade_keeps_ports_and_comes_back() {
    let v6 =
        "[[snat.rule]]\nfrom = 'inside'\nto = 'outside'\nsource = '2001:db8:1::/64'\nto_source = '2001:db8:2::77'\n";
    let mut bench = bench(&format!("[snat]\n{v6}{}", MASQUERADE.trim_start_matches("[snat]\n")));
    let makes: [(Make, Make); 3] = [
        (udp, udp),
        (syn, |from, to| Packet::tcp(from, to).flags(18).sequence(900).acknowledgment(101)),
        (|from, to| Packet::udp(from, to).payload(b"none").no_checksum(), udp),
    ];
    for (n, (there, back)) in makes.into_iter().enumerate() {
        let (port, server) = (3000 + n, format!("{SERVER}:53"));
        let (inside, outside) = (format!("10.0.0.5:{port}"), format!("192.0.2.1:{port}"));
        assert_eq!(push(&mut bench, "lan", &there(&inside, &server)), left("wan", there(&outside, &server)));
        assert_eq!(push(&mut bench, "wan", &back(&server, &outside)), left("lan", back(&server, &inside)));
        if n != 1 {
            assert_eq!(push(&mut bench, "lan", &there(&inside, &server)), left("wan", there(&outside, &server)));
        }
    }
    let ping = |from, to| Packet::echo_request(from, to, 77, 1).payload(b"ping");
    let pong = |from, to| Packet::echo_reply(from, to, 77, 1).payload(b"ping");
    assert_eq!(push(&mut bench, "lan", &ping("10.0.0.5", SERVER)), left("wan", ping("192.0.2.1", SERVER)));
    assert_eq!(push(&mut bench, "wan", &pong(SERVER, "192.0.2.1")), left("lan", pong(SERVER, "10.0.0.5")));
    let (inside, outside, server) = ("[2001:db8:1::5]:4000", "[2001:db8:2::77]:4000", "[2001:db8:9::9]:53");
    assert_eq!(push(&mut bench, "lan", &udp(inside, server)), left("wan", udp(outside, server)));
    assert_eq!(push(&mut bench, "wan", &udp(server, outside)), left("lan", udp(server, inside)));
    let ping = |from, to| Packet::echo_request(from, to, 78, 1).payload(b"ping");
    let pong = |from, to| Packet::echo_reply(from, to, 78, 1).payload(b"ping");
    let (a, b, c) = ("2001:db8:1::5", "2001:db8:2::77", "2001:db8:9::9");
    assert_eq!(push(&mut bench, "lan", &ping(a, c)), left("wan", ping(b, c)));
    assert_eq!(push(&mut bench, "wan", &pong(c, b)), left("lan", pong(c, a)));
}

#[test]
fn two_hosts_with_one_port_get_two() {
    let mut bench = bench(MASQUERADE);
    for (make, id) in [(udp as Make, 0), (syn, 4)] {
        let server = format!("{SERVER}:443");
        let first = sport(&push(&mut bench, "lan", &make("10.0.0.5:5001", &server)));
        let second = sport(&push(&mut bench, "lan", &make("10.0.0.6:5001", &server)));
        assert_eq!((first, second == first), (5001, false));
        assert!(id == 4 || second & 1 == 1, "parity is kept (RFC 4787 REQ-4)");
        // To another server the port is free.
        assert_eq!(sport(&push(&mut bench, "lan", &make("10.0.0.6:5001", "198.51.100.10:443"))), 5001);
        if id == 0 {
            let back = udp(&server, &format!("192.0.2.1:{second}"));
            assert_eq!(push(&mut bench, "wan", &back), left("lan", udp(&server, "10.0.0.6:5001")));
        }
    }
    let ping = |from| Packet::echo_request(from, SERVER, 9, 1);
    let ids: HashSet<_> =
        ["10.0.0.5", "10.0.0.6"].map(|from| push(&mut bench, "lan", &ping(from))[38..40].to_vec()).into();
    assert_eq!(ids.len(), 2);
}

#[test]
fn destinations_are_forwarded_and_answers_come_from_where_was_asked() {
    let mut bench = bench(
        "[snat]\n[[dnat.rule]]\nfrom = 'outside'\ndestination = 'self'\nservice = 'tcp/8080'\nto_destination = '10.0.0.5:80'\n\
         [[dnat.rule]]\nfrom = 'outside'\ndestination = 'self'\nservice = 'udp/9000-9010'\nto_destination = '10.0.0.6:7000-7010'\n\
         [[dnat.one_to_one]]\nzone = 'outside'\ninside = '10.0.0.7'\noutside = '192.0.2.77'\n\
         [acl]\n[[acl.rule]]\nfrom = 'outside'\ndestination = ['10.0.0.5', '10.0.0.6', '10.0.0.7']\naction = 'allow'\n\
         [[acl.rule]]\nfrom = 'inside'\naction = 'allow'\n",
    );
    let client = "198.51.100.9:4321";
    assert_eq!(push(&mut bench, "wan", &syn(client, "192.0.2.1:8080")), left("lan", syn(client, "10.0.0.5:80")));
    let answer = |from| Packet::tcp(from, client).flags(18).sequence(7).acknowledgment(101);
    assert_eq!(push(&mut bench, "lan", &answer("10.0.0.5:80")), left("wan", answer("192.0.2.1:8080")));
    assert_eq!(push(&mut bench, "wan", &udp(client, "192.0.2.1:9007")), left("lan", udp(client, "10.0.0.6:7007")));
    assert_eq!(push(&mut bench, "lan", &udp("10.0.0.6:7007", client)), left("wan", udp("192.0.2.1:9007", client)));
    // One-to-one, both ways.
    assert_eq!(push(&mut bench, "wan", &udp(client, "192.0.2.77:99")), left("lan", udp(client, "10.0.0.7:99")));
    assert_eq!(push(&mut bench, "lan", &udp("10.0.0.7:99", client)), left("wan", udp("192.0.2.77:99", client)));
    assert_eq!(push(&mut bench, "lan", &udp("10.0.0.7:12", client)), left("wan", udp("192.0.2.77:12", client)));
    assert_eq!(push(&mut bench, "wan", &udp(client, "192.0.2.77:12")), left("lan", udp(client, "10.0.0.7:12")));
    // Echoes to a host behind it, and what nobody forwards.
    let ping = |to| Packet::echo_request(SERVER, to, 5, 1);
    assert_eq!(push(&mut bench, "wan", &ping("192.0.2.77")), left("lan", ping("10.0.0.7")));
    assert_eq!(end(&mut bench, "wan", &udp(client, "192.0.2.1:9011")).reason(), "acl.denied-default");
}

#[test]
fn a_hairpin_gets_a_source_of_ours() {
    let mut bench = bench(
        "[snat]\n[[dnat.rule]]\nfrom = 'outside'\ndestination = '192.0.2.1'\nservice = 'tcp/80'\nto_destination = '10.0.0.6'\n",
    );
    let there = push(&mut bench, "lan", &syn("10.0.0.5:6000", "192.0.2.1:80"));
    assert_eq!(there, left("lan", syn("10.0.0.1:6000", "10.0.0.6:80")));
    let answer = |from, to| Packet::tcp(from, to).flags(18).sequence(7).acknowledgment(101);
    let back = push(&mut bench, "lan", &answer("10.0.0.6:80", "10.0.0.1:6000"));
    assert_eq!(back, left("lan", answer("192.0.2.1:80", "10.0.0.5:6000")));
}

#[test]
fn errors_pass_in_both_directions() {
    let mut bench = bench(&format!(
        "{MASQUERADE}[[dnat.rule]]\nfrom = 'outside'\ndestination = '192.0.2.1'\nservice = 'udp/53'\nto_destination = '10.0.0.6:5353'\n"
    ));
    let (inside, outside, server) = ("10.0.0.5:3000", "192.0.2.1:3000", "198.51.100.9:53");
    push(&mut bench, "lan", &udp(inside, server));
    // A router beyond: time exceeded. It stays who it is.
    let error = |to, about: &Packet| Packet::icmp_error("203.0.113.3", to, 11, 0, about);
    let sent = push(&mut bench, "wan", &error("192.0.2.1", &udp(outside, server)));
    assert_eq!(sent, left("lan", error("10.0.0.5", &udp(inside, server))));
    // The server answers, and the host has closed its port: that is told from our address.
    push(&mut bench, "wan", &udp(server, outside));
    let closed = |from, about: &Packet| Packet::icmp_error(from, SERVER, 3, 3, about);
    let sent = push(&mut bench, "lan", &closed("10.0.0.5", &udp(server, inside)));
    assert_eq!(sent, left("wan", closed("192.0.2.1", &udp(server, outside))));
    // The same of a translated destination.
    let client = "198.51.100.7:4000";
    push(&mut bench, "wan", &udp(client, "192.0.2.1:53"));
    let closed = |from, about: &Packet| Packet::icmp_error(from, "198.51.100.7", 3, 3, about);
    let sent = push(&mut bench, "lan", &closed("10.0.0.6", &udp(client, "10.0.0.6:5353")));
    assert_eq!(sent, left("wan", closed("192.0.2.1", &udp(client, "192.0.2.1:53"))));
    // What quotes the tuple of another network belongs to nothing.
    let stray = error("10.0.0.5", &udp(inside, server));
    assert_eq!(end(&mut bench, "wan", &stray).reason(), "conntrack.bad-error");
    // Ours quote what came.
    let late = udp(inside, server).ttl(1).macs(HOST, LAN).bytes();
    let ends = bench.push_all("lan", &[late]);
    let told = ends.iter().find_map(End::bytes).expect("told");
    assert_eq!((&told[26..34], &told[54..62]), (&[10, 0, 0, 1, 10, 0, 0, 5][..], &[10, 0, 0, 5, 198, 51, 100, 9][..]));
}

#[test]
fn fragments_are_translated_alike() {
    let mut bench = bench(MASQUERADE);
    let whole = |from: &str| Packet::udp(from, "198.51.100.9:53").payload(&[7; 100]).id(9).ttl(64);
    let parts: Vec<_> = whole("10.0.0.5:3000").macs(HOST, LAN).fragments(48);
    let wanted: Vec<_> = whole("192.0.2.1:3000").ttl(63).macs(WAN, PEER).fragments(48);
    let order = [1, 0, 2];
    let mut sent: Vec<Vec<u8>> = Vec::new();
    for at in order {
        let ends = bench.push_all("lan", &[&parts[at]]);
        sent.extend(ends.iter().filter_map(End::bytes).map(<[u8]>::to_vec));
    }
    sent.sort_by_key(|bytes| u16::from_be_bytes([bytes[20], bytes[21]]) & 0x1fff);
    assert_eq!(sent, wanted);
}

#[test]
fn exhaustion_has_a_name_and_the_denied_take_nothing() {
    let pool = "[snat]\n[[snat.rule]]\nfrom = 'inside'\nto = 'outside'\nto_source = '192.0.2.50'\nports = '2000-2003'\n\
                [acl]\n[[acl.rule]]\nservice = 'udp/53'\naction = 'allow'\n";
    let mut bench = bench(pool);
    for port in 1..500 {
        let scan = udp("10.0.0.5:3000", &format!("198.51.100.9:{}", 1000 + port));
        assert_eq!(end(&mut bench, "lan", &scan).reason(), "acl.denied-default");
    }
    let used = |bench: &Bench| bench.tables().expect("tracked").v4.occupancy().used;
    assert_eq!(used(&bench), 0);
    let asks = |n: u32| udp(&format!("10.0.0.5:{}", 3000 + n), "198.51.100.9:53");
    let mut ports = HashSet::new();
    for n in 0..200 {
        match end(&mut bench, "lan", &asks(n)) {
            End::Sent { bytes, .. } => assert!(ports.insert(sport(&bytes)), "two flows share a port"),
            End::Dropped { reason, .. } => assert_eq!(reason, "snat.exhausted"),
        }
    }
    assert_eq!(ports, HashSet::from([2000, 2001, 2002, 2003]));
    assert_eq!(used(&bench), 4);
    assert!(bench.counter("snat", "logged") + bench.counter("snat", "log-suppressed") > 100);
    // Another server is another matter.
    assert_eq!(end(&mut bench, "lan", &udp("10.0.0.5:3000", "198.51.100.10:53")).reason(), "sent");
}

#[test]
fn independent_mappings_are_shared_and_filtered() {
    for open in [false, true] {
        let filtering = if open { "filtering = 'endpoint-independent'\n" } else { "" };
        let mut bench = bench(&format!(
            "[snat]\n[[snat.rule]]\nfrom = 'inside'\nto = 'outside'\nsource = '10.0.0.0/24'\nto_source = '192.0.2.60-192.0.2.61'\n\
             mapping = 'endpoint-independent'\n{filtering}"
        ));
        let first = push(&mut bench, "lan", &udp("10.0.0.5:3000", "198.51.100.9:53"));
        let second = push(&mut bench, "lan", &udp("10.0.0.5:3000", "198.51.100.10:99"));
        let other = push(&mut bench, "lan", &udp("10.0.0.6:3000", "198.51.100.9:53"));
        let end_of = |bytes: &[u8]| (bytes[26..30].to_vec(), sport(bytes));
        assert_eq!(end_of(&first), end_of(&second));
        assert_ne!(end_of(&first), end_of(&other));
        let (address, port) = end_of(&first);
        let outside = format!("192.0.2.{}:{port}", address[3]);
        let call = udp("203.0.113.5:1", &outside);
        match end(&mut bench, "wan", &call) {
            End::Sent { port, bytes, .. } if open => {
                assert_eq!((port.as_str(), bytes), ("lan", left("lan", udp("203.0.113.5:1", "10.0.0.5:3000"))));
                let back = push(&mut bench, "lan", &udp("10.0.0.5:3000", "203.0.113.5:1"));
                assert_eq!(back, left("wan", udp(&outside, "203.0.113.5:1")));
            }
            End::Sent { port, .. } => assert_ne!(port, "lan"),
            End::Dropped { .. } => assert!(!open),
        }
    }
}

#[test]
fn rules_with_addresses_of_one_family_leave_the_other_alone() {
    let mut bench = bench(
        "[snat]\n[[snat.rule]]\nfrom = 'inside'\nto = 'outside'\nto_source = '192.0.2.50'\n\
         [[snat.rule]]\nfrom = 'inside'\nto = 'outside'\nservice = 'udp/99'\nto_source = '2001:db8:2::77'\n",
    );
    let (inside, server) = ("[2001:db8:1::5]:4000", "[2001:db8:9::9]:53");
    assert_eq!(push(&mut bench, "lan", &udp(inside, server)), left("wan", udp(inside, server)));
    let sent = push(&mut bench, "lan", &udp(inside, "[2001:db8:9::9]:99"));
    assert_eq!(sent, left("wan", udp("[2001:db8:2::77]:4000", "[2001:db8:9::9]:99")));
    let sent = push(&mut bench, "lan", &udp("10.0.0.5:4000", "198.51.100.9:99"));
    assert_eq!(sent, left("wan", udp("192.0.2.50:4000", "198.51.100.9:99")));
}

#[test]
fn a_forwarded_port_is_no_hosts_to_take() {
    let mut bench = bench(
        "[snat]\n[[snat.rule]]\nfrom = 'inside'\nto = 'outside'\nsource = '10.0.0.0/24'\nto_source = '192.0.2.60'\n\
         mapping = 'endpoint-independent'\nfiltering = 'endpoint-independent'\n\
         [[dnat.rule]]\nfrom = 'outside'\ndestination = '192.0.2.60'\nservice = 'udp/3000'\nto_destination = '10.0.0.6'\n",
    );
    let (inside, outside, server, stranger) = ("10.0.0.5:3000", "192.0.2.60:3000", "198.51.100.9:53", "203.0.113.7:1");
    assert_eq!(push(&mut bench, "lan", &udp(inside, server)), left("wan", udp(outside, server)));
    let sent = push(&mut bench, "wan", &udp(stranger, outside));
    assert_eq!(sent, left("lan", udp(stranger, "10.0.0.6:3000")), "as the rule says");
    assert_eq!(push(&mut bench, "wan", &udp(server, outside)), left("lan", udp(server, inside)));
    bench.route(|router, now| router.address(1, "192.0.2.9/24".parse().expect("an address"), true, now));
    assert_eq!(push(&mut bench, "wan", &udp(stranger, outside)), sent, "judged again");
}

#[test]
fn errors_of_our_own_quote_destinations_as_they_came() {
    let forward = "[snat]\n[[dnat.rule]]\nfrom = 'outside'\ndestination = '192.0.2.1'\nservice = 'udp/8080'\n\
                   to_destination = '10.0.0.5:80'\n";
    let mut bench = Bench::new(&format!("{STATIC}{forward}").replace("zone = 'inside'", "zone = 'inside'\nmtu = 1300"));
    let client = "198.51.100.9:4321";
    let question = udp(client, "192.0.2.1:8080").macs(PEER, WAN);
    let told = |bench: &mut Bench, packet: Packet, kind: u8, code: u8, rest: [u8; 4]| {
        let bytes = packet.bytes();
        let ends = bench.push_all("wan", &[&bytes]);
        let error = ends.iter().find_map(|end| match end {
            End::Sent { bytes, port, .. } if port == "wan" => Some(bytes),
            _ => None,
        });
        let error = error.unwrap_or_else(|| panic!("{packet:?}: {ends:?}"));
        assert_eq!((&error[26..30], &error[30..34]), (&[192, 0, 2, 1][..], &[198, 51, 100, 9][..]));
        assert_eq!((error[34], error[35], &error[38..42]), (kind, code, &rest[..]));
        let quoted = &error[42..];
        assert_eq!(quoted, &bytes[14..][..quoted.len()], "the packet as it came");
        assert!(quoted.len() >= 28);
    };
    // About what would be a flow's first packet, and about its second.
    for n in 0..2 {
        told(&mut bench, question.clone().ttl(1), 11, 0, [0; 4]);
        told(&mut bench, question.clone().payload(&[7; 1400]).dont_fragment().ttl(9), 3, 4, [0, 0, 5, 20]);
        assert_eq!(bench.counter("conntrack", "new"), n);
        let sent = push(&mut bench, "wan", &question);
        assert_eq!(sent, left("lan", udp(client, "10.0.0.5:80")));
    }
}

#[test]
fn errors_about_later_fragments_belong_to_nothing() {
    let mut bench = bench(MASQUERADE);
    let whole = |from: &str| Packet::udp(from, "198.51.100.9:53").payload(&[7; 100]).id(9).ttl(64);
    for part in whole("10.0.0.5:3000").macs(HOST, LAN).fragments(48) {
        assert_eq!(bench.push("lan", &part).reason(), "sent");
    }
    let error = |to, about: &Packet| Packet::icmp_error("203.0.113.3", to, 11, 0, about);
    // RFC 1122 section 3.2.2.4: a timeout is told of the first, which shows the ports.
    let first = |from| Packet::udp(from, "198.51.100.9:53").payload(&[7; 40]).id(9).fragment(0, true);
    let sent = push(&mut bench, "wan", &error("192.0.2.1", &first("192.0.2.1:3000")));
    assert_eq!(sent, left("lan", error("10.0.0.5", &first("10.0.0.5:3000"))));
    let later = Packet::ip("192.0.2.1", "198.51.100.9", 17).payload(&[7; 48]).id(9).fragment(48, true);
    assert_eq!(end(&mut bench, "wan", &error("192.0.2.1", &later)).reason(), "conntrack.bad-error");
}

#[test]
fn flows_end_that_would_be_translated_otherwise() {
    let mut bench = bench(MASQUERADE);
    let packet = udp("10.0.0.5:3000", "198.51.100.9:53");
    push(&mut bench, "lan", &packet);
    bench.route(|router, now| router.address(1, "192.0.2.9/24".parse().expect("an address"), true, now));
    let sent = push(&mut bench, "lan", &packet);
    assert_eq!(sent[26..30], [192, 0, 2, 1], "it stays");
    bench.route(|router, now| router.address(1, "192.0.2.1/24".parse().expect("an address"), false, now));
    let ends = [end(&mut bench, "lan", &packet), end(&mut bench, "lan", &packet)];
    let bytes = ends[1].bytes().expect("a flow anew");
    assert_eq!(bytes[26..30], [192, 0, 2, 9]);
    assert_eq!(bench.counter("conntrack", "revoked"), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_two_flows_share_a_tuple_and_answers_come_home(
        flows in prop::collection::vec((5u8..8, 0u16..6, 0u8..3, any::<bool>()), 1..60),
    ) {
        let rest = "[snat]\n[[snat.rule]]\nto = 'outside'\nto_source = '192.0.2.50-192.0.2.51'\nports = '4000-4015'\n";
        let mut bench = bench(rest);
        for (host, port, server, tcp) in flows {
            let (inside, server) = (format!("10.0.0.{host}:{}", 4000 + port), format!("198.51.100.{server}:53"));
            let make = if tcp { syn as Make } else { udp };
            let End::Sent { bytes, .. } = end(&mut bench, "lan", &make(&inside, &server)) else { continue };
            let outside = format!("192.0.2.{}:{}", bytes[29], sport(&bytes));
            prop_assert_eq!(&bytes, &left("wan", make(&outside, &server)));
            if !tcp {
                prop_assert_eq!(push(&mut bench, "wan", &udp(&server, &outside)), left("lan", udp(&server, &inside)));
            }
        }
        let mut tuples = HashSet::new();
        let table = &bench.tables().expect("tracked").v4;
        let mut cursor = 0;
        while !table.walk(&mut cursor, 1 << 10, |_, entry| {
            assert!(tuples.insert(entry.reply_key()), "two flows are answered by one tuple");
            true
        }) {}
    }
}
