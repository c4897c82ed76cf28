//! Scenes with several stations on a link, and hostile ones.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::nd::{ALL_NODES, group_mac, solicited_node};
use super::*;
use crate::config::units::Within;
use crate::wire::arp::{REPLY, REQUEST};
use crate::wire::nd as wire;

mod hostile;
mod routers;

const US: Mac = [2, 0, 0, 0, 0, 0x10];
const PEER: Mac = [2, 0, 0, 0, 0, 0x20];
const OTHER: Mac = [2, 0, 0, 0, 0, 0x30];
const VIRTUAL: Mac = [0, 0, 0x5e, 0, 1, 7];
const ALL: Mac = [0xff; 6];
const MS: u64 = 1_000_000;

/// A port with 192.0.2.1/24 and 2001:db8::1/64 on a bench with a clock.
struct Scene {
    neighbors: Neighbors,
    now: u64,
    used: bool,
}

fn port(addresses: &[&str]) -> Port {
    Port {
        name: "lan".into(),
        mac: US,
        addresses: addresses.iter().map(|net| Address::from(net.parse::<IpNet>().expect("a prefix"))).collect(),
        link_up: true,
        router_advertisements: None,
    }
}

/// Addresses are used at once and not announced.
fn quick() -> Settings {
    Settings { arp_probes: Within(0), dad_probes: Within(0), announcements: Within(0), ..Settings::default() }
}

impl Scene {
    fn new(settings: &Settings) -> (Scene, Vec<Effect>) {
        let mut scene = Scene { neighbors: Neighbors::new(settings, 42), now: 1000 * SECOND, used: false };
        let out = scene.run(|n, now, out| n.port(0, &port(&["192.0.2.1/24", "2001:db8::1/64"]), now, out));
        (scene, out)
    }

    fn quick() -> Scene {
        Scene::new(&quick()).0
    }

    fn run(&mut self, step: impl FnOnce(&mut Neighbors, u64, &mut Vec<Effect>)) -> Vec<Effect> {
        let mut out = Vec::new();
        step(&mut self.neighbors, self.now, &mut out);
        out
    }

    fn hear(&mut self, frame: Vec<u8>) -> Vec<Effect> {
        self.run(|n, now, out| n.receive(0, &frame, now, out))
    }

    fn want(&mut self, ip: &str) -> Vec<Effect> {
        self.run(|n, now, out| n.want(0, addr(ip), now, out))
    }

    /// Lets time pass, with a tick whenever one is due.
    fn pass(&mut self, time: u64) -> Vec<Effect> {
        let (until, used, mut out) = (self.now + time, self.used, Vec::new());
        while let Some(due) = self.neighbors.next_tick().filter(|due| *due <= until) {
            self.now = due.max(self.now);
            self.neighbors.tick(self.now, &mut |_, _| used, &mut out);
        }
        self.now = until;
        out
    }

    fn state(&self, ip: &str) -> Option<(State, Option<Mac>)> {
        self.neighbors.iter().find(|row| row.ip == addr(ip)).map(|row| (row.state, row.mac))
    }
}

fn addr(ip: &str) -> IpAddr {
    ip.parse().expect("an address")
}

fn v4(ip: &str) -> Ipv4Addr {
    ip.parse().expect("an IPv4 address")
}

fn v6(ip: &str) -> Ipv6Addr {
    ip.parse().expect("an IPv6 address")
}

fn arp(operation: u16, to: Mac, (mac, sender): (Mac, &str), (target_mac, target): (Mac, &str)) -> Vec<u8> {
    let mut frame = [&to[..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation as u8]].concat();
    frame.extend([&mac[..], &v4(sender).octets(), &target_mac, &v4(target).octets()].concat());
    frame
}

fn request(from: (Mac, &str), target: &str) -> Vec<u8> {
    arp(REQUEST, ALL, from, ([0; 6], target))
}

fn reply(from: (Mac, &str)) -> Vec<u8> {
    arp(REPLY, US, from, (US, "192.0.2.1"))
}

