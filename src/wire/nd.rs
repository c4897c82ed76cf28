//! Neighbor discovery for IPv6 (RFC 4861): messages and their options. A message's first eight bytes are
//! [`Icmpv6`](super::icmpv6::Icmpv6)'s.

view! {
    /// A neighbor solicitation or advertisement (RFC 4861 sections 4.3 and 4.4), ICMPv6 header included.
    pub Neighbor, NeighborMut: 24 {
        /// Message type.
        kind, set_kind: u8 @ 0;
        /// Code; zero.
        code, set_code: u8 @ 1;
        /// Checksum over pseudo header and message.
        checksum, set_checksum: u16 @ 2;
        /// Of an advertisement: [`ROUTER`], [`SOLICITED`], [`OVERRIDE`].
        flags, set_flags: u8 @ 4;
        /// The address asked for or told of.
        target, set_target: [u8; 16] @ 8;
    }
}

/// The sender is a router.
pub const ROUTER: u8 = 0x80;
/// The advertisement answers a solicitation.
pub const SOLICITED: u8 = 0x40;
/// The advertisement counts more than what is known.
pub const OVERRIDE: u8 = 0x20;

view! {
    /// A router advertisement (RFC 4861 section 4.2), ICMPv6 header included.
    pub Router, RouterMut: 16 {
        /// Message type.
        kind, set_kind: u8 @ 0;
        /// Code; zero.
        code, set_code: u8 @ 1;
        /// Checksum over pseudo header and message.
        checksum, set_checksum: u16 @ 2;
        /// Hop limit hosts should use; zero says nothing.
        hop_limit, set_hop_limit: u8 @ 4;
        /// [`MANAGED`], [`OTHER`].
        flags, set_flags: u8 @ 5;
        /// For how many seconds it is a default router; zero if it is none.
        lifetime, set_lifetime: u16 @ 6;
        /// For how many milliseconds a neighbor counts as reachable; zero says nothing.
        reachable, set_reachable: u32 @ 8;
        /// Milliseconds between solicitations; zero says nothing.
        retransmit, set_retransmit: u32 @ 12;
    }
}

/// Addresses come by DHCPv6.
pub const MANAGED: u8 = 0x80;
/// Other settings come by DHCPv6.
pub const OTHER: u8 = 0x40;

view! {
    /// A prefix information option (RFC 4861 section 4.6.2).
    pub Prefix, PrefixMut: 32 {
        /// Option type, [`PREFIX`].
        kind, set_kind: u8 @ 0;
        /// Units of eight bytes: 4.
        units, set_units: u8 @ 1;
        /// Bits of the prefix.
        bits, set_bits: u8 @ 2;
        /// [`ON_LINK`], [`AUTONOMOUS`].
        flags, set_flags: u8 @ 3;
        /// Seconds for which it is on the link.
        valid, set_valid: u32 @ 4;
        /// Seconds for which addresses made of it are preferred.
        preferred, set_preferred: u32 @ 8;
        /// The prefix.
        prefix, set_prefix: [u8; 16] @ 16;
    }
}

/// Addresses under the prefix are neighbors.
pub const ON_LINK: u8 = 0x80;
/// Hosts may make addresses of the prefix (RFC 4862).
pub const AUTONOMOUS: u8 = 0x40;

/// Option: link-layer address of the sender.
pub const SOURCE_MAC: u8 = 1;
/// Option: link-layer address of the target.
pub const TARGET_MAC: u8 = 2;
/// Option: [`Prefix`].
pub const PREFIX: u8 = 3;
/// Option: MTU of the link.
pub const MTU: u8 = 5;
/// Option: recursive DNS servers (RFC 8106 section 5.1).
pub const DNS: u8 = 25;

/// An option whose length is zero or more than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadOption;

/// The options behind a message's fixed part: type, and the bytes behind its length (RFC 4861 section 4.6). One that is bad
/// ends the walk with an error.
pub fn options(mut rest: &[u8]) -> impl Iterator<Item = Result<(u8, &[u8]), BadOption>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let len = rest.get(1).map_or(0, |units| usize::from(*units) * 8);
        match rest.split_at_checked(len) {
            Some(([kind, _, body @ ..], behind)) => {
                rest = behind;
                Some(Ok((*kind, body)))
            }
            _ => {
                rest = &[];
                Some(Err(BadOption))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_solicitation() {
        let bytes = [1, 1, 2, 0, 0, 0, 0, 9, 14, 1, 1, 2, 3, 4, 5, 6];
        let all: Vec<_> = options(&bytes).collect();
        assert_eq!(all, [Ok((1, &[2, 0, 0, 0, 0, 9][..])), Ok((14, &[1, 2, 3, 4, 5, 6][..]))]);
        for bad in [&[1][..], &[1, 0], &[1, 0, 0, 0, 0, 0, 0, 0], &[1, 1, 0, 0, 0, 0, 0], &[1, 2, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(options(bad).collect::<Vec<_>>(), [Err(BadOption)], "{bad:?}");
        }
        assert_eq!(options(&bytes[..9]).collect::<Vec<_>>().last(), Some(&Err(BadOption)));
    }
}
