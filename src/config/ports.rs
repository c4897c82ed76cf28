//! The ports of a file: their order, their names and zones, and which of them are VLANs of which others.
//!
//! Ports with a device come first, then VLANs, each in file order: what is about devices (queues, links) counts the first of
//! them only.

use std::collections::HashMap;

use super::address;
use super::lists::is_word;
use super::names::{Carrier, Names, PortName, SELF};
use super::port::{DEVICE_KEYS, Device, Port, VLAN_KEYS, is_interface_name};
use super::reader::{FromToml, Item, MISSING, Reader, Table};
use super::source::{At, Mistakes, Place, near_miss};

/// The most ports with a device: the state of their links is one word.
const MOST_DEVICES: usize = 64;
/// The most ports, VLANs included: their indices are bytes, some of which mean other things.
const MOST_PORTS: usize = 240;

/// Reads `[[port]]`. A port whose other keys are wrong still counts as declared.
pub fn read_ports(root: &mut Table<'_>, names: &mut Names, reader: &mut Reader<'_>) -> Vec<Port> {
    let Some(item) = root.take("port") else {
        root.miss("port", "at least one [[port]]");
        return Vec::new();
    };
    let items = if item.is_list() { item.elements() } else { vec![item] };
    let (vlans, devices): (Vec<_>, Vec<_>) = items.into_iter().partition(|item| item.span_of("parent").is_some());
    let (mut ports, mut taken, mut bonds) = (Vec::new(), HashMap::<String, Place>::new(), 0);
    for item in devices {
        declare(&item, names, reader);
        let needed = "a device, a bond of several, or the parent of which it is a VLAN";
        if item.span_of("bond").is_some() {
            check_keys(&item, &["device"], "is for ports without a bond, which has devices of its own", reader);
        }
        check_keys(&item, VLAN_KEYS, "is for VLANs, which have a parent", reader);
        match item.peek("device") {
            Some((text, span)) => {
                if let Some(device) = Device::parse(text) {
                    let place = reader.place_of(&span);
                    take_device(&device, &place, &format!("{}.device", item.path), &mut taken, reader.mistakes);
                }
            }
            None if ["device", "bond"].iter().all(|key| item.span_of(key).is_none())
                && is_unlike(&item, &["device", "bond", "parent"]) =>
            {
                reader.mistakes.at(&reader.place(&item), &item.path, format!("{MISSING}: expected {needed}"));
            }
            None => {}
        }
        let path = item.path.clone();
        if let Some(mut port) = Port::from_toml(item, reader) {
            if let Some(At { value: bond, place }) = &port.bond {
                let key = format!("{path}.bond");
                if bond.members.is_empty() {
                    reader.mistakes.at(place, &format!("{key}.members"), "expected at least one device");
                }
                for member in &bond.members {
                    take_device(member, &member.place, &format!("{key}.members"), &mut taken, reader.mistakes);
                }
                if let Some(policy) = bond.policy.as_ref().filter(|_| !bond.shares()) {
                    let message = format!("members of a bond with mode = {:?} do not share frames by it", bond.mode);
                    reader.mistakes.at(&policy.place, &format!("{key}.policy"), message);
                }
                let device = bond.device(bonds);
                take_device(&device, place, &key, &mut taken, reader.mistakes);
                port.device = Some(At { value: device, place: place.clone() });
                bonds += 1;
            }
            route(&port, &path, names, reader.mistakes);
            ports.push(port);
        }
    }
    cut(names, 0, MOST_DEVICES, "devices", reader.mistakes);
    let first_vlan = names.ports.len();
    for item in vlans {
        declare(&item, names, reader);
        check_keys(&item, &["device", "bond"], "is for ports without a parent", reader);
        check_keys(&item, DEVICE_KEYS, "is the parent's: a VLAN has no device of its own", reader);
        let path = item.path.clone();
        if let Some(port) = Port::from_toml(item, reader) {
            carry(&port, &path, &ports, first_vlan, names, reader.mistakes);
            route(&port, &path, names, reader.mistakes);
            ports.push(port);
        }
    }
    cut(names, first_vlan, MOST_PORTS - first_vlan, "VLANs", reader.mistakes);
    ports
}

