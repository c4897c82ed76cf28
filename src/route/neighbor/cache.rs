//! A port's neighbor caches: who may be in them, how entries come and go, and what is told of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::nud::{Act, Answer, Entry, State};
use super::table::{Class, Table};
use super::{Chance, Cx, Effect, Link, Mac, SECOND, Timer, Times};

/// Neighbors of one family, and how many questions to all may still be asked.
#[derive(Default)]
pub struct Cache {
    pub table: Table,
    /// Questions in hand, in billionths, and when they were counted; none before the first.
    tokens: Option<(u64, u64)>,
    /// When it was last said that the cache is full.
    noted: Option<u64>,
}

impl Cache {
    /// Takes one of the questions to all (RFC 6583 section 7.1); a tenth of a second's worth may be asked in one go.
    fn token(&mut self, now: u64, rate: u64) -> bool {
        let most = (rate / 10).max(3).saturating_mul(SECOND);
        let (tokens, at) = self.tokens.unwrap_or((most, now));
        let earned = now.saturating_sub(at).saturating_mul(rate);
        let tokens = tokens.saturating_add(earned).min(most);
        let left = tokens.checked_sub(SECOND);
        self.tokens = Some((left.unwrap_or(tokens), now));
        left.is_some()
    }

    /// Makes room for one more that is known: the one unused longest goes. Those in use stay.
    fn room(&mut self, cx: &mut Cx<'_>) -> bool {
        if self.table.known() < cx.times.limit {
            return true;
        }
        let Some(oldest) = self.table.oldest(Class::Idle, None) else { return false };
        self.forget(oldest, cx);
        true
    }

    /// Forgets an entry; one that is being asked for has failed.
    fn forget(&mut self, ip: IpAddr, cx: &mut Cx<'_>) {
        let Some(entry) = self.table.remove(ip) else { return };
        cx.timers.set(cx.port, Timer::Neighbor(ip), None);
        if entry.state == State::Incomplete {
            cx.out.push(Effect::Failed { port: cx.port, ip });
        }
        if entry.wanted {
            cx.out.push(Effect::Gone { port: cx.port, ip });
        }
    }

    /// Puts back an entry that was `before`, and tells what became of it.
    fn settle(&mut self, ip: IpAddr, before: Option<&Entry>, after: Entry, cx: &mut Cx<'_>) {
        let port = cx.port;
        cx.timers.set(port, Timer::Neighbor(ip), after.due);
        match after.mac {
            Some(mac)
                if after.wanted
                    && before.is_none_or(|b| (b.mac, b.router, b.wanted) != (after.mac, after.router, true)) =>
            {
                cx.out.push(Effect::Resolved { port, ip, mac, is_router: after.router });
            }
            None if after.state == State::Silent && before.is_some_and(|b| b.state != State::Silent) => {
                cx.out.push(Effect::Failed { port, ip });
            }
            _ => {}
        }
        self.table.put(ip, after);
        if self.table.count(Class::Silent) > cx.times.unresolved
            && let Some(oldest) = self.table.oldest(Class::Silent, Some(ip))
        {
            self.forget(oldest, cx);
        }
    }
}

impl Link {
    pub fn cache(&mut self, ip: IpAddr) -> &mut Cache {
        &mut self.caches[usize::from(ip.is_ipv6())]
    }

    /// True if the address may be a neighbor's at all: RFC 1812 section 3.3.2 and RFC 4861 section 7.1 believe no group.
    pub fn may_be_neighbor(&self, ip: IpAddr) -> bool {
        let sane = match ip {
            // 0/8 (RFC 1122 section 3.2.1.3), loopback, class D and E.
            IpAddr::V4(ip) => !matches!(ip.octets()[0], 0 | 127 | 224..) && !self.is_broadcast(ip),
            IpAddr::V6(ip) => !(ip.is_multicast() || ip.is_unspecified() || ip.is_loopback()),
        };
        sane && self.own(ip).is_none()
    }

