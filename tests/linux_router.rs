//! The same packets through flowgate and through the Linux kernel, which routes between two interfaces of a namespace: what
//! comes out, where, with which bytes, and what the sender is told. Both must do the same, but for the differences listed here
//! with the text that says why.

mod common;

use std::net::IpAddr;
use std::process::Command;

use common::frames::{Frame, ip, udp};
use common::host::{Lab, Tap, run};
use common::skip;
use flowgate::route::{Gateway, Route, Source, Target};
use flowgate::testkit::bench::{Bench, End};
use flowgate::testkit::packets::Packet;

/// A packet, what flowgate makes of it, what Linux does (`*` if that is never the same), and why flowgate does as it does.
const DIFFERENCES: &[(&str, &str, &str, &str)] = &[
    (
        "too long with options",
        "1: piece 0+ of 1272, header 28, 63 hops; 1: piece 1272 of 136, header 24, 63 hops",
        "1: piece 0+ of 1272, header 28, 63 hops; 1: piece 1272 of 136, header 28, 63 hops",
        "RFC 791 section 3.1: an option that is not to be copied is in the first fragment only; Linux leaves its room empty.",
    ),
    (
        "record route",
        "1: passes",
        "1: changed, 68 bytes, 22=08 23=0a 24=5c 26=fe",
        "RFC 7126 section 4.6: a router may pass the option on as if it were not there.",
    ),
    (
        "last hop, from the broadcast address",
        "nothing",
        "*",
        "RFC 1812 section 4.3.2.7: no error goes to a broadcast address. Linux sends it to all on the link.",
    ),
    ("timestamp", "1: passes", "*", "RFC 7126 section 4.7: likewise. What Linux writes is the time."),
    ("loose source route", SOURCE_ROUTE, "nothing", TOLD),
    ("strict source route", SOURCE_ROUTE, "nothing", TOLD),
    ("loose source route in transit", SOURCE_ROUTE, "nothing", TOLD),
    (
        "from this network",
        "nothing",
        "1: passes",
        "RFC 1812 section 5.3.7, RFC 6890: no source but at start, to its link.",
    ),
    ("from the reserved", "nothing", "1: passes", "RFC 1812 section 5.3.7, RFC 1112 section 4: not in use."),
    ("from a link", "nothing", "1: passes", "RFC 3927 section 7: such packets are not forwarded."),
    (
        "from the broadcast address",
        "nothing",
        "1: passes",
        "RFC 1812 section 5.3.7: a source is the address of one host.",
    ),
    (
        "from the box 6",
        "nothing",
        "1: passes",
        "Nobody else has an address of the box: Linux refuses such a source over IPv4 only.",
    ),
    (
        "last hop of a later fragment 6",
        "nothing",
        "0: 3/0 0 from 2001:db8:91::fe, 88 quoted, class 00, 64 hops",
        "RFC 1122 section 3.2.2, kept for IPv6 too: the first fragment has been answered, and ports are in no other.",
    ),
    (
        "no route, a later fragment 6",
        "nothing",
        "0: 1/0 0 from 2001:db8:91::fe, 88 quoted, class 00, 64 hops",
        "RFC 1122 section 3.2.2: likewise.",
    ),
    ("unknown option, dropped 6", "1: passes", "nothing", HOP_BY_HOP),
    (
        "unknown option, told of 6",
        "1: passes",
        "0: 4/2 42 from 2001:db8:91::fe, 88 quoted, class 00, 64 hops",
        HOP_BY_HOP,
    ),
    ("from a mapped address 6", "nothing", "1: passes", "RFC 6890 section 2.2.3: neither a source nor forwarded."),
    (
        "to nobody 6",
        "nothing",
        "0: 1/0 0 from 2001:db8:91::fe, 80 quoted, class 00, 64 hops",
        "RFC 4291 section 2.5.2: no destination. Who sends this has nothing to learn.",
    ),
    (
        "to a mapped address 6",
        "nothing",
        "0: 1/0 0 from 2001:db8:91::fe, 80 quoted, class 00, 64 hops",
        "RFC 6890 section 2.2.3: likewise.",
    ),
    (
        "from a link 6",
        "0: 1/2 0 from 2001:db8:91::fe, 80 quoted, class 00, 64 hops",
        "0: 1/2 0 from its link-local address, 80 quoted, class 00, 64 hops",
        "RFC 4443 section 2.2 (d): any address of the router that helps; a global one says more.",
    ),
    (
        "to a link 6",
        "nothing",
        "0: passes",
        "RFC 4291 section 2.5.6: not forwarded to other links; what came in a frame to the box is given to its kernel.",
    ),
    (
        "unreachable 6",
        "0: 1/6 0 from 2001:db8:91::fe, 80 quoted, class 00, 64 hops",
        "0: 1/0 0 from 2001:db8:91::fe, 80 quoted, class 00, 64 hops",
        "RFC 4443 section 3.1: code 6 is of a route that rejects; there is one, so code 0, of no route, is not true.",
    ),
];

