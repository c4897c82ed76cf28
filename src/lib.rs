//! flowgate: a DPDK packet-processing appliance.
//!
//! Read `docs/design.md` first. Dependencies point one way: `wire` < `packet` < `route` < `stage` < `worker` < `appliance`,
//! and `dpdk` < `io` < `worker`.

pub mod appliance;
pub mod arch;
pub mod cli;
pub mod config;
pub mod control;
pub mod dpdk;
pub mod explain;
pub mod flow;
pub mod io;
pub mod kernel;
pub mod log;
pub mod memory;
pub mod nat;
pub mod packet;
pub mod policy;
pub mod replay;
pub mod route;
pub mod stage;
pub mod stats;
pub mod testkit;
pub mod verdict;
pub mod wire;
pub mod worker;
