//! Internet checksums: full (RFC 1071) and incremental (RFC 1624), for IPv4, TCP, UDP, ICMP and ICMPv6.
//!
//! A one's complement sum does not care for byte order (RFC 1071 section 2 B), so bytes are added as the machine loads them
//! and only the folded result is turned. Checksums come and go as the numbers in their fields, in host order.

/// A running one's complement sum of 16-bit words.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes. Only the last addition may be of an odd number of them: it is padded with a zero.
    #[inline]
    pub fn bytes(mut self, bytes: &[u8]) -> Sum {
        // 32-bit words in 64-bit registers need no carry: no packet has 2^32 words. Eight lanes make vectors of it.
        let (blocks, rest) = bytes.as_chunks::<32>();
        let mut lanes = [0u64; 8];
        for block in blocks {
            for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let (words, tail) = rest.as_chunks::<4>();
        let mut sum: u64 = lanes.iter().sum();
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        if !tail.is_empty() {
            let mut last = [0; 4];
            last[..tail.len()].copy_from_slice(tail);
            sum += u64::from(u32::from_ne_bytes(last));
        }
        self.0 = add_carry(self.0, sum);
        self
    }

    /// Adds a number as it stands in a header.
    #[inline]
    pub fn word(self, word: u16) -> Sum {
        Sum(add_carry(self.0, u64::from(word.to_be())))
    }

    /// The sum folded to 16 bits, in host order.
    #[inline]
    pub fn fold(self) -> u16 {
        u16::from_be(fold(self.0))
    }

    /// The checksum: the complement of the sum.
    #[inline]
    pub fn finish(self) -> u16 {
        !self.fold()
    }
}

#[inline(always)]
fn add_carry(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// The checksum over bytes whose checksum field is zero: an IPv4 header, an ICMP message.
#[inline]
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum::default().bytes(bytes).finish()
}

/// True if bytes with their checksum in them are intact: an IPv4 header with options, an ICMP message.
#[inline]
pub fn is_good(bytes: &[u8]) -> bool {
    Sum::default().bytes(bytes).fold() == 0xffff
}

/// True if an IPv4 header without options is intact; the same as [`is_good`], faster, for a header that is not all zeros.
#[inline(always)]
pub fn header_is_good(header: &[u8; 20]) -> bool {
    let (words, _) = header.as_chunks::<4>();
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    // Folding preserves the remainder by 0xffff, so the fold of a sum that is not zero is 0xffff where the remainder is
    // zero; the compiler makes a multiplication of this.
    sum.is_multiple_of(0xffff)
}

/// The sum of the pseudo header in front of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1): `source` and
/// `destination` are both 4 or both 16 bytes, `len` is that of transport header and payload.
#[inline]
pub fn pseudo(source: &[u8], destination: &[u8], protocol: u8, len: usize) -> Sum {
    debug_assert!(source.len() == destination.len() && matches!(source.len(), 4 | 16));
    let sum = Sum::default().bytes(source).bytes(destination).word(u16::from(protocol));
    sum.word((len >> 16) as u16).word(len as u16)
}

/// The checksum of a TCP segment, ICMPv6 message or other transport whose checksum field is zero.
#[inline]
pub fn transport(pseudo: Sum, segment: &[u8]) -> u16 {
    pseudo.bytes(segment).finish()
}

/// The checksum of a UDP datagram whose checksum field is zero. A result of zero is sent as 0xffff, since zero says that there
/// is none (RFC 768).
#[inline]
pub fn udp(pseudo: Sum, datagram: &[u8]) -> u16 {
    match transport(pseudo, datagram) {
        0 => 0xffff,
        sum => sum,
    }
}

/// True if a TCP segment or ICMPv6 message with its checksum in it is intact.
#[inline]
pub fn transport_is_good(pseudo: Sum, segment: &[u8]) -> bool {
    pseudo.bytes(segment).fold() == 0xffff
}

/// True if a UDP datagram with its checksum in it is intact. One without (zero) is good over IPv4 (RFC 768) and bad over IPv6
/// (RFC 8200 section 8.1).
#[inline]
pub fn udp_is_good(pseudo: Sum, datagram: &[u8], ipv6: bool) -> bool {
    match datagram.get(6..8) {
        Some([0, 0]) => !ipv6,
        Some(_) => transport_is_good(pseudo, datagram),
        None => false,
    }
}

/// A checksum after changes to what it covers (RFC 1624 equation 3, which RFC 1141's lacked: HC' = ~(~HC + ~m + m')).
///
/// For a checksum that covers at least one word that is not zero, as all of ours do by their protocol or version field, the
/// result is what a full computation gives, also where RFC 1141 confuses +0 and -0.
#[derive(Clone, Copy, Debug)]
pub struct Update(Sum);

