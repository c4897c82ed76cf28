//! The RIB against a twin that knows nothing but the facts, and works everything out anew after each of many random events.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::tests::{MapFib, ends, gateway, ip, net, rib_of, settled};
use super::*;
use crate::route::{Gateway, Target};

const PORTS: u8 = 3;

/// The facts.
#[derive(Default)]
struct Twin {
    up: [bool; PORTS as usize],
    addresses: BTreeSet<(u8, IpNet)>,
    routes: BTreeMap<(IpNet, Source, u32), Target>,
    neighbors: BTreeMap<(u8, IpAddr), NeighborState>,
}

#[derive(Clone, Debug)]
enum Lead {
    To(Target),
    Local(u8),
    Broadcast(u8),
    Host(u8, IpAddr),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    At(u8, IpAddr),
    Other(String),
}

type Ends = Vec<(End, f64)>;

impl Twin {
    fn up(&self, port: u8) -> bool {
        self.up[usize::from(port)]
    }

    /// Every route there is that matches, the first to be tried first: prefix, if it counts for gateways, and what it says.
    fn matching(&self, to: IpAddr) -> Vec<(IpNet, bool, Lead)> {
        let mut all: Vec<(IpNet, u8, u32, Lead)> = Vec::new();
        for (port, address) in &self.addresses {
            let (port, own) = (*port, IpNet::from(address.addr()));
            all.push((own, 0, port.into(), Lead::Local(port)));
            if matches!(address, IpNet::V6(address) if address.addr().is_unicast_link_local()) {
                continue;
            }
            let is_v4 = address.addr().is_ipv4();
            let left = address.max_prefix_len() - address.prefix_len();
            if !is_v4 && address.addr() != address.network() && left >= 2 {
                all.push((IpNet::from(address.network()), 0, port.into(), Lead::Local(port)));
            }
            if is_v4 && left >= 2 {
                for special in [address.network(), address.broadcast()] {
                    all.push((IpNet::from(special), 0, 1000 + u32::from(port), Lead::Broadcast(port)));
                }
            }
            if left > 0 {
                let device = Target::Via(vec![Gateway { via: None, port: Some(port), weight: 1 }]);
                all.push((address.trunc(), 0, 2000 + u32::from(port), Lead::To(device)));
            }
        }
        for ((to, source, metric), target) in &self.routes {
            all.push((*to, *source as u8 + 1, *metric, Lead::To(target.clone())));
        }
        for (port, ip) in self.neighbors.keys() {
            all.push((IpNet::from(*ip), 9, (*port).into(), Lead::Host(*port, *ip)));
        }
        all.retain(|(net, ..)| net.contains(&to));
        all.sort_by_key(|(net, rank, metric, _)| (std::cmp::Reverse(net.prefix_len()), *rank, *metric));
        all.into_iter().map(|(net, rank, _, lead)| (net, rank < 9, lead)).collect()
    }

    /// Where packets to an address end.
    fn decide(&self, to: IpAddr) -> (Option<IpNet>, Ends) {
        for (net, _, lead) in self.matching(to) {
            let ends = match lead {
                Lead::Local(port) => vec![(End::Other(format!("Local@{port}")), 1.0)],
                Lead::Broadcast(port) if self.up(port) => vec![(End::Other(format!("Broadcast@{port}")), 1.0)],
                Lead::Broadcast(_) => Vec::new(),
                Lead::Host(port, ip) => {
                    let on_link = self.search(ip, &mut Vec::new()).iter().any(|(end, _)| *end == End::At(port, ip));
                    if on_link { vec![(End::At(port, ip), 1.0)] } else { Vec::new() }
                }
                Lead::To(Target::Via(gateways)) => self.branch(None, &gateways, &mut Vec::new()),
                Lead::To(drop) => vec![(End::Other(format!("{drop:?}")), 1.0)],
            };
            if !ends.is_empty() {
                return (Some(net), ends);
            }
        }
        (None, vec![(End::Other("None".into()), 1.0)])
    }

