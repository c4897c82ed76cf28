//! The verdict record: what became of one packet, by whose decision, and where that decision is written.
//!
//! Whoever tells of single packets tells it in this form, as JSON or as one aligned line. It is made from a packet's facts and
//! the names of a compiled pipeline; nothing here decides anything.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::config::names::Names;
use crate::packet::decode::{Depth, walk};
use crate::packet::meta::flag;
use crate::packet::{Frame, Meta, SELF_PORT};
use crate::stage::pipeline::Blueprint;
use crate::stage::{Rule, Rules};
use crate::stats::{Layout, Reason};

/// How a packet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was handed to the port it leaves by.
    Sent,
    /// It was dropped.
    Dropped(Reason),
}

/// A moment as Unix time; shown, and written to JSON, as text with seconds and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What became of one packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record<'a> {
    /// Which packet, counted from 1; 0 if flowgate made it itself.
    pub number: u64,
    /// When it was received.
    pub time: Time,
    /// Bytes of its frame.
    pub length: u32,
    /// The port it arrived on.
    pub port: &'a str,
    /// `sent`, `dropped`, or `self` if the box itself has taken it.
    pub verdict: &'static str,
    /// The stage that decided, `engine` or `decode`; none if it was sent and no rule had a say in that.
    pub stage: Option<&'a str>,
    /// Why it was dropped, within the stage.
    pub reason: Option<&'a str>,
    /// The rule that decided.
    pub rule: Option<&'a str>,
    /// The file the rule is written in.
    pub file: Option<&'a str>,
    /// The line the rule is written at.
    pub line: Option<u32>,
    /// The port it left by.
    pub out: Option<&'a str>,
    /// The packet in a few words.
    pub packet: String,
}

/// The names behind the numbers of a compiled pipeline.
pub struct Namer {
    ports: Vec<Option<String>>,
    layout: Arc<Layout>,
    rules: Arc<Rules>,
    widths: Widths,
}

/// Columns of the one-line form, in characters.
#[derive(Clone, Copy, Debug)]
struct Widths {
    port: usize,
    decision: usize,
    rule: usize,
}

impl Namer {
    /// Names for the ports of a config and the pipeline compiled from it.
    pub fn new(blueprint: &Blueprint, names: &Names) -> Namer {
        // A few long names do not push the column of all others aside.
        let widest =
            |lengths: &mut dyn Iterator<Item = usize>, least: usize| lengths.max().unwrap_or(0).clamp(least, 32);
        let (layout, rules) = (blueprint.layout.clone(), blueprint.rules.clone());
        let widths = Widths {
            port: widest(&mut names.ports.iter().map(|port| port.name.chars().count()), 4),
            decision: widest(&mut layout.reason_labels().iter().map(|l| l.scope.len() + 1 + l.name.len()), 8),
            rule: widest(&mut rules.all().iter().map(|rule| rule_and_place(rule).chars().count()), 4),
        };
        let every = 0..names.every_port().last().map_or(0, |last| last + 1);
        Namer { ports: every.map(|port| names.port_name(port).map(str::to_owned)).collect(), layout, rules, widths }
    }

    /// A port's name; none of `NO_PORT`.
    pub fn port(&self, index: u8) -> Option<&str> {
        self.ports.get(usize::from(index))?.as_deref()
    }

