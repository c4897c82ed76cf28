use proptest::prelude::*;

use super::error::{MOST_V4, MOST_V6};
use super::*;
use crate::packet::decode::decode;
use crate::packet::frame::Heap;
use crate::packet::{Batch, bits};
use crate::testkit::packets::{Packet, assert_sound, batch, give_back, samples};
use crate::wire::tcp::{self, Tcp};
use crate::wire::{icmpv4, icmpv6, protocol};

const A: &str = "10.0.0.5:40000";
const B: &str = "192.0.2.7:443";
const C: &str = "[2001:db8::5]:40000";
const D: &str = "[2001:db8:7::7]:443";

/// What `make` makes of a frame: the reply's bytes and facts; none if it refuses, having changed nothing.
fn answer_with(
    bytes: &[u8],
    prepare: impl Fn(&mut Frame),
    make: impl Fn(&mut Frame, &mut Meta) -> bool,
) -> Option<(Vec<u8>, Meta)> {
    let mut heap = Heap::new(1, 9700);
    let mut batch = batch(&mut heap, [bytes]);
    prepare(&mut batch.frames[0]);
    decode(&mut batch, Depth::L4);
    let Batch { frames, metas, live, .. } = &mut *batch;
    let mut answered = None;
    if bits(*live).next().is_some() {
        let (frame, meta) = (&mut frames[0], &mut metas[0]);
        let before = (frame.bytes().to_vec(), meta.clone());
        if make(frame, meta) {
            answered = Some((frame.bytes().to_vec(), meta.clone()));
        } else {
            assert_eq!((frame.bytes(), &*meta), (&before.0[..], &before.1), "a refusal changes nothing");
        }
    }
    give_back(&mut heap, &mut batch);
    answered
}

fn answer(bytes: &[u8]) -> Option<(Vec<u8>, Meta)> {
    let made = answer_with(bytes, |_| {}, reject);
    assert_eq!(made.is_some(), answer_with(bytes, |_| {}, |frame, meta| can_reject(frame, meta)).is_some());
    made
}

/// The facts of a reply, read anew from its bytes, whose checksums must be right.
fn check(reply: &[u8], facts: &Meta) {
    let mut heap = Heap::new(1, 9700);
    let mut batch = batch(&mut heap, [reply]);
    decode(&mut batch, Depth::L4);
    assert_eq!(batch.live, 1, "decode takes it: {reply:02x?}");
    let read = batch.metas[0].clone();
    give_back(&mut heap, &mut batch);
    assert_sound(&read, reply.len());
    assert!(read.has(flag::L4));
    assert_eq!((read.src, read.dst, read.sport, read.dport), (facts.src, facts.dst, facts.sport, facts.dport));
    assert_eq!((read.detail, read.l4(), read.end()), (facts.detail, facts.l4(), facts.end()));
    let segment = &reply[read.l4()..read.end()];
    let v4 = read.has(flag::IPV4);
    let good = match read.proto {
        protocol::ICMP => checksum::is_good(segment),
        proto => checksum::transport_is_good(pseudo(v4, &read.src, &read.dst, proto, segment.len()), segment),
    };
    assert!(good, "{reply:02x?}");
    assert!(reply[read.end()..].iter().all(|byte| *byte == 0), "padding tells nothing");
    assert_eq!(facts.out, facts.port);
}

fn segment(reply: &[u8], facts: &Meta) -> (u32, u32, u8) {
    let tcp = Tcp::parse(&reply[facts.l4()..]).expect("TCP");
    (tcp.sequence(), tcp.acknowledgment(), tcp.flags())
}