/// Notes that there are more than `most` ports from `first` on, and forgets those.
fn cut(names: &mut Names, first: usize, most: usize, what: &str, mistakes: &mut Mistakes) {
    if let Some(beyond) = names.ports.get(first + most) {
        mistakes.at(&beyond.place, "port", format!("more than {most} {what}"));
        names.ports.truncate(first + most);
    }
}

/// Notes the keys of a list that a port has.
fn check_keys(item: &Item<'_>, keys: &[&str], why: &str, reader: &mut Reader<'_>) {
    for key in keys {
        if let Some(span) = item.span_of(key) {
            let place = reader.place_of(&span);
            reader.mistakes.at(&place, &format!("{}.{key}", item.path), why);
        }
    }
}

/// True if no key of a table could be one of these, misspelt.
fn is_unlike(item: &Item<'_>, keys: &[&str]) -> bool {
    let known: Vec<&str> = Port::KEYS.iter().map(|key| key.name).collect();
    !item.key_names().any(|name| {
        !known.contains(&name) && near_miss(name, known.iter().copied()).is_some_and(|near| keys.contains(&near))
    })
}

/// Notes that a device is taken by a port or a bond, or that another has it.
fn take_device(device: &Device, place: &Place, key: &str, taken: &mut HashMap<String, Place>, mistakes: &mut Mistakes) {
    match taken.get(device.name()) {
        Some(first) => mistakes.at(place, key, format!("{:?} is taken already, at {first}", device.name())),
        None => drop(taken.insert(device.name().to_owned(), place.clone())),
    }
}

/// Finds the port whose VLAN `port` is, and notes what does not fit. `devices` are the ports with a device, and the VLANs
/// so far.
fn carry(port: &Port, path: &str, devices: &[Port], first_vlan: usize, names: &mut Names, mistakes: &mut Mistakes) {
    let Some(At { value: parent, place }) = &port.parent else { return };
    let key = format!("{path}.parent");
    let index = match names.port(parent) {
        Some(index) if usize::from(index) < first_vlan => index,
        Some(_) => {
            let help = "name the port with the device, and two ids: vlan = [outer, inner]";
            return mistakes.with_help(place, &key, format!("{parent:?} is itself a VLAN"), help);
        }
        None => {
            let known = names.ports[..first_vlan].iter().map(|port| port.name.as_str());
            return mistakes.unknown(place, &key, "port", parent, known);
        }
    };
    let Some(tags) = port.tags() else {
        let (place, message) = match &port.vlan {
            Some(vlan) => (&vlan.place, format!("expected one VLAN id or two, found {}", vlan.len())),
            None => (&port.name.place, format!("{MISSING}: expected the VLAN's id")),
        };
        return mistakes.at(place, &format!("{path}.vlan"), message);
    };
    let carrier = Carrier { parent: index, tags };
    if let Some(first) = names.ports.iter().find(|port| port.carrier == Some(carrier)) {
        let message = format!("VLAN {tags} of {parent:?} is taken already, at {}", first.place);
        return mistakes.at(&port.vlan.as_ref().map_or(place, |vlan| &vlan.place).clone(), path, message);
    }
    let parents = devices.iter().find(|device| device.name.value == *parent);
    if parents.is_some_and(|parent| parent.vlan_strip) {
        let message =
            format!("{parent:?} takes tags out (vlan_strip), and answers to a VLAN's packets leave with their tags");
        mistakes.with_help(place, &key, message, format!("remove vlan_strip from port {parent:?}"));
    }
    if let (Some(mtu), Some(parents)) = (&port.mtu, parents)
        && mtu.value.0 > u64::from(parents.own_mtu())
    {
        let message = format!("is above the {} of {parent:?}, by which it leaves", parents.own_mtu());
        mistakes.at(&mtu.place, &format!("{path}.mtu"), message);
    }
    if let Some(name) = names.ports[first_vlan..].iter_mut().find(|name| name.name == port.name.value) {
        name.carrier = Some(carrier);
    }
}

