//! `[neighbor]`: how neighbors are resolved and own addresses are guarded, neighbors that are given, and what a port's router
//! advertisements say. Form only, and what the file alone shows to be wrong.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::Ipv6Net;

use super::names::Names;
use super::reader::{FromToml, Item, Reader, Table, parsed};
use super::source::{At, Mistakes, Place, Source};
use super::units::Within;

crate::section! {
    /// `[neighbor]`
    pub struct Neighbor {
        /// For how long a neighbor counts as reachable after it answered, give or take half of it (REACHABLE_TIME of RFC 4861, for ARP too).
        pub reachable: Duration = Duration::from_secs(30),
        /// For how long a neighbor that is used again has time to prove itself before it is asked (DELAY_FIRST_PROBE_TIME).
        pub delay: Duration = Duration::from_secs(5),
        /// Between two questions to the same neighbor (RETRANS_TIMER).
        pub retransmit: Duration = Duration::from_secs(1),
        /// Questions to all before a neighbor counts as silent (MAX_MULTICAST_SOLICIT).
        pub multicast_probes: Within<1, 20> = Within(3),
        /// Questions to a known neighbor before it is forgotten (MAX_UNICAST_SOLICIT).
        pub unicast_probes: Within<1, 20> = Within(3),
        /// For how long nobody asks again for a neighbor that was silent; packets to it are refused meanwhile.
        pub silent: Duration = Duration::from_secs(1),
        /// For how long after an ARP entry has changed another MAC is not believed: of several answers the first counts.
        pub lock: Duration = Duration::from_secs(1),
        /// For how long a neighbor nobody uses is remembered.
        pub idle: Duration = Duration::from_secs(600),
        /// Neighbors known on a port, for each of IPv4 and IPv6. Those unused longest make room for new ones.
        pub limit: Within<1, 1048576> = Within(8192),
        /// Neighbors being asked for on a port, for each of IPv4 and IPv6 (RFC 6583). The oldest makes room; as many silent ones are remembered.
        pub unresolved: Within<1, 65536> = Within(512),
        /// Questions to all a port sends each second, for each of IPv4 and IPv6.
        pub rate: Within<1, 1000000> = Within(1000),
        /// ARP probes that ask whether somebody has an address before it is used (RFC 5227 wants 3, which take 3 to 7 seconds). 0, as Linux has it, uses it at once; a conflict is noticed in any case.
        pub arp_probes: Within<0, 10> = Within(0),
        /// Solicitations that ask whether somebody has an IPv6 address before it is used (DupAddrDetectTransmits of RFC 4862); 0 uses it at once. What is sent to an address that is not in use yet, or is found to be another's, is dropped as by a blackhole.
        pub dad_probes: Within<0, 10> = Within(1),
        /// How often an address that has become usable is announced: by gratuitous ARP, or by unsolicited advertisements.
        pub announcements: Within<0, 10> = Within(2),
        /// Neighbors that are given and never asked.
        pub r#static: Vec<StaticNeighbor> = Vec::new(),
    }
}

impl Default for Neighbor {
    fn default() -> Neighbor {
        let (source, mut mistakes) = (Source::new("", ""), Mistakes::default());
        let mut reader = Reader { source: &source, mistakes: &mut mistakes };
        let absent = Table::absent("neighbor", 0..0).into_item();
        Neighbor::from_toml(absent, &mut reader).expect("every key has a default")
    }
}

crate::section! {
    /// `[[neighbor.static]]`
    pub struct StaticNeighbor {
        /// The port it is on.
        pub port: At<String>,
        /// Its address.
        pub address: At<IpAddr>,
        /// Its MAC.
        pub mac: At<Mac>,
    }
}

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Reads six pairs of hexadecimal digits between colons or dashes.
    pub fn parse(text: &str) -> Option<Mac> {
        let mut bytes = [0; 6];
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut parts = text.split(separator);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))?;
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Mac(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl FromToml for Mac {
    const EXPECTED: &'static str = "a MAC address such as \"02:00:00:00:00:01\"";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        parsed(&item, Self::EXPECTED, reader, Mac::parse)
    }
}

