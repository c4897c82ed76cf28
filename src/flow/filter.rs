//! Which flows are meant: what `show flows` and `flush flows` ask for, compiled so that a worker decides it entry by entry.
//!
//! Knows entries, and no names: those were looked up before. Deciding takes a bounded number of steps, however large a set of
//! addresses or services is, and no memory.

use std::ops::RangeInclusive;

use super::entry::{Body, Entry, Key, mark};
use super::tcp::State;
use super::timeout::Class;
use super::{ORIGINAL, REPLY};
use crate::packet::meta::flag;
use crate::packet::{Meta, NO_RULE};
use crate::wire::protocol;

/// A set of numbers.
#[derive(Clone, Debug, Default)]
pub struct Ranges<T>(Vec<(T, T)>);

impl<T: Copy + Ord> Ranges<T> {
    /// All numbers of some ranges, which may overlap.
    pub fn new(ranges: impl IntoIterator<Item = RangeInclusive<T>>) -> Ranges<T> {
        let mut list: Vec<(T, T)> = ranges.into_iter().map(RangeInclusive::into_inner).collect();
        list.sort_unstable();
        let mut merged: Vec<(T, T)> = Vec::with_capacity(list.len());
        for (first, last) in list {
            match merged.last_mut() {
                Some(before) if first <= before.1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Ranges(merged)
    }

    /// True if `number` is in it.
    pub fn contains(&self, number: T) -> bool {
        let behind = self.0.partition_point(|(first, _)| *first <= number);
        behind > 0 && number <= self.0[behind - 1].1
    }
}

/// Addresses of both families as numbers: the first bit of an address is the highest.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// IPv4: the upper 32 bits.
    pub v4: Ranges<u128>,
    /// IPv6.
    pub v6: Ranges<u128>,
}

impl Addresses {
    fn contain(&self, address: &[u8]) -> bool {
        let mut wide = [0; 16];
        wide[..address.len()].copy_from_slice(address);
        let of = if address.len() == 4 { &self.v4 } else { &self.v6 };
        of.contains(u128::from_be_bytes(wide))
    }
}

/// Services as numbers: `protocol << 16 | destination port`, for ICMP `protocol << 16 | type << 8 | code`.
pub fn service(proto: u8, detail: u16) -> u32 {
    u32::from(proto) << 16 | u32::from(detail)
}

/// A state to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// No answer was seen, or a TCP handshake is not finished: evicted first.
    HalfOpen,
    /// Not TCP, and no answer was seen.
    New,
    /// Not TCP, and an answer was seen.
    Replied,
    /// What its life depends on, in the word of `[conntrack.timeout]`.
    Class(Class),
    /// Both ends are open.
    Established,
    /// An end is in this state.
    End(State),
}

impl Wanted {
    /// Reads a word, in upper or lower case, with `-` or `_`.
    pub fn parse(word: &str) -> Option<Wanted> {
        let word = word.to_lowercase().replace('-', "_");
        let named = |(name, wanted)| (name == word).then_some(wanted);
        let own = [
            ("half_open", Wanted::HalfOpen),
            ("new", Wanted::New),
            ("replied", Wanted::Replied),
            ("established", Wanted::Established),
        ];
        let class = || Class::ALL.iter().find(|class| class.word() == word).map(|class| Wanted::Class(*class));
        let end = || State::ALL.iter().find(|state| state.word().to_lowercase() == word).map(|end| Wanted::End(*end));
        own.into_iter().find_map(named).or_else(end).or_else(class)
    }

    /// All words.
    pub fn words() -> Vec<String> {
        let own = ["half-open", "new", "replied"].into_iter().map(str::to_owned);
        let ends = State::ALL.iter().map(|end| end.word().to_lowercase());
        let all = own.chain(ends).chain(Class::ALL.iter().map(|class| class.word().to_owned()));
        all.map(|word| word.replace('_', "-")).collect()
    }

