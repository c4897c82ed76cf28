//! Config to a running appliance: EAL, pools, ports, plans, rings, workers. The only place where all of them meet.
//!
//! Starts everything or nothing: whatever fails, what was begun is undone before the error is returned, and there is one
//! error. Stopping takes everything down again in the opposite order and says whether every buffer came back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use crate::arch::Clock;
use crate::config::Config;
use crate::config::machine::{self, Idle};
use crate::config::names::PortName;
use crate::config::port::{self, Device, Offload};
use crate::config::source::{Mistake, Mistakes};
use crate::config::units::Auto;
use crate::control::apply::Parts;
use crate::control::slow;
use crate::control::{DeviceCounters, LacpState, Live, MemberState, PortState, PortView, Running, WorkerView};
use crate::dpdk::eal::{self, Eal, EalConfig, Hugepages};
use crate::dpdk::error::Error;
use crate::dpdk::pool::Pool;
use crate::dpdk::port::{Lacp, Member, Place, Port, PortConfig, QueueStat, RxQueue, TxQueue};
use crate::dpdk::ring::{Consumer, Producer, ring};
use crate::flow::file::Unfit;
use crate::flow::fragments::SLOTS;
use crate::flow::region::Placement;
use crate::io::dpdk::DpdkIo;
use crate::kernel::namespace::Namespace;
use crate::kernel::{self, Kernel};
use crate::memory;
use crate::packet::BATCH;
use crate::packet::steer::Key;
use crate::policy;
use crate::stage::bucket::Bucket;
use crate::stage::conntrack::Tables;
use crate::stage::pipeline::{self, Blueprint, follows};
use crate::stage::restore::Saved;
use crate::stats::{Layout, Sheet};
use crate::worker::gauge::Gauge;
use crate::worker::{self, HELD, Handoff, Mailbox, Own, Setup, Signals, Worker};

/// Why the appliance did not start.
#[derive(Debug)]
pub enum Failure {
    /// Mistakes in the file.
    Findings(Vec<Mistake>),
    /// The file of flows does not fit: one message, and what to do.
    Flows(String),
    /// Something the machine lacks: one message, and what to do.
    Environment(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Environment(error.to_string())
    }
}

/// Frames a ring between two workers holds, less one.
const RING: usize = 1024;
/// Buffers an lcore's cache may hold: one and a half times its nominal size.
const CACHED: usize = 384;
/// DPDK's own memory beside packet buffers and tables, MB.
const EAL_OWN: u64 = 32;
/// Stages with tables in DPDK's memory, and what those may take, MB.
const TABLES: (&[&str], u32) = (&["acl", "bpf"], 1024);

/// A running appliance.
pub struct Appliance {
    live: Live,
    /// What it takes to change what runs, until somebody has it.
    parts: Option<Parts>,
    workers: Vec<eal::Running<Worker<DpdkIo>>>,
    slow: Option<slow::Running>,
    signals: Arc<Signals>,
    clock: Arc<Clock>,
    ports: Vec<Arc<LivePort>>,
    pools: BTreeMap<u32, Arc<Pool>>,
    eal: &'static Eal,
    /// What the operator should know about how it started.
    pub notes: Vec<String>,
}

/// What is left when it has stopped.
pub struct Stopped {
    /// Every worker's last counters, by index; none of a worker that panicked.
    pub sheets: Vec<Option<Sheet>>,
    /// Those of the slow path, if there is one.
    pub slow: Option<Sheet>,
    /// The ports' last state.
    pub ports: Vec<PortState>,
    /// Packet buffers that did not come back; zero unless flowgate has a defect.
    pub missing_buffers: usize,
    /// What else went wrong: panics of workers, ports that could not be stopped.
    pub troubles: Vec<String>,
    /// The pipeline.
    pub blueprint: Blueprint,
}

/// A port as control sees it.
struct LivePort {
    fixed: PortState,
    /// Taken out when the appliance stops.
    port: Mutex<Option<Port>>,
}

