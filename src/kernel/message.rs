//! What the kernel tells of links, addresses, next-hop objects and routes, read from its messages (rtnetlink(7), `nexthop.h`).
//! Judges no more than what can be said of one message alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::netlink::{Message, attributes, word};

/// Types and attributes of next-hop objects (`linux/rtnetlink.h`, `linux/nexthop.h`), which libc does not name.
pub mod nexthop {
    #![expect(missing_docs)]
    pub const NEW: u16 = 104;
    pub const DEL: u16 = 105;
    pub const GET: u16 = 106;
    pub(super) const ID: u16 = 1;
    pub(super) const GROUP: u16 = 2;
    pub(super) const BLACKHOLE: u16 = 4;
    pub(super) const OIF: u16 = 5;
    pub(super) const GATEWAY: u16 = 6;
    pub(super) const ENCAP_TYPE: u16 = 7;
    pub(super) const FDB: u16 = 11;
}

/// `RTA_NH_ID` (`linux/rtnetlink.h`).
const RTA_NH_ID: u16 = 30;
/// `RTNH_F_DEAD`: the way's link is administratively down.
const DEAD: u32 = 1;
/// Bytes of `rtmsg`, `ifaddrmsg`, `ifinfomsg`, `nhmsg` and `rtnexthop`.
const ROUTE: usize = 12;
const ADDRESS: usize = 8;
const LINK: usize = 16;
const NEXTHOP: usize = 8;
const WAY: usize = 8;

/// Something the kernel has, has changed, or has no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// An interface.
    Link {
        /// Its index.
        index: u32,
        /// None if it is gone.
        link: Option<Link>,
    },
    /// An address of an interface.
    Address {
        /// The interface.
        index: u32,
        /// The address and the length of its prefix, which tell it from others.
        net: IpNet,
        /// None if it is gone.
        address: Option<Address>,
    },
    /// A next-hop object.
    Object {
        /// Its number.
        id: u32,
        /// None if it is gone.
        object: Option<Object>,
    },
    /// A route of the main table.
    Route {
        /// Where to.
        to: IpNet,
        /// Its metric.
        metric: u32,
        /// The rest.
        entry: Entry,
        /// How it stands to others of that prefix and metric.
        change: Change,
    },
}

/// What happens to a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is put before those there are.
    Prepend,
    /// It is put behind those there are.
    Append,
    /// It takes another's place.
    Replace,
    /// It is gone.
    Delete,
}

/// How an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Administratively.
    pub up: bool,
    /// Whether it also has a carrier.
    pub running: bool,
    /// In bytes.
    pub mtu: u32,
    /// In wire order.
    pub mac: [u8; 6],
}

/// How an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Whether it may be used: it is, or need not be, known to be nobody else's.
    pub usable: bool,
    /// What is on its link: the prefix; the address alone if the prefix is another's or the kernel makes no route for it.
    pub subnet: IpNet,
}

/// What a next-hop object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A way.
    Way(Way),
    /// Other objects, with weights.
    Group(Box<[(u32, u16)]>),
    /// None.
    Blackhole,
    /// What there is no word for here.
    Unsupported,
}

/// A route without prefix and metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What becomes of packets.
    pub kind: Kind,
    /// Who made it: `RTPROT_`.
    pub protocol: u8,
    /// The type of service it is for (IPv4), or 1 if only for some sources (IPv6). 0 is all traffic.
    pub class: u8,
    /// By what.
    pub ways: Ways,
    /// A sum over what else tells routes apart and is of no use here: scope, source address, metrics.
    pub rest: u32,
}

impl Entry {
    /// Whether it is the same route, whatever the state of its links.
    pub fn is(&self, other: &Entry) -> bool {
        let ways = match (&self.ways, &other.ways) {
            (Ways::Own(a), Ways::Own(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b) && a.weight == b.weight)
            }
            (a, b) => a == b,
        };
        let rest = |entry: &Entry| (entry.kind, entry.protocol, entry.class, entry.rest);
        ways && rest(self) == rest(other)
    }
}

/// The types of routes that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs)]
pub enum Kind {
    Unicast,
    Blackhole,
    Unreachable,
    Prohibit,
    Unsupported,
}

/// What a route leads by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ways {
    /// Ways of its own: none, one or several.
    Own(Box<[Way]>),
    /// A next-hop object.
    Object(u32),
}

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The router, if there is one.
    pub via: Option<IpAddr>,
    /// The interface.
    pub index: u32,
    /// Its share, from 1.
    pub weight: u16,
    /// Not to be used, its link being down.
    pub dead: bool,
}

impl Way {
    /// Whether it is the same way, whatever its weight and state.
    pub fn same(&self, other: &Way) -> bool {
        (self.via, self.index) == (other.via, other.index)
    }
}

