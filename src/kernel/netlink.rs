//! Route netlink as bytes (rtnetlink(7)): requests, sockets, and the walk over messages and attributes. What they mean is
//! said elsewhere.
//!
//! All numbers are in the host's order unless an address. Only processes that may change the network's configuration can send
//! to another's route netlink socket, so senders are not told apart.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::NlasIterator;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::{RecvFlags, sockopt};

/// Bytes of a message's header.
const HEADER: usize = 16;

/// The largest datagram the kernel makes: it fits dumps to the buffer they are read with, up to this.
pub const DATAGRAM: usize = 32 << 10;

/// What is asked of the kernel.
#[derive(Clone, Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// A message of a type (`RTM_`) with flags (`NLM_F_`) besides `NLM_F_REQUEST`, and the header of its type.
    pub fn new(kind: u16, flags: i32, header: &[u8]) -> Request {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags as u16 | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(header);
        Request(bytes)
    }

    /// The same with one more attribute; at most 65,531 bytes.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Request {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// The same, to be acknowledged: any request but one for a dump, whose end tells.
    pub fn acknowledged(mut self) -> Request {
        let flags = u16::from_ne_bytes([self.0[6], self.0[7]]) | libc::NLM_F_ACK as u16;
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self
    }

    /// Its bytes, under a number its answer will have.
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// A message of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its type: `RTM_` or `NLMSG_`.
    pub kind: u16,
    /// `NLM_F_`.
    pub flags: u16,
    /// Of the request it answers; 0 for news.
    pub sequence: u32,
    /// What is behind the header.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// What `NLMSG_ERROR` or `NLMSG_DONE` reports, if it is one of these.
    pub fn result(&self) -> Option<io::Result<()>> {
        if ![libc::NLMSG_ERROR as u16, libc::NLMSG_DONE as u16].contains(&self.kind) {
            return None;
        }
        let code = word(self.payload).map_or(0, |code| code as i32);
        Some(if code < 0 { Err(io::Error::from_raw_os_error(code.wrapping_neg())) } else { Ok(()) })
    }
}

/// The messages of a datagram, and whether they filled it: the walk ends at the first whose length cannot be.
pub fn messages<'a>(datagram: &'a [u8], mut each: impl FnMut(Message<'a>)) -> bool {
    let mut rest = datagram;
    while rest.len() >= HEADER {
        let half = |at: usize| u16::from_ne_bytes([rest[at], rest[at + 1]]);
        let length = word(rest).map_or(0, |length| length as usize);
        let Some(payload) = rest.get(HEADER..length) else { return false };
        each(Message { kind: half(4), flags: half(6), sequence: word(&rest[8..]).unwrap_or_default(), payload });
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    rest.is_empty()
}

/// The attributes behind a header of so many bytes: type without its flag bits, and value. None if one of them is cut off.
pub fn attributes(payload: &[u8], header: usize, mut each: impl FnMut(u16, &[u8])) -> Option<()> {
    for attribute in NlasIterator::new(payload.get(header..)?) {
        let attribute = attribute.ok()?;
        each(attribute.kind(), attribute.value());
    }
    Some(())
}

/// The number that bytes begin with.
pub fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// A socket, in the namespace of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one that hears of these groups (`RTNLGRP_`), with room for so many bytes of unread messages.
    pub fn open(groups: &[u32], room: usize) -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        // What the kernel selects for a dump need not be selected here; kernels before 4.20 select nothing.
        let _ = socket.set_netlink_get_strict_chk(true);
        // Without the right to more, as much as net.core.rmem_max allows.
        sockopt::set_socket_recv_buffer_size_force(&socket, room)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, room))?;
        socket.bind_auto()?;
        groups.iter().try_for_each(|group| socket.add_membership(*group))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends a request, and returns its number.
    pub fn send(&mut self, request: Request) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.socket.send_to(&request.finish(self.sequence), &SocketAddr::new(0, 0), 0)?;
        Ok(self.sequence)
    }

    /// Takes a datagram that has arrived. One larger than the buffer is an error.
    pub fn receive<'b>(&self, buffer: &'b mut [u8], wait: bool) -> io::Result<&'b [u8]> {
        let flags = if wait { RecvFlags::TRUNC } else { RecvFlags::TRUNC | RecvFlags::DONTWAIT };
        let (taken, whole) = rustix::net::recv(&self.socket, &mut *buffer, flags)?;
        if whole > taken { Err(io::ErrorKind::InvalidData.into()) } else { Ok(&buffer[..taken]) }
    }

    /// Sends a request and waits for all of the answer, which the kernel gives before anything else can happen.
    pub fn ask(&mut self, request: Request, mut each: impl FnMut(Message<'_>)) -> io::Result<()> {
        let number = self.send(request)?;
        let mut buffer = vec![0; DATAGRAM];
        let mut end = None;
        while end.is_none() {
            messages(self.receive(&mut buffer, true)?, |message| {
                if message.sequence == number {
                    match message.result() {
                        None => each(message),
                        some => end = some,
                    }
                }
            });
        }
        end.expect("the loop ends with it")
    }

    /// Sends a request for a change and waits until it is done.
    pub fn change(&mut self, request: Request) -> io::Result<()> {
        self.ask(request, |_| ())
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