/// A neighbor discovery message, built without the code under test: `fixed` is what stands behind the checksum.
fn ndp(kind: u8, from: (Mac, &str), to: (Mac, &str), fixed: &[u8], options: &[u8]) -> Vec<u8> {
    let body = [fixed, options].concat();
    let icmp = etherparse::Icmpv6Type::Unknown {
        type_u8: kind,
        code_u8: 0,
        bytes5to8: body[..4].try_into().expect("four bytes"),
    };
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(from.0, to.0)
        .ipv6(v6(from.1).octets(), v6(to.1).octets(), 255)
        .icmpv6(icmp)
        .write(&mut frame, &body[4..])
        .expect("a vector");
    frame
}

fn target(flags: u8, ip: &str) -> Vec<u8> {
    [&[flags, 0, 0, 0][..], &v6(ip).octets()].concat()
}

fn option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

fn ns(from: (Mac, &str), ip: &str) -> Vec<u8> {
    let group = solicited_node(v6(ip));
    ndp(135, from, (group_mac(group), &group.to_string()), &target(0, ip), &option(1, from.0))
}

fn na(from: (Mac, &str), flags: u8) -> Vec<u8> {
    ndp(136, from, (US, "fe80::ff:fe00:10"), &target(flags, from.1), &option(2, from.0))
}

fn frames(out: &[Effect]) -> Vec<&[u8]> {
    let sent = |effect| if let &Effect::Send { port: 0, ref frame } = effect { Some(&frame[..]) } else { None };
    out.iter().filter_map(sent).collect()
}

/// Effects but for frames and notes.
fn said(out: &[Effect]) -> Vec<Effect> {
    out.iter().filter(|effect| !matches!(effect, Effect::Send { .. } | Effect::Note(_))).cloned().collect()
}

fn resolved(ip: &str, mac: Mac) -> Effect {
    Effect::Resolved { port: 0, ip: addr(ip), mac, is_router: false }
}

fn failed(ip: &str) -> Effect {
    Effect::Failed { port: 0, ip: addr(ip) }
}

fn gone(ip: &str) -> Effect {
    Effect::Gone { port: 0, ip: addr(ip) }
}

#[test]
fn arp_resolves_and_verifies() {
    let mut scene = Scene::quick();
    let out = scene.want("192.0.2.9");
    assert_eq!(frames(&out), [request((US, "192.0.2.1"), "192.0.2.9")]);
    assert_eq!(frames(&scene.pass(SECOND)), [request((US, "192.0.2.1"), "192.0.2.9")]);
    assert_eq!(scene.hear(reply((PEER, "192.0.2.9"))), [resolved("192.0.2.9", PEER)]);
    assert_eq!(scene.state("192.0.2.9"), Some((State::Reachable, Some(PEER))));
    // A second answer is a second station: not believed so soon.
    assert_eq!(scene.hear(reply((OTHER, "192.0.2.9"))), []);
    // In use, it is asked by itself, and stays.
    scene.used = true;
    let out = scene.pass(60 * SECOND);
    let question = arp(REQUEST, PEER, (US, "192.0.2.1"), ([0; 6], "192.0.2.9"));
    assert_eq!((frames(&out)[0], frames(&out).len()), (&question[..], 3));
    assert_eq!(said(&out), [gone("192.0.2.9")]);
    scene.want("192.0.2.9");
    scene.hear(reply((PEER, "192.0.2.9")));
    let mut asked = 0;
    for _ in 0..200 {
        let out = scene.pass(SECOND);
        if frames(&out).contains(&&question[..]) {
            asked += 1;
            scene.hear(reply((PEER, "192.0.2.9")));
        }
        assert_eq!(said(&out), []);
    }
    assert!((3..=8).contains(&asked), "{asked}");
}

