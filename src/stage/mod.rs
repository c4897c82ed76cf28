//! Stages: the decisions an appliance takes about packets, and the registry of their kinds.
//!
//! A stage has three lives. Its *config* is what the user wrote (checked, with places). Its *plan* is compiled from that once,
//! on the control core, may fail, and is then shared read-only by all workers. What a worker *starts* from the plan is its
//! own, and cannot fail: it has masks and reasons.
//!
//! There are two kinds. A **packet stage** sees every live packet (`process`). A **flow stage** judges a flow's first packet,
//! purely and from facts alone (`judge`), and then counts or takes what the verdict needs (`commit`); without `conntrack` in
//! the pipeline every packet is judged. Adding a stage is one file and one line in [`REGISTRY`].

use std::any::Any;
use std::sync::Arc;

use serde::Serialize;

use crate::config::names::Names;
use crate::config::reader::{FromToml, Item, Key, Reader};
use crate::config::source::{Mistakes, Place};
use crate::flow::Tracking;
use crate::flow::entry::Scope;
use crate::flow::limits::OfRule;
use crate::log::Log;
use crate::nat::Draft;
pub use crate::packet::decode::Depth;
use crate::packet::{BATCH, Batch, Mask, Meta, NO_PORT, NO_RULE};
use crate::route::Routing;
use crate::stats::{Layout, Line, Lines, Reason, ReasonBase, Sheet, Unit};

/// Memory in MB of an EAL that is started only to compile plans (`check`, `replay`, tests).
pub const EAL_MEMORY: u32 = 1024;

pub mod acl;
pub mod apply;
pub mod bpf;
pub mod bucket;
pub mod classes;
pub mod conntrack;
pub mod cross;
pub mod dnat;
pub mod guard;
pub mod ingress;
pub mod pipeline;
pub mod police;
pub mod prefix_set;
pub mod preview;
pub mod restore;
pub mod route;
pub mod snat;
pub mod synproxy;
pub mod talkers;
pub mod track;
pub mod visit;

/// What a worker lends a stage for the duration of a call.
pub struct Cx<'a> {
    /// The turn's time: nanoseconds since 1970, never running backwards.
    pub now: u64,
    /// The worker's counters.
    pub sheet: &'a mut Sheet,
    /// The worker's packet log.
    pub log: &'a Log,
}

/// A row of a stage's snapshot, as the worker hands it over; the stage's plan says what the words mean.
pub type Row = [u64; 8];

/// A stage's state in one worker, which sees every live packet.
pub trait PacketStage: Send {
    /// Looks at all live packets; drops with `batch.drop`.
    fn process(&mut self, batch: &mut Batch, cx: &mut Cx<'_>);
    /// A bounded amount of upkeep, called every few hundred turns.
    fn housekeep(&mut self, _cx: &mut Cx<'_>) {}
    /// Copies the next rows of the stage's state, from `cursor` on, into the room `rows` has left (it must not grow).
    /// Returns true when nothing is left. A bounded amount per call.
    fn snapshot(&self, _cursor: &mut usize, _rows: &mut Vec<Row>) -> bool {
        true
    }
}

/// The compiled form of a packet stage.
pub trait PacketPlan: Send + Sync {
    /// A worker's own part.
    fn start(&self, worker: usize) -> Box<dyn PacketStage>;
    /// Lines for `check` and `--describe`: what was compiled, and how large it is.
    fn describe(&self) -> Vec<String> {
        Vec::new()
    }
    /// The rows of all workers' snapshots as JSON, for `show`; none if the stage has nothing to show.
    fn show(&self, _rows: &[Row]) -> Option<serde_json::Value> {
        None
    }
    /// Called by control a few times a second with every worker's latest published counters, for limits that are the
    /// appliance's and not one worker's.
    fn balance(&self, _sheets: &[Sheet]) {}
}

/// What happens to a flow's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No stage has decided yet.
    Open,
    /// Allowed to pass.
    Allow,
    /// Dropped for `Action::reason`.
    Deny,
}

/// What the flow stages decided for one subject; later compiled into a flow entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// Index into the pipeline's adjacencies: how the packet leaves.
    pub adjacency: u32,
    /// The rule that decided, a slot of the pipeline's rules, or `NO_RULE`.
    pub rule: u16,
    /// Why it is denied.
    pub reason: Reason,
    /// Routing domain or wire.
    pub domain: u16,
    /// The port it leaves by, or `NO_PORT`.
    pub out: u8,
    /// The verdict.
    pub verdict: Verdict,
    /// If denied: the sender is told (`FlowCommit::conclude`).
    pub reject: bool,
    /// What becomes of it is logged (`FlowCommit::conclude`).
    pub log: bool,
    /// How closely the flow is held to its protocol, if the rule says so.
    pub tracking: Option<Tracking>,
    /// How its source is translated: a slot of the translating stage, or `NO_SNAT`.
    pub snat: u16,
}