const SOURCE_ROUTE: &str = "0: 3/5 0 from 10.91.0.254, 68 quoted, class c0, 64 hops";
const TOLD: &str = "RFC 7126 sections 4.3 and 4.4: dropped; RFC 1812 section 5.2.7.1: and told of.";
const HOP_BY_HOP: &str = "RFC 8200 section 4.3: only a node that was told to examines these options.";

const HOSTS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 0x0a], [2, 0, 0, 0, 0, 0x0b]];
const OWN: [[&str; 2]; 2] = [["10.91.0.254", "2001:db8:91::fe"], ["10.92.0.254", "2001:db8:92::fe"]];
const PEERS: [[&str; 2]; 2] = [["10.91.0.1", "2001:db8:91::1"], ["10.92.0.1", "2001:db8:92::1"]];
const NOWHERE: [(&str, &str); 6] = [
    ("blackhole", "198.51.100.0/26"),
    ("unreachable", "198.51.100.64/26"),
    ("prohibit", "198.51.100.128/26"),
    ("blackhole", "2001:db8:b::/48"),
    ("unreachable", "2001:db8:c::/48"),
    ("prohibit", "2001:db8:d::/48"),
];

/// Packets from the host on side 0, by name.
fn cases() -> Vec<(&'static str, Packet)> {
    let to = |to: &str| Packet::udp("10.91.0.1:4000", &format!("{to}:9")).payload(&[7; 32]);
    let from = |from: &str| Packet::udp(&format!("{from}:4000"), "10.92.0.1:9").payload(&[7; 32]);
    let to6 = |to: &str| Packet::udp("[2001:db8:91::1]:4000", &format!("[{to}]:9")).payload(&[7; 32]);
    let from6 = |from: &str| Packet::udp(&format!("[{from}]:4000"), "[2001:db8:92::1]:9").payload(&[7; 32]);
    let (far, far6) = (|| to("10.92.0.1"), || to6("2001:db8:92::1"));
    let error = || Packet::icmp_error("10.91.0.1", "10.92.0.1", 3, 1, &Packet::udp("10.92.0.1:1", "10.91.0.1:2"));
    let lost = |to: &str| Packet::icmp_error("10.91.0.1", to, 3, 1, &Packet::udp("192.0.2.1:1", "10.91.0.1:2"));
    let error6 = |to: &str| {
        let about = Packet::udp(&format!("[{to}]:1"), "[2001:db8:91::1]:2");
        Packet::icmp_error("2001:db8:91::1", to, 1, 0, &about)
    };
    vec![
        // First, since Linux tells each source of routes that are not there no more than once a second, after five.
        ("no route", to("192.0.2.1")),
        ("no route, an error", lost("192.0.2.1")),
        ("no route, a later fragment", to("192.0.2.1").fragment(1480, false)),
        ("unreachable", to("198.51.100.65")),
        ("prohibited", to("198.51.100.129")),
        ("plain", far()),
        ("by a gateway", to("10.93.1.1")),
        ("a segment", Packet::tcp("10.91.0.1:4000", "10.92.0.1:80").flags(2)),
        ("classes", far().tos(0xb9)),
        ("identification", far().id(0x1234)),
        ("last hop but one", far().ttl(2)),
        ("last hop", far().ttl(1)),
        ("no hop", far().ttl(0)),
        ("last hop of an echo", Packet::echo_request("10.91.0.1", "10.92.0.1", 1, 1).ttl(1)),
        ("last hop of an error", error().ttl(1)),
        ("last hop of a first fragment", far().fragment(0, true).ttl(1)),
        ("last hop of a later fragment", far().fragment(1480, false).ttl(1)),
        ("last hop of much", far().payload(&[7; 1000]).ttl(1)),
        ("last hop with options", far().ip_options(&[1, 1, 1, 0]).ttl(1)),
        ("error", error()),
        ("as long as the link", far().payload(&[7; 1272])),
        ("too long, not to be cut", far().payload(&[7; 1400]).dont_fragment()),
        ("too long", far().payload(&[7; 1400])),
        ("too long with options", far().payload(&[7; 1400]).ip_options(&[0x94, 4, 0, 0, 7, 3, 4, 1])),
        ("too long a fragment", far().payload(&[7; 1400]).fragment(2960, true)),
        ("too long an error, not to be cut", lost("10.92.0.1").payload(&[7; 1400]).dont_fragment()),
        ("first fragment", far().fragment(0, true)),
        ("later fragment", far().fragment(1480, false)),
        ("no operation", far().ip_options(&[1, 1, 1, 0])),
        ("router alert", far().ip_options(&[0x94, 4, 0, 0])),
        ("unknown option", far().ip_options(&[0x9e, 4, 0, 0])),
        ("record route", far().ip_options(&[7, 7, 4, 0, 0, 0, 0, 1])),
        ("timestamp", far().ip_options(&[68, 8, 5, 0, 0, 0, 0, 0])),
        ("loose source route", to("10.91.0.254").ip_options(&[131, 7, 4, 10, 92, 0, 1, 0])),
        ("strict source route", to("10.91.0.254").ip_options(&[137, 7, 4, 10, 92, 0, 1, 0])),
        ("loose source route in transit", far().ip_options(&[131, 7, 4, 10, 92, 0, 9, 0])),
        ("option beyond the header", far().ip_options(&[7, 39, 4, 0])),
        ("option without length", far().ip_options(&[1, 1, 1, 7])),
        ("from loopback", from("127.0.0.1")),
        ("from this network", from("0.1.2.3")),
        ("from nobody", from("0.0.0.0")),
        ("from a group", from("224.0.0.5")),
        ("from everybody", from("255.255.255.255")),
        ("from the reserved", from("240.0.0.1")),
        ("from a link", from("169.254.1.1")),
        ("from the other side", from("10.92.0.77")),
        ("from the box", from("10.91.0.254")),
        ("from the broadcast address", from("10.91.0.255")),
        ("last hop, from the broadcast address", from("10.91.0.255").ttl(1)),
        ("to loopback", to("127.0.0.1")),
        ("to this network", to("0.1.2.3")),
        ("to the reserved", to("240.0.0.1")),
        ("to a link", to("169.254.1.1")),
        ("to a subnet", to("10.92.0.255")),
        ("to a group", to("239.1.1.1")),
        ("blackhole", to("198.51.100.1")),
        ("echo, near", Packet::echo_request("10.91.0.1", "10.91.0.254", 1, 1)),
        ("echo, far", Packet::echo_request("10.91.0.1", "10.92.0.254", 1, 1)),
        ("echo, last hop", Packet::echo_request("10.91.0.1", "10.92.0.254", 1, 1).ttl(1)),
        ("header checksum", far().patch(24, &[0xde, 0xad])),
        ("transport checksum", far().patch(40, &[0xde, 0xad])),
        ("no transport checksum", far().no_checksum()),
        ("version", far().patch(14, &[0x55])),
        ("header length", far().patch_ip(0, &[0x44])),
        ("longer than its frame", far().patch_ip(2, &[0x10, 0])),
        ("shorter than its header", far().patch_ip(2, &[0, 19])),
        ("padded", far().payload(&[7; 2]).pad(60)),
        ("plain 6", far6()),
        ("by a gateway 6", to6("2001:db8:93::1")),
        ("classes 6", far6().tos(0xb9)),
        ("last hop but one 6", far6().ttl(2)),
        ("last hop 6", far6().ttl(1)),
        ("no hop 6", far6().ttl(0)),
        ("last hop of an error 6", error6("2001:db8:92::1").ttl(1)),
        ("last hop of a later fragment 6", far6().fragment(1480, false).ttl(1)),
        ("last hop of much 6", far6().payload(&[7; 1200]).ttl(1)),
        ("error 6", error6("2001:db8:92::1")),
        ("as long as the link 6", far6().payload(&[7; 1252])),
        ("too long 6", far6().payload(&[7; 1400])),
        ("first fragment 6", far6().fragment(0, true)),
        ("later fragment 6", far6().fragment(1480, false)),
        ("destination options 6", far6().extension(60, &[1, 4, 0, 0, 0, 0])),
        ("hop-by-hop options 6", far6().extension(0, &[1, 4, 0, 0, 0, 0])),
        ("router alert 6", far6().extension(0, &[5, 2, 0, 0, 1, 0])),
        ("unknown option, skipped 6", far6().extension(0, &[0x1e, 4, 0, 0, 0, 0])),
        ("unknown option, dropped 6", far6().extension(0, &[0x5e, 4, 0, 0, 0, 0])),
        ("unknown option, told of 6", far6().extension(0, &[0x9e, 4, 0, 0, 0, 0])),
        ("option beyond its header 6", far6().extension(0, &[0x1e, 14, 0, 0, 0, 0])),
        ("routing header 0 6", far6().extension(43, &[0, 0, 0, 0, 0, 0])),
        ("unknown routing header 6", far6().extension(43, &[77, 0, 0, 0, 0, 0])),
        ("from loopback 6", from6("::1")),
        ("from nobody 6", from6("::")),
        ("from a group 6", from6("ff02::5")),
        ("from a mapped address 6", from6("::ffff:10.91.0.1")),
        ("from a link 6", from6("fe80::7")),
        ("from the other side 6", from6("2001:db8:92::77")),
        ("from the box 6", from6("2001:db8:91::fe")),
        ("to loopback 6", to6("::1")),
        ("to nobody 6", to6("::")),
        ("to a mapped address 6", to6("::ffff:10.92.0.1")),
        ("to a link 6", to6("fe80::7")),
        ("to a group of this host 6", to6("ff01::5")),
        ("to a group of the site 6", to6("ff05::5")),
        ("to a group 6", to6("ff0e::5")),
        ("no route 6", to6("2001:db8:ff::1")),
        ("no route, an error 6", error6("2001:db8:ff::1")),
        ("no route, a later fragment 6", to6("2001:db8:ff::1").fragment(1480, false)),
        ("no route, much 6", to6("2001:db8:ff::1").payload(&[7; 1240])),
        ("blackhole 6", to6("2001:db8:b::1")),
        ("unreachable 6", to6("2001:db8:c::1")),
        ("prohibited 6", to6("2001:db8:d::1")),
        ("echo, near 6", Packet::echo_request("2001:db8:91::1", "2001:db8:91::fe", 1, 1)),
        ("echo, far 6", Packet::echo_request("2001:db8:91::1", "2001:db8:92::fe", 1, 1)),
        ("echo, last hop 6", Packet::echo_request("2001:db8:91::1", "2001:db8:92::fe", 1, 1).ttl(1)),
        ("transport checksum 6", far6().patch(60, &[0xde, 0xad])),
        ("longer than its frame 6", far6().patch_ip(4, &[0x10, 0])),
        ("version 6", far6().patch(14, &[0x50])),
    ]
}