#[test]
fn silence_fails_and_is_remembered_for_a_while() {
    let mut scene = Scene::quick();
    for ip in ["192.0.2.9", "2001:db8::9"] {
        assert_eq!(frames(&scene.want(ip)).len(), 1);
        assert_eq!(said(&scene.want(ip)), []);
        let out = scene.pass(3 * SECOND);
        assert_eq!((frames(&out).len(), said(&out)), (2, vec![failed(ip)]));
        assert_eq!(scene.want(ip), [failed(ip)]);
        assert_eq!(scene.pass(SECOND), [gone(ip)]);
        assert_eq!(frames(&scene.want(ip)).len(), 1);
        scene.pass(10 * SECOND);
    }
    // Who speaks up is not silent.
    scene.want("192.0.2.9");
    scene.pass(3 * SECOND);
    let out = scene.hear(request((PEER, "192.0.2.9"), "192.0.2.1"));
    assert_eq!(said(&out), [resolved("192.0.2.9", PEER)]);
}

#[test]
fn what_can_be_no_neighbor_fails_at_once() {
    let mut scene = Scene::quick();
    for ip in ["192.0.2.1", "192.0.2.255", "192.0.2.0", "224.0.0.1", "0.0.0.0", "ff02::1", "::", "2001:db8::1"] {
        assert_eq!(scene.want(ip), [failed(ip), gone(ip)], "{ip}");
    }
    scene.run(|n, now, out| n.link(0, false, now, out));
    assert_eq!(scene.want("192.0.2.9"), [failed("192.0.2.9"), gone("192.0.2.9")]);
}

#[test]
fn arp_requests_are_answered_and_remembered() {
    let mut scene = Scene::quick();
    let out = scene.hear(request((PEER, "192.0.2.9"), "192.0.2.1"));
    let answer = arp(REPLY, PEER, (US, "192.0.2.1"), (PEER, "192.0.2.9"));
    assert_eq!(out, [Effect::Send { port: 0, frame: answer }]);
    assert_eq!(scene.state("192.0.2.9"), Some((State::Stale, Some(PEER))));
    // A probe is answered and makes no entry (RFC 5227 section 2.1.1).
    let out = scene.hear(request((OTHER, "0.0.0.0"), "192.0.2.1"));
    assert_eq!(frames(&out), [arp(REPLY, OTHER, (US, "192.0.2.1"), (OTHER, "0.0.0.0"))]);
    assert_eq!(scene.neighbors.iter().count(), 1);
    // It is told of when a packet wants to go there; unused, it is forgotten.
    assert_eq!(scene.want("192.0.2.9"), [resolved("192.0.2.9", PEER)]);
    scene.hear(request((PEER, "192.0.2.7"), "192.0.2.1"));
    let out = scene.pass(620 * SECOND);
    assert_eq!((frames(&out).len(), said(&out), scene.neighbors.iter().count()), (3, vec![gone("192.0.2.9")], 0));
}

#[test]
fn arp_that_is_not_believed() {
    let good = request((PEER, "192.0.2.9"), "192.0.2.1");
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let ignored = [
        ("hardware", with(14, &[0, 6])),
        ("protocol", with(16, &[0x86, 0xdd])),
        ("hardware length", with(18, &[8])),
        ("protocol length", with(19, &[16])),
        ("operation", with(20, &[0, 3])),
        ("group sender", with(22, &[3])),
        ("broadcast sender", with(22, &ALL)),
        ("no sender", with(22, &[0; 6])),
        ("own MAC", with(22, &US)),
        ("own frame", with(6, &US)),
        ("group source", with(6, &[1])),
        ("for another station", with(0, &OTHER)),
        ("multicast", with(0, &[1, 0, 0x5e, 0, 0, 1])),
        ("group address", with(28, &[224, 0, 0, 9])),
        ("broadcast address", with(28, &[192, 0, 2, 255])),
        ("limited broadcast", with(28, &[255; 4])),
        ("loopback", with(28, &[127, 0, 0, 1])),
        ("another subnet", with(28, &[198, 51, 100, 9])),
        ("truncated", good[..41].to_vec()),
        ("gratuitous, unknown", request((PEER, "192.0.2.9"), "192.0.2.9")),
        ("unasked reply", reply((PEER, "192.0.2.9"))),
        ("another's question", request((PEER, "192.0.2.9"), "192.0.2.77")),
    ];
    let mut scene = Scene::quick();
    for (what, frame) in ignored {
        assert_eq!(scene.hear(frame), [], "{what}");
        assert_eq!(scene.neighbors.iter().count(), 0, "{what}");
    }
    assert_eq!((scene.hear(good).len(), scene.neighbors.iter().count()), (1, 1));
}

