//! What control does over time, as packets find it: neighbors in use, gateways, addresses that are not proven yet, virtual ones.

use std::net::IpAddr;
use std::time::Duration;

use crate::route::neighbor::State;
use crate::route::{Gateway, Route as Path, Source, Target};
use crate::testkit::bench::{Bench, End};
use crate::testkit::packets::Packet;
use crate::wire::arp;

const HOST: [u8; 6] = [2, 1, 1, 1, 1, 1];
const PEER: [u8; 6] = [2, 2, 2, 2, 2, 2];
const LAN: [u8; 6] = [2, 0, 0, 0, 0, 0];
const WAN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const VIRTUAL: [u8; 6] = [0, 0, 0x5e, 0, 1, 7];
const PLAIN: &str = "[pipeline]\nstages = ['route']\n";
const TRACKED: &str = "[pipeline]\nstages = ['conntrack', 'route', 'acl']\n[acl]\ndefault = 'allow'\n";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// lan 10.0.0.1/24 and 2001:db8:1::1/64 with a host .5, wan 192.0.2.1/24 and 2001:db8:2::1/64.
fn router(rest: &str) -> Bench {
    let ports = "[[port]]\nname = 'lan'\ndevice = 'net_null0'\naddress = ['10.0.0.1/24', '2001:db8:1::1/64', \
                 { address = '10.0.0.254/24', mac = '00:00:5e:00:01:07' }]\n\
                 [[port]]\nname = 'wan'\ndevice = 'net_null1'\naddress = ['192.0.2.1/24', '2001:db8:2::1/64']\n";
    let mut bench = Bench::new(&format!("{ports}[memory]\nflows = 1000\n{rest}"));
    bench.route(|router, now| {
        router.start(u64::MAX, &[0, 1], now);
        router.add_static(0, ip("10.0.0.5"), HOST, now);
        router.add_static(0, ip("2001:db8:1::5"), HOST, now);
    });
    bench
}

/// Lets so many seconds pass; what control sends by then.
fn pass(bench: &mut Bench, seconds: u64) -> Vec<(u8, Vec<u8>)> {
    let step = |bench: &mut Bench| {
        bench.pass(Duration::from_millis(250), false);
        bench.route(|_, _| ())
    };
    (0..4 * seconds).flat_map(|_| step(bench)).collect()
}

fn to_lan(packet: Packet) -> Vec<u8> {
    packet.macs(HOST, LAN).bytes()
}

fn reply(neighbor: &str) -> Vec<u8> {
    Packet::arp(arp::REPLY, neighbor, "192.0.2.1").macs(PEER, WAN).patch(22, &PEER).patch(32, &WAN).bytes()
}

/// Questions for a neighbor among frames, and how many of these are for it alone.
fn questions(frames: &[(u8, Vec<u8>)], neighbor: [u8; 4]) -> (usize, usize) {
    let all = frames.iter().filter(|(_, frame)| frame[12..14] == [8, 6] && frame[38..42] == neighbor);
    let (alone, to_all): (Vec<_>, Vec<_>) = all.partition(|(_, frame)| frame[0] & 1 == 0);
    (to_all.len(), alone.len())
}

fn state(bench: &mut Bench, neighbor: &str) -> Option<State> {
    let mut found = None;
    bench.route(|router, _| found = router.neighbors().iter().find(|row| row.ip == ip(neighbor)).map(|row| row.state));
    found
}

/// RFC 4861 section 7.3.3: who is stale is asked only after something was sent to it.
#[test]
fn a_neighbor_is_asked_again_when_it_is_used() {
    const NEIGHBOR: [u8; 4] = [192, 0, 2, 77];
    for toml in [PLAIN, TRACKED] {
        let mut bench = router(toml);
        pass(&mut bench, 5);
        let packet = to_lan(Packet::udp("10.0.0.5:1000", "192.0.2.77:53").payload(b"?"));
        assert!(bench.push_all("lan", &[&packet]).is_empty(), "held");
        assert_eq!(questions(&bench.route(|_, _| ()), NEIGHBOR), (1, 0));
        bench.route(|router, now| router.receive(1, &reply("192.0.2.77"), now));
        let none: [&[u8]; 0] = [];
        assert_eq!(bench.push_all("lan", &none).len(), 1);
        // Reachable for 45 seconds at most; what is sent until then does not count.
        assert_eq!(questions(&pass(&mut bench, 120), NEIGHBOR), (0, 0), "nobody uses it");
        assert_eq!(state(&mut bench, "192.0.2.77"), Some(State::Stale));
        assert_eq!(bench.push("lan", &packet).reason(), "sent");
        assert_eq!(questions(&pass(&mut bench, 4), NEIGHBOR), (0, 0), "it may yet show that it is there");
        let asked = questions(&pass(&mut bench, 8), NEIGHBOR);
        assert!(asked.0 == 0 && asked.1 > 0, "{asked:?}");
        // It is gone: the next packet asks everybody.
        pass(&mut bench, 5);
        assert_eq!(state(&mut bench, "192.0.2.77"), None);
        assert!(bench.push_all("lan", &[&packet]).is_empty(), "held");
    }
}

