//! Neighbors: ARP (RFC 826, 5227) and IPv6 neighbor discovery (RFC 4861, 4862) of every port, on control.
//!
//! A pure state machine: frames, wishes and the time go in, [`Effect`]s come out. It owns what is known of neighbors, the
//! state of the box's own addresses, and router advertisements. It opens no socket, reads no clock and touches no table of
//! the workers; who runs it does.
//!
//! What is believed: an answer to a question of ours makes an entry; anything else unasked only changes one that is there.
//! The exception is a neighbor that asks for us, as Linux has it too: it will want an answer to what it sends next, so it
//! gets a stale entry, yet never in another's place (RFC 826 "merge", RFC 4861 section 7.2.3), and one that no effect tells of
//! before a packet wants to go there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::neighbor::{Neighbor as Settings, RouterAdvertisements};
use crate::wire::ethernet::{Ethernet, ethertype};

mod address;
mod advertise;
mod arp;
mod cache;
mod nd;
mod nud;
pub mod stand_in;
mod table;
#[cfg(test)]
mod tests;

use address::Own;
use advertise::Advertiser;
pub use nud::State;

/// A MAC address.
pub type Mac = [u8; 6];

/// What is to be done or known outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a frame (untagged, without padding) out of a port.
    Send { port: u8, frame: Vec<u8> },
    /// The MAC of a neighbor that packets have waited for (or that is given) is known, has changed, or is asked for again.
    Resolved { port: u8, ip: IpAddr, mac: Mac, is_router: bool },
    /// A neighbor does not answer: what is held for it cannot be delivered, nor what comes until it is [gone](Effect::Gone).
    Failed { port: u8, ip: IpAddr },
    /// A neighbor is forgotten: the next packet to it has to ask.
    Gone { port: u8, ip: IpAddr },
    /// Somebody else on the port's link uses an address of ours; `kept` if we go on using it.
    AddressConflict { port: u8, ip: IpAddr, mac: Mac, kept: bool },
    /// An address of ours is asked for before it is used for the first time.
    AddressTentative { port: u8, ip: IpAddr },
    /// An address of ours has been found unique and is in use from now on.
    AddressUsable { port: u8, ip: IpAddr },
    /// A line for the log.
    Note(String),
}

/// One of a port's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address and its subnet.
    pub net: IpNet,
    /// The virtual MAC it is bound to (VRRP, RFC 9568 section 7.3), if not the port's. Such an address is not probed for: the
    /// router it is taken over from may still be there.
    pub mac: Option<Mac>,
}

impl From<IpNet> for Address {
    fn from(net: IpNet) -> Address {
        Address { net, mac: None }
    }
}

/// A port as it is to be.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name, for the log.
    pub name: String,
    /// Its MAC.
    pub mac: Mac,
    /// Its addresses. A port with an IPv6 address gets a link-local one of its MAC if none is among them.
    pub addresses: Vec<Address>,
    /// Whether its link is up.
    pub link_up: bool,
    /// What it advertises as an IPv6 router, if it does.
    pub router_advertisements: Option<RouterAdvertisements>,
}

/// A neighbor as `show neighbors` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Logical port.
    pub port: u8,
    /// Its address.
    pub ip: IpAddr,
    /// Its MAC, if known.
    pub mac: Option<Mac>,
    /// What is known of it.
    pub state: State,
    /// When it entered that state, on the clock that is given with every call.
    pub since: u64,
    /// Questions asked in that state.
    pub probes: u8,
    /// It says that it is a router.
    pub is_router: bool,
    /// Packets have gone to it; else it has only asked for us, and no effect has told of it.
    pub is_wanted: bool,
}

/// The settings as the machine wants them, in nanoseconds.
#[derive(Clone, Debug)]
struct Times {
    reachable: u64,
    delay: u64,
    retransmit: u64,
    multicast_probes: u8,
    unicast_probes: u8,
    silent: u64,
    lock: u64,
    idle: u64,
    limit: usize,
    unresolved: usize,
    rate: u64,
    arp_probes: u8,
    dad_probes: u8,
    announcements: u8,
}

/// A second in nanoseconds.
const SECOND: u64 = 1_000_000_000;

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).map_or(u64::MAX / 4, |time| time.clamp(1, u64::MAX / 4))
}

impl Times {
    fn of(settings: &Settings) -> Times {
        Times {
            reachable: nanoseconds(settings.reachable),
            delay: nanoseconds(settings.delay),
            retransmit: nanoseconds(settings.retransmit),
            multicast_probes: settings.multicast_probes.0 as u8,
            unicast_probes: settings.unicast_probes.0 as u8,
            silent: nanoseconds(settings.silent),
            lock: nanoseconds(settings.lock),
            idle: nanoseconds(settings.idle),
            limit: settings.limit.0 as usize,
            unresolved: settings.unresolved.0 as usize,
            rate: settings.rate.0,
            arp_probes: settings.arp_probes.0 as u8,
            dad_probes: settings.dad_probes.0 as u8,
            announcements: settings.announcements.0 as u8,
        }
    }
}

