//! `/metrics`: everything that is counted, for Prometheus.
//!
//! Every worker's counters are read once and everything is told of that one reading, so that within a scrape each worker's
//! account closes and drops add up by reason. Names and meanings are the layout's, those of `show` and the reference.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use serde_json::Value;

use super::Running;
use super::census::Counted;
use super::exposition::{Dialect, Exposition, Family, Kind};
use super::routes::lock;
use crate::route::show::ORIGINS;
use crate::stage::pipeline::port_counter;
use crate::stage::rule_counter;
use crate::stats::{Account, Label, Lines, Sheet, Unit};
use crate::worker::gauge::{BURST, Burst, LATENCY, Latency, UP_TO};

/// Rules that have no metrics of their own go by this name together.
pub const OTHERS: &str = "others";

/// Counters of stages that are levels: kind and name.
const LEVELS: [(&str, &str); 2] = [("conntrack", "flows"), ("conntrack", "half-open")];

/// Writes all metrics; `counted` is what is known of flows by state.
pub fn write(running: &Running, counted: Option<&Counted>, dialect: Dialect) -> String {
    // The slow path's own sheet has no counters of stages.
    let sheets: Vec<Sheet> = running.sheets().into_iter().chain(running.slow_sheet()).collect();
    let mut total = running.blueprint.layout.sheet();
    sheets.iter().for_each(|sheet| total.merge(sheet, &running.blueprint.layout));
    let mut out = Exposition::new(dialect);
    process(running, &mut out);
    ports(running, &total, &mut out);
    workers(running, &sheets, &mut out);
    drops(running, &total, &mut out);
    stages(running, &total, &mut out);
    rules(running, &total, &mut out);
    flows(running, counted, &mut out);
    routing(running, &mut out);
    buffers(running, &mut out);
    out.finish()
}

fn process(running: &Running, out: &mut Exposition) {
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("config", &running.config)];
    out.family("flowgate_build_info", Kind::Gauge, "Which flowgate runs, and by which file; always 1.")
        .sample(&labels, 1);
    let started = running.started.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    out.family("flowgate_start_time_seconds", Kind::Gauge, "When the workers started, in Unix time.")
        .sample(&[], started);
    let help = "Cycles of the time stamp counter in a second.";
    out.family("flowgate_tsc_hertz", Kind::Gauge, help).sample(&[], running.tsc_hz);
}

/// What is told of every port: a name, what it means, and where it is found.
type Column<T> = (&'static str, &'static str, fn(&T) -> u64);

