//! Addresses of ports: form, and what the file alone shows to be wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::names::{Names, PortAddress};
use super::neighbor::Mac;
use super::reader::{FromToml, Item, Reader};
use super::source::{At, Mistakes};

/// An address of a port: text, or a table that binds it to a MAC.
#[derive(Clone, Debug)]
pub struct Address {
    /// The address with the length of its subnet's prefix.
    pub net: IpNet,
    /// The MAC that neighbors are told for it, if not the port's.
    pub mac: Option<At<Mac>>,
}

crate::section! {
    /// An address that is bound to a MAC.
    pub struct Bound {
        /// The address with the length of its subnet's prefix.
        pub address: Subnet,
        /// The MAC that neighbors are told for it.
        pub mac: At<Mac>,
    }
}

impl FromToml for Address {
    const EXPECTED: &'static str = Subnet::EXPECTED;
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if item.is_table() {
            return Bound::from_toml(item, reader).map(|bound| Address { net: bound.address.0, mac: Some(bound.mac) });
        }
        Subnet::from_toml(item, reader).map(|Subnet(net)| Address { net, mac: None })
    }
}

/// An address with the length of its subnet's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet(pub IpNet);

impl FromToml for Subnet {
    const EXPECTED: &'static str = "an address with the length of its subnet's prefix, such as \"192.0.2.1/24\"";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(text) = item.as_str() else {
            reader.expected(&item, Self::EXPECTED);
            return None;
        };
        match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
            (Ok(net), _) => match wrong(net) {
                None => return Some(Subnet(net)),
                Some((message, help)) if help.is_empty() => reader.wrong(&item, format!("{text:?} {message}")),
                Some((message, help)) => reader.wrong_but(&item, format!("{text:?} {message}"), help),
            },
            (Err(_), Ok(address)) => {
                let near = format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 });
                let message = format!("{text:?} says nothing of its subnet: expected {}", Self::EXPECTED);
                reader.wrong_but(&item, message, format!("write the length of its prefix, as in {near:?}"));
            }
            _ => reader.wrong(&item, format!("expected {}, found {text:?}", Self::EXPECTED)),
        }
        None
    }
}

/// Why a port cannot have an address, and what to do about it.
fn wrong(net: IpNet) -> Option<(&'static str, String)> {
    let plain = |message| Some((message, String::new()));
    let address = net.addr();
    let reserved = match address {
        // RFC 1122, section 3.2.1.3; RFC 6890.
        IpAddr::V4(address) => address.octets()[0] == 0 || address.octets()[0] >= 240,
        IpAddr::V6(address) => address.is_unspecified() || address.to_ipv4_mapped().is_some(),
    };
    if address.is_multicast() {
        return plain("is a multicast address, which no port has");
    }
    if address.is_loopback() {
        return plain("is a loopback address, which no port has");
    }
    if reserved {
        return plain("is reserved: no port has it");
    }
    if net.prefix_len() == 0 {
        return plain("would have everybody on its link");
    }
    let special = match net {
        // RFC 3021, and a single host: nothing is special.
        IpNet::V4(net) if net.prefix_len() >= 31 => None,
        IpNet::V4(net) if net.addr() == net.network() => Some("is the network's own address, not a host's"),
        IpNet::V4(net) if net.addr() == net.broadcast() => Some("is the broadcast address of its subnet, not a host's"),
        // RFC 4291, section 2.6.1; RFC 6164 for links of two.
        IpNet::V6(net) if net.prefix_len() <= 126 && net.addr() == net.network() => {
            Some("is the anycast address of all routers of its subnet, not a host's")
        }
        _ => None,
    };
    let near: IpAddr = match net {
        IpNet::V4(net) => Ipv4Addr::from(u32::from(net.network()) + 1).into(),
        IpNet::V6(net) => Ipv6Addr::from(u128::from(net.network()) + 1).into(),
    };
    special.map(|message| (message, format!("did you mean \"{near}/{}\"?", net.prefix_len())))
}

