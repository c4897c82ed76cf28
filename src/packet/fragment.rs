//! One fragment: which part of which datagram it is (`Piece`), and what its datagram's first fragment says of all of them
//! (`Facts`), which travels with a frame from the worker that has the fragments together to the flow's owner.
//!
//! Reads headers that decode has found good; keeps no state.

use super::frame::{Frame, rx};
use super::meta::{Meta, flag};
use super::steer::extensions;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::Ipv6;

/// The part of a datagram that a fragment carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The identification all fragments of the datagram share.
    pub id: u32,
    /// First byte, counted from the front of what was cut into fragments; a multiple of eight.
    pub start: usize,
    /// Behind its last byte.
    pub end: usize,
    /// False for the last fragment.
    pub more: bool,
}

impl Piece {
    /// The piece that a decoded fragment is; `None` of what is none.
    pub fn of(meta: &Meta, frame: &Frame) -> Option<Piece> {
        let packet = frame.bytes().get(meta.l3()..meta.end())?;
        if meta.has(flag::IPV4) {
            let ip = Ipv4::parse(packet)?;
            let (start, len) = (ip.offset(), packet.len().checked_sub(ip.header_len())?);
            Some(Piece { id: ip.id().into(), start, end: start + len, more: ip.fragment() & ipv4::MF != 0 })
        } else {
            let chain = extensions(Ipv6::parse(packet)?, packet);
            let (header, behind) = chain.fragment?;
            let (start, len) = (header.offset(), packet.len().checked_sub(behind)?);
            Some(Piece { id: header.id(), start, end: start + len, more: header.more() })
        }
    }
}

/// What a first fragment says of its whole datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Hash of the flow.
    pub hash: u32,
    /// `Meta::sport`.
    pub sport: u16,
    /// `Meta::dport`.
    pub dport: u16,
    /// `Meta::flags` for a later fragment to add.
    flags: u16,
    /// `Meta::proto`.
    pub proto: u8,
    /// `Meta::detail`.
    pub detail: [u8; 2],
}

impl Facts {
    /// Bytes of headroom they travel in.
    const LEN: usize = 13;

    /// What a decoded first fragment says; `hash` is that of its flow.
    pub fn of(first: &Meta, hash: u32) -> Facts {
        let borrowed = if first.has(flag::L4) { flag::BORROWED } else { 0 };
        Facts {
            hash,
            sport: first.sport,
            dport: first.dport,
            flags: first.flags & (flag::PORTS | flag::ECHO) | borrowed,
            proto: first.proto,
            detail: first.detail,
        }
    }

    /// Completes what is known of a fragment of the datagram, the first included.
    pub fn complete(&self, meta: &mut Meta) {
        meta.hash = self.hash;
        if meta.has(flag::LATER_FRAGMENT) {
            (meta.sport, meta.dport, meta.proto, meta.detail) = (self.sport, self.dport, self.proto, self.detail);
            meta.flags |= self.flags;
        }
    }

    /// Writes them before the frame's first byte and marks the frame; false if there is no room.
    pub fn stow(&self, frame: &mut Frame) -> bool {
        if !frame.grow_front(Facts::LEN) {
            return false;
        }
        if let Some(room) = frame.bytes_mut().first_chunk_mut::<{ Facts::LEN }>() {
            let ([h0, h1, h2, h3], [s0, s1]) = (self.hash.to_le_bytes(), self.sport.to_le_bytes());
            let ([d0, d1], [f0, f1]) = (self.dport.to_le_bytes(), self.flags.to_le_bytes());
            let [kind, code] = self.detail;
            *room = [h0, h1, h2, h3, s0, s1, d0, d1, f0, f1, self.proto, kind, code];
        }
        frame.trim_front(Facts::LEN);
        frame.flags |= rx::FOLLOWS;
        true
    }

