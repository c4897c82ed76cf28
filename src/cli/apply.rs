//! `flowgate apply`, `confirm`, `rollback`, `diff`, `history`, `set`: changing what runs.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anstyle::{AnsiColor, Style};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::check::examine;
use super::report::Refusal;
use super::show::{cell, rows};
use super::table;
use super::{ENVIRONMENT, FINDINGS};
use crate::control::apply::api::{Back, Change, Offer};
use crate::control::client::{self, Server};

/// How long compiling large policies may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Exit code of `diff` where it cannot compare, as diff(1)'s.
const TROUBLE: u8 = 2;

/// Whom to ask, and how to answer.
#[derive(Args, Debug)]
pub struct Asking {
    #[command(flatten)]
    server: Server,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Go over to another config without losing a packet. Exit code 0 if it runs now (or ran already), 1 if it was refused.
#[derive(Args, Debug)]
pub struct Apply {
    /// The configuration file. It becomes what the next start reads.
    config: PathBuf,
    /// Go back after this time unless "flowgate confirm" comes: 60s, 5m.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    confirm: Option<u64>,
    /// Only say whether anything would change: exit code 0 if nothing would, 1 if something would or the file is wrong.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    asking: Asking,
}

/// Keep the config that waits to be confirmed.
#[derive(Args, Debug)]
pub struct Confirm {
    #[command(flatten)]
    asking: Asking,
}

/// Go back to an earlier config.
#[derive(Args, Debug)]
pub struct Rollback {
    /// Its number in "flowgate history"; the one before what runs if not given.
    version: Option<u64>,
    #[command(flatten)]
    asking: Asking,
}

/// Say what a config would change, and which flows it would end. Exit code 0 if nothing, 1 if something, 2 if the file is wrong.
#[derive(Args, Debug)]
pub struct Diff {
    /// The configuration file.
    config: PathBuf,
    /// List so many of the flows that would end.
    #[arg(long, value_name = "N", default_value_t = 0)]
    flows: usize,
    #[command(flatten)]
    asking: Asking,
}

/// The configs that ran, the last of which runs.
#[derive(Args, Debug)]
pub struct History {
    /// Print this one's text instead.
    version: Option<u64>,
    #[command(flatten)]
    asking: Asking,
}

/// Change what a set holds, without another config.
#[derive(Args, Debug)]
pub struct Set {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Add addresses and prefixes.
    Add {
        /// The set.
        set: String,
        /// Addresses and prefixes.
        #[arg(required = true)]
        addresses: Vec<String>,
        /// For this time only: 30s, 10m, 1h, 7d.
        #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
        time: Option<u64>,
        #[command(flatten)]
        asking: Asking,
    },
    /// Take away what was added.
    Del {
        /// The set.
        set: String,
        /// Addresses and prefixes.
        #[arg(required = true)]
        addresses: Vec<String>,
        #[command(flatten)]
        asking: Asking,
    },
    /// Let it hold what a file lists (an address or prefix on each line, "#" begins a comment), and nothing else.
    Replace {
        /// The set.
        set: String,
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        asking: Asking,
    },
    /// Let it hold what the config says.
    Reset {
        /// The set.
        set: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Show sets, with what was added and until when.
    Show {
        /// Only this one, whole.
        set: Option<String>,
        #[command(flatten)]
        asking: Asking,
    },
}

/// A time in words: seconds, or with a unit.
fn seconds(text: &str) -> Result<u64, String> {
    let alone = text.parse().map(Duration::from_secs).ok();
    let time = alone.map_or_else(|| humantime::parse_duration(text), Ok);
    let time = time.map_err(|_| "expected a time such as 60s, 5m, 1h or 7d".to_owned())?.as_secs();
    if time > 0 { Ok(time) } else { Err("expected a time of a second at least".into()) }
}

/// The file as an offer, after looking for mistakes in it here, where they can be shown in their lines.
fn offer(command: &str, path: &PathBuf, as_json: bool) -> Result<Offer, ExitCode> {
    let shown = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()).display().to_string();
    match examine(&shown, None) {
        Ok((config, _)) => Ok(Offer { text: config.source.text().to_owned(), path: Some(shown), ..Offer::default() }),
        Err(Refusal::Mistakes(_, mistakes)) if as_json => {
            println!("{:#}", json!({ "error": "the file has mistakes", "mistakes": mistakes }));
            Err(ExitCode::from(FINDINGS))
        }
        Err(refusal) => Err(refusal.print(command)),
    }
}

/// Sends a question; what is refused is printed.
fn ask(command: &str, asking: &Asking, resource: &str, question: Option<&Value>) -> Result<Value, ExitCode> {
    let answer = match question {
        Some(question) => client::post(&asking.server, resource, question, PATIENCE),
        None => client::ask(&asking.server, resource),
    };
    answer.map_err(|message| {
        if asking.json {
            println!("{:#}", json!({ "error": message }));
        } else {
            eprintln!("flowgate {command}: {message}");
        }
        ExitCode::from(if message.starts_with("cannot ask") { ENVIRONMENT } else { FINDINGS })
    })
}

/// Prints differences: what goes in red, what comes in green.
fn print_changes(changes: &Value) {
    let (red, green) = (AnsiColor::Red.on_default(), AnsiColor::Green.on_default());
    let mut out = anstream::stdout();
    for change in rows(changes) {
        let path = cell(&change["path"]);
        let restart = if change["restart"] == true { "  (needs a restart)" } else { "" };
        let mut line = |style: Style, sign: &str, value: &Value| {
            if let Some(text) = value.as_str() {
                let _ = writeln!(out, "{style}{sign} {path} = {text}{style:#}{restart}");
            }
        };
        line(red, "-", &change["before"]);
        line(green, "+", &change["after"]);
    }
}

fn applied(value: &Value) {
    print_changes(&value["changes"]);
    let version = cell(&value["version"]);
    match value["changed"] == true {
        false => println!("It runs already, as version {version}."),
        true => println!("Version {version} runs; workers went over in {} us.", cell(&value["swap_us"])),
    }
    if let Some(within) = value["confirm_within"].as_u64() {
        println!("It goes in {within} s unless \"flowgate confirm\" comes.");
    }
    notes(value);
}

fn notes(value: &Value) {
    rows(&value["notes"]).iter().for_each(|note| eprintln!("flowgate: {}", cell(note)));
}

impl Apply {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        self.apply().unwrap_or_else(|code| code)
    }

