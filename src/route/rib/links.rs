//! Ports and what is on their links: addresses, up and down, neighbors.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::route::adjacency::{Adjacency, State};

use super::connected::{Part, parts};
use super::resolve::{Discard, Key, Leaf};
use super::targets::What;
use super::{ADDRESS, Fib, Link, NEIGHBOR, NeighborState, Rib};

impl<F: Fib> Rib<F> {
    /// A port has a further address; `address` has the length of its subnet's prefix.
    pub fn add_address(&mut self, port: u8, address: IpNet) {
        let Some(link) = self.links.get_mut(usize::from(port)) else { return };
        if link.addresses.contains(&address) {
            return;
        }
        link.addresses.push(address);
        for (net, part) in parts(address) {
            let what = match part {
                Part::Local => What::Local(port),
                Part::Broadcast => What::Broadcast(port),
                Part::Subnet => What::Via([(self.way(Key::Device(port)), 1)].into()),
            };
            self.put(ADDRESS, net, metric(port, part), what);
        }
    }

    /// These addresses are the box's, and no port's.
    pub fn add_own(&mut self, net: IpNet) {
        self.put(ADDRESS, net, metric(u8::MAX, Part::Local), What::Local(0));
    }

    /// It is not any more.
    pub fn remove_own(&mut self, net: IpNet) {
        self.cut(ADDRESS, net, metric(u8::MAX, Part::Local));
    }

    /// Whether one of a port's addresses is not in use, because it is or may be somebody else's: then packets to it vanish (RFC
    /// 4862 section 5.4).
    pub fn withhold(&mut self, port: u8, ip: IpAddr, withheld: bool) {
        if self.addresses(port).iter().any(|address| address.addr() == ip) {
            let what = if withheld { What::Discard(Discard::Blackhole) } else { What::Local(port) };
            self.put(ADDRESS, ip.into(), metric(port, Part::Local), what);
        }
    }

    /// It has it no more.
    pub fn remove_address(&mut self, port: u8, address: IpNet) {
        let Some(link) = self.links.get_mut(usize::from(port)) else { return };
        let before = link.addresses.len();
        link.addresses.retain(|other| *other != address);
        if link.addresses.len() == before {
            return;
        }
        // Another address of the same subnet has some of it as well.
        let rest: Vec<(IpNet, Part)> = link.addresses.iter().flat_map(|other| parts(*other)).collect();
        for (net, part) in parts(address).into_iter().filter(|part| !rest.contains(part)) {
            self.cut(ADDRESS, net, metric(port, part));
        }
    }

    /// A port's addresses, in the order in which it got them.
    pub fn addresses(&self, port: u8) -> &[IpNet] {
        self.links.get(usize::from(port)).map_or(&[], |link| &link.addresses)
    }

