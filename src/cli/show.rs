//! `flowgate show`: what the running process knows, as tables for people or JSON for scripts.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::capture::{LastDrops, print_captures, print_drops};
use super::flows::Which;
use super::routes;
use super::table::{self, grouped};
use super::{ENVIRONMENT, USAGE};
use crate::control::client::{self, Server};
use crate::control::routes::Routes;

/// Ask the running flowgate.
#[derive(Args, Debug)]
pub struct Show {
    /// What to show.
    what: What,
    /// Of routes: those to a prefix; or the one that an address takes, and why.
    #[arg(id = "towards", value_name = "PREFIX|ADDRESS")]
    to: Option<String>,
    /// The stage to show, where there are several (`police:edge`); the kind's own name by default.
    #[arg(long)]
    stage: Option<String>,
    /// Rows to show, where there are many: 20 if not given, of routes and neighbors 200.
    #[arg(long, visible_alias = "limit")]
    top: Option<usize>,
    /// Also show what has counted nothing.
    #[arg(long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    drops: LastDrops,
    #[command(flatten)]
    flows: Which,
}

/// Rows of routes and neighbors, if not said otherwise.
const MANY: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Ports: link, queues, offloads, counters.
    Ports,
    /// Workers: core, load, account.
    Workers,
    /// The stages in order, and what they counted.
    Pipeline,
    /// Drops by reason; with --last or --rule, the last of them: why was it dropped?
    Drops,
    /// The latest captures.
    Captures,
    /// Rules with their counters.
    Rules,
    /// The sources that send most.
    Talkers,
    /// Flows: ends, state, rule, packets, times.
    Flows,
    /// Routes: to a prefix or address, or of a --source (connected, static, kernel, address, neighbor).
    Routes,
    /// Neighbors: MAC, state, since when.
    Neighbors,
    /// The config that runs, as a file.
    Config,
}

impl Show {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        let source = (self.what == What::Routes).then(|| self.flows.only_source()).flatten();
        let rule = (self.what == What::Drops).then(|| self.flows.only_rule()).flatten();
        if self.what != What::Flows && !self.flows.is_empty() && source.is_none() && rule.is_none() {
            eprintln!("flowgate show: which flows, --sort and --count go with \"show flows\"");
            return ExitCode::from(USAGE);
        }
        if self.what != What::Routes && self.to.is_some() {
            eprintln!("flowgate show: a prefix or an address goes with \"show routes\"");
            return ExitCode::from(USAGE);
        }
        if self.what != What::Drops && self.drops.is_meant() {
            eprintln!("flowgate show: --last, --reason, --port and --write go with \"show drops\"");
            return ExitCode::from(USAGE);
        }
        let many = self.top.unwrap_or(MANY);
        let ask = |resource: &str| client::ask(&self.server, resource);
        let asked = match self.what {
            What::Ports => ask("/v1/ports"),
            What::Workers => ask("/v1/workers"),
            What::Pipeline => ask("/v1/pipeline"),
            What::Drops if self.drops.is_meant() || rule.is_some() => match self.drops.ask(&self.server, rule) {
                Ok(None) => return ExitCode::SUCCESS,
                answer => answer.map(Option::unwrap_or_default),
            },
            What::Drops => ask("/v1/drops"),
            What::Captures => ask("/v1/capture"),
            What::Rules => ask("/v1/rules"),
            What::Config => ask("/v1/config"),
            What::Talkers => ask(&format!("/v1/stages/{}", self.stage.as_deref().unwrap_or("talkers"))),
            What::Flows => self.flows.ask(&self.server, self.top()),
            What::Routes => {
                let query = Routes { to: self.to.clone(), source: source.map(str::to_owned), limit: many };
                client::post(&self.server, "/v1/routes", &json!(query), client::PATIENCE)
            }
            What::Neighbors => client::post(&self.server, "/v1/neighbors", &json!({ "limit": many }), client::PATIENCE),
        };
        let value = match asked {
            Ok(value) => value,
            Err(message) => {
                eprintln!("flowgate show: {message}");
                return ExitCode::from(ENVIRONMENT);
            }
        };
        if self.json {
            println!("{value:#}");
        } else {
            self.print(&value);
        }
        ExitCode::SUCCESS
    }

    fn print(&self, value: &Value) {
        match self.what {
            What::Ports => ports(value),
            What::Workers => workers(value),
            What::Pipeline => pipeline(value, self.all),
            What::Drops if value.is_object() => print_drops(value),
            What::Drops => drops(value, self.all),
            What::Captures => print_captures(value),
            What::Rules => rules(value, self.all),
            What::Config => print!("{}", value["text"].as_str().unwrap_or_default()),
            What::Talkers => talkers(value, self.top()),
            What::Flows => self.flows.print(value),
            What::Routes => routes::print(value),
            What::Neighbors => routes::neighbors(value),
        }
    }

    fn top(&self) -> usize {
        self.top.unwrap_or(20)
    }
}

