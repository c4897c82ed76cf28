//! Control's side of routing: what is known of addresses, routes and neighbors, and what of that workers are told.
//!
//! Pure: frames, events and the time come in, frames to be sent go out. It is the one writer of [`Routing`].

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use crate::config::neighbor::Neighbor as Settings;

use super::adjacency::{Adjacency, State};
use super::epoch::Epochs;
use super::fib::{Capacity, FibWriter};
use super::neighbor::{self, Effect, Neighbors};
use super::rib::{self, NeighborState, Rib, Seal};
use super::{Macs, Route, Routing, Source, Want};

/// Between two changes that workers are told of, in nanoseconds: each makes every flow ask for its way again.
const PAUSE: u64 = 10_000_000;
/// Prefixes that are looked at again in one go.
const BUDGET: usize = 20_000;

/// A logical port as routing knows it.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Largest network-layer packet, in bytes.
    pub mtu: u16,
    /// The tags of its frames; zeros if there are none.
    pub tags: [[u8; 4]; 2],
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// What it advertises as an IPv6 router, if it does.
    pub advertises: Option<crate::config::neighbor::RouterAdvertisements>,
}

/// The forwarding table, written by the RIB.
#[derive(Debug)]
pub struct Written(FibWriter);

impl rib::Fib for Written {
    fn insert(&mut self, net: IpNet, hop: u32) -> Result<(), rib::Full> {
        self.0.insert(net, hop).map(|_| ()).map_err(|_| rib::Full)
    }

    fn remove(&mut self, net: IpNet) {
        self.0.remove(net);
    }
}

/// The one that changes [`Routing`].
pub struct Router {
    routing: Arc<Routing>,
    rib: Rib<Written>,
    neighbors: Neighbors,
    ports: Vec<Port>,
    /// Neighbors of the file.
    given: Vec<(u8, IpAddr, [u8; 6])>,
    /// Frames to be sent, untagged, by logical port.
    pub sends: Vec<(u8, Vec<u8>)>,
    /// What the operator should know.
    pub notes: Vec<String>,
    effects: Vec<Effect>,
    /// What may be used again when workers have seen an epoch.
    sealed: VecDeque<(u64, (Seal, Seal))>,
    /// Since workers were last told, something has changed; when that was.
    changed: bool,
    told: u64,
}

impl Router {
    /// The routing of these ports, whose links are down, for `workers` workers and one who asks.
    pub fn new(workers: usize, capacity: Capacity, settings: &Settings, ports: Vec<Port>) -> std::io::Result<Router> {
        let epochs = Epochs::new(workers + 1);
        let fib = FibWriter::new(capacity, &epochs)?;
        let macs = Macs::new(ports.iter().map(|port| (port.mac, Vec::new())));
        let routing = Arc::new(Routing::new(fib.fib(), epochs, macs));
        for (index, port) in (0..).zip(&ports) {
            let keep =
                Adjacency { state: State::Keep, port: index as u8, mtu: port.mtu, tags: port.tags, ..Adjacency::FREE };
            routing.adjacencies.set(index, keep);
        }
        let rib = Rib::new(ports.len(), Written(fib), routing.hops.clone(), routing.adjacencies.clone());
        let mut router = Router {
            routing,
            rib,
            neighbors: Neighbors::new(settings, std::process::id().into()),
            ports,
            given: Vec::new(),
            sends: Vec::new(),
            notes: Vec::new(),
            effects: Vec::new(),
            sealed: VecDeque::new(),
            changed: false,
            told: 0,
        };
        for port in 0..router.ports.len() {
            for net in router.ports[port].addresses.clone() {
                router.rib.add_address(port as u8, net);
            }
            router.tell_addresses(port as u8);
        }
        Ok(router)
    }

    /// What workers read.
    pub fn routing(&self) -> &Arc<Routing> {
        &self.routing
    }

    /// The routes.
    pub fn rib(&self) -> &Rib<Written> {
        &self.rib
    }

    /// The neighbors.
    pub fn neighbors(&self) -> &Neighbors {
        &self.neighbors
    }

