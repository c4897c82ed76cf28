//! Which worker owns a packet where addresses are translated: one pure function of its facts, with the same answer for both
//! directions of a flow, translated or not.
//!
//! 1. A destination that a rule translates, or that is the outside of a one-to-one translation, counts as what it becomes.
//! 2. What goes to a translating address is the worker's who owns the port (`pool::owner`), and so is what comes from one:
//!    flows of the box itself, which have no translation, and whose replies look like all others.
//! 3. What a source that is mapped endpoint-independently sends or gets is by that source alone: its mapping is in one worker.
//! 4. All else by the hash of the tuple.
//!
//! What has no ports (GRE, ESP, ICMP queries other than echo) says nothing in a reply of who has the flow, so with translating
//! addresses each such protocol is one worker's. The first packet of a flow that gets both another destination and another
//! source may be any worker's: it is the one from whose ports the source is taken.

use std::sync::Arc;

use crate::packet::Meta;
use crate::packet::frame::Frame;
use crate::packet::meta::flag;
use crate::packet::steer::{self, Key};
use crate::stage::ingress::Ports;
use crate::wire::icmpv4::Icmpv4;

use super::destination::Destinations;
use super::pool;
use super::rules::Spans;
use super::source::Fixed;

use crate::route::Addresses;

/// Everything that decides whose a packet is.
#[derive(Clone, Debug)]
pub struct Steering {
    /// Rules for destinations.
    pub destinations: Arc<Destinations>,
    /// One-to-one translations of sources, as their replies' destinations are translated.
    pub fixed: Vec<Fixed>,
    /// Addresses of pools.
    pub pools: Spans,
    /// Ports whose own addresses translate (masquerade).
    pub masquerade: Ports,
    /// Sources that are mapped endpoint-independently.
    pub independent: Spans,
    /// What ports have for addresses.
    pub addresses: Arc<Addresses>,
    /// True if sources are translated to shared addresses at all.
    pub shares: bool,
}

impl Steering {
    /// The worker of `workers` that owns a packet with its own transport header, or its datagram's: not a fragment for itself,
    /// and no ICMP error. `hash` is that of its tuple (`steer::hash` with this key).
    #[inline]
    pub fn owner(&self, meta: &Meta, hash: u32, key: Key, workers: usize) -> usize {
        if workers <= 1 {
            return 0;
        }
        if !meta.any(flag::IPV4 | flag::IPV6) {
            return steer::owner(hash, workers);
        }
        match self.translated(meta) {
            None => self.owner_of_tuple(meta, hash, workers),
            Some(translated) => {
                let hash = steer::hash(&translated, key);
                self.owner_of_tuple(&translated, hash, workers)
            }
        }
    }

    /// The owner of an ICMP error: of the flow whose packet it quotes. That packet's reply would have come in where the error
    /// did. `None` if the quote shows no tuple: then it goes where its datagram's fragments go.
    pub fn owner_of_error(&self, meta: &Meta, frame: &Frame, key: Key, workers: usize) -> Option<usize> {
        let quote = frame.bytes().get(meta.l4() + Icmpv4::LEN..meta.end())?;
        let quoted = steer::quoted(meta, quote).filter(|quoted| !quoted.later_fragment)?.facts;
        let reply = Meta {
            src: quoted.dst,
            dst: quoted.src,
            sport: quoted.dport,
            dport: quoted.sport,
            port: meta.port,
            ..quoted
        };
        let hash = steer::hash(&reply, key);
        Some(self.owner(&reply, hash, key, workers))
    }

    /// The facts of a packet whose destination is fixedly translated.
    fn translated(&self, meta: &Meta) -> Option<Meta> {
        let v6 = meta.has(flag::IPV6);
        let to = match self.destinations.find(meta) {
            Some(found) => found.to,
            None => self.fixed.iter().find_map(|fixed| fixed.translate(&meta.dst, v6)).map(|dst| (dst, meta.dport)),
        };
        to.map(|(dst, dport)| Meta {
            dst,
            dport: if meta.has(flag::ECHO) { meta.dport } else { dport },
            ..meta.clone()
        })
    }

    #[inline]
    fn owner_of_tuple(&self, meta: &Meta, hash: u32, workers: usize) -> usize {
        let v6 = meta.has(flag::IPV6);
        if self.shares {
            if !meta.has(flag::PORTS) {
                return usize::from(meta.proto) % workers;
            }
            if self.translates(&meta.dst, v6) {
                return pool::owner(meta.dport, workers);
            }
            if self.translates(&meta.src, v6) {
                return pool::owner(meta.sport, workers);
            }
        }
        match (self.independent.contains(&meta.src, v6), self.independent.contains(&meta.dst, v6)) {
            (true, false) => by_address(&meta.src, workers),
            (false, true) => by_address(&meta.dst, workers),
            _ => steer::owner(hash, workers),
        }
    }

    /// True for an address that stands for others.
    #[inline]
    pub fn translates(&self, address: &[u8; 16], v6: bool) -> bool {
        self.pools.contains(address, v6)
            || self.masquerade.iter().any(|port| match v6 {
                true => self.addresses.v6(port).is_some_and(|own| own == *address),
                false => self.addresses.v4(port).is_some_and(|own| own == address[..4]),
            })
    }
}

/// Shares of a keyless hash: who can choose inside addresses can choose the worker, which is one's own network's matter.
fn by_address(address: &[u8; 16], workers: usize) -> usize {
    let whole = u128::from_be_bytes(*address);
    let hash = pool::scramble(whole as u64 ^ pool::scramble((whole >> 64) as u64));
    steer::owner((hash >> 32) as u32, workers)
}

#[cfg(test)]
mod tests;
