//! SCTP (RFC 9260) and DCCP (RFC 4340), as far as a firewall reads them.

view! {
    /// The common header of SCTP.
    pub Sctp, SctpMut: 12 {
        /// Source port.
        source_port, set_source_port: u16 @ 0;
        /// Destination port.
        destination_port, set_destination_port: u16 @ 2;
        /// Verification tag of the association.
        tag, set_tag: u32 @ 4;
        /// CRC32c over the packet, which unlike other checksums covers no address.
        checksum, set_checksum: u32 @ 8;
    }
}

view! {
    /// The generic header of DCCP, with short sequence numbers (RFC 4340 section 5.1).
    pub Dccp, DccpMut: 12 {
        /// Source port.
        source_port, set_source_port: u16 @ 0;
        /// Destination port.
        destination_port, set_destination_port: u16 @ 2;
        /// Offset of the data in words.
        offset, set_offset: u8 @ 4;
    }
}
