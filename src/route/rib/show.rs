//! Routes as they are shown.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::route::{Gateway, Source, Target};

use super::resolve::{Discard, Key, Leaf};
use super::targets::What;
use super::{ADDRESS, Entry, Fib, NEIGHBOR, NeighborState, Rib, rank};

/// Who says that there is a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// An address of a port.
    Address,
    /// One of the sources of routes.
    Source(Source),
    /// A neighbor on a link.
    Neighbor,
}

/// What it leads to, as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leads {
    /// As a source said.
    To(Target),
    /// To an address of the box, on this port.
    Local(u8),
    /// To everybody on this port's link.
    Broadcast(u8),
}

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is in force.
    Active,
    /// A more believed one to the same prefix is.
    Backup,
    /// It leads nowhere: its port is down, or its gateway cannot be reached.
    Unreachable,
    /// It would be in force, but the tables are full.
    Refused,
}

/// One of the ways that packets can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The logical port; none if it ends in a route that drops.
    pub port: Option<u8>,
    /// The neighbor; none if the destination is.
    pub neighbor: Option<IpAddr>,
    /// What is known of it.
    pub state: Option<NeighborState>,
    /// Its adjacency.
    pub adjacency: Option<u32>,
    /// True if it takes packets at present.
    pub alive: bool,
    /// Its weight: meaningful only beside that of the others.
    pub weight: u64,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where to.
    pub to: IpNet,
    /// Who says so.
    pub origin: Origin,
    /// Its metric.
    pub metric: u32,
    /// What it leads to.
    pub leads: Leads,
    /// What has become of it.
    pub standing: Standing,
    /// Its hop.
    pub hop: u32,
    /// The ways that packets take, when all that had to be looked up is.
    pub next: Vec<Next>,
}

/// The route that an address takes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The one in force; none if there is no route.
    pub active: Option<Row>,
    /// Those that match as well and would have come before it, but cannot be used; the longest first.
    pub passed: Vec<Row>,
    /// Those that it comes before, in the order in which they would follow.
    pub behind: Vec<Row>,
}

/// How many of what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// IPv4 prefixes.
    pub v4: usize,
    /// IPv6 prefixes.
    pub v6: usize,
    /// Routes that follow from addresses, those of the sources in their order, and of neighbors.
    pub routes: [usize; NEIGHBOR as usize + 1],
    /// Different targets.
    pub targets: usize,
    /// Neighbors that are known or gateways.
    pub neighbors: usize,
    /// Hops in use, those that wait for a release included.
    pub hops: usize,
    /// Adjacencies, the same.
    pub adjacencies: usize,
    /// Prefixes that the forwarding table had no room for.
    pub refused: usize,
    /// Targets and neighbors for which there was no room.
    pub starved: usize,
}

impl Counts {
    /// Routes of an origin.
    pub fn of(&self, origin: Origin) -> usize {
        self.routes[usize::from(match origin {
            Origin::Address => ADDRESS,
            Origin::Source(source) => rank(source),
            Origin::Neighbor => NEIGHBOR,
        })]
    }
}

fn origin(of: u8) -> Origin {
    let sources = [Source::Connected, Source::Static, Source::Kernel];
    match of {
        ADDRESS => Origin::Address,
        other => sources.into_iter().find(|one| rank(*one) == other).map_or(Origin::Neighbor, Origin::Source),
    }
}

