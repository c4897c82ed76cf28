//! Which worker owns a packet: one pure function of its facts and bytes, the same in every worker.
//!
//! - Packets of a flow: the hash of their tuple, equal in both directions.
//! - A fragment, first or later: the hash of what all fragments of its datagram share. The worker that has them together
//!   knows the tuple, and the flow's owner from that (`flow`).
//! - An ICMP error: the hash of the tuple it quotes, so that it arrives where the flow is. One that quotes a later fragment
//!   follows that fragment.
//! - What is not IP, and whatever was decoded no deeper than L2: hash 0, which is worker 0's.
//!
//! The hash is keyed and not linear: who does not know the key cannot choose tuples that meet in one worker or one bucket.
//! Translation will add what a tuple becomes (fixed translations hash the translated tuple), destinations in a pool of
//! translated addresses (owned by slice of ports), and sources mapped endpoint-independently (hashed alone).

use std::hash::{BuildHasher, RandomState};

use crate::wire::icmpv4::{self, Icmpv4};
use crate::wire::icmpv6;
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
    /// A key nobody can guess.
    pub fn random() -> Key {
        let random = RandomState::new();
        Key(std::array::from_fn(|word| random.hash_one(word)))
    }

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
        unusual(meta, frame, key)
    } else {
        hash(meta, key)
    };
}

/// The hash of the tuple of a packet of IPv4 or IPv6, whatever else it is: equal in both directions.
#[inline(always)]
pub fn hash(meta: &Meta, key: Key) -> u32 {
    // Zero where there are no ports, as these are packets of IPv4 and IPv6.
    let (sport, dport) = (meta.sport, meta.dport);
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
fn unusual(meta: &Meta, frame: &Frame, key: Key) -> u32 {
    let fragment = meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT);
    if fragment { datagram(meta, frame, key) } else { flow(meta, frame, key) }
}

/// The hash of the flow to which a packet with its transport header belongs; a first fragment counts as the whole.
pub fn flow(meta: &Meta, frame: &Frame, key: Key) -> u32 {
    let error = meta.has(flag::ICMP_ERROR).then(|| frame.bytes().get(meta.l4() + Icmpv4::LEN..meta.end()));
    error.flatten().and_then(|quote| quoted_hash(meta, quote, key)).unwrap_or_else(|| hash(meta, key))
}

/// The hash that all fragments of a fragment's datagram share.
pub fn datagram(meta: &Meta, frame: &Frame, key: Key) -> u32 {
    let packet = frame.bytes().get(meta.l3()..meta.end());
    let found = packet.and_then(|packet| {
        if meta.has(flag::IPV4) {
            let ip = Ipv4::parse(packet)?;
            Some(fragment_v4(&meta.src, &meta.dst, ip.protocol(), ip.id(), key))
        } else {
            let (fragment, _) = extensions(Ipv6::parse(packet)?, packet).fragment?;
            Some(fragment_v6(&meta.src, &meta.dst, fragment.id(), key))
        }
    });
    found.unwrap_or_else(|| hash(meta, key))
}

/// What identifies a datagram in fragments is source, destination, protocol and id (RFC 791 section 3.2).
fn fragment_v4(source: &[u8; 16], destination: &[u8; 16], protocol: u8, id: u16, key: Key) -> u32 {
    let rest = u64::from(protocol) | u64::from(id) << 8;
    join(end_v4(source, 0, key), end_v4(destination, 0, key), rest, key)
}

/// As for IPv4, but the protocol is no part of it: later fragments may name another than the first (RFC 8200 section 4.5).
fn fragment_v6(source: &[u8; 16], destination: &[u8; 16], id: u32, key: Key) -> u32 {
    let rest = u64::from(id) << 8;
    join(end_v6(source, 0, key), end_v6(destination, 0, key), rest, key)
}