    /// The ports.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// Begins to speak ARP and neighbor discovery on all ports.
    pub fn start(&mut self, links: u64, carriers: &[u8], now: u64) {
        for (at, (port, carrier)) in self.ports.iter().zip(carriers).enumerate() {
            let up = links & (1 << carrier) != 0;
            let wanted = neighbor::Port {
                name: port.name.clone(),
                mac: port.mac,
                addresses: port.addresses.iter().map(|net| (*net).into()).collect(),
                link_up: up,
                router_advertisements: port.advertises.clone(),
            };
            self.neighbors.port(at as u8, &wanted, now, &mut self.effects);
            self.rib.link_up(at as u8, up);
        }
        for (port, ip, mac) in self.given.clone() {
            self.neighbors.add_static(port, ip, mac, now, &mut self.effects);
        }
        for (port, ip) in self.rib.gateways() {
            self.neighbors.want(port, ip, now, &mut self.effects);
        }
        self.changed = true;
        self.carry_out(now);
    }

    /// Takes addresses that packets are translated to or from: neighbors are answered for them on links to whose subnets they
    /// belong, and what comes to those of `pools`, first and last of ranges, and is no flow's is for the box. No interface of
    /// the kernel has them. To be said before the router starts.
    pub fn stand_for(&mut self, pools: Vec<(IpAddr, IpAddr)>, others: Vec<(IpAddr, IpAddr)>) {
        for (first, last) in &pools {
            let nets: Vec<IpNet> = match (first, last) {
                (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(*first, *last, 0).map(IpNet::from).collect(),
                (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(*first, *last, 0).map(IpNet::from).collect(),
                _ => continue,
            };
            nets.into_iter().for_each(|net| self.rib.add_own(net));
        }
        self.neighbors.stand_for(pools.into_iter().chain(others).collect());
        self.changed = true;
    }

    /// The file says where a neighbor is.
    pub fn give(&mut self, port: u8, ip: IpAddr, mac: [u8; 6]) {
        self.given.push((port, ip, mac));
    }

    /// All ports are up, for those who have none: `check`, `replay`, tests.
    pub fn pretend(&mut self) {
        for port in 0..self.ports.len() as u8 {
            self.rib.link_up(port, true);
        }
        for (port, ip, mac) in self.given.clone() {
            self.rib.neighbor(port, ip, NeighborState::Unresolved);
            self.write(port, ip, State::Forward, mac);
            self.rib.neighbor(port, ip, NeighborState::Resolved);
        }
        // What gateways are wanted is asked for when ports are there.
        self.rib.effects().for_each(drop);
        self.publish(0);
    }

    /// The link of a port is up or down.
    pub fn link(&mut self, port: u8, up: bool, now: u64) {
        self.neighbors.link(port, up, now, &mut self.effects);
        self.rib.link_up(port, up);
        self.changed = true;
        self.carry_out(now);
    }

    /// The operator says where a neighbor is.
    pub fn add_static(&mut self, port: u8, ip: IpAddr, mac: [u8; 6], now: u64) {
        self.neighbors.add_static(port, ip, mac, now, &mut self.effects);
        self.carry_out(now);
    }

    /// A port has got an address, or lost it.
    pub fn address(&mut self, port: u8, net: IpNet, added: bool, now: u64) {
        let Some(known) = self.ports.get_mut(usize::from(port)) else { return };
        let there = known.addresses.iter().position(|other| *other == net);
        match (added, there) {
            (true, None) => {
                known.addresses.push(net);
                self.rib.add_address(port, net);
                self.neighbors.add_address(port, net.into(), now, &mut self.effects);
            }
            (false, Some(at)) => {
                known.addresses.remove(at);
                self.rib.remove_address(port, net);
                self.neighbors.remove_address(port, net.addr(), now, &mut self.effects);
            }
            _ => return,
        }
        self.tell_addresses(port);
        self.changed = true;
        self.carry_out(now);
    }

    /// A source has a route, or has it no more.
    pub fn route(&mut self, source: Source, route: &Route, added: bool) {
        match added {
            true => self.rib.add(source, route),
            false => drop(self.rib.remove(source, route.to, route.metric)),
        }
        self.changed = true;
    }

    /// A frame for the box came in by a port, without tags: ARP and neighbor discovery are heard.
    pub fn receive(&mut self, port: u8, frame: &[u8], now: u64) {
        self.neighbors.receive(port, frame, now, &mut self.effects);
        self.carry_out(now);
    }

    /// Does what is due.
    pub fn serve(&mut self, now: u64) {
        while let Some(want) = self.routing.wants.pop() {
            match want {
                Want::Host { port, address } => self.neighbors.want(port, address, now, &mut self.effects),
                Want::Adjacency(index) => {
                    if let Some((port, ip)) = self.rib.neighbor_at(index & !super::adjacency::ROUTED) {
                        self.neighbors.want(port, ip, now, &mut self.effects);
                    }
                }
            }
        }
        // Whatever was once spoken to is kept alive: workers do not say whom they send to.
        self.neighbors.tick(now, &mut |_, _| true, &mut self.effects);
        self.carry_out(now);
        let safe = self.routing.epochs.safe();
        while self.sealed.front().is_some_and(|(epoch, _)| *epoch <= safe) {
            let Some((_, seals)) = self.sealed.pop_front() else { break };
            self.rib.release(seals);
            self.rib.fib_mut().0.reclaim();
        }
        if self.changed && now.wrapping_sub(self.told) >= PAUSE {
            self.publish(now);
        }
    }

    /// When there is something to do at the latest, if nothing happens before.
    pub fn next(&self) -> Option<u64> {
        let publish = self.changed.then_some(self.told + PAUSE);
        self.neighbors.next_tick().into_iter().chain(publish).min()
    }

    /// The last words before the process ends.
    pub fn stop(&mut self, now: u64) {
        self.neighbors.stop(now, &mut self.effects);
        self.carry_out(now);
    }

    /// Tells workers that something has changed.
    fn publish(&mut self, now: u64) {
        self.changed = !self.rib.settle(BUDGET);
        self.told = now;
        self.routing.changed();
        self.routing.settle();
        if let Some(seals) = self.rib.seal() {
            self.sealed.push_back((self.routing.epochs.advance(), seals));
        }
    }

    /// Does what the neighbor machine and the RIB want of each other.
    fn carry_out(&mut self, now: u64) {
        loop {
            let wants: Vec<rib::Effect> = self.rib.effects().collect();
            if wants.is_empty() && self.effects.is_empty() {
                return;
            }
            for want in wants {
                if let rib::Effect::Want { port, ip } = want {
                    self.neighbors.want(port, ip, now, &mut self.effects);
                }
            }
            for effect in std::mem::take(&mut self.effects) {
                self.carry_out_one(effect);
            }
        }
    }

    fn carry_out_one(&mut self, effect: Effect) {
        match effect {
            Effect::Send { port, frame } => self.sends.push((port, frame)),
            Effect::Resolved { port, ip, mac, .. } => {
                if self.rib.adjacency(port, ip).is_none() {
                    self.rib.neighbor(port, ip, NeighborState::Unresolved);
                }
                self.write(port, ip, State::Forward, mac);
                self.rib.neighbor(port, ip, NeighborState::Resolved);
                self.changed = true;
            }
            Effect::Failed { port, ip } => {
                self.write(port, ip, State::Failed, [0; 6]);
                self.rib.neighbor(port, ip, NeighborState::Failed);
                self.changed = true;
            }
            Effect::Gone { port, ip } => {
                self.write(port, ip, State::Unresolved, [0; 6]);
                self.rib.neighbor(port, ip, NeighborState::Gone);
                self.changed = true;
            }
            // Its note comes with it.
            Effect::AddressConflict { .. } => {}
            Effect::AddressUsable { port, .. } => self.tell_addresses(port),
            Effect::Note(note) => self.notes.push(note),
        }
    }

    /// Writes a neighbor's adjacency, if it has one.
    fn write(&mut self, port: u8, ip: IpAddr, state: State, mac: [u8; 6]) {
        let (Some(index), Some(by)) = (self.rib.adjacency(port, ip), self.ports.get(usize::from(port))) else { return };
        let adjacency = Adjacency { state, port, mtu: by.mtu, destination: mac, source: by.mac, tags: by.tags };
        self.routing.adjacencies.set(index, adjacency);
        self.routing.settle();
    }

    /// Tells workers what a port's addresses are, to speak in their name.
    fn tell_addresses(&mut self, port: u8) {
        let Some(known) = self.ports.get(usize::from(port)) else { return };
        let v4 = known.addresses.iter().find_map(|net| match net {
            IpNet::V4(net) => Some(net.addr().octets()),
            IpNet::V6(_) => None,
        });
        let own = self.neighbors.addresses(port).map(|(net, _)| net).collect::<Vec<_>>();
        let v6 = |global: bool| {
            known.addresses.iter().chain(&own).find_map(|net| match net {
                IpNet::V6(net) if (net.addr().segments()[0] & 0xffc0 != 0xfe80) == global => Some(net.addr().octets()),
                _ => None,
            })
        };
        self.routing.addresses.set(port, v4, v6(true).or_else(|| v6(false)));
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("ports", &self.ports.len()).finish_non_exhaustive()
    }
}
