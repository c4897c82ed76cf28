//! `flowgate replay`: the configured datapath over capture files, and what became of every packet.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use crate::config::Config;
use crate::config::source::near_miss;
use crate::io::capture::{Merge, Reader, Writer};
use crate::replay::{self, LONGEST};
use crate::stage::pipeline::{Blueprint, port_counter};
use crate::stage::rule_counter;
use crate::stats::{Account, Unit};
use crate::verdict::Time;

use super::check::examine;
use super::table::{self, grouped};
use super::{ENVIRONMENT, FINDINGS, USAGE};

/// Run the datapath over capture files: no root, no hugepages, no NIC.
///
/// Reads pcap and pcapng, merges several captures by time, and takes the captures' time as its clock. Packets that were cut
/// when they were captured are handled by the bytes that are there. Where packets are routed, all links are up, and a frame to a
/// single station is taken to be for the box, whatever MAC it has.
#[derive(Args, Debug)]
pub struct Replay {
    /// The configuration file.
    config: String,
    /// A capture of what arrives on a port; `-` is the standard input. Several are merged by time.
    #[arg(long = "in", value_name = "PORT=FILE", required = true, value_parser = assignment)]
    inputs: Vec<(String, PathBuf)>,
    /// Where to write what leaves by a port, as pcap; an existing file is replaced.
    #[arg(long = "out", value_name = "PORT=FILE", value_parser = assignment)]
    outputs: Vec<(String, PathBuf)>,
    /// Where packets are routed: who answers for neighbors that the file does not give.
    #[arg(long, value_enum, default_value_t = replay::Neighbors::Assume)]
    neighbors: replay::Neighbors,
    /// Print the verdict on each packet.
    #[arg(short, long)]
    verbose: bool,
    /// Print JSON: with --verbose one line for each packet, and always a last line with the totals.
    #[arg(long)]
    json: bool,
}

fn assignment(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((port, file)) if !port.is_empty() && !file.is_empty() => Ok((port.to_owned(), file.into())),
        _ => Err("expected the name of a port and a file, as in lan=lan.pcap".into()),
    }
}

/// Why the command ends before its work is done: an exit code, and what to say.
type Refusal = (u8, String);

