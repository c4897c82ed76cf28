//! What a flow's entry holds: the tuple it is found by, and the rest of what replaying its packets takes.
//!
//! An IPv4 entry is two cache lines, an IPv6 entry three. The first line is what every packet needs; TCP's numbers and what
//! is read at a flow's end are in the second. No pointers and no padding: an entry can be written to a file as it is.
//!
//! A translated flow has two tuples on the wire. Its key is the one its first packet arrived with; what the original direction
//! leaves with is its translation, and the reverse of that, the reply key, is what the way back arrives with.

use bytemuck::{Pod, Zeroable};

use crate::packet::meta::flag;
use crate::packet::translate::Tuple;
use crate::packet::{Meta, SELF_PORT};
use crate::wire::{icmpv4, icmpv6, protocol};

use super::tcp::{States, Tcp};
use super::timeout::Class;
use super::{ORIGINAL, REPLY, Tracking};

/// Where a packet's addresses are valid: part of every key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Routing domain, or the VLAN on a wire.
    pub domain: u16,
    /// Number of the wire, from 1; 0 for what is routed.
    pub wire: u8,
}

/// A tuple by which flows are found.
pub trait Key: Pod + Eq {
    /// Address bytes.
    const ADDRESS: usize;
    /// Bytes of addresses and ports, with which a key begins: those that translation changes.
    const ENDS: usize = 2 * Self::ADDRESS + 4;
    /// The tuple of a packet that has one.
    fn of(meta: &Meta, scope: Scope) -> Self;
    /// The tuple of the way back.
    fn reversed(&self) -> Self;
    /// Equal: compared in words, without a branch for each field.
    fn is(&self, other: &Self) -> bool;
    /// The facts of a packet that has this tuple, as far as it tells them.
    fn facts(&self) -> Meta;
    /// Where it is valid.
    fn scope(&self) -> Scope;
    /// The same tuple somewhere else.
    fn within(self, scope: Scope) -> Self;
    /// Source and destination address, in wire order.
    fn addresses(&self) -> (&[u8], &[u8]);
    /// Source and destination port, or what stands for them.
    fn ports(&self) -> (u16, u16);
    /// Addresses and ports as a packet of this tuple has them; of an echo, its identifier twice.
    fn tuple(&self) -> Tuple;
    /// Protocol number.
    fn protocol(&self) -> u8;
}

