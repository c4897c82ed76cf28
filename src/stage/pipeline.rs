//! From a list of stages to what a worker runs: `compile` turns config into one shared [`Blueprint`], and each worker starts
//! its own [`Pipeline`] from that.
//!
//! Owns the order of work: packet stages listed before the first flow stage; then, with `conntrack`, the lookup of all packets,
//! after which only the fresh go on; the flow stages' judging and committing; `apply`; then the other packet stages.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::names::Names;
use crate::config::names::PortName;
use crate::config::source::{Mistake, Mistakes};
use crate::config::{Config, StageConfig};
use crate::flow::Tracking;
use crate::flow::limits::Limits;
use crate::flow::region::Placement;
use crate::log::Log;
use crate::nat::{Draft, Nat};
use crate::packet::steer::Key;
use crate::packet::{BATCH, Batch, Mask, Meta, NO_PORT};
use crate::route::fib::Capacity;
use crate::route::router::{self, Router};
use crate::route::vlan::Vlans;
use crate::route::{Route, Source};
use crate::stats::{Layout, Sheet, Unit};
use crate::wire::ethernet::Rewrite;

use super::acl::Acl;
use super::apply::{Adjacencies, Routed, Ways, apply, refuse};
use super::conntrack::{Around, Conntrack, Settings, Tables};
use super::dnat::Dnat;
use super::ingress::Ports;
use super::route::arrival::Arrival;
use super::snat::Snat;
use super::synproxy::Note;
use super::track::{FlowStage, Tracker, conclude};
use super::visit::Visit;
use super::{Action, AnyConfig, Cx, Depth, Finding, Kind, LintCx, PacketStage, Plan, PlanCx, Rule, Rules, Stage};

/// A compiled pipeline, shared read-only by all workers.
#[derive(Clone)]
pub struct Blueprint {
    /// Everything that is counted.
    pub layout: Arc<Layout>,
    /// All rules, by slot.
    pub rules: Arc<Rules>,
    /// The stages in order.
    pub stages: Vec<Compiled>,
    /// How deep decode goes.
    pub depth: Depth,
    /// True if later fragments follow their first.
    pub follows: bool,
    /// Index of each port's counters ([`port_counter`]) in the sheet.
    pub port_counters: Vec<usize>,
    /// For each port the one with the device by which its frames leave: itself, or of a VLAN the parent.
    pub carriers: Vec<u8>,
    /// The VLANs of ports, where tags are looked at.
    pub vlans: Option<Arc<Vlans>>,
    /// For each port the one all its frames leave by, and how, if the pipeline does not read them.
    pub relay: Option<Vec<(u8, Rewrite)>>,
    /// Connection tracking, if it is in the pipeline.
    pub conntrack: Option<(Arc<Settings>, Around)>,
    /// True for those who only ask what would become of a packet.
    pub asks: bool,
    /// How many workers share what is the appliance's.
    pub workers: usize,
    /// By worker: its packet log. What is in it speaks of this pipeline's rules and reasons.
    pub logs: Arc<[Log]>,
    /// How packets leave.
    pub ways: Ways,
    /// Address translation, if a stage translates.
    pub nat: Option<Nat>,
    /// Control's side of routing, if packets are routed.
    pub router: Option<Arc<Mutex<Router>>>,
    /// The routes of the file.
    pub statics: Arc<[Route]>,
    /// The first look at packets, if they are routed.
    arrival: Option<Arrival>,
}

/// One stage of a blueprint.
#[derive(Clone)]
pub struct Compiled {
    /// Its word in the pipeline (`bpf:noise`).
    pub instance: String,
    /// Its kind.
    pub kind: &'static Kind,
    /// Its plan.
    pub plan: Plan,
}

/// Position of a port's counters behind `Blueprint::port_counters`.
pub mod port_counter {
    /// Packets received by this worker.
    pub const RX: usize = 0;
    /// Packets sent by this worker.
    pub const TX: usize = 1;
    /// Packets this worker dropped on the way out of the port: queue full or link down.
    pub const TX_DROPPED: usize = 2;
}

