//! Routes in JSON, with the names of ports, as `show routes` and `explain` tell them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use utoipa::ToSchema;

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

/// The route that an address takes, and why.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RouteLookup)]
pub struct Lookup {
    /// The address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// The route it takes; null if there is none.
    pub active: Option<Shown>,
    /// Those with a longer prefix or a better metric that cannot be used.
    pub passed: Vec<Shown>,
    /// Those that would be taken otherwise.
    pub behind: Vec<Shown>,
}

/// A route.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Route)]
pub struct Shown {
    /// The prefix it leads to.
    #[schema(value_type = String)]
    pub to: IpNet,
    /// Where it comes from: `connected`, `static`, `kernel`, `address` or `neighbor`.
    pub source: &'static str,
    /// Of several, the one with the lowest is taken.
    pub metric: u32,
    /// `unicast`, `local`, `broadcast`, `blackhole`, `unreachable` or `prohibit`.
    pub r#type: &'static str,
    /// The ways it names.
    pub via: Vec<Way>,
    /// `active`, `backup`, `unreachable` or `refused`.
    pub state: &'static str,
    /// The ways it has now.
    pub next: Vec<NextHop>,
}

/// A way that a route names.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RouteWay)]
pub struct Way {
    /// The gateway; null or absent if the route leads to its link.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub via: Option<IpAddr>,
    /// The port, if the route names one.
    pub port: Option<String>,
    /// Its share of the flows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// A way that a route has now.
#[derive(Debug, Serialize, ToSchema)]
pub struct NextHop {
    /// The port.
    pub port: Option<String>,
    /// The neighbor; null on a link.
    #[schema(value_type = Option<String>)]
    pub neighbor: Option<IpAddr>,
    /// `resolved`, `unresolved`, `failed` or `unknown`; null on a link.
    pub state: Option<&'static str>,
    /// The neighbor's MAC address, if it is known.
    pub mac: Option<String>,
    /// Its share of the flows.
    pub weight: u64,
    /// True if it can be used.
    pub alive: bool,
}

/// The route that an address takes, those that would have come before it, and those behind it.
pub fn lookup(router: &Router, address: IpAddr) -> Lookup {
    let found = router.rib().lookup(address);
    let list = |rows: &[Row]| rows.iter().map(|row| route(router, row)).collect::<Vec<_>>();
    Lookup {
        address,
        active: found.active.as_ref().map(|row| route(router, row)),
        passed: list(&found.passed),
        behind: list(&found.behind),
    }
}

/// A route in words.
pub fn route(router: &Router, row: &Row) -> Shown {
    let owned = |port| port_name(router, port).map(str::to_owned);
    let word = ORIGINS.iter().find(|(_, origin)| *origin == row.origin).map_or("-", |(word, _)| *word);
    let (kind, via) = match &row.leads {
        Leads::To(Target::Via(ways)) => {
            let way =
                |way: &super::Gateway| Way { via: way.via, port: owned(way.port), weight: Some(way.weight.into()) };
            ("unicast", ways.iter().map(way).collect())
        }
        Leads::To(Target::Blackhole) => ("blackhole", Vec::new()),
        Leads::To(Target::Unreachable) => ("unreachable", Vec::new()),
        Leads::To(Target::Prohibit) => ("prohibit", Vec::new()),
        Leads::Local(port) => ("local", vec![Way { via: None, port: owned(Some(*port)), weight: None }]),
        Leads::Broadcast(port) => ("broadcast", vec![Way { via: None, port: owned(Some(*port)), weight: None }]),
    };
    Shown {
        to: row.to,
        source: word,
        metric: row.metric,
        r#type: kind,
        via,
        state: match row.standing {
            Standing::Active => "active",
            Standing::Backup => "backup",
            Standing::Unreachable => "unreachable",
            Standing::Refused => "refused",
        },
        next: row.next.iter().map(|next| next_hop(router, next)).collect(),
    }
}

fn next_hop(router: &Router, next: &Next) -> NextHop {
    let adjacency = next.adjacency.map(|index| router.routing().adjacencies.at(ROUTED | index));
    let known = adjacency.filter(|adjacency| adjacency.state == State::Forward);
    NextHop {
        port: port_name(router, next.port).map(str::to_owned),
        neighbor: next.neighbor,
        state: next.state.map(|state| match state {
            NeighborState::Resolved => "resolved",
            NeighborState::Unresolved => "unresolved",
            NeighborState::Failed => "failed",
            NeighborState::Gone => "unknown",
        }),
        mac: known.map(|adjacency| mac(adjacency.destination)),
        weight: next.weight,
        alive: next.alive,
    }
}

/// The name of a port that there is.
pub fn port_name(router: &Router, port: Option<u8>) -> Option<&str> {
    router.ports().get(usize::from(port?)).map(|port| port.name.as_str())
}

/// A MAC address in its usual form.
pub fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
