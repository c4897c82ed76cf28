//! `flowgate describe`, also `flowgate --describe`: what there is. Of a file, its pipeline as configured; without one, every
//! table, stage, drop reason and counter that flowgate has. Everything said here comes from the code that does it.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::check::examine;
use crate::config::reader::Key;
use crate::config::{Config, SECTIONS};
use crate::flow::fragments;
use crate::packet::decode::Malformed;
use crate::stage::pipeline::Blueprint;
use crate::stage::{Depth, Kind, REGISTRY};
use crate::stats::{Account, Engine, Label, Line, Lines};

/// Describe a file's pipeline, or everything flowgate has.
#[derive(Args, Debug)]
pub struct Describe {
    /// The file; without it, all there is.
    config: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print the reference as a page in Markdown.
    #[arg(long, conflicts_with_all = ["config", "json"])]
    markdown: bool,
}

impl Describe {
    /// Runs the command.
    pub fn run(&self) -> ExitCode {
        let described = match &self.config {
            None => all(),
            Some(path) => match examine(path, None) {
                Ok((config, blueprint)) => configured(&config, &blueprint),
                Err(refusal) => return refusal.print("describe"),
            },
        };
        match (self.json, self.markdown) {
            (true, _) => println!("{:#}", serde_json::json!(described)),
            (_, true) => print!("{}", page()),
            _ => print!("{}", described.text()),
        }
        ExitCode::SUCCESS
    }
}

/// A whole description.
#[derive(Serialize)]
struct Described {
    /// The file, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<String>,
    /// Tables that are not a stage's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sections: Vec<SectionDoc>,
    stages: Vec<StageDoc>,
    /// Drops that belong to no stage.
    drops: Vec<LineDoc>,
    /// What is counted for every worker.
    account: Vec<LineDoc>,
}

#[derive(Serialize)]
struct SectionDoc {
    table: &'static str,
    doc: &'static str,
    keys: Vec<KeyDoc>,
}

#[derive(Serialize)]
struct StageDoc {
    stage: String,
    kind: &'static str,
    doc: &'static str,
    depth: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    compiled: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    keys: Vec<KeyDoc>,
    drops: Vec<LineDoc>,
    counters: Vec<LineDoc>,
}

#[derive(Serialize)]
struct KeyDoc {
    name: &'static str,
    expected: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    required: bool,
    doc: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    keys: Vec<KeyDoc>,
}

#[derive(Serialize)]
struct LineDoc {
    name: String,
    doc: String,
}

fn keys(keys: &[Key]) -> Vec<KeyDoc> {
    let describe = |key: &Key| KeyDoc {
        name: key.name,
        expected: key.expected,
        default: key.default.map(|default| default()),
        required: key.required,
        doc: key.doc,
        keys: self::keys(key.keys),
    };
    keys.iter().map(describe).collect()
}

fn lines(scope: &str, lines: &[Line]) -> Vec<LineDoc> {
    let name = |line: &Line| if scope.is_empty() { line.name.to_owned() } else { format!("{scope}.{}", line.name) };
    lines.iter().map(|line| LineDoc { name: name(line), doc: line.doc.to_owned() }).collect()
}

fn depth(depth: Depth) -> &'static str {
    match depth {
        Depth::Nothing => "nothing: frames pass unread",
        Depth::L2 => "Ethernet and VLAN tags",
        Depth::L3 => "network header",
        Depth::L4 => "transport header",
    }
}

fn stage(kind: &'static Kind) -> StageDoc {
    StageDoc {
        stage: kind.name.to_owned(),
        kind: kind.name,
        doc: kind.doc,
        depth: depth(kind.depth),
        compiled: Vec::new(),
        keys: keys(kind.keys),
        drops: lines("", kind.reasons),
        counters: lines("", kind.counters),
    }
}

fn common(config: Option<String>, sections: Vec<SectionDoc>, stages: Vec<StageDoc>) -> Described {
    let mut drops = lines("engine", Engine::LINES);
    drops.extend(lines("decode", Malformed::LINES));
    drops.extend(lines("fragment", fragments::Drops::LINES));
    Described { config, sections, stages, drops, account: lines("", Account::LINES) }
}

