//! The slow path: what is for the box itself goes to its kernel, what the kernel sends goes out, and routing is kept up.
//!
//! One thread of control. It takes frames from the workers' rings and gives frames to one of them; it alone changes what
//! workers read of routes and neighbors. It keeps an account of frames as a worker does, so that none ends uncounted, and does
//! everything in portions, so that nothing waits long for anything else.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::arch::{Clock, cycles};
use crate::dpdk::ring::{Consumer, Producer};
use crate::io::Io;
use crate::io::dpdk::DpdkIo;
use crate::kernel::{Event, Kernel, poll};
use crate::packet::{BATCH, Frame, SELF_PORT};
use crate::route::Source;
use crate::route::router::Router;
use crate::stats::{Account, Engine, Published, Sheet};
use crate::wire::ethernet::{Ethernet, ethertype};

/// How long the rings are left alone when nothing happens.
const IDLE: Duration = Duration::from_millis(1);
/// Frames taken from one kernel interface, and from one worker, at a time.
const TURN: usize = 256;
/// Messages of the kernel read, and routes taken over, at a time: a few milliseconds' work.
const NEWS: usize = 1024;
/// Between two publications of the account, in nanoseconds.
const UPKEEP: u64 = 5_000_000;
/// Longest frame of a kernel interface.
const LONGEST: usize = 10_000;

/// What the thread is told: to go on, to say its last words and give back what it gets, to end. In between, it says that it
/// has said them.
const RUN: u8 = 0;
const FAREWELL: u8 = 1;
const SAID: u8 = 2;
const END: u8 = 3;

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
    /// Its account, of the layout without stages.
    pub sheet: Sheet,
    /// Where others see the account.
    pub published: Arc<Published>,
}

/// A running slow path.
pub struct Running {
    stop: Arc<AtomicU8>,
    sign: Arc<poll::Sign>,
    thread: Option<JoinHandle<Sheet>>,
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

    fn run(mut self, stop: &AtomicU8, sign: &poll::Sign) -> Sheet {
        let mut seen = Seen { links: self.links.load(Ordering::Relaxed), ..Seen::default() };
        lock(&self.router).start(seen.links, &self.carriers, self.clock.now());
        let (mut retried, mut published, mut before) = (Instant::now(), 0, cycles());
        while stop.load(Ordering::Relaxed) == RUN {
            let now = self.clock.now();
            let mut busy = self.take(now);
            busy |= self.give();
            self.obey();
            busy |= self.follow(&mut seen, now);
            self.follow_links(&mut seen, now);
            let (sends, notes) = {
                let mut router = lock(&self.router);
                router.serve(now);
                (std::mem::take(&mut router.sends), std::mem::take(&mut router.notes))
            };
            self.send(sends);
            notes.iter().for_each(|note| eprintln!("flowgate: {note}"));
            if let Some(kernel) = self.kernel.as_mut().filter(|_| retried.elapsed() > Duration::from_secs(1)) {
                retried = Instant::now();
                say(&mut seen.wrong, kernel.retry());
            }
            let after = cycles();
            self.sheet.account(Account::Turns, 1);
            if busy {
                self.sheet.account(Account::BusyTurns, 1);
                self.sheet.account(Account::BusyCycles, after - before);
            }
            if now.saturating_sub(published) >= UPKEEP {
                published = now;
                self.published.publish(&self.sheet);
            }
            if !busy {
                self.rest(sign);
            }
            let after = cycles();
            self.sheet.account(Account::Cycles, after - before);
            before = after;
        }
        let now = self.clock.now();
        let sends = {
            let mut router = lock(&self.router);
            router.stop(now);
            std::mem::take(&mut router.sends)
        };
        self.send(sends);
        let _ = stop.compare_exchange(FAREWELL, SAID, Ordering::AcqRel, Ordering::Relaxed);
        // The last words go out with the workers' next turns; what they still bring is given back.
        loop {
            let ended = stop.load(Ordering::Acquire) == END;
            self.drain();
            if ended {
                self.published.publish(&self.sheet);
                return self.sheet;
            }
            std::thread::sleep(IDLE);
        }
    }