    fn is(self, proto: u8, body: &Body) -> bool {
        let tcp = proto == protocol::TCP;
        let ends = [body.states.end(ORIGINAL), body.states.end(REPLY)];
        match self {
            Wanted::HalfOpen => body.has(mark::HALF_OPEN),
            Wanted::New => !tcp && !body.has(mark::REPLIED),
            Wanted::Replied => !tcp && body.has(mark::REPLIED),
            Wanted::Class(class) => body.class() == class,
            Wanted::Established => tcp && ends == [State::Established; 2],
            Wanted::End(end) => tcp && ends.contains(&end),
        }
    }
}

/// Flows as somebody asked for them: all that is given must hold. Everything is about a flow's first packet.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The ports where it came in.
    pub from: Option<Ranges<u8>>,
    /// The ports where it left.
    pub to: Option<Ranges<u8>>,
    /// Its source.
    pub source: Option<Addresses>,
    /// Its destination.
    pub destination: Option<Addresses>,
    /// Its source port.
    pub from_port: Option<Ranges<u16>>,
    /// Its destination port.
    pub to_port: Option<Ranges<u16>>,
    /// Its service (`service`).
    pub service: Option<Ranges<u32>>,
    /// Its protocol.
    pub protocol: Option<u8>,
    /// The flow's state.
    pub state: Option<Wanted>,
    /// Slots of the rules that may have admitted it.
    pub rule: Option<Ranges<u16>>,
}

impl Filter {
    /// True if every flow matches.
    pub fn is_open(&self) -> bool {
        let Filter { from, to, source, destination, from_port, to_port, service, protocol, state, rule } = self;
        from.as_ref().or(to.as_ref()).is_none()
            && source.as_ref().or(destination.as_ref()).is_none()
            && from_port.as_ref().or(to_port.as_ref()).or(rule.as_ref()).is_none()
            && service.is_none()
            && protocol.is_none()
            && state.is_none()
    }

    /// True if the flow is meant.
    pub fn matches<E: Entry>(&self, entry: &E) -> bool {
        let (key, body) = (entry.key(), entry.body());
        let proto = key.protocol();
        let (source, destination) = key.addresses();
        let (sport, dport) = key.ports();
        let number = |wanted: &Ranges<u16>, port| has_ports(proto) && wanted.contains(port);
        self.protocol.is_none_or(|wanted| wanted == proto)
            && self.from.as_ref().is_none_or(|ports| ports.contains(body.ingress[ORIGINAL]))
            && self.to.as_ref().is_none_or(|ports| ports.contains(body.out[ORIGINAL]))
            && self.state.is_none_or(|wanted| wanted.is(proto, body))
            && self.rule.as_ref().is_none_or(|slots| body.rule != NO_RULE && slots.contains(body.rule))
            && self.from_port.as_ref().is_none_or(|wanted| number(wanted, sport))
            && self.to_port.as_ref().is_none_or(|wanted| number(wanted, dport))
            && self.service.as_ref().is_none_or(|wanted| wanted.contains(service(proto, detail(key))))
            && self.source.as_ref().is_none_or(|wanted| wanted.contain(source))
            && self.destination.as_ref().is_none_or(|wanted| wanted.contain(destination))
    }

    /// True if a packet is meant that belongs to no flow: if it were the first of one, or of one's answers.
    pub fn matches_packet(&self, facts: &Meta) -> bool {
        let back = Meta { src: facts.dst, dst: facts.src, sport: facts.dport, dport: facts.sport, ..facts.clone() };
        let back = Meta { port: facts.out, out: facts.port, ..back };
        self.matches_first(facts) || self.matches_first(&back)
    }

