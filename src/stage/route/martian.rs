//! What kind of addresses a packet has, as far as that alone says what may become of it.
//!
//! Special-purpose addresses are those that RFC 6890 calls not forwardable, but for the prefixes that are reserved for
//! documentation: every example uses them.

use crate::packet::Meta;
use crate::packet::meta::flag;

/// What the addresses say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Routes decide.
    Plain,
    /// The source belongs to a link, and to the link it must stay.
    LinkSource,
    /// Nothing can come from there.
    BadSource,
    /// Nothing can go there.
    BadDestination,
    /// To an address of a link.
    LinkDestination,
    /// To a group, or everybody, on the link.
    LinkGroup,
    /// To a group beyond the link.
    Group,
}

/// By the first byte of an IPv4 address: true if it may be special.
const LOOK: [bool; 256] = {
    let mut look = [false; 256];
    let special = [0, 127, 169, 192];
    let mut at = 0;
    while at < special.len() {
        look[special[at]] = true;
        at += 1;
    }
    let mut first = 224;
    while first < 256 {
        look[first] = true;
        first += 1;
    }
    look
};

/// True if routes decide, as far as a glance tells.
#[inline(always)]
pub fn is_plain(meta: &Meta) -> bool {
    match meta.flags & flag::IPV4 != 0 {
        true => is_plain_v4(&meta.src) && is_plain_v4(&meta.dst),
        false => is_plain_v6(&meta.src) && is_plain_v6(&meta.dst),
    }
}

/// Most of 192/8 and 169/8 is like any other.
#[inline(always)]
fn is_plain_v4(address: &[u8; 16]) -> bool {
    let [a, b, c, ..] = *address;
    !LOOK[usize::from(a)] || (a == 192 && [b, c] != [0, 0]) || (a == 169 && b != 254)
}

/// Global unicast but for 2001::/24, which is looked at more closely, and unique local (RFC 4193).
#[inline(always)]
fn is_plain_v6(address: &[u8; 16]) -> bool {
    let [a, b, c, ..] = *address;
    matches!(a, 0x20..=0x3f | 0xfc | 0xfd) && [a, b, c] != [0x20, 0x01, 0x00]
}

/// What kind of addresses these are.
#[inline]
pub fn kind(meta: &Meta) -> Kind {
    match meta.has(flag::IPV4) {
        _ if is_plain(meta) => Kind::Plain,
        true => special_v4(meta),
        false => special_v6(meta),
    }
}

/// True for an IPv6 address of a link (RFC 4291 section 2.5.6).
pub fn is_link_local(address: &[u8; 16]) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

#[cold]
fn special_v4(meta: &Meta) -> Kind {
    let (source, destination) = (&meta.src[..4], &meta.dst[..4]);
    let to_link = destination == [255; 4] || destination[..3] == [224, 0, 0];
    match *source {
        // RFC 1122 section 3.2.1.3 (a): a host that does not know its address yet says so to its link.
        [0, 0, 0, 0] if to_link => return Kind::LinkGroup,
        [0 | 127 | 224..=255, ..] => return Kind::BadSource,
        // RFC 6890 section 2.2.2: IETF protocol assignments; the first eight are forwarded (RFC 7335).
        [192, 0, 0, 8..=255] => return Kind::BadSource,
        _ => {}
    }
    match *destination {
        [0 | 127, ..] | [192, 0, 0, 8..=255] => Kind::BadDestination,
        _ if to_link => Kind::LinkGroup,
        [224..=239, ..] => Kind::Group,
        [240..=255, ..] => Kind::BadDestination,
        // RFC 3927 section 7: neither such a source nor such a destination is forwarded.
        [169, 254, ..] => Kind::LinkDestination,
        _ if source[..2] == [169, 254] => Kind::LinkSource,
        _ => Kind::Plain,
    }
}

