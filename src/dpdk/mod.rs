//! Safe handles on the parts of DPDK flowgate uses. No policy and no defaults: what is not in an argument is decided
//! elsewhere.

pub mod acl;
pub mod bpf;
pub mod eal;
pub mod error;
pub mod meter;
pub mod pool;
pub mod port;
pub mod ring;

pub use eal::{Eal, EalConfig, Hugepages};
pub use error::{Errno, Error};
pub use pool::Pool;
pub use port::{Port, PortConfig, RxQueue, TxQueue};