/// Repeatable chance (splitmix64), for delays that keep stations apart.
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// A number below `bound`; zero if that is zero.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * u128::from(bound)) >> 64) as u64
    }
}

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Timer {
    Neighbor(IpAddr),
    Address(IpAddr),
    Advertisement,
}

/// Timers by what they are for and by when they run out.
#[derive(Default)]
struct Timers {
    due: HashMap<(u8, Timer), u64>,
    order: BTreeSet<(u64, u8, Timer)>,
}

impl Timers {
    fn set(&mut self, port: u8, timer: Timer, due: Option<u64>) {
        let before = match due {
            Some(due) => self.due.insert((port, timer), due),
            None => self.due.remove(&(port, timer)),
        };
        if let Some(before) = before {
            self.order.remove(&(before, port, timer));
        }
        self.order.extend(due.map(|due| (due, port, timer)));
    }

    fn next(&self) -> Option<u64> {
        self.order.first().map(|(due, ..)| *due)
    }

    fn take(&mut self, now: u64) -> Option<(u8, Timer)> {
        let (_, port, timer) = *self.order.first().filter(|(due, ..)| *due <= now)?;
        self.set(port, timer, None);
        Some((port, timer))
    }
}

/// What every step needs besides the port's own state.
struct Cx<'a> {
    port: u8,
    now: u64,
    times: &'a Times,
    chance: &'a mut Chance,
    timers: &'a mut Timers,
    out: &'a mut Vec<Effect>,
}

impl Cx<'_> {
    fn send(&mut self, frame: Vec<u8>) {
        self.out.push(Effect::Send { port: self.port, frame });
    }
}

/// A port as it is.
struct Link {
    name: String,
    mac: Mac,
    up: bool,
    addresses: Vec<Own>,
    advertiser: Option<Advertiser>,
    /// First and last of addresses we answer for that are no port's.
    stands: Arc<[(IpAddr, IpAddr)]>,
    /// IPv4 and IPv6 apart: a scan of one leaves the other alone.
    caches: [cache::Cache; 2],
}

/// The neighbors of all ports.
pub struct Neighbors {
    times: Times,
    chance: Chance,
    timers: Timers,
    links: BTreeMap<u8, Link>,
    stands: Arc<[(IpAddr, IpAddr)]>,
}

impl Neighbors {
    /// No ports yet. `seed` makes the delays that keep stations apart.
    pub fn new(settings: &Settings, seed: u64) -> Neighbors {
        let (chance, timers) = (Chance::new(seed), Timers::default());
        Neighbors { times: Times::of(settings), chance, timers, links: BTreeMap::new(), stands: Arc::default() }
    }

