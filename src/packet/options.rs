//! What a packet's IP options and extension headers ask of a router it passes.
//!
//! Only says what there is; what comes of it is decided elsewhere. Meant is:
//! - Source routes are refused (RFC 7126 sections 4.3 and 4.4; RFC 1812 section 5.2.4.1 leaves it to the configuration).
//! - Router alert (RFC 2113, RFC 2711) is for routers that somebody has asked to heed it (RFC 6398 section 3).
//! - Record route and timestamp pass as they are: nothing is written to them, and no error is made of one that is full, which
//!   RFC 7126 sections 4.5 and 4.7 permit where RFC 1812 section 4.2.2.6 would have them filled in.
//! - All others pass too, IPv6's hop-by-hop options among them, which routers need not read (RFC 8200 section 4).

use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Extension, Ipv6};
use crate::wire::protocol;

use super::decode::MAX_EXTENSIONS;
use super::frame::Frame;
use super::meta::{Meta, flag};

/// The most demanding of a packet's options. Pointers count from the first byte of the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Options {
    /// There are none.
    None,
    /// None that matters here.
    Plain,
    /// It is to be looked at on its way: IPv4 router alert, or IPv6's among the hop-by-hop options.
    RouterAlert,
    /// An IPv4 source route, or an IPv6 routing header of type 0 that has not been followed to its end, which nobody may follow
    /// any more (RFC 5095 section 3).
    SourceRoute {
        /// The option's first byte, or the routing type.
        pointer: u16,
    },
    /// An option's length is wrong.
    Malformed {
        /// The option's first byte, if it has no length or is longer than the header; else the length.
        pointer: u16,
    },
}

/// The options of a decoded packet.
#[inline]
pub fn options(frame: &Frame, meta: &Meta) -> Options {
    if meta.has(flag::OPTIONS) { walk(frame, meta) } else { Options::None }
}

#[inline(never)]
fn walk(frame: &Frame, meta: &Meta) -> Options {
    let Some(header) = frame.bytes().get(meta.l3()..meta.l4()) else { return Options::Plain };
    if meta.has(flag::IPV4) { walk_v4(header) } else { walk_v6(header) }
}

/// An IPv4 header with its options.
fn walk_v4(header: &[u8]) -> Options {
    let mut found = Options::Plain;
    for (at, option) in ipv4::located(header.get(Ipv4::LEN..).unwrap_or_default()) {
        let pointer = (Ipv4::LEN + at) as u16;
        let Ok((kind, body)) = option else { return Options::Malformed { pointer } };
        match kind {
            ipv4::option::LOOSE_SOURCE_ROUTE | ipv4::option::STRICT_SOURCE_ROUTE
                if !matches!(found, Options::SourceRoute { .. }) =>
            {
                found = Options::SourceRoute { pointer };
            }
            // RFC 2113 section 2.1: its length is four.
            ipv4::option::ROUTER_ALERT if body.len() != 2 => return Options::Malformed { pointer: pointer + 1 },
            ipv4::option::ROUTER_ALERT if found == Options::Plain => found = Options::RouterAlert,
            _ => {}
        }
    }
    found
}