#[test]
fn a_reset_has_the_right_numbers() {
    for (a, b) in [(A, B), (C, D)] {
        let request = |flags: u8| Packet::tcp(a, b).sequence(u32::MAX - 1).flags(flags);
        let cases = [
            (request(tcp::SYN), (0, u32::MAX, tcp::RST | tcp::ACK)),
            (request(tcp::SYN | tcp::FIN).payload(&[1; 7]), (0, 7, tcp::RST | tcp::ACK)),
            (request(tcp::PSH).payload(&[1; 100]), (0, 98, tcp::RST | tcp::ACK)),
            (request(0), (0, u32::MAX - 1, tcp::RST | tcp::ACK)),
            (request(tcp::SYN).acknowledgment(77), (77, 0, tcp::RST)),
            (request(tcp::PSH).acknowledgment(0).payload(&[1; 1400]), (0, 0, tcp::RST)),
            (request(tcp::SYN).tcp_options(&[2, 4, 5, 0xb4]).payload(b"data"), (0, 3, tcp::RST | tcp::ACK)),
        ];
        for (packet, expected) in cases {
            // Padding is no payload.
            let (reply, facts) = answer(&packet.clone().pad(80).bytes()).expect("answered");
            check(&reply, &facts);
            assert_eq!(segment(&reply, &facts), expected, "{packet:?}");
            assert_eq!((facts.sport, facts.dport), (443, 40000));
            assert_eq!(reply.len(), if facts.has(flag::IPV4) { 60 } else { 74 });
            assert_eq!((&reply[..6], &reply[6..12]), (&[2, 0, 0, 0, 0, 1][..], &[2, 0, 0, 0, 0, 2][..]));
        }
        assert_eq!(answer(&request(tcp::RST).bytes()), None);
        assert_eq!(answer(&request(tcp::RST).acknowledgment(3).bytes()), None);
        let broken = request(tcp::SYN).bytes();
        let broken = [&broken[..broken.len() - 1], &[broken[broken.len() - 1] ^ 1]].concat();
        assert_eq!(answer(&broken), None, "a bad checksum");
    }
}

#[test]
fn options_and_extensions_of_the_request_are_not_in_the_reply() {
    let packet = Packet::tcp(A, B).ip_options(&[0x94, 4, 0, 0, 1, 1, 1, 0]).vlan(5).tag(0x8100, 6);
    let (reply, facts) = answer(&packet.bytes()).expect("answered");
    check(&reply, &facts);
    assert_eq!((facts.l3(), facts.l4(), facts.vlan), (22, 42, 5));
    let ip = Ipv4::parse(&reply[22..]).expect("IPv4");
    assert_eq!((ip.total_len(), ip.id(), ip.fragment(), ip.ttl()), (40, 0, ipv4::DF, 64));
    let packet = Packet::tcp(C, D).extension(protocol::HOP_BY_HOP, &[5, 2, 0, 0, 1, 0]).payload(&[3; 40]);
    let (reply, facts) = answer(&packet.bytes()).expect("answered");
    check(&reply, &facts);
    assert_eq!((facts.l4(), reply.len()), (54, 74));
    assert_eq!(segment(&reply, &facts).1, 41);
}

#[test]
fn an_error_quotes_what_was_received() {
    let long = vec![7; 1400];
    let udp4 = Packet::udp(A, B).ip_options(&[1, 1, 1, 0]).payload(&long);
    let udp6 = Packet::udp(C, D).extension(protocol::DESTINATION, &[1, 4, 0, 0, 0, 0]).payload(&long);
    let cases = [
        (udp4.clone(), 576, [3, 13]),
        (udp4.payload(b"x").vlan(9), 28 + 33, [3, 13]),
        (udp6.clone(), 1280, [1, 1]),
        (udp6.payload(b"x"), 48 + 57, [1, 1]),
        (Packet::echo_request("10.0.0.5", "192.0.2.7", 1, 1), 28 + 28, [3, 13]),
        (Packet::echo_request("2001:db8::5", "2001:db8::7", 1, 1), 48 + 48, [1, 1]),
        (Packet::ip("10.0.0.5", "192.0.2.7", protocol::ESP).payload(&[9; 24]), 28 + 44, [3, 13]),
        (Packet::tcp(A, B).payload(&[0; 60]).fragment(0, true), 28 + 100, [3, 13]),
        (Packet::udp(C, D).payload(&[0; 64]).fragment(0, true), 48 + 120, [1, 1]),
    ];
    for (packet, len, kind) in cases {
        let request = packet.clone().pad(200).bytes();
        let (reply, facts) = answer(&request).unwrap_or_else(|| panic!("{packet:?}"));
        check(&reply, &facts);
        assert_eq!((facts.end() - facts.l3(), reply.len() - facts.l3()), (len, len), "{packet:?}");
        assert_eq!(facts.detail, kind);
        assert!(facts.has(flag::ICMP_ERROR));
        let quote = &reply[facts.l4() + 8..];
        assert_eq!(quote, &request[facts.l3()..][..quote.len()]);
        assert_eq!(reply[facts.l4() + 4..][..4], [0; 4]);
    }
}

