//! What the kernel is known to have, and what of it concerns flowgate: pure state, fed with news.
//!
//! Nothing that was reported is stored: it follows from the tables, before a change and after it, and the difference is
//! reported. So whatever happened, reports and tables agree.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Bound;

use ipnet::IpNet;

use super::Event;
use super::message::{Address, Change, Entry, Kind, Link, News, Object, Way, Ways};
use crate::route::{Gateway, Route, Target};

/// `RTPROT_KERNEL`: routes the kernel makes of its own accord, most of them of an interface's addresses.
const BY_KERNEL: u8 = 2;

/// The tables.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    routes: BTreeMap<Key, Entry>,
    known: Known,
    links: HashMap<u8, Link>,
    /// How many routes lead by an object, for each that has any: most objects are changed before or after they have.
    uses: HashMap<u32, usize>,
}

/// A route's place: those to one prefix by metric, and those of one metric in the kernel's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    to: IpNet,
    metric: u32,
    order: u64,
}

/// The order of the first of its prefix and metric: others may come before it and behind.
const MIDDLE: u64 = 1 << 63;

/// What else decides what a route means here.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The ports, by the index of their interface.
    ports: HashMap<u32, u8>,
    objects: HashMap<u32, Object>,
    /// Of ports alone, by port and by address with the length of its prefix.
    addresses: BTreeMap<(u8, IpNet), Address>,
    /// Addresses flowgate has by itself.
    own: HashSet<(u8, IpAddr)>,
}

/// How many routes of the kernel's main table lead where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// All of them.
    pub all: usize,
    /// Those of the kernel itself, for addresses flowgate knows.
    pub connected: usize,
    /// By interfaces that are no ports.
    pub foreign: usize,
    /// Only for a type of service or some sources, by a tunnel, or of a type that means nothing here.
    pub unsupported: usize,
}

enum Meaning {
    Target(Target),
    Connected,
    Foreign,
    Unsupported,
}

impl Tables {
    /// Tables of which only the ports are known, and the addresses flowgate gives them by itself.
    pub fn new(own: impl IntoIterator<Item = (u8, IpAddr)>) -> Tables {
        let known = Known { own: own.into_iter().collect(), ..Known::default() };
        Tables { known, ..Tables::default() }
    }

    /// Empty tables for the same ports.
    pub fn emptied(&self) -> Tables {
        let known = Known { ports: self.known.ports.clone(), own: self.known.own.clone(), ..Known::default() };
        Tables { known, ..Tables::default() }
    }

    /// A port's interface has this index from now on.
    pub fn add_port(&mut self, port: u8, index: u32) {
        self.known.ports.retain(|_, other| *other != port);
        self.known.ports.insert(index, port);
    }

    /// Forgets ports whose interface was not among those told of.
    pub fn forget_missing(&mut self) {
        let links = &self.links;
        self.known.ports.retain(|_, port| links.contains_key(port));
    }

    /// Whether the kernel has an address on a port.
    pub fn has_address(&self, port: u8, net: IpNet) -> bool {
        self.known.addresses.contains_key(&(port, net))
    }

    /// The port of an interface.
    pub fn port(&self, index: u32) -> Option<u8> {
        self.known.ports.get(&index).copied()
    }

    /// Takes news in and reports nothing. Returns whether it is in doubt what they mean.
    pub fn load(&mut self, news: News) -> bool {
        match news {
            News::Link { index, link: Some(link) } => {
                if let Some(port) = self.port(index) {
                    self.links.insert(port, link);
                }
            }
            News::Route { to, metric, entry, change } => return self.place(to, metric, entry, change),
            news => _ = self.apply(news, &mut |_| ()),
        }
        false
    }

    /// Takes news in and reports what they change. Returns whether the kernel may have changed more than it told: it removes
    /// routes and next-hop objects without a word where a link goes down or an address goes away.
    pub fn apply(&mut self, news: News, out: &mut dyn FnMut(Event)) -> bool {
        match news {
            News::Link { index, link } => self.link(index, link, out),
            News::Address { index, net, address } => self.address(index, net, address, out),
            News::Object { id, object } => self.object(id, object, out),
            News::Route { to, metric, entry, change } => {
                let before = self.route(&self.known, to, metric);
                let doubtful = self.place(to, metric, entry, change);
                report(before, self.route(&self.known, to, metric), out);
                doubtful
            }
        }
    }