crate::section! {
    /// `router_advertisements` of a port (RFC 4861 section 6.2.1).
    pub struct RouterAdvertisements {
        /// The longest time between two; the shortest is a third of it. 4 seconds to 30 minutes.
        pub interval: Duration = Duration::from_secs(600),
        /// For how long hosts take us for a default router; three intervals if left out, `"0s"` for never. At most 150 minutes.
        pub lifetime: Option<Duration>,
        /// Addresses come by DHCPv6.
        pub managed: bool = false,
        /// Other settings come by DHCPv6.
        pub other: bool = false,
        /// Hop limit hosts should use; 0 says nothing.
        pub hop_limit: u8 = 64,
        /// MTU hosts should use on the link; said only if given.
        pub mtu: Option<Within<1280, 65535>>,
        /// Prefixes of the link.
        pub prefix: Vec<AdvertisedPrefix> = Vec::new(),
        /// DNS servers (RFC 8106), for three intervals.
        pub dns: Vec<Ipv6Addr> = Vec::new(),
    }
}

crate::section! {
    /// A prefix in router advertisements.
    pub struct AdvertisedPrefix {
        /// The prefix.
        pub prefix: At<Ipv6Net>,
        /// Addresses under it are neighbors.
        pub on_link: bool = true,
        /// Hosts may make themselves addresses of it (RFC 4862).
        pub autonomous: bool = true,
        /// For how long it is on the link.
        pub valid: Duration = Duration::from_secs(30 * 86_400),
        /// For how long addresses made of it are preferred.
        pub preferred: Duration = Duration::from_secs(7 * 86_400),
    }
}

crate::serde_key! {
    Ipv6Addr: "an IPv6 address",
    Ipv6Net: "an IPv6 prefix such as \"2001:db8:1::/64\"",
}

impl Neighbor {
    /// What the file alone shows to be wrong; `place` is that of the table.
    pub(super) fn check(&self, place: &Place, names: &Names, mistakes: &mut Mistakes) {
        for (key, time) in [("retransmit", self.retransmit), ("reachable", self.reachable), ("delay", self.delay)] {
            if time < Duration::from_millis(1) {
                mistakes.at(place, &format!("neighbor.{key}"), "expected at least \"1ms\"");
            }
        }
        for (i, given) in self.r#static.iter().enumerate() {
            let key = |name: &str| format!("neighbor.static[{i}].{name}");
            if names.port(&given.port.value).is_none() {
                let known = names.ports.iter().map(|port| port.name.as_str());
                mistakes.unknown(&given.port.place, &key("port"), "port", &given.port.value, known);
            }
            if given.address.is_multicast() || given.address.is_unspecified() || given.address.is_loopback() {
                let message = format!("{} is no neighbor's address", given.address.value);
                mistakes.at(&given.address.place, &key("address"), message);
            }
            if given.mac.0[0] & 1 != 0 || given.mac.0 == [0; 6] {
                mistakes.at(&given.mac.place, &key("mac"), format!("{} is no station's MAC", given.mac.value));
            }
            if let Some(first) = self.r#static[..i]
                .iter()
                .find(|other| other.port.value == given.port.value && other.address.value == given.address.value)
            {
                let message = format!("{} is given already, at {}", given.address.value, first.address.place);
                mistakes.at(&given.address.place, &key("address"), message);
            }
        }
    }
}

