//! Every packet is compared with the one that would have been built with the other tuple, checksums computed in full.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::packet::decode::{Depth, decode};
use crate::packet::frame::Heap;
use crate::testkit::packets::{Packet, batch, give_back};
use crate::wire::checksum;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    UdpWithout,
    UdpLite,
    Dccp,
    Sctp,
    SctpWithout,
    Request,
    Reply,
    /// An ICMP message that is neither echo nor error.
    Message,
    Gre,
}

const KINDS: [Kind; 11] = [
    Kind::Tcp,
    Kind::Udp,
    Kind::UdpWithout,
    Kind::UdpLite,
    Kind::Dccp,
    Kind::Sctp,
    Kind::SctpWithout,
    Kind::Request,
    Kind::Reply,
    Kind::Message,
    Kind::Gre,
];

impl Kind {
    fn has_ports(self) -> bool {
        !matches!(self, Kind::Message | Kind::Gre)
    }

    fn is_echo(self) -> bool {
        matches!(self, Kind::Request | Kind::Reply)
    }

    /// Where in the transport header its checksum is.
    fn sum(self) -> Option<std::ops::Range<usize>> {
        match self {
            Kind::Tcp => Some(16..18),
            Kind::Udp | Kind::UdpLite | Kind::Dccp => Some(6..8),
            Kind::Sctp => Some(8..12),
            Kind::Request | Kind::Reply | Kind::Message => Some(2..4),
            Kind::UdpWithout | Kind::SctpWithout | Kind::Gre => None,
        }
    }
}

fn address(v6: bool, bytes: &[u8; 16]) -> IpAddr {
    let [a, b, c, d, ..] = *bytes;
    if v6 { Ipv6Addr::from(*bytes).into() } else { Ipv4Addr::new(a, b, c, d).into() }
}

/// As the CRC is defined, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ 0x82f6_3b78 & 0u32.wrapping_sub(crc & 1))
    })
}

/// A packet of this tuple, its checksums computed in full.
fn packet(kind: Kind, v6: bool, tuple: &Tuple, payload: &[u8]) -> Packet {
    let (src, dst) = (address(v6, &tuple.src), address(v6, &tuple.dst));
    let (a, b) = (format!("{src}"), format!("{dst}"));
    let ends = [(src, tuple.sport), (dst, tuple.dport)].map(|end| std::net::SocketAddr::from(end).to_string());
    let ports = [tuple.sport.to_be_bytes(), tuple.dport.to_be_bytes()].concat();
    let len = if v6 { 16 } else { 4 };
    let bare = |protocol: u8, mut segment: Vec<u8>, covered: usize| {
        let pseudo = checksum::pseudo(&tuple.src[..len], &tuple.dst[..len], protocol, segment.len());
        let sum = match pseudo.bytes(&segment[..covered]).finish() {
            0 if protocol == protocol::UDP_LITE => 0xffff,
            sum => sum,
        };
        segment[6..8].copy_from_slice(&sum.to_be_bytes());
        Packet::ip(&a, &b, protocol).payload(&segment)
    };
    match kind {
        Kind::Tcp => Packet::tcp(&ends[0], &ends[1]).payload(payload),
        Kind::Udp => Packet::udp(&ends[0], &ends[1]).payload(payload),
        Kind::UdpWithout => Packet::udp(&ends[0], &ends[1]).payload(payload).no_checksum(),
        Kind::UdpLite => bare(protocol::UDP_LITE, [&ports[..], &[0, 8, 0, 0], payload].concat(), 8),
        Kind::Dccp => {
            let rest = [3, 1, 0, 0, 4, 0, 0, 1];
            bare(protocol::DCCP, [&ports[..], &rest, payload].concat(), 12)
        }
        Kind::Sctp => {
            let mut segment = [&ports[..], &[1, 2, 3, 4, 0, 0, 0, 0], payload].concat();
            let sum = crc32c(&segment);
            segment[8..12].copy_from_slice(&sum.to_le_bytes());
            Packet::ip(&a, &b, protocol::SCTP).payload(&segment)
        }
        Kind::SctpWithout => Packet::sctp(&ends[0], &ends[1]).payload(payload),
        Kind::Request => Packet::echo_request(&a, &b, tuple.sport, 7).payload(payload),
        Kind::Reply => Packet::echo_reply(&a, &b, tuple.sport, 0).payload(payload),
        Kind::Message => Packet::icmp(&a, &b, if v6 { 139 } else { 13 }, 0, [1, 2, 3, 4]).payload(payload),
        Kind::Gre => Packet::ip(&a, &b, protocol::GRE).payload(&[&[0, 0, 8, 0], payload].concat()),
    }
}

