//! What stands before every resource: may this caller ask this, and how much of it is read and kept.
//!
//! The role a resource takes is what its declaration says: its `security`, or else `read` for GET and `write` for the rest.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::access::{Access, Caller};
use super::api::{REMOTE, problem};
use crate::config::api::{Api, Role};

/// Bytes of bodies, of requests or of answers, that are kept at a time for callers over the network.
const BUDGET: usize = 64 << 20;

/// Who is let through to what.
pub struct Gate {
    access: ArcSwap<Access>,
    open: Vec<String>,
    roles: HashMap<(String, String), Role>,
    body_timeout: Duration,
    max_body: usize,
    asked: Arc<Semaphore>,
    answered: Arc<Semaphore>,
}

impl Gate {
    /// A gate before the resources of an OpenAPI document.
    pub fn new(config: &Api, access: Access, document: &Value) -> Gate {
        Gate {
            access: ArcSwap::from_pointee(access),
            open: config.open.iter().map(|path| path.value.0.clone()).collect(),
            roles: roles(document).collect(),
            body_timeout: config.body_timeout,
            max_body: config.max_body.0 as usize,
            asked: Arc::new(Semaphore::new(BUDGET)),
            answered: Arc::new(Semaphore::new(BUDGET)),
        }
    }

    /// Other callers from now on.
    pub fn admit(&self, access: Access) {
        self.access.store(Arc::new(access));
    }

    fn needed(&self, method: &Method, path: Option<&MatchedPath>) -> Role {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let method = if reads { "get".to_owned() } else { method.as_str().to_ascii_lowercase() };
        let declared = path.and_then(|path| self.roles.get(&(path.as_str().to_owned(), method)));
        declared.copied().unwrap_or(if reads { Role::Read } else { Role::Write })
    }

    /// Whether the request may be answered; else what it is told.
    #[expect(clippy::result_large_err, reason = "made once a request, and sent at once")]
    fn judge(&self, request: &Request) -> Result<(), Response> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if reads && self.open.iter().any(|open| open == request.uri().path()) {
            return Ok(());
        }
        let extensions = request.extensions();
        let caller = extensions.get::<Caller>().cloned().unwrap_or(Caller::Remote(None));
        let needed = self.needed(request.method(), extensions.get::<MatchedPath>());
        match self.access.load().role(&caller, bearer(request)) {
            Some(Role::Write) => Ok(()),
            Some(Role::Read) if needed == Role::Read => Ok(()),
            Some(Role::Read) => Err(problem(StatusCode::FORBIDDEN, "you may read, but not change anything")),
            None => {
                let message =
                    "who asks is not known: send a token, as in \"Authorization: Bearer TOKEN\", or a certificate";
                let mut response = problem(StatusCode::UNAUTHORIZED, message);
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                Err(response)
            }
        }
    }
}

/// The token of a request (RFC 6750 section 2.1).
fn bearer(request: &Request) -> Option<&[u8]> {
    let value = request.headers().get(header::AUTHORIZATION)?.as_bytes();
    // RFC 9110 section 11.1: the scheme's name is case-insensitive.
    let (scheme, token) = value.split_at_checked(7)?;
    // Another scheme is a wrong token, not none.
    Some(if scheme.eq_ignore_ascii_case(b"bearer ") { token.trim_ascii() } else { b"" })
}

/// The role each operation of a document takes, by path and method.
fn roles(document: &Value) -> impl Iterator<Item = ((String, String), Role)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths.flat_map(|(path, methods)| {
        methods
            .as_object()
            .into_iter()
            .flatten()
            .map(move |(method, operation)| ((path.clone(), method.clone()), role(method, operation)))
    })
}

/// The role that an operation takes.
pub fn role(method: &str, operation: &Value) -> Role {
    match operation["security"][0]["token"][0].as_str() {
        Some("read") => Role::Read,
        Some(_) => Role::Write,
        None if method == "get" => Role::Read,
        None => Role::Write,
    }
}

/// Lets a request pass, with its body read whole, or answers why not. The connection ends with what was not read.
pub async fn gate(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    if let Err(response) = gate.judge(&request) {
        return closing(response);
    }
    let remote = !matches!(request.extensions().get(), Some(Caller::Socket));
    let (head, body) = request.into_parts();
    let large = || problem(StatusCode::PAYLOAD_TOO_LARGE, &format!("the body is larger than {} bytes", gate.max_body));
    if body.size_hint().lower() > gate.max_body as u64 {
        return closing(large());
    }
    let mut kept = None;
    let reading = async {
        let mut body = body;
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| problem(StatusCode::BAD_REQUEST, "the body broke off"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > gate.max_body {
                return Err(large());
            }
            if remote {
                let Ok(more) = gate.asked.clone().try_acquire_many_owned(data.len() as u32) else {
                    return Err(problem(StatusCode::SERVICE_UNAVAILABLE, "too much is being asked at once"));
                };
                match &mut kept {
                    None => kept = Some(more),
                    Some(kept) => kept.merge(more),
                }
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    let bytes = match tokio::time::timeout(gate.body_timeout, reading).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(response)) => return closing(response),
        Err(_) => return closing(problem(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
    };
    let request = Request::from_parts(head, Body::from(bytes));
    let response = REMOTE.scope(remote, next.run(request)).await;
    drop(kept);
    let size = response.body().size_hint().exact().unwrap_or(0);
    if !remote || size == 0 {
        return response;
    }
    // What a client does not fetch stays in memory.
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    match gate.answered.clone().try_acquire_many_owned(size.min(BUDGET as u32)) {
        Ok(kept) => response.map(|body| Body::new(Kept { body, _room: kept })),
        Err(_) => problem(StatusCode::SERVICE_UNAVAILABLE, "too many answers have not been fetched yet"),
    }
}

/// A body that is counted until it is fetched or forgotten.
struct Kept {
    body: Body,
    _room: OwnedSemaphorePermit,
}

impl HttpBody for Kept {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_declared_as_reading_is_writing() {
        let document = serde_json::json!({ "paths": {
            "/a": { "get": {}, "post": {} },
            "/b": { "post": { "security": [{ "token": ["read"] }] }, "get": { "security": [{ "token": ["write"] }] } },
        }});
        let roles: HashMap<_, _> = roles(&document).collect();
        let role = |path: &str, method: &str| roles[&(path.to_owned(), method.to_owned())];
        assert_eq!([role("/a", "get"), role("/a", "post")], [Role::Read, Role::Write]);
        assert_eq!([role("/b", "get"), role("/b", "post")], [Role::Write, Role::Read]);
    }

    #[test]
    fn a_bearer_token_is_taken_out_of_its_header() {
        let of = |value: &str| {
            let request = Request::builder().header("Authorization", value).body(Body::empty()).expect("a request");
            bearer(&request).map(<[u8]>::to_vec)
        };
        assert_eq!(of("bEARER  abc "), Some(b"abc".to_vec()));
        assert_eq!(of("Basic YWJj"), Some(vec![]));
        assert_eq!(of("abc"), None);
    }
}
