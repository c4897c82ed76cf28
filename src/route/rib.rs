//! The RIB: every route there is, which of them are in force, and what they lead to. Control's alone; no sockets, no clock.
//!
//! Routes come from ports' addresses, the file and the kernel; ports go up and down; neighbors come and go. What follows is
//! written where workers read it: prefixes to the forwarding table ([`Fib`]), what they lead to to [`Hops`]. Routes with the
//! same set of gateways share one *target* and so one hop: when a gateway falls silent or a port goes down, what is written
//! is a few words, however many routes there are. Only when a target can be used no more, or can again, its prefixes are
//! looked at one by one, some at a time ([`Rib::settle`]); until then they are refused as unreachable.
//!
//! Of a prefix's routes the first that can be used is in force: by source, then by metric. A gateway without a port is
//! reached as the longest match for its own address says, which may again have such gateways; a route that is being
//! followed is passed over, so that nothing ever leads to itself. That depends on the routes there are and on the ports
//! that are up, never on the outcome for other routes, and so there is nothing to oscillate.
//!
//! It must not know link-layer addresses: what is in an adjacency is the neighbor machine's, here it gets its index.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::adjacency::{Adjacency, Table};
use super::hop::{Hop, Hops};
use super::{Route, Source};

mod buckets;
mod connected;
mod links;
mod prefixes;
mod resolve;
pub mod show;
mod slab;
mod slots;
mod targets;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod twin;

use prefixes::{NONE, Prefixes};
use resolve::Way;
use slab::Slab;
pub use slots::Seal;
use slots::Slots;
pub use targets::ports_of;
use targets::{Object, What};

/// The forwarding table, as its writer.
pub trait Fib {
    /// From now on a prefix leads to a hop.
    fn insert(&mut self, net: IpNet, hop: u32) -> Result<(), Full>;
    /// It leads nowhere; nothing happens if it did not.
    fn remove(&mut self, net: IpNet);
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What the neighbor machine knows of a neighbor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighborState {
    /// Its link-layer address.
    Resolved,
    /// Nothing yet: it is being asked.
    Unresolved,
    /// That it does not answer.
    Failed,
    /// Nothing: it has forgotten it.
    Gone,
}

/// How much a route of whom is believed: what follows from ports' addresses, then as [`Source`] says, then what neighbors
/// there are.
type Rank = u8;
const ADDRESS: Rank = 0;
const NEIGHBOR: Rank = rank(Source::Kernel) + 1;

const fn rank(source: Source) -> Rank {
    source as Rank + 1
}

/// One route to one prefix.
#[derive(Clone, Copy, Debug)]
struct Entry {
    prefix: u32,
    metric: u32,
    target: u32,
    /// The next of the prefix's routes, which is less believed.
    next: u32,
    /// Its neighbors among the target's routes.
    beside: [u32; 2],
    rank: Rank,
    /// True while its source is being replaced and has not named it again.
    stale: bool,
}

impl Default for Entry {
    fn default() -> Entry {
        Entry { prefix: NONE, metric: 0, target: NONE, next: NONE, beside: [NONE; 2], rank: Rank::MAX, stale: false }
    }
}

#[derive(Debug, Default)]
struct Link {
    up: bool,
    addresses: Vec<IpNet>,
}

/// One neighbor on one port.
#[derive(Debug)]
struct Neighbor {
    port: u8,
    ip: IpAddr,
    state: NeighborState,
    /// Its adjacency; none if there was no room.
    slot: Option<u32>,
    /// Ways that lead over it.
    users: BTreeSet<u32>,
    /// How many of these do so because it is a gateway.
    gateways: u32,
}

impl Default for Neighbor {
    fn default() -> Neighbor {
        let ip = IpAddr::from([0; 4]);
        Neighbor { port: 0, ip, state: NeighborState::Gone, slot: None, users: BTreeSet::new(), gateways: 0 }
    }
}

/// All routes.
#[derive(Debug)]
pub struct Rib<F> {
    fib: F,
    hops: Arc<Hops>,
    table: Arc<Table>,
    prefixes: Prefixes,
    entries: Slab<Entry>,
    /// Of each rank.
    counts: [usize; NEIGHBOR as usize + 1],
    targets: Slab<Object>,
    target_of: HashMap<What, u32>,
    /// Targets whose usability has changed, and whose prefixes are yet to be looked at.
    walks: VecDeque<u32>,
    /// Targets that found no room for their hops.
    starved: BTreeSet<u32>,
    /// Neighbors that found no room for their adjacencies.
    hungry: BTreeSet<u32>,
    ways: Slab<Way>,
    way_of: HashMap<resolve::Key, u32>,
    /// The addresses that ways are looked up by: the way, and the length of the prefix that was found.
    watched: BTreeMap<IpAddr, Vec<(u32, u8)>>,
    neighbors: Slab<Neighbor>,
    neighbor_of: HashMap<(u8, IpAddr), u32>,
    /// Whose each adjacency is.
    slot_of: HashMap<u32, u32>,
    links: Vec<Link>,
    hop_slots: Slots,
    adjacency_slots: Slots,
    /// Prefixes the forwarding table has no room for.
    refused: HashSet<u32>,
    /// True if there may be room for them now.
    retry: bool,
    wants: Vec<(u8, IpAddr)>,
}

impl<F: Fib> Rib<F> {
    /// Without routes, over `ports` logical ports, all of them down. The first `ports` adjacencies are not its own.
    pub fn new(ports: usize, fib: F, hops: Arc<Hops>, table: Arc<Table>) -> Rib<F> {
        Rib {
            fib,
            prefixes: Prefixes::new(),
            entries: Slab::new(),
            counts: [0; NEIGHBOR as usize + 1],
            targets: Slab::new(),
            target_of: HashMap::new(),
            walks: VecDeque::new(),
            starved: BTreeSet::new(),
            hungry: BTreeSet::new(),
            ways: Slab::new(),
            way_of: HashMap::new(),
            watched: BTreeMap::new(),
            neighbors: Slab::new(),
            neighbor_of: HashMap::new(),
            slot_of: HashMap::new(),
            links: (0..ports).map(|_| Link::default()).collect(),
            hop_slots: Slots::new(1, hops.room()),
            adjacency_slots: Slots::new(ports, table.room()),
            refused: HashSet::new(),
            retry: false,
            wants: Vec::new(),
            hops,
            table,
        }
    }

