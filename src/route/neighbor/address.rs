//! The port's own addresses: nobody else may have one before it is used (RFC 5227, RFC 4862 section 5.4), it is announced when
//! it comes into use, and defended when somebody else claims it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::cache::link_local;
use super::{Address, Cx, Effect, Link, Mac, SECOND, Timer};

/// RFC 5227 section 1.1.
const PROBE_WAIT: u64 = SECOND;
const PROBE_MIN: u64 = SECOND;
const PROBE_MAX: u64 = 2 * SECOND;
const ANNOUNCE_WAIT: u64 = 2 * SECOND;
const ANNOUNCE_INTERVAL: u64 = 2 * SECOND;
const RATE_LIMIT_INTERVAL: u64 = 60 * SECOND;
const DEFEND_INTERVAL: u64 = 10 * SECOND;
/// RFC 4861 section 10, of which RFC 4862 section 5.4.2 makes the delay of the first solicitation.
const MAX_RTR_SOLICITATION_DELAY: u64 = SECOND;

/// How far an address has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The link is down.
    Down,
    /// Others are asked whether they have it: tentative, it neither answers nor sends.
    Probing,
    /// It is in use.
    Usable,
    /// Somebody else has it.
    Duplicate,
}

/// One of our own addresses.
#[derive(Clone, Debug)]
pub struct Own {
    pub net: IpNet,
    /// The virtual MAC it is bound to, if not the port's.
    pub mac: Option<Mac>,
    pub stage: Stage,
    /// It has been in use since it was last another's. If its link comes up again, it is probed for again, but stays in use
    /// for the box: a router that does not know itself for seconds harms more than the conflict that may have come up.
    proven: bool,
    /// Made by us of the port's MAC.
    automatic: bool,
    /// Probes, or announcements, sent so far.
    sent: u8,
    /// When it was last defended.
    defended: Option<u64>,
}

impl Own {
    pub fn ip(&self) -> IpAddr {
        self.net.addr()
    }

    pub fn is_usable(&self) -> bool {
        self.stage == Stage::Usable
    }
}

impl Link {
    /// One of the port's addresses.
    pub fn own(&self, ip: impl Into<IpAddr>) -> Option<&Own> {
        let ip = ip.into();
        self.addresses.iter().find(|own| own.ip() == ip)
    }

    fn own_mut(&mut self, ip: IpAddr) -> Option<&mut Own> {
        self.addresses.iter_mut().find(|own| own.ip() == ip)
    }

    /// The MAC of one of our addresses that is in use.
    pub fn answers_for(&self, ip: impl Into<IpAddr>) -> Option<Mac> {
        let ip = ip.into();
        match self.own(ip) {
            Some(own) => own.is_usable().then(|| own.mac.unwrap_or(self.mac)),
            None => self.stands_for(ip).then_some(self.mac),
        }
    }

    /// True for an address of the link's that is ours to answer for though no port has it (its packets are translated here).
    /// Not for one that a host is known to have, nor for a whole subnet.
    fn stands_for(&self, ip: IpAddr) -> bool {
        let part = |net: IpNet| {
            let range = self.stands.iter().find(|(first, last)| (first..=last).contains(&&ip));
            net.contains(&ip) && range.is_some_and(|(first, last)| *first > net.network() || *last < net.broadcast())
        };
        self.addresses.iter().any(|own| part(own.net))
            && self.caches[usize::from(ip.is_ipv6())].table.get(ip).is_none_or(|entry| entry.mac.is_none())
    }

    /// True for the port's MAC and those its addresses are bound to.
    pub fn is_own_mac(&self, mac: Mac) -> bool {
        mac == self.mac || self.addresses.iter().any(|own| own.mac == Some(mac))
    }

    /// True if a neighbor may have this MAC: no group (RFC 1812 section 3.3.2), nothing, or ourselves.
    pub fn is_believable(&self, mac: Mac) -> bool {
        mac[0] & 1 == 0 && mac != [0; 6] && !self.is_own_mac(mac)
    }

    /// Makes the addresses what they are to be; those that stay are left alone.
    pub fn set_addresses(&mut self, wanted: &[Address], cx: &mut Cx<'_>) {
        let stays = |own: &Own| wanted.iter().any(|address| address.net == own.net && address.mac == own.mac);
        let gone: Vec<IpAddr> =
            self.addresses.iter().filter(|own| !own.automatic && !stays(own)).map(Own::ip).collect();
        gone.into_iter().for_each(|ip| self.drop_address(ip, cx));
        for address in wanted {
            self.add_address(*address, cx);
        }
        self.keep_link_local(cx);
    }

