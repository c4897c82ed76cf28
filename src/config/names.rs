//! What the file names and its stages refer to: ports, zones, sets of addresses, services; and what may stand in a rule for
//! addresses and services, whichever stage the rule belongs to.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

use super::port::Rpf;
use super::source::{At, Mistakes, Place, near_miss};
use crate::packet::SELF_PORT;
use crate::wire::ethernet::ethertype;

/// The zone of the box itself, and its name where a port's is expected.
pub const SELF: &str = "self";

/// Everything that has a name. Indices are places in these lists.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Ports: `Meta::port` and `Action::out` are indices into it. Those with a device come first, then their VLANs, each in
    /// file order.
    pub ports: Vec<PortName>,
    /// True if the pipeline routes: then the box itself is an end of traffic, the zone `self`.
    pub routes: bool,
    /// Zones in the order of their first appearance.
    pub zones: Vec<String>,
    /// Sets of addresses, named `@name` elsewhere.
    pub sets: Vec<Set>,
    /// Services.
    pub services: Vec<NamedService>,
    /// The ports' addresses, in file order.
    pub addresses: Vec<PortAddress>,
    /// How the sources of packets from some ports are checked, otherwise than those of others.
    pub rpf: Vec<(u8, Rpf)>,
}

/// An address of a port.
#[derive(Clone, Debug)]
pub struct PortAddress {
    /// The port.
    pub port: u8,
    /// The address, with the length of its subnet's prefix.
    pub net: IpNet,
    /// The MAC that neighbors are told for it, if not the port's.
    pub mac: Option<[u8; 6]>,
    /// Where it is written.
    pub place: Place,
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
    /// What carries its frames, if it is a VLAN and has no device of its own.
    pub carrier: Option<Carrier>,
    /// Where it is declared.
    pub place: Place,
}

/// A VLAN of a port that has a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// The index of that port.
    pub parent: u8,
    /// What marks the VLAN's frames there.
    pub tags: Tags,
}

/// The VLAN tags of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tags {
    /// EtherType that announces the outer tag: 802.1Q or 802.1ad. An inner tag is always 802.1Q.
    pub tpid: u16,
    /// VLAN id of the outer tag, 1 to 4094.
    pub outer: u16,
    /// VLAN id of the inner tag, if there are two.
    pub inner: Option<u16>,
}

impl Tags {
    /// As they stand in a frame behind the MAC addresses, priority 0, the outer one first; zeros where there is none.
    pub fn wire(&self) -> [[u8; 4]; 2] {
        let tag = |tpid: u16, id: u16| {
            let ([a, b], [c, d]) = (tpid.to_be_bytes(), id.to_be_bytes());
            [a, b, c, d]
        };
        [tag(self.tpid, self.outer), self.inner.map_or([0; 4], |id| tag(ethertype::VLAN, id))]
    }
}

impl Carrier {
    /// A frame of the VLAN as it is on the parent. Of one too short for MAC addresses nothing changes.
    pub fn tagged(&self, frame: &[u8]) -> Vec<u8> {
        let Some((macs, rest)) = frame.split_at_checked(12) else { return frame.to_vec() };
        let tags = self.tags.wire().concat();
        [macs, &tags[..4 + 4 * usize::from(self.tags.inner.is_some())], rest].concat()
    }
}

impl std::fmt::Display for Tags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.outer)?;
        self.inner.map_or(Ok(()), |inner| write!(f, ".{inner}"))
    }
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// IANA protocol number.
    pub proto: u8,
    /// What of the protocol.
    pub detail: Detail,
}