    /// The forwarding table.
    pub fn fib(&self) -> &F {
        &self.fib
    }

    /// Likewise, for its upkeep: prefixes are the RIB's to change.
    pub fn fib_mut(&mut self) -> &mut F {
        &mut self.fib
    }

    /// Adds a route, in place of that of the same source to the same prefix with the same metric.
    pub fn add(&mut self, source: Source, route: &Route) {
        let what = self.what(&route.target);
        self.put(rank(source), route.to, route.metric, what);
    }

    /// Removes a source's route; false if there was none.
    pub fn remove(&mut self, source: Source, to: IpNet, metric: u32) -> bool {
        self.cut(rank(source), to, metric)
    }

    /// Makes these all the routes of a source. What stays is not touched.
    pub fn replace<R: std::borrow::Borrow<Route>>(&mut self, source: Source, routes: impl IntoIterator<Item = R>) {
        let rank = rank(source);
        for index in self.entries.indices() {
            self.entries[index].stale = self.entries[index].rank == rank;
        }
        routes.into_iter().for_each(|route| self.add(source, route.borrow()));
        for index in self.entries.indices() {
            let Entry { stale: true, rank: found, prefix, metric, .. } = self.entries[index] else { continue };
            self.cut(found, self.prefixes.net(prefix), metric);
        }
    }

    /// The gateways that have become such since this was last asked, with their ports: to be resolved ahead of traffic.
    pub fn wants(&mut self) -> impl Iterator<Item = (u8, IpAddr)> + '_ {
        self.wants.drain(..)
    }

    /// Works off what is left to do, at most about so many prefixes. True if nothing is left.
    pub fn settle(&mut self, budget: usize) -> bool {
        let mut left = budget;
        while let Some(target) = self.walks.front().copied() {
            let index = self.targets[target].walk;
            if index == NONE {
                self.walks.pop_front();
                self.targets[target].walking = false;
                self.reap(target);
                continue;
            }
            if left == 0 {
                return false;
            }
            left -= 1;
            self.targets[target].walk = self.entries[index].beside[1];
            self.select(self.entries[index].prefix);
        }
        if std::mem::take(&mut self.retry) {
            let refused: Vec<u32> = self.refused.iter().copied().take(left).collect();
            self.retry = refused.len() < self.refused.len();
            refused.into_iter().for_each(|prefix| self.select(prefix));
        }
        !self.retry
    }

