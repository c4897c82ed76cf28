//! VLANs as ports of a router, through a whole worker: which port a frame belongs to, and what tags it leaves with.

use std::net::IpAddr;

use crate::route::{Gateway, Route as Path, Source, Target};
use crate::stats::Account;
use crate::testkit::bench::{Bench, End};
use crate::testkit::packets::Packet;
use crate::wire::arp;

const HOST: [u8; 6] = [2, 1, 1, 1, 1, 1];
const PEER: [u8; 6] = [2, 2, 2, 2, 2, 2];
/// MAC addresses of the bench's devices.
const LAN: [u8; 6] = [2, 0, 0, 0, 0, 0];
const WAN: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// By VLAN: port, its index, the host there, and the tags of its frames.
const VLANS: [(&str, u8, &str, &[u8]); 2] =
    [("guest", 2, "10.1.0.5", &[0x81, 0, 0, 100]), ("deep", 3, "10.2.0.5", &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8])];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// lan 10.0.0.1/24, wan 192.0.2.1/24 with a router at .2, guest (VLAN 100 of lan) 10.1.0.1/24 and deep (7.8 of lan) 10.2.0.1/24
/// with a host .5 each.
fn router(rest: &str) -> Bench {
    let ports = "[[port]]\nname = 'lan'\ndevice = 'net_null0'\nzone = 'inside'\n\
                 [[port]]\nname = 'wan'\ndevice = 'net_null1'\nzone = 'outside'\n\
                 [[port]]\nname = 'guest'\nparent = 'lan'\nvlan = 100\nzone = 'guests'\n\
                 [[port]]\nname = 'deep'\nparent = 'lan'\nvlan = [7, 8]\ntpid = '802.1ad'\nmtu = 1400\n";
    let mut bench = Bench::new(&format!("{ports}[memory]\nflows = 1000\n[neighbor]\ndad_probes = 0\n{rest}"));
    bench.route(|router, now| {
        for (port, net) in [(0, "10.0.0.1/24"), (1, "192.0.2.1/24"), (2, "10.1.0.1/24"), (3, "10.2.0.1/24")] {
            router.address(port, net.parse().expect("an address"), true, now);
        }
        router.start(u64::MAX, &[0, 1, 0, 0], now);
        for (port, host, mac) in [(2, "10.1.0.5", HOST), (3, "10.2.0.5", HOST), (1, "192.0.2.2", PEER)] {
            router.add_static(port, ip(host), mac, now);
        }
        let target = Target::Via(vec![Gateway { via: Some(ip("192.0.2.2")), port: None, weight: 1 }]);
        let default = Path { to: "0.0.0.0/0".parse().expect("a prefix"), target, metric: 0 };
        router.route(Source::Static, &default, true);
    });
    bench
}

const PLAIN: &str = "[pipeline]\nstages = ['route']\n";
const TRACKED: &str = "[pipeline]\nstages = ['conntrack', 'route', 'acl']\n[acl]\ndefault = 'allow'\n";

fn counts(bench: &Bench, port: &str) -> [u64; 2] {
    ["rx-packets", "tx-packets"].map(|name| bench.counter(&format!("port:{port}"), name))
}

/// The frame, with these tags behind the MAC addresses.
fn tagged(bytes: &[u8], tags: &[u8]) -> Vec<u8> {
    [&bytes[..12], tags, &bytes[12..]].concat()
}

#[test]
fn packets_leave_and_come_back_with_the_tags_of_their_port() {
    for toml in [PLAIN, TRACKED] {
        for (port, _, host, tags) in VLANS {
            let mut bench = router(toml);
            let out = Packet::udp(&format!("{host}:1000"), "198.51.100.9:53").payload(b"?").ttl(64);
            let sent = bench.push(port, &out.clone().macs(HOST, LAN).bytes());
            let untagged = out.ttl(63).macs(WAN, PEER).bytes();
            assert!(matches!(&sent, End::Sent { port, bytes, .. } if port == "wan" && *bytes == untagged), "{sent:?}");

            let back = Packet::udp("198.51.100.9:53", &format!("{host}:1000")).payload(b"!").ttl(64);
            let sent = bench.push("wan", &back.clone().macs(PEER, WAN).bytes());
            let want = tagged(&back.ttl(63).macs(LAN, HOST).bytes(), tags);
            assert!(matches!(&sent, End::Sent { port: by, bytes, .. } if by == port && *bytes == want), "{sent:?}");

            // The device counts what passes it, the VLAN what is its own.
            assert_eq!((counts(&bench, port), counts(&bench, "wan")), ([1, 1], [1, 1]));
            let other = VLANS.iter().find(|vlan| vlan.0 != port).expect("another").0;
            assert_eq!((counts(&bench, "lan"), counts(&bench, other)), ([1, 1], [0, 0]));
        }
    }
}