/// The part of a service behind the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

    /// Index of the port called `name`, or what stands for the box itself if that is meant and an end of traffic.
    pub fn port_or_self(&self, name: &str) -> Option<u8> {
        self.port(name).or((name == SELF && self.routes).then_some(SELF_PORT))
    }

    /// How many ports have a device: the first ones.
    pub fn devices(&self) -> usize {
        self.ports.iter().take_while(|port| port.carrier.is_none()).count()
    }

    /// The name of a port, the box itself included.
    pub fn port_name(&self, port: u8) -> Option<&str> {
        match self.ports.get(usize::from(port)) {
            Some(port) => Some(&port.name),
            None => (port == SELF_PORT && self.routes).then_some(SELF),
        }
    }

    /// Every port there is, the box itself included if it is an end of traffic.
    pub fn every_port(&self) -> impl Iterator<Item = u8> {
        (0..self.ports.len() as u8).chain(self.routes.then_some(SELF_PORT))
    }

    /// The name of a port's zone, if it has one.
    pub fn zone_of(&self, port: u8) -> Option<&str> {
        match self.ports.get(usize::from(port)) {
            Some(port) => port.zone.map(|zone| self.zones[zone].as_str()),
            None => (port == SELF_PORT && self.routes).then_some(SELF),
        }
    }

    /// Index of the zone called `name`.
    pub fn zone(&self, name: &str) -> Option<usize> {
        self.zones.iter().position(|zone| zone == name)
    }

    /// The addresses of a port, with the lengths of their subnets' prefixes.
    pub fn addresses_of(&self, port: u8) -> impl Iterator<Item = IpNet> + '_ {
        self.addresses.iter().filter(move |address| address.port == port).map(|address| address.net)
    }

    /// The set called `name` (without `@`).
    pub fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)
    }

    /// What a rule's list of addresses covers; `None` after noting at least one mistake.
    pub fn resolve_addresses(&self, list: &[At<String>], key: &str, mistakes: &mut Mistakes) -> Option<Addresses> {
        let before = mistakes.len();
        let (mut blocks, mut sets) = (Blocks::default(), Vec::new());
        for text in list {
            if let Some(name) = text.strip_prefix('@') {
                match self.sets.iter().position(|set| set.name == name) {
                    Some(set) if sets.contains(&set) => {}
                    Some(set) => sets.push(set),
                    None => mistakes.unknown(&text.place, key, "set", name, self.sets.iter().map(|s| s.name.as_str())),
                }
            } else if text.value == "any" {
                blocks.v4.push(Ipv4Net::default());
                blocks.v6.push(Ipv6Net::default());
            } else if let Err(wrong) = blocks.add(text) {
                wrong.note(&text.place, key, mistakes);
            }
        }
        blocks.aggregate();
        (mistakes.len() == before).then_some(Addresses { v4: blocks.v4, v6: blocks.v6, sets })
    }

    /// What a rule's list of services covers; `None` after noting at least one mistake.
    pub fn resolve_services(&self, list: &[At<String>], key: &str, mistakes: &mut Mistakes) -> Option<Vec<Service>> {
        let before = mistakes.len();
        let mut services = Vec::new();
        for text in list {
            if Service::is_inline(text) {
                match Service::parse(text) {
                    Ok(service) => services.push(service),
                    Err(wrong) => wrong.note(&text.place, key, mistakes),
                }
            } else if let Some(named) = self.services.iter().find(|named| named.name == text.value) {
                services.extend_from_slice(&named.services);
            } else {
                unknown_service(text, key, self.services.iter().map(|named| named.name.as_str()), mistakes);
            }
        }
        dedupe(&mut services);
        (mistakes.len() == before).then_some(services)
    }
}

/// Notes a word that is neither a service nor a protocol.
pub(super) fn unknown_service<'a>(
    text: &At<String>,
    key: &str,
    known: impl Iterator<Item = &'a str>,
    mistakes: &mut Mistakes,
) {
    let known: Vec<&str> = known.chain(PROTOCOLS.iter().map(|(name, _)| *name)).collect();
    match near_miss(text, known.into_iter()) {
        Some(near) => {
            let message = format!("there is no service {:?}", text.value);
            mistakes.with_help(&text.place, key, message, format!("did you mean {near:?}?"));
        }
        None => mistakes.at(&text.place, key, format!("expected {SERVICE}, found {:?}", text.value)),
    }
}

/// Removes what is there already, keeping the order.
pub(super) fn dedupe(services: &mut Vec<Service>) {
    let mut seen = std::collections::HashSet::new();
    services.retain(|service| seen.insert(service.clone()));
}

/// What a rule's list of addresses covers: prefixes written in it, and sets it names. Empty if the list is. `"any"` is both
/// families' zero-length prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4 prefixes, disjoint and sorted.
    pub v4: Vec<Ipv4Net>,
    /// IPv6 prefixes, disjoint and sorted.
    pub v6: Vec<Ipv6Net>,
    /// Indices into `Names::sets`.
    pub sets: Vec<usize>,
}

/// What is wrong with a text, and what may have been meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// What is wrong, and what was expected.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Wrong {
    fn new(message: impl Into<String>) -> Wrong {
        Wrong { message: message.into(), help: None }
    }

    fn or(mut self, near: impl std::fmt::Display) -> Wrong {
        self.help = Some(format!("did you mean \"{near}\"?"));
        self
    }

    /// Notes it as a mistake about `key`.
    pub fn note(self, place: &Place, key: &str, mistakes: &mut Mistakes) {
        let Wrong { message, help } = self;
        mistakes.push(super::source::Mistake { place: Some(place.clone()), key: key.to_owned(), message, help });
    }
}

