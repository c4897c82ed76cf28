//! IPv6 neighbor discovery (RFC 4861): neighbor and router solicitations and neighbor advertisements that are heard, and what is
//! said. Redirects and router advertisements are never believed: we are the router (RFC 4861 section 8.2).

use std::net::{IpAddr, Ipv6Addr};

use super::nud::Answer;
use super::{Cx, Link, Mac};
use crate::wire::checksum;
use crate::wire::ethernet::{Ethernet, EthernetMut, ethertype};
use crate::wire::icmpv6::{self, Icmpv6};
use crate::wire::ipv6::{Extension, Ipv6, Ipv6Mut};
use crate::wire::{nd, protocol};

pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// A neighbor discovery message that has passed RFC 4861 sections 6.1.1, 7.1.1 and 7.1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    pub kind: Kind,
    /// The source or target link-layer address option, whichever the message may have.
    pub mac: Option<Mac>,
}

/// What kind it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    RouterSolicitation,
    Solicitation { target: Ipv6Addr },
    Advertisement { target: Ipv6Addr, flags: u8 },
}

/// Reads an IPv6 packet, if it is a valid message of a kind that concerns us.
pub fn parse(packet: &[u8]) -> Option<Heard> {
    let header = Ipv6::parse(packet)?;
    let mut payload = packet[Ipv6::LEN..].get(..usize::from(header.payload_len()))?;
    // RFC 4861 section 7.1.1: no router has forwarded it.
    if header.version() != 6 || header.hop_limit() != 255 {
        return None;
    }
    // Extension headers may stand in front, but no fragment header (RFC 6980 section 5).
    let mut next = header.next();
    while matches!(next, protocol::HOP_BY_HOP | protocol::DESTINATION) {
        let extension = Extension::parse(payload)?;
        payload = payload.get(extension.len(next)..)?;
        next = extension.next();
    }
    if next != protocol::ICMPV6 {
        return None;
    }
    let icmp = Icmpv6::parse(payload)?;
    let (source, destination) = (header.source(), header.destination());
    let pseudo = checksum::pseudo(&source, &destination, protocol::ICMPV6, payload.len());
    if icmp.code() != 0 || !checksum::transport_is_good(pseudo, payload) {
        return None;
    }
    let (source, destination) = (Ipv6Addr::from(source), Ipv6Addr::from(destination));
    // RFC 4291 section 2.7: a group sends nothing.
    if source.is_multicast() {
        return None;
    }
    let target = || nd::Neighbor::parse(payload).map(|message| (Ipv6Addr::from(message.target()), message.flags()));
    let (kind, option, fixed) = match icmp.kind() {
        icmpv6::ROUTER_SOLICITATION => (Kind::RouterSolicitation, nd::SOURCE_MAC, Icmpv6::LEN),
        icmpv6::NEIGHBOR_SOLICITATION => {
            (Kind::Solicitation { target: target()?.0 }, nd::SOURCE_MAC, nd::Neighbor::LEN)
        }
        icmpv6::NEIGHBOR_ADVERTISEMENT => {
            let (target, flags) = target()?;
            (Kind::Advertisement { target, flags }, nd::TARGET_MAC, nd::Neighbor::LEN)
        }
        _ => return None,
    };
    let mut mac = None;
    for each in nd::options(&payload[fixed..]) {
        // Sections 6.1.1, 7.1.1 and 7.1.2: all options have a length, and one that is not zero.
        let (kind, body) = each.ok()?;
        if kind == option && mac.is_none() {
            // RFC 2464 section 6: an Ethernet address fills one unit.
            mac = Some(Mac::try_from(body).ok()?);
        }
    }
    let is_valid = match kind {
        Kind::RouterSolicitation => !source.is_unspecified() || mac.is_none(),
        Kind::Solicitation { target } => {
            !target.is_multicast()
                && (!source.is_unspecified() || mac.is_none() && destination == solicited_node(target))
        }
        Kind::Advertisement { target, flags } => {
            let solicited_group = destination.is_multicast() && flags & nd::SOLICITED != 0;
            !target.is_multicast() && !source.is_unspecified() && !solicited_group
        }
    };
    is_valid.then_some(Heard { source, destination, kind, mac })
}

impl Link {
    /// An IPv6 packet came, for us or for a group, not from ourselves.
    pub fn hear_nd(&mut self, ethernet: Ethernet<'_>, packet: &[u8], cx: &mut Cx<'_>) {
        let Some(heard) = parse(packet) else { return };
        let Heard { source, destination, kind, mac } = heard;
        let asker = IpAddr::V6(source);
        if mac.is_some_and(|mac| !self.is_believable(mac))
            || !destination.is_multicast() && self.own(destination).is_none() && self.answers_for(destination).is_none()
        {
            return;
        }
        if !source.is_unspecified() && self.own(source).is_some() {
            // Somebody else speaks with our address.
            return self.conflict(asker, ethernet.source(), cx);
        }
        // Who is off the link is no neighbor, and an entry for it would draw its traffic here (RFC 5942 section 4).
        let is_credible = source.is_unspecified() || self.is_credible(asker);
        match kind {
            Kind::Advertisement { target, flags } => self.hear_advertisement(target, flags, mac, ethernet.source(), cx),
            _ if !is_credible => {}
            Kind::RouterSolicitation if self.advertises() => {
                if let Some(mac) = mac {
                    self.told(asker, mac, true, cx);
                    self.is_host(asker, cx);
                }
                self.solicited(cx);
            }
            Kind::RouterSolicitation => {}
            Kind::Solicitation { target } => {
                let Some(own) = self.answers_for(target) else {
                    // RFC 4862 section 5.4.3: somebody else is about to use the address we are about to use; who only asks for
                    // it gets no answer.
                    if source.is_unspecified() {
                        self.conflict(target.into(), ethernet.source(), cx);
                    }
                    return;
                };
                if let Some(mac) = mac {
                    self.told(asker, mac, true, cx);
                }
                let known = self.cache(asker).table.get(asker).and_then(|entry| entry.mac);
                let frame = match source.is_unspecified() {
                    true => self.advertisement(target, own, None),
                    // A question without an option is answered where it came from, if we know no better.
                    false => {
                        self.advertisement(target, own, Some((source, known.or(mac).unwrap_or(ethernet.source()))))
                    }
                };
                cx.send(frame);
            }
        }
    }

