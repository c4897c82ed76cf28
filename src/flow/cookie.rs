//! SYN cookies: a SYN-ACK whose sequence number holds all that must be remembered of the SYN, so that nothing is.
//!
//! The sequence number is 3 bits of the maximum segment size, 1 bit of the time, and 28 bits of a keyed hash (SipHash-2-4)
//! over the tuple, where it is valid, the client's number, the size and the time in slots of 64 s. A cookie is good in its
//! slot and the next, so for 64 to 128 s. Who does not see the SYN-ACK guesses right once in 2^28 segments.
//!
//! Window scale and SACK go where the client's timestamps carry them: into the lowest bits of the timestamp it will echo.
//! They are not signed: who changes them on the way harms his own connection. ECN is not offered: whether the server does
//! it is not known yet.

use siphasher::sip::SipHasher24;

use crate::packet::Meta;

/// Sizes that a cookie can tell (RFC 9293 section 3.7.1): the least that stacks accept, IPv4's and IPv6's defaults, tunnels,
/// and Ethernet with IPv6, with IPv4, and with jumbo frames.
const SIZES: [u16; 8] = [216, 536, 1220, 1360, 1400, 1440, 1460, 8940];

/// Nanoseconds of a slot, as a shift of its seconds.
const SLOT: u64 = 64 * 1_000_000_000;
/// Bits of the hash.
const HASH: u32 = (1 << 28) - 1;

/// The key of all cookies of an appliance.
#[derive(Clone, Copy)]
pub struct Cookies(u64, u64);

impl std::fmt::Debug for Cookies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookies")
    }
}

impl Cookies {
    /// A key that follows from a secret of the appliance's, the same in all workers.
    pub fn of(secret: [u64; 4]) -> Cookies {
        let [a, b, c, d] = secret;
        let hasher = SipHasher24::new_with_keys(a, b);
        let half = |n: u64| hasher.hash(&[c.to_le_bytes(), d.to_le_bytes(), n.to_le_bytes()].concat());
        Cookies(half(0), half(1))
    }

    /// A given key.
    pub fn keyed(key: [u64; 2]) -> Cookies {
        Cookies(key[0], key[1])
    }

    /// The sequence number for the answer to a SYN with the facts `syn` and the number `sequence`, whose sender takes segments
    /// of `mss` bytes. `domain` says where its addresses are valid; `now` is Unix time in nanoseconds.
    pub fn make(&self, syn: &Meta, domain: u32, sequence: u32, mss: u16, now: u64) -> u32 {
        let size = SIZES.iter().rposition(|size| *size <= mss).unwrap_or(0);
        self.cookie(syn, domain, sequence, size, now / SLOT)
    }

    /// The segment size in a cookie, if it is one of ours and not too old. `ack` are the facts of a segment of the client, and
    /// `sequence` is the number its SYN had.
    pub fn check(&self, ack: &Meta, domain: u32, sequence: u32, cookie: u32, now: u64) -> Option<u16> {
        let size = (cookie >> 29) as usize;
        let now = now / SLOT;
        // The slot's lowest bit tells which of the two it can be.
        let slot = now - ((now ^ u64::from(cookie >> 28)) & 1);
        (self.cookie(ack, domain, sequence, size, slot) == cookie).then(|| SIZES[size])
    }

    fn cookie(&self, meta: &Meta, domain: u32, sequence: u32, size: usize, slot: u64) -> u32 {
        let mut text = [0; 53];
        text[..16].copy_from_slice(&meta.src);
        text[16..32].copy_from_slice(&meta.dst);
        text[32..34].copy_from_slice(&meta.sport.to_le_bytes());
        text[34..36].copy_from_slice(&meta.dport.to_le_bytes());
        text[36..40].copy_from_slice(&domain.to_le_bytes());
        text[40..44].copy_from_slice(&sequence.to_le_bytes());
        text[44..52].copy_from_slice(&slot.to_le_bytes());
        text[52] = size as u8;
        let hash = SipHasher24::new_with_keys(self.0, self.1).hash(&text);
        (size as u32) << 29 | (slot as u32 & 1) << 28 | hash as u32 & HASH
    }
}

/// What a client offers in its SYN besides its segment size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// The shift of its windows, at most 14 (RFC 7323 section 2.3).
    pub scale: Option<u8>,
    /// It takes selective acknowledgments.
    pub sack: bool,
}

/// Lowest bits of a timestamp that hold an offer: four of the scale, one of SACK.
const OFFER: u32 = 0x1f;
const NO_SCALE: u32 = 0x0f;
const SACK: u32 = 0x10;

impl Offer {
    /// The timestamp that carries it: milliseconds, up to 32 behind the clock.
    pub fn stamp(self, now: u64) -> u32 {
        let clock = (now / 1_000_000) as u32;
        let bits = self.scale.map_or(NO_SCALE, |scale| u32::from(scale.min(14))) | if self.sack { SACK } else { 0 };
        let stamp = clock & !OFFER | bits;
        if bits > clock & OFFER { stamp.wrapping_sub(OFFER + 1) } else { stamp }
    }

