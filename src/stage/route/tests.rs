use std::net::IpAddr;

use super::*;
use crate::packet::decode::{Depth, decode};
use crate::packet::frame::Heap;
use crate::route::{Gateway, Route as Path, Source, Target};
use crate::testkit::bench::{Bench, End};
use crate::testkit::packets::{Packet, batch, give_back};
use crate::wire::checksum;
use crate::wire::tcp::{ACK, SYN};

const HOST: [u8; 6] = [2, 1, 1, 1, 1, 1];
const PEER: [u8; 6] = [2, 2, 2, 2, 2, 2];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn path(to: &str, target: Target) -> Path {
    Path { to: to.parse().expect("a prefix"), target, metric: 0 }
}

fn via(gateway: &str) -> Target {
    Target::Via(vec![Gateway { via: Some(ip(gateway)), port: None, weight: 1 }])
}

/// Port lan is 10.0.0.1/24 and 2001:db8:1::1/64, wan 192.0.2.1/24 and 2001:db8:2::1/64, where .2 is a router that is known; the
/// host 10.0.0.5 too.
fn router(rest: &str) -> Bench {
    let mut bench = Bench::new(&format!("[memory]\nflows = 1000\n[neighbor]\ndad_probes = 0\n{rest}"));
    bench.route(|router, now| {
        for (port, net) in [(0, "10.0.0.1/24"), (0, "2001:db8:1::1/64"), (1, "192.0.2.1/24"), (1, "2001:db8:2::1/64")] {
            router.address(port, net.parse().expect("an address"), true, now);
        }
        router.start(u64::MAX, &[0, 1], now);
        for (port, neighbor, mac) in
            [(0, "10.0.0.5", HOST), (0, "2001:db8:1::5", HOST), (1, "192.0.2.2", PEER), (1, "2001:db8:2::2", PEER)]
        {
            router.add_static(port, ip(neighbor), mac, now);
        }
        for (to, target) in [
            ("0.0.0.0/0", via("192.0.2.2")),
            ("::/0", via("2001:db8:2::2")),
            ("203.0.113.0/25", Target::Blackhole),
            ("203.0.113.128/26", Target::Unreachable),
            ("203.0.113.192/26", Target::Prohibit),
        ] {
            router.route(Source::Static, &path(to, target), true);
        }
    });
    bench
}

const PLAIN: &str = "[pipeline]\nstages = ['route']\n";
const TRACKED: &str = "[pipeline]\nstages = ['conntrack', 'route', 'acl']\n[acl]\ndefault = 'allow'\n";

fn mac(port: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, port]
}

fn to_lan(packet: Packet) -> Vec<u8> {
    packet.macs(HOST, mac(0)).bytes()
}

/// Header checksums and transport checksums are right.
fn sound(bytes: &[u8]) -> Meta {
    let mut heap = Heap::new(1, 10_000);
    let mut batch = batch(&mut heap, [bytes]);
    decode(&mut batch, Depth::L4);
    let meta = batch.metas[0].clone();
    assert_eq!(batch.live, 1, "decode takes what was sent");
    give_back(&mut heap, &mut batch);
    meta
}

#[test]
fn a_packet_goes_to_its_next_hop_with_one_hop_less() {
    for toml in [PLAIN, TRACKED] {
        let mut bench = router(toml);
        for (packet, ttl) in [
            (Packet::udp("10.0.0.5:1000", "198.51.100.9:53").payload(b"?").ttl(64), 22),
            (Packet::udp("[2001:db8:1::5]:1000", "[2001:db8:9::9]:53").payload(b"?").ttl(64), 21),
        ] {
            let sent = bench.push("lan", &to_lan(packet.clone()));
            let End::Sent { port, bytes, .. } = sent else { panic!("{sent:?}") };
            assert_eq!((port.as_str(), &bytes[..6], &bytes[6..12]), ("wan", &PEER[..], &mac(1)[..]));
            let mut want = to_lan(packet.ttl(63));
            want[..12].copy_from_slice(&bytes[..12]);
            assert_eq!(bytes, want);
            assert_eq!(bytes[ttl], 63);
            sound(&bytes);
        }
    }
}