    fn hear_advertisement(&mut self, target: Ipv6Addr, flags: u8, mac: Option<Mac>, from: Mac, cx: &mut Cx<'_>) {
        let ip = IpAddr::V6(target);
        if self.own(ip).is_some() {
            // RFC 4862 section 5.4.4.
            return self.conflict(ip, mac.unwrap_or(from), cx);
        }
        let answer = Answer {
            mac,
            solicited: flags & nd::SOLICITED != 0,
            overrides: flags & nd::OVERRIDE != 0,
            router: Some(flags & nd::ROUTER != 0),
        };
        self.answered(ip, answer, cx);
    }

    /// A question for `target`, to its group or to the neighbor alone (RFC 4861 section 7.2.2); none without an address to ask
    /// from: one from nowhere would be taken for a probe.
    pub fn solicitation(&self, target: Ipv6Addr, to: Option<Mac>) -> Option<Vec<u8>> {
        let (IpAddr::V6(source), own) = self.source_for(target.into())? else { return None };
        let destination = to.map_or_else(|| solicited_node(target), |_| target);
        let mac = to.unwrap_or_else(|| group_mac(destination));
        let message = neighbor(icmpv6::NEIGHBOR_SOLICITATION, 0, target, Some((nd::SOURCE_MAC, own)));
        Some(frame((own, source), (mac, destination), message))
    }

    /// RFC 4862 section 5.4.2: a solicitation for our own address, from nowhere and so without an option.
    pub fn dad_probe(&self, target: Ipv6Addr) -> Vec<u8> {
        let destination = solicited_node(target);
        let message = neighbor(icmpv6::NEIGHBOR_SOLICITATION, 0, target, None);
        frame((self.mac, Ipv6Addr::UNSPECIFIED), (group_mac(destination), destination), message)
    }

    /// RFC 4861 section 7.2.4: the answer, to all if the asker has no address yet.
    fn advertisement(&self, target: Ipv6Addr, own: Mac, to: Option<(Ipv6Addr, Mac)>) -> Vec<u8> {
        let solicited = if to.is_some() { nd::SOLICITED } else { 0 };
        let flags = nd::ROUTER | nd::OVERRIDE | solicited;
        let message = neighbor(icmpv6::NEIGHBOR_ADVERTISEMENT, flags, target, Some((nd::TARGET_MAC, own)));
        let (destination, mac) = to.unwrap_or((ALL_NODES, group_mac(ALL_NODES)));
        frame((own, target), (mac, destination), message)
    }

    /// RFC 4861 section 7.2.6: tells all of an address of ours.
    pub fn unasked_advertisement(&self, ip: Ipv6Addr) -> Vec<u8> {
        self.advertisement(ip, self.answers_for(ip).unwrap_or(self.mac), None)
    }
}

/// RFC 4291 section 2.7.1.
pub fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// RFC 2464 section 7.
pub fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// True for the groups neighbor discovery is sent to.
pub fn is_heard_group(mac: Mac) -> bool {
    mac[..3] == [0x33, 0x33, 0xff] || mac == group_mac(ALL_NODES) || mac == group_mac(ALL_ROUTERS)
}

/// A neighbor solicitation or advertisement without its IPv6 header, its checksum zero.
pub fn neighbor(kind: u8, flags: u8, target: Ipv6Addr, option: Option<(u8, Mac)>) -> Vec<u8> {
    let mut message = vec![0; nd::Neighbor::LEN];
    if let Some(mut head) = nd::NeighborMut::parse(&mut message) {
        head.set_kind(kind);
        head.set_flags(flags);
        head.set_target(target.octets());
    }
    if let Some((kind, mac)) = option {
        message.extend([kind, 1]);
        message.extend(mac);
    }
    message
}

/// The frame of a message whose checksum is still zero.
pub fn frame(from: (Mac, Ipv6Addr), to: (Mac, Ipv6Addr), mut message: Vec<u8>) -> Vec<u8> {
    let (source, destination) = (from.1.octets(), to.1.octets());
    let pseudo = checksum::pseudo(&source, &destination, protocol::ICMPV6, message.len());
    let sum = checksum::transport(pseudo, &message);
    if let Some(mut head) = icmpv6::Icmpv6Mut::parse(&mut message) {
        head.set_checksum(sum);
    }
    let mut frame = vec![0; Ethernet::LEN + Ipv6::LEN];
    let (head, body) = frame.split_at_mut(Ethernet::LEN);
    if let (Some(mut head), Some(mut ip)) = (EthernetMut::parse(head), Ipv6Mut::parse(body)) {
        head.set_destination(to.0);
        head.set_source(from.0);
        head.set_ethertype(ethertype::IPV6);
        ip.set_version_class_label(6 << 28);
        ip.set_payload_len(message.len() as u16);
        ip.set_next(protocol::ICMPV6);
        ip.set_hop_limit(255);
        ip.set_source(source);
        ip.set_destination(destination);
    }
    frame.append(&mut message);
    frame
}
