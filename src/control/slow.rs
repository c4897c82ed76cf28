//! The slow path: what is for the box itself goes to its kernel, what the kernel sends goes out, and routing is kept up.
//!
//! One thread of control. It takes frames from the workers' rings and gives frames to one of them; it alone changes what
//! workers read of routes and neighbors.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::arch::Clock;
use crate::dpdk::ring::{Consumer, Producer};
use crate::io::Io;
use crate::io::dpdk::DpdkIo;
use crate::kernel::{Event, Kernel, poll};
use crate::packet::{BATCH, Frame, SELF_PORT};
use crate::route::Source;
use crate::route::router::Router;
use crate::wire::ethernet::{Ethernet, ethertype};

/// How long the rings are left alone when nothing happens.
const IDLE: Duration = Duration::from_millis(1);
/// Frames taken from one kernel interface, and messages read from the kernel, at a time.
const TURN: usize = 256;
/// Routes taken over at a time.
const NEWS: usize = 4096;
/// Longest frame of a kernel interface.
const LONGEST: usize = 10_000;

/// What the thread is told: to go on, to say its last words and give back what it gets, to end.
const RUN: u8 = 0;
const FAREWELL: u8 = 1;
const END: u8 = 2;

/// What control has the slow path do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A port's interface gets an address, or loses it.
    Address {
        /// The port.
        port: u8,
        /// The address and its subnet.
        net: IpNet,
        /// True if it gets it.
        added: bool,
    },
}

/// What the slow path is started with.
pub struct Slow {
    /// Routing.
    pub router: Arc<Mutex<Router>>,
    /// The kernel's interfaces, if there are any.
    pub kernel: Option<Kernel>,
    /// From each worker, frames for the box.
    pub from: Vec<Consumer>,
    /// To the worker that sends the box's frames.
    pub to: Producer,
    /// Buffers.
    pub io: DpdkIo,
    /// Bit per port with a device: its link is up.
    pub links: Arc<AtomicU64>,
    /// By logical port: the port that carries its frames.
    pub carriers: Vec<u8>,
    /// The appliance's clock.
    pub clock: Arc<Clock>,
    /// From control.
    pub orders: mpsc::Receiver<Order>,
}

/// A running slow path.
pub struct Running {
    stop: Arc<AtomicU8>,
    sign: Arc<poll::Sign>,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    /// Starts the thread; it stops when the result is dropped.
    pub fn start(self) -> std::io::Result<Running> {
        let (stop, sign) = (Arc::new(AtomicU8::new(RUN)), Arc::new(poll::Sign::new()?));
        let (its_stop, its_sign) = (stop.clone(), sign.clone());
        let run = move || self.run(&its_stop, &its_sign);
        let thread = std::thread::Builder::new().name("flowgate-slow".into()).spawn(run)?;
        Ok(Running { stop, sign, thread: Some(thread) })
    }

    fn run(mut self, stop: &AtomicU8, sign: &poll::Sign) {
        let mut links = self.links.load(Ordering::Relaxed);
        let now = self.clock.now();
        lock(&self.router).start(links, &self.carriers, now);
        let mut retry = Instant::now();
        let mut said = Vec::new();
        while stop.load(Ordering::Relaxed) == RUN {
            let now = self.clock.now();
            let mut busy = self.take(now);
            busy |= self.give();
            self.obey();
            busy |= self.follow(now);
            links = self.follow_links(links, now);
            let (sends, notes) = {
                let mut router = lock(&self.router);
                router.serve(now);
                (std::mem::take(&mut router.sends), std::mem::take(&mut router.notes))
            };
            self.send(sends);
            notes.iter().for_each(|note| eprintln!("flowgate: {note}"));
            if let Some(kernel) = self.kernel.as_mut().filter(|_| retry.elapsed() > Duration::from_secs(1)) {
                retry = Instant::now();
                let wrong = kernel.retry();
                // What stays wrong is said once.
                wrong.iter().filter(|one| !said.contains(*one)).for_each(|one| eprintln!("flowgate: {one}"));
                said = wrong;
            }
            if !busy {
                self.rest(sign);
            }
        }
        let now = self.clock.now();
        let sends = {
            let mut router = lock(&self.router);
            router.stop(now);
            std::mem::take(&mut router.sends)
        };
        self.send(sends);
        // The last words go out with the workers' next turns; what they still bring is given back.
        loop {
            let ended = stop.load(Ordering::Acquire) == END;
            self.drain();
            if ended {
                return;
            }
            std::thread::sleep(IDLE);
        }
    }

