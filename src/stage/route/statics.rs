//! `[[route.static]]`: routes of the file, and what is wrong with them beside the ports' addresses and each other.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::names::{Names, address_or_prefix};
use crate::config::reader::{FromToml, Item, Reader};
use crate::config::source::{At, Mistakes, Place};
use crate::config::units::Within;
use crate::route::adjacency::Table;
use crate::route::hop::Hops;
use crate::route::rib::show::Standing;
use crate::route::rib::{Fib, Full, Rib};
use crate::route::{Gateway, Route, Source, Target};

use super::config::Config;

crate::choice! {
    /// What becomes of packets that go nowhere.
    pub enum Discard {
        /// They are dropped, and nobody is told.
        Blackhole = "blackhole",
        /// They are dropped, and the sender is told that the network cannot be reached.
        Unreachable = "unreachable",
        /// They are dropped, and the sender is told that it is forbidden.
        Prohibit = "prohibit",
    }
}

crate::section! {
    /// `[[route.static]]`
    pub struct StaticRoute {
        /// Where to: a prefix, or an address.
        pub to: At<Prefix>,
        /// The gateway; or several, over which flows are spread, each an address or a table `{ via = "192.0.2.1", port = "wan", weight = 2 }`. IPv4 routes may have IPv6 gateways (RFC 8950).
        pub via: Option<At<Vec<At<Via>>>>,
        /// The port by which the gateway is reached, if no address of a port says so; without a gateway, the port on whose link the destinations are.
        pub port: Option<At<String>>,
        /// Instead of a gateway: what becomes of packets.
        pub r#type: Option<At<Discard>>,
        /// Of several routes to a prefix the one with the lowest is used, of those whose ports are up.
        pub metric: u32 = 0,
    }
}

crate::section! {
    /// One of several gateways.
    pub struct Weighted {
        /// Its address; none if the destinations are on the port's link.
        pub via: Option<At<IpAddr>>,
        /// The port by which it is reached.
        pub port: Option<At<String>>,
        /// Its share of the flows, beside the weights of the others.
        pub weight: Within<1, 256> = Within(1),
    }
}

/// A gateway as it is written: an address, or a table.
#[derive(Clone, Debug)]
pub struct Via(pub Weighted);

impl FromToml for Via {
    const EXPECTED: &'static str = "an IP address, or a table with via, port and weight";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        if item.is_table() {
            return Weighted::from_toml(item, reader).map(Via);
        }
        let via = At::<IpAddr>::from_toml(item, reader)?;
        Some(Via(Weighted { via: Some(via), port: None, weight: Within(1) }))
    }
}

/// A prefix without bits behind its length.
#[derive(Clone, Copy, Debug)]
pub struct Prefix(pub IpNet);

impl FromToml for Prefix {
    const EXPECTED: &'static str = "a prefix such as \"192.0.2.0/24\", or an address";
    fn from_toml(item: Item<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(text) = item.as_str() else {
            reader.expected(&item, Self::EXPECTED);
            return None;
        };
        match address_or_prefix(text) {
            Ok(net) => Some(Prefix(net)),
            Err(wrong) => {
                wrong.note(&reader.place(&item), &item.path, reader.mistakes);
                None
            }
        }
    }
}

/// What routes are checked beside.
pub(super) struct Check<'a> {
    names: &'a Names,
    all: &'a [StaticRoute],
    pub(super) mistakes: &'a mut Mistakes,
}

impl Config {
    /// The routes of the file; `None` after noting what is wrong with them.
    pub fn routes(&self, names: &Names, mistakes: &mut Mistakes) -> Option<Vec<Route>> {
        let before = mistakes.len();
        let mut check = Check { names, all: &self.r#static, mistakes };
        let mut first = HashMap::<(IpNet, u32), &Place>::new();
        let mut routes = Vec::new();
        for (at, route) in self.r#static.iter().enumerate() {
            let key = format!("route.static[{at}]");
            check.destination(route.to.0, || (route.to.place.clone(), format!("{key}.to")));
            if let Some(first) = first.insert((route.to.0, route.metric), &route.to.place) {
                let message = format!("{} has a route with metric {} already, at {first}", route.to.0, route.metric);
                check.mistakes.with_help(
                    &route.to.place,
                    &key,
                    message,
                    "give it another metric, or list both gateways in one",
                );
            }
            let target = check.target(route, &key);
            routes.extend(target.map(|target| Route { to: route.to.0, target, metric: route.metric }));
        }
        if check.mistakes.len() == before {
            check.circles(&routes);
        }
        if let Some(file) = &self.file {
            routes.extend(file.routes(&mut check));
        }
        (mistakes.len() == before).then_some(routes)
    }
}