/// Says what became of `sent` in one frame that came out, in words.
fn describe(side: usize, frame: &[u8], macs: [[u8; 6]; 2], sent: &[u8]) -> String {
    let packet = &frame[14..];
    let v4 = packet[0] >> 4 == 4;
    let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let end = if v4 { usize::from(word(packet, 2)) } else { 40 + usize::from(word(packet, 4)) };
    let packet = &packet[..end.min(packet.len())];
    let mut text = format!("{side}: ");
    if frame[..6] != HOSTS[side] || frame[6..12] != macs[side] {
        text += &format!("({:02x?}) ", &frame[..12]);
    }
    let (header, proto) = if v4 { (usize::from(packet[0] & 15) * 4, packet[9]) } else { (40, packet[6]) };
    let address = |at: usize| -> IpAddr {
        match v4 {
            true => <[u8; 4]>::try_from(&packet[at..at + 4]).expect("four bytes").into(),
            false => <[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen bytes").into(),
        }
    };
    let (source, hops) = if v4 { (address(12), packet[8]) } else { (address(8), packet[7]) };
    let message = &packet[header..];
    // What a link-local address is made of changes with each run.
    let link = matches!(source, IpAddr::V6(source) if source.segments()[0] == 0xfe80);
    let own = link || OWN.iter().flatten().any(|own| ip(own) == source);
    let source = if link { "its link-local address".to_owned() } else { source.to_string() };
    let from_box = own && (proto == 1 || proto == 58) && packet != sent;
    if from_box && (if v4 { matches!(message[0], 3 | 4 | 5 | 11 | 12) } else { message[0] < 128 }) {
        let quoted = &message[8..];
        let same = if sent.starts_with(quoted) { "" } else { ", not as sent" };
        let class = if v4 { packet[1] } else { (word(packet, 0) >> 4) as u8 };
        let [kind, code, _, _, a, b, c, d] = message[..8] else { return "a short error".into() };
        let rest = u32::from_be_bytes([a, b, c, d]);
        return text
            + &format!(
                "{kind}/{code} {rest} from {source}, {} quoted{same}, class {class:02x}, {hops} hops",
                quoted.len()
            );
    }
    if from_box && matches!(message[0], 0 | 129) {
        return text + &format!("echo reply from {source}, {hops} hops, {} bytes", packet.len());
    }
    let mut want = sent.to_vec();
    let at = if v4 { 8 } else { 7 };
    want[at] = want[at].wrapping_sub(1);
    if packet.len() == want.len() && v4 {
        want[10..12].copy_from_slice(&packet[10..12]);
    }
    let good = !v4 || sum(&packet[..header]) == 0xffff;
    if packet == want && good {
        return text + "passes";
    }
    if v4 && good && packet[4..6] == sent[4..6] && word(packet, 6) != word(sent, 6) {
        let (at, more) = ((word(packet, 6) & 0x1fff) * 8, if packet[6] & 0x20 != 0 { "+" } else { "" });
        return text + &format!("piece {at}{more} of {}, header {header}, {hops} hops", packet.len() - header);
    }
    let differ: Vec<String> = (0..packet.len().max(want.len()))
        .filter(|at| packet.get(*at) != want.get(*at))
        .take(8)
        .map(|at| format!("{at}={:02x}", packet.get(at).copied().unwrap_or_default()))
        .collect();
    text + &format!("changed, {} bytes, {}", packet.len(), differ.join(" "))
}

/// RFC 1071, without the complement.
fn sum(bytes: &[u8]) -> u16 {
    let all: u32 = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
    ((all & 0xffff) + (all >> 16)) as u16
}

/// A router in a namespace, and the far ends of its interfaces.
struct Linux {
    taps: [Tap; 2],
    macs: [[u8; 6]; 2],
    sentinels: u16,
    _lab: Lab,
}

fn inside(namespace: &str, command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new("ip").args(["netns", "exec", namespace]).args(&words).output().expect("ip");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Linux {
    fn new(mut lab: Lab) -> Linux {
        let namespace = lab.namespace();
        for setting in [
            "ipv4.ip_forward=1",
            "ipv4.icmp_ratelimit=0",
            // As RFC 1812 section 4.3.2.4 has it.
            "ipv4.icmp_errors_use_inbound_ifaddr=1",
            "ipv4.conf.all.accept_source_route=0",
            "ipv4.conf.all.send_redirects=0",
            "ipv4.conf.default.send_redirects=0",
            "ipv4.conf.all.rp_filter=0",
            "ipv4.conf.default.rp_filter=0",
            "ipv6.conf.all.forwarding=1",
            "ipv6.conf.default.accept_dad=0",
            "ipv6.icmp.ratelimit=0",
        ] {
            inside(&namespace, &format!("sysctl -qw net.{setting}"));
        }
        let (taps, macs): (Vec<_>, Vec<_>) = (0..2)
            .map(|side| {
                let (port, tap) = lab.wire();
                let text = std::fs::read_to_string(format!("/sys/class/net/{port}/address")).expect("an interface");
                let mut mac = [0; 6];
                for (byte, digits) in mac.iter_mut().zip(text.trim().split(':')) {
                    *byte = u8::from_str_radix(digits, 16).expect("a MAC address");
                }
                run(&format!("ip link set {port} netns {namespace}"));
                inside(&namespace, &format!("sysctl -qw net.ipv6.conf.{port}.disable_ipv6=0"));
                let mtu = [1500, 1300][side];
                inside(&namespace, &format!("ip link set {port} mtu {mtu} arp on up"));
                for (own, peer) in OWN[side].iter().zip(PEERS[side]) {
                    let [a, b, c, d, e, f] = HOSTS[side];
                    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
                    let (len, nodad) = if own.contains(':') { (64, "nodad") } else { (24, "brd +") };
                    inside(&namespace, &format!("ip addr add {own}/{len} dev {port} {nodad}"));
                    inside(&namespace, &format!("ip neigh add {peer} lladdr {mac} dev {port} nud permanent"));
                }
                if side == 0 {
                    inside(
                        &namespace,
                        &format!("ip neigh add fe80::7 lladdr 02:00:00:00:00:0a dev {port} nud permanent"),
                    );
                }
                (tap, mac)
            })
            .unzip();
        for (kind, to) in NOWHERE {
            let family = if to.contains(':') { "-6" } else { "-4" };
            inside(&namespace, &format!("ip {family} route add {kind} {to}"));
        }
        inside(&namespace, "ip route add 10.93.0.0/16 via 10.92.0.1");
        inside(&namespace, "ip -6 route add 2001:db8:93::/48 via 2001:db8:92::1");
        let taps = taps.try_into().unwrap_or_else(|_| panic!("two of them"));
        Linux { taps, macs: macs.try_into().expect("two of them"), sentinels: 0, _lab: lab }
    }

    /// What comes out when the frame goes in on side 0. A datagram each way follows it: when they have come out, so has
    /// everything that ever will.
    fn push(&mut self, frame: &[u8]) -> Vec<(usize, Frame)> {
        let mut frame = frame.to_vec();
        frame[..6].copy_from_slice(&self.macs[0]);
        self.taps[0].send(&frame);
        let mut out = Vec::new();
        for from in 0..2 {
            self.sentinels += 1;
            let mut sentinel = udp(ip(PEERS[from][0]), 7, ip(PEERS[1 - from][0]), self.sentinels, b"");
            sentinel[..6].copy_from_slice(&self.macs[from]);
            self.taps[from].send(&sentinel);
            let mut seen = false;
            common::appliance::wait_for("the datagram behind the packet", || {
                for side in 0..2 {
                    for frame in self.taps[side].waiting() {
                        let is_sentinel = frame[12..14] == [8, 0] && frame[23] == 17 && frame[34..36] == [0, 7];
                        seen |= is_sentinel && frame[36..38] == self.sentinels.to_be_bytes();
                        let arp = frame[12..14] == [8, 6];
                        // Discovery and reports of group membership: what the kernel says on its own.
                        let chatter = frame[12..14] == [0x86, 0xdd]
                            && (frame[20] == 0 && frame[54] == 58 || frame[20] == 58 && matches!(frame[54], 130..=143));
                        if !is_sentinel && !arp && !chatter {
                            out.push((side, frame));
                        }
                    }
                }
                seen
            });
        }
        out
    }
}

/// Flowgate with the same addresses, neighbors and routes.
fn flowgate() -> Bench {
    let mut bench = Bench::new(
        "[neighbor]\ndad_probes = 0\n[pipeline]\nstages = ['route']\n\
         [[port]]\nname = 'lan'\ndevice = 'net_null0'\n[[port]]\nname = 'wan'\ndevice = 'net_null1'\nmtu = 1300\n",
    );
    bench.route(|router, now| {
        for (side, addresses) in OWN.iter().enumerate() {
            for own in addresses {
                let len = if own.contains(':') { 64 } else { 24 };
                let net = format!("{own}/{len}").parse().expect("an address");
                router.address(side as u8, net, true, now);
            }
        }
        router.start(u64::MAX, &[0, 1], now);
        for (side, (peers, mac)) in PEERS.iter().zip(HOSTS).enumerate() {
            peers.iter().for_each(|peer| router.add_static(side as u8, ip(peer), mac, now));
        }
        let via = |gateway: &str| Target::Via(vec![Gateway { via: Some(ip(gateway)), port: None, weight: 1 }]);
        let nowhere = NOWHERE.iter().map(|(kind, to)| match *kind {
            "blackhole" => (*to, Target::Blackhole),
            "unreachable" => (*to, Target::Unreachable),
            _ => (*to, Target::Prohibit),
        });
        let gateways = [("10.93.0.0/16", via("10.92.0.1")), ("2001:db8:93::/48", via("2001:db8:92::1"))];
        for (to, target) in nowhere.chain(gateways) {
            router.route(Source::Static, &Route { to: to.parse().expect("a prefix"), target, metric: 0 }, true);
        }
    });
    bench
}

#[test]
fn linux_and_flowgate_route_alike() {
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(why) => return skip("linux-router", &why),
    };
    let (mut linux, mut bench) = (Linux::new(lab), flowgate());
    let own = [[2, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 1]];
    let (mut wrong, cases) = (Vec::new(), cases());
    for (name, packet) in &cases {
        let frame = packet.clone().macs(HOSTS[0], own[0]).bytes();
        // The packet as it was sent, without what pads its frame.
        let whole = &frame[14..];
        let ends = bench.push_all("lan", &[&frame]);
        let sides = ends.iter().filter_map(|end| match end {
            End::Sent { port, bytes, .. } => {
                Some((["lan", "wan"].iter().position(|side| side == port)?, bytes.clone()))
            }
            End::Dropped { .. } => None,
        });
        let words = |out: &mut dyn Iterator<Item = (usize, Frame)>, macs| -> String {
            let all: Vec<String> = out.map(|(side, bytes)| describe(side, &bytes, macs, whole)).collect();
            if all.is_empty() { "nothing".into() } else { all.join("; ") }
        };
        let ours = words(&mut { sides }, own);
        let theirs = words(&mut linux.push(&frame).into_iter(), linux.macs);
        let known = DIFFERENCES.iter().find(|(known, ..)| known == name);
        let expected = match known {
            Some((_, a, b, _)) => *a == ours && *b != ours && (*b == theirs || *b == "*"),
            None => ours == theirs,
        };
        if !expected {
            wrong.push(format!("{name}:\n  flowgate {ours}\n  Linux    {theirs}\n  ({ends})", ends = reasons(&ends)));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    for (name, ..) in DIFFERENCES {
        assert!(cases.iter().any(|(known, _)| known == name), "{name} is no packet");
    }
}

fn reasons(ends: &[End]) -> String {
    ends.iter().map(End::reason).collect::<Vec<_>>().join(", ")
}