    /// What the timestamp carried, as the client echoes it.
    pub fn of_stamp(stamp: u32) -> Offer {
        let scale = stamp & NO_SCALE;
        Offer { scale: (scale != NO_SCALE).then_some(scale as u8), sack: stamp & SACK != 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::meta::flag;

    const NOW: u64 = 1_700_000_000_000_000_000;

    fn facts() -> Meta {
        let mut meta = Meta { flags: flag::IPV4 | flag::PORTS, sport: 40_000, dport: 443, ..Meta::UNKNOWN };
        meta.src[..4].copy_from_slice(&[10, 0, 0, 5]);
        meta.dst[..4].copy_from_slice(&[192, 0, 2, 7]);
        meta
    }

    #[test]
    fn the_hash_is_siphash() {
        // Aumasson and Bernstein, SipHash, appendix A.
        let key = [u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7]), u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15])];
        let text: Vec<u8> = (0..15).collect();
        assert_eq!(SipHasher24::new_with_keys(key[0], key[1]).hash(&text), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn cookies_do_not_change_between_versions() {
        let cookies = Cookies::keyed([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        let made: Vec<u32> = [536, 1460, 9000].map(|mss| cookies.make(&facts(), 1, 0xdead_beef, mss, NOW)).to_vec();
        assert_eq!(made.iter().map(|cookie| cookie >> 29).collect::<Vec<_>>(), [1, 6, 7]);
        assert!(made.iter().all(|cookie| (cookie >> 28) & 1 == (NOW / SLOT) as u32 & 1));
        for (cookie, mss) in made.iter().zip([536, 1460, 8940]) {
            assert_eq!(cookies.check(&facts(), 1, 0xdead_beef, *cookie, NOW), Some(mss));
        }
    }

    #[test]
    fn a_cookie_lives_for_its_slot_and_the_next() {
        let cookies = Cookies::of([1, 2, 3, 4]);
        let begin = NOW / SLOT * SLOT;
        let cookie = cookies.make(&facts(), 0, 7, 1400, begin + 5);
        for (now, good) in [(begin, true), (begin + 2 * SLOT - 1, true), (begin + 2 * SLOT, false), (begin - 1, false)]
        {
            assert_eq!(cookies.check(&facts(), 0, 7, cookie, now).is_some(), good, "{now}");
        }
        assert_eq!(cookies.check(&facts(), 0, 7, cookie, begin + 4 * SLOT), None, "the same bit, another slot");
    }

    proptest! {
        #[test]
        fn what_was_made_is_known_and_nothing_else(
            secret in any::<[u64; 4]>(), src in any::<[u8; 16]>(), ports in any::<(u16, u16)>(), sequence in any::<u32>(), mss in any::<u16>(),
            now in 200_000_000_000u64..u64::MAX / 2, change in 0..7usize, bit in 0..32u32,
        ) {
            let cookies = Cookies::of(secret);
            let mut meta = facts();
            meta.src = src;
            (meta.sport, meta.dport) = ports;
            let cookie = cookies.make(&meta, 3, sequence, mss, now);
            let size = cookies.check(&meta, 3, sequence, cookie, now).expect("ours");
            prop_assert!(size <= mss.max(216) && SIZES.iter().all(|other| *other <= size || *other > mss));
            prop_assert_eq!(cookies.check(&meta, 3, sequence, cookie, now + SLOT), Some(size));
            // One bit of anything else, and it is not ours (but for one guess in 2^28).
            let (mut meta, mut domain, mut sequence, mut cookie, mut key) = (meta, 3, sequence, cookie, cookies);
            match change {
                0 => meta.src[bit as usize % 16] ^= 1 << (bit % 8),
                1 => meta.dst[bit as usize % 16] ^= 1 << (bit % 8),
                2 => meta.sport ^= 1 << (bit % 16),
                3 => meta.dport ^= 1 << (bit % 16),
                4 => domain ^= 1 << bit,
                5 => sequence ^= 1 << bit,
                _ => cookie ^= 1 << bit,
            }
            prop_assert_eq!(key.check(&meta, domain, sequence, cookie, now), None);
            key.0 ^= 1;
            prop_assert_eq!(key.check(&meta, domain, sequence, cookie, now), None);
        }

        #[test]
        fn stamps_carry_the_offer_and_stay_near_the_clock(
            scale in prop::option::of(0..15u8), sack in any::<bool>(), now in 1_000_000_000_000u64..u64::MAX / 2,
        ) {
            let offer = Offer { scale, sack };
            let stamp = offer.stamp(now);
            prop_assert_eq!(Offer::of_stamp(stamp), offer);
            prop_assert!(((now / 1_000_000) as u32).wrapping_sub(stamp) < 32);
        }
    }
}
