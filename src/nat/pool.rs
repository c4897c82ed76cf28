//! Which worker owns a port of a translated address, and which port a new flow gets.
//!
//! Ports belong to workers in pairs, dealt in turn: `owner` is the same for all addresses and pools, so that ranges of rules
//! may overlap, and however narrow a range is, all workers have an even share of it. A pair is one even and one odd port, so
//! that a worker can keep the parity of any port (RFC 4787 REQ-4: RTP and RTCP). Identifiers of ICMP echo are dealt alike.

use std::ops::RangeInclusive;

/// The worker of `workers` that owns a port, or an echo identifier, of every translated address.
#[inline]
pub fn owner(port: u16, workers: usize) -> usize {
    usize::from(port >> 1) % workers.max(1)
}

/// Ports a rule may use unless it says otherwise.
pub const PORTS: RangeInclusive<u16> = 1024..=65535;
/// What flows from ports below 1024 get unless the rule says otherwise: a port below 1024 is to become one again (RFC 4787
/// REQ-3a), and below 512 is where servers listen.
pub const LOW: RangeInclusive<u16> = 512..=1023;

/// The ports of a range that are one worker's.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    first: u16,
    last: u16,
    /// Its first pair.
    pair: u32,
    /// How many pairs it has; the first and the last may lie in the range with one port only.
    pairs: u32,
    workers: u32,
}

impl Share {
    /// A worker's share of a range.
    pub fn new(range: &RangeInclusive<u16>, worker: usize, workers: usize) -> Share {
        let (worker, workers) = (worker as u32, workers.max(1) as u32);
        let (first, last) = (u32::from(range.start() >> 1), u32::from(range.end() >> 1));
        let pair = first + (worker + workers - first % workers) % workers;
        let pairs = if pair > last { 0 } else { (last - pair) / workers + 1 };
        Share { first: *range.start(), last: *range.end(), pair, pairs, workers }
    }

    /// True if there is no port in it.
    pub fn is_empty(&self) -> bool {
        self.pairs == 0
    }

    /// Places to look for ports in: two for each pair.
    pub fn places(&self) -> u32 {
        2 * self.pairs
    }

    /// The port in a place below `places`, if it is in the range.
    #[inline]
    pub fn at(&self, place: u32) -> Option<u16> {
        let port = 2 * (self.pair + (place >> 1) * self.workers) + (place & 1);
        let port = u16::try_from(port).ok()?;
        (self.first <= port && port <= self.last).then_some(port)
    }

    /// True if a port is in it.
    #[inline]
    pub fn contains(&self, port: u16) -> bool {
        let pair = u32::from(port >> 1);
        self.first <= port && port <= self.last && pair >= self.pair && (pair - self.pair).is_multiple_of(self.workers)
    }

    /// A port to try for a flow from port `wanted`: at the first attempt that port itself if it is in the share (RFC 4787
    /// section 4.2.1), then any, drawn anew each time (RFC 6056 section 3.3.2). `random` is secret and the flow's own; of the
    /// same parity as `wanted` if `parity` says so. Of few ports, all are tried one after the other.
    #[inline]
    pub fn candidate(&self, wanted: u16, parity: bool, random: u64, attempt: u32) -> Option<u16> {
        let kept = self.contains(wanted);
        if attempt == 0 && kept {
            return Some(wanted);
        }
        if self.is_empty() {
            return None;
        }
        let place = if self.pairs <= FEW {
            let (start, at) = ((random >> 32) as u32 % self.pairs, attempt - u32::from(kept));
            2 * ((start + at) % self.pairs) + (u32::from(wanted) ^ (at / self.pairs)) % 2
        } else {
            let drawn = scramble(random.wrapping_add(u64::from(attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            let place = (((drawn >> 32) * u64::from(self.places())) >> 32) as u32;
            if parity { place & !1 | u32::from(wanted & 1) } else { place }
        };
        // At an end of the range the other port of the pair may be the only one.
        self.at(place).or_else(|| self.at(place ^ 1))
    }
}

/// Pairs of a share that are all tried, by parity, within 32 attempts.
const FEW: u32 = 15;

/// SplitMix64's finisher: every bit of the result depends on every bit of the number.
#[inline]
pub fn scramble(number: u64) -> u64 {
    let z = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn shares_are_the_ports_a_worker_owns(a: u16, b: u16, workers in 1usize..9) {
            let range = a.min(b)..=a.max(b);
            let mut all = 0;
            for worker in 0..workers {
                let share = Share::new(&range, worker, workers);
                let ports: BTreeSet<u16> = (0..share.places()).filter_map(|place| share.at(place)).collect();
                let owned: BTreeSet<u16> = range.clone().filter(|port| owner(*port, workers) == worker).collect();
                prop_assert_eq!(&ports, &owned);
                prop_assert_eq!(share.is_empty(), owned.is_empty());
                prop_assert!([a, b, a ^ 1].iter().all(|port| share.contains(*port) == owned.contains(port)));
                all += ports.len();
            }
            prop_assert_eq!(all, range.len());
        }

        #[test]
        fn candidates_are_owned_keep_the_port_and_its_parity(wanted: u16, random: u64, workers in 1usize..9, worker in 0usize..9) {
            let worker = worker % workers;
            let share = Share::new(&PORTS, worker, workers);
            for attempt in 0..32 {
                let port = share.candidate(wanted, true, random, attempt).expect("a wide range");
                prop_assert!(PORTS.contains(&port) && owner(port, workers) == worker);
                prop_assert_eq!(port & 1, wanted & 1);
                if attempt == 0 && share.contains(wanted) {
                    prop_assert_eq!(port, wanted);
                }
            }
        }
    }

    #[test]
    fn every_port_of_a_small_range_is_drawn_at_some_time() {
        for range in [5001..=5008, 5000..=5299] {
            let share = Share::new(&range, 0, 1);
            let drawn: BTreeSet<u16> = (1..4000).filter_map(|n| share.candidate(9, false, n << 32, n as u32)).collect();
            assert_eq!(drawn, range.collect());
        }
        // Of few ports all are tried for one flow, those of its parity first.
        for (wanted, first, last) in [(9, 2001, 2029), (2004, 2000, 2029), (2029, 2002, 2015)] {
            let share = Share::new(&(first..=last), 0, 1);
            let tried: Vec<u16> = (0..32).filter_map(|n| share.candidate(wanted, true, 7 << 40, n)).collect();
            assert_eq!(tried.iter().copied().collect::<BTreeSet<u16>>(), (first..=last).collect());
            let alike = tried.iter().take_while(|port| *port & 1 == wanted & 1).count();
            assert!(alike >= usize::from(last - first) / 2, "{tried:?}");
        }
        assert_eq!(Share::new(&(7..=7), 0, 2).candidate(7, true, 1, 0), None, "it is the other worker's");
    }
}
