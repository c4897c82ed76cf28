//! Decode against etherparse, an independent parser: on well-formed, changed and hostile frames both must come to the same
//! addresses, protocol, ports and lengths, or one of the differences below must be the cause.
//!
//! Decode is stricter (`STRICTER`), since what passes a firewall is read by stacks of all kinds: header checksums, options,
//! fragment lengths, tags and extension headers without bound, jumbograms, and transports that etherparse does not know.
//! Decode lets pass, or reads otherwise, what is listed in `reads_otherwise`.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use flowgate::packet::decode::{Depth, decode};
use flowgate::packet::frame::Heap;
use flowgate::packet::meta::{Meta, flag};
use flowgate::stats::Layout;
use flowgate::testkit::packets::{Packet, batch, give_back, samples};
use flowgate::wire::{checksum, protocol};
use proptest::prelude::*;

/// Reasons for which decode alone drops, and why.
const STRICTER: &[&str] = &[
    "too-many-tags",          // etherparse reads three
    "bad-header-checksum",    // it computes none
    "bad-option",             // it reads no IPv4 or IPv6 options
    "bad-fragment-length",    // it checks no fragment
    "fragment-beyond-end",    // likewise
    "second-fragment-header", // it allows any number
    "too-many-extensions",    // likewise
    "jumbogram",              // it takes the frame's length
    "foreign-arp",            // it reads ARP of any kind
];

/// Reasons that a transport header is refused for.
const TRANSPORT: &[&str] =
    &["short-first-fragment", "bad-tcp-offset", "bad-udp-length", "bad-udp-lite-coverage", "bad-auth-length"];

fn ours(bytes: &[u8]) -> Result<Meta, String> {
    let mut heap = Heap::new(1, 4096);
    let mut batch = batch(&mut heap, [bytes]);
    decode(&mut batch, Depth::L4);
    give_back(&mut heap, &mut batch);
    if batch.live == 1 {
        Ok(batch.metas[0].clone())
    } else {
        let name = Layout::new().reason_name(batch.reasons[0]);
        Err(name.strip_prefix("decode.").expect("decode's own reason").to_owned())
    }
}

/// EtherType behind the tags that decode knows, and where its payload begins.
fn behind_tags(bytes: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    loop {
        let kind = u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]);
        if !matches!(kind, 0x8100 | 0x88a8) {
            return Some((kind, at + 2));
        }
        at += 4;
    }
}

/// Frames on which the two are known to go different ways, before either is asked.
fn reads_otherwise(bytes: &[u8]) -> bool {
    let Some((kind, l3)) = behind_tags(bytes) else { return false };
    let field = |at: usize| bytes.get(l3 + at).copied().unwrap_or(0);
    match kind {
        // MACsec and the tag of old double tagging are foreign EtherTypes to decode.
        0x88e5 | 0x9100 => true,
        // In IPv4, etherparse walks over the authentication header, reads IGMP, and reads ICMPv6 too.
        0x0800 => {
            let icmp = l3 + usize::from(field(0) & 0xf) * 4;
            let timestamp = field(9) == protocol::ICMP && matches!(bytes.get(icmp), Some(13 | 14));
            matches!(field(9), protocol::AH | protocol::ICMPV6 | 2) || timestamp
        }
        // A payload length of zero means the rest of the frame to etherparse (RFC 2675), and nothing to decode.
        0x86dd => field(4) == 0 && field(5) == 0,
        _ => false,
    }
}

/// Transports that decode checks and etherparse does not read, wherever they stand in the chain of headers.
fn unknown_to_etherparse(proto: u8) -> bool {
    use protocol::*;
    matches!(proto, SCTP | DCCP | UDP_LITE | GRE | ESP | MOBILITY | HIP | SHIM6 | AH)
}

fn compare(bytes: &[u8]) {
    if reads_otherwise(bytes) {
        return;
    }
    match (ours(bytes), SlicedPacket::from_ethernet(bytes)) {
        (Ok(meta), Ok(theirs)) => same(&meta, &theirs, bytes),
        (Err(_), Err(_)) => {}
        (Err(reason), Ok(theirs)) => {
            let (proto, fragment) = match &theirs.net {
                Some(NetSlice::Ipv4(ip)) => (ip.payload().ip_number.0, ip.payload().fragmented),
                Some(NetSlice::Ipv6(ip)) => (ip.payload().ip_number.0, ip.payload().fragmented),
                _ => (0, false),
            };
            // It looks for no transport header in any fragment.
            let unread = fragment && TRANSPORT.contains(&reason.as_str());
            // A UDP length of zero is the rest of the packet to etherparse.
            let zero = reason == "bad-udp-length"
                && matches!(&theirs.transport, Some(TransportSlice::Udp(udp)) if udp.length() == 0);
            // ARP with addresses of other lengths can be shorter than that of IPv4 over Ethernet.
            let arp = reason == "short-arp"
                && matches!(&theirs.net, Some(NetSlice::Arp(arp)) if arp.hw_addr_size() != 6 || arp.proto_addr_size() != 4);
            let foreign = unknown_to_etherparse(proto) && reason != "bad-tcp-offset";
            assert!(
                STRICTER.contains(&reason.as_str()) || unread || foreign || zero || arp,
                "decode alone refuses, for {reason}: {bytes:02x?}\n{theirs:?}"
            );
        }
        (Ok(meta), Err(error)) => {
            // In IPv6 etherparse reads ICMP and IGMP of IPv4 too; behind the header of a later fragment it takes payload for
            // extension headers.
            let foreign = meta.has(flag::IPV6) && matches!(meta.proto, protocol::ICMP | 2);
            assert!(
                foreign || meta.has(flag::LATER_FRAGMENT),
                "etherparse alone refuses, {error}: {bytes:02x?}\n{meta:?}"
            );
        }
    }
}

