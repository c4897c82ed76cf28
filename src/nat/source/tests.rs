use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::super::destination::{fixed, wide};
use super::super::pool::owner;
use super::*;
use crate::stage::acl::Addresses as Prefixes;

const OUT: u8 = 1;
const WAN: [u8; 4] = [192, 0, 2, 2];

fn address(n: u32) -> [u8; 16] {
    wide(std::net::IpAddr::V4(n.into()))
}

fn subject(src: u32, sport: u16, dst: u32, dport: u16, proto: u8) -> Meta {
    let flags = flag::IPV4 | flag::PORTS | flag::L4;
    Meta { src: address(src), dst: address(dst), sport, dport, proto, flags, ..Meta::UNKNOWN }
}

fn pool(bits: u32, len: u8) -> Origin {
    Origin::Pool(Spans::of(&Prefixes { v4: vec![(u128::from(bits) << 96, len)], v6: vec![] }))
}

fn snat(slots: Vec<Slot>, worker: usize, workers: usize) -> Snat {
    let addresses = Addresses::new(2);
    addresses.set(OUT, Some(WAN), None);
    let sources = Arc::new(Sources { slots, addresses: Arc::new(addresses) });
    Snat::new(sources, worker, workers, Key::seeded(3), 4096)
}

fn independent(filtering: Filtering) -> Slot {
    Slot { mapping: Mapping::Independent, filtering, ..Slot::MASQUERADE }
}

#[test]
fn masquerade_keeps_the_port_or_draws_one_of_its_kind() {
    let mut one = snat(vec![Slot::MASQUERADE], 0, 1);
    for (sport, proto) in [(40_000, 6), (40_001, 17), (700, 17)] {
        let subject = subject(0x0a00_0005, sport, 0xc633_6407, 443, proto);
        let first = one.candidate(0, &subject, OUT, 0).expect("free");
        assert_eq!((first.src, first.sport, first.lease), (wide(WAN.into()), sport, Lease::NONE));
        let mut drawn = BTreeSet::new();
        for attempt in 1..Snat::ATTEMPTS {
            let sport_now = one.candidate(0, &subject, OUT, attempt).expect("more").sport;
            assert!(attempt >= 16 || (sport_now < 1024) == (sport < 1024), "RFC 4787 REQ-3a");
            assert!(sport_now >= 512 && (sport_now < 1024) <= (sport < 1024), "{sport_now}");
            assert!(attempt >= 24 || proto != 17 || sport_now & 1 == sport & 1, "{sport_now}");
            drawn.insert(sport_now);
        }
        assert!(drawn.len() > 20, "{drawn:?}");
        assert_eq!(one.candidate(0, &subject, OUT, Snat::ATTEMPTS), Err(Refusal::Exhausted));
        assert_eq!(one.candidate(0, &subject, 0, 0), Err(Refusal::NoAddress));
    }
    // A port below 512 is not kept, it may be a server's.
    let low = one.candidate(0, &subject(1, 123, 2, 123, 17), OUT, 0).expect("free").sport;
    assert!(LOW.contains(&low));
    let v6 = Meta { flags: flag::IPV6 | flag::PORTS, ..subject(1, 2000, 2, 3, 6) };
    assert_eq!(one.candidate(0, &v6, OUT, 0), Err(Refusal::NoAddress));
}

#[test]
fn what_has_no_ports_changes_its_address_alone() {
    let mut snat = snat(vec![Slot::MASQUERADE, Slot { origin: pool(0xc000_0210, 30), ..Slot::MASQUERADE }], 0, 1);
    let gre = Meta { flags: flag::IPV4, sport: 0, dport: 0, ..subject(0x0a00_0005, 0, 0xc633_6407, 0, 47) };
    assert_eq!(snat.candidate(0, &gre, OUT, 0).map(|to| (to.src, to.sport)), Ok((wide(WAN.into()), 0)));
    assert_eq!(snat.candidate(0, &gre, OUT, 1), Err(Refusal::Exhausted));
    let tried: BTreeSet<_> =
        (0..4).map(|attempt| snat.candidate(1, &gre, OUT, attempt).expect("one of four").src).collect();
    assert_eq!(tried, (0..4).map(|n| address(0xc000_0210 + n)).collect());
    assert_eq!(snat.candidate(1, &gre, OUT, 4), Err(Refusal::Exhausted));
}

