//! The packets that the datapath makes of others (replies, errors, fragments), against tshark: every frame must be free of
//! complaints, its checksums right, and say what it is meant to.

mod common;

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use flowgate::packet::cut::Cut;
use flowgate::packet::decode::{Depth, decode};
use flowgate::packet::echo::{self, Echo};
use flowgate::packet::frame::Heap;
use flowgate::packet::reply::{Answer, answer};
use flowgate::packet::{Batch, Frame, Meta, forward, mss};
use flowgate::testkit::bench::{Bench, End};
use flowgate::testkit::packets::{Packet, batch, give_back, samples};
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
    for check in ["ip.check_checksum", "tcp.check_checksum", "udp.check_checksum"] {
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

/// What `change` makes of a packet, if it says that it made something.
fn changed(packet: &Packet, change: impl FnOnce(&mut Frame, &mut Meta) -> bool) -> Option<Vec<u8>> {
    let mut heap = Heap::new(1, 9700);
    let mut batch = batch(&mut heap, [packet.bytes()]);
    decode(&mut batch, Depth::L4);
    let Batch { frames: [frame, ..], metas: [meta, ..], .. } = &mut *batch;
    let made = change(frame, meta).then(|| frame.bytes().to_vec());
    give_back(&mut heap, &mut batch);
    made
}

#[test]
fn tshark_reads_errors_as_meant() {
    let (mut frames, mut expected) = (Vec::new(), Vec::new());
    let (four, six) =
        (Some([198, 51, 100, 1]), Some("2001:db8::ffff".parse::<std::net::Ipv6Addr>().expect("one").octets()));
    let cases = [
        (Answer::TimeExceeded, "11\t0\t", "3\t0\t"),
        (Answer::NoRoute, "3\t0\t", "1\t0\t"),
        (Answer::HostUnreachable, "3\t1\t", "1\t3\t"),
        (Answer::RejectRoute, "3\t1\t", "1\t6\t"),
        (Answer::Prohibited, "3\t13\t", "1\t1\t"),
        (Answer::SourceRouteFailed, "3\t5\t", "1\t1\t"),
        (Answer::TooBig { mtu: 1400 }, "3\t4\t1400", "2\t0\t1400"),
        (Answer::ParameterProblem { code: 0, pointer: 40 }, "12\t0\t40", "4\t0\t40"),
    ];
    for (what, v4, v6) in cases {
        let udp = Packet::udp("10.0.0.5:40000", "192.0.2.7:443").payload(&[3; 1400]).ttl(1).ip_options(&[1; 4]);
        frames.push(changed(&udp, |frame, meta| answer(frame, meta, what, four, six)).expect("answered"));
        // Type, code, and MTU or pointer; checksums; whole length; precedence; sender; TTL quoted.
        expected.push(format!("198.51.100.1\t{v4}\t1\t1\t576\t48"));
        let udp = Packet::udp("[2001:db8::5]:40000", "[2001:db8:7::7]:443").payload(&[3; 1400]).ttl(1);
        frames.push(changed(&udp, |frame, meta| answer(frame, meta, what, four, six)).expect("answered"));
        expected.push(format!("2001:db8::ffff\t{v6}\t1\t1240"));
    }
    let fields_v4 = [
        "ip.src",
        "icmp.type",
        "icmp.code",
        "icmp.mtu",
        "icmp.pointer",
        "icmp.checksum.status",
        "ip.checksum.status",
        "ip.len",
        "ip.dsfield.dscp",
    ];
    let fields_v6 = [
        "ipv6.src",
        "icmpv6.type",
        "icmpv6.code",
        "icmpv6.mtu",
        "icmpv6.pointer",
        "icmpv6.checksum.status",
        "ipv6.plen",
    ];
    let (Some(four), Some(six)) = (dissect(&frames, &fields_v4), dissect(&frames, &fields_v6)) else { return };
    for (n, expected) in expected.iter().enumerate() {
        let line = if n % 2 == 0 { &four[n] } else { &six[n] };
        // A message has an MTU or a pointer, not both.
        let mut values: Vec<&str> = line.split('\t').collect();
        let pointer = values.remove(4);
        if values[3].is_empty() {
            values[3] = pointer;
        }
        assert_eq!(&values.join("\t"), expected);
    }
}

#[test]
fn tshark_puts_fragments_together() {
    let data: Vec<u8> = (0..4000_u32).map(|i| (i * 7 / 3) as u8).collect();
    let whole =
        Packet::udp("10.0.0.5:40000", "192.0.2.7:443").payload(&data).id(9).ip_options(&[0x94, 4, 0, 0, 7, 3, 4, 0]);
    let mut heap = Heap::new(2, 9700);
    let mut planned = batch(&mut heap, [whole.bytes()]);
    decode(&mut planned, Depth::L4);
    let plan = Cut::plan(&planned.frames[0], &planned.metas[0], 700).expect("to be cut");
    let mut frames = Vec::new();
    for n in 0..plan.pieces() {
        let mut piece = batch(&mut heap, [[0u8; 0]]);
        assert!(plan.write(n, &planned.frames[0], &mut piece.frames[0]));
        frames.push(piece.frames[0].bytes().to_vec());
        give_back(&mut heap, &mut piece);
    }
    let lines = dissect(&frames, &["ip.checksum.status", "ip.reassembled.length", "udp.length", "udp.checksum.status"]);
    let Some(lines) = lines else { return };
    let (last, others) = lines.split_last().expect("several");
    assert_eq!((others.len(), last.as_str()), (5, "1\t4008\t4008\t1"));
    assert!(others.iter().all(|line| line.trim_end() == "1"), "{others:?}");
}

#[test]
fn tshark_finds_the_sums_of_what_is_forwarded_right() {
    let (mut frames, mut requests) = (Vec::new(), Vec::new());
    for packet in samples() {
        requests.extend(changed(&packet, |_, _| true));
        frames.extend(changed(&packet, |frame, meta| {
            if meta.ethertype() != 0x0800 && meta.ethertype() != 0x86dd {
                return true;
            }
            forward::hop(frame, meta);
            mss::clamp(frame, meta, 1280);
            forward::relink(frame, meta, [2; 6], [4; 6], &[[0; 4]; 2])
        }));
    }
    for (a, b) in [("10.0.0.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::2")] {
        let request = Packet::echo_request(a, b, 7, 1).payload(b"ping");
        requests.push(request.bytes());
        let replied = changed(&request, |frame, meta| echo::reply(frame, meta, &[2; 6]) == Echo::Replied);
        frames.push(replied.expect("answered"));
    }
    let status = ["ip", "tcp", "udp", "icmp", "icmpv6"].map(|name| format!("{name}.checksum.status"));
    let fields: Vec<&str> =
        status.iter().map(String::as_str).chain(["ip.ttl", "ipv6.hlim", "tcp.options.mss_val"]).collect();
    let (Some(before), Some(after)) = (dissect(&requests, &fields), dissect(&frames, &fields)) else { return };
    assert_eq!(before.len(), after.len());
    for (n, (before, after)) in before.iter().zip(&after).enumerate() {
        let [before, after] = [before, after].map(|line| line.split('\t').collect::<Vec<_>>());
        assert_eq!(before[..5], after[..5]);
        assert!(["1240", "1220", ""].contains(&after[7]), "{after:?}");
        // A reply's TTL is its own.
        let spent = u8::from(n < samples().len());
        for at in [5, 6] {
            let hops = |line: &[&str]| line[at].parse::<u8>().ok();
            assert_eq!(hops(&before).map(|hops| hops - spent), hops(&after));
        }
    }
}
