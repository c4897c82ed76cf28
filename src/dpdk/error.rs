//! What can go wrong between flowgate and DPDK, each with the one message the operator sees. Decides nothing.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fmt;
use std::path::PathBuf;

/// A DPDK error number: positive, of `errno.h` or `rte_errno.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// This thread's `rte_errno`.
    pub fn last() -> Errno {
        // SAFETY: reads a thread-local integer.
        Errno(unsafe { dpdk_sys::fg_errno() })
    }

    /// From a function's result: zero or more is good, less is a negated error number.
    pub fn check(result: i32) -> Result<i32, Errno> {
        if result < 0 { Err(Errno(-result)) } else { Ok(result) }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: rte_strerror returns a C string for every number, in a buffer of this thread.
        let text = unsafe { CStr::from_ptr(dpdk_sys::rte_strerror(self.0)) };
        f.write_str(&text.to_string_lossy())
    }
}

/// An error of the environment or of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The library found at run time is not of the release flowgate was built for.
    Version {
        /// As pkg-config named it at build time.
        built: String,
        /// What `rte_version()` says now.
        running: String,
    },
    /// The EAL runs already: it starts once per process.
    Started,
    /// The EAL was closed.
    Closed,
    /// `rte_eal_init` failed.
    Init {
        /// Its error number.
        errno: Errno,
        /// Its own log.
        log: String,
    },
    /// There is no mounted hugetlbfs this process may write to.
    NoHugetlbfs,
    /// Too few free hugepages.
    Hugepages {
        /// Memory asked for, MB.
        asked: u64,
        /// Memory in free hugepages of the mounted sizes, MB.
        free: u64,
        /// Size of one page, kB.
        page: u64,
        /// How many pages there should be.
        pages: u64,
    },
    /// DPDK's runtime directory cannot be written.
    RuntimeDir {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Another live process uses the file prefix.
    InUse {
        /// The prefix.
        prefix: String,
        /// The process, if known.
        pid: Option<u32>,
    },
    /// A CPU does not exist.
    NoCore {
        /// Which.
        core: u16,
        /// The CPUs that are online, as a list.
        online: String,
    },
    /// A CPU exists and this process may not use it (taskset, cpuset).
    ForbiddenCore {
        /// Which.
        core: u16,
        /// The CPUs it may use, as a list.
        allowed: String,
    },
    /// A CPU is given to two workers.
    CoreTwice {
        /// Which.
        core: u16,
    },
    /// More workers than DPDK has lcores.
    TooManyCores {
        /// The most there can be.
        max: usize,
    },
    /// A worker's lcore does not exist or is at work.
    Lcore {
        /// The worker.
        worker: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A text for DPDK contains a zero byte.
    ZeroByte {
        /// The text.
        text: String,
    },
    /// A memory pool could not be made.
    Pool {
        /// Its name.
        name: String,
        /// Memory it would have taken, MB.
        megabytes: u64,
        /// Why.
        errno: Errno,
    },
    /// A driver exists for the device and does not take it.
    Refused {
        /// As the user wrote it.
        device: String,
        /// What DPDK logged.
        log: String,
    },
    /// There is no such device.
    NoDevice {
        /// As the user wrote it.
        device: String,
        /// DPDK's own words, if it said any.
        log: String,
    },
    /// The device is held by a driver DPDK cannot work through, or by none.
    NotBound {
        /// Its PCI address.
        device: String,
        /// The driver that holds it now.
        driver: Option<String>,
    },
    /// The device is in use by another port of this process.
    DeviceTaken {
        /// As the user wrote it.
        device: String,
    },
    /// More queues than the device has.
    Queues {
        /// The device.
        device: String,
        /// `receive` or `transmit`.
        direction: &'static str,
        /// Asked for.
        asked: u16,
        /// The most it has.
        max: u16,
    },
    /// The device cannot do the MTU.
    Mtu {
        /// The device.
        device: String,
        /// Asked for.
        asked: u16,
        /// The smallest it takes.
        min: u16,
        /// The largest it takes.
        max: u16,
    },
    /// The device refused a step.
    Device {
        /// The device.
        device: String,
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        errno: Errno,
        /// DPDK's own words, if it said any.
        log: String,
    },
    /// A port cannot be stopped while its queues are in use.
    QueuesInUse {
        /// The device.
        device: String,
    },
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Version { built, running } => write!(
                f,
                "flowgate was built against libdpdk {built} and runs with {running}: rebuild it here, or install libdpdk \
                 of the release it was built for"
            ),
            Error::Started => f.write_str("DPDK's EAL runs already: it starts once per process"),
            Error::Closed => f.write_str("DPDK's EAL was closed"),
            Error::Init { errno, log } => {
                write!(f, "DPDK's EAL did not start: {errno}")?;
                said(f, log)
            }
            Error::NoHugetlbfs => f.write_str(
                "no hugetlbfs is mounted that this process may write to: as root, `mkdir -p /dev/hugepages && mount -t \
                 hugetlbfs nodev /dev/hugepages` (scripts/setup.sh does it), or set hugepages = \"off\"",
            ),
            Error::Hugepages { asked, free, page, pages } => write!(
                f,
                "{asked} MB in hugepages are needed and {free} MB are free: as root, `echo {pages} > \
                 /sys/kernel/mm/hugepages/hugepages-{page}kB/nr_hugepages` (scripts/setup.sh does it), or set hugepages = \
                 \"off\""
            ),
            Error::RuntimeDir { path, why } => write!(
                f,
                "DPDK's runtime directory {} cannot be used: {why}; run as root, or point XDG_RUNTIME_DIR to a directory \
                 this user may write",
                path.display()
            ),
            Error::InUse { prefix, pid } => {
                write!(f, "another process")?;
                if let Some(pid) = pid {
                    write!(f, " ({pid})")?;
                }
                write!(f, " already runs with the file prefix `{prefix}`: stop it, or give this one another socket")
            }
            Error::NoCore { core, online } => write!(f, "core {core} does not exist or is offline; online: {online}"),
            Error::ForbiddenCore { core, allowed } => {
                write!(f, "core {core} is outside this process's CPU set (taskset, cpuset cgroup); allowed: {allowed}")
            }
            Error::CoreTwice { core } => {
                write!(f, "core {core} is given to two workers: give each its own, or set oversubscribe = true")
            }
            Error::TooManyCores { max } => write!(f, "more than {max} workers: this libdpdk has no more lcores"),
            Error::Lcore { worker, why } => write!(f, "worker {worker} cannot be launched: {why}"),
            Error::ZeroByte { text } => write!(f, "{text:?} contains a zero byte"),
            Error::Pool { name, megabytes, errno } => write!(
                f,
                "no memory for the packet pool `{name}` ({megabytes} MB): {errno}; raise the memory, or ask for fewer \
                 packets or a smaller MTU"
            ),
            Error::NoDevice { device, log } => {
                write!(
                    f,
                    "there is no device `{device}`: give a PCI address (0000:3b:00.0) or a vdev (net_tap0,iface=x)"
                )?;
                said(f, log)
            }
            Error::Refused { device, log } => {
                write!(f, "its driver does not take `{device}`: check the arguments, and whether root is needed")?;
                said(f, log)
            }
            Error::NotBound { device, driver } => {
                match driver {
                    Some(driver) => write!(f, "{device} is held by the kernel driver {driver}")?,
                    None => write!(f, "{device} is bound to no driver")?,
                }
                write!(f, ": `scripts/bind.sh vfio-pci {device}` gives it to vfio-pci")
            }
            Error::DeviceTaken { device } => write!(f, "the device `{device}` already belongs to another port"),
            Error::Queues { device, direction, asked, max } => {
                write!(f, "{asked} {direction} queues asked of `{device}`, which has at most {max}")
            }
            Error::Mtu { device, asked, min, max } => {
                write!(f, "MTU {asked} asked of `{device}`, which takes {min} to {max}")
            }
            Error::Device { device, step, errno, log } => {
                write!(f, "`{device}`: {step} failed: {errno}")?;
                said(f, log)
            }
            Error::QueuesInUse { device } => write!(f, "`{device}`: its queues are still in use"),
        }
    }
}

/// DPDK's own words on one line behind ours.
fn said(f: &mut fmt::Formatter<'_>, log: &str) -> fmt::Result {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { Ok(()) } else { write!(f, " (DPDK says: {})", lines.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpdk_names_its_errors() {
        assert_eq!(Errno::check(3), Ok(3));
        let error = Error::Device {
            device: "net_null0".into(),
            step: "start",
            errno: Errno::check(-libc::EBUSY).unwrap_err(),
            log: "ETHDEV: one\n\n two \n".into(),
        };
        assert_eq!(
            error.to_string(),
            "`net_null0`: start failed: Device or resource busy (DPDK says: ETHDEV: one; two)"
        );
    }
}
