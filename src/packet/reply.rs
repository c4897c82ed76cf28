//! Packets made of a request's own frame: a TCP reset, an ICMP or ICMPv6 error, a segment of a handshake.
//!
//! Owns the bytes of a reply and the rules about what may never be answered; whether a packet is to be answered, and how many
//! are, is decided elsewhere. A request becomes its reply in place: the MAC addresses change sides, VLAN tags stay (one that
//! the port has taken out stays out, as of any frame that is sent), and everything behind them is written anew. What is refused
//! is left as it was.
//!
//! Never answered, with a reset or with an error (RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 (e),
//! RFC 9293 section 3.10.7): a later fragment; what was sent to, or came from, a group of stations or hosts; a source that is
//! no single host; a reset; an ICMP error or redirect, or an ICMP type unknown here, which may be one.

use crate::wire::ethernet::Ethernet;
use crate::wire::icmpv4::{self, Icmpv4, Icmpv4Mut};
use crate::wire::icmpv6;
use crate::wire::ipv4::{self, Ipv4, Ipv4Mut};
use crate::wire::ipv6::{Ipv6, Ipv6Mut};
use crate::wire::tcp::{self, Tcp, TcpMut, option};
use crate::wire::{checksum, protocol};

use super::decode::{Depth, walk};
use super::frame::{Frame, rx};
use super::meta::{Meta, flag};

/// TTL and hop limit of replies: what RFC 1700 recommends for hosts.
const HOPS: u8 = 64;
/// Largest ICMP error in bytes, IP header included (RFC 1812 section 4.3.2.3).
const MOST_V4: usize = 576;
/// Largest ICMPv6 error, likewise: the smallest MTU there is (RFC 4443 section 2.4 (c)).
const MOST_V6: usize = 1280;
/// Precedence "internetwork control" of ICMP errors (RFC 1812 section 4.3.2.5).
const CONTROL: u8 = 0xc0;
/// The shortest frame on an Ethernet, without its check sequence. A virtual port may have delivered a shorter one, and not
/// every port pads what it sends.
const SHORTEST: usize = 60;

/// An ICMP or ICMPv6 error, whichever the packet's family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Type.
    pub kind: u8,
    /// Code within the type.
    pub code: u8,
    /// The four bytes behind the checksum (MTU, pointer).
    pub rest: [u8; 4],
}

impl Error {
    /// Destination unreachable, communication administratively prohibited (RFC 1812 section 5.2.7.1, RFC 4443 section 3.1).
    pub fn prohibited(about: &Meta) -> Error {
        let (kind, code) = if about.has(flag::IPV4) { (icmpv4::UNREACHABLE, 13) } else { (icmpv6::UNREACHABLE, 1) };
        Error { kind, code, rest: [0; 4] }
    }

    /// RFC 4443 section 2.4 (e.3) and (e.4): packet too big, and an option nobody knows, are reported to whoever sent to a
    /// group too.
    fn concerns_groups(self) -> bool {
        matches!((self.kind, self.code), (icmpv6::TOO_BIG, _) | (icmpv6::PARAMETER_PROBLEM, 2))
    }
}

/// True if [`reject`] would make a reply of the frame.
pub fn can_reject(frame: &Frame, meta: &Meta) -> bool {
    if is_segment(meta) { can_reset(frame, meta) } else { can_report(frame, meta, Error::prohibited(meta), &meta.dst) }
}

/// Makes the request its sender's refusal, in the name of the destination: a reset of a TCP segment, an ICMP or ICMPv6 error
/// "administratively prohibited" of anything else. The facts become those of the reply, which leaves by the port the request
/// came from. False, and nothing changed, if there must be no reply or no room for one.
pub fn reject(frame: &mut Frame, meta: &mut Meta) -> bool {
    if is_segment(meta) {
        reset(frame, meta)
    } else {
        let source = meta.dst;
        error(frame, meta, Error::prohibited(meta), &source)
    }
}

/// Makes a TCP segment the reset that its sender believes, as if from the other end. As [`reject`] otherwise.
pub fn reset(frame: &mut Frame, meta: &mut Meta) -> bool {
    if !can_reset(frame, meta) {
        return false;
    }
    let Some(head) = frame.bytes().get(meta.l4()..meta.end()).and_then(Head::refusing) else { return false };
    answer(frame, meta, &head)
}