impl Update {
    /// Of the checksum that stands in a header.
    #[inline]
    pub fn of(checksum: u16) -> Update {
        Update(Sum::default().word(!checksum))
    }

    /// A 16-bit word changes.
    #[inline]
    pub fn word(self, from: u16, to: u16) -> Update {
        Update(self.0.word(!from).word(to))
    }

    /// A 32-bit number changes.
    #[inline]
    pub fn long(self, from: u32, to: u32) -> Update {
        self.word((from >> 16) as u16, (to >> 16) as u16).word(from as u16, to as u16)
    }

    /// Bytes change, an even number of them at an even place: an address.
    #[inline]
    pub fn bytes(self, from: &[u8], to: &[u8]) -> Update {
        debug_assert!(from.len() == to.len() && from.len().is_multiple_of(2));
        let old = Sum::default().bytes(from).finish();
        Update(self.0.word(old).bytes(to))
    }

    /// The new checksum of anything but UDP.
    #[inline]
    pub fn finish(self) -> u16 {
        self.0.finish()
    }

    /// The new checksum of UDP, where `checksum` was the old one: none stays none, and zero is sent as 0xffff (RFC 768).
    #[inline]
    pub fn finish_udp(self, checksum: u16) -> u16 {
        match (checksum, self.0.finish()) {
            (0, _) => 0,
            (_, 0) => 0xffff,
            (_, sum) => sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 section 4.1, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn examples_of_the_standards() {
        // RFC 1071 section 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        // RFC 1624 section 4: 0x5555 becomes 0x3285 under a checksum of 0xdd2f; RFC 1141 gives 0xffff.
        assert_eq!(Update::of(0xdd2f).word(0x5555, 0x3285).finish(), 0x0000);
        let header = *b"\x45\x00\x00\x73\x00\x00\x40\x00\x40\x11\xb8\x61\xc0\xa8\x00\x01\xc0\xa8\x00\xc7";
        assert!(header_is_good(&header) && is_good(&header));
    }

    #[test]
    fn udp_knows_zero() {
        let (source, destination) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let mut datagram = [0, 1, 0, 2, 0, 10, 0, 0, 0, 0];
        let pseudo = || pseudo(&source, &destination, 17, 10);
        // A payload that makes the sum come out as zero.
        let sum = transport(pseudo(), &datagram);
        datagram[8..].copy_from_slice(&sum.to_be_bytes());
        assert_eq!((transport(pseudo(), &datagram), udp(pseudo(), &datagram)), (0, 0xffff));
        assert!(udp_is_good(pseudo(), &datagram, false) && !udp_is_good(pseudo(), &datagram, true));
        datagram[6..8].copy_from_slice(&[0xff; 2]);
        assert!(udp_is_good(pseudo(), &datagram, true));
        assert!(!udp_is_good(pseudo(), &datagram[..7], false));
        assert_eq!(Update::of(0).word(1, 2).finish_udp(0), 0);
        assert_eq!(Update::of(0xdd2f).word(0x5555, 0x3285).finish_udp(0xdd2f), 0xffff);
    }

    proptest! {
        #[test]
        fn full_is_the_reference(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(checksum(&bytes), reference(&bytes));
            let whole = bytes.len() & !1;
            let split = (whole / 2) & !1;
            prop_assert_eq!(Sum::default().bytes(&bytes[..split]).bytes(&bytes[split..]).finish(), reference(&bytes));
        }

        #[test]
        fn headers_are_good_by_either_check(mut header in any::<[u8; 20]>(), repair in any::<bool>()) {
            header[0] |= 0x40;
            if repair {
                header[10..12].fill(0);
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                prop_assert!(is_good(&header));
            }
            prop_assert_eq!(header_is_good(&header), is_good(&header));
        }

        // Values near all ones and all zeros are where one's complement has two zeros.
        #[test]
        fn incremental_is_full(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 24..=24),
            at in 0..8usize,
            to in any::<[u8; 8]>(),
            extreme in 0..3u8,
        ) {
            let mut before = bytes;
            before[0] |= 0x40;
            let mut after = before.clone();
            let (at, to) = (at * 2 + 2, match extreme { 0 => [0; 8], 1 => [0xff; 8], _ => to });
            let (from, len) = (before[at..at + 6].to_vec(), 6);
            after[at..at + len].copy_from_slice(&to[..len]);
            let updated = Update::of(checksum(&before)).bytes(&from, &to[..len]).finish();
            prop_assert_eq!(updated, checksum(&after));
            let word = |bytes: &[u8], i: usize| u16::from_be_bytes([bytes[i], bytes[i + 1]]);
            let long = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let updated = Update::of(checksum(&before)).word(word(&from, 0), word(&to, 0));
            prop_assert_eq!(updated.long(long(&from[2..]), long(&to[2..])).finish(), checksum(&after));
        }
    }
}