    fn link(&mut self, index: u32, link: Option<Link>, out: &mut dyn FnMut(Event)) -> bool {
        let Some(port) = self.port(index) else { return false };
        match link {
            Some(link) => {
                let before = self.links.insert(port, link);
                let report = |link: Link| Event::Link { port, admin_up: link.up, mtu: link.mtu, mac: link.mac };
                if before.map(report) != Some(report(link)) {
                    out(report(link));
                }
                before.is_some_and(|before| (before.up, before.running) != (link.up, link.running))
            }
            None => {
                self.links.remove(&port);
                let gone: Vec<IpNet> = self.addresses(port).map(|(net, _)| net).collect();
                for net in gone {
                    self.address(index, net, None, out);
                }
                let before = self.known.clone();
                self.known.ports.remove(&index);
                self.rethink(&before, |_| true, out);
                out(Event::Lost { port });
                true
            }
        }
    }

    fn addresses(&self, port: u8) -> impl Iterator<Item = (IpNet, Address)> {
        let all = &self.known.addresses;
        all.iter().filter(move |((on, _), _)| *on == port).map(|((_, net), address)| (*net, *address))
    }

    fn address(&mut self, index: u32, net: IpNet, address: Option<Address>, out: &mut dyn FnMut(Event)) -> bool {
        let Some(port) = self.port(index) else { return false };
        let before = self.known.addresses.get(&(port, net)).copied();
        let mut subnets: Vec<IpNet> = [before, address].iter().flatten().map(|address| address.subnet).collect();
        subnets.dedup();
        // What routes the kernel made for it depends on the address.
        let metrics = |tables: &Tables, to: IpNet| {
            let mut metrics: Vec<u32> = tables.routes.range(Key::all(to)).map(|(key, _)| key.metric).collect();
            metrics.dedup();
            metrics
        };
        let touched: Vec<(IpNet, u32)> =
            subnets.iter().flat_map(|to| metrics(self, *to).into_iter().map(|metric| (*to, metric))).collect();
        let routes: Vec<Option<Route>> =
            touched.iter().map(|(to, metric)| self.route(&self.known, *to, *metric)).collect();
        match address {
            Some(address) => self.known.addresses.insert((port, net), address),
            None => self.known.addresses.remove(&(port, net)),
        };
        for ((to, metric), before) in touched.into_iter().zip(routes) {
            report(before, self.route(&self.known, to, metric), out);
        }
        let (before, after) = (self.own_subnet(port, net, before), self.own_subnet(port, net, address));
        if before != after {
            before.into_iter().for_each(|net| out(Event::Address { port, net, added: false }));
            after.into_iter().for_each(|net| out(Event::Address { port, net, added: true }));
        }
        address.is_none()
    }

    /// An address as flowgate is to have it: with the prefix that is on its link. None if it has it anyway, or may not.
    fn own_subnet(&self, port: u8, net: IpNet, address: Option<Address>) -> Option<IpNet> {
        let address = address.filter(|address| address.usable && !self.known.own.contains(&(port, net.addr())))?;
        IpNet::new(net.addr(), address.subnet.prefix_len()).ok()
    }

    fn object(&mut self, id: u32, object: Option<Object>, out: &mut dyn FnMut(Event)) -> bool {
        let used = |id: &u32| self.uses.contains_key(id);
        let in_group = |object: &Object| matches!(object, Object::Group(members) if members.iter().any(|m| m.0 == id));
        let touched: HashSet<u32> =
            self.known.objects.iter().filter(|(_, object)| in_group(object)).map(|(id, _)| *id).chain([id]).collect();
        let before = touched.iter().any(used).then(|| self.known.clone());
        let gone = object.is_none();
        match object {
            Some(object) => self.known.objects.insert(id, object),
            None => self.known.objects.remove(&id),
        };
        if let Some(before) = before {
            let leads_there = |entry: &Entry| matches!(entry.ways, Ways::Object(id) if touched.contains(&id));
            self.rethink(&before, leads_there, out);
        }
        gone
    }

    /// Reports what becomes of routes, if one of their prefix and metric fulfils a condition, now that something else is known.
    fn rethink(&self, before: &Known, concerned: impl Fn(&Entry) -> bool, out: &mut dyn FnMut(Event)) {
        let mut last = None;
        for (key, _) in self.routes.iter().filter(|(_, entry)| concerned(entry)) {
            if last.replace((key.to, key.metric)) != Some((key.to, key.metric)) {
                let meant = self.route(before, key.to, key.metric);
                report(meant, self.route(&self.known, key.to, key.metric), out);
            }
        }
    }

