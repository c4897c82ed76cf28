//! ARP for IPv4 over Ethernet (RFC 826).

view! {
    /// An ARP packet with Ethernet and IPv4 addresses.
    pub Arp, ArpMut: 28 {
        /// Hardware type; Ethernet is [`ETHERNET`].
        hardware, set_hardware: u16 @ 0;
        /// Protocol type: an EtherType.
        protocol, set_protocol: u16 @ 2;
        /// Length of a hardware address; 6 for Ethernet.
        hardware_len, set_hardware_len: u8 @ 4;
        /// Length of a protocol address; 4 for IPv4.
        protocol_len, set_protocol_len: u8 @ 5;
        /// [`REQUEST`], [`REPLY`] or another operation.
        operation, set_operation: u16 @ 6;
        /// MAC of the sender.
        sender_mac, set_sender_mac: [u8; 6] @ 8;
        /// IPv4 address of the sender.
        sender, set_sender: [u8; 4] @ 14;
        /// MAC asked for.
        target_mac, set_target_mac: [u8; 6] @ 18;
        /// IPv4 address asked for.
        target, set_target: [u8; 4] @ 24;
    }
}

/// Hardware type of Ethernet.
pub const ETHERNET: u16 = 1;
/// Who has the target address?
pub const REQUEST: u16 = 1;
/// The sender has it.
pub const REPLY: u16 = 2;
