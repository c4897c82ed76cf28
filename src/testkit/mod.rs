//! What tests, benches and fuzz targets share: packets from a line of text, and the datapath on a bench. Part of the library,
//! so that the crate's own tests, integration tests, benches and fuzz targets use the same.

pub mod asked;
pub mod bench;
pub mod conversations;
pub mod packets;
pub mod routes;
