//! IPv6 (RFC 8200), its extension headers and the walk over their options.

use super::protocol;

view! {
    /// An IPv6 header.
    pub Ipv6, Ipv6Mut: 40 {
        /// Version (4 bits), traffic class (8), flow label (20).
        version_class_label, set_version_class_label: u32 @ 0;
        /// Bytes behind this header, extension headers included.
        payload_len, set_payload_len: u16 @ 4;
        /// Protocol number of what follows.
        next, set_next: u8 @ 6;
        /// Hop limit.
        hop_limit, set_hop_limit: u8 @ 7;
        /// Source address.
        source, set_source: [u8; 16] @ 8;
        /// Destination address.
        destination, set_destination: [u8; 16] @ 24;
    }
}

impl Ipv6<'_> {
    /// Version, 6 if the packet is what its EtherType says.
    #[inline(always)]
    pub fn version(self) -> u8 {
        self.0[0] >> 4
    }

    /// Traffic class: DSCP (upper six bits) and ECN (lower two).
    #[inline(always)]
    pub fn traffic_class(self) -> u8 {
        (self.version_class_label() >> 20) as u8
    }
}

view! {
    /// A fragment header (RFC 8200 section 4.5).
    pub Fragment, FragmentMut: 8 {
        /// Protocol number of what follows; of all fragments only the first one's counts.
        next, set_next: u8 @ 0;
        /// Offset in bytes (upper 13 bits, a multiple of eight) and [`MORE`].
        offset_more, set_offset_more: u16 @ 2;
        /// Identification, which the fragments of one packet share.
        id, set_id: u32 @ 4;
    }
}

/// More fragments follow.
pub const MORE: u16 = 1;

impl Fragment<'_> {
    /// Where the payload lies in the fragmented part of the packet, in bytes.
    #[inline(always)]
    pub fn offset(self) -> usize {
        usize::from(self.offset_more() & !7)
    }

    /// True if more fragments follow.
    #[inline(always)]
    pub fn more(self) -> bool {
        self.offset_more() & MORE != 0
    }
}

view! {
    /// What all extension headers begin with, the fragment header excepted.
    pub Extension, ExtensionMut: 2 {
        /// Protocol number of what follows.
        next, set_next: u8 @ 0;
        /// Length in the header's own unit: see [`Extension::len`].
        len_units, set_len_units: u8 @ 1;
    }
}

impl Extension<'_> {
    /// Bytes of the extension header, were it of `kind`: eight-byte units without the first (RFC 8200 section 4), or
    /// four-byte units without the first two for the authentication header (RFC 4302 section 2.2).
    #[inline(always)]
    pub fn len(self, kind: u8) -> usize {
        let units = usize::from(self.len_units());
        if kind == protocol::AH { (units + 2) * 4 } else { (units + 1) * 8 }
    }
}

/// True for the protocol numbers that are extension headers to be walked over. ESP is none: what follows it is secret.
#[inline]
pub fn is_extension(kind: u8) -> bool {
    use protocol::*;
    matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | AH | DESTINATION | MOBILITY | HIP | SHIM6)
}

/// Jumbo payload option (RFC 2675).
pub const JUMBO: u8 = 0xc2;
/// Router alert option (RFC 2711), in hop-by-hop options.
pub const ROUTER_ALERT: u8 = 5;

/// An option as [`options`] finds it: its type, and the bytes behind its length.
pub type Opt<'a> = (u8, &'a [u8]);

/// An option that is longer than the bytes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadOption;

/// The options of a hop-by-hop or destination options header, given the bytes behind its first two; Pad1 is skipped
/// (RFC 8200 section 4.2). An option that does not fit ends the walk with an error.
pub fn options(mut rest: &[u8]) -> impl Iterator<Item = Result<Opt<'_>, BadOption>> {
    std::iter::from_fn(move || {
        while let [0, behind @ ..] = rest {
            rest = behind;
        }
        let &[kind, ref behind @ ..] = rest else { return None };
        match behind.split_first().and_then(|(len, body)| body.split_at_checked(usize::from(*len))) {
            Some((body, behind)) => {
                rest = behind;
                Some(Ok((kind, body)))
            }
            None => {
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
    fn options_skip_padding() {
        // Router alert (RFC 2711), Pad1, PadN.
        let bytes = [5, 2, 0, 0, 0, 1, 1, 0];
        assert_eq!(options(&bytes).collect::<Vec<_>>(), [Ok((5, &[0, 0][..])), Ok((1, &[0][..]))]);
        for bad in [&[5][..], &[5, 1], &[0, 0, 5, 9, 1]] {
            assert_eq!(options(bad).collect::<Vec<_>>(), [Err(BadOption)]);
        }
    }

    #[test]
    fn lengths_by_kind() {
        let header = Extension::parse(&[17, 4]).expect("two bytes");
        assert_eq!((header.len(protocol::DESTINATION), header.len(protocol::AH)), (40, 24));
    }

    #[test]
    fn fragment_fields() {
        let header = [17, 0, 0x05, 0xa9, 1, 2, 3, 4];
        let header = Fragment::parse(&header).expect("eight bytes");
        assert_eq!((header.next(), header.offset(), header.more(), header.id()), (17, 0x5a8, true, 0x0102_0304));
    }
}
