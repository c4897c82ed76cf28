//! Ports: finding a device, what it can do, configuring it, its queues and its state.
//!
//! A port's life: `probe`, `configure`, `start` (which hands out the queues), `stop` (which wants them back), drop. Owns the
//! order of DPDK's calls; not which queues, sizes and offloads to ask for.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::fs;
use std::marker::PhantomData;
use std::mem;
use std::path::Path;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::eal::{Eal, Lease};
use super::error::{Errno, Error};
use super::pool::{OVERHEAD, Pool};
use crate::packet::{BATCH, Frame};
use crate::wire::ethernet::Rewrite;

mod bond;

pub use bond::{Lacp, Member, Role};

/// Kernel drivers through which DPDK works: the generic ones, and those of NICs that stay with the kernel.
const DRIVERS: &[&str] = &["vfio-pci", "uio_pci_generic", "igb_uio", "mlx4_core", "mlx5_core"];

/// How a port is to be set up.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Receive queues.
    pub rx_queues: u16,
    /// Transmit queues.
    pub tx_queues: u16,
    /// Descriptors of each receive queue, as near as the device allows.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue, as near as the device allows.
    pub tx_descriptors: u16,
    /// Largest packet without its Ethernet header, bytes.
    pub mtu: u16,
    /// Receive frames for other stations too.
    pub promiscuous: bool,
    /// MAC addresses it receives frames for besides its own.
    pub macs: Vec<[u8; 6]>,
    /// Verify checksums in the port, if it can.
    pub checksum: bool,
    /// Spread flows over the receive queues in the port, if it can and there are several.
    pub rss: bool,
    /// Take the outer VLAN tag out in the port, if it can.
    pub vlan_strip: bool,
    /// All buffers this port will ever send come from one pool, and none is referred to twice.
    pub one_pool: bool,
}

/// Who does a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The port.
    Hardware,
    /// flowgate.
    Software,
    /// Nobody: not asked for.
    Off,
}

impl Place {
    /// Its word in `show ports`.
    pub fn name(self) -> &'static str {
        match self {
            Place::Hardware => "hardware",
            Place::Software => "software",
            Place::Off => "off",
        }
    }

    fn of(asked: bool, able: bool) -> Place {
        match (asked, able) {
            (false, _) => Place::Off,
            (true, true) => Place::Hardware,
            (true, false) => Place::Software,
        }
    }
}

/// What became of the offloads asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Verifying IPv4, TCP and UDP checksums.
    pub checksum: Place,
    /// Spreading flows over queues.
    pub rss: Place,
    /// Taking the VLAN tag out.
    pub vlan_strip: Place,
}

/// What a device can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// DPDK's driver.
    pub driver: String,
    /// NUMA node; 0 if the device does not say.
    pub node: u32,
    /// Most receive queues.
    pub rx_queues: u16,
    /// Most transmit queues.
    pub tx_queues: u16,
    /// Smallest MTU.
    pub min_mtu: u16,
    /// Largest MTU.
    pub max_mtu: u16,
    /// Verifies IPv4, TCP and UDP checksums.
    pub checksum: bool,
    /// Spreads flows over queues by a hash.
    pub rss: bool,
    /// Takes VLAN tags out.
    pub vlan_strip: bool,
}

/// A port as it was set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Receive queues.
    pub rx_queues: u16,
    /// Transmit queues.
    pub tx_queues: u16,
    /// Descriptors of each receive queue.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue.
    pub tx_descriptors: u16,
    /// Largest packet without its Ethernet header, bytes.
    pub mtu: u16,
    /// Who does what.
    pub offloads: Offloads,
}

/// A port's link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// True if frames can pass.
    pub up: bool,
    /// Mbit/s; 0 if unknown.
    pub speed: u32,
    /// True if both directions work at once.
    pub full_duplex: bool,
}

/// What the device counted since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames received.
    pub rx_packets: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames lost because the receive rings were full.
    pub rx_missed: u64,
    /// Frames received damaged.
    pub rx_errors: u64,
    /// Frames that could not be sent.
    pub tx_errors: u64,
    /// Frames lost because there was no buffer.
    pub rx_no_buffer: u64,
}