fn same(meta: &Meta, theirs: &SlicedPacket<'_>, bytes: &[u8]) {
    let tags = theirs.vlan_ids();
    assert_eq!(meta.has(flag::VLAN).then_some(meta.vlan), tags.first().map(|id| id.value()), "{bytes:02x?}");
    let place = |part: &[u8]| part.as_ptr() as usize - bytes.as_ptr() as usize;
    let (payload, options) = match &theirs.net {
        Some(NetSlice::Ipv4(ip)) => {
            assert!(meta.has(flag::IPV4));
            assert_eq!((&meta.src[..4], &meta.dst[..4]), (&ip.header().source()[..], &ip.header().destination()[..]));
            (ip.payload(), !ip.header().options().is_empty())
        }
        Some(NetSlice::Ipv6(ip)) => {
            assert!(meta.has(flag::IPV6));
            assert_eq!((meta.src, meta.dst), (ip.header().source(), ip.header().destination()));
            if unknown_to_etherparse(ip.payload().ip_number.0) || meta.has(flag::LATER_FRAGMENT) {
                return;
            }
            (ip.payload(), meta.has(flag::OPTIONS))
        }
        Some(NetSlice::Arp(arp)) => {
            assert!(meta.has(flag::ARP));
            assert_eq!((&meta.src[..4], &meta.dst[..4]), (arp.sender_protocol_addr(), arp.target_protocol_addr()));
            return;
        }
        None => return assert!(!meta.any(flag::IPV4 | flag::IPV6 | flag::ARP), "{bytes:02x?}"),
    };
    assert_eq!(meta.proto, payload.ip_number.0, "{bytes:02x?}");
    assert_eq!((meta.l4(), meta.end()), (place(payload.payload), place(payload.payload) + payload.payload.len()));
    assert_eq!(meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT), payload.fragmented);
    assert_eq!(meta.has(flag::OPTIONS), options);
    match &theirs.transport {
        Some(TransportSlice::Udp(udp)) => {
            assert_eq!((meta.sport, meta.dport), (udp.source_port(), udp.destination_port()));
        }
        Some(TransportSlice::Tcp(tcp)) => {
            assert_eq!((meta.sport, meta.dport), (tcp.source_port(), tcp.destination_port()));
            assert_eq!(meta.detail[0], tcp.slice()[13]);
        }
        Some(TransportSlice::Icmpv4(icmp)) if meta.has(flag::IPV4) => {
            assert_eq!(meta.detail, [icmp.type_u8(), icmp.code_u8()]);
        }
        Some(TransportSlice::Icmpv6(icmp)) if meta.has(flag::IPV6) => {
            assert_eq!(meta.detail, [icmp.type_u8(), icmp.code_u8()]);
        }
        _ => {}
    }
}

/// Makes the IPv4 header checksum right again, so that a change is judged for itself.
fn repair(bytes: &mut [u8]) {
    let Some((0x0800, l3)) = behind_tags(bytes) else { return };
    let Some(len) = bytes.get(l3).map(|first| usize::from(first & 0xf) * 4).filter(|len| *len >= 20) else { return };
    if let Some(header) = bytes.get_mut(l3..l3 + len) {
        header[10..12].fill(0);
        let sum = checksum::checksum(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

#[test]
fn samples_are_read_alike() {
    for packet in samples().into_iter().map(|packet| packet.pad(60)) {
        let bytes = packet.bytes();
        assert!(ours(&bytes).is_ok(), "{packet:?}");
        assert!(reads_otherwise(&bytes) || SlicedPacket::from_ethernet(&bytes).is_ok(), "{packet:?}");
        compare(&bytes);
    }
    for len in 0..60 {
        compare(&Packet::tcp("10.0.0.1:1", "10.0.0.2:2").payload(&[0; 20]).bytes()[..len]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn changed_packets_are_read_alike(
        sample in prop::sample::select(samples().into_iter().map(|packet| packet.bytes()).collect::<Vec<_>>()),
        flips in prop::collection::vec((0..90usize, any::<u8>()), 0..4),
        cut in prop::option::weighted(0.2, 0..120usize),
        pad in 0..30usize,
    ) {
        let mut bytes = sample;
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        repair(&mut bytes);
        match cut {
            Some(cut) => bytes.truncate(cut),
            None => bytes.resize(bytes.len() + pad, 0),
        }
        compare(&bytes);
    }

    #[test]
    fn random_chains_of_extensions_are_read_alike(
        kinds in prop::collection::vec(prop::sample::select(&[0u8, 43, 44, 51, 60, 6, 17, 58, 59][..]), 1..7),
        body in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 8..160),
    ) {
        // Each header names the next kind; what their lengths make of it is left to chance.
        let mut body = body;
        for (i, kind) in kinds[1..].iter().enumerate() {
            if let Some(slot) = body.get_mut(i * 8) {
                *slot = *kind;
            }
        }
        compare(&Packet::ip("2001:db8::1", "2001:db8::2", kinds[0]).payload(&body).bytes());
    }
}
