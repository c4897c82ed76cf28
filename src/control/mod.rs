//! What happens at human speed, on the main core: link state, shares of limits, answers to questions, signals.
//!
//! Control never touches a worker's state: it reads what workers publish, asks through mailboxes, and writes words that
//! workers read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use axum::extract::FromRef;

use crate::config::Config;
use crate::config::metrics::Metrics;
use crate::config::names::Names;
use crate::dpdk::pool::Pool;
use crate::dpdk::port::QueueStat;
use crate::explain::Explainer;
use crate::packet::Meta;
use crate::packet::steer::Key;
use crate::stage::pipeline::Blueprint;
use crate::stage::{Plan, Row};
use crate::stats::{Layout, Published, Sheet};
use crate::worker::{Ask, Mailbox, Question};

pub mod access;
pub mod api;
pub mod apply;
pub mod capture;
pub mod census;
pub mod client;
pub mod dashboard;
pub mod drops;
pub mod exposition;
pub mod flows;
pub mod gate;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod overview;
pub mod pace;
pub mod pcapng;
pub mod routes;
pub mod serve;
pub mod slow;
pub mod tls;

use apply::Applier;
use census::Census;

/// What control knows of the running appliance. Shared with whoever answers questions.
pub struct Running {
    /// The config file's name.
    pub config: String,
    /// The compiled pipeline.
    pub blueprint: Blueprint,
    /// Explains packets to it.
    pub explainer: Explainer,
    /// The workers, by index.
    pub workers: Vec<WorkerView>,
    /// The slow path's counters, if there is one.
    pub slow: Option<Arc<Published>>,
    /// The ports, by index.
    pub ports: Vec<Arc<dyn PortView>>,
    /// Bit per port: its link is up. Read by the workers.
    pub links: Arc<AtomicU64>,
    /// When the workers started.
    pub started: SystemTime,
    /// Cycles of the time stamp counter in a second.
    pub tsc_hz: u64,
    /// What is named in the config.
    pub names: Names,
    /// True if each port has a kernel interface.
    pub interfaces: bool,
    /// By what packets are given to workers. A secret.
    pub key: Key,
    /// What is measured, and told at once.
    pub metrics: Metrics,
    /// Packet buffers by NUMA node. They are not kept for being looked at.
    pub pools: Vec<(u32, Weak<Pool>)>,
    /// What was last found out by looking through all flows.
    pub census: Census,
    /// One question at a time, so that answers find their asker; how many there were.
    asking: Arc<Mutex<u64>>,
    /// The last drops of the pipelines before this one.
    pub former: Vec<serde_json::Value>,
}

/// What control sees of a worker.
pub struct WorkerView {
    /// The CPU it is pinned to.
    pub core: usize,
    /// Its counters.
    pub published: Arc<Published>,
    /// Where it is asked.
    pub mailbox: Arc<Mailbox>,
}

/// What control sees of a port; behind it is a DPDK port, or a VLAN of one.
pub trait PortView: Send + Sync {
    /// What it is: name, device, MAC, MTU, queues, offloads, and the device's own counters.
    fn state(&self) -> PortState;
    /// True if its link is up.
    fn link_up(&self) -> bool;
    /// What the device counted by queue, if it does.
    fn queues(&self) -> Vec<QueueStat> {
        Vec::new()
    }
}

/// A port as `show ports` reports it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct PortState {
    /// Its name in the config.
    pub name: String,
    /// The device, as configured; of a VLAN, the port it is a VLAN of.
    pub device: String,
    /// The VLAN id, if it is one; both, the outer one first, if it is a VLAN within a VLAN.
    pub vlan: Option<String>,
    /// The DPDK driver.
    pub driver: String,
    /// Its zone.
    pub zone: Option<String>,
    /// Its MAC address.
    pub mac: String,
    /// Largest network-layer packet, in bytes.
    pub mtu: u16,
    /// `up` or `down`.
    pub link: String,
    /// The link's speed in Mbit/s; 0 if unknown.
    pub speed: u32,
    /// Receive queues.
    pub rx_queues: u16,
    /// Transmit queues.
    pub tx_queues: u16,
    /// Of a bond, its members.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberState>,
    /// By offload: `hardware`, `software` or `off`.
    pub offloads: std::collections::BTreeMap<String, String>,
    /// The device's own counters.
    pub device_counters: DeviceCounters,
}