#[test]
fn what_cannot_go_on_is_answered_as_the_rfcs_say() {
    for toml in [PLAIN, TRACKED] {
        let mut bench = router(toml);
        let big = |packet: Packet| packet.payload(&[7; 1473]);
        for (packet, reason, answer) in [
            (Packet::udp("10.0.0.5:1", "198.51.100.9:53").ttl(1), "route.ttl-expired", Some((11, 0))),
            (Packet::udp("[2001:db8:1::5]:1", "[2001:db8:9::9]:53").ttl(1), "route.ttl-expired", Some((3, 0))),
            (Packet::udp("10.0.0.5:2", "203.0.113.1:53"), "route.blackhole", None),
            (Packet::udp("10.0.0.5:3", "203.0.113.130:53"), "route.unreachable", Some((3, 1))),
            (Packet::udp("10.0.0.5:4", "203.0.113.200:53"), "route.prohibited", Some((3, 13))),
            (Packet::udp("10.0.0.5:5", "239.1.1.1:53"), "route.multicast", None),
            (Packet::udp("10.0.0.5:6", "192.0.2.255:53"), "route.directed-broadcast", None),
            (Packet::udp("127.0.0.1:7", "198.51.100.9:53"), "route.martian-source", None),
            (Packet::udp("10.0.0.5:8", "169.254.1.1:53"), "route.link-local", None),
            (big(Packet::udp("10.0.0.5:9", "198.51.100.9:53").dont_fragment()), "route.too-big", Some((3, 4))),
            (big(Packet::udp("[2001:db8:1::5]:9", "[2001:db8:9::9]:53")), "route.too-big", Some((2, 0))),
        ] {
            let group = reason.ends_with("multicast");
            let to = if group { [1, 0, 0x5e, 1, 1, 1] } else { mac(0) };
            let ends = bench.push_all("lan", &[packet.macs(HOST, to).bytes()]);
            assert_eq!(ends[0].reason(), reason);
            match (answer, ends.get(1)) {
                (None, None) => {}
                (Some((kind, code)), Some(End::Sent { port, bytes, .. })) => {
                    let meta = sound(bytes);
                    assert_eq!((port.as_str(), meta.detail, &bytes[..6]), ("lan", [kind, code], &HOST[..]), "{reason}");
                    let own = if meta.has(flag::IPV4) { ip("10.0.0.1") } else { ip("2001:db8:1::1") };
                    assert_eq!(meta.source(), Some(own));
                    if kind == 3 && code == 4 {
                        assert_eq!(&bytes[meta.l4() + 6..meta.l4() + 8], &1500_u16.to_be_bytes());
                        assert!(checksum::is_good(&bytes[meta.l4()..meta.end()]));
                    }
                }
                (_, other) => panic!("{reason}: {other:?}"),
            }
        }
    }
}

#[test]
fn nobody_is_told_who_says_to_be_everybody_on_a_link() {
    let mut bench = router(PLAIN);
    for (source, reason, told) in
        [("10.0.0.5:9", "route.unreachable", true), ("10.0.0.255:9", "route.martian-source", false)]
    {
        let ends = bench.push_all("lan", &[to_lan(Packet::udp(source, "203.0.113.130:53"))]);
        assert_eq!((ends[0].reason(), ends.len() > 1), (reason, told), "{source}");
    }
}

#[test]
fn the_first_packet_waits_for_its_neighbor() {
    for toml in [PLAIN, TRACKED] {
        let mut bench = router(toml);
        let packet = to_lan(Packet::udp("10.0.0.5:1000", "192.0.2.77:53").payload(b"?"));
        assert!(bench.push_all("lan", &[&packet]).is_empty(), "held");
        let asked = bench.route(|_, _| ());
        let [(1, request)] = asked.as_slice() else { panic!("{asked:?}") };
        assert_eq!((&request[12..14], &request[38..42]), (&[8, 6][..], &[192, 0, 2, 77][..]));
        // Others wait with it, but not many.
        let more: Vec<_> = (0..9).map(|_| packet.clone()).collect();
        let ends = bench.push_all("lan", &more);
        assert_eq!(ends.iter().map(End::reason).collect::<Vec<_>>(), ["route.hold-full"; 2]);
        let reply =
            Packet::arp(2, "192.0.2.77", "192.0.2.1").macs(PEER, mac(1)).patch(22, &PEER).patch(32, &mac(1)).bytes();
        bench.route(|router, now| router.receive(1, &reply, now));
        let none: [&[u8]; 0] = [];
        let ends = bench.push_all("lan", &none);
        assert_eq!(ends.len(), 8);
        assert!(ends.iter().all(|end| end.bytes().is_some_and(|bytes| bytes[..6] == PEER && bytes[22] == 63)));
        assert_eq!(bench.push("lan", &packet).reason(), "sent");
    }
}

