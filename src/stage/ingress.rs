//! Which ports a rule is about.

use crate::config::names::{Names, SELF};
use crate::config::source::{At, Mistakes};
use crate::packet::{SELF_PORT, bits};

/// The word for every port.
pub const ANY: &str = "any";

/// A set of ports, by index; `SELF_PORT` and `NO_PORT` may be in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ports([u64; 4]);

impl Ports {
    /// Every port there is, the box itself included if it is an end of traffic.
    pub fn every(names: &Names) -> Ports {
        let mut ports = Ports::all(names.ports.len());
        if names.routes {
            ports.insert(SELF_PORT);
        }
        ports
    }

    /// Every port of an appliance with `count` of them, without the box itself.
    pub fn all(count: usize) -> Ports {
        let mut ports = Ports::default();
        (0..count.min(usize::from(SELF_PORT))).for_each(|port| ports.insert(port as u8));
        ports
    }

    /// The ports that a list of port and zone names covers, [every](Ports::every) one if the list is empty or says "any"; `None`
    /// after noting a name that is neither.
    pub fn resolve(list: &[At<String>], names: &Names, key: &str, mistakes: &mut Mistakes) -> Option<Ports> {
        let mut ports = if list.is_empty() { Ports::every(names) } else { Ports::default() };
        let before = mistakes.len();
        for name in list {
            let zone = names.zone(name);
            if name.value == ANY {
                ports = Ports::every(names);
            } else if name.value == SELF {
                match names.routes {
                    true => ports.insert(SELF_PORT),
                    false => {
                        let message = "\"self\" is the box itself, which has traffic of its own only where it routes";
                        mistakes.with_help(&name.place, key, message, "add \"route\" to pipeline.stages");
                    }
                }
            } else if zone.is_some() {
                let within = names.ports.iter().enumerate().filter(|(_, port)| port.zone == zone);
                within.for_each(|(port, _)| ports.insert(port as u8));
            } else if let Some(port) = names.port(name) {
                ports.insert(port);
            } else {
                let known = names.zones.iter().chain(names.ports.iter().map(|port| &port.name)).map(String::as_str);
                mistakes.unknown(&name.place, key, "zone or port", name, known);
            }
        }
        (mistakes.len() == before).then_some(ports)
    }

    /// Adds a port.
    pub fn insert(&mut self, port: u8) {
        self.0[usize::from(port >> 6)] |= 1 << (port & 63);
    }

    /// Adds the ports of another set.
    pub fn extend(&mut self, other: Ports) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
    }

    /// Its ports, in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = u8> {
        let words = self.0;
        (0..words.len()).flat_map(move |at| bits(words[at]).map(move |bit| (64 * at + bit) as u8))
    }

    /// True if `port` is one of them.
    #[inline]
    pub fn contains(&self, port: u8) -> bool {
        self.0[usize::from(port >> 6)] >> (port & 63) & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::names::PortName;
    use crate::config::source::Place;

    #[test]
    fn the_box_itself_is_a_zone_where_it_routes() {
        let at = |name: &str| At { value: name.to_owned(), place: Place { file: "t".into(), line: 1, column: 1 } };
        let mut names = Names::default();
        for routes in [false, true] {
            names.routes = routes;
            let mut mistakes = Mistakes::default();
            for any in [&[][..], &[at("any")]] {
                let every = Ports::resolve(any, &names, "k", &mut mistakes).expect("every port");
                assert_eq!(every.contains(SELF_PORT), routes);
            }
            let own = Ports::resolve(&[at("self")], &names, "k", &mut mistakes);
            assert_eq!(own.map(|own| own.contains(SELF_PORT)), routes.then_some(true));
            let shown: Vec<String> = mistakes.into_sorted().iter().map(ToString::to_string).collect();
            assert_eq!(shown.iter().filter(|m| m.contains("add \"route\"")).count(), usize::from(!routes), "{shown:?}");
        }
    }

    #[test]
    fn ports_and_zones() {
        let place = Place { file: "t".into(), line: 1, column: 1 };
        let port =
            |name: &str, zone| PortName { name: name.into(), zone, mac: None, carrier: None, place: place.clone() };
        let names = Names {
            ports: vec![port("lan", Some(0)), port("wan", Some(1)), port("guest", Some(0))],
            zones: vec!["inside".into(), "outside".into()],
            ..Names::default()
        };
        let at = |name: &str| At { value: name.to_owned(), place: place.clone() };
        let mut mistakes = Mistakes::default();
        let resolved = Ports::resolve(&[at("inside")], &names, "k", &mut mistakes).expect("known");
        assert_eq!([0, 1, 2, 200].map(|port| resolved.contains(port)), [true, false, true, false]);
        let resolved = Ports::resolve(&[at("wan"), at("guest")], &names, "k", &mut mistakes).expect("known");
        assert_eq!([0, 1, 2].map(|port| resolved.contains(port)), [false, true, true]);
        for all in [&[][..], &[at("any")]] {
            assert_eq!(Ports::resolve(all, &names, "k", &mut mistakes), Some(Ports::all(3)));
        }
        assert!(mistakes.is_empty());
        assert!(Ports::resolve(&[at("wann")], &names, "k", &mut mistakes).is_none());
        assert!(mistakes.into_sorted()[0].to_string().contains("did you mean \"wan\"?"));
    }
}
