//! Which ports a rule is about, for stages that see every packet.

use crate::config::names::Names;
use crate::config::source::{At, Mistakes};

/// A set of ports, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports([u64; 4]);

impl Ports {
    /// Every port.
    pub const ALL: Ports = Ports([u64::MAX; 4]);

    /// The ports that a list of port and zone names covers, all of them if the list is empty; `None` after noting a name
    /// that is neither.
    pub fn resolve(list: &[At<String>], names: &Names, key: &str, mistakes: &mut Mistakes) -> Option<Ports> {
        if list.is_empty() {
            return Some(Ports::ALL);
        }
        let mut ports = Some(Ports([0; 4]));
        for name in list {
            let zone = names.zone(name);
            let mut found = zone.is_some();
            for (at, port) in names.ports.iter().enumerate() {
                if port.name == name.value || (zone.is_some() && port.zone == zone) {
                    found = true;
                    if let Some(ports) = &mut ports {
                        ports.0[at >> 6 & 3] |= 1 << (at & 63);
                    }
                }
            }
            if !found {
                let known = names.ports.iter().map(|port| &port.name).chain(&names.zones).map(String::as_str);
                mistakes.unknown(&name.place, key, "port or zone", name, known);
                ports = None;
            }
        }
        ports
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
    fn ports_and_zones() {
        let place = Place { file: "t".into(), line: 1, column: 1 };
        let port = |name: &str, zone| PortName { name: name.into(), zone, mac: None, place: place.clone() };
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
        assert!(Ports::resolve(&[], &names, "k", &mut mistakes).expect("all").contains(254));
        assert!(mistakes.is_empty());
        assert!(Ports::resolve(&[at("wann")], &names, "k", &mut mistakes).is_none());
        assert!(mistakes.into_sorted()[0].to_string().contains("did you mean \"wan\"?"));
    }
}
