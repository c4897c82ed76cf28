//! UDP (RFC 768) and UDP-Lite (RFC 3828), which differ in the meaning of one field.

view! {
    /// A UDP or UDP-Lite header.
    pub Udp, UdpMut: 8 {
        /// Source port.
        source_port, set_source_port: u16 @ 0;
        /// Destination port.
        destination_port, set_destination_port: u16 @ 2;
        /// Bytes of header and payload; of UDP-Lite the bytes its checksum covers, 0 for all (RFC 3828 section 3.1).
        length, set_length: u16 @ 4;
        /// Checksum over pseudo header, header and payload; 0 for none (not over IPv6, not in UDP-Lite).
        checksum, set_checksum: u16 @ 6;
    }
}