#[test]
fn an_echo_has_any_identifier_of_the_worker() {
    let mut second = snat(vec![Slot { ports: Some(5000..=5999), ..Slot::MASQUERADE }], 1, 2);
    for id in [0, 3, 77, 65_535] {
        let mut echo = subject(0x0a00_0005, id, 0xc633_6407, id, 1);
        echo.flags |= flag::ECHO;
        let to = second.candidate(0, &echo, OUT, 0).expect("free").sport;
        assert_eq!(owner(to, 2), 1);
        assert!(to == id || owner(id, 2) != 1);
    }
}

#[test]
fn a_source_keeps_its_address_as_long_as_it_can() {
    let slots = || vec![Slot { origin: pool(0xc633_6400, 24), ..Slot::MASQUERADE }];
    let (mut a, mut b) = (snat(slots(), 0, 2), snat(slots(), 1, 2));
    let mut used = BTreeSet::new();
    for host in 0..64 {
        let subject = |dport| subject(0x0a00_0000 + host, 40_000 + dport, 0x0808_0808, dport, 6);
        let src = a.candidate(0, &subject(1), OUT, 0).expect("free").src;
        assert!((0..16).all(|attempt| a.candidate(0, &subject(2), OUT, attempt).expect("free").src == src));
        assert_eq!(b.candidate(0, &subject(3), OUT, 0).expect("free").src, src, "whichever the worker");
        assert_ne!(a.candidate(0, &subject(2), OUT, 16).expect("free").src, src, "rather another than none");
        used.insert(src);
    }
    assert!(used.len() > 32, "hosts spread over the pool: {}", used.len());
}

#[test]
fn one_to_one_has_one_candidate() {
    let map = fixed("10.0.0.0/28".parse().expect("net"), "203.0.113.0/28".parse().expect("net")).expect("alike");
    let mut snat = snat(vec![Slot { origin: Origin::Fixed(map), ..Slot::MASQUERADE }], 0, 4);
    let inside = subject(0x0a00_0005, 22, 0x0808_0808, 1, 6);
    let to = snat.candidate(0, &inside, OUT, 0).expect("its own");
    assert_eq!((to.src, to.sport), (address(0xcb00_7105), 22));
    assert_eq!(snat.candidate(0, &inside, OUT, 1), Err(Refusal::Exhausted));
}

#[test]
fn a_mapping_is_shared_by_flows_and_ends_with_them() {
    let mut snat = snat(vec![independent(Filtering::Dependent), independent(Filtering::Independent)], 0, 1);
    let mut leases = snat.leases(8).expect("there are mappings");
    for slot in [0, 1] {
        let host = |dst| subject(0x0a00_0005, 5000, dst, 53, 17);
        let first = snat.candidate(slot, &host(1), OUT, 0).expect("free");
        leases.keep(0, first.lease);
        let second = snat.candidate(slot, &host(2), OUT, 0).expect("the same");
        assert_eq!(first, second, "RFC 4787 REQ-1");
        leases.keep(1, second.lease);
        // Another host with the same port has to have another.
        let other = snat.candidate(slot, &subject(0x0a00_0006, 5000, 1, 53, 17), OUT, 0).expect("free");
        assert!(other.sport != first.sport && other.sport & 1 == first.sport & 1);
        // A tuple that others have: the mapping cannot change while it is in use.
        assert_eq!(snat.candidate(slot, &host(3), OUT, 1), Err(Refusal::Exhausted));
        let reply = Meta { src: address(9), dst: first.src, sport: 9, dport: first.sport, ..host(1) };
        let inward = snat.inward(&reply).map(|to| (to.dst, to.dport));
        assert_eq!(inward, (slot == 1).then_some((address(0x0a00_0005), 5000)));
        leases.end(0);
        assert_eq!(snat.candidate(slot, &host(2), OUT, 0), Ok(first));
        leases.end(1);
        assert_eq!(snat.inward(&reply), None, "nobody uses it");
        assert_ne!(snat.candidate(slot, &host(2), OUT, 1).expect("another").sport, first.sport);
        (0..100).for_each(|_| snat.housekeep());
    }
}

