//! `flowgate show flows`, `flush flows` and `flows save`.

use std::fs::{self, File, OpenOptions};
use std::io::BufWriter;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::ENVIRONMENT;
use super::show::{cell, rows};
use super::table::{self, grouped};
use crate::control::client::{self, LONG, Server};
use crate::control::flows::{Query, Selection, Sort};
use crate::flow::file::{Chunk, Reader};

/// What `show flows` takes beside what every `show` does.
#[derive(Args, Debug)]
pub struct Which {
    #[command(flatten)]
    flows: Selection,
    /// Sort the flows; the first of their tables are shown if not given.
    #[arg(long)]
    sort: Option<Sort>,
    /// Count the flows instead, by state or by rule.
    #[arg(long, value_name = "BY", num_args = 0..=1, default_missing_value = "state")]
    count: Option<By>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    State,
    Rule,
}

impl Which {
    /// True if nothing of it was given.
    pub fn is_empty(&self) -> bool {
        self.flows == Selection::default() && self.sort.is_none() && self.count.is_none()
    }

    /// The one source that is given, if nothing else is.
    pub fn only_source(&self) -> Option<&str> {
        let [source] = self.flows.source.as_slice() else { return None };
        let alone = Selection { source: vec![source.clone()], ..Selection::default() };
        (self.flows == alone && self.sort.is_none() && self.count.is_none()).then_some(source)
    }

    /// The rule that is given, if nothing else is.
    pub fn only_rule(&self) -> Option<&str> {
        let rule = self.flows.rule.as_deref()?;
        let alone = Selection { rule: self.flows.rule.clone(), ..Selection::default() };
        (self.flows == alone && self.sort.is_none() && self.count.is_none()).then_some(rule)
    }

    /// Asks for the flows, `top` of them at most.
    pub fn ask(&self, server: &Server, top: usize) -> Result<Value, String> {
        match self.count {
            Some(_) => client::post(server, "/v1/flows/count", &json!(self.flows), LONG),
            None => {
                let query = Query { flows: self.flows.clone(), sort: self.sort, limit: top };
                client::post(server, "/v1/flows", &json!(query), LONG)
            }
        }
    }

    /// Prints the answer.
    pub fn print(&self, value: &Value) {
        match self.count {
            Some(By::State) => {
                let lines = rows(&value["states"]).iter();
                let lines = lines.map(|row| vec![cell(&row["protocol"]), cell(&row["state"]), cell(&row["flows"])]);
                table::print(&["protocol", "state", "flows"], lines, &[2]);
            }
            Some(By::Rule) => {
                let lines = rows(&value["rules"]).iter();
                let lines = lines.map(|row| vec![cell(&row["stage"]), cell(&row["rule"]), cell(&row["flows"])]);
                table::print(&["stage", "rule", "flows"], lines, &[2]);
            }
            None => flows(value),
        }
        if self.count.is_some() {
            println!("{} flows", cell(&value["flows"]));
        }
        for (name, family) in [("IPv4", "ipv4"), ("IPv6", "ipv6")] {
            let of = |key: &str| cell(&value["tables"][family][key]);
            let (used, entries, half_open, budget) =
                (of("used"), of("entries"), of("half_open"), of("half_open_budget"));
            let translated = match value["tables"][family]["translated"].as_u64() {
                None | Some(0) => String::new(),
                Some(flows) => format!(", {flows} of them translated (in the index twice)"),
            };
            println!("{name}: {used} of {entries} entries used{translated}, {half_open} half-open of at most {budget}");
        }
    }
}

