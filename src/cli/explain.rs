//! `flowgate explain`: what would happen to a packet, stage by stage.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::check::examine;
use super::{ENVIRONMENT, FINDINGS, USAGE};
use crate::config::notation::SYNTAX;
use crate::control::client::{self, Server};
use crate::explain::{self, Explainer};
use crate::io::capture::{Packet, Reader};

/// Say what would happen to a packet: the real datapath, stage by stage, with the rule that decides.
///
/// The packet is one line, such as 'tcp 10.0.0.5:40000 > 192.0.2.7:443 syn in lan', or comes out of a capture file.
/// Words: TCP flags (syn ack fin rst psh urg ece cwr none; syn if left out), "seq N", "ack N", "win N", "len N"; ICMP types by
/// name or as type/code (echo if left out), "id N"; "ttl N", "vlan N", "fragment" (one that continues a packet).
#[derive(Args, Debug)]
pub struct Explain {
    /// The configuration file (not with --live) and the packet (not with --pcap).
    #[arg(value_name = "CONFIG PACKET", num_args = 0..=2)]
    what: Vec<String>,
    /// Ask the running process, with the flows it knows.
    #[arg(long)]
    live: bool,
    /// Take the packet out of a capture file.
    #[arg(long, value_name = "FILE", requires = "from")]
    pcap: Option<PathBuf>,
    /// Which packet of the file, from 1.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    packet: u64,
    /// The port on which the packet of the file arrives.
    #[arg(long = "in", value_name = "PORT", requires = "pcap", id = "from")]
    from: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

/// An exit code, and what to say.
type Refusal = (u8, String);

impl Explain {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        let (files, packets) = (usize::from(!self.live), usize::from(self.pcap.is_none()));
        if self.what.len() != files + packets {
            let config = if self.live { "--live" } else { "CONFIG" };
            let packet = if self.pcap.is_some() { "" } else { " 'PACKET'" };
            let help = format!("expected: flowgate explain {config}{packet}, the packet being {SYNTAX}");
            return refuse((USAGE, help));
        }
        let packet = self.what.get(files).map(String::as_str);
        let told = match self.live {
            true => self.ask(packet),
            false => match examine(&self.what[0], Some(1)) {
                Ok((config, blueprint)) => self.explain(&Explainer::new(&config, &blueprint), packet),
                Err(refusal) => return refusal.print("explain"),
            },
        };
        match told {
            Ok(value) if self.json => println!("{value:#}"),
            Ok(value) => print!("{}", explain::text(&value)),
            Err(refusal) => return refuse(refusal),
        }
        ExitCode::SUCCESS
    }

    fn explain(&self, explainer: &Explainer, packet: Option<&str>) -> Result<Value, Refusal> {
        let (port, bytes, time) = match (packet, &self.pcap) {
            (Some(text), _) => {
                let (port, bytes) = explainer.read(text).map_err(|error| (USAGE, error.shown(text)))?;
                (port, bytes, 1)
            }
            (None, Some(file)) => {
                let port = self.from.as_deref().unwrap_or_default();
                let port = explainer.port(port).map_err(|message| (USAGE, format!("--in {port}: {message}")))?;
                let packet = self.read(file)?;
                (port, packet.bytes, packet.time)
            }
            (None, None) => return Err((USAGE, format!("expected a packet: {SYNTAX}"))),
        };
        Ok(explainer.json(&explainer.explain(port, &bytes, time, &[])))
    }

    fn ask(&self, packet: Option<&str>) -> Result<Value, Refusal> {
        let question = match (packet, &self.pcap) {
            (Some(text), _) => json!({ "packet": text }),
            (None, Some(file)) => {
                let hex: String = self.read(file)?.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                json!({ "frame": hex, "in": self.from })
            }
            (None, None) => return Err((USAGE, format!("expected a packet: {SYNTAX}"))),
        };
        client::post(&self.server, "/v1/explain", &question, client::PATIENCE).map_err(|message| (ENVIRONMENT, message))
    }

    /// The packet of the file that was asked for.
    fn read(&self, file: &Path) -> Result<Packet, Refusal> {
        let finding = |error: crate::io::capture::Unreadable| (FINDINGS, error.to_string());
        let mut reader = Reader::open(file).map_err(finding)?;
        let mut packet = Packet::default();
        for read in 0..self.packet {
            if !reader.next(&mut packet).map_err(finding)? {
                let message = format!("{}: has {read} packets, and no packet {}", file.display(), self.packet);
                return Err((USAGE, message));
            }
        }
        Ok(packet)
    }
}

fn refuse((code, message): Refusal) -> ExitCode {
    eprintln!("flowgate explain: {message}");
    ExitCode::from(code)
}
