//! Ports of DPDK: one worker's queues.
//!
//! Owns the queues and the right to give buffers back; not the ports.
#![allow(unsafe_code)]

use std::sync::Arc;

use super::Io;
use crate::dpdk::pool::Pool;
use crate::dpdk::port::{RxQueue, TxQueue};
use crate::packet::{BATCH, Frame};
use crate::wire::ethernet::Rewrite;

// The shim reads and writes frames in place.
const _: () = {
    use std::mem::{align_of, offset_of};
    type Shim = dpdk_sys::fg_frame;
    assert!(size_of::<Frame>() == size_of::<Shim>() && align_of::<Frame>() == align_of::<Shim>());
    let [data, token, len, head, tail] = Frame::OFFSETS;
    assert!(data == offset_of!(Shim, data) && token == offset_of!(Shim, token) && len == offset_of!(Shim, len));
    assert!(head == offset_of!(Shim, head) && tail == offset_of!(Shim, tail));
    assert!(offset_of!(Frame, vlan_tci) == offset_of!(Shim, vlan_tci));
    assert!(offset_of!(Frame, rx_time) == offset_of!(Shim, rx_time));
    assert!(offset_of!(Frame, flags) == offset_of!(Shim, flags));
    assert!(offset_of!(Frame, port) == offset_of!(Shim, port) && offset_of!(Frame, hops) == offset_of!(Shim, hops));
};

// The flags are the shim's.
const _: () = {
    use crate::packet::frame::rx;
    assert!(rx::CHAINED as u32 == dpdk_sys::FG_CHAINED && rx::VLAN_STRIPPED as u32 == dpdk_sys::FG_VLAN_STRIPPED);
    assert!(rx::L3_SUM_GOOD as u32 == dpdk_sys::FG_L3_SUM_GOOD && rx::L3_SUM_BAD as u32 == dpdk_sys::FG_L3_SUM_BAD);
    assert!(rx::L4_SUM_GOOD as u32 == dpdk_sys::FG_L4_SUM_GOOD && rx::L4_SUM_BAD as u32 == dpdk_sys::FG_L4_SUM_BAD);
};

/// One worker's queues of every port, by the port's index. Frames given to it must come from a `DpdkIo` (this one or
/// another worker's): those of other kinds of `Io` hold no mbufs.
#[derive(Debug)]
pub struct DpdkIo {
    queues: Vec<(Option<RxQueue>, Option<TxQueue>)>,
    pool: Arc<Pool>,
}

impl DpdkIo {
    /// Over a worker's queues; frames of its own come from `pool`.
    pub fn new(queues: Vec<(Option<RxQueue>, Option<TxQueue>)>, pool: Arc<Pool>) -> DpdkIo {
        DpdkIo { queues, pool }
    }
}

impl Io for DpdkIo {
    #[inline]
    fn rx(&mut self, port: u8, burst: usize, frames: &mut [Frame; BATCH]) -> usize {
        match self.queues.get_mut(usize::from(port)) {
            Some((Some(queue), _)) => queue.receive(burst, frames),
            _ => 0,
        }
    }

    #[inline]
    fn tx(&mut self, port: u8, frames: &mut [Frame]) -> usize {
        match self.queues.get_mut(usize::from(port)) {
            // SAFETY: the frames come from ports or pools of DPDK: see `DpdkIo`.
            Some((_, Some(queue))) => unsafe { queue.send(frames) },
            _ => 0,
        }
    }

    #[inline]
    fn free(&mut self, frames: &mut [Frame]) {
        for burst in frames.chunks_mut(BATCH) {
            // SAFETY: as many frames as said, each with an mbuf (see `DpdkIo`) that it alone refers to.
            unsafe { dpdk_sys::fg_free_bulk(burst.as_ptr().cast(), burst.len() as u16) };
            burst.iter_mut().for_each(Frame::vacate);
        }
    }

    fn create(&mut self) -> Option<Frame> {
        self.pool.take()
    }

    #[inline]
    fn relay(&mut self, from: u8, to: u8, burst: usize, rewrite: &Rewrite) -> (usize, usize) {
        let (from, to) = (usize::from(from), usize::from(to));
        // A port relayed to itself borrows both of its queues from one place.
        let (rx, tx) = if from == to {
            self.queues.get_mut(from).map_or((None, None), |(rx, tx)| (rx.as_mut(), tx.as_mut()))
        } else {
            match self.queues.get_disjoint_mut([from, to]) {
                Ok([(rx, _), (_, tx)]) => (rx.as_mut(), tx.as_mut()),
                Err(_) => (None, None),
            }
        };
        match (rx, tx) {
            (Some(rx), Some(tx)) => rx.relay(tx, burst, rewrite),
            _ => (0, 0),
        }
    }

    fn beat(&mut self) {
        self.queues.iter_mut().filter_map(|(_, tx)| tx.as_mut()).for_each(TxQueue::beat);
    }

    fn receives(&self, port: u8) -> bool {
        self.queues.get(usize::from(port)).is_some_and(|(rx, _)| rx.is_some())
    }

    fn transmits(&self, port: u8) -> bool {
        self.queues.get(usize::from(port)).is_some_and(|(_, tx)| tx.is_some())
    }
}