impl LivePort {
    fn with<R>(&self, look: impl FnOnce(&Port) -> R) -> Option<R> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(look)
    }
}

impl PortView for LivePort {
    fn state(&self) -> PortState {
        let mut state = self.fixed.clone();
        self.with(|port| {
            let (link, stats) = (port.link(), port.stats());
            state.link = if link.up { "up" } else { "down" }.into();
            state.speed = link.speed;
            state.members = port.members().into_iter().map(member).collect();
            state.device_counters = DeviceCounters {
                rx_packets: stats.rx_packets,
                rx_bytes: stats.rx_bytes,
                rx_missed: stats.rx_missed,
                rx_errors: stats.rx_errors,
                rx_no_buffer: stats.rx_no_buffer,
                tx_packets: stats.tx_packets,
                tx_bytes: stats.tx_bytes,
                tx_errors: stats.tx_errors,
            };
        });
        state
    }

    fn link_up(&self) -> bool {
        self.with(|port| port.link().up).unwrap_or(false)
    }

    fn queues(&self) -> Vec<QueueStat> {
        self.with(Port::queue_stats).unwrap_or_default()
    }
}

/// A port before its workers have its queues.
struct Begun {
    port: Port,
    rx: Vec<Option<RxQueue>>,
    tx: Vec<Option<TxQueue>>,
}

impl Appliance {
    /// Starts what a file describes, with the flows of a file.
    pub fn start(config: &Config, flows: Option<&Path>) -> Result<Appliance, Failure> {
        // Before the EAL starts, which pins its caller.
        let unknown = || Failure::Environment("cannot read which CPUs this process may use".into());
        let usable = core_affinity::get_core_ids().ok_or_else(unknown)?;
        let mut usable: Vec<u16> = usable.iter().filter_map(|core| u16::try_from(core.id).ok()).collect();
        usable.sort_unstable();
        let cores = config.worker.on(&usable).map_err(Failure::Findings)?;
        let eal = Eal::start(&eal_config(config, &cores)).map_err(|error| match &error {
            Error::NoDevice { device, .. } | Error::NotBound { device, .. } => {
                let has =
                    |port: &&port::Port| port.device_name() == device || port.members().any(|of| of.name() == device);
                let of = config.devices().iter().find(has);
                of.map_or_else(|| error.clone().into(), |of| about(of, &error))
            }
            _ => error.into(),
        })?;
        if eal.hugepages() {
            memory::allow_hugepages();
        }
        Appliance::begin(config, flows, eal, &cores).inspect_err(|_| eal.close())
    }

