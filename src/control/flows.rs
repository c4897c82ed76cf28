//! Flows of a running appliance: shown, counted, removed and saved, by visits to the workers.
//!
//! Owns the question in the config's words and the answer as JSON. A worker's table is never looked into: it is copied, a
//! bounded number of entries at a time (`stage::visit`).

use std::cmp::Reverse;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Running;
use super::census::BySource;
use crate::config::names::{Detail, Names, SELF, Service};
use crate::config::notation::protocol_name;
use crate::config::source::{At, Mistakes, Place, near_miss};
use crate::flow::entry::{Body, Entry, EntryV4, EntryV6, Key, mark};
use crate::flow::file::Writer;
use crate::flow::filter::{self, Addresses, Counts, Filter, Ranges, Wanted};
use crate::flow::table::Occupancy;
use crate::flow::timeout::{TICK, ticks};
use crate::flow::{ORIGINAL, REPLY};
use crate::packet::SELF_PORT;
use crate::packet::meta::flag;
use crate::stage::pipeline::Blueprint;
use crate::stage::restore::saved_names;
use crate::stage::visit::{Task, Visit};
use crate::worker::Question;

/// How long a worker may take for a part of an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Flows that an answer may hold.
const MOST: usize = 100_000;

/// Which flows are meant: all that is given must hold, of a flow's first packet.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Which flows")]
pub struct Selection {
    /// Where it came in: zones or ports.
    #[arg(long, value_name = "ZONE")]
    pub from: Vec<String>,
    /// Where it left: zones or ports.
    #[arg(long, value_name = "ZONE")]
    pub to: Vec<String>,
    /// Its source: addresses, prefixes, ranges, @sets. Of routes: where they come from.
    #[arg(long, value_name = "ADDRESS")]
    pub source: Vec<String>,
    /// Its destination, likewise.
    #[arg(long, value_name = "ADDRESS")]
    pub destination: Vec<String>,
    /// Its source port, or a range.
    #[arg(long, value_name = "PORT")]
    pub from_port: Option<String>,
    /// Its destination port, or a range.
    #[arg(long, value_name = "PORT")]
    pub to_port: Option<String>,
    /// Its service: tcp/443, icmp/echo, or one of the config's.
    #[arg(long)]
    pub service: Vec<String>,
    /// Its protocol.
    #[arg(long)]
    pub protocol: Option<String>,
    /// The flow's state: of TCP one end's ("established": both ends'), "new" or "replied" of others, "half-open", or a word of
    /// [conntrack.timeout].
    #[arg(long)]
    pub state: Option<String>,
    /// The rule that admitted it.
    #[arg(long)]
    pub rule: Option<String>,
    /// The worker that has it.
    #[arg(long, value_name = "N")]
    pub worker: Option<usize>,
}

/// What shown flows are sorted by.
#[derive(
    clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// Most bytes first.
    Bytes,
    /// Most packets first.
    Packets,
    /// Oldest first.
    Age,
    /// Longest without a packet first.
    Idle,
    /// The next to be forgotten first.
    Expires,
}

/// Flows to be shown.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// Which.
    pub flows: Selection,
    /// In which order; in that of the tables if not given, which spares looking at all of them.
    pub sort: Option<Sort>,
    /// How many at most.
    pub limit: usize,
}

/// Flows, some of those that are meant.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
#[schema(as = Flows)]
pub struct Shown {
    /// As many as asked for.
    pub flows: Vec<Flow>,
    /// True if there are more.
    pub more: bool,
    /// How full the tables are.
    pub tables: Tables,
}

/// A flow, as its first packet saw it.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct Flow {
    /// The protocol's name, or its number.
    pub protocol: String,
    /// Where it came from.
    pub source: String,
    /// The port it came from, if the protocol has ports.
    pub source_port: Option<u16>,
    /// Where it went.
    pub destination: String,
    /// The port it went to, if the protocol has ports.
    pub destination_port: Option<u16>,
    /// An echo's identifier.
    pub id: Option<u16>,
    /// Its ends behind a translation, if it has one.
    pub translated: Option<Ends>,
    /// The VLAN it is in.
    pub vlan: Option<u16>,
    /// Its state, of TCP both ends'.
    pub state: String,
    /// The word of `[conntrack.timeout]` by which it is forgotten.
    pub class: String,
    /// True until it is answered and, of TCP, open.
    pub half_open: bool,
    /// How closely it is held to its protocol.
    pub tracking: String,
    /// The port its first packet arrived on.
    pub from: Option<String>,
    /// The port its first packet left by.
    pub to: Option<String>,
    /// The zone of the one.
    pub from_zone: Option<String>,
    /// The zone of the other.
    pub to_zone: Option<String>,
    /// The rule that admitted it.
    pub rule: Option<String>,
    /// Packets there, and back.
    pub packets: [u64; 2],
    /// Bytes there, and back.
    pub bytes: [u64; 2],
    /// Seconds since its first packet.
    pub age: f64,
    /// Seconds until it is forgotten.
    pub expires_in: f64,
    /// The worker that has it.
    pub worker: usize,
}

