//! The network namespace the kernel interfaces are in: that of the process, or another by name or path.
//!
//! Sockets and TAP devices stay in the namespace they were opened in, so that only opening them needs a thread in there.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where the kernel interfaces are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace(Option<PathBuf>);

impl Namespace {
    /// By its name, as `ip netns` has it, or by a path that begins with `/`; none is that of the process.
    pub fn new(name: Option<&str>) -> Namespace {
        // `join` of a path that begins with `/` is that path.
        Namespace(name.map(|name| PathBuf::from("/run/netns").join(name)))
    }

    /// Runs `work` in the namespace, on a thread of its own if it is not that of the process.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        let Some(path) = &self.0 else { return Ok(work()) };
        let handle = File::open(path).map_err(|error| {
            format!(
                "network namespace {}: {error}; make it with `ip netns add`, or leave kernel.namespace out",
                path.display()
            )
        })?;
        let inside = || {
            move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| format!("network namespace {}: {error}", path.display()))?;
            Ok(work())
        };
        let ended = std::thread::scope(|scope| scope.spawn(inside).join());
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