#[test]
fn gratuitous_arp_moves_what_is_known() {
    let mut scene = Scene::quick();
    scene.hear(request((PEER, "192.0.2.9"), "192.0.2.1"));
    scene.want("192.0.2.9");
    for frame in [request((OTHER, "192.0.2.9"), "192.0.2.9"), arp(REPLY, ALL, (OTHER, "192.0.2.9"), (ALL, "192.0.2.9"))]
    {
        assert_eq!(scene.hear(frame.clone()), [], "within the lock time");
        scene.pass(SECOND);
        assert_eq!(scene.hear(frame), [resolved("192.0.2.9", OTHER)]);
        assert_eq!(scene.state("192.0.2.9"), Some((State::Stale, Some(OTHER))));
        scene.pass(SECOND);
        scene.hear(request((PEER, "192.0.2.9"), "192.0.2.1"));
    }
    // An answer nobody asked for confirms nothing.
    assert_eq!(scene.hear(reply((PEER, "192.0.2.9"))), []);
    assert_eq!(scene.state("192.0.2.9"), Some((State::Stale, Some(PEER))));
    // What is given stays.
    scene.run(|n, now, out| n.add_static(0, addr("192.0.2.9"), [6; 6], now, out));
    scene.pass(SECOND);
    assert_eq!(scene.hear(request((OTHER, "192.0.2.9"), "192.0.2.9")), []);
    assert_eq!(scene.want("192.0.2.9"), [resolved("192.0.2.9", [6; 6])]);
    scene.run(|n, now, out| n.link(0, false, now, out));
    assert_eq!(scene.state("192.0.2.9"), Some((State::Static, Some([6; 6]))));
    assert_eq!(scene.run(|n, now, out| n.remove_static(0, addr("192.0.2.9"), now, out)), [gone("192.0.2.9")]);
}

/// RFC 5227 section 2.1.1: three probes, silence, then announcements.
#[test]
fn an_ipv4_address_is_probed_for_and_announced() {
    let (mut scene, out) =
        Scene::new(&Settings { arp_probes: Within(3), dad_probes: Within(0), ..Settings::default() });
    assert!(!said(&out).contains(&Effect::AddressUsable { port: 0, ip: addr("192.0.2.1") }));
    let is_arp = |frame: &&[u8]| frame[12..14] == [8, 6];
    let (mut times, mut usable, mut announced) = (Vec::new(), 0, Vec::new());
    let start = scene.now;
    while announced.len() < 2 {
        let out = scene.pass(10 * MS);
        assert!(scene.now - start < 12 * SECOND);
        for frame in frames(&out).into_iter().filter(is_arp) {
            if frame == request((US, "0.0.0.0"), "192.0.2.1") {
                // Tentative: nobody gets an answer, and nothing is asked from it.
                assert_eq!(scene.hear(request((PEER, "192.0.2.9"), "192.0.2.1")), []);
                assert_eq!(frames(&scene.want("192.0.2.8")).len(), 0);
                times.push(scene.now);
            } else {
                assert_eq!(frame, request((US, "192.0.2.1"), "192.0.2.1"));
                announced.push(scene.now);
            }
        }
        if out.contains(&Effect::AddressUsable { port: 0, ip: addr("192.0.2.1") }) {
            usable = scene.now;
        }
    }
    assert_eq!(times.len(), 3);
    assert!(times[0] - start <= SECOND + 10 * MS);
    for pair in times.windows(2) {
        assert!((990 * MS..=2010 * MS).contains(&(pair[1] - pair[0])));
    }
    assert_eq!((usable, usable - times[2], announced[1] - announced[0]), (announced[0], 2 * SECOND, 2 * SECOND));
}

