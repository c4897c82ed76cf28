//! From a packet's notation to its frame: what is left out has its usual value.

use std::net::SocketAddr;

use crate::config::notation::{Notation, Tag};
use crate::testkit::packets::Packet;
use crate::wire::{icmpv4, icmpv6, protocol, tcp};

/// The source port where none is given.
const SOURCE_PORT: u16 = 40000;
/// The echo identifier where none is given.
const ECHO_ID: u16 = 1;
/// Where a fragment that continues a packet begins, in bytes: behind a first one of the usual MTU.
const OFFSET: usize = 1480;

/// The frame of a packet; `None` for a range of packets.
pub fn frame(notation: &Notation) -> Option<Vec<u8>> {
    if !notation.is_single() {
        return None;
    }
    let (from, to) = (notation.source.address?, notation.destination.address?);
    let (source, destination) = (from.to_string(), to.to_string());
    let number = notation.protocol?;
    let port = |ports: &Option<std::ops::RangeInclusive<u16>>| ports.as_ref().map(|ports| *ports.start());
    let sport = port(&notation.source.ports).unwrap_or(SOURCE_PORT);
    let dport = port(&notation.destination.ports).unwrap_or(0);
    let (a, b) = (SocketAddr::new(from, sport).to_string(), SocketAddr::new(to, dport).to_string());
    let payload = vec![0; usize::from(notation.payload.unwrap_or(0))];
    // What stands behind the IP header of protocols that the builder takes as bare payload.
    let bare = |header: &[u8]| Packet::ip(&source, &destination, number).payload(&[header, &payload].concat());
    let [s0, s1] = sport.to_be_bytes();
    let [d0, d1] = dport.to_be_bytes();
    let packet = match number {
        _ if notation.fragment => {
            let payload = if payload.is_empty() { vec![0; 8] } else { payload };
            Packet::ip(&source, &destination, number).payload(&payload).fragment(OFFSET, false)
        }
        protocol::TCP => {
            let mut packet = Packet::tcp(&a, &b).payload(&payload).sequence(notation.sequence.unwrap_or(0));
            if let Some(number) = notation.acknowledgment {
                packet = packet.acknowledgment(number);
            }
            packet = packet.flags(notation.flags.unwrap_or(tcp::SYN));
            packet.window(notation.window.unwrap_or(u16::MAX))
        }
        protocol::UDP => Packet::udp(&a, &b).payload(&payload),
        protocol::SCTP => Packet::sctp(&a, &b).payload(&payload),
        // RFC 3828 section 3.1: a coverage of eight bytes is the header's.
        protocol::UDP_LITE => bare(&[s0, s1, d0, d1, 0, 8, 0, 0]),
        // RFC 4340 section 5.1: a Request, three words long with 16-bit sequence numbers.
        protocol::DCCP => bare(&[s0, s1, d0, d1, 3, 0, 0, 0, 0, 0, 0, 0]),
        protocol::ICMP | protocol::ICMPV6 => {
            let (kind, code) = notation.icmp_or_echo()?;
            let v4 = from.is_ipv4();
            if if v4 { icmpv4::is_error(kind) } else { icmpv6::is_error(kind) } {
                let about =
                    Packet::udp(&SocketAddr::new(to, dport).to_string(), &SocketAddr::new(from, sport).to_string());
                Packet::icmp_error(&source, &destination, kind, code, &about)
            } else {
                let [i0, i1] = notation.id.unwrap_or(ECHO_ID).to_be_bytes();
                Packet::icmp(&source, &destination, kind, code, [i0, i1, 0, 1]).payload(&payload)
            }
        }
        protocol::GRE => bare(&[0, 0, 8, 0]),
        protocol::ESP => bare(&[0, 0, 0, 1, 0, 0, 0, 1]),
        // RFC 4302 section 2: nothing behind it, and an integrity value of one word, so that it ends on eight bytes.
        protocol::AH => bare(&[protocol::NO_NEXT, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]),
        _ => bare(&[]),
    };
    let packet = match notation.ttl {
        Some(ttl) => packet.ttl(ttl),
        None => packet,
    };
    let packet = match notation.vlan {
        Some(Tag::Id(id)) => packet.vlan(id),
        _ => packet,
    };
    Some(packet.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::decode::{Depth, walk};
    use crate::packet::frame::Heap;
    use crate::packet::meta::flag;
    use crate::packet::{Frame, Meta};

    fn facts(text: &str) -> Meta {
        let notation = Notation::parse(text).unwrap_or_else(|error| panic!("{}", error.shown(text)));
        let mut heap = Heap::new(1, 10_000);
        let frame: Frame = heap.frame(&frame(&notation).expect("one packet")).expect("it fits");
        let mut meta = Meta::UNKNOWN;
        walk(&frame, Depth::L4, &mut meta).unwrap_or_else(|reason| panic!("{text}: {reason:?}"));
        heap.give_back(frame);
        meta
    }

    #[test]
    fn frames_say_what_the_notation_says() {
        for (name, number) in [("tcp", 6), ("udp", 17), ("sctp", 132), ("dccp", 33), ("udplite", 136)] {
            for (source, destination) in [("10.0.0.5", "192.0.2.7"), ("[2001:db8::5]", "[2001:db8::7]")] {
                let meta = facts(&format!("{name} {source}:7 > {destination}:443 vlan 5 in lan"));
                assert_eq!((meta.proto, meta.sport, meta.dport, meta.vlan), (number, 7, 443, 5), "{name}");
                assert!(meta.has(flag::PORTS | flag::L4 | flag::VLAN));
                assert_eq!(facts(&format!("{name} {source} > {destination}:443 in lan")).sport, 40000);
                let bare = |address: &str| address.trim_matches(['[', ']']).to_owned();
                let meta = facts(&format!("{name} {} > {} fragment in lan", bare(source), bare(destination)));
                assert_eq!((meta.proto, meta.flags & flag::LATER_FRAGMENT), (number, flag::LATER_FRAGMENT));
            }
        }
        let meta = facts("tcp 10.0.0.5:1 > 192.0.2.7:2 fin ack 5 seq 3 win 9 len 100 ttl 7 in lan");
        assert_eq!(meta.detail[0], tcp::FIN | tcp::ACK);
        assert_eq!(meta.end(), 14 + 20 + 20 + 100);
        assert_eq!(facts("tcp 10.0.0.5:1 > 192.0.2.7:2 in lan").detail[0], tcp::SYN);
        assert_eq!(facts("tcp 10.0.0.5:1 > 192.0.2.7:2 none in lan").detail[0], 0);
        for (text, detail) in [
            ("icmp 10.0.0.5 > 192.0.2.7", [8, 0]),
            ("icmp 10.0.0.5 > 192.0.2.7 3/4", [3, 4]),
            ("icmp6 2001:db8::5 > 2001:db8::7 packet-too-big", [2, 0]),
            ("icmp6 2001:db8::5 > 2001:db8::7 echo-reply id 9", [129, 0]),
        ] {
            assert_eq!(facts(&format!("{text} in lan")).detail, detail, "{text}");
        }
        assert_eq!(facts("icmp6 2001:db8::5 > 2001:db8::7 echo-reply id 9 in lan").sport, 9);
        for name in ["gre", "esp", "ospf", "igmp", "ah"] {
            let meta = facts(&format!("{name} 10.0.0.5 > 192.0.2.7 in lan"));
            assert!(!meta.has(flag::PORTS), "{name}");
        }
        // In IPv6 the authentication header is walked over.
        assert_eq!(facts("ah 2001:db8::5 > 2001:db8::7 in lan").proto, protocol::NO_NEXT);
    }
}