/// A member of a bond as `show ports` reports it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct MemberState {
    /// The device, as configured.
    pub device: String,
    /// `active` if it carries frames, `standby` if another one does or the peer does not agree, `down` if its link is.
    pub state: String,
    /// What LACP says of it, in a bond with LACP.
    pub lacp: Option<LacpState>,
}

/// What LACP says of a member of a bond, in the words of IEEE 802.1AX.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct LacpState {
    /// The member's state: the bits that are set.
    pub actor: Vec<String>,
    /// Its peer's state.
    pub partner: Vec<String>,
    /// MAC address of the peer's system.
    pub partner_system: String,
    /// The peer's key.
    pub partner_key: u16,
    /// The peer's number of the port.
    pub partner_port: u16,
}

/// A device's own counters. What the device lost before flowgate received it is here and in no worker's account.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct DeviceCounters {
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets lost because the receive queue was full.
    pub rx_missed: u64,
    /// Frames received with errors.
    pub rx_errors: u64,
    /// Packets lost because no buffer was free.
    pub rx_no_buffer: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that failed to be sent.
    pub tx_errors: u64,
}

/// What runs now, whoever asks. An applied config replaces it whole; who holds on to one keeps the view it began with.
#[derive(Clone)]
pub struct Live(Arc<(ArcSwap<Running>, OnceLock<Weak<Applier>>)>);

impl Live {
    /// What begins to run.
    pub fn new(running: Running) -> Live {
        Live(Arc::new((ArcSwap::from_pointee(running), OnceLock::new())))
    }

    /// What runs now.
    pub fn now(&self) -> Arc<Running> {
        self.0.0.load_full()
    }

    /// Puts another in its place.
    pub fn replace(&self, running: Arc<Running>) {
        self.0.0.store(running);
    }

    /// Says who may change it.
    pub fn changed_by(&self, applier: &Arc<Applier>) {
        // There is one for the life of the process.
        let _ = self.0.1.set(Arc::downgrade(applier));
    }

    /// Who may change it, unless the process is about to end.
    pub fn applier(&self) -> Option<Arc<Applier>> {
        self.0.1.get()?.upgrade()
    }
}

impl FromRef<Live> for Arc<Running> {
    fn from_ref(live: &Live) -> Arc<Running> {
        live.now()
    }
}

impl Running {
    /// What control knows when the workers have just started.
    pub fn new(
        config: &Config,
        blueprint: Blueprint,
        workers: Vec<WorkerView>,
        ports: Vec<Arc<dyn PortView>>,
        links: Arc<AtomicU64>,
        tsc_hz: u64,
        key: Key,
    ) -> Running {
        let (explainer, path) = (Explainer::live(config, &blueprint), config.source.path().to_owned());
        let names = config.names.clone();
        let (asking, started) = (Arc::new(Mutex::new(0)), SystemTime::now());
        let interfaces = blueprint.router.is_some() && config.kernel.enabled != Some(false);
        Running {
            config: path,
            blueprint,
            explainer,
            workers,
            slow: None,
            ports,
            links,
            started,
            tsc_hz,
            names,
            interfaces,
            key,
            metrics: config.metrics.clone(),
            pools: Vec::new(),
            census: Census::default(),
            asking,
            former: Vec::new(),
        }
    }

    /// What control knows when the workers have gone over to another pipeline.
    pub fn after(former: &Running, config: &Config, blueprint: Blueprint, published: Vec<Arc<Published>>) -> Running {
        let workers = former.workers.iter().zip(published).map(|(worker, published)| WorkerView {
            core: worker.core,
            published,
            mailbox: worker.mailbox.clone(),
        });
        Running {
            config: config.source.path().to_owned(),
            explainer: Explainer::live(config, &blueprint),
            workers: workers.collect(),
            slow: former.slow.clone(),
            ports: former.ports.clone(),
            links: former.links.clone(),
            started: former.started,
            tsc_hz: former.tsc_hz,
            names: config.names.clone(),
            interfaces: former.interfaces,
            key: former.key,
            metrics: config.metrics.clone(),
            pools: former.pools.clone(),
            census: Census::default(),
            asking: former.asking.clone(),
            former: Vec::new(),
            blueprint,
        }
    }