/// What a flow's ends are translated to.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
#[schema(as = FlowEnds)]
pub struct Ends {
    /// The source it has behind the box.
    pub source: String,
    /// That source's port.
    pub source_port: Option<u16>,
    /// The destination it has behind the box.
    pub destination: String,
    /// That destination's port.
    pub destination_port: Option<u16>,
    /// An echo's identifier.
    pub id: Option<u16>,
}

/// How full the flow tables are.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct Tables {
    /// Of IPv4 flows.
    pub ipv4: Table,
    /// Of IPv6 flows.
    pub ipv6: Table,
}

/// How full a flow table is; zero throughout if no flows were looked at.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
#[schema(as = FlowTable)]
pub struct Table {
    /// Flows that it holds.
    pub used: u64,
    /// Flows that it can hold.
    pub entries: u64,
    /// Those of them that are translated.
    pub translated: u64,
    /// Half-open ones that it holds.
    pub half_open: u64,
    /// Half-open ones that it may hold.
    pub half_open_budget: u64,
}

/// How many flows there are.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
#[schema(as = FlowCounts)]
pub struct Census {
    /// All that are meant.
    pub flows: u64,
    /// By state.
    pub states: Vec<OfState>,
    /// By rule.
    pub rules: Vec<OfRule>,
    /// How full the tables are.
    pub tables: Tables,
}

/// Flows in a state.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct OfState {
    /// Their protocol.
    pub protocol: String,
    /// Their state.
    pub state: String,
    /// How many.
    pub flows: u64,
}

/// Flows admitted by a rule.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct OfRule {
    /// Its stage; null if the rule is gone.
    pub stage: Option<String>,
    /// Its name.
    pub rule: Option<String>,
    /// How many.
    pub flows: u64,
}

/// What was removed.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
#[schema(as = FlowsRemoved)]
pub struct Flushed {
    /// Flows.
    pub removed: u64,
}

impl Selection {
    /// Compiles it for a config; the error says which word is wrong and what it may be.
    pub fn compile(&self, names: &Names, blueprint: &Blueprint) -> Result<Filter, String> {
        let service = match &self.service[..] {
            [] => None,
            list => Some(Ranges::new(
                resolved(list, "--service", |list, key, mistakes| names.resolve_services(list, key, mistakes))?
                    .iter()
                    .map(services),
            )),
        };
        Ok(Filter {
            from: ports(&self.from, "--from", names)?,
            to: ports(&self.to, "--to", names)?,
            source: addresses(&self.source, "--source", names)?,
            destination: addresses(&self.destination, "--destination", names)?,
            from_port: self.from_port.as_deref().map(|text| port_range(text, "--from-port")).transpose()?,
            to_port: self.to_port.as_deref().map(|text| port_range(text, "--to-port")).transpose()?,
            service,
            protocol: self.protocol.as_deref().map(protocol).transpose()?,
            state: self.state.as_deref().map(state).transpose()?,
            rule: self.rule.as_deref().map(|name| rules(name, blueprint)).transpose()?,
        })
    }
}

pub(super) fn unknown<'a>(key: &str, what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    match near_miss(name, known) {
        Some(near) => format!("{key}: there is no {what} {name:?}; did you mean {near:?}?"),
        None => format!("{key}: there is no {what} {name:?}"),
    }
}

