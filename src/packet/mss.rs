//! The maximum segment size that a TCP handshake agrees on, lowered to what a link carries.
//!
//! Owns the bytes of the option; on which links it is done is decided elsewhere. Without the option the ends take 536 or 1220
//! bytes (RFC 9293 section 3.7.1), which every link carries, so none is put in.

use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::tcp::{self, Tcp, TcpMut, option};
use crate::wire::{checksum, protocol};

use super::frame::Frame;
use super::meta::{Meta, flag};

/// Lowers the maximum segment size of a SYN, from either end, to what a link of `mtu` bytes carries without IP and TCP options
/// (RFC 6691 section 2). True if it was more. Options that are malformed end the search.
pub fn clamp(frame: &mut Frame, meta: &Meta, mtu: u16) -> bool {
    let whole = meta.has(flag::L4) && !meta.any(flag::FIRST_FRAGMENT | flag::LATER_FRAGMENT);
    if meta.proto != protocol::TCP || !whole || meta.detail[0] & tcp::SYN == 0 {
        return false;
    }
    let network = if meta.has(flag::IPV4) { Ipv4::LEN } else { Ipv6::LEN };
    let Some(most) = mtu.checked_sub((network + Tcp::LEN) as u16) else { return false };
    let Some(segment) = frame.bytes_mut().get_mut(meta.l4()..meta.end()) else { return false };
    let Some(header) = Tcp::parse(segment) else { return false };
    let (end, before) = (header.header_len(), header.checksum());
    let Some((fixed, options)) = segment.get_mut(..end).and_then(|header| header.split_at_mut_checked(Tcp::LEN)) else {
        return false;
    };
    let mut update = checksum::Update::of(before);
    let mut lowered = false;
    let mut from = 0;
    // Ends differ in which of several options they believe, so all are lowered.
    while let Some(at) = next(options, from) {
        let Some(field) = options.get_mut(at + 2..).and_then(|body| body.first_chunk_mut::<2>()) else { break };
        let size = u16::from_be_bytes(*field);
        if size > most {
            *field = most.to_be_bytes();
            // At an odd offset, the low byte is the high one of its word of the sum.
            let word = |size: u16| if at.is_multiple_of(2) { size } else { size.swap_bytes() };
            update = update.word(word(size), word(most));
            lowered = true;
        }
        from = at + 4;
    }
    if let Some(mut header) = TcpMut::parse(fixed).filter(|_| lowered) {
        header.set_checksum(update.finish());
    }
    lowered
}

