//! Where the API answers: the control socket and, if configured, TCP with TLS; and how much any client may take.
//!
//! Everything a client can make grow has an end: connections, in all and of one peer; the time for a handshake, a head, a
//! body; the size of each; the time an answer may lie unfetched. What a resource may do is the `gate`'s.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tower_service::Service;

use super::access::{Access, Caller, fingerprint};
use super::gate::Gate;
use super::pace::Paced;
use super::{api, tls};
use crate::config::api::Api;

/// Bytes of a request's head, at most.
const HEAD: usize = 32 << 10;
/// Headers of a request, at most.
const HEADERS: usize = 100;
/// Clients that wait to be accepted.
const BACKLOG: i32 = 128;

/// The API's addresses, bound, with what is needed to answer there.
pub struct Doors {
    config: Api,
    listeners: Vec<(SocketAddr, TcpListener)>,
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
    gate: Arc<Gate>,
    seen: Mutex<Vec<Option<Stamp>>>,
}

/// By what a changed file is known.
type Stamp = (SystemTime, u64, u64);

impl Doors {
    /// Binds what `[api]` lists; the error is for the operator.
    pub fn open(config: &Api) -> Result<Doors, String> {
        let listens = !config.listen.is_empty();
        let access = if listens { access(config)? } else { Access::default() };
        let secured = listens && config.tls;
        let tls = secured.then(|| tls::server(config)).transpose()?.map(|tls| Arc::new(ArcSwap::from_pointee(tls)));
        let mut listeners = Vec::new();
        for address in &config.listen {
            let listener = bind(address.value).map_err(|error| {
                format!("{}: api.listen: cannot listen on {}: {error}", address.place, address.value)
            })?;
            listeners.push((address.value, listener));
        }
        let (_, document) = api::declared();
        let gate = Arc::new(Gate::new(config, access, &document));
        let doors = Doors { config: config.clone(), listeners, tls, gate, seen: Mutex::default() };
        *doors.seen() = doors.stamps();
        Ok(doors)
    }

    /// What stands before every resource.
    pub fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    /// Where it listens.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().map(|(address, _)| *address)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Vec<Option<Stamp>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stamps(&self) -> Vec<Option<Stamp>> {
        use std::os::unix::fs::MetadataExt;
        let config = &self.config;
        let files = [&config.certificate, &config.key, &config.client_ca, &config.tokens].into_iter().flatten();
        let stamp = |file: &String| {
            let found = std::fs::metadata(file).ok()?;
            Some((found.modified().ok()?, found.len(), found.ino()))
        };
        files.map(stamp).collect()
    }

    /// Takes over certificates and callers if their files changed since: nothing if they did not. What is wrong with them
    /// leaves everything as it was.
    pub fn follow(&self) -> Option<Result<(), String>> {
        if self.listeners.is_empty() {
            return None;
        }
        let now = self.stamps();
        let mut seen = self.seen();
        if *seen == now {
            return None;
        }
        *seen = now;
        Some(self.reload())
    }

    fn reload(&self) -> Result<(), String> {
        let access = access(&self.config)?;
        if let Some(tls) = &self.tls {
            tls.store(Arc::new(tls::server(&self.config)?));
        }
        self.gate.admit(access);
        Ok(())
    }

    /// Answers on all addresses and on the control socket, until `stop` changes. Returns at once.
    pub fn answer(&self, unix: UnixListener, router: &Router, stop: &watch::Receiver<()>) -> io::Result<()> {
        let limits = Limits {
            header: self.config.header_timeout,
            write: self.config.write_timeout,
            router: router.clone(),
            stop: stop.clone(),
        };
        let most = self.config.max_connections.0 as usize;
        tokio::spawn(admit_local(unix, Arc::new(Room::new(most, most)), limits.clone()));
        let room = Arc::new(Room::new(most, self.config.max_connections_per_peer.0 as usize));
        for (_, listener) in &self.listeners {
            let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
            tokio::spawn(admit_distant(listener, room.clone(), limits.clone(), self.tls.clone()));
        }
        Ok(())
    }
}