impl Check<'_> {
    /// Notes a destination that is never routed.
    pub(super) fn destination(&mut self, to: IpNet, at: impl FnOnce() -> (Place, String)) {
        let v4 = |a, b, c, d, length| IpNet::from(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length));
        let v6 = |first, length| IpNet::from(Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length));
        let loopback = IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST));
        let special = [
            (v4(224, 0, 0, 0, 4), "is multicast, which is not routed"),
            (v6(0xff00, 8), "is multicast, which is not routed"),
            (v6(0xfe80, 10), "are addresses of a link, which do not leave it"),
            (v4(127, 0, 0, 0, 8), "are loopback addresses, which do not leave a host"),
            (loopback, "is the loopback address, which does not leave a host"),
        ];
        if let Some((_, why)) = special.iter().find(|(net, _)| net.contains(&to)) {
            let (place, key) = at();
            self.mistakes.at(&place, &key, format!("{to} {why}"));
        }
    }

    /// Where a route leads; `None` after noting what is wrong with that.
    fn target(&mut self, route: &StaticRoute, key: &str) -> Option<Target> {
        let whole = match &route.port {
            Some(port) => Some(self.port(port, &format!("{key}.port"))?),
            None => None,
        };
        match (&route.r#type, &route.via) {
            (None, None) => {
                let Some(port) = whole else {
                    let message = format!("the route to {} leads nowhere: expected via, port or type", route.to.0);
                    self.mistakes.at(&route.to.place, key, message);
                    return None;
                };
                Some(Target::Via(vec![Gateway { via: None, port: Some(port), weight: 1 }]))
            }
            (Some(discard), None) if whole.is_none() => Some(match discard.value {
                Discard::Blackhole => Target::Blackhole,
                Discard::Unreachable => Target::Unreachable,
                Discard::Prohibit => Target::Prohibit,
            }),
            (Some(discard), _) => {
                let message = format!("{:?} drops packets, and so has neither a gateway nor a port", discard.value);
                self.mistakes.at(&discard.place, &format!("{key}.type"), message);
                None
            }
            (None, Some(list)) => {
                let key = format!("{key}.via");
                if list.is_empty() || list.len() > 256 {
                    let message = format!("expected 1 to 256 gateways, found {}", list.len());
                    self.mistakes.at(&list.place, &key, message);
                    return None;
                }
                let mut gateways = Some(Vec::<Gateway>::new());
                for one in &list.value {
                    let gateway = self.gateway(route, one, whole, &key);
                    let twice =
                        |other: &Gateway| gateway.as_ref().is_some_and(|g| (g.via, g.port) == (other.via, other.port));
                    if gateways.iter().flatten().any(twice) {
                        self.mistakes.with_help(&one.place, &key, "stands twice", "give it a weight instead");
                    }
                    gateways = gateways.zip(gateway).map(|(mut all, one)| {
                        all.push(one);
                        all
                    });
                }
                gateways.map(Target::Via)
            }
        }
    }

    fn port(&mut self, name: &At<String>, key: &str) -> Option<u8> {
        let port = self.names.port(name);
        if port.is_none() {
            self.mistakes.unknown(
                &name.place,
                key,
                "port",
                name,
                self.names.ports.iter().map(|port| port.name.as_str()),
            );
        }
        port
    }

    pub(super) fn gateway(
        &mut self,
        route: &StaticRoute,
        one: &At<Via>,
        whole: Option<u8>,
        key: &str,
    ) -> Option<Gateway> {
        let Via(Weighted { via, port, weight }) = &one.value;
        let weight = weight.0 as u16;
        let named = match port {
            Some(port) => Some(self.port(port, key)?),
            None => whole,
        };
        let Some(via) = via else {
            if named.is_none() {
                self.mistakes.at(&one.place, key, "expected via, port, or both");
            }
            return named.map(|port| Gateway { via: None, port: Some(port), weight });
        };
        let (address, place) = (via.value, &via.place);
        let mut wrong = |message: String, help: &str| {
            match help {
                "" => self.mistakes.at(place, key, message),
                help => self.mistakes.with_help(place, key, message, help),
            }
            None
        };
        if route.to.0.addr().is_ipv6() && address.is_ipv4() {
            return wrong(format!("{address} cannot be the gateway of the IPv6 prefix {}", route.to.0), "");
        }
        let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
        if address.is_multicast() || address.is_unspecified() || address.is_loopback() || broadcast {
            return wrong(format!("{address} is no gateway's address"), "");
        }
        if let Some(own) = self.names.addresses.iter().find(|own| own.net.addr() == address) {
            return wrong(format!("{address} is an address of the box itself, at {}", own.place), "");
        }
        let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        if link_local {
            return match named {
                Some(_) => Some(Gateway { via: Some(address), port: named, weight }),
                None => wrong(format!("{address} may be on any link"), "name the gateway's port"),
            };
        }
        let on = self.names.addresses.iter().find(|own| own.net.contains(&address));
        if let Some(own) = on {
            let special = matches!(own.net, IpNet::V4(net) if net.prefix_len() < 31)
                && (own.net.network() == address || own.net.broadcast() == address);
            if special {
                return wrong(format!("{address} is no host of {}, but all of its subnet", own.net.trunc()), "");
            }
            if named.is_some_and(|port| port != own.port) {
                let name = &self.names.ports[usize::from(own.port)].name;
                return wrong(format!("{address} is on the subnet of port {name:?}, at {}", own.place), "");
            }
            return Some(Gateway { via: Some(address), port: Some(own.port), weight });
        }
        let leads = |other: &&StaticRoute| {
            !std::ptr::eq(*other, route) && other.to.0.prefix_len() > 0 && other.to.0.contains(&address)
        };
        if named.is_none() && !self.all.iter().any(|other| leads(&other)) {
            let help = "give a port an address of its subnet, name the port it is on, or add a route to it";
            return wrong(
                format!("{address} is on no port's subnet, and no other route of the file leads to it"),
                help,
            );
        }
        Some(Gateway { via: Some(address), port: named, weight })
    }

    /// Notes routes that lead to their own gateways, if all ports are up.
    fn circles(&mut self, routes: &[Route]) {
        let open = |route: &Route| match &route.target {
            Target::Via(gateways) => gateways.iter().any(|gateway| gateway.port.is_none()),
            _ => false,
        };
        if !routes.iter().any(open) {
            return;
        }
        let ports = self.names.ports.len();
        let room = 2 + 3 * self.names.addresses.len() + 2 * routes.len() + 3 * ports;
        let mut rib = Rib::new(ports, Nobody, Arc::new(Hops::new(room)), Arc::new(Table::new(ports)));
        (0..ports as u8).for_each(|port| rib.link_up(port, true));
        self.names.addresses.iter().for_each(|address| rib.add_address(address.port, address.net));
        routes.iter().for_each(|route| rib.add(Source::Static, route));
        for (at, route) in routes.iter().enumerate() {
            let mut rows = rib.rows_to(route.to).filter(|row| row.metric == route.metric);
            if rows.any(|row| row.standing == Standing::Unreachable) {
                let message = format!("the way to the gateway of {} leads back to it", route.to);
                let help = "add a route to the gateway that does not, or name its port";
                self.mistakes.with_help(&self.all[at].to.place, &format!("route.static[{at}].via"), message, help);
            }
        }
    }
}

