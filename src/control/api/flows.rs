//! Flows: shown, counted, removed, saved.

use std::io::{self, Write};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::channel::{Channel, Sender};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Question, answer, problem, turn};
use crate::control::flows::{Census, Flushed, Query, Selection, Shown};
use crate::control::{Live, Running};

pub(super) fn routes() -> OpenApiRouter<Live> {
    OpenApiRouter::new().routes(routes!(show)).routes(routes!(count)).routes(routes!(flush)).routes(routes!(save))
}

/// Flows that are meant, sorted, as many as asked for.
#[utoipa::path(
    post,
    path = "/v1/flows",
    security(("token" = ["read"])),
    tag = "flows",
    request_body = Query,
    responses((status = 200, body = Shown))
)]
async fn show(State(running): State<Arc<Running>>, Question(query): Question<Query>) -> Response {
    answer(move || running.show_flows(&query)).await
}

/// How many flows are meant, by state and rule.
#[utoipa::path(
    post,
    path = "/v1/flows/count",
    security(("token" = ["read"])),
    tag = "flows",
    request_body = Selection,
    responses((status = 200, body = Census))
)]
async fn count(State(running): State<Arc<Running>>, Question(selection): Question<Selection>) -> Response {
    answer(move || running.count_flows(&selection)).await
}

/// Flows to be removed.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Flush {
    /// Which.
    flows: Selection,
    /// All of them: nobody means that by naming none.
    #[serde(default)]
    all: bool,
}

/// Removes the flows that are meant: their next packets are judged anew, as those of new flows.
#[utoipa::path(
    post,
    path = "/v1/flows/flush",
    tag = "flows",
    request_body = Flush,
    responses((status = 200, body = Flushed))
)]
async fn flush(State(running): State<Arc<Running>>, Question(flush): Question<Flush>) -> Response {
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
#[utoipa::path(
    get,
    path = "/v1/flows/file",
    tag = "flows",
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"))
)]
async fn save(State(running): State<Arc<Running>>) -> Response {
    if running.blueprint.conntrack.is_none() {
        return problem(StatusCode::BAD_REQUEST, "the pipeline does not track connections");
    }
    let turn = match turn().await {
        Ok(turn) => turn,
        Err(response) => return response,
    };
    let (sender, body) = Channel::new(2);
    let mut stream = Stream { sender, runtime: tokio::runtime::Handle::current(), block: Vec::new() };
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        if let Err(error) = running.save_flows(&mut stream) {
            stream.sender.abort(error);
        }
    });
    ([(header::CONTENT_TYPE, "application/octet-stream")], Body::new(body)).into_response()
}
