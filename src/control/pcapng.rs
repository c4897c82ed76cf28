//! Packets for Wireshark and for people: pcapng with an interface for each port, and what became of each packet in words.
//!
//! Format: draft-ietf-opsawg-pcapng.

use std::time::Duration;

use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::blocks::opt_common::CommonOption;
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use serde_json::{Value, json};

use super::Running;
use crate::config::names::SELF;
use crate::packet::frame::Heap;
use crate::packet::{Meta, NO_FLOW, SELF_PORT};
use crate::verdict::{Namer, Outcome, Time, summary};
use crate::worker::tap::Seen;

/// A packet to be written, or told of.
pub struct Packet<'a> {
    /// When, in Unix nanoseconds.
    pub time: u64,
    /// What makes it known again; 0 for nothing.
    pub id: u64,
    /// What is known of it.
    pub facts: &'a Meta,
    /// Bytes of its frame.
    pub len: usize,
    /// Those of them that are there.
    pub bytes: &'a [u8],
    /// Where it was, and what became of it.
    pub seen: Seen,
}

/// Says in words what became of packets.
pub struct Teller {
    namer: Namer,
    heap: Heap,
}

impl Teller {
    /// In the names of what runs.
    pub fn new(running: &Running) -> Teller {
        Teller { namer: Namer::new(&running.blueprint, &running.names), heap: Heap::new(1, usize::from(u16::MAX)) }
    }

    /// The packet in a few words.
    fn words(&mut self, packet: &Packet<'_>) -> String {
        // As long as it was: what is cut off is not looked at, and what is left makes sense.
        let mut whole = packet.bytes.to_vec();
        whole.resize(packet.len.max(packet.bytes.len()).min(usize::from(u16::MAX) - Heap::HEADROOM), 0);
        let Some(frame) = self.heap.frame(&whole) else { return String::new() };
        let text = summary(&frame, packet.facts);
        self.heap.give_back(frame);
        text
    }

    /// The record of a packet as JSON, with what only a capture knows.
    pub fn json(&mut self, packet: &Packet<'_>) -> Value {
        let words = self.words(packet);
        let outcome = match packet.seen {
            Seen::Refused(reason) | Seen::Dropped(reason) => Outcome::Dropped(reason),
            Seen::Sent | Seen::Held | Seen::Out => Outcome::Sent,
        };
        let record = self.namer.record(0, packet.time, packet.len as u32, packet.facts, outcome, words);
        let mut value = json!(record);
        if packet.seen == Seen::Held {
            value["verdict"] = "held".into();
        }
        value["direction"] = direction(packet.seen).into();
        value["out"] = json!(self.namer.port(packet.facts.out));
        value["flow"] = json!((packet.facts.flow != NO_FLOW).then_some(packet.facts.flow >> 1));
        value["id"] = json!(name(packet.id));
        value
    }

    /// What became of a packet, as a comment on it.
    pub fn comment(&self, packet: &Packet<'_>) -> String {
        let facts = packet.facts;
        let outcome = match packet.seen {
            Seen::Refused(reason) | Seen::Dropped(reason) => Outcome::Dropped(reason),
            Seen::Sent | Seen::Held | Seen::Out => Outcome::Sent,
        };
        let record = self.namer.record(0, packet.time, packet.len as u32, facts, outcome, String::new());
        let mut text = match (packet.seen, record.stage, record.reason) {
            (Seen::Sent, ..) if facts.out == SELF_PORT => "in: for the box itself".to_owned(),
            (Seen::Sent, ..) => format!("in: sent by {}", record.out.unwrap_or("-")),
            (Seen::Held, ..) => "in: held".to_owned(),
            (Seen::Out, ..) if facts.port == SELF_PORT => "out: from the box itself".to_owned(),
            (Seen::Out, ..) => format!("out: came by {}", record.port),
            (Seen::Refused(_), Some(stage), Some(reason)) => format!("in: dropped: {stage}.{reason}"),
            (Seen::Dropped(_), Some(stage), Some(reason)) => format!("dropped: {stage}.{reason}"),
            (Seen::Refused(_) | Seen::Dropped(_), ..) => "dropped".to_owned(),
        };
        if let (Some(rule), Some(file), Some(line)) = (record.rule, record.file, record.line) {
            text += &format!("; rule {rule} {file}:{line}");
        }
        if facts.flow != NO_FLOW {
            let direction = if facts.flow & 1 == 0 { "original" } else { "reply" };
            text += &format!("; flow {} {direction}", facts.flow >> 1);
        }
        if let Some(id) = name(packet.id) {
            text += &format!("; packet {id}");
        }
        text
    }

