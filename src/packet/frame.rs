//! One packet's bytes: where they are, how many, the room before and behind, and the token that gives the buffer back.
//!
//! Owns the pointer arithmetic on packet buffers and nothing else: a frame never interprets a byte. The bytes belong to
//! whoever holds the frame; a frame is neither `Copy` nor `Clone`, and dropping one without giving it back to the `Io` it
//! came from leaks the buffer (it never frees it twice).
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr::NonNull;

/// What the port said about a frame as it arrived, and another worker: bits of [`Frame::flags`]. The port's values are the
/// shim's (`FG_*`).
pub mod rx {
    /// The packet continues in further buffers; only its first part is visible.
    pub const CHAINED: u16 = 0x0001;
    /// The port verified the IPv4 header checksum.
    pub const L3_SUM_GOOD: u16 = 0x0002;
    /// The port found the IPv4 header checksum wrong.
    pub const L3_SUM_BAD: u16 = 0x0004;
    /// The port verified the TCP or UDP checksum.
    pub const L4_SUM_GOOD: u16 = 0x0008;
    /// The port found the TCP or UDP checksum wrong.
    pub const L4_SUM_BAD: u16 = 0x0010;
    /// The port removed an 802.1Q tag and reports it in [`super::Frame::vlan_tci`].
    pub const VLAN_STRIPPED: u16 = 0x0020;
    /// Not the port's: a fragment that was found to follow its first, whose facts stand before the frame
    /// ([`Facts`](crate::packet::fragment::Facts)).
    pub const FOLLOWS: u16 = 0x8000;
}

/// A packet in a buffer. Half a cache line, laid out like the C shim's `fg_frame`.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    data: NonNull<u8>,
    token: *mut c_void,
    len: u16,
    head: u16,
    tail: u16,
    /// 802.1Q tag control information in host order, if `rx::VLAN_STRIPPED` is set.
    pub vlan_tci: u16,
    /// Low 32 bits of the receiving worker's clock in nanoseconds.
    pub rx_time: u32,
    /// `rx::*` bits.
    pub flags: u16,
    /// Index of the port it arrived on.
    pub port: u8,
    /// Times it was handed from worker to worker.
    pub hops: u8,
}

const _: () = assert!(size_of::<Frame>() == 32);

// SAFETY: a frame is the only handle on its buffer, and buffers (mbufs, heap memory) are not tied to a thread.
unsafe impl Send for Frame {}

impl Frame {
    /// A frame without a buffer: what an empty slot holds.
    pub const EMPTY: Frame = Frame {
        data: NonNull::dangling(),
        token: std::ptr::null_mut(),
        len: 0,
        head: 0,
        tail: 0,
        vlan_tci: 0,
        rx_time: 0,
        flags: 0,
        port: 0,
        hops: 0,
    };

    /// Where `data`, `token`, `len`, `head` and `tail` lie, for the comparison with the C shim's structure.
    pub const OFFSETS: [usize; 5] = [
        std::mem::offset_of!(Frame, data),
        std::mem::offset_of!(Frame, token),
        std::mem::offset_of!(Frame, len),
        std::mem::offset_of!(Frame, head),
        std::mem::offset_of!(Frame, tail),
    ];

    /// A frame over a buffer.
    ///
    /// # Safety
    /// `data - head .. data + len + tail` is one allocation that this frame alone refers to until its token is given back.
    pub unsafe fn from_raw(data: NonNull<u8>, token: *mut c_void, len: u16, head: u16, tail: u16) -> Frame {
        Frame { data, token, len, head, tail, ..Frame::EMPTY }
    }

    /// True for an empty slot.
    pub fn is_empty_slot(&self) -> bool {
        self.token.is_null()
    }

    /// What gives the buffer back to its `Io`.
    pub fn token(&self) -> *mut c_void {
        self.token
    }

    /// Moves the frame out, leaving an empty slot.
    #[inline]
    pub fn take(&mut self) -> Frame {
        std::mem::replace(self, Frame::EMPTY)
    }

    /// Makes the slot empty where its buffer has been given away. Cheaper than storing `EMPTY`, since only what reaches the
    /// buffer is cleared.
    #[inline]
    pub fn vacate(&mut self) {
        self.token = std::ptr::null_mut();
        (self.len, self.head, self.tail, self.vlan_tci) = (0, 0, 0, 0);
    }

    /// Bytes in the frame.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// True if the frame holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes free before the frame.
    pub fn headroom(&self) -> usize {
        usize::from(self.head)
    }

    /// Bytes free behind the frame.
    pub fn tailroom(&self) -> usize {
        usize::from(self.tail)
    }