/// The rows of a list.
pub fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A value as a table cell: numbers grouped, nothing for null.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), grouped),
        other => other.to_string(),
    }
}

fn ports(value: &Value) {
    let columns =
        ["port", "link", "Mbit/s", "mtu", "queues", "rx", "tx", "tx dropped", "missed", "zone", "mac", "device"];
    let lines = rows(value).iter().map(|port| {
        let nic = &port["device_counters"];
        let missed = nic["rx_missed"].as_u64().unwrap_or(0) + nic["rx_no_buffer"].as_u64().unwrap_or(0);
        vec![
            cell(&port["name"]),
            cell(&port["link"]),
            cell(&port["speed"]),
            port["mtu"].to_string(),
            format!("{}/{}", cell(&port["rx_queues"]), cell(&port["tx_queues"])),
            cell(&port["rx_packets"]),
            cell(&port["tx_packets"]),
            cell(&port["tx_dropped"]),
            grouped(missed),
            cell(&port["zone"]),
            cell(&port["mac"]),
            match &port["vlan"] {
                Value::String(vlan) => format!("{} vlan {vlan}", cell(&port["device"])),
                _ => cell(&port["device"]),
            },
        ]
    });
    table::print(&columns, lines, &[2, 3, 5, 6, 7, 8]);
    members(value);
    for port in rows(value).iter().filter(|port| port["addresses"].is_array()) {
        let address = |row: &Value| match row["in_use"] == true {
            true => cell(&row["address"]),
            false => format!("{} (not in use)", cell(&row["address"])),
        };
        let list: Vec<String> = rows(&port["addresses"]).iter().map(address).collect();
        let interface = match &port["interface"] {
            Value::String(name) => format!(", kernel interface {name}"),
            _ => String::new(),
        };
        let list = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
        println!("{} addresses: {list}{interface}", cell(&port["name"]));
    }
    for port in rows(value).iter().filter(|port| port["vlan"].is_null()) {
        let offloads = port["offloads"].as_object().into_iter().flatten();
        let list: Vec<String> = offloads.map(|(name, how)| format!("{name}: {}", cell(how))).collect();
        println!("{} offloads: {}", cell(&port["name"]), list.join(", "));
    }
}

/// The members of bonds, if there are bonds.
fn members(value: &Value) {
    let words = |list: &Value| rows(list).iter().map(cell).collect::<Vec<_>>().join(" ");
    let of = |port: &Value| -> Vec<_> {
        let line = |member: &Value| {
            let lacp = &member["lacp"];
            let partner = match &lacp["partner_system"] {
                Value::String(system) => {
                    format!("{system} key {} port {}", lacp["partner_key"], lacp["partner_port"])
                }
                _ => "-".into(),
            };
            let cells = [&port["name"], &member["device"], &member["state"]].map(cell);
            cells.into_iter().chain([words(&lacp["actor"]), partner, words(&lacp["partner"])]).collect()
        };
        rows(&port["members"]).iter().map(line).collect()
    };
    let lines: Vec<Vec<String>> = rows(value).iter().flat_map(of).collect();
    if !lines.is_empty() {
        println!();
        let columns = ["bond", "member", "state", "LACP", "partner", "partner's LACP"];
        table::print(&columns, lines.into_iter(), &[]);
        println!();
    }
}

