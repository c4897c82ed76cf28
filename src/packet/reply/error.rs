//! ICMP and ICMPv6 errors: what a packet that cannot be forwarded becomes, and of which packets there is no error.

use crate::packet::frame::Frame;
use crate::packet::meta::{Meta, flag};
use crate::wire::icmpv4::{self, Icmpv4, Icmpv4Mut};
use crate::wire::icmpv6::{self, Icmpv6};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::{checksum, protocol};

use super::{conclude, is_between_hosts, is_from_host, is_host, pseudo, reject, swap_macs, write_ip};

/// Largest ICMP error in bytes, IP header included (RFC 1812 section 4.3.2.3).
pub(super) const MOST_V4: usize = 576;
/// Largest ICMPv6 error, likewise: the smallest MTU there is (RFC 4443 section 2.4 (c)).
pub(super) const MOST_V6: usize = 1280;
/// Precedence "internetwork control" of ICMP errors (RFC 1812 section 4.3.2.5).
const CONTROL: u8 = 0xc0;
/// The least MTU a packet too big may name (RFC 8200 section 5).
const LEAST_MTU_V6: u16 = 1280;

/// What a packet that goes no further becomes. The comments give the ICMP and the ICMPv6 type and code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: it vanishes, as into a blackhole.
    #[default]
    Nothing,
    /// What [`reject`] makes of it, in the name of its destination.
    Reject,
    /// Its TTL or hop limit has run out: 11/0 (RFC 1812 section 5.3.1), 3/0 (RFC 4443 section 3.3).
    TimeExceeded,
    /// There is no route: 3/0 network unreachable (RFC 1812 section 5.2.7.1), 1/0 (RFC 4443 section 3.1).
    NoRoute,
    /// The destination does not answer ARP or neighbor solicitation: 3/1 host unreachable (RFC 1812 section 3.3.2), 1/3
    /// address unreachable (RFC 4861 section 7.2.2).
    HostUnreachable,
    /// The route is one that says unreachable: 3/1 as Linux has it, 1/6 reject route (RFC 4443 section 3.1).
    RejectRoute,
    /// A rule or a route forbids it: 3/13 (RFC 1812 section 5.2.7.1), 1/1 (RFC 4443 section 3.1).
    Prohibited,
    /// The source should not be where it came from: 3/13, 1/5 (RFC 4443 section 3.1). RFC 1812 section 5.3.8 asks for silence
    /// about a failed reverse path check over IPv4; this is for those who want to be told.
    SourcePolicy,
    /// The source's scope ends here: 1/2 (RFC 4443 section 3.1). Nothing over IPv4 (RFC 3927 section 7).
    BeyondScope,
    /// A source route is not followed here: 3/5 (RFC 1812 section 5.2.7.1). Over IPv6 1/1, since what drops a routing header
    /// on its way is a filter (RFC 5095 section 4.2); one that ends here is a [`ParameterProblem`](Answer::ParameterProblem).
    SourceRouteFailed,
    /// It is longer than the next link takes, in bytes of the network layer, and must not be fragmented: 3/4 (RFC 1191
    /// section 4), 2/0 (RFC 4443 section 3.2).
    TooBig {
        /// What the link takes.
        mtu: u16,
    },
    /// A byte of its headers is wrong: 12/0 (RFC 1812 section 5.2.7.4; the code is not for IPv4), 4/code (RFC 4443 section
    /// 3.4; 5 to 10 for headers beyond a limit, RFC 8883 section 3).
    ParameterProblem {
        /// ICMPv6 code.
        code: u8,
        /// Where, counted from the first byte of the IP header.
        pointer: u16,
    },
}

const _: () = assert!(size_of::<Answer>() <= 8);