    fn apply(&self) -> Result<ExitCode, ExitCode> {
        let offer = Offer { confirm: self.confirm, ..offer("apply", &self.config, self.asking.json)? };
        if self.check {
            let value = ask("apply", &self.asking, "/v1/config/diff", Some(&json!(offer)))?;
            return Ok(told(&value, self.asking.json));
        }
        let value = ask("apply", &self.asking, "/v1/config/apply", Some(&json!(offer)))?;
        if self.asking.json {
            println!("{value:#}")
        } else {
            applied(&value)
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Confirm {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        match ask("confirm", &self.asking, "/v1/config/confirm", Some(&json!({}))) {
            Ok(value) if self.asking.json => println!("{value:#}"),
            Ok(value) => {
                println!("Version {} stays.", cell(&value["version"]));
                notes(&value);
            }
            Err(code) => return code,
        }
        ExitCode::SUCCESS
    }
}

impl Rollback {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        let back = json!(Back { version: self.version });
        match ask("rollback", &self.asking, "/v1/config/rollback", Some(&back)) {
            Ok(value) if self.asking.json => println!("{value:#}"),
            Ok(value) => applied(&value),
            Err(code) => return code,
        }
        ExitCode::SUCCESS
    }
}

/// Prints a comparison; the exit code says whether there are differences.
fn told(value: &Value, as_json: bool) -> ExitCode {
    let same = rows(&value["changes"]).is_empty();
    if as_json {
        println!("{value:#}");
    } else {
        print_changes(&value["changes"]);
        let flows = &value["flows"];
        if let (Some(end), Some(of)) = (flows["end"].as_u64(), flows["of"].as_u64()) {
            let age = flows["age"].as_f64().unwrap_or_default();
            let (end, of) = (table::grouped(end), table::grouped(of));
            println!("Ends {end} of {of} flows, as of {age:.1} s ago.");
        }
        let first = rows(&flows["first"]).iter();
        let first: Vec<Vec<String>> = first
            .map(|flow| ["packet", "admitted_by", "reason", "rule"].map(|key| cell(&flow[key])).to_vec())
            .collect();
        if !first.is_empty() {
            table::print(&["flow", "admitted by", "would end because", "rule"], first.into_iter(), &[]);
        }
        if same {
            println!("No difference.");
        }
    }
    if same { ExitCode::SUCCESS } else { ExitCode::from(FINDINGS) }
}

impl Diff {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        let trouble = |_| ExitCode::from(TROUBLE);
        let offer = match offer("diff", &self.config, self.asking.json) {
            Ok(offer) => Offer { list: self.flows, ..offer },
            Err(code) => return trouble(code),
        };
        match ask("diff", &self.asking, "/v1/config/diff", Some(&json!(offer))) {
            Ok(value) => told(&value, self.asking.json),
            Err(code) => trouble(code),
        }
    }
}