#[test]
fn an_ipv4_address_in_use_elsewhere_is_not_taken() {
    let ip = addr("192.0.2.1");
    // Somebody has it, or probes for it at the same time.
    for claim in [request((PEER, "192.0.2.1"), "192.0.2.7"), request((PEER, "0.0.0.0"), "192.0.2.1")] {
        let (mut scene, _) = Scene::new(&Settings { arp_probes: Within(3), ..Settings::default() });
        scene.pass(2 * SECOND);
        // Our own probe that comes back is no conflict.
        assert_eq!(scene.hear(request((US, "0.0.0.0"), "192.0.2.1")), []);
        let out = scene.hear(claim.clone());
        assert_eq!(said(&out), [Effect::AddressConflict { port: 0, ip, mac: PEER, kept: false }]);
        assert!(
            matches!(out.last(), Some(Effect::Note(note)) if note.contains("lan: 192.0.2.1: 02:00:00:00:00:20 has it"))
        );
        assert_eq!(scene.hear(claim), []);
        assert!(!scene.pass(59 * SECOND).contains(&Effect::AddressUsable { port: 0, ip }));
        assert!(scene.pass(10 * SECOND).contains(&Effect::AddressUsable { port: 0, ip }), "another try");
    }
}

#[test]
fn an_address_in_use_is_defended_but_not_for_ever() {
    let mut scene = Scene::quick();
    let claim = request((PEER, "192.0.2.1"), "192.0.2.7");
    let ip = addr("192.0.2.1");
    for _ in 0..3 {
        let out = scene.hear(claim.clone());
        assert_eq!(frames(&out), [request((US, "192.0.2.1"), "192.0.2.1")]);
        assert_eq!(said(&out), [Effect::AddressConflict { port: 0, ip, mac: PEER, kept: true }]);
        scene.pass(9 * SECOND);
        assert_eq!(scene.hear(claim.clone()), []);
        scene.pass(SECOND);
    }
}

#[test]
fn addresses_come_and_go() {
    let mut scene = Scene::quick();
    let net: IpNet = "198.51.100.1/24".parse().expect("a prefix");
    let out = scene.run(|n, now, out| n.add_address(0, net.into(), now, out));
    assert_eq!(out, [Effect::AddressUsable { port: 0, ip: net.addr() }]);
    assert_eq!(scene.run(|n, now, out| n.add_address(0, net.into(), now, out)), []);
    // The question comes from the subnet it asks in.
    assert_eq!(frames(&scene.want("198.51.100.9")), [request((US, "198.51.100.1"), "198.51.100.9")]);
    scene.hear(arp(REPLY, US, (PEER, "198.51.100.9"), (US, "198.51.100.1")));
    let out = scene.run(|n, now, out| n.remove_address(0, net.addr(), now, out));
    assert_eq!(out, [gone("198.51.100.9")]);
    assert_eq!(scene.hear(request((PEER, "192.0.2.9"), "198.51.100.1")), []);
    // A port set again: what stays is not touched.
    let mut wanted = port(&["192.0.2.1/24", "2001:db8::1/64"]);
    assert_eq!(scene.run(|n, now, out| n.port(0, &wanted, now, out)), []);
    wanted.addresses.pop();
    scene.run(|n, now, out| n.port(0, &wanted, now, out));
    let left: Vec<_> = scene.neighbors.addresses(0).map(|(net, _)| net.to_string()).collect();
    assert_eq!(left, ["192.0.2.1/24"], "the link-local one was there only for the other");
    scene.run(|n, now, out| n.remove_port(0, now, out));
    assert_eq!((scene.neighbors.next_tick(), scene.neighbors.iter().count()), (None, 0));
}

