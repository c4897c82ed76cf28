//! Waiting for the kernel: for frames of its interfaces, for news, and for another thread's sign.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};

/// A sign one thread gives another that waits; given twice before it is seen, it is one.
pub struct Sign(OwnedFd);

impl Sign {
    /// One that is not given.
    pub fn new() -> io::Result<Sign> {
        Ok(Sign(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Gives it.
    pub fn give(&self) {
        // eventfd(2): a write fails only where the count is at its end, and the sign is given then.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn take(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// What there is after a wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// Ports whose interface has frames, or is lost: bit by port.
    pub ports: u64,
    /// Whether there is news.
    pub news: bool,
    /// Whether the sign was given; it is taken.
    pub sign: bool,
}

/// Waits until an interface, a socket or the sign is ready, or so long: none is for ever. Of ports from 64 on nothing is waited
/// for.
pub fn wait<'a>(
    taps: impl Iterator<Item = (u8, BorrowedFd<'a>)>,
    news: [BorrowedFd<'a>; 2],
    sign: &'a Sign,
    timeout: Option<Duration>,
) -> io::Result<Ready> {
    let mut fds: Vec<PollFd<'_>> =
        news.into_iter().chain([sign.0.as_fd()]).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    let mut ports = Vec::new();
    for (port, fd) in taps.filter(|(port, _)| *port < 64) {
        ports.push(port);
        fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
    }
    let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
        result => result?,
    };
    let ready = |at: usize| !fds[at].revents().is_empty();
    let bits = ports.iter().enumerate().filter(|(at, _)| ready(at + 3)).fold(0, |bits, (_, port)| bits | 1 << port);
    let ready = Ready { ports: bits, news: ready(0) || ready(1), sign: ready(2) };
    if ready.sign {
        sign.take();
    }
    Ok(ready)
}
