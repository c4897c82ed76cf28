//! The API: HTTP/1.1 and JSON, one resource for each thing that `show` shows, and its OpenAPI document.
//!
//! Each area is a file with its resources, the types of what they take and answer, and `routes()`. What is not declared with
//! `#[utoipa::path]` is no resource: routes and document are made of the same declarations. Who may connect, and how much is
//! taken from whom, is `listen`'s.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Json, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};
use utoipa::{OpenApi as _, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use super::Live;
use super::flows::Refusal;
use super::gate::{Gate, role};
use crate::config::api::Role;

pub mod capture;
pub mod counts;
pub mod explain;
pub mod flows;
pub mod ports;
pub mod routes;

pub use counts::account;

/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions that may keep a thread busy at a time, here and over the network.
pub const BUSY: usize = 4;
/// How long a question waits for its turn.
const TURN: Duration = Duration::from_secs(2);

#[derive(utoipa::OpenApi)]
#[openapi(
    components(schemas(Problem)),
    info(title = "flowgate", description = "What a running flowgate knows and does. Counters begin at its start.")
)]
struct Document;

/// All resources, and the document of them.
pub fn declared() -> (Router<Live>, Value) {
    let all = OpenApiRouter::with_openapi(Document::openapi())
        .merge(ports::routes())
        .merge(counts::routes())
        .merge(explain::routes())
        .merge(routes::routes())
        .merge(flows::routes())
        .merge(capture::routes())
        .merge(super::apply::api::routes())
        .merge(super::dashboard::routes());
    let (router, document) = all.split_for_parts();
    (router, complete(serde_json::to_value(document).unwrap_or_default()))
}

/// Adds to each operation of a document who may use it, and what it answers if it does not.
fn complete(mut document: Value) -> Value {
    document["components"]["securitySchemes"] = json!({
        "token": { "type": "http", "scheme": "bearer" },
        "certificate": { "type": "mutualTLS" },
    });
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for (method, operation) in paths.flat_map(|(_, methods)| methods.as_object_mut().into_iter().flatten()) {
        let word = if role(method, operation) == Role::Read { "read" } else { "write" };
        operation["security"] = json!([{ "token": [word] }, { "certificate": [word] }]);
        let of_all = [400, 401, 403, 404, 405, 503];
        let of_bodies = [408, 409, 413, 415, 422];
        let with_body = operation["requestBody"].is_object();
        for status in of_all.iter().chain(of_bodies.iter().filter(|_| with_body)) {
            let title = StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason());
            let schema = json!({ "$ref": "#/components/schemas/Problem" });
            operation["responses"][status.to_string()] =
                json!({ "description": title, "content": { PROBLEM: { "schema": schema } } });
        }
    }
    document
}

/// All resources of what runs, behind a gate.
pub fn router(live: Live, gate: Arc<Gate>) -> Router {
    let (router, document) = declared();
    let document = Bytes::from(document.to_string());
    let kind = [(header::CONTENT_TYPE, "application/json")];
    router
        .route("/v1/openapi.json", routing::get(|| async move { (kind, document) }))
        .merge(super::dashboard::pages())
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "there is no such resource") })
        .method_not_allowed_fallback(|| async {
            problem(StatusCode::METHOD_NOT_ALLOWED, "the resource has no such method")
        })
        .layer(axum::middleware::from_fn_with_state(gate, super::gate::gate))
        .with_state(live)
}

/// The media type of [`Problem`].
const PROBLEM: &str = "application/problem+json";

/// Why there is no answer (RFC 9457).
#[derive(Serialize, ToSchema)]
pub struct Problem {
    /// The HTTP status in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong, and what to do.
    detail: String,
    /// What belongs to some: the `mistakes` of a config, what only a `restart` changes.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    more: Value,
}

/// An answer that says why there is none.
pub fn problem(status: StatusCode, detail: &str) -> Response {
    problem_with(status, detail, Value::Null)
}

/// The same, with more members.
pub fn problem_with(status: StatusCode, detail: &str, more: Value) -> Response {
    let title = status.canonical_reason().unwrap_or("Error");
    let problem = Problem { title, status: status.as_u16(), detail: detail.to_owned(), more };
    let mut response = (status, Json(problem)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// A question: the request's body, in JSON.
pub struct Question<T>(pub T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequest<S> for Question<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        match Json::from_request(request, state).await {
            Ok(Json(question)) => Ok(Question(question)),
            Err(rejection @ JsonRejection::BytesRejection(_)) => {
                Err(problem(rejection.status(), &rejection.body_text()))
            }
            Err(rejection) if rejection.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                Err(problem(rejection.status(), "the body's Content-Type is not application/json"))
            }
            Err(rejection) => Err(problem(StatusCode::BAD_REQUEST, &rejection.body_text())),
        }
    }
}

/// Questions that callers on this machine may have in work.
static LOCAL: Semaphore = Semaphore::const_new(BUSY);
/// Those that callers over the network may have.
static DISTANT: Semaphore = Semaphore::const_new(BUSY);

tokio::task_local! {
    /// True while a caller over the network is answered.
    pub static REMOTE: bool;
}

/// The right to keep a thread busy until it is dropped; a refusal if there is none to be had soon.
pub async fn turn() -> Result<SemaphorePermit<'static>, Response> {
    let turns = if REMOTE.try_with(|remote| *remote).unwrap_or(false) { &DISTANT } else { &LOCAL };
    match tokio::time::timeout(TURN, turns.acquire()).await {
        Ok(Ok(turn)) => Ok(turn),
        _ => Err(problem(StatusCode::SERVICE_UNAVAILABLE, "too many questions are being answered; ask again")),
    }
}

/// Lets a thread find out what is asked, and answers as JSON. Anything that waits for a worker or may take longer than a few
/// milliseconds goes this way. What there are too many of is refused.
pub async fn answer<T: Serialize>(ask: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Response {
    answer_with(ask).await
}

/// The same, for other refusals.
pub async fn answer_with<T, E>(ask: impl FnOnce() -> Result<T, E> + Send + 'static) -> Response
where
    T: Serialize,
    E: IntoResponse + Send + 'static,
{
    let turn = match turn().await {
        Ok(turn) => turn,
        Err(response) => return response,
    };
    // The turn goes on while the thread does, even if nobody waits for it any more.
    let work = move || {
        let _turn = turn;
        ask().map(|value| serde_json::to_vec(&value))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(Ok(body))) => ([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response(),
        Ok(Err(refusal)) => refusal.into_response(),
        Ok(Ok(Err(error))) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Refusal::Question(message) => problem(StatusCode::BAD_REQUEST, &message),
            Refusal::Unknown(message) => problem(StatusCode::NOT_FOUND, &message),
            Refusal::Late(message) => problem(StatusCode::SERVICE_UNAVAILABLE, &message),
        }
    }
}