#[test]
fn what_must_not_be_answered_is_not() {
    let udp = Packet::udp(A, B);
    let tcp = Packet::tcp(C, D);
    let redirect = Packet::icmp("10.0.0.5", "192.0.2.7", icmpv4::REDIRECT, 1, [10, 0, 0, 1]).payload(&udp.network());
    let redirect6 = Packet::icmp("2001:db8::5", "2001:db8::7", 137, 0, [0; 4]).payload(&[0; 32]);
    let never = [
        Packet::icmp_error("10.0.0.5", "192.0.2.7", icmpv4::UNREACHABLE, 1, &udp),
        Packet::icmp_error("2001:db8::5", "2001:db8::7", icmpv6::TOO_BIG, 0, &tcp),
        redirect,
        redirect6,
        Packet::icmp("10.0.0.5", "192.0.2.7", 99, 0, [0; 4]),
        udp.clone().fragment(8, false).payload(&[0; 16]),
        tcp.clone().fragment(8, true).payload(&[0; 16]),
        Packet::udp("0.0.0.0:68", "192.0.2.7:67"),
        Packet::udp("127.0.0.1:68", "192.0.2.7:67"),
        Packet::udp("224.0.0.1:68", "192.0.2.7:67"),
        Packet::udp("240.0.0.1:68", "192.0.2.7:67"),
        Packet::udp(A, "255.255.255.255:67"),
        Packet::udp(A, "239.1.2.3:67"),
        Packet::tcp(A, "239.1.2.3:67"),
        Packet::tcp(A, "127.0.0.1:80"),
        Packet::tcp("0.0.0.0:1", B),
        Packet::udp(C, "[ff02::1]:67"),
        Packet::udp("[::]:1", D),
        Packet::udp("[::1]:1", D),
        Packet::udp("[ff05::1]:1", D),
        Packet::tcp(C, "[ff02::1]:67"),
        udp.clone().macs([2; 6], [0xff; 6]),
        udp.clone().macs([2; 6], [1, 0, 0x5e, 0, 0, 1]),
        udp.clone().macs([3; 6], [2; 6]),
        tcp.clone().macs([2; 6], [0x33, 0x33, 0, 0, 0, 1]),
        Packet::arp(1, "10.0.0.5", "10.0.0.7"),
        Packet::ethernet(0x88cc, &[0; 46]),
    ];
    for packet in never {
        assert_eq!(answer(&packet.bytes()), None, "{packet:?}");
    }
    let no_room = |frame: &mut Frame| {
        assert!(frame.grow_front(Heap::HEADROOM - 27));
        frame.bytes_mut().copy_within(Heap::HEADROOM - 27.., 0);
    };
    let answered = answer_with(&udp.bytes(), no_room, reject);
    assert_eq!(answered, None, "27 bytes of headroom are too few");
}

#[test]
fn other_errors_come_from_whom_they_are_said_to() {
    let mut router = [0; 16];
    router[..4].copy_from_slice(&[198, 51, 100, 1]);
    let mtu = Error { kind: icmpv4::UNREACHABLE, code: 4, rest: [0, 0, 5, 0xdc] };
    let packet = Packet::tcp(A, B).payload(&[1; 900]);
    let (reply, facts) = answer_with(&packet.bytes(), |_| {}, |f, m| error(f, m, mtu, &router)).expect("about TCP too");
    check(&reply, &facts);
    assert_eq!((facts.src, &reply[facts.l4() + 4..][..4]), (router, &[0, 0, 5, 0xdc][..]));
    let host = std::net::Ipv6Addr::LOCALHOST.octets();
    let router: [u8; 16] = "2001:db8::ffff".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    let big = Error { kind: icmpv6::TOO_BIG, code: 0, rest: [0, 0, 5, 0] };
    let group = Packet::udp(C, "[ff0e::5]:6").macs([2; 6], [0x33, 0x33, 0, 0, 0, 5]).bytes();
    let about = |error_: Error, source: [u8; 16]| answer_with(&group, |_| {}, |f, m| error(f, m, error_, &source));
    let (reply, facts) = about(big, router).expect("the exception of RFC 4443");
    check(&reply, &facts);
    assert_eq!(about(big, host), None, "no source to answer from");
    assert_eq!(about(Error { kind: icmpv6::TIME_EXCEEDED, code: 0, rest: [0; 4] }, router), None);
}