/// RFC 9568 sections 8.1.2 and 8.2.2: the virtual MAC is told, and announced as soon as the address is taken over.
#[test]
fn virtual_addresses() {
    let (mut scene, _) = Scene::new(&Settings { arp_probes: Within(3), ..Settings::default() });
    scene.pass(20 * SECOND);
    for net in ["192.0.2.100/32", "2001:db8::100/64"] {
        let address = Address { net: net.parse().expect("a prefix"), mac: Some(VIRTUAL) };
        let out = scene.run(|n, now, out| n.add_address(0, address, now, out));
        assert_eq!(said(&out), [Effect::AddressUsable { port: 0, ip: address.net.addr() }]);
        assert_eq!(frames(&out)[0][6..12], VIRTUAL);
    }
    let mut answer = arp(REPLY, PEER, (VIRTUAL, "192.0.2.100"), (PEER, "192.0.2.9"));
    answer[6..12].copy_from_slice(&US);
    assert_eq!(frames(&scene.hear(request((PEER, "192.0.2.9"), "192.0.2.100"))), [answer]);
    // A question to the virtual MAC is heard; we ask with our own.
    assert_eq!(frames(&scene.hear(arp(REQUEST, VIRTUAL, (PEER, "192.0.2.9"), ([0; 6], "192.0.2.100")))).len(), 1);
    assert_eq!(frames(&scene.want("192.0.2.8")), [request((US, "192.0.2.1"), "192.0.2.8")]);
    let out = scene.hear(ns((PEER, "fe80::9"), "2001:db8::100"));
    let frame = frames(&out)[0];
    assert_eq!((&frame[80..86], wire::Neighbor::parse(&frame[54..]).map(|na| na.flags())), (&VIRTUAL[..], Some(0xe0)));
}

#[test]
fn nd_resolves_and_answers() {
    let mut scene = Scene::quick();
    let out = scene.want("2001:db8::9");
    // From our link-local address, to the solicited-node group of the target.
    assert_eq!(frames(&out), [ns((US, "fe80::ff:fe00:10"), "2001:db8::9")]);
    let peer = (PEER, "2001:db8::9");
    assert_eq!(scene.hear(na(peer, 0x60)), [resolved("2001:db8::9", PEER)]);
    assert_eq!(scene.state("2001:db8::9"), Some((State::Reachable, Some(PEER))));
    // Without the override flag another MAC only casts doubt (RFC 4861 section 7.2.5).
    let mut other = na((OTHER, "2001:db8::9"), 0x40);
    assert_eq!(scene.hear(other), []);
    assert_eq!(scene.state("2001:db8::9"), Some((State::Stale, Some(PEER))));
    other = na((OTHER, "2001:db8::9"), 0x20);
    assert_eq!(scene.hear(other), [resolved("2001:db8::9", OTHER)]);
    // It is a router now.
    let told = Effect::Resolved { port: 0, ip: addr("2001:db8::9"), mac: OTHER, is_router: true };
    assert_eq!(scene.hear(na((OTHER, "2001:db8::9"), 0xe0)), [told]);
    scene.used = true;
    let out = scene.pass(60 * SECOND);
    let mut question =
        ndp(135, (US, "fe80::ff:fe00:10"), (OTHER, "2001:db8::9"), &target(0, "2001:db8::9"), &option(1, US));
    assert_eq!(frames(&out), [&question[..]; 3]);
    assert_eq!(said(&out), [gone("2001:db8::9")]);

    // Asked by a link-local neighbor, by all, and by nobody (RFC 4861 section 7.2.4).
    let out = scene.hear(ns((PEER, "fe80::9"), "2001:db8::1"));
    let answer = ndp(136, (US, "2001:db8::1"), (PEER, "fe80::9"), &target(0xe0, "2001:db8::1"), &option(2, US));
    assert_eq!(out, [Effect::Send { port: 0, frame: answer.clone() }]);
    assert_eq!(scene.state("fe80::9"), Some((State::Stale, Some(PEER))));
    // A unicast question without an option is answered where it came from.
    question = ndp(135, (PEER, "fe80::9"), (US, "2001:db8::1"), &target(0, "2001:db8::1"), &[]);
    assert_eq!(scene.hear(question), [Effect::Send { port: 0, frame: answer }]);
    let group = solicited_node(v6("2001:db8::1")).to_string();
    let probe = ndp(135, (PEER, "::"), (group_mac(v6(&group)), &group), &target(0, "2001:db8::1"), &[]);
    let all = ALL_NODES.to_string();
    let answer =
        ndp(136, (US, "2001:db8::1"), (group_mac(ALL_NODES), &all), &target(0xa0, "2001:db8::1"), &option(2, US));
    assert_eq!(scene.hear(probe), [Effect::Send { port: 0, frame: answer }]);
}