macro_rules! key {
    ($(#[$meta:meta])* $name:ident, $len:literal, $family:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
        #[repr(C)]
        pub struct $name {
            /// Source address in wire order.
            pub src: [u8; $len],
            /// Destination address in wire order.
            pub dst: [u8; $len],
            /// Source port, or what stands for it (`ends`), in host order.
            pub sport: u16,
            /// Destination port, likewise.
            pub dport: u16,
            /// `Scope::domain`.
            pub domain: u16,
            /// Protocol number.
            pub proto: u8,
            /// `Scope::wire`.
            pub wire: u8,
        }

        impl Key for $name {
            const ADDRESS: usize = $len;

            #[inline(always)]
            fn of(meta: &Meta, scope: Scope) -> Self {
                let ends = ends(meta);
                let (sport, dport) = (ends as u16, (ends >> 16) as u16);
                let (mut src, mut dst) = ([0; $len], [0; $len]);
                src.copy_from_slice(&meta.src[..$len]);
                dst.copy_from_slice(&meta.dst[..$len]);
                $name { src, dst, sport, dport, domain: scope.domain, proto: meta.proto, wire: scope.wire }
            }

            #[inline(always)]
            fn reversed(&self) -> Self {
                $name { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..*self }
            }

            #[inline(always)]
            fn is(&self, other: &Self) -> bool {
                const WORDS: usize = size_of::<$name>() / 8;
                let (a, b): ([u64; WORDS], [u64; WORDS]) = (bytemuck::cast(*self), bytemuck::cast(*other));
                (0..WORDS).fold(0, |different, at| different | (a[at] ^ b[at])) == 0
            }

            fn facts(&self) -> Meta {
                let mut meta = Meta { flags: flag::$family, proto: self.proto, ..Meta::UNKNOWN };
                meta.src[..$len].copy_from_slice(&self.src);
                meta.dst[..$len].copy_from_slice(&self.dst);
                state_ends(&mut meta, self.sport, self.dport);
                meta
            }

            fn scope(&self) -> Scope {
                Scope { domain: self.domain, wire: self.wire }
            }

            fn within(self, scope: Scope) -> Self {
                $name { domain: scope.domain, wire: scope.wire, ..self }
            }

            fn addresses(&self) -> (&[u8], &[u8]) {
                (&self.src, &self.dst)
            }

            fn ports(&self) -> (u16, u16) {
                (self.sport, self.dport)
            }

            fn protocol(&self) -> u8 {
                self.proto
            }

            #[inline(always)]
            fn tuple(&self) -> Tuple {
                let mut tuple = Tuple { src: [0; 16], dst: [0; 16], sport: self.sport, dport: self.dport };
                tuple.src[..$len].copy_from_slice(&self.src);
                tuple.dst[..$len].copy_from_slice(&self.dst);
                if matches!(self.proto, protocol::ICMP | protocol::ICMPV6) {
                    // One of them is zero.
                    let id = self.sport | self.dport;
                    (tuple.sport, tuple.dport) = (id, id);
                }
                tuple
            }
        }

        const _: () = assert!(core::mem::offset_of!($name, domain) == <$name as Key>::ENDS);
    };
}

key! {
    /// An IPv4 tuple.
    KeyV4, 4, IPV4
}
key! {
    /// An IPv6 tuple.
    KeyV6, 16, IPV6
}

/// Says that a message is not an echo: what stands in the other place is its type and code.
const NO_ECHO: u16 = 0xffff;

/// A packet's ports as they stand in a key, the destination's in the upper half: read at once. An echo request has its identifier as the source, a reply as the destination, so
/// that requests of both ends with the same identifier are two flows; any other ICMP message is a flow by its type and code,
/// which no other type ever answers.
#[inline(always)]
fn ends(meta: &Meta) -> u32 {
    let (sport, dport) = match meta.proto {
        protocol::ICMP | protocol::ICMPV6 => return message_ends(meta),
        _ => (meta.sport, meta.dport),
    };
    u32::from(sport) | u32::from(dport) << 16
}

#[inline(never)]
fn message_ends(meta: &Meta) -> u32 {
    let kind = meta.detail[0];
    let (sport, dport) = match meta.has(flag::ECHO) {
        true if matches!(kind, icmpv4::ECHO_REPLY | icmpv6::ECHO_REPLY) => (0, meta.sport),
        true => (meta.sport, 0),
        false => (u16::from_be_bytes(meta.detail), NO_ECHO),
    };
    u32::from(sport) | u32::from(dport) << 16
}

/// The opposite of `ends`.
fn state_ends(meta: &mut Meta, sport: u16, dport: u16) {
    let (request, reply) = match meta.proto {
        protocol::ICMP => (icmpv4::ECHO_REQUEST, icmpv4::ECHO_REPLY),
        protocol::ICMPV6 => (icmpv6::ECHO_REQUEST, icmpv6::ECHO_REPLY),
        protocol::TCP | protocol::UDP | protocol::UDP_LITE | protocol::SCTP | protocol::DCCP => {
            (meta.sport, meta.dport) = (sport, dport);
            meta.flags |= flag::L4 | flag::PORTS;
            return;
        }
        _ => {
            meta.flags |= flag::L4;
            return;
        }
    };
    meta.flags |= flag::L4;
    if dport == NO_ECHO {
        meta.detail = sport.to_be_bytes();
        return;
    }
    meta.flags |= flag::ECHO | flag::PORTS;
    let (id, kind) = if dport == 0 { (sport, request) } else { (dport, reply) };
    (meta.sport, meta.dport, meta.detail) = (id, id, [kind, 0]);
}

/// Bits of [`Body::flags`].
pub mod mark {
    /// The entry is in use.
    pub const USED: u8 = 0x01;
    /// A packet of the reply direction was seen.
    pub const REPLIED: u8 = 0x02;
    /// It counts against the budget of half-open flows.
    pub const HALF_OPEN: u8 = 0x04;
    /// Numbers are translated: `delta` is in use.
    pub const PROXIED: u8 = 0x08;
    /// It counts against limits.
    pub const LIMITED: u8 = 0x10;
    /// Addresses or ports are translated: `translation` is in use.
    pub const TRANSLATED: u8 = 0x20;
    /// Proxied, and the client was told of window scaling.
    pub const SCALED: u8 = 0x40;
    /// Proxied, and the server has not answered yet: `delta` is our own sequence number.
    pub const CONNECTING: u8 = 0x80;
}

/// All of an entry but its key. By direction: `[ORIGINAL, REPLY]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Body {
    /// By direction: how packets leave, an index into the pipeline's adjacencies.
    pub adjacency: [u32; 2],
    /// By direction: bytes of frames.
    pub bytes: [u64; 2],
    /// By direction: packets, the lower 32 bits.
    pub packets: [u32; 2],
    /// When it is forgotten, in ticks.
    pub expires: u32,
    /// Of the rules it was judged by.
    pub generation: u16,
    /// Slot of the rule that admitted it, or `NO_RULE`.
    pub rule: u16,
    /// By direction: the port packets are expected on.
    pub ingress: [u8; 2],
    /// By direction: the port packets leave by.
    pub out: [u8; 2],
    /// TCP: both ends' states.
    pub states: States,
    /// `mark::*` bits.
    pub flags: u8,
    /// `Class` by number.
    pub class: u8,
    /// `Tracking` by number.
    pub tracking: u8,
    /// TCP's numbers.
    pub tcp: Tcp,
    /// The hash it is filed under.
    pub hash: u32,
    /// When it began, in ticks.
    pub created: u32,
    /// What is added to sequence numbers of the reply direction.
    pub delta: u32,
    /// By direction: packets, the next 16 bits. Of a proxied flow, what is added to the timestamps of the reply direction.
    pub packets_high: [u16; 2],
    /// Of an IPv4 entry: what the original direction's addresses and ports are translated to, as a key begins. Read and
    /// written by [`Entry::translation`] and [`Entry::set_translation`].
    pub translation: [u8; 12],
}

