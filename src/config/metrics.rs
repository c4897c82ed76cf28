//! `[metrics]`: what is measured beside counting, and how much of it is told at once.

use super::units::Within;

crate::section! {
    /// `[metrics]`
    pub struct Metrics {
        /// The time through the box is taken of one packet in every so many bursts sent; 0 takes none.
        pub latency_sample: Within<0, 1000000> = Within(64),
        /// Rules that have metrics of their own: the first ones. Those behind them are counted together, as `others`.
        pub rules: Within<0, 65535> = Within(1000),
    }
}