/// The ports of zones or ports by name.
pub(super) fn ports(list: &[String], key: &str, names: &Names) -> Result<Option<Ranges<u8>>, String> {
    let mut all = Vec::new();
    for name in list {
        let zone = names.zone(name);
        let within = |(_, port): &(usize, &crate::config::names::PortName)| match zone {
            Some(zone) => port.zone == Some(zone),
            None => port.name == *name,
        };
        let found = all.len();
        all.extend(names.ports.iter().enumerate().filter(within).map(|(at, _)| at as u8..=at as u8));
        all.extend((name == SELF && names.routes).then_some(SELF_PORT..=SELF_PORT));
        if found == all.len() {
            let known = names.zones.iter().chain(names.ports.iter().map(|port| &port.name));
            return Err(unknown(key, "zone or port", name, known.map(String::as_str)));
        }
    }
    Ok((!list.is_empty()).then(|| Ranges::new(all)))
}

/// Lets the config's own reader resolve a list.
fn resolved<T>(
    list: &[String],
    key: &str,
    resolve: impl FnOnce(&[At<String>], &str, &mut Mistakes) -> Option<T>,
) -> Result<T, String> {
    let place = Place { file: String::new().into(), line: 1, column: 1 };
    let list: Vec<_> = list.iter().map(|text| At { value: text.clone(), place: place.clone() }).collect();
    let mut mistakes = Mistakes::default();
    resolve(&list, key, &mut mistakes).ok_or_else(|| {
        let mistakes = mistakes.into_sorted();
        let shown = mistakes.iter().map(|mistake| match &mistake.help {
            Some(help) => format!("{key}: {}; {help}", mistake.message),
            None => format!("{key}: {}", mistake.message),
        });
        shown.collect::<Vec<_>>().join("\n")
    })
}

fn addresses(list: &[String], key: &str, names: &Names) -> Result<Option<Addresses>, String> {
    if list.is_empty() {
        return Ok(None);
    }
    let found = resolved(list, key, |list, key, mistakes| names.resolve_addresses(list, key, mistakes))?;
    let sets = || found.sets.iter().map(|set| &names.sets[*set]);
    let v4 = found.v4.iter().chain(sets().flat_map(|set| &set.v4));
    let v6 = found.v6.iter().chain(sets().flat_map(|set| &set.v6));
    let wide = |address: std::net::Ipv4Addr| u128::from(address.to_bits()) << 96;
    Ok(Some(Addresses {
        v4: Ranges::new(v4.map(|net| wide(net.network())..=wide(net.broadcast()))),
        v6: Ranges::new(v6.map(|net| net.network().to_bits()..=net.broadcast().to_bits())),
    }))
}

fn services(service: &Service) -> std::ops::RangeInclusive<u32> {
    let number = |detail| filter::service(service.proto, detail);
    match &service.detail {
        Detail::Any => number(0)..=number(u16::MAX),
        Detail::Ports(ports) => number(*ports.start())..=number(*ports.end()),
        Detail::Icmp(kind, None) => number(u16::from(*kind) << 8)..=number(u16::from(*kind) << 8 | 0xff),
        Detail::Icmp(kind, Some(code)) => {
            let detail = number(u16::from_be_bytes([*kind, *code]));
            detail..=detail
        }
    }
}

fn port_range(text: &str, key: &str) -> Result<Ranges<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(Ranges::new([first..=last])),
        _ => Err(format!("{key}: expected a port or a range such as 1000-2000, found {text:?}")),
    }
}

fn protocol(text: &str) -> Result<u8, String> {
    match (text.parse(), Service::parse(text)) {
        (Ok(number), _) | (_, Ok(Service { proto: number, detail: Detail::Any })) => Ok(number),
        _ => Err(format!("--protocol: expected a protocol such as \"tcp\" or its number, found {text:?}")),
    }
}

fn state(word: &str) -> Result<Wanted, String> {
    let words = Wanted::words();
    let wrong = || {
        format!("{}; states: {}", unknown("--state", "state", word, words.iter().map(String::as_str)), words.join(", "))
    };
    Wanted::parse(word).ok_or_else(wrong)
}

/// Drop reasons by name: `acl.denied`, or all of a stage's.
pub(super) fn reasons(list: &[String], running: &Running) -> Result<Option<Ranges<u16>>, String> {
    let labels = running.blueprint.layout.reason_labels();
    let names: Vec<String> = labels.iter().map(|label| format!("{}.{}", label.scope, label.name)).collect();
    let mut all = Vec::new();
    for wanted in list {
        let found = all.len();
        let meant = |(at, name): (usize, &String)| (name == wanted || labels[at].scope == *wanted).then_some(at as u16);
        all.extend(names.iter().enumerate().filter_map(meant).map(|at| at..=at));
        if found == all.len() {
            return Err(unknown("--reason", "drop reason", wanted, names.iter().map(String::as_str)));
        }
    }
    Ok((!list.is_empty()).then(|| Ranges::new(all)))
}