    /// Puts a route where the kernel has it. Returns whether that is in doubt.
    fn place(&mut self, to: IpNet, metric: u32, entry: Entry, change: Change) -> bool {
        let here: Vec<Key> = self.routes.range(Key::of(to, metric)).map(|(key, _)| *key).collect();
        let v6 = matches!(to, IpNet::V6(_));
        // IPv6 has routes that are no ways of one another under one metric in an order of which its messages do not tell all.
        let doubtful = v6 && here.len() > 1;
        if change == Change::Delete {
            self.delete(&here, &entry);
            return doubtful;
        }
        // IPv6 tells of all ways where one is put to others. What is there already is told of again where an object changes,
        // or by a dump.
        let is = |key: &&Key, wanted: &dyn Fn(&Entry) -> bool| {
            self.routes.get(*key).is_some_and(|old| old.class == entry.class && wanted(old))
        };
        let grown = |old: &Entry| old.is(&entry) || v6 && old.kind == entry.kind && within(&old.ways, &entry.ways);
        let several = |entry: &Entry| match &entry.ways {
            Ways::Own(ways) => !ways.is_empty() && ways.iter().all(|way| way.via.is_some()),
            Ways::Object(_) => false,
        };
        let first_alike = v6 && change == Change::Replace && matches!(entry.ways, Ways::Own(_));
        let mut replaced: Vec<Key> = here.iter().filter(|key| !first_alike && is(key, &grown)).copied().collect();
        if replaced.is_empty() && change == Change::Replace {
            // fib6_add_rt2node(): one that could be of the same group is replaced first.
            let alike = here.iter().find(|key| v6 && is(key, &|old| several(old) == several(&entry)));
            replaced.extend(alike.or_else(|| here.iter().find(|key| is(key, &|_| true))));
        }
        let order = match (replaced.first(), here.first(), here.last()) {
            (Some(first), ..) => first.order,
            (None, Some(first), _) if change == Change::Prepend => first.order - 1,
            (None, _, Some(last)) => last.order + 1,
            _ => MIDDLE,
        };
        replaced.iter().for_each(|key| self.remove(key));
        if let Ways::Object(id) = entry.ways {
            *self.uses.entry(id).or_default() += 1;
        }
        self.routes.insert(Key { to, metric, order }, entry);
        doubtful
    }

