//! Packets for tests, built from the few facts a test is about. Lengths and checksums always come out right; what is meant
//! to be wrong is patched in afterwards. Panics on addresses that do not parse: a test's input is part of the test.

use std::net::{IpAddr, SocketAddr};

use crate::packet::frame::Heap;
use crate::packet::meta::flag;
use crate::packet::{BATCH, Batch, Meta, NO_FLOW, NO_PORT, NO_RULE};
use crate::wire::ethernet::ethertype;
use crate::wire::{arp, checksum, icmpv4, icmpv6, protocol, tcp};

/// A batch of frames with these bytes (up to 64 of them), undecoded; the frames are the heap's.
pub fn batch<T: AsRef<[u8]>>(heap: &mut Heap, packets: impl IntoIterator<Item = T>) -> Box<Batch> {
    let mut batch = Box::new(Batch::default());
    let mut len = 0;
    for bytes in packets.into_iter().take(BATCH) {
        batch.frames[len] = heap.frame(bytes.as_ref()).expect("the heap has a buffer that is long enough");
        len += 1;
    }
    batch.begin(len);
    batch
}

/// Gives all frames of a batch back.
pub fn give_back(heap: &mut Heap, batch: &mut Batch) {
    for frame in batch.frames.iter_mut().filter(|frame| !frame.is_empty_slot()) {
        heap.give_back(frame.take());
    }
}

/// Asserts what decode promises of the facts of any packet it lets pass, the frame having `len` bytes.
pub fn assert_sound(meta: &Meta, len: usize) {
    if meta.end == 0 {
        return; // decoded to no depth
    }
    assert!(14 <= meta.l3() && meta.l3() <= meta.l4() && meta.l4() <= meta.end() && meta.end() <= len, "{meta:?}");
    let families = [flag::IPV4, flag::IPV6, flag::ARP].into_iter().filter(|family| meta.has(*family)).count();
    assert!(families <= 1, "{meta:?}");
    if families == 0 {
        assert_eq!((meta.src, meta.dst, meta.proto, meta.l4()), ([0; 16], [0; 16], 0, meta.l3()), "{meta:?}");
    }
    if meta.any(flag::IPV4 | flag::ARP) {
        assert!(meta.src[4..] == [0; 12] && meta.dst[4..] == [0; 12], "{meta:?}");
    }
    if meta.has(flag::LATER_FRAGMENT) {
        assert!(!meta.any(flag::PORTS | flag::L4 | flag::FIRST_FRAGMENT | flag::ICMP_ERROR), "{meta:?}");
    }
    if meta.any(flag::PORTS | flag::ICMP_ERROR) {
        assert!(meta.has(flag::L4) && meta.end() - meta.l4() >= 8, "{meta:?}");
    } else {
        let ethertype = if meta.any(flag::IPV4 | flag::IPV6) { 0 } else { meta.sport };
        assert_eq!((meta.sport, meta.dport), (ethertype, 0), "{meta:?}");
    }
    assert_eq!(meta.any(flag::TAGS), meta.l3() > 14, "{meta:?}");
    assert_eq!((meta.flow, meta.rule, meta.out, meta.hash), (NO_FLOW, NO_RULE, NO_PORT, 0), "{meta:?}");
}

