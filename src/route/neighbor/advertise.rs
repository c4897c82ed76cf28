//! Router advertisements (RFC 4861 section 6.2): in intervals, when asked, and one last when we cease to be a router.

use std::net::IpAddr;

use super::nd::{ALL_NODES, frame, group_mac};
use super::{Cx, Link, Mac, SECOND, Timer, nanoseconds};
use crate::config::neighbor::RouterAdvertisements;
use crate::wire::{icmpv6, nd};

/// RFC 4861 section 10.
const MAX_INITIAL_RTR_ADVERT_INTERVAL: u64 = 16 * SECOND;
const MAX_INITIAL_RTR_ADVERTISEMENTS: u8 = 3;
const MIN_DELAY_BETWEEN_RAS: u64 = 3 * SECOND;
const MAX_RA_DELAY_TIME: u64 = SECOND / 2;

/// A port's advertisements.
pub struct Advertiser {
    settings: RouterAdvertisements,
    /// How many of the first ones have been sent.
    sent: u8,
    /// When the last one was sent.
    last: Option<u64>,
    /// When the next one is.
    due: Option<u64>,
}

impl Link {
    /// True if the port advertises.
    pub fn advertises(&self) -> bool {
        self.advertiser.as_ref().is_some_and(|advertiser| advertiser.due.is_some())
    }

    /// Sets what is advertised from now on.
    pub fn set_advertisements(&mut self, settings: Option<&RouterAdvertisements>, cx: &mut Cx<'_>) {
        match settings {
            Some(settings) => {
                let says = |settings| (message(settings, self.mac, false), settings.interval);
                if self.advertiser.as_ref().is_some_and(|before| says(&before.settings) == says(settings)) {
                    return;
                }
                let last = self.advertiser.as_ref().and_then(|before| before.last);
                self.advertiser = Some(Advertiser { settings: settings.clone(), sent: 0, last, due: None });
                self.start_advertising(cx);
            }
            None => {
                self.cease(cx);
                self.advertiser = None;
                self.keep_link_local(cx);
            }
        }
    }

    /// The address advertisements come from: a link-local one (RFC 4861 section 4.2).
    fn router_address(&self) -> Option<(Mac, std::net::Ipv6Addr)> {
        let usable = self.addresses.iter().filter(|own| own.is_usable() && own.mac.is_none());
        usable.map(|own| own.ip()).find_map(|ip| match ip {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Some((self.mac, ip)),
            _ => None,
        })
    }

    /// Begins to advertise, if there is something to advertise and an address to do it from; else stops.
    pub fn start_advertising(&mut self, cx: &mut Cx<'_>) {
        let may = self.up && self.router_address().is_some();
        let Some(advertiser) = &mut self.advertiser else { return };
        let soonest = advertiser.last.map_or(cx.now, |last| last + MIN_DELAY_BETWEEN_RAS).max(cx.now);
        advertiser.sent = 0;
        advertiser.due = may.then(|| soonest + cx.chance.below(MAX_RA_DELAY_TIME));
        cx.timers.set(cx.port, Timer::Advertisement, advertiser.due);
    }

    /// A router solicitation came (RFC 4861 section 6.2.6): all are answered together, after a random time and not too often.
    pub fn solicited(&mut self, cx: &mut Cx<'_>) {
        let Some(advertiser) = &mut self.advertiser else { return };
        let soonest = advertiser.last.map_or(cx.now, |last| last + MIN_DELAY_BETWEEN_RAS).max(cx.now);
        let answer = soonest + cx.chance.below(MAX_RA_DELAY_TIME);
        if let Some(due) = advertiser.due.filter(|due| *due > answer) {
            debug_assert!(due > cx.now);
            advertiser.due = Some(answer);
            cx.timers.set(cx.port, Timer::Advertisement, advertiser.due);
        }
    }