fn workers(value: &Value) {
    let terms = ["received", "created", "handed-in", "sent", "consumed", "dropped", "merged", "handed-out", "held"];
    let mut columns = vec!["worker", "core", "busy"];
    columns.extend(terms);
    let lines = rows(value).iter().map(|worker| {
        let busy = worker["busy"].as_f64().unwrap_or(0.0) * 100.0;
        let mut line = vec![cell(&worker["worker"]), cell(&worker["core"]), format!("{busy:.1} %")];
        line.extend(terms.iter().map(|term| cell(&worker["account"][term])));
        line
    });
    table::print(&columns, lines, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    for worker in rows(value).iter().filter(|worker| worker["balanced"] != true) {
        println!("worker {}: the account does not balance; this is a defect of flowgate, report it", worker["worker"]);
    }
}

fn pipeline(value: &Value, all: bool) {
    let how = if value["frames_unread"] == true {
        "frames pass unread".to_owned()
    } else {
        format!("decoded to {}", cell(&value["depth"]))
    };
    println!("{} ({how})", cell(&value["config"]));
    for (i, stage) in rows(&value["stages"]).iter().enumerate() {
        println!("{:>3}. {}", i + 1, cell(&stage["stage"]));
        for line in rows(&stage["compiled"]) {
            println!("     {}", cell(line));
        }
        for kind in ["counters", "drops"] {
            for (name, count) in stage[kind].as_object().into_iter().flatten().filter(|(_, n)| all || **n != 0) {
                println!("     {:<28} {:>15}{}", name, cell(count), if kind == "drops" { "  dropped" } else { "" });
            }
        }
    }
}

fn drops(value: &Value, all: bool) {
    let lines = rows(value)
        .iter()
        .filter(|row| all || row["packets"] != 0)
        .map(|row| vec![cell(&row["reason"]), cell(&row["packets"]), cell(&row["doc"])]);
    table::print(&["reason", "packets", "meaning"], lines, &[1]);
}

fn rules(value: &Value, all: bool) {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let hidden = rows(value).iter().filter(|row| row["packets"] == 0).count();
    let show_all = all || rows(value).len() <= 50;
    let lines = rows(value).iter().filter(|row| show_all || row["packets"] != 0).map(|row| {
        let last =
            row["last_hit"].as_f64().map_or("never".to_owned(), |at| format!("{:.1} s ago", (now - at).max(0.0)));
        vec![
            cell(&row["stage"]),
            cell(&row["rule"]),
            cell(&row["action"]),
            cell(&row["packets"]),
            cell(&row["bytes"]),
            cell(&row["flows"]),
            last,
            format!("{}:{}", cell(&row["file"]), row["line"]),
        ]
    });
    table::print(&["stage", "rule", "action", "packets", "bytes", "flows", "last hit", "place"], lines, &[3, 4, 5, 6]);
    if !show_all && hidden > 0 {
        println!("{hidden} rules without a hit are not shown; --all shows them");
    }
}

fn talkers(value: &Value, top: usize) {
    let list = rows(&value["talkers"]);
    let lines = list
        .iter()
        .take(top)
        .map(|row| vec![cell(&row["source"]), cell(&row["packets"]), cell(&row["bytes"]), cell(&row["error"])]);
    table::print(&["source", "packets", "bytes", "error at most"], lines, &[1, 2, 3]);
    if list.len() > top {
        println!("{} more; --top N shows them", list.len() - top);
    }
}
