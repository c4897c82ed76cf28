//! The only code that walks headers: fills a packet's `Meta` once, or drops the packet with a reason.
//!
//! Decode judges form alone (versions, lengths, offsets, the IPv4 header checksum), never whether an address or a port makes
//! sense, and looks at no configuration and no state. There are two ways through it which agree in every fact: `plain`, for
//! whole packets that are Ethernet, IP without options, TCP or UDP, and `walk`, for everything.
//!
//! Choices where standards leave some:
//! - Two VLAN tags at most, one that the port has stripped included: what a NIC can do must not change a verdict.
//! - The authentication header is walked over in IPv6, where it is an extension header; in IPv4 it is a protocol, and ends
//!   the walk with its length checked.
//! - A redirect does not count as an ICMP error: see [`crate::wire::icmpv4::is_error`].
//! - What is neither IPv4, IPv6 nor ARP is not malformed, whatever it is; its EtherType (or 802.3 length) goes into `sport`.

use crate::stats::{DECODE_REASONS, Engine, Reason};
use crate::wire::arp::{self, Arp};
use crate::wire::checksum;
use crate::wire::ethernet::{Ethernet, ethertype};
use crate::wire::gre::{Ah, Esp, Gre};
use crate::wire::icmpv4::{self, Icmpv4};
use crate::wire::icmpv6::{self, Icmpv6};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Extension, Fragment, Ipv6};
use crate::wire::protocol;
use crate::wire::sctp::{Dccp, Sctp};
use crate::wire::tcp::Tcp;
use crate::wire::udp::Udp;
use crate::wire::vlan::{self, Vlan};

use super::batch::{Batch, bits};
use super::frame::{Frame, rx};
use super::meta::{Meta, flag};

/// How deep decode must go before a stage can work. Each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Frames pass unread.
    Nothing,
    /// Ethernet header and VLAN tags.
    L2,
    /// Network header: addresses, fragments, protocol.
    L3,
    /// Transport header: ports, flags, ICMP type and code.
    L4,
}

crate::lines! {
    /// Why decode refuses a packet: its form is wrong.
    pub enum Malformed {
        /// The frame is shorter than an Ethernet header.
        ShortFrame = "short-frame",
        /// The frame ends within a VLAN tag.
        ShortTag = "short-tag",
        /// More than two VLAN tags.
        TooManyTags = "too-many-tags",
        /// The frame ends within the ARP packet.
        ShortArp = "short-arp",
        /// The ARP packet's types or address lengths are not those of IPv4 over Ethernet.
        ForeignArp = "foreign-arp",
        /// The frame ends within the IP header.
        ShortIp = "short-ip",
        /// The IP version is not what the EtherType says.
        BadVersion = "bad-version",
        /// The IPv4 header length (IHL) is below five words.
        BadIhl = "bad-ihl",
        /// The IPv4 header with its options is longer than the frame.
        HeaderBeyondFrame = "header-beyond-frame",
        /// The IPv4 total length is less than the header's.
        TotalLengthShort = "total-length-short",
        /// The IPv4 total length or IPv6 payload length is more than the frame holds.
        LengthBeyondFrame = "length-beyond-frame",
        /// The IPv4 header checksum is wrong.
        BadHeaderChecksum = "bad-header-checksum",
        /// An IPv4 or IPv6 option is longer than the header it is in.
        BadOption = "bad-option",
        /// A fragment is empty, or not the last and its length is not a multiple of eight.
        BadFragmentLength = "bad-fragment-length",
        /// The fragment ends beyond the largest packet there can be.
        FragmentBeyondEnd = "fragment-beyond-end",
        /// A first fragment does not hold the whole transport header.
        ShortFirstFragment = "short-first-fragment",
        /// A second fragment header in one IPv6 packet.
        SecondFragmentHeader = "second-fragment-header",
        /// An IPv6 jumbogram.
        Jumbogram = "jumbogram",
        /// The packet ends within an IPv6 extension header.
        ShortExtension = "short-extension",
        /// IPv6 hop-by-hop options anywhere but directly behind the IPv6 header.
        LateHopByHop = "late-hop-by-hop",
        /// More than eight IPv6 extension headers, or more than 512 bytes of them.
        TooManyExtensions = "too-many-extensions",
        /// The packet ends within the transport header.
        ShortTransport = "short-transport",
        /// The TCP data offset is below five words or beyond the packet.
        BadTcpOffset = "bad-tcp-offset",
        /// The UDP length is below eight or beyond the packet.
        BadUdpLength = "bad-udp-length",
        /// The UDP-Lite coverage is within the header or beyond the packet.
        BadUdpLiteCoverage = "bad-udp-lite-coverage",
        /// The authentication header is shorter than its fixed part or longer than the packet.
        BadAuthLength = "bad-auth-length",
    }
}

impl From<Malformed> for Reason {
    #[inline]
    fn from(reason: Malformed) -> Reason {
        Reason(DECODE_REASONS + reason as u16)
    }
}

/// IPv6 extension headers walked over in one packet, and their bytes.
pub(super) const MAX_EXTENSIONS: usize = 8;
const MAX_EXTENSION_BYTES: usize = 512;

/// Takes the outer 802.1Q tag out of a received frame, as a port with VLAN stripping does; for ports that cannot. Other tags
/// stay.
#[inline]
pub fn strip_tag(frame: &mut Frame) {
    let Some(head) = frame.bytes_mut().first_chunk_mut::<18>() else { return };
    let Some(tag) = Vlan::parse(&head[14..]).filter(|_| head[12..14] == ethertype::VLAN.to_be_bytes()) else { return };
    let control = tag.control();
    head.copy_within(..12, 4);
    frame.trim_front(4);
    frame.vlan_tci = control;
    frame.flags |= rx::VLAN_STRIPPED;
}

