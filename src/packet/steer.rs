//! Which worker owns a packet: one pure function of its facts and bytes, the same in every worker.
//!
//! - Packets of a flow: the hash of their tuple, equal in both directions.
//! - A fragment, first or later: the hash of what all fragments of its datagram share. The worker that has them together
//!   knows the tuple, and the flow's owner from that.
//! - An ICMP error: the hash of the tuple it quotes, so that it arrives where the flow is. One that quotes a later fragment
//!   follows that fragment.
//! - What is not IP, and whatever was decoded no deeper than L2: hash 0, which is worker 0's.
//!
//! The hash is keyed and not linear: who does not know the key cannot choose tuples that meet in one worker or one bucket.
//! Translation will add what a tuple becomes (fixed translations hash the translated tuple), destinations in a pool of
//! translated addresses (owned by slice of ports), and sources mapped endpoint-independently (hashed alone).

use crate::wire::icmpv4::{self, Icmpv4};
use crate::wire::icmpv6::{self, Icmpv6};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Extension, Fragment, Ipv6};
use crate::wire::protocol;

use super::decode::MAX_EXTENSIONS;
use super::frame::Frame;
use super::meta::{Meta, flag};

/// The key of the hash: secret, random, and the same in all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub [u64; 4]);

impl Key {
    /// A key from a seed, for runs that must come out the same again (`replay`, tests).
    pub fn seeded(seed: u64) -> Key {
        // SplitMix64.
        let mut state = seed;
        Key(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }
}

/// The worker of `workers` to whom a hash belongs: even shares of the hash's range, by multiplication.
#[inline]
pub fn owner(hash: u32, workers: usize) -> usize {
    ((u64::from(hash) * workers as u64) >> 32) as usize
}

/// Sets `meta.hash` of a decoded packet.
#[inline]
pub fn steer(meta: &mut Meta, frame: &Frame, key: Key) {
    meta.hash = if !meta.any(flag::IPV4 | flag::IPV6) {
        0
    } else if meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT | flag::ICMP_ERROR) {
        unusual(meta, frame.bytes(), key)
    } else {
        hash(meta, key)
    };
}

/// The hash of a packet's own tuple, whatever the packet is: equal in both directions.
#[inline]
pub fn hash(meta: &Meta, key: Key) -> u32 {
    // Ports mean something else where the flag is not set.
    let (sport, dport) = if meta.has(flag::PORTS) { (meta.sport, meta.dport) } else { (0, 0) };
    if meta.has(flag::IPV6) {
        let source = end_v6(&meta.src, sport, key);
        join(source, end_v6(&meta.dst, dport, key), meta.proto.into(), key)
    } else {
        let source = end_v4(&meta.src, sport, key);
        join(source, end_v4(&meta.dst, dport, key), meta.proto.into(), key)
    }
}

/// Both halves of the product of two numbers: every bit of the result depends on every bit of both.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[inline(always)]
fn end_v4(address: &[u8; 16], port: u16, Key(key): Key) -> u64 {
    let [a, b, c, d, ..] = *address;
    let end = u64::from(u32::from_le_bytes([a, b, c, d])) << 16 | u64::from(port);
    fold(end ^ key[0], key[1])
}

#[inline(always)]
fn end_v6(address: &[u8; 16], port: u16, Key(key): Key) -> u64 {
    let whole = u128::from_le_bytes(*address);
    // The port gets a product of its own: xored into a half of the address, its owner could cancel it out.
    fold(fold(whole as u64 ^ key[0], (whole >> 64) as u64 ^ key[1]) ^ key[2], u64::from(port) ^ key[3])
}

/// Sum and exclusive or of two ends are the same in either order.
#[inline(always)]
fn join(a: u64, b: u64, rest: u64, Key(key): Key) -> u32 {
    let all = fold(a.wrapping_add(b) ^ key[2], (a ^ b).rotate_left(32) ^ key[3] ^ rest);
    (all >> 32) as u32 ^ all as u32
}

#[cold]
fn unusual(meta: &Meta, bytes: &[u8], key: Key) -> u32 {
    let found = if meta.has(flag::ICMP_ERROR) && !meta.has(flag::FIRST_FRAGMENT) {
        bytes.get(meta.l4() + Icmpv4::LEN..meta.end()).and_then(|quote| quoted(meta, quote, key))
    } else {
        bytes.get(meta.l3()..meta.end()).and_then(|packet| {
            if meta.has(flag::IPV4) {
                let ip = Ipv4::parse(packet)?;
                Some(fragment_v4(ip, key))
            } else {
                let ip = Ipv6::parse(packet)?;
                extensions(ip, packet).fragment.map(|fragment| fragment_v6(ip, fragment.id(), key))
            }
        })
    };
    found.unwrap_or_else(|| hash(meta, key))
}

