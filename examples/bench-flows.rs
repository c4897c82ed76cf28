//! What `scripts/bench.sh` replays: captures of numbered flows, and files of these flows as they are when both ends are open.
//!
//!     bench-flows udp|tcp|udp6|tcp6 FLOWS [--pcap FILE [--first]] [--flows FILE --rule STAGE/NAME]
//!                 [--prefixes N] [--routes FILE --via GATEWAY]
//!
//! The capture has one packet of each flow, in random order: one in the midst of it (of TCP a segment in the window), or with
//! `--first` its first. The flows come from port `in` and leave by port `out`, the ends of the first wire.
//! With `--prefixes` each goes to a random address of a random one of so many prefixes, in the shape of the Internet's tables;
//! `--routes` writes these, by a gateway.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use bytemuck::Zeroable;
use clap::Parser;
use flowgate::flow::entry::{Body, Entry, EntryV4, EntryV6, Key as _, Scope, mark};
use flowgate::flow::file::{CHUNK, Names, Writer};
use flowgate::flow::tcp::{self, Segment, States, Tcp, Verdict};
use flowgate::flow::timeout::{Class, ticks};
use flowgate::flow::{ORIGINAL, REPLY, Tracking};
use flowgate::packet::Meta;
use flowgate::testkit::routes;
use flowgate::wire::checksum::Update;
use ipnet::IpNet;

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
    /// How many prefixes the flows lead to; without it all lead to one host.
    #[arg(long, default_value_t = 0)]
    prefixes: usize,
    /// Where to write the prefixes as routes.
    #[arg(long, requires = "via")]
    routes: Option<String>,
    /// The gateway of all routes.
    #[arg(long)]
    via: Option<IpAddr>,
}

/// Where flows go.
struct Destinations(Vec<IpNet>);

impl Destinations {
    fn new(kind: Kind, prefixes: usize) -> Destinations {
        let generate = if kind.is_v4() { routes::v4 } else { routes::v6 };
        let mut all = generate(prefixes, &mut routes::Numbered(1));
        all.retain(is_routed);
        Destinations(all)
    }

    /// A flow's, if not all have the same.
    fn of(&self, flow: u32) -> Option<IpAddr> {
        if self.0.is_empty() {
            return None;
        }
        let mut random = routes::Numbered(u64::from(flow) << 32 | 7);
        let prefix = self.0[random.below(self.0.len())];
        // Some short prefixes have addresses in them that are not routed.
        (0..).map(|_| random.within(prefix)).find(|address| is_routed(&(*address).into()))
    }
}

/// True but for addresses that no router forwards to, and the ports' own subnets.
fn is_routed(net: &IpNet) -> bool {
    match net.addr() {
        IpAddr::V4(address) => {
            !matches!(address.octets(), [0 | 10 | 127 | 224.., ..] | [169, 254, ..] | [192, 0, 0, _] | [203, 0, 113, _])
        }
        IpAddr::V6(address) => !matches!(address.segments(), [0x2001, 0x10..=0x1f | 0xdb8, ..]),
    }
}

/// The MAC of net_pcap's first port, which cannot be set: a router takes no frames to others.
const PCAP_MAC: [u8; 6] = [0x02, 0x70, 0x63, 0x61, 0x70, 0x00];

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
    let to = Destinations::new(kind, arguments.prefixes);
    if let (Some(path), Some(via)) = (&arguments.routes, arguments.via) {
        let mut out = BufWriter::new(File::create(path)?);
        to.0.iter().try_for_each(|prefix| writeln!(out, "{prefix} via {via}"))?;
        out.flush()?;
    }
    if let Some(path) = &arguments.pcap {
        let template = if arguments.first { kind.first() } else { kind.packet() };
        write_capture(BufWriter::new(File::create(path)?), kind, template, flows, &to)?;
    }
    if let (Some(path), Some(rule)) = (&arguments.open, arguments.rule) {
        let ports = vec!["in".into(), "out".into()];
        let names = Names { config: "bench.toml".into(), rules: vec![rule], ports, steering: None };
        let saved = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
        let writer = Writer::new(BufWriter::new(File::create(path)?), &names, saved)?;
        if kind.is_v4() {
            write_flows::<EntryV4>(writer, kind, flows, &to, saved)?;
        } else {
            write_flows::<EntryV6>(writer, kind, flows, &to, saved)?;
        }
    }
    Ok(())
}

/// A pcap file (draft-ietf-opsawg-pcap), all of whose packets came at once.
fn write_capture(
    mut out: impl Write,
    kind: Kind,
    mut frame: Vec<u8>,
    flows: u32,
    to: &Destinations,
) -> Result<(), Box<dyn Error>> {
    frame[..6].copy_from_slice(&PCAP_MAC);
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
    let template = frame.clone();
    for flow in order {
        frame.copy_from_slice(&template);
        stamp.write(&mut frame, flow);
        if let Some(address) = to.of(flow) {
            redirect(&mut frame, kind, address);
        }
        put(&[0, 0, len, len], &frame)?;
    }
    Ok(out.flush()?)
}

/// Gives a frame another destination.
fn redirect(frame: &mut [u8], kind: Kind, address: IpAddr) {
    let (new, at, transport) = match address {
        IpAddr::V4(address) => (address.octets().to_vec(), 30, 34),
        IpAddr::V6(address) => (address.octets().to_vec(), 38, 54),
    };
    let sums = [kind.is_v4().then_some(24), Some(transport + if kind.is_tcp() { 16 } else { 6 })];
    let word = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
    for sum in sums.into_iter().flatten() {
        let words = new.chunks(2).zip(frame[at..].chunks(2));
        let update =
            words.fold(Update::of(word(&frame[sum..])), |update, (to, from)| update.word(word(from), word(to)));
        let sealed = update.finish();
        // RFC 768: zero would say that there is none.
        let sealed = if sealed == 0 && sum > 24 { 0xffff } else { sealed };
        frame[sum..sum + 2].copy_from_slice(&sealed.to_be_bytes());
    }
    frame[at..at + new.len()].copy_from_slice(&new);
}

/// The flows, each as its opening leaves it, good for an hour from `saved` on.
fn write_flows<E: Entry>(
    mut writer: Writer<impl Write>,
    kind: Kind,
    flows: u32,
    to: &Destinations,
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
        let facts = to.of(flow).map_or_else(|| kind.facts(flow), |address| led(kind.facts(flow), address));
        chunk.push(E::new(E::Key::of(&facts, scope), body));
        if chunk.len() == CHUNK || flow == flows - 1 {
            writer.add(&chunk)?;
            chunk.clear();
        }
    }
    writer.finish()?;
    Ok(())
}

/// The facts of a flow that goes to another host.
fn led(mut facts: Meta, address: IpAddr) -> Meta {
    match address {
        IpAddr::V4(address) => facts.dst[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => facts.dst = address.octets(),
    }
    facts
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