/// Fills the facts of all live packets, as deep as asked, and drops what is malformed that far. Every fact is written, so
/// that none is left of the packet before. Deeper facts keep the values of [`Meta::UNKNOWN`].
#[inline]
pub fn decode(batch: &mut Batch, depth: Depth) {
    match depth {
        Depth::Nothing => each(batch, depth, |frame, meta| {
            *meta = Meta { port: frame.port, rx_time: frame.rx_time, ..Meta::UNKNOWN };
            frame.flags & rx::CHAINED == 0
        }),
        Depth::L2 => each(batch, depth, |_, _| false),
        Depth::L3 => each(batch, depth, plain::<false>),
        Depth::L4 => each(batch, depth, plain::<true>),
    }
}

/// Tries `quick` on every live packet first, and walks those it leaves afterwards: the loop that nearly all packets go
/// through stays small.
#[inline(always)]
fn each(batch: &mut Batch, depth: Depth, quick: impl Fn(&Frame, &mut Meta) -> bool) {
    let mut left = 0;
    for i in bits(batch.live) {
        left |= u64::from(!quick(&batch.frames[i], &mut batch.metas[i])) << i;
    }
    batch.uncommon = left;
    if left != 0 {
        walk_all(batch, left, depth);
    }
}

#[inline(never)]
fn walk_all(batch: &mut Batch, mask: u64, depth: Depth) {
    for i in bits(mask) {
        if let Err(reason) = walk(&batch.frames[i], depth, &mut batch.metas[i]) {
            batch.drop(i, reason);
        }
        batch.fragments |= u64::from(batch.metas[i].any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT)) << i;
    }
}

/// A whole packet in the most common form; false, with nothing written, if it is anything else or anything is wrong.
#[inline(always)]
fn plain<const L4: bool>(frame: &Frame, meta: &mut Meta) -> bool {
    let bytes = frame.bytes();
    if frame.flags & (rx::CHAINED | rx::VLAN_STRIPPED) != 0 {
        return false;
    }
    // Ethernet, IPv4 and UDP: nothing plain is shorter.
    let Some(head) = bytes.first_chunk::<42>() else { return false };
    let kind = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
    if kind & 0xffff_ff00 == 0x0800_4500 {
        plain_ipv4::<L4>(frame, bytes, head, meta)
    } else if kind & 0xffff_f000 == 0x86dd_6000 {
        plain_ipv6::<L4>(frame, bytes, meta)
    } else {
        false
    }
}

/// The port's word on the TCP or UDP checksum, as a flag of `Meta`.
#[inline(always)]
fn l4_sum(rx_flags: u16) -> u16 {
    const { assert!(flag::L4_SUM_GOOD == rx::L4_SUM_GOOD << 6) };
    (rx_flags & rx::L4_SUM_GOOD) << 6
}

#[inline(always)]
fn plain_ipv4<const L4: bool>(frame: &Frame, bytes: &[u8], head: &[u8; 42], meta: &mut Meta) -> bool {
    let Some(ip) = Ipv4::parse(&head[14..]) else { return false };
    let total = usize::from(ip.total_len());
    if total < 20 || 14 + total > bytes.len() || ip.fragment() & (ipv4::MF | ipv4::OFFSET) != 0 {
        return false;
    }
    if frame.flags & rx::L3_SUM_GOOD == 0 && !checksum::header_is_good(ip.bytes()) {
        return false;
    }
    let Some(ends) = ends::<L4>(frame, ip.protocol(), bytes, 34, 14 + total) else { return false };
    *meta = Meta {
        src: widen(ip.source()),
        dst: widen(ip.destination()),
        flags: flag::IPV4 | ends.flags,
        l4_words: 5,
        proto: ip.protocol(),
        end: (14 + total) as u16,
        sport: ends.sport,
        dport: ends.dport,
        detail: ends.detail,
        port: frame.port,
        rx_time: frame.rx_time,
        ..Meta::UNKNOWN
    };
    true
}

#[inline(always)]
fn plain_ipv6<const L4: bool>(frame: &Frame, bytes: &[u8], meta: &mut Meta) -> bool {
    let Some(ip) = bytes.get(14..).and_then(Ipv6::parse) else { return false };
    let end = 54 + usize::from(ip.payload_len());
    if end > bytes.len() || ipv6::is_extension(ip.next()) {
        return false;
    }
    let Some(ends) = ends::<L4>(frame, ip.next(), bytes, 54, end) else { return false };
    *meta = Meta {
        src: ip.source(),
        dst: ip.destination(),
        flags: flag::IPV6 | ends.flags,
        l4_words: 10,
        proto: ip.next(),
        end: end as u16,
        sport: ends.sport,
        dport: ends.dport,
        detail: ends.detail,
        port: frame.port,
        rx_time: frame.rx_time,
        ..Meta::UNKNOWN
    };
    true
}

/// What a plain transport header says.
struct Ends {
    sport: u16,
    dport: u16,
    flags: u16,
    detail: [u8; 2],
}

/// The transport header of a plain packet which begins at `at` and whose network-layer end `end` lies within the frame.
#[inline(always)]
fn ends<const L4: bool>(frame: &Frame, proto: u8, bytes: &[u8], at: usize, end: usize) -> Option<Ends> {
    if !L4 {
        return Some(Ends { sport: 0, dport: 0, flags: 0, detail: [0; 2] });
    }
    let flags = flag::L4 | flag::PORTS | l4_sum(frame.flags);
    if proto == protocol::UDP {
        let udp = bytes.get(at..).and_then(Udp::parse)?;
        let len = usize::from(udp.length());
        let good = len >= 8 && at + len <= end;
        good.then(|| Ends { sport: udp.source_port(), dport: udp.destination_port(), flags, detail: [0; 2] })
    } else if proto == protocol::TCP {
        let tcp = bytes.get(at..).and_then(Tcp::parse)?;
        let len = tcp.header_len();
        let good = len >= 20 && at + len <= end;
        let detail = [tcp.flags(), 0];
        good.then(|| Ends { sport: tcp.source_port(), dport: tcp.destination_port(), flags, detail })
    } else {
        None
    }
}