    /// The packet as one line.
    pub fn line(&mut self, packet: &Packet<'_>) -> String {
        let words = self.words(packet);
        let port = self.namer.port(packet.seen.port(packet.facts)).unwrap_or("-").to_owned();
        format!("{} {port:<8} {:>5}  {words}  ({})\n", Time(packet.time), packet.len, self.comment(packet))
    }
}

fn direction(seen: Seen) -> &'static str {
    match seen {
        Seen::Sent | Seen::Refused(_) | Seen::Held => "in",
        Seen::Out => "out",
        Seen::Dropped(_) => "dropped",
    }
}

fn failed(error: impl std::fmt::Display) -> String {
    format!("cannot write pcapng: {error}")
}

/// A packet's name: the worker and a number.
fn name(id: u64) -> Option<String> {
    (id != 0).then(|| format!("{}.{}", (id >> 48) - 1, id & ((1 << 48) - 1)))
}

/// A section under way, in memory.
pub struct Section {
    writer: PcapNgWriter<Vec<u8>>,
    ports: usize,
}

impl Section {
    /// Begins a section with an interface for each port, and one for the box itself. `snap` is the length of a copy at most.
    pub fn new(running: &Running, snap: usize, filter: &str) -> Result<Section, String> {
        let application = format!("flowgate {}", env!("CARGO_PKG_VERSION"));
        let options = vec![SectionHeaderOption::UserApplication(application.into())];
        let header = SectionHeaderBlock { options, ..SectionHeaderBlock::default() };
        let mut writer = PcapNgWriter::with_section_header(Vec::new(), header).map_err(failed)?;
        for port in &running.ports {
            let state = port.state();
            let of = match &state.vlan {
                Some(vlan) => format!("{} vlan {vlan}", state.device),
                None => state.device.clone(),
            };
            let zone = state.zone.map_or(String::new(), |zone| format!(", zone {zone}"));
            let mac: Vec<u8> = state.mac.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
            let mut options = vec![
                InterfaceDescriptionOption::IfName(state.name.into()),
                InterfaceDescriptionOption::IfDescription(format!("{of}{zone}").into()),
                InterfaceDescriptionOption::IfTsResol(InterfaceTsResolution::NANO),
            ];
            options.extend((mac.len() == 6).then(|| InterfaceDescriptionOption::IfMacAddr(mac.into())));
            options.extend(
                (state.speed != 0).then(|| InterfaceDescriptionOption::IfSpeed(u64::from(state.speed) * 1_000_000)),
            );
            // Its first byte says that it is a libpcap expression.
            let filter = format!("\0{filter}").into_bytes();
            options.extend((filter.len() > 1).then(|| InterfaceDescriptionOption::IfFilter(filter.into())));
            let block = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: snap as u32, options };
            writer.write_pcapng_block(block).map_err(failed)?;
        }
        let options = vec![
            InterfaceDescriptionOption::IfName(SELF.into()),
            InterfaceDescriptionOption::IfDescription("the box itself, and where the port is not known".into()),
            InterfaceDescriptionOption::IfTsResol(InterfaceTsResolution::NANO),
        ];
        let block = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: snap as u32, options };
        writer.write_pcapng_block(block).map_err(failed)?;
        Ok(Section { writer, ports: running.ports.len() })
    }

    /// Appends a packet.
    pub fn packet(&mut self, packet: &Packet<'_>, comment: String) -> Result<(), String> {
        // Section 4.3.1: 1 for inbound, 2 for outbound.
        let flags = if packet.seen == Seen::Out { 2 } else { 1 };
        let block = EnhancedPacketBlock {
            interface_id: usize::from(packet.seen.port(packet.facts)).min(self.ports) as u32,
            timestamp: Duration::from_nanos(packet.time),
            original_len: packet.len as u32,
            data: packet.bytes.into(),
            options: vec![
                EnhancedPacketOption::Common(CommonOption::Comment(comment.into())),
                EnhancedPacketOption::Flags(flags),
            ],
        };
        self.writer.write_pcapng_block(block).map(|_| ()).map_err(failed)
    }

    /// Appends what was counted so far: by interface, packets written and packets lost.
    pub fn statistics(&mut self, now: u64, counts: &[(u64, u64)]) -> Result<(), String> {
        for (interface, (written, lost)) in counts.iter().enumerate() {
            let block = InterfaceStatisticsBlock {
                interface_id: interface as u32,
                timestamp: Duration::from_nanos(now),
                options: vec![
                    InterfaceStatisticsOption::IsbIfRecv(written + lost),
                    InterfaceStatisticsOption::IsbIfDrop(*lost),
                ],
            };
            self.writer.write_pcapng_block(block).map_err(failed)?;
        }
        Ok(())
    }

    /// Takes what has been written since the last time.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.get_mut())
    }
}