/// Compiles a config's pipeline for a number of workers. `macs` are the MAC addresses of ports with a device where they are
/// known (by port index; may be shorter); a VLAN has its parent's. All mistakes are reported, not only the first.
pub fn compile(config: &Config, workers: usize, macs: &[Option<[u8; 6]>]) -> Result<Blueprint, Vec<Mistake>> {
    compile_after(None, config, workers, macs)
}

/// Compiles a pipeline that takes the place of a running one: it routes by the same tables, in which nothing is changed yet, and
/// counts in the same limits where those stay the same. The ports must be the same, and so must be whether packets are routed.
pub fn compile_after(
    former: Option<&Blueprint>,
    config: &Config,
    workers: usize,
    macs: &[Option<[u8; 6]>],
) -> Result<Blueprint, Vec<Mistake>> {
    let mut names = config.names.clone();
    for (port, mac) in names.ports.iter_mut().zip(macs) {
        port.mac = *mac;
    }
    for port in names.devices()..names.ports.len() {
        let carrier = names.ports[port].carrier;
        names.ports[port].mac = carrier.and_then(|carrier| names.ports[usize::from(carrier.parent)].mac);
    }
    let mut layout = Layout::new();
    let port_counters = names
        .ports
        .iter()
        .map(|port| {
            let scope = format!("port:{}", port.name);
            let first = layout.counter(&scope, "rx-packets", Unit::Count, "Packets received from the port.");
            layout.counter(&scope, "tx-packets", Unit::Count, "Packets handed to the port's transmit queue.");
            layout.counter(&scope, "tx-dropped", Unit::Count, "Packets the port did not take.");
            first
        })
        .collect();
    let conntrack = config.pipeline.iter().any(|stage| stage.kind.name == Conntrack::NAME);
    let running = former.and_then(|former| former.router.clone());
    let fresh = (names.routes && running.is_none()).then(|| router(config, &names, workers));
    let router = fresh.transpose().map_err(|error| {
        let mut mistakes = Mistakes::default();
        mistakes.at(&config.pipeline_place, "pipeline.stages", format!("no memory for routing tables: {error}"));
        mistakes.into_sorted()
    })?;
    let lock = |router: &Arc<Mutex<Router>>| router.lock().unwrap_or_else(PoisonError::into_inner).routing().clone();
    let routing = router.as_ref().map(|router| router.routing().clone()).or(running.as_ref().map(lock));
    let addresses = routing.as_ref().map(|routing| routing.addresses.clone());
    let mut nat = addresses.map_or_else(Draft::default, Draft::new);
    let (mut rules, mut adjacencies, mut mistakes) = (Rules::default(), Adjacencies::default(), Mistakes::default());
    let (mut stages, mut routed, mut statics) = (Vec::new(), None, Vec::new());
    for stage in &config.pipeline {
        let mut cx = PlanCx {
            instance: stage.instance.clone(),
            names: &names,
            layout: &mut layout,
            rules: &mut rules,
            adjacencies: &mut adjacencies,
            mistakes: &mut mistakes,
            workers,
            conntrack,
            flows: config.memory.all_flows(),
            routing: routing.as_ref(),
            routed: &mut routed,
            statics: &mut statics,
            nat: &mut nat,
        };
        let before = cx.mistakes.len();
        let Some(stage_config) = &stage.config else { continue };
        match (stage.kind.plan)(stage_config, &mut cx) {
            Some(plan) => stages.push(Compiled { instance: stage.instance.clone(), kind: stage.kind, plan }),
            None if cx.mistakes.len() == before => {
                mistakes.at(&stage.place, &stage.instance, "could not be compiled, and did not say why: report this");
            }
            None => {}
        }
    }
    check_order(config, &mut mistakes);
    let nat = nat.finish(&mut mistakes);
    for stage in &mut stages {
        if let Plan::Conntrack(settings) = &mut stage.plan {
            Arc::make_mut(settings).translates = nat.is_some();
        }
    }
    let settings = stages.iter().find_map(|stage| match &stage.plan {
        Plan::Conntrack(settings) => Some(settings.clone()),
        _ => None,
    });
    let limits = settings.as_ref().and_then(|settings| {
        let of_rule = |(slot, rule): (usize, &Rule)| rule.limit.clone().map(|(limit, key)| (slot as u16, limit, key));
        Limits::plan(&settings.sources, rules.all().iter().enumerate().filter_map(of_rule), &mut mistakes)
    });
    if !mistakes.is_empty() {
        return Err(mistakes.into_sorted());
    }
    let mut router = router;
    if let Some(router) = &mut router {
        statics.iter().for_each(|route| router.route(Source::Static, route, true));
        if let Some([pools, others]) = nat.as_ref().map(Nat::addresses) {
            router.stand_for(pools, others);
        }
        router.pretend();
    }
    let vlans = Vlans::new(&names).map(Arc::new);
    let arrival = routed.as_ref().map(|of: &Routed| Arrival::new(of.routing.clone(), of.reasons));
    let carrier = |(at, port): (usize, &PortName)| port.carrier.map_or(at as u8, |carrier| carrier.parent);
    let tags = if vlans.is_some() { Depth::L2 } else { Depth::Nothing };
    let depth = stages.iter().map(|stage| stage.kind.depth).chain([tags]).max().unwrap_or(Depth::Nothing);
    let relay = match stages.as_slice() {
        [Compiled { plan: Plan::Flow(only), .. }] if vlans.is_none() => {
            let relay = |action: Action| (action.out, *adjacencies.at(action.adjacency));
            (0..names.ports.len()).map(|port| only.relay(port as u8).map(relay)).collect()
        }
        _ => None,
    };
    let had = former.and_then(|former| former.conntrack.as_ref()?.1.limits.clone());
    let limits = limits.filter(Limits::any).map(|limits| match had {
        Some(had) if had.is_same(&limits) => had,
        _ => Arc::new(limits),
    });
    let conntrack = settings.map(|settings| {
        let around = Around { limits, ..around(&settings, &stages, &rules) };
        (settings, around)
    });
    let logs = stages.iter().any(|stage| stage.plan.concludes());
    let logs = (0..workers.max(1)).map(|_| if logs { Log::new() } else { Log::NONE }).collect();
    Ok(Blueprint {
        nat,
        conntrack,
        workers,
        asks: false,
        layout: Arc::new(layout),
        rules: Arc::new(rules),
        stages,
        depth,
        follows: follows(config),
        port_counters,
        carriers: names.ports.iter().enumerate().map(carrier).collect(),
        vlans,
        relay,
        logs,
        ways: Ways { fixed: Arc::new(adjacencies), routed },
        arrival,
        router: router.map(|router| Arc::new(Mutex::new(router))).or(running),
        statics: statics.into(),
    })
}