/// One well-formed packet of every kind: seeds of fuzzing and of properties.
pub fn samples() -> Vec<Packet> {
    let (a, b) = ("10.0.0.1:1000", "192.0.2.1:53");
    let (c, d) = ("[2001:db8::1]:1000", "[2001:db8::2]:53");
    let udp = Packet::udp(a, b).payload(b"payload of a datagram");
    let udp6 = Packet::udp(c, d).payload(b"payload of a datagram");
    let syn = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    vec![
        udp.clone(),
        udp6.clone(),
        Packet::tcp(a, b).tcp_options(&syn),
        Packet::tcp(c, d).acknowledgment(1).payload(b"data"),
        udp.clone().vlan(5),
        udp6.clone().tag(ethertype::VLAN, 5).vlan(6),
        udp.clone().ip_options(&[0x94, 4, 0, 0, 1, 1, 1, 0]),
        udp.clone().fragment(0, true).payload(&[1; 24]),
        udp.clone().fragment(24, false),
        udp6.clone().fragment(0, true).payload(&[1; 24]),
        udp6.clone().fragment(24, false),
        udp6.clone()
            .extension(protocol::HOP_BY_HOP, &[5, 2, 0, 0, 1, 0])
            .extension(protocol::DESTINATION, &[1, 4, 0, 0, 0, 0])
            .extension(protocol::ROUTING, &[4, 0, 0, 0, 0, 0])
            .fragment(0, false),
        udp6.clone().extension(protocol::AH, &[0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9]),
        Packet::echo_request("10.0.0.1", "192.0.2.1", 7, 1).payload(b"ping"),
        Packet::echo_reply("2001:db8::1", "2001:db8::2", 7, 1).payload(b"ping"),
        Packet::icmp_error("10.0.0.9", "10.0.0.1", icmpv4::UNREACHABLE, 4, &udp),
        Packet::icmp_error("2001:db8::9", "2001:db8::1", icmpv6::TOO_BIG, 0, &udp6),
        Packet::sctp(a, b).payload(&[1, 0, 0, 4]),
        Packet::ip("10.0.0.1", "192.0.2.1", protocol::GRE).payload(&[0, 0, 8, 0]),
        Packet::ip("10.0.0.1", "192.0.2.1", protocol::ESP).payload(&[9; 24]),
        Packet::ip("10.0.0.1", "192.0.2.1", protocol::AH).payload(&[6, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]),
        Packet::ip("10.0.0.1", "192.0.2.1", protocol::UDP_LITE).payload(&[0, 1, 0, 2, 0, 8, 1, 1, 5]),
        Packet::ip("10.0.0.1", "192.0.2.1", protocol::DCCP).payload(&[0, 1, 0, 2, 3, 0, 0, 0, 0, 0, 0, 1]),
        Packet::ip("2001:db8::1", "2001:db8::2", 89).payload(&[3; 30]),
        Packet::arp(arp::REQUEST, "10.0.0.1", "10.0.0.2"),
        Packet::ethernet(38, &[0x42, 0x42, 3]),
    ]
}

/// A packet under construction.
#[derive(Clone, Debug)]
pub struct Packet {
    destination_mac: [u8; 6],
    source_mac: [u8; 6],
    /// EtherType and control information, outermost first.
    tags: Vec<(u16, u16)>,
    ethertype: u16,
    body: Body,
    pad: usize,
    patches: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum Body {
    Ip(Box<Ip>),
    Other(Vec<u8>),
}

#[derive(Clone, Debug)]
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    tos: u8,
    id: u32,
    dont_fragment: bool,
    options: Vec<u8>,
    /// Protocol number and whole header, whose first byte will name the next.
    extensions: Vec<(u8, Vec<u8>)>,
    fragment: Option<(usize, bool)>,
    patches: Vec<(usize, Vec<u8>)>,
    protocol: u8,
    header: Vec<u8>,
    payload: Vec<u8>,
    checksummed: bool,
}

impl Packet {
    /// A UDP datagram: `"10.0.0.1:1000"` or `"[2001:db8::1]:1000"`.
    pub fn udp(source: &str, destination: &str) -> Packet {
        let (source, destination) = (socket(source), socket(destination));
        let mut header = ports(source, destination);
        header.extend([0; 4]);
        Packet::over_ip(source.ip(), destination.ip(), protocol::UDP, header)
    }

