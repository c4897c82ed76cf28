//! Makes an echo request to one of our addresses its reply, in place.
//!
//! Owns the bytes; whose address the destination is, and how many are answered, is decided elsewhere. What is not plain is
//! left to the kernel, which does it all: options, which a reply would have to turn around (RFC 1812 section 4.3.3.6),
//! fragments, and requests to groups.

use crate::wire::icmpv4::{self, Icmpv4};
use crate::wire::icmpv6;
use crate::wire::ipv4::Ipv4Mut;
use crate::wire::ipv6::Ipv6Mut;
use crate::wire::{checksum, protocol};

use super::frame::{Frame, rx};
use super::meta::{Meta, flag};
use super::reply::{HOPS, is_between_hosts, is_host, pseudo, swap_macs};

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// It is the reply now, which leaves by the port the request came from.
    Replied,
    /// It is not for this code to answer; nothing was changed.
    Other,
    /// Its ICMP checksum is wrong: nobody may answer it (RFC 1122 section 3.2.2). Nothing was changed.
    BadChecksum,
}

/// Makes an echo request the reply to it (RFC 792, RFC 1122 section 3.2.2.6, RFC 4443 section 4.2), sent from `mac` to the
/// station it came from. Identifier, sequence number and data stay, as do type of service and, over IPv4, the identification:
/// it is as unlike others as the request's was.
pub fn reply(frame: &mut Frame, meta: &mut Meta, mac: &[u8; 6]) -> Echo {
    let v4 = meta.has(flag::IPV4);
    let (proto, request, answer, words) = match v4 {
        true => (protocol::ICMP, icmpv4::ECHO_REQUEST, icmpv4::ECHO_REPLY, 5),
        false => (protocol::ICMPV6, icmpv6::ECHO_REQUEST, icmpv6::ECHO_REPLY, 10),
    };
    let plain = meta.l4_words == words && !meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT | flag::OPTIONS);
    if meta.proto != proto || !plain || !is_between_hosts(frame, meta) || !is_host(meta, &meta.dst) {
        return Echo::Other;
    }
    let (l3, l4) = (meta.l3(), meta.l4());
    let Some(message) = frame.bytes().get(l4..meta.end()) else { return Echo::Other };
    let Some(head) = Icmpv4::parse(message).filter(|head| (head.kind(), head.code()) == (request, 0)) else {
        return Echo::Other;
    };
    let good = match v4 {
        true => checksum::is_good(message),
        false => checksum::transport_is_good(pseudo(v4, &meta.src, &meta.dst, proto, message.len()), message),
    };
    if !good {
        return Echo::BadChecksum;
    }
    let [from, to] = [request, answer].map(|kind| u16::from(kind) << 8);
    let sum = checksum::Update::of(head.checksum()).word(from, to).finish();
    let bytes = frame.bytes_mut();
    swap_macs(bytes);
    bytes[6..12].copy_from_slice(mac);
    // Addresses that change sides change no sum.
    if let Some(mut ip) = Ipv4Mut::parse(&mut bytes[l3..]).filter(|_| v4) {
        let (source, destination, ttl) = (ip.view().source(), ip.view().destination(), ip.view().ttl());
        let sum = checksum::Update::of(ip.view().checksum()).word(u16::from(ttl) << 8, u16::from(HOPS) << 8).finish();
        ip.set_source(destination);
        ip.set_destination(source);
        ip.set_ttl(HOPS);
        ip.set_checksum(sum);
    } else if let Some(mut ip) = Ipv6Mut::parse(&mut bytes[l3..]).filter(|_| !v4) {
        let (source, destination) = (ip.view().source(), ip.view().destination());
        // RFC 6437 section 3: the label is the sender's own to set.
        let class = ip.view().version_class_label() & 0xfff0_0000;
        ip.set_version_class_label(class);
        ip.set_source(destination);
        ip.set_destination(source);
        ip.set_hop_limit(HOPS);
    }
    bytes[l4] = answer;
    bytes[l4 + 2..l4 + 4].copy_from_slice(&sum.to_be_bytes());
    frame.flags &= rx::VLAN_STRIPPED;
    (meta.src, meta.dst) = (meta.dst, meta.src);
    if meta.has(flag::L4) {
        meta.detail[0] = answer;
    }
    meta.out = meta.port;
    Echo::Replied
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::decode::{Depth, decode};
    use crate::packet::frame::Heap;
    use crate::testkit::packets::{Packet, batch, give_back, samples};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn replied(bytes: &[u8], depth: Depth) -> (Echo, Vec<u8>) {
        let mut heap = Heap::new(2, 9700);
        let mut batch = batch(&mut heap, [bytes]);
        decode(&mut batch, depth);
        let before = batch.metas[0].clone();
        let echo = if batch.live == 1 { reply(&mut batch.frames[0], &mut batch.metas[0], &MAC) } else { Echo::Other };
        let after = batch.frames[0].bytes().to_vec();
        let facts = batch.metas[0].clone();
        if echo == Echo::Replied {
            assert_eq!((facts.src, facts.dst, facts.out), (before.dst, before.src, facts.port));
            batch.begin(1);
            decode(&mut batch, depth);
            assert_eq!((batch.live, &batch.metas[0]), (1, &Meta { out: crate::packet::NO_PORT, ..facts }));
        } else {
            assert_eq!((&after[..], facts), (bytes, before));
        }
        give_back(&mut heap, &mut batch);
        (echo, after)
    }

    #[test]
    fn a_reply_is_what_the_other_end_would_have_made() {
        for (a, b) in [("10.0.0.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::2")] {
            for (len, sequence) in [(0, 1), (1, 2), (56, 65535), (8972, 3)] {
                let data: Vec<u8> = (0..len).map(|i: u32| i as u8).collect();
                let packet = |kind: fn(&str, &str, u16, u16) -> Packet, a, b| {
                    kind(a, b, 0x1234, sequence).payload(&data).id(77).tos(0x2d).vlan(5).pad(70)
                };
                let request = packet(Packet::echo_request, a, b).ttl(3);
                let expected = packet(Packet::echo_reply, b, a).ttl(64).macs(MAC, [2, 0, 0, 0, 0, 1]);
                for depth in [Depth::L3, Depth::L4] {
                    assert_eq!(replied(&request.bytes(), depth), (Echo::Replied, expected.bytes()), "{request:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_plain_is_left_alone() {
        let request = || Packet::echo_request("10.0.0.1", "192.0.2.1", 1, 1).payload(b"ping");
        let request6 = || Packet::echo_request("2001:db8::1", "2001:db8::2", 1, 1).payload(b"ping");
        let others = [
            request().ip_options(&[0x94, 4, 0, 0]),
            request().fragment(0, true).payload(&[1; 4]),
            request().fragment(8, false),
            Packet::icmp("10.0.0.1", "192.0.2.1", 8, 1, [0; 4]),
            Packet::echo_reply("10.0.0.1", "192.0.2.1", 1, 1),
            Packet::echo_request("10.0.0.1", "224.0.0.1", 1, 1),
            Packet::echo_request("10.0.0.1", "255.255.255.255", 1, 1),
            Packet::echo_request("0.0.0.0", "192.0.2.1", 1, 1),
            Packet::echo_request("127.0.0.1", "192.0.2.1", 1, 1),
            request().macs([2; 6], [0xff; 6]),
            request6().extension(protocol::HOP_BY_HOP, &[5, 2, 0, 0, 1, 0]),
            request6().fragment(0, false),
            Packet::echo_request("2001:db8::1", "ff02::1", 1, 1),
            Packet::echo_request("::", "2001:db8::2", 1, 1),
        ];
        for packet in others.into_iter().chain(samples()) {
            let bytes = packet.bytes();
            if bytes != samples()[13].bytes() {
                assert_eq!(replied(&bytes, Depth::L4).0, Echo::Other, "{packet:?}");
            }
        }
        for packet in [request(), request6()] {
            let mut bytes = packet.bytes();
            *bytes.last_mut().expect("data") ^= 1;
            assert_eq!(replied(&bytes, Depth::L4).0, Echo::BadChecksum);
        }
    }

    proptest! {
        #[test]
        fn the_reply_to_a_reply_is_the_request(
            data in prop::collection::vec(any::<u8>(), 0..100),
            id in any::<u16>(),
            sequence in any::<u16>(),
            v4 in any::<bool>(),
        ) {
            let (a, b) = if v4 { ("10.0.0.1", "192.0.2.1") } else { ("2001:db8::1", "2001:db8::2") };
            let request = Packet::echo_request(a, b, id, sequence).payload(&data);
            let (_, mut back) = replied(&request.bytes(), Depth::L4);
            let at = if v4 { 34 } else { 54 };
            // Asked anew, from the other end.
            let again = Packet::echo_request(b, a, id, sequence).payload(&data).bytes();
            prop_assert_eq!(back[at], if v4 { 0 } else { 129 });
            back[at..at + 4].copy_from_slice(&again[at..at + 4]);
            let (echo, twice) = replied(&back, Depth::L4);
            prop_assert_eq!(echo, Echo::Replied);
            prop_assert_eq!(&twice[14..at], &request.bytes()[14..at]);
            prop_assert_eq!(&twice[at + 4..], &request.bytes()[at + 4..]);
        }

        #[test]
        fn any_packet_is_answered_or_left_alone(
            sample in prop::sample::select(samples().into_iter().map(|packet| packet.bytes()).collect::<Vec<_>>()),
            flips in prop::collection::vec((0..60usize, any::<u8>()), 0..3),
        ) {
            let mut bytes = sample;
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            replied(&bytes, Depth::L4);
        }
    }
}