const _: () = assert!(size_of::<Action>() <= 20);

/// `Action::snat` of what keeps its source.
pub const NO_SNAT: u16 = u16::MAX;

impl Action {
    /// Nothing decided.
    pub const OPEN: Action = Action {
        adjacency: 0,
        rule: NO_RULE,
        reason: Reason::NONE,
        domain: 0,
        out: NO_PORT,
        verdict: Verdict::Open,
        reject: false,
        log: false,
        tracking: None,
        snat: NO_SNAT,
    };

    /// Decides against the subject. What an earlier rule wanted told of it holds no longer.
    #[inline]
    pub fn deny(&mut self, reason: Reason, rule: u16) {
        self.verdict = Verdict::Deny;
        self.reason = reason;
        self.rule = rule;
        (self.reject, self.log) = (false, false);
    }
}

/// The compiled form of a flow stage.
pub trait FlowPlan: Send + Sync {
    /// Judges the subjects of `todo` (none of them denied so far): writes intents into their actions and returns those it
    /// denies (`Action::deny`). Pure: the same facts and actions always give the same result, and nothing else changes. Only a
    /// stage that translates may change facts, for those that judge behind it.
    fn judge(&self, todo: Mask, facts: &mut [Meta; BATCH], actions: &mut [Action; BATCH]) -> Mask;
    /// A worker's own part.
    fn start(&self, worker: usize) -> Box<dyn FlowCommit>;
    /// Lines for `check` and `--describe`: what was compiled, and how large it is.
    fn describe(&self) -> Vec<String> {
        Vec::new()
    }
    /// Where the addresses of packets from `port` are valid, if the stage decides that.
    fn scope(&self, _port: u8) -> Option<Scope> {
        None
    }
    /// The ports by which packets that arrive on `port` may leave, if the stage decides that; `None` if by any, or none.
    fn exits(&self, _port: u8) -> Option<ingress::Ports> {
        None
    }
    /// If the stage alone does the same to every frame of `port`, whatever is in it: what it does.
    fn relay(&self, _port: u8) -> Option<Action> {
        None
    }
    /// True if `FlowCommit::conclude` may have something to do.
    fn concludes(&self) -> bool {
        false
    }
}