    fn matches_first(&self, facts: &Meta) -> bool {
        if !facts.any(flag::IPV4 | flag::IPV6) {
            return self.is_open();
        }
        let length = if facts.has(flag::IPV4) { 4 } else { 16 };
        let number = |wanted: &Ranges<u16>, port| has_ports(facts.proto) && wanted.contains(port);
        let detail = match facts.proto {
            protocol::ICMP | protocol::ICMPV6 => u16::from_be_bytes(facts.detail),
            _ => facts.dport,
        };
        self.protocol.is_none_or(|wanted| wanted == facts.proto)
            && self.from.as_ref().is_none_or(|ports| ports.contains(facts.port))
            && self.to.as_ref().is_none_or(|ports| ports.contains(facts.out))
            && self.state.is_none()
            && self.rule.as_ref().is_none_or(|slots| facts.rule != NO_RULE && slots.contains(facts.rule))
            && self.from_port.as_ref().is_none_or(|wanted| number(wanted, facts.sport))
            && self.to_port.as_ref().is_none_or(|wanted| number(wanted, facts.dport))
            && self.service.as_ref().is_none_or(|wanted| wanted.contains(service(facts.proto, detail)))
            && self.source.as_ref().is_none_or(|wanted| wanted.contain(&facts.src[..length]))
            && self.destination.as_ref().is_none_or(|wanted| wanted.contain(&facts.dst[..length]))
    }
}

fn has_ports(proto: u8) -> bool {
    matches!(proto, protocol::TCP | protocol::UDP | protocol::UDP_LITE | protocol::SCTP | protocol::DCCP)
}

/// What of its protocol a flow is of: the destination port, or type and code of its first message.
fn detail<K: Key>(key: &K) -> u16 {
    match key.protocol() {
        protocol::ICMP | protocol::ICMPV6 => u16::from_be_bytes(key.facts().detail),
        _ => key.ports().1,
    }
}

/// How flows are spread over states and rules.
#[derive(Clone, Debug)]
pub struct Counts {
    /// By `place`.
    states: Vec<u64>,
    /// By slot of a rule; the last of those that no rule admitted.
    pub rules: Vec<u64>,
}

/// Places for TCP's states; behind them two for each protocol.
const TCP_STATES: usize = 256;

impl Counts {
    /// Nothing counted, where there are so many rules.
    pub fn new(rules: usize) -> Counts {
        Counts { states: vec![0; TCP_STATES + 512], rules: vec![0; rules + 1] }
    }

    /// Counts a flow.
    pub fn add<E: Entry>(&mut self, entry: &E) {
        let body = entry.body();
        let at = match entry.key().protocol() {
            protocol::TCP => usize::from(body.states.0),
            other => TCP_STATES + usize::from(other) * 2 + usize::from(body.has(mark::REPLIED)),
        };
        self.states[at] += 1;
        let rule = usize::from(body.rule).min(self.rules.len() - 1);
        self.rules[rule] += 1;
    }

    /// Adds what another worker counted.
    pub fn merge(&mut self, other: &Counts) {
        let sum = |to: &mut [u64], from: &[u64]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        sum(&mut self.states, &other.states);
        sum(&mut self.rules, &other.rules);
    }

    /// Protocol, state and number of flows, where there are any.
    pub fn states(&self) -> impl Iterator<Item = (u8, String, u64)> {
        self.states.iter().enumerate().filter(|(_, flows)| **flows > 0).map(|(at, flows)| {
            let (proto, word) = match at.checked_sub(TCP_STATES) {
                None => (protocol::TCP, tcp_state(super::tcp::States(at as u8))),
                Some(at) => ((at / 2) as u8, answer(at % 2 == 1).to_owned()),
            };
            (proto, word, *flows)
        })
    }
}

/// A flow's state in words: of TCP both ends', or one if they agree.
pub fn state<E: Entry>(entry: &E) -> String {
    let body = entry.body();
    match entry.key().protocol() {
        protocol::TCP => tcp_state(body.states),
        _ => answer(body.has(mark::REPLIED)).to_owned(),
    }
}

fn tcp_state(states: super::tcp::States) -> String {
    match (states.end(ORIGINAL).word(), states.end(REPLY).word()) {
        (one, other) if one == other => one.to_owned(),
        (one, other) => format!("{one}/{other}"),
    }
}

fn answer(replied: bool) -> &'static str {
    if replied { "replied" } else { "new" }
}
