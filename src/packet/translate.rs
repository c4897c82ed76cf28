//! Changing a packet's addresses and ports in place, with every checksum that covers them; and the same inside the packet that
//! an ICMP error quotes.
//!
//! Which packets change, and into what, is decided where flows are known. Checksums are updated incrementally (RFC 1624): a
//! packet that was damaged on its way stays damaged, and a packet of which a fragment is all there is can be translated too.
//! A later fragment has addresses only.
//!
//! Translating back gives the same bytes again. What a full computation never gives, an IPv4, TCP, DCCP or ICMP checksum of
//! 0xffff, comes back as zero, which is the same number in one's complement.
//!
//! What each protocol has to be changed, besides addresses:
//! - TCP, UDP, UDP-Lite, DCCP: ports, and a checksum that covers the pseudo header. A UDP or UDP-Lite checksum of zero is none
//!   and stays so; one that becomes zero is sent as 0xffff (RFC 768, RFC 3828 section 3.1). UDP-Lite and DCCP always cover
//!   ports and pseudo header, however little of the payload they do (RFC 3828 section 3.1, RFC 4340 section 9.2).
//! - SCTP: ports, and if they change the CRC32c (RFC 9260 section 6.8), which covers no address. It depends on the packet's
//!   length: ports of a fragment cannot be changed. Zero is none and stays so (RFC 9653).
//! - ICMP echo: the identifier. Of ICMPv6 alone the checksum covers addresses (RFC 4443 section 2.3).
//! - Anything else: nothing.

use crate::wire::checksum::{Sum, Update};
use crate::wire::icmpv4::Icmpv4;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Extension, Ipv6};
use crate::wire::protocol;

use super::frame::Frame;
use super::meta::{Meta, flag};
use super::steer;

/// The addresses and ports that a packet is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address in wire order; IPv4 in the first four bytes, the rest zero.
    pub src: [u8; 16],
    /// Destination address, likewise.
    pub dst: [u8; 16],
    /// Source port, or an echo's identifier; not looked at where there is none.
    pub sport: u16,
    /// Destination port, or the identifier again.
    pub dport: u16,
}

impl Tuple {
    /// That of a packet.
    #[inline(always)]
    pub fn of(meta: &Meta) -> Tuple {
        Tuple { src: meta.src, dst: meta.dst, sport: meta.sport, dport: meta.dport }
    }

