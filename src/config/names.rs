//! What the file names and its stages refer to: ports, zones, sets of addresses, services.

use std::ops::RangeInclusive;

use ipnet::{Ipv4Net, Ipv6Net};

use super::source::Place;

/// Everything that has a name. Indices are places in these lists.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Ports in file order: `Meta::port` and `Action::out` are indices into it.
    pub ports: Vec<PortName>,
    /// Zones in the order of their first appearance.
    pub zones: Vec<String>,
    /// Sets of addresses, named `@name` elsewhere.
    pub sets: Vec<Set>,
    /// Services.
    pub services: Vec<NamedService>,
}

/// A port as stages know it.
#[derive(Clone, Debug)]
pub struct PortName {
    /// Its name.
    pub name: String,
    /// Index of its zone, if it has one.
    pub zone: Option<usize>,
    /// Its MAC address, if it is known already (a running port).
    pub mac: Option<[u8; 6]>,
    /// Where it is declared.
    pub place: Place,
}

/// A named set of addresses, both families.
#[derive(Clone, Debug)]
pub struct Set {
    /// Its name, without `@`.
    pub name: String,
    /// IPv4 prefixes.
    pub v4: Vec<Ipv4Net>,
    /// IPv6 prefixes.
    pub v6: Vec<Ipv6Net>,
    /// Where it is declared.
    pub place: Place,
}

/// A named list of services.
#[derive(Clone, Debug)]
pub struct NamedService {
    /// Its name.
    pub name: String,
    /// What it covers.
    pub services: Vec<Service>,
    /// Where it is declared.
    pub place: Place,
}

/// What a rule says of protocol and ports: `tcp/443`, `udp/1000-2000`, `icmp/echo`, `proto/89`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// IANA protocol number.
    pub proto: u8,
    /// What of the protocol.
    pub detail: Detail,
}

/// The part of a service behind the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// The whole protocol.
    Any,
    /// Destination ports.
    Ports(RangeInclusive<u16>),
    /// ICMP or ICMPv6 type, and code if given.
    Icmp(u8, Option<u8>),
}

impl Names {
    /// Index of the port called `name`.
    pub fn port(&self, name: &str) -> Option<u8> {
        self.ports.iter().position(|port| port.name == name).map(|at| at as u8)
    }

    /// Index of the zone called `name`.
    pub fn zone(&self, name: &str) -> Option<usize> {
        self.zones.iter().position(|zone| zone == name)
    }

    /// The set called `name` (without `@`).
    pub fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)
    }
}
