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

use crate::wire::checksum;
use crate::wire::ethernet::Ethernet;
use crate::wire::ipv4::{self, Ipv4, Ipv4Mut};
use crate::wire::ipv6::Ipv6Mut;

use super::decode::{Depth, walk};
use super::frame::{Frame, rx};
use super::meta::{Meta, flag};

mod error;
mod segment;

use error::can_report;
pub use error::{Answer, Error, answer, error};
pub use segment::{Head, Options, can_answer, replace, reset, respond};
use segment::{can_reset, is_segment};

/// TTL and hop limit of replies: what RFC 1700 recommends for hosts.
pub(super) const HOPS: u8 = 64;
/// The shortest frame on an Ethernet, without its check sequence. A virtual port may have delivered a shorter one, and not
/// every port pads what it sends.
pub(super) const SHORTEST: usize = 60;

/// True if [`reject`] would make a reply of the frame.
pub fn can_reject(frame: &Frame, meta: &Meta) -> bool {
    let prohibited = || Answer::Prohibited.error(meta).is_some_and(|error| can_report(frame, meta, error, &meta.dst));
    if is_segment(meta) { can_reset(frame, meta) } else { prohibited() }
}

/// Makes the request its sender's refusal, in the name of the destination: a reset of a TCP segment, an ICMP or ICMPv6 error
/// "administratively prohibited" of anything else. The facts become those of the reply, which leaves by the port the request
/// came from. False, and nothing changed, if there must be no reply or no room for one.
pub fn reject(frame: &mut Frame, meta: &mut Meta) -> bool {
    if is_segment(meta) {
        return reset(frame, meta);
    }
    let source = meta.dst;
    Answer::Prohibited.error(meta).is_some_and(|prohibited| error(frame, meta, prohibited, &source))
}

/// Source and destination are single hosts, by IP and by Ethernet.
pub(super) fn is_between_hosts(frame: &Frame, meta: &Meta) -> bool {
    let Some(ethernet) = Ethernet::parse(frame.bytes()) else { return false };
    ethernet.destination()[0] & 1 == 0 && !is_group(meta, &meta.dst) && is_from_host(frame, meta)
}

fn is_from_host(frame: &Frame, meta: &Meta) -> bool {
    let Some(ethernet) = Ethernet::parse(frame.bytes()) else { return false };
    let ip = meta.any(flag::IPV4 | flag::IPV6) && meta.end() <= frame.len() && meta.l4() <= meta.end();
    ip && ethernet.source()[0] & 1 == 0 && is_host(meta, &meta.src)
}

/// Multicast, or IPv4's limited broadcast. What a subnet's own broadcast address is, only a router on it knows.
pub(super) fn is_group(meta: &Meta, address: &[u8; 16]) -> bool {
    match meta.has(flag::IPV4) {
        true => address[0] & 0xf0 == 0xe0 || address[..4] == [0xff; 4],
        false => address[0] == 0xff,
    }
}

/// An address that one host may have on a wire: not "this" network, loopback, multicast, reserved (RFC 1122 section 3.2.1.3,
/// RFC 1112 section 4), unspecified (RFC 4291 section 2.5).
pub(super) fn is_host(meta: &Meta, address: &[u8; 16]) -> bool {
    match meta.has(flag::IPV4) {
        true => !matches!(address[0], 0 | 127 | 224..),
        // ::, ::1 and multicast.
        false => u128::from_be_bytes(*address) > 1 && !is_group(meta, address),
    }
}

pub(super) fn swap_macs(bytes: &mut [u8]) {
    if let Some((destination, source)) = bytes.get_mut(..12).and_then(|macs| macs.split_at_mut_checked(6)) {
        destination.swap_with_slice(source);
    }
}

pub(super) fn pseudo(v4: bool, source: &[u8; 16], destination: &[u8; 16], proto: u8, len: usize) -> checksum::Sum {
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
mod tests;
