//! The replies that the datapath makes, against tshark: every frame must be free of complaints, its checksums right, and say
//! what the request calls for.

mod common;

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use flowgate::testkit::bench::{Bench, End};
use flowgate::testkit::packets::{Packet, samples};
use flowgate::wire::tcp;
use pcap_file::pcap::{PcapPacket, PcapWriter};

const REJECT: &str = "[pipeline]\nstages = ['cross', 'acl']\n[[cross.wire]]\nports = ['lan', 'wan']\n\
                      [acl]\nreject_rate = '1M/s'\n[[acl.rule]]\naction = 'reject'\n";

/// The reply to a packet, if it gets one.
fn reply(bench: &mut Bench, packet: &Packet) -> Option<Vec<u8>> {
    bench.push_all("lan", &[packet.bytes()]).into_iter().find_map(|end| match end {
        End::Sent { port, bytes, rule: Some(_) } if port == "lan" => Some(bytes),
        _ => None,
    })
}

/// Fields of each frame of a capture as tshark reads them, tab-separated; none if it is not installed.
fn dissect(frames: &[Vec<u8>], fields: &[&str]) -> Option<Vec<String>> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("replies.pcap");
    let mut writer = PcapWriter::new(File::create(&path).expect("a file")).expect("a capture");
    for (n, frame) in frames.iter().enumerate() {
        let packet = PcapPacket::new(Duration::from_secs(n as u64), frame.len() as u32, frame).expect("a packet");
        writer.write_packet(&packet).expect("written");
    }
    drop(writer);
    let mut command = Command::new("tshark");
    command.arg("-r").arg(&path).args(["-T", "fields", "-E", "occurrence=f"]);
    for check in ["ip.check_checksum", "tcp.check_checksum"] {
        command.args(["-o", &format!("{check}:TRUE")]);
    }
    command.args(fields.iter().flat_map(|field| ["-e", field]));
    let Ok(output) = command.output() else {
        common::skip("tshark", "tshark is not installed");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[test]
fn tshark_reads_resets_as_meant() {
    let mut bench = Bench::new(REJECT);
    let (mut replies, mut expected) = (Vec::new(), Vec::new());
    for (a, b, sum) in [("10.0.0.5:40000", "192.0.2.7:443", "1"), ("[2001:db8::5]:40000", "[2001:db8::7]:443", "")] {
        let request = |flags: u8| Packet::tcp(a, b).sequence(1_000).flags(flags);
        // Sequence number, acknowledgment number and flags of what comes back.
        let cases = [
            (request(tcp::SYN), "0\t1001\t0x0014"),
            (request(tcp::SYN).tcp_options(&[2, 4, 5, 0xb4]).vlan(12), "0\t1001\t0x0014"),
            (request(tcp::SYN | tcp::FIN).payload(b"data"), "0\t1006\t0x0014"),
            (request(tcp::PSH).acknowledgment(4_000_000_000).payload(&[7; 1_000]), "4000000000\t0\t0x0004"),
        ];
        for (packet, numbers) in cases {
            replies.push(reply(&mut bench, &packet).expect("answered"));
            expected.push(format!("443\t40000\t{numbers}\t0\t1\t{sum}"));
        }
    }
    let fields = [
        "tcp.srcport",
        "tcp.dstport",
        "tcp.seq_raw",
        "tcp.ack_raw",
        "tcp.flags",
        "tcp.len",
        "tcp.checksum.status",
        "ip.checksum.status",
    ];
    if let Some(lines) = dissect(&replies, &fields) {
        let lines: Vec<&str> = lines.iter().map(|line| line.trim_end()).collect();
        let expected: Vec<&str> = expected.iter().map(|line| line.trim_end()).collect();
        assert_eq!(lines, expected);
    }
}

#[test]
fn tshark_finds_nothing_wrong_with_any_reply() {
    let mut bench = Bench::new(REJECT);
    let long = [3; 1400];
    let more = [
        Packet::udp("10.0.0.1:1", "192.0.2.1:2").payload(&long),
        Packet::udp("[2001:db8::1]:1", "[2001:db8::2]:2").payload(&long),
        Packet::ip("10.0.0.1", "192.0.2.1", 89).payload(&[3; 30]),
    ];
    let answered = samples().into_iter().chain(more).filter_map(|packet| Some((reply(&mut bench, &packet)?, packet)));
    let (replies, requests): (Vec<Vec<u8>>, Vec<Packet>) = answered.unzip();
    assert!(replies.len() >= 18, "{} of the samples are answered", replies.len());
    // Status 1 is good, 0 bad, 2 unverified. Of what occurs twice, the first is shown: the reply's own, not the quoted one's.
    let fields = [
        "ip.checksum.status",
        "tcp.checksum.status",
        "icmp.checksum.status",
        "icmpv6.checksum.status",
        "icmp.type",
        "icmp.code",
        "icmpv6.type",
        "icmpv6.code",
    ];
    // Some samples are malformed to tshark, and so is what quotes them.
    let requests: Vec<Vec<u8>> = requests.iter().map(Packet::bytes).collect();
    let malformed = |frames: &[Vec<u8>]| dissect(frames, &["_ws.malformed"]);
    let (Some(lines), Some(of_replies), Some(of_requests)) =
        (dissect(&replies, &fields), malformed(&replies), malformed(&requests))
    else {
        return;
    };
    assert_eq!((lines.len(), of_replies.len()), (replies.len(), of_requests.len()));
    for (n, frame) in replies.iter().enumerate() {
        // A reset, and an error, over IPv4 and over IPv6.
        let kinds = ["1\t1", "1\t\t1\t\t3\t13", "\t1", "\t\t\t1\t\t\t1\t1"];
        let line = lines[n].trim_end();
        assert!(kinds.contains(&line), "{line:?}: {frame:02x?}");
        assert!(of_replies[n].is_empty() || !of_requests[n].is_empty(), "{}: {frame:02x?}", of_replies[n]);
    }
}