fn rules(name: &str, blueprint: &Blueprint) -> Result<Ranges<u16>, String> {
    let all = blueprint.rules.all();
    let slots: Vec<u16> = (0..).zip(all).filter(|(_, rule)| rule.name == name).map(|(slot, _)| slot).collect();
    match slots.is_empty() {
        true => Err(unknown("--rule", "rule", name, all.iter().map(|rule| rule.name.as_str()))),
        false => Ok(Ranges::new(slots.into_iter().map(|slot| slot..=slot))),
    }
}

/// An address and what the flows carried that it began, both ways.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Talker {
    /// The address.
    pub address: String,
    /// Flows it began.
    pub flows: u64,
    /// Their packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Refusal {
    /// The question is wrong.
    Question(String),
    /// What it asks about does not exist.
    Unknown(String),
    /// A worker did not answer.
    Late(String),
}

/// A copied entry and who has it.
struct Found {
    worker: usize,
    entry: Copied,
}

enum Copied {
    V4(EntryV4),
    V6(EntryV6),
}

impl Found {
    fn body(&self) -> &Body {
        match &self.entry {
            Copied::V4(entry) => entry.body(),
            Copied::V6(entry) => entry.body(),
        }
    }
}

impl Running {
    /// Visits the workers that are meant, one after the other; `part` is called after each part of a visit, and ends it by
    /// returning false.
    pub(super) fn visit(
        &self,
        selection: &Selection,
        task: impl Fn() -> Task,
        mut part: impl FnMut(usize, &mut Visit, bool) -> bool,
    ) -> Result<(), Refusal> {
        if self.blueprint.conntrack.is_none() {
            let help = "put \"conntrack\" into [pipeline] stages";
            return Err(Refusal::Question(format!("the pipeline does not track connections; {help}")));
        }
        if let Some(worker) = selection.worker.filter(|worker| *worker >= self.workers.len()) {
            let last = self.workers.len() - 1;
            return Err(Refusal::Question(format!("--worker: there is no worker {worker}; the last one is {last}")));
        }
        let filter = Arc::new(selection.compile(&self.names, &self.blueprint).map_err(Refusal::Question)?);
        for worker in (0..self.workers.len()).filter(|worker| selection.worker.is_none_or(|only| only == *worker)) {
            let mut visit = Visit::new(filter.clone(), task());
            loop {
                let answer = self.ask(worker, Question::Visit(visit), PATIENCE).map_err(Refusal::Late)?;
                let (Question::Visit(mut back), done) = (answer.question, answer.done) else { break };
                if !part(worker, &mut back, done) || done {
                    break;
                }
                visit = back;
            }
        }
        Ok(())
    }

    /// Flows that are meant, sorted, as many as asked for.
    pub fn show_flows(&self, query: &Query) -> Result<Shown, Refusal> {
        if query.limit > MOST {
            let message = format!("--top: an answer holds {MOST} flows at most; say which you mean, or save them all");
            return Err(Refusal::Question(message));
        }
        let (mut found, mut meant) = (Vec::<Found>::new(), 0);
        let mut occupancy = vec![[Occupancy::default(); 2]; self.workers.len()];
        let now = now();
        let lives = self.blueprint.conntrack.as_ref().map(|(settings, _)| settings.timeouts);
        let rank = |found: &Found| {
            let body = found.body();
            let sum = |of: fn(&Body, usize) -> u64| of(body, ORIGINAL) + of(body, REPLY);
            Reverse(match query.sort {
                None => 0,
                Some(Sort::Bytes) => sum(|body, direction| body.bytes[direction]) as i64,
                Some(Sort::Packets) => sum(|body, direction| body.packets(direction)) as i64,
                Some(Sort::Age) => age(body, now).into(),
                Some(Sort::Idle) => {
                    i64::from(lives.map_or(0, |lives| lives[body.class() as usize])) - i64::from(left(body, now))
                }
                Some(Sort::Expires) => -i64::from(left(body, now)),
            })
        };
        self.visit(&query.flows, Task::copy, |worker, visit, _| {
            occupancy[worker] = visit.occupancy;
            let Task::Copy { v4, v6 } = &mut visit.task else { return false };
            meant += v4.len() + v6.len();
            found.extend(v4.drain(..).map(|entry| Found { worker, entry: Copied::V4(entry) }));
            found.extend(v6.drain(..).map(|entry| Found { worker, entry: Copied::V6(entry) }));
            if query.sort.is_some() && found.len() > 2 * query.limit + 65536 {
                found.sort_by_key(rank);
                found.truncate(query.limit);
            }
            query.sort.is_some() || found.len() <= query.limit
        })?;
        if query.sort.is_some() {
            found.sort_by_key(rank);
        }
        found.truncate(query.limit);
        let rows: Vec<Flow> = found
            .iter()
            .map(|found| match &found.entry {
                Copied::V4(entry) => self.row(found.worker, entry, now),
                Copied::V6(entry) => self.row(found.worker, entry, now),
            })
            .collect();
        let more = meant > rows.len();
        Ok(Shown { flows: rows, more, tables: occupancy_of(&occupancy) })
    }

