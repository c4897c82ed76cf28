//! The keys of `[route]`.

use crate::config::names::Names;
pub use crate::config::port::Rpf;
use crate::config::units::{Counted, Rate, Within};
use crate::route::fib::Capacity;

use super::listed::Listed;
use super::statics::StaticRoute;

crate::section! {
    /// `[route]`
    pub struct Config {
        /// Whether a packet's source must be reached by the port it came from: `strict`; by any port: `loose`; or is not looked at. A port's own `rpf` comes before it.
        pub rpf: Rpf = Rpf::Off,
        /// ICMP errors that the whole box sends, at most (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).
        pub icmp_errors: Rate = Rate { per_second: 1000, counted: Counted::Packets },
        /// Lower the MSS in TCP handshakes to what the egress port's MTU takes, for paths on which ICMP is lost.
        pub clamp_mss: bool = false,
        /// IPv4 prefixes there is room for.
        pub routes_v4: Within<1000, 16777216> = Within(1_000_000),
        /// IPv6 prefixes there is room for.
        pub routes_v6: Within<1000, 16777216> = Within(250_000),
        /// Routes of the file. They come before the kernel's to the same prefix.
        pub r#static: Vec<StaticRoute> = Vec::new(),
        /// A file of more such routes, one a line, such as "198.51.100.0/24 via 203.0.113.1"; `#` begins a comment. Its name is relative to this file.
        pub file: Option<Listed>,
    }
}

impl Config {
    /// By port: how sources are checked.
    pub fn reverse_path(&self, names: &Names) -> Vec<Rpf> {
        let mut rpf = vec![self.rpf; names.ports.len()];
        names.rpf.iter().for_each(|(port, own)| rpf[usize::from(*port)] = *own);
        rpf
    }

    /// What the forwarding table is to have room for.
    pub fn capacity(&self) -> Capacity {
        Capacity { v4: self.routes_v4.0 as usize, v6: self.routes_v6.0 as usize }
    }
}
