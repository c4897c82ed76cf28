use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::super::destination::{Change, Rule, fixed, wide};
use super::super::mapping::Lease;
use super::super::rules::Match;
use super::super::source::{Filtering, Mapping, Origin, Slot, Snat, Sources};
use super::*;
use crate::packet::decode::{Depth, decode};
use crate::packet::frame::Heap;
use crate::stage::acl::Addresses as Prefixes;
use crate::testkit::packets::{Packet, batch, give_back};

const KEY: Key = Key([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89]);
const LAN: u8 = 0;
const WAN: u8 = 1;
const LAN_ADDRESS: [u8; 4] = [10, 0, 0, 1];
const WAN_ADDRESS: [u8; 4] = [192, 0, 2, 2];
const SERVER: [u8; 4] = [10, 0, 0, 80];
/// One to one with 10.0.0.16/28.
const OUTSIDE: [u8; 4] = [203, 0, 113, 0];
const POOL: [u8; 4] = [198, 51, 100, 16];
/// Their sources are mapped endpoint-independently.
const INDEPENDENT: [u8; 4] = [10, 9, 0, 0];

fn spans(list: &[([u8; 4], u8)]) -> Spans {
    let v4 = list.iter().map(|(address, len)| (u128::from(u32::from_be_bytes(*address)) << 96, *len)).collect();
    Spans::of(&Prefixes { v4, v6: vec![] })
}

/// A web server behind the first address of `wan`, a pool, masquerade on all ports, hosts with addresses of their own.
fn steering() -> (Steering, Arc<Sources>) {
    let addresses = Arc::new(Addresses::new(2));
    addresses.set(LAN, Some(LAN_ADDRESS), None);
    addresses.set(WAN, Some(WAN_ADDRESS), None);
    let all = Ports::all(2);
    let asks = |to, services| Match { from: all, to: all, source: None, destination: Some(to), services };
    let web = vec![crate::config::names::Service::parse("tcp/443").expect("a service")];
    let inward = fixed("203.0.113.0/28".parse().expect("net"), "10.0.0.16/28".parse().expect("net")).expect("alike");
    let rules = vec![
        Rule {
            asks: asks(spans(&[(WAN_ADDRESS, 32)]), web),
            own: None,
            hairpin: true,
            change: Change::Spread([vec![wide(Ipv4Addr::from(SERVER).into())], vec![]], Some(8443..=8443)),
        },
        Rule { asks: asks(spans(&[(OUTSIDE, 28)]), vec![]), own: None, hairpin: true, change: Change::Fixed(inward) },
    ];
    let pools = spans(&[(POOL, 30)]);
    let slots = vec![
        Slot::MASQUERADE,
        Slot { origin: Origin::Pool(pools.clone()), ..Slot::MASQUERADE },
        Slot { mapping: Mapping::Independent, filtering: Filtering::Independent, ..Slot::MASQUERADE },
        Slot { origin: Origin::Fixed(inward.reversed()), ..Slot::MASQUERADE },
    ];
    let steering = Steering {
        destinations: Arc::new(Destinations { rules, addresses: addresses.clone() }),
        fixed: vec![inward],
        pools,
        masquerade: all,
        independent: spans(&[(INDEPENDENT, 16)]),
        addresses: addresses.clone(),
        shares: true,
    };
    (steering, Arc::new(Sources { slots, addresses }))
}

fn owner(steering: &Steering, meta: &Meta, workers: usize) -> usize {
    steering.owner(meta, steer::hash(meta, KEY), KEY, workers)
}

fn packet(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16, port: u8, proto: u8) -> Meta {
    let mut meta = Meta { sport, dport, proto, port, flags: flag::IPV4 | flag::PORTS | flag::L4, ..Meta::UNKNOWN };
    meta.src = wide(Ipv4Addr::from(src).into());
    meta.dst = wide(Ipv4Addr::from(dst).into());
    meta
}

/// What the first packet of a flow is sent as: its destination by the rules, its source by a slot, chosen by its owner.
fn sent(steering: &Steering, sources: &Arc<Sources>, first: &Meta, slot: Option<u16>, out: u8, workers: usize) -> Meta {
    let mut sent = first.clone();
    if let Some((dst, dport)) = steering.destinations.find(first).and_then(|found| found.to) {
        (sent.dst, sent.dport) = (dst, dport);
    }
    if let Some(slot) = slot {
        let worker = owner(steering, first, workers);
        let mut snat = Snat::new(sources.clone(), worker, workers, KEY, 16);
        let to = snat.candidate(slot, &sent, out, 0).expect("free");
        assert!(slot == 2 || to.lease == Lease::NONE);
        (sent.src, sent.sport) = (to.src, to.sport);
    }
    sent
}

fn reply(sent: &Meta, port: u8) -> Meta {
    Meta { src: sent.dst, dst: sent.src, sport: sent.dport, dport: sent.sport, port, ..sent.clone() }
}

