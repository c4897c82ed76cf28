//! Control's side of routing: what is known of addresses, routes and neighbors, and what of that workers are told.

use std::io;
use std::sync::Arc;

use super::epoch::Epochs;
use super::fib::{Capacity, FibWriter};
use super::{Macs, Routing};

/// The one that changes [`Routing`].
#[derive(Debug)]
pub struct Router {
    routing: Arc<Routing>,
    #[expect(dead_code)]
    fib: FibWriter,
}

impl Router {
    /// Empty tables for `workers` workers, and one who asks.
    pub fn new(workers: usize, capacity: Capacity, macs: Macs) -> io::Result<Router> {
        let epochs = Epochs::new(workers + 1);
        let fib = FibWriter::new(capacity, &epochs)?;
        let routing = Arc::new(Routing::new(fib.fib(), epochs, macs));
        Ok(Router { routing, fib })
    }

    /// What workers read.
    pub fn routing(&self) -> &Arc<Routing> {
        &self.routing
    }
}