/// A forwarding table that nobody reads.
struct Nobody;

impl Fib for Nobody {
    fn insert(&mut self, _net: IpNet, _hop: u32) -> Result<(), Full> {
        Ok(())
    }
    fn remove(&mut self, _net: IpNet) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::config::port::Rpf;
    use crate::config::source::Source;

    const PORTS: &str = "\
[[port]]
name = 'lan'
device = 'net_null0'
address = ['10.0.0.1/24', '2001:db8::1/64']
[[port]]
name = 'wan'
device = 'net_null1'
address = '192.0.2.1/24'
rpf = 'strict'
[pipeline]
stages = ['route']
[route]
rpf = 'loose'
routes_v6 = 1000
";

    /// The routes as text, or what is wrong with them.
    fn routes(toml: &str) -> Result<Vec<String>, Vec<String>> {
        let (config, list) = config::Config::read(&Source::new("t.toml", &format!("{PORTS}{toml}")));
        assert!(list.is_empty(), "{list:?}");
        let route: &Config = config.pipeline[0].config.as_ref().expect("read").downcast_ref().expect("a route stage's");
        let mut mistakes = Mistakes::default();
        let routes = route.routes(&config.names, &mut mistakes);
        let gateway = |Gateway { via, port, weight }: &Gateway| {
            let via = via.map_or_else(String::new, |via| via.to_string());
            format!("{via}@{}*{weight}", port.map_or_else(String::new, |port| port.to_string()))
        };
        let text = |route: &Route| match &route.target {
            Target::Via(gateways) => {
                let gateways: Vec<String> = gateways.iter().map(gateway).collect();
                format!("{} {} {}", route.to, route.metric, gateways.join(" "))
            }
            other => format!("{} {} {other:?}", route.to, route.metric),
        };
        match routes {
            Some(routes) => Ok(routes.iter().map(text).collect()),
            None => Err(mistakes.into_sorted().iter().map(|mistake| mistake.to_string()).collect()),
        }
    }