    /// Every worker's latest counters.
    pub fn sheets(&self) -> Vec<Sheet> {
        self.workers.iter().map(|worker| worker.published.read(&self.blueprint.layout)).collect()
    }

    /// The slow path's latest counters: those that there are without stages, with which every layout begins.
    pub fn slow_sheet(&self) -> Option<Sheet> {
        self.slow.as_ref().map(|slow| slow.read(&Layout::new()))
    }

    /// All counters added up.
    pub fn total(&self) -> Sheet {
        let mut total = self.blueprint.layout.sheet();
        for sheet in self.sheets().into_iter().chain(self.slow_sheet()) {
            total.merge(&sheet, &self.blueprint.layout);
        }
        total
    }

    /// Follows link state; returns the ports with a device whose link changed, with the new state.
    pub fn follow_links(&self) -> Vec<(usize, bool)> {
        let before = self.links.load(Ordering::Relaxed);
        let mut now = 0;
        let devices = self.names.devices();
        for (index, port) in self.ports[..devices].iter().enumerate() {
            now |= u64::from(port.link_up()) << index;
        }
        self.links.store(now, Ordering::Relaxed);
        (0..devices).filter(|i| (before ^ now) & (1 << i) != 0).map(|i| (i, now & (1 << i) != 0)).collect()
    }

    /// What a packet stage shows, from all workers; none if it shows nothing, an error if a worker does not answer in time.
    pub fn ask_stage(&self, position: usize, patience: Duration) -> Result<Option<serde_json::Value>, String> {
        let Some(Plan::Packet(plan)) = self.blueprint.stages.get(position).map(|stage| &stage.plan) else {
            return Ok(None);
        };
        let mut all = Vec::new();
        for worker in 0..self.workers.len() {
            let mut cursor = 0;
            loop {
                let question = Question::Stage { position, cursor, rows: Vec::with_capacity(4096) };
                let answer = self.ask(worker, question, patience)?;
                let Question::Stage { rows, cursor: behind, .. } = answer.question else { break };
                all.extend_from_slice(&rows);
                if answer.done {
                    break;
                }
                cursor = behind;
            }
        }
        Ok(plan.show(&all))
    }

    /// A copy of the entry of the flow that packets with these facts belong to, from the worker that has it; empty if none has.
    pub fn ask_flow(&self, facts: &Meta, patience: Duration) -> Result<Vec<Row>, String> {
        for worker in 0..self.workers.len() {
            let question = Question::Flow { facts: facts.clone(), rows: Vec::with_capacity(4) };
            if let Question::Flow { rows, .. } = self.ask(worker, question, patience)?.question
                && !rows.is_empty()
            {
                return Ok(rows);
            }
        }
        Ok(Vec::new())
    }

    /// Explains a frame that arrives on `port` now, its flow being what the workers know of it.
    pub fn explain(&self, port: u8, frame: &[u8], patience: Duration) -> Result<serde_json::Value, String> {
        let facts = self.explainer.flow_of(port, frame);
        let flow = facts.map(|facts| self.ask_flow(&facts, patience)).transpose()?.unwrap_or_default();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        Ok(self.explainer.json(&self.explainer.explain(port, frame, now, &flow)))
    }

    /// Puts one question to a worker and waits for the answer; the error says who did not answer.
    fn ask(&self, worker: usize, question: Question, patience: Duration) -> Result<Box<Ask>, String> {
        let mut asked = self.asking.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *asked += 1;
        let mailbox = &self.workers[worker].mailbox;
        let late = || format!("worker {worker} did not answer within {patience:?}");
        mailbox.asks.push(Box::new(Ask { number: *asked, question, done: false })).map_err(|_| late())?;
        let since = Instant::now();
        while since.elapsed() < patience {
            match mailbox.answers.pop() {
                Some(answer) if answer.number == *asked => return Ok(answer),
                // To a question that somebody gave up on.
                Some(_) => {}
                None => std::thread::sleep(Duration::from_micros(200)),
            }
        }
        Err(late())
    }
}