impl Replay {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        let (config, blueprint) = match examine(&self.config, Some(1)) {
            Ok(good) => good,
            Err(refusal) => return refusal.print("replay"),
        };
        match self.replay(&config, blueprint) {
            Ok(code) => ExitCode::from(code),
            Err((code, message)) => {
                for line in message.lines() {
                    eprintln!("flowgate replay: {line}");
                }
                ExitCode::from(code)
            }
        }
    }

    fn replay(&self, config: &Config, blueprint: Blueprint) -> Result<u8, Refusal> {
        let in_ports =
            self.inputs.iter().map(|(port, _)| port_index(config, "--in", port)).collect::<Result<Vec<_>, _>>()?;
        let out_ports =
            self.outputs.iter().map(|(port, _)| port_index(config, "--out", port)).collect::<Result<Vec<_>, _>>()?;
        self.check_files(&out_ports)?;
        let readers = self.inputs.iter().map(|(_, file)| Reader::open(file));
        let (readers, failures): (Vec<_>, Vec<_>) = readers.partition(Result::is_ok);
        if !failures.is_empty() {
            let lines: Vec<String> =
                failures.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
            return Err((FINDINGS, lines.join("\n")));
        }
        let mut captures = Merge::new(readers.into_iter().flatten());
        let mut outputs: Vec<Option<Writer>> = config.devices().iter().map(|_| None).collect();
        for (port, (_, file)) in out_ports.iter().zip(&self.outputs) {
            outputs[usize::from(*port)] =
                Some(Writer::create(file).map_err(|error| cannot_write(&file.display(), &error))?);
        }
        let mut replay = replay::Replay::new(blueprint, config, outputs, self.verbose);
        replay.set_neighbors(self.neighbors);
        self.pump(&mut replay, &mut captures, &in_ports)?;
        replay.finish().map_err(|error| cannot_write(&error.file, &error.error))?;
        self.conclude(config, &mut replay, &captures)
    }

    /// Refuses output files that would overwrite an input or each other.
    fn check_files(&self, out_ports: &[u8]) -> Result<(), Refusal> {
        let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
            (Ok(a), Ok(b)) => a == b && a.is_file(),
            _ => a == b,
        };
        for (at, (port, file)) in self.outputs.iter().enumerate() {
            if out_ports[..at].contains(&out_ports[at]) {
                return Err((USAGE, format!("--out {port}: given twice")));
            }
            let taken = self.inputs.iter().chain(&self.outputs[..at]).find(|(_, other)| same(file, other));
            if let Some((other, _)) = taken {
                return Err((USAGE, format!("--out {port}={}: this is already the file of {other}", file.display())));
            }
        }
        if self.inputs.iter().filter(|(_, file)| file == Path::new("-")).count() > 1 {
            return Err((USAGE, "--in: the standard input can be read only once".into()));
        }
        Ok(())
    }

    /// Takes all packets through, telling of each if asked to.
    fn pump(&self, replay: &mut replay::Replay, captures: &mut Merge, ports: &[u8]) -> Result<(), Refusal> {
        let mut stdout = BufWriter::new(io::stdout().lock());
        let mut printed: io::Result<()> = Ok(());
        let mut progress = Progress::new(&self.inputs, self.verbose);
        if self.verbose && !self.json {
            printed = writeln!(stdout, "{}", replay.namer().header());
        }
        loop {
            let more = replay.step(captures, ports, |namer, record| {
                if printed.is_ok() {
                    printed = match self.json {
                        true => serde_json::to_writer(&mut stdout, record)
                            .map_err(Into::into)
                            .and_then(|()| writeln!(stdout)),
                        false => writeln!(stdout, "{}", namer.line(record)),
                    };
                }
            });
            if !more.map_err(|error| cannot_write(&error.file, &error.error))? {
                break;
            }
            progress.show(replay.packets(), captures);
        }
        progress.clear();
        match printed.and_then(|()| stdout.flush()) {
            // Whoever read the lines has seen enough; the files are still written.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(cannot_write(&"standard output", &error)),
            Ok(()) => Ok(()),
        }
    }

    /// Prints the totals and what was wrong; the result is the exit code.
    fn conclude(&self, config: &Config, replay: &mut replay::Replay, captures: &Merge) -> Result<u8, Refusal> {
        let law = replay.check_law();
        let totals = self.totals(config, replay, captures, &law);
        let mut stdout = io::stdout().lock();
        let printed = match self.json {
            true => writeln!(stdout, "{}", json!({ "totals": totals })),
            false => stdout.write_all(report(&totals).as_bytes()),
        };
        match printed.and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(cannot_write(&"standard output", &error));
            }
            _ => {}
        }
        if replay.cut() > 0 {
            eprintln!(
                "flowgate replay: warning: {} of {} packets had been cut when they were captured, and were handled by the bytes \
                 that are there",
                grouped(replay.cut()),
                grouped(replay.packets())
            );
        }
        if replay.too_long() > 0 {
            eprintln!(
                "flowgate replay: warning: {} of {} packets, longer than {LONGEST} bytes, were left out",
                grouped(replay.too_long()),
                grouped(replay.packets())
            );
        }
        let mut code = 0;
        for (_, failure) in captures.readers() {
            if let Some(failure) = failure {
                eprintln!("flowgate replay: {failure}; what comes before it was processed");
                code = FINDINGS;
            }
        }
        if let Err(difference) = law {
            return Err((
                ENVIRONMENT,
                format!("THE ACCOUNT DOES NOT BALANCE: {difference}. This is a defect of flowgate: report it"),
            ));
        }
        Ok(code)
    }

    fn totals(&self, config: &Config, replay: &replay::Replay, captures: &Merge, law: &Result<(), String>) -> Value {
        let (sheet, blueprint) = (replay.sheet(), replay.blueprint());
        let (first, last) = replay.times();
        let inputs = self.inputs.iter().zip(captures.readers()).map(|((port, _), (reader, failure))| {
            json!({
                "port": port,
                "file": reader.name(),
                "packets": reader.packets(),
                "error": failure.map(ToString::to_string),
            })
        });
        let ports = config.names.ports.iter().zip(&blueprint.port_counters).zip(replay.outputs()).map(
            |((port, at), output)| {
                json!({
                    "port": port.name,
                    "in": sheet.counters[at + port_counter::RX],
                    "out": sheet.counters[at + port_counter::TX],
                    "file": output.as_ref().map(Writer::name),
                })
            },
        );
        let reasons = blueprint.layout.reason_labels().iter().zip(&sheet.reasons).filter(|(_, n)| **n > 0);
        let reasons = reasons.map(|(label, packets)| {
            json!({ "stage": label.scope, "reason": label.name, "packets": packets, "meaning": label.doc })
        });
        let rules = blueprint.rules.all().iter().map(|rule| {
            let last_hit = sheet.counters[rule.counters + rule_counter::LAST_HIT];
            json!({
                "stage": rule.stage,
                "rule": rule.name,
                "action": rule.action,
                "packets": sheet.counters[rule.counters + rule_counter::PACKETS],
                "bytes": sheet.counters[rule.counters + rule_counter::BYTES],
                "last_hit": (last_hit > 0).then_some(Time(last_hit)),
                "file": &*rule.place.file,
                "line": rule.place.line,
            })
        });
        let instances: Vec<&str> = blueprint.stages.iter().map(|stage| stage.instance.as_str()).collect();
        let counters = blueprint.layout.counter_labels().iter().zip(&sheet.counters);
        let counters = counters.filter(|(label, n)| **n > 0 && instances.contains(&label.scope.as_str()));
        let counters = counters.map(|(label, n)| {
            let value = if label.unit == Unit::Time { json!(Time(*n)) } else { json!(n) };
            json!({ "stage": label.scope, "counter": label.name, "value": value, "meaning": label.doc })
        });
        json!({
            "config": self.config,
            "packets": replay.packets(),
            "cut": replay.cut(),
            "too_long": replay.too_long(),
            "first": Time(first),
            "last": Time(last),
            "received": sheet.of(Account::Received),
            "created": sheet.of(Account::Created),
            "sent": sheet.of(Account::Sent),
            "consumed": sheet.of(Account::Consumed),
            "dropped": sheet.of(Account::Dropped),
            "held": sheet.of(Account::Held),
            "balanced": law.is_ok(),
            "inputs": inputs.collect::<Vec<_>>(),
            "ports": ports.collect::<Vec<_>>(),
            "reasons": reasons.collect::<Vec<_>>(),
            "counters": counters.collect::<Vec<_>>(),
            "rules": rules.collect::<Vec<_>>(),
        })
    }
}