    /// What was stowed with a frame that is marked so.
    pub fn stowed(frame: &mut Frame) -> Option<Facts> {
        if frame.flags & rx::FOLLOWS == 0 || !frame.grow_front(Facts::LEN) {
            return None;
        }
        let room = frame.bytes().first_chunk::<{ Facts::LEN }>().copied();
        frame.trim_front(Facts::LEN);
        let [h0, h1, h2, h3, s0, s1, d0, d1, f0, f1, proto, kind, code] = room?;
        Some(Facts {
            hash: u32::from_le_bytes([h0, h1, h2, h3]),
            sport: u16::from_le_bytes([s0, s1]),
            dport: u16::from_le_bytes([d0, d1]),
            flags: u16::from_le_bytes([f0, f1]),
            proto,
            detail: [kind, code],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::decode::{Depth, decode};
    use crate::packet::frame::Heap;
    use crate::testkit::packets::{Packet, batch, give_back};
    use crate::wire::protocol;

    fn read(bytes: &[u8]) -> (Meta, Option<Piece>) {
        let mut heap = Heap::new(1, 2000);
        let mut batch = batch(&mut heap, [bytes]);
        decode(&mut batch, Depth::L4);
        assert_eq!((batch.live, batch.fragments & !1), (1, 0), "well formed");
        let piece = Piece::of(&batch.metas[0], &batch.frames[0]);
        assert_eq!(batch.metas[0].any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT), batch.fragments == 1);
        give_back(&mut heap, &mut batch);
        (batch.metas[0].clone(), piece)
    }

    #[test]
    fn pieces_cover_the_datagram() {
        let (v4, v6) =
            (Packet::udp("10.0.0.1:1", "10.0.0.2:2"), Packet::udp("[2001:db8::1]:1", "[2001:db8::2]:2").vlan(3));
        let (v4, v6) = (v4.ip_options(&[1; 8]), v6.extension(protocol::HOP_BY_HOP, &[1, 4, 0, 0, 0, 0]));
        for whole in [v4, v6] {
            let pieces: Vec<Piece> = whole
                .payload(&[7; 100])
                .id(0x1234)
                .fragments(48)
                .iter()
                // Padding is no part of it.
                .map(|bytes| read(&[&bytes[..], &[0; 20]].concat()).1.expect("a fragment"))
                .collect();
            let piece = |start, end, more| Piece { id: 0x1234, start, end, more };
            assert_eq!(pieces, [piece(0, 48, true), piece(48, 96, true), piece(96, 108, false)]);
        }
    }

    #[test]
    fn extensions_behind_the_fragment_header_are_part_of_what_was_cut() {
        let options = [protocol::UDP, 0, 1, 4, 0, 0, 0, 0];
        let udp = [3, 232, 0, 53, 0, 100, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9];
        let first =
            Packet::ip("2001:db8::1", "2001:db8::2", protocol::DESTINATION).payload(&[&options[..], &udp].concat());
        let (meta, piece) = read(&first.fragment(0, true).id(9).bytes());
        assert_eq!((meta.proto, meta.dport), (protocol::UDP, 53));
        assert_eq!(piece, Some(Piece { id: 9, start: 0, end: 24, more: true }));
        // RFC 6946: a fragment header does not make a fragment.
        let atomic = Packet::udp("[2001:db8::1]:1000", "[2001:db8::2]:53").fragment(0, false).payload(&[0; 8]);
        assert!(!read(&atomic.bytes()).0.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT));
    }

    #[test]
    fn facts_travel_before_the_frame() {
        let whole = Packet::echo_request("10.0.0.1", "10.0.0.2", 77, 1).payload(&[7; 64]).id(5);
        let parts = whole.fragments(32);
        let (first, mut later) = (read(&parts[0]).0, read(&parts[1]).0);
        let facts = Facts::of(&first, 0xdead_beef);
        let mut heap = Heap::new(1, 2000);
        let mut frame = heap.frame(&parts[1]).expect("free");
        assert_eq!(Facts::stowed(&mut frame), None);
        assert!(facts.stow(&mut frame));
        assert_eq!((frame.bytes(), frame.headroom()), (&parts[1][..], Heap::HEADROOM));
        let told = Facts::stowed(&mut frame).expect("told");
        assert_eq!(told, facts);
        assert!(frame.grow_front(120) && !facts.stow(&mut frame), "no room");
        heap.give_back(frame);

        told.complete(&mut later);
        assert_eq!((later.sport, later.dport, later.detail, later.hash), (77, 77, [8, 0], 0xdead_beef));
        assert_eq!(later.flags, flag::IPV4 | flag::LATER_FRAGMENT | flag::PORTS | flag::ECHO | flag::BORROWED);
        let mut again = first.clone();
        told.complete(&mut again);
        assert_eq!(again, Meta { hash: 0xdead_beef, ..first });
    }
}
