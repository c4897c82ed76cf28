//! What destinations become: rules in the order of the file, the first that matches decides. A pure function of a packet's
//! facts (and of the ports' own addresses), so that any worker can tell whose packet it is.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::names::{Detail, address_or_prefix};
use crate::packet::Meta;
use crate::packet::meta::flag;
use crate::route::Addresses;
use crate::stage::ingress::Ports;

use super::pool::scramble;
use super::rules::{Match, port_range};
use super::source::Fixed;

/// What may stand for where packets are to go.
pub const TARGET: &str = "an address with or without ports (\"10.0.0.80\", \"10.0.0.80:8443\", \"10.0.0.80:8000-8010\", \
                          \"[2001:db8::80]:8443\"), a range of addresses, a prefix, or \"none\"";

/// Where packets are to go, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Where they are going anyway.
    None,
    /// To these addresses, and if given to this port, or these in the order of the service's.
    Addresses(Vec<IpAddr>, Option<RangeInclusive<u16>>),
    /// To the address with the same host bits.
    Prefix(IpNet),
}

/// The most addresses of a range.
const MOST: u128 = 1024;

impl Target {
    /// Reads what [`TARGET`] says; what is wrong with it otherwise.
    pub fn parse(text: &str) -> Result<Target, String> {
        let wrong = || format!("expected {TARGET}, found {text:?}");
        if text == "none" {
            return Ok(Target::None);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Target::Addresses(vec![address], None));
        }
        if text.contains('/') {
            return address_or_prefix(text).map(Target::Prefix).map_err(|wrong| match wrong.help {
                Some(help) => format!("{}; {help}", wrong.message),
                None => wrong.message,
            });
        }
        let with_ports = match text.strip_prefix('[') {
            Some(rest) => rest.split_once("]:"),
            None => text.rsplit_once(':').filter(|(address, _)| !address.contains(':')),
        };
        if let Some((address, ports)) = with_ports {
            let address: IpAddr = address.parse().map_err(|_| wrong())?;
            let ports = port_range(ports)
                .ok_or_else(|| format!("expected a port or a range of ports at the end of {text:?}"))?;
            return Ok(Target::Addresses(vec![address], Some(ports)));
        }
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let (first, last): (IpAddr, IpAddr) =
            (first.trim().parse().map_err(|_| wrong())?, last.trim().parse().map_err(|_| wrong())?);
        let number = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => address.into(),
        };
        let (a, b) = (number(first), number(last));
        if first.is_ipv4() != last.is_ipv4() || a > b || b - a >= MOST {
            return Err(format!(
                "expected a range of up to {MOST} addresses of one family, the lowest first, found {text:?}"
            ));
        }
        let address = |number: u128| match first {
            IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
            IpAddr::V6(_) => IpAddr::V6(number.into()),
        };
        Ok(Target::Addresses((a..=b).map(address).collect(), None))
    }
}

/// What a rule does with destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing, nor do later rules.
    Nothing,
    /// They become one of these, by the packet's source; `[IPv4, IPv6]`. The ports become those from the given one on, in the
    /// order of the service's.
    Spread([Vec<[u8; 16]>; 2], Option<RangeInclusive<u16>>),
    /// They become those of another prefix.
    Fixed(Fixed),
}

/// A rule, compiled.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What it asks of packets; `from` includes what it asks of hosts that share a network with the target.
    pub asks: Match,
    /// If it is about the box's own addresses: of these ports.
    pub own: Option<Ports>,
    /// Hosts that share a network with the target may come this way too, and then get a source of ours.
    pub hairpin: bool,
    /// What it does.
    pub change: Change,
}

/// What was found for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The rule's place in the list.
    pub rule: usize,
    /// Address and port that replace the packet's, if they change.
    pub to: Option<([u8; 16], u16)>,
    /// As the rule's.
    pub hairpin: bool,
}

/// All rules for destinations.
#[derive(Debug)]
pub struct Destinations {
    /// In order.
    pub rules: Vec<Rule>,
    /// What ports have for addresses.
    pub addresses: Arc<Addresses>,
}

impl Destinations {
    /// The rule that decides where an IP packet goes, and where that is.
    #[inline]
    pub fn find(&self, meta: &Meta) -> Option<Found> {
        self.rules.iter().enumerate().find_map(|(at, rule)| {
            if !rule.asks.from.contains(meta.port) || !rule.asks.is_between(meta) {
                return None;
            }
            if rule.own.is_some_and(|ports| !self.is_own(meta, ports)) {
                return None;
            }
            let service = rule.asks.service(meta)?;
            let to = rule.to(meta, service)?;
            Some(Found { rule: at, to, hairpin: rule.hairpin && to.is_some() })
        })
    }