    fn begin(config: &Config, flows: Option<&Path>, eal: &'static Eal, cores: &[u16]) -> Result<Appliance, Failure> {
        let workers = cores.len();
        let probed: Vec<Result<Port, Error>> = config.devices().iter().map(|port| probe(eal, port)).collect();
        let macs: Vec<_> = probed.iter().map(|port| port.as_ref().ok().map(Port::mac)).collect();
        let told = macs.clone();
        // What is wrong with the file comes before what is wrong with the machine.
        let blueprint = pipeline::compile(config, workers, &macs).map_err(Failure::Findings)?;
        let findings = policy::findings(config, &blueprint);
        if !findings.is_empty() {
            return Err(Failure::Findings(findings));
        }
        let saved =
            flows.map(|path| Saved::check(path, &blueprint, &config.names).map_err(|unfit| refused(path, &unfit)));
        let saved = saved.transpose()?;
        let ports = probed.into_iter().zip(config.devices()).map(|(port, of)| port.map_err(|error| about(of, &error)));
        let ports: Vec<Port> = ports.collect::<Result<_, _>>()?;
        check_queues(config, workers)?;
        let pools = pools(config, eal, &ports, workers)?;
        let mut begun = Vec::new();
        for (mut port, of) in ports.into_iter().zip(config.devices()) {
            let pool = &pools[&port.abilities().node];
            let wanted = port_config(config, of, &port, workers, pools.len() == 1);
            port.configure(&wanted, pool).map_err(|error| about(of, &error))?;
            let (rx, tx) = port.start().map_err(|error| about(of, &error))?;
            let (rx, tx) = (rx.into_iter().map(Some).collect(), tx.into_iter().map(Some).collect());
            begun.push(Begun { port, rx, tx });
        }

        // Known before the first packet, or what goes to a port without a link would be counted as if its queue were full.
        let up = begun.iter().enumerate().map(|(index, begun)| u64::from(begun.port.link().up) << index).sum();
        let by_us =
            |begun: &Begun| begun.port.setup().is_some_and(|setup| setup.offloads.vlan_strip == Place::Software);
        let strip = begun.iter().enumerate().map(|(index, begun)| u64::from(by_us(begun)) << index).sum();
        let links = Arc::new(AtomicU64::new(up));
        let signals = Arc::new(Signals::default());
        let tsc_hz = eal.tsc_hz();
        let clock = Arc::new(Clock::new(tsc_hz));
        let yields = config.worker.idle == Idle::Yield || config.worker.oversubscribe;
        let handoffs = handoffs(workers, &begun)?;
        let kernel = kernel(config, &blueprint, up)?;
        let (mut owns, ends) = owns(config, &blueprint, workers)?;
        let key = saved.as_ref().and_then(Saved::key).unwrap_or_else(Key::random);
        let mut all: Vec<_> = (0..workers).map(|worker| tables(&blueprint, eal, worker)).collect::<Result<_, _>>()?;
        let mut notes = eal.notes().to_vec();
        if let (Some(saved), Some(path)) = (saved, flows) {
            let mut lent: Vec<Tables> = all.iter_mut().filter_map(Option::take).collect();
            let restored = saved.load(&mut lent, key, clock.now()).map_err(|unfit| refused(path, &unfit))?;
            notes.push(format!("{}: {restored}", path.display()));
            all = lent.into_iter().map(Some).collect();
        }
        let (mut running, mut views) = (Vec::new(), Vec::new());
        for (index, handoff) in handoffs.into_iter().enumerate() {
            let io = DpdkIo::new(take_queues(index, workers, &mut begun), pools[&eal_node(eal, index, &pools)].clone());
            let setup = Setup {
                blueprint: blueprint.clone(),
                index,
                burst: config.worker.burst.0 as usize,
                mtus: config.mtus(),
                strip,
                links: links.clone(),
                key,
                tables: all[index].take(),
                handoff,
                own: owns[index].take(),
            };
            let published = Arc::new(blueprint.layout.published());
            let mailbox = Arc::new(Mailbox::default());
            views.push(WorkerView {
                core: cores[index].into(),
                published: published.clone(),
                mailbox: mailbox.clone(),
            });
            let (its_clock, its_signals) = (clock.clone(), signals.clone());
            let sample = config.metrics.latency_sample.0 as u32;
            let launched = eal.launch(index, move || {
                let mut worker = Worker::new(io, (), setup);
                worker.measure(Gauge::new(sample, its_clock.clone()));
                worker::run(&mut worker, &its_clock, &its_signals, &published, &mailbox, yields);
                worker
            });
            match launched {
                Ok(worker) => running.push(worker),
                Err(error) => {
                    signals.stop.store(true, Ordering::Relaxed);
                    drop(running);
                    return Err(error.into());
                }
            }
        }
        eal.pin_control();
        let (orders, obeyed) = mpsc::channel();
        let published = Arc::new(Layout::new().published());
        let slow = match (&blueprint.router, ends) {
            (Some(router), Some((from, to))) => {
                let pool = pools.values().next().expect("a port, and so a pool").clone();
                let slow = slow::Slow {
                    router: router.clone(),
                    kernel,
                    from,
                    to,
                    io: DpdkIo::new(Vec::new(), pool),
                    links: links.clone(),
                    carriers: blueprint.carriers.clone(),
                    clock: clock.clone(),
                    orders: obeyed,
                    sheet: Layout::new().sheet(),
                    published: published.clone(),
                };
                match slow.start() {
                    Ok(slow) => Some(slow),
                    Err(error) => {
                        signals.stop.store(true, Ordering::Relaxed);
                        drop(running);
                        return Err(Failure::Environment(format!("cannot start the slow path: {error}")));
                    }
                }
            }
            _ => None,
        };
        let ports: Vec<Arc<LivePort>> =
            begun.into_iter().zip(config.devices()).map(|(begun, of)| Arc::new(live(begun.port, of))).collect();
        let mut views_of_ports: Vec<_> = ports.iter().map(|port| port.clone() as Arc<dyn PortView>).collect();
        views_of_ports.extend(vlans(config, &ports).map(|vlan| Arc::new(vlan) as Arc<dyn PortView>));
        let mut view = Running::new(config, blueprint, views, views_of_ports, links, tsc_hz, key);
        view.slow = slow.as_ref().map(|_| published);
        view.pools = pools.iter().map(|(node, pool)| (*node, Arc::downgrade(pool))).collect();
        view.follow_links();
        let live = Live::new(view);
        let orders = slow.is_some().then_some(orders);
        let parts = Parts { live: live.clone(), key, macs: told, clock: clock.clone(), orders };
        Ok(Appliance { live, parts: Some(parts), workers: running, slow, signals, clock, ports, pools, eal, notes })
    }

