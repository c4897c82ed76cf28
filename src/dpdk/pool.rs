//! Packet buffers: a pool per NUMA node, from which ports fill their receive rings.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::ptr::NonNull;

use super::eal::{Eal, Lease};
use super::error::{Errno, Error};
use crate::packet::Frame;

/// Bytes free before a received frame.
pub const HEADROOM: usize = dpdk_sys::RTE_PKTMBUF_HEADROOM as usize;
/// Bytes of a frame beyond its MTU: Ethernet header, two VLAN tags, frame check sequence.
pub const OVERHEAD: usize = 14 + 2 * 4 + 4;
/// Room for a frame that drivers assume at the least.
const LEAST_ROOM: usize = 2048;
/// Buffers each lcore keeps to itself.
const CACHE: u32 = 256;

/// A pool of packet buffers, any thread's to take from.
#[derive(Debug)]
pub struct Pool {
    pool: NonNull<dpdk_sys::rte_mempool>,
    room: usize,
    packets: u32,
    lease: Option<Lease>,
}

// SAFETY: rte_mempool is made for use by many threads; a thread that is no lcore goes without a cache.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// A pool of `packets` buffers on a NUMA node, each with room for a frame of `mtu`.
    pub fn new(eal: &'static Eal, name: &str, node: u32, packets: u32, mtu: u16) -> Result<Pool, Error> {
        let lease = eal.lease()?;
        let text = CString::new(name).map_err(|_| Error::ZeroByte { text: name.into() })?;
        let room = (usize::from(mtu) + OVERHEAD).next_multiple_of(64).max(LEAST_ROOM);
        // DPDK wants half a cache more than a cache holds, per lcore.
        let cache = if packets >= 2 * CACHE { CACHE } else { 0 };
        let data_room = u16::try_from(room + HEADROOM).unwrap_or(u16::MAX);
        // SAFETY: a C string that lives through the call; the EAL runs, which the lease shows.
        let pool =
            unsafe { dpdk_sys::rte_pktmbuf_pool_create(text.as_ptr(), packets, cache, 0, data_room, node as i32) };
        let Some(pool) = NonNull::new(pool) else {
            let megabytes = (u64::from(packets) * Pool::footprint(mtu) as u64).div_ceil(1 << 20);
            return Err(Error::Pool { name: name.into(), megabytes, errno: Errno::last() });
        };
        Ok(Pool { pool, room: usize::from(data_room) - HEADROOM, packets, lease: Some(lease) })
    }

    /// Bytes of memory a buffer for `mtu` takes, its headers included.
    pub fn footprint(mtu: u16) -> usize {
        // 128 bytes of rte_mbuf, 64 of mempool header, rounded up to what spreads buffers over memory channels.
        (usize::from(mtu) + OVERHEAD).next_multiple_of(64).max(LEAST_ROOM) + HEADROOM + 128 + 128
    }

    /// Longest frame a buffer holds.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Buffers in all.
    pub fn packets(&self) -> u32 {
        self.packets
    }

    /// Buffers that are out, those in receive rings included. Exact only while nobody takes or gives back.
    pub fn in_use(&self) -> usize {
        // SAFETY: the pool is alive.
        unsafe { dpdk_sys::rte_mempool_in_use_count(self.pool.as_ptr()) as usize }
    }

    /// An empty frame, if a buffer is left.
    #[inline]
    pub fn take(&self) -> Option<Frame> {
        let mut frame = Frame::EMPTY;
        // SAFETY: the pool is alive; Frame is laid out like fg_frame (asserted in io::dpdk), and fg_alloc fills all of it.
        let result = unsafe { dpdk_sys::fg_alloc(self.pool.as_ptr(), (&raw mut frame).cast()) };
        (result == 0).then_some(frame)
    }

    pub(super) fn raw(&self) -> *mut dpdk_sys::rte_mempool {
        self.pool.as_ptr()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // A buffer that is out is in somebody's hands: the memory then stays, rather than be taken from under them.
        if self.in_use() != 0 {
            std::mem::forget(self.lease.take());
        } else {
            // SAFETY: every buffer is back, and no port refers to the pool: ports hold it in an `Arc`.
            unsafe { dpdk_sys::rte_mempool_free(self.pool.as_ptr()) };
        }
    }
}