    /// The first and the last address of a subnet are nobody's (RFC 1812 section 4.2.3.1), but for RFC 3021's pairs.
    fn is_broadcast(&self, ip: Ipv4Addr) -> bool {
        self.addresses.iter().any(|own| match own.net {
            IpNet::V4(net) => net.prefix_len() < 31 && (ip == net.broadcast() || ip == net.network()),
            IpNet::V6(_) => false,
        })
    }

    /// True for an address under a subnet of the port, and for link-local ones where it has IPv6.
    pub fn is_on_link(&self, ip: IpAddr) -> bool {
        let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        self.addresses.iter().any(|own| own.net.contains(&ip) || link_local && own.net.addr().is_ipv6())
    }

    /// True if the port may hear of this neighbor: it is on the link, or somebody asked for it or gave it.
    pub fn is_credible(&mut self, ip: IpAddr) -> bool {
        self.may_be_neighbor(ip) && (self.is_on_link(ip) || self.cache(ip).table.get(ip).is_some())
    }

    /// Changes an entry that is there.
    fn change(&mut self, ip: IpAddr, cx: &mut Cx<'_>, change: impl FnOnce(&mut Entry, u64, &Times, &mut Chance)) {
        let cache = self.cache(ip);
        let Some(before) = cache.table.remove(ip) else { return };
        let mut after = before.clone();
        change(&mut after, cx.now, cx.times, cx.chance);
        if before.mac.is_none() && after.mac.is_some() && !cache.room(cx) {
            cache.table.put(ip, before);
            cache.forget(ip, cx);
            self.note_full(ip, cx);
            return;
        }
        cache.settle(ip, Some(&before), after, cx);
    }

    fn note_full(&mut self, ip: IpAddr, cx: &mut Cx<'_>) {
        let (now, name) = (cx.now, self.name.clone());
        let cache = self.cache(ip);
        if cache.noted.is_none_or(|noted| now.saturating_sub(noted) >= 60 * SECOND) {
            cache.noted = Some(now);
            let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
            let limit = cx.times.limit;
            let note =
                format!("{name}: {limit} {family} neighbors are in use, the limit: {ip} is not added (neighbor.limit)");
            cx.out.push(Effect::Note(note));
        }
    }

    /// A packet waits for a neighbor.
    pub fn want(&mut self, ip: IpAddr, cx: &mut Cx<'_>) {
        let port = cx.port;
        let is_possible = self.up && self.may_be_neighbor(ip);
        let cache = self.cache(ip);
        match cache.table.get(ip).map(|entry| (entry.state, entry.mac, entry.router)) {
            None if !is_possible => cx.out.extend([Effect::Failed { port, ip }, Effect::Gone { port, ip }]),
            None => {
                // RFC 6583 section 7.1: of those being asked for the oldest goes, which had the most time to answer.
                if cache.table.count(Class::Asked) >= cx.times.unresolved
                    && let Some(oldest) = cache.table.oldest(Class::Asked, None)
                {
                    cache.forget(oldest, cx);
                }
                cache.table.put(ip, Entry::incomplete(cx.now));
                self.fire(ip, cx, &mut |_, _| true);
            }
            Some((State::Silent, ..)) => cx.out.push(Effect::Failed { port, ip }),
            Some((_, Some(mac), is_router)) => {
                // It is told of again, or now for the first time.
                if cache.table.get(ip).is_some_and(|entry| entry.wanted) {
                    cx.out.push(Effect::Resolved { port, ip, mac, is_router });
                }
                self.change(ip, cx, |entry, now, times, _| {
                    entry.wanted = true;
                    entry.used(now, times);
                });
            }
            Some((_, None, _)) => {}
        }
    }

    /// A neighbor's timer has run out.
    pub fn fire(&mut self, ip: IpAddr, cx: &mut Cx<'_>, used: &mut dyn FnMut(u8, IpAddr) -> bool) {
        let cache = self.cache(ip);
        let Some(before) = cache.table.remove(ip) else { return };
        let mut after = before.clone();
        let act = after.fire(cx.now, cx.times, || before.wanted && used(cx.port, ip));
        if act == Act::Forget {
            cache.table.put(ip, before);
            return cache.forget(ip, cx);
        }
        let may_ask = act == Act::AskAll && cache.token(cx.now, cx.times.rate);
        cache.settle(ip, Some(&before), after, cx);
        match act {
            Act::AskAll if may_ask => self.ask(ip, None, cx),
            Act::Ask(mac) => self.ask(ip, Some(mac), cx),
            _ => {}
        }
    }