    fn tables(tables: &[&str]) -> String {
        tables.iter().map(|table| format!("[[route.static]]\n{}\n", table.replace("; ", "\n"))).collect()
    }

    #[test]
    fn routes_of_the_file() {
        for (table, expected) in [
            ("to = '0.0.0.0/0'; via = '10.0.0.2'", "0.0.0.0/0 0 10.0.0.2@0*1"),
            ("to = '0.0.0.0/0'; via = '10.0.0.2'; metric = 7", "0.0.0.0/0 7 10.0.0.2@0*1"),
            ("to = '203.0.113.9'; via = ['10.0.0.2', '192.0.2.2']", "203.0.113.9/32 0 10.0.0.2@0*1 192.0.2.2@1*1"),
            ("to = '::/0'; via = 'fe80::1'; port = 'wan'", "::/0 0 fe80::1@1*1"),
            ("to = '10.9.0.0/16'; via = '2001:db8::2'", "10.9.0.0/16 0 2001:db8::2@0*1"),
            ("to = '10.9.0.0/16'; port = 'wan'", "10.9.0.0/16 0 @1*1"),
            ("to = '10.9.0.0/16'; via = '198.51.100.1'; port = 'wan'", "10.9.0.0/16 0 198.51.100.1@1*1"),
            ("to = '10.0.0.0/8'; type = 'blackhole'", "10.0.0.0/8 0 Blackhole"),
            ("to = '10.0.0.0/8'; type = 'prohibit'", "10.0.0.0/8 0 Prohibit"),
            (
                "to = '10.9.0.0/16'; via = [{ via = '10.0.0.2', weight = 3 }, { via = 'fe80::1', port = 'wan' }, { port = 'lan' }]",
                "10.9.0.0/16 0 10.0.0.2@0*3 fe80::1@1*1 @0*1",
            ),
        ] {
            assert_eq!(routes(&tables(&[table])), Ok(vec![expected.to_owned()]), "{table}");
        }
        let recursive = ["to = '203.0.113.0/24'; via = '10.0.0.2'", "to = '10.9.0.0/16'; via = '203.0.113.7'"];
        let expected = ["203.0.113.0/24 0 10.0.0.2@0*1", "10.9.0.0/16 0 203.0.113.7@*1"];
        assert_eq!(routes(&tables(&recursive)), Ok(expected.map(String::from).to_vec()));
    }