/// A message is shorter than it has to be, or says what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// Reads a message: none if it is of no concern.
pub fn parse(message: &Message<'_>) -> Result<Option<News>, Unreadable> {
    let news = match message.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => link(message).map(Some),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => address(message),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => route(message),
        nexthop::NEW | nexthop::DEL => object(message).map(Some),
        _ => Some(None),
    };
    news.ok_or(Unreadable)
}

fn link(message: &Message<'_>) -> Option<News> {
    let index = word(message.payload.get(4..)?)?;
    let flags = word(message.payload.get(8..)?)? as i32;
    // A bridge has its own news of its members, under the same type.
    let gone = message.kind == libc::RTM_DELLINK && message.payload[0] == libc::AF_UNSPEC as u8;
    let (up, running) = (flags & libc::IFF_UP != 0, flags & libc::IFF_LOWER_UP != 0);
    let mut link = Link { up, running, mtu: 0, mac: [0; 6] };
    attributes(message.payload, LINK, |kind, value| match kind {
        libc::IFLA_MTU => link.mtu = word(value).unwrap_or_default(),
        libc::IFLA_ADDRESS => link.mac = value.try_into().unwrap_or_default(),
        _ => {}
    })?;
    Some(News::Link { index, link: (!gone).then_some(link) })
}

fn address(message: &Message<'_>) -> Option<Option<News>> {
    let [family, length, flags, _scope] = *message.payload.first_chunk()?;
    let index = word(message.payload.get(4..)?)?;
    if !is_ip(family) {
        return Some(None);
    }
    let (mut flags, mut local, mut peer) = (u32::from(flags), None, None);
    attributes(message.payload, ADDRESS, |kind, value| match kind {
        libc::IFA_LOCAL => local = ip(family, value),
        libc::IFA_ADDRESS => peer = ip(family, value),
        libc::IFA_FLAGS => flags = word(value).unwrap_or(flags),
        _ => {}
    })?;
    // if_addr.h: IFA_ADDRESS is the other end where there are two, and IFA_LOCAL the own.
    let own = local.or(peer)?;
    let net = IpNet::new(own, length).ok()?;
    let alone = peer.is_some_and(|peer| peer != own) || flags & libc::IFA_F_NOPREFIXROUTE != 0;
    // RFC 4429: an optimistic address may be used while it is being tested.
    let tested = flags & libc::IFA_F_TENTATIVE == 0 || flags & libc::IFA_F_OPTIMISTIC != 0;
    let usable = tested && flags & libc::IFA_F_DADFAILED == 0;
    let address = Address { usable, subnet: if alone { IpNet::from(own) } else { net.trunc() } };
    Some(Some(News::Address { index, net, address: (message.kind == libc::RTM_NEWADDR).then_some(address) }))
}

fn object(message: &Message<'_>) -> Option<News> {
    let family = *message.payload.first()?;
    let flags = word(message.payload.get(4..)?)?;
    let mut id = None;
    let mut way = Way { via: None, index: 0, weight: 1, dead: flags & DEAD != 0 };
    let (mut group, mut blackhole, mut strange, mut whole) = (None, false, false, true);
    attributes(message.payload, NEXTHOP, |kind, value| match kind {
        nexthop::ID => id = word(value),
        nexthop::OIF => way.index = word(value).unwrap_or_default(),
        nexthop::GATEWAY => {
            way.via = ip(family, value);
            whole &= way.via.is_some();
        }
        nexthop::GROUP => group = Some(members(value)),
        nexthop::BLACKHOLE => blackhole = true,
        nexthop::ENCAP_TYPE | nexthop::FDB => strange = true,
        _ => {}
    })?;
    let object = match group {
        _ if strange => Object::Unsupported,
        Some(members) => Object::Group(members),
        None if blackhole => Object::Blackhole,
        None => Object::Way(way),
    };
    let object = (message.kind == nexthop::NEW).then_some(object);
    Some(News::Object { id: id.filter(|_| whole)?, object })
}

/// `nexthop_grp`: number, weight less one in two halves, two bytes of nothing.
fn members(value: &[u8]) -> Box<[(u32, u16)]> {
    let member = |m: &[u8]| (u32::from_ne_bytes([m[0], m[1], m[2], m[3]]), u16::from_le_bytes([m[4], m[5]]));
    value.chunks_exact(8).map(member).map(|(id, less)| (id, less.saturating_add(1))).collect()
}

