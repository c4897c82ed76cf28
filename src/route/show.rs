//! Routes in JSON, with the names of ports, as `show routes` and `explain` tell them.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::adjacency::{ROUTED, State};
use super::rib::NeighborState;
use super::rib::show::{Leads, Next, Origin, Row, Standing};
use super::router::Router;
use super::{Source, Target};

/// The words for where routes come from, and what they are.
pub const ORIGINS: [(&str, Origin); 5] = [
    ("connected", Origin::Source(Source::Connected)),
    ("static", Origin::Source(Source::Static)),
    ("kernel", Origin::Source(Source::Kernel)),
    ("address", Origin::Address),
    ("neighbor", Origin::Neighbor),
];

/// The route that an address takes, those that would have come before it, and those behind it.
pub fn lookup(router: &Router, address: IpAddr) -> Value {
    let found = router.rib().lookup(address);
    let list = |rows: &[Row]| rows.iter().map(|row| route(router, row)).collect::<Vec<_>>();
    json!({
        "address": address,
        "active": found.active.as_ref().map(|row| route(router, row)),
        "passed": list(&found.passed),
        "behind": list(&found.behind),
    })
}

/// A route as JSON.
pub fn route(router: &Router, row: &Row) -> Value {
    let word = ORIGINS.iter().find(|(_, origin)| *origin == row.origin).map_or("-", |(word, _)| *word);
    let (kind, via) = match &row.leads {
        Leads::To(Target::Via(ways)) => {
            let way = |way: &super::Gateway| json!({ "via": way.via, "port": port_name(router, way.port), "weight": way.weight });
            ("unicast", ways.iter().map(way).collect())
        }
        Leads::To(Target::Blackhole) => ("blackhole", Vec::new()),
        Leads::To(Target::Unreachable) => ("unreachable", Vec::new()),
        Leads::To(Target::Prohibit) => ("prohibit", Vec::new()),
        Leads::Local(port) => ("local", vec![json!({ "port": port_name(router, Some(*port)) })]),
        Leads::Broadcast(port) => ("broadcast", vec![json!({ "port": port_name(router, Some(*port)) })]),
    };
    json!({
        "to": row.to,
        "source": word,
        "metric": row.metric,
        "type": kind,
        "via": via,
        "state": match row.standing {
            Standing::Active => "active",
            Standing::Backup => "backup",
            Standing::Unreachable => "unreachable",
            Standing::Refused => "refused",
        },
        "next": row.next.iter().map(|next| next_hop(router, next)).collect::<Vec<_>>(),
    })
}

fn next_hop(router: &Router, next: &Next) -> Value {
    let adjacency = next.adjacency.map(|index| router.routing().adjacencies.at(ROUTED | index));
    let known = adjacency.filter(|adjacency| adjacency.state == State::Forward);
    json!({
        "port": port_name(router, next.port),
        "neighbor": next.neighbor,
        "state": next.state.map(|state| match state {
            NeighborState::Resolved => "resolved",
            NeighborState::Unresolved => "unresolved",
            NeighborState::Failed => "failed",
            NeighborState::Gone => "unknown",
        }),
        "mac": known.map(|adjacency| mac(adjacency.destination)),
        "weight": next.weight,
        "alive": next.alive,
    })
}

/// The name of a port that there is.
pub fn port_name(router: &Router, port: Option<u8>) -> Option<&str> {
    router.ports().get(usize::from(port?)).map(|port| port.name.as_str())
}

/// A MAC address in its usual form.
pub fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