    /// The record of a packet. `facts` are those of its end, `packet` is its [`summary`].
    pub fn record(
        &self,
        number: u64,
        time: u64,
        length: u32,
        facts: &Meta,
        outcome: Outcome,
        packet: String,
    ) -> Record<'_> {
        let rule = self.rules.slot(facts.rule);
        let label = match outcome {
            Outcome::Sent => None,
            Outcome::Dropped(reason) => self.layout.reason_labels().get(usize::from(reason.0)),
        };
        Record {
            number,
            time: Time(time),
            length,
            port: self.port(facts.port).unwrap_or("-"),
            verdict: match outcome {
                Outcome::Sent if facts.out == SELF_PORT => "self",
                Outcome::Sent => "sent",
                Outcome::Dropped(_) => "dropped",
            },
            stage: label.map(|label| label.scope.as_str()).or(rule.map(|rule| rule.stage.as_str())),
            reason: label.map(|label| label.name.as_str()),
            rule: rule.map(|rule| rule.name.as_str()),
            file: rule.map(|rule| &*rule.place.file),
            line: rule.map(|rule| rule.place.line),
            out: self.port(facts.out).filter(|_| outcome == Outcome::Sent),
            packet,
        }
    }

    /// The header over [`line`](Namer::line)s.
    pub fn header(&self) -> String {
        self.columns(["number", "time", "port", "bytes", "verdict", "out", "decision", "rule", "packet"])
    }

    /// A record as one line, its columns aligned with those of all others of the same pipeline.
    pub fn line(&self, record: &Record<'_>) -> String {
        let decision = match (record.stage, record.reason) {
            (Some(stage), Some(reason)) => format!("{stage}.{reason}"),
            (Some(stage), None) => stage.to_owned(),
            (None, _) => "-".to_owned(),
        };
        let rule = match (record.rule, record.file, record.line) {
            (Some(rule), Some(file), Some(line)) => format!("{rule} {file}:{line}"),
            _ => "-".to_owned(),
        };
        let (number, time, length) = (record.number.to_string(), record.time.to_string(), record.length.to_string());
        let out = record.out.unwrap_or("-");
        self.columns([&number, &time, record.port, &length, record.verdict, out, &decision, &rule, &record.packet])
    }

    fn columns(&self, cells: [&str; 9]) -> String {
        let [number, time, port, length, verdict, out, decision, rule, packet] = cells;
        let Widths { port: p, decision: d, rule: r } = self.widths;
        format!(
            "{number:>7}  {time:>20}  {port:<p$}  {length:>5}  {verdict:<7}  {out:<p$}  {decision:<d$}  {rule:<r$}  {packet}"
        )
    }
}

fn rule_and_place(rule: &Rule) -> String {
    format!("{} {}:{}", rule.name, rule.place.file, rule.place.line)
}

/// A packet in a few words: `tcp 10.0.0.5:40000 > 192.0.2.7:443 [S]`. What the pipeline did not want to know of it is read
/// from the frame.
pub fn summary(frame: &Frame, facts: &Meta) -> String {
    let mut text = String::new();
    let mut deeper = Meta::UNKNOWN;
    let known = facts.any(flag::L4 | flag::LATER_FRAGMENT | flag::ARP);
    let read = !known && (walk(frame, Depth::L4, &mut deeper).is_ok() || !facts.any(flag::IPV4 | flag::IPV6));
    let facts = if read { &deeper } else { facts };
    // Writing to a string cannot fail.
    let _ = summarize(&mut text, frame.bytes(), facts);
    text
}

/// As [`summary`], from facts that go as deep as L3, without the frame.
pub fn words(facts: &Meta) -> String {
    let mut text = String::new();
    if facts.any(flag::IPV4 | flag::IPV6 | flag::ARP) {
        // Writing to a string cannot fail.
        let _ = summarize(&mut text, &[], facts);
        return text;
    }
    let vlan = if facts.has(flag::VLAN) { format!("vlan {} ", facts.vlan) } else { text };
    format!("{vlan}ethertype 0x{:04x}", facts.ethertype())
}