/// A device under flowgate's control.
#[derive(Debug)]
pub struct Port {
    inner: Arc<Inner>,
    abilities: Abilities,
    setup: Option<Setup>,
    started: bool,
    /// Of a bond, its mode as the driver numbers them.
    mode: Option<u32>,
}

/// What port and queues hold in common: the device is closed when the last of them is gone.
#[derive(Debug)]
struct Inner {
    id: u16,
    device: String,
    name: String,
    /// The device behind the port, if it is virtual: such a one is removed with its port.
    virtual_device: Option<Handle>,
    lease: Lease,
    /// Of a bonding device, the devices it works by, which outlive it.
    members: Vec<Port>,
    /// Behind the members, whose rings hold its buffers.
    pool: Mutex<Option<Arc<Pool>>>,
}

/// DPDK wants one caller at a time for all but bursts.
static CONTROL: Mutex<()> = Mutex::new(());

#[derive(Debug)]
struct Handle(*mut dpdk_sys::rte_device);
// SAFETY: a device belongs to no thread; it is used once, to be removed.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Port {
    /// Finds a device, a PCI address or a vdev string (`net_tap0,iface=lan0`), and takes it for this port.
    pub fn probe(eal: &'static Eal, device: &str) -> Result<Port, Error> {
        Port::take(eal, device, Vec::new())
    }

    fn take(eal: &'static Eal, device: &str, members: Vec<Port>) -> Result<Port, Error> {
        let lease = eal.lease()?;
        let text = CString::new(device).map_err(|_| Error::ZeroByte { text: device.into() })?;
        let name = device.split(',').next().unwrap_or(device).to_owned();
        let pci = is_pci(&name);
        if pci {
            check_pci(&name)?;
        }
        if !eal.take_device(&name) {
            return Err(Error::DeviceTaken { device: device.into() });
        }
        let control = lock(&CONTROL);
        eal.log();
        let found = match find(&name) {
            Some(found) => Some(found),
            None => {
                // SAFETY: a C string that lives through the call, and the EAL runs.
                let probed = Errno::check(unsafe { dpdk_sys::rte_dev_probe(text.as_ptr()) });
                probed.ok().and_then(|_| find(&name))
            }
        };
        drop(control);
        let Some((id, handle)) = found else {
            eal.release_device(&name);
            let log = eal.log();
            // The return value does not tell a driver that refuses from one that does not exist.
            return Err(match log.contains("Driver cannot attach") {
                true => Error::Refused { device: device.into(), log },
                false => Error::NoDevice { device: device.into(), log },
            });
        };
        let inner = Inner {
            id,
            device: device.into(),
            name,
            virtual_device: (!pci).then_some(Handle(handle)),
            lease,
            members,
            pool: Mutex::default(),
        };
        let info = inner.info()?;
        let abilities = abilities(id, &info);
        Ok(Port { inner: Arc::new(inner), abilities, setup: None, started: false, mode: None })
    }

    /// The device, as the user wrote it.
    pub fn device(&self) -> &str {
        &self.inner.device
    }

    /// DPDK's number of the port.
    pub fn id(&self) -> u16 {
        self.inner.id
    }

    /// What the device can do.
    pub fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    /// How it was configured.
    pub fn setup(&self) -> Option<&Setup> {
        self.setup.as_ref()
    }

    /// Configures the stopped port; frames are received into buffers of `pool`.
    pub fn configure(&mut self, config: &PortConfig, pool: &Arc<Pool>) -> Result<Setup, Error> {
        self.stop()?;
        let (inner, able) = (&self.inner, &self.abilities);
        let device = || inner.device.clone();
        for (direction, asked, max) in
            [("receive", config.rx_queues, able.rx_queues), ("transmit", config.tx_queues, able.tx_queues)]
        {
            if asked > max {
                return Err(Error::Queues { device: device(), direction, asked, max });
            }
        }
        let max = able.max_mtu.min(u16::try_from(pool.room() - OVERHEAD).unwrap_or(u16::MAX));
        if !(able.min_mtu..=max).contains(&config.mtu) {
            return Err(Error::Mtu { device: device(), asked: config.mtu, min: able.min_mtu, max });
        }
        let info = inner.info()?;
        let offloads = Offloads {
            checksum: Place::of(config.checksum, able.checksum),
            rss: Place::of(config.rss && config.rx_queues > 1, able.rss),
            vlan_strip: Place::of(config.vlan_strip, able.vlan_strip),
        };

        let mut conf = dpdk_sys::rte_eth_conf::default();
        conf.rxmode.mtu = config.mtu.into();
        if offloads.checksum == Place::Hardware {
            conf.rxmode.offloads |= dpdk_sys::FG_RX_CHECKSUM;
        }
        if offloads.vlan_strip == Place::Hardware {
            conf.rxmode.offloads |= dpdk_sys::FG_RX_VLAN_STRIP;
        }
        if config.one_pool {
            conf.txmode.offloads |= info.tx_offload_capa & dpdk_sys::FG_TX_FAST_FREE;
        }
        // A key of one repeated 16-bit word hashes both directions of a flow alike (Woo and Park, "Scalable TCP session
        // monitoring with symmetric receive-side scaling").
        let mut key = [0x6d, 0x5a].repeat(128);
        if offloads.rss == Place::Hardware {
            conf.rxmode.mq_mode = dpdk_sys::RTE_ETH_MQ_RX_RSS;
            let rss = &mut conf.rx_adv_conf.rss_conf;
            rss.rss_key = key.as_mut_ptr();
            rss.rss_key_len = if info.hash_key_size == 0 { 40 } else { info.hash_key_size };
            rss.rss_hf = info.flow_type_rss_offloads & dpdk_sys::FG_RSS_FLOWS;
        }

        let (mut rx_descriptors, mut tx_descriptors) = (config.rx_descriptors, config.tx_descriptors);
        inner.eal().log();
        let _control = lock(&CONTROL);
        let id = inner.id;
        // SAFETY: `conf` and the key it points to live through the call, which copies both.
        inner.step("configure", unsafe {
            dpdk_sys::rte_eth_dev_configure(id, config.rx_queues, config.tx_queues, &conf)
        })?;
        // SAFETY: writes two integers of ours.
        inner.step("adjust descriptors", unsafe {
            dpdk_sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &mut rx_descriptors, &mut tx_descriptors)
        })?;
        // A bond gives it to its members when it starts, and could not before.
        if inner.members.is_empty() {
            // SAFETY: no pointers. Drivers that take the MTU from `conf` alone do not know the call.
            match unsafe { dpdk_sys::rte_eth_dev_set_mtu(id, config.mtu) } {
                result if result == -libc::ENOTSUP => {}
                result => drop(inner.step("set the MTU", result)?),
            }
        }
        *lock(&inner.pool) = Some(Arc::clone(pool));
        for queue in 0..config.rx_queues {
            // SAFETY: the pool lives as long as the port, which holds it; no configuration of its own means the device's.
            inner.step("set up a receive queue", unsafe {
                dpdk_sys::rte_eth_rx_queue_setup(id, queue, rx_descriptors, able.node, ptr::null(), pool.raw())
            })?;
        }
        for queue in 0..config.tx_queues {
            // SAFETY: as above.
            inner.step("set up a transmit queue", unsafe {
                dpdk_sys::rte_eth_tx_queue_setup(id, queue, tx_descriptors, able.node, ptr::null())
            })?;
        }
        // Devices that cannot say so (net_pcap, net_ring) receive everything anyway.
        // SAFETY: no pointers but for an address of ours, which is copied.
        unsafe {
            if config.promiscuous {
                dpdk_sys::rte_eth_promiscuous_enable(id);
            } else {
                dpdk_sys::rte_eth_promiscuous_disable(id);
                // Who routes hears groups: neighbor discovery and routing protocols have theirs. A device that can receive either
                // its own address or everything receives everything.
                if dpdk_sys::rte_eth_allmulticast_enable(id) == -libc::ENOTSUP {
                    dpdk_sys::rte_eth_promiscuous_enable(id);
                }
                for mac in &config.macs {
                    let mut mac = dpdk_sys::rte_ether_addr { addr_bytes: *mac };
                    // One that cannot take another address takes all.
                    if dpdk_sys::rte_eth_dev_mac_addr_add(id, &mut mac, 0) != 0 {
                        dpdk_sys::rte_eth_promiscuous_enable(id);
                    }
                }
            }
        }
        let setup = Setup {
            rx_queues: config.rx_queues,
            tx_queues: config.tx_queues,
            rx_descriptors,
            tx_descriptors,
            mtu: config.mtu,
            offloads,
        };
        self.setup = Some(setup);
        Ok(setup)
    }

    /// Starts the configured port and hands out its queues.
    pub fn start(&mut self) -> Result<(Vec<RxQueue>, Vec<TxQueue>), Error> {
        let refuse = |errno| Error::Device {
            device: self.inner.device.clone(),
            step: "start",
            errno: Errno(errno),
            log: String::new(),
        };
        let Some(setup) = self.setup else { return Err(refuse(libc::EINVAL)) };
        if self.started {
            return Err(refuse(libc::EBUSY));
        }
        self.inner.eal().log();
        let control = lock(&CONTROL);
        // SAFETY: configured, with all queues set up.
        self.inner.step("start", unsafe { dpdk_sys::rte_eth_dev_start(self.inner.id) })?;
        drop(control);
        self.started = true;
        let queue = |queue| Queue { port: self.inner.id, queue, _inner: self.inner.clone(), _one: PhantomData };
        let rx = (0..setup.rx_queues).map(|n| RxQueue(queue(n))).collect();
        let beats = self.speaks_lacp();
        let tx = (0..setup.tx_queues).map(|n| TxQueue { queue: queue(n), beats }).collect();
        Ok((rx, tx))
    }

    /// Stops the port; all its queues must have been dropped. Does nothing to a port that is not started.
    pub fn stop(&mut self) -> Result<(), Error> {
        if !self.started {
            return Ok(());
        }
        if Arc::strong_count(&self.inner) > 1 {
            return Err(Error::QueuesInUse { device: self.inner.device.clone() });
        }
        let _control = lock(&CONTROL);
        // SAFETY: no queue handle is left, so no thread is in a burst.
        self.inner.step("stop", unsafe { dpdk_sys::rte_eth_dev_stop(self.inner.id) })?;
        self.started = false;
        Ok(())
    }

    /// The link as it is now, without waiting for it. That of a bond with LACP is up when the peer agrees to at least one
    /// member.
    pub fn link(&self) -> Link {
        let (mut speed, mut up, mut full) = (0, 0, 0);
        let control = lock(&CONTROL);
        // SAFETY: writes three integers of ours.
        unsafe { dpdk_sys::fg_link(self.inner.id, &mut speed, &mut up, &mut full) };
        drop(control);
        let agreed = || !self.speaks_lacp() || self.members().iter().any(|member| member.role == Role::Active);
        Link { up: up != 0 && agreed(), speed, full_duplex: full != 0 }
    }

    /// The port's own MAC address.
    pub fn mac(&self) -> [u8; 6] {
        let mut mac = dpdk_sys::rte_ether_addr::default();
        let _control = lock(&CONTROL);
        // SAFETY: writes an address of ours.
        unsafe { dpdk_sys::rte_eth_macaddr_get(self.inner.id, &mut mac) };
        mac.addr_bytes
    }

    /// The device's counters; zeros if it has none.
    pub fn stats(&self) -> PortStats {
        let mut stats = dpdk_sys::rte_eth_stats::default();
        let _control = lock(&CONTROL);
        // SAFETY: writes a structure of ours.
        unsafe { dpdk_sys::rte_eth_stats_get(self.inner.id, &mut stats) };
        PortStats {
            rx_packets: stats.ipackets,
            tx_packets: stats.opackets,
            rx_bytes: stats.ibytes,
            tx_bytes: stats.obytes,
            rx_missed: stats.imissed,
            rx_errors: stats.ierrors,
            tx_errors: stats.oerrors,
            rx_no_buffer: stats.rx_nombuf,
        }
    }

    /// The counters of its queues, as far as the device keeps any: its extended statistics called `rx_q0_packets` and the like.
    pub fn queue_stats(&self) -> Vec<QueueStat> {
        let id = self.inner.id;
        let _control = lock(&CONTROL);
        // SAFETY: without room nothing is written, and the number of counters is returned.
        let count = unsafe { dpdk_sys::rte_eth_xstats_get_names(id, ptr::null_mut(), 0) };
        let count = usize::try_from(count).unwrap_or(0);
        let mut names = vec![dpdk_sys::rte_eth_xstat_name::default(); count];
        let mut values = vec![dpdk_sys::rte_eth_xstat::default(); count];
        // SAFETY: each writes at most `count` structures of ours.
        let written = unsafe {
            let named = dpdk_sys::rte_eth_xstats_get_names(id, names.as_mut_ptr(), count as u32);
            named.min(dpdk_sys::rte_eth_xstats_get(id, values.as_mut_ptr(), count as u32))
        };
        // More than there was room for: nothing was written.
        let written = usize::try_from(written).ok().filter(|written| *written <= count).unwrap_or(0);
        let named = |value: &dpdk_sys::rte_eth_xstat| Some((names.get(usize::try_from(value.id).ok()?)?, value.value));
        let read = |(name, value): (&dpdk_sys::rte_eth_xstat_name, u64)| {
            let bytes: Vec<u8> = name.name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
            queue_stat(std::str::from_utf8(&bytes).ok()?, value)
        };
        values[..written].iter().filter_map(named).filter_map(read).collect()
    }

    /// True if the port receives frames for other stations.
    pub fn promiscuous(&self) -> bool {
        // SAFETY: no pointers.
        unsafe { dpdk_sys::rte_eth_promiscuous_get(self.inner.id) == 1 }
    }
}

