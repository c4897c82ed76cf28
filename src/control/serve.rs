//! The control loop of a running appliance: answers on the Unix socket, follows links, shares out limits, waits for signals.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use nix::unistd::Group;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::apply::Keeper;
use super::listen::Doors;
use super::{Live, api};

/// How often links are looked at and limits shared out.
const TICK: Duration = Duration::from_millis(100);
/// How many ticks go by between looking for changed certificates and callers.
const FILES: u32 = 20;
/// How long answers may still take when all ends.
const GRACE: Duration = Duration::from_millis(300);

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
    /// Members of `group` may use it, or else only the process's own user.
    pub fn bind(path: &Path, group: Option<&str>) -> Result<Socket, String> {
        let name = path.display();
        let group = group.map(gid).transpose()?;
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
        // It is nobody else's from the first moment.
        let former = umask(Mode::from_bits_truncate(0o177));
        let bound = std::os::unix::net::UnixListener::bind(path);
        umask(former);
        let listener = bound
            .map_err(|error| format!("{name}: cannot make the control socket: {error}; does its folder exist?"))?;
        let prepare = || -> io::Result<()> {
            if group.is_some() {
                std::os::unix::fs::chown(path, None, group)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
            }
            listener.set_nonblocking(true)
        };
        prepare().map_err(|error| format!("{name}: {error}"))?;
        Ok(Socket { path: path.to_owned(), listener })
    }
}

fn gid(group: &str) -> Result<u32, String> {
    match Group::from_name(group) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(format!("control.socket_group: there is no group {group:?}; make it with groupadd")),
        Err(error) => Err(format!("control.socket_group: {error}")),
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Gone already if somebody removed it: nothing to do about that.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Runs until a signal comes or a thread is gone. `ready` is called once the socket and the API's doors answer, `tick` every
/// 100 ms, which says which thread is gone if one is, `log` with what the operator should know.
pub fn serve(
    socket: &Socket,
    doors: &Doors,
    live: &Live,
    keeper: &Keeper,
    ready: impl FnOnce(),
    tick: impl Fn() -> Option<String>,
    log: impl Fn(&str),
) -> Result<End, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Those that answer here, those that answer over the network, and those that apply.
        .max_blocking_threads(2 * api::BUSY + 4)
        .build()
        .map_err(|error| format!("cannot start the control loop: {error}"))?;
    let result = runtime.block_on(async {
        let failed = |error: io::Error| format!("control loop: {error}");
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
        let listener = socket.listener.try_clone().and_then(UnixListener::from_std).map_err(failed)?;
        let (stop, stopped) = tokio::sync::watch::channel(());
        doors.answer(listener, &api::router(live.clone(), doors.gate()), &stopped).map_err(failed)?;
        drop(stopped);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ready();
        let mut files = 0;
        let end = loop {
            tokio::select! {
                _ = interrupt.recv() => break Ok(End::Signal),
                _ = terminate.recv() => break Ok(End::Signal),
                _ = hangup.recv() => keeper.reread(),
                _ = ticks.tick() => {
                    let running = live.now();
                    for (port, up) in running.follow_links() {
                        let state = running.ports[port].state();
                        log(&format!("port {}: link {}", state.name, if up { "up" } else { "down" }));
                    }
                    files += 1;
                    if files % FILES == 0 {
                        match doors.follow() {
                            Some(Ok(())) => log("api: certificates and callers are read again"),
                            Some(Err(wrong)) => log(&format!("api: what was read before stays: {wrong}")),
                            None => {}
                        }
                    }
                    running.blueprint.balance(&running.sheets());
                    if let Some(thread) = tick() {
                        break Ok(End::Gone(thread));
                    }
                }
            }
        };
        // Who is being answered gets the answer, if it does not take long.
        stop.send_replace(());
        let _ = timeout(GRACE, stop.closed()).await;
        end
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
        let first = Socket::bind(&path, None).expect("free");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert!(Socket::bind(&path, None).err().expect("taken").contains("another flowgate answers"));
        drop(first);
        let unknown = Socket::bind(&path, Some("no-such-group")).err().expect("no group");
        assert!(unknown.contains("there is no group"), "{unknown}");
        let own = Group::from_gid(nix::unistd::getegid()).expect("readable").expect("a name");
        let shared = Socket::bind(&path, Some(&own.name)).expect("its own group");
        assert_eq!(mode(&path), 0o660);
        drop(shared);
        // What a crash leaves: the file, and nobody behind it.
        let stale = folder.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).expect("free"));
        assert!(stale.exists());
        drop(Socket::bind(&stale, None).expect("stale"));
        assert!(!stale.exists(), "removed with the socket");
        std::fs::write(folder.path().join("file"), "").expect("writable");
        assert!(Socket::bind(&folder.path().join("file"), None).err().expect("refused").contains("is not a socket"));
    }
}