    /// Adds an address, unless it is there just so.
    pub fn add_address(&mut self, address: Address, cx: &mut Cx<'_>) {
        let ip = address.net.addr();
        if let Some(own) = self.own_mut(ip) {
            if own.net == address.net && own.mac == address.mac {
                own.automatic = false;
                return;
            }
            self.drop_address(ip, cx);
        }
        self.insert(address, false, cx);
        self.keep_link_local(cx);
    }

    fn insert(&mut self, address: Address, automatic: bool, cx: &mut Cx<'_>) {
        let Address { net, mac } = address;
        self.addresses.push(Own { net, mac, stage: Stage::Down, proven: false, automatic, sent: 0, defended: None });
        // What is ours now is no neighbor's.
        self.give(net.addr(), None, cx);
        self.forget(cx, |_, ip| ip == net.addr());
        self.start(net.addr(), cx);
    }

    /// Removes an address, and with it the neighbors that are on the link no longer.
    pub fn remove_address(&mut self, ip: IpAddr, cx: &mut Cx<'_>) {
        self.drop_address(ip, cx);
        self.keep_link_local(cx);
    }

    fn drop_address(&mut self, ip: IpAddr, cx: &mut Cx<'_>) {
        let Some(at) = self.addresses.iter().position(|own| own.ip() == ip) else { return };
        self.addresses.remove(at);
        cx.timers.set(cx.port, Timer::Address(ip), None);
        self.forget(cx, |link, ip| !link.is_on_link(ip));
    }

    /// RFC 4291 section 2.1: every interface with IPv6 has a link-local address; one made of the MAC if none is given.
    pub fn keep_link_local(&mut self, cx: &mut Cx<'_>) {
        let is_link_local = |own: &Own| matches!(own.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
        let has_v6 = self.advertiser.is_some() || self.addresses.iter().any(|own| own.ip().is_ipv6() && !own.automatic);
        let given = self.addresses.iter().any(|own| is_link_local(own) && !own.automatic && own.mac.is_none());
        let wanted = (has_v6 && !given).then(|| IpAddr::V6(link_local(self.mac)));
        let there = self.addresses.iter().find(|own| own.automatic).map(Own::ip);
        if there == wanted {
            return;
        }
        if let Some(ip) = there {
            self.drop_address(ip, cx);
        }
        if let Some(ip) = wanted
            && self.own(ip).is_none()
        {
            let net = IpNet::new(ip, 64).expect("64 bits are not too many");
            self.insert(Address::from(net), true, cx);
        }
    }

    /// The link is up, or down.
    pub fn set_link(&mut self, up: bool, cx: &mut Cx<'_>) {
        if self.up == up {
            return;
        }
        self.up = up;
        if !up {
            self.forget(cx, |_, _| true);
        }
        self.restart(cx);
    }

    /// Begins anew with every address: the link may lead elsewhere now (RFC 5227 section 2.1).
    pub fn restart(&mut self, cx: &mut Cx<'_>) {
        let all: Vec<IpAddr> = self.addresses.iter().map(Own::ip).collect();
        all.into_iter().for_each(|ip| self.start(ip, cx));
        self.start_advertising(cx);
    }

    /// Begins to use an address, or to find out whether it may be used.
    fn start(&mut self, ip: IpAddr, cx: &mut Cx<'_>) {
        let up = self.up;
        let probes = self.probes(ip, cx);
        let Some(own) = self.own_mut(ip) else { return };
        (own.sent, own.defended) = (0, None);
        if !up {
            own.stage = Stage::Down;
            cx.timers.set(cx.port, Timer::Address(ip), None);
        } else if probes == 0 {
            self.take_into_use(ip, cx);
        } else {
            own.stage = Stage::Probing;
            if !own.proven {
                cx.out.push(Effect::AddressTentative { port: cx.port, ip });
            }
            let wait = if ip.is_ipv4() { PROBE_WAIT } else { MAX_RTR_SOLICITATION_DELAY };
            let due = cx.now + cx.chance.below(wait);
            cx.timers.set(cx.port, Timer::Address(ip), Some(due));
        }
    }

    fn probes(&self, ip: IpAddr, cx: &Cx<'_>) -> u8 {
        match self.own(ip) {
            Some(own) if own.mac.is_some() => 0,
            _ if ip.is_ipv4() => cx.times.arp_probes,
            _ => cx.times.dad_probes,
        }
    }

    /// An address's timer has run out.
    pub fn fire_address(&mut self, ip: IpAddr, cx: &mut Cx<'_>) {
        let probes = self.probes(ip, cx);
        let Some(own) = self.own_mut(ip) else { return };
        match own.stage {
            Stage::Probing if own.sent < probes => {
                own.sent += 1;
                let last = own.sent == probes;
                let wait = match ip {
                    IpAddr::V4(_) if last => ANNOUNCE_WAIT,
                    IpAddr::V4(_) => PROBE_MIN + cx.chance.below(PROBE_MAX - PROBE_MIN),
                    IpAddr::V6(_) => cx.times.retransmit,
                };
                cx.timers.set(cx.port, Timer::Address(ip), Some(cx.now + wait));
                let frame = match ip {
                    IpAddr::V4(ip) => self.arp_probe(ip),
                    IpAddr::V6(ip) => self.dad_probe(ip),
                };
                cx.send(frame);
            }
            Stage::Probing => self.take_into_use(ip, cx),
            Stage::Usable => self.announce(ip, cx),
            Stage::Duplicate => self.start(ip, cx),
            Stage::Down => {}
        }
    }

    fn take_into_use(&mut self, ip: IpAddr, cx: &mut Cx<'_>) {
        let Some(own) = self.own_mut(ip) else { return };
        (own.stage, own.proven, own.sent) = (Stage::Usable, true, 0);
        cx.out.push(Effect::AddressUsable { port: cx.port, ip });
        self.announce(ip, cx);
        if matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            self.start_advertising(cx);
        }
    }