impl Inner {
    fn eal(&self) -> &'static Eal {
        self.lease.eal()
    }

    fn step(&self, step: &'static str, result: i32) -> Result<i32, Error> {
        Errno::check(result).map_err(|errno| Error::Device {
            device: self.device.clone(),
            step,
            errno,
            log: self.eal().log(),
        })
    }

    fn info(&self) -> Result<dpdk_sys::rte_eth_dev_info, Error> {
        let mut info = dpdk_sys::rte_eth_dev_info::default();
        // SAFETY: writes a structure of ours.
        self.step("ask for its abilities", unsafe { dpdk_sys::rte_eth_dev_info_get(self.id, &mut info) })?;
        Ok(info)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _control = lock(&CONTROL);
        // SAFETY: port and queues are gone, so nobody uses the device. Stopping a stopped port does nothing; closing gives
        // the buffers in its rings back to the pool, which is dropped after this. The handle came from this port.
        unsafe {
            dpdk_sys::rte_eth_dev_stop(self.id);
            dpdk_sys::rte_eth_dev_close(self.id);
            if let Some(Handle(device)) = self.virtual_device {
                dpdk_sys::rte_dev_remove(device);
            }
        }
        self.eal().release_device(&self.name);
    }
}

/// A queue of a started port. One owner: neither `Clone` nor `Sync`.
#[derive(Debug)]
struct Queue {
    port: u16,
    queue: u16,
    _inner: Arc<Inner>,
    _one: PhantomData<Cell<()>>,
}