#[test]
fn a_neighbor_that_does_not_answer_is_reported() {
    let mut bench = router(PLAIN);
    let packet = to_lan(Packet::udp("10.0.0.5:1000", "192.0.2.77:53").payload(b"?"));
    assert!(bench.push_all("lan", &[&packet]).is_empty(), "held");
    for _ in 0..28 {
        bench.pass(std::time::Duration::from_millis(100), false);
        bench.route(|_, _| ());
    }
    let none: [&[u8]; 0] = [];
    let ends = bench.push_all("lan", &none);
    assert_eq!(ends[0].reason(), "route.host-unreachable");
    assert_eq!(sound(ends[1].bytes().expect("an answer")).detail, [3, 1]);
}

#[test]
fn the_box_answers_pings_and_takes_what_is_for_it() {
    for toml in [PLAIN, TRACKED] {
        let mut bench = router(toml);
        for (packet, kind) in [
            (Packet::echo_request("10.0.0.5", "10.0.0.1", 7, 1).payload(&[5; 100]), 0),
            (Packet::echo_request("10.0.0.5", "192.0.2.1", 7, 2).payload(&[5; 100]), 0),
            (Packet::echo_request("2001:db8:1::5", "2001:db8:1::1", 7, 1).payload(&[5; 100]), 129),
        ] {
            let ends = bench.push_all("lan", &[to_lan(packet)]);
            let [End::Sent { port, bytes, .. }] = ends.as_slice() else { panic!("{ends:?}") };
            let meta = sound(bytes);
            assert_eq!((port.as_str(), meta.detail[0], &bytes[..6]), ("lan", kind, &HOST[..]));
        }
        let ssh = bench.push("lan", &to_lan(Packet::tcp("10.0.0.5:1000", "10.0.0.1:22").flags(2)));
        let End::Sent { port, .. } = ssh else { panic!("{ssh:?}") };
        assert_eq!(port, "self");
        let arp = bench.push("lan", &Packet::arp(1, "10.0.0.5", "10.0.0.1").macs(HOST, [255; 6]).bytes());
        assert_eq!(arp.reason(), "sent");
        let other = bench.push("lan", &Packet::udp("10.0.0.5:1", "198.51.100.1:2").macs(HOST, PEER).bytes());
        assert_eq!(other.reason(), "route.other-station");
        let broadcast = bench.push("lan", &Packet::udp("10.0.0.5:1", "198.51.100.1:2").macs(HOST, [255; 6]).bytes());
        assert_eq!(broadcast.reason(), "route.link-broadcast");
    }
}

#[test]
fn a_dhcp_server_reaches_the_boxs_client_before_it_has_an_address() {
    // What the client is told: BOOTREPLY, Ethernet, and whom.
    let reply = |chaddr: [u8; 6]| {
        let mut message = vec![0; 240];
        message[..3].copy_from_slice(&[2, 1, 6]);
        message[28..34].copy_from_slice(&chaddr);
        message
    };
    let strict = "[pipeline]\nstages = ['conntrack', 'route', 'acl']\n[[acl.rule]]\nname = 'lease'\nfrom = 'inside'\n\
                  to = 'self'\nservice = 'udp/68'\naction = 'allow'\n";
    for (toml, by_rule) in [(PLAIN, false), (TRACKED, false), (strict, true)] {
        let mut bench = router(toml);
        for (from, to, message, port) in [
            // There is a route to it, which a frame for somebody else takes.
            ("10.0.0.9:67", "172.16.0.7:68", reply(mac(0)), "self"),
            ("10.0.0.9:67", "255.255.255.255:68", reply(mac(0)), "self"),
            ("10.0.0.9:67", "172.16.0.7:68", reply(PEER), "wan"),
            ("10.0.0.9:68", "172.16.0.7:68", reply(mac(0)), "wan"),
            ("10.0.0.9:67", "172.16.0.7:68", reply(mac(0))[..33].to_vec(), "wan"),
        ] {
            let end = bench.push("lan", &to_lan(Packet::udp(from, to).payload(&message)));
            match (end, by_rule && port != "self") {
                (End::Sent { port: left, rule, .. }, false) => {
                    assert_eq!((left.as_str(), rule.is_some()), (port, by_rule), "{from} > {to}");
                }
                (end, denied) => assert!(denied && end.reason() == "acl.denied-default", "{from} > {to}: {end:?}"),
            }
        }
    }
}

