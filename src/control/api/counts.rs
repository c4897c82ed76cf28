//! What was counted: by worker, stage, drop reason and rule.

use std::sync::Arc;

use axum::extract::{Json, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Named, PATIENCE, answer};
use crate::control::flows::Refusal;
use crate::control::{Live, Running};
use crate::stage::rule_counter;
use crate::stats::{Account, Label, Lines, Sheet};

pub(super) fn routes() -> OpenApiRouter<Live> {
    OpenApiRouter::new()
        .routes(routes!(workers))
        .routes(routes!(pipeline))
        .routes(routes!(drops))
        .routes(routes!(rules))
        .routes(routes!(stage))
}

/// Counters by name.
type Counters = serde_json::Map<String, Value>;

/// Who counts.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Who {
    /// A worker: its number, from 0.
    Worker(usize),
    /// A thread of control: `slow path`.
    Thread(&'static str),
}

/// A worker, or the slow path.
#[derive(Serialize, ToSchema)]
pub struct Worker {
    /// Who it is.
    worker: Who,
    /// The CPU a worker is pinned to.
    core: Option<usize>,
    /// The part of its time, from 0 to 1, that it spent on packets.
    busy: f64,
    /// What became of every packet. Received, created and handed in, together with what was held before, are the sum of the others.
    #[schema(value_type = BTreeMap<String, u64>)]
    account: Value,
    /// True if the account closes; anything else is a defect of flowgate.
    balanced: bool,
}

/// Every worker: where it runs, how busy it is, its account.
#[utoipa::path(get, path = "/v1/workers", tag = "state", responses((status = 200, body = Vec<Worker>)))]
async fn workers(State(running): State<Arc<Running>>) -> Json<Vec<Worker>> {
    let workers = running.workers.iter().zip(running.sheets()).enumerate();
    let workers = workers.map(|(index, (worker, sheet))| (Who::Worker(index), Some(worker.core), sheet));
    let slow = running.slow_sheet().map(|sheet| (Who::Thread("slow path"), None, sheet));
    let rows = workers.chain(slow).map(|(worker, core, sheet)| {
        let busy = sheet.of(Account::BusyCycles) as f64 / (sheet.of(Account::Cycles) as f64).max(1.0);
        Worker {
            worker,
            core,
            busy: (busy * 1000.0).round() / 1000.0,
            account: account(&sheet),
            balanced: sheet.check_law(0).is_ok(),
        }
    });
    Json(rows.collect())
}

/// The terms of a sheet's account by name.
pub fn account(sheet: &Sheet) -> Value {
    Account::LINES.iter().enumerate().map(|(i, line)| (line.name.to_owned(), Value::from(sheet.counters[i]))).collect()
}

/// The compiled pipeline.
#[derive(Serialize, ToSchema)]
pub struct Pipeline {
    /// The config file.
    config: String,
    /// How deep packets are decoded: `nothing`, `l2`, `l3` or `l4`.
    depth: String,
    /// True if frames go from port to port unread.
    frames_unread: bool,
    /// The stages, in order.
    stages: Vec<Stage>,
}

/// A stage of the pipeline.
#[derive(Serialize, ToSchema)]
pub struct Stage {
    /// Its name: the kind, and behind a colon which one where there are several.
    stage: String,
    /// The kind.
    kind: String,
    /// What it was compiled to, in lines for people.
    compiled: Vec<String>,
    /// Packets it dropped, by reason.
    #[schema(value_type = BTreeMap<String, u64>)]
    drops: Counters,
    /// What else it counted.
    #[schema(value_type = BTreeMap<String, u64>)]
    counters: Counters,
}