    /// What control knows of it.
    pub fn live(&self) -> Live {
        self.live.clone()
    }

    /// What it takes to change what runs; once.
    pub fn take_parts(&mut self) -> Option<Parts> {
        self.parts.take()
    }

    /// The first worker, or the slow path, that has ended although nobody stopped it.
    pub fn gone(&self) -> Option<String> {
        let worker = self.workers.iter().position(eal::Running::is_finished);
        let slow = self.slow.as_ref().is_some_and(slow::Running::is_finished);
        worker.map(|worker| format!("worker {worker}")).or(slow.then(|| "the slow path".into()))
    }

    /// Lets the workers' clock follow the system's; called by control now and then.
    pub fn correct_clock(&self) {
        self.clock.correct();
    }

    /// Stops the workers, then the ports, and gives everything back.
    pub fn stop(self) -> Stopped {
        if let Some(slow) = &self.slow {
            slow.say_farewell();
        }
        self.signals.stop.store(true, Ordering::Relaxed);
        let (mut sheets, mut troubles, mut workers) = (Vec::new(), Vec::new(), Vec::new());
        for (index, worker) in self.workers.into_iter().enumerate() {
            match worker.join() {
                Ok(worker) => workers.push(Some(worker)),
                Err(panic) => {
                    troubles.push(format!("worker {index} panicked: {panic}; this is a defect of flowgate, report it"));
                    workers.push(None);
                }
            }
        }
        for worker in &mut workers {
            if let Some(worker) = worker {
                worker.drain();
            }
            sheets.push(worker.as_ref().map(|worker| worker.sheet().clone()));
        }
        // It gives back what workers had for it to the last.
        let has_slow = self.slow.is_some();
        let slow = self.slow.and_then(slow::Running::end);
        if has_slow && slow.is_none() {
            troubles.push("the slow path panicked; this is a defect of flowgate, report it".into());
        }
        // Queues go with their workers, and a port stops when no queue is left.
        drop(workers);
        let ports: Vec<PortState> = self.ports.iter().map(|port| port.state()).collect();
        for (port, state) in self.ports.iter().zip(&ports) {
            let port = port.port.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(Err(error)) = port.map(|mut port| port.stop()) {
                troubles.push(format!("port {}: {error}", state.name));
            }
        }
        let missing_buffers = self.pools.values().map(|pool| pool.in_use()).sum();
        let blueprint = self.live.now().blueprint.clone();
        drop(self.live);
        drop(self.pools);
        self.eal.close();
        Stopped { sheets, slow, ports, missing_buffers, troubles, blueprint }
    }
}

/// A port's device, or its bond of several.
fn probe(eal: &'static Eal, port: &port::Port) -> Result<Port, Error> {
    match &port.bond {
        Some(_) => Port::bond(eal, port.device(), port.members().map(Device::text)),
        None => Port::probe(eal, port.device()),
    }
}