/// Makes a segment another one that goes back to its sender, without payload. The facts become those of the answer, which
/// leaves by the port the segment came from. False, and nothing changed, if the frame has no room for it. Whether there may be
/// an answer is the caller's to know ([`can_answer`]).
pub fn answer(frame: &mut Frame, meta: &mut Meta, head: &Head) -> bool {
    let (l3, v4, source, destination) = (meta.l3(), meta.has(flag::IPV4), meta.dst, meta.src);
    let network = if v4 { Ipv4::LEN } else { Ipv6::LEN };
    let len = l3 + network + head.len();
    if !frame.set_len(len.max(SHORTEST)) && !frame.set_len(len) {
        return false;
    }
    let bytes = frame.bytes_mut();
    swap_macs(bytes);
    // What pads the frame must not be left from the request, or from whatever had the buffer before (CVE-2003-0001).
    bytes[l3..].fill(0);
    write_ip(&mut bytes[l3..], v4, 0, protocol::TCP, &source, &destination, head.len());
    let segment = &mut bytes[l3 + network..len];
    head.write(segment, meta.dport, meta.sport, pseudo(v4, &source, &destination, protocol::TCP, head.len()));
    conclude(frame, meta);
    meta.out = meta.port;
    true
}

/// Makes a segment another one that goes on the same way, without payload; the IP header stays, but for its length. As
/// [`answer`] otherwise.
pub fn replace(frame: &mut Frame, meta: &mut Meta, head: &Head) -> bool {
    let (l3, l4, v4) = (meta.l3(), meta.l4(), meta.has(flag::IPV4));
    let len = l4 + head.len();
    if !frame.set_len(len.max(SHORTEST)) && !frame.set_len(len) {
        return false;
    }
    let bytes = frame.bytes_mut();
    bytes[l4..].fill(0);
    if v4 {
        let Some(mut ip) = Ipv4Mut::parse(&mut bytes[l3..]) else { return false };
        let (before, after) = (ip.view().total_len(), (len - l3) as u16);
        let sum = checksum::Update::of(ip.view().checksum()).word(before, after).finish();
        ip.set_total_len(after);
        ip.set_checksum(sum);
    } else {
        let Some(mut ip) = Ipv6Mut::parse(&mut bytes[l3..]) else { return false };
        ip.set_payload_len((len - l3 - Ipv6::LEN) as u16);
    }
    let pseudo = pseudo(v4, &meta.src, &meta.dst, protocol::TCP, head.len());
    head.write(&mut bytes[l4..len], meta.sport, meta.dport, pseudo);
    conclude(frame, meta);
    true
}

/// Makes a packet the ICMP or ICMPv6 error about it, from `source` (IPv4 in the first four bytes), quoting it as it stands in
/// the frame as far as may be. As [`reject`] otherwise.
pub fn error(frame: &mut Frame, meta: &mut Meta, error: Error, source: &[u8; 16]) -> bool {
    if !can_report(frame, meta, error, source) {
        return false;
    }
    let (l3, v4, destination) = (meta.l3(), meta.has(flag::IPV4), meta.src);
    let (network, head, most) = error_room(meta);
    let message = (meta.end() - l3).min(most - head) + head - network;
    // The quoted packet stays where it is: the headers move to the front.
    if !frame.grow_front(head) {
        return false;
    }
    let fits = frame.set_len(l3 + network + message);
    debug_assert!(fits, "what is quoted was in the frame");
    let bytes = frame.bytes_mut();
    bytes.copy_within(head..head + l3, 0);
    swap_macs(bytes);
    let (proto, tos) = if v4 { (protocol::ICMP, CONTROL) } else { (protocol::ICMPV6, 0) };
    write_ip(&mut bytes[l3..], v4, tos, proto, source, &destination, message);
    let message = &mut bytes[l3 + network..];
    let [r0, r1, r2, r3] = error.rest;
    message[..Icmpv4::LEN].copy_from_slice(&[error.kind, error.code, 0, 0, r0, r1, r2, r3]);
    let sum = match v4 {
        true => checksum::checksum(message),
        false => checksum::transport(pseudo(v4, source, &destination, proto, message.len()), message),
    };
    if let Some(mut header) = Icmpv4Mut::parse(message) {
        header.set_checksum(sum);
    }
    conclude(frame, meta);
    meta.out = meta.port;
    true
}

