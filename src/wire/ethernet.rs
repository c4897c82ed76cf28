//! Ethernet II (RFC 894, IEEE 802.3). Owns the header and the EtherTypes.

view! {
    /// An Ethernet header.
    pub Ethernet, EthernetMut: 14 {
        /// Destination MAC.
        destination, set_destination: [u8; 6] @ 0;
        /// Source MAC.
        source, set_source: [u8; 6] @ 6;
        /// EtherType; below [`ethertype::FIRST`] the length of an 802.3 frame.
        ethertype, set_ethertype: u16 @ 12;
    }
}

/// EtherTypes (IANA, IEEE).
pub mod ethertype {
    /// IPv4 (RFC 894).
    pub const IPV4: u16 = 0x0800;
    /// ARP (RFC 826).
    pub const ARP: u16 = 0x0806;
    /// IPv6 (RFC 2464).
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad service tag, the outer one of QinQ.
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// Anything below is not a type but a length: 802.3 with LLC, such as spanning tree.
    pub const FIRST: u16 = 0x0600;
}
