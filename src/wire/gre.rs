//! GRE (RFC 2784, RFC 2890), ESP (RFC 4303) and AH (RFC 4302): the heads of what tunnels packets.

view! {
    /// The part of a GRE header that all versions have.
    pub Gre, GreMut: 4 {
        /// Flags and version (lower three bits).
        flags_version, set_flags_version: u16 @ 0;
        /// EtherType of what is inside.
        protocol, set_protocol: u16 @ 2;
    }
}

view! {
    /// The part of ESP in front of what is encrypted.
    pub Esp, EspMut: 8 {
        /// Security parameters index.
        spi, set_spi: u32 @ 0;
        /// Sequence number.
        sequence, set_sequence: u32 @ 4;
    }
}

view! {
    /// The fixed part of an authentication header.
    pub Ah, AhMut: 12 {
        /// Protocol number of what follows.
        next, set_next: u8 @ 0;
        /// Words of the header without the first two.
        len_units, set_len_units: u8 @ 1;
        /// Security parameters index.
        spi, set_spi: u32 @ 4;
        /// Sequence number.
        sequence, set_sequence: u32 @ 8;
    }
}