/// A receive queue.
#[derive(Debug)]
pub struct RxQueue(Queue);

/// A transmit queue.
#[derive(Debug)]
pub struct TxQueue {
    queue: Queue,
    beats: bool,
}

impl RxQueue {
    /// Receives up to `burst` frames into the front of `frames`, whose slots are empty; returns how many.
    #[inline]
    pub fn receive(&mut self, burst: usize, frames: &mut [Frame; BATCH]) -> usize {
        let n = burst.min(BATCH) as u16;
        // SAFETY: the port is started as long as this queue lives, `&mut self` makes this the queue's only user, and there
        // is room for n frames of fg_frame's layout (asserted in io::dpdk).
        usize::from(unsafe { dpdk_sys::fg_rx_burst(self.0.port, self.0.queue, frames.as_mut_ptr().cast(), n) })
    }

    /// Receives up to `burst` frames and sends them, all rewritten alike and otherwise unread; what is refused is freed.
    /// Returns how many were received, and how many of them sent.
    #[inline]
    pub fn relay(&mut self, to: &mut TxQueue, burst: usize, rewrite: &Rewrite) -> (usize, usize) {
        let n = burst.min(BATCH) as u16;
        let (keep, value) = rewrite.words();
        let keep = if *rewrite == Rewrite::NOTHING { std::ptr::null() } else { keep.as_ptr() };
        // SAFETY: both ports are started as long as the queues live, and these are the queues' only users; the rewrite is two
        // arrays of 16 bytes, or a null pointer for none.
        let both = unsafe {
            dpdk_sys::fg_relay(self.0.port, self.0.queue, to.queue.port, to.queue.queue, n, keep, value.as_ptr())
        };
        ((both & 0xffff) as usize, (both >> 16) as usize)
    }
}