const _: () = assert!(size_of::<Body>() == 112);

impl Body {
    /// Packets of a direction.
    pub fn packets(&self, direction: usize) -> u64 {
        let high = if self.has(mark::PROXIED) { 0 } else { self.packets_high[direction] };
        u64::from(self.packets[direction]) | u64::from(high) << 32
    }

    /// Counts a packet of `bytes` bytes.
    #[inline(always)]
    pub fn count(&mut self, direction: usize, bytes: usize) {
        let (packets, carry) = self.packets[direction].overflowing_add(1);
        self.packets[direction] = packets;
        self.bytes[direction] += bytes as u64;
        if carry && !self.has(mark::PROXIED) {
            self.packets_high[direction] = self.packets_high[direction].wrapping_add(1);
        }
    }

    /// Of a proxied flow: what is added to the server's timestamps.
    pub fn stamp(&self) -> u32 {
        u32::from(self.packets_high[0]) | u32::from(self.packets_high[1]) << 16
    }

    /// Sets [`stamp`](Body::stamp).
    pub fn set_stamp(&mut self, stamp: u32) {
        self.packets_high = [stamp as u16, (stamp >> 16) as u16];
    }

    /// What its life depends on.
    #[inline(always)]
    pub fn class(&self) -> Class {
        Class::of(self.class)
    }

    /// How closely it is held to its protocol.
    #[inline(always)]
    pub fn tracking(&self) -> Tracking {
        match self.tracking {
            0 => Tracking::Strict,
            1 => Tracking::Normal,
            2 => Tracking::Loose,
            _ => Tracking::Sloppy,
        }
    }