fn ports(running: &Running, total: &Sheet, out: &mut Exposition) {
    let states: Vec<_> = running.ports.iter().map(|port| port.state()).collect();
    let mut family = out.family("flowgate_port_info", Kind::Gauge, "What a port is; always 1.");
    for port in &states {
        let labels = [
            ("port", port.name.as_str()),
            ("device", &port.device),
            ("driver", &port.driver),
            ("zone", port.zone.as_deref().unwrap_or_default()),
            ("vlan", port.vlan.as_deref().unwrap_or_default()),
            ("mac", &port.mac),
        ];
        family.sample(&labels, 1);
    }
    let mut family = out.family("flowgate_port_link_up", Kind::Gauge, "1 if the port's link is up.");
    states.iter().for_each(|port| family.sample(&[("port", &port.name)], u8::from(port.link == "up")));
    let help = "The link's speed; 0 if unknown.";
    let mut family = out.family("flowgate_port_link_bytes_per_second", Kind::Gauge, help);
    states.iter().for_each(|port| family.sample(&[("port", &port.name)], u64::from(port.speed) * 125_000));
    let ours = [
        ("flowgate_port_rx_packets", "Packets received from the port.", port_counter::RX),
        ("flowgate_port_tx_packets", "Packets handed to the port's transmit queue.", port_counter::TX),
        ("flowgate_port_tx_dropped_packets", "Packets the port did not take.", port_counter::TX_DROPPED),
    ];
    for (name, help, which) in ours {
        let mut family = out.family(name, Kind::Counter, help);
        for (port, first) in states.iter().zip(&running.blueprint.port_counters) {
            family.sample(&[("port", &port.name)], total.counters[first + which]);
        }
    }
    let devices: [Column<super::DeviceCounters>; 8] = [
        ("rx_packets", "Packets the device received.", |of| of.rx_packets),
        ("rx_bytes", "Bytes the device received.", |of| of.rx_bytes),
        ("rx_missed_packets", "Packets the device lost because its receive queue was full.", |of| of.rx_missed),
        ("rx_error_packets", "Frames the device received with errors.", |of| of.rx_errors),
        ("rx_no_buffer_packets", "Packets the device lost because no buffer was free.", |of| of.rx_no_buffer),
        ("tx_packets", "Packets the device sent.", |of| of.tx_packets),
        ("tx_bytes", "Bytes the device sent.", |of| of.tx_bytes),
        ("tx_error_packets", "Packets the device failed to send.", |of| of.tx_errors),
    ];
    for (name, help, of) in devices {
        let mut family = out.family(&format!("flowgate_device_{name}"), Kind::Counter, help);
        // A VLAN has no device of its own.
        for port in states.iter().filter(|port| port.vlan.is_none()) {
            family.sample(&[("port", &port.name)], of(&port.device_counters));
        }
    }
    let queues: Vec<_> = running.ports.iter().map(|port| port.queues()).collect();
    for (name, receives, what, help) in [
        ("rx_packets", true, "packets", "Packets by receive queue, where the device counts them."),
        ("rx_bytes", true, "bytes", "Bytes by receive queue, likewise."),
        ("rx_errors", true, "errors", "Errors by receive queue, likewise."),
        ("tx_packets", false, "packets", "Packets by transmit queue, likewise."),
        ("tx_bytes", false, "bytes", "Bytes by transmit queue, likewise."),
    ] {
        let mut family = out.family(&format!("flowgate_queue_{name}"), Kind::Counter, help);
        for (port, queues) in states.iter().zip(&queues) {
            // A device may name queues that are not set up.
            let used = if receives { port.rx_queues } else { port.tx_queues };
            let its = queues.iter().filter(|of| of.receives == receives && of.what == what && of.queue < used);
            its.for_each(|of| family.sample(&[("port", &port.name), ("queue", &of.queue.to_string())], of.value));
        }
    }
}

fn workers(running: &Running, sheets: &[Sheet], out: &mut Exposition) {
    let workers = running.workers.len();
    let name = |at: usize| if at < workers { at.to_string() } else { "slow path".into() };
    let numbers: Vec<String> = (0..sheets.len()).map(name).collect();
    let mut family = out.family("flowgate_worker_info", Kind::Gauge, "Where a worker runs; always 1.");
    for (worker, number) in running.workers.iter().zip(&numbers) {
        family.sample(&[("worker", number), ("core", &worker.core.to_string())], 1);
    }
    for (account, line) in Account::ALL.iter().zip(Account::LINES) {
        let name = format!("flowgate_worker_{}", snake(line.name));
        // What is no packet says so itself.
        let is_packets =
            !matches!(account, Account::Turns | Account::BusyTurns | Account::BusyCycles | Account::Cycles);
        let name = if is_packets { format!("{name}_packets") } else { name };
        let kind = if *account == Account::Held { Kind::Gauge } else { Kind::Counter };
        let mut family = out.family(&name, kind, line.doc);
        sheets
            .iter()
            .zip(&numbers)
            .for_each(|(sheet, number)| family.sample(&[("worker", number)], sheet.of(*account)));
    }
    let help = "Packets a port gave at once, where it gave any.";
    let mut family = out.family("flowgate_worker_burst_packets", Kind::Histogram, help);
    for (sheet, number) in sheets.iter().zip(&numbers) {
        let classes = sheet.counters[BURST..BURST + Burst::LINES.len()].iter().enumerate();
        let classes = classes.map(|(class, n)| (f64::from(1_u32 << class), *n));
        family.histogram(&[("worker", number)], classes, 0, sheet.of(Account::Received) as f64);
    }
    let help = "Time of sampled packets from the turn that received them to the port that took them.";
    let mut family = out.family("flowgate_worker_latency_seconds", Kind::Histogram, help);
    for (sheet, number) in sheets.iter().zip(&numbers) {
        let counters = &sheet.counters[LATENCY..];
        let classes = UP_TO.iter().zip(counters).map(|(most, n)| (*most as f64 / 1e9, *n));
        let sum = counters[Latency::Nanoseconds as usize] as f64 / 1e9;
        family.histogram(&[("worker", number)], classes, counters[Latency::Longer as usize], sum);
    }
}