/// Bytes of the network header of an error about a packet, of that with the ICMP header, and the most of the whole.
fn error_room(about: &Meta) -> (usize, usize, usize) {
    match about.has(flag::IPV4) {
        true => (Ipv4::LEN, Ipv4::LEN + Icmpv4::LEN, MOST_V4),
        false => (Ipv6::LEN, Ipv6::LEN + icmpv6::Icmpv6::LEN, MOST_V6),
    }
}

/// True for a whole TCP segment: of a fragment, neither length nor checksum is known.
fn is_segment(meta: &Meta) -> bool {
    meta.proto == protocol::TCP && meta.has(flag::L4) && !meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT)
}

fn can_reset(frame: &Frame, meta: &Meta) -> bool {
    meta.detail[0] & tcp::RST == 0 && can_answer(frame, meta)
}

/// True for a whole and intact segment between two hosts.
pub fn can_answer(frame: &Frame, meta: &Meta) -> bool {
    if !is_segment(meta) || !is_between_hosts(frame, meta) || !is_host(meta, &meta.dst) {
        return false;
    }
    let Some(segment) = frame.bytes().get(meta.l4()..meta.end()) else { return false };
    // Its receiver would not have looked at it either (RFC 9293 section 3.1).
    let pseudo = pseudo(meta.has(flag::IPV4), &meta.src, &meta.dst, protocol::TCP, segment.len());
    meta.has(flag::L4_SUM_GOOD) || checksum::transport_is_good(pseudo, segment)
}

fn can_report(frame: &Frame, meta: &Meta, error: Error, source: &[u8; 16]) -> bool {
    let groups = meta.has(flag::IPV6) && error.concerns_groups();
    let answerable = if groups { is_from_host(frame, meta) } else { is_between_hosts(frame, meta) };
    let (_, head, _) = error_room(meta);
    answerable
        && is_host(meta, source)
        && !meta.has(flag::LATER_FRAGMENT)
        && !(meta.proto == protocol::ICMP && meta.has(flag::IPV4) && !is_question_v4(meta))
        && !(meta.proto == protocol::ICMPV6 && meta.has(flag::IPV6) && !is_question_v6(meta))
        && meta.end() <= frame.len()
        && head <= frame.headroom()
}

/// ICMP that is known to be no error: echo, timestamp, information and mask (RFC 792, RFC 950), extended echo (RFC 8335).
fn is_question_v4(meta: &Meta) -> bool {
    meta.has(flag::L4) && matches!(meta.detail[0], 0 | 8 | 13..=18 | 42 | 43)
}

/// ICMPv6 that is neither an error nor a redirect (137, RFC 4861 section 4.5).
fn is_question_v6(meta: &Meta) -> bool {
    meta.has(flag::L4) && !icmpv6::is_error(meta.detail[0]) && !matches!(meta.detail[0], 0 | 137)
}

/// Source and destination are single hosts, by IP and by Ethernet.
fn is_between_hosts(frame: &Frame, meta: &Meta) -> bool {
    let Some(ethernet) = Ethernet::parse(frame.bytes()) else { return false };
    ethernet.destination()[0] & 1 == 0 && !is_group(meta, &meta.dst) && is_from_host(frame, meta)
}

fn is_from_host(frame: &Frame, meta: &Meta) -> bool {
    let Some(ethernet) = Ethernet::parse(frame.bytes()) else { return false };
    let ip = meta.any(flag::IPV4 | flag::IPV6) && meta.end() <= frame.len() && meta.l4() <= meta.end();
    ip && ethernet.source()[0] & 1 == 0 && is_host(meta, &meta.src)
}

/// Multicast, or IPv4's limited broadcast. What a subnet's own broadcast address is, only a router on it knows.
fn is_group(meta: &Meta, address: &[u8; 16]) -> bool {
    match meta.has(flag::IPV4) {
        true => address[0] & 0xf0 == 0xe0 || address[..4] == [0xff; 4],
        false => address[0] == 0xff,
    }
}

/// An address that one host may have on a wire: not "this" network, loopback, multicast, reserved (RFC 1122 section 3.2.1.3,
/// RFC 1112 section 4), unspecified (RFC 4291 section 2.5).
fn is_host(meta: &Meta, address: &[u8; 16]) -> bool {
    match meta.has(flag::IPV4) {
        true => !matches!(address[0], 0 | 127 | 224..),
        // ::, ::1 and multicast.
        false => u128::from_be_bytes(*address) > 1 && !is_group(meta, address),
    }
}