    /// Frames for the box: control hears ARP and neighbor discovery, the kernel the rest, and answers too.
    fn take(&mut self, now: u64) -> bool {
        let mut busy = false;
        for at in 0..self.from.len() {
            for _ in 0..TURN / BATCH {
                let mut frames = [const { Frame::EMPTY }; BATCH];
                let n = self.from[at].pop(&mut frames);
                if n == 0 {
                    break;
                }
                busy = true;
                self.sheet.account(Account::HandedIn, n as u64);
                for frame in &mut frames[..n] {
                    match self.is_taken(frame, now) {
                        true => self.sheet.account(Account::Consumed, 1),
                        false => self.lose(Engine::KernelDown),
                    }
                }
                self.io.free(&mut frames[..n]);
            }
        }
        busy
    }

    /// Whether somebody has heard a frame.
    fn is_taken(&mut self, frame: &mut Frame, now: u64) -> bool {
        let port = frame.port;
        untag(frame, self.carriers.get(usize::from(port)).is_some_and(|carrier| *carrier != port));
        let bytes = frame.bytes();
        let discovery = is_discovery(bytes);
        if discovery.is_some() {
            lock(&self.router).receive(port, bytes, now);
        }
        // Who asks for an address is answered here, for the kernel's addresses too.
        if discovery == Some(true) {
            return true;
        }
        let tap = self.kernel.as_ref().and_then(|kernel| kernel.tap(port));
        tap.is_some_and(|tap| tap.send(bytes).is_ok()) || discovery.is_some()
    }

    /// Frames the kernel sends. What the worker has no room for yet stays in the interface's queue, which counts what it drops.
    fn give(&mut self) -> bool {
        let Some(kernel) = self.kernel.take() else { return false };
        let mut busy = false;
        let mut buffer = [0; LONGEST];
        for port in 0..self.carriers.len() as u8 {
            let Some(tap) = kernel.tap(port) else { continue };
            for _ in 0..TURN {
                if self.to.is_full() {
                    break;
                }
                let Ok(Some(len)) = tap.receive(&mut buffer) else { break };
                busy = true;
                self.hand(port, &buffer[..len]);
            }
        }
        self.kernel = Some(kernel);
        busy
    }