#[inline(always)]
fn widen(address: [u8; 4]) -> [u8; 16] {
    u128::from(u32::from_le_bytes(address)).to_le_bytes()
}

/// Any packet, step by step. Of a malformed one, the facts are there that were found before the mistake.
pub(crate) fn walk(frame: &Frame, depth: Depth, meta: &mut Meta) -> Result<(), Reason> {
    let bytes = frame.bytes();
    *meta = Meta { port: frame.port, rx_time: frame.rx_time, ..Meta::UNKNOWN };
    if frame.flags & rx::CHAINED != 0 {
        return Err(Engine::Chained.into());
    }
    if depth == Depth::Nothing {
        return Ok(());
    }
    meta.end = bytes.len() as u16;
    let kind = link(frame, bytes, meta)?;
    meta.sport = kind;
    if depth == Depth::L2 {
        return Ok(());
    }
    let l3 = meta.l3();
    let packet = &bytes[l3..];
    let whole = match kind {
        ethertype::IPV4 => {
            meta.sport = 0;
            network_v4(packet, l3, frame.flags & rx::L3_SUM_GOOD != 0, meta)?
        }
        ethertype::IPV6 => {
            meta.sport = 0;
            network_v6(packet, l3, meta)?
        }
        ethertype::ARP => return Ok(resolve(packet, l3, meta)?),
        _ => return Ok(()),
    };
    if depth == Depth::L4 && !meta.has(flag::LATER_FRAGMENT) {
        let sum = if whole { l4_sum(frame.flags) } else { 0 };
        transport(&bytes[meta.l4()..meta.end()], sum, meta)?;
    }
    Ok(())
}

/// Ethernet and its tags; the result is the EtherType behind them, whose payload begins at `meta.l3()`, within the frame.
fn link(frame: &Frame, bytes: &[u8], meta: &mut Meta) -> Result<u16, Malformed> {
    let mut kind = Ethernet::parse(bytes).ok_or(Malformed::ShortFrame)?.ethertype();
    let stripped = frame.flags & rx::VLAN_STRIPPED != 0;
    if stripped {
        meta.flags |= flag::VLAN;
        meta.vlan = frame.vlan_tci & vlan::ID;
    }
    let mut tags = u16::from(stripped);
    while matches!(kind, ethertype::VLAN | ethertype::SERVICE_VLAN) {
        let tag = bytes.get(meta.l3()..).and_then(Vlan::parse).ok_or(Malformed::ShortTag)?;
        tags += 1;
        if tags > 2 {
            return Err(Malformed::TooManyTags);
        }
        if tags == 1 {
            meta.vlan = tag.control() & vlan::ID;
        }
        meta.flags = (meta.flags | flag::VLAN) + (1 << flag::TAGS_SHIFT);
        kind = tag.ethertype();
    }
    Ok(kind)
}

fn resolve(packet: &[u8], l3: usize, meta: &mut Meta) -> Result<(), Malformed> {
    let arp = Arp::parse(packet).ok_or(Malformed::ShortArp)?;
    let form = (arp.hardware(), arp.protocol(), arp.hardware_len(), arp.protocol_len());
    if form != (arp::ETHERNET, ethertype::IPV4, 6, 4) {
        return Err(Malformed::ForeignArp);
    }
    meta.flags |= flag::ARP;
    meta.src = widen(arp.sender());
    meta.dst = widen(arp.target());
    // Operations beyond one byte are not assigned, and 0 is reserved.
    meta.detail[0] = u8::try_from(arp.operation()).unwrap_or(0);
    meta.end = (l3 + Arp::LEN) as u16;
    Ok(())
}

/// Sets addresses, protocol, fragment flags, `l4_words` and `end`, such that l3 <= l4 <= end <= length of the frame; true if
/// the packet is no fragment.
fn network_v4(packet: &[u8], l3: usize, sum_good: bool, meta: &mut Meta) -> Result<bool, Malformed> {
    let ip = Ipv4::parse(packet).ok_or(Malformed::ShortIp)?;
    if ip.version() != 4 {
        return Err(Malformed::BadVersion);
    }
    let header = ip.header_len();
    if header < Ipv4::LEN {
        return Err(Malformed::BadIhl);
    }
    let all = packet.get(..header).ok_or(Malformed::HeaderBeyondFrame)?;
    let total = usize::from(ip.total_len());
    if total < header {
        return Err(Malformed::TotalLengthShort);
    }
    if total > packet.len() {
        return Err(Malformed::LengthBeyondFrame);
    }
    let good = || if header == Ipv4::LEN { checksum::header_is_good(ip.bytes()) } else { checksum::is_good(all) };
    if !sum_good && !good() {
        return Err(Malformed::BadHeaderChecksum);
    }
    let options = if header > Ipv4::LEN { flag::OPTIONS } else { 0 };
    let more = ip.fragment() & ipv4::MF != 0;
    // The largest datagram is 65,535 bytes with its header, and its first fragment's header is no shorter than this one.
    let fragment = fragment(ip.offset(), more, total - header, ip.offset() + total)?;
    meta.flags |= flag::IPV4 | options | fragment;
    meta.src = widen(ip.source());
    meta.dst = widen(ip.destination());
    meta.proto = ip.protocol();
    meta.l4_words = (header / 4) as u8;
    meta.end = (l3 + total) as u16;
    // Last of all: a router tells the sender, and needs the facts for that.
    if header > Ipv4::LEN && ipv4::options(&all[Ipv4::LEN..]).any(|option| option.is_err()) {
        return Err(Malformed::BadOption);
    }
    Ok(fragment == 0)
}

