//! Control's side of routing: what is known of addresses, routes and neighbors, and what of that workers are told.
//!
//! Pure: frames, events and the time come in, frames to be sent go out. It is the one writer of [`Routing`].

use std::collections::{BTreeSet, VecDeque};
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
/// Between two times that gateways which nobody knows any more are asked for, in nanoseconds.
const AGAIN: u64 = 100_000_000;

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
    /// Of these, the ones that neighbors are told other MAC addresses for (VRRP).
    pub virtuals: Vec<(IpAddr, [u8; 6])>,
    /// What it advertises as an IPv6 router, if it does.
    pub advertises: Option<crate::config::neighbor::RouterAdvertisements>,
}

impl Port {
    /// One of its addresses, with the MAC address that neighbors are told for it.
    fn address(&self, net: IpNet) -> neighbor::Address {
        let known = self.virtuals.iter().find(|(ip, _)| *ip == net.addr());
        neighbor::Address { net, mac: known.map(|(_, mac)| *mac) }
    }
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
    /// Addresses that are nobody's port's and the box's nevertheless.
    pools: Vec<IpNet>,
    /// Ports' addresses that may not be used yet, or not at all.
    withheld: BTreeSet<(u8, IpAddr)>,
    /// Gateways that the neighbor machine has forgotten, to be asked for again; and when that was done last.
    lost: BTreeSet<(u8, IpAddr)>,
    asked: u64,
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
        let more = |port: &Port| port.virtuals.iter().map(|(_, mac)| *mac).collect::<Vec<_>>();
        let macs = Macs::new(ports.iter().map(|port| (port.mac, more(port))));
        let routing = Arc::new(Routing::new(fib.fib(), epochs, macs, workers));
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
            pools: Vec::new(),
            withheld: BTreeSet::new(),
            lost: BTreeSet::new(),
            asked: 0,
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
                addresses: port.addresses.iter().map(|net| port.address(*net)).collect(),
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
    /// the kernel has them. Those that were said before are no longer.
    pub fn stand_for(&mut self, pools: Vec<(IpAddr, IpAddr)>, others: Vec<(IpAddr, IpAddr)>) {
        let mut before = std::mem::take(&mut self.pools);
        for (first, last) in &pools {
            let nets: Vec<IpNet> = match (first, last) {
                (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(*first, *last, 0).map(IpNet::from).collect(),
                (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(*first, *last, 0).map(IpNet::from).collect(),
                _ => continue,
            };
            nets.iter().for_each(|net| self.rib.add_own(*net));
            before.retain(|net| !nets.contains(net));
            self.pools.extend(nets);
        }
        before.into_iter().for_each(|net| self.rib.remove_own(net));
        self.tell_own();
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
        self.rib.wants().for_each(drop);
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

    /// The operator says so no longer.
    pub fn remove_static(&mut self, port: u8, ip: IpAddr, now: u64) {
        self.neighbors.remove_static(port, ip, now, &mut self.effects);
        self.carry_out(now);
    }

    /// A port has got an address, or lost it.
    pub fn address(&mut self, port: u8, net: IpNet, added: bool, now: u64) {
        let Some(known) = self.ports.get_mut(usize::from(port)) else { return };
        let there = known.addresses.iter().position(|other| *other == net);
        match (added, there) {
            (true, None) => {
                known.addresses.push(net);
                let address = known.address(net);
                self.rib.add_address(port, net);
                self.neighbors.add_address(port, address, now, &mut self.effects);
            }
            (false, Some(at)) => {
                known.addresses.remove(at);
                self.withheld.remove(&(port, net.addr()));
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
        self.ask_again(now);
        let Router { neighbors, rib, routing, effects, .. } = self;
        let is_used = |port, ip| rib.adjacency(port, ip).is_some_and(|index| routing.used.take(index));
        // Whether a gateway is there is known before packets need it: flows are not given to one that is not.
        neighbors.tick(now, &mut |port, ip| is_used(port, ip) || rib.is_gateway(port, ip), effects);
        self.carry_out(now);
        let safe = self.routing.epochs.safe();
        while self.sealed.front().is_some_and(|(epoch, _)| *epoch <= safe) {
            let Some((_, seals)) = self.sealed.pop_front() else { break };
            self.changed |= self.rib.release(seals);
            self.rib.fib_mut().0.reclaim();
        }
        if self.changed && now.wrapping_sub(self.told) >= PAUSE {
            self.publish(now);
        }
    }

    /// True if workers have not been told of all changes yet.
    pub fn has_news(&self) -> bool {
        self.changed
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

    /// Asks for the gateways that were forgotten, where the link is up.
    fn ask_again(&mut self, now: u64) {
        if self.lost.is_empty() || now.wrapping_sub(self.asked) < AGAIN {
            return;
        }
        self.asked = now;
        for (port, ip) in std::mem::take(&mut self.lost) {
            match self.rib.is_gateway(port, ip) {
                true if self.rib.is_up(port) => self.neighbors.want(port, ip, now, &mut self.effects),
                true => drop(self.lost.insert((port, ip))),
                false => self.effects.push(Effect::Gone { port, ip }),
            }
        }
    }

    /// Does what the neighbor machine and the RIB want of each other.
    fn carry_out(&mut self, now: u64) {
        loop {
            let wants: Vec<(u8, IpAddr)> = self.rib.wants().collect();
            if wants.is_empty() && self.effects.is_empty() {
                return;
            }
            for (port, ip) in wants {
                self.neighbors.want(port, ip, now, &mut self.effects);
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
                    self.changed |= self.rib.neighbor(port, ip, NeighborState::Unresolved);
                }
                self.lost.remove(&(port, ip));
                self.write(port, ip, State::Forward, mac);
                self.changed |= self.rib.neighbor(port, ip, NeighborState::Resolved);
            }
            Effect::Failed { port, ip } => {
                self.write(port, ip, State::Failed, [0; 6]);
                self.changed |= self.rib.neighbor(port, ip, NeighborState::Failed);
            }
            Effect::Gone { port, ip } => {
                // A gateway that has not answered counts as silent until it does: nobody waits for it, and flows go by others.
                if self.rib.is_gateway(port, ip) {
                    self.lost.insert((port, ip));
                    if self.rib.neighbor_state(port, ip) == Some(NeighborState::Failed) {
                        return;
                    }
                }
                self.write(port, ip, State::Unresolved, [0; 6]);
                self.changed |= self.rib.neighbor(port, ip, NeighborState::Gone);
            }
            Effect::AddressTentative { port, ip } | Effect::AddressConflict { port, ip, kept: false, .. } => {
                self.use_address(port, ip, false);
            }
            // Its note comes with it.
            Effect::AddressConflict { .. } => {}
            Effect::AddressUsable { port, ip } => self.use_address(port, ip, true),
            Effect::Note(note) => self.notes.push(note),
        }
    }

    /// Writes a neighbor's adjacency, if it has one; what waits for the neighbor is looked at again.
    fn write(&mut self, port: u8, ip: IpAddr, state: State, mac: [u8; 6]) {
        if let (Some(index), Some(by)) = (self.rib.adjacency(port, ip), self.ports.get(usize::from(port))) {
            let adjacency = Adjacency { state, port, mtu: by.mtu, destination: mac, source: by.mac, tags: by.tags };
            self.routing.adjacencies.set(index, adjacency);
        }
        self.routing.settle();
    }

    /// Uses one of a port's addresses, or does not: packets to it vanish, and none leave from it.
    fn use_address(&mut self, port: u8, ip: IpAddr, usable: bool) {
        let changed = match usable {
            true => self.withheld.remove(&(port, ip)),
            false => self.withheld.insert((port, ip)),
        };
        if changed {
            self.rib.withhold(port, ip, !usable);
            self.changed = true;
        }
        self.tell_addresses(port);
    }

    /// Tells workers what a port's addresses are, to speak in their name.
    fn tell_addresses(&mut self, port: u8) {
        let Some(known) = self.ports.get(usize::from(port)) else { return };
        // One that the port has made itself is no port's of the file.
        let made: Vec<IpNet> = self.neighbors.addresses(port).map(|(net, _)| net).collect();
        let usable = |net: &&IpNet| !self.withheld.contains(&(port, net.addr()));
        let all = || known.addresses.iter().chain(&made).filter(usable);
        let v4 = all().find_map(|net| match net {
            IpNet::V4(net) => Some(net.addr().octets()),
            IpNet::V6(_) => None,
        });
        let v6 = |global: bool| {
            all().find_map(|net| match net {
                IpNet::V6(net) if net.addr().is_unicast_link_local() != global => Some(net.addr().octets()),
                _ => None,
            })
        };
        self.routing.addresses.set(port, v4, v6(true).or_else(|| v6(false)));
        self.tell_own();
    }

    /// Tells workers from which addresses nobody else may send.
    fn tell_own(&self) {
        self.routing.own.set(self.rib.own_addresses().chain(self.pools.iter().copied()));
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("ports", &self.ports.len()).finish_non_exhaustive()
    }
}
