//! Neighbors where there is no network: whoever is asked for answers, with a MAC address made of its own.

use std::net::{IpAddr, Ipv4Addr};

use super::Mac;
use super::nd::{Kind, frame, neighbor, parse};
use crate::wire::arp::{self, Arp, ArpMut};
use crate::wire::ethernet::{Ethernet, EthernetMut, ethertype};
use crate::wire::{icmpv6, nd};

/// The MAC address that a neighbor is taken to have: 02:00 and the last four bytes of its address.
pub fn mac(ip: IpAddr) -> Mac {
    let [a, b, c, d] = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let [.., a, b, c, d] = ip.octets();
            [a, b, c, d]
        }
    };
    [2, 0, a, b, c, d]
}

/// The answer to a question of ours for a neighbor; none to anything else, probes for our own addresses among it.
pub fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let ethernet = Ethernet::parse(question)?;
    let packet = &question[Ethernet::LEN..];
    let asker = ethernet.source();
    match ethernet.ethertype() {
        ethertype::ARP => {
            let asked = Arp::parse(packet)?;
            let (sender, target) = (asked.sender(), asked.target());
            if asked.operation() != arp::REQUEST || sender == target || Ipv4Addr::from(sender).is_unspecified() {
                return None;
            }
            let own = mac(Ipv4Addr::from(target).into());
            let mut answer = question[..Ethernet::LEN + Arp::LEN].to_vec();
            let (head, body) = answer.split_at_mut(Ethernet::LEN);
            let (mut head, mut said) = (EthernetMut::parse(head)?, ArpMut::parse(body)?);
            head.set_destination(asker);
            head.set_source(own);
            said.set_operation(arp::REPLY);
            said.set_sender_mac(own);
            said.set_sender(target);
            said.set_target_mac(asker);
            said.set_target(sender);
            Some(answer)
        }
        ethertype::IPV6 => {
            let heard = parse(packet).filter(|heard| !heard.source.is_unspecified())?;
            let (source, Kind::Solicitation { target }) = (heard.source, heard.kind) else { return None };
            let own = mac(target.into());
            let flags = nd::SOLICITED | nd::OVERRIDE;
            let said = neighbor(icmpv6::NEIGHBOR_ADVERTISEMENT, flags, target, Some((nd::TARGET_MAC, own)));
            Some(frame((own, target), (asker, source), said))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::packets::Packet;

    #[test]
    fn who_is_asked_for_answers() {
        let us = [2, 0, 0, 0, 0, 9];
        let question = Packet::arp(1, "192.0.2.1", "192.0.2.77").macs(us, [0xff; 6]).patch(22, &us).bytes();
        let said = answer(&question).expect("an answer");
        let own = [2, 0, 192, 0, 2, 77];
        assert_eq!((&said[..6], &said[6..12], &said[20..22]), (&us[..], &own[..], &[0, 2][..]));
        assert_eq!(
            (&said[22..28], &said[28..32], &said[38..42]),
            (&own[..], &[192, 0, 2, 77][..], &[192, 0, 2, 1][..])
        );
        for silent in [Packet::arp(1, "0.0.0.0", "192.0.2.77"), Packet::arp(1, "192.0.2.1", "192.0.2.1")] {
            assert_eq!(answer(&silent.bytes()), None, "a probe, or an announcement");
        }
        assert_eq!(answer(&said), None);
        assert_eq!(answer(&[0; 20]), None);
    }
}