/// Notes what routing is to know of a port.
fn route(port: &Port, path: &str, names: &mut Names, mistakes: &mut Mistakes) {
    let Some(index) = names.port(&port.name.value) else { return };
    address::note(index, &port.address, path, names, mistakes);
    names.rpf.extend(port.rpf.as_ref().map(|rpf| (index, rpf.value)));
}

/// Notes a port's name and zone.
fn declare(item: &Item<'_>, names: &mut Names, reader: &mut Reader<'_>) {
    let zone = item.peek("zone").map(|(zone, span)| {
        if !is_word(zone) || ["any", SELF].contains(&zone) {
            let message = format!("{zone:?} cannot be the name of a zone");
            let help = "use letters, digits, \"-\", \"_\" and \".\", and not \"any\" or \"self\"";
            reader.mistakes.with_help(&reader.source.start(&span), &format!("{}.zone", item.path), message, help);
        }
        names.zone(zone).unwrap_or_else(|| {
            names.zones.push(zone.to_owned());
            names.zones.len() - 1
        })
    });
    let Some((name, span)) = item.peek("name") else { return };
    let (place, path) = (reader.place_of(&span), format!("{}.name", item.path));
    if !is_interface_name(name) {
        let help = "an interface's name has 1 to 15 bytes, no \"/\", \":\" or space, and is not \".\" or \"..\"";
        reader.mistakes.with_help(&place, &path, format!("{name:?} cannot be the name of a port"), help);
    } else if ["any", SELF].contains(&name) {
        reader.mistakes.at(&place, &path, format!("{name:?} cannot be the name of a port: it means something else"));
    }
    match names.ports.iter().find(|port| port.name == name) {
        Some(first) => {
            let message = format!("a port named {name:?} exists already, at {}", first.place);
            reader.mistakes.at(&place, &path, message);
        }
        None => names.ports.push(PortName { name: name.to_owned(), zone, mac: None, carrier: None, place }),
    }
}

