//! The API on the Unix socket: HTTP/1.1 and JSON, one resource per thing that `show` shows.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use http_body_util::channel::{Channel, Sender};
use serde_json::{Value, json};

use super::flows::{Query, Refusal, Selection};
use super::routes::Routes;
use super::{Live, Running};
use crate::stage::pipeline::port_counter;
use crate::stage::rule_counter;
use crate::stats::{Account, Sheet};

/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// All resources.
pub fn router(live: Live) -> Router {
    Router::new()
        .route("/v1/ports", get(|State(running): State<Arc<Running>>| async move { Json(ports(&running)) }))
        .route("/v1/workers", get(|State(running): State<Arc<Running>>| async move { Json(workers(&running)) }))
        .route("/v1/pipeline", get(|State(running): State<Arc<Running>>| async move { Json(pipeline(&running)) }))
        .route("/v1/drops", get(|State(running): State<Arc<Running>>| async move { Json(drops(&running)) }))
        .route("/v1/rules", get(|State(running): State<Arc<Running>>| async move { Json(rules(&running)) }))
        .route("/v1/stages/{instance}", get(stage))
        .route("/v1/explain", post(explain))
        .route("/v1/routes", post(routes))
        .route("/v1/neighbors", post(neighbors))
        .route("/v1/flows", post(flows))
        .route("/v1/flows/count", post(count_flows))
        .route("/v1/flows/flush", post(flush_flows))
        .route("/v1/flows/file", get(flows_file))
        .merge(super::apply::api::routes())
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "there is no such resource") })
        .with_state(live)
}

fn problem(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": message }))).into_response()
}

/// Every port: what it is, what flowgate counted there, what the device counted.
fn ports(running: &Running) -> Value {
    let total = running.total();
    let ports = running.ports.iter().zip(&running.blueprint.port_counters).enumerate().map(|(at, (port, first))| {
        let mut value = serde_json::to_value(port.state()).unwrap_or(Value::Null);
        value["rx_packets"] = total.counters[first + port_counter::RX].into();
        value["tx_packets"] = total.counters[first + port_counter::TX].into();
        value["tx_dropped"] = total.counters[first + port_counter::TX_DROPPED].into();
        if let Some(addresses) = running.addresses(at as u8) {
            value["addresses"] = addresses.into();
            value["interface"] = running.interfaces.then(|| value["name"].clone()).into();
        }
        value
    });
    ports.collect()
}

/// Every worker, and the slow path: where it runs, how busy it is, its account.
fn workers(running: &Running) -> Value {
    let workers = running.workers.iter().zip(running.sheets()).enumerate();
    let workers = workers.map(|(index, (worker, sheet))| (Value::from(index), Value::from(worker.core), sheet));
    let slow = running.slow_sheet().map(|sheet| ("slow path".into(), Value::Null, sheet));
    let rows = workers.chain(slow).map(|(worker, core, sheet)| {
        let busy = sheet.of(Account::BusyCycles) as f64 / (sheet.of(Account::Cycles) as f64).max(1.0);
        json!({
            "worker": worker,
            "core": core,
            "busy": (busy * 1000.0).round() / 1000.0,
            "account": account(&sheet),
            "balanced": sheet.check_law(0).is_ok(),
        })
    });
    rows.collect()
}

/// The terms of a sheet's account by name.
pub fn account(sheet: &Sheet) -> Value {
    use crate::stats::Lines;
    Account::LINES.iter().enumerate().map(|(i, line)| (line.name.to_owned(), Value::from(sheet.counters[i]))).collect()
}

/// The stages in order, with what was compiled and what they counted.
fn pipeline(running: &Running) -> Value {
    let total = running.total();
    let blueprint = &running.blueprint;
    let stages = blueprint.stages.iter().map(|stage| {
        let of = |labels: &[crate::stats::Label], words: &[u64]| -> Value {
            let mine = labels.iter().zip(words).filter(|(label, _)| label.scope == stage.instance);
            mine.map(|(label, word)| (label.name.clone(), Value::from(*word))).collect()
        };
        json!({
            "stage": stage.instance,
            "kind": stage.kind.name,
            "compiled": stage.plan.describe(),
            "drops": of(blueprint.layout.reason_labels(), &total.reasons),
            "counters": of(blueprint.layout.counter_labels(), &total.counters),
        })
    });
    json!({
        "config": running.config,
        "depth": format!("{:?}", blueprint.depth).to_lowercase(),
        "frames_unread": blueprint.relay.is_some(),
        "stages": stages.collect::<Vec<_>>(),
    })
}

/// Every drop reason that there is, with its count.
fn drops(running: &Running) -> Value {
    let total = running.total();
    let labels = running.blueprint.layout.reason_labels().iter().zip(&total.reasons);
    let rows = labels.map(|(label, count)| {
        json!({
            "reason": format!("{}.{}", label.scope, label.name),
            "packets": count,
            "doc": label.doc,
        })
    });
    rows.collect()
}