/// The flag of a fragment which carries `len` bytes and up to whose end the reassembled packet has `reach` of the 65,535
/// bytes it may have; 0 of a packet that is whole (RFC 6946 calls it atomic if it has a fragment header nevertheless).
fn fragment(offset: usize, more: bool, len: usize, reach: usize) -> Result<u16, Malformed> {
    if offset == 0 && !more {
        return Ok(0);
    }
    // RFC 791 section 3.2, RFC 8200 section 4.5: all but the last are multiples of eight.
    if len == 0 || more && !len.is_multiple_of(8) {
        return Err(Malformed::BadFragmentLength);
    }
    if reach > 65_535 {
        return Err(Malformed::FragmentBeyondEnd);
    }
    Ok(if offset == 0 { flag::FIRST_FRAGMENT } else { flag::LATER_FRAGMENT })
}

/// As `network_v4`, for IPv6 and its extension headers.
fn network_v6(packet: &[u8], l3: usize, meta: &mut Meta) -> Result<bool, Malformed> {
    let ip = Ipv6::parse(packet).ok_or(Malformed::ShortIp)?;
    if ip.version() != 6 {
        return Err(Malformed::BadVersion);
    }
    let end = Ipv6::LEN + usize::from(ip.payload_len());
    let packet = packet.get(..end).ok_or(Malformed::LengthBeyondFrame)?;
    let (mut at, mut kind, mut headers) = (Ipv6::LEN, ip.next(), 0);
    let mut fragmented = None;
    while ipv6::is_extension(kind) {
        // RFC 2675 section 2: a jumbogram's payload length is zero, its true one is in a hop-by-hop option.
        if kind == protocol::HOP_BY_HOP && ip.payload_len() == 0 {
            return Err(Malformed::Jumbogram);
        }
        if kind == protocol::HOP_BY_HOP && headers > 0 {
            return Err(Malformed::LateHopByHop);
        }
        let rest = &packet[at..];
        let header = Extension::parse(rest).ok_or(Malformed::ShortExtension)?;
        headers += 1;
        let len = if kind == protocol::FRAGMENT { Fragment::LEN } else { header.len(kind) };
        if headers > MAX_EXTENSIONS || at - Ipv6::LEN + len > MAX_EXTENSION_BYTES {
            return Err(Malformed::TooManyExtensions);
        }
        let body = rest.get(2..len).ok_or(Malformed::ShortExtension)?;
        at += len;
        match kind {
            protocol::FRAGMENT => {
                let header = Fragment::parse(rest).ok_or(Malformed::ShortExtension)?;
                if fragmented.is_some() {
                    return Err(Malformed::SecondFragmentHeader);
                }
                // Per-fragment headers do not count among the 65,535 bytes of payload, those before them do.
                let before = at - Fragment::LEN - Ipv6::LEN;
                let reach = before + header.offset() + (end - at);
                let flags = fragment(header.offset(), header.more(), end - at, reach)?;
                fragmented = Some(flags);
                meta.flags |= flags;
                if flags == flag::LATER_FRAGMENT {
                    kind = header.next();
                    break;
                }
            }
            protocol::AH if len < Ah::LEN => return Err(Malformed::BadAuthLength),
            protocol::HOP_BY_HOP | protocol::DESTINATION => {
                meta.flags |= flag::OPTIONS;
                for option in ipv6::options(body) {
                    match option {
                        // RFC 2675 section 3: beside a payload length that is not zero the option is an error.
                        Ok((ipv6::JUMBO, _)) if kind == protocol::HOP_BY_HOP => return Err(Malformed::Jumbogram),
                        Ok(_) => {}
                        Err(_) => return Err(Malformed::BadOption),
                    }
                }
            }
            _ => meta.flags |= flag::OPTIONS,
        }
        kind = header.next();
    }
    meta.flags |= flag::IPV6;
    meta.src = ip.source();
    meta.dst = ip.destination();
    meta.proto = kind;
    meta.l4_words = (at / 4) as u8;
    meta.end = (l3 + end) as u16;
    Ok(!meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT))
}

/// The transport header at the front of `payload`, which is all the packet has behind its network header, or all that its
/// first fragment has.
fn transport(payload: &[u8], sum: u16, meta: &mut Meta) -> Result<(), Malformed> {
    let first = meta.has(flag::FIRST_FRAGMENT);
    // RFC 7112 for IPv6, and RFC 1858 section 3 for IPv4, where a tiny first fragment is an attempt to pass a filter.
    let short = if first { Malformed::ShortFirstFragment } else { Malformed::ShortTransport };
    let v4 = meta.has(flag::IPV4);
    match meta.proto {
        protocol::TCP => {
            let tcp = Tcp::parse(payload).ok_or(short)?;
            let len = tcp.header_len();
            if len < Tcp::LEN {
                return Err(Malformed::BadTcpOffset);
            }
            if len > payload.len() {
                return Err(if first { short } else { Malformed::BadTcpOffset });
            }
            meta.detail[0] = tcp.flags();
            meta.flags |= sum;
            ports(meta, tcp.source_port(), tcp.destination_port());
        }
        protocol::UDP => {
            let udp = Udp::parse(payload).ok_or(short)?;
            let len = usize::from(udp.length());
            // RFC 2675 section 4: the UDP length of a jumbogram is zero.
            if len == 0 && !v4 {
                return Err(Malformed::Jumbogram);
            }
            if len < Udp::LEN || len > payload.len() && !first {
                return Err(Malformed::BadUdpLength);
            }
            meta.flags |= sum;
            ports(meta, udp.source_port(), udp.destination_port());
        }
        protocol::UDP_LITE => {
            let udp = Udp::parse(payload).ok_or(short)?;
            // RFC 3828 section 3.1: zero covers all, anything else at least the header.
            let coverage = usize::from(udp.length());
            if (1..Udp::LEN).contains(&coverage) || coverage > payload.len() && !first {
                return Err(Malformed::BadUdpLiteCoverage);
            }
            ports(meta, udp.source_port(), udp.destination_port());
        }
        protocol::SCTP => {
            let sctp = Sctp::parse(payload).ok_or(short)?;
            ports(meta, sctp.source_port(), sctp.destination_port());
        }
        protocol::DCCP => {
            let dccp = Dccp::parse(payload).ok_or(short)?;
            ports(meta, dccp.source_port(), dccp.destination_port());
        }
        protocol::ICMP if v4 => {
            let icmp = Icmpv4::parse(payload).ok_or(short)?;
            message(meta, icmp.kind(), icmp.code(), icmpv4::is_error, icmpv4::is_echo, icmp.id());
        }
        protocol::ICMPV6 if !v4 => {
            let icmp = Icmpv6::parse(payload).ok_or(short)?;
            message(meta, icmp.kind(), icmp.code(), icmpv6::is_error, icmpv6::is_echo, icmp.id());
        }
        protocol::GRE => drop(Gre::parse(payload).ok_or(short)?),
        protocol::ESP => drop(Esp::parse(payload).ok_or(short)?),
        protocol::AH => {
            let ah = Ah::parse(payload).ok_or(short)?;
            let len = (usize::from(ah.len_units()) + 2) * 4;
            if len < Ah::LEN {
                return Err(Malformed::BadAuthLength);
            }
            if len > payload.len() {
                return Err(if first { short } else { Malformed::BadAuthLength });
            }
        }
        _ => return Ok(()),
    }
    meta.flags |= flag::L4;
    Ok(())
}