/// Notes VLANs where nothing tells their frames from their parents', and addresses where nobody answers to them.
pub fn check_routed(ports: &[Port], names: &Names, mistakes: &mut Mistakes) {
    let help = "add \"route\" to pipeline.stages, or remove it";
    for port in ports.iter().filter(|_| !names.routes) {
        let places = port.address.first().map(|address| &address.place).into_iter();
        for place in places.chain(port.rpf.as_ref().map(|rpf| &rpf.place)) {
            let message = format!("{:?} has addresses or checks sources, which only routing does", port.name.value);
            mistakes.with_help(place, "port", message, help);
        }
    }
    for port in names.ports.iter().filter(|port| port.carrier.is_some() && !names.routes) {
        let message = format!("{:?} is a VLAN of a port, and only routing knows VLANs as ports", port.name);
        mistakes.with_help(&port.place, "port", message, help);
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::config::names::{Carrier, Tags};
    use crate::config::source::{Mistake, Source};

    /// The mistakes of a file with these ports, but for there being nothing that routes.
    fn read(ports: &str) -> (Config, Vec<String>) {
        let text = format!("{ports}\n[pipeline]\nstages = ['guard']\n");
        let (config, mistakes) = Config::read(&Source::new("t.toml", &text));
        let shown = mistakes.iter().map(Mistake::to_string).filter(|text| !text.contains("only routing knows VLANs"));
        (config, shown.collect())
    }

    const LAN: &str =
        "port = [{ name = 'lan', device = 'net_null0', mtu = 1600 }, { name = 'wan', device = 'net_null1' }";

    #[test]
    fn devices_come_first_and_vlans_name_their_parents() {
        let guest = "{ name = 'guest', parent = 'lan', vlan = 100, zone = 'guests' }";
        let inner = "{ name = 'inner', parent = 'wan', vlan = [7, 8], tpid = '802.1ad', mtu = 1400 }";
        let lan = LAN.strip_prefix("port = [").expect("a list");
        let (config, mistakes) = read(&format!("port = [{guest}, {lan}, {inner}]"));
        assert!(mistakes.is_empty(), "{mistakes:#?}");
        let names: Vec<&str> = config.names.ports.iter().map(|port| port.name.as_str()).collect();
        assert_eq!(names, ["lan", "wan", "guest", "inner"]);
        assert!(config.ports.iter().map(|port| &port.name.value).eq(&names));
        assert_eq!((config.names.devices(), config.devices().len()), (2, 2));
        assert_eq!(config.mtus(), [1600, 1500, 1600, 1400]);
        let carriers: Vec<_> = config.names.ports.iter().map(|port| port.carrier).collect();
        let one = Carrier { parent: 0, tags: Tags { tpid: 0x8100, outer: 100, inner: None } };
        let two = Carrier { parent: 1, tags: Tags { tpid: 0x88a8, outer: 7, inner: Some(8) } };
        assert_eq!(carriers, [None, None, Some(one), Some(two)]);
        assert_eq!(two.tags.wire(), [[0x88, 0xa8, 0, 7], [0x81, 0, 0, 8]]);
        assert_eq!((one.tags.to_string(), two.tags.to_string()), ("100".into(), "7.8".into()));
        assert_eq!(config.names.zone_of(2), Some("guests"));
    }

    #[test]
    fn mistakes_are_placed() {
        let only = |rest: &str, contains: &str| {
            let (_, mistakes) = read(&format!("{LAN},\n{rest}]"));
            assert_eq!(mistakes.len(), 1, "{rest}: {mistakes:#?}");
            assert!(mistakes[0].contains(contains), "{}", mistakes[0]);
        };
        only("{ name = 'a' }", "t.toml:2:1: port[2]: is missing: expected a device, a bond of");
        only("{ name = 'a', devcie = 'net_null3' }", "did you mean \"device\"?");
        only("{ name = 'a', device = 'net_null3', vlan = 5 }", "t.toml:2:44: port[2].vlan: is for VLANs");
        only(
            "{ name = 'a', parent = 'lna', vlan = 5 }",
            "t.toml:2:24: port[2].parent: there is no port \"lna\"; did you",
        );
        only("{ name = 'a', parent = 'lan' }", "port[2].vlan: is missing: expected the VLAN's id");
        only("{ name = 'a', parent = 'lan', vlan = 4095 }", "expected an integer from 1 to 4094, found 4095");
        only("{ name = 'a', parent = 'lan', vlan = [1, 2, 3] }", "expected one VLAN id or two, found 3");
        only("{ name = 'a', parent = 'lan', vlan = [] }", "expected one VLAN id or two, found 0");
        only(
            "{ name = 'a', parent = 'lan', vlan = 5, device = 'net_null3' }",
            "port[2].device: is for ports without a parent",
        );
        only(
            "{ name = 'a', parent = 'lan', vlan = 5, rx_queues = 2 }",
            "t.toml:2:53: port[2].rx_queues: is the parent's",
        );
        only("{ name = 'a', parent = 'lan', vlan = 5, mtu = 1601 }", "port[2].mtu: is above the 1600 of \"lan\"");
        only("{ name = 'a', parent = 'lan', vlan = 5, tpid = '802.1w' }", "expected \"802.1q\" or \"802.1ad\"");
        only(
            "{ name = 'dmz', device = 'net_null3', vlan_strip = true }, { name = 'a', parent = 'dmz', vlan = 5 }",
            "port[3].parent: \"dmz\" takes tags out (vlan_strip)",
        );
        only("{ name = 'lan', parent = 'wan', vlan = 5 }", "a port named \"lan\" exists already");
        only("{ name = 'self', device = 'net_null3' }", "\"self\" cannot be the name of a port");
        let five = "{ name = 'a', parent = 'lan', vlan = 5 },\n";
        only(
            &format!("{five}{{ name = 'b', parent = 'lan', vlan = 5 }}"),
            "VLAN 5 of \"lan\" is taken already, at t.toml:2:10",
        );
        only(
            &format!("{five}{{ name = 'b', parent = 'a', vlan = 6 }}"),
            "\"a\" is itself a VLAN; name the port with the",
        );
        for apart in ["vlan = 5, tpid = '802.1ad'", "vlan = [5, 5]"] {
            let (_, mistakes) = read(&format!("{LAN}, {five} {{ name = 'b', parent = 'lan', {apart} }}]"));
            assert!(mistakes.is_empty(), "{mistakes:#?}");
        }
    }

    #[test]
    fn bonds_have_devices_of_their_own() {
        let bond =
            |members: &str| format!("{{ name = 'up', bond = {{ mode = 'balance-xor', members = [{members}] }} }}");
        let (config, mistakes) = read(&format!("{LAN},\n{}]", bond("'3b:00.0', 'net_null7,size=64'")));
        assert!(mistakes.is_empty(), "{mistakes:#?}");
        assert_eq!(config.ports[2].device(), "net_bonding0,mode=2,xmit_policy=l34");
        let members: Vec<&str> = config.ports[2].members().map(|member| member.text()).collect();
        assert_eq!(members, ["0000:3b:00.0", "net_null7,size=64"]);
        assert_eq!((config.ports[0].members().count(), config.names.devices()), (0, 3));
        let only = |rest: &str, contains: &str| {
            let (_, mistakes) = read(&format!("{LAN},\n{rest}]"));
            assert_eq!(mistakes.len(), 1, "{rest}: {mistakes:#?}");
            assert!(mistakes[0].contains(contains), "{}", mistakes[0]);
        };
        only(&bond("'net_null2', 'net_null1'"), "port[2].bond.members: \"net_null1\" is taken already, at t.toml:1:");
        only(&bond("'net_null2', 'net_null2'"), "\"net_null2\" is taken already, at t.toml:2:");
        only(&bond(""), "port[2].bond.members: expected at least one device");
        only(&bond("'eth0'"), "expected a PCI address");
        only(&bond("'net_null2'").replace("balance", "blanace"), "\"balance-xor\"");
        only(&bond("'net_null2'").replace("balance-xor", "802.3ad"), "expected \"lacp\" or");
        only(
            &bond("'net_null2'").replace("'balance-xor'", "'active-backup', policy = 'l2'"),
            "port[2].bond.policy: members of a bond with mode = \"active-backup\" do not share frames by it",
        );
        let (config, mistakes) =
            read(&format!("{LAN},\n{}]", bond("'net_null7'").replace("'balance-xor'", "'lacp', policy = 'l23'")));
        assert!(mistakes.is_empty(), "{mistakes:#?}");
        assert_eq!(config.ports[2].device(), "net_bonding0,mode=4,xmit_policy=l23");
        only(
            &bond("'net_null2'").replace("name", "device = 'net_null3', name"),
            "port[2].device: is for ports without a bond",
        );
        only(
            &bond("'net_null2'").replace("name", "parent = 'lan', vlan = 5, name"),
            "port[2].bond: is for ports without a parent",
        );
    }

    #[test]
    fn there_is_an_end_to_them() {
        let vlans = |count: usize| -> String {
            let vlan = |n| format!(", {{ name = 'v{n}', parent = 'lan', vlan = {n} }}");
            format!("{LAN}{}]", (1..=count).map(vlan).collect::<String>())
        };
        assert!(read(&vlans(238)).1.is_empty());
        let (config, mistakes) = read(&vlans(239));
        assert!(mistakes.len() == 1 && mistakes[0].contains("more than 238 VLANs"), "{mistakes:#?}");
        assert_eq!(config.names.ports.len(), 240);
        let device = |n| format!("{{ name = 'p{n}', device = 'net_null{n}' }},");
        let (_, mistakes) = read(&format!("port = [{}]", (0..65).map(device).collect::<String>()));
        assert!(mistakes.len() == 1 && mistakes[0].contains("more than 64 devices"), "{mistakes:#?}");
    }

    #[test]
    fn vlans_need_routing() {
        let (_, mistakes) = Config::read(&Source::new(
            "t.toml",
            &format!("{LAN}, {{ name = 'a', parent = 'lan', vlan = 5 }}]\n[pipeline]\nstages = ['guard']"),
        ));
        assert!(mistakes.len() == 1 && mistakes[0].to_string().contains("add \"route\""), "{mistakes:#?}");
    }
}