/// Prefixes of both families.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    /// IPv4 prefixes.
    pub v4: Vec<Ipv4Net>,
    /// IPv6 prefixes.
    pub v6: Vec<Ipv6Net>,
}

impl Blocks {
    /// Adds what a text stands for: an address, a prefix, or a range `first-last` (split into prefixes).
    pub fn add(&mut self, text: &str) -> Result<(), Wrong> {
        if let Some((first, last)) = text.split_once('-') {
            return self.add_range(text, first.trim(), last.trim());
        }
        match address_or_prefix(text)? {
            IpNet::V4(net) => self.v4.push(net),
            IpNet::V6(net) => self.v6.push(net),
        }
        Ok(())
    }

    fn add_range(&mut self, text: &str, first: &str, last: &str) -> Result<(), Wrong> {
        match (first.parse(), last.parse()) {
            (Ok(IpAddr::V4(a)), Ok(IpAddr::V4(b))) if a <= b => self.v4.extend(Ipv4Subnets::new(a, b, 0)),
            (Ok(IpAddr::V6(a)), Ok(IpAddr::V6(b))) if a <= b => self.v6.extend(Ipv6Subnets::new(a, b, 0)),
            (Ok(a), Ok(b)) if a.is_ipv4() == b.is_ipv4() => {
                return Err(Wrong::new(format!("the range {text:?} ends before it begins")).or(format_args!("{b}-{a}")));
            }
            (Ok(_), Ok(_)) => return Err(Wrong::new(format!("the range {text:?} mixes IPv4 and IPv6"))),
            _ => return Err(Wrong::new(format!("expected {ADDRESS}, found {text:?}"))),
        }
        Ok(())
    }

    /// Merges prefixes that overlap or complete each other.
    pub fn aggregate(&mut self) {
        self.v4 = Ipv4Net::aggregate(&self.v4);
        self.v6 = Ipv6Net::aggregate(&self.v6);
    }
}

/// What may stand for addresses.
pub const ADDRESS: &str = "an address, a prefix such as \"192.0.2.0/24\", or a range such as \"192.0.2.1-192.0.2.9\"";

/// Reads an address (as a prefix of full length) or a prefix without host bits.
pub fn address_or_prefix(text: &str) -> Result<IpNet, Wrong> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    if let Ok(net) = text.parse::<IpNet>() {
        if net.addr() != net.network() {
            return Err(Wrong::new(format!("{text:?} has bits set behind its prefix")).or(net.trunc()));
        }
        return Ok(net);
    }
    let wrong = Wrong::new(format!("expected {ADDRESS}, found {text:?}"));
    match text.split_once('/') {
        Some((address, length)) => match (address.parse::<IpAddr>(), length.parse::<u32>()) {
            (Ok(IpAddr::V4(_)), Ok(33..)) => Err(Wrong::new(format!("{text:?}: an IPv4 prefix has at most 32 bits"))),
            (Ok(IpAddr::V6(_)), Ok(129..)) => Err(Wrong::new(format!("{text:?}: an IPv6 prefix has at most 128 bits"))),
            _ => Err(wrong),
        },
        None => Err(wrong),
    }
}

/// What may stand for a service.
pub const SERVICE: &str =
    "a service such as \"tcp/443\", \"udp/1000-2000\", \"icmp/echo\", \"proto/89\", or one of [service]";

/// Protocols that may be named, by their IANA numbers.
pub(super) const PROTOCOLS: &[(&str, u8)] = &[
    ("tcp", 6),
    ("udp", 17),
    ("icmp", 1),
    ("icmpv6", 58),
    ("sctp", 132),
    ("dccp", 33),
    ("udplite", 136),
    ("esp", 50),
    ("ah", 51),
    ("gre", 47),
    ("igmp", 2),
    ("ipip", 4),
    ("ipv6", 41),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
];

/// Protocols with ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
pub const WITH_PORTS: &[u8] = &[6, 17, 33, 132, 136];

/// ICMP types by name (IANA "ICMP Type Numbers"; `echo` is the registry's name of type 8).
const ICMP_TYPES: &[(&str, u8)] = &[
    ("echo", 8),
    ("echo-request", 8),
    ("echo-reply", 0),
    ("destination-unreachable", 3),
    ("source-quench", 4),
    ("redirect", 5),
    ("router-advertisement", 9),
    ("router-solicitation", 10),
    ("time-exceeded", 11),
    ("parameter-problem", 12),
    ("timestamp", 13),
    ("timestamp-reply", 14),
    ("address-mask-request", 17),
    ("address-mask-reply", 18),
    ("extended-echo-request", 42),
    ("extended-echo-reply", 43),
];

