//! Floods, and anything at all: tables stay within their limits, and what is told agrees with what is known.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn small() -> Settings {
    Settings { limit: Within(8), unresolved: Within(4), rate: Within(20), ..quick() }
}

fn known(scene: &Scene) -> usize {
    scene.neighbors.iter().filter(|row| row.mac.is_some() && row.state != State::Static).count()
}

fn mac(n: u16) -> Mac {
    let [a, b] = n.to_be_bytes();
    [2, 0, 0, 1, a, b]
}

#[test]
fn a_scan_displaces_only_itself() {
    let (mut scene, _) = Scene::new(&small());
    scene.want("192.0.2.9");
    let (mut sent, mut ended) = (0, 0);
    for n in 0..1000 {
        let ip = format!("2001:db8::1:{n:x}");
        let out = scene.want(&ip);
        sent += frames(&out).len();
        // Of those that had to go it is said that they failed.
        ended += said(&out).len();
        assert!(scene.neighbors.iter().filter(|row| row.ip.is_ipv6()).count() <= 4);
    }
    assert_eq!((sent, ended), (3, 2 * 996));
    // A tenth of a second later there are two more questions, and the newest four are still there.
    scene.pass(SECOND / 10);
    assert_eq!(frames(&scene.want("2001:db8::2:1")).len(), 1);
    assert!(scene.state("2001:db8::1:3e7").is_some() && scene.state("2001:db8::1:3e3").is_none());
    // One of them answers, and IPv4 was not touched.
    let resolved_now = scene.hear(na((PEER, "2001:db8::1:3e7"), 0x60));
    assert_eq!(resolved_now, [resolved("2001:db8::1:3e7", PEER)]);
    assert_eq!(scene.hear(reply((PEER, "192.0.2.9"))), [resolved("192.0.2.9", PEER)]);
    // In the end all of it is forgotten, silent ones too.
    for n in 0..100 {
        scene.want(&format!("2001:db8::3:{n:x}"));
        scene.pass(SECOND / 20);
    }
    let rows: Vec<Row> = scene.neighbors.iter().collect();
    assert!(rows.iter().filter(|row| row.state == State::Silent).count() <= 4 && rows.len() <= 4 + 4 + 2, "{rows:?}");
    scene.pass(700 * SECOND);
    assert_eq!((scene.neighbors.iter().count(), scene.neighbors.next_tick()), (0, None));
}

#[test]
fn a_flood_of_questions_displaces_nobody() {
    let (mut scene, _) = Scene::new(&small());
    scene.want("192.0.2.9");
    scene.hear(reply((PEER, "192.0.2.9")));
    scene.want("2001:db8::9");
    scene.hear(na((PEER, "2001:db8::9"), 0x60));
    for n in 10..250u16 {
        let ip = format!("192.0.2.{n}");
        assert_eq!(frames(&scene.hear(request((mac(n), &ip), "192.0.2.1"))).len(), 1, "answered all the same");
        scene.hear(request((mac(n), &ip), &ip));
        scene.hear(reply((mac(n), &ip)));
        let ip = format!("2001:db8::{n:x}");
        assert_eq!(frames(&scene.hear(ns((mac(n), &ip), "2001:db8::1"))).len(), 1);
        scene.hear(na((mac(n), &ip), 0x60));
        scene.hear(na((mac(n), &ip), 0x20));
    }
    assert_eq!(known(&scene), 16);
    assert_eq!(scene.state("192.0.2.9"), Some((State::Reachable, Some(PEER))));
    assert_eq!(scene.state("2001:db8::9"), Some((State::Reachable, Some(PEER))));
    // Whom we ask for gets in the place of one that nobody uses.
    scene.want("192.0.2.251");
    let out = scene.hear(reply((OTHER, "192.0.2.251")));
    assert_eq!(out, [resolved("192.0.2.251", OTHER)]);
    assert_eq!(scene.state("192.0.2.10"), None);
    // When all are in use, nobody else gets in, which is said once.
    let mut notes = 0;
    for n in 100..150u16 {
        let ip = format!("192.0.2.{n}");
        scene.want(&ip);
        let out = scene.hear(reply((mac(n), &ip)));
        notes +=
            out.iter().filter(|effect| matches!(effect, Effect::Note(note) if note.contains("neighbor.limit"))).count();
        assert!(out.contains(&resolved(&ip, mac(n))) != out.contains(&failed(&ip)), "{out:?}");
        scene.pass(SECOND / 100);
    }
    assert_eq!((notes, scene.state("192.0.2.9").is_some(), known(&scene)), (1, true, 16));
}