/// What identifies a datagram in fragments is source, destination, protocol and id (RFC 791 section 3.2).
fn fragment_v4(ip: Ipv4<'_>, key: Key) -> u32 {
    let (source, destination) = (wide(ip.source()), wide(ip.destination()));
    let rest = u64::from(ip.protocol()) | u64::from(ip.id()) << 8;
    join(end_v4(&source, 0, key), end_v4(&destination, 0, key), rest, key)
}

/// As for IPv4, but the protocol is no part of it: later fragments may name another than the first (RFC 8200 section 4.5).
fn fragment_v6(ip: Ipv6<'_>, id: u32, key: Key) -> u32 {
    let rest = u64::from(id) << 8;
    join(end_v6(&ip.source(), 0, key), end_v6(&ip.destination(), 0, key), rest, key)
}

/// The hash of the flow to which a packet quoted in an ICMP error belongs, as far as the quote goes; `None` if it does not
/// hold a network header.
fn quoted(meta: &Meta, quote: &[u8], key: Key) -> Option<u32> {
    let mut facts = Meta::UNKNOWN;
    let behind = if meta.has(flag::IPV4) {
        let ip = Ipv4::parse(quote).filter(|ip| ip.version() == 4 && ip.header_len() >= Ipv4::LEN)?;
        if ip.fragment() & ipv4::OFFSET != 0 {
            return Some(fragment_v4(ip, key));
        }
        (facts.src, facts.dst) = (wide(ip.source()), wide(ip.destination()));
        (facts.flags, facts.proto) = (flag::IPV4, ip.protocol());
        quote.get(ip.header_len()..)
    } else {
        let ip = Ipv6::parse(quote).filter(|ip| ip.version() == 6)?;
        let chain = extensions(ip, quote);
        if let Some(fragment) = chain.fragment.filter(|fragment| fragment.offset() != 0) {
            return Some(fragment_v6(ip, fragment.id(), key));
        }
        (facts.src, facts.dst) = (ip.source(), ip.destination());
        (facts.flags, facts.proto) = (flag::IPV6, chain.proto);
        quote.get(chain.at..)
    };
    if let Some((sport, dport)) = behind.and_then(|behind| quoted_ports(&facts, behind)) {
        facts.flags |= flag::PORTS;
        (facts.sport, facts.dport) = (sport, dport);
    }
    Some(hash(&facts, key))
}

/// What decode takes for ports, from the eight bytes that every error quotes at least (RFC 792).
fn quoted_ports(facts: &Meta, behind: &[u8]) -> Option<(u16, u16)> {
    match facts.proto {
        protocol::TCP | protocol::UDP | protocol::UDP_LITE | protocol::SCTP | protocol::DCCP => {
            let [a, b, c, d] = *behind.first_chunk()?;
            Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
        }
        protocol::ICMP if facts.has(flag::IPV4) => {
            let icmp = Icmpv4::parse(behind).filter(|icmp| icmpv4::is_echo(icmp.kind()))?;
            Some((icmp.id(), icmp.id()))
        }
        protocol::ICMPV6 if facts.has(flag::IPV6) => {
            let icmp = Icmpv6::parse(behind).filter(|icmp| icmpv6::is_echo(icmp.kind()))?;
            Some((icmp.id(), icmp.id()))
        }
        _ => None,
    }
}

/// Where a chain of IPv6 extension headers leads.
struct Chain<'a> {
    proto: u8,
    /// Offset of what follows the chain; behind the end of the packet if that cuts the chain off.
    at: usize,
    fragment: Option<Fragment<'a>>,
}

/// Walks a chain that may be cut off or endless, as in a quote, and stops at a later fragment.
fn extensions<'a>(ip: Ipv6<'_>, packet: &'a [u8]) -> Chain<'a> {
    let mut chain = Chain { proto: ip.next(), at: Ipv6::LEN, fragment: None };
    for _ in 0..MAX_EXTENSIONS {
        if !ipv6::is_extension(chain.proto) {
            break;
        }
        let Some(rest) = packet.get(chain.at..) else { break };
        let Some(header) = Extension::parse(rest) else { break };
        chain.at += if chain.proto == protocol::FRAGMENT {
            let Some(fragment) = Fragment::parse(rest) else { break };
            chain.fragment = Some(fragment);
            Fragment::LEN
        } else {
            header.len(chain.proto)
        };
        chain.proto = header.next();
        if chain.fragment.is_some_and(|fragment| fragment.offset() != 0) {
            break;
        }
    }
    chain
}

fn wide(address: [u8; 4]) -> [u8; 16] {
    let mut wide = [0; 16];
    wide[..4].copy_from_slice(&address);
    wide
}
