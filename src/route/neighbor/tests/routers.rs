//! Duplicate address detection, and router advertisements.

use super::*;
use crate::config::neighbor::AdvertisedPrefix;
use crate::config::source::{At, Place};
use crate::config::units::Within;

fn usable(ip: &str) -> Effect {
    Effect::AddressUsable { port: 0, ip: addr(ip) }
}

/// A solicitation for an address from nowhere (RFC 4862 section 5.4.2).
fn probe(mac: Mac, ip: &str) -> Vec<u8> {
    let group = solicited_node(v6(ip));
    ndp(135, (mac, "::"), (group_mac(group), &group.to_string()), &target(0, ip), &[])
}

#[test]
fn an_ipv6_address_is_probed_for_and_announced() {
    let (mut scene, out) =
        Scene::new(&Settings { arp_probes: Within(0), announcements: Within(1), ..Settings::default() });
    let tentative = |ip: &str| Effect::AddressTentative { port: 0, ip: addr(ip) };
    let begun = vec![usable("192.0.2.1"), tentative("2001:db8::1"), tentative("fe80::ff:fe00:10")];
    assert_eq!((frames(&out).len(), said(&out)), (1, begun));
    let start = scene.now;
    let out = scene.pass(SECOND);
    let mut probes = frames(&out);
    probes.sort_unstable();
    let mut expected = [probe(US, "2001:db8::1"), probe(US, "fe80::ff:fe00:10")];
    expected.sort_unstable();
    assert_eq!((probes, said(&out)), (expected.iter().map(|frame| &frame[..]).collect(), vec![]));
    // Tentative: questions for it get no answer, and nothing is asked from it.
    assert_eq!(scene.hear(ns((PEER, "fe80::9"), "2001:db8::1")), []);
    assert_eq!(scene.want("2001:db8::9"), []);
    let out = scene.pass(SECOND);
    assert!(scene.now - start <= 2 * SECOND);
    assert!(out.contains(&usable("2001:db8::1")) && out.contains(&usable("fe80::ff:fe00:10")), "{out:?}");
    let told =
        ndp(136, (US, "2001:db8::1"), (group_mac(ALL_NODES), "ff02::1"), &target(0xa0, "2001:db8::1"), &option(2, US));
    assert!(frames(&out).contains(&&told[..]));
}

#[test]
fn an_ipv6_address_in_use_elsewhere_is_not_taken() {
    let all = (group_mac(ALL_NODES), "ff02::1");
    let ip = addr("2001:db8::1");
    let claims = [
        probe(PEER, "2001:db8::1"),
        ndp(136, (PEER, "2001:db8::1"), all, &target(0x20, "2001:db8::1"), &option(2, PEER)),
    ];
    for claim in claims {
        let (mut scene, _) = Scene::new(&Settings { arp_probes: Within(0), ..Settings::default() });
        assert_eq!(scene.hear(probe(US, "2001:db8::1")), [], "our own that comes back");
        let out = scene.hear(claim.clone());
        assert_eq!(said(&out), [Effect::AddressConflict { port: 0, ip, mac: PEER, kept: false }]);
        assert_eq!(scene.hear(claim), []);
        assert!(!scene.pass(600 * SECOND).contains(&usable("2001:db8::1")));
        // Somebody has stepped in: the link was down, and is up again.
        scene.run(|n, now, out| n.link(0, false, now, out));
        scene.run(|n, now, out| n.link(0, true, now, out));
        assert!(scene.pass(2 * SECOND).contains(&usable("2001:db8::1")));
    }
    // In use, it is kept, and said so once in a while.
    let mut scene = Scene::quick();
    for _ in 0..2 {
        let claim = ndp(136, (PEER, "2001:db8::1"), all, &target(0x20, "2001:db8::1"), &option(2, PEER));
        let conflict = Effect::AddressConflict { port: 0, ip, mac: PEER, kept: true };
        assert_eq!(said(&scene.hear(claim.clone())), [conflict]);
        assert_eq!(scene.hear(claim), []);
        assert_eq!(scene.hear(ns((PEER, "2001:db8::1"), "fe80::ff:fe00:10")), []);
        scene.pass(10 * SECOND);
    }
}