fn access(config: &Api) -> Result<Access, String> {
    Access::read(config.tokens.as_deref(), config.client_ca.as_ref().map(|_| config.client_role))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(socket.as_fd(), true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(socket.as_fd(), true)?;
    }
    rustix::net::bind(socket.as_fd(), &address)?;
    rustix::net::listen(socket.as_fd(), BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Places for connections: so many in all, so many for each peer.
struct Room {
    all: usize,
    each: usize,
    taken: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// A place; it is free again when dropped.
struct Place(Arc<Room>, IpAddr);

impl Room {
    fn new(all: usize, each: usize) -> Room {
        Room { all, each, taken: Mutex::default() }
    }

    fn enter(self: &Arc<Room>, from: IpAddr) -> Option<Place> {
        let peer = match from {
            IpAddr::V4(_) => from,
            // One host has a whole /64.
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, of) = (taken.0, taken.1.get(&peer).copied().unwrap_or(0));
        if all >= self.all || of >= self.each {
            return None;
        }
        taken.0 += 1;
        taken.1.insert(peer, of + 1);
        Some(Place(self.clone(), peer))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.0 -= 1;
        match taken.1.get_mut(&self.1) {
            Some(of) if *of > 1 => *of -= 1,
            _ => drop(taken.1.remove(&self.1)),
        }
    }
}

#[derive(Clone)]
struct Limits {
    header: Duration,
    write: Duration,
    router: Router,
    stop: watch::Receiver<()>,
}

/// After an error such as too many open files, which trying again at once would only repeat.
const PAUSE: Duration = Duration::from_millis(100);

async fn admit_local(listener: UnixListener, room: Arc<Room>, limits: Limits) {
    let mut stop = limits.stop.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let Some(place) = room.enter(Ipv4Addr::UNSPECIFIED.into()) else { continue };
                let limits = limits.clone();
                tokio::spawn(async move {
                    let stream = Paced::new(stream, limits.write);
                    converse(stream, Caller::Socket, limits).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn admit_distant(
    listener: tokio::net::TcpListener,
    room: Arc<Room>,
    limits: Limits,
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
) {
    let mut stop = limits.stop.clone();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                let Some(place) = room.enter(from.ip()) else { continue };
                // Answers are written whole: waiting to join them only delays.
                let _ = stream.set_nodelay(true);
                let (limits, tls) = (limits.clone(), tls.as_ref().map(|tls| tls.load_full()));
                tokio::spawn(async move {
                    let stream = Paced::new(stream, limits.write);
                    match tls {
                        None => converse(stream, Caller::Remote(None), limits).await,
                        Some(tls) => shake(stream, tls, limits).await,
                    }
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn shake(stream: Paced<tokio::net::TcpStream>, tls: Arc<ServerConfig>, limits: Limits) {
    // A client that does not get through is told by TLS.
    let Ok(Ok(stream)) = tokio::time::timeout(limits.header, TlsAcceptor::from(tls).accept(stream)).await else {
        return;
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let caller = Caller::Remote(shown.map(|certificate| fingerprint(certificate)));
    converse(stream, caller, limits).await;
}

/// Answers on one connection to its end.
async fn converse<I>(stream: I, caller: Caller, limits: Limits)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Limits { header, router, mut stop, .. } = limits;
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        // A router is always ready.
        let answer = router.clone().call(request.map(Body::new));
        async move { Ok::<Response<Body>, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header)
        .max_headers(HEADERS)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // What breaks off is the client's affair.
    tokio::select! {
        _ = connection.as_mut() => {}
        _ = stop.changed() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_peer_and_in_all() {
        let room = Arc::new(Room::new(4, 2));
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let mut held = vec![
            room.enter(address("2001:db8::1")).expect("free"),
            room.enter(address("2001:db8::2")).expect("free"),
            room.enter(address("2001:db8:0:1::1")).expect("another /64"),
        ];
        assert!(room.enter(address("2001:db8::3")).is_none(), "the third of a /64");
        held.push(room.enter(address("192.0.2.1")).expect("free"));
        assert!(room.enter(address("192.0.2.2")).is_none(), "full");
        held.remove(0);
        assert!(room.enter(address("2001:db8::3")).is_some());
        held.clear();
        let taken = room.taken.lock().expect("not poisoned");
        assert_eq!((taken.0, taken.1.len()), (0, 0));
    }
}