impl TxQueue {
    /// Sends frames in order; returns how many the port took: as many slots in front are empty afterwards. The rest are those
    /// it refused, which of a bond need not have been the last. At most [`BATCH`] at a time.
    ///
    /// # Safety
    /// The frames hold mbufs: they were received from a port or taken from a [`Pool`].
    #[inline]
    pub unsafe fn send(&mut self, frames: &mut [Frame]) -> usize {
        let n = frames.len().min(BATCH) as u16;
        // SAFETY: the port is started as long as this queue lives, `&mut self` makes this the queue's only user, and the
        // caller vouches for the mbufs, each of which its frame alone refers to.
        let sent = unsafe { dpdk_sys::fg_tx_burst(self.queue.port, self.queue.queue, frames.as_mut_ptr().cast(), n) };
        // The port owns these buffers now.
        frames[..usize::from(sent)].iter_mut().for_each(Frame::vacate);
        usize::from(sent)
    }

    /// Lets a bond with LACP tell its peer what it has to, which its driver does with a burst only; to be called several times
    /// in 100 ms (`bond_ethdev_mode_set`). Does nothing for other ports.
    #[inline]
    pub fn beat(&mut self) {
        if self.beats {
            // SAFETY: as in `send`; of no frames none is read.
            unsafe { dpdk_sys::fg_tx_burst(self.queue.port, self.queue.queue, ptr::dangling_mut(), 0) };
        }
    }
}