    /// True if the destination is the first address of one of these ports.
    fn is_own(&self, meta: &Meta, ports: Ports) -> bool {
        let (v6, dst) = (meta.has(flag::IPV6), &meta.dst);
        ports.iter().any(|port| match v6 {
            true => self.addresses.v6(port).is_some_and(|own| own == *dst),
            false => self.addresses.v4(port).is_some_and(|own| own == dst[..4]),
        })
    }
}

impl Rule {
    /// Where it sends a packet of its `service`th service, `None` inside if nowhere else; `None` if it cannot.
    fn to(&self, meta: &Meta, service: usize) -> Option<Option<([u8; 16], u16)>> {
        let v6 = meta.has(flag::IPV6);
        match &self.change {
            Change::Nothing => Some(None),
            Change::Fixed(fixed) => fixed.translate(&meta.dst, v6).map(|dst| Some((dst, meta.dport))),
            Change::Spread(targets, ports) => {
                let targets = &targets[usize::from(v6)];
                let whole = u128::from_be_bytes(meta.src);
                // A client keeps its target: no secret, so that all who ask are told the same.
                let hash = scramble(whole as u64 ^ scramble((whole >> 64) as u64));
                let dst = *targets.get((((hash >> 32) * targets.len() as u64) >> 32) as usize)?;
                let dport = match ports {
                    None => meta.dport,
                    Some(ports) if ports.start() == ports.end() => *ports.start(),
                    Some(ports) => match &self.asks.services.get(service)?.detail {
                        Detail::Ports(range) => ports.start().checked_add(meta.dport.checked_sub(*range.start())?)?,
                        _ => return None,
                    },
                };
                Some(Some((dst, dport)))
            }
        }
    }
}

/// An address as it stands in `Meta`.
pub fn wide(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&address.octets());
            wide
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// Two prefixes of one length and family as a translation.
pub fn fixed(from: IpNet, to: IpNet) -> Option<Fixed> {
    if from.prefix_len() != to.prefix_len() || from.addr().is_ipv4() != to.addr().is_ipv4() {
        return None;
    }
    let v6 = from.addr().is_ipv6();
    let bits = |net: IpNet| u128::from_be_bytes(wide(net.network()));
    let host = u128::MAX.checked_shr(u32::from(from.prefix_len())).unwrap_or(0);
    // Of an IPv4 address only the first 32 bits are there.
    let host = if v6 { host } else { host >> 96 << 96 };
    Some(Fixed { from: bits(from), to: bits(to), host, v6 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let addresses = |list: &[&str], ports| {
            Ok(Target::Addresses(list.iter().map(|text| text.parse().expect("address")).collect(), ports))
        };
        assert_eq!(Target::parse("none"), Ok(Target::None));
        assert_eq!(Target::parse("10.0.0.80"), addresses(&["10.0.0.80"], None));
        assert_eq!(Target::parse("10.0.0.80:8443"), addresses(&["10.0.0.80"], Some(8443..=8443)));
        assert_eq!(Target::parse("10.0.0.80:8000-8010"), addresses(&["10.0.0.80"], Some(8000..=8010)));
        assert_eq!(Target::parse("[2001:db8::80]:8443"), addresses(&["2001:db8::80"], Some(8443..=8443)));
        assert_eq!(Target::parse("2001:db8::80"), addresses(&["2001:db8::80"], None));
        assert_eq!(Target::parse("10.0.0.1-10.0.0.3"), addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.3"], None));
        assert_eq!(Target::parse("10.0.0.0/28"), Ok(Target::Prefix("10.0.0.0/28".parse().expect("prefix"))));
        for wrong in [
            "10.0.0",
            "10.0.0.1:",
            "10.0.0.1:70000",
            "10.0.0.1/28",
            "10.0.0.9-10.0.0.1",
            "10.0.0.1-::1",
            "[::1]",
            "web",
        ] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn prefixes_keep_host_bits() {
        let net = |text: &str| text.parse::<IpNet>().expect("prefix");
        let map = fixed(net("203.0.113.0/28"), net("10.0.0.16/28")).expect("alike");
        let (out, inside) =
            (wide("203.0.113.5".parse().expect("address")), wide("10.0.0.21".parse().expect("address")));
        assert_eq!(map.translate(&out, false), Some(inside));
        assert_eq!(map.reversed().translate(&inside, false), Some(out));
        assert_eq!(map.translate(&wide("203.0.113.16".parse().expect("address")), false), None);
        assert_eq!(map.translate(&out, true), None);
        let map = fixed(net("2001:db8::/128"), net("2001:db8::1/128")).expect("alike");
        assert_eq!(
            map.translate(&wide("2001:db8::".parse().expect("address")), true),
            Some(wide("2001:db8::1".parse().expect("a")))
        );
        assert_eq!(fixed(net("10.0.0.0/28"), net("10.0.0.0/27")), None);
    }
}