fn all() -> Described {
    let sections = SECTIONS.iter().map(|(table, doc, k)| SectionDoc { table, doc, keys: keys(k) }).collect();
    common(None, sections, REGISTRY.iter().map(stage).collect())
}

fn configured(config: &Config, blueprint: &Blueprint) -> Described {
    let compiled = blueprint.describe();
    let labels = |labels: &[Label], instance: &str| -> Vec<LineDoc> {
        let own = labels.iter().filter(|label| label.scope == instance);
        own.map(|label| LineDoc { name: label.name.clone(), doc: label.doc.clone() }).collect()
    };
    let stages = blueprint.stages.iter().map(|at| StageDoc {
        stage: at.instance.clone(),
        compiled: compiled
            .iter()
            .filter_map(|line| line.strip_prefix(&at.instance)?.strip_prefix(": "))
            .map(str::to_owned)
            .collect(),
        keys: Vec::new(),
        drops: labels(blueprint.layout.reason_labels(), &at.instance),
        counters: labels(blueprint.layout.counter_labels(), &at.instance),
        ..stage(at.kind)
    });
    common(Some(config.source.path().to_owned()), Vec::new(), stages.collect())
}

impl Described {
    fn text(&self) -> String {
        let mut out = String::new();
        for section in &self.sections {
            let _ = writeln!(out, "{}\n  {}", section.table, section.doc);
            text_keys(&mut out, &section.keys, 2);
            out.push('\n');
        }
        for (number, stage) in self.stages.iter().enumerate() {
            match self.config {
                Some(_) => {
                    let kind = if stage.stage == stage.kind { String::new() } else { format!(" ({})", stage.kind) };
                    let _ = writeln!(out, "{}. {}{kind}", number + 1, stage.stage);
                }
                None => {
                    let _ = writeln!(out, "stage {}", stage.stage);
                }
            }
            let _ = writeln!(out, "  {}\n  reads: {}", stage.doc, stage.depth);
            for line in &stage.compiled {
                let _ = writeln!(out, "  compiled: {line}");
            }
            text_keys(&mut out, &stage.keys, 2);
            text_lines(&mut out, "drops", &stage.drops);
            text_lines(&mut out, "counters", &stage.counters);
            out.push('\n');
        }
        out.push_str("every pipeline\n");
        text_lines(&mut out, "drops", &self.drops);
        text_lines(&mut out, "accounts of each worker", &self.account);
        out
    }
}

fn text_keys(out: &mut String, keys: &[KeyDoc], indent: usize) {
    for key in keys {
        let value = match (&key.default, key.required) {
            (Some(default), _) => format!(" = {default}"),
            (None, true) => " (must be given)".to_owned(),
            (None, false) => String::new(),
        };
        let _ = writeln!(out, "{:indent$}{}{value}: {}", "", key.name, key.expected);
        let _ = writeln!(out, "{:indent$}  {}", "", key.doc);
        text_keys(out, &key.keys, indent + 4);
    }
}

fn text_lines(out: &mut String, what: &str, lines: &[LineDoc]) {
    if !lines.is_empty() {
        let _ = writeln!(out, "  {what}:");
    }
    for line in lines {
        let _ = writeln!(out, "    {:<28} {}", line.name, line.doc);
    }
}

/// What stands in front of the generated part of the reference.
const INTRODUCTION: &str = "\
# Reference

Every table and key of the configuration file, every stage, drop reason and counter. This page is generated from the code:
`flowgate describe --markdown > docs/reference.md`; do not edit it.

A file is TOML. Unknown keys are mistakes. Where a list is expected, a single value counts as a list of one. Ports, sets,
services and stages are referred to by name.

## Values

