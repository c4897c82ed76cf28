//! From a list of stages to what a worker runs.
