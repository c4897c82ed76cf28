//! Packets: captured as they come, and the last that were dropped.

use axum::body::Body;
use axum::extract::{Json, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Question, answer, problem, turn};
use crate::control::Live;
use crate::control::capture::{self, CaptureQuery, Format, NUMBER};
use crate::control::drops::{self, Last};
use crate::control::flows::Refusal;

pub(super) fn routes() -> OpenApiRouter<Live> {
    OpenApiRouter::new().routes(routes!(captures, begin)).routes(routes!(last_drops)).routes(routes!(drops_file))
}

/// The latest captures, and how they are getting on.
#[utoipa::path(get, path = "/v1/capture", tag = "packets", responses((status = 200, body = Object)))]
async fn captures() -> Json<Value> {
    Json(capture::latest())
}

/// Packets as they come, until the asker has heard enough: pcapng, or lines.
#[utoipa::path(
    post,
    path = "/v1/capture",
    tag = "packets",
    request_body = CaptureQuery,
    responses((status = 200, body = Vec<u8>, content_type = "application/x-pcapng"))
)]
async fn begin(State(live): State<Live>, Question(wanted): Question<CaptureQuery>) -> Response {
    let kind = match wanted.format {
        Format::Pcapng => PCAPNG,
        Format::Text => "text/plain; charset=utf-8",
        Format::Json => "application/jsonl",
    };
    packets(kind, move || capture::start(live, wanted).map(|(number, body)| (Some(number), body))).await
}

/// The last drops that are meant: when, why, and which packet.
#[utoipa::path(
    post,
    path = "/v1/drops/last",
    security(("token" = ["read"])),
    tag = "packets",
    request_body = Last,
    responses((status = 200, body = Object))
)]
async fn last_drops(State(live): State<Live>, Question(last): Question<Last>) -> Response {
    answer(move || drops::last(&live, &last)).await
}

/// The headers of the last drops that are meant, as pcapng.
#[utoipa::path(
    post,
    path = "/v1/drops/file",
    security(("token" = ["read"])),
    tag = "packets",
    request_body = Last,
    responses((status = 200, body = Vec<u8>, content_type = "application/x-pcapng"))
)]
async fn drops_file(State(live): State<Live>, Question(last): Question<Last>) -> Response {
    packets(PCAPNG, move || drops::file(&live, &last).map(|file| (None, file.into()))).await
}

const PCAPNG: &str = "application/x-pcapng";

/// Answers with packets, and the number of the capture, if it is one.
async fn packets(
    kind: &'static str,
    ask: impl FnOnce() -> Result<(Option<u64>, Body), Refusal> + Send + 'static,
) -> Response {
    let turn = match turn().await {
        Ok(turn) => turn,
        Err(response) => return response,
    };
    let work = move || {
        let _turn = turn;
        ask()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok((number, body))) => {
            let mut response = ([(header::CONTENT_TYPE, kind)], body).into_response();
            if let Some(number) = number {
                response.headers_mut().insert(NUMBER, number.into());
            }
            response
        }
        Ok(Err(refusal)) => refusal.into_response(),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}