fn summarize(text: &mut dyn fmt::Write, bytes: &[u8], facts: &Meta) -> fmt::Result {
    if facts.has(flag::VLAN) {
        write!(text, "vlan {} ", facts.vlan)?;
    }
    let (Some(source), Some(destination)) = (facts.source(), facts.destination()) else {
        return link_layer(text, bytes, facts);
    };
    if facts.has(flag::ARP) {
        return match facts.detail[0] {
            1 => write!(text, "arp {source} > {destination} request"),
            2 => write!(text, "arp {source} > {destination} reply"),
            operation => write!(text, "arp {source} > {destination} operation {operation}"),
        };
    }
    match facts.proto {
        1 => write!(text, "icmp")?,
        6 => write!(text, "tcp")?,
        17 => write!(text, "udp")?,
        47 => write!(text, "gre")?,
        50 => write!(text, "esp")?,
        51 => write!(text, "ah")?,
        58 => write!(text, "icmpv6")?,
        132 => write!(text, "sctp")?,
        proto => write!(text, "proto {proto}")?,
    }
    if facts.has(flag::PORTS) && !facts.has(flag::ECHO) {
        let (source, destination) = (SocketAddr::new(source, facts.sport), SocketAddr::new(destination, facts.dport));
        write!(text, " {source} > {destination}")?;
    } else {
        write!(text, " {source} > {destination}")?;
    }
    if facts.has(flag::L4) {
        let [first, second] = facts.detail;
        match (facts.proto, first) {
            (6, flags) => {
                text.write_str(" [")?;
                for (bit, letter) in "FSRPAUEC".chars().enumerate() {
                    if flags & 1 << bit != 0 {
                        text.write_char(letter)?;
                    }
                }
                text.write_char(']')?;
            }
            (1, 8) | (58, 128) => write!(text, " echo request id {}", facts.sport)?,
            (1, 0) | (58, 129) => write!(text, " echo reply id {}", facts.sport)?,
            (1 | 58, kind) => write!(text, " type {kind} code {second}")?,
            _ => {}
        }
    }
    if facts.has(flag::FIRST_FRAGMENT) {
        text.write_str(" first fragment")?;
    }
    if facts.has(flag::LATER_FRAGMENT) {
        text.write_str(" later fragment")?;
    }
    Ok(())
}