    fn search(&self, to: IpAddr, trail: &mut Vec<IpNet>) -> Ends {
        if trail.len() == 8 || matches!(to, IpAddr::V6(to) if to.is_unicast_link_local()) {
            return Vec::new();
        }
        for (net, counts, lead) in self.matching(to) {
            if !counts || trail.contains(&net) {
                continue;
            }
            let ends = match lead {
                Lead::Broadcast(port) if !self.up(port) => continue,
                Lead::Local(_) | Lead::Broadcast(_) | Lead::Host(..) => return Vec::new(),
                Lead::To(Target::Via(gateways)) => {
                    trail.push(net);
                    let ends = self.branch(Some(to), &gateways, trail);
                    trail.pop();
                    ends
                }
                Lead::To(drop) => vec![(End::Other(format!("{drop:?}")), 1.0)],
            };
            if !ends.is_empty() {
                return ends;
            }
        }
        Vec::new()
    }

    fn branch(&self, to: Option<IpAddr>, gateways: &[Gateway], trail: &mut Vec<IpNet>) -> Ends {
        let mut ends = Vec::new();
        for Gateway { via, port, weight } in gateways {
            let weight = f64::from(*weight);
            match (*via, *port) {
                (None, Some(port)) if self.up(port) => {
                    ends.push((to.map_or_else(|| End::Other(format!("Glean@{port}")), |to| End::At(port, to)), weight));
                }
                (Some(via), Some(port)) if self.up(port) => ends.push((End::At(port, via), weight)),
                (Some(via), None) => {
                    let further = self.search(via, trail);
                    let sum: f64 = further.iter().map(|(_, part)| part).sum();
                    ends.extend(further.into_iter().map(|(end, part)| (end, weight * part / sum)));
                }
                _ => {}
            }
        }
        ends
    }

    /// The same as the flows' shares: those that are silent take none unless all are.
    fn shares(&self, ends: &Ends) -> BTreeMap<String, f64> {
        let failed = |end: &End| match end {
            End::At(port, ip) => self.neighbors.get(&(*port, *ip)) == Some(&NeighborState::Failed),
            End::Other(_) => false,
        };
        let all = ends.iter().all(|(end, _)| failed(end));
        let mut shares = BTreeMap::new();
        for (end, part) in ends.iter().filter(|(end, _)| all || !failed(end)) {
            let name = match end {
                End::At(port, _) if all => format!("Silent@{port}"),
                End::At(port, ip) => format!("{ip}@{port}"),
                End::Other(name) => name.clone(),
            };
            *shares.entry(name).or_insert(0.0) += part;
        }
        let sum: f64 = shares.values().sum();
        shares.values_mut().for_each(|share| *share /= sum);
        shares
    }

    /// The gateways that are to be resolved.
    fn wanted(&self) -> BTreeSet<(u8, IpAddr)> {
        let mut wanted = BTreeSet::new();
        for target in self.routes.values() {
            let Target::Via(gateways) = target else { continue };
            for gateway in gateways {
                match (gateway.via, gateway.port) {
                    (Some(via), Some(port)) => {
                        wanted.insert((port, via));
                    }
                    (Some(via), None) => {
                        let ends = self.search(via, &mut Vec::new());
                        wanted.extend(ends.into_iter().filter_map(|(end, _)| match end {
                            End::At(port, ip) => Some((port, ip)),
                            End::Other(_) => None,
                        }));
                    }
                    _ => {}
                }
            }
        }
        wanted
    }
}

#[derive(Clone, Debug)]
enum Event {
    Link(u8, bool),
    Address(u8, IpNet, bool),
    Route(IpNet, Source, u32, Option<Target>),
    Neighbor(u8, IpAddr, NeighborState),
    Replace(Source, Vec<(IpNet, u32, Target)>),
    Release,
}

