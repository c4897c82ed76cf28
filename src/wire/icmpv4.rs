//! ICMP for IPv4 (RFC 792).

view! {
    /// The first eight bytes of an ICMP message, which all kinds have.
    pub Icmpv4, Icmpv4Mut: 8 {
        /// Message type.
        kind, set_kind: u8 @ 0;
        /// Code within the type.
        code, set_code: u8 @ 1;
        /// Checksum over the message.
        checksum, set_checksum: u16 @ 2;
        /// Identifier of an echo request or reply.
        id, set_id: u16 @ 4;
        /// Sequence number of an echo request or reply; next-hop MTU of a "fragmentation needed" (RFC 1191).
        sequence, set_sequence: u16 @ 6;
    }
}

/// Echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable; code 4 is "fragmentation needed".
pub const UNREACHABLE: u8 = 3;
/// Source quench (deprecated by RFC 6633).
pub const SOURCE_QUENCH: u8 = 4;
/// Redirect.
pub const REDIRECT: u8 = 5;
/// Echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;

/// True for messages that report what became of a packet, which they quote behind their eight bytes. A redirect quotes one
/// too, but it tells a host how to route instead of what became of a flow, and must never pass as part of one.
#[inline]
pub fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | SOURCE_QUENCH | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// True for echo requests and replies.
#[inline]
pub fn is_echo(kind: u8) -> bool {
    matches!(kind, ECHO_REQUEST | ECHO_REPLY)
}