/// A flow stage's state in one worker.
pub trait FlowCommit: Send {
    /// Runs once for each judged subject (each new flow with `conntrack`, each packet without): counts, takes tokens and
    /// ports. `judged` includes the denied.
    fn commit(&mut self, judged: Mask, batch: &Batch, actions: &[Action; BATCH], cx: &mut Cx<'_>);
    /// Runs once more for those that were committed when it is final what becomes of them, if the plan says that it concludes:
    /// the time to log, and to mark those of the dead whose senders are to be told (`Batch::refused`). Frames are as they
    /// came, but for the link-layer header of those that go on.
    fn conclude(&mut self, _judged: Mask, _batch: &mut Batch, _actions: &[Action; BATCH], _cx: &mut Cx<'_>) {}
}

/// A compiled stage.
#[derive(Clone)]
pub enum Plan {
    /// Sees every packet.
    Packet(Arc<dyn PacketPlan>),
    /// Judges flows.
    Flow(Arc<dyn FlowPlan>),
    /// Marks where packets are looked up in the flow table.
    Conntrack(Arc<conntrack::Settings>),
}

impl Plan {
    /// Lines for `check` and `--describe`: what was compiled, and how large it is.
    pub fn describe(&self) -> Vec<String> {
        match self {
            Plan::Packet(plan) => plan.describe(),
            Plan::Flow(plan) => plan.describe(),
            Plan::Conntrack(settings) => settings.describe(),
        }
    }

    /// True if it is a flow stage's that concludes.
    pub fn concludes(&self) -> bool {
        matches!(self, Plan::Flow(plan) if plan.concludes())
    }
}

/// A rule of any stage, known by its slot in [`Rules`].
#[derive(Clone, Debug)]
pub struct Rule {
    /// The stage it belongs to (`acl`, `guard`).
    pub stage: String,
    /// Its name; `rule[3]` if the user gave none.
    pub name: String,
    /// Where it is written.
    pub place: Place,
    /// What it does, in the file's word (`allow`).
    pub action: String,
    /// First of its counters (`rule_counter`).
    pub counters: usize,
    /// How closely flows that it admits are held to their protocol, if it says so.
    pub tracking: Option<Tracking>,
    /// How many flows it may admit, and the key that says so.
    pub limit: Option<(OfRule, String)>,
}

/// All rules of a pipeline. `Meta::rule` and `Action::rule` are indices into it.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// The most a pipeline can have.
    pub const MAX: usize = NO_RULE as usize;

    /// The rule in a slot.
    pub fn slot(&self, slot: u16) -> Option<&Rule> {
        self.0.get(usize::from(slot))
    }

    /// All of them, by slot.
    pub fn all(&self) -> &[Rule] {
        &self.0
    }
}

/// Position of a rule's counters behind its `Rule::counters`.
pub mod rule_counter {
    /// Packets (flows' first packets included).
    pub const PACKETS: usize = 0;
    /// Bytes of their frames.
    pub const BYTES: usize = 1;
    /// Time of the last hit, Unix nanoseconds.
    pub const LAST_HIT: usize = 2;
    /// Flows it admitted.
    pub const FLOWS: usize = 3;
    /// How many there are.
    pub const COUNT: usize = 4;
}

/// What a plan is compiled with.
pub struct PlanCx<'a> {
    /// The stage's word in the pipeline: `guard`, or `bpf:noise`.
    pub instance: String,
    /// Ports, zones, sets and services by name.
    pub names: &'a Names,
    /// Where its reasons and counters are declared.
    pub layout: &'a mut Layout,
    /// Where its rules are declared.
    pub rules: &'a mut Rules,
    /// Where it writes how packets leave.
    pub adjacencies: &'a mut apply::Adjacencies,
    /// Where its mistakes go.
    pub mistakes: &'a mut Mistakes,
    /// How many workers will start it.
    pub workers: usize,
    /// True if `conntrack` is in the pipeline.
    pub conntrack: bool,
    /// IPv4 and IPv6 flows of the whole appliance.
    pub flows: (u32, u32),
    /// The routing tables, if packets are routed.
    pub routing: Option<&'a Arc<Routing>>,
    /// Where the stage that routes says what that adds.
    pub routed: &'a mut Option<apply::Routed>,
    /// Where it puts the routes of the file.
    pub statics: &'a mut Vec<crate::route::Route>,
    /// Where the stages that translate say what they do.
    pub nat: &'a mut Draft,
}

impl PlanCx<'_> {
    /// Declares the stage's drop reasons.
    pub fn reasons<E: Lines>(&mut self) -> ReasonBase {
        self.layout.reasons::<E>(&self.instance)
    }

    /// Declares the stage's counters; the result is the index of the first in the sheet.
    pub fn counters<E: Lines>(&mut self) -> usize {
        self.layout.counters::<E>(&self.instance)
    }

    /// Declares a rule and its counters; `None` after noting that there are too many.
    pub fn rule(&mut self, name: &str, place: &Place, action: &str) -> Option<u16> {
        let slot = self.rules.0.len();
        if slot >= Rules::MAX {
            self.mistakes.at(place, &self.instance, format!("more than {} rules in one pipeline", Rules::MAX));
            return None;
        }
        let scope = format!("{}/rule", self.instance);
        let counters = self.layout.counter(&scope, name, Unit::Count, "Packets that matched the rule.");
        self.layout.counter(&scope, name, Unit::Bytes, "Bytes that matched the rule.");
        self.layout.counter(&scope, name, Unit::Time, "When the rule was last hit.");
        self.layout.counter(&scope, name, Unit::Count, "Flows that the rule admitted.");
        let (stage, name, place, action) = (self.instance.clone(), name.to_owned(), place.clone(), action.to_owned());
        self.rules.0.push(Rule { stage, name, place, action, counters, tracking: None, limit: None });
        Some(slot as u16)
    }
}

/// What a stage's rules are looked over with.
pub struct LintCx<'a> {
    /// The stage's word in the pipeline.
    pub instance: &'a str,
    /// Ports, zones, sets and services by name.
    pub names: &'a Names,
    /// For each port, those by which its packets may leave; `NO_PORT` among them if they need not.
    pub exits: &'a [ingress::Ports],
}

