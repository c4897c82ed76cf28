//! The pages that a browser shows at the API's address, and what they and Prometheus read. All of it is in the binary, nothing
//! comes from elsewhere, and nothing here changes anything.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::api::{answer, problem, turn};
use super::exposition::Dialect;
use super::{Live, Running, census, metrics, overview};

/// The page may show what is here, ask for what is here, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The files of the page: path, content type, content.
const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("page.html")),
    ("/dashboard.js", "text/javascript; charset=utf-8", include_str!("page.js")),
    ("/dashboard.css", "text/css; charset=utf-8", include_str!("page.css")),
];

/// `/v1/overview` and `/metrics`.
pub fn routes() -> OpenApiRouter<Live> {
    OpenApiRouter::new().routes(routes!(overview)).routes(routes!(metrics))
}

/// `/` and what belongs to it.
pub fn pages() -> Router<Live> {
    let mut router = Router::new();
    for (path, kind, content) in FILES {
        let headers = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        router = router.route(path, get(move || async move { (headers, content) }));
    }
    router
}

/// All that the dashboard and `flowgate top` show, of one reading of the counters. Flows by state and talkers are some seconds old.
#[utoipa::path(get, path = "/v1/overview", tag = "state", responses((status = 200, body = Object)))]
async fn overview(State(running): State<Arc<Running>>) -> Response {
    let (counted, talkers) = tokio::join!(census::counted(&running), census::talkers(&running));
    answer(move || Ok(overview::overview(&running, counted.as_deref(), talkers.as_deref()))).await
}

/// All counters for Prometheus, in OpenMetrics, or in its older text format for those who accept no other.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "state",
    responses((status = 200, content(
        (String = "application/openmetrics-text"),
        (String = "text/plain"),
    )))
)]
async fn metrics(State(running): State<Arc<Running>>, headers: HeaderMap) -> Response {
    let dialect = Dialect::accepted(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()));
    let counted = census::counted(&running).await;
    let turn = match turn().await {
        Ok(turn) => turn,
        Err(refusal) => return refusal,
    };
    // Devices are asked, and locks waited for.
    let text = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        metrics::write(&running, counted.as_deref(), dialect)
    });
    match text.await {
        Ok(text) => ([(header::CONTENT_TYPE, dialect.content_type())], text).into_response(),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}
