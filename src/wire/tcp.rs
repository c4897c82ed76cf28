//! TCP (RFC 9293) and the walk over its options.

pub use super::ipv4::{BadOption, Opt, located, options};

view! {
    /// A TCP header without its options.
    pub Tcp, TcpMut: 20 {
        /// Source port.
        source_port, set_source_port: u16 @ 0;
        /// Destination port.
        destination_port, set_destination_port: u16 @ 2;
        /// Sequence number of the first byte (or of the SYN).
        sequence, set_sequence: u32 @ 4;
        /// The next sequence number expected, with [`ACK`].
        acknowledgment, set_acknowledgment: u32 @ 8;
        /// Header length in words in the upper four bits.
        offset_reserved, set_offset_reserved: u8 @ 12;
        /// [`CWR`] to [`FIN`].
        flags, set_flags: u8 @ 13;
        /// Receive window, unscaled.
        window, set_window: u16 @ 14;
        /// Checksum over pseudo header, header and payload.
        checksum, set_checksum: u16 @ 16;
        /// End of urgent data, with [`URG`].
        urgent, set_urgent: u16 @ 18;
    }
}

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronize sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// Push.
pub const PSH: u8 = 0x08;
/// The acknowledgment is valid.
pub const ACK: u8 = 0x10;
/// The urgent pointer is valid.
pub const URG: u8 = 0x20;
/// ECN echo (RFC 3168).
pub const ECE: u8 = 0x40;
/// Congestion window reduced (RFC 3168).
pub const CWR: u8 = 0x80;

impl Tcp<'_> {
    /// Bytes of the header, options included, as it claims.
    #[inline(always)]
    pub fn header_len(self) -> usize {
        usize::from(self.offset_reserved() >> 4) * 4
    }
}

/// Kinds of options.
pub mod option {
    /// Padding, one byte without a length.
    pub const NO_OPERATION: u8 = 1;
    /// Maximum segment size, two bytes (RFC 9293 section 3.7.1).
    pub const MSS: u8 = 2;
    /// Window scale, one byte (RFC 7323 section 2).
    pub const WINDOW_SCALE: u8 = 3;
    /// Selective acknowledgment permitted (RFC 2018 section 2).
    pub const SACK_PERMITTED: u8 = 4;
    /// Selective acknowledgment blocks (RFC 2018 section 3).
    pub const SACK: u8 = 5;
    /// Timestamps, two words (RFC 7323 section 3).
    pub const TIMESTAMPS: u8 = 8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_captured_syn() {
        // Linux: MSS 1460, SACK permitted, timestamps, no-operation, window scale 7.
        let bytes = *b"\x02\x04\x05\xb4\x04\x02\x08\x0a\x00\x9c\x27\x24\x00\x00\x00\x00\x01\x03\x03\x07";
        let kinds: Vec<_> = options(&bytes).map(|o| o.map(|(kind, body)| (kind, body.len()))).collect();
        assert_eq!(kinds, [Ok((2, 2)), Ok((4, 0)), Ok((8, 8)), Ok((3, 1))]);
    }
}