impl<F: Fib> Rib<F> {
    /// All routes, in no order.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.prefixes.indices().flat_map(|prefix| self.candidates(prefix)).map(|index| self.row(&self.entries[index]))
    }

    /// Those of some origins, in no order.
    pub fn rows_of(&self, shown: impl Fn(Origin) -> bool) -> impl Iterator<Item = Row> {
        let entries = self.prefixes.indices().flat_map(|prefix| self.candidates(prefix)).map(|at| &self.entries[at]);
        entries.filter(move |entry| shown(origin(entry.rank))).map(|entry| self.row(entry))
    }

    /// The routes to exactly this prefix, the most believed first.
    pub fn rows_to(&self, net: IpNet) -> impl Iterator<Item = Row> + '_ {
        let prefix = self.prefixes.find(net);
        prefix.into_iter().flat_map(|prefix| self.candidates(prefix)).map(|index| self.row(&self.entries[index]))
    }

    /// Which route an address takes, and which it does not.
    pub fn lookup(&self, address: IpAddr) -> Lookup {
        let mut lookup = Lookup { active: None, passed: Vec::new(), behind: Vec::new() };
        for index in self.prefixes.covering(address).flat_map(|prefix| self.candidates(prefix)) {
            let row = self.row(&self.entries[index]);
            match (row.standing, &lookup.active) {
                (Standing::Active, None) => lookup.active = Some(row),
                (_, None) => lookup.passed.push(row),
                (_, Some(_)) => lookup.behind.push(row),
            }
        }
        lookup
    }

    /// How many of what there is.
    pub fn counts(&self) -> Counts {
        let (v4, v6) = self.prefixes.len();
        Counts {
            v4,
            v6,
            routes: self.counts,
            targets: self.targets.len(),
            neighbors: self.neighbors.len(),
            hops: self.hop_slots.used(),
            adjacencies: self.adjacency_slots.used(),
            refused: self.refused.len(),
            starved: self.starved.len() + self.hungry.len(),
        }
    }

    fn row(&self, entry: &Entry) -> Row {
        let target = &self.targets[entry.target];
        let first = self.candidates(entry.prefix).find(|index| self.targets[self.entries[*index].target].usable);
        let first = first.map(|index| &self.entries[index]);
        let standing = match first {
            _ if target.hop == 0 => Standing::Refused,
            _ if !target.usable => Standing::Unreachable,
            Some(first) if (first.rank, first.metric) != (entry.rank, entry.metric) => Standing::Backup,
            _ if self.refused.contains(&entry.prefix) => Standing::Refused,
            _ => Standing::Active,
        };
        let origin = origin(entry.rank);
        Row {
            to: self.prefixes.net(entry.prefix),
            origin,
            metric: if matches!(origin, Origin::Source(_)) { entry.metric } else { 0 },
            leads: self.leads(&target.what),
            standing,
            hop: target.hop,
            next: self
                .members(entry.target)
                .into_iter()
                .map(|member| self.next(member.who, member.weight, member.alive))
                .collect(),
        }
    }

    fn next(&self, leaf: Leaf, weight: u64, alive: bool) -> Next {
        let (neighbor, adjacency) = match leaf {
            Leaf::Neighbor(neighbor) => (Some(self.neighbors[neighbor].ip), self.neighbors[neighbor].slot),
            _ => (None, None),
        };
        Next { port: self.port_of(leaf), neighbor, state: self.state_of(leaf), adjacency, alive, weight }
    }

    fn leads(&self, what: &What) -> Leads {
        Leads::To(match what {
            What::Local(port) => return Leads::Local(*port),
            What::Broadcast(port) => return Leads::Broadcast(*port),
            What::Discard(Discard::Blackhole) => Target::Blackhole,
            What::Discard(Discard::Unreachable) => Target::Unreachable,
            What::Discard(Discard::Prohibit) => Target::Prohibit,
            What::Via(ways) => {
                let gateway = |(way, weight): &(u32, u16)| {
                    let (via, port) = match self.ways[*way].key {
                        Key::Nowhere => (None, None),
                        Key::Device(port) => (None, Some(port)),
                        Key::Direct(port, via) => (Some(via), Some(port)),
                        Key::Through(via) => (Some(via), None),
                        // To the destination itself.
                        Key::Host(port, _) => (None, Some(port)),
                    };
                    Gateway { via, port, weight: *weight }
                };
                Target::Via(ways.iter().map(gateway).collect())
            }
        })
    }
}