fn flows(value: &Value) {
    let columns = [
        "protocol",
        "source",
        "destination",
        "translated to",
        "state",
        "in > out",
        "rule",
        "packets",
        "back",
        "bytes",
        "back",
        "age",
        "expires in",
    ];
    let seconds = |value: &Value| format!("{:.1} s", value.as_f64().unwrap_or(0.0));
    let end = |of: &Value, address: &str, port: &str| match (cell(&of[address]), &of[port]) {
        (address, Value::Null) => address,
        (address, port) if address.contains(':') => format!("[{address}]:{port}"),
        (address, port) => format!("{address}:{port}"),
    };
    let id = |of: &Value| of["id"].as_u64().map_or(String::new(), |id| format!(" id {id}"));
    let ends = |of: &Value| [end(of, "source", "source_port"), end(of, "destination", "destination_port")];
    let lines = rows(&value["flows"]).iter().map(|flow| {
        let [source, destination] = ends(flow);
        let translated = match &flow["translated"] {
            Value::Null => String::new(),
            to => ends(to).join(" > ") + &id(to),
        };
        let vlan = flow["vlan"].as_u64().map_or(String::new(), |vlan| format!(" vlan {vlan}"));
        vec![
            cell(&flow["protocol"]) + &id(flow),
            source,
            destination,
            translated,
            cell(&flow["state"]),
            format!("{} > {}{vlan}", cell(&flow["from"]), cell(&flow["to"])),
            cell(&flow["rule"]),
            cell(&flow["packets"][0]),
            cell(&flow["packets"][1]),
            cell(&flow["bytes"][0]),
            cell(&flow["bytes"][1]),
            seconds(&flow["age"]),
            seconds(&flow["expires_in"]),
        ]
    });
    table::print(&columns, lines, &[7, 8, 9, 10, 11, 12]);
    if value["more"] == true {
        println!("there are more; --top N shows them, --sort the first by a measure");
    }
}

/// Remove what the running flowgate knows.
#[derive(Args, Debug)]
pub struct Flush {
    /// What to remove.
    what: Flushed,
    #[command(flatten)]
    flows: Selection,
    /// All of them.
    #[arg(long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Flushed {
    /// Flows: their next packets are judged anew, as those of new flows.
    Flows,
}

impl Flush {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        let Flushed::Flows = self.what;
        let question = json!({ "flows": self.flows, "all": self.all });
        match client::post(&self.server, "/v1/flows/flush", &question, LONG) {
            Ok(value) if self.json => println!("{value:#}"),
            Ok(value) => println!("{} flows removed", cell(&value["removed"])),
            Err(message) => return refuse("flush", &message),
        }
        ExitCode::SUCCESS
    }
}

fn refuse(command: &str, message: &str) -> ExitCode {
    eprintln!("flowgate {command}: {message}");
    ExitCode::from(ENVIRONMENT)
}

/// Keep the running flowgate's flows for another one.
#[derive(Args, Debug)]
pub struct Flows {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Save all flows to a file, from which "flowgate run CONFIG --flows FILE" goes on.
    Save {
        /// The file. It is replaced at once, when all of it is there.
        file: PathBuf,
        #[command(flatten)]
        server: Server,
    },
}

impl Flows {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        let Command::Save { file, server } = &self.command;
        let mut beside = file.clone().into_os_string();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        match save(server, &beside, file) {
            Ok(flows) => println!("{}: {} flows", file.display(), grouped(flows)),
            Err(message) => {
                // It may not be there yet.
                let _ = fs::remove_file(&beside);
                return refuse("flows save", &message);
            }
        }
        ExitCode::SUCCESS
    }
}

/// Saves to a file beside, reads it to the end to see that it is whole, and puts it in place. Returns the number of flows.
fn save(server: &Server, beside: &Path, file: &Path) -> Result<u64, String> {
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", file.display());
    // Who talks to whom is nobody else's business.
    let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside).map_err(failed)?;
    let mut out = BufWriter::new(new);
    client::download(server, "/v1/flows/file", &mut out)?;
    let new = out.into_inner().map_err(|error| failed(error.into_error()))?;
    new.sync_all().map_err(failed)?;
    let broken = |error| format!("what came is not whole: {error}");
    let mut reader = Reader::new(File::open(beside).map_err(failed)?).map_err(broken)?;
    let mut flows = 0;
    while let Some(chunk) = reader.chunk().map_err(broken)? {
        flows += match chunk {
            Chunk::V4(entries) => entries.len(),
            Chunk::V6(entries) => entries.len(),
        } as u64;
    }
    fs::rename(beside, file).map_err(failed)?;
    Ok(flows)
}