#[test]
fn packets_go_from_vlan_to_vlan_of_one_device() {
    for toml in [PLAIN, TRACKED] {
        let mut bench = router(toml);
        for ((from, _, source, _), (to, _, destination, tags)) in [(VLANS[0], VLANS[1]), (VLANS[1], VLANS[0])] {
            let packet = Packet::udp(&format!("{source}:1"), &format!("{destination}:2")).payload(b"?").ttl(9);
            let sent = bench.push(from, &packet.clone().macs(HOST, LAN).bytes());
            let want = tagged(&packet.ttl(8).macs(LAN, HOST).bytes(), tags);
            assert!(matches!(&sent, End::Sent { port, bytes, .. } if port == to && *bytes == want), "{sent:?}");
        }
        assert_eq!([counts(&bench, "lan"), counts(&bench, "guest"), counts(&bench, "deep")], [[2, 2], [1, 1], [1, 1]]);
    }
}

#[test]
fn tags_that_are_no_ports_are_dropped() {
    let mut bench = router(PLAIN);
    let packet = Packet::udp("10.1.0.5:1000", "198.51.100.9:53").macs(HOST, LAN);
    let wrong = [
        packet.clone().vlan(101),
        packet.clone().tag(0x88a8, 100),
        packet.clone().tag(0x88a8, 7),
        packet.clone().tag(0x88a8, 7).vlan(9),
        packet.clone().vlan(100).vlan(8),
    ];
    let ends = bench.push_all("lan", &wrong.map(|packet| packet.bytes()));
    assert!(ends.iter().all(|end| end.reason() == "engine.unknown-vlan"), "{ends:?}");
    assert_eq!(bench.push("wan", &packet.clone().vlan(100).bytes()).reason(), "engine.unknown-vlan");
    // A tag with VLAN id 0 has a priority only: the frame is the device's own.
    let own = Packet::udp("10.0.0.5:1000", "198.51.100.9:53").macs(HOST, LAN).vlan(0xa000);
    let sent = bench.push("lan", &own.bytes());
    assert!(matches!(&sent, End::Sent { port, bytes, .. } if port == "wan" && bytes[12..14] == [8, 0]), "{sent:?}");
    assert_eq!((counts(&bench, "guest"), counts(&bench, "deep"), counts(&bench, "lan")), ([0; 2], [0; 2], [6, 0]));
}

#[test]
fn answers_keep_the_tags() {
    let reject =
        TRACKED.replace("'allow'", "'allow'\n[[acl.rule]]\nname = 'shut'\nservice = 'tcp/25'\naction = 'reject'");
    for toml in [PLAIN, &reject] {
        for (port, _, host, tags) in VLANS {
            let mut bench = router(toml);
            let from = format!("{host}:1000");
            let udp = Packet::udp(&from, "198.51.100.9:53");
            let ping = Packet::echo_request(host, "192.0.2.1", 7, 1).payload(&[5; 40]);
            let mut asked = vec![(udp.ttl(1), "route.ttl-expired", 11), (ping, "", 0)];
            if toml != PLAIN {
                asked.push((Packet::tcp(&from, "198.51.100.9:25").flags(2), "acl.rejected", 3));
            }
            for (packet, reason, first) in asked {
                let ends = bench.push_all(port, &[packet.macs(HOST, LAN).bytes()]);
                assert_eq!(ends.iter().map(End::reason).find(|reason| *reason != "sent").unwrap_or_default(), reason);
                let Some(End::Sent { port: by, bytes, .. }) = ends.last() else { panic!("{ends:?}") };
                let at = 12 + tags.len();
                assert_eq!(
                    (by.as_str(), &bytes[..6], &bytes[6..12], &bytes[12..at]),
                    (port, &HOST[..], &LAN[..], tags)
                );
                if reason != "acl.rejected" {
                    assert_eq!((&bytes[at..at + 2], bytes[at + 22]), (&[8, 0][..], first), "{reason}");
                } else {
                    assert_eq!((bytes[at + 11], bytes[at + 35] & 4), (6, 4), "a reset");
                }
            }
            assert_eq!(counts(&bench, port)[0], counts(&bench, port)[1]);
        }
    }
}