    /// True if all of `marks` are set.
    #[inline(always)]
    pub fn has(&self, marks: u8) -> bool {
        self.flags & marks == marks
    }
}

/// An entry.
pub trait Entry: Pod {
    /// What it is found by.
    type Key: Key;
    /// Its key.
    fn key(&self) -> &Self::Key;
    /// The rest.
    fn body(&self) -> &Body;
    /// The rest.
    fn body_mut(&mut self) -> &mut Body;
    /// An entry of these, whose flow is not translated.
    fn new(key: Self::Key, body: Body) -> Self;
    /// The same with another key and body; the translation stays.
    fn with(&self, key: Self::Key, body: Body) -> Self;

    /// Bytes of the translation, of which the first [`Key::ENDS`] count.
    #[doc(hidden)]
    fn room(&self) -> &[u8];
    /// Likewise.
    #[doc(hidden)]
    fn room_mut(&mut self) -> &mut [u8];

    /// The tuple that packets of the original direction leave with: the key, unless the flow is translated.
    #[inline(always)]
    fn translated(&self) -> Self::Key {
        let mut key = *self.key();
        if self.body().has(mark::TRANSLATED) {
            bytemuck::bytes_of_mut(&mut key)[..Self::Key::ENDS].copy_from_slice(&self.room()[..Self::Key::ENDS]);
        }
        key
    }

    /// [`translated`](Entry::translated), if the flow is.
    fn translation(&self) -> Option<Self::Key> {
        self.body().has(mark::TRANSLATED).then(|| self.translated())
    }

    /// Makes packets of the original direction leave with the addresses and ports of `tuple`. Not for an entry that is in a
    /// table, which has filed it by what it was.
    fn set_translation(&mut self, tuple: Self::Key) {
        let same = tuple.within(self.key().scope()) == *self.key();
        self.room_mut().fill(0);
        self.body_mut().flags &= !mark::TRANSLATED;
        if !same {
            self.room_mut()[..Self::Key::ENDS].copy_from_slice(&bytemuck::bytes_of(&tuple)[..Self::Key::ENDS]);
            self.body_mut().flags |= mark::TRANSLATED;
        }
    }

    /// The tuple that packets of the way back arrive with.
    #[inline(always)]
    fn reply_key(&self) -> Self::Key {
        self.translated().reversed()
    }

    /// Addresses and ports that packets of a direction leave with.
    #[inline(always)]
    fn leaves(&self, direction: usize) -> Tuple {
        if direction == ORIGINAL { self.translated().tuple() } else { self.key().reversed().tuple() }
    }
}

/// An IPv4 flow: two cache lines.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct EntryV4 {
    key: KeyV4,
    body: Body,
}

/// An IPv6 flow: three cache lines.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct EntryV6 {
    key: KeyV6,
    body: Body,
    /// What the original direction's addresses and ports are translated to, as a key begins.
    translation: [u8; 40],
}

const _: () = assert!(size_of::<EntryV4>() == 128 && size_of::<EntryV6>() == 192);

macro_rules! entry {
    ($entry:ident, $key:ident, $($room:ident).+ $(, $rest:ident: $value:expr)?) => {
        impl Entry for $entry {
            type Key = $key;
            #[inline(always)]
            fn key(&self) -> &$key {
                &self.key
            }
            #[inline(always)]
            fn body(&self) -> &Body {
                &self.body
            }
            #[inline(always)]
            fn body_mut(&mut self) -> &mut Body {
                &mut self.body
            }
            fn new(key: $key, body: Body) -> Self {
                $entry { key, body: Body { translation: [0; 12], flags: body.flags & !mark::TRANSLATED, ..body } $(, $rest: $value)? }
            }
            fn with(&self, key: $key, body: Body) -> Self {
                let translated = self.body.flags & mark::TRANSLATED;
                let flags = body.flags & !mark::TRANSLATED | translated;
                $entry { key, body: Body { translation: self.body.translation, flags, ..body } $(, $rest: self.$rest)? }
            }
            #[inline(always)]
            fn room(&self) -> &[u8] {
                &self.$($room).+
            }
            #[inline(always)]
            fn room_mut(&mut self) -> &mut [u8] {
                &mut self.$($room).+
            }
        }
    };
}

