//! What the benches have in common: repeatable numbers, the frames of numbered flows, and the rules they meet.
#![allow(dead_code, reason = "each target uses its part")]

use flowgate::flow::entry::{Entry, Key as _, Scope};
use flowgate::flow::table::Table;
use flowgate::packet::Meta;
use flowgate::packet::meta::flag;
use flowgate::packet::steer::{self, Key};
use flowgate::testkit::packets::Packet;
use flowgate::wire::checksum::Update;
use flowgate::wire::protocol;
use flowgate::wire::tcp::{ACK, PSH, SYN};

/// A small generator of repeatable numbers (splitmix64).
pub struct Numbered(pub u64);

impl Numbered {
    #[inline]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// Frames of flows by number, all alike but for source address and source port: 60 bytes over IPv4; 62 (UDP) and 74 (TCP) over
/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Udp,
    Tcp,
    Udp6,
    Tcp6,
}

const FIRST_PORT: u16 = 10_000;
const CLIENT_ISN: u32 = 1_000;
const SERVER_ISN: u32 = 9_000;

impl Kind {
    pub fn is_v4(self) -> bool {
        matches!(self, Kind::Udp | Kind::Tcp)
    }

    pub fn is_tcp(self) -> bool {
        matches!(self, Kind::Tcp | Kind::Tcp6)
    }

    /// The two ends of flow 0.
    fn ends(self) -> (&'static str, &'static str) {
        if self.is_v4() {
            ("10.1.0.0:10000", "192.0.2.1:4789")
        } else {
            ("[2001:db8:1::]:10000", "[2001:db8:2::1]:4789")
        }
    }

    /// A packet of flow 0 in the midst of the flow: of TCP a segment with data, in the window.
    pub fn packet(self) -> Vec<u8> {
        let (client, server) = self.ends();
        let payload: &[u8] = match self {
            Kind::Udp => &[0; 18],
            Kind::Tcp => &[0; 6],
            _ => &[],
        };
        let packet = if self.is_tcp() {
            let flags = if payload.is_empty() { ACK } else { ACK | PSH };
            Packet::tcp(client, server).flags(flags).sequence(CLIENT_ISN + 1).acknowledgment(SERVER_ISN + 1)
        } else {
            Packet::udp(client, server)
        };
        packet.payload(payload).bytes()
    }

    /// What opens flow 0, in order; true for what the server sends.
    pub fn opening(self) -> Vec<(bool, Vec<u8>)> {
        let (client, server) = self.ends();
        if !self.is_tcp() {
            return vec![(false, self.packet()), (true, Packet::udp(server, client).payload(&[0; 18]).bytes())];
        }
        let syn = Packet::tcp(client, server).flags(SYN).sequence(CLIENT_ISN);
        let answer = Packet::tcp(server, client).flags(SYN | ACK).sequence(SERVER_ISN).acknowledgment(CLIENT_ISN + 1);
        let last = Packet::tcp(client, server).flags(ACK).sequence(CLIENT_ISN + 1).acknowledgment(SERVER_ISN + 1);
        vec![(false, syn.bytes()), (true, answer.bytes()), (false, last.bytes())]
    }

    /// A packet of a flow of its own: of TCP a SYN.
    pub fn first(self) -> Vec<u8> {
        let mut opening = self.opening();
        let (_, mut first) = opening.swap_remove(0);
        first.resize(first.len().max(60), 0);
        first
    }

    /// The facts of a client's packet, as far as they tell flows apart.
    pub fn facts(self, flow: u32) -> Meta {
        let family = if self.is_v4() { flag::IPV4 } else { flag::IPV6 };
        let mut facts = Meta {
            proto: if self.is_tcp() { protocol::TCP } else { protocol::UDP },
            flags: family | flag::L4 | flag::PORTS,
            sport: port(flow),
            dport: 4789,
            ..Meta::UNKNOWN
        };
        let frame = self.packet();
        let (addresses, len) = if self.is_v4() { (26, 4) } else { (22, 16) };
        facts.src[..len].copy_from_slice(&frame[addresses..][..len]);
        facts.dst[..len].copy_from_slice(&frame[addresses + len..][..len]);
        facts.src[len - 2..len].copy_from_slice(&(flow as u16).to_be_bytes());
        facts
    }
}

