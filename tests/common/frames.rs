//! Frames and capture files, built byte by byte and by nothing that flowgate itself uses, so that a test never compares
//! flowgate with itself.

use std::net::IpAddr;
use std::path::Path;

/// Bytes of a frame, from the destination MAC on, without frame check sequence.
pub type Frame = Vec<u8>;

/// MAC of the station on the inside.
pub const MAC_IN: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0a];
/// MAC of the station on the outside.
pub const MAC_OUT: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0b];

/// TCP flags.
pub const SYN: u8 = 0x02;
/// TCP flags.
pub const ACK: u8 = 0x10;

/// An address of a test.
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text}: an address"))
}

/// RFC 1071.
fn sum(parts: &[&[u8]]) -> u16 {
    let all: Vec<u8> = parts.concat();
    let mut sum: u32 = all.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The checksum of a transport segment under its pseudo header, written at `at` of the segment.
pub fn seal(src: IpAddr, dst: IpAddr, proto: u8, segment: &mut [u8], at: usize) {
    let length = (segment.len() as u32).to_be_bytes();
    let value = match sum(&[&octets(src), &octets(dst), &length, &[0, 0, 0, proto], segment]) {
        0 if proto == 17 => 0xffff,
        value => value,
    };
    segment[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// An Ethernet frame, padded to the minimum of 60 bytes.
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Frame {
    let mut frame = [&MAC_OUT[..], &MAC_IN[..], &ethertype.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// An IPv4 packet; `fragment` is the word of flags and offset.
pub fn ipv4(src: IpAddr, dst: IpAddr, proto: u8, id: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0];
    header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header.extend(octets(src));
    header.extend(octets(dst));
    let check = sum(&[&header]);
    header[10..12].copy_from_slice(&check.to_be_bytes());
    [&header, payload].concat()
}

/// An IPv6 packet.
pub fn ipv6(src: IpAddr, dst: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, length[0], length[1], next, 64], &octets(src)[..], &octets(dst), payload].concat()
}

/// A frame around a transport segment, of the family of its addresses.
pub fn packet(src: IpAddr, dst: IpAddr, proto: u8, segment: &[u8]) -> Frame {
    match src {
        IpAddr::V4(_) => ethernet(0x0800, &ipv4(src, dst, proto, 7, 0, segment)),
        IpAddr::V6(_) => ethernet(0x86dd, &ipv6(src, dst, proto, segment)),
    }
}

/// A UDP datagram in a frame.
pub fn udp(src: IpAddr, sport: u16, dst: IpAddr, dport: u16, payload: &[u8]) -> Frame {
    packet(src, dst, 17, &udp_segment(src, sport, dst, dport, payload))
}

fn udp_segment(src: IpAddr, sport: u16, dst: IpAddr, dport: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let words = [sport, dport, length, 0].map(u16::to_be_bytes);
    let mut segment = [words.as_flattened(), payload].concat();
    seal(src, dst, 17, &mut segment, 6);
    segment
}

/// A TCP segment in a frame.
pub fn tcp(src: IpAddr, sport: u16, dst: IpAddr, dport: u16, flags: u8, payload: &[u8]) -> Frame {
    let ports = [sport, dport].map(u16::to_be_bytes);
    let rest = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
    let mut segment = [ports.as_flattened(), &rest, payload].concat();
    seal(src, dst, 6, &mut segment, 16);
    packet(src, dst, 6, &segment)
}

/// An echo request (or with `reply` its answer) in a frame.
pub fn echo(src: IpAddr, dst: IpAddr, reply: bool, id: u16, payload: &[u8]) -> Frame {
    let (kind, proto) = match src {
        IpAddr::V4(_) => (if reply { 0 } else { 8 }, 1),
        IpAddr::V6(_) => (if reply { 129 } else { 128 }, 58),
    };
    let id = id.to_be_bytes();
    icmp(src, dst, proto, &[&[kind, 0, 0, 0, id[0], id[1], 0, 1], payload].concat())
}

fn icmp(src: IpAddr, dst: IpAddr, proto: u8, message: &[u8]) -> Frame {
    let mut message = message.to_vec();
    if proto == 58 {
        seal(src, dst, 58, &mut message, 2);
    } else {
        let check = sum(&[&message]);
        message[2..4].copy_from_slice(&check.to_be_bytes());
    }
    packet(src, dst, proto, &message)
}

/// "Port unreachable" from a frame's destination back to its source, quoting it.
pub fn unreachable(frame: &[u8]) -> Frame {
    let (src, dst) = ends(frame);
    let quoted = &frame[14..frame.len().min(14 + 56)];
    match src {
        IpAddr::V4(_) => icmp(dst, src, 1, &[&[3, 3, 0, 0, 0, 0, 0, 0], quoted].concat()),
        IpAddr::V6(_) => icmp(dst, src, 58, &[&[1, 4, 0, 0, 0, 0, 0, 0], quoted].concat()),
    }
}

/// Source and destination address of an untagged IP frame.
pub fn ends(frame: &[u8]) -> (IpAddr, IpAddr) {
    let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).expect("four bytes"));
    let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).expect("sixteen bytes"));
    if frame[14] >> 4 == 4 { (v4(26), v4(30)) } else { (v6(22), v6(38)) }
}