/// Something in a good file that is probably not meant: it works, but not as it looks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind it is, in a word (`shadowed`).
    pub kind: &'static str,
    /// Where the rule is written.
    #[serde(flatten)]
    pub place: Place,
    /// The rule's key (`acl.rule[2]`).
    pub key: String,
    /// The rule's name.
    pub rule: String,
    /// What is wrong.
    pub message: String,
    /// A packet that shows it, in the notation of `flowgate explain`.
    pub witness: Option<String>,
    /// The other rules that make it so.
    pub involved: Vec<Involved>,
    /// What to do.
    pub help: Option<String>,
}

/// A rule that has to do with a finding about another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Involved {
    /// Its name.
    pub rule: String,
    /// What it does, in the file's word.
    pub action: String,
    /// Where it is written.
    #[serde(flatten)]
    pub place: Place,
}

/// A kind of stage, as its file defines it.
pub trait Stage: 'static {
    /// The word in the TOML.
    const NAME: &'static str;
    /// What it is, in a paragraph, for the reference.
    const DOC: &'static str;
    /// How deep decode must go for it.
    const DEPTH: Depth;
    /// True if it judges flows, and not every packet.
    const JUDGES: bool = false;
    /// True if it decides which port packets leave by.
    const EGRESS: bool = false;
    /// True if it needs to know which port packets leave by.
    const AFTER_EGRESS: bool = false;
    /// Its drop reasons.
    const REASONS: &'static [Line] = &[];
    /// Its counters.
    const COUNTERS: &'static [Line] = &[];
    /// Its table in the file.
    type Config: FromToml + Send + Sync + 'static;
    /// Compiles; `None` after noting at least one mistake.
    fn plan(config: &Self::Config, cx: &mut PlanCx<'_>) -> Option<Plan>;
    /// Looks over the rules of a config that was planned.
    fn lint(_config: &Self::Config, _cx: &LintCx<'_>) -> Vec<Finding> {
        Vec::new()
    }
}

/// A stage's config of any kind.
pub type AnyConfig = Arc<dyn Any + Send + Sync>;

/// A kind of stage, as the registry holds it.
pub struct Kind {
    /// The word in the TOML.
    pub name: &'static str,
    /// What it is.
    pub doc: &'static str,
    /// How deep decode must go.
    pub depth: Depth,
    /// True if it judges flows, and not every packet.
    pub judges: bool,
    /// True if it decides which port packets leave by.
    pub egress: bool,
    /// True if it needs to know which port packets leave by.
    pub after_egress: bool,
    /// Its drop reasons.
    pub reasons: &'static [Line],
    /// Its counters.
    pub counters: &'static [Line],
    /// The keys of its table.
    pub keys: &'static [Key],
    /// Reads its table.
    pub read: fn(Item<'_>, &mut Reader<'_>) -> Option<AnyConfig>,
    /// Compiles its config.
    pub plan: fn(&AnyConfig, &mut PlanCx<'_>) -> Option<Plan>,
    /// Looks over its rules.
    pub lint: fn(&AnyConfig, &LintCx<'_>) -> Vec<Finding>,
}

/// The registry's line for a stage.
pub const fn kind<S: Stage>() -> Kind {
    Kind {
        name: S::NAME,
        doc: S::DOC,
        depth: S::DEPTH,
        judges: S::JUDGES,
        egress: S::EGRESS,
        after_egress: S::AFTER_EGRESS,
        reasons: S::REASONS,
        counters: S::COUNTERS,
        keys: <S::Config as FromToml>::KEYS,
        read: |item, reader| S::Config::from_toml(item, reader).map(|config| Arc::new(config) as AnyConfig),
        plan: |config, cx| S::plan(config.downcast_ref().expect("a kind plans the config it read"), cx),
        lint: |config, cx| S::lint(config.downcast_ref().expect("a kind looks over the config it read"), cx),
    }
}

/// Every kind of stage.
pub static REGISTRY: &[Kind] = &[
    kind::<guard::Guard>(),
    kind::<bpf::Bpf>(),
    kind::<talkers::Talkers>(),
    kind::<conntrack::Conntrack>(),
    kind::<dnat::Dnat>(),
    kind::<route::Route>(),
    kind::<cross::Cross>(),
    kind::<acl::Acl>(),
    kind::<snat::Snat>(),
    kind::<police::Police>(),
];
