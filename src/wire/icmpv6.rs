//! ICMP for IPv6 (RFC 4443).

view! {
    /// The first eight bytes of an ICMPv6 message. RFC 4443 section 2.1 has only four in common, but no message is shorter.
    pub Icmpv6, Icmpv6Mut: 8 {
        /// Message type.
        kind, set_kind: u8 @ 0;
        /// Code within the type.
        code, set_code: u8 @ 1;
        /// Checksum over pseudo header and message.
        checksum, set_checksum: u16 @ 2;
        /// Identifier of an echo request or reply.
        id, set_id: u16 @ 4;
        /// Sequence number of an echo request or reply.
        sequence, set_sequence: u16 @ 6;
    }
}

/// Destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Packet too big; the MTU is in the bytes of `id` and `sequence`.
pub const TOO_BIG: u8 = 2;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 3;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 4;
/// Echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Echo reply.
pub const ECHO_REPLY: u8 = 129;
/// Router solicitation (RFC 4861).
pub const ROUTER_SOLICITATION: u8 = 133;
/// Router advertisement (RFC 4861).
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// Neighbor solicitation (RFC 4861).
pub const NEIGHBOR_SOLICITATION: u8 = 135;
/// Neighbor advertisement (RFC 4861).
pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;

/// True for error messages, which quote a packet behind their eight bytes: the upper half of the types is informational
/// (RFC 4443 section 2.1), type 0 is reserved.
#[inline]
pub fn is_error(kind: u8) -> bool {
    (1..128).contains(&kind)
}

/// True for echo requests and replies.
#[inline]
pub fn is_echo(kind: u8) -> bool {
    matches!(kind, ECHO_REQUEST | ECHO_REPLY)
}