    /// What flows carried, by the address that began them: of `most` flows or a few more, how many those were, and whether
    /// there are others.
    pub fn sum_by_source(&self, most: usize) -> Result<(usize, bool, BySource), Refusal> {
        let (mut sums, mut seen, mut partial) = (BySource::new(), 0, false);
        let mut add = |source: &[u8], body: &Body| {
            let address = ip(source);
            let talker =
                sums.entry(address).or_insert_with(|| Talker { address: address.to_string(), ..Talker::default() });
            talker.flows += 1;
            talker.packets += body.packets(ORIGINAL) + body.packets(REPLY);
            talker.bytes += body.bytes[ORIGINAL] + body.bytes[REPLY];
        };
        // As much of every worker.
        let share = most.div_ceil(self.workers.len().max(1));
        let (mut of, mut its) = (0, 0);
        self.visit(&Selection::default(), Task::copy, |worker, visit, done| {
            let Task::Copy { v4, v6 } = &mut visit.task else { return false };
            if worker != of {
                (of, its) = (worker, 0);
            }
            its += v4.len() + v6.len();
            seen += v4.len() + v6.len();
            v4.drain(..).for_each(|entry| add(entry.key().addresses().0, entry.body()));
            v6.drain(..).for_each(|entry| add(entry.key().addresses().0, entry.body()));
            let goes_on = its < share;
            partial |= !goes_on && !done;
            goes_on
        })?;
        Ok((seen, partial, sums))
    }

    /// How many flows are meant, by state and by rule.
    pub fn count_flows(&self, selection: &Selection) -> Result<Census, Refusal> {
        let rules = self.blueprint.rules.all();
        let mut total = Counts::new(rules.len());
        let mut occupancy = vec![[Occupancy::default(); 2]; self.workers.len()];
        let task = || Task::Count(Counts::new(rules.len()));
        self.visit(selection, task, |worker, visit, done| {
            occupancy[worker] = visit.occupancy;
            if let (Task::Count(counts), true) = (&visit.task, done) {
                total.merge(counts);
            }
            true
        })?;
        let states =
            total.states().map(|(proto, state, flows)| OfState { protocol: protocol_name(proto), state, flows });
        let of_rules = total.rules.iter().enumerate().filter(|(_, flows)| **flows > 0).map(|(slot, flows)| {
            let rule = rules.get(slot);
            OfRule {
                stage: rule.map(|rule| rule.stage.clone()),
                rule: rule.map(|rule| rule.name.clone()),
                flows: *flows,
            }
        });
        Ok(Census {
            flows: total.rules.iter().sum(),
            states: states.collect(),
            rules: of_rules.collect(),
            tables: occupancy_of(&occupancy),
        })
    }

    /// Removes the flows that are meant. Nobody means all of them by saying nothing: then `all` must be set.
    pub fn flush_flows(&self, selection: &Selection, all: bool) -> Result<Flushed, Refusal> {
        if *selection == Selection::default() && !all {
            return Err(Refusal::Question("say which flows are to be removed, or --all".into()));
        }
        let mut removed = 0;
        self.visit(
            selection,
            || Task::Remove,
            |_, visit, done| {
                removed += if done { visit.removed } else { 0 };
                true
            },
        )?;
        Ok(Flushed { removed })
    }

