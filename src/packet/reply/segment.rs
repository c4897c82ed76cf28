//! TCP segments that answer a segment, or take its place.

use crate::packet::frame::Frame;
use crate::packet::meta::{Meta, flag};
use crate::wire::ipv4::{Ipv4, Ipv4Mut};
use crate::wire::ipv6::{Ipv6, Ipv6Mut};
use crate::wire::tcp::{self, Tcp, TcpMut, option};
use crate::wire::{checksum, protocol};

use super::{SHORTEST, conclude, is_between_hosts, is_host, pseudo, swap_macs, write_ip};

/// Makes a TCP segment the reset that its sender believes, as if from the other end. As [`super::reject`] otherwise.
pub fn reset(frame: &mut Frame, meta: &mut Meta) -> bool {
    if !can_reset(frame, meta) {
        return false;
    }
    let Some(head) = frame.bytes().get(meta.l4()..meta.end()).and_then(Head::refusing) else { return false };
    respond(frame, meta, &head)
}

/// Makes a segment another one that goes back to its sender, without payload. The facts become those of the answer, which
/// leaves by the port the segment came from. False, and nothing changed, if the frame has no room for it. Whether there may be
/// an answer is the caller's to know ([`can_answer`]).
pub fn respond(frame: &mut Frame, meta: &mut Meta, head: &Head) -> bool {
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
/// [`respond`] otherwise.
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

/// True for a whole TCP segment: of a fragment, neither length nor checksum is known.
pub(super) fn is_segment(meta: &Meta) -> bool {
    meta.proto == protocol::TCP && meta.has(flag::L4) && !meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT)
}

pub(super) fn can_reset(frame: &Frame, meta: &Meta) -> bool {
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