fn ports(meta: &mut Meta, source: u16, destination: u16) {
    meta.flags |= flag::PORTS;
    (meta.sport, meta.dport) = (source, destination);
}

fn message(meta: &mut Meta, kind: u8, code: u8, is_error: fn(u8) -> bool, is_echo: fn(u8) -> bool, id: u16) {
    meta.detail = [kind, code];
    if is_error(kind) {
        meta.flags |= flag::ICMP_ERROR;
    } else if is_echo(kind) {
        meta.flags |= flag::ECHO;
        ports(meta, id, id);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::super::frame::Heap;
    use super::*;
    use crate::testkit::packets::{Packet, assert_sound, batch, give_back, samples};
    use crate::wire::{protocol, tcp};

    /// What decode makes of a frame; on the way, that it is what the walk alone makes of it.
    fn read(bytes: &[u8], depth: Depth, prepare: impl Fn(&mut Frame)) -> Result<Meta, Reason> {
        let mut heap = Heap::new(1, 65_535 - Heap::HEADROOM);
        let mut batch = batch(&mut heap, [bytes]);
        prepare(&mut batch.frames[0]);
        // Facts of a packet before must not show.
        batch.metas[0] = Meta { src: [0xff; 16], sport: 7, flags: 0xffff, vlan: 9, detail: [9; 2], ..Meta::UNKNOWN };
        let mut walked = batch.metas[0].clone();
        let verdict = walk(&batch.frames[0], depth, &mut walked);
        decode(&mut batch, depth);
        let result = if batch.live == 1 { Ok(batch.metas[0].clone()) } else { Err(batch.reasons[0]) };
        assert_eq!(result, verdict.map(|()| walked), "the quick way and the walk agree on {bytes:02x?}");
        give_back(&mut heap, &mut batch);
        if let Ok(meta) = &result {
            assert_sound(meta, bytes.len());
        }
        result
    }

    fn facts(packet: &Packet) -> Meta {
        read(&packet.bytes(), Depth::L4, |_| ()).unwrap_or_else(|r| panic!("{}: {packet:?}", name(r)))
    }

    fn name(reason: Reason) -> String {
        crate::stats::Layout::new().reason_name(reason)
    }

    fn refused(packet: &Packet) -> String {
        name(read(&packet.bytes(), Depth::L4, |_| ()).expect_err("the packet is malformed"))
    }

    fn udp() -> Packet {
        Packet::udp("10.0.0.1:1000", "192.0.2.1:53").payload(b"payload.")
    }

    fn udp6() -> Packet {
        Packet::udp("[2001:db8::1]:1000", "[2001:db8::2]:53").payload(b"payload.")
    }

    fn tcp() -> Packet {
        Packet::tcp("10.0.0.1:1000", "192.0.2.1:80").flags(tcp::SYN | tcp::ACK)
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn plain_packets() {
        let meta = facts(&udp().pad(60));
        assert_eq!((meta.source(), meta.destination()), (ip("10.0.0.1"), ip("192.0.2.1")));
        assert_eq!((meta.sport, meta.dport, meta.proto), (1000, 53, protocol::UDP));
        assert_eq!(meta.flags, flag::IPV4 | flag::PORTS | flag::L4);
        // Ten bytes of padding are not payload.
        assert_eq!((meta.l3(), meta.l4(), meta.end()), (14, 34, 50));
        let meta = facts(&tcp());
        assert_eq!((meta.detail, meta.dport), ([tcp::SYN | tcp::ACK, 0], 80));
        let meta = facts(&udp6());
        assert_eq!((meta.source(), meta.destination()), (ip("2001:db8::1"), ip("2001:db8::2")));
        assert_eq!((meta.l3(), meta.l4(), meta.end(), meta.sport), (14, 54, 70, 1000));
    }

    #[test]
    fn a_segment_built_by_another_hand() {
        // scapy: a SYN of Linux' form to 93.184.216.34:443 with five options.
        let bytes = *b"\x52\x54\x00\x12\x35\x02\x08\x00\x27\x7b\x5c\x11\x08\x00\
            \x45\x00\x00\x3c\x1c\x46\x40\x00\x40\x06\xdc\x8c\x0a\x00\x02\x0f\x5d\xb8\xd8\x22\
            \xc4\x22\x01\xbb\x0e\x3a\x1c\x5e\x00\x00\x00\x00\xa0\x02\xfa\xf0\x8f\x22\x00\x00\
            \x02\x04\x05\xb4\x04\x02\x08\x0a\x4f\x6c\x3c\x21\x00\x00\x00\x00\x01\x03\x03\x07";
        let meta = read(&bytes, Depth::L4, |_| ()).expect("well formed");
        assert_eq!((meta.sport, meta.dport, meta.detail[0]), (50_210, 443, tcp::SYN));
        assert_eq!((meta.source(), meta.destination()), (ip("10.0.2.15"), ip("93.184.216.34")));
    }

    #[test]
    fn tags() {
        let meta = facts(&udp().vlan(0x6005));
        assert_eq!((meta.vlan, meta.l3(), meta.sport), (5, 18, 1000));
        assert!(meta.has(flag::VLAN));
        let meta = facts(&udp6().tag(ethertype::SERVICE_VLAN, 7).vlan(8));
        assert_eq!((meta.vlan, meta.l3(), meta.dport), (7, 22, 53));
        assert_eq!(refused(&udp().vlan(1).vlan(2).vlan(3)), "decode.too-many-tags");
        let strip = |frame: &mut Frame| (frame.flags, frame.vlan_tci) = (rx::VLAN_STRIPPED, 0xe009);
        let meta = read(&udp().bytes(), Depth::L4, strip).expect("well formed");
        assert_eq!((meta.vlan, meta.l3(), meta.flags & flag::TAGS), (9, 14, 0));
        let meta = read(&udp().vlan(8).bytes(), Depth::L4, strip).expect("well formed");
        assert_eq!((meta.vlan, meta.l3()), (9, 18));
        let reason = read(&udp().vlan(8).vlan(8).bytes(), Depth::L4, strip).expect_err("the third tag counts");
        assert_eq!(reason, Malformed::TooManyTags.into());
    }

    #[test]
    fn depths_stop_where_they_should() {
        let bytes = udp().vlan(5).patch(42, &[0, 1]).bytes();
        let at = |depth| read(&bytes, depth, |frame| (frame.port, frame.rx_time) = (3, 99));
        assert_eq!(at(Depth::Nothing), Ok(Meta { port: 3, rx_time: 99, ..Meta::UNKNOWN }));
        let l2 = at(Depth::L2).expect("tag and EtherType are right");
        assert_eq!((l2.flags, l2.sport, l2.vlan), (flag::VLAN | 1 << flag::TAGS_SHIFT, ethertype::IPV4, 5));
        let l3 = at(Depth::L3).expect("the network header is right");
        assert_eq!((l3.proto, l3.l4(), l3.sport, l3.rx_time), (protocol::UDP, 38, 0, 99));
        assert!(!l3.any(flag::L4 | flag::PORTS));
        assert_eq!(at(Depth::L4), Err(Malformed::BadUdpLength.into()));
        assert_eq!(read(&[], Depth::Nothing, |_| ()), Ok(Meta::UNKNOWN));
        for depth in [Depth::Nothing, Depth::L2, Depth::L3, Depth::L4] {
            let reason = read(&bytes, depth, |frame| frame.flags = rx::CHAINED);
            assert_eq!(reason, Err(Engine::Chained.into()));
        }
    }

    #[test]
    fn other_ethertypes_pass() {
        let stp = facts(&Packet::ethernet(38, &[0x42, 0x42, 3]).pad(60));
        assert_eq!((stp.flags, stp.proto, stp.sport, stp.dport, stp.end()), (0, 0, 38, 0, 60));
        assert_eq!(stp.source(), None);
        let arp = facts(&Packet::arp(arp::REQUEST, "10.0.0.1", "10.0.0.2").vlan(4).pad(60));
        assert_eq!((arp.source(), arp.destination()), (ip("10.0.0.1"), ip("10.0.0.2")));
        assert_eq!((arp.flags & flag::ARP, arp.detail, arp.sport, arp.end()), (flag::ARP, [1, 0], 0x0806, 46));
    }

    #[test]
    fn port_checksums() {
        let bad = udp().patch(24, &[0, 0]).bytes();
        assert_eq!(read(&bad, Depth::L4, |_| ()), Err(Malformed::BadHeaderChecksum.into()));
        assert!(read(&bad, Depth::L4, |frame| frame.flags = rx::L3_SUM_GOOD).is_ok());
        // The port's "bad" is not taken for granted.
        assert!(read(&udp().bytes(), Depth::L4, |frame| frame.flags = rx::L3_SUM_BAD).is_ok());
        let meta = read(&tcp().bytes(), Depth::L4, |frame| frame.flags = rx::L4_SUM_GOOD).expect("well formed");
        assert!(meta.has(flag::L4_SUM_GOOD));
        let options = tcp().ip_options(&[1, 1, 1, 0]).bytes();
        let meta = read(&options, Depth::L4, |frame| frame.flags = rx::L4_SUM_GOOD).expect("well formed");
        assert!(meta.has(flag::L4_SUM_GOOD | flag::OPTIONS));
    }

    #[test]
    fn fragments_have_ports_only_in_the_first() {
        for whole in [udp().payload(&[1; 100]).id(5), udp6().payload(&[1; 100]).id(5)] {
            let parts = whole.fragments(56);
            let first = read(&parts[0], Depth::L4, |_| ()).expect("well formed");
            assert_eq!((first.sport, first.proto), (1000, protocol::UDP));
            assert!(first.has(flag::FIRST_FRAGMENT | flag::PORTS | flag::L4) && !first.has(flag::LATER_FRAGMENT));
            let later = read(&parts[1], Depth::L4, |_| ()).expect("well formed");
            assert_eq!((later.sport, later.dport, later.proto), (0, 0, protocol::UDP));
            assert!(later.has(flag::LATER_FRAGMENT) && !later.any(flag::FIRST_FRAGMENT | flag::PORTS | flag::L4));
        }
        // RFC 6946: a fragment header that says "whole" makes no fragment.
        let atomic = facts(&udp6().fragment(0, false));
        assert_eq!((atomic.sport, atomic.l4()), (1000, 62));
        assert!(!atomic.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT | flag::OPTIONS));
    }

    #[test]
    fn extension_headers_are_walked_over() {
        let meta = facts(
            &udp6()
                .extension(protocol::HOP_BY_HOP, &[5, 2, 0, 0, 1, 0])
                .extension(protocol::DESTINATION, &[1, 4, 0, 0, 0, 0])
                .extension(protocol::ROUTING, &[4, 0, 0, 0, 0, 0])
                .extension(protocol::AH, &[0; 22])
                .extension(protocol::MOBILITY, &[0; 6])
                .extension(protocol::HIP, &[0; 6])
                .extension(protocol::SHIM6, &[0; 6]),
        );
        assert_eq!((meta.proto, meta.sport, meta.l4()), (protocol::UDP, 1000, 54 + 72));
        assert!(meta.has(flag::OPTIONS | flag::L4));
        let nothing = facts(&Packet::ip("2001:db8::1", "2001:db8::2", protocol::NO_NEXT).payload(b"ignored"));
        assert_eq!((nothing.proto, nothing.flags), (protocol::NO_NEXT, flag::IPV6));
        let longest = facts(&udp6().extension(protocol::DESTINATION, &destination(512)));
        assert_eq!(longest.l4(), 54 + 512);
    }

    /// The body of a destination options header of `len` bytes: padding.
    fn destination(len: usize) -> Vec<u8> {
        vec![0; len - 2]
    }

    #[test]
    fn transports() {
        let sctp = facts(&Packet::sctp("10.0.0.1:1000", "192.0.2.1:2000"));
        assert_eq!((sctp.sport, sctp.dport), (1000, 2000));
        let ports = |proto, payload: &[u8]| facts(&Packet::ip("10.0.0.1", "10.0.0.2", proto).payload(payload));
        assert_eq!(ports(protocol::UDP_LITE, &[0, 1, 0, 2, 0, 0, 9, 9]).dport, 2);
        assert_eq!(ports(protocol::DCCP, &[0, 1, 0, 2, 3, 0, 0, 0, 0, 0, 0, 0]).sport, 1);
        for (proto, len) in [(protocol::GRE, 4), (protocol::ESP, 8)] {
            let meta = ports(proto, &vec![0; len]);
            assert_eq!(meta.flags, flag::IPV4 | flag::L4);
            let short = Packet::ip("10.0.0.1", "10.0.0.2", proto).payload(&vec![0; len - 1]);
            assert_eq!(refused(&short), "decode.short-transport");
        }
        assert!(ports(protocol::AH, &[6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).has(flag::L4));
        let ospf = ports(89, &[]);
        assert_eq!((ospf.proto, ospf.flags), (89, flag::IPV4));
        let echo = facts(&Packet::echo_request("10.0.0.1", "10.0.0.2", 77, 1));
        assert_eq!((echo.sport, echo.dport, echo.detail), (77, 77, [8, 0]));
        assert!(echo.has(flag::ECHO | flag::PORTS | flag::L4));
        let echo = facts(&Packet::echo_reply("2001:db8::1", "2001:db8::2", 77, 1));
        assert_eq!((echo.sport, echo.detail), (77, [129, 0]));
        let error = facts(&Packet::icmp_error("10.0.0.9", "10.0.0.1", 3, 4, &udp()));
        assert_eq!((error.detail, error.flags), ([3, 4], flag::IPV4 | flag::L4 | flag::ICMP_ERROR));
        let redirect = facts(&Packet::icmp_error("10.0.0.9", "10.0.0.1", icmpv4::REDIRECT, 1, &udp()));
        assert!(!redirect.any(flag::ICMP_ERROR | flag::PORTS));
        let error = facts(&Packet::icmp_error("2001:db8::9", "2001:db8::1", icmpv6::TOO_BIG, 0, &udp6()));
        assert!(error.has(flag::ICMP_ERROR));
        // ICMP of the other family is a protocol like any other.
        assert_eq!(facts(&Packet::ip("2001:db8::1", "2001:db8::2", 1)).flags, flag::IPV6);
    }

    #[test]
    fn every_malformed_form_has_its_name() {
        let v4 = |proto, payload: &[u8]| Packet::ip("10.0.0.1", "10.0.0.2", proto).payload(payload);
        let chain = |n| (0..n).fold(udp6(), |p, _| p.extension(protocol::DESTINATION, &destination(8)));
        let cases = [
            ("short-tag", Packet::ethernet(ethertype::VLAN, &[0, 1, 8])),
            ("too-many-tags", udp().vlan(1).vlan(1).vlan(1)),
            ("short-arp", Packet::ethernet(ethertype::ARP, &[0; 27])),
            ("foreign-arp", Packet::arp(1, "10.0.0.1", "10.0.0.2").patch(18, &[8])),
            ("short-ip", Packet::ethernet(ethertype::IPV4, &[0x45; 19])),
            ("short-ip", Packet::ethernet(ethertype::IPV6, &[0x60; 39])),
            ("bad-version", udp().patch_ip(0, &[0x65])),
            ("bad-version", udp6().patch_ip(0, &[0x45])),
            ("bad-ihl", udp().patch_ip(0, &[0x44])),
            ("header-beyond-frame", v4(6, &[]).patch_ip(0, &[0x46])),
            ("total-length-short", udp().patch_ip(2, &[0, 19])),
            ("length-beyond-frame", udp().patch_ip(2, &[0, 37])),
            ("length-beyond-frame", udp6().patch_ip(4, &[0, 17])),
            ("bad-header-checksum", udp().patch(24, &[1, 1])),
            ("bad-option", udp().ip_options(&[7, 5, 0, 0])),
            ("bad-option", udp6().extension(protocol::HOP_BY_HOP, &[5, 5, 0, 0, 0, 0])),
            ("bad-fragment-length", v4(17, &[0; 12]).fragment(0, true)),
            ("bad-fragment-length", v4(17, &[]).fragment(8, false)),
            ("bad-fragment-length", udp6().payload(&[0; 3]).fragment(8, true)),
            ("fragment-beyond-end", v4(17, &[0; 8]).fragment(65_512, false)),
            ("fragment-beyond-end", udp6().fragment(65_528, false)),
            ("short-first-fragment", v4(6, &[0; 16]).fragment(0, true)),
            ("second-fragment-header", udp6().extension(protocol::FRAGMENT, &[0; 6]).fragment(0, true)),
            ("jumbogram", udp6().extension(protocol::HOP_BY_HOP, &[0xc2, 4, 0, 1, 0, 0]).patch_ip(4, &[0, 0])),
            ("jumbogram", udp6().extension(protocol::HOP_BY_HOP, &[0xc2, 4, 0, 1, 0, 0])),
            ("jumbogram", udp6().patch(58, &[0, 0])),
            ("short-extension", udp6().extension(protocol::ROUTING, &[0; 6]).patch_ip(41, &[9])),
            ("short-extension", Packet::ip("2001:db8::1", "2001:db8::2", protocol::ROUTING).payload(&[6])),
            (
                "late-hop-by-hop",
                udp6().extension(protocol::DESTINATION, &[0; 6]).extension(protocol::HOP_BY_HOP, &[0; 6]),
            ),
            ("too-many-extensions", chain(9)),
            ("too-many-extensions", udp6().extension(protocol::DESTINATION, &destination(520))),
            ("short-transport", v4(protocol::TCP, &[0; 19])),
            ("short-transport", v4(protocol::UDP, &[0; 7])),
            ("short-transport", v4(protocol::ICMP, &[0; 7])),
            ("short-transport", v4(protocol::SCTP, &[0; 11])),
            ("bad-tcp-offset", tcp().patch(46, &[0x40])),
            ("bad-tcp-offset", tcp().patch(46, &[0x60])),
            ("bad-udp-length", udp().patch(38, &[0, 7])),
            ("bad-udp-length", udp().patch(38, &[0, 17])),
            ("bad-udp-lite-coverage", v4(protocol::UDP_LITE, &[0, 1, 0, 2, 0, 7, 9, 9])),
            ("bad-udp-lite-coverage", v4(protocol::UDP_LITE, &[0, 1, 0, 2, 0, 9, 9, 9])),
            ("bad-auth-length", v4(protocol::AH, &[6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
            ("bad-auth-length", v4(protocol::AH, &[6, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
            ("bad-auth-length", udp6().extension(protocol::AH, &[0; 14]).patch_ip(41, &[0])),
        ];
        for (expected, packet) in &cases {
            assert_eq!(refused(packet), format!("decode.{expected}"), "{packet:?}");
        }
        assert_eq!(read(&[0; 13], Depth::L4, |_| ()), Err(Malformed::ShortFrame.into()));
        let named =
            |line: &crate::stats::Line| line.name == "short-frame" || cases.iter().any(|(name, _)| *name == line.name);
        assert!(<Malformed as crate::stats::Lines>::LINES.iter().all(named), "every reason has a case");
    }

    #[test]
    fn eight_extension_headers_are_not_too_many() {
        let packet = (0..8).fold(udp6(), |p, _| p.extension(protocol::DESTINATION, &destination(64)));
        assert_eq!(facts(&packet).l4(), 54 + 512);
    }

    #[test]
    fn a_frame_cut_anywhere_is_refused_unless_only_padding_is_lost() {
        for packet in samples() {
            let bytes = packet.pad(80).bytes();
            let end = read(&bytes, Depth::L4, |_| ()).expect("samples are well formed").end();
            for len in 0..bytes.len() {
                let cut = read(&bytes[..len], Depth::L4, |_| ());
                // What is not IP has no length of its own.
                let foreign = len >= 14 && !matches!(bytes[12..14], [0x08, 0] | [0x08, 6] | [0x86, 0xdd] | [0x81, 0]);
                assert_eq!(cut.is_ok(), len >= end || foreign, "{len} of {bytes:02x?}");
            }
        }
    }

    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let samples: Vec<Vec<u8>> = samples().into_iter().map(|packet| packet.bytes()).collect();
        let flips = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
        (prop::sample::select(samples), flips, any::<prop::sample::Index>(), 0..8u8).prop_map(
            |(mut bytes, flips, cut, what)| {
                for (at, value) in flips {
                    let at = at.index(bytes.len());
                    bytes[at] = value;
                }
                if what == 0 {
                    bytes.truncate(cut.index(bytes.len()));
                }
                bytes
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn changed_packets_never_panic_and_both_ways_agree(bytes in hostile(), flags in 0..0x40u16, sum in any::<bool>()) {
            for depth in [Depth::Nothing, Depth::L2, Depth::L3, Depth::L4] {
                // A good header checksum lets what is behind it be reached.
                let _ = read(&bytes, depth, |frame| {
                    frame.flags = flags & !rx::CHAINED | if sum { rx::L3_SUM_GOOD } else { 0 };
                    frame.vlan_tci = 0xfff;
                });
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..4usize) {
            let mut bytes = bytes;
            if let Some(slot) = bytes.get_mut(12..15) {
                slot.copy_from_slice(&[[8, 0, 0x45], [0x86, 0xdd, 0x60], [8, 6, 0], [0x81, 0, 0]][kind]);
            }
            let _ = read(&bytes, Depth::L4, |frame| frame.flags = rx::L3_SUM_GOOD);
        }
    }
}