    fn delete(&mut self, here: &[Key], gone: &Entry) {
        let find = |wanted: &dyn Fn(&Entry) -> bool| {
            here.iter().find(|key| self.routes.get(*key).is_some_and(|e| e.class == gone.class && wanted(e))).copied()
        };
        let part = |e: &Entry| e.kind == gone.kind && within(&gone.ways, &e.ways);
        let whole = |e: &Entry| part(e) && within(&e.ways, &gone.ways);
        if let Some(key) = find(&|e| e.is(gone)).or_else(|| find(&whole)) {
            return self.remove(&key);
        }
        // One way of several (IPv6).
        let rest = find(&part).and_then(|key| self.routes.get_mut(&key));
        if let (Some(Entry { ways: Ways::Own(ways), .. }), Ways::Own(gone)) = (rest, &gone.ways) {
            *ways = ways.iter().filter(|way| !gone.iter().any(|gone| gone.same(way))).copied().collect();
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(Entry { ways: Ways::Object(id), .. }) = self.routes.remove(key)
            && let Some(uses) = self.uses.get_mut(&id)
        {
            *uses -= 1;
            if *uses == 0 {
                self.uses.remove(&id);
            }
        }
    }

    /// The route that counts of those to a prefix with a metric: the kernel's first that means something here.
    fn route(&self, known: &Known, to: IpNet, metric: u32) -> Option<Route> {
        self.routes.range(Key::of(to, metric)).find_map(|(key, entry)| known.route(key, entry))
    }

    /// All routes that count, in order.
    pub fn all(&self) -> impl Iterator<Item = Route> {
        let mut last = None;
        self.routes.iter().filter_map(move |(key, entry)| {
            let place = Some((key.to, key.metric));
            let route = if last == place { None } else { self.known.route(key, entry) };
            if route.is_some() {
                last = place;
            }
            route
        })
    }

    /// Reports what has to be done where these tables take the place of others; of routes [`report_routes`] tells.
    ///
    /// [`report_routes`]: Tables::report_routes
    pub fn report_from(&self, before: &Tables, out: &mut dyn FnMut(Event)) {
        for (port, link) in &self.links {
            let told = |link: &Link| (link.up, link.mtu, link.mac);
            if before.links.get(port).map(told) != Some(told(link)) {
                out(Event::Link { port: *port, admin_up: link.up, mtu: link.mtu, mac: link.mac });
            }
        }
        for port in before.known.ports.values().filter(|port| !self.known.ports.values().any(|new| new == *port)) {
            out(Event::Lost { port: *port });
        }
        let addresses = |tables: &Tables| -> HashSet<(u8, IpNet)> {
            let all = tables.known.addresses.iter();
            all.filter_map(|((port, net), a)| Some((*port, tables.own_subnet(*port, *net, Some(*a))?))).collect()
        };
        let (old, new) = (addresses(before), addresses(self));
        old.difference(&new).for_each(|(port, net)| out(Event::Address { port: *port, net: *net, added: false }));
        new.difference(&old).for_each(|(port, net)| out(Event::Address { port: *port, net: *net, added: true }));
    }

    /// Goes on telling how routes differ from those these came in place of, at most so many. Returns whether that was all. What
    /// becomes of routes whose turn has not come ([`Before::is_due`]) is not to be told otherwise.
    pub fn report_routes(&self, before: &mut Before, budget: usize, out: &mut dyn FnMut(Event)) -> bool {
        let Before { tables: Tables { routes, known, .. }, told } = before;
        let behind = told.map_or(Bound::Unbounded, |(to, metric)| Bound::Excluded(*Key::of(to, metric).end()));
        let mut here = self.routes.range((behind, Bound::Unbounded)).map(|(key, _)| key.place()).peekable();
        for _ in 0..budget {
            let next = [routes.keys().next().map(Key::place), here.peek().copied()].into_iter().flatten().min();
            let Some(place) = next else { return true };
            while here.next_if_eq(&place).is_some() {}
            let mut was = None;
            while routes.first_key_value().is_some_and(|(key, _)| key.place() == place)
                && let Some((key, entry)) = routes.pop_first()
            {
                was = was.or_else(|| known.route(&key, &entry));
            }
            report(was, self.route(&self.known, place.0, place.1), out);
            *told = Some(place);
        }
        false
    }

    /// What the main table holds.
    pub fn census(&self) -> Census {
        let mut census = Census { all: self.routes.len(), ..Census::default() };
        for (key, entry) in &self.routes {
            match self.known.meaning(key.to, entry) {
                Meaning::Target(_) => {}
                Meaning::Connected => census.connected += 1,
                Meaning::Foreign => census.foreign += 1,
                Meaning::Unsupported => census.unsupported += 1,
            }
        }
        census
    }
}

/// Tables whose place others have taken, as far as that has not been told.
pub struct Before {
    tables: Tables,
    /// Up to which prefix and metric it has.
    told: Option<(IpNet, u32)>,
}

impl Before {
    /// Nothing has been told yet.
    pub fn new(tables: Tables) -> Before {
        Before { tables, told: None }
    }

    /// Whether it is still to be told how the route to a prefix with a metric differs.
    pub fn is_due(&self, to: IpNet, metric: u32) -> bool {
        self.told.is_none_or(|told| (to, metric) > told)
    }
}

impl Key {
    fn place(&self) -> (IpNet, u32) {
        (self.to, self.metric)
    }

    fn of(to: IpNet, metric: u32) -> std::ops::RangeInclusive<Key> {
        Key { to, metric, order: 0 }..=Key { to, metric, order: u64::MAX }
    }

    fn all(to: IpNet) -> std::ops::RangeInclusive<Key> {
        Key { to, metric: 0, order: 0 }..=Key { to, metric: u32::MAX, order: u64::MAX }
    }
}

impl Known {
    fn route(&self, key: &Key, entry: &Entry) -> Option<Route> {
        match self.meaning(key.to, entry) {
            Meaning::Target(target) => Some(Route { to: key.to, target, metric: key.metric }),
            _ => None,
        }
    }

