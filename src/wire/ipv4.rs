//! IPv4 (RFC 791) and the walk over its options.

view! {
    /// An IPv4 header without its options.
    pub Ipv4, Ipv4Mut: 20 {
        /// Version (upper four bits) and header length in words (lower four).
        version_ihl, set_version_ihl: u8 @ 0;
        /// DSCP (upper six bits) and ECN (lower two).
        tos, set_tos: u8 @ 1;
        /// Bytes of header and payload.
        total_len, set_total_len: u16 @ 2;
        /// Identification, which the fragments of one datagram share.
        id, set_id: u16 @ 4;
        /// Flags ([`DF`], [`MF`]) and the fragment offset ([`OFFSET`]).
        fragment, set_fragment: u16 @ 6;
        /// Time to live.
        ttl, set_ttl: u8 @ 8;
        /// Protocol number.
        protocol, set_protocol: u8 @ 9;
        /// Header checksum.
        checksum, set_checksum: u16 @ 10;
        /// Source address.
        source, set_source: [u8; 4] @ 12;
        /// Destination address.
        destination, set_destination: [u8; 4] @ 16;
    }
}

/// Do not fragment.
pub const DF: u16 = 0x4000;
/// More fragments follow.
pub const MF: u16 = 0x2000;
/// The fragment offset, in units of eight bytes.
pub const OFFSET: u16 = 0x1fff;

impl Ipv4<'_> {
    /// Version, 4 if the packet is what its EtherType says.
    #[inline(always)]
    pub fn version(self) -> u8 {
        self.version_ihl() >> 4
    }

    /// Bytes of the header, options included, as it claims.
    #[inline(always)]
    pub fn header_len(self) -> usize {
        usize::from(self.version_ihl() & 0xf) * 4
    }

    /// Where the payload lies in the whole datagram, in bytes.
    #[inline(always)]
    pub fn offset(self) -> usize {
        usize::from(self.fragment() & OFFSET) * 8
    }
}

/// An option as [`options`] finds it: its kind, and the bytes behind its length.
pub type Opt<'a> = (u8, &'a [u8]);

/// The options in the bytes behind the fixed header, up to the end-of-options mark; no-operations are skipped. An option
/// that does not fit ends the walk with an error.
pub fn options(bytes: &[u8]) -> impl Iterator<Item = Result<Opt<'_>, BadOption>> {
    located(bytes).map(|(_, option)| option)
}

/// An option that is longer than the bytes there are, or shorter than its own head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadOption;

/// [`options`], each with the offset of its first byte. Options of IPv4 and TCP have one form: 0 ends them, 1 is padding, all
/// others carry their length (RFC 791 section 3.1, RFC 9293 section 3.1).
pub fn located(bytes: &[u8]) -> impl Iterator<Item = (usize, Result<Opt<'_>, BadOption>)> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        while let [1, behind @ ..] = rest {
            rest = behind;
        }
        let at = bytes.len() - rest.len();
        let &[kind, ref behind @ ..] = rest else { return None };
        if kind == 0 {
            return None;
        }
        let option = behind
            .split_first()
            .filter(|(len, _)| **len >= 2)
            .and_then(|(len, body)| body.split_at_checked(usize::from(*len) - 2));
        rest = option.map_or(&[], |(_, behind)| behind);
        Some((at, option.map(|(body, _)| (kind, body)).ok_or(BadOption)))
    })
}

/// Kinds of options.
pub mod option {
    /// Loose source route (RFC 791 section 3.1).
    pub const LOOSE_SOURCE_ROUTE: u8 = 131;
    /// Strict source route (RFC 791 section 3.1).
    pub const STRICT_SOURCE_ROUTE: u8 = 137;
    /// Router alert, two bytes (RFC 2113).
    pub const ROUTER_ALERT: u8 = 148;
    /// Set in the kinds of those that every fragment carries (RFC 791 section 3.1).
    pub const COPIED: u8 = 0x80;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_end_at_the_mark_and_at_the_first_bad_one() {
        // Router alert (RFC 2113), padding, end, rubbish.
        let bytes = [0x94, 4, 0, 0, 1, 1, 0, 0xff];
        assert_eq!(options(&bytes).collect::<Vec<_>>(), [Ok((0x94, &[0, 0][..]))]);
        for bad in [&[7][..], &[7, 0], &[7, 1], &[7, 3], &[1, 68, 40, 5]] {
            assert_eq!(options(bad).last(), Some(Err(BadOption)), "{bad:?}");
            assert_eq!(options(bad).count(), 1);
        }
        assert_eq!(options(&[1, 1, 1]).count(), 0);
    }

    #[test]
    fn fields_of_a_captured_header() {
        // RFC 1071-style textbook header: 192.168.0.1 > 192.168.0.199, UDP, TTL 64, DF.
        let bytes = *b"\x45\x00\x00\x73\x00\x00\x40\x00\x40\x11\xb8\x61\xc0\xa8\x00\x01\xc0\xa8\x00\xc7";
        let header = Ipv4::parse(&bytes).expect("20 bytes");
        assert_eq!((header.version(), header.header_len(), header.total_len()), (4, 20, 0x73));
        assert_eq!((header.fragment(), header.offset(), header.ttl()), (DF, 0, 64));
        assert_eq!((header.protocol(), header.checksum()), (17, 0xb861));
        assert_eq!((header.source(), header.destination()), ([192, 168, 0, 1], [192, 168, 0, 199]));
    }
}
