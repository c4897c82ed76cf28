//! What a flow's source becomes: the slots that rules compile to, and each worker's choice of address and port.
//!
//! An *endpoint-dependent* slot draws candidates; whether one is free, the flow table says, where the whole translated tuple
//! must be the only one of its kind: an address serves 64,512 flows to *each* remote end. An *endpoint-independent* one keeps
//! mappings (`mapping`), and every external port is one internal end's alone. In both an internal address keeps its external
//! one as long as that has ports (RFC 4787 REQ-2). What has no ports (GRE, ESP) is translated by address alone: one flow for
//! each remote end and external address. How many flows, and so ports, a source may have is `conntrack`'s limit.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::packet::Meta;
use crate::packet::meta::flag;
use crate::packet::steer::Key;
use crate::route::Addresses;
use crate::wire::protocol;

use super::mapping::{End, Lease, Leases, Mappings};
use super::pool::{LOW, PORTS, Share, scramble};
use super::rules::Spans;

crate::choice! {
    /// Which flows share an external port.
    pub enum Mapping {
        /// Each flow gets one of its own; one port may serve flows to several remote ends (RFC 4787 section 4.1: address and
        /// port-dependent).
        Dependent = "endpoint-dependent",
        /// All flows of an internal address and port (RFC 4787 REQ-1, RFC 5382 REQ-1).
        Independent = "endpoint-independent",
    }
}

crate::choice! {
    /// Who may reach an internal end by its external port.
    pub enum Filtering {
        /// The remote ends it has sent to (RFC 4787 section 5: address and port-dependent).
        Dependent = "endpoint-dependent",
        /// Everyone whom the rules allow.
        Independent = "endpoint-independent",
    }
}

/// A prefix whose addresses become those of another of the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Leading bits of the addresses, as in `Meta`.
    pub from: u128,
    /// What they become.
    pub to: u128,
    /// The bits behind the prefix.
    pub host: u128,
    /// True for IPv6.
    pub v6: bool,
}

impl Fixed {
    /// What an address becomes; `None` if it is none of these.
    #[inline]
    pub fn translate(&self, address: &[u8; 16], v6: bool) -> Option<[u8; 16]> {
        let number = u128::from_be_bytes(*address);
        // Behind an IPv4 address there are zeros, which no prefix reaches.
        (self.v6 == v6 && number & !self.host == self.from).then(|| (self.to | number & self.host).to_be_bytes())
    }

    /// The way back.
    pub fn reversed(self) -> Fixed {
        Fixed { from: self.to, to: self.from, ..self }
    }
}

/// Where the new source comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The first address of the port it leaves by.
    Masquerade,
    /// One of these addresses.
    Pool(Spans),
    /// The address that belongs to it; the port stays.
    Fixed(Fixed),
}

/// How a rule translates sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// To what.
    pub origin: Origin,
    /// Ports to choose from; [`PORTS`] and [`LOW`] if not given.
    pub ports: Option<RangeInclusive<u16>>,
    /// Which flows share them.
    pub mapping: Mapping,
    /// Who may reach them.
    pub filtering: Filtering,
}

impl Slot {
    /// The address of the port it leaves by.
    pub const MASQUERADE: Slot =
        Slot { origin: Origin::Masquerade, ports: None, mapping: Mapping::Dependent, filtering: Filtering::Dependent };
}

/// All slots of an appliance, shared by its workers.
#[derive(Debug)]
pub struct Sources {
    /// By `Action::snat`.
    pub slots: Vec<Slot>,
    /// What ports have for addresses.
    pub addresses: Arc<Addresses>,
}

impl Sources {
    /// The address of a port that stands for others (masquerade), as in `Meta`.
    pub fn of_port(&self, port: u8, v6: bool) -> Option<[u8; 16]> {
        address(&Origin::Masquerade, &self.addresses, port, v6, 0, 0)
    }

    /// True for an address that a slot's sources may become where they leave by a port.
    pub fn is_of(&self, slot: &Slot, address: &[u8; 16], v6: bool, out: u8) -> bool {
        match &slot.origin {
            Origin::Masquerade => self.of_port(out, v6) == Some(*address),
            Origin::Pool(pool) => pool.contains(address, v6),
            Origin::Fixed(_) => false,
        }
    }
}