/// The stages in order, with what was compiled and what they counted.
#[utoipa::path(get, path = "/v1/pipeline", tag = "state", responses((status = 200, body = Pipeline)))]
async fn pipeline(State(running): State<Arc<Running>>) -> Json<Pipeline> {
    let total = running.total();
    let blueprint = &running.blueprint;
    let stages = blueprint.stages.iter().map(|stage| {
        let of = |labels: &[Label], words: &[u64]| -> Counters {
            let mine = labels.iter().zip(words).filter(|(label, _)| label.scope == stage.instance);
            mine.map(|(label, word)| (label.name.clone(), Value::from(*word))).collect()
        };
        Stage {
            stage: stage.instance.clone(),
            kind: stage.kind.name.to_owned(),
            compiled: stage.plan.describe(),
            drops: of(blueprint.layout.reason_labels(), &total.reasons),
            counters: of(blueprint.layout.counter_labels(), &total.counters),
        }
    });
    Json(Pipeline {
        config: running.config.clone(),
        depth: format!("{:?}", blueprint.depth).to_lowercase(),
        frames_unread: blueprint.relay.is_some(),
        stages: stages.collect(),
    })
}

/// A reason why packets are dropped.
#[derive(Serialize, ToSchema)]
pub struct Drop {
    /// The stage's name and the reason's, with a dot between.
    reason: String,
    /// Packets dropped for it.
    packets: u64,
    /// What it means.
    doc: String,
}

/// Every drop reason that there is, with its count.
#[utoipa::path(get, path = "/v1/drops", tag = "state", responses((status = 200, body = Vec<Drop>)))]
async fn drops(State(running): State<Arc<Running>>) -> Json<Vec<Drop>> {
    let total = running.total();
    let labels = running.blueprint.layout.reason_labels().iter().zip(&total.reasons);
    let rows = labels.map(|(label, count)| Drop {
        reason: format!("{}.{}", label.scope, label.name),
        packets: *count,
        doc: label.doc.to_string(),
    });
    Json(rows.collect())
}

/// A rule.
#[derive(Serialize, ToSchema)]
pub struct Rule {
    /// The stage it belongs to.
    stage: String,
    /// Its name.
    rule: String,
    /// What it does.
    action: String,
    /// The file it is written in.
    file: String,
    /// The line it begins at.
    line: u32,
    /// Packets it decided about.
    packets: u64,
    /// Bytes of them.
    bytes: u64,
    /// Flows it decided about.
    flows: u64,
    /// When it last decided, in seconds since 1970; null if never.
    last_hit: Option<f64>,
}

/// Every rule with its counters.
#[utoipa::path(get, path = "/v1/rules", tag = "state", responses((status = 200, body = Vec<Rule>)))]
async fn rules(State(running): State<Arc<Running>>) -> Json<Vec<Rule>> {
    let total = running.total();
    let rows = running.blueprint.rules.all().iter().map(|rule| {
        let word = |which: usize| total.counters[rule.counters + which];
        let last = word(rule_counter::LAST_HIT);
        Rule {
            stage: rule.stage.to_string(),
            rule: rule.name.to_string(),
            action: rule.action.to_string(),
            file: rule.place.file.to_string(),
            line: rule.place.line,
            packets: word(rule_counter::PACKETS),
            bytes: word(rule_counter::BYTES),
            flows: word(rule_counter::FLOWS),
            last_hit: (last > 0).then_some(last as f64 / 1e9),
        }
    });
    Json(rows.collect())
}

/// What a stage's workers know: of `talkers` the sources that send most.
#[utoipa::path(
    get,
    path = "/v1/stages/{instance}",
    tag = "state",
    params(("instance" = String, Path, description = "The stage's name, as in the pipeline.")),
    responses((status = 200, body = Object))
)]
async fn stage(State(running): State<Arc<Running>>, Named(instance): Named<String>) -> Response {
    answer(move || {
        let position = running.blueprint.stages.iter().position(|stage| stage.instance == instance);
        let unknown = || Refusal::Unknown(format!("there is no stage {instance:?} in the pipeline"));
        let nothing = || Refusal::Unknown(format!("stage {instance:?} has nothing to show"));
        running.ask_stage(position.ok_or_else(unknown)?, PATIENCE).map_err(Refusal::Late)?.ok_or_else(nothing)
    })
    .await
}
