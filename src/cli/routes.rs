//! `flowgate show routes` and `show neighbors` as tables.

use serde_json::Value;

use super::show::{cell, rows};
use super::table;

/// Prints routes: some of all, those to a prefix, or the one that an address takes.
pub fn print(value: &Value) {
    if value["address"].is_string() {
        return lookup(value);
    }
    let list = rows(&value["routes"]);
    if let (Some(to), true) = (value["to"].as_str(), list.is_empty()) {
        println!("there is no route to exactly {to}; ask for an address to see which route it takes");
        return;
    }
    table(list.iter().map(|row| (row, "")), false);
    let more = value["more"].as_u64().unwrap_or(0);
    if more > 0 {
        println!("{} more; --top N shows them, an address or a prefix those that it is about", table::grouped(more));
    }
    if let Some(counts) = value["counts"].as_object() {
        let by = counts["by_source"].as_object().into_iter().flatten();
        let by: Vec<String> = by.filter(|(_, n)| **n != 0).map(|(word, n)| format!("{} {word}", cell(n))).collect();
        println!(
            "{} IPv4 and {} IPv6 prefixes: {}",
            cell(&counts["ipv4_prefixes"]),
            cell(&counts["ipv6_prefixes"]),
            by.join(", ")
        );
        if counts["refused"] != 0 {
            println!("{} found no room: see route.routes_v4, route.routes_v6", cell(&counts["refused"]));
        }
    }
}

/// The route of an address, and why it is that one.
fn lookup(value: &Value) {
    let passed = rows(&value["passed"]).iter().map(|row| (row, "passed over"));
    let active = Some(&value["active"]).filter(|row| row.is_object()).map(|row| (row, "taken"));
    let behind = rows(&value["behind"]).iter().map(|row| (row, "behind it"));
    if active.is_none() {
        println!("no route leads to {}", cell(&value["address"]));
    }
    let all: Vec<_> = passed.chain(active).chain(behind).collect();
    if !all.is_empty() {
        table(all.into_iter(), true);
    }
}

fn table<'a>(list: impl Iterator<Item = (&'a Value, &'a str)>, reasons: bool) {
    let mut columns = vec!["to", "by", "port", "neighbor", "source", "metric", "state"];
    columns.extend(reasons.then_some("why"));
    let mut lines = Vec::new();
    for (row, why) in list {
        let why = match (why, row["state"].as_str()) {
            ("taken", _) => "the longest prefix that can be used".to_owned(),
            ("passed over", Some(state)) => format!("{why}: {state}"),
            (why, _) => why.to_owned(),
        };
        let kind = cell(&row["type"]);
        let ways = rows(&row["via"]);
        let next = rows(&row["next"]);
        // One line for each way, the route itself said once.
        for at in 0..ways.len().max(next.len()).max(1) {
            let (way, next) = (ways.get(at).unwrap_or(&Value::Null), next.get(at).unwrap_or(&Value::Null));
            let by = match (&way["via"], kind.as_str()) {
                (Value::String(via), _) => format!("via {via}"),
                (_, "unicast") if next["neighbor"].is_string() => format!("via {}", cell(&next["neighbor"])),
                (_, "unicast") => "its link".to_owned(),
                (_, kind) => kind.to_owned(),
            };
            let port = if next["port"].is_string() { &next["port"] } else { &way["port"] };
            let neighbor = match (&next["mac"], &next["state"]) {
                (Value::String(mac), _) => mac.clone(),
                (_, Value::String(state)) => state.clone(),
                _ => "-".to_owned(),
            };
            let first = |text: String| if at == 0 { text } else { String::new() };
            let mut line = vec![
                first(cell(&row["to"])),
                by,
                cell(port),
                neighbor,
                first(cell(&row["source"])),
                first(row["metric"].to_string()),
                first(cell(&row["state"])),
            ];
            line.extend(reasons.then(|| first(why.clone())));
            lines.push(line);
        }
    }
    table::print(&columns, lines.into_iter(), &[5]);
}

/// Prints neighbors.
pub fn neighbors(value: &Value) {
    let lines = rows(&value["neighbors"]).iter().map(|row| {
        vec![
            cell(&row["port"]),
            cell(&row["address"]),
            cell(&row["mac"]),
            cell(&row["state"]),
            format!("{:.1} s", row["since"].as_f64().unwrap_or(0.0)),
            if row["router"] == true { "router".to_owned() } else { String::new() },
        ]
    });
    table::print(&["port", "address", "mac", "state", "for", ""], lines, &[4]);
    let more = value["more"].as_u64().unwrap_or(0);
    if more > 0 {
        println!("{} more; --top N shows them", table::grouped(more));
    }
}