/// Addresses that nest, are hosts of each other's subnets, and lead to one another.
const HOSTS: [&str; 14] = [
    "10.0.0.2",
    "10.0.0.9",
    "10.0.1.2",
    "10.0.1.130",
    "10.0.2.2",
    "172.16.1.1",
    "172.16.2.1",
    "192.0.2.1",
    "10.0.0.255",
    "2001:db8::2",
    "2001:db8:1::2",
    "2001:db8:ff::1",
    "fe80::2",
    "10.0.1.1",
];
const NETS: [&str; 16] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.1.0/24",
    "10.0.1.128/25",
    "10.0.1.130/32",
    "172.16.0.0/12",
    "172.16.1.0/24",
    "172.16.1.1/32",
    "172.16.2.0/24",
    "192.0.2.0/24",
    "10.0.0.2/32",
    "::/0",
    "2001:db8::/32",
    "2001:db8:ff::/48",
    "2001:db8:1::/64",
    "2001:db8::2/128",
];
const ADDRESSES: [&str; 9] = [
    "10.0.0.1/24",
    "10.0.0.5/24",
    "10.0.1.1/24",
    "10.0.1.129/25",
    "10.0.2.0/31",
    "10.0.2.2/32",
    "2001:db8::1/64",
    "2001:db8:1::1/64",
    "fe80::1/64",
];

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    (0..texts.len()).prop_map(move |at| texts[at])
}

fn targets() -> impl Strategy<Value = Target> {
    let by_address = (one_of(&HOSTS), 1_u16..4).prop_map(|(via, n)| gateway(&format!("{via}*{n}")));
    let by_both = (one_of(&HOSTS), 0..PORTS, 1_u16..4).prop_map(|(via, port, n)| gateway(&format!("{via}@{port}*{n}")));
    let by_port = (0..PORTS).prop_map(|port| gateway(&format!("@{port}")));
    let any = prop_oneof![4 => by_address, 4 => by_both, 1 => by_port];
    prop_oneof![
        1 => Just(Target::Blackhole),
        1 => Just(Target::Prohibit),
        12 => prop::collection::vec(any, 1..4).prop_map(Target::Via),
    ]
}

fn sources() -> impl Strategy<Value = Source> {
    prop_oneof![Just(Source::Static), Just(Source::Kernel)]
}

fn events() -> impl Strategy<Value = Event> {
    use NeighborState::{Failed, Gone, Resolved, Unresolved};
    let states = prop_oneof![2 => Just(Resolved), 1 => Just(Unresolved), 2 => Just(Failed), 1 => Just(Gone)];
    let nets = || one_of(&NETS).prop_map(net);
    prop_oneof![
        4 => (0..PORTS, prop::bool::weighted(0.7)).prop_map(|(port, up)| Event::Link(port, up)),
        4 => (0..PORTS, one_of(&ADDRESSES), prop::bool::weighted(0.7)).prop_map(|(p, a, yes)| Event::Address(p, net(a), yes)),
        10 => (nets(), sources(), 0_u32..2, prop::option::weighted(0.75, targets()))
            .prop_map(|(to, source, metric, target)| Event::Route(to, source, metric, target)),
        6 => (0..PORTS, one_of(&HOSTS), states).prop_map(|(port, host, state)| Event::Neighbor(port, ip(host), state)),
        1 => (sources(), prop::collection::vec((nets(), 0_u32..2, targets()), 0..6)).prop_map(|(s, all)| Event::Replace(s, all)),
        2 => Just(Event::Release),
    ]
}