#[test]
fn a_gateway_that_is_silent_is_asked_for_until_it_answers() {
    for toml in [PLAIN, TRACKED] {
        let mut bench = router(toml);
        let gateways = |list: &[&str]| {
            Target::Via(list.iter().map(|via| Gateway { via: Some(ip(via)), port: None, weight: 1 }).collect())
        };
        let path =
            |to: &str, list: &[&str]| Path { to: to.parse().expect("a prefix"), target: gateways(list), metric: 0 };
        bench.route(|router, now| {
            router.route(Source::Static, &path("198.51.100.0/24", &["192.0.2.8", "192.0.2.9"]), true);
            router.route(Source::Static, &path("203.0.113.0/24", &["192.0.2.9"]), true);
            router.serve(now);
            router.receive(1, &reply("192.0.2.8"), now);
        });
        let mut flows = 0;
        let mut ends = |bench: &mut Bench, to: &str| {
            let next = |_| {
                flows += 1;
                to_lan(Packet::udp(&format!("10.0.0.5:{}", 1000 + flows), &format!("{to}:53")))
            };
            let packets: Vec<_> = (0..20).map(next).collect();
            let ends = bench.push_all("lan", &packets);
            let said = |end: &&End| matches!(end, End::Sent { port, .. } if port == "lan");
            ends.iter().filter(|end| !said(end)).map(|end| end.reason().to_owned()).collect::<Vec<_>>()
        };
        pass(&mut bench, 5);
        for _ in 0..40 {
            // Its share of the flows goes by the other, at whatever stage of asking it is.
            let frames = pass(&mut bench, 1);
            let asked = questions(&frames, [192, 0, 2, 8]);
            bench.route(|router, now| (0..asked.1).for_each(|_| router.receive(1, &reply("192.0.2.8"), now)));
            assert_eq!(ends(&mut bench, "198.51.100.9"), ["sent"; 20]);
            assert_eq!(ends(&mut bench, "203.0.113.9"), ["route.host-unreachable"; 20]);
        }
        let frames = pass(&mut bench, 8);
        assert!(questions(&frames, [192, 0, 2, 9]).0 >= 3, "it is still asked for");
        bench.route(|router, now| router.receive(1, &reply("192.0.2.9"), now));
        assert_eq!(ends(&mut bench, "203.0.113.9"), ["sent"; 20]);
    }
}

/// RFC 4862 section 5.4: an address that may be another's is not answered for, nor does it take packets.
#[test]
fn an_address_is_the_boxs_when_nobody_else_has_it() {
    let advertisement = Packet::icmp("2001:db8:1::1", "ff02::1", 136, 0, [0x20, 0, 0, 0])
        .payload(&"2001:db8:1::1".parse::<std::net::Ipv6Addr>().expect("an address").octets())
        .ttl(255)
        .macs(HOST, [0x33, 0x33, 0, 0, 0, 1])
        .bytes();
    for conflict in [false, true] {
        let mut bench = router(PLAIN);
        let ping = to_lan(Packet::echo_request("2001:db8:1::5", "2001:db8:1::1", 7, 1));
        assert_eq!(bench.push("lan", &ping).reason(), "route.blackhole");
        assert_eq!(bench.blueprint().ways.routed.as_ref().expect("routes").routing.addresses.v6(0), None);
        // IPv4 is not probed for, unless the file says so.
        let ping4 = to_lan(Packet::echo_request("10.0.0.5", "10.0.0.1", 7, 1));
        assert_eq!(bench.push("lan", &ping4).reason(), "sent");
        if conflict {
            let mut notes = Vec::new();
            bench.route(|router, now| {
                router.receive(0, &advertisement, now);
                notes = std::mem::take(&mut router.notes);
            });
            assert!(notes.iter().any(|note| note.contains("2001:db8:1::1: 02:01:01:01:01:01 has it")), "{notes:?}");
        }
        pass(&mut bench, 4);
        let end = if conflict { "route.blackhole" } else { "sent" };
        assert_eq!(bench.push("lan", &ping).reason(), end);
        // A link that comes up again: the address is probed for, but stays.
        for up in [false, true] {
            bench.route(|router, now| router.link(0, up, now));
            bench.route(|router, now| router.add_static(0, ip("2001:db8:1::5"), HOST, now));
        }
        assert_eq!(bench.push("lan", &ping).reason(), end);
    }
}