entry!(EntryV4, KeyV4, body.translation);
entry!(EntryV6, KeyV6, translation, translation: [0; 40]);

/// The facts by which an entry's flow is judged again: those of its first packet.
pub fn facts<E: Entry>(entry: &E) -> Meta {
    facts_of(entry, entry.key())
}

/// The facts of the first packet of its way back, as it arrives.
pub fn reply_facts<E: Entry>(entry: &E) -> Meta {
    // An echo reply is told by its key alone; a reversed type and code are those of no message.
    let there = facts_of(entry, &entry.translated());
    Meta {
        detail: if there.has(flag::ECHO) { entry.reply_key().facts().detail } else { there.detail },
        ..reversed(&there, entry.body().ingress[REPLY])
    }
}

fn facts_of<E: Entry>(entry: &E, key: &E::Key) -> Meta {
    let body = entry.body();
    let mut facts = Meta { port: body.ingress[ORIGINAL], hash: body.hash, ..key.facts() };
    let scope = key.scope();
    facts.domain = scope.domain;
    if scope.wire != 0 && scope.domain != 0 {
        facts.vlan = scope.domain - 1;
        facts.flags |= flag::VLAN;
    }
    if facts.port == SELF_PORT {
        // By which interface the kernel sends it.
        facts.vlan = body.out[ORIGINAL].into();
    }
    facts
}

/// The facts of the first packet of the way back of `facts`, which left by `out`.
#[inline]
pub fn reversed(facts: &Meta, out: u8) -> Meta {
    Meta { src: facts.dst, dst: facts.src, sport: facts.dport, dport: facts.sport, port: out, ..facts.clone() }
}