/// Notes a port's addresses, and what is wrong with them beside those of other ports. `key` is the port's.
pub(super) fn note(port: u8, addresses: &[At<Address>], key: &str, names: &mut Names, mistakes: &mut Mistakes) {
    for (at, address) in addresses.iter().enumerate() {
        let (net, key) = (address.net, format!("{key}.address[{at}]"));
        let mac = address.mac.as_ref();
        if let Some(mac) = mac.filter(|mac| mac.0[0] & 1 != 0 || mac.0 == [0; 6]) {
            mistakes.at(&mac.place, &format!("{key}.mac"), format!("{} is no station's MAC", mac.value));
        }
        // Every link has these (RFC 4291, section 2.5.6).
        let link_local = |net: IpNet| matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
        let overlaps = |other: &&PortAddress| other.net.contains(&net.trunc()) || net.contains(&other.net.trunc());
        let clash =
            names.addresses.iter().filter(|_| !link_local(net)).find(|other| other.port != port && overlaps(other));
        if let Some(same) = names.addresses.iter().find(|other| other.port == port && other.net.addr() == net.addr()) {
            mistakes.at(&address.place, &key, format!("{net} stands here already, at {}", same.place));
        } else if let Some(other) = clash {
            let owner = names.ports.get(usize::from(other.port)).map_or("", |port| &port.name);
            let message = format!("{net} overlaps {} of port {owner:?}, at {}", other.net, other.place);
            mistakes.with_help(&address.place, &key, message, "each subnet is on one port");
        } else {
            let mac = mac.map(|mac| mac.0);
            names.addresses.push(PortAddress { port, net, mac, place: address.place.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::config::source::Source;

    /// What is wrong with the addresses of two ports.
    fn mistakes(lan: &str, wan: &str, stages: &str) -> Vec<String> {
        let text = format!(
            "[[port]]\nname = 'lan'\ndevice = 'net_null0'\naddress = {lan}\n\
             [[port]]\nname = 'wan'\ndevice = 'net_null1'\naddress = {wan}\n[pipeline]\nstages = [{stages}]\n"
        );
        Config::read(&Source::new("t.toml", &text)).1.iter().map(|mistake| mistake.to_string()).collect()
    }

    #[test]
    fn good_addresses() {
        for (lan, wan) in [
            ("'10.0.0.1/24'", "['10.0.1.1/24', '2001:db8::1/64']"),
            ("['10.0.0.1/24', '10.0.0.2/24', '10.0.0.130/25']", "[]"),
            ("['10.0.0.0/31', '10.0.0.2/32']", "'10.0.0.5/30'"),
            ("['2001:db8::/127', '2001:db8:1::/128', 'fe80::1/64']", "'fe80::1/64'"),
        ] {
            assert_eq!(mistakes(lan, wan, "'route'"), [""; 0]);
        }
    }

    #[test]
    fn addresses_bound_to_macs() {
        let wan = "[{ address = '10.0.1.254/24', mac = '00:00:5e:00:01:07' }, '10.0.1.1/24']";
        assert_eq!(mistakes("[]", wan, "'route'"), [""; 0]);
        for (from, to, expected) in [
            ("00:00:5e", "01:00:5e", "t.toml:8:47: port[1].address[0].mac: 01:00:5e:00:01:07 is no station's MAC"),
            ("mac", "mak", "mak"),
            ("10.0.1.254/24", "10.0.1.254", "says nothing of its subnet"),
        ] {
            let found = mistakes("[]", &wan.replace(from, to), "'route'");
            assert!(found.iter().any(|mistake| mistake.contains(expected)), "{found:?}, not {expected:?}");
        }
    }

    #[test]
    fn mistaken_addresses() {
        for (address, expected) in [
            ("10.0.0.1", "says nothing of its subnet: expected an address with the length"),
            ("10.0.0.1/33", "expected an address with the length"),
            ("10.0.0.0/24", "is the network's own address, not a host's; did you mean \"10.0.0.1/24\"?"),
            ("10.0.0.255/24", "is the broadcast address of its subnet"),
            (
                "2001:db8::/64",
                "is the anycast address of all routers of its subnet, not a host's; did you mean \"2001:db8::1/64\"?",
            ),
            ("224.0.0.1/24", "is a multicast address"),
            ("ff02::1/64", "is a multicast address"),
            ("127.0.0.1/8", "is a loopback address"),
            ("::1/128", "is a loopback address"),
            ("0.0.0.1/24", "is reserved"),
            ("255.255.255.255/32", "is reserved"),
            ("::ffff:10.0.0.1/120", "is reserved"),
            ("10.0.0.1/0", "would have everybody on its link"),
        ] {
            let found = mistakes(&format!("'{address}'"), "[]", "'route'");
            assert!(found.len() == 1 && found[0].contains(expected), "{found:?}, not {expected:?}");
            assert!(found[0].starts_with("t.toml:4:11: port[0].address: "), "{found:?}");
        }
        let found = mistakes("'10.0.0.1/24'", "'10.0.0.130/25'", "'route'");
        let expected = "t.toml:8:11: port[1].address[0]: 10.0.0.130/25 overlaps 10.0.0.1/24 of port \"lan\", at t.toml:4:11; \
                        each subnet is on one port";
        assert_eq!(found, [expected]);
        let found = mistakes("['10.0.0.1/24', '10.0.0.1/25']", "[]", "'route'");
        assert!(found.len() == 1 && found[0].contains("stands here already, at t.toml:4:12"), "{found:?}");
        let found = mistakes("'10.0.0.1/24'", "[]", "'cross'");
        assert!(found.iter().any(|mistake| mistake.contains("which only routing does; add \"route\"")), "{found:?}");
    }
}