    /// Announces an address in use (RFC 5227 section 2.3, RFC 4861 section 7.2.6), and again after a while.
    fn announce(&mut self, ip: IpAddr, cx: &mut Cx<'_>) {
        let most = cx.times.announcements;
        let Some(own) = self.own_mut(ip).filter(|own| own.sent < most) else { return };
        own.sent += 1;
        let again = (own.sent < most).then_some(cx.now + ANNOUNCE_INTERVAL);
        cx.timers.set(cx.port, Timer::Address(ip), again);
        let frame = self.announcement(ip);
        cx.send(frame);
    }

    fn announcement(&self, ip: IpAddr) -> Vec<u8> {
        match ip {
            IpAddr::V4(ip) => self.arp_announcement(ip),
            IpAddr::V6(ip) => self.unasked_advertisement(ip),
        }
    }

    /// Another station at `mac` claims one of our addresses.
    pub fn conflict(&mut self, ip: IpAddr, mac: Mac, cx: &mut Cx<'_>) {
        let (port, now, name) = (cx.port, cx.now, self.name.clone());
        let Some(own) = self.own_mut(ip) else { return };
        let kept = match own.stage {
            Stage::Probing => {
                (own.stage, own.proven) = (Stage::Duplicate, false);
                // RFC 5227 section 2.1.1: after a conflict another try is made only once in a while. RFC 4862 section 5.4.5
                // makes none before somebody steps in.
                let again = ip.is_ipv4().then_some(now + RATE_LIMIT_INTERVAL);
                cx.timers.set(port, Timer::Address(ip), again);
                false
            }
            // RFC 5227 section 2.4 (c): a router does not give its address up, and defends it once in DEFEND_INTERVAL at most.
            Stage::Usable if own.defended.is_none_or(|at| now.saturating_sub(at) >= DEFEND_INTERVAL) => {
                own.defended = Some(now);
                if ip.is_ipv4() {
                    let frame = self.announcement(ip);
                    cx.send(frame);
                }
                true
            }
            Stage::Usable | Stage::Duplicate | Stage::Down => return,
        };
        let what = if kept { "uses it too" } else { "has it already: it is not used" };
        let shown = crate::config::neighbor::Mac(mac);
        cx.out.push(Effect::AddressConflict { port, ip, mac, kept });
        cx.out.push(Effect::Note(format!("{name}: {ip}: {shown} {what}")));
    }
}
