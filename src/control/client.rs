//! Asking a running flowgate: over its control socket, or over the network.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Response, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::tls;

use super::capture::NUMBER;

/// The most an answer may hold, in bytes.
const ANSWER_LIMIT: usize = 64 << 20;
/// The roots a system trusts, where Debian, and where Red Hat keeps them.
const ROOTS: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer may take for which workers look through their flows.
pub const LONG: Duration = Duration::from_secs(120);

/// Where the running process is asked.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Which flowgate")]
pub struct Server {
    /// The running process's control socket.
    #[arg(long, default_value = crate::config::DEFAULT_SOCKET, conflicts_with = "url")]
    socket: PathBuf,
    /// Ask over the network instead: https://HOST:PORT.
    #[arg(long)]
    url: Option<String>,
    /// File with the token to show.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the roots to trust; the system's if not given.
    #[arg(long, value_name = "FILE")]
    cacert: Option<String>,
    /// PEM file with the certificate to show.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<String>,
    /// PEM file with its key.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<String>,
}

impl From<&PathBuf> for Server {
    fn from(socket: &PathBuf) -> Server {
        Server::from(socket.as_path())
    }
}

impl From<&Path> for Server {
    fn from(socket: &Path) -> Server {
        Server { socket: socket.to_owned(), url: None, token_file: None, cacert: None, cert: None, key: None }
    }
}

impl From<&Server> for Server {
    fn from(server: &Server) -> Server {
        server.clone()
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.url {
            Some(url) => f.write_str(url),
            None => self.socket.display().fmt(f),
        }
    }
}

/// Asks for a resource; the error says what was asked, what came back and what to do.
pub fn ask(server: impl Into<Server>, resource: &str) -> Result<Value, String> {
    converse(&server.into(), resource, None, PATIENCE)
}

/// Sends a question that is more than a name, as [`ask`].
pub fn post(server: impl Into<Server>, resource: &str, question: &Value, patience: Duration) -> Result<Value, String> {
    converse(&server.into(), resource, Some(question), patience)
}

/// Writes what a resource holds; the errors are those of [`ask`].
pub fn download(server: impl Into<Server>, resource: &str, out: &mut impl Write) -> Result<(), String> {
    receive(server, resource, None, Some(PATIENCE), out).map(|_| ())
}

/// Writes the answer to a question as it comes. Without `patience` its parts may take however long they want, and the user may
/// interrupt it, which is no error. Returns the number of the capture, if it is one; none if nobody reads what is written.
pub fn receive(
    server: impl Into<Server>,
    resource: &str,
    question: Option<&Value>,
    patience: Option<Duration>,
    out: &mut impl Write,
) -> Result<Option<u64>, String> {
    let server = server.into();
    let late = |_| format!("{server}: no answer within {PATIENCE:?}");
    runtime()?.block_on(async {
        let response = timeout(PATIENCE, send(&server, resource, question)).await.map_err(late)??;
        if !response.status().is_success() {
            return understand(&server, response).await.map(|_| None);
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
            let frame = frame.map_err(|error| format!("{server}: the answer broke off: {error}"))?;
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

fn converse(server: &Server, resource: &str, question: Option<&Value>, patience: Duration) -> Result<Value, String> {
    runtime()?.block_on(async {
        let answer = async { understand(server, send(server, resource, question).await?).await };
        timeout(patience, answer).await.unwrap_or_else(|_| Err(format!("{server}: no answer within {patience:?}")))
    })
}

type Sender = SendRequest<Full<Bytes>>;

impl Server {
    /// Connects; with the name by which the other end is addressed.
    async fn connect(&self) -> Result<(Sender, String), String> {
        let Some(url) = &self.url else {
            let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
                format!(
                    "cannot ask {self}: {error}; is flowgate running, and is this its control.socket (--socket PATH)?"
                )
            })?;
            return Ok((self.shake(stream).await?, "flowgate".into()));
        };
        let wrong = || format!("--url {url}: expected https://HOST:PORT");
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong());
        };
        if uri.path().len() > 1 || uri.query().is_some() {
            return Err(wrong());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await.map_err(|error| {
            format!("cannot ask {self}: {error}; does flowgate run there, and listen on this address ([api] listen)?")
        })?;
        let sender = if scheme == "http" {
            let local = stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
            if self.token_file.is_some() && !local {
                return Err(format!("cannot ask {self}: plain HTTP would show the token to the network; use https"));
            }
            self.shake(stream).await?
        } else {
            let roots = || ROOTS.into_iter().find(|file| Path::new(file).exists());
            let trusted = self.cacert.as_deref().or_else(roots).ok_or("no roots to trust: give --cacert FILE")?;
            let config = tls::client(trusted, self.cert.as_deref().zip(self.key.as_deref()))?;
            let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
            let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
                format!("cannot ask {self}: {error}; --cacert FILE says whose certificates are trusted")
            })?;
            self.shake(stream).await?
        };
        Ok((sender, authority.as_str().to_owned()))
    }

    async fn shake<I>(&self, stream: I) -> Result<Sender, String>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let broken = |error: hyper::Error| format!("{self}: the connection broke: {error}");
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn token(&self) -> Result<Option<String>, String> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Some(text.trim().to_owned()))
    }
}

async fn send(server: &Server, resource: &str, question: Option<&Value>) -> Result<Response<Incoming>, String> {
    let token = server.token()?;
    let (mut sender, host) = server.connect().await?;
    let method = if question.is_some() { hyper::Method::POST } else { hyper::Method::GET };
    let mut request = hyper::Request::builder()
        .method(method)
        .uri(resource)
        .header(hyper::header::HOST, host)
        .header(hyper::header::CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(hyper::header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request
        .body(Full::<Bytes>::from(question.map_or(Bytes::new(), |question| question.to_string().into())))
        .map_err(|error| format!("{resource}: {error}"))?;
    sender.send_request(request).await.map_err(|error| {
        // TLS 1.3: a server that refuses the client's certificate says so after the handshake.
        let why = std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
        format!("{server}: the connection broke: {error}{why}")
    })
}

async fn understand(server: &Server, response: Response<Incoming>) -> Result<Value, String> {
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_LIMIT)
        .collect()
        .await
        .map_err(|error| format!("{server}: the answer broke off: {error}"))?
        .to_bytes();
    let value: Value = serde_json::from_slice(&body).map_err(|error| match status.is_success() {
        true => format!("{server}: not JSON: {error}"),
        false => format!("{server}: HTTP status {status}"),
    })?;
    if status.is_success() {
        return Ok(value);
    }
    match value.get("detail").and_then(Value::as_str) {
        Some(message) => Err(message.to_owned()),
        None => Err(format!("{server}: HTTP status {status}")),
    }
}