fn port(flow: u32) -> u16 {
    FIRST_PORT.wrapping_add((flow >> 16) as u16)
}

/// Makes frames of a kind those of other flows.
#[derive(Clone, Copy)]
pub struct Stamp {
    /// Where the lower half of the source address, the source port and the transport checksum are.
    host: usize,
    port: usize,
    sum: usize,
    ip_sum: Option<Update>,
    transport_sum: Update,
}

impl Stamp {
    /// From the frame of flow 0.
    pub fn new(kind: Kind, frame: &[u8]) -> Stamp {
        let (host, port) = if kind.is_v4() { (28, 34) } else { (36, 54) };
        let sum = port + if kind.is_tcp() { 16 } else { 6 };
        let at = |at: usize| Update::of(u16::from_be_bytes([frame[at], frame[at + 1]]));
        Stamp { host, port, sum, ip_sum: kind.is_v4().then(|| at(24)), transport_sum: at(sum) }
    }

    /// Writes the number into a frame of the same kind.
    #[inline]
    pub fn write(&self, bytes: &mut [u8], flow: u32) {
        let (host, sport) = (flow as u16, port(flow));
        bytes[self.host..self.host + 2].copy_from_slice(&host.to_be_bytes());
        bytes[self.port..self.port + 2].copy_from_slice(&sport.to_be_bytes());
        if let Some(sum) = self.ip_sum {
            bytes[24..26].copy_from_slice(&sum.word(0, host).finish().to_be_bytes());
        }
        let sum = self.transport_sum.word(0, host).word(FIRST_PORT, sport).finish();
        bytes[self.sum..self.sum + 2].copy_from_slice(&sum.max(1).to_be_bytes());
    }
}

/// `count` rules of which the last decides on all traffic of a kind and no other matches any of it: both prefixes /16 to /32
/// around the traffic's, every second rule with a range of destination ports.
pub fn rules(count: usize, kind: Kind, action: &str) -> String {
    let mut random = Numbered(7);
    let mut text = String::from("[acl]\ndefault = 'deny'\n");
    let mut rule = |source: String, destination: String, service: String, action: &str| {
        text += &format!("[[acl.rule]]\nsource = '{source}'\ndestination = '{destination}'\n");
        text += &format!("service = '{service}'\naction = '{action}'\n");
    };
    let transport = if kind.is_tcp() { "tcp" } else { "udp" };
    for n in 1..count {
        let mut prefix = |first: u32| {
            let len = 16 + random.below(17) as u32;
            let bits =
                (first << 24 | (2 + random.below(254) as u32) << 16 | random.next() as u32 & 0xffff) >> (32 - len);
            format!("{}/{len}", std::net::Ipv4Addr::from(bits << (32 - len)))
        };
        let (source, destination) = (prefix(10), prefix(192));
        let low = random.below(60_000);
        let service = match n % 2 {
            0 => transport.to_owned(),
            _ => format!("{transport}/{low}-{}", low + random.below(5_000)),
        };
        rule(source, destination, service, if random.below(2) == 0 { "allow" } else { "deny" });
    }
    let (source, destination) =
        if kind.is_v4() { ("10.1.0.0/16", "192.0.2.1/32") } else { ("2001:db8:1::/48", "2001:db8:2::1/128") };
    rule(source.into(), destination.into(), transport.into(), action);
    text
}

/// Files the flows 1 to `flows - 1`, each as flow 0, which is in the table already, would be.
pub fn multiply<E: Entry>(table: &mut Table<E>, kind: Kind, flows: u32, key: Key) {
    let mut model = None;
    table.walk(&mut 0, 1, |_, entry| {
        model = Some((*entry.body(), entry.key().scope()));
        true
    });
    let (model, scope): (_, Scope) = model.expect("flow 0");
    let mut facts = kind.facts(0);
    let low = if kind.is_v4() { 2 } else { 14 };
    for flow in 1..flows {
        facts.src[low..low + 2].copy_from_slice(&(flow as u16).to_be_bytes());
        facts.sport = port(flow);
        let hash = steer::hash(&facts, key);
        let body = flowgate::flow::entry::Body { hash, ..model };
        table.insert(E::Key::of(&facts, scope), body, |_| ()).expect("room in the table");
    }
}