/// What an ICMP error tells of the packet it quotes.
pub struct Quoted {
    /// Its facts, as far as decode would fill them and the quote goes: addresses, protocol, ports.
    pub facts: Meta,
    /// Offset of its transport header in the quote; that may end before.
    pub transport: usize,
    /// It is a later fragment: it shows no transport header.
    pub later_fragment: bool,
    /// IPv6: what identifies its datagram.
    id: u32,
}

/// Reads the packet quoted in the ICMP error `meta` is about; `None` if the quote does not hold a network header.
pub fn quoted(meta: &Meta, quote: &[u8]) -> Option<Quoted> {
    let mut facts = Meta::UNKNOWN;
    let mut quoted = if meta.has(flag::IPV4) {
        let ip = Ipv4::parse(quote).filter(|ip| ip.version() == 4 && ip.header_len() >= Ipv4::LEN)?;
        (facts.src, facts.dst) = (wide(ip.source()), wide(ip.destination()));
        (facts.flags, facts.proto) = (flag::IPV4, ip.protocol());
        let later_fragment = ip.fragment() & ipv4::OFFSET != 0;
        Quoted { facts, transport: ip.header_len(), later_fragment, id: ip.id().into() }
    } else {
        let ip = Ipv6::parse(quote).filter(|ip| ip.version() == 6)?;
        let chain = extensions(ip, quote);
        (facts.src, facts.dst) = (ip.source(), ip.destination());
        (facts.flags, facts.proto) = (flag::IPV6, chain.proto);
        let later_fragment = chain.fragment.is_some_and(|(fragment, _)| fragment.offset() != 0);
        let id = chain.fragment.map_or(0, |(fragment, _)| fragment.id());
        Quoted { facts, transport: chain.at, later_fragment, id }
    };
    if !quoted.later_fragment
        && let Some(behind) = quote.get(quoted.transport..)
    {
        quoted_ports(&mut quoted.facts, behind);
    }
    Some(quoted)
}

/// The hash of the flow to which a packet quoted in an ICMP error belongs, as far as the quote goes; `None` if it does not
/// hold a network header.
fn quoted_hash(meta: &Meta, quote: &[u8], key: Key) -> Option<u32> {
    let Quoted { facts, later_fragment, id, .. } = quoted(meta, quote)?;
    Some(match later_fragment {
        true if meta.has(flag::IPV4) => fragment_v4(&facts.src, &facts.dst, facts.proto, id as u16, key),
        true => fragment_v6(&facts.src, &facts.dst, id, key),
        false => hash(&facts, key),
    })
}

/// What decode takes for ports, from the eight bytes that every error quotes at least (RFC 792).
fn quoted_ports(facts: &mut Meta, behind: &[u8]) {
    match facts.proto {
        protocol::TCP | protocol::UDP | protocol::UDP_LITE | protocol::SCTP | protocol::DCCP => {
            let Some([a, b, c, d]) = behind.first_chunk().copied() else { return };
            (facts.sport, facts.dport) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            facts.flags |= flag::PORTS;
        }
        protocol::ICMP | protocol::ICMPV6 => {
            // Both messages have these fields in the same places.
            let Some(icmp) = Icmpv4::parse(behind) else { return };
            let v4 = facts.has(flag::IPV4);
            facts.detail = [icmp.kind(), icmp.code()];
            if v4 && facts.proto == protocol::ICMP && icmpv4::is_echo(icmp.kind())
                || !v4 && facts.proto == protocol::ICMPV6 && icmpv6::is_echo(icmp.kind())
            {
                (facts.sport, facts.dport) = (icmp.id(), icmp.id());
                facts.flags |= flag::PORTS | flag::ECHO;
            }
        }
        _ => {}
    }
}

/// Where a chain of IPv6 extension headers leads.
pub(super) struct Chain<'a> {
    proto: u8,
    /// Offset of what follows the chain; behind the end of the packet if that cuts the chain off.
    at: usize,
    /// The fragment header, and the offset of what follows it.
    pub fragment: Option<(Fragment<'a>, usize)>,
}