/// Where the first maximum segment size at or behind `from` begins.
fn next(options: &[u8], from: usize) -> Option<usize> {
    let walk = tcp::located(options).map_while(|(at, found)| Some((at, found.ok()?)));
    walk.filter(|(at, (kind, body))| *at >= from && *kind == option::MSS && body.len() == 2).map(|(at, _)| at).next()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::decode::{Depth, decode};
    use crate::packet::frame::Heap;
    use crate::testkit::packets::{Packet, batch, give_back};

    fn clamped(bytes: &[u8], mtu: u16) -> (bool, Vec<u8>) {
        let mut heap = Heap::new(1, 9700);
        let mut batch = batch(&mut heap, [bytes]);
        decode(&mut batch, Depth::L4);
        let done = batch.live == 1 && clamp(&mut batch.frames[0], &batch.metas[0], mtu);
        let after = batch.frames[0].bytes().to_vec();
        give_back(&mut heap, &mut batch);
        assert!(done || after == bytes);
        (done, after)
    }

    const ENDS: [(&str, &str, u16); 2] = [("10.0.0.1:1", "10.0.0.2:2", 40), ("[2001:db8::1]:1", "[2001:db8::2]:2", 60)];

    #[test]
    fn more_than_the_link_carries_is_lowered_wherever_the_option_stands() {
        for (a, b, headers) in ENDS {
            // What stands before and behind the option, such that its offset is even and odd.
            for (before, behind) in [(&[][..], &[][..]), (&[1], &[1, 0, 7]), (&[3, 3, 7], &[0]), (&[4, 2], &[1, 1])] {
                let syn = |mss: u16| {
                    let options = [before, &[2, 4], &mss.to_be_bytes(), behind].concat();
                    Packet::tcp(a, b).flags(tcp::SYN | tcp::ACK).tcp_options(&options).payload(b"odd").bytes()
                };
                for mtu in [1400, 1280, 0x2020] {
                    assert_eq!(clamped(&syn(0xffff), mtu), (true, syn(mtu - headers)), "{mtu} {before:?}");
                }
            }
            let twice = |one: u16, other: u16| {
                let ([a1, a2], [b1, b2]) = (one.to_be_bytes(), other.to_be_bytes());
                Packet::tcp(a, b).tcp_options(&[2, 4, a1, a2, 1, 2, 4, b1, b2, 1, 1, 1]).bytes()
            };
            assert_eq!(clamped(&twice(9000, 8000), 1400), (true, twice(1400 - headers, 1400 - headers)));
            assert_eq!(clamped(&twice(500, 8000), 1400), (true, twice(500, 1400 - headers)));
        }
    }

    #[test]
    fn what_is_small_or_absent_or_malformed_stays() {
        for (a, b, headers) in ENDS {
            let syn = |options: &[u8]| Packet::tcp(a, b).tcp_options(options);
            let [high, low] = (1400 - headers).to_be_bytes();
            let unchanged = [
                syn(&[2, 4, high, low]),
                syn(&[2, 4, 0, 0]),
                syn(&[]),
                syn(&[2, 3, 0xff, 0xff]),
                syn(&[2, 6, 0xff, 0xff, 0xff, 0xff, 0, 0]),
                syn(&[5, 9, 2, 4, 0xff, 0xff, 0, 0]),
                syn(&[0, 0, 0, 0, 2, 4, 0xff, 0xff]),
                syn(&[2, 4, 0xff, 0xff]).flags(tcp::ACK),
                syn(&[2, 4, 0xff, 0xff]).fragment(0, true).payload(&[0; 8]),
                Packet::udp(a, b).payload(&[2; 40]),
            ];
            for packet in unchanged {
                assert!(!clamped(&packet.bytes(), 1400).0, "{packet:?}");
            }
            assert!(!clamped(&syn(&[2, 4, 0xff, 0xff]).bytes(), headers - 1).0);
        }
    }

    proptest! {
        #[test]
        fn any_options_keep_the_checksum_good(
            options in prop::collection::vec(prop_oneof![0..6u8, any::<u8>()], 40),
            mtu in any::<u16>(),
            v4 in any::<bool>(),
        ) {
            let (a, b, _) = ENDS[usize::from(!v4)];
            let bytes = Packet::tcp(a, b).tcp_options(&options).payload(b"abc").bytes();
            let (_, after) = clamped(&bytes, mtu);
            let theirs = etherparse::PacketHeaders::from_ethernet_slice(&after).expect("well formed");
            let tcp = theirs.transport.and_then(|transport| transport.tcp()).expect("TCP");
            let sum = match theirs.net.expect("IP") {
                etherparse::NetHeaders::Ipv4(ip, _) => tcp.calc_checksum_ipv4(&ip, b"abc"),
                etherparse::NetHeaders::Ipv6(ip, _) => tcp.calc_checksum_ipv6(&ip, b"abc"),
                _ => unreachable!("it was IP"),
            };
            prop_assert_eq!(sum.expect("not too long"), tcp.checksum);
        }

        #[test]
        fn any_facts_about_any_bytes_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 0..120),
            l4_words in 0..20u8,
            end in 0..150u16,
        ) {
            let mut heap = Heap::new(1, 200);
            let mut frame = heap.frame(&bytes).expect("free");
            let meta = Meta { flags: flag::IPV4 | flag::L4, proto: 6, detail: [2, 0], l4_words, end, ..Meta::UNKNOWN };
            clamp(&mut frame, &meta, 1000);
            heap.give_back(frame);
        }
    }
}
