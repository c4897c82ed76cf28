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

/// Takes one off TTL or hop limit, which must not be 0, and off what the IPv4 header checksum sums up (RFC 1624 equation 3, for
/// a difference of 0x0100 in one word).
#[inline(always)]
pub fn hop(frame: &mut Frame, meta: &Meta) {
    let l3 = meta.l3();
    if meta.has(flag::IPV4) {
        let Some(header) = frame.bytes_mut().get_mut(l3 + 8..).and_then(|rest| rest.first_chunk_mut::<4>()) else {
            return;
        };
        let [ttl, protocol, high, low] = *header;
        let sum = u32::from(u16::from_be_bytes([high, low])) + 0x0100;
        let [high, low] = ((sum + (sum >> 16)) as u16).to_be_bytes();
        *header = [ttl.wrapping_sub(1), protocol, high, low];
    } else if let Some(hops) = frame.bytes_mut().get_mut(l3 + 7) {
        *hops = hops.wrapping_sub(1);
    }
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
    if !(if after >= before { frame.grow_front(after - before) } else { frame.trim_front(before - after) }) {
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
