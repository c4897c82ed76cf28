//! What `scripts/bench.sh` replays: captures of numbered flows, and files of these flows as they are when both ends are open.
//!
//!     bench-flows udp|tcp|udp6|tcp6 FLOWS [--pcap FILE [--first]] [--flows FILE --rule STAGE/NAME]
//!
//! The capture has one packet of each flow, in random order: one in the midst of it (of TCP a segment in the window), or with
//! `--first` its first. The flows come from port `in` and leave by port `out`, the ends of the first wire.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use bytemuck::Zeroable;
use clap::Parser;
use flowgate::flow::entry::{Body, Entry, EntryV4, EntryV6, Key as _, Scope, mark};
use flowgate::flow::file::{CHUNK, Names, Writer};
use flowgate::flow::tcp::{self, Segment, States, Tcp, Verdict};
use flowgate::flow::timeout::{Class, ticks};
use flowgate::flow::{ORIGINAL, REPLY, Tracking};

use common::{Kind, Numbered, Stamp};

#[path = "../benches/common/mod.rs"]
mod common;

/// Makes captures and files of flows.
#[derive(Parser)]
struct Arguments {
    /// udp, tcp, udp6 or tcp6.
    #[arg(value_parser = kind)]
    kind: Kind,
    /// How many flows.
    flows: u32,
    /// Where to write the capture.
    #[arg(long)]
    pcap: Option<String>,
    /// First packets of flows, and not later ones.
    #[arg(long)]
    first: bool,
    /// Where to write the flows.
    #[arg(long = "flows", requires = "rule")]
    open: Option<String>,
    /// The rule that admitted them, as `acl/web`.
    #[arg(long)]
    rule: Option<String>,
}

fn kind(word: &str) -> Result<Kind, String> {
    match word {
        "udp" => Ok(Kind::Udp),
        "tcp" => Ok(Kind::Tcp),
        "udp6" => Ok(Kind::Udp6),
        "tcp6" => Ok(Kind::Tcp6),
        _ => Err("expected udp, tcp, udp6 or tcp6".into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let (kind, flows) = (arguments.kind, arguments.flows);
    if let Some(path) = &arguments.pcap {
        let template = if arguments.first { kind.first() } else { kind.packet() };
        write_capture(BufWriter::new(File::create(path)?), kind, template, flows)?;
    }
    if let (Some(path), Some(rule)) = (&arguments.open, arguments.rule) {
        let ports = vec!["in".into(), "out".into()];
        let names = Names { config: "bench.toml".into(), rules: vec![rule], ports };
        let saved = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
        let writer = Writer::new(BufWriter::new(File::create(path)?), &names, saved)?;
        if kind.is_v4() {
            write_flows::<EntryV4>(writer, kind, flows, saved)?;
        } else {
            write_flows::<EntryV6>(writer, kind, flows, saved)?;
        }
    }
    Ok(())
}

/// A pcap file (draft-ietf-opsawg-pcap), all of whose packets came at once.
fn write_capture(mut out: impl Write, kind: Kind, mut frame: Vec<u8>, flows: u32) -> Result<(), Box<dyn Error>> {
    let mut order: Vec<u32> = (0..flows).collect();
    let mut random = Numbered(20260101);
    for at in (1..order.len()).rev() {
        order.swap(at, random.below(at as u64 + 1) as usize);
    }
    let mut put = |words: &[u32], bytes: &[u8]| {
        words.iter().try_for_each(|word| out.write_all(&word.to_le_bytes()))?;
        out.write_all(bytes)
    };
    put(&[0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65_535, 1], &[])?;
    let (stamp, len) = (Stamp::new(kind, &frame), frame.len() as u32);
    for flow in order {
        stamp.write(&mut frame, flow);
        put(&[0, 0, len, len], &frame)?;
    }
    Ok(out.flush()?)
}

/// The flows, each as its opening leaves it, good for an hour from `saved` on.
fn write_flows<E: Entry>(
    mut writer: Writer<impl Write>,
    kind: Kind,
    flows: u32,
    saved: u64,
) -> Result<(), Box<dyn Error>> {
    let (states, numbers) = if kind.is_tcp() { opened(kind)? } else { Default::default() };
    let body = Body {
        expires: ticks(saved + 3_600_000_000_000),
        created: ticks(saved),
        rule: 0,
        ingress: [0, 1],
        out: [1, 0],
        states,
        flags: mark::USED | mark::REPLIED,
        class: if kind.is_tcp() { Class::TcpEstablished } else { Class::Udp } as u8,
        tracking: Tracking::Strict as u8,
        tcp: numbers,
        ..Body::zeroed()
    };
    let scope = Scope { domain: 0, wire: 1 };
    let mut chunk = Vec::with_capacity(CHUNK);
    for flow in 0..flows {
        chunk.push(E::new(E::Key::of(&kind.facts(flow), scope), body));
        if chunk.len() == CHUNK || flow == flows - 1 {
            writer.add(&chunk)?;
            chunk.clear();
        }
    }
    writer.finish()?;
    Ok(())
}

/// What the TCP machine knows after the handshake.
fn opened(kind: Kind) -> Result<(States, Tcp), Box<dyn Error>> {
    let at = if kind.is_v4() { 34 } else { 54 };
    let segments = kind.opening().into_iter();
    let mut segments = segments.map(|(reply, frame)| (reply, Segment::read(&frame[at..]).expect("a whole segment")));
    let (_, syn) = segments.next().expect("a SYN");
    let (mut states, mut numbers, mut class) = tcp::open(&syn, Tracking::Strict).map_err(|drop| format!("{drop:?}"))?;
    for (reply, segment) in segments {
        let direction = if reply { REPLY } else { ORIGINAL };
        match tcp::follow(&mut states, &mut numbers, class, direction, &segment, Tracking::Strict) {
            Verdict::Valid(next) => class = next,
            other => return Err(format!("the handshake is refused: {other:?}").into()),
        }
    }
    Ok((states, numbers))
}