/// Our own addresses.
const R4: [u8; 4] = [198, 51, 100, 1];
const R6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

fn told(bytes: &[u8], what: Answer) -> Option<(Vec<u8>, Meta)> {
    answer_with(bytes, |_| {}, |frame, meta| super::answer(frame, meta, what, Some(R4), Some(R6)))
}

#[test]
fn every_answer_has_its_type_and_code() {
    let cases = [
        (Answer::TimeExceeded, Some([11, 0]), [3, 0], [0; 4]),
        (Answer::NoRoute, Some([3, 0]), [1, 0], [0; 4]),
        (Answer::HostUnreachable, Some([3, 1]), [1, 3], [0; 4]),
        (Answer::RejectRoute, Some([3, 1]), [1, 6], [0; 4]),
        (Answer::Prohibited, Some([3, 13]), [1, 1], [0; 4]),
        (Answer::SourcePolicy, Some([3, 13]), [1, 5], [0; 4]),
        (Answer::BeyondScope, None, [1, 2], [0; 4]),
        (Answer::SourceRouteFailed, Some([3, 5]), [1, 1], [0; 4]),
        (Answer::TooBig { mtu: 1400 }, Some([3, 4]), [2, 0], [0, 0, 5, 0x78]),
        (Answer::ParameterProblem { code: 1, pointer: 20 }, Some([12, 0]), [4, 1], [20, 0, 0, 20]),
    ];
    let requests =
        |a: &str, b: &str| [Packet::udp(a, b).payload(&[5; 1500]).vlan(3), Packet::tcp(a, b).fragment(0, true)];
    for (what, v4, v6, rest) in cases {
        for (a, b, kind) in [(A, B, v4), (C, D, Some(v6))] {
            for packet in requests(a, b) {
                let answered = told(&packet.clone().payload(&[1; 1500]).bytes(), what);
                assert_eq!(answered.is_some(), kind.is_some(), "{what:?}");
                let (Some((reply, facts)), Some(kind)) = (answered, kind) else { continue };
                check(&reply, &facts);
                assert_eq!(facts.detail, kind, "{what:?}");
                let four = facts.has(flag::IPV4);
                let ours = if four { &R4[..] } else { &R6 };
                assert_eq!((&facts.src[..ours.len()], facts.end() - facts.l3()), (ours, if four { 576 } else { 1280 }));
                // The pointer is one byte long in ICMP.
                let rest = match (what, four) {
                    (Answer::ParameterProblem { .. }, true) => [rest[0], 0, 0, 0],
                    (Answer::ParameterProblem { .. }, false) => [0, 0, 0, rest[3]],
                    _ => rest,
                };
                assert_eq!(reply[facts.l4() + 4..][..4], rest, "{what:?}");
            }
        }
    }
    let (reply, facts) = told(&Packet::udp(C, D).bytes(), Answer::TooBig { mtu: 500 }).expect("answered");
    assert_eq!(reply[facts.l4() + 4..][..4], [0, 0, 5, 0], "1280 at least");
    let far = Answer::ParameterProblem { code: 0, pointer: 256 };
    assert!(told(&Packet::udp(A, B).bytes(), far).is_none() && told(&Packet::udp(C, D).bytes(), far).is_some());
    assert!(told(&Packet::udp(A, B).bytes(), Answer::Nothing).is_none());
    assert_eq!(told(&Packet::tcp(A, B).bytes(), Answer::Reject), answer(&Packet::tcp(A, B).bytes()));
}