/// What a source becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The address, as in `Meta`.
    pub src: [u8; 16],
    /// The port or echo identifier; what it was if the packet has none.
    pub sport: u16,
    /// The flow's hold on its mapping, for the table's `Leases` (`Leases::keep` once the entry is filed). To be kept or let
    /// fall before the next candidate is asked for.
    pub lease: Lease,
}

/// What a destination becomes that is the outside of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inward {
    /// The internal address, as in `Meta`.
    pub dst: [u8; 16],
    /// Its port or echo identifier.
    pub dport: u16,
    /// As [`Mapped::lease`].
    pub lease: Lease,
}

/// Why there is no source to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// All that were tried are taken.
    Exhausted,
    /// The port it leaves by has no address of the family.
    NoAddress,
}

/// A worker's shares of a slot's ports.
#[derive(Clone, Copy, Debug)]
struct Shares {
    /// For ports from 1024 on.
    ports: Share,
    /// For ports below.
    low: Share,
    /// For echo identifiers, all of which may be used (RFC 5508 REQ-1).
    echo: Share,
}

impl Shares {
    /// A port to try for a subject at the given of so many attempts. That a low port stays low (RFC 4787 REQ-3a) and parity
    /// (REQ-4) are recommended: rather than none, half of the attempts forgo the one, and a quarter both.
    #[inline]
    fn candidate(&self, subject: &Meta, random: u64, attempt: u32, attempts: u32) -> Option<u16> {
        let share = match subject.sport {
            _ if subject.has(flag::ECHO) => &self.echo,
            0..1024 if attempt < attempts / 2 => &self.low,
            _ => &self.ports,
        };
        let parity = subject.proto == protocol::UDP && attempt < attempts / 4 * 3;
        share.candidate(subject.sport, parity, random, attempt)
    }
}

/// The choice of sources in one worker.
#[derive(Debug)]
pub struct Snat {
    sources: Arc<Sources>,
    shares: Box<[Shares]>,
    mappings: Mappings,
    key: [u64; 2],
}

/// Ports of an address that are looked at for one that no other mapping has, and addresses of the pool whose ports are.
const SCAN: u32 = 64;
const ADDRESSES: u32 = 4;

impl Snat {
    /// Candidates for one flow: the caller asks for attempt 0, 1, and so on until the flow table takes one.
    pub const ATTEMPTS: u32 = 32;
    /// Attempts with the address a source has had before, if the pool has others.
    const PAIRED: u32 = Snat::ATTEMPTS / 2;

    /// A worker's own. `key` is secret and the same in all workers; `flows` is how many the worker may have at once.
    pub fn new(sources: Arc<Sources>, worker: usize, workers: usize, key: Key, flows: usize) -> Snat {
        let shares = |slot: &Slot| {
            let share = |range: &RangeInclusive<u16>| Share::new(range, worker, workers);
            let given = slot.ports.as_ref();
            Shares {
                ports: share(given.unwrap_or(&PORTS)),
                low: share(given.unwrap_or(&LOW)),
                echo: share(&(0..=u16::MAX)),
            }
        };
        let independent = sources.slots.iter().any(|slot| slot.mapping == Mapping::Independent);
        let key = [scramble(key.0[0] ^ key.0[1]), scramble(key.0[2] ^ key.0[3])];
        Snat {
            shares: sources.slots.iter().map(shares).collect(),
            mappings: Mappings::new(if independent { flows } else { 0 }, key[1]),
            sources,
            key,
        }
    }

    /// For a table of this many entries whose flows may use mappings; `None` if there are none to use.
    pub fn leases(&self, entries: usize) -> Option<Leases> {
        (self.mappings.memory() > 0).then(|| self.mappings.leases(entries))
    }

