//! Where frames come from and go to. An `Io` moves frames and never looks inside them.

use crate::packet::{BATCH, Frame};
use crate::wire::ethernet::Rewrite;

pub mod capture;
pub mod dpdk;
pub mod memory;

/// One worker's view of the ports: its own queue of each.
pub trait Io {
    /// Receives frames from a port into the front of `frames`, whose slots are empty; returns how many. `burst` is at most
    /// [`BATCH`].
    fn rx(&mut self, port: u8, burst: usize, frames: &mut [Frame; BATCH]) -> usize;

    /// Sends frames by a port, in order. Returns how many were taken: as many slots in front are empty afterwards. The rest
    /// stay the caller's; a port of several links may have refused others than the last. At most [`BATCH`] at a time.
    fn tx(&mut self, port: u8, frames: &mut [Frame]) -> usize;

    /// Gives frames back unsent. All slots are empty afterwards. At most [`BATCH`] at a time.
    fn free(&mut self, frames: &mut [Frame]);

    /// An empty frame to be filled by flowgate; `None` if there is no buffer left.
    fn create(&mut self) -> Option<Frame>;

    /// Receives a burst from one port and sends it by another, all frames rewritten alike and otherwise unread; what is
    /// refused is freed. Returns how many were received, and how many of them sent.
    fn relay(&mut self, from: u8, to: u8, burst: usize, rewrite: &Rewrite) -> (usize, usize) {
        let mut frames = [const { Frame::EMPTY }; BATCH];
        let received = self.rx(from, burst, &mut frames);
        if received == 0 {
            return (0, 0);
        }
        frames[..received].iter_mut().for_each(|frame| rewrite.write(frame.bytes_mut()));
        let sent = self.tx(to, &mut frames[..received]);
        if sent < received {
            self.free(&mut frames[sent..received]);
        }
        (received, sent)
    }

    /// Lets ports say what they have to say themselves; to be called several times in 100 ms.
    fn beat(&mut self) {}

    /// True if this worker has a receive queue of the port.
    fn receives(&self, port: u8) -> bool;

    /// True if this worker has a transmit queue of the port.
    fn transmits(&self, port: u8) -> bool;
}