/// What an observer of the effects knows: MACs, and who is silent.
#[derive(Default, PartialEq, Debug)]
struct Model {
    macs: HashMap<IpAddr, Mac>,
    silent: HashSet<IpAddr>,
}

impl Model {
    fn observe(&mut self, out: &[Effect]) {
        for effect in out {
            match effect {
                Effect::Resolved { ip, mac, .. } => {
                    self.silent.remove(ip);
                    self.macs.insert(*ip, *mac);
                }
                Effect::Failed { ip, .. } => {
                    self.macs.remove(ip);
                    self.silent.insert(*ip);
                }
                Effect::Gone { ip, .. } => {
                    self.macs.remove(ip);
                    self.silent.remove(ip);
                }
                _ => {}
            }
        }
    }

    fn of(scene: &Scene) -> Model {
        let mut model = Model::default();
        for row in scene.neighbors.iter() {
            model.macs.extend(row.mac.filter(|_| row.is_wanted).map(|mac| (row.ip, mac)));
            model.silent.extend((row.state == State::Silent).then_some(row.ip));
        }
        model
    }
}

#[derive(Clone, Debug)]
enum Step {
    Hear(Vec<u8>),
    Want(IpAddr),
    Give(IpAddr, bool),
    Link(bool),
    Address(bool),
    Pass(u64, bool),
}

/// A few stations only, so that they meet.
fn station() -> impl Strategy<Value = (Mac, u8)> {
    (
        prop_oneof![Just(PEER), Just(OTHER), Just(US), Just(ALL), any::<u16>().prop_map(mac)],
        prop_oneof![0..24u8, Just(255)],
    )
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..24u8).prop_map(|n| IpAddr::from([192, 0, 2, n])),
        (0..24u16).prop_map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n])),
        any::<[u8; 4]>().prop_map(IpAddr::from),
    ]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let sane = (station(), station(), any::<u8>(), 0..8u8)
        .prop_map(|((mac, n), (to, m), flags, kind)| {
            let (v4, target_v4) = (format!("192.0.2.{n}"), format!("192.0.2.{m}"));
            let (v6, target_v6) = (format!("2001:db8::{n:x}"), format!("2001:db8::{m:x}"));
            match kind {
                0 => request((mac, &v4), &target_v4),
                1 => reply((mac, &v4)),
                2 => arp(REPLY, ALL, (mac, &v4), (to, &v4)),
                3 => request((mac, "0.0.0.0"), &target_v4),
                4 => ns((mac, &v6), &target_v6),
                5 => na((mac, &v6), flags),
                6 => ns((mac, "::"), &target_v6),
                _ => ndp(133, (mac, &v6), ([0x33, 0x33, 0, 0, 0, 2], "ff02::2"), &[0; 4], &option(1, mac)),
            }
        })
        .boxed();
    let bent = (sane.clone(), any::<prop::sample::Index>(), any::<u8>(), any::<prop::sample::Index>()).prop_map(
        |(mut frame, at, byte, end)| {
            let at = at.index(frame.len());
            frame[at] = byte;
            frame.truncate(frame.len().min(end.index(4 * frame.len())));
            frame
        },
    );
    prop_oneof![4 => sane, 1 => bent, 1 => prop::collection::vec(any::<u8>(), 0..120)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => message().prop_map(Step::Hear),
        6 => ip().prop_map(Step::Want),
        1 => (ip(), any::<bool>()).prop_map(|(ip, is_given)| Step::Give(ip, is_given)),
        1 => any::<bool>().prop_map(Step::Link),
        1 => any::<bool>().prop_map(Step::Address),
        4 => (prop_oneof![0..SECOND, 0..60 * SECOND], any::<bool>()).prop_map(|(time, used)| Step::Pass(time, used)),
    ]
}

