//! Rings of frames between two workers: one producer, one consumer, bounded, in bursts.
//!
//! An `rte_ring` of 32-byte elements in memory of our own, so that no EAL is needed. Each half is neither `Clone` nor `Sync`:
//! the type says what "single producer, single consumer" needs.
#![allow(unsafe_code)]

use std::alloc::{self, Layout};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use super::error::Errno;
use crate::packet::{BATCH, Frame};

/// The ring itself, freed with its second half.
struct Ring {
    ring: NonNull<dpdk_sys::rte_ring>,
    layout: Layout,
    /// Frames it holds at most.
    room: u32,
}

// SAFETY: the memory belongs to no thread, and rte_ring allows one producer and one consumer at a time, which the two
// halves are.
unsafe impl Send for Ring {}
// SAFETY: as above; `&Ring` alone does nothing.
unsafe impl Sync for Ring {}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: allocated in `ring` with this layout, and both halves are gone.
        unsafe { alloc::dealloc(self.ring.as_ptr().cast(), self.layout) };
    }
}

/// The half that puts frames in.
pub struct Producer(Arc<Ring>, PhantomData<Cell<()>>);

/// The half that takes frames out. Frames still in the ring when both halves are dropped are leaked, never freed twice.
pub struct Consumer(Arc<Ring>, PhantomData<Cell<()>>);

/// A ring that holds `size` frames, a power of two. The error is DPDK's: of a size that is none.
pub fn ring(size: usize) -> Result<(Producer, Consumer), Errno> {
    let count = u32::try_from(size).unwrap_or(u32::MAX);
    // SAFETY: arithmetic on its arguments.
    let bytes = unsafe { dpdk_sys::rte_ring_get_memsize_elem(size_of::<Frame>() as u32, count) };
    if bytes < 0 {
        return Err(Errno(-bytes as i32));
    }
    let layout = Layout::from_size_align(bytes as usize, 128).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: the layout is not empty: a ring has a header.
    let memory = unsafe { alloc::alloc_zeroed(layout) };
    let Some(ring) = NonNull::new(memory.cast::<dpdk_sys::rte_ring>()) else { alloc::handle_alloc_error(layout) };
    let flags = dpdk_sys::RING_F_SP_ENQ | dpdk_sys::RING_F_SC_DEQ;
    // SAFETY: the memory is as large as DPDK asked for that many elements of that size, and aligned to cache lines.
    let result = unsafe { dpdk_sys::rte_ring_init(ring.as_ptr(), c"flowgate".as_ptr(), count, flags) };
    // A slot stays free, or a full ring would look like an empty one.
    let ring = Arc::new(Ring { ring, layout, room: count.saturating_sub(1) });
    Errno::check(result)?;
    Ok((Producer(ring.clone(), PhantomData), Consumer(ring, PhantomData)))
}

impl Producer {
    /// Puts frames in, in order; returns how many went in: a prefix, whose slots are empty afterwards.
    #[inline]
    pub fn push(&mut self, frames: &mut [Frame]) -> usize {
        // SAFETY: this is the only producer; `frames` are as many elements of the ring's element size, which Frame and
        // fg_frame share (asserted in io::dpdk).
        let n = unsafe { dpdk_sys::fg_ring_enqueue(self.0.ring.as_ptr(), frames.as_ptr().cast(), frames.len() as u32) }
            as usize;
        for frame in &mut frames[..n] {
            // The ring owns it now.
            *frame = Frame::EMPTY;
        }
        n
    }

    /// True if nothing would go in at this moment.
    pub fn is_full(&self) -> bool {
        // SAFETY: reads two indices of a live ring.
        unsafe { dpdk_sys::fg_ring_count(self.0.ring.as_ptr()) >= self.0.room }
    }
}

impl Consumer {
    /// Takes frames out into the front of `frames`, whose slots are empty; returns how many.
    #[inline]
    pub fn pop(&mut self, frames: &mut [Frame; BATCH]) -> usize {
        // SAFETY: this is the only consumer; there is room for BATCH elements, and what is in the ring are frames that
        // `push` gave up.
        unsafe { dpdk_sys::fg_ring_dequeue(self.0.ring.as_ptr(), frames.as_mut_ptr().cast(), BATCH as u32) as usize }
    }

    /// Frames in the ring at this moment.
    pub fn len(&self) -> usize {
        // SAFETY: reads two indices of a live ring.
        unsafe { dpdk_sys::fg_ring_count(self.0.ring.as_ptr()) as usize }
    }

    /// True if nothing is in the ring at this moment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::frame::Heap;

    #[test]
    fn order_and_fullness_across_threads() {
        assert!(ring(100).is_err(), "not a power of two");
        let (mut producer, mut consumer) = ring(64).expect("a ring");
        let mut heap = Heap::new(10_000, 8);
        let count = 10_000u32;
        let sender = std::thread::spawn(move || {
            let mut sent = 0u32;
            while sent < count {
                let mut frames = [heap.frame(&sent.to_be_bytes()).expect("room")];
                while producer.push(&mut frames) == 0 {
                    std::thread::yield_now();
                }
                assert!(frames[0].is_empty_slot());
                sent += 1;
            }
            heap
        });
        let mut frames = [const { Frame::EMPTY }; BATCH];
        let mut seen = 0u32;
        let mut taken = Vec::new();
        while seen < count {
            let n = consumer.pop(&mut frames);
            for frame in &mut frames[..n] {
                assert_eq!(frame.bytes(), seen.to_be_bytes());
                taken.push(frame.take());
                seen += 1;
            }
        }
        let mut heap = sender.join().expect("the sender");
        taken.into_iter().for_each(|frame| heap.give_back(frame));
        assert_eq!(heap.in_use(), 0);
    }

    #[test]
    fn a_full_ring_takes_a_prefix() {
        let (mut producer, mut consumer) = ring(4).expect("a ring");
        let mut heap = Heap::new(8, 8);
        let mut frames: Vec<Frame> = (0..6u8).map(|n| heap.frame(&[n]).expect("room")).collect();
        // A ring of 4 slots keeps one of them free.
        assert!(!producer.is_full());
        assert_eq!(producer.push(&mut frames), 3);
        assert!(producer.is_full());
        assert_eq!((frames[3].bytes(), consumer.len()), (&[3u8][..], 3));
        let mut out = [const { Frame::EMPTY }; BATCH];
        assert_eq!(consumer.pop(&mut out), 3);
        assert!(consumer.is_empty());
        out.iter_mut().take(3).chain(frames.iter_mut().skip(3)).for_each(|frame| heap.give_back(frame.take()));
        assert_eq!(heap.in_use(), 0);
    }
}