/// ICMPv6 types by name (IANA "ICMPv6 Type Numbers").
const ICMPV6_TYPES: &[(&str, u8)] = &[
    ("echo", 128),
    ("echo-request", 128),
    ("echo-reply", 129),
    ("destination-unreachable", 1),
    ("packet-too-big", 2),
    ("time-exceeded", 3),
    ("parameter-problem", 4),
    ("multicast-listener-query", 130),
    ("multicast-listener-report", 131),
    ("multicast-listener-done", 132),
    ("router-solicitation", 133),
    ("router-advertisement", 134),
    ("neighbor-solicitation", 135),
    ("neighbor-advertisement", 136),
    ("redirect", 137),
    ("multicast-listener-report-v2", 143),
    ("extended-echo-request", 160),
    ("extended-echo-reply", 161),
];

impl Service {
    /// True if the text describes a service, and is not the name of one in `[service]`.
    pub fn is_inline(text: &str) -> bool {
        text.contains('/') || PROTOCOLS.iter().any(|(name, _)| *name == text)
    }

    /// Reads `tcp/443`, `udp/1000-2000`, `icmp/echo`, `icmp/3/4`, `proto/89`, `esp`.
    pub fn parse(text: &str) -> Result<Service, Wrong> {
        let (name, detail) = match text.split_once('/') {
            Some((name, detail)) => (name, Some(detail)),
            None => (text, None),
        };
        if name == "proto" {
            let proto = detail.and_then(|number| number.parse().ok());
            return match proto {
                Some(proto) => Ok(Service { proto, detail: Detail::Any }),
                None => {
                    Err(Wrong::new(format!("expected a protocol number from 0 to 255 behind \"proto/\" in {text:?}")))
                }
            };
        }
        let Some((_, proto)) = PROTOCOLS.iter().find(|(known, _)| *known == name) else {
            let wrong = Wrong::new(format!("expected {SERVICE}, found {text:?}"));
            let near = near_miss(name, PROTOCOLS.iter().map(|(name, _)| *name).chain(["proto"]));
            return Err(match (near, detail) {
                (Some(near), Some(detail)) => wrong.or(format_args!("{near}/{detail}")),
                (Some(near), None) => wrong.or(near),
                (None, _) => wrong,
            });
        };
        let detail = match (detail, *proto) {
            (None, _) => Detail::Any,
            (Some(detail), 1) => icmp(text, detail, ICMP_TYPES)?,
            (Some(detail), 58) => icmp(text, detail, ICMPV6_TYPES)?,
            (Some(detail), proto) if WITH_PORTS.contains(&proto) => Detail::Ports(ports(text, detail)?),
            (Some(_), _) => return Err(Wrong::new(format!("{name} has no ports")).or(name)),
        };
        Ok(Service { proto: *proto, detail })
    }
}

fn ports(text: &str, ports: &str) -> Result<RangeInclusive<u16>, Wrong> {
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        (Ok(first), Ok(last)) => {
            let proto = text.split('/').next().unwrap_or_default();
            let near = format!("{proto}/{last}-{first}");
            Err(Wrong::new(format!("the range of ports in {text:?} ends before it begins")).or(near))
        }
        _ => Err(Wrong::new(format!("expected a port or a range of ports from 0 to 65535 in {text:?}"))),
    }
}