#[test]
fn a_lost_address_is_not_given_to_new_flows() {
    let addresses = Arc::new(Addresses::new(2));
    addresses.set(OUT, Some(WAN), None);
    let sources = Arc::new(Sources { slots: vec![independent(Filtering::Dependent)], addresses: addresses.clone() });
    let mut snat = Snat::new(sources, 0, 1, Key::seeded(1), 64);
    let mut leases = snat.leases(4).expect("mappings");
    let host = |dst| subject(0x0a00_0005, 5000, dst, 53, 17);
    leases.keep(0, snat.candidate(0, &host(1), OUT, 0).expect("free").lease);
    addresses.set(OUT, Some([198, 51, 100, 1]), None);
    let now = snat.candidate(0, &host(2), OUT, 0).expect("free");
    assert_eq!(now.src, wide([198, 51, 100, 1].into()));
    leases.keep(1, now.lease);
    assert_eq!(snat.candidate(0, &host(3), OUT, 0), Ok(now));
}

#[test]
fn restored_flows_hold_their_mappings() {
    let mut snat = snat(vec![independent(Filtering::Independent), Slot::MASQUERADE], 0, 1);
    let mut leases = snat.leases(4).expect("mappings");
    let end = |n, port| End { address: address(n), port, proto: 17, v6: false };
    let outside = End { address: wide(WAN.into()), ..end(0, 7000) };
    leases.keep(0, snat.restore(0, end(5, 5000), outside));
    assert_eq!(snat.candidate(0, &subject(5, 5000, 9, 9, 17), OUT, 0).map(|to| to.sport), Ok(7000));
    assert_eq!(snat.restore(0, end(6, 5000), outside), Lease::NONE, "another has it");
    assert_eq!(snat.restore(1, end(6, 5000), end(1, 1)), Lease::NONE, "its rule maps nothing");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn no_two_flows_share_a_tuple_and_no_two_hosts_a_mapping(
        flows in prop::collection::vec((0u32..20, 0u16..8, 0u32..3, any::<bool>(), any::<bool>()), 1..200), workers in 1usize..5,
    ) {
        // Sixteen ports for twenty hosts: they run out.
        let narrow = |mapping| Slot { ports: Some(3000..=3015), mapping, ..Slot::MASQUERADE };
        let slots = || vec![narrow(Mapping::Dependent), Slot { ports: Some(4000..=4015), ..narrow(Mapping::Independent) }];
        let mut all: Vec<_> = (0..workers).map(|worker| snat(slots(), worker, workers)).collect();
        let mut leases: Vec<_> = all.iter().map(|snat| snat.leases(256).expect("mappings")).collect();
        // The flow tables: by reply tuple the flow's source.
        type Reply = ([u8; 16], u16, u32, u8);
        let mut table: HashMap<Reply, (u32, u16)> = HashMap::new();
        let mut mapped: HashMap<(usize, u16, u8), (u32, u16)> = HashMap::new();
        for (at, (host, sport, dst, slot, udp)) in flows.into_iter().enumerate() {
            let (slot, proto, sport) = (u16::from(slot), if udp { 17 } else { 6 }, 3000 + sport);
            let worker = if slot == 1 { host as usize % workers } else { at % workers };
            let subject = subject(host, sport, 0x0808_0000 + dst, 53, proto);
            if table.iter().any(|(key, from)| *from == (host, sport) && key.2 == dst && key.3 == proto) {
                continue;
            }
            for attempt in 0..=Snat::ATTEMPTS {
                let Ok(to) = all[worker].candidate(slot, &subject, OUT, attempt) else { break };
                prop_assert_eq!(owner(to.sport, workers), worker);
                prop_assert!((3000..3016).contains(&to.sport) && slot == 0 || (4000..4016).contains(&to.sport));
                let key = (to.src, to.sport, dst, proto);
                if table.contains_key(&key) {
                    continue;
                }
                table.insert(key, (host, sport));
                leases[worker].keep(at as u32, to.lease);
                if slot == 1 {
                    let end = mapped.entry((worker, to.sport, proto)).or_insert((host, sport));
                    prop_assert_eq!(*end, (host, sport));
                }
                break;
            }
        }
    }
}