/// Walks a chain that may be cut off or endless, as in a quote, and stops at a later fragment.
pub(super) fn extensions<'a>(ip: Ipv6<'_>, packet: &'a [u8]) -> Chain<'a> {
    let mut chain = Chain { proto: ip.next(), at: Ipv6::LEN, fragment: None };
    for _ in 0..MAX_EXTENSIONS {
        if !ipv6::is_extension(chain.proto) {
            break;
        }
        let Some(rest) = packet.get(chain.at..) else { break };
        let Some(header) = Extension::parse(rest) else { break };
        chain.at += if chain.proto == protocol::FRAGMENT {
            let Some(fragment) = Fragment::parse(rest) else { break };
            chain.fragment = Some((fragment, chain.at + Fragment::LEN));
            Fragment::LEN
        } else {
            header.len(chain.proto)
        };
        chain.proto = header.next();
        if chain.fragment.is_some_and(|(fragment, _)| fragment.offset() != 0) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::decode::{Depth, decode};
    use crate::packet::frame::Heap;
    use crate::testkit::packets::{Packet, batch, give_back, samples};

    const KEY: Key = Key([0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89]);

    fn placed(bytes: &[u8]) -> u32 {
        let mut heap = Heap::new(1, 10_000);
        let mut batch = batch(&mut heap, [bytes]);
        decode(&mut batch, Depth::L4);
        assert_eq!(batch.live, 1, "well formed");
        steer(&mut batch.metas[0], &batch.frames[0], KEY);
        give_back(&mut heap, &mut batch);
        batch.metas[0].hash
    }

    const A: &str = "10.0.0.1:1000";
    const B: &str = "192.0.2.1:53";
    const C: &str = "[2001:db8::1]:1000";
    const D: &str = "[2001:db8::2]:53";

    #[test]
    fn directions_are_equal_and_tuples_are_not() {
        for (a, b, other) in [(A, B, "192.0.2.1:54"), (C, D, "[2001:db8::2]:54")] {
            let there = placed(&Packet::udp(a, b).bytes());
            assert_eq!(there, placed(&Packet::udp(b, a).vlan(7).bytes()));
            assert_ne!(there, placed(&Packet::udp(a, other).bytes()));
            assert_ne!(there, placed(&Packet::tcp(a, b).bytes()));
        }
        let request = Packet::echo_request("10.0.0.1", "10.0.0.2", 5, 1).bytes();
        assert_eq!(placed(&request), placed(&Packet::echo_reply("10.0.0.2", "10.0.0.1", 5, 1).bytes()));
        // Ports are tied to their addresses.
        assert_ne!(
            placed(&Packet::udp("10.0.0.1:1", "10.0.0.2:2").bytes()),
            placed(&Packet::udp("10.0.0.1:2", "10.0.0.2:1").bytes())
        );
    }

    #[test]
    fn an_error_is_placed_with_the_flow_it_is_about() {
        let error = |about: &Packet| placed(&Packet::icmp_error("10.9.9.9", "10.0.0.1", 3, 4, about).bytes());
        let error6 = |about: &Packet| placed(&Packet::icmp_error("2001:db8::9", "2001:db8::1", 2, 0, about).bytes());
        let long = [9; 1200];
        for packet in [
            Packet::udp(A, B).payload(&long),
            Packet::tcp(A, B).ip_options(&[1, 1, 1, 0]),
            Packet::sctp(A, B),
            Packet::echo_request("10.0.0.1", "192.0.2.1", 5, 1),
            Packet::ip("10.0.0.1", "192.0.2.1", 89).payload(&long),
        ] {
            assert_eq!(error(&packet), placed(&packet.bytes()), "{packet:?}");
        }
        for packet in [
            Packet::udp(C, D).payload(&long),
            Packet::tcp(C, D).extension(protocol::DESTINATION, &[0; 30]).fragment(0, false),
            Packet::echo_reply("2001:db8::1", "2001:db8::2", 5, 1),
        ] {
            assert_eq!(error6(&packet), placed(&packet.bytes()), "{packet:?}");
        }
        // A quoted first fragment has the flow's ports, a later one only its siblings.
        let whole = Packet::udp(A, B).payload(&[1; 64]).id(8);
        assert_eq!(error(&whole.clone().fragment(0, true)), placed(&whole.bytes()));
        let later = Packet::ip("10.0.0.1", "192.0.2.1", 17).payload(&[1; 64]).id(8).fragment(48, false);
        assert_eq!(error(&later), placed(&whole.fragments(24)[1]));
    }

    #[test]
    fn fragments_stay_together() {
        for whole in [Packet::udp(A, B).payload(&[1; 500]).id(77), Packet::tcp(C, D).payload(&[1; 500]).id(77)] {
            let parts = whole.fragments(104);
            assert!(parts.iter().all(|part| placed(part) == placed(&parts[0])));
            assert_ne!(placed(&parts[0]), placed(&whole.clone().id(78).fragments(104)[0]));
        }
        // The later fragment of an IPv6 packet may name an extension header as what follows.
        let first = Packet::udp(C, D).fragment(0, true).extension(protocol::DESTINATION, &[0; 6]).id(7);
        let later = Packet::ip("2001:db8::1", "2001:db8::2", protocol::DESTINATION).payload(&[0; 9]);
        assert_eq!(placed(&first.payload(&[0; 8]).bytes()), placed(&later.fragment(16, false).id(7).bytes()));
    }

    #[test]
    fn what_is_not_ip_is_the_first_workers() {
        assert_eq!(placed(&Packet::arp(1, "10.0.0.1", "10.0.0.2").bytes()), 0);
        assert_eq!((owner(0, 7), owner(u32::MAX, 7), owner(1 << 31, 2)), (0, 6, 1));
    }

    #[test]
    fn tuples_spread_evenly_and_by_key() {
        let mut counts = [0u32; 8];
        let mut moved = 0;
        let rekeyed = Key([KEY.0[0] ^ 1, KEY.0[1], KEY.0[2], KEY.0[3]]);
        for i in 0..65_536u32 {
            // Neighboring addresses and ports, the least random there is.
            let mut meta = Meta { proto: 17, flags: flag::IPV4 | flag::PORTS, dport: 53, ..Meta::UNKNOWN };
            meta.src[..4].copy_from_slice(&[10, 0, 0, i as u8]);
            meta.dst[..4].copy_from_slice(&[192, 0, 2, 1]);
            meta.sport = 1024 + (i >> 8) as u16;
            let at = owner(hash(&meta, KEY), 8);
            counts[at] += 1;
            moved += u32::from(owner(hash(&meta, rekeyed), 8) != at);
        }
        // 8,192 expected, standard deviation 85.
        assert!(counts.iter().all(|n| (7_700..8_700).contains(n)), "{counts:?}");
        assert!(moved > 50_000, "{moved} of 65,536 moved with the key, seven of eight expected");
    }

    proptest! {
        #[test]
        fn hostile_quotes_never_panic(sample in 0..26usize, cut in 0..100usize, flips in prop::collection::vec((0..100usize, any::<u8>()), 0..5)) {
            let samples = samples();
            let mut quote = samples[sample % samples.len()].network();
            for (at, value) in flips {
                let at = at % quote.len();
                quote[at] = value;
            }
            quote.truncate(cut);
            placed(&Packet::icmp("10.0.0.9", "10.0.0.1", 3, 1, [0; 4]).payload(&quote).bytes());
            placed(&Packet::icmp("2001:db8::9", "2001:db8::1", 1, 1, [0; 4]).payload(&quote).bytes());
        }
    }
}