    /// Frames for the box: control hears ARP and neighbor discovery, the kernel the rest, and answers too.
    fn take(&mut self, now: u64) -> bool {
        let mut busy = false;
        for at in 0..self.from.len() {
            let mut frames = [const { Frame::EMPTY }; BATCH];
            let n = self.from[at].pop(&mut frames);
            busy |= n > 0;
            for frame in &mut frames[..n] {
                let port = frame.port;
                let tags = usize::from(self.carriers.get(usize::from(port)).is_some_and(|carrier| *carrier != port));
                untag(frame, tags);
                let bytes = frame.bytes();
                let discovery = is_discovery(bytes);
                if discovery.is_some() {
                    lock(&self.router).receive(port, bytes, now);
                }
                // Who asks for an address is answered here, for the kernel's addresses too.
                if discovery != Some(true)
                    && let Some(tap) = self.kernel.as_ref().and_then(|kernel| kernel.tap(port))
                {
                    // A queue that is full drops, as any interface's does.
                    let _ = tap.send(bytes);
                }
            }
            self.io.free(&mut frames[..n]);
        }
        busy
    }

    /// Frames the kernel sends.
    fn give(&mut self) -> bool {
        let Some(kernel) = &self.kernel else { return false };
        let mut busy = false;
        let mut buffer = [0; LONGEST];
        for port in 0..self.carriers.len() as u8 {
            let Some(tap) = kernel.tap(port) else { continue };
            for _ in 0..TURN {
                let Ok(Some(len)) = tap.receive(&mut buffer) else { break };
                busy = true;
                hand(&mut self.io, &mut self.to, port, &buffer[..len]);
            }
        }
        busy
    }

    fn send(&mut self, sends: Vec<(u8, Vec<u8>)>) {
        for (port, bytes) in sends {
            hand(&mut self.io, &mut self.to, port, &bytes);
        }
    }

    /// What control wants of the kernel's interfaces. Routing knows already.
    fn obey(&mut self) {
        while let Ok(Order::Address { port, net, added }) = self.orders.try_recv() {
            if let Some(Err(error)) = self.kernel.as_mut().map(|kernel| kernel.set_address(port, net, added)) {
                eprintln!("flowgate: {error}");
            }
        }
    }

    /// What the kernel has to tell of routes and addresses.
    fn follow(&mut self, now: u64) -> bool {
        let Some(kernel) = &mut self.kernel else { return false };
        let mut events = Vec::new();
        let more = kernel.poll(Instant::now(), NEWS, &mut |event| events.push(event)).unwrap_or_else(|error| {
            eprintln!("flowgate: {error}");
            false
        });
        if events.is_empty() {
            return more;
        }
        let mut router = lock(&self.router);
        for event in events {
            match event {
                Event::Address { port, net, added } => router.address(port, net, added, now),
                Event::Route { route, added } => router.route(Source::Kernel, &route, added),
                Event::Link { port, admin_up, .. } => {
                    let carried = self.carriers.get(usize::from(port)).copied().unwrap_or(port);
                    let up = self.links.load(Ordering::Relaxed) & (1 << carried) != 0;
                    router.link(port, admin_up && up, now);
                }
                Event::Lost { port } => {
                    let name = router.ports().get(usize::from(port)).map_or_else(String::new, |port| port.name.clone());
                    eprintln!("flowgate: kernel interface {name:?} is gone; making it again");
                }
                Event::Synced => {}
            }
        }
        true
    }