proptest! {
    #[test]
    fn both_directions_have_one_owner(host in 2u8..250, sport: u16, remote: [u8; 3], dport: u16, workers in 1usize..9, tcp: bool) {
        let (steering, sources) = steering();
        let (proto, remote) = (if tcp { 6 } else { 17 }, [8, remote[0], remote[1], remote[2]]);
        let (inside, mapped, own) = ([10, 0, 1, host], [10, 9, 0, host], [10, 0, 0, 16 + host % 16]);
        // From, to, the port it comes from, the slot of its source, the port it leaves by.
        let cases = [
            (packet(inside, sport, remote, dport, LAN, proto), Some(0), WAN),
            (packet(inside, sport, remote, dport, LAN, proto), Some(1), WAN),
            (packet(mapped, sport, remote, dport, LAN, proto), Some(2), WAN),
            (packet(own, sport, remote, dport, LAN, proto), Some(3), WAN),
            // Untranslated: routed, to a mapped host, of the box and to it.
            (packet(inside, sport, remote, dport, LAN, proto), None, WAN),
            (packet(remote, sport, mapped, dport, WAN, proto), None, LAN),
            (packet(mapped, sport, inside, dport, LAN, proto), None, LAN),
            (packet(WAN_ADDRESS, sport, remote, dport, crate::packet::SELF_PORT, proto), None, WAN),
            (packet(remote, sport, LAN_ADDRESS, dport, WAN, proto), None, crate::packet::SELF_PORT),
            (packet(mapped, sport, LAN_ADDRESS, dport, LAN, proto), None, crate::packet::SELF_PORT),
            // Destinations that change, with the source as it is, and from inside with another.
            (packet(remote, sport, WAN_ADDRESS, 443, WAN, 6), None, LAN),
            (packet(remote, sport, [203, 0, 113, host % 16], dport, WAN, proto), None, LAN),
            (packet(inside, sport, WAN_ADDRESS, 443, LAN, 6), Some(0), LAN),
            (packet(mapped, sport, WAN_ADDRESS, 443, LAN, 6), Some(0), LAN),
            (packet(inside, sport, [203, 0, 113, host % 16], dport, LAN, proto), Some(0), LAN),
        ];
        for (number, (first, slot, out)) in cases.into_iter().enumerate() {
            let sent = sent(&steering, &sources, &first, slot, out, workers);
            let (there, back) = (owner(&steering, &first, workers), owner(&steering, &reply(&sent, out), workers));
            prop_assert!(there < workers);
            prop_assert_eq!(there, back, "case {} of {} workers: {:?} {:?}", number, workers, first, sent);
        }
    }
}

#[test]
fn what_has_no_ports_has_one_owner_and_tuples_spread() {
    let (steering, _) = steering();
    let mut esp = packet([10, 0, 1, 5], 0, [8, 8, 8, 8], 0, LAN, 50);
    esp.flags = flag::IPV4;
    let mut back = packet([8, 8, 8, 8], 0, WAN_ADDRESS, 0, WAN, 50);
    back.flags = flag::IPV4;
    assert_eq!(owner(&steering, &esp, 3), owner(&steering, &back, 3));
    let mut counts = [0; 4];
    for n in 0..400u16 {
        counts[owner(&steering, &packet([10, 0, 1, n as u8], 4000 + n, [8, 8, 8, 8], 443, LAN, 6), 4)] += 1;
    }
    assert!(counts.iter().all(|n| *n > 60), "{counts:?}");
}

#[test]
fn errors_follow_the_flow_they_are_about() {
    let (steering, _) = steering();
    let owner_of = |bytes: &[u8], port: u8| {
        let mut heap = Heap::new(1, 10_000);
        let mut batch = batch(&mut heap, [bytes]);
        decode(&mut batch, Depth::L4);
        batch.metas[0].port = port;
        let meta = batch.metas[0].clone();
        let owner = match meta.has(flag::ICMP_ERROR) {
            true => steering.owner_of_error(&meta, &batch.frames[0], KEY, 5).expect("it quotes a tuple"),
            false => owner(&steering, &meta, 5),
        };
        give_back(&mut heap, &mut batch);
        owner
    };
    for port in 0..50 {
        // A router far out about what we sent with our source; the reply to it comes in the same way.
        let sent = Packet::udp(&format!("192.0.2.2:{}", 40_000 + port), "8.8.8.8:53");
        let reply = Packet::udp("8.8.8.8:53", &format!("192.0.2.2:{}", 40_000 + port));
        let error = Packet::icmp_error("9.9.9.9", "192.0.2.2", 11, 0, &sent);
        assert_eq!(owner_of(&error.bytes(), WAN), owner_of(&reply.bytes(), WAN));
        // A client about an answer of the server, which it knows by our address.
        let client = format!("8.8.1.1:{}", 50_000 + port);
        let answer = Packet::tcp("192.0.2.2:443", &client);
        let error = Packet::icmp_error("8.8.1.1", "192.0.2.2", 3, 3, &answer);
        assert_eq!(owner_of(&error.bytes(), WAN), owner_of(&Packet::tcp(&client, "192.0.2.2:443").bytes(), WAN));
        // The server about what it got.
        let error = Packet::icmp_error("10.0.0.80", "8.8.1.1", 3, 3, &Packet::tcp(&client, "10.0.0.80:8443"));
        assert_eq!(owner_of(&error.bytes(), LAN), owner_of(&Packet::tcp(&client, "192.0.2.2:443").bytes(), WAN));
    }
}
