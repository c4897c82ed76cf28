//! `[kernel]`: the host's own network stack beside the datapath. Form only; whether the namespace exists is found out at start.

use super::reader::{FromToml, Item, Reader, parsed};
use super::units::{Counted, Rate};

crate::section! {
    /// `[kernel]`
    pub struct Kernel {
        /// A kernel interface for each port, with its name, MAC, MTU and addresses. Left out, it is true if the pipeline has a `route`.
        pub enabled: Option<bool>,
        /// The network namespace the interfaces are in: a name of `ip netns`, or a path. Left out, it is that of the process.
        pub namespace: Option<Namespace>,
        /// Routes of the kernel's main table by these interfaces are flowgate's too: those of a routing daemon or a DHCP client.
        pub routes: bool = true,
        /// Packets a second, of all ports, that the kernel is given at most, ARP and neighbor discovery not counted: control-plane protection.
        pub rate: Rate = Rate { per_second: 50_000, counted: Counted::Packets },
        /// ARP, neighbor and router discovery a second, of all ports, that are heard at most.
        pub discovery_rate: Rate = Rate { per_second: 5_000, counted: Counted::Packets },
        /// The kernel makes addresses and routes from router advertisements (SLAAC).
        pub accept_ra: bool = false,
    }
}

/// A network namespace: its name, or an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace(pub String);

impl FromToml for Namespace {
    const EXPECTED: &'static str = "the name of a network namespace or an absolute path";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        parsed(&item, Self::EXPECTED, reader, |text| {
            let name = !text.is_empty() && ![".", ".."].contains(&text) && !text.contains('/');
            let good = (name || text.starts_with('/')) && !text.contains('\0');
            good.then(|| Namespace(text.to_owned()))
        })
    }
}
