//! Routes and neighbors.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use super::{Question, answer};
use crate::control::routes::{Found, Neighbors, Routes};
use crate::control::{Live, Running};

pub(super) fn routes() -> OpenApiRouter<Live> {
    OpenApiRouter::new().routes(utoipa_axum::routes!(show)).routes(utoipa_axum::routes!(neighbors))
}

/// Routes: some of all, those to a prefix, or the one that an address takes and why.
#[utoipa::path(
    post,
    path = "/v1/routes",
    security(("token" = ["read"])),
    tag = "state",
    request_body = Routes,
    responses((status = 200, body = Found))
)]
async fn show(State(running): State<Arc<Running>>, Question(query): Question<Routes>) -> Response {
    answer(move || running.show_routes(&query)).await
}

/// How many are wanted.
#[derive(serde::Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// At most.
    limit: usize,
}

/// Neighbors, by port, family and address.
#[utoipa::path(
    post,
    path = "/v1/neighbors",
    security(("token" = ["read"])),
    tag = "state",
    request_body = Limit,
    responses((status = 200, body = Neighbors))
)]
async fn neighbors(State(running): State<Arc<Running>>, Question(Limit { limit }): Question<Limit>) -> Response {
    answer(move || running.show_neighbors(limit)).await
}