/// The TCP header of a segment without payload, but for its ports. Numbers in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// `wire::tcp::FIN` to `CWR`.
    pub flags: u8,
    /// Window, as it stands in the header.
    pub window: u16,
    /// Options.
    pub options: Options,
}

impl Head {
    /// The reset that a segment's sender believes (RFC 9293 section 3.10.7.1): the answer of an end without a connection.
    fn refusing(segment: &[u8]) -> Option<Head> {
        let header = Tcp::parse(segment)?;
        let flags = header.flags();
        if flags & tcp::ACK != 0 {
            return Some(Head { sequence: header.acknowledgment(), flags: tcp::RST, ..Head::default() });
        }
        // RFC 9293 section 3.4: SYN and FIN take a number each.
        let payload = segment.len().checked_sub(header.header_len())? as u32;
        let len = payload + u32::from(flags & tcp::SYN != 0) + u32::from(flags & tcp::FIN != 0);
        let acknowledgment = header.sequence().wrapping_add(len);
        Some(Head { acknowledgment, flags: tcp::RST | tcp::ACK, ..Head::default() })
    }

    fn len(&self) -> usize {
        Tcp::LEN + self.options.bytes().1
    }

    /// Writes it over a segment of its length.
    fn write(&self, segment: &mut [u8], sport: u16, dport: u16, pseudo: checksum::Sum) {
        let (options, len) = self.options.bytes();
        let Some(mut header) = TcpMut::parse(segment) else { return };
        header.set_source_port(sport);
        header.set_destination_port(dport);
        header.set_sequence(self.sequence);
        header.set_acknowledgment(self.acknowledgment);
        header.set_offset_reserved(((Tcp::LEN + len) as u8 / 4) << 4);
        header.set_flags(self.flags);
        header.set_window(self.window);
        header.set_checksum(0);
        header.set_urgent(0);
        segment[Tcp::LEN..].copy_from_slice(&options[..len]);
        let sum = checksum::transport(pseudo, segment);
        if let Some(mut header) = TcpMut::parse(segment) {
            header.set_checksum(sum);
        }
    }
}

/// The options of a handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Maximum segment size.
    pub mss: Option<u16>,
    /// Shift of windows, at most 14 (RFC 7323 section 2.3).
    pub scale: Option<u8>,
    /// SACK permitted.
    pub sack: bool,
    /// Timestamp value and echo.
    pub stamps: Option<(u32, u32)>,
}

impl Options {
    /// Those of a segment, up to the first that is malformed.
    pub fn read(segment: &[u8]) -> Options {
        let mut options = Options::default();
        let end = Tcp::parse(segment).map_or(0, Tcp::header_len);
        for (kind, body) in tcp::options(segment.get(Tcp::LEN..end).unwrap_or_default()).map_while(Result::ok) {
            match (kind, body) {
                (option::MSS, [a, b]) => options.mss = Some(u16::from_be_bytes([*a, *b])),
                (option::WINDOW_SCALE, [shift]) => options.scale = Some((*shift).min(14)),
                (option::SACK_PERMITTED, []) => options.sack = true,
                (option::TIMESTAMPS, [a, b, c, d, e, f, g, h]) => {
                    options.stamps = Some((u32::from_be_bytes([*a, *b, *c, *d]), u32::from_be_bytes([*e, *f, *g, *h])));
                }
                _ => {}
            }
        }
        options
    }

    /// As they stand in a header, and how many bytes of that count: a multiple of four.
    fn bytes(&self) -> ([u8; 24], usize) {
        let (mut bytes, mut len) = ([option::NO_OPERATION; 24], 0);
        let mut put = |option: &[u8]| {
            let padded = option.len().next_multiple_of(4);
            bytes[len + padded - option.len()..len + padded].copy_from_slice(option);
            len += padded;
        };
        if let Some(mss) = self.mss {
            let [a, b] = mss.to_be_bytes();
            put(&[option::MSS, 4, a, b]);
        }
        if self.sack {
            put(&[option::SACK_PERMITTED, 2]);
        }
        if let Some((value, echo)) = self.stamps {
            let ([a, b, c, d], [e, f, g, h]) = (value.to_be_bytes(), echo.to_be_bytes());
            put(&[option::TIMESTAMPS, 10, a, b, c, d, e, f, g, h]);
        }
        if let Some(scale) = self.scale {
            put(&[option::WINDOW_SCALE, 3, scale]);
        }
        (bytes, len)
    }
}

