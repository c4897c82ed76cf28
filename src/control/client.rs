//! Asking a running flowgate over its socket.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::capture::NUMBER;

/// The most an answer may hold, in bytes.
const ANSWER_LIMIT: usize = 64 << 20;

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer may take for which workers look through their flows.
pub const LONG: Duration = Duration::from_secs(120);

/// Asks for a resource; the error says what was asked, what came back and what to do.
pub fn ask(socket: &Path, resource: &str) -> Result<Value, String> {
    converse(socket, resource, None, PATIENCE)
}

/// Sends a question that is more than a name, as [`ask`].
pub fn post(socket: &Path, resource: &str, question: &Value, patience: Duration) -> Result<Value, String> {
    converse(socket, resource, Some(question), patience)
}

/// Writes what a resource holds; the errors are those of [`ask`].
pub fn download(socket: &Path, resource: &str, out: &mut impl Write) -> Result<(), String> {
    receive(socket, resource, None, Some(PATIENCE), out).map(|_| ())
}

/// Writes the answer to a question as it comes. Without `patience` its parts may take however long they want, and the user may
/// interrupt it, which is no error. Returns the number of the capture, if it is one; none if nobody reads what is written.
pub fn receive(
    socket: &Path,
    resource: &str,
    question: Option<&Value>,
    patience: Option<Duration>,
    out: &mut impl Write,
) -> Result<Option<u64>, String> {
    let name = socket.display();
    let late = |_| format!("{name}: no answer within {PATIENCE:?}");
    runtime()?.block_on(async {
        let response = timeout(PATIENCE, send(socket, resource, question)).await.map_err(late)??;
        if !response.status().is_success() {
            return understand(socket, response).await.map(|_| None);
        }
        let number = response.headers().get(NUMBER).and_then(|number| number.to_str().ok()?.parse().ok());
        let mut body = response.into_body();
        let interrupted = async {
            match patience {
                None => tokio::signal::ctrl_c().await,
                Some(_) => std::future::pending().await,
            }
        };
        tokio::pin!(interrupted);
        loop {
            let frame = tokio::select! {
                frame = timeout(patience.unwrap_or(Duration::MAX), body.frame()) => frame.map_err(late)?,
                _ = &mut interrupted => break,
            };
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| format!("{name}: the answer broke off: {error}"))?;
            if let Ok(bytes) = frame.into_data() {
                match out.write_all(&bytes).and_then(|()| out.flush()) {
                    // Whoever read it has seen enough.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe && patience.is_none() => return Ok(None),
                    result => result.map_err(|error| format!("cannot write: {error}"))?,
                }
            }
        }
        Ok(number)
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("cannot start a runtime: {error}"))
}

fn converse(socket: &Path, resource: &str, question: Option<&Value>, patience: Duration) -> Result<Value, String> {
    runtime()?.block_on(async {
        let answer = async { understand(socket, send(socket, resource, question).await?).await };
        timeout(patience, answer)
            .await
            .unwrap_or_else(|_| Err(format!("{}: no answer within {patience:?}", socket.display())))
    })
}

async fn send(socket: &Path, resource: &str, question: Option<&Value>) -> Result<Response<Incoming>, String> {
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
    sender.send_request(request).await.map_err(broken)
}

async fn understand(socket: &Path, response: Response<Incoming>) -> Result<Value, String> {
    let (name, status) = (socket.display(), response.status());
    let body = Limited::new(response.into_body(), ANSWER_LIMIT)
        .collect()
        .await
        .map_err(|error| format!("{name}: the answer broke off: {error}"))?
        .to_bytes();
    let value: Value = serde_json::from_slice(&body).map_err(|error| format!("{name}: not JSON: {error}"))?;
    if status.is_success() {
        return Ok(value);
    }
    match value.get("detail").and_then(Value::as_str) {
        Some(message) => Err(message.to_owned()),
        None => Err(format!("{name}: HTTP status {status}")),
    }
}