#[test]
fn without_an_address_there_is_no_answer() {
    let about = |packet: &Packet, four: Option<[u8; 4]>, six: Option<[u8; 16]>| {
        let make = |frame: &mut Frame, meta: &mut Meta| super::answer(frame, meta, Answer::NoRoute, four, six);
        answer_with(&packet.bytes(), |_| {}, make).is_some()
    };
    let (four, six) = (Packet::udp(A, B), Packet::udp(C, D));
    assert!(about(&four, Some(R4), None) && !about(&four, None, Some(R6)) && !about(&four, Some([0; 4]), None));
    assert!(about(&six, None, Some(R6)) && !about(&six, Some(R4), None) && !about(&six, None, Some([0; 16])));
}

#[test]
fn groups_are_answered_about_by_the_exceptions_only() {
    let six = Packet::udp(C, "[ff0e::5]:6").macs([2; 6], [0x33, 0x33, 0, 0, 0, 5]).bytes();
    let four = Packet::udp(A, "239.1.2.3:6").bytes();
    let option = |code| Answer::ParameterProblem { code, pointer: 40 };
    for (what, answered) in [
        (Answer::TooBig { mtu: 1400 }, true),
        (option(2), true),
        (option(0), false),
        (Answer::TimeExceeded, false),
        (Answer::NoRoute, false),
    ] {
        assert_eq!(told(&six, what).is_some(), answered, "{what:?}");
        assert_eq!(told(&four, what), None);
    }
}

#[test]
fn how_deep_a_packet_was_decoded_makes_no_difference() {
    for packet in samples() {
        let shallow = |bytes: &[u8]| {
            let mut heap = Heap::new(1, 9700);
            let mut batch = batch(&mut heap, [bytes]);
            decode(&mut batch, Depth::L3);
            let (frame, meta) = (&mut batch.frames[0], &mut batch.metas[0]);
            let made = super::answer(frame, meta, Answer::TimeExceeded, Some(R4), Some(R6));
            let made = made.then(|| frame.bytes().to_vec());
            give_back(&mut heap, &mut batch);
            made
        };
        let deep = told(&packet.bytes(), Answer::TimeExceeded).map(|(bytes, _)| bytes);
        assert_eq!(shallow(&packet.bytes()), deep, "{packet:?}");
    }
}

#[test]
fn a_tag_the_port_took_stays_out() {
    let prepare = |frame: &mut Frame| {
        (frame.flags, frame.vlan_tci) = (rx::VLAN_STRIPPED | rx::L3_SUM_GOOD | rx::L4_SUM_GOOD, 0x2007)
    };
    for packet in [Packet::tcp(A, B), Packet::udp(C, D)] {
        let (reply, facts) = answer_with(&packet.bytes(), prepare, reject).expect("answered");
        assert_eq!((facts.l3(), facts.vlan), (14, 7));
        assert!(!facts.has(flag::L4_SUM_GOOD));
        check(&reply, &Meta { vlan: 0, ..facts });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_packet_gets_a_sound_reply_or_none(
        sample in prop::sample::select(samples().into_iter().map(|packet| packet.bytes()).collect::<Vec<_>>()),
        flips in prop::collection::vec((0..90usize, any::<u8>()), 0..3),
        sum_good in any::<bool>(),
        grow in prop_oneof![Just(0usize), 0..1500usize],
    ) {
        let mut bytes = sample;
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.resize(bytes.len() + grow, 0x55);
        let flags = if sum_good { rx::L3_SUM_GOOD | rx::L4_SUM_GOOD } else { 0 };
        if let Some((reply, facts)) = answer_with(&bytes, |frame| frame.flags = flags, reject) {
            check(&reply, &facts);
            let theirs = etherparse::SlicedPacket::from_ethernet(&reply).expect("etherparse takes it");
            prop_assert!(theirs.transport.is_some());
            let most = if facts.has(flag::IPV4) { MOST_V4 } else { MOST_V6 };
            prop_assert!(reply.len() <= facts.l3() + most);
        }
    }
}
