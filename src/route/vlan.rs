//! Which logical port a received frame belongs to: the port it came in by, or a VLAN of it.
//!
//! A frame without tags costs one comparison; one tag, an array by VLAN id; two, a search among the few pairs there are. A tag
//! with VLAN id 0 carries a priority and names no VLAN (IEEE 802.1Q section 6.9): it counts as if it were not there.

use crate::config::names::{Carrier, Names, Tags};
use crate::packet::frame::rx;
use crate::packet::meta::flag;
use crate::packet::{Frame, Meta, NO_PORT};
use crate::wire::ethernet::{Ethernet, ethertype};
use crate::wire::vlan::{ID, Vlan};

/// VLAN ids there can be, reserved ones included.
const IDS: usize = 1 << 12;

/// The VLANs of all ports.
#[derive(Clone, Debug)]
pub struct Vlans {
    /// By port: which of `single` is its own; those behind the last have none.
    of_port: Vec<Option<u8>>,
    /// By port with VLANs, EtherType of the tag (802.1Q, 802.1ad) and VLAN id: the logical port, or `NO_PORT`.
    single: Vec<[[u8; IDS]; 2]>,
    /// Those with two tags, sorted.
    double: Vec<(Pair, u8)>,
}

/// Port, EtherType of the outer tag, ids of both.
type Pair = (u8, u16, u16, u16);

impl Vlans {
    /// The VLANs of a config's ports; `None` if there are none and nothing is routed, so that tags mean nothing.
    pub fn new(names: &Names) -> Option<Vlans> {
        let devices = names.devices();
        let mut vlans = Vlans { of_port: vec![None; devices], single: Vec::new(), double: Vec::new() };
        for (port, name) in names.ports.iter().enumerate() {
            let Some(Carrier { parent, tags }) = name.carrier else { continue };
            let own = vlans.of_port[usize::from(parent)].unwrap_or_else(|| {
                vlans.single.push([[NO_PORT; IDS]; 2]);
                let own = vlans.single.len() as u8 - 1;
                vlans.of_port[usize::from(parent)] = Some(own);
                own
            });
            match tags.inner {
                None => vlans.single[usize::from(own)][kind(tags.tpid)][usize::from(tags.outer & ID)] = port as u8,
                Some(inner) => vlans.double.push(((parent, tags.tpid, tags.outer, inner), port as u8)),
            }
        }
        vlans.double.sort_unstable();
        (names.routes || !vlans.single.is_empty()).then_some(vlans)
    }

    /// The logical port of a decoded frame; `None` if its tags are no port's. A frame that has been given its logical port
    /// keeps it.
    #[inline(always)]
    pub fn classify(&self, frame: &Frame, meta: &Meta) -> Option<u8> {
        if meta.flags & flag::VLAN == 0 { Some(meta.port) } else { self.of_tags(meta.port, tags(frame, meta)) }
    }

    /// The logical port of a frame with these tags on `port`; `None` of tags is none that counts.
    #[inline]
    pub fn of_tags(&self, port: u8, tags: Option<Tags>) -> Option<u8> {
        let (Some(tags), Some(own)) = (tags, self.of_port.get(usize::from(port))) else { return Some(port) };
        let own = usize::from((*own)?);
        let found = match tags.inner {
            None => self.single[own][kind(tags.tpid)][usize::from(tags.outer & ID)],
            Some(inner) => {
                let pair = (port, tags.tpid, tags.outer, inner);
                let at = self.double.binary_search_by_key(&pair, |(pair, _)| *pair).ok()?;
                self.double[at].1
            }
        };
        (found != NO_PORT).then_some(found)
    }
}

fn kind(tpid: u16) -> usize {
    usize::from(tpid == ethertype::SERVICE_VLAN)
}

