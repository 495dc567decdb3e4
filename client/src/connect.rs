//! The way to the daemon: a channel over the local socket, and what it means when there is none.
//! It does not start anything.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_proto::endpoint;
use hyper_util::rt::TokioIo;
use interprocess::local_socket::GenericFilePath;
use interprocess::local_socket::tokio::{Stream, prelude::*};
use tonic::transport::{Channel, Endpoint};

use crate::Error;

/// Longest time for opening the socket. A local socket answers at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a channel to the daemon on this socket. The channel connects anew by itself later on.
///
/// # Errors
/// [`Error::NotRunning`], [`Error::Refused`] or [`Error::Denied`], told apart by what the system
/// says and by the daemon's lock file.
pub(crate) async fn channel(socket: &Path) -> Result<Channel, Error> {
    let stream = open(socket)
        .await
        .map_err(|source| diagnose(socket, source))?;
    // The open stream is the first connection; errors of connecting keep their meaning this way.
    let first = Arc::new(Mutex::new(Some(stream)));
    let path: PathBuf = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let path = path.clone();
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => open(&path).await?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    // The address is never resolved; HTTP/2 wants an authority.
    Endpoint::from_static("http://hearth")
        .connect_with_connector(connector)
        .await
        .map_err(|error| Error::Refused {
            socket: socket.to_owned(),
            pid: daemon_pid(socket),
            source: io::Error::other(error),
        })
}

/// Opens the socket once.
///
/// # Errors
/// What the system says.
pub(crate) async fn open(socket: &Path) -> io::Result<Stream> {
    let name = socket.to_fs_name::<GenericFilePath>()?;
    tokio::time::timeout(CONNECT_TIMEOUT, Stream::connect(name))
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
}

/// What a failure to connect means.
fn diagnose(socket: &Path, source: io::Error) -> Error {
    let socket = socket.to_owned();
    match source.kind() {
        io::ErrorKind::PermissionDenied => Error::Denied { socket, source },
        kind => match daemon_pid(&socket) {
            Some(pid) => Error::Refused {
                socket,
                pid: Some(pid),
                source,
            },
            None if matches!(
                kind,
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
            {
                Error::NotRunning { socket }
            }
            None => Error::Refused {
                socket,
                pid: None,
                source,
            },
        },
    }
}

/// The process id of the daemon that holds this socket's lock, if that process lives.
///
/// The lock itself is not tried: for a moment that would keep a daemon that just starts from
/// taking it.
pub(crate) fn daemon_pid(socket: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(endpoint::lock_path(socket)).ok()?;
    let pid: u32 = text.split_whitespace().next()?.parse().ok()?;
    process_is_daemon(pid).then_some(pid)
}

#[cfg(target_os = "linux")]
fn process_is_daemon(pid: u32) -> bool {
    // The number may have gone to another process since; its name tells.
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "hearthd")
}

#[cfg(all(unix, not(target_os = "linux")))]
fn process_is_daemon(pid: u32) -> bool {
    i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

#[cfg(not(unix))]
fn process_is_daemon(_pid: u32) -> bool {
    // A named pipe has no lock file beside it.
    false
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    async fn failure(socket: &Path) -> Error {
        match channel(socket).await {
            Ok(_) => panic!("connected to {}", socket.display()),
            Err(error) => error,
        }
    }

    #[tokio::test]
    async fn no_socket_is_not_running() {
        let dir = tempfile::tempdir().unwrap();
        let error = failure(&dir.path().join("hearthd.sock")).await;
        assert!(matches!(error, Error::NotRunning { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_stale_socket_is_not_running() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("hearthd.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        // Our own process id: alive, but no daemon.
        std::fs::write(
            dir.path().join("hearthd.lock"),
            std::process::id().to_string(),
        )
        .unwrap();
        let error = failure(&socket).await;
        if cfg!(target_os = "linux") {
            assert!(matches!(error, Error::NotRunning { .. }), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_lock_file_of_rubbish_names_nobody() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "x", "-1", "99999999999999999999", "4294967295"] {
            std::fs::write(dir.path().join("hearthd.lock"), text).unwrap();
            assert_eq!(daemon_pid(&dir.path().join("hearthd.sock")), None, "{text}");
        }
    }
}
