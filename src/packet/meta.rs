//! What is known of one packet: one cache line, filled once by decode, read by every stage.
//!
//! Facts only, no pointers: offsets into the frame, the tuple, where it came from and what was decided. Numbers are in host
//! order (they were converted by the wire views); addresses are the wire's bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `Meta::flow` of a packet without a flow entry.
pub const NO_FLOW: u32 = u32::MAX;
/// `Meta::rule` of a packet no rule has matched.
pub const NO_RULE: u16 = u16::MAX;
/// `Meta::port` of what the box itself sends, and `Meta::out` of what is for it.
pub const SELF_PORT: u8 = 254;
/// `Meta::out` of a packet without an egress.
pub const NO_PORT: u8 = u8::MAX;

/// Bits of [`Meta::flags`].
pub mod flag {
    /// The packet is IPv4.
    pub const IPV4: u16 = 0x0001;
    /// The packet is IPv6.
    pub const IPV6: u16 = 0x0002;
    /// The packet is ARP (RFC 826); `src` and `dst` hold the protocol addresses, `detail[0]` the operation.
    pub const ARP: u16 = 0x0004;
    /// One 802.1Q or 802.1ad tag at least, in the frame or stripped by the port; `vlan` holds the outer one.
    pub const VLAN: u16 = 0x0008;
    /// A first fragment: offset zero, more to follow.
    pub const FIRST_FRAGMENT: u16 = 0x0010;
    /// A fragment with offset above zero: no transport header in it, whatever its bytes look like.
    pub const LATER_FRAGMENT: u16 = 0x0020;
    /// `sport` and `dport` are ports (TCP, UDP, UDP-Lite, SCTP, DCCP ports; ICMP echo identifier in both).
    pub const PORTS: u16 = 0x0040;
    /// IPv4 options or IPv6 extension headers other than fragmentation are present.
    pub const OPTIONS: u16 = 0x0080;
    /// An ICMP or ICMPv6 error; the quoted packet begins 8 bytes behind `l4`.
    pub const ICMP_ERROR: u16 = 0x0100;
    /// The port has verified the TCP or UDP checksum.
    pub const L4_SUM_GOOD: u16 = 0x0200;
    /// The transport header was decoded: `detail` is valid.
    pub const L4: u16 = 0x0400;
    /// ICMP or ICMPv6 echo request or reply; `sport` and `dport` hold the identifier.
    pub const ECHO: u16 = 0x0800;
    /// How many VLAN tags the frame carries in its bytes (0 to 2), shifted by [`TAGS_SHIFT`].
    pub const TAGS: u16 = 0x3000;
    /// Shift of [`TAGS`].
    pub const TAGS_SHIFT: u32 = 12;
    /// A later fragment that follows its first: `proto` and `detail`, and with [`PORTS`] the ports, are the transport header's
    /// in the first one. Its own bytes hold none.
    pub const BORROWED: u16 = 0x4000;
}

/// Everything the pipeline knows of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Meta {
    /// Source address in wire order; IPv4 (and ARP sender) in the first four bytes, the rest zero.
    pub src: [u8; 16],
    /// Destination address, likewise.
    pub dst: [u8; 16],
    /// Source port, or the echo identifier, with `flag::PORTS`; else zero, but of what is neither IPv4 nor IPv6 its EtherType
    /// (behind the tags; below 0x600 the length of an 802.3 frame). Decoded no deeper than L2, the EtherType of every frame.
    pub sport: u16,
    /// Destination port, or the echo identifier. Zero without `flag::PORTS`.
    pub dport: u16,
    /// Hash of the tuple, equal for both directions (`steer`).
    pub hash: u32,
    /// `(entry << 1) | direction`, or `NO_FLOW`.
    pub flow: u32,
    /// Low 32 bits of the receiver's clock in nanoseconds.
    pub rx_time: u32,
    /// Slot of the rule that decided, or `NO_RULE`.
    pub rule: u16,
    /// Routing domain, or the wire of a `cross`.
    pub domain: u16,
    /// Outer VLAN id (12 bits) with `flag::VLAN`; priority bits are not part of it.
    pub vlan: u16,
    /// End of the network-layer packet in the frame: what lies behind is padding.
    pub end: u16,
    /// `flag::*` bits.
    pub flags: u16,
    /// Offset of the transport header behind the network header, in units of four bytes (extension headers included).
    pub l4_words: u8,
    /// Transport protocol (IANA number); of a later fragment the one its first fragment carries, as far as it says so itself or
    /// its first is known.
    pub proto: u8,
    /// TCP flags (CWR to FIN) and 0; or ICMP type and code.
    pub detail: [u8; 2],
    /// Port it arrived on, or `SELF_PORT`.
    pub port: u8,
    /// Port it leaves by, `SELF_PORT`, or `NO_PORT`.
    pub out: u8,
}

const _: () = assert!(size_of::<Meta>() == 64);

impl Meta {
    /// A packet nothing is known of.
    pub const UNKNOWN: Meta = Meta {
        src: [0; 16],
        dst: [0; 16],
        sport: 0,
        dport: 0,
        hash: 0,
        flow: NO_FLOW,
        rx_time: 0,
        rule: NO_RULE,
        domain: 0,
        vlan: 0,
        end: 0,
        flags: 0,
        l4_words: 0,
        proto: 0,
        detail: [0; 2],
        port: 0,
        out: NO_PORT,
    };

    /// True if all of `flags` are set.
    #[inline]
    pub fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// True if any of `flags` is set.
    #[inline]
    pub fn any(&self, flags: u16) -> bool {
        self.flags & flags != 0
    }

    /// The EtherType of a packet decoded to L3 or deeper; of an 802.3 frame its length, which is below 0x0600.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        match self.flags & (flag::IPV4 | flag::IPV6) {
            0 => self.sport,
            flag::IPV6 => 0x86dd,
            _ => 0x0800,
        }
    }

    /// Offset of the network header in the frame: behind the Ethernet header and up to two tags.
    #[inline]
    pub fn l3(&self) -> usize {
        14 + 4 * usize::from((self.flags & flag::TAGS) >> flag::TAGS_SHIFT)
    }

    /// Offset of the transport header in the frame.
    #[inline]
    pub fn l4(&self) -> usize {
        self.l3() + 4 * usize::from(self.l4_words)
    }

    /// Offset of the end of the network-layer packet in the frame.
    #[inline]
    pub fn end(&self) -> usize {
        usize::from(self.end)
    }

    /// The source as an address; `None` if the packet is not IP.
    pub fn source(&self) -> Option<IpAddr> {
        self.address(&self.src)
    }

    /// The destination as an address; `None` if the packet is not IP.
    pub fn destination(&self) -> Option<IpAddr> {
        self.address(&self.dst)
    }

    fn address(&self, bytes: &[u8; 16]) -> Option<IpAddr> {
        if self.any(flag::IPV4 | flag::ARP) {
            Some(IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])))
        } else if self.has(flag::IPV6) {
            Some(IpAddr::V6(Ipv6Addr::from(*bytes)))
        } else {
            None
        }
    }
}
