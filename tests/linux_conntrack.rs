//! The same TCP conversations through flowgate and through the connection tracking of the Linux kernel: a namespace that
//! routes between two interfaces, with nftables rules that say what flowgate's say. Every segment must pass through both or
//! through neither, but for the differences listed here with the text that says why.

mod common;

use std::process::Command;

use common::frames::{ethernet, ip, ipv4, seal, udp};
use common::host::{Lab, Tap, run};
use common::skip;
use flowgate::flow::Tracking;
use flowgate::testkit::bench::Bench;
use flowgate::testkit::conversations::{ALL, Conversation, Step};

/// Conversation, segments (from 1) that flowgate and Linux treat differently, and why flowgate does as it does.
const DIFFERENCES: &[(&str, &[usize], &str)] = &[
    (
        "split handshake",
        &[2, 5],
        "RFC 9293 section 3.5 completes a handshake with a SYN-ACK or two SYNs, and an acknowledgment to a SYN is neither: Linux lets \
     it pass for the client to reset, and an end that lies may turn the roles round.",
    ),
    (
        "SYN-ACK with another number",
        &[4],
        "RFC 9293 section 3.8.3: a server that has forgotten the first SYN chooses anew, and the client may acknowledge either.",
    ),
    (
        "SYN-ACK with another number and acknowledgment",
        &[3],
        "RFC 9293 section 3.10.7.3: it acknowledges what was never sent; strict does not pass it for the client to reset.",
    ),
    (
        "data before the handshake is done",
        &[3, 5],
        "RFC 9293 section 3.10.7.3: without a SYN seen from its sender, or with an acknowledgment of nothing, it is not acceptable.",
    ),
    (
        "connection refused",
        &[2, 5],
        "RFC 9293 section 3.10.7.3: a reset answers a SYN only with an acknowledgment of it; Linux believes the bare one (2), and has \
     therefore closed when the right one comes (5).",
    ),
    (
        "client gives up",
        &[2, 3],
        "RFC 9293 section 3.10.4: the client's reset carries SND.NXT, which counts its SYN; Linux believes the one below (2).",
    ),
    ("server resets its SYN-ACK", &[3], "RFC 5961 section 3.2: outside the window, a reset is dropped silently."),
    (
        "reset while both ends open",
        &[3],
        "RFC 9293 section 3.10.7.3: in SYN-SENT a reset without acknowledgment is dropped.",
    ),
    (
        "reset with the number expected",
        &[7],
        "RFC 5961 section 3.2: outside the window, also after the reset that closed.",
    ),
    ("resets outside the window", &[5], "RFC 5961 section 3.2: the first number behind the window is outside."),
    (
        "SYN in an open connection",
        &[5, 7],
        "RFC 5961 section 4.2: the SYN must reach the other end, which answers it with a challenge (5). One byte beyond the window (7).",
    ),
    ("a closes first", &[11], "RFC 5961 section 3.2: outside the window."),
    ("half-close that lives on", &[11], "RFC 9293 section 3.10.7.4: nothing comes behind a FIN."),
    (
        "FIN sent again with data before it",
        &[7, 8],
        "RFC 9293 section 3.8.1: a FIN sent again stands where it stood; Linux takes any.",
    ),
    (
        "TIME_WAIT and a newer SYN",
        &[9],
        "RFC 9293 section 3.10.7.4: in TIME-WAIT a SYN-ACK is answered with an acknowledgment, so it must arrive.",
    ),
    ("TIME_WAIT on both ends and a newer SYN", &[8], "RFC 9293 section 3.10.7.4: likewise an old SYN."),
    (
        "beyond the window",
        &[4, 5, 8],
        "RFC 9293 section 3.10.7.4: beyond the window (4, 5), which Linux tolerates up to a window, and what acknowledges that (8).",
    ),
    (
        "late and duplicate",
        &[11, 12],
        "RFC 9293 section 3.4: older than anything that can be under way; Linux takes half of all numbers for old.",
    ),
    (
        "scale in one SYN only",
        &[4],
        "RFC 7323 section 2.2: without a scale in both SYNs there is none. Beyond the window, which Linux tolerates.",
    ),
    ("scale in the SYN-ACK only", &[5], "RFC 7323 section 2.2: likewise."),
    (
        "blocks nobody agreed on",
        &[4],
        "RFC 2018 section 2: blocks that were not agreed on mean nothing; Linux judges the segment by them.",
    ),
    (
        "window closed and probed",
        &[6],
        "RFC 9293 section 3.8.6.1: a closed window is probed with one byte, not with two.",
    ),
    (
        "picked up by a FIN",
        &[1, 2, 3],
        "RFC 9293 section 3.6: a connection that was there before the firewall may as well be closing.",
    ),
    (
        "picked up and reset",
        &[2, 3],
        "RFC 5961 section 3.2: the reset with the number expected closes (3), and one outside the window does not (2).",
    ),
];

