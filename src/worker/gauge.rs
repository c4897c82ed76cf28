//! What a worker measures of itself: how many packets come in at once, and how long one takes through the box.
//!
//! Bursts are counted all; the time is taken of one burst of packets in so many, with one look at the clock as it has been
//! sent. Counts in the sheet, decides nothing.

use std::sync::Arc;

use crate::arch::Clock;
use crate::stats::{Account, Lines, Sheet};

crate::lines! {
    /// Bursts that ports gave, by their size.
    pub enum Burst {
        /// Bursts of one packet.
        One = "1",
        /// Bursts of 2 packets.
        Two = "2",
        /// Bursts of 3 or 4 packets.
        Four = "4",
        /// Bursts of 5 to 8 packets.
        Eight = "8",
        /// Bursts of 9 to 16 packets.
        Sixteen = "16",
        /// Bursts of 17 to 32 packets.
        ThirtyTwo = "32",
        /// Bursts of 33 to 64 packets.
        SixtyFour = "64",
    }
}

crate::lines! {
    /// Sampled packets by the time from the turn that received them to the port that took them.
    pub enum Latency {
        /// Packets that took at most 1 µs.
        Us1 = "1us",
        /// Packets that took at most 2 µs.
        Us2 = "2us",
        /// Packets that took at most 5 µs.
        Us5 = "5us",
        /// Packets that took at most 10 µs.
        Us10 = "10us",
        /// Packets that took at most 20 µs.
        Us20 = "20us",
        /// Packets that took at most 50 µs.
        Us50 = "50us",
        /// Packets that took at most 100 µs.
        Us100 = "100us",
        /// Packets that took at most 200 µs.
        Us200 = "200us",
        /// Packets that took at most 500 µs.
        Us500 = "500us",
        /// Packets that took at most 1 ms.
        Ms1 = "1ms",
        /// Packets that took at most 10 ms.
        Ms10 = "10ms",
        /// Packets that took at most 100 ms.
        Ms100 = "100ms",
        /// Packets that took at most a second.
        Second = "1s",
        /// Packets that took longer.
        Longer = "longer",
        /// All of these times together, in nanoseconds.
        Nanoseconds = "nanoseconds",
    }
}

/// The most nanoseconds of each of `Latency`'s classes that has an end.
pub const UP_TO: [u64; Latency::Longer as usize] = [
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
];

/// Index of the first of `Burst` in a sheet: they follow the accounts.
pub const BURST: usize = Account::LINES.len();
/// Index of the first of `Latency`.
pub const LATENCY: usize = BURST + Burst::LINES.len();

/// Counts a burst of `n` packets, 1 to 64.
#[inline(always)]
pub fn burst(sheet: &mut Sheet, n: usize) {
    // 1 is class 0, 2 is 1, 3 and 4 are 2.
    let class = usize::BITS - (n - 1).leading_zeros();
    sheet.counters[BURST + class as usize] += 1;
}

/// Takes the time of some packets.
#[derive(Debug, Default)]
pub struct Gauge {
    clock: Option<Arc<Clock>>,
    /// Bursts sent from one that is looked at to the next; 0 looks at none.
    every: u32,
    left: u32,
}

impl Gauge {
    /// Looks at one burst sent in `every`, by that clock; at none if it is 0.
    pub fn new(every: u32, clock: Arc<Clock>) -> Gauge {
        Gauge { clock: Some(clock), every, left: every }
    }

    /// True if the burst about to be sent is looked at.
    #[inline(always)]
    pub fn looks(&mut self) -> bool {
        self.left = self.left.wrapping_sub(1);
        self.left == 0
    }

    /// Counts the time of a packet that was received at `rx_time` (`Frame::rx_time`) and has just been sent.
    #[cold]
    pub fn note(&mut self, rx_time: u32, sheet: &mut Sheet) {
        self.left = self.every;
        // What flowgate made itself was never received, and has no time.
        let Some(clock) = self.clock.as_ref().filter(|_| rx_time != 0) else { return };
        let passed = (clock.now() as u32).wrapping_sub(rx_time);
        // The clock may have been set back in between: then it took no time that could be told.
        let passed = if passed > u32::MAX / 4 * 3 { 0 } else { u64::from(passed) };
        let class = UP_TO.partition_point(|most| *most < passed);
        sheet.counters[LATENCY + class] += 1;
        sheet.counters[LATENCY + Latency::Nanoseconds as usize] += passed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Layout;

    #[test]
    fn a_burst_is_of_the_class_that_names_it() {
        let mut sheet = Layout::new().sheet();
        (1..=64).for_each(|n| burst(&mut sheet, n));
        assert_eq!(sheet.counters[BURST..LATENCY], [1, 1, 2, 4, 8, 16, 32]);
        for (class, line) in Burst::LINES.iter().enumerate() {
            assert_eq!(line.name, (1 << class).to_string());
        }
    }

    #[test]
    fn one_burst_in_so_many_is_looked_at() {
        let clock = Arc::new(Clock::new(1_000_000_000));
        let mut sheet = Layout::new().sheet();
        let mut gauge = Gauge::new(4, clock.clone());
        for _ in 0..12 {
            if gauge.looks() {
                gauge.note((clock.now() as u32).wrapping_sub(3_000_000_000), &mut sheet);
            }
        }
        let longer = LATENCY + Latency::Longer as usize;
        assert_eq!((sheet.counters[longer], sheet.counters[LATENCY..longer].iter().sum::<u64>()), (3, 0));
        assert!(sheet.counters[longer + 1] >= 9_000_000_000);
        let mut off = Gauge::new(0, clock.clone());
        assert!((0..100_000).all(|_| !off.looks()));
        // Set back by the operator.
        gauge.note((clock.now() as u32).wrapping_add(50_000_000), &mut sheet);
        assert_eq!(sheet.counters[LATENCY], 1);
    }

    #[test]
    fn the_layout_has_them_where_they_are_counted() {
        let layout = Layout::new();
        let at = |index: usize| {
            (layout.counter_labels()[index].scope.as_str(), layout.counter_labels()[index].name.as_str())
        };
        assert_eq!((at(BURST), at(LATENCY)), (("burst", "1"), ("latency", "1us")));
        assert_eq!(at(LATENCY + Latency::Nanoseconds as usize), ("latency", "nanoseconds"));
    }
}
