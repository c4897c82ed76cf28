//! Cuts an IPv4 packet into fragments that a link can carry (RFC 791 section 3.2).
//!
//! Owns where a packet is cut and the bytes of the pieces. Buffers for them are the caller's; so is the question whether a
//! packet is to be cut, but for its own word on that: what says "don't fragment", and IPv6, is never cut.

use crate::wire::checksum;
use crate::wire::ipv4::{self, Ipv4, Ipv4Mut};

use super::frame::{Frame, rx};
use super::meta::{Meta, flag};

/// The least MTU of an IPv4 link: the longest header there is, and eight bytes (RFC 791 section 3.2).
pub const LEAST_MTU: u16 = 68;

/// The longest IPv4 header.
const LONGEST: usize = 60;

/// How a packet is cut. The packet must stay as it is until the last piece is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Offset of the network header, of its payload, and of the payload's end in the frame.
    l3: u16,
    l4: u16,
    end: u16,
    /// Bytes of payload in the first piece, and in the others but the last.
    first: u16,
    other: u16,
    pieces: u16,
    /// Flags and offset of the packet itself, which may be a fragment.
    fragment: u16,
    /// The header of all pieces but the first: of the options only those that every fragment carries.
    header: [u8; LONGEST],
    header_len: u8,
}

impl Cut {
    /// Plans the pieces of a decoded packet for a link of `mtu` bytes; `None` of a packet that fits, that must not be
    /// cut, or that no such link may carry.
    pub fn plan(frame: &Frame, meta: &Meta, mtu: u16) -> Option<Cut> {
        let (l3, l4, end) = (meta.l3(), meta.l4(), meta.end());
        let ip = frame.bytes().get(l3..).and_then(Ipv4::parse)?;
        let options = frame.bytes().get(l3 + Ipv4::LEN..l4)?;
        let (full, mtu) = (l4 - l3, usize::from(mtu.max(LEAST_MTU)));
        let whole = end <= frame.len() && l4 <= end && full <= LONGEST;
        if !meta.has(flag::IPV4) || !whole || ip.fragment() & ipv4::DF != 0 || end - l3 <= mtu {
            return None;
        }
        let (header, header_len) = later_header(ip, options);
        let [first, other] = [full, header_len].map(|header| (mtu - header) & !7);
        let pieces = 1 + (end - l4).saturating_sub(first).div_ceil(other);
        Some(Cut {
            l3: l3 as u16,
            l4: l4 as u16,
            end: end as u16,
            first: first as u16,
            other: other as u16,
            pieces: pieces as u16,
            fragment: ip.fragment(),
            header,
            header_len: header_len as u8,
        })
    }

    /// How many pieces there are: two at least.
    pub fn pieces(&self) -> usize {
        usize::from(self.pieces)
    }

    /// Writes a piece, counted from zero, of the frame that was planned for into another one: the same link-layer header, its
    /// part of the payload, and zeros up to the shortest frame. False if there is no such piece, or no room for it.
    pub fn write(&self, piece: usize, whole: &Frame, into: &mut Frame) -> bool {
        let (l3, l4, end) = (usize::from(self.l3), usize::from(self.l4), usize::from(self.end));
        if piece >= self.pieces() {
            return false;
        }
        let (start, len) = match piece {
            0 => (0, self.first),
            _ => (usize::from(self.first) + (piece - 1) * usize::from(self.other), self.other),
        };
        let stop = (l4 + start + usize::from(len)).min(end);
        let bytes = whole.bytes();
        let (Some(link), Some(payload)) = (bytes.get(..l3), bytes.get(l4 + start..stop)) else { return false };
        let header = if piece == 0 { bytes.get(l3..l4) } else { self.header.get(..usize::from(self.header_len)) };
        let Some(header) = header else { return false };
        let (behind, used) = (l3 + header.len(), l3 + header.len() + payload.len());
        if !into.set_len(used.max(super::reply::SHORTEST)) && !into.set_len(used) {
            return false;
        }
        let out = into.bytes_mut();
        out[..l3].copy_from_slice(link);
        out[l3..behind].copy_from_slice(header);
        out[behind..used].copy_from_slice(payload);
        out[used..].fill(0);
        // Offsets of a fragment's pieces count on from its own, and only its end is the datagram's.
        let more = if stop < end { ipv4::MF } else { 0 };
        let Some(mut ip) = Ipv4Mut::parse(&mut out[l3..behind]) else { return false };
        ip.set_total_len((used - l3) as u16);
        ip.set_fragment((self.fragment | more).wrapping_add((start / 8) as u16));
        ip.set_checksum(0);
        let sum = checksum::checksum(&out[l3..behind]);
        if let Some(mut ip) = Ipv4Mut::parse(&mut out[l3..behind]) {
            ip.set_checksum(sum);
        }
        into.flags = whole.flags & rx::VLAN_STRIPPED;
        (into.vlan_tci, into.rx_time, into.port) = (whole.vlan_tci, whole.rx_time, whole.port);
        true
    }
}