fn both(event: &Event, twin: &mut Twin, rib: &mut Rib<MapFib>) {
    match event.clone() {
        Event::Link(port, up) => {
            twin.up[usize::from(port)] = up;
            rib.link_up(port, up);
        }
        Event::Address(port, address, true) => {
            twin.addresses.insert((port, address));
            rib.add_address(port, address);
        }
        Event::Address(port, address, false) => {
            twin.addresses.remove(&(port, address));
            rib.remove_address(port, address);
        }
        Event::Route(to, source, metric, Some(target)) => {
            twin.routes.insert((to, source, metric), target.clone());
            rib.add(source, &Route { to, target, metric });
        }
        Event::Route(to, source, metric, None) => {
            let there = twin.routes.remove(&(to, source, metric)).is_some();
            assert_eq!(rib.remove(source, to, metric), there);
        }
        Event::Neighbor(port, ip, NeighborState::Gone) => {
            twin.neighbors.remove(&(port, ip));
            rib.neighbor(port, ip, NeighborState::Gone);
        }
        Event::Neighbor(port, ip, state) => {
            twin.neighbors.insert((port, ip), state);
            rib.neighbor(port, ip, state);
        }
        Event::Replace(source, routes) => {
            twin.routes.retain(|(_, other, _), _| *other != source);
            for (to, metric, target) in &routes {
                twin.routes.insert((*to, source, *metric), target.clone());
            }
            rib.replace(source, routes.into_iter().map(|(to, metric, target)| Route { to, target, metric }));
        }
        Event::Release => rib.seal().into_iter().for_each(|seal| _ = rib.release(seal)),
    }
}

fn probes() -> Vec<IpAddr> {
    let more = [
        "10.0.1.200",
        "10.0.2.1",
        "10.0.2.0",
        "10.0.1.0",
        "10.0.9.9",
        "8.8.8.8",
        "2001:db8::",
        "2001:db8:1::9",
        "fe80::1",
    ];
    let hosts = HOSTS.iter().chain(&more).map(|text| ip(text));
    hosts.chain(NETS.iter().map(|text| net(text).addr())).chain(ADDRESSES.iter().map(|text| net(text).addr())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, ..ProptestConfig::with_cases(32) })]
    #[test]
    fn events_in_any_order(events in prop::collection::vec(events(), 1..60)) {
        let (mut twin, mut rib) = (Twin { up: [true; PORTS as usize], ..Twin::default() }, rib_of(PORTS.into(), 16384, 256));
        let mut known = BTreeSet::new();
        for event in &events {
            both(event, &mut twin, &mut rib);
            settled(&mut rib);
            for probe in probes() {
                let (net, expected) = twin.decide(probe);
                let expected = twin.shares(&expected);
                let found = ends(&rib, probe);
                prop_assert!(found.keys().eq(expected.keys()), "{} after {:?}: {:?}, not {:?}", probe, event, found, expected);
                let sum: usize = found.values().sum();
                // Whoever is due less than a bucket has one all the same, which the others lack.
                let small = expected.values().filter(|share| **share * (sum as f64) < 1.0).count() as f64;
                for (end, share) in &expected {
                    let buckets = share * sum as f64;
                    prop_assert!((found[end] as f64 - buckets).abs() < 2.0 + small, "{} to {}: {:?}, not {:?}", probe, end, found, expected);
                }
                prop_assert_eq!(rib.lookup(probe).active.map(|row| row.to), net);
            }
            let (asked, gateways): (BTreeSet<_>, BTreeSet<_>) = (rib.wants().collect(), rib.gateways().into_iter().collect());
            prop_assert_eq!(&gateways, &twin.wanted());
            prop_assert!(gateways.iter().all(|(port, ip)| rib.is_gateway(*port, *ip)));
            prop_assert!(gateways.difference(&known).all(|gateway| asked.contains(gateway)), "{:?}", asked);
            known = gateways;
            prop_assert_eq!(rib.counts().starved + rib.counts().refused, 0);
        }
        // What is taken away again leaves nothing behind.
        rib.replace::<Route>(Source::Static, []);
        rib.replace::<Route>(Source::Kernel, []);
        twin.addresses.iter().for_each(|(port, address)| rib.remove_address(*port, *address));
        twin.neighbors.keys().for_each(|(port, ip)| _ = rib.neighbor(*port, *ip, NeighborState::Gone));
        settled(&mut rib);
        rib.seal().into_iter().for_each(|seal| _ = rib.release(seal));
        prop_assert_eq!(rib.counts(), show::Counts::default());
        prop_assert!(rib.fib.map.is_empty() && rib.ways.len() + rib.watched.len() + rib.entries.len() == 0);
        let hops = (0..rib.hops.room() as u32).all(|hop| rib.hops.at(hop) == Hop::None);
        prop_assert!(hops, "a hop was left");
    }
}
