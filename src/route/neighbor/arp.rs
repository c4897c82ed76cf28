//! ARP (RFC 826) as RFC 5227 and RFC 1812 section 3.3.2 have it: what is heard, and what is said.

use std::net::{IpAddr, Ipv4Addr};

use super::nud::{Answer, State};
use super::{Cx, Link, Mac};
use crate::wire::arp::{self, Arp, ArpMut};
use crate::wire::ethernet::{Ethernet, EthernetMut, ethertype};

/// To all stations.
const BROADCAST: Mac = [0xff; 6];

impl Link {
    /// An ARP packet came, for us or for all, not from ourselves.
    pub fn hear_arp(&mut self, ethernet: Ethernet<'_>, packet: &[u8], cx: &mut Cx<'_>) {
        // RFC 826 "Packet Reception": of a hardware and protocol we have, with addresses as long as theirs.
        let Some(arp) = Arp::parse(packet) else { return };
        let form = (arp.hardware(), arp.protocol(), arp.hardware_len(), arp.protocol_len());
        if form != (arp::ETHERNET, ethertype::IPV4, 6, 4) {
            return;
        }
        let (mac, sender, target) = (arp.sender_mac(), Ipv4Addr::from(arp.sender()), Ipv4Addr::from(arp.target()));
        let is_request = arp.operation() == arp::REQUEST;
        if !(is_request || arp.operation() == arp::REPLY) || !self.is_believable(mac) {
            return;
        }
        let ours = self.answers_for(target);
        if sender.is_unspecified() {
            // RFC 5227 section 1.1: a probe. What is in use is defended by an answer; whoever probes for what we are probing
            // for ourselves makes a conflict (section 2.1.1). Its sender has no address to be remembered by.
            match (is_request, ours) {
                (true, Some(own)) => cx.send(self.arp_reply(own, target, mac, sender)),
                (true, None) => self.conflict(target.into(), mac, cx),
                (false, _) => {}
            }
            return;
        }
        let ip = IpAddr::V4(sender);
        if self.own(ip).is_some() {
            // RFC 5227 section 2.1.1 and 2.4: any packet with our address and another's MAC.
            return self.conflict(ip, mac, cx);
        }
        if !self.is_credible(ip) {
            return;
        }
        let known = self.cache(ip).table.get(ip).map(|entry| (entry.state, entry.mac, entry.learned));
        // Of several stations that answer for one address the first is believed for a while, as Linux's `locktime` has it.
        let is_locked = known.is_some_and(|(_, known, learned)| {
            known.is_some_and(|known| known != mac) && cx.now.saturating_sub(learned) < cx.times.lock
        });
        match (is_request, ours) {
            _ if is_locked => {}
            (true, _) => self.told(ip, mac, ours.is_some(), cx),
            (false, _) => {
                let to_us = ours.is_some_and(|own| arp.target_mac() == own) && ethernet.destination()[0] & 1 == 0;
                // ARP has no flag that says so: it answers us if we have asked.
                let asked = matches!(known, Some((State::Incomplete | State::Probe, ..)));
                let answer = Answer { mac: Some(mac), solicited: to_us && asked, overrides: true, router: None };
                self.answered(ip, answer, cx);
            }
        }
        if let (true, Some(own)) = (is_request, ours) {
            cx.send(self.arp_reply(own, target, mac, sender));
        }
    }

    /// A question for `target`, to all or to the neighbor alone (RFC 1122 section 2.3.2.1); none without an address to ask from.
    pub fn arp_request(&self, target: Ipv4Addr, to: Option<Mac>) -> Option<Vec<u8>> {
        let (IpAddr::V4(source), mac) = self.source_for(target.into())? else { return None };
        let said = Said { operation: arp::REQUEST, sender: (mac, source), target: ([0; 6], target) };
        Some(said.frame(to.unwrap_or(BROADCAST), mac))
    }

    /// RFC 5227 section 2.1.1: a question for our own address from nobody, so that no cache is touched.
    pub fn arp_probe(&self, ip: Ipv4Addr) -> Vec<u8> {
        let sender = (self.mac, Ipv4Addr::UNSPECIFIED);
        Said { operation: arp::REQUEST, sender, target: ([0; 6], ip) }.frame(BROADCAST, self.mac)
    }

    /// RFC 5227 section 2.3: a question for our own address from itself. It comes from the MAC it tells of, so that switches
    /// learn where a virtual one is.
    pub fn arp_announcement(&self, ip: Ipv4Addr) -> Vec<u8> {
        let mac = self.answers_for(ip).unwrap_or(self.mac);
        Said { operation: arp::REQUEST, sender: (mac, ip), target: ([0; 6], ip) }.frame(BROADCAST, mac)
    }

    /// RFC 826: the question with its ends swapped. RFC 9568 section 8.1.2: for a virtual router's address it tells the virtual
    /// MAC, and comes from the port's.
    fn arp_reply(&self, own: Mac, ip: Ipv4Addr, to: Mac, asker: Ipv4Addr) -> Vec<u8> {
        Said { operation: arp::REPLY, sender: (own, ip), target: (to, asker) }.frame(to, self.mac)
    }
}

/// What an ARP packet of ours says.
struct Said {
    operation: u16,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
}

impl Said {
    fn frame(&self, to: Mac, from: Mac) -> Vec<u8> {
        let mut frame = vec![0; Ethernet::LEN + Arp::LEN];
        let (head, body) = frame.split_at_mut(Ethernet::LEN);
        if let (Some(mut head), Some(mut arp)) = (EthernetMut::parse(head), ArpMut::parse(body)) {
            head.set_destination(to);
            head.set_source(from);
            head.set_ethertype(ethertype::ARP);
            arp.set_hardware(arp::ETHERNET);
            arp.set_protocol(ethertype::IPV4);
            arp.set_hardware_len(6);
            arp.set_protocol_len(4);
            arp.set_operation(self.operation);
            arp.set_sender_mac(self.sender.0);
            arp.set_sender(self.sender.1.octets());
            arp.set_target_mac(self.target.0);
            arp.set_target(self.target.1.octets());
        }
        frame
    }
}