fn swap_macs(bytes: &mut [u8]) {
    if let Some((destination, source)) = bytes.get_mut(..12).and_then(|macs| macs.split_at_mut_checked(6)) {
        destination.swap_with_slice(source);
    }
}

fn pseudo(v4: bool, source: &[u8; 16], destination: &[u8; 16], proto: u8, len: usize) -> checksum::Sum {
    let bytes = if v4 { 4 } else { 16 };
    checksum::pseudo(&source[..bytes], &destination[..bytes], proto, len)
}

/// Writes an IP header without options in front of `len` bytes of payload.
fn write_ip(bytes: &mut [u8], v4: bool, tos: u8, proto: u8, source: &[u8; 16], destination: &[u8; 16], len: usize) {
    if v4 {
        let Some(mut ip) = Ipv4Mut::parse(bytes) else { return };
        ip.set_version_ihl(0x45);
        ip.set_tos(tos);
        ip.set_total_len((Ipv4::LEN + len) as u16);
        // RFC 6864 section 4.1: what is not to be fragmented needs no identification.
        ip.set_id(0);
        ip.set_fragment(ipv4::DF);
        ip.set_ttl(HOPS);
        ip.set_protocol(proto);
        ip.set_checksum(0);
        ip.set_source([source[0], source[1], source[2], source[3]]);
        ip.set_destination([destination[0], destination[1], destination[2], destination[3]]);
        let sum = checksum::checksum(ip.view().bytes());
        ip.set_checksum(sum);
    } else {
        let Some(mut ip) = Ipv6Mut::parse(bytes) else { return };
        ip.set_version_class_label(0x6000_0000 | u32::from(tos) << 20);
        ip.set_payload_len(len as u16);
        ip.set_next(proto);
        ip.set_hop_limit(HOPS);
        ip.set_source(*source);
        ip.set_destination(*destination);
    }
}