    /// Writes all flows as a file.
    pub fn save_flows(&self, out: impl Write) -> io::Result<()> {
        let names = saved_names(&self.config, &self.names, &self.blueprint, self.key);
        let mut writer = Writer::new(out, &names, now())?;
        let mut failure = None;
        let visited = self.visit(&Selection::default(), Task::copy, |_, visit, _| {
            let Task::Copy { v4, v6 } = &mut visit.task else { return false };
            failure = writer.add(v4).and_then(|()| writer.add(v6)).err();
            v4.clear();
            v6.clear();
            failure.is_none()
        });
        if let Err(Refusal::Question(message) | Refusal::Unknown(message) | Refusal::Late(message)) = visited {
            return Err(io::Error::other(message));
        }
        failure.map_or(Ok(()), Err)?;
        writer.finish().map(|_| ())
    }
}

/// How full the tables are, all workers together.
fn occupancy_of(workers: &[[Occupancy; 2]]) -> Tables {
    let of = |family: usize| {
        let sum = |of: fn(&Occupancy) -> u32| workers.iter().map(|tables| u64::from(of(&tables[family]))).sum::<u64>();
        Table {
            used: sum(|table| table.used),
            entries: sum(|table| table.entries),
            translated: sum(|table| table.translated),
            half_open: sum(|table| table.half_open),
            half_open_budget: sum(|table| table.budget),
        }
    };
    Tables { ipv4: of(0), ipv6: of(1) }
}

impl Running {
    fn row<E: Entry>(&self, worker: usize, entry: &E, now: u64) -> Flow {
        let (key, body) = (entry.key(), entry.body());
        let facts = key.facts();
        let with_ports = facts.has(flag::PORTS) && !facts.has(flag::ECHO);
        let (sport, dport) = key.ports();
        let port = |port: u8| self.names.port_name(port);
        let zone = |port: u8| self.names.zone_of(port);
        let ways = |of: &dyn Fn(usize) -> u64| [of(ORIGINAL), of(REPLY)];
        let seconds = |ticks: i32| (f64::from(ticks) * f64::from(1 << TICK) / 1e8).round() / 10.0;
        let (from, to) = (body.ingress[ORIGINAL], body.out[ORIGINAL]);
        let scope = key.scope();
        let rule = self.blueprint.rules.slot(body.rule);
        let (source, destination) = key.addresses();
        let translated = entry.translation().map(|to| {
            let (ends, (sport, dport)) = (to.addresses(), to.ports());
            Ends {
                source: address(ends.0),
                source_port: with_ports.then_some(sport),
                destination: address(ends.1),
                destination_port: with_ports.then_some(dport),
                id: facts.has(flag::ECHO).then(|| to.tuple().sport),
            }
        });
        Flow {
            protocol: protocol_name(key.protocol()),
            source: address(source),
            source_port: with_ports.then_some(sport),
            destination: address(destination),
            destination_port: with_ports.then_some(dport),
            id: facts.has(flag::ECHO).then_some(facts.sport),
            translated,
            vlan: (scope.wire != 0 && scope.domain != 0).then(|| scope.domain - 1),
            state: filter::state(entry),
            class: body.class().word().to_string(),
            half_open: body.has(mark::HALF_OPEN),
            tracking: body.tracking().word().to_string(),
            from: port(from).map(str::to_owned),
            to: port(to).map(str::to_owned),
            from_zone: zone(from).map(str::to_owned),
            to_zone: zone(to).map(str::to_owned),
            rule: rule.map(|rule| rule.name.clone()),
            packets: ways(&|direction| body.packets(direction)),
            bytes: ways(&|direction| body.bytes[direction]),
            age: seconds(age(body, now)),
            expires_in: seconds(left(body, now)),
            worker,
        }
    }
}

fn address(bytes: &[u8]) -> String {
    ip(bytes).to_string()
}

/// Four bytes are IPv4's, sixteen IPv6's, and there are no others.
fn ip(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(bytes).unwrap_or_default().into(),
    }
}

/// Unix nanoseconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Ticks since it began.
fn age(body: &Body, now: u64) -> i32 {
    (ticks(now).wrapping_sub(body.created) as i32).max(0)
}

/// Ticks until it is forgotten.
fn left(body: &Body, now: u64) -> i32 {
    (body.expires.wrapping_sub(ticks(now)) as i32).max(0)
}

#[cfg(test)]
mod tests;