/// What becomes of a frame, and its facts then; `None` if `with` refuses, which must leave everything as it was.
fn changed(bytes: &[u8], with: impl Fn(&mut Frame, &mut Meta) -> bool) -> Option<(Vec<u8>, Meta)> {
    let mut heap = Heap::new(1, 10_000);
    let mut batch = batch(&mut heap, [bytes]);
    decode(&mut batch, Depth::L4);
    assert_eq!(batch.live, 1, "well formed");
    let meta = batch.metas[0].clone();
    let done = with(&mut batch.frames[0], &mut batch.metas[0]);
    let (after, facts) = (batch.frames[0].bytes().to_vec(), batch.metas[0].clone());
    give_back(&mut heap, &mut batch);
    if !done {
        assert_eq!((&after[..], &facts), (bytes, &meta), "refused, but changed");
    }
    done.then_some((after, facts))
}

/// The frame translated, when its facts have been compared with those that decode finds in it.
fn translated(bytes: &[u8], to: &Tuple) -> Option<Vec<u8>> {
    let (after, facts) = changed(bytes, |frame, meta| translate(frame, meta, to))?;
    changed(&after, |_, meta| {
        assert_eq!(*meta, facts);
        true
    });
    Some(after)
}

fn tuples() -> impl Strategy<Value = Tuple> {
    let byte = || prop_oneof![Just(0u8), Just(0xff), any::<u8>()];
    let address = move || prop::array::uniform16(byte());
    let port = || prop_oneof![Just(0u16), Just(0xffff), any::<u16>()];
    (address(), address(), port(), port()).prop_map(|(src, dst, sport, dport)| Tuple { src, dst, sport, dport })
}

/// As a packet of the kind has it.
fn fit(kind: Kind, v6: bool, mut tuple: Tuple) -> Tuple {
    if !v6 {
        tuple.src[4..].fill(0);
        tuple.dst[4..].fill(0);
    }
    if kind.is_echo() {
        tuple.dport = tuple.sport;
    }
    tuple
}

fn kinds() -> impl Strategy<Value = (Kind, bool)> {
    (prop::sample::select(&KINDS[..]), any::<bool>())
}

/// Bytes among which one's complement's two zeros come up.
fn payloads() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..100),
        prop::collection::vec(Just(0u8), 0..100),
        prop::collection::vec(Just(0xffu8), 0..100),
    ]
}

/// A payload with which the checksum of a packet of this tuple comes out as zero.
fn cancelling(kind: Kind, v6: bool, tuple: &Tuple) -> Vec<u8> {
    let at = kind.sum().expect("it has one").start + if v6 { 54 } else { 34 };
    packet(kind, v6, tuple, &[0; 2]).bytes()[at..at + 2].to_vec()
}

#[test]
fn the_crc_is_that_of_the_standard() {
    // RFC 3720 appendix B.4.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
}

#[test]
fn checksums_of_zero_come_out_right() {
    let from = Tuple { src: [10; 16], dst: [20; 16], sport: 1000, dport: 1000 };
    let to = Tuple { src: [30; 16], dst: [20; 16], sport: 7, dport: 1000 };
    for kind in [Kind::Tcp, Kind::Udp, Kind::Request, Kind::Reply] {
        for v6 in [false, true] {
            let (from, to) = (fit(kind, v6, from), fit(kind, v6, to));
            let payload = cancelling(kind, v6, &to);
            let (here, there) = (packet(kind, v6, &from, &payload).bytes(), packet(kind, v6, &to, &payload).bytes());
            let at = kind.sum().expect("it has one").start + if v6 { 54 } else { 34 };
            let zero = if kind == Kind::Udp { [0xff; 2] } else { [0; 2] };
            assert_eq!(there[at..at + 2], zero);
            assert_eq!(translated(&here, &to).as_ref(), Some(&there), "{kind:?}");
            assert_eq!(translated(&there, &from).as_ref(), Some(&here), "{kind:?}");
        }
    }
    // Nothing but zeros: an echo reply, and the only sum that is not zero where all is.
    let (from, to) = (fit(Kind::Reply, false, from), fit(Kind::Reply, false, Tuple { sport: 0, ..to }));
    let (here, there) = (packet(Kind::Reply, false, &from, &[0; 8]), packet(Kind::Reply, false, &to, &[0; 8]));
    assert_eq!(there.bytes()[36..38], [0xff; 2]);
    assert_eq!(translated(&here.bytes(), &to), Some(there.bytes()));
    assert_eq!(translated(&there.bytes(), &from), Some(here.bytes()));
}