/// The totals as tables.
fn report(totals: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let number = |value: &Value| grouped(value.as_u64().unwrap_or(0));
    let rows = |name: &str| totals[name].as_array().cloned().unwrap_or_default();
    let mut out = format!("{}: {} packets", text(&totals["config"]), number(&totals["packets"]));
    if totals["packets"] != 0 {
        out += &format!(" from {} to {}", text(&totals["first"]), text(&totals["last"]));
    }
    for term in ["created", "sent", "consumed", "dropped", "held"] {
        if matches!(term, "sent" | "dropped") || totals[term] != 0 {
            out += &format!(", {} {term}", number(&totals[term]));
        }
    }
    out += "\n\n";
    let ports = rows("ports").into_iter();
    let ports = ports.map(|row| vec![text(&row["port"]), number(&row["in"]), number(&row["out"]), text(&row["file"])]);
    out += &table::render(&["port", "in", "out", "written to"], ports, &[1, 2]);
    let reasons: Vec<_> = rows("reasons")
        .iter()
        .map(|row| {
            let reason = format!("{}.{}", text(&row["stage"]), text(&row["reason"]));
            vec![reason, number(&row["packets"]), text(&row["meaning"])]
        })
        .collect();
    if !reasons.is_empty() {
        out.push('\n');
        out += &table::render(&["dropped for", "packets", "meaning"], reasons.into_iter(), &[1]);
    }
    let counters: Vec<_> = rows("counters")
        .iter()
        .map(|row| {
            let value = row["value"].as_u64().map_or_else(|| text(&row["value"]), grouped);
            vec![format!("{}.{}", text(&row["stage"]), text(&row["counter"])), value, text(&row["meaning"])]
        })
        .collect();
    if !counters.is_empty() {
        out.push('\n');
        out += &table::render(&["counted", "value", "meaning"], counters.into_iter(), &[1]);
    }
    let rules = rows("rules");
    let shown: Vec<_> = rules.iter().filter(|row| rules.len() <= RULES || row["packets"] != 0).collect();
    if !shown.is_empty() {
        let lines = shown.iter().map(|row| {
            let place = format!("{}:{}", text(&row["file"]), row["line"]);
            let (packets, bytes) = (number(&row["packets"]), number(&row["bytes"]));
            vec![text(&row["stage"]), text(&row["rule"]), text(&row["action"]), packets, bytes, place]
        });
        out.push('\n');
        out += &table::render(&["stage", "rule", "action", "packets", "bytes", "place"], lines, &[3, 4]);
    }
    if shown.len() < rules.len() {
        out +=
            &format!("{} more rules matched nothing; --json lists them\n", grouped((rules.len() - shown.len()) as u64));
    }
    out
}