fn route(message: &Message<'_>) -> Option<Option<News>> {
    let [family, length, from, tos, table, protocol, scope, kind] = *message.payload.first_chunk()?;
    let flags = word(message.payload.get(8..)?)?;
    // Routes the kernel derives for one destination are no part of the table.
    if !is_ip(family) || flags & libc::RTM_F_CLONED != 0 {
        return Some(None);
    }
    let (mut table, mut to, mut metric, mut object) = (u32::from(table), None, 0, None);
    let mut way = Way { via: None, index: 0, weight: 1, dead: flags & DEAD != 0 };
    let (mut several, mut strange, mut whole) = (None, false, true);
    let mut rest = crc32fast::Hasher::new();
    rest.update(&[scope]);
    attributes(message.payload, ROUTE, |kind, value| match kind {
        libc::RTA_TABLE => table = word(value).unwrap_or(table),
        libc::RTA_DST => {
            to = ip(family, value);
            whole &= to.is_some();
        }
        libc::RTA_PRIORITY => metric = word(value).unwrap_or_default(),
        libc::RTA_OIF => way.index = word(value).unwrap_or_default(),
        libc::RTA_GATEWAY | libc::RTA_VIA => {
            way.via = router(family, kind, value);
            whole &= way.via.is_some();
        }
        libc::RTA_MULTIPATH => {
            several = ways(family, value, &mut strange);
            whole &= several.is_some();
        }
        libc::RTA_ENCAP_TYPE => strange = true,
        libc::RTA_PREFSRC | libc::RTA_METRICS => rest.update(value),
        RTA_NH_ID => object = word(value),
        _ => {}
    })?;
    if table != u32::from(libc::RT_TABLE_MAIN) {
        return Some(None);
    }
    let v4 = family == libc::AF_INET as u8;
    let any = if v4 { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let to = IpNet::new(to.filter(|_| whole).or(whole.then_some(any))?, length).ok()?.trunc();
    let kind = match kind {
        libc::RTN_UNICAST if !strange => Kind::Unicast,
        libc::RTN_BLACKHOLE => Kind::Blackhole,
        libc::RTN_UNREACHABLE => Kind::Unreachable,
        libc::RTN_PROHIBIT => Kind::Prohibit,
        _ => Kind::Unsupported,
    };
    let ways = match (object, several) {
        (Some(id), _) => Ways::Object(id),
        (None, Some(ways)) => Ways::Own(ways),
        // IPv6 names the loopback interface where a route leads nowhere.
        (None, None) if way.index == 0 || kind != Kind::Unicast => Ways::Own(Box::default()),
        (None, None) => Ways::Own([way].into()),
    };
    // fib_table_insert() tells by these flags where the route went.
    let flag = |flag: i32| i32::from(message.flags) & flag != 0;
    let change = match message.kind {
        libc::RTM_DELROUTE => Change::Delete,
        _ if flag(libc::NLM_F_REPLACE) => Change::Replace,
        _ if v4 && flag(libc::NLM_F_CREATE) && !flag(libc::NLM_F_APPEND | libc::NLM_F_EXCL) => Change::Prepend,
        _ => Change::Append,
    };
    let class = if v4 { tos } else { u8::from(from != 0) };
    Some(Some(News::Route { to, metric, entry: Entry { kind, protocol, class, ways, rest: rest.finalize() }, change }))
}

/// A list of `rtnexthop`: length, flags, weight less one, interface, attributes.
fn ways(family: u8, mut value: &[u8], strange: &mut bool) -> Option<Box<[Way]>> {
    let mut ways = Vec::new();
    while value.len() >= WAY {
        let length = usize::from(u16::from_ne_bytes([value[0], value[1]]));
        let one = value.get(..length)?;
        let index = word(one.get(4..)?)?;
        let mut way = Way { via: None, index, weight: u16::from(one[3]) + 1, dead: u32::from(one[2]) & DEAD != 0 };
        let mut whole = true;
        attributes(one, WAY, |kind, value| match kind {
            libc::RTA_GATEWAY | libc::RTA_VIA => {
                way.via = router(family, kind, value);
                whole &= way.via.is_some();
            }
            libc::RTA_ENCAP_TYPE => *strange = true,
            _ => {}
        })?;
        ways.push(whole.then_some(way)?);
        value = value.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(ways.into())
}

/// `RTA_GATEWAY`, or `RTA_VIA`, which begins with the family.
fn router(family: u8, kind: u16, value: &[u8]) -> Option<IpAddr> {
    if kind == libc::RTA_GATEWAY {
        return ip(family, value);
    }
    let (family, address) = value.split_first_chunk::<2>()?;
    ip(u8::try_from(u16::from_ne_bytes(*family)).ok()?, address)
}

fn ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => value.try_into().ok().map(|bytes: [u8; 4]| bytes.into()),
        libc::AF_INET6 => value.try_into().ok().map(|bytes: [u8; 16]| bytes.into()),
        _ => None,
    }
}