/// Tables for routing between these ports.
fn router(config: &Config, names: &Names, workers: usize) -> io::Result<Router> {
    let mtus = config.mtus();
    let addresses_of = |at: u8| {
        let own = names.addresses.iter().filter(|address| address.port == at);
        own.map(|address| address.net).collect()
    };
    let port = |(at, port): (usize, &PortName)| router::Port {
        name: port.name.clone(),
        // A port that is not there, under `check` and `replay`, has a MAC address for whoever tries it out.
        mac: port.mac.unwrap_or([0x02, 0, 0, 0, 0, port.carrier.map_or(at as u8, |carrier| carrier.parent)]),
        mtu: mtus[at],
        tags: port.carrier.map_or([[0; 4]; 2], |carrier| carrier.tags.wire()),
        addresses: addresses_of(at as u8),
        virtuals: names
            .addresses
            .iter()
            .filter_map(|own| Some((own.net.addr(), own.mac.filter(|_| own.port == at as u8)?)))
            .collect(),
        advertises: config
            .ports
            .get(at)
            .and_then(|port| port.router_advertisements.as_ref())
            .map(|at| at.value.clone()),
    };
    let ports = names.ports.iter().enumerate().map(port).collect();
    let stage = config.pipeline.iter().filter_map(|stage| stage.config.as_ref());
    let stage = stage.filter_map(|any| any.downcast_ref::<super::route::config::Config>()).next();
    let capacity = stage.map_or(Capacity::default(), super::route::config::Config::capacity);
    let mut router = Router::new(workers, capacity, &config.neighbor, ports)?;
    for given in &config.neighbor.r#static {
        if let Some(port) = names.port(&given.port) {
            router.give(port, given.address.value, given.mac.value.0);
        }
    }
    Ok(router)
}