/// The tags of a decoded frame that name VLANs. An inner tag counts as 802.1Q whatever announces it. A tag that the port has
/// taken out was an 802.1Q tag (`RTE_ETH_RX_OFFLOAD_VLAN_STRIP`).
fn tags(frame: &Frame, meta: &Meta) -> Option<Tags> {
    let bytes = frame.bytes();
    let mut found = [(0, 0); 3];
    let mut count = 0;
    let mut add = |tpid: u16, control: u16| {
        if control & ID != 0 {
            found[count] = (tpid, control & ID);
            count += 1;
        }
    };
    if frame.flags & rx::VLAN_STRIPPED != 0 {
        add(ethertype::VLAN, frame.vlan_tci);
    }
    // Two tags at most in all, or decode would have refused the frame.
    let mut tpid = Ethernet::parse(bytes)?.ethertype();
    for at in 0..usize::from((meta.flags & flag::TAGS) >> flag::TAGS_SHIFT).min(2) {
        let tag = bytes.get(Ethernet::LEN + 4 * at..).and_then(Vlan::parse)?;
        add(tpid, tag.control());
        tpid = tag.ethertype();
    }
    match (count, found) {
        (0, _) => None,
        (1, [(tpid, outer), ..]) => Some(Tags { tpid, outer, inner: None }),
        (_, [(tpid, outer), (_, inner), _]) => Some(Tags { tpid, outer, inner: Some(inner) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::names::PortName;
    use crate::config::source::Place;
    use crate::packet::decode::{Depth, strip_tag, walk};
    use crate::packet::frame::Heap;
    use crate::testkit::packets::Packet;

    const Q: u16 = ethertype::VLAN;
    const AD: u16 = ethertype::SERVICE_VLAN;

    /// Ports 0, 1 and 2; of port 0 the VLANs 100 (3), 100 in 802.1ad (4), 100.200 (5), 100.201 (6); of port 2 VLAN 100 (7)
    /// and 7.8 in 802.1ad (8).
    fn vlans() -> Vlans {
        let vlan = |parent, tpid, outer, inner| Some(Carrier { parent, tags: Tags { tpid, outer, inner } });
        let all = [
            None,
            None,
            None,
            vlan(0, Q, 100, None),
            vlan(0, AD, 100, None),
            vlan(0, Q, 100, Some(200)),
            vlan(0, Q, 100, Some(201)),
            vlan(2, Q, 100, None),
            vlan(2, AD, 7, Some(8)),
        ];
        let place = Place { file: "t".into(), line: 1, column: 1 };
        let port = |carrier| PortName { name: String::new(), zone: None, mac: None, carrier, place: place.clone() };
        Vlans::new(&Names { ports: all.map(port).into(), ..Names::default() }).expect("some")
    }

    /// The port of a frame that arrives on `port` with these tags, the outer one taken out by the port or not.
    fn port_of(port: u8, tags: &[(u16, u16)], stripped: bool) -> Option<u8> {
        let packet = Packet::udp("10.0.0.1:1000", "10.0.0.2:53");
        let bytes = tags.iter().fold(packet, |packet, (tpid, control)| packet.tag(*tpid, *control)).bytes();
        let mut heap = Heap::new(1, bytes.len());
        let mut frame = heap.frame(&bytes).expect("room");
        frame.port = port;
        if stripped {
            strip_tag(&mut frame);
        }
        let mut meta = Meta { port, ..Meta::UNKNOWN };
        walk(&frame, Depth::L4, &mut meta).expect("well formed");
        let found = vlans().classify(&frame, &meta);
        heap.give_back(frame);
        found
    }

    #[test]
    fn frames_find_their_ports() {
        for stripped in [false, true] {
            let of = |port, tags: &[(u16, u16)]| port_of(port, tags, stripped);
            assert_eq!([of(0, &[]), of(1, &[]), of(2, &[])], [Some(0), Some(1), Some(2)]);
            assert_eq!([of(0, &[(Q, 100)]), of(0, &[(AD, 100)]), of(0, &[(Q, 101)])], [Some(3), Some(4), None]);
            assert_eq!([of(1, &[(Q, 100)]), of(2, &[(Q, 100)]), of(2, &[(AD, 100)])], [None, Some(7), None]);
            assert_eq!([of(0, &[(Q, 100), (Q, 200)]), of(0, &[(Q, 100), (Q, 201)])], [Some(5), Some(6)]);
            assert_eq!([of(0, &[(Q, 100), (Q, 202)]), of(0, &[(Q, 101), (Q, 200)])], [None, None]);
            assert_eq!([of(2, &[(AD, 7), (Q, 8)]), of(2, &[(Q, 7), (Q, 8)]), of(2, &[(AD, 7)])], [Some(8), None, None]);
            // Priority and drop eligibility are no part of it.
            assert_eq!(of(0, &[(Q, 0xf000 | 100)]), Some(3));
        }
    }

    #[test]
    fn a_tag_of_vlan_0_is_none() {
        for stripped in [false, true] {
            let of = |port, tags: &[(u16, u16)]| port_of(port, tags, stripped);
            assert_eq!([of(0, &[(Q, 0xe000)]), of(1, &[(Q, 0)]), of(0, &[(AD, 0)])], [Some(0), Some(1), Some(0)]);
            assert_eq!([of(0, &[(Q, 0), (Q, 100)]), of(0, &[(Q, 100), (Q, 0)])], [Some(3), Some(3)]);
            assert_eq!(of(0, &[(Q, 0), (Q, 0)]), Some(0));
        }
    }

    #[test]
    fn a_port_once_found_stays() {
        let own = Some(Tags { tpid: Q, outer: 100, inner: None });
        assert_eq!(vlans().of_tags(3, own), Some(3));
        assert!(Vlans::new(&Names::default()).is_none());
    }
}