/// A worker's flow tables, on its own NUMA node and all of them present.
fn tables(blueprint: &Blueprint, eal: &Eal, worker: usize) -> Result<Option<Tables>, Failure> {
    let placement = Placement { huge: eal.hugepages(), present: true, node: Some(eal.node(worker)) };
    blueprint.tables(placement).map_err(|error| {
        let what = format!("cannot take memory for the flow tables of worker {worker}: {error}");
        Failure::Environment(format!("{what}; lower memory.flows, or give the machine more memory or huge pages"))
    })
}

/// A file of flows that cannot be used.
fn refused(path: &Path, unfit: &Unfit) -> Failure {
    let message = format!("{}: {unfit}", path.display());
    match unfit {
        Unfit::Io(_) => Failure::Environment(message),
        Unfit::Content(_) => Failure::Flows(message),
    }
}

/// An error of a port's, under the port's name.
fn about(port: &port::Port, error: &Error) -> Failure {
    Failure::Environment(format!("port {:?} ({}): {error}", port.name.value, port.name.place))
}

/// More queues than workers would leave queues that nobody polls.
fn check_queues(config: &Config, workers: usize) -> Result<(), Failure> {
    let mut mistakes = Mistakes::default();
    for port in config.devices() {
        for (key, queues) in [("rx_queues", &port.rx_queues), ("tx_queues", &port.tx_queues)] {
            if let Auto::Given(queues) = queues
                && queues.0 as usize > workers
            {
                let message =
                    format!("port {:?} has {key} = {}, and there are {workers} workers", port.name.value, queues.0);
                let help = "a worker owns one queue of each port: add cores or take queues away";
                mistakes.with_help(&port.name.place, &format!("port.{key}"), message, help);
            }
        }
    }
    if mistakes.is_empty() { Ok(()) } else { Err(Failure::Findings(mistakes.into_sorted())) }
}

fn eal_config(config: &Config, cores: &[u16]) -> EalConfig {
    let devices = config.devices().iter().flat_map(|port| port.device.as_deref().into_iter().chain(port.members()));
    let pci = devices.filter(|device| matches!(device, Device::Pci(_))).map(|device| device.name().to_owned());
    let debug = config.control.log == machine::Log::Debug;
    EalConfig {
        hugepages: match config.memory.hugepages {
            machine::Hugepages::Auto => Hugepages::Auto,
            machine::Hugepages::Require => Hugepages::Require,
            machine::Hugepages::Off => Hugepages::Off,
        },
        memory: memory(config, cores.len()),
        spare: spare(config),
        cores: cores.to_vec(),
        oversubscribe: config.worker.oversubscribe,
        prefix: prefix(&config.control.socket.0),
        pci: pci.collect(),
        secondary: false,
        telemetry: false,
        verbose: debug,
        log_level: if debug { vec!["debug".into()] } else { Vec::new() },
        extra: config.eal.extra.clone(),
    }
}

/// The name of an instance's runtime files: its control socket's, so that instances with sockets of their own live side by
/// side.
fn prefix(socket: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = socket.trim_start_matches('/').chars().map(word).collect();
    // The longest name DPDK can make of it must stay a file name.
    format!("flowgate-{}", &name[name.len().saturating_sub(64)..])
}

/// Largest MTU of all ports.
fn mtu(config: &Config) -> u16 {
    config.mtus().into_iter().max().unwrap_or(1500)
}

/// DPDK's memory in MB, before the ports are known in detail.
fn memory(config: &Config, workers: usize) -> u32 {
    if let Auto::Given(limit) = &config.memory.limit {
        return u32::try_from(limit.0 >> 20).unwrap_or(u32::MAX);
    }
    let packets = packets(config, workers, config.devices().iter().map(|_| (workers, workers)));
    let bytes = packets as u64 * Pool::footprint(mtu(config)) as u64;
    u32::try_from(((bytes * 11 / 10) >> 20) + EAL_OWN).unwrap_or(u32::MAX)
}

