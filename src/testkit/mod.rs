//! What tests, benches and fuzz targets share: packets from a line of text, and the datapath on a bench.

pub mod bench;