    /// Seals what was given back so far, if anything waits: to be released when every worker has passed a turn, and no flow
    /// names an adjacency from before.
    pub fn seal(&mut self) -> Option<(Seal, Seal)> {
        let waiting = self.hop_slots.waiting() || self.adjacency_slots.waiting();
        waiting.then(|| (self.hop_slots.seal(), self.adjacency_slots.seal()))
    }

    /// Hops and adjacencies given back before the seal may be used for others. True if something that had found no room has
    /// some now, so that what leads to it is to be asked for again.
    pub fn release(&mut self, (hops, adjacencies): (Seal, Seal)) -> bool {
        self.hop_slots.release(hops, |slot| self.hops.set(slot, Hop::None));
        self.adjacency_slots.release(adjacencies, |slot| self.table.set(slot, Adjacency::FREE));
        self.feed()
    }

    /// Adds a route or changes the one that is there.
    fn put(&mut self, rank: Rank, net: IpNet, metric: u32, what: What) {
        let target = self.target(what);
        let prefix = self.prefixes.insert(net);
        let (before, found) = self.position(prefix, rank, metric);
        let index = match found {
            Some(index) => {
                self.entries[index].stale = false;
                let old = self.entries[index].target;
                if old == target {
                    return;
                }
                self.unlink(index);
                self.entries[index].target = target;
                self.link(index);
                self.changed(net);
                self.select(prefix);
                self.reap(old);
                return;
            }
            None => self.entries.insert(Entry { prefix, metric, target, rank, ..Entry::default() }),
        };
        let next = match before {
            Some(before) => std::mem::replace(&mut self.entries[before].next, index),
            None => std::mem::replace(&mut self.prefixes.at_mut(prefix).first, index),
        };
        self.entries[index].next = next;
        self.counts[usize::from(rank)] += 1;
        self.link(index);
        self.changed(net);
        self.select(prefix);
    }

    fn cut(&mut self, rank: Rank, net: IpNet, metric: u32) -> bool {
        let Some(prefix) = self.prefixes.find(net) else { return false };
        let (before, Some(index)) = self.position(prefix, rank, metric) else { return false };
        let Entry { next, target, .. } = self.entries[index];
        match before {
            Some(before) => self.entries[before].next = next,
            None => self.prefixes.at_mut(prefix).first = next,
        }
        self.unlink(index);
        self.entries.remove(index);
        self.counts[usize::from(rank)] -= 1;
        self.changed(net);
        self.select(prefix);
        self.reap(target);
        true
    }

    /// Where a route stands or would stand among those of its prefix: behind which, and itself.
    fn position(&self, prefix: u32, rank: Rank, metric: u32) -> (Option<u32>, Option<u32>) {
        let mut before = None;
        for index in self.candidates(prefix) {
            let entry = &self.entries[index];
            match (entry.rank, entry.metric).cmp(&(rank, metric)) {
                std::cmp::Ordering::Less => before = Some(index),
                std::cmp::Ordering::Equal => return (before, Some(index)),
                std::cmp::Ordering::Greater => break,
            }
        }
        (before, None)
    }

    /// The routes of a prefix, the most believed first.
    fn candidates(&self, prefix: u32) -> impl Iterator<Item = u32> + '_ {
        let some = |index: u32| (index != NONE).then_some(index);
        std::iter::successors(some(self.prefixes.at(prefix).first), move |index| some(self.entries[*index].next))
    }

    /// Writes what a prefix leads to, if that has changed, and forgets a prefix without routes.
    fn select(&mut self, prefix: u32) {
        let best = self.candidates(prefix).map(|index| self.entries[index].target).find(|t| self.targets[*t].usable);
        let hop = best.map_or(0, |target| self.targets[target].hop);
        let held = self.prefixes.at(prefix);
        if hop != held.written || self.refused.contains(&prefix) {
            let net = self.prefixes.net(prefix);
            let written = if hop != 0 && self.fib.insert(net, hop).is_ok() { hop } else { 0 };
            if written == 0 && held.written != 0 {
                self.fib.remove(net);
                self.retry = !self.refused.is_empty();
            }
            if written == hop {
                self.refused.remove(&prefix);
            } else {
                self.refused.insert(prefix);
            }
            self.prefixes.at_mut(prefix).written = written;
        }
        if held.first == NONE {
            self.prefixes.remove(prefix);
        }
    }
}