    fn send(&mut self, sends: Vec<(u8, Vec<u8>)>) {
        for (port, bytes) in sends {
            self.hand(port, &bytes);
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

    /// Lets a worker send a frame in the name of the box.
    fn hand(&mut self, port: u8, bytes: &[u8]) {
        self.sheet.account(Account::Created, 1);
        let Some(mut frame) = self.io.create() else { return self.lose(Engine::NoBuffer) };
        // Short frames are padded, as a card does.
        let reason = if frame.set_len(bytes.len().max(60)) {
            let room = frame.bytes_mut();
            room[..bytes.len()].copy_from_slice(bytes);
            room[bytes.len()..].fill(0);
            (frame.port, frame.vlan_tci) = (SELF_PORT, port.into());
            if self.to.push(std::slice::from_mut(&mut frame)) == 1 {
                return self.sheet.account(Account::HandedOut, 1);
            }
            Engine::HandoffFull
        } else {
            Engine::TooBig
        };
        self.io.free(std::slice::from_mut(&mut frame));
        self.lose(reason);
    }

    fn lose(&mut self, reason: Engine) {
        self.sheet.account(Account::Dropped, 1);
        self.sheet.reasons[reason as usize] += 1;
    }

    /// What the kernel has to tell of routes and addresses.
    fn follow(&mut self, seen: &mut Seen, now: u64) -> bool {
        let Some(kernel) = &mut self.kernel else { return false };
        let mut events = Vec::new();
        let more = kernel.poll(Instant::now(), NEWS, &mut |event| events.push(event));
        say(&mut seen.errors, more.as_ref().err().into_iter().cloned().collect());
        let more = more.unwrap_or(false);
        if events.is_empty() {
            return more;
        }
        let mut synced = false;
        let mut router = lock(&self.router);
        for event in events {
            match event {
                Event::Address { port, net, added } => router.address(port, net, added, now),
                Event::Route { route, added } => router.route(Source::Kernel, &route, added),
                Event::Link { port, admin_up, .. } => {
                    seen.down.retain(|other| *other != port);
                    seen.down.extend((!admin_up).then_some(port));
                    let carrier = self.carriers.get(usize::from(port)).copied().unwrap_or(port);
                    router.link(port, admin_up && self.links.load(Ordering::Relaxed) & (1 << carrier) != 0, now);
                }
                Event::Lost { port } => {
                    let name = router.ports().get(usize::from(port)).map_or_else(String::new, |port| port.name.clone());
                    eprintln!("flowgate: kernel interface {name:?} is gone; making it again");
                }
                Event::Synced => synced = true,
            }
        }
        drop(router);
        if synced && !std::mem::replace(&mut seen.synced, true) {
            kernel.notes().iter().for_each(|note| eprintln!("flowgate: {note}"));
        }
        true
    }

    /// The links of the ports' devices. Routing may not use one whose kernel interface was taken down.
    fn follow_links(&mut self, seen: &mut Seen, now: u64) {
        let links = self.links.load(Ordering::Relaxed);
        let before = std::mem::replace(&mut seen.links, links);
        if links == before {
            return;
        }
        for (port, carrier) in (0..).zip(&self.carriers) {
            let up = links & (1 << carrier) != 0;
            if (before & (1 << carrier) != 0) != up {
                lock(&self.router).link(port, up && !seen.down.contains(&port), now);
                if let Some(Err(error)) = self.kernel.as_mut().map(|kernel| kernel.set_link(port, up)) {
                    eprintln!("flowgate: {error}");
                }
            }
        }
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
                self.sheet.account(Account::HandedIn, n as u64);
                self.sheet.account(Account::Dropped, n as u64);
                self.sheet.reasons[Engine::Stopping as usize] += n as u64;
            }
        }
    }
}

/// What the thread remembers of what it has seen.
#[derive(Default)]
struct Seen {
    /// Bit per port with a device: its link was up.
    links: u64,
    /// All of the kernel, once.
    synced: bool,
    /// Ports whose kernel interface was taken down.
    down: Vec<u8>,
    /// What was wrong with interfaces and with following the kernel, and has been said.
    wrong: Vec<String>,
    errors: Vec<String>,
}

/// Says what is wrong, but for what has been said and has stayed so.
fn say(said: &mut Vec<String>, wrong: Vec<String>) {
    wrong.iter().filter(|one| !said.contains(one)).for_each(|one| eprintln!("flowgate: {one}"));
    *said = wrong;
}

/// Takes the tags of a frame out, if its port is a VLAN.
fn untag(frame: &mut Frame, carried: bool) {
    while carried
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
    /// Says what there is to say at the end, and gives workers the time to send it. From now on what they bring is dropped, and
    /// they get nothing any more.
    pub fn say_farewell(&self) {
        self.stop.store(FAREWELL, Ordering::Release);
        self.sign.give();
        while self.stop.load(Ordering::Acquire) == FAREWELL && !self.is_finished() {
            std::thread::sleep(IDLE);
        }
        std::thread::sleep(IDLE * 10);
    }

    /// True if it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends it: its last account; none if it panicked.
    pub fn end(mut self) -> Option<Sheet> {
        self.join()
    }

    fn join(&mut self) -> Option<Sheet> {
        self.stop.store(END, Ordering::Release);
        self.sign.give();
        self.thread.take().and_then(|thread| thread.join().ok())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.join();
    }
}