/// The facts of the finished packet, read from it. What the port said about the request is not true of it.
fn conclude(frame: &mut Frame, meta: &mut Meta) {
    frame.flags &= rx::VLAN_STRIPPED;
    let before = meta.clone();
    let read = walk(frame, Depth::L4, meta);
    debug_assert!(read.is_ok(), "what was written is well formed");
    let Meta { port, rule, domain, out, hash, flow, rx_time, .. } = before;
    *meta = Meta { port, rule, domain, out, hash, flow, rx_time, ..meta.clone() };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::decode::decode;
    use crate::packet::frame::Heap;
    use crate::packet::{Batch, bits};
    use crate::testkit::packets::{Packet, assert_sound, batch, give_back, samples};

    const A: &str = "10.0.0.5:40000";
    const B: &str = "192.0.2.7:443";
    const C: &str = "[2001:db8::5]:40000";
    const D: &str = "[2001:db8:7::7]:443";

    /// What `make` makes of a frame: the reply's bytes and facts; none if it refuses, having changed nothing.
    fn answer_with(
        bytes: &[u8],
        prepare: impl Fn(&mut Frame),
        make: impl Fn(&mut Frame, &mut Meta) -> bool,
    ) -> Option<(Vec<u8>, Meta)> {
        let mut heap = Heap::new(1, 9700);
        let mut batch = batch(&mut heap, [bytes]);
        prepare(&mut batch.frames[0]);
        decode(&mut batch, Depth::L4);
        let Batch { frames, metas, live, .. } = &mut *batch;
        let mut answered = None;
        if bits(*live).next().is_some() {
            let (frame, meta) = (&mut frames[0], &mut metas[0]);
            let before = (frame.bytes().to_vec(), meta.clone());
            if make(frame, meta) {
                answered = Some((frame.bytes().to_vec(), meta.clone()));
            } else {
                assert_eq!((frame.bytes(), &*meta), (&before.0[..], &before.1), "a refusal changes nothing");
            }
        }
        give_back(&mut heap, &mut batch);
        answered
    }

    fn answer(bytes: &[u8]) -> Option<(Vec<u8>, Meta)> {
        let made = answer_with(bytes, |_| {}, reject);
        assert_eq!(made.is_some(), answer_with(bytes, |_| {}, |frame, meta| can_reject(frame, meta)).is_some());
        made
    }

    /// The facts of a reply, read anew from its bytes, whose checksums must be right.
    fn check(reply: &[u8], facts: &Meta) {
        let mut heap = Heap::new(1, 9700);
        let mut batch = batch(&mut heap, [reply]);
        decode(&mut batch, Depth::L4);
        assert_eq!(batch.live, 1, "decode takes it: {reply:02x?}");
        let read = batch.metas[0].clone();
        give_back(&mut heap, &mut batch);
        assert_sound(&read, reply.len());
        assert!(read.has(flag::L4));
        assert_eq!((read.src, read.dst, read.sport, read.dport), (facts.src, facts.dst, facts.sport, facts.dport));
        assert_eq!((read.detail, read.l4(), read.end()), (facts.detail, facts.l4(), facts.end()));
        let segment = &reply[read.l4()..read.end()];
        let v4 = read.has(flag::IPV4);
        let good = match read.proto {
            protocol::ICMP => checksum::is_good(segment),
            proto => checksum::transport_is_good(pseudo(v4, &read.src, &read.dst, proto, segment.len()), segment),
        };
        assert!(good, "{reply:02x?}");
        assert!(reply[read.end()..].iter().all(|byte| *byte == 0), "padding tells nothing");
        assert_eq!(facts.out, facts.port);
    }

    fn segment(reply: &[u8], facts: &Meta) -> (u32, u32, u8) {
        let tcp = Tcp::parse(&reply[facts.l4()..]).expect("TCP");
        (tcp.sequence(), tcp.acknowledgment(), tcp.flags())
    }

    #[test]
    fn a_reset_has_the_right_numbers() {
        for (a, b) in [(A, B), (C, D)] {
            let request = |flags: u8| Packet::tcp(a, b).sequence(u32::MAX - 1).flags(flags);
            let cases = [
                (request(tcp::SYN), (0, u32::MAX, tcp::RST | tcp::ACK)),
                (request(tcp::SYN | tcp::FIN).payload(&[1; 7]), (0, 7, tcp::RST | tcp::ACK)),
                (request(tcp::PSH).payload(&[1; 100]), (0, 98, tcp::RST | tcp::ACK)),
                (request(0), (0, u32::MAX - 1, tcp::RST | tcp::ACK)),
                (request(tcp::SYN).acknowledgment(77), (77, 0, tcp::RST)),
                (request(tcp::PSH).acknowledgment(0).payload(&[1; 1400]), (0, 0, tcp::RST)),
                (request(tcp::SYN).tcp_options(&[2, 4, 5, 0xb4]).payload(b"data"), (0, 3, tcp::RST | tcp::ACK)),
            ];
            for (packet, expected) in cases {
                // Padding is no payload.
                let (reply, facts) = answer(&packet.clone().pad(80).bytes()).expect("answered");
                check(&reply, &facts);
                assert_eq!(segment(&reply, &facts), expected, "{packet:?}");
                assert_eq!((facts.sport, facts.dport), (443, 40000));
                assert_eq!(reply.len(), if facts.has(flag::IPV4) { 60 } else { 74 });
                assert_eq!((&reply[..6], &reply[6..12]), (&[2, 0, 0, 0, 0, 1][..], &[2, 0, 0, 0, 0, 2][..]));
            }
            assert_eq!(answer(&request(tcp::RST).bytes()), None);
            assert_eq!(answer(&request(tcp::RST).acknowledgment(3).bytes()), None);
            let broken = request(tcp::SYN).bytes();
            let broken = [&broken[..broken.len() - 1], &[broken[broken.len() - 1] ^ 1]].concat();
            assert_eq!(answer(&broken), None, "a bad checksum");
        }
    }

    #[test]
    fn options_and_extensions_of_the_request_are_not_in_the_reply() {
        let packet = Packet::tcp(A, B).ip_options(&[0x94, 4, 0, 0, 1, 1, 1, 0]).vlan(5).tag(0x8100, 6);
        let (reply, facts) = answer(&packet.bytes()).expect("answered");
        check(&reply, &facts);
        assert_eq!((facts.l3(), facts.l4(), facts.vlan), (22, 42, 5));
        let ip = Ipv4::parse(&reply[22..]).expect("IPv4");
        assert_eq!((ip.total_len(), ip.id(), ip.fragment(), ip.ttl()), (40, 0, ipv4::DF, 64));
        let packet = Packet::tcp(C, D).extension(protocol::HOP_BY_HOP, &[5, 2, 0, 0, 1, 0]).payload(&[3; 40]);
        let (reply, facts) = answer(&packet.bytes()).expect("answered");
        check(&reply, &facts);
        assert_eq!((facts.l4(), reply.len()), (54, 74));
        assert_eq!(segment(&reply, &facts).1, 41);
    }

    #[test]
    fn an_error_quotes_what_was_received() {
        let long = vec![7; 1400];
        let udp4 = Packet::udp(A, B).ip_options(&[1, 1, 1, 0]).payload(&long);
        let udp6 = Packet::udp(C, D).extension(protocol::DESTINATION, &[1, 4, 0, 0, 0, 0]).payload(&long);
        let cases = [
            (udp4.clone(), 576, [3, 13]),
            (udp4.payload(b"x").vlan(9), 28 + 33, [3, 13]),
            (udp6.clone(), 1280, [1, 1]),
            (udp6.payload(b"x"), 48 + 57, [1, 1]),
            (Packet::echo_request("10.0.0.5", "192.0.2.7", 1, 1), 28 + 28, [3, 13]),
            (Packet::echo_request("2001:db8::5", "2001:db8::7", 1, 1), 48 + 48, [1, 1]),
            (Packet::ip("10.0.0.5", "192.0.2.7", protocol::ESP).payload(&[9; 24]), 28 + 44, [3, 13]),
            (Packet::tcp(A, B).payload(&[0; 60]).fragment(0, true), 28 + 100, [3, 13]),
            (Packet::udp(C, D).payload(&[0; 64]).fragment(0, true), 48 + 120, [1, 1]),
        ];
        for (packet, len, kind) in cases {
            let request = packet.clone().pad(200).bytes();
            let (reply, facts) = answer(&request).unwrap_or_else(|| panic!("{packet:?}"));
            check(&reply, &facts);
            assert_eq!((facts.end() - facts.l3(), reply.len() - facts.l3()), (len, len), "{packet:?}");
            assert_eq!(facts.detail, kind);
            assert!(facts.has(flag::ICMP_ERROR));
            let quote = &reply[facts.l4() + 8..];
            assert_eq!(quote, &request[facts.l3()..][..quote.len()]);
            assert_eq!(reply[facts.l4() + 4..][..4], [0; 4]);
        }
    }

    #[test]
    fn what_must_not_be_answered_is_not() {
        let udp = Packet::udp(A, B);
        let tcp = Packet::tcp(C, D);
        let redirect =
            Packet::icmp("10.0.0.5", "192.0.2.7", icmpv4::REDIRECT, 1, [10, 0, 0, 1]).payload(&udp.network());
        let redirect6 = Packet::icmp("2001:db8::5", "2001:db8::7", 137, 0, [0; 4]).payload(&[0; 32]);
        let never = [
            Packet::icmp_error("10.0.0.5", "192.0.2.7", icmpv4::UNREACHABLE, 1, &udp),
            Packet::icmp_error("2001:db8::5", "2001:db8::7", icmpv6::TOO_BIG, 0, &tcp),
            redirect,
            redirect6,
            Packet::icmp("10.0.0.5", "192.0.2.7", 99, 0, [0; 4]),
            udp.clone().fragment(8, false).payload(&[0; 16]),
            tcp.clone().fragment(8, true).payload(&[0; 16]),
            Packet::udp("0.0.0.0:68", "192.0.2.7:67"),
            Packet::udp("127.0.0.1:68", "192.0.2.7:67"),
            Packet::udp("224.0.0.1:68", "192.0.2.7:67"),
            Packet::udp("240.0.0.1:68", "192.0.2.7:67"),
            Packet::udp(A, "255.255.255.255:67"),
            Packet::udp(A, "239.1.2.3:67"),
            Packet::tcp(A, "239.1.2.3:67"),
            Packet::tcp(A, "127.0.0.1:80"),
            Packet::tcp("0.0.0.0:1", B),
            Packet::udp(C, "[ff02::1]:67"),
            Packet::udp("[::]:1", D),
            Packet::udp("[::1]:1", D),
            Packet::udp("[ff05::1]:1", D),
            Packet::tcp(C, "[ff02::1]:67"),
            udp.clone().macs([2; 6], [0xff; 6]),
            udp.clone().macs([2; 6], [1, 0, 0x5e, 0, 0, 1]),
            udp.clone().macs([3; 6], [2; 6]),
            tcp.clone().macs([2; 6], [0x33, 0x33, 0, 0, 0, 1]),
            Packet::arp(1, "10.0.0.5", "10.0.0.7"),
            Packet::ethernet(0x88cc, &[0; 46]),
        ];
        for packet in never {
            assert_eq!(answer(&packet.bytes()), None, "{packet:?}");
        }
        let no_room = |frame: &mut Frame| {
            assert!(frame.grow_front(Heap::HEADROOM - 27));
            frame.bytes_mut().copy_within(Heap::HEADROOM - 27.., 0);
        };
        let answered = answer_with(&udp.bytes(), no_room, reject);
        assert_eq!(answered, None, "27 bytes of headroom are too few");
    }

    #[test]
    fn other_errors_come_from_whom_they_are_said_to() {
        let mut router = [0; 16];
        router[..4].copy_from_slice(&[198, 51, 100, 1]);
        let mtu = Error { kind: icmpv4::UNREACHABLE, code: 4, rest: [0, 0, 5, 0xdc] };
        let packet = Packet::tcp(A, B).payload(&[1; 900]);
        let (reply, facts) =
            answer_with(&packet.bytes(), |_| {}, |f, m| error(f, m, mtu, &router)).expect("about TCP too");
        check(&reply, &facts);
        assert_eq!((facts.src, &reply[facts.l4() + 4..][..4]), (router, &[0, 0, 5, 0xdc][..]));
        let host = std::net::Ipv6Addr::LOCALHOST.octets();
        let router: [u8; 16] = "2001:db8::ffff".parse::<std::net::Ipv6Addr>().expect("an address").octets();
        let big = Error { kind: icmpv6::TOO_BIG, code: 0, rest: [0, 0, 5, 0] };
        let group = Packet::udp(C, "[ff0e::5]:6").macs([2; 6], [0x33, 0x33, 0, 0, 0, 5]).bytes();
        let about = |error_: Error, source: [u8; 16]| answer_with(&group, |_| {}, |f, m| error(f, m, error_, &source));
        let (reply, facts) = about(big, router).expect("the exception of RFC 4443");
        check(&reply, &facts);
        assert_eq!(about(big, host), None, "no source to answer from");
        assert_eq!(about(Error { kind: icmpv6::TIME_EXCEEDED, code: 0, rest: [0; 4] }, router), None);
    }

    #[test]
    fn a_tag_the_port_took_stays_out() {
        let prepare = |frame: &mut Frame| {
            (frame.flags, frame.vlan_tci) = (rx::VLAN_STRIPPED | rx::L3_SUM_GOOD | rx::L4_SUM_GOOD, 0x2007)
        };
        for packet in [Packet::tcp(A, B), Packet::udp(C, D)] {
            let (reply, facts) = answer_with(&packet.bytes(), prepare, reject).expect("answered");
            assert_eq!((facts.l3(), facts.vlan), (14, 7));
            assert!(!facts.has(flag::L4_SUM_GOOD));
            check(&reply, &Meta { vlan: 0, ..facts });
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_packet_gets_a_sound_reply_or_none(
            sample in prop::sample::select(samples().into_iter().map(|packet| packet.bytes()).collect::<Vec<_>>()),
            flips in prop::collection::vec((0..90usize, any::<u8>()), 0..3),
            sum_good in any::<bool>(),
            grow in prop_oneof![Just(0usize), 0..1500usize],
        ) {
            let mut bytes = sample;
            for (at, value) in flips {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.resize(bytes.len() + grow, 0x55);
            let flags = if sum_good { rx::L3_SUM_GOOD | rx::L4_SUM_GOOD } else { 0 };
            if let Some((reply, facts)) = answer_with(&bytes, |frame| frame.flags = flags, reject) {
                check(&reply, &facts);
                let theirs = etherparse::SlicedPacket::from_ethernet(&reply).expect("etherparse takes it");
                prop_assert!(theirs.transport.is_some());
                let most = if facts.has(flag::IPV4) { MOST_V4 } else { MOST_V6 };
                prop_assert!(reply.len() <= facts.l3() + most);
            }
        }
    }
}