/// Rules shown even if none of them matched.
const RULES: usize = 50;

/// The index of a port named on the command line.
fn port_index(config: &Config, option: &str, name: &str) -> Result<u8, Refusal> {
    if let Some(vlan) = config.names.port(name).and_then(|port| config.names.ports[usize::from(port)].carrier) {
        let parent = &config.names.ports[usize::from(vlan.parent)].name;
        return Err((USAGE, format!("{option} {name}: {name:?} is a VLAN: give the packets of {parent:?}, tagged")));
    }
    config.names.port(name).ok_or_else(|| {
        let known = || config.names.ports.iter().map(|port| port.name.as_str());
        let help = match near_miss(name, known()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("{} has: {}", config.source.path(), known().collect::<Vec<_>>().join(", ")),
        };
        (USAGE, format!("{option} {name}: there is no port {name:?}; {help}"))
    })
}

fn cannot_write(what: &dyn std::fmt::Display, error: &io::Error) -> Refusal {
    (ENVIRONMENT, format!("cannot write {what}: {error}"))
}

/// How far a long replay is, on a terminal.
struct Progress {
    bytes: u64,
    shown: Option<Instant>,
    packets: u64,
    lines: bool,
}

impl Progress {
    /// Packets between two looks at the clock.
    const EVERY: u64 = 1 << 16;

    fn new(inputs: &[(String, PathBuf)], quiet: bool) -> Progress {
        let bytes = inputs.iter().filter_map(|(_, file)| file.metadata().ok()).map(|meta| meta.len()).sum();
        let shown = (!quiet && io::stderr().is_terminal()).then(Instant::now);
        Progress { bytes, shown, packets: 0, lines: false }
    }

    fn show(&mut self, packets: u64, captures: &Merge) {
        let Some(shown) = self.shown else { return };
        if packets - self.packets < Progress::EVERY {
            return;
        }
        self.packets = packets;
        if shown.elapsed() >= Duration::from_millis(500) {
            let taken: u64 = captures.readers().map(|(reader, _)| reader.taken()).sum();
            let share = (taken * 100).checked_div(self.bytes).map_or(String::new(), |share| format!(", {share} %"));
            eprint!("\r{} packets{share} ", grouped(packets));
            (self.shown, self.lines) = (Some(Instant::now()), true);
        }
    }

    /// Makes room for what is printed next.
    fn clear(&self) {
        if self.lines {
            eprint!("\r\x1b[K");
        }
    }
}