    #[test]
    fn mistakes_in_routes() {
        for (list, expected) in [
            (&["to = '224.1.0.0/16'; type = 'blackhole'"][..], "16:6: route.static[0].to: 224.1.0.0/16 is multicast"),
            (&["to = 'fe80::/64'; port = 'lan'"], "are addresses of a link"),
            (&["to = '127.0.0.1'; port = 'lan'"], "are loopback addresses"),
            (&["to = '10.9.0.0/16'"], "leads nowhere: expected via, port or type"),
            (&["to = '10.9.0.0/16'; type = 'blackhole'; via = '10.0.0.2'"], "neither a gateway nor a port"),
            (&["to = '10.9.0.0/16'; port = 'lam'"], "there is no port \"lam\"; did you mean \"lan\"?"),
            (
                &["to = '10.9.0.0/16'; via = [{ via = '10.0.0.2', port = 'x' }]"],
                "there is no port \"x\"; known: lan, wan",
            ),
            (&["to = '10.9.0.0/16'; via = [{ weight = 2 }]"], "expected via, port, or both"),
            (&["to = '10.9.0.0/16'; via = []"], "expected 1 to 256 gateways, found 0"),
            (&["to = '10.9.0.0/16'; via = ['10.0.0.2', '10.0.0.2']"], "stands twice; give it a weight instead"),
            (&["to = '2001:db8:9::/48'; via = '10.0.0.2'"], "cannot be the gateway of the IPv6 prefix"),
            (&["to = '10.9.0.0/16'; via = '224.0.0.1'"], "is no gateway's address"),
            (&["to = '10.9.0.0/16'; via = '10.0.0.1'"], "10.0.0.1 is an address of the box itself, at t.toml:4:12"),
            (&["to = '10.9.0.0/16'; via = '10.0.0.255'"], "10.0.0.255 is no host of 10.0.0.0/24"),
            (&["to = '10.9.0.0/16'; via = 'fe80::1'"], "fe80::1 may be on any link; name the gateway's port"),
            (&["to = '10.9.0.0/16'; via = '10.0.0.2'; port = 'wan'"], "10.0.0.2 is on the subnet of port \"lan\""),
            (&["to = '10.9.0.0/16'; via = '198.51.100.1'"], "is on no port's subnet, and no other route of the file"),
            (
                &["to = '0.0.0.0/0'; via = '10.0.0.2'", "to = '10.9.0.0/16'; via = '198.51.100.1'"],
                "is on no port's subnet",
            ),
            (&["to = '10.9.0.0/16'; via = '10.9.0.1'"], "is on no port's subnet"),
            (
                &["to = '10.9.0.0/16'; via = '10.0.0.2'", "to = '10.9.0.0/16'; via = '10.0.0.3'"],
                "with metric 0 already, at t.toml:16:6",
            ),
        ] {
            let found = routes(&tables(list)).expect_err(expected);
            assert!(found.len() == 1 && found[0].contains(expected), "{found:?}, not {expected:?}");
        }
        let ring = ["to = '10.8.0.0/16'; via = '10.9.0.1'", "to = '10.9.0.0/16'; via = '10.8.0.1'"];
        let found = routes(&tables(&ring)).expect_err("a ring");
        assert!(
            found.len() == 2 && found[1].contains("the way to the gateway of 10.9.0.0/16 leads back to it"),
            "{found:?}"
        );
    }

    #[test]
    fn tables_that_cannot_be_read() {
        for (table, expected) in [
            ("to = '10.9.0.1/16'; port = 'lan'", "has bits set behind its prefix; did you mean \"10.9.0.0/16\"?"),
            ("to = 5; port = 'lan'", "expected a prefix such as"),
            ("to = '10.9.0.0/16'; via = 'x'", "expected an IP address"),
            ("to = '10.9.0.0/16'; via = [{ via = '10.0.0.2', weight = 0 }]", "expected an integer from 1 to 256"),
            ("to = '10.9.0.0/16'; type = 'blackhol'", "did you mean \"blackhole\"?"),
            ("via = '10.0.0.2'", "static[0].to: is missing"),
        ] {
            let (_, list) = config::Config::read(&Source::new("t.toml", &format!("{PORTS}{}", tables(&[table]))));
            assert!(list.len() == 1 && list[0].to_string().contains(expected), "{list:?}, not {expected:?}");
        }
    }

    #[test]
    fn ports_may_differ() {
        let (config, list) = config::Config::read(&Source::new("t.toml", PORTS));
        assert!(list.is_empty(), "{list:?}");
        let route: &Config = config.pipeline[0].config.as_ref().expect("read").downcast_ref().expect("a route stage's");
        assert_eq!(route.reverse_path(&config.names), [Rpf::Loose, Rpf::Strict]);
        assert_eq!(route.capacity(), crate::route::fib::Capacity { v4: 1_000_000, v6: 1000 });
    }
}
