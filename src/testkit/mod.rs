//! What tests, benches and fuzz targets build their input with. Nothing here runs in an appliance.

pub mod packets;
