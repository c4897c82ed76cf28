//! A token bucket: rte_meter's single rate three color marker (RFC 2697), color blind and without an excess burst, so that
//! green passes and red does not.
//!
//! The profile is filled here and not by `rte_meter_srtcm_profile_config`, which would measure time in TSC cycles and round
//! the rate to them. The marker's check takes time in any unit as long as the profile uses the same: ours is the turn's
//! nanoseconds. Tokens are 1/64,000 of what is metered and come every 15,625 ns, so that the tokens per period are the rate
//! itself: nothing is rounded.
#![allow(unsafe_code)]

use dpdk_sys::{fg_srtcm_check, rte_meter_srtcm, rte_meter_srtcm_profile};

/// Tokens for one byte or packet.
const SCALE: u64 = 64_000;
/// Nanoseconds between two updates: a second's worth of tokens over `SCALE`.
const PERIOD: u64 = 1_000_000_000 / SCALE;
/// The most that can be taken at once.
pub const MOST: u32 = (u32::MAX as u64 / SCALE) as u32;

/// A bucket of tokens.
#[derive(Clone)]
pub struct Meter {
    state: rte_meter_srtcm,
    profile: rte_meter_srtcm_profile,
    /// An idle bucket is full after this many nanoseconds.
    full_after: u64,
}

impl Meter {
    /// A full bucket that holds `depth` and gets `rate` a second (bytes or packets). `depth` must be at least what comes in
    /// 15,625 ns, or the rate is not reached.
    pub fn new(rate: u64, depth: u64) -> Meter {
        let mut meter = Meter { state: Default::default(), profile: Default::default(), full_after: 0 };
        meter.configure(rate, depth);
        meter.state.tc = meter.profile.cbs;
        meter
    }

    fn configure(&mut self, rate: u64, depth: u64) {
        let cbs = depth.saturating_mul(SCALE);
        self.profile = rte_meter_srtcm_profile { cbs, ebs: 0, cir_period: PERIOD, cir_bytes_per_period: rate };
        // At no rate at all it never fills.
        let periods_to_fill = cbs.checked_div(rate).map_or(u64::MAX, |periods| periods.saturating_add(1));
        self.full_after = periods_to_fill.saturating_mul(PERIOD);
        self.state.tc = self.state.tc.min(cbs);
    }

    /// Changes rate and depth from `now` on; what came in until now came at the old rate.
    pub fn set(&mut self, now: u64, rate: u64, depth: u64) {
        self.take(now, 0);
        self.configure(rate, depth);
    }

    /// Takes `amount` (at most [`MOST`], else that) if there is so much at `now` (nanoseconds; earlier than before counts
    /// as no time passed).
    #[inline]
    pub fn take(&mut self, now: u64, amount: u32) -> bool {
        let now = now.max(self.state.time);
        // Also the first time, when `time` is zero. It keeps the marker's products within 64 bits.
        if now - self.state.time > self.full_after {
            self.state.time = now;
            self.state.tc = self.profile.cbs;
        }
        let tokens = amount.min(MOST) * SCALE as u32;
        // SAFETY: both pointers are to live values that nothing else refers to during the call, and cir_period is not zero.
        unsafe { fg_srtcm_check(&mut self.state, &mut self.profile, now, tokens) == 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_more_than_rate_and_depth(
            rate in 1u64..2_000_000_000, depth in 1u64..1_000_000,
            steps in proptest::collection::vec((0u64..100_000_000, 0u32..10_000), 1..300),
        ) {
            let start = 1_700_000_000_000_000_000u64;
            let (mut meter, mut now, mut taken) = (Meter::new(rate, depth), start, 0u128);
            for (wait, amount) in steps {
                now += wait;
                if meter.take(now, amount) {
                    taken += u128::from(amount);
                }
                let passed = u128::from(now - start + PERIOD);
                prop_assert!(taken <= u128::from(depth) + passed * u128::from(rate) / 1_000_000_000 + 1);
            }
        }
    }

    #[test]
    fn reaches_its_rate_exactly() {
        for (rate, part) in [(1_000, 1), (999_983, 1), (125_000_000, 10), (12_500_000_000u64, 10)] {
            let start = 1_700_000_000_000_000_000;
            let mut meter = Meter::new(rate, rate / 1000 + 1_000);
            let mut taken = 0u64;
            let step = (500_000_000_000 / rate).max(PERIOD);
            for n in 0..2_000_000_000 / part / step {
                while meter.take(start + n * step, 1_000.min(MOST)) {
                    taken += 1_000;
                }
            }
            let expected = 2 * rate / part + rate / 1000 + 1_000;
            assert!(taken <= expected && taken + rate / 1000 + 2_000 >= expected, "{rate}: {taken} of {expected}");
        }
    }

    #[test]
    fn long_silence_and_clocks_that_go_back() {
        let mut meter = Meter::new(u64::MAX / 1_000_000, 5_000);
        assert!(meter.take(u64::MAX / 2, 5_000));
        assert!(!meter.take(5, 1));
        assert!(meter.take(u64::MAX, 5_000) && !meter.take(u64::MAX, 1));
        let mut stopped = Meter::new(0, 10);
        assert!(stopped.take(1, 10) && !stopped.take(u64::MAX / 2, 1));
    }
}