fn advertised() -> RouterAdvertisements {
    let prefix =
        At { value: "2001:db8::/64".parse().expect("a prefix"), place: Place { file: "t".into(), line: 1, column: 1 } };
    let day = Duration::from_secs(86_400);
    RouterAdvertisements {
        interval: Duration::from_secs(600),
        lifetime: None,
        managed: false,
        other: true,
        hop_limit: 64,
        mtu: Some(Within(1480)),
        prefix: vec![AdvertisedPrefix { prefix, on_link: true, autonomous: true, valid: day * 30, preferred: day * 7 }],
        dns: vec![v6("2001:db8::53"), v6("2001:db8::54")],
    }
}

/// What scapy makes of the same.
const ADVERTISEMENT: &str = "33330000000102000000001086dd6000000000683afffe80000000000000000000fffe000010ff0200000000000000000000\
    0000000186007251404007080000000000000000010102000000001005010000000005c8030440c000278d0000093a800000000020010db800000000\
    0000000000000000190500000000070820010db800000000000000000000005320010db8000000000000000000000054";

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(char::is_ascii_hexdigit).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("two digits");
    digits.chunks(2).map(byte).collect()
}

fn router() -> Scene {
    let mut scene = Scene { neighbors: Neighbors::new(&quick(), 42), now: 1000 * SECOND, used: false };
    let wanted = Port { router_advertisements: Some(advertised()), ..port(&["2001:db8::1/64"]) };
    scene.run(|n, now, out| n.port(0, &wanted, now, out));
    assert_eq!(scene.run(|n, now, out| n.port(0, &wanted, now, out)), []);
    scene
}

#[test]
fn advertisements_in_intervals() {
    let mut scene = router();
    let mut times = vec![scene.now];
    while times.len() < 10 {
        for frame in frames(&scene.pass(SECOND)) {
            assert_eq!(frame, hex(ADVERTISEMENT));
            times.push(scene.now);
        }
    }
    let gaps: Vec<u64> = times.windows(2).map(|pair| (pair[1] - pair[0]) / SECOND).collect();
    assert!(gaps[0] <= 1 && gaps[1..4].iter().all(|gap| (15..=17).contains(gap)), "{gaps:?}");
    assert!(gaps[4..].iter().all(|gap| (199..=601).contains(gap)), "{gaps:?}");
    // The last one says that we are a router no longer.
    let out = scene.run(|n, now, out| n.stop(now, out));
    let message = wire::Router::parse(&frames(&out)[0][54..]).expect("an advertisement");
    assert_eq!((message.lifetime(), frames(&out).len()), (0, 1));
    assert_eq!(scene.pass(2000 * SECOND), []);
}

#[test]
fn solicitations_are_answered_together() {
    let mut scene = router();
    scene.pass(100 * SECOND);
    let to_routers = ([0x33, 0x33, 0, 0, 0, 2], "ff02::2");
    let asks = |from: (Mac, &str), options: &[u8]| ndp(133, from, to_routers, &[0; 4], options);
    // Asked three times, by one with an address and by one without.
    assert_eq!(scene.hear(asks((PEER, "fe80::9"), &option(1, PEER))), []);
    assert_eq!(scene.state("fe80::9"), Some((State::Stale, Some(PEER))));
    assert_eq!(scene.hear(asks((OTHER, "::"), &[])), []);
    assert_eq!(scene.hear(asks((OTHER, "::"), &[])), []);
    assert_eq!(frames(&scene.pass(SECOND / 2)).len(), 1);
    // Not again within three seconds.
    for _ in 0..24 {
        assert_eq!(scene.hear(asks((OTHER, "::"), &[])), []);
        assert_eq!(frames(&scene.pass(SECOND / 10 - MS)).len(), 0);
    }
    assert_eq!(frames(&scene.pass(SECOND + SECOND / 5)).len(), 1);
    // An invalid one (RFC 4861 section 6.1.1), and a port that does not advertise.
    assert_eq!(scene.hear(asks((OTHER, "::"), &option(1, OTHER))), []);
    assert_eq!(frames(&scene.pass(10 * SECOND)).len(), 0);
    scene.run(|n, now, out| n.port(0, &port(&["2001:db8::1/64"]), now, out));
    assert_eq!(scene.hear(asks((OTHER, "fe80::7"), &option(1, OTHER))), []);
    assert_eq!(frames(&scene.pass(2000 * SECOND)).len(), 0);
}