/// The header of later fragments, and its length.
fn later_header(ip: Ipv4, options: &[u8]) -> ([u8; LONGEST], usize) {
    let mut header = [0; LONGEST];
    header[..Ipv4::LEN].copy_from_slice(ip.bytes());
    let mut len = Ipv4::LEN;
    for (at, option) in ipv4::located(options) {
        let Ok((kind, body)) = option else { break };
        let all = body.len() + 2;
        if kind & ipv4::option::COPIED != 0
            && let (Some(place), Some(option)) = (header.get_mut(len..len + all), options.get(at..at + all))
        {
            place.copy_from_slice(option);
            len += all;
        }
    }
    // What is left of the last word is the end of the options.
    let len = len.next_multiple_of(4);
    header[0] = 0x40 | (len / 4) as u8;
    (header, len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::decode::{Depth, decode};
    use crate::packet::fragment::Piece;
    use crate::packet::frame::Heap;
    use crate::testkit::packets::{Packet, batch, give_back};

    /// The pieces of a frame; none if it is not to be cut. Each holds the promises any piece must hold.
    fn cut(bytes: &[u8], mtu: u16) -> Vec<(Vec<u8>, Meta, Piece)> {
        let mut heap = Heap::new(2, 66_000);
        let mut whole = batch(&mut heap, [bytes]);
        decode(&mut whole, Depth::L3);
        assert_eq!(whole.live, 1, "well formed");
        let mut pieces = Vec::new();
        if let Some(plan) = Cut::plan(&whole.frames[0], &whole.metas[0], mtu) {
            for n in 0..plan.pieces() {
                // What the buffer held before must not show.
                let mut piece = batch(&mut heap, [&[0xee; 1500]]);
                assert!(plan.write(n, &whole.frames[0], &mut piece.frames[0]));
                decode(&mut piece, Depth::L3);
                assert_eq!(piece.live, 1, "decode takes it");
                let (meta, bytes) = (piece.metas[0].clone(), piece.frames[0].bytes().to_vec());
                assert!(meta.end() - meta.l3() <= usize::from(mtu.max(LEAST_MTU)) && bytes.len() == meta.end().max(60));
                assert!(bytes[meta.end()..].iter().all(|byte| *byte == 0));
                let part = Piece::of(&meta, &piece.frames[0]).expect("a fragment");
                give_back(&mut heap, &mut piece);
                pieces.push((bytes, meta, part));
            }
            let mut spare = batch(&mut heap, [&[0; 60]]);
            assert!(!plan.write(plan.pieces(), &whole.frames[0], &mut spare.frames[0]));
            give_back(&mut heap, &mut spare);
        }
        give_back(&mut heap, &mut whole);
        pieces
    }

    /// The payload that pieces carry together, from `start`; they follow one another without gap.
    fn joined(pieces: &[(Vec<u8>, Meta, Piece)], start: usize) -> Vec<u8> {
        let mut joined = Vec::new();
        for (bytes, meta, piece) in pieces {
            assert_eq!(piece.start, start + joined.len());
            joined.extend(&bytes[meta.l4()..meta.end()]);
            assert_eq!(piece.end, start + joined.len());
        }
        joined
    }

    const OPTIONS: [u8; 12] = [7, 3, 4, 0x94, 4, 0, 0, 1, 82, 2, 131, 2];

    #[test]
    fn only_what_may_and_must_be_is_cut() {
        let udp = Packet::udp("10.0.0.1:1", "10.0.0.2:2").payload(&[7; 1472]);
        assert!(cut(&udp.bytes(), 1500).is_empty());
        assert!(cut(&udp.clone().pad(1600).bytes(), 1500).is_empty(), "padding is not sent");
        assert!(cut(&udp.clone().dont_fragment().bytes(), 1499).is_empty());
        let six = Packet::udp("[2001:db8::1]:1", "[2001:db8::2]:2").payload(&[7; 1472]);
        assert!(cut(&six.bytes(), 1280).is_empty());
        assert_eq!(cut(&udp.bytes(), 1499).len(), 2);
        assert_eq!(cut(&udp.bytes(), 0).len(), 1480_usize.div_ceil(48), "no link carries less than 68");
    }

    #[test]
    fn later_pieces_have_the_options_that_are_copied() {
        let udp =
            Packet::udp("10.0.0.1:1", "10.0.0.2:2").vlan(9).tag(0x8100, 3).ip_options(&OPTIONS).payload(&[7; 100]);
        let pieces = cut(&udp.bytes(), 76);
        let headers: Vec<&[u8]> = pieces.iter().map(|(bytes, meta, _)| &bytes[meta.l3() + 20..meta.l4()]).collect();
        // Router alert and the source route, whose kinds say so; a word begun is filled up.
        let later = &[0x94, 4, 0, 0, 131, 2, 0, 0][..];
        assert_eq!(headers, [&OPTIONS[..], later, later]);
        for (bytes, meta, _) in &pieces {
            assert_eq!((&bytes[..22], meta.l3()), (&udp.bytes()[..22], 22));
        }
        let all: Vec<u8> = joined(&pieces, 0);
        assert_eq!(all, udp.network()[32..]);
    }

    #[test]
    fn pieces_of_a_fragment_are_pieces_of_its_datagram() {
        for more in [true, false] {
            let part = Packet::udp("10.0.0.1:1", "10.0.0.2:2").payload(&[7; 992]).fragment(4800, more).id(5);
            let pieces = cut(&part.bytes(), 576);
            assert_eq!(joined(&pieces, 4800), part.network()[20..]);
            let flags: Vec<_> = pieces.iter().map(|(_, _, piece)| (piece.more, piece.id)).collect();
            assert_eq!(flags, [(true, 5), (more, 5)]);
        }
    }

    proptest! {
        #[test]
        fn pieces_make_up_the_whole(
            payload in prop::collection::vec(any::<u8>(), 0..9000),
            options in prop::sample::select(vec![&[][..], &OPTIONS, &[0x94, 4, 0, 0], &[7, 39, 4], &[1]]),
            mtu in 68..3000u16,
            id in any::<u16>(),
        ) {
            let mut options = options.to_vec();
            if options.first() == Some(&7) && options.len() == 3 {
                options.resize(40, 0);
            }
            options.resize(options.len().next_multiple_of(4), 0);
            let udp = Packet::udp("10.0.0.1:1", "10.0.0.2:2").ip_options(&options).payload(&payload).id(id.into());
            let (bytes, network) = (udp.bytes(), udp.network());
            let pieces = cut(&bytes, mtu);
            prop_assert_eq!(pieces.is_empty(), network.len() <= usize::from(mtu));
            if let Some(((_, _, last), others)) = pieces.split_last() {
                prop_assert_eq!(joined(&pieces, 0), &network[20 + options.len()..]);
                prop_assert!(!last.more && others.iter().all(|(_, _, piece)| piece.more));
                // No piece could have carried eight bytes more.
                prop_assert!(others.iter().all(|(_, meta, _)| meta.end() - meta.l3() + 8 > usize::from(mtu)));
                let mut pool = etherparse::defrag::IpDefragPool::<(), ()>::new();
                let mut whole = None;
                for (bytes, ..) in &pieces {
                    let slice = etherparse::SlicedPacket::from_ethernet(bytes).expect("well formed");
                    whole = pool.process_sliced_packet(&slice, (), ()).expect("they fit together").or(whole);
                }
                prop_assert_eq!(whole.expect("all are there").payload, &network[20 + options.len()..]);
            }
        }

        #[test]
        fn any_facts_about_any_bytes_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            flags in any::<u16>(),
            l4_words in 0..20u8,
            end in 0..320u16,
            mtu in 0..200u16,
        ) {
            let mut heap = Heap::new(2, 400);
            let (frame, mut into) = (heap.frame(&bytes).expect("free"), heap.frame(&[]).expect("free"));
            let meta = Meta { flags: flags | flag::IPV4, l4_words, end, ..Meta::UNKNOWN };
            if let Some(plan) = Cut::plan(&frame, &meta, mtu) {
                (0..=plan.pieces()).for_each(|n| assert_eq!(plan.write(n, &frame, &mut into), n < plan.pieces()));
            }
            heap.give_back(frame);
            heap.give_back(into);
        }
    }
}