    /// What the source of a flow's first packet may become by a slot, at the given attempt; an error if there is nothing
    /// (more) to try. `subject` is judged: its destination is translated.
    pub fn candidate(&mut self, slot: u16, subject: &Meta, out: u8, attempt: u32) -> Result<Mapped, Refusal> {
        let (Some(of), Some(shares)) = (self.sources.slots.get(usize::from(slot)), self.shares.get(usize::from(slot)))
        else {
            return Err(Refusal::Exhausted);
        };
        let v6 = subject.has(flag::IPV6);
        let plain = |src| Ok(Mapped { src, sport: subject.sport, lease: Lease::NONE });
        let count = match &of.origin {
            Origin::Fixed(fixed) => {
                let fixed = (attempt == 0).then(|| fixed.translate(&subject.src, v6)).flatten();
                return fixed.map_or(Err(Refusal::Exhausted), plain);
            }
            Origin::Masquerade => 1,
            Origin::Pool(spans) => count(spans, v6),
        };
        if !subject.has(flag::PORTS) {
            let turns = u128::from(Snat::ATTEMPTS).min(count) as u32;
            return if attempt < turns.max(1) {
                plain(self.address(slot, subject, out, attempt).ok_or(Refusal::NoAddress)?)
            } else {
                Err(Refusal::Exhausted)
            };
        }
        if attempt >= Snat::ATTEMPTS {
            return Err(Refusal::Exhausted);
        }
        if of.mapping == Mapping::Independent {
            return self.mapped(slot, subject, out, count, attempt);
        }
        let (turn, at, attempts) = match attempt.checked_sub(Snat::PAIRED) {
            _ if count <= 1 => (0, attempt, Snat::ATTEMPTS),
            None => (0, attempt, Snat::PAIRED),
            Some(further) => (1 + further, further, Snat::PAIRED),
        };
        let src = self.address(slot, subject, out, turn).ok_or(Refusal::NoAddress)?;
        let port = shares.candidate(subject, self.random(subject) ^ u64::from(turn), at, attempts);
        port.map(|sport| Mapped { src, sport, lease: Lease::NONE }).ok_or(Refusal::Exhausted)
    }

    /// The mapping of a subject's source, made if there is none, by one of `count` addresses.
    fn mapped(&mut self, slot: u16, subject: &Meta, out: u8, count: u128, attempt: u32) -> Result<Mapped, Refusal> {
        let src = self.address(slot, subject, out, 0).ok_or(Refusal::NoAddress)?;
        let v6 = subject.has(flag::IPV6);
        let inside = End { address: subject.src, port: subject.sport, proto: subject.proto, v6 };
        if let Some((outside, lease)) = self.mappings.of_inside(&inside, slot) {
            match (self.is_valid(slot, src, &outside), self.mappings.in_use(lease)) {
                (true, _) if attempt == 0 => return Ok(Mapped { src: outside.address, sport: outside.port, lease }),
                // The table has refused it, and others hold on to it.
                (true, true) => return Err(Refusal::Exhausted),
                // What still uses a lost address is lost with it; a new mapping is found first.
                (false, true) => {}
                (_, false) => self.mappings.remove(lease),
            }
        }
        let (shares, random) = (self.shares[usize::from(slot)], self.random(subject) ^ u64::from(attempt) << 32);
        for turn in 0..count.clamp(1, ADDRESSES.into()) as u32 {
            let src = if turn == 0 { src } else { self.address(slot, subject, out, turn).ok_or(Refusal::NoAddress)? };
            // At a further attempt the port itself has been refused.
            for probe in attempt.min(1)..SCAN {
                let Some(port) = shares.candidate(subject, random ^ u64::from(turn), probe, SCAN) else { continue };
                let outside = End { address: src, port, ..inside };
                match self.mappings.of_outside(&outside) {
                    Some((.., lease)) if self.mappings.in_use(lease) => continue,
                    Some((.., lease)) => self.mappings.remove(lease),
                    None => {}
                }
                let lease = self.mappings.insert(inside, outside, slot).ok_or(Refusal::Exhausted)?;
                return Ok(Mapped { src, sport: port, lease });
            }
        }
        Err(Refusal::Exhausted)
    }

    /// The address for a flow in its turn: 0 for the one its source has had before.
    fn address(&self, slot: u16, subject: &Meta, out: u8, turn: u32) -> Option<[u8; 16]> {
        let Sources { slots, addresses } = &*self.sources;
        let v6 = subject.has(flag::IPV6);
        address(&slots[usize::from(slot)].origin, addresses, out, v6, self.paired(subject, slot), turn)
    }