    /// A TCP segment, a SYN unless [`flags`](Packet::flags) says otherwise.
    pub fn tcp(source: &str, destination: &str) -> Packet {
        let (source, destination) = (socket(source), socket(destination));
        let mut header = ports(source, destination);
        header.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, tcp::SYN, 0xff, 0xff, 0, 0, 0, 0]);
        Packet::over_ip(source.ip(), destination.ip(), protocol::TCP, header)
    }

    /// An SCTP packet without chunks (its CRC32c is left zero).
    pub fn sctp(source: &str, destination: &str) -> Packet {
        let (source, destination) = (socket(source), socket(destination));
        let mut header = ports(source, destination);
        header.extend([0; 8]);
        Packet::over_ip(source.ip(), destination.ip(), protocol::SCTP, header)
    }

    /// An ICMP or ICMPv6 message (by the addresses' family); `rest` are the four bytes behind the checksum.
    pub fn icmp(source: &str, destination: &str, kind: u8, code: u8, rest: [u8; 4]) -> Packet {
        let source = address(source);
        let protocol = if source.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        let mut header = vec![kind, code, 0, 0];
        header.extend(rest);
        Packet::over_ip(source, address(destination), protocol, header)
    }

    /// An echo request of either family.
    pub fn echo_request(source: &str, destination: &str, id: u16, sequence: u16) -> Packet {
        let kind = if address(source).is_ipv4() { icmpv4::ECHO_REQUEST } else { icmpv6::ECHO_REQUEST };
        Packet::icmp(source, destination, kind, 0, echo(id, sequence))
    }

    /// An echo reply of either family.
    pub fn echo_reply(source: &str, destination: &str, id: u16, sequence: u16) -> Packet {
        let kind = if address(source).is_ipv4() { icmpv4::ECHO_REPLY } else { icmpv6::ECHO_REPLY };
        Packet::icmp(source, destination, kind, 0, echo(id, sequence))
    }

    /// An ICMP or ICMPv6 error about `about`, which it quotes as far as RFC 1812 section 4.3.2.3 and RFC 4443 section 3 let it.
    pub fn icmp_error(source: &str, destination: &str, kind: u8, code: u8, about: &Packet) -> Packet {
        let mut quote = about.network();
        quote.truncate(if address(source).is_ipv4() { 576 - 28 } else { 1280 - 48 });
        Packet::icmp(source, destination, kind, code, [0; 4]).payload(&quote)
    }

    /// An IP packet of any protocol, whose payload begins with its transport header.
    pub fn ip(source: &str, destination: &str, protocol: u8) -> Packet {
        Packet::over_ip(address(source), address(destination), protocol, Vec::new())
    }

    /// An ARP request or reply ([`arp::REQUEST`], [`arp::REPLY`]) from `sender` about `target`.
    pub fn arp(operation: u16, sender: &str, target: &str) -> Packet {
        let (IpAddr::V4(sender), IpAddr::V4(target)) = (address(sender), address(target)) else {
            panic!("ARP is about IPv4 addresses")
        };
        let mut body = Vec::with_capacity(28);
        body.extend(arp::ETHERNET.to_be_bytes());
        body.extend(ethertype::IPV4.to_be_bytes());
        body.extend([6, 4]);
        body.extend(operation.to_be_bytes());
        body.extend(SOURCE_MAC);
        body.extend(sender.octets());
        body.extend([0; 6]);
        body.extend(target.octets());
        Packet::ethernet(ethertype::ARP, &body)
    }

    /// A frame of any EtherType.
    pub fn ethernet(ethertype: u16, payload: &[u8]) -> Packet {
        Packet {
            destination_mac: DESTINATION_MAC,
            source_mac: SOURCE_MAC,
            tags: Vec::new(),
            ethertype,
            body: Body::Other(payload.to_vec()),
            pad: 0,
            patches: Vec::new(),
        }
    }

    fn over_ip(source: IpAddr, destination: IpAddr, protocol: u8, header: Vec<u8>) -> Packet {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "both addresses are of one family");
        let ip = Ip {
            source,
            destination,
            ttl: 64,
            tos: 0,
            id: 0,
            dont_fragment: false,
            options: Vec::new(),
            extensions: Vec::new(),
            fragment: None,
            patches: Vec::new(),
            protocol,
            header,
            payload: Vec::new(),
            checksummed: true,
        };
        let ethertype = if source.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
        Packet { body: Body::Ip(Box::new(ip)), ..Packet::ethernet(ethertype, &[]) }
    }

    fn change(mut self, change: impl FnOnce(&mut Ip)) -> Packet {
        match &mut self.body {
            Body::Ip(ip) => change(ip),
            Body::Other(_) => panic!("the packet is not IP"),
        }
        self
    }

    fn change_tcp(self, change: impl FnOnce(&mut Vec<u8>)) -> Packet {
        self.change(|ip| {
            assert_eq!(ip.protocol, protocol::TCP, "the packet is not TCP");
            change(&mut ip.header);
        })
    }

    /// What follows the transport header (or, of another EtherType, the Ethernet header).
    pub fn payload(mut self, bytes: &[u8]) -> Packet {
        match &mut self.body {
            Body::Ip(ip) => ip.payload = bytes.to_vec(),
            Body::Other(payload) => *payload = bytes.to_vec(),
        }
        self
    }

    /// Adds an 802.1Q tag inside those added before.
    pub fn vlan(self, control: u16) -> Packet {
        self.tag(ethertype::VLAN, control)
    }

    /// Adds a tag announced by any EtherType inside those added before.
    pub fn tag(mut self, ethertype: u16, control: u16) -> Packet {
        self.tags.push((ethertype, control));
        self
    }

    /// Source and destination MAC.
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Packet {
        (self.source_mac, self.destination_mac) = (source, destination);
        self
    }

    /// TTL or hop limit.
    pub fn ttl(self, ttl: u8) -> Packet {
        self.change(|ip| ip.ttl = ttl)
    }

    /// Type of service or traffic class, DSCP in the upper six bits.
    pub fn tos(self, tos: u8) -> Packet {
        self.change(|ip| ip.tos = tos)
    }

    /// The identification that fragments share.
    pub fn id(self, id: u32) -> Packet {
        self.change(|ip| ip.id = id)
    }

    /// Sets "do not fragment" (IPv4).
    pub fn dont_fragment(self) -> Packet {
        self.change(|ip| ip.dont_fragment = true)
    }

    /// IPv4 options, a multiple of four bytes.
    pub fn ip_options(self, options: &[u8]) -> Packet {
        assert!(options.len().is_multiple_of(4) && options.len() <= 40, "IPv4 options are up to ten words");
        self.change(|ip| ip.options = options.to_vec())
    }

    /// Adds an IPv6 extension header behind those added before. `body` is what follows its first two bytes.
    pub fn extension(self, kind: u8, body: &[u8]) -> Packet {
        let len = body.len() + 2;
        let units = if kind == protocol::AH { len / 4 - 2 } else { len / 8 - 1 };
        assert!(len.is_multiple_of(8), "an extension header is a multiple of eight bytes");
        let mut header = vec![0, units as u8];
        header.extend(body);
        self.change(|ip| ip.extensions.push((kind, header)))
    }

    /// Makes it a fragment with this offset in bytes (of IPv6 behind the extensions added so far and later). The payload stays
    /// what it is, transport header included.
    pub fn fragment(self, offset: usize, more: bool) -> Packet {
        self.change(|ip| ip.fragment = Some((offset, more)))
    }

    /// TCP flags.
    pub fn flags(self, flags: u8) -> Packet {
        self.change_tcp(|header| header[13] = flags)
    }

    /// TCP sequence number.
    pub fn sequence(self, number: u32) -> Packet {
        self.change_tcp(|header| header[4..8].copy_from_slice(&number.to_be_bytes()))
    }

    /// TCP acknowledgment number; sets the flag too.
    pub fn acknowledgment(self, number: u32) -> Packet {
        self.change_tcp(|header| {
            header[8..12].copy_from_slice(&number.to_be_bytes());
            header[13] |= tcp::ACK;
        })
    }

    /// TCP window.
    pub fn window(self, window: u16) -> Packet {
        self.change_tcp(|header| header[14..16].copy_from_slice(&window.to_be_bytes()))
    }

    /// TCP options, a multiple of four bytes.
    pub fn tcp_options(self, options: &[u8]) -> Packet {
        assert!(options.len().is_multiple_of(4) && options.len() <= 40, "TCP options are up to ten words");
        self.change_tcp(|header| {
            header.truncate(20);
            header.extend(options);
            header[12] = (header.len() as u8 / 4) << 4;
        })
    }

    /// Leaves the transport checksum zero: for UDP over IPv4, no checksum.
    pub fn no_checksum(self) -> Packet {
        self.change(|ip| ip.checksummed = false)
    }

    /// Pads the frame with 0xaa to at least `len` bytes.
    pub fn pad(mut self, len: usize) -> Packet {
        self.pad = len;
        self
    }

    /// Overwrites bytes of the finished frame.
    pub fn patch(mut self, offset: usize, bytes: &[u8]) -> Packet {
        self.patches.push((offset, bytes.to_vec()));
        self
    }

    /// Overwrites bytes of the IP packet before the IPv4 header checksum is computed.
    pub fn patch_ip(self, offset: usize, bytes: &[u8]) -> Packet {
        self.change(|ip| ip.patches.push((offset, bytes.to_vec())))
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        self.frame(&self.network())
    }

    /// The frame's network-layer packet.
    pub fn network(&self) -> Vec<u8> {
        match &self.body {
            Body::Ip(ip) => ip.packet(&ip.segment(), ip.fragment),
            Body::Other(payload) => payload.clone(),
        }
    }

    /// The datagram in fragments whose payloads are of `size` bytes, a multiple of eight, but for the last.
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        assert!(size > 0 && size.is_multiple_of(8), "fragments are multiples of eight bytes");
        let Body::Ip(ip) = &self.body else { panic!("the packet is not IP") };
        let segment = ip.segment();
        let part = |(i, part): (usize, &[u8])| {
            let more = (i + 1) * size < segment.len();
            self.frame(&ip.packet(part, Some((i * size, more))))
        };
        segment.chunks(size).enumerate().map(part).collect()
    }

    fn frame(&self, network: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(network.len() + 22);
        frame.extend(self.destination_mac);
        frame.extend(self.source_mac);
        for (ethertype, control) in &self.tags {
            frame.extend(ethertype.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        frame.extend(self.ethertype.to_be_bytes());
        frame.extend(network);
        if frame.len() < self.pad {
            frame.resize(self.pad, 0xaa);
        }
        overwrite(&mut frame, &self.patches);
        frame
    }
}

impl Ip {
    /// Transport header and payload, with length and checksum.
    fn segment(&self) -> Vec<u8> {
        let mut segment = self.header.clone();
        segment.extend(&self.payload);
        let len = segment.len();
        if self.protocol == protocol::UDP && self.header.len() == 8 {
            segment[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        }
        // A protocol given as bare payload is taken as it is.
        if self.checksummed && !self.header.is_empty() {
            let pseudo = match (self.source, self.destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    checksum::pseudo(&source.octets(), &destination.octets(), self.protocol, len)
                }
                (IpAddr::V6(source), IpAddr::V6(destination)) => {
                    checksum::pseudo(&source.octets(), &destination.octets(), self.protocol, len)
                }
                _ => unreachable!("over_ip compared the families"),
            };
            let (at, sum) = match self.protocol {
                protocol::TCP => (16, checksum::transport(pseudo, &segment)),
                protocol::UDP => (6, checksum::udp(pseudo, &segment)),
                protocol::ICMP => (2, checksum::checksum(&segment)),
                protocol::ICMPV6 => (2, checksum::transport(pseudo, &segment)),
                _ => return segment,
            };
            segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        segment
    }

    fn packet(&self, payload: &[u8], fragment: Option<(usize, bool)>) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (offset, more) = fragment.unwrap_or((0, false));
                let header_len = 20 + self.options.len();
                let flags = u16::from(self.dont_fragment) << 14 | u16::from(more) << 13;
                let mut packet = vec![0x40 | (header_len / 4) as u8, self.tos];
                packet.extend(((header_len + payload.len()) as u16).to_be_bytes());
                packet.extend((self.id as u16).to_be_bytes());
                packet.extend((flags | (offset / 8) as u16).to_be_bytes());
                packet.extend([self.ttl, self.protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(&self.options);
                packet.extend(payload);
                overwrite(&mut packet, &self.patches);
                let sum = checksum::checksum(&packet[..header_len]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut extensions = self.extensions.clone();
                if let Some((offset, more)) = fragment {
                    let mut header = vec![0, 0];
                    header.extend((offset as u16 & !7 | u16::from(more)).to_be_bytes());
                    header.extend(self.id.to_be_bytes());
                    extensions.push((protocol::FRAGMENT, header));
                }
                let kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).chain([self.protocol]).collect();
                let len = payload.len() + extensions.iter().map(|(_, header)| header.len()).sum::<usize>();
                let mut packet = (0x6000_0000 | u32::from(self.tos) << 20).to_be_bytes().to_vec();
                packet.extend((len as u16).to_be_bytes());
                packet.extend([kinds[0], self.ttl]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                for ((_, header), next) in extensions.iter().zip(&kinds[1..]) {
                    packet.push(*next);
                    packet.extend(&header[1..]);
                }
                packet.extend(payload);
                overwrite(&mut packet, &self.patches);
                packet
            }
            _ => unreachable!("over_ip compared the families"),
        }
    }
}

const SOURCE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const DESTINATION_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn overwrite(bytes: &mut [u8], patches: &[(usize, Vec<u8>)]) {
    for (offset, patch) in patches {
        bytes[*offset..*offset + patch.len()].copy_from_slice(patch);
    }
}

fn ports(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat()
}

fn echo(id: u16, sequence: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (id.to_be_bytes(), sequence.to_be_bytes());
    [a, b, c, d]
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("'{text}' is not ADDRESS:PORT"))
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("'{text}' is not an address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_as_captured() {
        // scapy: Ether(..) / IP(src="10.0.0.1", dst="192.0.2.1") / UDP(sport=1000, dport=53) / b"hi".
        let bytes = Packet::udp("10.0.0.1:1000", "192.0.2.1:53").payload(b"hi").id(1).bytes();
        let expected = "0200000000020200000000010800\
                        4500001e000100004011aecc0a000001c000020103e80035000ac7516869";
        assert_eq!(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>(), expected);
    }

    #[test]
    fn fragments_cover_the_datagram() {
        let whole = Packet::udp("[2001:db8::1]:1", "[2001:db8::2]:2").payload(&[7; 100]).id(9);
        let parts = whole.fragments(48);
        assert_eq!(parts.len(), 3);
        let joined: Vec<u8> = parts.iter().flat_map(|part| part[14 + 48..].to_vec()).collect();
        assert_eq!(joined, whole.bytes()[54..]);
    }

    /// The seeds in `fuzz/corpus/decode` are the samples, each behind a byte of choices (0: everything, no receive flag).
    /// `FLOWGATE_BLESS=1` writes them anew.
    #[test]
    fn fuzz_seeds_are_the_samples() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/decode");
        for (i, packet) in samples().iter().enumerate() {
            let seed = [&[0][..], &packet.bytes()].concat();
            let file = folder.join(format!("sample-{i:02}"));
            if std::env::var_os("FLOWGATE_BLESS").is_some() {
                std::fs::write(&file, &seed).expect("the seed can be written");
            }
            assert_eq!(std::fs::read(&file).expect("the seed is there"), seed, "{}", file.display());
        }
    }
}
