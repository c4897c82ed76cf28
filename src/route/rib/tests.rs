//! Every rule of the RIB by itself.

use std::collections::BTreeMap;

use super::show::{Lookup, Standing};
use super::*;
use crate::route::adjacency::State;
use crate::route::{Gateway, Target};

/// A forwarding table with room for so many prefixes.
#[derive(Debug)]
pub(super) struct MapFib {
    pub(super) map: BTreeMap<IpNet, u32>,
    pub(super) room: usize,
    pub(super) writes: usize,
}

impl Fib for MapFib {
    fn insert(&mut self, net: IpNet, hop: u32) -> Result<(), Full> {
        assert!(hop != 0 && net == net.trunc());
        self.writes += 1;
        if self.map.len() >= self.room && !self.map.contains_key(&net) {
            return Err(Full);
        }
        self.map.insert(net, hop);
        Ok(())
    }
    fn remove(&mut self, net: IpNet) {
        self.writes += 1;
        self.map.remove(&net);
    }
}

impl MapFib {
    pub(super) fn hop(&self, address: IpAddr) -> u32 {
        let covering = self.map.iter().filter(|(net, _)| net.contains(&address));
        covering.max_by_key(|(net, _)| net.prefix_len()).map_or(0, |(_, hop)| *hop)
    }
}

pub(super) fn rib_of(ports: usize, hops: usize, adjacencies: usize) -> Rib<MapFib> {
    let fib = MapFib { map: BTreeMap::new(), room: usize::MAX, writes: 0 };
    let mut rib = Rib::new(ports, fib, Arc::new(Hops::new(hops)), Arc::new(Table::new(adjacencies)));
    (0..ports as u8).for_each(|port| rib.link_up(port, true));
    rib
}

