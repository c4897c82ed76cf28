//! The configuration: TOML text to checked values, with the place of every mistake.

pub mod names;
pub mod reader;
pub mod source;
