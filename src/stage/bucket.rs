//! A rate for each worker: so many things a second, and a tenth of a second's worth at once.

/// A bucket of tokens, as the time at which it will be full (GCRA, ITU-T I.371). Times in nanoseconds.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Between two tokens; none if there are none at all.
    interval: Option<u64>,
    depth: u64,
    full_at: u64,
}

impl Bucket {
    /// A full one that gets `rate / workers` a second.
    pub fn new(rate: u64, workers: usize) -> Bucket {
        let interval = (1_000_000_000 * workers.max(1) as u64).checked_div(rate);
        Bucket { interval, depth: interval.unwrap_or(0).max(100_000_000), full_at: 0 }
    }

    /// True if there is a token.
    #[inline]
    pub fn has(&self, now: u64) -> bool {
        self.interval.is_some_and(|interval| self.full_at.max(now) + interval <= now + self.depth)
    }

    /// Takes a token that is there.
    #[inline]
    pub fn take(&mut self, now: u64) {
        self.full_at = self.full_at.max(now) + self.interval.unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate_and_a_tenth_at_once() {
        const START: u64 = 1_700_000_000_000_000_000;
        for (rate, workers, first, second) in [(1_000, 1, 100, 1_000), (1_000, 4, 25, 250), (3, 2, 1, 1), (0, 1, 0, 0)]
        {
            let mut bucket = Bucket::new(rate, workers);
            let mut drain = |now| (0..).take_while(|_| bucket.has(now).then(|| bucket.take(now)).is_some()).count();
            assert_eq!(drain(START), first, "{rate} over {workers}");
            let later: usize = (1..=1_000).map(|ms| drain(START + ms * 1_000_000)).sum();
            assert_eq!(later, second, "{rate} over {workers}");
            assert_eq!(drain(START + 3_600_000_000_000), first);
        }
    }
}