/// A counter of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStat {
    /// True of a receive queue.
    pub receives: bool,
    /// The queue's number.
    pub queue: u16,
    /// What is counted: `packets`, `bytes`, `errors`.
    pub what: String,
    /// How many.
    pub value: u64,
}

/// Reads `rx_q0_packets`.
fn queue_stat(name: &str, value: u64) -> Option<QueueStat> {
    let (receives, rest) = match name.strip_prefix("rx_q") {
        Some(rest) => (true, rest),
        None => (false, name.strip_prefix("tx_q")?),
    };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let what = rest[digits..].trim_start_matches('_');
    let known = matches!(what, "packets" | "bytes" | "errors");
    known.then_some(QueueStat { receives, queue: rest[..digits].parse().ok()?, what: what.to_owned(), value })
}

/// `0000:3b:00.0`, or `3b:00.0` for domain 0.
fn is_pci(name: &str) -> bool {
    let hex =
        |text: &str, longest: usize| (1..=longest).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    let Some((rest, function)) = name.rsplit_once('.') else { return false };
    let mut parts = rest.rsplit(':');
    let (slot, bus, domain) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or("0"));
    parts.next().is_none() && hex(function, 1) && hex(slot, 2) && hex(bus, 2) && hex(domain, 8)
}

/// That a PCI device exists and a driver holds it through which DPDK works.
pub(super) fn check_pci(address: &str) -> Result<(), Error> {
    check_pci_in(Path::new("/sys/bus/pci/devices"), address.split(',').next().unwrap_or(address))
}

fn check_pci_in(sysfs: &Path, address: &str) -> Result<(), Error> {
    let full = if address.matches(':').count() == 1 { format!("0000:{address}") } else { address.to_owned() };
    let path = sysfs.join(full.to_ascii_lowercase());
    if !path.exists() {
        return Err(Error::NoDevice { device: address.into(), log: String::new() });
    }
    let driver = fs::read_link(path.join("driver")).ok();
    let driver = driver.and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()));
    match driver {
        Some(driver) if DRIVERS.contains(&driver.as_str()) => Ok(()),
        driver => Err(Error::NotBound { device: address.into(), driver }),
    }
}