#[test]
fn flows_follow_their_routes() {
    let mut bench = router(TRACKED);
    let packet = to_lan(Packet::udp("10.0.0.5:1000", "198.51.100.9:53").payload(b"?"));
    assert_eq!(bench.push("lan", &packet).bytes().expect("sent")[..6], PEER);
    bench.route(|router, now| {
        router.add_static(1, ip("192.0.2.3"), [2, 3, 3, 3, 3, 3], now);
        router.route(Source::Static, &path("198.51.100.0/24", via("192.0.2.3")), true);
    });
    assert_eq!(bench.push("lan", &packet).bytes().expect("sent")[..6], [2, 3, 3, 3, 3, 3]);
    let back = Packet::udp("198.51.100.9:53", "10.0.0.5:1000").payload(b"!").macs(PEER, mac(1)).bytes();
    assert_eq!(bench.push("wan", &back).bytes().expect("sent")[..6], HOST);
    bench.route(|router, _| router.route(Source::Static, &path("198.51.100.0/24", Target::Blackhole), true));
    assert_eq!(bench.push("lan", &packet).reason(), "route.blackhole");
}

#[test]
fn what_is_too_long_goes_in_pieces_if_it_may() {
    for toml in [PLAIN, TRACKED] {
        let mut bench = router(toml);
        let packet = Packet::udp("10.0.0.5:9", "198.51.100.9:53").payload(&[7; 3000]).id(77).ttl(9);
        let ends = bench.push_all("lan", &[to_lan(packet)]);
        let parts: Vec<&[u8]> = ends.iter().map(|end| end.bytes().expect("sent")).collect();
        assert_eq!(parts.iter().map(|part| part.len() - 14).collect::<Vec<_>>(), [1500, 1500, 68]);
        for part in parts {
            let meta = sound(part);
            assert!(meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT) && part[22] == 8 && part[..6] == PEER);
        }
    }
}

#[test]
fn nobody_sends_from_an_address_of_the_box() {
    let group = |to: &str| if to == "224.0.0.5" { [1, 0, 0x5e, 0, 0, 5] } else { mac(0) };
    let from = |source: &str, to: &str| match source.contains(':') {
        true => Packet::udp(&format!("[{source}]:7"), &format!("[{to}]:53")),
        false => Packet::udp(&format!("{source}:7"), &format!("{to}:53")).macs(HOST, group(to)),
    };
    for toml in [PLAIN, TRACKED] {
        let mut bench = router(toml);
        let mut end = |source: &str, to: &str| {
            let packet = from(source, to);
            let packet = if source.contains(':') { packet.macs(HOST, mac(0)) } else { packet };
            bench.push("lan", &packet.bytes()).reason().to_owned()
        };
        // Its addresses on any port, and those that a subnet's hosts share.
        for source in ["10.0.0.1", "192.0.2.1", "10.0.0.255", "10.0.0.0", "192.0.2.255"] {
            for to in ["198.51.100.9", "10.0.0.1", "224.0.0.5"] {
                assert_eq!(end(source, to), "route.martian-source", "{source} > {to}");
            }
        }
        for source in ["2001:db8:1::1", "2001:db8:2::1", "2001:db8:2::"] {
            for to in ["2001:db8:9::9", "2001:db8:1::1"] {
                assert_eq!(end(source, to), "route.martian-source", "{source} > {to}");
            }
        }
        assert_eq!(end("10.0.0.5", "198.51.100.9"), "sent");
        bench.route(|router, now| router.address(0, "10.0.0.1/24".parse().expect("an address"), false, now));
        assert_eq!(bench.push("lan", &to_lan(from("10.0.0.1", "198.51.100.9"))).reason(), "sent", "it is no more");
    }
}

#[test]
fn an_error_about_a_flow_comes_from_where_errors_can_come_from() {
    let mut bench = router(TRACKED);
    let packet = Packet::udp("10.0.0.5:1000", "198.51.100.9:53").payload(b"?");
    assert_eq!(bench.push("lan", &to_lan(packet.clone())).reason(), "sent");
    for (source, end) in [
        ("192.0.2.1", "route.martian-source"),
        ("127.0.0.1", "route.martian-source"),
        ("224.0.0.1", "route.martian-source"),
        ("203.0.113.77", "sent"),
    ] {
        let error = Packet::icmp_error(source, "10.0.0.5", 3, 1, &packet).macs(PEER, mac(1));
        assert_eq!(bench.push("wan", &error.bytes()).reason(), end, "{source}");
    }
}

