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
    if left != 0 {
        walk_all(batch, left, depth);
    }
}

#[cold]
#[inline(never)]
fn walk_all(batch: &mut Batch, mask: u64, depth: Depth) {
    for i in bits(mask) {
        if let Err(reason) = walk(&batch.frames[i], depth, &mut batch.metas[i]) {
            batch.drop(i, reason);
        }
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
        let len = usize::from(udp.len());
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
    if !sum_good && !checksum::is_good(all) {
        return Err(Malformed::BadHeaderChecksum);
    }
    if ipv4::options(&all[Ipv4::LEN..]).any(|option| option.is_err()) {
        return Err(Malformed::BadOption);
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
    Ok(fragment == 0)
}

/// The flag of a fragment which carries `len` bytes and up to whose end the reassembled packet has `reach` of the 65,535
/// bytes it may have; 0 of a packet that is whole (RFC 6946 calls it atomic if it has a fragment header nevertheless).
fn fragment(offset: usize, more: bool, len: usize, reach: usize) -> Result<u16, Malformed> {
    if offset == 0 && !more {
        return Ok(0);
    }
    // RFC 791 section 3.2, RFC 8200 section 4.5: all but the last are multiples of eight.
    if len == 0 || more && len % 8 != 0 {
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
            let len = usize::from(udp.len());
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
            let coverage = usize::from(udp.len());
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
