//! What becomes of a packet's bytes on its way from one link to the next: one hop less, another link-layer header.
//!
//! The callers know that the packet was decoded as IPv4 or IPv6: its headers are where `Meta` says.

use crate::wire::ethernet::ethertype;

use super::frame::Frame;
use super::meta::{Meta, flag};

/// TTL or hop limit; 0 of a frame that is too short for any.
#[inline(always)]
pub fn hops_left(frame: &Frame, meta: &Meta) -> u8 {
    let at = meta.l3() + if meta.has(flag::IPV4) { 8 } else { 7 };
    frame.bytes().get(at).copied().unwrap_or(0)
}

/// Takes one off TTL or hop limit, which must not be 0, and off what the IPv4 header checksum sums up.
#[inline(always)]
pub fn hop(frame: &mut Frame, meta: &Meta) {
    let l3 = meta.l3();
    if meta.has(flag::IPV4) {
        let Some(header) = frame.bytes_mut().get_mut(l3 + 8..).and_then(|rest| rest.first_chunk_mut::<4>()) else {
            return;
        };
        let [ttl, protocol, high, low] = *header;
        let sum = u32::from(u16::from_be_bytes([high, low])) + 0x0100;
        // RFC 1624 equation 3 for a word that falls by 0x0100; it never gives 0xffff, which no full sum is either.
        let [high, low] = ((sum + u32::from(sum >= 0xffff)) as u16).to_be_bytes();
        *header = [ttl.wrapping_sub(1), protocol, high, low];
    } else if let Some(hops) = frame.bytes_mut().get_mut(l3 + 7) {
        *hops = hops.wrapping_sub(1);
    }
}

/// Of a frame without tags that has a hop left beyond this one: takes a hop and replaces the MAC addresses, given as the first
/// eight and the other four bytes. False, and nothing done, of any other.
#[inline(always)]
pub fn plain(frame: &mut Frame, meta: &Meta, (front, rest): ([u8; 8], [u8; 4])) -> bool {
    let Some(head) = frame.bytes_mut().first_chunk_mut::<34>() else { return false };
    if meta.has(flag::IPV4) {
        if head[22] <= 1 {
            return false;
        }
        let sum = u32::from(u16::from_be_bytes([head[24], head[25]])) + 0x0100;
        // As in `hop`.
        let sum = ((sum + u32::from(sum >= 0xffff)) as u16).to_be_bytes();
        (head[22], head[24], head[25]) = (head[22] - 1, sum[0], sum[1]);
    } else {
        if head[21] <= 1 {
            return false;
        }
        head[21] -= 1;
    }
    head[..8].copy_from_slice(&front);
    head[8..12].copy_from_slice(&rest);
    true
}

/// Replaces everything in front of the network header by an Ethernet header with these addresses and tags (zeros are none). The
/// facts follow. False, and nothing done, if there is no room in front.
#[inline(always)]
pub fn relink(frame: &mut Frame, meta: &mut Meta, destination: [u8; 6], source: [u8; 6], tags: &[[u8; 4]; 2]) -> bool {
    let kind = if meta.has(flag::IPV4) { ethertype::IPV4 } else { ethertype::IPV6 };
    if !meta.any(flag::TAGS) && tags[0] == [0; 4] {
        let Some(header) = frame.bytes_mut().first_chunk_mut::<14>() else { return false };
        header[..6].copy_from_slice(&destination);
        header[6..12].copy_from_slice(&source);
        return true;
    }
    relink_tagged(frame, meta, destination, source, tags, kind)
}