    fn follow_links(&mut self, before: u64, now: u64) -> u64 {
        let links = self.links.load(Ordering::Relaxed);
        if links == before {
            return links;
        }
        for (port, carrier) in self.carriers.iter().enumerate() {
            let up = links & (1 << carrier) != 0;
            if (before & (1 << carrier) != 0) != up {
                lock(&self.router).link(port as u8, up, now);
                if let Some(Err(error)) = self.kernel.as_mut().map(|kernel| kernel.set_link(port as u8, up)) {
                    eprintln!("flowgate: {error}");
                }
            }
        }
        links
    }

    /// Waits a little: for the kernel, or for the rings' next time.
    fn rest(&self, sign: &poll::Sign) {
        let Some(kernel) = &self.kernel else { return std::thread::sleep(IDLE) };
        let taps = (0..self.carriers.len() as u8).filter_map(|port| Some((port, kernel.tap(port)?.as_fd())));
        if poll::wait(taps, kernel.follower().sockets(), sign, Some(IDLE)).is_err() {
            std::thread::sleep(IDLE);
        }
    }

    fn drain(&mut self) {
        for ring in &mut self.from {
            let mut frames = [const { Frame::EMPTY }; BATCH];
            loop {
                let n = ring.pop(&mut frames);
                if n == 0 {
                    break;
                }
                self.io.free(&mut frames[..n]);
            }
        }
    }
}

/// Lets a worker send a frame in the name of the box. Without a buffer, or with a full ring, it is lost as on any link.
fn hand(io: &mut DpdkIo, to: &mut Producer, port: u8, bytes: &[u8]) {
    let Some(mut frame) = io.create() else { return };
    // Short frames are padded, as a card does.
    let len = bytes.len().max(60);
    if frame.set_len(len) {
        let room = frame.bytes_mut();
        room[..bytes.len()].copy_from_slice(bytes);
        room[bytes.len()..].fill(0);
        (frame.port, frame.vlan_tci) = (SELF_PORT, port.into());
        if to.push(std::slice::from_mut(&mut frame)) == 1 {
            return;
        }
    }
    io.free(std::slice::from_mut(&mut frame));
}

/// Takes the tags of a frame out, if its port is a VLAN.
fn untag(frame: &mut Frame, carried: usize) {
    while carried > 0
        && frame.len() >= 18
        && let kind = u16::from_be_bytes([frame.bytes()[12], frame.bytes()[13]])
        && matches!(kind, ethertype::VLAN | ethertype::SERVICE_VLAN)
    {
        frame.bytes_mut().copy_within(0..12, 4);
        if !frame.trim_front(4) {
            return;
        }
    }
}

/// ARP or neighbor discovery: true if it asks for an address. None if it is neither.
fn is_discovery(bytes: &[u8]) -> Option<bool> {
    let ethernet = Ethernet::parse(bytes)?;
    let packet = &bytes[Ethernet::LEN..];
    match ethernet.ethertype() {
        ethertype::ARP => Some(packet.get(6..8)? == [0, 1]),
        // Next header ICMPv6 at once: discovery comes without extension headers, or is not believed.
        ethertype::IPV6 if packet.get(6) == Some(&58) => match packet.get(40)? {
            135 => Some(true),
            133 | 134 | 136 | 137 => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn lock(router: &Mutex<Router>) -> std::sync::MutexGuard<'_, Router> {
    router.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    /// Says what there is to say at the end, and gives workers the time to send it. From now on what they bring is dropped.
    pub fn say_farewell(&self) {
        self.stop.store(FAREWELL, Ordering::Relaxed);
        self.sign.give();
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(END, Ordering::Release);
        self.sign.give();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
