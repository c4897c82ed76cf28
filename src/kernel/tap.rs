//! A TAP device: the kernel's interface for a port, and whole Ethernet frames to and from it. It goes when it is dropped or the
//! process ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use super::link;
use super::netlink::Netlink;

/// A TAP device.
pub struct Tap {
    device: SyncDevice,
    index: u32,
}

impl Tap {
    /// Makes one in this thread's namespace; `netlink` is a socket of that. It is down yet.
    pub fn open(netlink: &mut Netlink, name: &str) -> Result<Tap, String> {
        let wrong = |error: io::Error| format!("kernel interface {name:?}: {error}");
        // The kernel would attach to a persistent TAP of that name, which is another's.
        if link::find(netlink, name).map_err(wrong)?.is_some() {
            return Err(format!(
                "kernel interface {name:?} exists already; give the port another name, remove the interface \
                 (`ip link del {name}`), or set kernel.namespace"
            ));
        }
        let device = DeviceBuilder::new().name(name).layer(Layer::L2).enable(false).build_sync().map_err(|error| {
            let help = match error.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => "; this takes the right to administer the network (CAP_NET_ADMIN)",
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => "; load the module with `modprobe tun`",
                _ => "",
            };
            format!("kernel interface {name:?}: /dev/net/tun: {error}{help}")
        })?;
        device.set_nonblocking(true).map_err(wrong)?;
        let index = link::find(netlink, name).map_err(wrong)?;
        Ok(Tap { device, index: index.ok_or_else(|| format!("kernel interface {name:?} went away at once"))? })
    }

    /// Index of the interface.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Takes a frame the kernel sends, if one waits, and returns its length: with VLAN tags, without checksum. What is longer
    /// than the buffer is cut off.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.device.recv(buffer) {
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind()) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Gives the kernel a whole frame. An error means that it did not take it: `EIO` if the interface is administratively down.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.device.send(frame).map(drop)
    }

    /// Whether an error of these means that the interface was deleted.
    pub fn is_lost(error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::EBADFD)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