#[test]
fn nd_that_is_not_believed() {
    let group = solicited_node(v6("2001:db8::1")).to_string();
    let to_group = (group_mac(v6(&group)), group.as_str());
    let peer = (PEER, "fe80::9");
    let asks = |from, to, options: &[u8]| ndp(135, from, to, &target(0, "2001:db8::1"), options);
    let good = asks(peer, to_group, &option(1, PEER));
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        frame
    };
    let mut code = good.clone();
    (code[55], code[57]) = (1, code[57].wrapping_sub(1));
    let ignored = [
        ("hop limit", with(21, 254)),
        ("checksum", with(57, good[57] ^ 1)),
        ("code", code),
        ("version", with(14, 0x40)),
        ("payload length", with(19, 33)),
        ("fragment", with(20, 44)),
        ("cut", good[..85].to_vec()),
        ("group target", ndp(135, peer, to_group, &target(0, "ff02::1"), &[])),
        ("empty option", asks(peer, to_group, &[1, 0, 0, 0, 0, 0, 0, 0])),
        ("long option", asks(peer, to_group, &[1, 2, 2, 0, 0, 0, 0, 9])),
        ("two units of MAC", asks(peer, to_group, &[&[1, 2][..], &[2; 14]].concat())),
        ("half a message", ndp(135, peer, to_group, &target(0, "2001:db8::1")[..8], &[])),
        ("probe with an option", asks((PEER, "::"), to_group, &option(1, PEER))),
        ("probe to one", asks((PEER, "::"), (US, "2001:db8::1"), &[])),
        ("group MAC", asks(peer, to_group, &option(1, [0x33; 6]))),
        ("our MAC", asks(peer, to_group, &option(1, US))),
        ("source off the link", asks((PEER, "2001:db8:1::9"), to_group, &option(1, PEER))),
        ("group source", asks((PEER, "ff02::9"), to_group, &option(1, PEER))),
        ("for another", asks(peer, (US, "2001:db8::77"), &option(1, PEER))),
        ("another's address", ndp(135, peer, to_group, &target(0, "2001:db8::77"), &option(1, PEER))),
        ("other station", asks(peer, (OTHER, "2001:db8::1"), &option(1, PEER))),
        ("unasked answer", na(peer, 0x60)),
        ("redirect", ndp(137, peer, (US, "2001:db8::1"), &[0; 36], &[])),
        ("router advertisement", ndp(134, peer, (group_mac(ALL_NODES), "ff02::1"), &[0; 12], &option(1, PEER))),
    ];
    let mut scene = Scene::quick();
    for (what, frame) in ignored {
        assert_eq!(scene.hear(frame), [], "{what}");
        assert_eq!(scene.neighbors.iter().count(), 0, "{what}");
    }
    assert_eq!((scene.hear(good.clone()).len(), scene.neighbors.iter().count()), (1, 1));
    // Extension headers in front are walked over, a fragment header is not (RFC 6980).
    for (kind, answers) in [(0, 1), (60, 1), (44, 0), (43, 0)] {
        let mut frame = good.clone();
        frame.splice(54..54, [58, 0, 1, 4, 0, 0, 0, 0]);
        (frame[20], frame[19]) = (kind, frame[19] + 8);
        assert_eq!(frames(&scene.hear(frame)).len(), answers, "{kind}");
    }
    // Answers while it is asked for: a solicited one to a group, and one without the MAC, say nothing.
    scene.want("2001:db8::9");
    let to_all = (group_mac(ALL_NODES), "ff02::1");
    let from = (PEER, "2001:db8::9");
    assert_eq!(scene.hear(ndp(136, from, to_all, &target(0x60, "2001:db8::9"), &option(2, PEER))), []);
    assert_eq!(scene.hear(ndp(136, from, (US, "2001:db8::1"), &target(0x60, "2001:db8::9"), &[])), []);
    assert_eq!(scene.state("2001:db8::9"), Some((State::Incomplete, None)));
    let out = scene.hear(ndp(136, from, to_all, &target(0x20, "2001:db8::9"), &option(2, PEER)));
    assert_eq!(out, [resolved("2001:db8::9", PEER)]);
    assert_eq!(scene.state("2001:db8::9"), Some((State::Stale, Some(PEER))));
}
