//! The API: HTTP/1.1 and JSON, one resource for each thing that `show` shows, and its OpenAPI document.
//!
//! Each area is a file with its resources, the types of what they take and answer, and `routes()`. What is not declared with
//! `#[utoipa::path]` is no resource: routes and document are made of the same declarations. Who may connect, and how much is
//! taken from whom, is `listen`'s.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Json, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
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
        .merge(super::dashboard::routes())
        .routes(utoipa_axum::routes!(document));
    let (router, document) = all.split_for_parts();
    (router, complete(serde_json::to_value(document).unwrap_or_default()))
}

/// Takes back that numbers from zero on are signed ones of so many bits, as they are declared: there are larger ones.
fn unsigned(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("minimum").is_some_and(|least| *least == 0) {
                map.remove("format");
            }
            map.values_mut().for_each(unsigned);
        }
        Value::Array(list) => list.iter_mut().for_each(unsigned),
        _ => {}
    }
}

/// Adds to each operation of a document who may use it, and what it answers if it does not.
fn complete(mut document: Value) -> Value {
    unsigned(&mut document);
    document["components"]["securitySchemes"] = json!({
        "token": { "type": "http", "scheme": "bearer" },
        "certificate": { "type": "mutualTLS" },
    });
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    let operations = paths.flat_map(|(path, methods)| {
        methods.as_object_mut().into_iter().flatten().map(move |(method, operation)| (path, method, operation))
    });
    for (path, method, operation) in operations {
        let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let words: Vec<&str> = std::iter::once(method.as_str()).chain(words).collect();
        operation["operationId"] = words.join("_").into();
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
    let (router, _) = declared();
    router
        .merge(super::dashboard::pages())
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "there is no such resource") })
        .method_not_allowed_fallback(|| async {
            problem(StatusCode::METHOD_NOT_ALLOWED, "the resource has no such method")
        })
        .layer(axum::middleware::from_fn_with_state(gate, super::gate::gate))
        .with_state(live)
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "state", responses((status = 200, body = Object)))]
async fn document() -> Response {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| declared().1.to_string().into());
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone()).into_response()
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

/// What a path names.
pub struct Named<T>(pub T);

impl<T: serde::de::DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Named(name)),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// All values behind `$ref` in a value.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_says_of_every_operation_what_it_takes_and_answers() {
        let (_, document) = declared();
        let paths = document["paths"].as_object().expect("paths");
        let mut names = Vec::new();
        let mut changing = Vec::new();
        for (path, methods) in paths {
            for (method, operation) in methods.as_object().expect("methods") {
                let words = operation["summary"].as_str().or(operation["description"].as_str());
                assert!(words.is_some_and(|words| words.len() > 10), "{method} {path} has no description");
                assert!(operation["responses"]["200"].is_object(), "{method} {path}");
                assert!(operation["responses"]["401"].is_object(), "{method} {path}");
                names.push(operation["operationId"].as_str().expect("a name"));
                if role(method, operation) == Role::Write {
                    changing.push(path.as_str());
                }
            }
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{names:?}");
        // What changes something takes the role to write, and so does what packets hold; nothing else does.
        changing.sort_unstable();
        let expected = [
            "/v1/capture",
            "/v1/config/apply",
            "/v1/config/confirm",
            "/v1/config/rollback",
            "/v1/flows/flush",
            "/v1/sets/{set}",
        ];
        assert_eq!(changing, expected);
        let mut all = Vec::new();
        references(&document, &mut all);
        assert!(all.len() > 50);
        for name in all {
            assert!(document.pointer(name.trim_start_matches('#')).is_some(), "{name} leads nowhere");
        }
    }
}