fn drops(running: &Running, total: &Sheet, out: &mut Exposition) {
    let help = "Packets dropped, by who dropped them and why; together what all workers dropped.";
    let mut family = out.family("flowgate_dropped_packets", Kind::Counter, help);
    for (label, count) in running.blueprint.layout.reason_labels().iter().zip(&total.reasons) {
        family.sample(&[("stage", &label.scope), ("reason", &label.name)], count);
    }
}

/// The counters of stages, and of whoever else has declared some: a family for each kind and name.
fn stages(running: &Running, total: &Sheet, out: &mut Exposition) {
    let told = |scope: &str| {
        matches!(scope, "account" | "burst" | "latency") || scope.starts_with("port:") || scope.ends_with("/rule")
    };
    let labels = running.blueprint.layout.counter_labels().iter().zip(&total.counters);
    let mut families = BTreeMap::<String, Vec<(&Label, u64)>>::new();
    for (label, count) in labels.filter(|(label, _)| !told(&label.scope)) {
        families
            .entry(format!("flowgate_{}_{}", kind_of(label), snake(&label.name)))
            .or_default()
            .push((label, *count));
    }
    for (name, samples) in families {
        let (first, _) = samples[0];
        let level = first.unit == Unit::Gauge || LEVELS.contains(&(kind_of(first), &first.name));
        let (name, kind) = match first.unit {
            Unit::Time => (format!("{name}_timestamp_seconds"), Kind::Gauge),
            _ if level => (name, Kind::Gauge),
            _ => (name, Kind::Counter),
        };
        let mut family = out.family(&name, kind, &first.doc);
        for (label, count) in samples {
            let (stage, item) = label.scope.split_once('/').unwrap_or((&label.scope, ""));
            let labels = [("stage", stage), ("item", item)];
            let labels = if item.is_empty() { &labels[..1] } else { &labels };
            match first.unit {
                Unit::Time if count == 0 => {}
                Unit::Time => family.sample(labels, count as f64 / 1e9),
                _ => family.sample(labels, count),
            }
        }
    }
}

/// `police` of `police:edge/limit`.
fn kind_of(label: &Label) -> &str {
    label.scope.split(['/', ':']).next().unwrap_or_default()
}

fn snake(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}

/// Rules with metrics of their own come first; those behind them are summed up. Two rules of one name are one.
fn rules(running: &Running, total: &Sheet, out: &mut Exposition) {
    let most = running.metrics.rules.0 as usize;
    let mut sums = Vec::<((&str, &str), [u64; rule_counter::COUNT])>::new();
    let mut places = std::collections::HashMap::new();
    for (at, rule) in running.blueprint.rules.all().iter().enumerate() {
        let key = (rule.stage.as_str(), if at < most { rule.name.as_str() } else { OTHERS });
        let place = *places.entry(key).or_insert(sums.len());
        if place == sums.len() {
            sums.push((key, [0; rule_counter::COUNT]));
        }
        for (which, sum) in sums[place].1.iter_mut().enumerate() {
            let count = total.counters[rule.counters + which];
            *sum = if which == rule_counter::LAST_HIT { count.max(*sum) } else { *sum + count };
        }
    }
    for (name, help, which) in [
        ("flowgate_rule_packets", "Packets that matched the rule.", rule_counter::PACKETS),
        ("flowgate_rule_bytes", "Bytes that matched the rule.", rule_counter::BYTES),
        ("flowgate_rule_flows", "Flows that the rule admitted.", rule_counter::FLOWS),
    ] {
        let mut family = out.family(name, Kind::Counter, help);
        sums.iter()
            .for_each(|((stage, rule), counts)| family.sample(&[("stage", stage), ("rule", rule)], counts[which]));
    }
    let help = "When the rule was last hit, in Unix time; missing if never.";
    let mut family = out.family("flowgate_rule_last_hit_timestamp_seconds", Kind::Gauge, help);
    for ((stage, rule), counts) in sums.iter().filter(|(_, counts)| counts[rule_counter::LAST_HIT] > 0) {
        family.sample(&[("stage", stage), ("rule", rule)], counts[rule_counter::LAST_HIT] as f64 / 1e9);
    }
}

