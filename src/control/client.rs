//! Asking a running flowgate over its socket.

use std::path::Path;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// The most an answer may hold, in bytes.
const ANSWER_LIMIT: usize = 64 << 20;

/// Asks for a resource; the error says what was asked, what came back and what to do.
pub fn ask(socket: &Path, resource: &str) -> Result<Value, String> {
    converse(socket, resource, None)
}

/// Sends a question that is more than a name, as [`ask`].
pub fn post(socket: &Path, resource: &str, question: &Value) -> Result<Value, String> {
    converse(socket, resource, Some(question))
}

fn converse(socket: &Path, resource: &str, question: Option<&Value>) -> Result<Value, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    runtime.block_on(async {
        let patience = std::time::Duration::from_secs(10);
        tokio::time::timeout(patience, request(socket, resource, question))
            .await
            .unwrap_or_else(|_| Err(format!("{}: no answer within {patience:?}", socket.display())))
    })
}

async fn request(socket: &Path, resource: &str, question: Option<&Value>) -> Result<Value, String> {
    let name = socket.display();
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        format!("cannot ask {name}: {error}; is flowgate running, and is this its control.socket (--socket PATH)?")
    })?;
    let broken = |error: hyper::Error| format!("{name}: the connection broke: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let method = if question.is_some() { hyper::Method::POST } else { hyper::Method::GET };
    let request = hyper::Request::builder()
        .method(method)
        .uri(resource)
        .header(hyper::header::HOST, "flowgate")
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .body(Full::<Bytes>::from(question.map_or(Bytes::new(), |question| question.to_string().into())))
        .map_err(|error| format!("{resource}: {error}"))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_LIMIT)
        .collect()
        .await
        .map_err(|error| format!("{name}: the answer broke off: {error}"))?
        .to_bytes();
    let value: Value = serde_json::from_slice(&body).map_err(|error| format!("{name}: not JSON: {error}"))?;
    match value.get("error").and_then(Value::as_str) {
        Some(message) => Err(message.to_owned()),
        None if status.is_success() => Ok(value),
        None => Err(format!("{name}: HTTP status {status}")),
    }
}
