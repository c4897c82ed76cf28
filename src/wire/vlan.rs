//! 802.1Q and 802.1ad tags: the four bytes between a tag's EtherType and what it tags.

view! {
    /// A tag, behind the EtherType that announces it.
    pub Vlan, VlanMut: 4 {
        /// Tag control information: priority (3 bits), drop eligible (1), VLAN id (12).
        control, set_control: u16 @ 0;
        /// EtherType of what follows.
        ethertype, set_ethertype: u16 @ 2;
    }
}

/// Bits of the tag control information that are the VLAN id.
pub const ID: u16 = 0x0fff;
