//! Targets: what routes lead to, shared by all that lead to the same, each behind one hop.

use crate::route::Target;
use crate::route::hop::{Hop, Hops};

use super::buckets::{Buckets, Member};
use super::prefixes::NONE;
use super::resolve::{Discard, Leaf};
use super::{Fib, NeighborState, Rib};

/// The most members of a group; and the most buckets.
const MOST: usize = 256;
/// The fewest buckets of a group, which keep the shares of a few members within a few percent.
const FEWEST: usize = 64;

/// What makes targets the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// By ways with their weights, in ascending order.
    Via(Box<[(u32, u16)]>),
    /// An address of the box on a port.
    Local(u8),
    /// A broadcast address of a port's.
    Broadcast(u8),
    /// Nowhere.
    Discard(Discard),
}

/// A target.
#[derive(Debug)]
pub struct Object {
    /// What it is.
    pub what: What,
    /// Its hop; 0 if there was no room.
    pub hop: u32,
    /// Where its buckets are, if it is a group: the first, and the logarithm of how many.
    block: Option<(u32, u8, Buckets<Leaf>)>,
    /// True if routes to it may be in force.
    pub usable: bool,
    /// The first of the routes that lead here.
    head: u32,
    /// How many there are.
    pub routes: u32,
    /// The next one whose prefix is to be looked at.
    pub walk: u32,
    /// True while it stands among the walks.
    pub walking: bool,
}

impl Default for Object {
    fn default() -> Object {
        Object {
            what: What::Discard(Discard::Blackhole),
            hop: 0,
            block: None,
            usable: false,
            head: NONE,
            routes: 0,
            walk: NONE,
            walking: false,
        }
    }
}

/// The ports by which a hop leads out: by these, packets from a source that is routed to it are expected to come (RFC 3704).
/// Ways that are down or silent at present are not among them; a port may come several times.
pub fn ports_of(hops: &Hops, hop: u32) -> impl Iterator<Item = u8> + '_ {
    let range = match hops.at(hop) {
        Hop::Group { first, count } => first..first + u32::from(count),
        _ => hop..hop + 1,
    };
    range.filter_map(|index| match hops.at(index) {
        Hop::Forward { port, .. } | Hop::Glean { port } | Hop::Silent { port } => Some(port),
        _ => None,
    })
}

impl<F: Fib> Rib<F> {
    /// What a route's words mean.
    pub(super) fn what(&mut self, target: &Target) -> What {
        let gateways = match target {
            Target::Via(gateways) => gateways,
            Target::Blackhole => return What::Discard(Discard::Blackhole),
            Target::Unreachable => return What::Discard(Discard::Unreachable),
            Target::Prohibit => return What::Discard(Discard::Prohibit),
        };
        let mut ways: Vec<(u32, u16)> = gateways.iter().map(|one| (self.way(one.into()), one.weight.max(1))).collect();
        ways.sort_unstable();
        ways.dedup_by(|again, first| {
            let same = again.0 == first.0;
            if same {
                first.1 = first.1.saturating_add(again.1);
            }
            same
        });
        What::Via(ways.into())
    }

    /// The index of a target.
    pub(super) fn target(&mut self, what: What) -> u32 {
        if let Some(target) = self.target_of.get(&what) {
            return *target;
        }
        let hop = self.hop_slots.take(0).unwrap_or(0);
        let target = self.targets.insert(Object { what: what.clone(), hop, ..Object::default() });
        if let What::Via(ways) = &what {
            for (way, _) in ways {
                self.ways[*way].users.insert(target);
            }
        }
        self.target_of.insert(what, target);
        self.refresh(target);
        target
    }

    /// Counts a route among its target's.
    pub(super) fn link(&mut self, index: u32) {
        let object = &mut self.targets[self.entries[index].target];
        let next = std::mem::replace(&mut object.head, index);
        object.routes += 1;
        self.entries[index].beside = [NONE, next];
        if next != NONE {
            self.entries[next].beside[0] = index;
        }
    }

    /// The reverse.
    pub(super) fn unlink(&mut self, index: u32) {
        let [before, next] = self.entries[index].beside;
        let object = &mut self.targets[self.entries[index].target];
        object.routes -= 1;
        if object.walk == index {
            object.walk = next;
        }
        if before == NONE {
            object.head = next;
        } else {
            self.entries[before].beside[1] = next;
        }
        if next != NONE {
            self.entries[next].beside[0] = before;
        }
    }

    /// Forgets a target to which no route leads.
    pub(super) fn reap(&mut self, target: u32) {
        let object = &self.targets[target];
        if object.head != NONE || object.walking {
            return;
        }
        let object = self.targets.remove(target);
        self.target_of.remove(&object.what);
        self.starved.remove(&target);
        if object.hop != 0 {
            self.hop_slots.retire(object.hop, 0);
        }
        if let Some((first, order, _)) = object.block {
            self.hop_slots.retire(first, order);
        }
        if let What::Via(ways) = object.what {
            for (way, _) in ways {
                self.ways[way].users.remove(&target);
                self.reap_way(way);
            }
        }
    }

    /// Writes what a target leads to at present.
    pub(super) fn refresh(&mut self, target: u32) {
        let (hop, usable) = match &self.targets[target].what {
            What::Local(port) => (Hop::Local { port: *port }, true),
            What::Broadcast(port) => (Hop::Broadcast { port: *port }, self.is_up(*port)),
            What::Discard(discard) => (discard.hop(), true),
            What::Via(_) => self.refresh_group(target),
        };
        let object = &mut self.targets[target];
        if object.hop == 0 {
            self.starved.insert(target);
            return;
        }
        self.hops.set(object.hop, if usable { hop } else { Hop::Unreachable });
        // What can be used no more may be used again, and then its flows find their members again.
        if usable
            && !matches!(hop, Hop::Group { .. })
            && let Some((first, order, _)) = object.block.take()
        {
            self.hop_slots.retire(first, order);
        }
        if object.usable != usable {
            object.usable = usable;
            object.walk = object.head;
            if !std::mem::replace(&mut object.walking, true) {
                self.walks.push_back(target);
            }
        }
    }