impl Answer {
    /// The error that says so about a packet; `None` if none does.
    pub fn error(self, about: &Meta) -> Option<Error> {
        let pair = |v4: (u8, u8), v6: (u8, u8)| if about.has(flag::IPV4) { v4 } else { v6 };
        let unreachable = |v4: u8, v6: u8| pair((icmpv4::UNREACHABLE, v4), (icmpv6::UNREACHABLE, v6));
        let mut rest = [0; 4];
        let (kind, code) = match self {
            Answer::Nothing => return None,
            Answer::BeyondScope if about.has(flag::IPV4) => return None,
            Answer::TimeExceeded => pair((icmpv4::TIME_EXCEEDED, 0), (icmpv6::TIME_EXCEEDED, 0)),
            Answer::NoRoute => unreachable(0, 0),
            Answer::HostUnreachable => unreachable(1, 3),
            Answer::RejectRoute => unreachable(1, 6),
            Answer::Reject | Answer::Prohibited => unreachable(13, 1),
            Answer::SourcePolicy => unreachable(13, 5),
            Answer::BeyondScope => unreachable(13, 2),
            Answer::SourceRouteFailed => unreachable(5, 1),
            Answer::TooBig { mtu } => {
                let mtu = if about.has(flag::IPV4) { mtu } else { mtu.max(LEAST_MTU_V6) };
                rest[2..].copy_from_slice(&mtu.to_be_bytes());
                pair((icmpv4::UNREACHABLE, 4), (icmpv6::TOO_BIG, 0))
            }
            Answer::ParameterProblem { code, pointer } => {
                if about.has(flag::IPV4) {
                    rest[0] = u8::try_from(pointer).ok()?;
                } else {
                    rest[2..].copy_from_slice(&pointer.to_be_bytes());
                }
                pair((icmpv4::PARAMETER_PROBLEM, 0), (icmpv6::PARAMETER_PROBLEM, code))
            }
        };
        Some(Error { kind, code, rest })
    }
}

/// Makes a packet what `answer` calls for, from the address of ours that its family needs; of a rejection it is the packet's
/// destination. The facts become those of the error, which leaves by the port the packet came from, to the station it came
/// from. False, and nothing changed, if there is to be no error, no address to send it from, or no room for it.
pub fn answer(
    frame: &mut Frame,
    meta: &mut Meta,
    answer: Answer,
    source_v4: Option<[u8; 4]>,
    source_v6: Option<[u8; 16]>,
) -> bool {
    if answer == Answer::Reject {
        return reject(frame, meta);
    }
    let Some(report) = answer.error(meta) else { return false };
    let source = if meta.has(flag::IPV4) { source_v4.map(wide) } else { source_v6 };
    source.is_some_and(|source| error(frame, meta, report, &source))
}

fn wide(address: [u8; 4]) -> [u8; 16] {
    let mut wide = [0; 16];
    wide[..4].copy_from_slice(&address);
    wide
}

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
    /// RFC 4443 section 2.4 (e.3) and (e.4): packet too big, and an option nobody knows, are reported to whoever sent to a
    /// group too.
    fn concerns_groups(self) -> bool {
        matches!((self.kind, self.code), (icmpv6::TOO_BIG, _) | (icmpv6::PARAMETER_PROBLEM, 2))
    }
}

/// Makes a packet the ICMP or ICMPv6 error about it, from `source` (IPv4 in the first four bytes), quoting it as it stands in
/// the frame as far as may be. As [`answer`] otherwise.
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
        false => (Ipv6::LEN, Ipv6::LEN + Icmpv6::LEN, MOST_V6),
    }
}

pub(super) fn can_report(frame: &Frame, meta: &Meta, error: Error, source: &[u8; 16]) -> bool {
    let groups = meta.has(flag::IPV6) && error.concerns_groups();
    let answerable = if groups { is_from_host(frame, meta) } else { is_between_hosts(frame, meta) };
    let (_, head, _) = error_room(meta);
    answerable
        && is_host(meta, source)
        && !meta.has(flag::LATER_FRAGMENT)
        && !is_maybe_error(frame, meta)
        && head <= frame.headroom()
}

/// ICMP that is an error, or may be one. It is read from the packet: not every pipeline decodes as deep.
fn is_maybe_error(frame: &Frame, meta: &Meta) -> bool {
    let v4 = match meta.proto {
        protocol::ICMP if meta.has(flag::IPV4) => true,
        protocol::ICMPV6 if meta.has(flag::IPV6) => false,
        _ => return false,
    };
    match frame.bytes().get(meta.l4()..meta.end()).and_then(Icmpv4::parse).map(Icmpv4::kind) {
        // Known questions: echo, timestamp, information and mask (RFC 792, RFC 950), extended echo (RFC 8335).
        Some(0 | 8 | 13..=18 | 42 | 43) if v4 => false,
        // All but errors, the reserved 0 and redirects (137, RFC 4861 section 4.5).
        Some(128..=136 | 138..) if !v4 => false,
        _ => true,
    }
}