/// A UDP datagram cut into fragments of `size` payload bytes (a multiple of 8), in order.
pub fn fragments(src: IpAddr, sport: u16, dst: IpAddr, dport: u16, payload: &[u8], id: u16, size: usize) -> Vec<Frame> {
    let segment = udp_segment(src, sport, dst, dport, payload);
    let pieces = segment.chunks(size).enumerate().map(|(i, piece)| {
        let more = (i + 1) * size < segment.len();
        let offset = (i * size / 8) as u16;
        match src {
            IpAddr::V4(_) => ethernet(0x0800, &ipv4(src, dst, 17, id, u16::from(more) << 13 | offset, piece)),
            IpAddr::V6(_) => {
                let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
                let [a, b] = id.to_be_bytes();
                ethernet(0x86dd, &ipv6(src, dst, 44, &[&[17, 0, high, low, 0, 0, a, b], piece].concat()))
            }
        }
    });
    pieces.collect()
}

/// A frame with tags in front of its Ethertype, the outer first: (Ethertype of the tag, VLAN id).
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Frame {
    let tags: Vec<u8> = tags.iter().flat_map(|(kind, id)| [kind.to_be_bytes(), id.to_be_bytes()].concat()).collect();
    [&frame[..12], &tags, &frame[12..]].concat()
}

/// An ARP request.
pub fn arp(src: IpAddr, dst: IpAddr) -> Frame {
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    ethernet(0x0806, &[&fixed[..], &MAC_IN, &octets(src), &[0; 6], &octets(dst)].concat())
}

/// Writes frames as a capture file: microseconds, Ethernet, one frame a microsecond.
pub fn write_pcap(path: &Path, frames: &[Frame]) {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for (i, frame) in frames.iter().enumerate() {
        let length = frame.len() as u32;
        for word in [1_700_000_000 + i as u32 / 1_000_000, i as u32 % 1_000_000, length, length] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    std::fs::write(path, file).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// The frames of a capture file that a program on this machine wrote.
pub fn read_pcap(path: &Path) -> Vec<Frame> {
    let file = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes")) as usize;
    assert!([0xa1b2_c3d4, 0xa1b2_3c4d].contains(&word(0)), "{}: no capture file", path.display());
    let (mut at, mut frames) = (24, Vec::new());
    while at < file.len() {
        let (captured, length) = (word(at + 8), word(at + 12));
        assert_eq!(captured, length, "{}: frame {} was cut", path.display(), frames.len());
        frames.push(file[at + 16..at + 16 + captured].to_vec());
        at += 16 + captured;
    }
    frames
}

/// Fails at the first frame that differs, with both in full.
pub fn assert_same(what: &str, got: &[Frame], want: &[Frame]) {
    if let Some(i) = (0..got.len().max(want.len())).find(|i| got.get(*i) != want.get(*i)) {
        let show = |frame: Option<&Frame>| frame.map_or("nothing".into(), |f| format!("{} bytes {f:02x?}", f.len()));
        panic!(
            "{what}: {} frames, expected {}; frame {i} is\n{}\nexpected\n{}",
            got.len(),
            want.len(),
            show(got.get(i)),
            show(want.get(i))
        );
    }
}