    /// False for a mapping to an address that the port has lost.
    fn is_valid(&self, slot: u16, src: [u8; 16], outside: &End) -> bool {
        !matches!(self.sources.slots[usize::from(slot)].origin, Origin::Masquerade) || outside.address == src
    }

    /// Where a packet that no flow expects goes, if its destination is an external port that everyone may reach. For fresh
    /// packets, before they are judged: `dst` and `dport` then replace the subject's.
    #[inline]
    pub fn inward(&self, meta: &Meta) -> Option<Inward> {
        if self.mappings.memory() == 0 || !meta.has(flag::PORTS) {
            return None;
        }
        let v6 = meta.has(flag::IPV6);
        let outside = End { address: meta.dst, port: meta.dport, proto: meta.proto, v6 };
        let (inside, slot, lease) = self.mappings.of_outside(&outside)?;
        let open = self.sources.slots[usize::from(slot)].filtering == Filtering::Independent;
        (open && self.mappings.in_use(lease)).then_some(Inward { dst: inside.address, dport: inside.port, lease })
    }

    /// Holds on to the mapping of a flow that exists already (one loaded from a file): `Lease::NONE` if its slot has none, or
    /// if another has its port.
    pub fn restore(&mut self, slot: u16, inside: End, outside: End) -> Lease {
        let independent = |slot: &Slot| slot.mapping == Mapping::Independent;
        if !self.sources.slots.get(usize::from(slot)).is_some_and(independent) {
            return Lease::NONE;
        }
        match (self.mappings.of_inside(&inside, slot), self.mappings.of_outside(&outside)) {
            (Some((known, lease)), _) if known == outside => lease,
            (None, None) => self.mappings.insert(inside, outside, slot).unwrap_or(Lease::NONE),
            _ => Lease::NONE,
        }
    }

    /// A bounded amount of upkeep: forgets mappings that no flow uses.
    pub fn housekeep(&mut self) {
        self.mappings.sweep(64);
    }

    /// What chooses a source's address in a pool: the same for all its flows, in all workers.
    fn paired(&self, subject: &Meta, slot: u16) -> u64 {
        let whole = u128::from_be_bytes(subject.src);
        scramble(scramble(whole as u64 ^ self.key[0]) ^ (whole >> 64) as u64 ^ u64::from(slot) << 32)
    }

    /// A number nobody can guess, the flow's own.
    fn random(&self, subject: &Meta) -> u64 {
        let (src, dst) = (u128::from_be_bytes(subject.src), u128::from_be_bytes(subject.dst));
        let ports = u64::from(subject.sport) | u64::from(subject.dport) << 16 | u64::from(subject.proto) << 32;
        [src as u64, (src >> 64) as u64, dst as u64, (dst >> 64) as u64, ports]
            .into_iter()
            .fold(self.key[0], |hash, word| scramble(hash ^ word).wrapping_add(self.key[1]))
    }
}

/// How many addresses of a family a pool has.
fn count(pool: &Spans, v6: bool) -> u128 {
    let shift = if v6 { 0 } else { 96 };
    pool.family(v6).iter().fold(0, |count: u128, (first, last)| count.saturating_add(size(*first, *last, shift)))
}

fn size(first: u128, last: u128, shift: u32) -> u128 {
    ((last >> shift) - (first >> shift)).saturating_add(1)
}

/// The address for a flow in its turn: 0 for the one its source has had before.
fn address(origin: &Origin, addresses: &Addresses, out: u8, v6: bool, paired: u64, turn: u32) -> Option<[u8; 16]> {
    let pool = match origin {
        Origin::Pool(pool) => pool,
        _ if v6 => return addresses.v6(out),
        _ => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&addresses.v4(out)?);
            return Some(wide);
        }
    };
    let total = count(pool, v6);
    let mut at = (u128::from(paired) + u128::from(turn)) % total.max(1);
    let shift = if v6 { 0 } else { 96 };
    for (first, last) in pool.family(v6) {
        let here = size(*first, *last, shift);
        if at < here {
            return Some((((first >> shift) + at) << shift).to_be_bytes());
        }
        at -= here;
    }
    None
}

#[cfg(test)]
mod tests;