impl History {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        let resource = match self.version {
            Some(version) => format!("/v1/config/history/{version}"),
            None => "/v1/config/history".to_owned(),
        };
        let value = match ask("history", &self.asking, &resource, None) {
            Ok(value) => value,
            Err(code) => return code,
        };
        match self.version {
            _ if self.asking.json => println!("{value:#}"),
            Some(_) => print!("{}", value["text"].as_str().unwrap_or_default()),
            None => {
                let lines = rows(&value["versions"]).iter().rev().map(|version| {
                    let since = UNIX_EPOCH + Duration::from_secs(version["since"].as_u64().unwrap_or_default());
                    let since = humantime::format_rfc3339_seconds(since).to_string();
                    vec![version["number"].to_string(), since, cell(&version["origin"])]
                });
                table::print(&["version", "since", "from"], lines, &[0]);
                if let Some(left) = value["confirm_within"].as_u64() {
                    println!("The last one goes in {left} s unless it is confirmed.");
                }
            }
        }
        ExitCode::SUCCESS
    }
}

impl Set {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        match &self.what {
            What::Add { set, addresses, time, asking } => {
                change(set, &Change::Add { addresses: addresses.clone(), seconds: *time }, asking)
            }
            What::Del { set, addresses, asking } => change(set, &Change::Del { addresses: addresses.clone() }, asking),
            What::Reset { set, asking } => change(set, &Change::Reset {}, asking),
            What::Replace { set, file, asking } => {
                let text = match std::fs::read_to_string(file) {
                    Ok(text) => text,
                    Err(error) => {
                        eprintln!("flowgate set: {}: {error}", file.display());
                        return ExitCode::from(ENVIRONMENT);
                    }
                };
                let words = text.lines().filter_map(|line| line.split('#').next()).flat_map(str::split_whitespace);
                change(set, &Change::Replace { addresses: words.map(str::to_owned).collect() }, asking)
            }
            What::Show { set, asking } => show_sets(set.as_deref(), asking),
        }
    }
}

fn change(set: &str, change: &Change, asking: &Asking) -> ExitCode {
    match ask("set", asking, &format!("/v1/sets/{set}"), Some(&json!(change))) {
        Ok(value) if asking.json => println!("{value:#}"),
        Ok(value) if value["changed"] == true => println!("Set {set} was changed."),
        Ok(_) => println!("Set {set} is as it was."),
        Err(code) => return code,
    }
    ExitCode::SUCCESS
}

fn show_sets(only: Option<&str>, asking: &Asking) -> ExitCode {
    let value = match ask("set", asking, "/v1/sets", None) {
        Ok(value) => value,
        Err(code) => return code,
    };
    let found: Vec<&Value> = rows(&value).iter().filter(|row| only.is_none_or(|only| row["set"] == only)).collect();
    if asking.json {
        println!("{:#}", json!(found));
        return ExitCode::SUCCESS;
    }
    if let (Some(only), true) = (only, found.is_empty()) {
        eprintln!("flowgate set: there is no set {only:?}");
        return ExitCode::from(FINDINGS);
    }
    if only.is_some() {
        found.iter().flat_map(|row| rows(&row["addresses"])).for_each(|address| println!("{}", cell(address)));
        return ExitCode::SUCCESS;
    }
    let now = crate::control::apply::sets::now();
    let lines = found.into_iter().map(|row| {
        let added = rows(&row["added"]).iter().map(|member| match member["until"].as_u64() {
            Some(until) => format!("{} ({} s)", cell(&member["address"]), until.saturating_sub(now)),
            None => cell(&member["address"]),
        });
        let added: Vec<String> = added.collect();
        let count = rows(&row["addresses"]).len().to_string();
        let from = if row["replaced"] == true { "replaced" } else { "the file" };
        vec![cell(&row["set"]), count, from.to_owned(), added.join(", ")]
    });
    table::print(&["set", "prefixes", "from", "added"], lines, &[1]);
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let good = [("60", 60), ("60s", 60), ("5m", 300), ("1h", 3600), ("7d", 604_800)];
        good.into_iter().for_each(|(text, value)| assert_eq!(seconds(text), Ok(value)));
        ["", "s", "0", "10ms", "5 furlongs", "-5s", "99999999999999999999d"]
            .iter()
            .for_each(|text| assert!(seconds(text).is_err(), "{text}"));
    }
}
