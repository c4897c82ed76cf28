//! The configuration: TOML text to checked values, with the place of every mistake.

use crate::stage::{AnyConfig, Kind};

pub mod names;
pub mod reader;
pub mod source;

use names::Names;
use source::Place;

/// A whole configuration file, understood.
pub struct Config {
    /// Ports, zones, sets and services.
    pub names: Names,
    /// The stages in order.
    pub pipeline: Vec<StageConfig>,
    /// Where the list of stages stands.
    pub pipeline_place: Place,
}

/// One stage of the pipeline, as configured.
#[derive(Clone)]
pub struct StageConfig {
    /// Its word in the list (`bpf:noise`).
    pub instance: String,
    /// Its kind.
    pub kind: &'static Kind,
    /// Its table.
    pub config: AnyConfig,
    /// Where it stands in the list.
    pub place: Place,
}
