//! What differs between two configs, by meaning: comments, order of keys and layout do not count; names do.
//!
//! Tables are compared key by key. A list of tables is compared by what names its members (`name`, or the destination of a
//! route, or the address of a neighbor), and its order matters where rules or stages stand in it. Any other list is a set.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::{Table, Value};

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Change {
    /// Where: `acl.rule[web].action`.
    pub path: String,
    /// What was there, as TOML; nothing if it is new.
    pub before: Option<String>,
    /// What is there now; nothing if it is gone.
    pub after: Option<String>,
    /// True if a running process cannot take it over.
    pub restart: bool,
}

/// One step of a path: a key, or a member of a list by name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Member(String),
}

/// All differences between two files, in order of their paths. Texts that are no TOML have none.
pub fn changes(before: &str, after: &str) -> Vec<Change> {
    let parse = |text: &str| toml::from_str::<Table>(text).unwrap_or_default();
    let mut found = Vec::new();
    tables(&mut Vec::new(), &parse(before), &parse(after), &mut found);
    found
}

fn tables(path: &mut Vec<Step>, before: &Table, after: &Table, found: &mut Vec<Change>) {
    let keys = before.keys().chain(after.keys().filter(|key| !before.contains_key(*key)));
    for key in keys {
        path.push(Step::Key(key.clone()));
        values(path, before.get(key), after.get(key), found);
        path.pop();
    }
}

fn values(path: &mut Vec<Step>, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Change>) {
    match (before, after) {
        (Some(Value::Table(before)), Some(Value::Table(after))) => tables(path, before, after, found),
        // A section that appears or goes is told key by key, and so is a list of named tables.
        (Some(Value::Table(before)), None) => tables(path, before, &Table::new(), found),
        (None, Some(Value::Table(after))) if !after.is_empty() && path.len() < 2 => {
            tables(path, &Table::new(), after, found);
        }
        (Some(Value::Array(before)), Some(Value::Array(after))) => lists(path, before, after, found),
        (Some(Value::Array(before)), None) if is_named(before) => lists(path, before, &[], found),
        (None, Some(Value::Array(after))) if is_named(after) => lists(path, &[], after, found),
        (before, after) if before != after => push(path, before.map(text), after.map(text), found),
        _ => {}
    }
}

fn lists(path: &mut Vec<Step>, before: &[Value], after: &[Value], found: &mut Vec<Change>) {
    if before == after {
        return;
    }
    let (old, new) = (members(before), members(after));
    let by_name: BTreeMap<&str, &Value> = new.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let had: BTreeMap<&str, &Value> = old.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    for (name, value) in &old {
        path.push(Step::Member(name.clone()));
        match by_name.get(name.as_str()) {
            Some(other) => values(path, Some(value), Some(other), found),
            None => push(path, Some(text(value)), None, found),
        }
        path.pop();
    }
    for (name, value) in new.iter().filter(|(name, _)| !had.contains_key(name.as_str())) {
        path.push(Step::Member(name.clone()));
        push(path, None, Some(text(value)), found);
        path.pop();
    }
    let order = |list: &[(String, &Value)], other: &BTreeMap<&str, &Value>| {
        list.iter().map(|(name, _)| name.clone()).filter(|name| other.contains_key(name.as_str())).collect::<Vec<_>>()
    };
    let (was, is) = (order(&old, &by_name), order(&new, &had));
    if was != is && is_ordered(path) {
        push(path, Some(was.join(", ")), Some(is.join(", ")), found);
    }
}

/// True of lists that are read from the top.
fn is_ordered(path: &[Step]) -> bool {
    matches!(path.last(), Some(Step::Key(key)) if key == "rule" || key == "stages" || key == "limit")
}

fn is_named(list: &[Value]) -> bool {
    list.first().is_some_and(Value::is_table)
}

