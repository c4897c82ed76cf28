//! Ways: how one gateway is reached, by the routes there are.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::route::Gateway;
use crate::route::hop::Hop;

use super::targets::{What, fraction};
use super::{Fib, NEIGHBOR, Neighbor, NeighborState, Rib};

/// How many routes may be followed, one by the other, to reach a gateway.
const DEPTH: usize = 8;
/// How often routes may be looked up for one gateway: a bound for what is nested and branches at every level.
const LOOKUPS: usize = 256;

/// Where packets are not sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Discard {
    /// Without a word.
    Blackhole,
    /// As unreachable.
    Unreachable,
    /// As forbidden.
    Prohibit,
}

impl Discard {
    /// Its hop.
    pub fn hop(self) -> Hop {
        match self {
            Discard::Blackhole => Hop::Blackhole,
            Discard::Unreachable => Hop::Unreachable,
            Discard::Prohibit => Hop::Prohibit,
        }
    }
}

/// What makes ways the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Key {
    /// Neither a gateway nor a port.
    #[default]
    Nowhere,
    /// The destination itself, on a port's link.
    Device(u8),
    /// A gateway on a port's link, of either family (RFC 8950): whoever names the port knows that it is there.
    Direct(u8, IpAddr),
    /// A gateway wherever the routes say.
    Through(IpAddr),
    /// A neighbor, as long as the routes say that it is on its port's link.
    Host(u8, IpAddr),
}

impl From<&Gateway> for Key {
    fn from(gateway: &Gateway) -> Key {
        match (gateway.via, gateway.port) {
            (Some(via), Some(port)) => Key::Direct(port, via),
            (Some(via), None) => Key::Through(via),
            (None, Some(port)) => Key::Device(port),
            (None, None) => Key::Nowhere,
        }
    }
}

/// Where a way ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leaf {
    /// At a neighbor.
    Neighbor(u32),
    /// At the destination, on a port's link.
    Glean(u8),
    /// In a route that drops.
    Discard(Discard),
}

/// The same before neighbors have indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Neighbor(u8, IpAddr),
    Glean(u8),
    Discard(Discard),
}

/// How one gateway is reached.
#[derive(Debug, Default)]
pub struct Way {
    /// What it is.
    pub key: Key,
    /// Where it ends, and the shares. A port that is named may be down; others are up.
    pub leaves: Vec<(Leaf, u64)>,
    /// The addresses it was looked up by, and the length of the prefix found for each.
    pub lookups: Vec<(IpAddr, u8)>,
    /// Targets that lead by it.
    pub users: BTreeSet<u32>,
}

/// What a search for a gateway has come by.
#[derive(Default)]
struct Search {
    /// The prefixes whose routes are being followed.
    trail: Vec<u32>,
    lookups: Vec<(IpAddr, u8)>,
}

impl<F: Fib> Rib<F> {
    /// The index of a way.
    pub(super) fn way(&mut self, key: Key) -> u32 {
        if let Some(way) = self.way_of.get(&key) {
            return *way;
        }
        let way = self.ways.insert(Way { key, ..Way::default() });
        self.way_of.insert(key, way);
        self.follow(way);
        way
    }

    /// Forgets a way by which no target leads.
    pub(super) fn reap_way(&mut self, way: u32) {
        if !self.ways[way].users.is_empty() {
            return;
        }
        self.watch(way, Vec::new());
        let old = self.ways.remove(way);
        self.way_of.remove(&old.key);
        old.leaves.iter().for_each(|(leaf, _)| self.let_go(*leaf, way, old.key));
    }

    /// A route to this prefix has changed: finds the ways that may have changed by that.
    pub(super) fn changed(&mut self, net: IpNet) {
        if self.watched.is_empty() {
            return;
        }
        let range = net.network()..=net.broadcast();
        let concerned = |(way, length): &(u32, u8)| (*length <= net.prefix_len()).then_some(*way);
        let mut ways: Vec<u32> = self.watched.range(range).flat_map(|(_, ways)| ways).filter_map(concerned).collect();
        ways.sort_unstable();
        ways.dedup();
        for way in ways {
            if self.follow(way) {
                self.refresh_way(way);
            }
        }
    }