/// True if a config's pipeline lets later fragments follow their first: where connections are tracked.
pub fn follows(config: &Config) -> bool {
    config.pipeline.iter().any(|stage| stage.kind.name == Conntrack::NAME)
}

/// What the other stages add to connection tracking.
fn around(settings: &Settings, stages: &[Compiled], rules: &Rules) -> Around {
    let scope = |port: usize| {
        let of = |stage: &Compiled| match &stage.plan {
            Plan::Flow(plan) => plan.scope(port as u8),
            _ => None,
        };
        stages.iter().find_map(of).unwrap_or_default()
    };
    let mut mid_stream = rules.all().iter().filter_map(|rule| rule.tracking).chain([settings.tracking]);
    Around {
        scopes: Box::new(std::array::from_fn(scope)),
        rules: rules.all().iter().map(|rule| rule.counters).collect(),
        mid_stream: mid_stream.any(|tracking| matches!(tracking, Tracking::Loose | Tracking::Sloppy)),
        generation: 1,
        rules_since: 1,
        adopted: 0,
        limits: None,
    }
}

/// What the order of work demands of the list: one stage that decides the egress, before those that ask for it.
fn check_order(config: &Config, mistakes: &mut Mistakes) {
    let place = &config.pipeline_place;
    let key = "pipeline.stages";
    let egress: Vec<_> = config.pipeline.iter().filter(|stage| stage.kind.egress).collect();
    match egress.as_slice() {
        [] => mistakes.with_help(place, key, "no stage decides which port packets leave by", "add \"cross\""),
        [_] => {}
        [.., second] => mistakes.at(&second.place, key, "a second stage that decides which port packets leave by"),
    }
    for (kind, what) in [(Dnat::NAME, "destinations"), (Snat::NAME, "sources")] {
        if let Some(second) = config.pipeline.iter().filter(|stage| stage.kind.name == kind).nth(1) {
            let message = format!("a second stage that translates {what}");
            let help = format!("make one of both: rules of {kind:?} are asked in their order");
            mistakes.with_help(&second.place, key, message, help);
        }
    }
    for (i, stage) in config.pipeline.iter().enumerate() {
        if config.pipeline[..i].iter().any(|earlier| earlier.instance == stage.instance) {
            let help = format!("name the second one, as in \"{}:other\"", stage.kind.name);
            mistakes.with_help(&stage.place, key, format!("{:?} stands twice", stage.instance), help);
        }
        if stage.kind.name == Conntrack::NAME
            && let Some(flow) = config.pipeline[..i].iter().find(|earlier| earlier.kind.judges)
        {
            let message =
                format!("\"conntrack\" must stand before the stages that judge flows, such as {:?}", flow.instance);
            mistakes.with_help(&stage.place, key, message, format!("move it before {:?}", flow.instance));
        }
        if stage.kind.name == Dnat::NAME
            && let Some(route) = config.pipeline[..i].iter().find(|earlier| earlier.kind.egress)
        {
            let message =
                format!("{:?} must stand before {:?}, which asks where packets go", stage.instance, route.instance);
            mistakes.with_help(&stage.place, key, message, format!("move it before {:?}", route.instance));
        }
        if stage.kind.name == Snat::NAME
            && let Some(acl) = config.pipeline[i..].iter().find(|later| later.kind.name == Acl::NAME)
        {
            let message = format!(
                "{:?} must stand behind {:?}: a port is taken for what is allowed",
                stage.instance, acl.instance
            );
            mistakes.with_help(&stage.place, key, message, format!("move it behind {:?}", acl.instance));
        }
        let after_egress = config.pipeline[..i].iter().any(|earlier| earlier.kind.egress);
        if stage.kind.after_egress && !after_egress && !egress.is_empty() {
            let message = format!("{:?} must stand behind the stage that decides where packets leave", stage.instance);
            mistakes.with_help(&stage.place, key, message, format!("move it behind {:?}", egress[0].instance));
        }
    }
}