/// What the first bytes of a frame say, where decode went no further.
fn link_layer(text: &mut dyn fmt::Write, bytes: &[u8], facts: &Meta) -> fmt::Result {
    let at = facts.l3() - 2;
    match (bytes.first_chunk::<12>(), bytes.get(at..at + 2)) {
        (Some([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5]), Some(ethertype)) => write!(
            text,
            "{s0:02x}:{s1:02x}:{s2:02x}:{s3:02x}:{s4:02x}:{s5:02x} > {d0:02x}:{d1:02x}:{d2:02x}:{d3:02x}:{d4:02x}:{d5:02x} \
             ethertype 0x{:02x}{:02x}",
            ethertype[0], ethertype[1]
        ),
        _ => write!(text, "{} bytes", bytes.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::{Mistakes, Place};
    use crate::nat::Draft;
    use crate::packet::frame::Heap;
    use crate::stage::PlanCx;
    use crate::stage::apply::Adjacencies;

    fn words(bytes: &[u8], change: impl FnOnce(&mut Meta)) -> String {
        let mut heap = Heap::new(1, 100);
        let frame = heap.frame(bytes).expect("free");
        let mut facts = Meta::UNKNOWN;
        change(&mut facts);
        let text = summary(&frame, &facts);
        heap.give_back(frame);
        text
    }

    fn ipv4(facts: &mut Meta, proto: u8, flags: u16) {
        facts.src[..4].copy_from_slice(&[10, 0, 0, 5]);
        facts.dst[..4].copy_from_slice(&[192, 0, 2, 7]);
        facts.proto = proto;
        facts.flags = flag::IPV4 | flags;
        (facts.sport, facts.dport) = (40000, 443);
    }

    #[test]
    fn packets_in_a_few_words() {
        let tcp = words(&[], |facts| {
            ipv4(facts, 6, flag::PORTS | flag::L4);
            facts.detail = [0x12, 0];
        });
        assert_eq!(tcp, "tcp 10.0.0.5:40000 > 192.0.2.7:443 [SA]");
        let fragment = words(&[], |facts| ipv4(facts, 17, flag::LATER_FRAGMENT));
        assert_eq!(fragment, "udp 10.0.0.5 > 192.0.2.7 later fragment");
        let echo = words(&[], |facts| {
            ipv4(facts, 1, flag::PORTS | flag::L4 | flag::ECHO | flag::VLAN);
            facts.vlan = 10;
            facts.detail = [8, 0];
        });
        assert_eq!(echo, "vlan 10 icmp 10.0.0.5 > 192.0.2.7 echo request id 40000");
        let unreachable = words(&[], |facts| {
            ipv4(facts, 1, flag::L4);
            facts.detail = [3, 1];
        });
        assert_eq!(unreachable, "icmp 10.0.0.5 > 192.0.2.7 type 3 code 1");
        let ospf = words(&[], |facts| ipv4(facts, 89, 0));
        assert_eq!(ospf, "proto 89 10.0.0.5 > 192.0.2.7");
        let v6 = words(&[], |facts| {
            facts.src[15] = 1;
            facts.dst[15] = 2;
            facts.proto = 17;
            facts.flags = flag::IPV6 | flag::PORTS | flag::L4 | flag::FIRST_FRAGMENT;
            (facts.sport, facts.dport) = (53, 1024);
        });
        assert_eq!(v6, "udp [::1]:53 > [::2]:1024 first fragment");
        let arp = words(&[], |facts| {
            ipv4(facts, 0, 0);
            facts.flags = flag::ARP;
            facts.detail = [1, 0];
        });
        assert_eq!(arp, "arp 10.0.0.5 > 192.0.2.7 request");
        let frame = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xcc];
        assert_eq!(words(&frame, |_| ()), "02:00:00:00:00:02 > 02:00:00:00:00:01 ethertype 0x88cc");
        assert_eq!(words(&frame[..13], |_| ()), "13 bytes");
        let mut unread = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 5], [192, 0, 2, 7], 64);
        builder.udp(53, 1024).write(&mut unread, &[0; 20]).expect("built");
        assert_eq!(words(&unread, |_| ()), "udp 10.0.0.5:53 > 192.0.2.7:1024");
        unread[38] = 0xff;
        assert_eq!(words(&unread, |_| ()), "udp 10.0.0.5 > 192.0.2.7", "as far as it makes sense");
    }

    #[test]
    fn times_keep_their_nanoseconds() {
        assert_eq!(Time(1_700_000_000_000_000_001).to_string(), "1700000000.000000001");
        assert_eq!(serde_json::to_string(&Time(1)).expect("json"), "\"0.000000001\"");
    }

    #[test]
    fn records_carry_names_and_places() {
        let (names, mut layout, mut rules) = (Names::default(), Layout::new(), Rules::default());
        let place = Place { file: "fw.toml".into(), line: 12, column: 1 };
        let mut cx = PlanCx {
            instance: "acl".into(),
            names: &names,
            layout: &mut layout,
            rules: &mut rules,
            adjacencies: &mut Adjacencies::default(),
            mistakes: &mut Mistakes::default(),
            workers: 1,
            conntrack: false,
            flows: (64, 64),
            routing: None,
            routed: &mut None,
            statics: &mut Vec::new(),
            nat: &mut Draft::default(),
        };
        assert_eq!(cx.rule("web", &place, "allow"), Some(0));
        let reason = layout.reason("engine.too-big").expect("known");
        let widths = Widths { port: 4, decision: 14, rule: 16 };
        let namer = Namer {
            ports: ["lan", "wan"].map(|port| Some(port.into())).into(),
            layout: layout.into(),
            rules: rules.into(),
            widths,
        };
        let facts = Meta { port: 0, out: 1, rule: 0, ..Meta::UNKNOWN };
        let sent = namer.record(7, 1_000_000_002, 60, &facts, Outcome::Sent, "tcp".into());
        assert_eq!(
            serde_json::to_string(&sent).expect("json"),
            r#"{"number":7,"time":"1.000000002","length":60,"port":"lan","verdict":"sent","stage":"acl","reason":null,"rule":"web","file":"fw.toml","line":12,"out":"wan","packet":"tcp"}"#
        );
        let unruled = Meta { rule: crate::packet::NO_RULE, ..facts };
        let dropped = namer.record(8, 2, 61, &unruled, Outcome::Dropped(reason), "udp".into());
        assert_eq!((dropped.stage, dropped.reason, dropped.out), (Some("engine"), Some("too-big"), None));
        let expected = [
            " number                  time  port  bytes  verdict  out   decision        rule              packet",
            "      7           1.000000002  lan      60  sent     wan   acl             web fw.toml:12    tcp",
            "      8           0.000000002  lan      61  dropped  -     engine.too-big  -                 udp",
        ];
        assert_eq!([namer.header(), namer.line(&sent), namer.line(&dropped)], expected);
    }
}