    /// The frame, from its first destination MAC byte to its last byte (padding included, frame check sequence not).
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: from_raw's contract: `len` bytes at `data` are in the buffer this frame alone refers to (EMPTY: 0 bytes).
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len as usize) }
    }

    /// The frame, to be written.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` excludes any other view.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len as usize) }
    }

    /// Makes room for `n` more bytes in front, taken from the headroom; false (and nothing changed) if there are fewer.
    /// The new bytes hold what was there before: the caller writes them.
    pub fn grow_front(&mut self, n: usize) -> bool {
        if n > usize::from(self.head) {
            return false;
        }
        // SAFETY: `head` bytes before `data` belong to the buffer, and n <= head.
        self.data = unsafe { self.data.sub(n) };
        self.head -= n as u16;
        self.len += n as u16;
        true
    }

    /// Gives the first `n` bytes up to the headroom; false (and nothing changed) if the frame is shorter.
    pub fn trim_front(&mut self, n: usize) -> bool {
        if n > usize::from(self.len) {
            return false;
        }
        // SAFETY: n <= len, so the result stays inside the buffer.
        self.data = unsafe { self.data.add(n) };
        self.head += n as u16;
        self.len -= n as u16;
        true
    }

    /// Sets the length, growing into the tailroom or shrinking; false (and nothing changed) if the buffer is too small.
    pub fn set_len(&mut self, len: usize) -> bool {
        let room = usize::from(self.len) + usize::from(self.tail);
        if len > room {
            return false;
        }
        self.tail = (room - len) as u16;
        self.len = len as u16;
        true
    }

    /// The buffer's byte range around the frame, as a raw pointer to its first byte, for code that runs outside Rust's
    /// view (a BPF program): `headroom() + len() + tailroom()` bytes starting `headroom()` before the frame.
    pub fn as_ptr(&self) -> *mut u8 {
        self.data.as_ptr()
    }
}

/// Buffers of ordinary memory for frames that belong to no DPDK pool: tests and `replay`.
#[derive(Debug)]
pub struct Heap {
    memory: NonNull<u8>,
    /// Bytes a buffer holds, headroom included.
    room: usize,
    buffers: usize,
    free: Vec<u32>,
}

// SAFETY: the memory belongs to the heap alone; frames refer to disjoint buffers of it.
unsafe impl Send for Heap {}

impl Heap {
    /// Bytes before each new frame.
    pub const HEADROOM: usize = 128;

    /// `buffers` buffers for frames of up to `longest` bytes.
    pub fn new(buffers: usize, longest: usize) -> Heap {
        let room = Heap::HEADROOM + longest.min(usize::from(u16::MAX) - Heap::HEADROOM);
        let memory = Box::leak(vec![0u8; buffers * room].into_boxed_slice());
        let memory = NonNull::from(memory).cast();
        Heap { memory, room, buffers, free: (0..buffers as u32).rev().collect() }
    }

    /// A frame with a copy of `bytes`; `None` if no buffer is free or they do not fit.
    pub fn frame(&mut self, bytes: &[u8]) -> Option<Frame> {
        if bytes.len() > self.room - Heap::HEADROOM {
            return None;
        }
        let buffer = self.free.pop()?;
        let tail = self.room - Heap::HEADROOM - bytes.len();
        // SAFETY: buffer < buffers, so the buffer's `room` bytes are inside the allocation.
        let data = unsafe { self.memory.add(buffer as usize * self.room + Heap::HEADROOM) };
        let token = (buffer as usize + 1) as *mut c_void;
        // SAFETY: the buffer was free, so no other frame refers to it until `give_back` gets this one.
        let mut frame = unsafe { Frame::from_raw(data, token, bytes.len() as u16, Heap::HEADROOM as u16, tail as u16) };
        frame.bytes_mut().copy_from_slice(bytes);
        Some(frame)
    }

    /// Takes a frame's buffer back. The frame must have come from this heap.
    pub fn give_back(&mut self, frame: Frame) {
        let buffer = frame.token as usize;
        assert!(buffer >= 1 && buffer <= self.buffers, "the frame is not this heap's");
        debug_assert!(self.free.len() < self.buffers);
        self.free.push(buffer as u32 - 1);
    }

    /// Buffers that frames hold at the moment.
    pub fn in_use(&self) -> usize {
        self.buffers - self.free.len()
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // Frames still out refer to the memory: then it is left to them.
        if self.in_use() == 0 {
            let memory = std::ptr::slice_from_raw_parts_mut(self.memory.as_ptr(), self.buffers * self.room);
            // SAFETY: leaked in `new` with this length, and no frame refers to it any more.
            drop(unsafe { Box::from_raw(memory) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_moves_between_frame_and_edges() {
        let mut buffer = [7u8; 64];
        let data = NonNull::new(&mut buffer[16] as *mut u8).expect("not null");
        // SAFETY: 16 + 32 + 16 bytes of `buffer`, which nothing else touches while the frame lives.
        let mut frame = unsafe { Frame::from_raw(data, data.as_ptr().cast(), 32, 16, 16) };
        assert!(!frame.grow_front(17));
        assert!(frame.grow_front(16));
        assert_eq!((frame.len(), frame.headroom(), frame.tailroom()), (48, 0, 16));
        assert!(frame.trim_front(48) && frame.is_empty());
        assert!(!frame.trim_front(1));
        assert!(!frame.set_len(17) && frame.set_len(16));
        assert_eq!((frame.headroom(), frame.tailroom()), (48, 0));
        assert_eq!(frame.bytes(), &[7; 16]);
    }

    #[test]
    fn heap_gives_each_buffer_once() {
        let mut heap = Heap::new(2, 100);
        assert!(heap.frame(&[0; 101]).is_none());
        let (one, two) = (heap.frame(&[1; 100]).expect("free"), heap.frame(&[2; 3]).expect("free"));
        assert!(heap.frame(&[]).is_none());
        assert_eq!((one.bytes()[99], two.bytes(), two.tailroom()), (1, &[2u8; 3][..], 97));
        heap.give_back(one);
        assert_eq!(heap.in_use(), 1);
        heap.give_back(two);
        assert_eq!(heap.in_use(), 0);
    }
}