/// Room for tables of which nobody knows before they are compiled, MB; none within a limit that the file sets.
fn spare(config: &Config) -> u32 {
    let (stages, most) = TABLES;
    let tables = config.pipeline.iter().any(|stage| stages.contains(&stage.kind.name));
    if tables && matches!(config.memory.limit, Auto::Auto) { most } else { 0 }
}

/// Descriptors of a queue, which a bond has with every member.
fn descriptors(of: &port::Port) -> usize {
    of.descriptors.0 as usize * of.members().count().max(1)
}

/// Buffers for ports with so many (receive, transmit) queues: what descriptors, caches, rings and bursts can hold at once.
fn packets(config: &Config, workers: usize, queues: impl Iterator<Item = (usize, usize)>) -> usize {
    if let Auto::Given(packets) = &config.memory.packets {
        return packets.0 as usize;
    }
    let rings: usize = queues.map(|(rx, tx)| rx + tx).zip(config.devices()).map(|(n, of)| n * descriptors(of)).sum();
    let ports = config.devices().len();
    let handoff = if workers > 1 { workers * (workers - 1 + ports) * RING } else { 0 };
    let held = if follows(config) { SLOTS } else { 0 };
    let (held, own) = if config.names.routes { (held + HELD, (workers + 1) * RING) } else { (held, 0) };
    rings + handoff + workers * (CACHED + (ports + 2) * BATCH + held) + CACHED + own + 1024
}

/// A pool on each NUMA node that has a port.
fn pools(
    config: &Config,
    eal: &'static Eal,
    ports: &[Port],
    workers: usize,
) -> Result<BTreeMap<u32, Arc<Pool>>, Failure> {
    let queues = ports.iter().map(|port| {
        let able = port.abilities();
        (usize::from(able.rx_queues).min(workers), usize::from(able.tx_queues).min(workers))
    });
    let packets = u32::try_from(packets(config, workers, queues)).unwrap_or(u32::MAX);
    let mut pools = BTreeMap::new();
    for port in ports {
        let node = port.abilities().node;
        if let std::collections::btree_map::Entry::Vacant(free) = pools.entry(node) {
            let pool = Pool::new(eal, &format!("packets-{node}"), node, packets, mtu(config))?;
            free.insert(Arc::new(pool));
        }
    }
    Ok(pools)
}

/// The node of a worker's CPU if it has a pool, else one that has.
fn eal_node(eal: &Eal, worker: usize, pools: &BTreeMap<u32, Arc<Pool>>) -> u32 {
    let node = eal.node(worker);
    if pools.contains_key(&node) { node } else { pools.keys().next().copied().unwrap_or(0) }
}

fn port_config(config: &Config, of: &port::Port, port: &Port, workers: usize, one_pool: bool) -> PortConfig {
    let able = port.abilities();
    // How many queues a memif has is up to its peer, and a queue that the peer does not have reads and writes the first
    // one's ring (memif_connect of DPDK 22.11): more than one only if the file says so.
    let most = if able.driver == "net_memif" { 1 } else { workers as u16 };
    let queues = |asked: &Auto<_>, able: u16| match asked {
        Auto::Given(crate::config::units::Within::<1, 128>(queues)) => *queues as u16,
        Auto::Auto => able.min(most),
    };
    PortConfig {
        rx_queues: queues(&of.rx_queues, able.rx_queues),
        tx_queues: queues(&of.tx_queues, able.tx_queues),
        rx_descriptors: of.descriptors.0 as u16,
        tx_descriptors: of.descriptors.0 as u16,
        mtu: of.own_mtu(),
        promiscuous: config.promiscuous(of),
        macs: config.macs(of),
        checksum: of.checksum == Offload::Auto,
        rss: of.rss == Offload::Auto,
        vlan_strip: of.vlan_strip,
        // A bond sends frames of its own too, or one frame several times.
        one_pool: one_pool && of.bond.is_none(),
    }
}

