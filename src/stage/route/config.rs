//! The keys of `[route]`.

use crate::config::names::Names;
use crate::config::units::{Counted, Rate};

crate::choice! {
    /// Whether a packet's source must be reached by the port it came from (RFC 3704).
    pub enum Rpf {
        /// It is not checked. RFC 1812 section 5.3.8 wants that to be the default.
        Off = "off",
        /// Some route leads to it.
        Loose = "loose",
        /// The route to it leads by that port.
        Strict = "strict",
    }
}

crate::section! {
    /// `[route]`
    pub struct Config {
        /// Whether a packet's source must be reached by the port it came from: `strict`; by any port: `loose`; or is not looked at.
        pub rpf: Rpf = Rpf::Off,
        /// ICMP errors that the whole box sends, at most (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).
        pub icmp_errors: Rate = Rate { per_second: 1000, counted: Counted::Packets },
        /// Lower the MSS in TCP handshakes to what the egress port's MTU takes, for paths on which ICMP is lost.
        pub clamp_mss: bool = false,
    }
}

impl Config {
    /// By port: how sources are checked.
    pub fn reverse_path(&self, names: &Names) -> Vec<Rpf> {
        vec![self.rpf; names.ports.len()]
    }
}