#[test]
fn the_mtu_of_a_vlan_does_not_count_its_tags() {
    for toml in [PLAIN, TRACKED] {
        let mut bench = router(toml);
        let made = bench.sheet().of(Account::Created);
        for ((port, _, host, tags), mtu) in VLANS.into_iter().zip([1500, 1400]) {
            let to = |room: usize| {
                let packet = Packet::udp("198.51.100.9:53", &format!("{host}:1000")).payload(&vec![7; room - 28]);
                packet.dont_fragment().macs(PEER, WAN).bytes()
            };
            let sent = bench.push("wan", &to(mtu));
            let bytes = sent.bytes().unwrap_or_else(|| panic!("{port}: {sent:?}"));
            assert_eq!(bytes.len(), 14 + tags.len() + mtu);
            if mtu < 1500 {
                let ends = bench.push_all("wan", &[to(mtu + 1)]);
                assert_eq!((ends[0].reason(), ends.len()), ("route.too-big", 2));
                let told = ends[1].bytes().expect("an answer");
                assert_eq!((&told[34..36], &told[40..42]), (&[3, 4][..], &(mtu as u16).to_be_bytes()[..]));
            }
        }
        assert_eq!(bench.sheet().of(Account::Created) - made, 1);
    }
}

#[test]
fn the_address_of_a_vlan_is_answered_for_there_only() {
    let mut bench = router(PLAIN);
    let request = |own: &str| Packet::arp(arp::REQUEST, "10.1.0.9", own).macs(HOST, [255; 6]).patch(22, &HOST).bytes();
    let ask = request("10.1.0.1");
    let to_self = bench.push("guest", &ask);
    assert!(matches!(&to_self, End::Sent { port, .. } if port == "self"), "{to_self:?}");
    let sends = bench.route(|router, now| router.receive(2, &ask, now));
    let reply = sends.iter().find(|(_, frame)| frame[20..22] == [0, 2]).expect("an answer");
    assert_eq!((reply.0, &reply.1[..12], &reply.1[12..14]), (2, &[HOST, LAN].concat()[..], &[8, 6][..]));
    assert_eq!((&reply.1[22..28], &reply.1[28..32]), (&LAN[..], &[10, 1, 0, 1][..]));
    let elsewhere = bench.route(|router, now| router.receive(0, &ask, now));
    assert!(!elsewhere.iter().any(|(_, frame)| frame[20..22] == [0, 2]), "{elsewhere:?}");
}

#[test]
fn a_neighbor_in_a_vlan_is_asked_for_and_waited_for_there() {
    let mut bench = router(PLAIN);
    let packet = Packet::udp("198.51.100.9:53", "10.2.0.77:1").payload(b"?").macs(PEER, WAN).bytes();
    assert!(bench.push_all("wan", &[&packet]).is_empty(), "held");
    let asked = bench.route(|_, _| ());
    let [(3, request)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!((&request[6..14], &request[38..42]), (&[&LAN[..], &[8, 6]].concat()[..], &[10, 2, 0, 77][..]));
    let reply =
        Packet::arp(arp::REPLY, "10.2.0.77", "10.2.0.1").macs(HOST, LAN).patch(22, &HOST).patch(32, &LAN).bytes();
    bench.route(|router, now| router.receive(3, &reply, now));
    let none: [&[u8]; 0] = [];
    let ends = bench.push_all("lan", &none);
    let [End::Sent { port, bytes, .. }] = ends.as_slice() else { panic!("{ends:?}") };
    assert_eq!((port.as_str(), &bytes[..6], &bytes[12..20]), ("deep", &HOST[..], VLANS[1].3));
}