impl Blueprint {
    /// One worker's flow tables, if connections are tracked.
    pub fn tables(&self, placement: Placement) -> io::Result<Option<Tables>> {
        self.conntrack.as_ref().map(|(settings, _)| settings.tables(placement)).transpose()
    }

    /// The same without limits on flows, which the workers of a blueprint share: for those who only ask.
    pub fn apart(&self) -> Blueprint {
        let mut apart = self.clone();
        apart.asks = true;
        apart.conntrack.iter_mut().for_each(|(_, around)| around.limits = None);
        apart
    }

    /// Tables for a handful of flows, if connections are tracked.
    pub fn few_tables(&self) -> io::Result<Option<Tables>> {
        self.conntrack.as_ref().map(|_| Settings::few_tables()).transpose()
    }

    /// A worker's own pipeline. `key` hashes tuples; `steered` says that all packets come with their hash. Panics if connections
    /// are tracked and no `tables` are given.
    pub fn start(&self, worker: usize, tables: Option<Tables>, key: Key, steered: bool) -> Pipeline {
        let tracker = self.conntrack.as_ref().map(|(settings, around)| {
            let tables = tables.expect("a pipeline that tracks connections is started with tables");
            let nat = self.nat.as_ref().map(|nat| (nat, worker, self.workers.max(1)));
            Tracker::new(settings.clone(), around.clone(), nat, tables, key, steered)
        });
        let mut ways = self.ways.clone();
        if let Some(routed) = ways.routed.as_mut().filter(|_| !self.asks) {
            routed.used = routed.routing.used.of(worker);
        }
        let mut pipeline = Pipeline {
            before: Vec::new(),
            tracker,
            flow: Vec::new(),
            after: Vec::new(),
            positions: Vec::new(),
            actions: Box::new([Action::OPEN; BATCH]),
            ways,
            arrival: self.arrival.clone(),
        };
        let mut behind = false;
        for stage in &self.stages {
            match &stage.plan {
                Plan::Packet(plan) if !behind => {
                    pipeline.positions.push(Some((false, pipeline.before.len())));
                    pipeline.before.push(plan.start(worker));
                }
                Plan::Packet(plan) => {
                    pipeline.positions.push(Some((true, pipeline.after.len())));
                    pipeline.after.push(plan.start(worker));
                }
                Plan::Flow(plan) => {
                    behind = true;
                    pipeline.positions.push(None);
                    pipeline.flow.push((plan.clone(), plan.start(worker), stage.kind.egress));
                }
                Plan::Conntrack(_) => {
                    behind = true;
                    pipeline.positions.push(None);
                }
            }
        }
        pipeline
    }

    /// The stages in the order of work, as a pipeline goes through them.
    pub fn in_order(&self) -> Vec<&Compiled> {
        let first = self.stages.iter().position(|stage| !matches!(stage.plan, Plan::Packet(_)));
        let (before, rest) = self.stages.split_at(first.unwrap_or(self.stages.len()));
        let (flow, after): (Vec<_>, Vec<_>) = rest.iter().partition(|stage| !matches!(stage.plan, Plan::Packet(_)));
        before.iter().chain(flow).chain(after).collect()
    }

