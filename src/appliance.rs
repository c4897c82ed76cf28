//! Config to a running appliance: EAL, pools, ports, plans, rings, workers. The only place where all of them meet.
//!
//! Starts everything or nothing: whatever fails, what was begun is undone before the error is returned, and there is one
//! error. Stopping takes everything down again in the opposite order and says whether every buffer came back.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arch::Clock;
use crate::config::Config;
use crate::config::machine::Hugepages;
use crate::config::port::{Device, Offload};
use crate::config::source::Mistake;
use crate::config::units::Auto;
use crate::control::{DeviceCounters, PortState, PortView, Running, WorkerView};
use crate::dpdk::eal::{self, Affinity, Eal, EalConfig};
use crate::dpdk::pool::Pool;
use crate::dpdk::port::{Port, PortConfig};
use crate::dpdk::ring::ring;
use crate::io::dpdk::DpdkIo;
use crate::packet::steer::Key;
use crate::stage::pipeline::{self, Blueprint};
use crate::stats::{Published, Sheet};
use crate::worker::{self, Handoff, L2_OVERHEAD, Mailbox, Setup, Signals, Worker};

/// Why the appliance did not start.
#[derive(Debug)]
pub enum Failure {
    /// Mistakes in the file.
    Findings(Vec<Mistake>),
    /// Something the machine lacks: one message, and what to do.
    Environment(String),
}

impl From<crate::dpdk::error::Error> for Failure {
    fn from(error: crate::dpdk::error::Error) -> Failure {
        Failure::Environment(error.to_string())
    }
}

/// Frames a ring between two workers holds.
const RING: usize = 1024;

/// A running appliance.
pub struct Appliance {
    running: Arc<Running>,
    workers: Vec<eal::Running<Worker<DpdkIo>>>,
    signals: Arc<Signals>,
    ports: Vec<Arc<LivePort>>,
    pool: Pool,
    eal: &'static Eal,
    /// What the operator should know about how it started.
    pub notes: Vec<String>,
}

/// What is left when it has stopped.
pub struct Stopped {
    /// Every worker's last counters.
    pub sheets: Vec<Sheet>,
    /// The ports' last state.
    pub ports: Vec<PortState>,
    /// Packet buffers that did not come back; zero unless flowgate has a defect.
    pub missing_buffers: usize,
    /// Messages of workers that panicked.
    pub panics: Vec<String>,
    /// The pipeline.
    pub blueprint: Blueprint,
}