fn is_ip(family: u8) -> bool {
    [libc::AF_INET, libc::AF_INET6].contains(&family.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::netlink::{Request, messages};

    fn bytes(kind: u16, flags: i32, header: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let request = Request::new(kind, flags, header);
        attributes.iter().fold(request, |request, (kind, value)| request.with(*kind, value)).finish(7)
    }

    fn read(datagram: &[u8]) -> Vec<Result<Option<News>, Unreadable>> {
        let mut all = Vec::new();
        messages(datagram, |message| all.push(parse(&message)));
        all
    }

    /// `rtmsg` of a route in the main table made by a daemon.
    fn header(family: i32, length: u8, kind: u8) -> [u8; 12] {
        [family as u8, length, 0, 0, libc::RT_TABLE_MAIN, 11, 0, kind, 0, 0, 0, 0]
    }

    fn samples() -> Vec<Vec<u8>> {
        let ways =
            [[16, 0, 0, 4, 3, 0, 0, 0, 8, 0, 5, 0, 10, 0, 0, 1], [16, 0, 1, 0, 4, 0, 0, 0, 8, 0, 5, 0, 10, 0, 0, 2]];
        let v4 = header(libc::AF_INET, 8, libc::RTN_UNICAST);
        let router = [&[10, 0][..], &[0xfe; 16]].concat();
        vec![
            bytes(libc::RTM_NEWROUTE, libc::NLM_F_CREATE, &v4, &[(1, &[10, 0, 0, 0]), (9, &ways.concat())]),
            bytes(libc::RTM_NEWROUTE, libc::NLM_F_EXCL, &v4, &[(1, &[10, 0, 0, 0]), (4, &[3, 0, 0, 0]), (18, &router)]),
            bytes(libc::RTM_DELROUTE, 0, &header(libc::AF_INET6, 0, 6), &[(6, &[0, 4, 0, 0])]),
            bytes(libc::RTM_NEWADDR, 0, &[2, 24, 128, 0, 3, 0, 0, 0], &[(1, &[10, 0, 0, 1]), (2, &[10, 0, 0, 1])]),
            bytes(libc::RTM_NEWLINK, 0, &[0; 16], &[(4, &[0xdc, 5, 0, 0]), (1, &[2; 6])]),
            bytes(
                nexthop::NEW,
                0,
                &[0; 8],
                &[(1, &[9, 0, 0, 0]), (2, &[1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0])],
            ),
            bytes(nexthop::DEL, 0, &[0; 8], &[(1, &[9, 0, 0, 0])]),
        ]
    }

    #[test]
    fn what_messages_say() {
        let news: Vec<News> =
            samples().iter().map(|sample| read(sample).remove(0).expect("good").expect("news")).collect();
        let way = |host, index, weight, dead| Way { via: Some([10, 0, 0, host].into()), index, weight, dead };
        match &news[0] {
            News::Route { to, metric: 0, entry, change: Change::Prepend } => {
                assert_eq!(to.to_string(), "10.0.0.0/8");
                assert_eq!(entry.ways, Ways::Own([way(1, 3, 5, false), way(2, 4, 1, true)].into()));
            }
            other => panic!("{other:?}"),
        }
        match &news[1] {
            News::Route { entry: Entry { ways: Ways::Own(ways), .. }, change: Change::Append, .. } => {
                assert_eq!(ways[0].via, Some([0xfe; 16].into()));
            }
            other => panic!("{other:?}"),
        }
        match &news[2] {
            News::Route { to, metric: 1024, entry, change: Change::Delete } => {
                assert_eq!((to.to_string().as_str(), entry.kind), ("::/0", Kind::Blackhole));
            }
            other => panic!("{other:?}"),
        }
        let net = "10.0.0.1/24".parse().expect("a prefix");
        let address = Some(Address { usable: true, subnet: "10.0.0.0/24".parse().expect("a prefix") });
        assert_eq!(news[3], News::Address { index: 3, net, address });
        assert_eq!(news[5], News::Object { id: 9, object: Some(Object::Group([(1, 3), (2, 257)].into())) });
        assert_eq!(news[6], News::Object { id: 9, object: None });
    }

    proptest! {
        #[test]
        fn no_message_is_too_broken(
            sample in 0..7_usize,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            kind in 16..110_u16,
        ) {
            let mut bytes = samples().swap_remove(sample);
            changes.iter().for_each(|(at, byte)| *at.get_mut(&mut bytes) = *byte);
            read(&bytes);
            read(&bytes[..cut.index(bytes.len())]);
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            read(&bytes);
        }
    }
}