#[inline(never)]
fn relink_tagged(
    frame: &mut Frame,
    meta: &mut Meta,
    destination: [u8; 6],
    source: [u8; 6],
    tags: &[[u8; 4]; 2],
    kind: u16,
) -> bool {
    let count = tags.iter().take_while(|tag| **tag != [0; 4]).count();
    let (before, after) = (meta.l3(), 14 + 4 * count);
    let whole = frame.len() >= before;
    if !(whole && if after >= before { frame.grow_front(after - before) } else { frame.trim_front(before - after) }) {
        return false;
    }
    let bytes = frame.bytes_mut();
    bytes[..6].copy_from_slice(&destination);
    bytes[6..12].copy_from_slice(&source);
    for (at, tag) in tags.iter().take(count).enumerate() {
        bytes[12 + 4 * at..16 + 4 * at].copy_from_slice(tag);
    }
    bytes[after - 2..after].copy_from_slice(&kind.to_be_bytes());
    meta.end = (usize::from(meta.end) + after - before) as u16;
    meta.flags = meta.flags & !flag::TAGS | (count as u16) << flag::TAGS_SHIFT;
    true
}

/// Puts tags (zeros are none) behind the MAC addresses of a frame that has none. The facts follow. False, and nothing done, if
/// there is no room in front.
pub fn retag(frame: &mut Frame, meta: &mut Meta, tags: &[[u8; 4]; 2]) -> bool {
    let count = tags.iter().take_while(|tag| **tag != [0; 4]).count();
    if count == 0 {
        return true;
    }
    if frame.len() < 14 || !frame.grow_front(4 * count) {
        return false;
    }
    let bytes = frame.bytes_mut();
    bytes.copy_within(4 * count..4 * count + 12, 0);
    for (at, tag) in tags.iter().take(count).enumerate() {
        bytes[12 + 4 * at..16 + 4 * at].copy_from_slice(tag);
    }
    meta.end += 4 * count as u16;
    meta.flags += (count as u16) << flag::TAGS_SHIFT;
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::decode::{Depth, decode};
    use crate::packet::frame::Heap;
    use crate::testkit::packets::{Packet, batch, give_back, samples};
    use crate::wire::checksum;
    use crate::wire::ipv4::{Ipv4, Ipv4Mut};

    /// What `change` makes of a decoded frame: its result, the bytes and the facts.
    fn with<T>(bytes: &[u8], change: impl FnOnce(&mut Frame, &mut Meta) -> T) -> (T, Vec<u8>, Meta) {
        let mut heap = Heap::new(1, 9700);
        let mut batch = batch(&mut heap, [bytes]);
        decode(&mut batch, Depth::L4);
        let (frame, meta) = (&mut batch.frames[0], &mut batch.metas[0]);
        let result = change(frame, meta);
        let (bytes, meta) = (frame.bytes().to_vec(), meta.clone());
        give_back(&mut heap, &mut batch);
        (result, bytes, meta)
    }

    #[test]
    fn a_hop_takes_one() {
        // The last two are not IP.
        for packet in &samples()[..24] {
            for left in [1, 2, 64, 255] {
                let (hops, after, meta) = with(&packet.clone().ttl(left).bytes(), |frame, meta| {
                    let hops = hops_left(frame, meta);
                    hop(frame, meta);
                    hops
                });
                assert_eq!(hops, left);
                let expected = packet.clone().ttl(left - 1).bytes();
                assert_eq!(after[meta.l3()..], expected[meta.l3()..], "{packet:?}");
            }
        }
    }

    #[test]
    fn every_checksum_is_the_full_one() {
        let mut heap = Heap::new(1, 34);
        let mut frame = heap.frame(&Packet::ip("10.0.0.1", "10.0.0.2", 17).bytes()).expect("free");
        let meta = Meta { flags: flag::IPV4, l4_words: 5, end: 34, ..Meta::UNKNOWN };
        for id in 0..=u16::MAX {
            // Whatever the checksum was, an identification makes it so.
            let sealed = |frame: &mut Frame, ttl: u8| {
                let mut ip = Ipv4Mut::parse(&mut frame.bytes_mut()[14..]).expect("IPv4");
                ip.set_id(id);
                ip.set_ttl(ttl);
                ip.set_checksum(0);
                let full = checksum::checksum(ip.view().bytes());
                ip.set_checksum(full);
                full
            };
            let full = sealed(&mut frame, 8);
            sealed(&mut frame, 9);
            hop(&mut frame, &meta);
            let ip = Ipv4::parse(&frame.bytes()[14..]).expect("IPv4");
            assert_eq!((ip.ttl(), ip.checksum()), (8, full), "{id:#x}");
        }
        heap.give_back(frame);
    }

    const TAGS: [[u8; 4]; 2] = [[0x88, 0xa8, 0, 7], [0x81, 0, 0, 8]];

    /// The first tags, and none behind them.
    fn first(tags: usize) -> [[u8; 4]; 2] {
        std::array::from_fn(|at| if at < tags { TAGS[at] } else { [0; 4] })
    }

    #[test]
    fn the_packet_behind_another_link_header_is_the_same() {
        let six = Packet::udp("[2001:db8::1]:1", "[2001:db8::2]:2").payload(b"data").pad(90);
        let four = Packet::udp("10.0.0.1:1", "10.0.0.2:2").payload(b"data").pad(90);
        for plain in [four, six] {
            for packet in [plain.clone(), plain.clone().vlan(5), plain.clone().tag(0x88a8, 5).vlan(6)] {
                for tags in 0..3 {
                    let before = packet.bytes();
                    let make = |frame: &mut Frame, meta: &mut Meta| relink(frame, meta, [3; 6], [4; 6], &first(tags));
                    let (done, after, meta) = with(&before, make);
                    assert!(done);
                    let front = [&[3; 6][..], &[4; 6], TAGS[..tags].as_flattened()];
                    assert_eq!((&after[..12 + 4 * tags], meta.l3()), (&front.concat()[..], 14 + 4 * tags));
                    assert_eq!(after[meta.l3() - 2..][..2], meta.ethertype().to_be_bytes());
                    assert_eq!(after[meta.l3()..meta.end()], plain.network());
                    let (_, _, read) = with(&after, |_, _| ());
                    assert_eq!((read.l4(), read.end(), read.dport), (meta.l4(), meta.end(), 2));
                }
            }
            for tags in 0..3 {
                let (done, after, meta) = with(&plain.bytes(), |frame, meta| retag(frame, meta, &first(tags)));
                let expected = [&plain.bytes()[..12], TAGS[..tags].as_flattened(), &plain.bytes()[12..]].concat();
                assert!(done && after == expected);
                let (_, _, read) = with(&after, |_, _| ());
                assert_eq!((read.l4(), read.end()), (meta.l4(), meta.end()));
            }
        }
    }

    #[test]
    fn without_room_nothing_is_done() {
        let udp = Packet::udp("10.0.0.1:1", "10.0.0.2:2").bytes();
        let ((), after, meta) = with(&udp, |frame, meta| {
            let all = frame.headroom();
            assert!(frame.grow_front(all));
            frame.bytes_mut().copy_within(all.., 0);
            assert!(!relink(frame, meta, [3; 6], [4; 6], &TAGS) && !retag(frame, meta, &TAGS));
        });
        assert_eq!((&after[..udp.len()], meta.l3(), meta.end()), (&udp[..], 14, udp.len()));
    }

    proptest! {
        #[test]
        fn any_facts_about_any_bytes_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            flags in any::<u16>(),
            tags in 0..3usize,
        ) {
            let mut heap = Heap::new(1, 100);
            let mut frame = heap.frame(&bytes).expect("free");
            // Decode counts two tags at most.
            let mut meta = Meta { flags: flags & !(flag::TAGS & flags << 1), end: 60, ..Meta::UNKNOWN };
            hops_left(&frame, &meta);
            hop(&mut frame, &meta);
            let (len, l3) = (frame.len(), meta.l3());
            if relink(&mut frame, &mut meta, [3; 6], [4; 6], &first(tags)) {
                prop_assert_eq!((frame.len(), meta.l3()), (len + 14 + 4 * tags - l3, 14 + 4 * tags));
            }
            heap.give_back(frame);
        }
    }
}