#[cold]
fn special_v6(meta: &Meta) -> Kind {
    let (source, destination) = (u128::from_be_bytes(meta.src), u128::from_be_bytes(meta.dst));
    let within = |address: u128, prefix: u128, len: u32| (address ^ prefix) >> (128 - len) == 0;
    // RFC 4291: loopback, IPv4-mapped, the unspecified address; RFC 6666: the discard prefix is forwarded.
    let bad =
        |address: u128| address <= 1 || within(address, 0xffff << 32, 96) || within(address, 0x2001_0010 << 96, 28);
    if source >> 120 == 0xff || (bad(source) && !(source == 0 && destination >> 120 == 0xff)) {
        return Kind::BadSource;
    }
    if destination >> 120 == 0xff {
        // RFC 4291 section 2.7: the scope is the second byte's lower half.
        return match meta.dst[1] & 0x0f {
            0 | 1 => Kind::BadDestination,
            2 => Kind::LinkGroup,
            _ if source == 0 => Kind::BadSource,
            _ => Kind::Group,
        };
    }
    match (is_link_local(&meta.src), is_link_local(&meta.dst)) {
        _ if bad(destination) => Kind::BadDestination,
        (_, true) => Kind::LinkDestination,
        (true, false) => Kind::LinkSource,
        (false, false) => Kind::Plain,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn of(source: &str, destination: &str) -> Kind {
        let mut meta = Meta::UNKNOWN;
        for (text, bytes) in [(source, &mut meta.src), (destination, &mut meta.dst)] {
            match text.parse().expect("an address") {
                IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => *bytes = address.octets(),
            }
        }
        meta.flags = if source.contains(':') { flag::IPV6 } else { flag::IPV4 };
        kind(&meta)
    }

    #[test]
    fn kinds_of_addresses() {
        for (source, destination, kind) in [
            ("10.0.0.1", "198.51.100.7", Kind::Plain),
            ("192.0.2.1", "203.0.113.7", Kind::Plain),
            ("192.0.0.1", "198.18.0.1", Kind::Plain),
            ("192.0.0.9", "10.0.0.1", Kind::BadSource),
            ("0.0.0.0", "255.255.255.255", Kind::LinkGroup),
            ("0.0.0.0", "10.0.0.1", Kind::BadSource),
            ("0.1.2.3", "255.255.255.255", Kind::BadSource),
            ("127.0.0.1", "10.0.0.1", Kind::BadSource),
            ("224.0.0.5", "10.0.0.1", Kind::BadSource),
            ("255.255.255.255", "10.0.0.1", Kind::BadSource),
            ("10.0.0.1", "127.0.0.1", Kind::BadDestination),
            ("10.0.0.1", "0.0.0.0", Kind::BadDestination),
            ("10.0.0.1", "240.0.0.1", Kind::BadDestination),
            ("10.0.0.1", "224.0.0.5", Kind::LinkGroup),
            ("10.0.0.1", "224.0.1.5", Kind::Group),
            ("10.0.0.1", "239.1.1.1", Kind::Group),
            ("169.254.1.1", "10.0.0.1", Kind::LinkSource),
            ("10.0.0.1", "169.254.1.1", Kind::LinkDestination),
            ("2001:db8::1", "2001:db8:1::1", Kind::Plain),
            ("fd00::1", "2001:db8:1::1", Kind::Plain),
            ("::", "ff02::1", Kind::LinkGroup),
            ("::", "ff05::1", Kind::BadSource),
            ("::", "2001:db8::1", Kind::BadSource),
            ("::1", "2001:db8::1", Kind::BadSource),
            ("::ffff:10.0.0.1", "2001:db8::1", Kind::BadSource),
            ("ff02::1", "2001:db8::1", Kind::BadSource),
            ("2001:db8::1", "::1", Kind::BadDestination),
            ("2001:db8::1", "::ffff:10.0.0.1", Kind::BadDestination),
            ("2001:db8::1", "ff01::1", Kind::BadDestination),
            ("2001:db8::1", "ff02::5", Kind::LinkGroup),
            ("2001:db8::1", "ff0e::5", Kind::Group),
            ("fe80::1", "ff02::5", Kind::LinkGroup),
            ("fe80::1", "fe80::2", Kind::LinkDestination),
            ("fe80::1", "2001:db8::2", Kind::LinkSource),
            ("2001:db8::1", "fe80::2", Kind::LinkDestination),
            ("64:ff9b::1", "2001:db8::2", Kind::Plain),
            // Deprecated identifiers (RFC 4843), and their neighbors that are forwarded (RFC 4380, RFC 7343).
            ("2001:10::1", "2001:db8::2", Kind::BadSource),
            ("2001:db8::1", "2001:1f::1", Kind::BadDestination),
            ("2001::1", "2001:20::1", Kind::Plain),
        ] {
            assert_eq!(of(source, destination), kind, "{source} > {destination}");
        }
    }
}