/// Port 0 has 10.0.0.1/24 and 2001:db8::1/64, port 1 has 10.0.1.1/24 and 2001:db8:1::1/64, and so on.
fn rib() -> Rib<MapFib> {
    let mut rib = rib_of(4, 4096, 64);
    for port in 0..4_u8 {
        rib.add_address(port, net(&format!("10.0.{port}.1/24")));
        rib.add_address(port, net(&format!("2001:db8:{port}::1/64")));
    }
    rib
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().expect(text)
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

/// `"10.0.0.2"`, `"@1"` (port 1), `"10.0.0.2@1"`, `"10.0.0.2*3"`, several behind `" "`; or `"blackhole"` and the like.
fn target(text: &str) -> Target {
    match text {
        "blackhole" => Target::Blackhole,
        "unreachable" => Target::Unreachable,
        "prohibit" => Target::Prohibit,
        _ => Target::Via(text.split(' ').map(gateway).collect()),
    }
}

pub(super) fn gateway(text: &str) -> Gateway {
    let (text, weight) = text.split_once('*').map_or((text, 1), |(text, n)| (text, n.parse().expect("a weight")));
    let (via, port) = text.split_once('@').map_or((text, None), |(text, n)| (text, Some(n.parse().expect("a port"))));
    Gateway { via: (!via.is_empty()).then(|| ip(via)), port, weight }
}

fn add(rib: &mut Rib<MapFib>, source: Source, to: &str, metric: u32, by: &str) {
    rib.add(source, &Route { to: net(to), target: target(by), metric });
    settled(rib);
}

pub(super) fn settled(rib: &mut Rib<MapFib>) {
    assert!((0..100_000).any(|_| rib.settle(3)));
}

/// Where packets to an address end: each hop, and of how many buckets.
pub(super) fn ends(rib: &Rib<MapFib>, address: IpAddr) -> BTreeMap<String, usize> {
    let hop = rib.fib.hop(address);
    let range = match rib.hops.at(hop) {
        Hop::Group { first, count } => first..first + u32::from(count),
        _ => hop..hop + 1,
    };
    let mut ends = BTreeMap::new();
    for index in range {
        let end = match rib.hops.at(index) {
            Hop::Forward { adjacency, port } => {
                let at = rib.neighbor_at(adjacency).expect("an adjacency is somebody's");
                assert_eq!(at.0, port);
                assert_eq!(rib.table.at(adjacency).port, port);
                assert_ne!(rib.table.at(adjacency).state, State::Free);
                format!("{}@{port}", at.1)
            }
            Hop::Group { .. } => panic!("a group in a group"),
            other => format!("{other:?}").replace(" { port: ", "@").replace(" }", ""),
        };
        *ends.entry(end).or_default() += 1;
    }
    ends
}

/// The same as a text without numbers.
fn end(rib: &Rib<MapFib>, address: &str) -> String {
    ends(rib, ip(address)).into_keys().collect::<Vec<_>>().join(" ")
}

#[test]
fn what_an_address_brings() {
    let mut rib = rib();
    for (address, expected) in [
        ("10.0.1.1", "Local@1"),
        ("10.0.1.0", "Broadcast@1"),
        ("10.0.1.255", "Broadcast@1"),
        ("10.0.1.77", "Glean@1"),
        ("2001:db8:2::1", "Local@2"),
        ("2001:db8:2::", "Local@2"),
        ("2001:db8:2::5", "Glean@2"),
        ("10.0.9.1", "None"),
    ] {
        assert_eq!(end(&rib, address), expected, "{address}");
    }
    rib.link_up(1, false);
    settled(&mut rib);
    assert_eq!((end(&rib, "10.0.1.77"), end(&rib, "10.0.1.1")), ("None".into(), "Local@1".into()));
    assert_eq!(end(&rib, "10.0.1.255"), "None");
    rib.link_up(1, true);
    // A second address of the subnet keeps it when the first goes.
    rib.add_address(1, net("10.0.1.2/24"));
    rib.remove_address(1, net("10.0.1.1/24"));
    settled(&mut rib);
    assert_eq!((end(&rib, "10.0.1.1"), end(&rib, "10.0.1.2")), ("Glean@1".into(), "Local@1".into()));
    assert_eq!(rib.addresses(1).last(), Some(&net("10.0.1.2/24")));
    rib.remove_address(1, net("10.0.1.2/24"));
    settled(&mut rib);
    assert_eq!((end(&rib, "10.0.1.2"), end(&rib, "10.0.1.255")), ("None".into(), "None".into()));
}

#[test]
fn a_subnet_on_two_ports_moves_when_one_goes_down() {
    let mut rib = rib();
    rib.add_address(3, net("10.0.1.9/24"));
    settled(&mut rib);
    assert_eq!(end(&rib, "10.0.1.77"), "Glean@1");
    rib.link_up(1, false);
    settled(&mut rib);
    assert_eq!((end(&rib, "10.0.1.77"), end(&rib, "10.0.1.255")), ("Glean@3".into(), "Broadcast@3".into()));
}

#[test]
fn sources_then_metrics_decide() {
    let mut rib = rib();
    for (source, metric, by, expected) in [
        (Source::Kernel, 5, "10.0.0.5", "10.0.0.5@0"),
        (Source::Kernel, 4, "10.0.0.4", "10.0.0.4@0"),
        (Source::Kernel, 6, "10.0.0.6", "10.0.0.4@0"),
        (Source::Static, 100, "10.0.1.100", "10.0.1.100@1"),
        (Source::Static, 100, "blackhole", "Blackhole"),
        (Source::Static, 99, "prohibit", "Prohibit"),
        (Source::Connected, 99, "unreachable", "Unreachable"),
    ] {
        add(&mut rib, source, "192.0.2.0/24", metric, by);
        assert_eq!(end(&rib, "192.0.2.1"), expected);
    }
    for (source, metric, expected) in [
        (Source::Connected, 99, "Prohibit"),
        (Source::Static, 99, "Blackhole"),
        (Source::Static, 100, "10.0.0.4@0"),
        (Source::Kernel, 5, "10.0.0.4@0"),
        (Source::Kernel, 4, "10.0.0.6@0"),
        (Source::Kernel, 6, "None"),
    ] {
        assert!(rib.remove(source, net("192.0.2.0/24"), metric));
        assert!(!rib.remove(source, net("192.0.2.0/24"), metric));
        settled(&mut rib);
        assert_eq!(end(&rib, "192.0.2.1"), expected);
    }
    assert_eq!(rib.rows_to(net("192.0.2.0/24")).count(), 0);
}

#[test]
fn a_route_whose_port_is_down_gives_way() {
    let mut rib = rib();
    add(&mut rib, Source::Static, "0.0.0.0/0", 1, "10.0.0.2");
    add(&mut rib, Source::Static, "0.0.0.0/0", 50, "10.0.1.2@1");
    assert_eq!(end(&rib, "8.8.8.8"), "10.0.0.2@0");
    rib.link_up(0, false);
    settled(&mut rib);
    assert_eq!(end(&rib, "8.8.8.8"), "10.0.1.2@1");
    rib.link_up(1, false);
    settled(&mut rib);
    assert_eq!(end(&rib, "8.8.8.8"), "None");
    rib.link_up(0, true);
    settled(&mut rib);
    assert_eq!(end(&rib, "8.8.8.8"), "10.0.0.2@0");
}

#[test]
fn recursion() {
    let mut rib = rib();
    add(&mut rib, Source::Static, "203.0.113.0/24", 0, "198.51.100.1");
    assert_eq!(end(&rib, "203.0.113.9"), "None", "nothing leads to the gateway");
    add(&mut rib, Source::Static, "0.0.0.0/0", 0, "10.0.0.2");
    assert_eq!(end(&rib, "203.0.113.9"), "10.0.0.2@0", "the default route does");
    add(&mut rib, Source::Static, "198.51.100.0/24", 0, "10.0.1.2");
    assert_eq!(end(&rib, "203.0.113.9"), "10.0.1.2@1", "a longer one does");
    add(&mut rib, Source::Static, "198.51.100.1/32", 0, "10.0.2.2@2 10.0.3.2@3");
    assert_eq!(end(&rib, "203.0.113.9"), "10.0.2.2@2 10.0.3.2@3", "and all its gateways");
    rib.link_up(2, false);
    settled(&mut rib);
    assert_eq!(end(&rib, "203.0.113.9"), "10.0.3.2@3");
    add(&mut rib, Source::Static, "198.51.100.1/32", 0, "blackhole");
    assert_eq!(end(&rib, "203.0.113.9"), "Blackhole", "a gateway that is dropped drops");
    add(&mut rib, Source::Static, "198.51.100.1/32", 0, "10.0.0.1");
    assert_eq!(end(&rib, "203.0.113.9"), "10.0.1.2@1", "we are no gateway; the next route is taken");
    add(&mut rib, Source::Kernel, "203.0.113.0/24", 0, "@3");
    rib.remove(Source::Static, net("203.0.113.0/24"), 0);
    settled(&mut rib);
    assert_eq!(end(&rib, "203.0.113.9"), "Glean@3");
}

#[test]
fn nothing_leads_to_itself() {
    let mut rib = rib();
    add(&mut rib, Source::Static, "203.0.113.0/24", 0, "203.0.113.1");
    assert_eq!(end(&rib, "203.0.113.9"), "None");
    add(&mut rib, Source::Static, "0.0.0.0/0", 0, "10.0.0.2");
    assert_eq!(end(&rib, "203.0.113.9"), "10.0.0.2@0", "by the best route to its gateway other than itself");
    rib.remove(Source::Static, net("0.0.0.0/0"), 0);
    // A ring of two, and a chain that is too long.
    add(&mut rib, Source::Static, "203.0.113.0/24", 0, "198.51.100.1");
    add(&mut rib, Source::Static, "198.51.100.0/24", 0, "203.0.113.1");
    assert_eq!(end(&rib, "203.0.113.9"), "None");
    for n in 1..=8 {
        add(&mut rib, Source::Static, &format!("172.16.{n}.0/24"), 0, &format!("172.16.{}.1", n - 1));
    }
    add(&mut rib, Source::Static, "172.16.0.0/24", 0, "10.0.0.2");
    assert_eq!((end(&rib, "172.16.7.1"), end(&rib, "172.16.8.1")), ("10.0.0.2@0".into(), "None".into()));
}

#[test]
fn ipv4_by_ipv6_gateways() {
    let mut rib = rib();
    add(&mut rib, Source::Kernel, "192.0.2.0/24", 0, "fe80::9@1");
    add(&mut rib, Source::Static, "198.51.100.0/24", 0, "2001:db8:2::9");
    add(&mut rib, Source::Static, "203.0.113.0/24", 0, "fe80::9");
    assert_eq!(end(&rib, "192.0.2.1"), "fe80::9@1");
    assert_eq!(end(&rib, "198.51.100.1"), "2001:db8:2::9@2");
    assert_eq!(end(&rib, "203.0.113.1"), "None", "which link it is on, nobody knows");
}

#[test]
fn neighbors_get_their_adjacency_where_routes_say_they_are() {
    let mut rib = rib();
    let (port, one) = (0, ip("10.0.0.9"));
    assert_eq!(rib.adjacency(port, one), None);
    rib.neighbor(port, one, NeighborState::Unresolved);
    rib.neighbor(1, one, NeighborState::Resolved);
    settled(&mut rib);
    assert_eq!(end(&rib, "10.0.0.9"), "10.0.0.9@0");
    assert_eq!(rib.table.at(rib.adjacency(port, one).expect("a slot")).state, State::Unresolved);
    rib.neighbor(port, one, NeighborState::Failed);
    assert_eq!(end(&rib, "10.0.0.9"), "Silent@0");
    rib.neighbor(port, one, NeighborState::Resolved);
    assert_eq!(end(&rib, "10.0.0.9"), "10.0.0.9@0");
    // A route to a part of the subnet is obeyed.
    add(&mut rib, Source::Static, "10.0.0.8/29", 0, "10.0.1.2");
    assert_eq!(end(&rib, "10.0.0.9"), "10.0.1.2@1");
    rib.remove(Source::Static, net("10.0.0.8/29"), 0);
    add(&mut rib, Source::Static, "10.0.0.9/32", 0, "blackhole");
    assert_eq!(end(&rib, "10.0.0.9"), "Blackhole");
    rib.remove(Source::Static, net("10.0.0.9/32"), 0);
    settled(&mut rib);
    assert_eq!(end(&rib, "10.0.0.9"), "10.0.0.9@0");
    rib.neighbor(port, one, NeighborState::Gone);
    settled(&mut rib);
    assert_eq!((end(&rib, "10.0.0.9"), rib.adjacency(port, one)), ("Glean@0".into(), None));
    let gateway = ip("10.0.1.2");
    assert_eq!((rib.wants().collect::<Vec<_>>(), rib.is_gateway(1, gateway)), (vec![(1, gateway)], false));
    for ignored in ["224.0.0.5", "0.0.0.0", "ff02::1"] {
        rib.neighbor(port, ip(ignored), NeighborState::Resolved);
        assert_eq!(rib.adjacency(port, ip(ignored)), None);
    }
    rib.neighbor(port, ip("fe80::7"), NeighborState::Resolved);
    assert!(rib.adjacency(port, ip("fe80::7")).is_some());
    assert_eq!(end(&rib, "fe80::7"), "None", "another link may have it as well");
}

#[test]
fn one_word_for_all_routes_of_a_gateway() {
    let mut rib = rib();
    for n in 0..2000_u32 {
        let to = format!("172.{}.{}.0/24", 16 + n / 256, n % 256);
        rib.add(Source::Kernel, &Route { to: net(&to), target: target("10.0.0.2@0 10.0.1.2@1"), metric: 0 });
        rib.add(Source::Kernel, &Route { to: net(&to), target: target("10.0.2.2@2"), metric: 1 });
    }
    settled(&mut rib);
    assert_eq!(rib.counts().targets, 4 * 3 + 2, "three of each port, and two");
    let writes = rib.fib.writes;
    rib.neighbor(0, ip("10.0.0.2"), NeighborState::Failed);
    rib.link_up(0, false);
    rib.neighbor(0, ip("10.0.0.2"), NeighborState::Resolved);
    rib.link_up(0, true);
    rib.link_up(0, false);
    assert_eq!(end(&rib, "172.16.3.1"), "10.0.1.2@1");
    assert!(rib.fib.writes - writes < 20, "none of them is written");
    // With the last gateway they are refused at once, and go over to the next route bit by bit.
    rib.link_up(1, false);
    assert_eq!(end(&rib, "172.16.3.1"), "Unreachable");
    assert!(!rib.settle(1000));
    assert!(rib.settle(5000));
    assert_eq!((end(&rib, "172.16.3.1"), end(&rib, "172.20.3.1")), ("10.0.2.2@2".into(), "10.0.2.2@2".into()));
}

#[test]
fn weights_and_resilience() {
    let mut rib = rib();
    add(&mut rib, Source::Static, "0.0.0.0/0", 0, "10.0.0.2@0*3 10.0.1.2@1*2 10.0.2.2@2");
    let any = ip("8.8.8.8");
    let shares = |rib: &Rib<MapFib>| ends(rib, any).into_values().collect::<Vec<_>>();
    let hop = rib.fib.hop(any);
    let chosen = |rib: &Rib<MapFib>| (0..500_u32).map(|n| rib.hops.choose(hop, n << 22)).collect::<Vec<_>>();
    assert_eq!(shares(&rib), [32, 21, 11]);
    let whole = chosen(&rib);
    rib.neighbor(1, ip("10.0.1.2"), NeighborState::Failed);
    assert_eq!(shares(&rib), [48, 16]);
    let moved = |(a, b): (&Hop, &Hop)| assert!(a == b || matches!(a, Hop::Forward { port: 1, .. }));
    whole.iter().zip(&chosen(&rib)).for_each(moved);
    rib.link_up(0, false);
    assert_eq!(end(&rib, "8.8.8.8"), "10.0.2.2@2");
    rib.link_up(2, false);
    assert_eq!(end(&rib, "8.8.8.8"), "Silent@1", "rather told than dropped");
    settled(&mut rib);
    assert!(ports_of(&rib.hops, rib.fib.hop(any)).all(|port| port == 1));
    rib.link_up(1, false);
    settled(&mut rib);
    assert_eq!(end(&rib, "8.8.8.8"), "None");
    (0..3).for_each(|port| rib.link_up(port, true));
    rib.neighbor(1, ip("10.0.1.2"), NeighborState::Resolved);
    settled(&mut rib);
    assert_eq!(chosen(&rib), whole, "all flows are back where they were");
    let mut ports: Vec<u8> = ports_of(&rib.hops, rib.fib.hop(any)).collect();
    ports.dedup();
    assert_eq!(ports, [0, 1, 2]);
}

#[test]
fn what_was_given_back_is_not_used_before_its_release() {
    let mut rib = rib();
    assert_eq!(rib.seal(), None);
    add(&mut rib, Source::Static, "192.0.2.0/24", 0, "10.0.0.2@0 10.0.1.2@1");
    let (hop, slot) = (rib.fib.hop(ip("192.0.2.1")), rib.adjacency(0, ip("10.0.0.2")).expect("a slot"));
    let Hop::Group { first, .. } = rib.hops.at(hop) else { panic!("a group") };
    rib.remove(Source::Static, net("192.0.2.0/24"), 0);
    settled(&mut rib);
    let again = |rib: &mut Rib<MapFib>, by: &str, gateway: &str| {
        add(rib, Source::Static, "192.0.2.0/24", 0, by);
        let hop = rib.fib.hop(ip("192.0.2.1"));
        let Hop::Group { first, .. } = rib.hops.at(hop) else { panic!("a group") };
        (hop, first, rib.adjacency(0, ip(gateway)).expect("a slot"))
    };
    // A worker that still has the old hop finds what it was.
    assert!(
        matches!(rib.hops.choose(hop, 0), Hop::Forward { adjacency, .. } if rib.table.at(adjacency).state == State::Unresolved)
    );
    let second = again(&mut rib, "10.0.0.3@0 10.0.1.3@1", "10.0.0.3");
    assert!(second.0 != hop && second.1 != first && second.2 != slot);
    let seal = rib.seal().expect("something waits");
    rib.remove(Source::Static, net("192.0.2.0/24"), 0);
    settled(&mut rib);
    rib.release(seal);
    assert_eq!((rib.hops.at(hop), rib.table.at(slot).state), (Hop::None, State::Free));
    let third = again(&mut rib, "10.0.0.4@0 10.0.1.4@1", "10.0.0.4");
    assert_eq!(third.0, hop);
    assert!(third.0 != second.0 && third.1 != second.1 && third.2 != second.2);
}

#[test]
fn replacing_a_source() {
    let mut rib = rib();
    for n in 1..4 {
        add(&mut rib, Source::Kernel, &format!("192.0.{n}.0/24"), 0, "10.0.0.2@0");
    }
    add(&mut rib, Source::Static, "192.0.1.0/24", 9, "10.0.1.2@1");
    let writes = rib.fib.writes;
    let route = |to: &str, by: &str| Route { to: net(to), target: target(by), metric: 0 };
    rib.replace(Source::Kernel, [route("192.0.2.0/24", "10.0.0.2@0"), route("192.0.9.0/24", "@2")]);
    settled(&mut rib);
    assert_eq!(rib.fib.writes - writes, 2, "one new, one gone; the others are as they were");
    let all = ["192.0.1.1", "192.0.2.1", "192.0.3.1", "192.0.9.1"].map(|address| end(&rib, address));
    assert_eq!(all, ["10.0.1.2@1", "10.0.0.2@0", "None", "Glean@2"]);
    assert_eq!(rib.counts().routes[1..4], [0, 1, 2]);
}

#[test]
fn why_a_route_is_taken() {
    let mut rib = rib();
    add(&mut rib, Source::Static, "0.0.0.0/0", 0, "10.0.0.2");
    add(&mut rib, Source::Kernel, "192.0.2.0/24", 7, "10.0.3.2@3");
    add(&mut rib, Source::Kernel, "192.0.2.0/24", 3, "10.0.1.2@1");
    add(&mut rib, Source::Kernel, "192.0.0.0/16", 3, "@2");
    rib.link_up(1, false);
    rib.neighbor(3, ip("10.0.3.2"), NeighborState::Resolved);
    settled(&mut rib);
    let Lookup { active: Some(active), passed, behind } = rib.lookup(ip("192.0.2.5")) else { panic!("a route") };
    assert_eq!((active.to, active.metric, active.standing), (net("192.0.2.0/24"), 7, Standing::Active));
    assert_eq!(active.leads, show::Leads::To(target("10.0.3.2@3")));
    let [next] = active.next[..] else { panic!("one") };
    assert_eq!((next.port, next.neighbor, next.state), (Some(3), Some(ip("10.0.3.2")), Some(NeighborState::Resolved)));
    assert_eq!(next.adjacency, rib.adjacency(3, ip("10.0.3.2")));
    assert!(next.alive);
    assert_eq!(passed.iter().map(|row| (row.metric, row.standing)).collect::<Vec<_>>(), [(3, Standing::Unreachable)]);
    assert_eq!(behind.iter().map(|row| row.to).collect::<Vec<_>>(), [net("192.0.0.0/16"), net("0.0.0.0/0")]);
    assert_eq!(rib.rows().filter(|row| row.standing == Standing::Unreachable && row.metric == 3).count(), 1);
    assert_eq!(rib.lookup(ip("::1")).active, None);
}

#[test]
fn no_room() {
    // Hops: 3 for the port's address, 1 for the first target; adjacencies: one.
    let mut rib = rib_of(1, 5, 2);
    rib.add_address(0, net("10.0.0.1/24"));
    rib.fib.room = 5;
    add(&mut rib, Source::Kernel, "192.0.2.0/24", 0, "10.0.0.2@0");
    add(&mut rib, Source::Kernel, "198.51.100.0/24", 0, "10.0.0.2@0");
    assert_eq!((rib.counts().refused, end(&rib, "198.51.100.1").as_str()), (1, "None"));
    assert_eq!(rib.lookup(ip("198.51.100.1")).passed[0].standing, Standing::Refused);
    add(&mut rib, Source::Kernel, "203.0.113.0/24", 0, "10.0.0.3@0");
    assert_eq!(rib.counts().starved, 2);
    assert!(rib.remove(Source::Kernel, net("192.0.2.0/24"), 0));
    settled(&mut rib);
    assert_eq!((rib.counts().refused, end(&rib, "198.51.100.1").as_str()), (0, "10.0.0.2@0"), "its turn has come");
    assert!(rib.remove(Source::Kernel, net("198.51.100.0/24"), 0));
    settled(&mut rib);
    assert_eq!(end(&rib, "203.0.113.1"), "None");
    let seal = rib.seal().expect("a hop and an adjacency wait");
    assert!(rib.release(seal), "what was starved is fed");
    settled(&mut rib);
    assert_eq!((rib.counts().starved, end(&rib, "203.0.113.1").as_str()), (0, "10.0.0.3@0"));
}