    /// What was compiled, stage by stage.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for stage in &self.stages {
            lines.extend(stage.plan.describe().into_iter().map(|line| format!("{}: {line}", stage.instance)));
        }
        lines
    }

    /// Looks over the rules of the config it was compiled from: what in them is probably not meant.
    pub fn lint(&self, config: &Config) -> Vec<Finding> {
        let names = &config.names;
        let mut anywhere = Ports::every(names);
        anywhere.insert(NO_PORT);
        let exits_of = |port: u8| {
            let exits = self.stages.iter().rev().find_map(|stage| match &stage.plan {
                Plan::Flow(plan) => plan.exits(port),
                Plan::Packet(_) | Plan::Conntrack(_) => None,
            });
            exits.unwrap_or(anywhere)
        };
        let ports = names.every_port().last().map_or(0, |last| usize::from(last) + 1);
        let mut exits = vec![Ports::default(); ports];
        names.every_port().for_each(|port| exits[usize::from(port)] = exits_of(port));
        let stages = config.pipeline.iter().filter_map(|stage| Some((stage, stage.config.as_ref()?)));
        let lint = |(stage, config_of): (&StageConfig, &AnyConfig)| {
            (stage.kind.lint)(config_of, &LintCx { instance: &stage.instance, names: &config.names, exits: &exits })
        };
        stages.flat_map(lint).collect()
    }

    /// Lets limits that are the appliance's be shared out anew, given every worker's latest counters.
    pub fn balance(&self, sheets: &[Sheet]) {
        for stage in &self.stages {
            if let Plan::Packet(plan) = &stage.plan {
                plan.balance(sheets);
            }
        }
    }
}

/// What is told of a batch on its way through the pipeline; stages are numbered in the order of work
/// ([`Blueprint::in_order`]). The one that is told nothing costs nothing.
pub trait Witness {
    /// The batch is decoded and enters the first stage.
    fn enters(&mut self, _batch: &Batch) {}
    /// A packet stage has processed the batch.
    fn processed(&mut self, _stage: usize, _batch: &Batch) {}
    /// Flows were looked up: the live packets that have one are replayed, `batch.fresh` are to be judged.
    fn found(&mut self, _stage: usize, _batch: &Batch) {}
    /// The fresh packets were judged, and those admitted have entries.
    fn admitted(&mut self, _stage: usize, _batch: &Batch) {}
    /// A flow stage has judged the packets `todo` by these facts, and denied some of them.
    fn judged(&mut self, _at: usize, _todo: Mask, _denied: Mask, _facts: &[Meta; BATCH], _actions: &[Action; BATCH]) {}
}

impl Witness for () {}

/// What one worker runs.
pub struct Pipeline {
    before: Vec<Box<dyn PacketStage>>,
    tracker: Option<Tracker>,
    flow: Vec<FlowStage>,
    after: Vec<Box<dyn PacketStage>>,
    /// For each stage of the blueprint that is a packet stage: (after the flow stages?, index there).
    positions: Vec<Option<(bool, usize)>>,
    actions: Box<[Action; BATCH]>,
    ways: Ways,
    arrival: Option<Arrival>,
}

impl Pipeline {
    /// Takes over the flows of the pipeline it follows, which gets its own tables, to be freed with it.
    pub fn succeed(&mut self, former: &mut Pipeline) {
        if let (Some(tracker), Some(former)) = (&mut self.tracker, &mut former.tracker) {
            let routing = self.ways.routed.as_ref().map(|routed| &routed.routing);
            tracker.succeed(former, routing.map_or(0, |routing| routing.generation.load(Ordering::Acquire)));
        }
    }