    /// A port has gone up or down: the same.
    pub(super) fn flapped(&mut self, port: u8) {
        for way in self.ways.indices() {
            let touched = match self.ways[way].key {
                Key::Nowhere => continue,
                Key::Device(own) | Key::Direct(own, _) => own == port,
                Key::Through(_) | Key::Host(..) => self.follow(way),
            };
            if touched {
                self.refresh_way(way);
            }
        }
    }

    /// Writes anew what leads by a way.
    fn refresh_way(&mut self, way: u32) {
        for target in self.ways[way].users.clone() {
            self.refresh(target);
        }
    }

    /// Writes anew what leads to a neighbor.
    pub(super) fn refresh_users(&mut self, neighbor: u32) {
        for way in self.neighbors[neighbor].users.clone() {
            self.refresh_way(way);
        }
    }

    /// Finds out where a way leads. True if that is elsewhere than before.
    fn follow(&mut self, way: u32) -> bool {
        let key = self.ways[way].key;
        let mut search = Search::default();
        let ends = match key {
            Key::Nowhere => Vec::new(),
            Key::Device(port) => vec![(End::Glean(port), 1)],
            Key::Direct(port, via) => vec![(End::Neighbor(port, via), 1)],
            Key::Through(via) => self.search(via, &mut search),
            Key::Host(port, ip) => {
                let mut ends = self.search(ip, &mut search);
                ends.retain(|(end, _)| *end == End::Neighbor(port, ip));
                ends.truncate(1);
                ends
            }
        };
        let mut leaves: Vec<(Leaf, u64)> = Vec::new();
        for (end, part) in ends {
            let leaf = match end {
                End::Neighbor(port, ip) => Leaf::Neighbor(self.neighbor_index(port, ip)),
                End::Glean(port) => Leaf::Glean(port),
                End::Discard(discard) => Leaf::Discard(discard),
            };
            match leaves.iter_mut().find(|(other, _)| *other == leaf) {
                Some((_, sum)) => *sum += part,
                None => leaves.push((leaf, part)),
            }
        }
        self.watch(way, search.lookups);
        if self.ways[way].leaves == leaves {
            return false;
        }
        leaves.iter().for_each(|(leaf, _)| self.hold(*leaf, way, key));
        let old = std::mem::replace(&mut self.ways[way].leaves, leaves);
        for (leaf, _) in old {
            if self.ways[way].leaves.iter().all(|(other, _)| *other != leaf) {
                self.let_go(leaf, way, key);
            }
        }
        true
    }

    /// Where packets to an address end, by the longest match that leads anywhere; and the shares.
    fn search(&self, to: IpAddr, search: &mut Search) -> Vec<(End, u64)> {
        // Which link an address of the link is on, only the port says (RFC 4291, section 2.5.6).
        let nowhere = matches!(to, IpAddr::V6(to) if to.is_unicast_link_local());
        if nowhere || search.trail.len() >= DEPTH || search.lookups.len() >= LOOKUPS {
            return Vec::new();
        }
        for prefix in self.prefixes.covering(to) {
            if search.trail.contains(&prefix) {
                continue;
            }
            for index in self.candidates(prefix) {
                let entry = &self.entries[index];
                if entry.rank >= NEIGHBOR {
                    break;
                }
                let found = match &self.targets[entry.target].what {
                    What::Broadcast(port) if !self.is_up(*port) => None,
                    // We are no gateway of ours.
                    What::Local(_) | What::Broadcast(_) => Some(Vec::new()),
                    What::Discard(discard) => Some(vec![(End::Discard(*discard), 1)]),
                    What::Via(ways) => {
                        search.trail.push(prefix);
                        let ends = self.branch(to, ways, search);
                        search.trail.pop();
                        (!ends.is_empty()).then_some(ends)
                    }
                };
                if let Some(found) = found {
                    search.lookups.push((to, self.prefixes.net(prefix).prefix_len()));
                    return found;
                }
            }
        }
        search.lookups.push((to, 0));
        Vec::new()
    }