/// RFC 8200 section 8.1.
#[test]
fn a_destination_on_the_way_is_not_covered() {
    let from = Tuple { src: [10; 16], dst: [20; 16], sport: 1, dport: 2 };
    let to = Tuple { dst: [30; 16], ..from };
    for left in [0, 1] {
        let mut routing = vec![4, left, 0, 0, 0, 0];
        routing.extend([99; 16]);
        let bytes = packet(Kind::Tcp, true, &from, b"x").extension(protocol::ROUTING, &routing).bytes();
        let after = translated(&bytes, &to).expect("translated");
        assert_eq!(after[38..54], [30; 16]);
        let sum = 14 + 40 + 24 + 16..14 + 40 + 24 + 18;
        assert_eq!(after[sum.clone()] == bytes[sum], left == 1);
        assert_eq!(translated(&after, &from), Some(bytes));
    }
}

proptest! {
    #[test]
    fn a_packet_becomes_the_other_and_comes_back(
        (kind, v6) in kinds(), from in tuples(), to in tuples(), payload in payloads(), tag in any::<bool>(), more in any::<bool>(),
    ) {
        let (from, to) = (fit(kind, v6, from), fit(kind, v6, to));
        let of = |tuple: &Tuple| {
            let mut packet = packet(kind, v6, tuple, &payload);
            if tag { packet = packet.vlan(5); }
            packet = match (more, v6) {
                (true, false) => packet.ip_options(&[1, 1, 1, 0]),
                (true, true) => packet.extension(protocol::DESTINATION, &[1, 4, 0, 0, 0, 0]),
                _ => packet,
            };
            packet.pad(70).bytes()
        };
        let (here, there) = (of(&from), of(&to));
        prop_assert_eq!(translated(&here, &to), Some(there.clone()));
        prop_assert_eq!(translated(&there, &from), Some(here));
    }

    #[test]
    fn damage_stays(
        (kind, v6) in kinds(), from in tuples(), to in tuples(), payload in payloads(), damage in 1..=255u8, at in any::<prop::sample::Index>(),
    ) {
        let (from, to) = (fit(kind, v6, from), fit(kind, v6, to));
        let (mut here, mut there) = (packet(kind, v6, &from, &payload).bytes(), packet(kind, v6, &to, &payload).bytes());
        let l4 = if v6 { 54 } else { 34 };
        let behind = l4 + 12;
        prop_assume!(here.len() > behind && kind != Kind::Tcp);
        let at = behind + at.index(here.len() - behind);
        here[at] ^= damage;
        there[at] ^= damage;
        // Nothing but zeros has a checksum of 0xffff, which in one's complement is zero too.
        prop_assume!(kind != Kind::Reply || from.sport != 0 && to.sport != 0);
        prop_assert_eq!(translated(&here, &to), Some(there));
    }

    #[test]
    fn fragments_join_to_the_other_packet(
        (kind, v6) in kinds(), from in tuples(), to in tuples(), len in 60..200usize, size in 3..10usize,
    ) {
        let (from, to) = (fit(kind, v6, from), fit(kind, v6, to));
        let parts = |tuple: &Tuple| packet(kind, v6, tuple, &vec![3; len]).id(9).fragments(size * 8);
        // Its CRC cannot be known, and so not the first fragment either.
        let fixed = matches!(kind, Kind::Sctp | Kind::SctpWithout) && (from.sport, from.dport) != (to.sport, to.dport);
        for (n, (here, there)) in parts(&from).iter().zip(parts(&to)).enumerate() {
            match translated(here, &to) {
                None => prop_assert!(fixed && n == 0),
                Some(after) => {
                    prop_assert!(n != 0 || !fixed);
                    prop_assert_eq!(&after, &there);
                    prop_assert_eq!(&translated(&there, &from).expect("as the way there"), here);
                }
            }
        }
    }

    /// `there` is what the quoted packet was when it arrived, `left` what it left with; the error goes its way back.
    #[test]
    fn an_error_quotes_what_was_sent(
        (kind, v6) in kinds(), there in tuples(), left in tuples(), hidden in any::<bool>(), payload in payloads(),
        raiser in prop::array::uniform16(any::<u8>()), by_peer in any::<bool>(), cut in any::<prop::sample::Index>(),
        chance in any::<bool>(), options in any::<bool>(),
    ) {
        let (there, mut left) = (fit(kind, v6, there), fit(kind, v6, left));
        // Whether destinations are translated, which are the error's sources.
        if !hidden { left.dst = there.dst; }
        let raiser = if by_peer { left.dst } else { raiser };
        let quote = |tuple: &Tuple| {
            let packet = packet(kind, v6, tuple, &payload);
            match (options, v6) {
                (true, false) => packet.ip_options(&[1, 1, 1, 0]),
                (true, true) => packet.extension(protocol::DESTINATION, &[1, 4, 0, 0, 0, 0]),
                _ => packet,
            }.network()
        };
        let (before, after) = (quote(&left), quote(&there));
        let transport = if v6 { 40 } else { 20 } + match (options, v6) { (false, _) => 0, (_, false) => 4, (_, true) => 8 };
        // The quote ends anywhere behind the network header.
        let end = if chance { before.len() } else { transport + cut.index(before.len() - transport + 1) };
        let error = |src: [u8; 16], dst: [u8; 16], quote: &[u8]| {
            let (kind, code) = if v6 { (2, 0) } else { (3, 4) };
            Packet::icmp(&address(v6, &src).to_string(), &address(v6, &dst).to_string(), kind, code, [0, 0, 5, 0xdc]).payload(&quote[..end])
        };
        let to = there.reversed();
        let frame = error(raiser, left.src, &before).vlan(3).bytes();
        let outcome = changed(&frame, |frame, meta| translate_error(frame, meta, &to));
        let needed = match kind { Kind::Request | Kind::Reply => 8, Kind::Message | Kind::Gre => 0, _ => 4 };
        let Some((bytes, facts)) = outcome else {
            prop_assert!(end - transport < needed);
            return Ok(());
        };
        // An echo is not known as one then, and all that changes are addresses.
        prop_assert!(end - transport >= needed || kind.is_echo());
        changed(&bytes, |_, meta| {
            assert_eq!(*meta, facts);
            true
        });
        let message = &bytes[18 + if v6 { 40 } else { 20 }..];
        let sound = if v6 {
            let pseudo = checksum::pseudo(&facts.src, &facts.dst, protocol::ICMPV6, message.len());
            checksum::transport_is_good(pseudo, message)
        } else {
            checksum::is_good(message) && checksum::is_good(&bytes[18..38])
        };
        prop_assert!(sound);
        let source = if left.dst == there.dst { raiser } else { there.dst };
        let cuts = |range: std::ops::Range<usize>| end < transport + range.end && end > transport + range.start;
        let echo_unseen = (kind.is_echo() || kind == Kind::Message) && end - transport < 8;
        if !kind.sum().is_some_and(cuts) && !echo_unseen {
            prop_assert_eq!(bytes, error(fit(kind, v6, Tuple { src: source, ..there }).src, there.src, &after).vlan(3).bytes());
        }
    }
}

#[test]
fn kinds_with_ports_are_told_from_others() {
    let tuple = Tuple { src: [1; 16], dst: [2; 16], sport: 3, dport: 3 };
    for kind in KINDS {
        let bytes = packet(kind, false, &fit(kind, false, tuple), b"abcd").bytes();
        changed(&bytes, |_, meta| {
            assert_eq!(meta.has(flag::PORTS), kind.has_ports(), "{kind:?}");
            true
        });
    }
}