    /// That of the way back.
    #[inline(always)]
    pub fn reversed(&self) -> Tuple {
        Tuple { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }
}

/// Gives a decoded packet other addresses and ports, and says so in `meta`: its `src` and `dst`, and with `flag::PORTS` its
/// `sport` and `dport`, are then those of the packet that leaves (`hash` remains that of the flow). False, and nothing is
/// changed, if it cannot be done: a fragment of SCTP whose ports would change.
///
/// For all packets but ICMP errors, for which there is [`translate_error`].
#[inline]
#[must_use]
pub fn translate(frame: &mut Frame, meta: &mut Meta, to: &Tuple) -> bool {
    let (l3, l4, end) = (meta.l3(), meta.l4(), meta.end());
    let Some(packet) = frame.bytes_mut().get_mut(l3..end) else { return false };
    let header = l4 - l3;
    let whole = if meta.has(flag::FIRST_FRAGMENT) { None } else { packet.len().checked_sub(header) };
    let done = change(packet, header, whole, meta, to);
    if done {
        (meta.src, meta.dst) = (to.src, to.dst);
        if meta.has(flag::PORTS) {
            (meta.sport, meta.dport) = (to.sport, to.dport);
        }
    }
    done
}

/// Translates an ICMP error that belongs to a flow as packets of its direction are translated, which leave with `to` (RFC 5508
/// section 4). The packet it quotes went the other way: it becomes what it was before it was translated. The error itself goes
/// to the one who sent that packet, and comes from `to.src` if the direction's sources are translated: the address of a host or
/// router behind it means nothing beyond, and would not be let through. Otherwise the address of whoever raised it stays.
///
/// The quote may end anywhere behind what told its flow; of its checksums those are updated that are in it. `src` and `dst` of
/// `meta` are then those of the packet that leaves. False, and nothing is changed, if it cannot be done.
#[cold]
#[must_use]
pub fn translate_error(frame: &mut Frame, meta: &mut Meta, to: &Tuple) -> bool {
    let (l3, l4, end) = (meta.l3(), meta.l4(), meta.end());
    let Some(packet) = frame.bytes_mut().get_mut(l3..end) else { return false };
    let routed = meta.has(flag::IPV6 | flag::OPTIONS) && !is_final_destination(packet);
    let Some((ip, message)) = packet.split_at_mut_checked(l4 - l3) else { return false };
    if ip.len() < if meta.has(flag::IPV4) { Ipv4::LEN } else { Ipv6::LEN } {
        return false;
    }
    let Some((head, quote)) = message.split_first_chunk_mut::<{ Icmpv4::LEN }>() else { return false };
    let Some(quoted) = steer::quoted(meta, quote) else { return false };
    let outer =
        Tuple { src: if quoted.facts.dst == to.src { meta.src } else { to.src }, dst: to.dst, sport: 0, dport: 0 };

    let mut facts = quoted.facts;
    facts.flags |= flag::OPTIONS | if quoted.later_fragment { flag::LATER_FRAGMENT } else { 0 };
    let header = quoted.transport.min(quote.len());
    // Behind these bytes nothing changes. They begin at an even place, so that their sums are those in the message.
    let changing = (header + TRANSPORT).min(quote.len());
    let before = Sum::default().bytes(&quote[..changing]).fold();
    if !change(quote, header, length_of(quote, quoted.transport), &facts, &to.reversed()) {
        return false;
    }
    let after = Sum::default().bytes(&quote[..changing]).fold();
    let mut sum = Update::of(u16::from_be_bytes([head[2], head[3]])).word(before, after);
    if !meta.has(flag::IPV4) {
        sum = ip.first_chunk_mut().map_or(sum, |ip| addresses_v6(ip, &outer, !routed).apply(sum));
    } else if let Some(ip) = ip.first_chunk_mut() {
        addresses_v4(ip, &outer);
    }
    head[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    (meta.src, meta.dst) = (outer.src, outer.dst);
    true
}

/// Bytes of a transport header in which something may change: those of TCP up to its checksum.
const TRANSPORT: usize = 18;

/// Bytes behind the first `header` of a packet that may be cut off, as it says itself; none of a fragment.
fn length_of(packet: &[u8], header: usize) -> Option<usize> {
    if let Some(ip) = Ipv4::parse(packet).filter(|ip| ip.version() == 4) {
        let whole = ip.fragment() & (ipv4::MF | ipv4::OFFSET) == 0;
        return usize::from(ip.total_len()).checked_sub(header).filter(|_| whole);
    }
    let ip = Ipv6::parse(packet)?;
    let fragment = steer::extensions(ip, packet).fragment;
    let whole = fragment.is_none_or(|(fragment, _)| fragment.offset() == 0 && !fragment.more());
    (usize::from(ip.payload_len()) + Ipv6::LEN).checked_sub(header).filter(|_| whole)
}

/// Changes a packet whose transport header is at `header`. `whole`: the bytes from there on, if they are not those of a fragment.
#[inline(always)]
fn change(packet: &mut [u8], header: usize, whole: Option<usize>, meta: &Meta, to: &Tuple) -> bool {
    let covered = !meta.has(flag::IPV6 | flag::OPTIONS) || is_final_destination(packet);
    let Some((ip, transport)) = packet.split_at_mut_checked(header) else { return false };
    let untouched = meta.has(flag::LATER_FRAGMENT);
    if meta.has(flag::IPV4) {
        let Some(ip) = ip.first_chunk_mut() else { return false };
        (untouched || rewrite(transport, meta, whole, to, Change::v4(ip, to))) && {
            addresses_v4(ip, to);
            true
        }
    } else {
        let Some(ip) = ip.first_chunk_mut() else { return false };
        (untouched || rewrite(transport, meta, whole, to, Change::v6(ip, to, covered))) && {
            addresses_v6(ip, to, covered);
            true
        }
    }
}

/// Writes addresses, and the header checksum.
#[inline(always)]
fn addresses_v4(ip: &mut [u8; Ipv4::LEN], to: &Tuple) {
    let sum = Change::v4(ip, to).apply(Update::of(u16::from_be_bytes([ip[10], ip[11]]))).finish();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip[12..16].copy_from_slice(&to.src[..4]);
    ip[16..].copy_from_slice(&to.dst[..4]);
}

/// Writes addresses, and says what that does to a checksum over the pseudo header.
#[inline(always)]
fn addresses_v6(ip: &mut [u8; Ipv6::LEN], to: &Tuple, covered: bool) -> Change {
    let change = Change::v6(ip, to, covered);
    ip[8..24].copy_from_slice(&to.src);
    ip[24..].copy_from_slice(&to.dst);
    change
}

/// True unless an IPv6 packet has a routing header with segments left: then its pseudo header has the last of these as the
/// destination (RFC 8200 section 8.1), and not the one that is translated.
#[cold]
fn is_final_destination(packet: &[u8]) -> bool {
    let Some(ip) = Ipv6::parse(packet) else { return true };
    let (mut next, mut at) = (ip.next(), Ipv6::LEN);
    for _ in 0..super::decode::MAX_EXTENSIONS {
        let Some(rest) = packet.get(at..).filter(|_| ipv6::is_extension(next)) else { break };
        let Some(extension) = Extension::parse(rest) else { break };
        if next == protocol::ROUTING {
            return rest.get(3).is_none_or(|left| *left == 0);
        }
        at += if next == protocol::FRAGMENT { ipv6::Fragment::LEN } else { extension.len(next) };
        next = extension.next();
    }
    true
}

/// Words that become others under a checksum.
#[derive(Clone, Copy)]
struct Change {
    /// Sum of the old ones.
    gone: u16,
    /// Sum of the new ones.
    come: u16,
}

impl Change {
    #[inline(always)]
    fn v4(ip: &[u8; Ipv4::LEN], to: &Tuple) -> Change {
        let come = Sum::default().bytes(&to.src[..4]).bytes(&to.dst[..4]);
        Change { gone: Sum::default().bytes(&ip[12..]).fold(), come: come.fold() }
    }

    /// `covered`: the destination is part of the pseudo header.
    #[inline(always)]
    fn v6(ip: &[u8; Ipv6::LEN], to: &Tuple, covered: bool) -> Change {
        let end = if covered { Ipv6::LEN } else { 24 };
        let come = Sum::default().bytes(&to.src).bytes(if covered { &to.dst } else { &[] });
        Change { gone: Sum::default().bytes(&ip[8..end]).fold(), come: come.fold() }
    }

    #[inline(always)]
    fn apply(self, sum: Update) -> Update {
        sum.word(self.gone, self.come)
    }
}

/// Changes the transport header, or as much of it as there is, when addresses change by `addresses`. False if that cannot be
/// done.
#[inline(always)]
fn rewrite(transport: &mut [u8], meta: &Meta, whole: Option<usize>, to: &Tuple, addresses: Change) -> bool {
    match meta.proto {
        protocol::TCP => ports(transport, 16, to, addresses, false),
        protocol::UDP => ports(transport, 6, to, addresses, true),
        _ => rewrite_other(transport, meta, whole, to, addresses),
    }
}

/// Ports, and the checksum at `at` if it is there; one that may be missing is zero then.
#[inline(always)]
fn ports(transport: &mut [u8], at: usize, to: &Tuple, addresses: Change, optional: bool) -> bool {
    let Some([a, b, c, d]) = transport.first_chunk_mut() else { return false };
    let (sport, dport) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
    ([*a, *b], [*c, *d]) = (to.sport.to_be_bytes(), to.dport.to_be_bytes());
    if let Some([a, b]) = transport.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        let before = u16::from_be_bytes([*a, *b]);
        let sum = addresses.apply(Update::of(before)).word(sport, to.sport).word(dport, to.dport);
        let sum = if optional { sum.finish_udp(before) } else { sum.finish() };
        [*a, *b] = sum.to_be_bytes();
    }
    true
}

/// All protocols but the common ones.
#[inline(never)]
fn rewrite_other(transport: &mut [u8], meta: &Meta, whole: Option<usize>, to: &Tuple, addresses: Change) -> bool {
    let v4 = meta.has(flag::IPV4);
    match meta.proto {
        protocol::UDP_LITE => ports(transport, 6, to, addresses, true),
        protocol::DCCP => ports(transport, 6, to, addresses, false),
        protocol::SCTP => sctp(transport, whole, to),
        protocol::ICMP if v4 => message(transport, meta, to, None),
        protocol::ICMPV6 if !v4 => message(transport, meta, to, Some(addresses)),
        _ => true,
    }
}

/// An ICMP message: an echo's identifier, and the checksum.
fn message(transport: &mut [u8], meta: &Meta, to: &Tuple, addresses: Option<Change>) -> bool {
    let Some([_, _, a, b, id @ .., _, _]) = transport.first_chunk_mut::<{ Icmpv4::LEN }>() else {
        return !meta.has(flag::ECHO);
    };
    let mut sum = Update::of(u16::from_be_bytes([*a, *b]));
    if let Some(addresses) = addresses {
        sum = addresses.apply(sum);
    }
    if meta.has(flag::ECHO) {
        let [c, d] = id;
        sum = sum.word(u16::from_be_bytes([*c, *d]), to.sport);
        [*c, *d] = to.sport.to_be_bytes();
    } else if addresses.is_none() {
        return true;
    }
    let sum = match sum.finish() {
        // An echo reply may be all zeros: the only sum that is zero, and not 0xffff.
        0 if addresses.is_none() && is_zero_but(transport, 2) => 0xffff,
        sum => sum,
    };
    transport[2..4].copy_from_slice(&sum.to_be_bytes());
    true
}

/// True if all bytes but the two at `but` are zero.
#[cold]
fn is_zero_but(bytes: &[u8], but: usize) -> bool {
    bytes.iter().enumerate().all(|(at, byte)| *byte == 0 || at == but || at == but + 1)
}

fn sctp(transport: &mut [u8], whole: Option<usize>, to: &Tuple) -> bool {
    let Some(ports) = transport.first_chunk_mut::<4>() else { return false };
    let ([a, b], [c, d]) = (to.sport.to_be_bytes(), to.dport.to_be_bytes());
    let (from, to) = (*ports, [a, b, c, d]);
    if from == to {
        return true;
    }
    let Some(behind) = whole.and_then(|len| len.checked_sub(4)) else { return false };
    *ports = to;
    if let Some(sum) = transport.get_mut(8..).and_then(<[u8]>::first_chunk_mut) {
        // RFC 9260 appendix A: the CRC's bytes stand in the order of the machine it was first made for.
        let before = u32::from_le_bytes(*sum);
        if before != 0 {
            *sum = (before ^ crc32c_change(u32::from_le_bytes(from) ^ u32::from_le_bytes(to), behind)).to_le_bytes();
        }
    }
    true
}

/// What a CRC32c changes by when four bytes do that `behind` bytes follow; `difference` is their exclusive or, the first byte
/// in the lowest bits. A CRC is linear: the difference, times x for every bit behind it and 32 more, modulo the polynomial.
fn crc32c_change(difference: u32, behind: usize) -> u32 {
    // Polynomials have their highest power in the lowest bit; this is x^8.
    let (mut product, mut power, mut bytes) = (difference, 1 << 23, behind + 4);
    while bytes != 0 {
        if bytes & 1 != 0 {
            product = multiply(product, power);
        }
        power = multiply(power, power);
        bytes >>= 1;
    }
    product
}

/// The product of two polynomials modulo that of CRC32c, bits reversed.
fn multiply(a: u32, mut b: u32) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut product = 0;
    for bit in (0..32).rev() {
        product ^= b & 0u32.wrapping_sub(a >> bit & 1);
        b = b >> 1 ^ POLYNOMIAL & 0u32.wrapping_sub(b & 1);
    }
    product
}

#[cfg(test)]
mod tests;