    fn ask(&mut self, ip: IpAddr, to: Option<Mac>, cx: &mut Cx<'_>) {
        let question = match ip {
            IpAddr::V4(ip) => self.arp_request(ip, to),
            IpAddr::V6(ip) => self.solicitation(ip, to),
        };
        if let Some(frame) = question {
            cx.send(frame);
        }
    }

    /// A neighbor has told its MAC in passing. If it `asks_us` it gets an entry, if there is room without sending another away;
    /// nobody is told of it before a packet wants to go there, so that a flood of questions changes no table but this one.
    pub fn told(&mut self, ip: IpAddr, mac: Mac, asks_us: bool, cx: &mut Cx<'_>) {
        let cache = self.cache(ip);
        if cache.table.get(ip).is_some() {
            self.change(ip, cx, |entry, now, times, _| entry.told(mac, now, times));
        } else if asks_us && cache.table.known() < cx.times.limit {
            let mut entry = Entry { wanted: false, ..Entry::incomplete(cx.now) };
            entry.told(mac, cx.now, cx.times);
            cache.settle(ip, None, entry, cx);
        }
    }

    /// A neighbor has answered.
    pub fn answered(&mut self, ip: IpAddr, answer: Answer, cx: &mut Cx<'_>) {
        self.change(ip, cx, |entry, now, times, chance| entry.answered(answer, now, times, chance));
    }

    /// A neighbor says by a router solicitation that it is no router (RFC 4861 section 6.2.6).
    pub fn is_host(&mut self, ip: IpAddr, cx: &mut Cx<'_>) {
        self.change(ip, cx, |entry, _, _, _| entry.router = false);
    }

    /// A neighbor is given, or no longer.
    pub fn give(&mut self, ip: IpAddr, mac: Option<Mac>, cx: &mut Cx<'_>) {
        let cache = self.cache(ip);
        match mac {
            Some(mac) => {
                let before = cache.table.remove(ip);
                cache.settle(ip, before.as_ref(), Entry::given(mac, cx.now), cx);
            }
            None if cache.table.get(ip).is_some_and(|entry| entry.state == State::Static) => cache.forget(ip, cx),
            None => {}
        }
    }

    /// Forgets the neighbors that are not given and that `which` names.
    pub fn forget(&mut self, cx: &mut Cx<'_>, which: impl Fn(&Link, IpAddr) -> bool) {
        let learned = |(ip, entry): (IpAddr, &Entry)| (entry.state != State::Static).then_some(ip);
        let all: Vec<IpAddr> = self.caches.iter().flat_map(|cache| cache.table.iter().filter_map(learned)).collect();
        for ip in all {
            if which(self, ip) {
                self.cache(ip).forget(ip, cx);
            }
        }
    }

    /// The address a question comes from: one under the target's subnet, else any; a link-local one for IPv6 if there is one,
    /// as no neighbor can doubt that it is on the link (RFC 4861 section 7.2.2 leaves the choice). Of a virtual router's
    /// addresses none if it can be helped (RFC 9568 section 8.1).
    pub fn source_for(&self, target: IpAddr) -> Option<(IpAddr, Mac)> {
        let usable = self.addresses.iter().filter(|own| own.is_usable() && own.ip().is_ipv4() == target.is_ipv4());
        let fitness = |own: &&super::address::Own| {
            let link_local = matches!(own.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
            (own.mac.is_none(), link_local, own.net.contains(&target))
        };
        // The first of equals.
        let best = usable.rev().max_by_key(fitness)?;
        Some((best.ip(), best.mac.unwrap_or(self.mac)))
    }
}

/// The link-local address of a MAC (RFC 4291 appendix A).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
