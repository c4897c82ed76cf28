//! The pages that a browser shows at the API's address, and what they and Prometheus read. All of it is in the binary, nothing
//! comes from elsewhere, and nothing here changes anything.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;

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

/// `/`, what belongs to it, `/v1/overview` and `/metrics`.
pub fn router() -> Router<Live> {
    let mut router = Router::new().route("/v1/overview", get(overview)).route("/metrics", get(metrics));
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

async fn overview(State(running): State<Arc<Running>>) -> Response {
    let (counted, talkers) = tokio::join!(census::counted(&running), census::talkers(&running));
    told(move || Json(overview::overview(&running, counted.as_deref(), talkers.as_deref())).into_response()).await
}

async fn metrics(State(running): State<Arc<Running>>, headers: HeaderMap) -> Response {
    let dialect = Dialect::accepted(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()));
    let counted = census::counted(&running).await;
    let text = move || metrics::write(&running, counted.as_deref(), dialect);
    told(move || ([(header::CONTENT_TYPE, dialect.content_type())], text()).into_response()).await
}

/// Lets what asks devices and waits for locks happen beside the loop.
async fn told(tell: impl FnOnce() -> Response + Send + 'static) -> Response {
    let told = tokio::task::spawn_blocking(tell).await;
    told.unwrap_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response())
}