/// The other direction.
#[inline(always)]
pub fn opposite(direction: usize) -> usize {
    if direction == ORIGINAL { REPLY } else { ORIGINAL }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::decode::{Depth, decode};
    use crate::packet::frame::Heap;
    use crate::testkit::packets::{Packet, batch, give_back};

    fn meta(packet: &Packet) -> Meta {
        let mut heap = Heap::new(1, 10_000);
        let mut batch = batch(&mut heap, [&packet.bytes()[..]]);
        decode(&mut batch, Depth::L4);
        give_back(&mut heap, &mut batch);
        batch.metas[0].clone()
    }

    const WIRE: Scope = Scope { domain: 0, wire: 1 };

    #[test]
    fn a_reply_has_the_reversed_key_and_facts_come_back() {
        for (there, back) in [
            (Packet::udp("10.0.0.1:5", "10.0.0.2:6"), Packet::udp("10.0.0.2:6", "10.0.0.1:5")),
            (Packet::echo_request("10.0.0.1", "10.0.0.2", 5, 1), Packet::echo_reply("10.0.0.2", "10.0.0.1", 5, 1)),
            (Packet::ip("10.0.0.1", "10.0.0.2", 47), Packet::ip("10.0.0.2", "10.0.0.1", 47)),
        ] {
            let (there, back) = (meta(&there), meta(&back));
            let key = KeyV4::of(&there, WIRE);
            assert_eq!(key.reversed(), KeyV4::of(&back, WIRE));
            assert_ne!(key, KeyV4::of(&there, Scope { domain: 4, wire: 1 }));
            let facts = key.facts();
            assert_eq!(
                (facts.src, facts.dst, facts.sport, facts.dport, facts.proto, facts.detail),
                (there.src, there.dst, there.sport, there.dport, there.proto, there.detail)
            );
        }
        let (there, back) = (
            Packet::echo_request("2001:db8::1", "2001:db8::2", 7, 1),
            Packet::echo_reply("2001:db8::2", "2001:db8::1", 7, 1),
        );
        assert_eq!(KeyV6::of(&meta(&there), WIRE).reversed(), KeyV6::of(&meta(&back), WIRE));
    }

    #[test]
    fn a_translated_flow_has_two_tuples() {
        for (there, left, back) in [
            (
                Packet::udp("10.0.0.1:5", "10.0.0.2:6"),
                Packet::udp("192.0.2.1:9", "10.0.0.3:7"),
                Packet::udp("10.0.0.3:7", "192.0.2.1:9"),
            ),
            (
                Packet::echo_request("10.0.0.1", "10.0.0.2", 5, 1),
                Packet::echo_request("192.0.2.1", "10.0.0.2", 8, 1),
                Packet::echo_reply("10.0.0.2", "192.0.2.1", 8, 1),
            ),
        ] {
            let (there, left, back) = (meta(&there), meta(&left), meta(&back));
            let key = KeyV4::of(&there, WIRE);
            let mut entry = EntryV4::new(key, Body { ingress: [3, 4], ..Body::zeroed() });
            assert_eq!((entry.reply_key(), entry.translation()), (key.reversed(), None));
            let plain = reply_facts(&entry);
            assert_eq!((plain.src, plain.dst, plain.sport, plain.port), (there.dst, there.src, there.dport, 4));
            entry.set_translation(KeyV4::of(&left, WIRE));
            assert_eq!(entry.translation(), Some(KeyV4::of(&left, WIRE)));
            assert_eq!(entry.reply_key(), KeyV4::of(&back, WIRE));
            assert_eq!((entry.leaves(ORIGINAL), entry.leaves(REPLY)), (Tuple::of(&left), Tuple::of(&there).reversed()));
            let (facts, reply) = (facts(&entry), reply_facts(&entry));
            assert_eq!((facts.src, facts.sport, facts.port), (there.src, there.sport, 3));
            assert_eq!(
                (reply.src, reply.dst, reply.sport, reply.dport, reply.detail, reply.port),
                (back.src, back.dst, back.sport, back.dport, back.detail, 4)
            );
            // Elsewhere it is translated likewise; new ones are not.
            let moved = entry.with(key.within(Scope { domain: 7, wire: 2 }), *entry.body());
            assert_eq!(moved.reply_key(), KeyV4::of(&back, Scope { domain: 7, wire: 2 }));
            assert_eq!(EntryV4::new(key, *entry.body()).reply_key(), key.reversed());
            entry.set_translation(key);
            assert_eq!((entry.translation(), entry.body().flags), (None, 0));
        }
        let key = KeyV6 { src: [1; 16], dst: [2; 16], sport: 3, dport: 4, domain: 5, proto: 6, wire: 7 };
        let left = KeyV6 { src: [9; 16], dst: [8; 16], sport: 7, dport: 6, ..key };
        let mut entry = EntryV6::new(key, Body::zeroed());
        entry.set_translation(left);
        assert_eq!((entry.reply_key(), *entry.key()), (left.reversed(), key));
        assert_eq!(entry.with(key, Body::zeroed()).reply_key(), left.reversed());
    }

    #[test]
    fn requests_of_both_ends_are_two_flows() {
        let one = meta(&Packet::echo_request("10.0.0.1", "10.0.0.2", 5, 1));
        let other = meta(&Packet::echo_request("10.0.0.2", "10.0.0.1", 5, 1));
        assert_ne!(KeyV4::of(&one, WIRE).reversed(), KeyV4::of(&other, WIRE));
        let timestamp = meta(&Packet::icmp("10.0.0.1", "10.0.0.2", 13, 0, [0, 5, 0, 0]));
        let facts = KeyV4::of(&timestamp, WIRE).facts();
        assert_eq!((facts.detail, facts.has(flag::ECHO)), ([13, 0], false));
    }

    #[test]
    fn packets_are_counted_beyond_32_bits() {
        let mut body = Body { packets: [u32::MAX, 0], ..Body::zeroed() };
        body.count(ORIGINAL, 60);
        assert_eq!((body.packets(ORIGINAL), body.packets(REPLY), body.bytes), (1 << 32, 0, [60, 0]));
    }
}