/// RFC 9568 section 8: a virtual router's MAC is told, its frames are taken, and packets leave from the port's own.
#[test]
fn an_address_bound_to_a_mac() {
    let mut bench = router(PLAIN);
    let question = Packet::arp(arp::REQUEST, "10.0.0.5", "10.0.0.254").macs(HOST, [255; 6]).patch(22, &HOST).bytes();
    let said = bench.route(|router, now| router.receive(0, &question, now));
    let answers: Vec<_> = said.iter().filter(|(_, frame)| frame[..6] == HOST).collect();
    let [(0, answer)] = answers[..] else { panic!("{said:?}") };
    assert_eq!((&answer[6..12], &answer[22..28], &answer[28..32]), (&LAN[..], &VIRTUAL[..], &[10, 0, 0, 254][..]));
    bench.route(|router, now| {
        router.receive(1, &reply("192.0.2.77"), now);
        router.add_static(1, ip("192.0.2.77"), PEER, now);
    });
    let packet = |to: &str| Packet::udp("10.0.0.5:1000", &format!("{to}:53"));
    for (mac, reason) in [(VIRTUAL, "sent"), (LAN, "sent"), ([0, 0, 0x5e, 0, 1, 8], "route.other-station")] {
        let end = bench.push("lan", &packet("192.0.2.77").macs(HOST, mac).bytes());
        assert_eq!(end.reason(), reason);
        if let End::Sent { bytes, .. } = end {
            assert_eq!((&bytes[..6], &bytes[6..12]), (&PEER[..], &WAN[..]));
        }
    }
    let other_port = packet("10.0.0.5").macs(PEER, VIRTUAL).bytes();
    assert_eq!(bench.push("wan", &other_port).reason(), "route.other-station", "it is lan's");
    let ping = Packet::echo_request("10.0.0.5", "10.0.0.254", 7, 1).macs(HOST, VIRTUAL).bytes();
    let End::Sent { bytes, .. } = bench.push("lan", &ping) else { panic!("a reply") };
    assert_eq!((&bytes[..6], &bytes[6..12]), (&HOST[..], &LAN[..]));
}

#[test]
fn addresses_of_pools_come_and_go() {
    let mut bench = router(PLAIN);
    let question = Packet::arp(arp::REQUEST, "10.0.0.5", "10.0.0.99").macs(HOST, [255; 6]).patch(22, &HOST).bytes();
    let answers = |bench: &mut Bench| bench.route(|router, now| router.receive(0, &question, now)).len();
    let end =
        |bench: &mut Bench, to: &str| match bench.push("lan", &to_lan(Packet::udp("10.0.0.5:1", &format!("{to}:2")))) {
            End::Sent { port, .. } => port,
            End::Dropped { reason, .. } => reason,
        };
    pass(&mut bench, 10);
    assert_eq!((answers(&mut bench), end(&mut bench, "198.51.100.5")), (0, "route.no-route".into()));
    let range = |first: &str, last: &str| (ip(first), ip(last));
    let pools = vec![range("198.51.100.4", "198.51.100.7"), range("10.0.0.99", "10.0.0.99")];
    bench.route(|router, _| router.stand_for(pools, Vec::new()));
    assert_eq!((answers(&mut bench), end(&mut bench, "198.51.100.5")), (1, "self".into()));
    let spoofed = to_lan(Packet::udp("198.51.100.6:1", "192.0.2.77:2"));
    assert_eq!(bench.push("lan", &spoofed).reason(), "route.martian-source");
    bench.route(|router, _| router.stand_for(vec![range("198.51.100.4", "198.51.100.4")], Vec::new()));
    assert_eq!((answers(&mut bench), end(&mut bench, "198.51.100.5")), (0, "route.no-route".into()));
    assert_eq!(end(&mut bench, "198.51.100.4"), "self");
}
