//! The processor: its cycle counter, a clock made of it, prefetching, counting bits, and comparing many numbers at once.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The time stamp counter: invariant on every processor DPDK supports, and the same on all cores.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: rdtsc reads a counter, and x86-64 always has it.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: reads the counter DPDK's own time base is made of.
    unsafe {
        dpdk_sys::fg_cycles()
    }
}

/// Asks for a cache line that will be read soon.
#[inline(always)]
pub fn prefetch<T>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint about an address which a reference has shown to be good; it reads nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// How many bits are set. `count_ones` is a dozen instructions on a processor that is not known to have one for it.
#[inline(always)]
pub fn ones(bits: u64) -> u32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor with SSE4.2 has the instruction, and DPDK, which this is linked with, is built for no lesser one. It
    // touches a register alone.
    unsafe {
        let mut ones = bits;
        std::arch::asm!("popcnt {ones}, {ones}", ones = inout(reg) ones, options(pure, nomem, nostack));
        ones as u32
    }
    #[cfg(not(target_arch = "x86_64"))]
    bits.count_ones()
}

/// A bit for each number that equals `wanted`.
#[inline(always)]
pub fn equal(numbers: &[u16; 8], wanted: u16) -> u8 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instructions are of SSE2, which every x86-64 processor has, and touch registers alone.
    unsafe {
        use std::arch::x86_64::{
            _mm_cmpeq_epi16, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16, _mm_setzero_si128,
        };
        let equal = _mm_cmpeq_epi16(bytemuck::cast(*numbers), _mm_set1_epi16(wanted as i16));
        _mm_movemask_epi8(_mm_packs_epi16(equal, _mm_setzero_si128())) as u8
    }
    #[cfg(not(target_arch = "x86_64"))]
    (0..8).fold(0, |found, at| found | u8::from(numbers[at] == wanted) << at)
}

/// Unix time from the cycle counter, without a system call. Control corrects it against the system's clock; it never runs
/// backwards for a worker that keeps the latest value it saw (`Clock::after`).
#[derive(Debug)]
pub struct Clock {
    /// Nanoseconds in a cycle, as a fixed point number with 32 fractional bits.
    factor: u64,
    base_cycles: u64,
    base: u64,
    /// What control has found the system's clock to be ahead, in nanoseconds.
    ahead: AtomicI64,
}

impl Clock {
    /// A clock that shows the system's time now. `hz` is the counter's rate.
    pub fn new(hz: u64) -> Clock {
        Clock { factor: factor(hz), base_cycles: cycles(), base: system_time(), ahead: AtomicI64::new(0) }
    }

    /// Nanoseconds since 1970.
    #[inline]
    pub fn now(&self) -> u64 {
        self.at(cycles())
    }

    /// The later of now and `last`: for callers to whom time must not run backwards.
    #[inline]
    pub fn after(&self, last: u64) -> u64 {
        self.now().max(last)
    }

    #[inline]
    fn at(&self, cycles: u64) -> u64 {
        let passed = cycles.wrapping_sub(self.base_cycles);
        let nanoseconds = ((u128::from(passed) * u128::from(self.factor)) >> 32) as u64;
        (self.base + nanoseconds).wrapping_add_signed(self.ahead.load(Ordering::Relaxed))
    }

    /// Follows the system's clock: called by control now and then.
    pub fn correct(&self) {
        let off = system_time().wrapping_sub(self.now()) as i64;
        self.ahead.fetch_add(off, Ordering::Relaxed);
    }
}

fn factor(hz: u64) -> u64 {
    ((1_000_000_000u128 << 32) / u128::from(hz.max(1))) as u64
}

fn system_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_are_counted() {
        for bits in [0, 1, u64::MAX, 1 << 63, 0x5555_0000_ffff_0001] {
            assert_eq!(ones(bits), bits.count_ones());
        }
    }

    #[test]
    fn equal_numbers_are_found_where_they_are() {
        assert_eq!(equal(&[7, 0, 0xffff, 7, 0x0700, 8, 0x8007, 7], 7), 0b1000_1001);
        assert_eq!((equal(&[0x8000; 8], 0x8000), equal(&[0; 8], 1)), (0xff, 0));
    }

    #[test]
    fn it_counts_nanoseconds_and_follows() {
        let clock = Clock { factor: factor(2_500_000_000), base_cycles: 1000, base: 5_000, ahead: AtomicI64::new(0) };
        assert_eq!(clock.at(1000), 5_000);
        let day = clock.at(1000 + 2_500_000_000 * 86_400) - 5_000;
        assert!(day.abs_diff(86_400_000_000_000) < 100_000, "within a billionth: {day}");
        clock.correct();
        let off = system_time().abs_diff(clock.now());
        assert!(off < 1_000_000_000, "within a second of the system's clock, off by {off} ns");
        assert_eq!(clock.after(u64::MAX), u64::MAX);
    }
}