/// Without connection tracking the families are there, and empty.
fn flows(running: &Running, counted: Option<&Counted>, out: &mut Exposition) {
    let workers = running.workers.len();
    let families =
        running.blueprint.conntrack.as_ref().map(|(settings, _)| {
            [("ipv4", settings.v4, settings.budget_v4), ("ipv6", settings.v6, settings.budget_v6)]
        });
    let families = families.as_ref().map_or(&[][..], |families| families);
    let help = "Entries for flows, all workers together.";
    let mut family = out.family("flowgate_flow_table_entries", Kind::Gauge, help);
    families.iter().for_each(|(version, entries, _)| family.sample(&[("family", version)], entries * workers));
    let help = "How many of the entries flows may take that are half-open.";
    let mut family = out.family("flowgate_flow_table_half_open_entries", Kind::Gauge, help);
    families.iter().for_each(|(version, _, budget)| family.sample(&[("family", version)], budget * workers));
    let help = "Entries in use when flows were last counted.";
    let mut family = out.family("flowgate_flow_table_used_entries", Kind::Gauge, help);
    for (version, ..) in families.iter().filter(|_| counted.is_some()) {
        let used = counted.and_then(|counted| counted.flows["tables"][version]["used"].as_u64());
        family.sample(&[("family", version)], used.unwrap_or(0));
    }
    let help = "Flows by protocol and state when they were last counted; of TCP both ends', or one if they agree.";
    let mut family = out.family("flowgate_flows", Kind::Gauge, help);
    counted.iter().for_each(|counted| by_state(&counted.flows, &mut family));
    let help = "When flows were last counted, in Unix time.";
    let mut family = out.family("flowgate_flows_counted_timestamp_seconds", Kind::Gauge, help);
    counted.iter().for_each(|counted| family.sample(&[], counted.at));
}

/// Protocols without a name are one, so that whoever sends them all makes no metrics.
fn by_state(flows: &Value, family: &mut Family<'_>) {
    let mut sums = BTreeMap::<(&str, &str), u64>::new();
    for row in flows["states"].as_array().into_iter().flatten() {
        let protocol = row["protocol"].as_str().filter(|name| !name.starts_with("proto/")).unwrap_or(OTHERS);
        *sums.entry((protocol, row["state"].as_str().unwrap_or_default())).or_default() +=
            row["flows"].as_u64().unwrap_or(0);
    }
    for ((protocol, state), flows) in sums {
        family.sample(&[("protocol", protocol), ("state", state)], flows);
    }
}

/// Where nothing is routed the families are there, and empty.
fn routing(running: &Running, out: &mut Exposition) {
    let found = running.blueprint.router.as_ref().map(|router| {
        let router = lock(router);
        let mut neighbors = BTreeMap::<&str, u64>::new();
        router.neighbors().iter().for_each(|row| *neighbors.entry(row.state.word()).or_default() += 1);
        (router.rib().counts(), neighbors)
    });
    let (counts, neighbors) = found.unzip();
    let mut family = out.family("flowgate_route_prefixes", Kind::Gauge, "Prefixes that are routed to.");
    let prefixes = counts.iter().flat_map(|counts| [("ipv4", counts.v4), ("ipv6", counts.v6)]);
    prefixes.for_each(|(version, n)| family.sample(&[("family", version)], n));
    let mut family = out.family("flowgate_routes", Kind::Gauge, "Routes by where they come from.");
    if let Some(counts) = &counts {
        ORIGINS.iter().for_each(|(word, origin)| family.sample(&[("source", word)], counts.of(*origin)));
    }
    let mut family = out.family("flowgate_routes_refused", Kind::Gauge, "Routes for which there was no room.");
    counts.iter().for_each(|counts| family.sample(&[], counts.refused + counts.starved));
    let mut family = out.family("flowgate_neighbors", Kind::Gauge, "Neighbors by state.");
    neighbors.iter().flatten().for_each(|(state, n)| family.sample(&[("state", state)], n));
}

fn buffers(running: &Running, out: &mut Exposition) {
    let pools: Vec<_> = running
        .pools
        .iter()
        .filter_map(|(node, pool)| pool.upgrade().map(|pool| (node.to_string(), pool.packets(), pool.in_use())))
        .collect();
    let mut family = out.family("flowgate_packet_buffers", Kind::Gauge, "Packet buffers by NUMA node.");
    pools.iter().for_each(|(node, all, _)| family.sample(&[("node", node)], all));
    let help = "Packet buffers in use, those in receive queues included.";
    let mut family = out.family("flowgate_packet_buffers_in_use", Kind::Gauge, help);
    pools.iter().for_each(|(node, _, used)| family.sample(&[("node", node)], used));
}