    /// The timer of advertisements has run out.
    pub fn fire_advertisement(&mut self, cx: &mut Cx<'_>) {
        let Some(source) = self.router_address() else { return self.start_advertising(cx) };
        let mac = self.mac;
        let Some(advertiser) = &mut self.advertiser else { return };
        cx.send(frame(source, (group_mac(ALL_NODES), ALL_NODES), message(&advertiser.settings, mac, false)));
        advertiser.last = Some(cx.now);
        // RFC 4861 section 6.2.1: MinRtrAdvInterval is a third of the longest, or that itself if it is short.
        let most = nanoseconds(advertiser.settings.interval);
        let least = if most >= 9 * SECOND { most / 3 } else { most };
        let mut wait = least + cx.chance.below(most - least);
        // Section 6.2.4: the first ones come soon after each other.
        if advertiser.sent < MAX_INITIAL_RTR_ADVERTISEMENTS {
            advertiser.sent += 1;
            wait = wait.min(MAX_INITIAL_RTR_ADVERT_INTERVAL);
        }
        advertiser.due = Some(cx.now + wait.max(MIN_DELAY_BETWEEN_RAS));
        cx.timers.set(cx.port, Timer::Advertisement, advertiser.due);
    }

    /// Stops to advertise, and says so (RFC 4861 section 6.2.5).
    pub fn cease(&mut self, cx: &mut Cx<'_>) {
        cx.timers.set(cx.port, Timer::Advertisement, None);
        let (source, mac) = (self.router_address(), self.mac);
        let Some(advertiser) = &mut self.advertiser else { return };
        advertiser.due = None;
        if let (true, Some(_), Some(source)) = (self.up, advertiser.last, source) {
            cx.send(frame(source, (group_mac(ALL_NODES), ALL_NODES), message(&advertiser.settings, mac, true)));
        }
    }
}

fn seconds(time: std::time::Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

/// RFC 4861 section 6.2.3; `last` says that we are a router no longer.
fn message(settings: &RouterAdvertisements, mac: Mac, last: bool) -> Vec<u8> {
    let three = settings.interval * 3;
    let mut message = vec![0; nd::Router::LEN];
    if let Some(mut head) = nd::RouterMut::parse(&mut message) {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        head.set_kind(icmpv6::ROUTER_ADVERTISEMENT);
        head.set_hop_limit(settings.hop_limit);
        head.set_flags(flag(settings.managed, nd::MANAGED) | flag(settings.other, nd::OTHER));
        let lifetime = seconds(settings.lifetime.unwrap_or(three)).min(9000) as u16;
        head.set_lifetime(if last { 0 } else { lifetime });
    }
    message.extend([nd::SOURCE_MAC, 1]);
    message.extend(mac);
    if let Some(mtu) = settings.mtu {
        message.extend([nd::MTU, 1, 0, 0]);
        message.extend((mtu.0 as u32).to_be_bytes());
    }
    for prefix in &settings.prefix {
        let mut option = [0; nd::Prefix::LEN];
        if let Some(mut option) = nd::PrefixMut::parse(&mut option) {
            let flag = |is_set, flag| if is_set { flag } else { 0 };
            option.set_kind(nd::PREFIX);
            option.set_units(4);
            option.set_bits(prefix.prefix.prefix_len());
            option.set_flags(flag(prefix.on_link, nd::ON_LINK) | flag(prefix.autonomous, nd::AUTONOMOUS));
            option.set_valid(seconds(prefix.valid));
            option.set_preferred(seconds(prefix.preferred));
            option.set_prefix(prefix.prefix.addr().octets());
        }
        message.extend(option);
    }
    // RFC 8106 section 5.1.
    if !settings.dns.is_empty() {
        message.extend([nd::DNS, 1 + 2 * settings.dns.len() as u8, 0, 0]);
        message.extend(seconds(three).to_be_bytes());
        message.extend(settings.dns.iter().flat_map(|server| server.octets()));
    }
    message
}
