//! Packets: their bytes (`frame`), the batches they travel in (`batch`), what is known of each (`meta`), how that is
//! found out (`decode`), which worker they belong to (`steer`), how one is part of a datagram (`fragment`) and becomes several
//! (`cut`), what forwarding changes in it (`forward`, `mss`) and what its options ask of it (`options`), what answers it
//! (`reply`, `echo`), and how its addresses and ports are changed (`translate`).

pub mod batch;
pub mod cut;
pub mod decode;
pub mod echo;
pub mod forward;
pub mod fragment;
pub mod frame;
pub mod meta;
pub mod mss;
pub mod options;
pub mod reply;
pub mod steer;
pub mod translate;

pub use batch::{BATCH, Batch, Mask, bits};
pub use frame::Frame;
pub use meta::{Meta, NO_FLOW, NO_PORT, NO_RULE, SELF_PORT};