| Value | Written as |
|---|---|
| size | `\"512MB\"` (powers of 1000: `kB`, `MB`, `GB`, `TB`), `\"1GiB\"` (powers of 1024: `KiB`, `MiB`, `GiB`), or a number of bytes |
| rate | in packets `\"200/s\"`, `\"10k/s\"`, `\"5kpps\"`; in bytes `\"1Gbit/s\"`, `\"100Mbps\"`, `\"10MB/s\"` |
| duration | `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"24h\"`, `\"7d\"` |
| addresses | `\"192.0.2.1\"`, `\"192.0.2.0/24\"`, `\"192.0.2.1-192.0.2.9\"`, `\"2001:db8::/32\"`, `\"@set\"`, `\"any\"` |
| service | `\"tcp/443\"`, `\"udp/1000-2000\"`, `\"icmp/echo\"`, `\"icmp/3/4\"`, `\"icmpv6/packet-too-big\"`, `\"proto/89\"`, a protocol (`\"esp\"`), or a name of `[service]` |

## Tables

### `[set]`

Named addresses, written `\"@name\"` where addresses are expected. Each key is a name; its value is a list of addresses, prefixes,
ranges and other sets (`\"@other\"`), or `{ file = \"list.txt\" }`: one entry a line, `#` begins a comment, the path relative to the
configuration file.

### `[service]`

Named services. Each key is a name; its value is a list of services, other names included.
";

/// The reference page.
pub fn page() -> String {
    let mut out = INTRODUCTION.to_owned();
    let all = all();
    for section in &all.sections {
        let _ = write!(out, "\n### `{}`\n\n{}\n", section.table, section.doc);
        page_keys(&mut out, section.table.trim_matches(['[', ']']), &section.keys);
    }
    out.push_str("\n## Stages\n");
    for stage in &all.stages {
        let _ = write!(out, "\n### `{}`\n\n{}\n\nReads of each packet: {}.\n", stage.stage, stage.doc, stage.depth);
        page_keys(&mut out, &stage.stage, &stage.keys);
        page_lines(&mut out, "Drop reason", &stage.drops);
        page_lines(&mut out, "Counter", &stage.counters);
    }
    out.push_str("\n## Every pipeline\n\nDrops that belong to no stage, and the account of each worker.\n");
    page_lines(&mut out, "Drop reason", &all.drops);
    page_lines(&mut out, "Account", &all.account);
    out
}

fn page_keys(out: &mut String, table: &str, keys: &[KeyDoc]) {
    if keys.is_empty() {
        return;
    }
    out.push_str("\n| Key | Value | Default | Meaning |\n|---|---|---|---|\n");
    for key in keys {
        let default = match (&key.default, key.required) {
            (Some(default), _) => format!("`{default}`"),
            (None, true) => "must be given".to_owned(),
            (None, false) => String::new(),
        };
        let _ = writeln!(out, "| `{}` | {} | {default} | {} |", key.name, cell(key.expected), cell(key.doc));
    }
    for key in keys.iter().filter(|key| !key.keys.is_empty()) {
        let path = format!("{table}.{}", key.name);
        let header = if key.expected == "a table" { format!("[{path}]") } else { format!("[[{path}]]") };
        let _ = write!(out, "\n#### `{header}`\n");
        page_keys(out, &path, &key.keys);
    }
}

fn page_lines(out: &mut String, what: &str, lines: &[LineDoc]) {
    if !lines.is_empty() {
        let _ = write!(out, "\n| {what} | Meaning |\n|---|---|\n");
    }
    for line in lines {
        let _ = writeln!(out, "| `{}` | {} |", line.name, cell(&line.doc));
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md");
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(there == page(), "docs/reference.md is stale: flowgate describe --markdown > docs/reference.md");
    }

    #[test]
    fn everything_is_documented() {
        fn documented(keys: &[Key]) -> bool {
            keys.iter().all(|key| !key.doc.is_empty() && !key.expected.is_empty() && documented(key.keys))
        }
        for kind in REGISTRY {
            assert!(!kind.doc.is_empty() && documented(kind.keys), "{}", kind.name);
            assert!(kind.reasons.iter().chain(kind.counters).all(|line| !line.doc.is_empty()), "{}", kind.name);
        }
        assert!(SECTIONS.iter().all(|(_, doc, keys)| !doc.is_empty() && documented(keys)));
    }
}