    fn branch(&self, to: IpAddr, ways: &[(u32, u16)], search: &mut Search) -> Vec<(End, u64)> {
        let mut ends = Vec::new();
        for (way, weight) in ways {
            let weight = u64::from(*weight) << 20;
            match self.ways[*way].key {
                Key::Device(port) if self.is_up(port) => ends.push((End::Neighbor(port, to), weight)),
                Key::Direct(port, via) if self.is_up(port) => ends.push((End::Neighbor(port, via), weight)),
                Key::Through(via) => {
                    let further = self.search(via, search);
                    let sum = further.iter().map(|(_, part)| part).sum();
                    ends.extend(further.iter().map(|(end, part)| (*end, fraction(weight, *part, sum))));
                }
                Key::Device(_) | Key::Direct(..) | Key::Nowhere | Key::Host(..) => {}
            }
        }
        ends
    }

    /// Remembers by which addresses a way was looked up.
    fn watch(&mut self, way: u32, mut lookups: Vec<(IpAddr, u8)>) {
        // Of several results for one address the shortest: what is longer may change any of them.
        lookups.sort_unstable();
        lookups.dedup_by_key(|(address, _)| *address);
        if self.ways[way].lookups == lookups {
            return;
        }
        for (address, length) in &lookups {
            self.watched.entry(*address).or_default().push((way, *length));
        }
        for (address, length) in std::mem::replace(&mut self.ways[way].lookups, lookups) {
            let Some(ways) = self.watched.get_mut(&address) else { continue };
            if let Some(at) = ways.iter().position(|watch| *watch == (way, length)) {
                ways.swap_remove(at);
            }
            if ways.is_empty() {
                self.watched.remove(&address);
            }
        }
    }

    /// The index of a neighbor.
    pub(super) fn neighbor_index(&mut self, port: u8, ip: IpAddr) -> u32 {
        if let Some(neighbor) = self.neighbor_of.get(&(port, ip)) {
            return *neighbor;
        }
        let neighbor = self.neighbors.insert(Neighbor { port, ip, ..Neighbor::default() });
        self.neighbor_of.insert((port, ip), neighbor);
        self.give_slot(neighbor);
        neighbor
    }

    fn hold(&mut self, leaf: Leaf, way: u32, key: Key) {
        let Leaf::Neighbor(neighbor) = leaf else { return };
        let neighbor = &mut self.neighbors[neighbor];
        if neighbor.users.insert(way) && !matches!(key, Key::Host(..)) {
            neighbor.gateways += 1;
            if neighbor.gateways == 1 {
                self.wants.push((neighbor.port, neighbor.ip));
            }
        }
    }

    fn let_go(&mut self, leaf: Leaf, way: u32, key: Key) {
        let Leaf::Neighbor(index) = leaf else { return };
        let neighbor = &mut self.neighbors[index];
        if neighbor.users.remove(&way) && !matches!(key, Key::Host(..)) {
            neighbor.gateways -= 1;
        }
        self.reap_neighbor(index);
    }

    /// Forgets a neighbor that is neither known nor a gateway.
    pub(super) fn reap_neighbor(&mut self, index: u32) {
        let neighbor = &self.neighbors[index];
        if !neighbor.users.is_empty() || neighbor.state != NeighborState::Gone {
            return;
        }
        let neighbor = self.neighbors.remove(index);
        self.neighbor_of.remove(&(neighbor.port, neighbor.ip));
        self.hungry.remove(&index);
        if let Some(slot) = neighbor.slot {
            self.slot_of.remove(&slot);
            self.adjacency_slots.retire(slot, 0);
        }
    }
}
