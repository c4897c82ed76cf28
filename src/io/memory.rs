//! Ports made of memory: what tests and `replay` run the datapath on. No EAL, no root.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Io;
use crate::packet::BATCH;
use crate::packet::frame::{Frame, Heap};

/// Ports that receive what was pushed and keep what was sent.
pub struct MemoryIo {
    /// Shared with the ports of other workers, to whom frames may be handed.
    heap: Arc<Mutex<Heap>>,
    ports: Vec<MemoryPort>,
}

struct MemoryPort {
    incoming: VecDeque<Frame>,
    sent: VecDeque<Frame>,
    /// Frames the port still takes before its transmit queue counts as full.
    room: usize,
}

impl MemoryIo {
    /// `ports` ports over `buffers` buffers for frames of up to `longest` bytes. Nothing allocates after this.
    pub fn new(ports: usize, buffers: usize, longest: usize) -> MemoryIo {
        let heap = Arc::new(Mutex::new(Heap::new(buffers, longest)));
        MemoryIo::over(heap, ports, buffers)
    }

    /// Another worker's ports, as many and over the same buffers.
    pub fn beside(&self) -> MemoryIo {
        let buffers = self.ports.first().map_or(0, |port| port.incoming.capacity());
        MemoryIo::over(self.heap.clone(), self.ports.len(), buffers)
    }

    fn over(heap: Arc<Mutex<Heap>>, ports: usize, buffers: usize) -> MemoryIo {
        let port = || MemoryPort {
            incoming: VecDeque::with_capacity(buffers),
            sent: VecDeque::with_capacity(buffers),
            room: usize::MAX,
        };
        MemoryIo { heap, ports: (0..ports).map(|_| port()).collect() }
    }

    fn heap(&self) -> MutexGuard<'_, Heap> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame for a port to receive, changed by `prepare` first; false if no buffer is free or it is too long.
    pub fn push(&mut self, port: u8, bytes: &[u8], prepare: impl FnOnce(&mut Frame)) -> bool {
        let Some(mut frame) = self.heap().frame(bytes) else { return false };
        prepare(&mut frame);
        self.ports[usize::from(port)].incoming.push_back(frame);
        true
    }

    /// Lends the next frame a port has sent, and gives it back.
    pub fn pull<R>(&mut self, port: u8, look: impl FnOnce(&Frame) -> R) -> Option<R> {
        let frame = self.ports[usize::from(port)].sent.pop_front()?;
        let result = look(&frame);
        self.heap().give_back(frame);
        Some(result)
    }

    /// Frames the port takes from now on before its transmit queue is full.
    pub fn set_room(&mut self, port: u8, frames: usize) {
        self.ports[usize::from(port)].room = frames;
    }

    /// Buffers in use: queued, or sent and not pulled yet, or held by the datapath.
    pub fn in_use(&self) -> usize {
        self.heap().in_use()
    }

    /// Frames not yet received.
    pub fn waiting(&self) -> usize {
        self.ports.iter().map(|port| port.incoming.len()).sum()
    }
}

impl Io for MemoryIo {
    fn rx(&mut self, port: u8, burst: usize, frames: &mut [Frame; BATCH]) -> usize {
        let incoming = &mut self.ports[usize::from(port)].incoming;
        let n = incoming.len().min(burst).min(BATCH);
        for (slot, frame) in frames.iter_mut().zip(incoming.drain(..n)) {
            *slot = frame;
        }
        n
    }

    fn tx(&mut self, port: u8, frames: &mut [Frame]) -> usize {
        let port = &mut self.ports[usize::from(port)];
        let n = frames.len().min(port.room);
        port.room -= n;
        port.sent.extend(frames[..n].iter_mut().map(Frame::take));
        n
    }

    fn free(&mut self, frames: &mut [Frame]) {
        let mut heap = self.heap();
        for frame in frames {
            heap.give_back(frame.take());
        }
    }

    fn create(&mut self) -> Option<Frame> {
        self.heap().frame(&[])
    }

    fn receives(&self, port: u8) -> bool {
        usize::from(port) < self.ports.len()
    }

    fn transmits(&self, port: u8) -> bool {
        usize::from(port) < self.ports.len()
    }
}
