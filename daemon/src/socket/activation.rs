//! A socket that the service manager made, listens on and keeps: systemd (`LISTEN_FDS`) or launchd.
//!
//! Callers wait in its queue while no daemon runs, so an upgrade refuses nobody. Nothing that the
//! environment says is taken on trust: what is handed over is checked as a folder would be.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::SocketError;

/// The socket that the service manager hands over, if it does. Must be called before the process
/// has other threads: it changes the environment.
///
/// # Errors
/// What is handed over is no local socket that listens, has no path, or there is more than one.
pub fn handed_over() -> Result<Option<UnixListener>, SocketError> {
    let found = from_service_manager()?;
    if let Some(listener) = &found {
        path_of(listener)?;
        check_listening(listener)?;
    }
    Ok(found)
}

/// Where a socket that was handed over lies.
pub(super) fn path_of(listener: &UnixListener) -> Result<PathBuf, SocketError> {
    let address = listener.local_addr().map_err(|error| unfit(&error))?;
    match address.as_pathname() {
        Some(path) if path.is_absolute() => Ok(path.to_owned()),
        _ => Err(unfit(&"it has no absolute path")),
    }
}

fn check_listening(listener: &UnixListener) -> Result<(), SocketError> {
    // Apple's systems do not say.
    #[cfg(not(target_vendor = "apple"))]
    match rustix::net::sockopt::socket_acceptconn(listener) {
        Ok(true) => {}
        Ok(false) => return Err(unfit(&"nobody listens on it")),
        Err(error) => return Err(unfit(&error)),
    }
    let _ = listener;
    Ok(())
}

fn unfit(problem: &dyn std::fmt::Display) -> SocketError {
    SocketError::HandedOver {
        problem: problem.to_string(),
    }
}

#[cfg(not(target_os = "macos"))]
fn from_service_manager() -> Result<Option<UnixListener>, SocketError> {
    // Without it, a variable that leaked from elsewhere would be taken for ours.
    if std::env::var_os("LISTEN_PID").is_none() {
        return Ok(None);
    }
    let mut all = listenfd::ListenFd::from_env();
    match all.len() {
        0 => Ok(None),
        1 => all.take_unix_listener(0).map_err(|error| unfit(&error)),
        count => Err(unfit(&format!("there are {count}, and one is wanted"))),
    }
}

/// The name of the socket in the LaunchAgent.
#[cfg(target_os = "macos")]
const LAUNCHD_NAME: &std::ffi::CStr = c"Listeners";

#[cfg(target_os = "macos")]
#[expect(
    unsafe_code,
    reason = "launchd hands sockets over by a C function alone"
)]
fn from_service_manager() -> Result<Option<UnixListener>, SocketError> {
    use std::os::fd::{FromRawFd as _, OwnedFd};

    unsafe extern "C" {
        fn launch_activate_socket(
            name: *const libc::c_char,
            fds: *mut *mut libc::c_int,
            count: *mut libc::size_t,
        ) -> libc::c_int;
    }
    let (mut fds, mut count) = (std::ptr::null_mut(), 0);
    // SAFETY: the name is a C string, and the two places are valid for writing. On success they
    // hold an array from malloc and its length.
    let failed = unsafe { launch_activate_socket(LAUNCHD_NAME.as_ptr(), &mut fds, &mut count) };
    match failed {
        0 => {}
        // Not started by launchd, or by a job without this socket.
        libc::ESRCH | libc::ENOENT => return Ok(None),
        other => return Err(unfit(&std::io::Error::from_raw_os_error(other))),
    }
    if fds.is_null() {
        return Ok(None);
    }
    // SAFETY: the call succeeded, so `fds` points to `count` descriptors. Each is open and was given
    // to this process alone; it is turned into its owner once. The array is freed once, after that.
    let mut owned: Vec<OwnedFd> = unsafe {
        let array = std::slice::from_raw_parts(fds, count);
        let owned = array.iter().map(|fd| OwnedFd::from_raw_fd(*fd)).collect();
        libc::free(fds.cast());
        owned
    };
    match (owned.pop(), owned.len()) {
        (None, _) => Ok(None),
        (Some(fd), 0) => Ok(Some(UnixListener::from(fd))),
        (Some(_), more) => Err(unfit(&format!("there are {}, and one is wanted", more + 1))),
    }
}
