//! The control loop of a running appliance: answers on the Unix socket, follows links, shares out limits, waits for signals.

use std::future::IntoFuture;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::apply::Keeper;
use super::{Live, api};

/// How often links are looked at and limits shared out.
const TICK: Duration = Duration::from_millis(100);

/// Why the loop ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// SIGINT or SIGTERM.
    Signal,
    /// A thread is gone, the one of this name.
    Gone(String),
}

/// The control socket. Its file goes with it.
pub struct Socket {
    path: PathBuf,
    listener: std::os::unix::net::UnixListener,
}

impl Socket {
    /// Binds the socket. A file that a crashed process left is replaced; one on which somebody answers is not. The error is
    /// for the operator.
    pub fn bind(path: &Path) -> Result<Socket, String> {
        let name = path.display();
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(format!(
                "{name}: another flowgate answers here; give this one its own [control] socket, or stop the other"
            ));
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                return Err(format!("{name}: is not a socket; set [control] socket to another path"));
            }
            Ok(_) => std::fs::remove_file(path).map_err(|error| format!("{name}: cannot replace it: {error}"))?,
            Err(_) => {}
        }
        let listener = std::os::unix::net::UnixListener::bind(path)
            .map_err(|error| format!("{name}: cannot make the control socket: {error}; does its folder exist?"))?;
        let prepare = || -> io::Result<()> {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
            listener.set_nonblocking(true)
        };
        prepare().map_err(|error| format!("{name}: {error}"))?;
        Ok(Socket { path: path.to_owned(), listener })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Gone already if somebody removed it: nothing to do about that.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Runs until a signal comes or a thread is gone. `ready` is called once the socket answers, `tick` every 100 ms, which says
/// which thread is gone if one is, `log` with what the operator should know.
pub fn serve(
    socket: &Socket,
    live: &Live,
    keeper: &Keeper,
    ready: impl FnOnce(),
    tick: impl Fn() -> Option<String>,
    log: impl Fn(&str),
) -> Result<End, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .map_err(|error| format!("cannot start the control loop: {error}"))?;
    let result = runtime.block_on(async {
        let failed = |error: io::Error| format!("control loop: {error}");
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
        let listener = socket.listener.try_clone().and_then(UnixListener::from_std).map_err(failed)?;
        let server = axum::serve(listener, api::router(live.clone())).into_future();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(server);
        ready();
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(End::Signal),
                _ = terminate.recv() => return Ok(End::Signal),
                _ = hangup.recv() => keeper.reread(),
                ended = &mut server => return Err(format!("the control socket failed: {ended:?}")),
                _ = ticks.tick() => {
                    let running = live.now();
                    for (port, up) in running.follow_links() {
                        let state = running.ports[port].state();
                        log(&format!("port {}: link {}", state.name, if up { "up" } else { "down" }));
                    }
                    running.blueprint.balance(&running.sheets());
                    if let Some(thread) = tick() {
                        return Ok(End::Gone(thread));
                    }
                }
            }
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_taken_once_and_replaced_when_stale() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("fg.sock");
        let first = Socket::bind(&path).expect("free");
        assert!(Socket::bind(&path).err().expect("taken").contains("another flowgate answers"));
        drop(first);
        // What a crash leaves: the file, and nobody behind it.
        let stale = folder.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).expect("free"));
        assert!(stale.exists());
        drop(Socket::bind(&stale).expect("stale"));
        assert!(!stale.exists(), "removed with the socket");
        std::fs::write(folder.path().join("file"), "").expect("writable");
        assert!(Socket::bind(&folder.path().join("file")).err().expect("refused").contains("is not a socket"));
    }
}
