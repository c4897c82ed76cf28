//! What `show routes` and `show neighbors` are answered: a bounded copy, made while the router is locked.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;

use super::Running;
use super::flows::Refusal;
use crate::config::source::near_miss;
use crate::route::rib::show::{Origin, Row};
use crate::route::router::Router;
use crate::route::show::{Lookup, ORIGINS, Shown, lookup, mac, port_name, route};

/// Rows that are copied at most.
const MOST: usize = 100_000;
/// Which routes are asked for.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Routes {
    /// Those to this prefix; or that which this address takes, and why.
    pub to: Option<String>,
    /// Those of this source; of all but `address` and `neighbor` if not given.
    pub source: Option<String>,
    /// How many at most.
    pub limit: usize,
}

/// Routes that were asked for.
#[derive(serde::Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[schema(as = RoutesFound)]
pub enum Found {
    /// The one that an address takes.
    Lookup(Lookup),
    /// Those to a prefix.
    To(To),
    /// Some of all.
    List(List),
}

/// Routes to a prefix.
#[derive(serde::Serialize, utoipa::ToSchema)]
#[schema(as = RoutesTo)]
pub struct To {
    /// The prefix.
    #[schema(value_type = String)]
    pub to: IpNet,
    /// Those to exactly this prefix.
    pub routes: Vec<Shown>,
}

/// Some of all routes.
#[derive(serde::Serialize, utoipa::ToSchema)]
#[schema(as = RouteList)]
pub struct List {
    /// By family and prefix.
    pub routes: Vec<Shown>,
    /// How many more there are.
    pub more: usize,
    /// How many there are of which kind.
    pub counts: Counts,
}

/// How many routes there are.
#[derive(serde::Serialize, utoipa::ToSchema)]
#[schema(as = RouteCounts)]
pub struct Counts {
    /// Prefixes of IPv4 that can be looked up.
    pub ipv4_prefixes: usize,
    /// Those of IPv6.
    pub ipv6_prefixes: usize,
    /// Routes by source.
    #[schema(value_type = std::collections::BTreeMap<String, usize>)]
    pub by_source: serde_json::Map<String, serde_json::Value>,
    /// Neighbors that routes need.
    pub neighbors: usize,
    /// Routes that found no room.
    pub refused: usize,
}

/// Neighbors that were asked for.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct Neighbors {
    /// By port, family and address.
    pub neighbors: Vec<Neighbor>,
    /// How many more there are.
    pub more: usize,
}

/// A neighbor.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct Neighbor {
    /// The port it is on.
    pub port: Option<String>,
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its MAC address, if it is known.
    pub mac: Option<String>,
    /// Its state.
    pub state: String,
    /// Seconds it has been in this state.
    pub since: f64,
    /// Probes that went unanswered.
    pub probes: u32,
    /// True if it says that it is a router.
    pub router: bool,
    /// True if something is sent to it.
    pub used: bool,
}

/// An address of a port.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub struct PortAddress {
    /// With its prefix length.
    #[schema(value_type = String)]
    pub address: IpNet,
    /// True once it is known to be nobody else's.
    pub in_use: bool,
}

pub(super) fn lock(router: &Mutex<Router>) -> MutexGuard<'_, Router> {
    router.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    fn router(&self) -> Result<MutexGuard<'_, Router>, Refusal> {
        let none = || Refusal::Question("the pipeline has no \"route\" stage".into());
        Ok(lock(self.blueprint.router.as_ref().ok_or_else(none)?))
    }

    /// Routes: some of all, those to a prefix, or the one that an address takes.
    pub fn show_routes(&self, query: &Routes) -> Result<Found, Refusal> {
        let wanted = query.source.as_deref().map(origin).transpose()?;
        let router = self.router()?;
        let rib = router.rib();
        if let Some(to) = &query.to {
            if let Ok(address) = to.parse::<IpAddr>() {
                return Ok(Found::Lookup(lookup(&router, address)));
            }
            let wrong = |_| Refusal::Question(format!("{to:?} is neither an address nor a prefix"));
            let net = to.parse::<IpNet>().map_err(wrong)?.trunc();
            let rows = rib.rows_to(net).filter(|row| wanted.is_none_or(|wanted| row.origin == wanted));
            let rows = rows.map(|row| route(&router, &row)).collect();
            return Ok(Found::To(To { to: net, routes: rows }));
        }
        let shown = |origin: Origin| wanted.map_or(!is_detail(origin), |wanted| origin == wanted);
        let mut rows: Vec<Row> = rib.rows_of(shown).take(query.limit.min(MOST)).collect();
        let counts = rib.counts();
        let of = |origin: Origin| counts.of(origin);
        let all: usize = ORIGINS.iter().filter(|(_, origin)| shown(*origin)).map(|(_, origin)| of(*origin)).sum();
        rows.sort_by_key(|row| (row.to.addr().is_ipv6(), row.to));
        Ok(Found::List(List {
            routes: rows.iter().map(|row| route(&router, row)).collect(),
            more: all.saturating_sub(rows.len()),
            counts: Counts {
                ipv4_prefixes: counts.v4,
                ipv6_prefixes: counts.v6,
                by_source: ORIGINS.iter().map(|(word, origin)| ((*word).to_owned(), of(*origin).into())).collect(),
                neighbors: counts.neighbors,
                refused: counts.refused + counts.starved,
            },
        }))
    }

    /// Neighbors, `limit` of them at most, by port, family and address.
    pub fn show_neighbors(&self, limit: usize) -> Result<Neighbors, Refusal> {
        let router = self.router()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let mut more = 0_usize;
        let mut rows = Vec::new();
        for row in router.neighbors().iter() {
            if rows.len() >= limit.min(MOST) {
                more += 1;
                continue;
            }
            rows.push(Neighbor {
                port: port_name(&router, Some(row.port)).map(str::to_owned),
                address: row.ip,
                mac: row.mac.map(mac),
                state: row.state.word().to_string(),
                since: now.saturating_sub(row.since) as f64 / 1e9,
                probes: row.probes.into(),
                router: row.is_router,
                used: row.is_wanted,
            });
        }
        Ok(Neighbors { neighbors: rows, more })
    }

    /// A port's addresses; none if nothing is routed.
    pub(super) fn addresses(&self, port: u8) -> Option<Vec<PortAddress>> {
        let router = lock(self.blueprint.router.as_ref()?);
        let known = router.ports().get(usize::from(port))?;
        let own: Vec<(IpNet, bool)> = router.neighbors().addresses(port).collect();
        let used = |net: &IpNet| own.iter().find(|(other, _)| other.addr() == net.addr()).is_none_or(|(_, used)| *used);
        let made = own.iter().map(|(net, _)| net).filter(|net| !known.addresses.contains(net));
        let all = known.addresses.iter().chain(made);
        Some(all.map(|net| PortAddress { address: *net, in_use: used(net) }).collect())
    }
}

/// True for what follows from addresses and neighbors, and is shown only if it is asked for.
fn is_detail(origin: Origin) -> bool {
    matches!(origin, Origin::Address | Origin::Neighbor)
}

fn origin(word: &str) -> Result<Origin, Refusal> {
    let words = || ORIGINS.iter().map(|(word, _)| *word);
    ORIGINS.iter().find(|(known, _)| *known == word).map(|(_, origin)| *origin).ok_or_else(|| {
        let help = match near_miss(word, words()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("known: {}", words().collect::<Vec<_>>().join(", ")),
        };
        Refusal::Question(format!("routes have no source {word:?}; {help}"))
    })
}