/// An IPv6 header with its extension headers, whose form decode has found good.
fn walk_v6(header: &[u8]) -> Options {
    let mut found = Options::Plain;
    let (mut at, Some(mut kind)) = (Ipv6::LEN, Ipv6::parse(header).map(Ipv6::next)) else { return found };
    for _ in 0..MAX_EXTENSIONS {
        let Some(rest) = header.get(at..) else { break };
        let Some(extension) = Extension::parse(rest).filter(|_| ipv6::is_extension(kind)) else { break };
        match (kind, rest) {
            // RFC 8200 section 4.4: with no segment left, it is to be ignored.
            (protocol::ROUTING, [_, _, 0, left, ..]) if *left > 0 => {
                return Options::SourceRoute { pointer: (at + 2) as u16 };
            }
            (protocol::HOP_BY_HOP, _) => {
                let body = rest.get(Extension::LEN..extension.len(kind)).unwrap_or_default();
                // RFC 2711 section 2.1: its length is two.
                if ipv6::options(body).any(|option| matches!(option, Ok((ipv6::ROUTER_ALERT, [_, _])))) {
                    found = Options::RouterAlert;
                }
            }
            _ => {}
        }
        at += if kind == protocol::FRAGMENT { ipv6::Fragment::LEN } else { extension.len(kind) };
        kind = extension.next();
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::decode::{Depth, decode};
    use crate::packet::frame::Heap;
    use crate::testkit::packets::{Packet, batch, give_back};

    fn found(packet: &Packet) -> Options {
        let mut heap = Heap::new(1, 2000);
        let mut batch = batch(&mut heap, [packet.bytes()]);
        decode(&mut batch, Depth::L3);
        assert_eq!(batch.live, 1, "{packet:?}");
        let found = options(&batch.frames[0], &batch.metas[0]);
        give_back(&mut heap, &mut batch);
        found
    }

    const ALERT: [u8; 4] = [0x94, 4, 0, 0];
    const LOOSE: [u8; 8] = [131, 7, 4, 192, 0, 2, 9, 0];
    const STRICT: [u8; 8] = [137, 7, 8, 192, 0, 2, 9, 1];

    #[test]
    fn options_of_ipv4() {
        let with =
            |options: &[&[u8]]| found(&Packet::udp("10.0.0.1:1", "192.0.2.1:2").vlan(3).ip_options(&options.concat()));
        assert_eq!(with(&[]), Options::None);
        // Record route, full; timestamp; traceroute; security; a kind nobody knows.
        for plain in
            [&[7, 7, 8, 1, 2, 3, 4, 1][..], &[68, 8, 5, 0, 0, 0, 0, 0], &[130, 3, 1, 1], &[82, 2, 1, 1], &[99, 4, 0, 0]]
        {
            assert_eq!(with(&[plain]), Options::Plain, "{plain:?}");
            assert_eq!(with(&[plain, &ALERT]), Options::RouterAlert, "{plain:?}");
        }
        assert_eq!(with(&[&[1, 1, 1, 1], &ALERT]), Options::RouterAlert);
        assert_eq!(with(&[&LOOSE]), Options::SourceRoute { pointer: 20 });
        assert_eq!(with(&[&ALERT, &[1], &LOOSE[..7]]), Options::SourceRoute { pointer: 25 });
        assert_eq!(with(&[&STRICT, &ALERT, &LOOSE]), Options::SourceRoute { pointer: 20 });
        assert_eq!(with(&[&[1, 0x94, 3, 0]]), Options::Malformed { pointer: 22 });
        assert_eq!(walk_v4(&[&[0x46; 20][..], &[1, 1, 7, 9]].concat()), Options::Malformed { pointer: 22 });
        assert_eq!(walk_v4(&[&[0x46; 20][..], &[1, 1, 1, 7]].concat()), Options::Malformed { pointer: 23 });
    }

    #[test]
    fn extension_headers_of_ipv6() {
        let udp = || Packet::udp("[2001:db8::1]:1", "[2001:db8::2]:2");
        let alert = [5, 2, 0, 0, 1, 0];
        let routing = |kind: u8, left: u8| {
            let mut body = vec![kind, left, 0, 0, 0, 0];
            body.extend([0x20; 16]);
            body
        };
        assert_eq!(found(&udp()), Options::None);
        assert_eq!(found(&udp().fragment(0, true).payload(&[0; 8])), Options::None);
        assert_eq!(found(&udp().extension(protocol::HOP_BY_HOP, &alert)), Options::RouterAlert);
        assert_eq!(found(&udp().extension(protocol::HOP_BY_HOP, &[1, 4, 5, 2, 0, 0])), Options::Plain);
        // Padding of one byte, then a router alert of the wrong length, which is none.
        assert_eq!(found(&udp().extension(protocol::HOP_BY_HOP, &[0, 5, 1, 0, 0, 0])), Options::Plain);
        // The same option elsewhere is none of a router's.
        assert_eq!(found(&udp().extension(protocol::DESTINATION, &alert)), Options::Plain);
        assert_eq!(found(&udp().extension(protocol::ROUTING, &routing(0, 0))), Options::Plain);
        assert_eq!(found(&udp().extension(protocol::ROUTING, &routing(4, 1))), Options::Plain);
        let routed = udp().extension(protocol::HOP_BY_HOP, &alert).extension(protocol::ROUTING, &routing(0, 1));
        assert_eq!(found(&routed), Options::SourceRoute { pointer: 50 });
        assert_eq!(found(&routed.fragment(0, true).payload(&[0; 8])), Options::SourceRoute { pointer: 50 });
    }

    proptest! {
        #[test]
        fn any_facts_about_any_bytes_are_survived(
            bytes in prop::collection::vec(prop_oneof![0..60u8, any::<u8>()], 0..120),
            v4 in any::<bool>(),
            l4_words in 0..40u8,
        ) {
            let mut heap = Heap::new(1, 200);
            let frame = heap.frame(&bytes).expect("free");
            let flags = flag::OPTIONS | if v4 { flag::IPV4 } else { flag::IPV6 };
            let found = options(&frame, &Meta { flags, l4_words, ..Meta::UNKNOWN });
            prop_assert_ne!(found, Options::None);
            heap.give_back(frame);
        }
    }
}
