//! `flowgate capture` and `flowgate show drops --last`: packets, for people, for scripts and for Wireshark.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::ENVIRONMENT;
use super::show::{cell, rows};
use super::table::{self, grouped};
use crate::control::capture::{CaptureQuery, Format};
use crate::control::client::{self, PATIENCE, Server};
use crate::control::drops::Last;

/// Capture packets of the running flowgate, with what became of them.
#[derive(Args, Debug)]
pub struct Capture {
    #[command(flatten)]
    what: CaptureQuery,
    /// Write pcapng to a file, "-" being the standard output: "flowgate capture -w - | wireshark -k -i -".
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Print a line of JSON for each packet.
    #[arg(long, conflicts_with = "write")]
    json: bool,
    #[command(flatten)]
    server: Server,
    /// A tcpdump expression (pcap-filter(7)) that packets must match.
    #[arg(value_name = "EXPRESSION")]
    expression: Vec<String>,
}

impl Capture {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        let format = match (&self.write, self.json) {
            (Some(_), _) => Format::Pcapng,
            (None, true) => Format::Json,
            (None, false) => Format::Text,
        };
        let what = CaptureQuery { expression: self.expression.join(" "), format, ..self.what.clone() };
        let mut out = match output(self.write.as_deref()) {
            Ok(out) => out,
            Err(message) => return refuse(&message),
        };
        match client::receive(&self.server, "/v1/capture", Some(&json!(what)), None, &mut out) {
            Ok(Some(number)) => self.conclude(number),
            // Whoever read it has seen enough.
            Ok(None) => ExitCode::SUCCESS,
            Err(message) => refuse(&message),
        }
    }

    /// Says on the standard error what was captured.
    fn conclude(&self, number: u64) -> ExitCode {
        // The capture may end a moment after us, if it was interrupted.
        for _ in 0..50 {
            let latest = client::ask(&self.server, "/v1/capture");
            let captures = latest.as_ref().map_or(&[][..], |latest| rows(&latest["captures"]));
            match captures.iter().find(|capture| capture["number"] == number) {
                Some(capture) if capture["under_way"] == true => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                Some(capture) => {
                    eprintln!("{} packets captured", cell(&capture["packets"]));
                    if capture["lost"] != 0 {
                        eprintln!(
                            "{} packets lost: they came faster than they were read; narrow the capture, or --snap less",
                            cell(&capture["lost"])
                        );
                    }
                    break;
                }
                None => break,
            }
        }
        ExitCode::SUCCESS
    }
}

fn output(file: Option<&Path>) -> Result<Box<dyn Write>, String> {
    match file {
        Some(file) if file != Path::new("-") => {
            use std::os::unix::fs::OpenOptionsExt;
            let mut options = File::options();
            // What people say to each other is nobody else's business.
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            let file_of = options.open(file).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
            Ok(Box::new(BufWriter::new(file_of)))
        }
        _ => Ok(Box::new(io::stdout())),
    }
}

fn refuse(message: &str) -> ExitCode {
    eprintln!("flowgate capture: {message}");
    ExitCode::from(ENVIRONMENT)
}

/// What "show drops" takes beside what every "show" does.
#[derive(Args, Debug)]
#[command(next_help_heading = "Which of the last drops")]
pub struct LastDrops {
    /// Show the last so many drops: when, why, and which packet.
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Of those, the ones for a reason: acl.denied, or all of a stage's: acl.
    #[arg(long)]
    reason: Vec<String>,
    /// Of those, the ones that came by a port, or were to leave by it.
    #[arg(long)]
    port: Option<String>,
    /// Write their headers to a file as pcapng, "-" being the standard output.
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
}

impl LastDrops {
    /// True if the last drops are meant, and not how many there are of each reason.
    pub fn is_meant(&self) -> bool {
        self.last.is_some() || !self.reason.is_empty() || self.port.is_some() || self.write.is_some()
    }

    /// Asks for them; none if they went to a file.
    pub fn ask(&self, server: &Server, rule: Option<&str>) -> Result<Option<Value>, String> {
        let (rule, port, limit) = (rule.map(str::to_owned), self.port.clone(), self.last.unwrap_or(50));
        let last = json!(Last { limit, reason: self.reason.clone(), rule, port });
        match &self.write {
            None => client::post(server, "/v1/drops/last", &last, PATIENCE).map(Some),
            Some(file) => {
                let mut out = output(Some(file))?;
                client::receive(server, "/v1/drops/file", Some(&last), Some(PATIENCE), &mut out).map(|_| None)
            }
        }
    }
}

/// Prints the last drops, the latest last, as a log does.
pub fn print_drops(value: &Value) {
    let lines = rows(&value["drops"]).iter().rev().map(|row| {
        let rule = match (&row["rule"], &row["file"]) {
            (Value::String(rule), Value::String(file)) => format!("{rule} {file}:{}", row["line"]),
            _ => "-".to_owned(),
        };
        vec![
            cell(&row["time"]),
            cell(&row["port"]),
            cell(&row["out"]),
            grouped(row["length"].as_u64().unwrap_or(0)),
            format!("{}.{}", cell(&row["stage"]), cell(&row["reason"])),
            rule,
            cell(&row["packets"]),
            cell(&row["packet"]),
        ]
    });
    table::print(&["time", "in", "out", "bytes", "reason", "rule", "alike", "packet"], lines, &[3, 6]);
    let kept: u64 = rows(&value["drops"]).iter().filter_map(|row| row["packets"].as_u64()).sum();
    println!("{} of {} packets dropped so far", grouped(kept), cell(&value["dropped"]));
}

/// Prints the latest captures.
pub fn print_captures(value: &Value) {
    let lines = rows(&value["captures"]).iter().map(|row| {
        let state = if row["under_way"] == true { "under way" } else { "ended" };
        let what = &row["what"];
        let list = |key: &str| rows(&what[key]).iter().map(|word| format!("{key} {}", cell(word))).collect::<Vec<_>>();
        let mut words = [list("port"), list("direction"), list("reason")].concat();
        words.extend(what["flows"]["rule"].as_str().map(|rule| format!("rule {rule}")));
        words.extend(what["expression"].as_str().filter(|text| !text.is_empty()).map(str::to_owned));
        let (packets, lost) = (cell(&row["packets"]), cell(&row["lost"]));
        vec![cell(&row["number"]), state.to_owned(), packets, lost, cell(&row["bytes"]), words.join(", ")]
    });
    table::print(&["capture", "state", "packets", "lost", "bytes", "what"], lines, &[0, 2, 3, 4]);
}