    fn with(&mut self, port: u8, now: u64, out: &mut Vec<Effect>, run: impl FnOnce(&mut Link, &mut Cx<'_>)) {
        let Neighbors { times, chance, timers, links, .. } = self;
        if let Some(link) = links.get_mut(&port) {
            run(link, &mut Cx { port, now, times, chance, timers, out });
        }
    }

    /// Says what addresses are answered for besides the ports' own, on links to whose subnets they belong: ranges, first and
    /// last.
    pub fn stand_for(&mut self, ranges: Vec<(IpAddr, IpAddr)>) {
        self.stands = ranges.into();
        self.links.values_mut().for_each(|link| link.stands = self.stands.clone());
    }

    /// Adds a port, or makes it what it is to be; what stays the same is left alone. Addresses that are new are probed for,
    /// unless they are virtual, and announced once they are in use.
    pub fn port(&mut self, port: u8, wanted: &Port, now: u64, out: &mut Vec<Effect>) {
        let new = || Link {
            name: String::new(),
            mac: wanted.mac,
            up: false,
            addresses: Vec::new(),
            advertiser: None,
            stands: self.stands.clone(),
            caches: Default::default(),
        };
        self.links.entry(port).or_insert_with(new);
        self.with(port, now, out, |link, cx| {
            link.name.clone_from(&wanted.name);
            let moved = std::mem::replace(&mut link.mac, wanted.mac) != wanted.mac;
            link.set_advertisements(wanted.router_advertisements.as_ref(), cx);
            link.set_addresses(&wanted.addresses, cx);
            link.set_link(wanted.link_up, cx);
            if moved {
                link.restart(cx);
            }
        });
    }

    /// Removes a port: its neighbors are forgotten, and hosts told that it is no router any more.
    pub fn remove_port(&mut self, port: u8, now: u64, out: &mut Vec<Effect>) {
        self.with(port, now, out, |link, cx| {
            link.cease(cx);
            let given: Vec<IpAddr> = link.caches.iter().flat_map(|c| c.table.iter().map(|(ip, _)| ip)).collect();
            given.into_iter().for_each(|ip| link.give(ip, None, cx));
            link.forget(cx, |_, _| true);
            for own in &link.addresses {
                cx.timers.set(port, Timer::Address(own.ip()), None);
            }
        });
        self.links.remove(&port);
    }

    /// The last words before the process ends (RFC 4861 section 6.2.5).
    pub fn stop(&mut self, now: u64, out: &mut Vec<Effect>) {
        let ports: Vec<u8> = self.links.keys().copied().collect();
        for port in ports {
            self.with(port, now, out, |link, cx| link.cease(cx));
        }
    }

    /// The link of a port is up, or down: then its neighbors are forgotten, but for given ones.
    pub fn link(&mut self, port: u8, up: bool, now: u64, out: &mut Vec<Effect>) {
        self.with(port, now, out, |link, cx| link.set_link(up, cx));
    }

    /// A port gets an address.
    pub fn add_address(&mut self, port: u8, address: Address, now: u64, out: &mut Vec<Effect>) {
        self.with(port, now, out, |link, cx| link.add_address(address, cx));
    }

    /// A port loses an address, and with it the neighbors that are no longer on its link.
    pub fn remove_address(&mut self, port: u8, ip: IpAddr, now: u64, out: &mut Vec<Effect>) {
        self.with(port, now, out, |link, cx| link.remove_address(ip, cx));
    }

    /// A frame came in by a port, tags removed. What is not ARP or neighbor discovery for us is ignored.
    pub fn receive(&mut self, port: u8, frame: &[u8], now: u64, out: &mut Vec<Effect>) {
        let Some(ethernet) = Ethernet::parse(frame) else { return };
        let packet = &frame[Ethernet::LEN..];
        self.with(port, now, out, |link, cx| {
            let to = ethernet.destination();
            // Nothing is believed of a group (RFC 1812 section 3.3.2), nor of our own frames that come back.
            if !link.up || !link.is_believable(ethernet.source()) {
                return;
            }
            match ethernet.ethertype() {
                ethertype::ARP if to == [0xff; 6] || link.is_own_mac(to) => link.hear_arp(ethernet, packet, cx),
                ethertype::IPV6 if nd::is_heard_group(to) || link.is_own_mac(to) => link.hear_nd(ethernet, packet, cx),
                _ => {}
            }
        });
    }

    /// A packet waits for a neighbor on a port. Answered at once or later by [`Effect::Resolved`] or [`Effect::Failed`].
    pub fn want(&mut self, port: u8, ip: IpAddr, now: u64, out: &mut Vec<Effect>) {
        self.with(port, now, out, |link, cx| link.want(ip, cx));
    }

    /// A neighbor is given by the operator. One of our own addresses, or a group, cannot be.
    pub fn add_static(&mut self, port: u8, ip: IpAddr, mac: Mac, now: u64, out: &mut Vec<Effect>) {
        self.with(port, now, out, |link, cx| {
            if link.may_be_neighbor(ip) {
                link.give(ip, Some(mac), cx);
            }
        });
    }

    /// A neighbor is given no longer.
    pub fn remove_static(&mut self, port: u8, ip: IpAddr, now: u64, out: &mut Vec<Effect>) {
        self.with(port, now, out, |link, cx| link.give(ip, None, cx));
    }

    /// Does what is due. `used` is asked whether the datapath has sent something to a neighbor since the last time: when the
    /// neighbor becomes stale, and every few seconds from then on. Only of those that effects have told of.
    pub fn tick(&mut self, now: u64, used: &mut dyn FnMut(u8, IpAddr) -> bool, out: &mut Vec<Effect>) {
        while let Some((port, timer)) = self.timers.take(now) {
            self.with(port, now, out, |link, cx| match timer {
                Timer::Neighbor(ip) => link.fire(ip, cx, used),
                Timer::Address(ip) => link.fire_address(ip, cx),
                Timer::Advertisement => link.fire_advertisement(cx),
            });
        }
    }

    /// When [`tick`](Self::tick) is due next.
    pub fn next_tick(&self) -> Option<u64> {
        self.timers.next()
    }

    /// All neighbors, by port, family and address.
    pub fn iter(&self) -> impl Iterator<Item = Row> {
        self.links.iter().flat_map(|(port, link)| {
            link.caches.iter().flat_map(|cache| cache.table.iter()).map(|(ip, entry)| Row {
                port: *port,
                ip,
                mac: entry.mac,
                state: entry.state,
                since: entry.since,
                probes: entry.probes,
                is_router: entry.router,
                is_wanted: entry.wanted,
            })
        })
    }

    /// A port's own addresses, those made by itself included, and whether each is in use.
    pub fn addresses(&self, port: u8) -> impl Iterator<Item = (IpNet, bool)> {
        let link = self.links.get(&port);
        link.into_iter().flat_map(|link| link.addresses.iter().map(|own| (own.net, own.is_usable())))
    }
}