/// RFC 3704: strict, and an address of the link, which no route leads to.
#[test]
fn sources_are_checked_where_the_file_says_so() {
    let mut bench = router("[pipeline]\nstages = ['route']\n[route]\nrpf = 'strict'\n");
    for (packet, end) in [
        (Packet::udp("10.0.0.5:1", "198.51.100.9:53"), "sent"),
        (Packet::udp("198.51.100.7:1", "198.51.100.9:53"), "route.reverse-path"),
        (Packet::udp("10.0.0.1:1", "198.51.100.9:53"), "route.martian-source"),
        (Packet::udp("[fe80::5]:1", "[2001:db8:1::1]:53"), "sent"),
        (Packet::udp("[fe80::5]:1", "[2001:db8:9::9]:53"), "route.link-local"),
    ] {
        assert_eq!(bench.push("lan", &to_lan(packet.clone())).reason(), end, "{packet:?}");
    }
}

/// RFC 1812 section 4.3.3.5, RFC 1122 section 3.2.2.5: the sender is told which byte is wrong.
#[test]
fn options_that_cannot_be_read_are_reported() {
    for toml in [PLAIN, TRACKED] {
        let mut bench = router(toml);
        let bad =
            |source: &str, to: &str| Packet::udp(&format!("{source}:1"), &format!("{to}:53")).ip_options(&[1, 1, 7, 9]);
        let ends = bench.push_all("lan", &[to_lan(bad("10.0.0.5", "198.51.100.9"))]);
        let [first, End::Sent { port, bytes, .. }] = ends.as_slice() else { panic!("{ends:?}") };
        let meta = sound(bytes);
        assert_eq!((first.reason(), port.as_str(), meta.detail), ("decode.bad-option", "lan", [12, 0]));
        assert_eq!((bytes[meta.l4() + 4], meta.destination()), (22, Some(ip("10.0.0.5"))));
        for silent in [
            to_lan(bad("10.0.0.1", "198.51.100.9")),
            to_lan(bad("127.0.0.1", "198.51.100.9")),
            to_lan(bad("10.0.0.5", "192.0.2.255")),
            bad("10.0.0.5", "198.51.100.9").macs(HOST, PEER).bytes(),
            bad("10.0.0.5", "198.51.100.9").macs(HOST, [255; 6]).bytes(),
        ] {
            let ends = bench.push_all("lan", &[silent]);
            assert_eq!(ends.iter().map(End::reason).collect::<Vec<_>>(), ["decode.bad-option"]);
        }
    }
}

#[test]
fn what_the_box_began_goes_on_when_routes_change() {
    let rules = "[acl]\n[[acl.rule]]\nname = 'bgp'\nfrom = ['self']\nto = ['outside']\nservice = ['tcp/179']\naction = 'allow'\n";
    let mut bench = router(&format!("[pipeline]\nstages = ['conntrack', 'route', 'acl']\n{rules}"));
    let there = Packet::tcp("192.0.2.1:40000", "192.0.2.2:179").macs(mac(1), PEER);
    let back = Packet::tcp("192.0.2.2:179", "192.0.2.1:40000").macs(PEER, mac(1));
    assert_eq!(bench.send("wan", &there.clone().flags(SYN).sequence(1).bytes()).reason(), "sent");
    let answer = back.clone().flags(SYN | ACK).sequence(9).acknowledgment(2).bytes();
    assert_eq!(bench.push("wan", &answer).reason(), "sent");
    assert_eq!(bench.send("wan", &there.flags(ACK).sequence(2).acknowledgment(10).bytes()).reason(), "sent");
    let says = back.flags(ACK).sequence(10).acknowledgment(2).payload(&[0; 100]).bytes();
    for n in 0..3 {
        bench.route(|router, _| {
            router.route(Source::Kernel, &path(&format!("100.64.{n}.0/24"), via("192.0.2.2")), true)
        });
        let End::Sent { port, .. } = bench.push("wan", &says) else { panic!("after {n} more routes") };
        assert_eq!(port, "self");
    }
}