proptest! {
    #[test]
    fn anything_goes_and_effects_tell_all(steps in prop::collection::vec(step(), 1..120), seed: u64, probes in 0..3u64) {
        let settings = Settings { arp_probes: Within(probes), dad_probes: Within(probes), announcements: Within(1), ..small() };
        let mut scene = Scene { neighbors: Neighbors::new(&settings, seed), now: 0, used: false };
        let mut model = Model::default();
        scene.run(|n, now, out| n.port(0, &port(&["192.0.2.1/24", "2001:db8::1/64"]), now, out));
        let extra: IpNet = "198.51.100.1/24".parse().expect("a prefix");
        for step in steps {
            let out = match step.clone() {
                Step::Hear(frame) => scene.hear(frame),
                Step::Want(ip) => scene.run(|n, now, out| n.want(0, ip, now, out)),
                Step::Give(ip, true) => scene.run(|n, now, out| n.add_static(0, ip, [6; 6], now, out)),
                Step::Give(ip, false) => scene.run(|n, now, out| n.remove_static(0, ip, now, out)),
                Step::Link(up) => scene.run(|n, now, out| n.link(0, up, now, out)),
                Step::Address(true) => scene.run(|n, now, out| n.add_address(0, extra.into(), now, out)),
                Step::Address(false) => scene.run(|n, now, out| n.remove_address(0, extra.addr(), now, out)),
                Step::Pass(time, used) => {
                    scene.used = used;
                    scene.pass(time)
                }
            };
            model.observe(&out);
            prop_assert_eq!(&model, &Model::of(&scene), "after {:?}: {:?}", step, out);
            for is_ipv6 in [false, true] {
                let count = |which: fn(&Row) -> bool| scene.neighbors.iter().filter(|r| r.ip.is_ipv6() == is_ipv6 && which(r)).count();
                prop_assert!(count(|row| row.state == State::Incomplete) <= 4);
                prop_assert!(count(|row| row.state == State::Silent) <= 4);
                prop_assert!(count(|row| row.mac.is_some() && row.state != State::Static) <= 8);
            }
            for row in scene.neighbors.iter().filter_map(|row| row.mac) {
                prop_assert!(row[0] & 1 == 0 && row != [0; 6] && row != US);
            }
            prop_assert!(scene.neighbors.next_tick().is_none_or(|due| due >= scene.now));
        }
    }

    #[test]
    fn whatever_is_sent_is_understood(n in 2..250u8) {
        // Our own questions and answers pass our own checks, and etherparse's.
        let mut scene = Scene::quick();
        let ip = format!("2001:db8::{n:x}");
        let question = scene.want(&ip);
        let frame = frames(&question)[0];
        let heard = super::super::nd::parse(&frame[14..]).expect("valid");
        prop_assert_eq!(heard.mac, Some(US));
        let packet = etherparse::PacketHeaders::from_ethernet_slice(frame).expect("valid");
        let (Some(etherparse::NetHeaders::Ipv6(header, _)), Some(etherparse::TransportHeader::Icmpv6(icmp))) =
            (packet.net, packet.transport) else { panic!("no ICMPv6") };
        let sum = icmp.icmp_type.calc_checksum(header.source, header.destination, packet.payload.slice()).expect("short");
        prop_assert_eq!(sum, icmp.checksum);
    }
}