    /// Takes every live packet of a decoded batch to its end: leaving, dead, or moved.
    #[inline]
    pub fn process(&mut self, batch: &mut Batch, cx: &mut Cx<'_>, witness: &mut impl Witness) {
        if let Some(arrival) = &self.arrival {
            arrival.process(batch);
        }
        witness.enters(batch);
        for (n, stage) in self.before.iter_mut().enumerate() {
            stage.process(batch, cx);
            witness.processed(n, batch);
        }
        self.resume(batch, cx, witness);
    }

    /// Takes up again what was held when its flow was looked up or judged.
    #[inline]
    pub fn resume(&mut self, batch: &mut Batch, cx: &mut Cx<'_>, witness: &mut impl Witness) {
        let mut next = self.before.len();
        match &mut self.tracker {
            None => self.judge(batch, cx, witness),
            Some(tracker) => {
                tracker.replay(batch, &self.flow, &self.ways, cx);
                witness.found(next, batch);
                if batch.fresh != 0 {
                    let mut judged = |at, todo, denied, facts: &_, actions: &_| {
                        witness.judged(next + 1 + at, todo, denied, facts, actions);
                    };
                    tracker.admit(batch, &mut self.flow, &mut self.actions, &self.ways, cx, &mut judged);
                    witness.admitted(next, batch);
                }
                next += 1;
            }
        }
        next += self.flow.len();
        for (n, stage) in self.after.iter_mut().enumerate() {
            stage.process(batch, cx);
            witness.processed(next + n, batch);
        }
        batch.leave(batch.live);
    }

    /// Judges, commits and applies: without flow entries, every packet is its flow's first.
    #[inline]
    fn judge(&mut self, batch: &mut Batch, cx: &mut Cx<'_>, witness: &mut impl Witness) {
        let todo = batch.live;
        if todo == 0 {
            return;
        }
        let actions = &mut *self.actions;
        actions[..batch.len()].fill(Action::OPEN);
        let mut denied = 0;
        for (n, (plan, ..)) in self.flow.iter().enumerate() {
            let asked = todo & !denied;
            let refused = plan.judge(asked, &mut batch.metas, actions);
            witness.judged(self.before.len() + n, asked, refused, &batch.metas, actions);
            denied |= refused;
        }
        let judged = todo & !apply(todo & !denied, batch, None, actions, &self.ways);
        for (_, commit, _) in &mut self.flow {
            commit.commit(judged, batch, actions, cx);
        }
        refuse(denied, batch, actions);
        conclude(&mut self.flow, judged, batch, actions, cx);
    }

    /// A packet to be sent besides those that came.
    #[inline]
    pub fn take_note(&mut self) -> Option<Note> {
        self.tracker.as_mut().and_then(Tracker::take_note)
    }

    /// Connection tracking, if it is in the pipeline.
    pub fn tracker(&self) -> Option<&Tracker> {
        self.tracker.as_ref()
    }

    /// Likewise, to be changed between turns.
    pub fn tracker_mut(&mut self) -> Option<&mut Tracker> {
        self.tracker.as_mut()
    }

    /// Upkeep of all packet stages and of the flow tables.
    pub fn housekeep(&mut self, cx: &mut Cx<'_>) {
        for stage in self.before.iter_mut().chain(&mut self.after) {
            stage.housekeep(cx);
        }
        if let Some(tracker) = &mut self.tracker {
            tracker.renew(&self.flow, &self.ways, cx);
            tracker.housekeep(cx);
        }
    }

    /// Goes on with a visit to the flows; true if it is done.
    pub fn visit(&mut self, visit: &mut Visit, cx: &mut Cx<'_>) -> bool {
        self.tracker.as_mut().is_none_or(|tracker| tracker.visit(visit, cx))
    }

    /// The packet stage at a position of the blueprint, if it is one.
    pub fn packet_stage(&self, position: usize) -> Option<&dyn PacketStage> {
        let (after, at) = (*self.positions.get(position)?)?;
        let stages = if after { &self.after } else { &self.before };
        stages.get(at).map(|stage| &**stage)
    }
}