/// Every rule with its counters.
fn rules(running: &Running) -> Value {
    let total = running.total();
    let rows = running.blueprint.rules.all().iter().map(|rule| {
        let word = |which: usize| total.counters[rule.counters + which];
        let last = word(rule_counter::LAST_HIT);
        json!({
            "stage": rule.stage,
            "rule": rule.name,
            "action": rule.action,
            "file": rule.place.file,
            "line": rule.place.line,
            "packets": word(rule_counter::PACKETS),
            "bytes": word(rule_counter::BYTES),
            "flows": word(rule_counter::FLOWS),
            "last_hit": (last > 0).then(|| last as f64 / 1e9),
        })
    });
    rows.collect()
}

/// What a stage's workers know: top talkers, for instance.
async fn stage(State(running): State<Arc<Running>>, Path(instance): Path<String>) -> Response {
    let Some(position) = running.blueprint.stages.iter().position(|stage| stage.instance == instance) else {
        return problem(StatusCode::NOT_FOUND, &format!("there is no stage {instance:?} in the pipeline"));
    };
    let asked = tokio::task::spawn_blocking(move || running.ask_stage(position, PATIENCE)).await;
    match asked {
        Ok(Ok(Some(value))) => Json(value).into_response(),
        Ok(Ok(None)) => problem(StatusCode::NOT_FOUND, &format!("stage {instance:?} has nothing to show")),
        Ok(Err(message)) => problem(StatusCode::SERVICE_UNAVAILABLE, &message),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// A packet to be explained: in words, or as a frame in hexadecimal and the port it arrives on.
#[derive(serde::Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Asked {
    Packet { packet: String },
    Frame { frame: String, r#in: String },
}

/// What would happen to a packet now.
async fn explain(State(running): State<Arc<Running>>, Json(asked): Json<Asked>) -> Response {
    let explainer = &running.explainer;
    let (port, frame) = match &asked {
        Asked::Packet { packet } => match explainer.read(packet) {
            Ok(read) => read,
            Err(error) => return problem(StatusCode::BAD_REQUEST, &error.shown(packet)),
        },
        Asked::Frame { frame, r#in: port } => match (explainer.port(port), unhex(frame)) {
            (Ok(port), Some(frame)) => (port, frame),
            (Err(message), _) => return problem(StatusCode::BAD_REQUEST, &message),
            (_, None) => return problem(StatusCode::BAD_REQUEST, "the frame is not hexadecimal"),
        },
    };
    match tokio::task::spawn_blocking(move || running.explain(port, &frame, PATIENCE)).await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(message)) => problem(StatusCode::SERVICE_UNAVAILABLE, &message),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Lets control ask the workers, and answers.
async fn answer(ask: impl FnOnce() -> Result<Value, Refusal> + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(ask).await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(Refusal::Question(message))) => problem(StatusCode::BAD_REQUEST, &message),
        Ok(Err(Refusal::Late(message))) => problem(StatusCode::SERVICE_UNAVAILABLE, &message),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Routes that are meant.
async fn routes(State(running): State<Arc<Running>>, Json(query): Json<Routes>) -> Response {
    answer(move || running.show_routes(&query)).await
}

/// How many neighbors are wanted.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    limit: usize,
}

/// Neighbors.
async fn neighbors(State(running): State<Arc<Running>>, Json(Limit { limit }): Json<Limit>) -> Response {
    answer(move || running.show_neighbors(limit)).await
}

/// Flows that are meant.
async fn flows(State(running): State<Arc<Running>>, Json(query): Json<Query>) -> Response {
    answer(move || running.show_flows(&query)).await
}

/// How many flows are meant, by state and rule.
async fn count_flows(State(running): State<Arc<Running>>, Json(selection): Json<Selection>) -> Response {
    answer(move || running.count_flows(&selection)).await
}

/// Flows to be removed.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Flush {
    flows: Selection,
    #[serde(default)]
    all: bool,
}

/// Removes the flows that are meant.
async fn flush_flows(State(running): State<Arc<Running>>, Json(flush): Json<Flush>) -> Response {
    answer(move || running.flush_flows(&flush.flows, flush.all)).await
}

/// What goes to the asker as it is written, a block at a time.
struct Stream {
    sender: Sender<Bytes, io::Error>,
    runtime: tokio::runtime::Handle,
    block: Vec<u8>,
}

/// Bytes of a block.
const BLOCK: usize = 1 << 20;

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.block.extend_from_slice(bytes);
        if self.block.len() >= BLOCK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let block = Bytes::from(std::mem::take(&mut self.block));
        let sent = self.runtime.block_on(self.sender.send_data(block));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// All flows, as the file that `run --flows` takes. If it breaks off, so does the connection.
async fn flows_file(State(running): State<Arc<Running>>) -> Response {
    if running.blueprint.conntrack.is_none() {
        return problem(StatusCode::BAD_REQUEST, "the pipeline does not track connections");
    }
    let (sender, body) = Channel::new(2);
    let mut stream = Stream { sender, runtime: tokio::runtime::Handle::current(), block: Vec::new() };
    tokio::task::spawn_blocking(move || {
        if let Err(error) = running.save_flows(&mut stream) {
            stream.sender.abort(error);
        }
    });
    Body::new(body).into_response()
}