impl RouterAdvertisements {
    /// What the file alone shows to be wrong (RFC 4861 section 6.2.1); the table stands at `place` under `key`.
    pub fn check(&self, place: &Place, key: &str, mistakes: &mut Mistakes) {
        let interval = self.interval.as_secs();
        if !(4..=1800).contains(&interval) {
            mistakes.at(place, &format!("{key}.interval"), "expected a duration from \"4s\" to \"30m\"");
        }
        let lifetime = self.lifetime.map_or(0, |lifetime| lifetime.as_secs());
        if lifetime != 0 && !(interval..=9000).contains(&lifetime) {
            let message = "expected \"0s\", or a duration from the interval to \"150m\"";
            mistakes.at(place, &format!("{key}.lifetime"), message);
        }
        for (i, prefix) in self.prefix.iter().enumerate() {
            let key = |name: &str| format!("{key}.prefix[{i}].{name}");
            if prefix.preferred > prefix.valid {
                mistakes.at(&prefix.prefix.place, &key("preferred"), "is longer than valid");
            }
            // RFC 4861 section 4.6.2: the link-local prefix should not be sent, and hosts ignore it.
            let link_local = prefix.prefix.addr().is_unicast_link_local();
            if prefix.prefix.trunc() != prefix.prefix.value || link_local || prefix.prefix.addr().is_multicast() {
                mistakes.at(&prefix.prefix.place, &key("prefix"), "is no prefix of a link");
            }
        }
        // 40 (IPv6) + 16 + 8 (MAC) + 8 (MTU) + 20 * 32 + 8 + 30 * 16 = 1200 fit the least MTU.
        if self.dns.len() > 30 || self.prefix.len() > 20 {
            mistakes.at(place, key, "more than 20 prefixes or 30 DNS servers do not fit a packet");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const PORTS: &str = "[[port]]\nname = 'lan'\ndevice = 'net_null0'\n[pipeline]\nstages = []\n";

    fn mistakes(text: &str) -> Vec<String> {
        let (_, mistakes) = Config::read(&Source::new("t.toml", &format!("{PORTS}{text}")));
        mistakes.iter().map(|mistake| mistake.to_string()).collect()
    }

    #[test]
    fn tables() {
        let text = "[neighbor]\nreachable = '10s'\n\
                    [[neighbor.static]]\nport = 'lan'\naddress = '192.0.2.1'\nmac = '02-00-00-00-00-0A'\n";
        let config = Config::parse(&Source::new("t.toml", &format!("{PORTS}{text}"))).expect("good");
        assert_eq!(config.neighbor.reachable, Duration::from_secs(10));
        assert_eq!(config.neighbor.limit.0, 8192);
        assert_eq!(config.neighbor.r#static[0].mac.to_string(), "02:00:00:00:00:0a");
        for (from, to, message) in [
            (
                "lan'\na",
                "lam'\na",
                "t.toml:9:8: neighbor.static[0].port: there is no port \"lam\"; did you mean \"lan\"?",
            ),
            ("192.0.2.1", "ff02::1", "is no neighbor's address"),
            ("02-", "03-", "03:00:00:00:00:0a is no station's MAC"),
            ("-0A", "-0", "expected a MAC address"),
            ("reachable = '10s'", "reachable = '0s'", "expected at least \"1ms\""),
        ] {
            let found = mistakes(&text.replace(from, to));
            assert!(found.len() == 1 && found[0].contains(message), "{found:?}");
        }
        let twice = text
            .replace("[[", "[[neighbor.static]]\nport = 'lan'\naddress = '192.0.2.1'\nmac = '02:00:00:00:00:01'\n[[");
        assert!(mistakes(&twice)[0].contains("is given already, at t.toml:10:11"), "{:?}", mistakes(&twice));
    }

    #[test]
    fn advertisements() {
        let place = Place { file: "t".into(), line: 1, column: 1 };
        let read = |text: &str| {
            let source = Source::new("t", text);
            let table = toml::de::DeTable::parse(source.text()).expect("TOML");
            let mut mistakes = Mistakes::default();
            let item = Table::root(table).into_item();
            let read = RouterAdvertisements::from_toml(item, &mut Reader { source: &source, mistakes: &mut mistakes });
            read.inspect(|read| read.check(&place, "ra", &mut mistakes));
            mistakes.into_sorted().iter().map(|mistake| mistake.to_string()).collect::<Vec<_>>()
        };
        assert!(read("prefix = [{ prefix = '2001:db8::/64' }]").is_empty());
        for (text, message) in [
            ("interval = '1s'", "expected a duration from"),
            ("lifetime = '5s'", "expected \"0s\", or"),
            ("prefix = [{ prefix = 'fe80::/64' }]", "is no prefix of a link"),
            ("prefix = [{ prefix = '2001:db8::1/64' }]", "is no prefix of a link"),
            ("prefix = [{ prefix = '2001:db8::/64', valid = '1s' }]", "is longer than valid"),
        ] {
            let found = read(text);
            assert!(found.len() == 1 && found[0].contains(message), "{found:?}");
        }
    }
}