    /// The addresses that follow from the ports' and are the box's, or everybody's on a link.
    pub fn own_addresses(&self) -> impl Iterator<Item = IpNet> + '_ {
        let all = self.links.iter().flat_map(|link| &link.addresses).flat_map(|address| parts(*address));
        all.filter(|(_, part)| *part != Part::Subnet).map(|(net, _)| net)
    }

    /// A port's link is up, or down: what leads by it leads there no more.
    pub fn link_up(&mut self, port: u8, up: bool) {
        let Some(link) = self.links.get_mut(usize::from(port)) else { return };
        if std::mem::replace(&mut link.up, up) == up {
            return;
        }
        self.flapped(port);
        if let Some(target) = self.target_of.get(&What::Broadcast(port)) {
            self.refresh(*target);
        }
    }

    /// True if a port's link is up.
    pub fn is_up(&self, port: u8) -> bool {
        matches!(self.links.get(usize::from(port)), Some(Link { up: true, .. }))
    }

    /// What the neighbor machine knows of a neighbor has changed. Where routes say that its address is on the port's link,
    /// packets to it go by its adjacency. True if that led or leads packets elsewhere; of a MAC that is known now, its adjacency
    /// says all.
    pub fn neighbor(&mut self, port: u8, ip: IpAddr, state: NeighborState) -> bool {
        if ip.is_multicast() || ip.is_unspecified() || usize::from(port) >= self.links.len() {
            return false;
        }
        if state == NeighborState::Gone && !self.neighbor_of.contains_key(&(port, ip)) {
            return false;
        }
        let index = self.neighbor_index(port, ip);
        let before = std::mem::replace(&mut self.neighbors[index].state, state);
        if (before == NeighborState::Failed) != (state == NeighborState::Failed) {
            self.refresh_users(index);
        }
        let on_link_alone = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        match state {
            NeighborState::Gone => {
                self.cut(NEIGHBOR, ip.into(), port.into());
                // Unless that was the last to use it.
                if let Some(index) = self.neighbor_of.get(&(port, ip)) {
                    self.reap_neighbor(*index);
                }
            }
            _ if on_link_alone || before != NeighborState::Gone => {}
            _ => {
                let what = What::Via([(self.way(Key::Host(port, ip)), 1)].into());
                self.put(NEIGHBOR, ip.into(), port.into(), what);
            }
        }
        let leads = |state| match state {
            NeighborState::Resolved | NeighborState::Unresolved => 0,
            NeighborState::Failed => 1,
            NeighborState::Gone => 2,
        };
        leads(before) != leads(state)
    }

    /// The adjacency of a neighbor, for the neighbor machine to fill in; none if it is neither known nor a gateway.
    pub fn adjacency(&self, port: u8, ip: IpAddr) -> Option<u32> {
        self.neighbors[*self.neighbor_of.get(&(port, ip))?].slot
    }

    /// What the neighbor machine has said of a neighbor last; none of one that is neither known nor a gateway.
    pub fn neighbor_state(&self, port: u8, ip: IpAddr) -> Option<NeighborState> {
        self.neighbor_of.get(&(port, ip)).map(|index| self.neighbors[*index].state)
    }

    /// True if routes lead to a neighbor as their gateway.
    pub fn is_gateway(&self, port: u8, ip: IpAddr) -> bool {
        self.neighbor_of.get(&(port, ip)).is_some_and(|index| self.neighbors[*index].gateways > 0)
    }

    /// The gateways that routes lead to.
    pub fn gateways(&self) -> Vec<(u8, IpAddr)> {
        let is_gateway = |(_, index): &(_, &u32)| self.neighbors[**index].gateways > 0;
        self.neighbor_of.iter().filter(is_gateway).map(|(neighbor, _)| *neighbor).collect()
    }

    /// The neighbor that an adjacency is for.
    pub fn neighbor_at(&self, adjacency: u32) -> Option<(u8, IpAddr)> {
        let neighbor = &self.neighbors[*self.slot_of.get(&adjacency)?];
        Some((neighbor.port, neighbor.ip))
    }

    /// Finds an adjacency for a neighbor, if there is room.
    pub(super) fn give_slot(&mut self, index: u32) {
        let neighbor = &mut self.neighbors[index];
        neighbor.slot = self.adjacency_slots.take(0);
        match neighbor.slot {
            Some(slot) => {
                self.slot_of.insert(slot, index);
                let state = if neighbor.state == NeighborState::Failed { State::Failed } else { State::Unresolved };
                self.table.set(slot, Adjacency { state, port: neighbor.port, ..Adjacency::FREE });
            }
            None => {
                self.hungry.insert(index);
            }
        }
    }

    /// What is known of a leaf's neighbor.
    pub(super) fn state_of(&self, leaf: Leaf) -> Option<NeighborState> {
        match leaf {
            Leaf::Neighbor(neighbor) => Some(self.neighbors[neighbor].state),
            _ => None,
        }
    }
}

/// Ports that share a subnet or an address each have a route of their own.
fn metric(port: u8, part: Part) -> u32 {
    (part as u32) << 8 | u32::from(port)
}