    /// The hop of a target that is reached by ways, and whether it can be used.
    fn refresh_group(&mut self, target: u32) -> (Hop, bool) {
        let members = self.members(target);
        let Some(first_alive) = members.iter().find(|member| member.alive) else { return (Hop::Unreachable, false) };
        let alone = self.hop_of(first_alive.who);
        if members.len() < 2 {
            return (alone, true);
        }
        let block = self.targets[target].block.take();
        let (kept, small) = match block {
            Some((first, order, buckets)) if buckets.len() >= members.len() => (Some((first, order, buckets)), None),
            Some((first, order, _)) => (None, Some((first, order))),
            None => (None, None),
        };
        if let Some((first, order)) = small {
            self.hop_slots.retire(first, order);
        }
        let Some((first, order, mut buckets)) = kept.or_else(|| self.block(target, members.len())) else {
            self.starved.insert(target);
            return (alone, true);
        };
        buckets.share(&members);
        for (index, owner) in (first..).zip(buckets.owners()) {
            let hop = owner.map_or(Hop::Unreachable, |leaf| self.hop_of(leaf));
            if self.hops.at(index) != hop {
                self.hops.set(index, hop);
            }
        }
        let count = buckets.len() as u16;
        self.targets[target].block = Some((first, order, buckets));
        (Hop::Group { first, count }, true)
    }

    /// Room for the buckets of so many members, if there is.
    fn block(&mut self, target: u32, members: usize) -> Option<(u32, u8, Buckets<Leaf>)> {
        let What::Via(ways) = &self.targets[target].what else { return None };
        let common = ways.iter().fold(0, |a, (_, b)| gcd(a, *b)).max(1);
        let parts: usize = ways.iter().map(|(_, weight)| usize::from(weight / common)).sum();
        let best = (4 * members.max(parts)).clamp(FEWEST, MOST).next_power_of_two().ilog2();
        let least = members.next_power_of_two().ilog2();
        (least..=best.max(least)).rev().find_map(|order| {
            let first = self.hop_slots.take(order as u8)?;
            Some((first, order as u8, Buckets::new(1 << order)))
        })
    }

    /// Those a group's flows may be shared out to. None lives that is silent, unless all are.
    pub(super) fn members(&self, target: u32) -> Vec<Member<Leaf>> {
        let What::Via(ways) = &self.targets[target].what else { return Vec::new() };
        let mut members: Vec<Member<Leaf>> = Vec::new();
        for (way, weight) in ways {
            let leaves = &self.ways[*way].leaves;
            let sum = leaves.iter().map(|(_, part)| part).sum();
            for (leaf, part) in leaves {
                let weight = fraction(u64::from(*weight) << 20, *part, sum);
                match members.iter_mut().find(|member| member.who == *leaf) {
                    Some(member) => member.weight += weight,
                    None => members.push(Member { who: *leaf, weight, alive: false }),
                }
            }
        }
        members.truncate(MOST);
        let silent = |leaf: Leaf| matches!(leaf, Leaf::Neighbor(n) if self.neighbors[n].state == NeighborState::Failed);
        let up = |leaf: Leaf| self.port_of(leaf).is_none_or(|port| self.is_up(port));
        members.iter_mut().for_each(|member| member.alive = up(member.who) && !silent(member.who));
        if members.iter().all(|member| !member.alive) {
            members.iter_mut().for_each(|member| member.alive = up(member.who));
        }
        members
    }

    /// The port a leaf is on.
    pub(super) fn port_of(&self, leaf: Leaf) -> Option<u8> {
        match leaf {
            Leaf::Neighbor(neighbor) => Some(self.neighbors[neighbor].port),
            Leaf::Glean(port) => Some(port),
            Leaf::Discard(_) => None,
        }
    }

    fn hop_of(&self, leaf: Leaf) -> Hop {
        match leaf {
            Leaf::Glean(port) => Hop::Glean { port },
            Leaf::Discard(discard) => discard.hop(),
            Leaf::Neighbor(neighbor) => {
                let neighbor = &self.neighbors[neighbor];
                match neighbor.slot {
                    Some(adjacency) if neighbor.state != NeighborState::Failed => {
                        Hop::Forward { adjacency, port: neighbor.port }
                    }
                    _ => Hop::Silent { port: neighbor.port },
                }
            }
        }
    }

    /// Gives room that was freed to those that found none, as far as it goes; true if there was some.
    pub(super) fn feed(&mut self) -> bool {
        let used = |rib: &Self| rib.hop_slots.used() + rib.adjacency_slots.used();
        let before = used(self);
        for neighbor in std::mem::take(&mut self.hungry) {
            self.give_slot(neighbor);
            self.refresh_users(neighbor);
        }
        for target in std::mem::take(&mut self.starved) {
            if self.targets[target].hop == 0 {
                self.targets[target].hop = self.hop_slots.take(0).unwrap_or(0);
            }
            self.refresh(target);
        }
        used(self) != before
    }
}

/// `whole * part / sum`, but not nothing.
pub fn fraction(whole: u64, part: u64, sum: u64) -> u64 {
    ((u128::from(whole) * u128::from(part) / u128::from(sum.max(1))) as u64).max(1)
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}