    fn meaning(&self, to: IpNet, entry: &Entry) -> Meaning {
        match entry.kind {
            _ if entry.class != 0 => return Meaning::Unsupported,
            Kind::Unsupported => return Meaning::Unsupported,
            Kind::Blackhole => return Meaning::Target(Target::Blackhole),
            Kind::Unreachable => return Meaning::Target(Target::Unreachable),
            Kind::Prohibit => return Meaning::Target(Target::Prohibit),
            Kind::Unicast => {}
        }
        let several = match &entry.ways {
            Ways::Own(ways) => ways.to_vec(),
            Ways::Object(id) => match self.objects.get(id) {
                None | Some(Object::Unsupported) => return Meaning::Unsupported,
                Some(Object::Blackhole) => return Meaning::Target(Target::Blackhole),
                Some(Object::Way(way)) => vec![*way],
                Some(Object::Group(members)) => {
                    let way = |(id, weight): &(u32, u16)| match self.objects.get(id) {
                        Some(Object::Way(way)) => Some(Way { weight: *weight, ..*way }),
                        _ => None,
                    };
                    // The kernel lets a blackhole be a group's only member.
                    if let [(id, _)] = **members
                        && self.objects.get(&id) == Some(&Object::Blackhole)
                    {
                        return Meaning::Target(Target::Blackhole);
                    }
                    members.iter().filter_map(way).collect()
                }
            },
        };
        if let [Way { via: None, index, .. }] = several[..]
            && entry.protocol == BY_KERNEL
            && let Some(port) = self.ports.get(&index)
            && (self.has_subnet(*port, to) || is_link_scope(to))
        {
            return Meaning::Connected;
        }
        let usable = several.iter().filter(|way| !way.dead);
        let mut ways: Vec<Gateway> = usable
            .filter_map(|way| {
                Some(Gateway { via: way.via, port: Some(*self.ports.get(&way.index)?), weight: way.weight })
            })
            .collect();
        // The kernel names the ways of IPv6 in an order that depends on which one was put there last.
        ways.sort_unstable_by_key(|way| (way.via, way.port));
        let most = ways.iter().map(|way| way.weight).max();
        match (&mut ways[..], most) {
            ([], _) => return Meaning::Foreign,
            ([one], _) => one.weight = 1,
            (all, Some(most @ 257..)) => {
                all.iter_mut()
                    .for_each(|way| way.weight = (u32::from(way.weight) * 256 / u32::from(most)).max(1) as u16);
            }
            _ => {}
        }
        Meaning::Target(Target::Via(ways))
    }