const A: &str = "10.91.0.1";
const B: &str = "10.92.0.1";

/// A router in a namespace, and the far ends of its interfaces.
struct Linux {
    taps: [Tap; 2],
    macs: [[u8; 6]; 2],
    namespace: String,
    sentinels: u16,
    _lab: Lab,
}

fn inside(namespace: &str, words: &[&str]) {
    let output = Command::new("ip").args(["netns", "exec", namespace]).args(words).output().expect("ip");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Linux {
    fn new(mut lab: Lab) -> Linux {
        let namespace = lab.namespace();
        let (ends, macs): (Vec<_>, Vec<_>) = (0..2)
            .map(|side| {
                let (port, tap) = lab.wire();
                let text = std::fs::read_to_string(format!("/sys/class/net/{port}/address")).expect("an interface");
                let mut mac = [0; 6];
                for (byte, digits) in mac.iter_mut().zip(text.trim().split(':')) {
                    *byte = u8::from_str_radix(digits, 16).expect("a MAC address");
                }
                run(&format!("ip link set {port} netns {namespace}"));
                inside(&namespace, &["ip", "addr", "add", &format!("10.9{}.0.254/24", side + 1), "dev", &port]);
                inside(&namespace, &["ip", "link", "set", &port, "up"]);
                ((port, tap), mac)
            })
            .unzip();
        inside(&namespace, &["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        let rules = format!(
            "add table inet fw
             add chain inet fw forward {{ type filter hook forward priority 0; policy drop; }}
             add rule inet fw forward meta l4proto udp accept
             add rule inet fw forward ct state established accept
             add rule inet fw forward iifname {} ct state new accept",
            ends[0].0
        );
        inside(&namespace, &["nft", &rules]);
        let taps: Vec<Tap> = ends.into_iter().map(|(_, tap)| tap).collect();
        let taps = taps.try_into().unwrap_or_else(|_| panic!("two of them"));
        Linux { taps, macs: macs.try_into().expect("two of them"), namespace, sentinels: 0, _lab: lab }
    }

    /// Forgets all connections, and picks up in mid-stream or does not.
    fn begin(&mut self, loose: bool) {
        inside(
            &self.namespace,
            &["sysctl", "-qw", &format!("net.netfilter.nf_conntrack_tcp_loose={}", u8::from(loose))],
        );
    }

    /// True if the packet comes out on the other side. A datagram that is always let through follows it: when that is there,
    /// the packet is too or never will be.
    fn passes(&mut self, from: usize, packet: &[u8]) -> bool {
        self.sentinels += 1;
        let ends = [ip(A), ip(B)];
        let mut sentinel = udp(ends[from], 7, ends[1 - from], self.sentinels, b"");
        let mut frame = ethernet(0x0800, packet);
        for frame in [&mut frame, &mut sentinel] {
            frame[..6].copy_from_slice(&self.macs[from]);
            self.taps[from].send(frame);
        }
        let mut passed = false;
        common::appliance::wait_for("the datagram behind the segment", || {
            let frames = self.taps[1 - from].waiting();
            passed |= frames
                .iter()
                .any(|frame| frame.len() >= 14 + packet.len() && frame[34..][..packet.len() - 20] == packet[20..]);
            frames
                .iter()
                .any(|frame| frame.len() >= 38 && frame[23] == 17 && frame[36..38] == self.sentinels.to_be_bytes())
        });
        passed
    }
}

/// The packets of a conversation, each with the side it comes from.
fn packets(conversation: &Conversation, number: u16) -> Vec<(usize, Vec<u8>)> {
    let (ends, ports) = ([ip(A), ip(B)], [10_000 + number, 80]);
    let packet = |step: &Step| {
        let (from, to) = (step.from, 1 - step.from);
        let mut segment = step.bytes([0x1000_0000, 0x8000_0000]);
        segment[..2].copy_from_slice(&ports[from].to_be_bytes());
        segment[2..4].copy_from_slice(&ports[to].to_be_bytes());
        seal(ends[from], ends[to], 6, &mut segment, 16);
        (from, ipv4(ends[from], ends[to], 6, 1, 0, &segment))
    };
    conversation.steps.iter().map(packet).collect()
}

/// Which segments flowgate lets through.
fn through_flowgate(conversation: &Conversation, packets: &[(usize, Vec<u8>)]) -> Vec<bool> {
    let mut bench = Bench::new(&format!(
        "[memory]\nflows = 64\n\
         [pipeline]\nstages = ['conntrack', 'cross', 'acl']\n\
         [conntrack]\ntracking = '{}'\nlimit = {{ syn_proxy = 'off' }}\n\
         [cross]\nwire = [{{ ports = ['lan', 'wan'] }}]\n\
         [[acl.rule]]\nfrom = 'inside'\naction = 'allow'\n",
        conversation.tracking.word()
    ));
    let push = |(from, packet): &(usize, Vec<u8>)| {
        bench.push(["lan", "wan"][*from], &ethernet(0x0800, packet)).reason() == "sent"
    };
    packets.iter().map(push).collect()
}

#[test]
fn linux_and_flowgate_agree() {
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(why) => return skip("linux-conntrack", &why),
    };
    let mut linux = Linux::new(lab);
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for (number, conversation) in ALL.iter().enumerate() {
        // What else there is has no equal in Linux: it can be liberal about windows, but not as closely as "normal" says.
        // Segments that fill a window at once fit into no frame.
        let fits = conversation.steps.iter().all(|step| step.len <= 1400);
        if !matches!(conversation.tracking, Tracking::Strict | Tracking::Loose) || !fits {
            continue;
        }
        let packets = packets(conversation, number as u16);
        linux.begin(conversation.tracking == Tracking::Loose);
        let ours = through_flowgate(conversation, &packets);
        let theirs: Vec<bool> = packets.iter().map(|(from, packet)| linux.passes(*from, packet)).collect();
        compared += packets.len();
        let differ: Vec<usize> = (0..packets.len()).filter(|i| ours[*i] != theirs[*i]).map(|i| i + 1).collect();
        let known = DIFFERENCES.iter().find(|(name, ..)| *name == conversation.name).map_or(&[][..], |known| known.1);
        if differ != known {
            wrong.push(format!("{} ({}): segments {differ:?}", conversation.name, conversation.source));
            for (i, step) in conversation.steps.iter().enumerate() {
                let says = |passes: bool| if passes { "passes" } else { "drops" };
                let Step { from, flags, sequence, acknowledgment, len, window, .. } = step;
                let segment = format!("flags {flags:02x} seq {sequence} ack {acknowledgment} len {len} win {window}");
                let (n, end, ours, theirs) = (i + 1, ["a", "b"][*from], says(ours[i]), says(theirs[i]));
                wrong.push(format!("  {n:2} {end} {segment}: flowgate {ours}, Linux {theirs}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared > 100, "conversations were compared");
    for (name, ..) in DIFFERENCES {
        assert!(ALL.iter().any(|conversation| conversation.name == *name), "{name} is no conversation");
    }
}
