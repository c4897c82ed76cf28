//! `/v1/overview`: all that the dashboard and `flowgate top` show, of one reading of the workers' counters.
//!
//! Counts only: who shows rates takes the difference of two.

use serde_json::{Value, json};

use super::Running;
use super::api::account;
use super::census::{Counted, Talkers, now};
use super::routes::lock;
use crate::stage::pipeline::port_counter;
use crate::stage::rule_counter;
use crate::stats::{Account, Lines};
use crate::worker::gauge::{BURST, Burst, LATENCY, Latency, UP_TO};

/// Rules that are told of at most, those hit most.
const RULES: usize = 100;

/// The whole of it.
pub fn overview(running: &Running, counted: Option<&Counted>, talkers: Option<&Talkers>) -> Value {
    let at = now();
    let (sheets, slow) = (running.sheets(), running.slow_sheet());
    let layout = &running.blueprint.layout;
    let mut total = layout.sheet();
    sheets.iter().chain(&slow).for_each(|sheet| total.merge(sheet, layout));
    let ports = running.ports.iter().zip(&running.blueprint.port_counters).map(|(port, first)| {
        let (state, of) = (port.state(), |which: usize| total.counters[first + which]);
        json!({
            "port": state.name,
            "zone": state.zone,
            "vlan": state.vlan,
            "link": state.link,
            "speed": state.speed,
            "rx_packets": of(port_counter::RX),
            "tx_packets": of(port_counter::TX),
            "tx_dropped": of(port_counter::TX_DROPPED),
            "device": state.vlan.is_none().then_some(state.device_counters),
        })
    });
    let ports: Vec<Value> = ports.collect();
    let workers = running.workers.iter().zip(&sheets).enumerate();
    let workers = workers.map(|(index, (worker, sheet))| (json!(index), Some(worker.core), sheet));
    let workers = workers.chain(slow.iter().map(|sheet| (json!("slow path"), None, sheet)));
    let workers: Vec<Value> = workers
        .map(|(worker, core, sheet)| {
            let balanced = sheet.check_law(0).is_ok();
            json!({ "worker": worker, "core": core, "account": account(sheet), "balanced": balanced })
        })
        .collect();
    let drops: Vec<Value> = layout
        .reason_labels()
        .iter()
        .zip(&total.reasons)
        .filter(|(_, count)| **count > 0)
        .map(|(label, count)| json!({ "reason": format!("{}.{}", label.scope, label.name), "packets": count, "doc": label.doc }))
        .collect();
    let mut rules: Vec<_> = running.blueprint.rules.all().iter().collect();
    let hits = |counters: usize| total.counters[counters + rule_counter::PACKETS];
    let all_rules = rules.len();
    rules.sort_by_key(|rule| std::cmp::Reverse(hits(rule.counters)));
    rules.truncate(RULES);
    let rules: Vec<Value> = rules
        .iter()
        .map(|rule| {
            let word = |which: usize| total.counters[rule.counters + which];
            json!({
                "stage": rule.stage,
                "rule": rule.name,
                "action": rule.action,
                "packets": word(rule_counter::PACKETS),
                "bytes": word(rule_counter::BYTES),
                "flows": word(rule_counter::FLOWS),
            })
        })
        .collect();
    let bursts = (0..Burst::LINES.len()).map(|class| json!([1 << class, total.counters[BURST + class]]));
    let times = UP_TO.iter().zip(&total.counters[LATENCY..]).map(|(most, n)| json!([*most as f64 / 1e9, n]));
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "config": running.config,
        "at": at,
        "up": running.started.elapsed().map_or(0.0, |since| since.as_secs_f64()),
        "tsc_hz": running.tsc_hz,
        "ports": ports,
        "account": account(&total),
        "workers": workers,
        "drops": drops,
        "rules": { "all": all_rules, "most_hit": rules },
        "flows": flows(running, &total, counted),
        "talkers": talkers,
        "bursts": { "classes": bursts.collect::<Vec<_>>(), "packets": total.of(Account::Received) },
        "latency": {
            "classes": times.collect::<Vec<_>>(),
            "longer": total.counters[LATENCY + Latency::Longer as usize],
            "seconds": total.counters[LATENCY + Latency::Nanoseconds as usize] as f64 / 1e9,
        },
        "buffers": buffers(running),
        "routing": routing(running),
    })
}

/// Flows; none if connections are not tracked.
fn flows(running: &Running, total: &crate::stats::Sheet, counted: Option<&Counted>) -> Option<Value> {
    let (settings, _) = running.blueprint.conntrack.as_ref()?;
    let labels = running.blueprint.layout.counter_labels().iter().zip(&total.counters);
    let word = |name: &str| {
        labels
            .clone()
            .find(|(label, _)| label.scope == "conntrack" && label.name == name)
            .map_or(0, |(_, count)| *count)
    };
    Some(json!({
        "now": word("flows"),
        "half_open": word("half-open"),
        "new": word("new"),
        "entries": (settings.v4 + settings.v6) * running.workers.len(),
        "counted_at": counted.map(|counted| counted.at),
        "states": counted.map(|counted| &counted.flows["states"]),
    }))
}

fn buffers(running: &Running) -> Vec<Value> {
    let pools = running.pools.iter().filter_map(|(node, pool)| Some((node, pool.upgrade()?)));
    pools.map(|(node, pool)| json!({ "node": node, "all": pool.packets(), "in_use": pool.in_use() })).collect()
}

fn routing(running: &Running) -> Option<Value> {
    let router = lock(running.blueprint.router.as_ref()?);
    let counts = router.rib().counts();
    Some(
        json!({ "ipv4_prefixes": counts.v4, "ipv6_prefixes": counts.v6, "neighbors": router.neighbors().iter().count() }),
    )
}