    fn has_subnet(&self, port: u8, to: IpNet) -> bool {
        self.addresses.iter().any(|((on, _), address)| *on == port && address.subnet == to)
    }
}

/// Whether addresses of a prefix mean something only on their link, which every port has by itself.
fn is_link_scope(to: IpNet) -> bool {
    match to {
        IpNet::V4(to) => to.addr().is_multicast(),
        IpNet::V6(to) => to.addr().is_multicast() || to.addr().is_unicast_link_local() && to.prefix_len() >= 10,
    }
}

/// Whether all of `some` is in `all`: the same object, or ways of its own.
fn within(some: &Ways, all: &Ways) -> bool {
    match (some, all) {
        (Ways::Object(some), Ways::Object(all)) => some == all,
        (Ways::Own(some), Ways::Own(all)) => {
            some.is_empty() == all.is_empty() && some.iter().all(|way| all.iter().any(|other| other.same(way)))
        }
        _ => false,
    }
}

/// Reports that one route has come for another of its prefix and metric, if either is there and they differ.
fn report(before: Option<Route>, after: Option<Route>, out: &mut dyn FnMut(Event)) {
    match (before, after) {
        (before, Some(route)) if before.as_ref() != Some(&route) => out(Event::Route { route, added: true }),
        (Some(route), None) => out(Event::Route { route, added: false }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(via: &str, index: u32) -> Way {
        Way { via: via.parse().ok(), index, weight: 1, dead: false }
    }

    fn route(to: &str, ways: Ways, change: Change) -> News {
        let entry = Entry { kind: Kind::Unicast, protocol: 11, class: 0, ways, rest: 0 };
        News::Route { to: to.parse().expect("a prefix"), metric: 5, entry, change }
    }

    fn own(ways: &[Way]) -> Ways {
        Ways::Own(ways.into())
    }

    /// What was reported of routes: the routers' last bytes, with a sign for what is gone.
    fn told(tables: &mut Tables, news: News) -> Vec<String> {
        let mut told = Vec::new();
        tables.apply(news, &mut |event| {
            let Event::Route { route, added } = event else { return };
            let ways = match route.target {
                Target::Via(ways) => {
                    let via = |way: &Gateway| way.via.map_or("link".to_owned(), |via| via.to_string());
                    ways.iter().map(via).collect::<Vec<_>>().join(" ")
                }
                other => format!("{other:?}"),
            };
            told.push(format!("{}{ways}", if added { "" } else { "-" }));
        });
        told
    }

    fn tables() -> Tables {
        let mut tables = Tables::default();
        tables.add_port(0, 10);
        tables.add_port(1, 11);
        tables
    }

    #[test]
    fn the_first_of_several_ipv4_routes_counts() {
        let mut tables = tables();
        let mut tell =
            |via: &str, index, change| told(&mut tables, route("10.0.0.0/8", own(&[way(via, index)]), change));
        assert_eq!(tell("1.1.1.1", 10, Change::Append), ["1.1.1.1"]);
        assert!(tell("1.1.1.2", 11, Change::Append).is_empty());
        assert_eq!(tell("1.1.1.3", 11, Change::Prepend), ["1.1.1.3"]);
        assert!(tell("1.1.1.4", 99, Change::Prepend).is_empty(), "by an interface that is no port");
        assert_eq!(tell("1.1.1.3", 11, Change::Delete), ["1.1.1.1"]);
        assert_eq!(tell("1.1.1.5", 11, Change::Replace), ["1.1.1.5"]);
        assert_eq!(tell("1.1.1.1", 10, Change::Delete), Vec::<String>::new());
    }

    #[test]
    fn ipv6_ways_grow_and_shrink() {
        let mut tables = tables();
        let (a, b) = (way("fe80::a", 10), way("fe80::b", 11));
        let mut tell = |ways: &[Way], change| told(&mut tables, route("2001:db8::/32", own(ways), change));
        assert_eq!(tell(&[a], Change::Append), ["fe80::a"]);
        assert_eq!(tell(&[a, b], Change::Append), ["fe80::a fe80::b"]);
        assert!(tell(&[a, b], Change::Append).is_empty(), "the same once more");
        assert_eq!(tell(&[a], Change::Delete), ["fe80::b"]);
        assert_eq!(tell(&[a], Change::Replace), ["fe80::a"]);
        assert_eq!(tell(&[a], Change::Delete), ["-fe80::a"]);
    }

    #[test]
    fn objects_change_what_leads_by_them() {
        let mut tables = tables();
        let object = |id, object| News::Object { id, object };
        let hop = |via| Some(Object::Way(way(via, 10)));
        assert!(told(&mut tables, object(1, hop("1.1.1.1"))).is_empty());
        told(&mut tables, object(2, hop("1.1.1.2")));
        told(&mut tables, object(9, Some(Object::Group([(1, 1), (2, 1)].into()))));
        assert_eq!(told(&mut tables, route("10.0.0.0/8", Ways::Object(9), Change::Append)), ["1.1.1.1 1.1.1.2"]);
        assert_eq!(told(&mut tables, object(2, hop("1.1.1.7"))), ["1.1.1.1 1.1.1.7"]);
        assert_eq!(told(&mut tables, object(1, None)), ["1.1.1.7"]);
        assert_eq!(told(&mut tables, object(9, None)), ["-1.1.1.7"]);
        told(&mut tables, route("10.0.0.0/8", Ways::Object(9), Change::Delete));
        assert!(tables.uses.is_empty());
    }

    #[test]
    fn other_tables_take_the_place_of_these() {
        let (mut old, mut new) = (tables(), tables());
        for (tables, via) in [(&mut old, "1.1.1.1"), (&mut new, "1.1.1.2")] {
            tables.load(route("10.0.0.0/8", own(&[way(via, 10)]), Change::Append));
            tables.load(route("10.1.0.0/16", own(&[way("1.1.1.9", 10)]), Change::Append));
        }
        old.load(route("9.0.0.0/8", own(&[way("1.1.1.1", 10)]), Change::Append));
        new.load(route("11.0.0.0/8", own(&[way("1.1.1.1", 10)]), Change::Append));
        let mut events = Vec::new();
        new.report_from(&old, &mut |event| panic!("{event:?}"));
        let (mut before, nine) = (Before::new(old), "9.0.0.0/8".parse().expect("a prefix"));
        // The third to be looked at is the same in both.
        for (done, due) in [(false, true), (true, false)] {
            assert!(before.is_due(nine, 5) == due);
            let all = new.report_routes(&mut before, 3, &mut |event| match event {
                Event::Route { route, added } => events.push((route.to.to_string(), added)),
                other => panic!("{other:?}"),
            });
            assert_eq!(all, done);
        }
        let expected = [("9.0.0.0/8", false), ("10.0.0.0/8", true), ("11.0.0.0/8", true)];
        assert_eq!(events, expected.map(|(to, added)| (to.to_owned(), added)));
    }
}