/// The first port of a device.
fn find(name: &str) -> Option<(u16, *mut dpdk_sys::rte_device)> {
    let mut id = 0;
    loop {
        // SAFETY: no pointers; gives RTE_MAX_ETHPORTS past the last port.
        id = unsafe { dpdk_sys::rte_eth_find_next(id) };
        if u32::from(id) >= dpdk_sys::RTE_MAX_ETHPORTS {
            return None;
        }
        let mut info = dpdk_sys::rte_eth_dev_info::default();
        // SAFETY: writes a structure of ours.
        let good = unsafe { dpdk_sys::rte_eth_dev_info_get(id, &mut info) } == 0;
        if good && !info.device.is_null() {
            // SAFETY: a device's name is a C string that lives as long as the device, which its port shows.
            let of = unsafe { CStr::from_ptr(dpdk_sys::rte_dev_name(info.device)) }.to_string_lossy();
            if of == name || of.strip_prefix("0000:") == Some(name) {
                return Some((id, info.device));
            }
        }
        id += 1;
    }
}

fn abilities(id: u16, info: &dpdk_sys::rte_eth_dev_info) -> Abilities {
    // SAFETY: the driver's name is a static C string.
    let driver = unsafe { CStr::from_ptr(info.driver_name) }.to_string_lossy().into_owned();
    // SAFETY: no pointers; negative for an unknown node.
    let node = unsafe { dpdk_sys::rte_eth_dev_socket_id(id) };
    // A device may bound the frame more tightly than the MTU; the difference is its overhead, if it gives both.
    let overhead = match info.max_rx_pktlen.checked_sub(info.max_mtu.into()) {
        Some(overhead) if info.max_mtu != u16::MAX => overhead,
        _ => 14 + 4,
    };
    let by_frame = info.max_rx_pktlen.saturating_sub(overhead);
    Abilities {
        driver,
        node: u32::try_from(node).unwrap_or(0),
        rx_queues: info.max_rx_queues,
        tx_queues: info.max_tx_queues,
        min_mtu: info.min_mtu,
        max_mtu: info.max_mtu.min(u16::try_from(by_frame).unwrap_or(u16::MAX)),
        checksum: info.rx_offload_capa & dpdk_sys::FG_RX_CHECKSUM == dpdk_sys::FG_RX_CHECKSUM,
        rss: info.flow_type_rss_offloads & dpdk_sys::FG_RSS_FLOWS != 0,
        vlan_strip: info.rx_offload_capa & dpdk_sys::FG_RX_VLAN_STRIP != 0,
    }
}

/// A lock whose data stays good when a holder panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const _: () = assert!(mem::size_of::<dpdk_sys::rte_ether_addr>() == 6);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_queues_are_read_by_their_names() {
        let read = |name| queue_stat(name, 7).map(|stat| (stat.receives, stat.queue, stat.what));
        assert_eq!(read("rx_q0_packets"), Some((true, 0, "packets".into())));
        assert_eq!(read("tx_q12bytes"), Some((false, 12, "bytes".into())));
        for other in ["rx_good_packets", "rx_q_packets", "rx_q0_xdp_drops", "rx_q70000_packets", "q0_packets", ""] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn pci_addresses_are_told_from_vdevs() {
        for good in ["0000:3b:00.0", "3b:00.1", "0000:ff:1f.7"] {
            assert!(is_pci(good), "{good}");
        }
        for bad in ["net_tap0", "net_pcap0,rx_pcap=a:b.1", "0000:3b:00", "a:b:c:d.0", ""] {
            assert!(!is_pci(bad), "{bad}");
        }
    }

    #[test]
    fn a_pci_device_must_exist_and_be_bound() {
        let sysfs = tempfile::tempdir().expect("a directory");
        let address = "0000:3b:00.0";
        let check = || check_pci_in(sysfs.path(), "3b:00.0");
        assert!(matches!(check(), Err(Error::NoDevice { .. })));
        fs::create_dir(sysfs.path().join(address)).expect("made");
        assert!(matches!(check(), Err(Error::NotBound { driver: None, .. })));
        let link = sysfs.path().join(address).join("driver");
        std::os::unix::fs::symlink("/nowhere/drivers/ixgbe", &link).expect("linked");
        assert!(
            check().unwrap_err().to_string().contains("held by the kernel driver ixgbe: `scripts/bind.sh vfio-pci")
        );
        fs::remove_file(&link).and_then(|()| std::os::unix::fs::symlink("/nowhere/vfio-pci", &link)).expect("linked");
        assert_eq!(check(), Ok(()));
    }
}