/// Which worker owns queue `queue` of port `port`.
fn owner(queue: usize, port: usize, workers: usize) -> usize {
    (queue + port) % workers
}

/// A worker's queues of every port.
fn take_queues(worker: usize, workers: usize, ports: &mut [Begun]) -> Vec<(Option<RxQueue>, Option<TxQueue>)> {
    let of = |(index, begun): (usize, &mut Begun)| {
        // The one queue q with owner(q, index) = worker.
        let queue = (worker + workers - index % workers) % workers;
        (begun.rx.get_mut(queue).and_then(Option::take), begun.tx.get_mut(queue).and_then(Option::take))
    };
    ports.iter_mut().enumerate().map(of).collect()
}

/// Every worker's ends of the rings between workers; none for a worker alone.
fn handoffs(workers: usize, ports: &[Begun]) -> Result<Vec<Option<Handoff>>, Failure> {
    if workers == 1 {
        return Ok(vec![None]);
    }
    let refused = |errno| Failure::Environment(format!("cannot make a ring between workers: {errno}"));
    let mut all: Vec<Handoff> = (0..workers)
        .map(|me| Handoff {
            me,
            to: (0..workers).map(|_| None).collect(),
            from: Vec::new(),
            out: ports.iter().map(|_| None).collect(),
            sends: Vec::new(),
        })
        .collect();
    for from in 0..workers {
        for to in (0..workers).filter(|to| *to != from) {
            let (producer, consumer) = ring(RING).map_err(refused)?;
            all[from].to[to] = Some(producer);
            all[to].from.push(consumer);
        }
        for (port, begun) in ports.iter().enumerate() {
            let queues = begun.tx.len();
            if (0..queues).any(|queue| owner(queue, port, workers) == from) {
                continue;
            }
            let sender = owner(from % queues, port, workers);
            let (producer, consumer) = ring(RING).map_err(refused)?;
            all[from].out[port] = Some(producer);
            all[sender].sends.push(consumer);
        }
    }
    Ok(all.into_iter().map(Some).collect())
}

/// What gives the kernel an interface for each port, if it is to have them.
fn kernel(config: &Config, blueprint: &Blueprint, up: u64) -> Result<Option<Kernel>, Failure> {
    let Some(router) = &blueprint.router else { return Ok(None) };
    if config.kernel.enabled == Some(false) {
        return Ok(None);
    }
    let router = router.lock().unwrap_or_else(PoisonError::into_inner);
    let ports = router.ports().iter().zip(&blueprint.carriers);
    let ports = ports.map(|(port, carrier)| kernel::Port {
        name: port.name.clone(),
        mac: port.mac,
        mtu: port.mtu,
        addresses: port.addresses.clone(),
        accept_ra: config.kernel.accept_ra,
        link: up & (1 << carrier) != 0,
    });
    let namespace = Namespace::new(config.kernel.namespace.as_ref().map(|name| name.0.as_str()));
    Kernel::start(namespace, ports.collect(), config.kernel.routes).map(Some).map_err(Failure::Environment)
}

/// For each worker its way to the box itself; and the other ends of these: from the workers, and to the first.
#[expect(clippy::type_complexity, reason = "what it says")]
fn owns(
    config: &Config,
    blueprint: &Blueprint,
    workers: usize,
) -> Result<(Vec<Option<Own>>, Option<(Vec<Consumer>, Producer)>), Failure> {
    let Some(routed) = &blueprint.ways.routed else { return Ok(((0..workers).map(|_| None).collect(), None)) };
    let refused = |errno| Failure::Environment(format!("cannot make a ring to a worker: {errno}"));
    let (to, first) = ring(RING).map_err(refused)?;
    let (mut owns, mut from, mut first) = (Vec::new(), Vec::new(), Some(first));
    for _ in 0..workers {
        let (producer, consumer) = ring(RING).map_err(refused)?;
        from.push(consumer);
        owns.push(Some(Own {
            to: producer,
            from: first.take(),
            reasons: routed.reasons,
            discovery: Bucket::new(config.kernel.discovery_rate.per_second, workers),
            rest: Bucket::new(config.kernel.rate.per_second, workers),
        }));
    }
    Ok((owns, Some((from, to))))
}

fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn member(member: Member) -> MemberState {
    let words = |state| Lacp::words(state).map(str::to_owned).collect();
    let lacp = member.lacp.map(|lacp| LacpState {
        actor: words(lacp.actor),
        partner: words(lacp.partner),
        partner_system: colons(lacp.system),
        partner_key: lacp.key,
        partner_port: lacp.port,
    });
    MemberState { device: member.device, state: member.role.name().into(), lacp }
}

fn live(port: Port, of: &port::Port) -> LivePort {
    let setup = port.setup().copied();
    let (mac, able) = (port.mac(), port.abilities());
    let offloads = setup.map(|setup| setup.offloads);
    let fixed = PortState {
        name: of.name.value.clone(),
        device: of.device().to_owned(),
        vlan: None,
        driver: able.driver.clone(),
        zone: of.zone.as_ref().map(|zone| zone.value.clone()),
        mac: colons(mac),
        mtu: setup.map_or(0, |setup| setup.mtu),
        link: String::new(),
        speed: 0,
        rx_queues: setup.map_or(0, |setup| setup.rx_queues),
        tx_queues: setup.map_or(0, |setup| setup.tx_queues),
        members: Vec::new(),
        offloads: offloads.map_or_else(BTreeMap::new, |offloads| {
            let list = [("checksum", offloads.checksum), ("rss", offloads.rss), ("vlan-strip", offloads.vlan_strip)];
            list.into_iter().map(|(name, place)| (name.to_owned(), place.name().to_owned())).collect()
        }),
        device_counters: DeviceCounters::default(),
    };
    LivePort { fixed, port: Mutex::new(Some(port)) }
}

/// A VLAN as control sees it: what is not its own is its parent's.
struct LiveVlan {
    fixed: PortState,
    parent: Arc<LivePort>,
}

impl PortView for LiveVlan {
    fn state(&self) -> PortState {
        let (link, speed) = self.parent.with(Port::link).map_or((false, 0), |link| (link.up, link.speed));
        PortState { link: if link { "up" } else { "down" }.into(), speed, ..self.fixed.clone() }
    }

    fn link_up(&self) -> bool {
        self.parent.link_up()
    }
}

/// The VLANs of ports.
fn vlans(config: &Config, ports: &[Arc<LivePort>]) -> impl Iterator<Item = LiveVlan> {
    let mtus = config.mtus();
    let vlan = move |(at, port): (usize, &PortName)| {
        let carrier = port.carrier?;
        let parent = ports.get(usize::from(carrier.parent))?.clone();
        let fixed = PortState {
            name: port.name.clone(),
            device: parent.fixed.name.clone(),
            vlan: Some(carrier.tags.to_string()),
            zone: config.names.zone_of(at as u8).map(str::to_owned),
            mtu: mtus.get(at).copied().unwrap_or_default(),
            rx_queues: 0,
            tx_queues: 0,
            offloads: BTreeMap::new(),
            device_counters: DeviceCounters::default(),
            ..parent.fixed.clone()
        };
        Some(LiveVlan { fixed, parent })
    };
    config.names.ports.iter().enumerate().filter_map(vlan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_name_instances() {
        assert_eq!(prefix("/run/flowgate.sock"), "flowgate-run-flowgate-sock");
        assert_ne!(prefix("/run/a.sock"), prefix("/run/b.sock"));
        assert!(prefix(&format!("/{}", "x".repeat(200))).len() < 80);
    }

    #[test]
    fn single_queues_are_spread_over_the_workers() {
        assert_eq!((0..4).map(|port| owner(0, port, 2)).collect::<Vec<_>>(), [0, 1, 0, 1]);
        for (workers, port) in [(1, 0), (2, 1), (3, 5)] {
            for worker in 0..workers {
                let queue = (worker + workers - port % workers) % workers;
                assert_eq!(owner(queue, port, workers), worker);
            }
        }
    }
}