fn icmp(text: &str, detail: &str, types: &[(&str, u8)]) -> Result<Detail, Wrong> {
    let (kind, code) = match detail.split_once('/') {
        Some((kind, code)) => (kind, Some(code)),
        None => (detail, None),
    };
    let number = match kind.parse() {
        Ok(number) => number,
        Err(_) => match types.iter().find(|(name, _)| *name == kind) {
            Some((_, number)) => *number,
            None => {
                let wrong = Wrong::new(format!("{kind:?} in {text:?} is no ICMP type"));
                let near = near_miss(kind, types.iter().map(|(name, _)| *name));
                return Err(match near {
                    Some(near) => wrong.or(text.replacen(kind, near, 1)),
                    None => wrong,
                });
            }
        },
    };
    let code = match code.map(str::parse) {
        None => None,
        Some(Ok(code)) => Some(code),
        Some(Err(_)) => return Err(Wrong::new(format!("expected an ICMP code from 0 to 255 at the end of {text:?}"))),
    };
    Ok(Detail::Icmp(number, code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> (u8, Detail) {
        let service = Service::parse(text).expect(text);
        (service.proto, service.detail)
    }

    #[test]
    fn services() {
        assert_eq!(service("tcp/80"), (6, Detail::Ports(80..=80)));
        assert_eq!(service("udp/1000-2000"), (17, Detail::Ports(1000..=2000)));
        assert_eq!(service("sctp/0-65535"), (132, Detail::Ports(0..=65535)));
        assert_eq!(service("tcp"), (6, Detail::Any));
        assert_eq!(service("icmp/echo"), (1, Detail::Icmp(8, None)));
        assert_eq!(service("icmp/3/4"), (1, Detail::Icmp(3, Some(4))));
        assert_eq!(service("icmpv6/echo"), (58, Detail::Icmp(128, None)));
        assert_eq!(service("icmpv6/packet-too-big/0"), (58, Detail::Icmp(2, Some(0))));
        assert_eq!(service("proto/89"), (89, Detail::Any));
        assert_eq!(service("gre"), (47, Detail::Any));
    }

    #[test]
    fn wrong_services_say_what_was_meant() {
        let help = |text| Service::parse(text).expect_err(text).help;
        assert_eq!(help("tpc/80"), Some("did you mean \"tcp/80\"?".into()));
        assert_eq!(help("icmp/eco"), Some("did you mean \"icmp/echo\"?".into()));
        assert_eq!(help("udp/20-10"), Some("did you mean \"udp/10-20\"?".into()));
        assert_eq!(help("esp/80"), Some("did you mean \"esp\"?".into()));
        for text in
            ["tcp/", "tcp/65536", "tcp/-1", "tcp/1-2-3", "proto/256", "proto", "icmp/", "icmp/3/x", "", "/", "é/1"]
        {
            assert!(Service::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn addresses() {
        let mut blocks = Blocks::default();
        for text in ["10.0.0.1", "10.0.0.0-10.0.0.6", "10.0.0.7", "2001:db8::/33", "2001:db8:8000::/33", "0.0.0.0/32"] {
            blocks.add(text).expect(text);
        }
        blocks.aggregate();
        let shown: Vec<String> = blocks.v4.iter().map(|n| n.to_string()).collect();
        assert_eq!(shown, ["0.0.0.0/32", "10.0.0.0/29"]);
        assert_eq!(blocks.v6[0].to_string(), "2001:db8::/32");
        let help = |text| Blocks::default().add(text).expect_err(text).help;
        assert_eq!(help("10.0.0.1/8"), Some("did you mean \"10.0.0.0/8\"?".into()));
        assert_eq!(help("10.0.0.9-10.0.0.1"), Some("did you mean \"10.0.0.1-10.0.0.9\"?".into()));
        for text in ["10.0.0/24", "10.0.0.0/33", "::/129", "1.2.3.4-::1", "x-y", "", "-", "/", "10.0.0.256"] {
            assert!(Blocks::default().add(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn lists_of_rules() {
        let place = Place { file: "t".into(), line: 1, column: 1 };
        let at = |text: &str| At { value: text.to_owned(), place: place.clone() };
        let names = Names {
            sets: vec![Set { name: "office".into(), v4: vec![], v6: vec![], place: place.clone() }],
            services: vec![NamedService {
                name: "web".into(),
                services: vec![Service::parse("tcp/80").expect("good")],
                place: place.clone(),
            }],
            ..Names::default()
        };
        let mut mistakes = Mistakes::default();
        let list = [at("@office"), at("any"), at("10.0.0.1"), at("@office")];
        let addresses = names.resolve_addresses(&list, "source", &mut mistakes).expect("good");
        assert_eq!((addresses.v4.len(), addresses.v6.len(), addresses.sets), (1, 1, vec![0]));
        let services = names.resolve_services(&[at("web"), at("tcp/80"), at("esp")], "service", &mut mistakes);
        assert_eq!(services.expect("good").len(), 2);
        assert!(mistakes.is_empty());
        assert!(names.resolve_addresses(&[at("@offise"), at("10.0.0.1/8")], "source", &mut mistakes).is_none());
        assert!(names.resolve_services(&[at("wbe"), at("tpc/80")], "service", &mut mistakes).is_none());
        let helps: Vec<String> = mistakes.into_sorted().into_iter().filter_map(|m| m.help).collect();
        let expected = ["office", "10.0.0.0/8", "web", "tcp/80"].map(|near| format!("did you mean \"{near}\"?"));
        assert_eq!(helps, expected);
    }
}