/// The members of a list by what names them; several of one name are numbered.
fn members(list: &[Value]) -> Vec<(String, &Value)> {
    let mut seen = BTreeMap::<String, usize>::new();
    let name = |value: &Value| {
        let name = match value {
            Value::Table(table) => {
                let key = ["name", "to", "address", "host"].iter().find_map(|key| table.get(*key));
                key.map_or_else(|| text(value), |key| key.as_str().map_or_else(|| text(key), str::to_owned))
            }
            Value::String(word) => word.clone(),
            other => text(other),
        };
        let times = seen.entry(name.clone()).or_default();
        *times += 1;
        if *times == 1 { name } else { format!("{name} #{times}") }
    };
    list.iter().map(name).zip(list).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::Table(table) => {
            let inner: Vec<String> = table.iter().map(|(key, value)| format!("{key} = {}", text(value))).collect();
            format!("{{ {} }}", inner.join(", "))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(text).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

fn push(path: &[Step], before: Option<String>, after: Option<String>, found: &mut Vec<Change>) {
    let mut shown = String::new();
    for step in path {
        match step {
            Step::Key(key) if shown.is_empty() => shown.push_str(key),
            Step::Key(key) => shown.extend([".", key]),
            Step::Member(name) => shown.extend(["[", name, "]"]),
        }
    }
    // The device is told at its start for which MACs it receives.
    let binds = |value: &Option<String>| value.as_ref().is_some_and(|text| text.contains("mac = "));
    let restart =
        needs_restart(path) || path.first() == Some(&Step::Key("port".into())) && (binds(&before) || binds(&after));
    found.push(Change { path: shown, before, after, restart });
}

/// What belongs to the process and not to its rules: threads, memory, devices, and the tables made at start.
fn needs_restart(path: &[Step]) -> bool {
    let key = |at: usize| match path.get(at) {
        Some(Step::Key(key)) => key.as_str(),
        _ => "",
    };
    match key(0) {
        "worker" | "memory" | "eal" | "kernel" | "control" | "api" => true,
        "port" => !matches!(key(2), "zone" | "address") || key(4) == "mac",
        "metrics" => key(1) == "latency_sample",
        "neighbor" => key(1) != "static",
        "route" => matches!(key(1), "routes_v4" | "routes_v6"),
        "conntrack" => key(1) == "limit" && key(2) == "half_open",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = r#"
        [[port]]
        name = "lan"
        device = "net_null0"
        zone = "inside"
        [set.bad]
        addresses = ["192.0.2.1", "192.0.2.2"]
        [[acl.rule]]
        name = "web"
        action = "allow"
        [[acl.rule]]
        name = "dns"
        action = "allow"
        [worker]
        cores = [1]
    "#;

    fn told(after: &str) -> Vec<(String, bool)> {
        changes(BEFORE, after).into_iter().map(|change| (change.path, change.restart)).collect()
    }

    #[test]
    fn layout_and_comments_are_no_change() {
        let other =
            BEFORE.replace("[worker]\n        cores = [1]", "").replace("name = \"dns\"", "\n# why\nname='dns'");
        assert_eq!(told(&format!("worker = {{ cores = [ 1 ] }}\n{other}")), []);
        let turned = BEFORE.replace("\"192.0.2.1\", \"192.0.2.2\"", "\"192.0.2.2\", \"192.0.2.1\"");
        assert_eq!(told(&turned), [], "a set has no order");
    }

    #[test]
    fn members_are_found_by_name() {
        let after = BEFORE.replace("name = \"web\"\n        action = \"allow\"", "name = \"web\"\n action = \"deny\"");
        let found = changes(BEFORE, &after);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "acl.rule[web].action");
        assert_eq!((found[0].before.as_deref(), found[0].after.as_deref()), (Some("\"allow\""), Some("\"deny\"")));
        let less = BEFORE.replace("\"192.0.2.1\", ", "");
        assert_eq!(told(&less), [("set.bad.addresses[192.0.2.1]".to_owned(), false)]);
    }

    #[test]
    fn the_order_of_rules_is_a_change() {
        let (first, second) = ("name = \"web\"", "name = \"dns\"");
        let turned = BEFORE.replace(first, "?").replace(second, first).replace('?', second);
        let found = changes(BEFORE, &turned);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].path.as_str(), found[0].after.as_deref()), ("acl.rule", Some("dns, web")));
    }

    #[test]
    fn what_needs_a_restart_says_so() {
        assert_eq!(told(&BEFORE.replace("cores = [1]", "cores = [1, 2]")), [("worker.cores[2]".to_owned(), true)]);
        assert_eq!(told(&BEFORE.replace("net_null0", "net_null1")), [("port[lan].device".to_owned(), true)]);
        assert_eq!(told(&BEFORE.replace("inside", "outside")), [("port[lan].zone".to_owned(), false)]);
        let with = |list: &str| BEFORE.replace("zone = ", &format!("address = {list}\n        zone = "));
        assert_eq!(told(&with("['10.0.0.1/24']")), [("port[lan].address".to_owned(), false)]);
        let bound = with("[{ address = '10.0.0.254/24', mac = '00:00:5e:00:01:01' }]");
        assert_eq!(told(&bound), [("port[lan].address[10.0.0.254/24]".to_owned(), true)]);
    }

    #[test]
    fn a_rule_that_appears_is_told_whole() {
        let after = format!("{BEFORE}\n[[acl.rule]]\nname = 'ssh'\naction = 'deny'\n")
            .replace("[worker]\n        cores = [1]", "");
        let found = changes(&BEFORE.replace("[worker]\n        cores = [1]", ""), &after);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].after.as_deref(), Some("{ name = \"ssh\", action = \"deny\" }"));
        assert_eq!((found[0].path.as_str(), &found[0].before), ("acl.rule[ssh]", &None));
    }
}
