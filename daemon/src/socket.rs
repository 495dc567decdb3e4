//! The socket: whose folder it lies in, which daemon owns it, and how it is bound.
//!
//! The rules keep other users out (folder 0700, socket 0600, no symbolic links, own uid) and keep
//! two daemons apart (a lock first; a stale socket goes only while the lock is held). It knows
//! nothing of what is spoken over the socket. Sockets of sandboxed apps are in `socket/app.rs`, one
//! that a service manager hands over comes from `socket/activation.rs`.

#[cfg(unix)]
pub mod activation;
pub(crate) mod app;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use hearth_proto::endpoint::EndpointError;
use interprocess::local_socket::tokio::Listener;
use interprocess::local_socket::{GenericFilePath, ListenerOptions, ToFsName as _};

/// The daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon is there.
    #[error("another hearthd serves {path}{}", describe_pid(*pid))]
    Taken {
        /// The socket.
        path: PathBuf,
        /// Its process, if its lock says so.
        pid: Option<u32>,
    },
    /// The folder is not safe.
    #[error("the socket's folder {path} {problem}")]
    UnsafeFolder {
        /// The folder.
        path: PathBuf,
        /// What is wrong, and the mend.
        problem: String,
    },
    /// Something else lies where the socket should be.
    #[error("{path} is not a socket; it will not be removed")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// What the service manager handed over cannot be served.
    #[error("the socket that the service manager handed over cannot be used: {problem}")]
    HandedOver {
        /// What is wrong.
        problem: String,
    },
    /// The path of an app socket cannot be bound.
    #[error(transparent)]
    Path(#[from] EndpointError),
    /// The system refused.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn describe_pid(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// A socket that is listened on. Dropping it removes the socket, unless it was handed over, then
/// gives up the lock.
pub struct BoundSocket {
    // Fields are dropped in this order: the socket must go while the lock is held.
    listener: Listener,
    lock: Lock,
    path: PathBuf,
    is_activated: bool,
}

/// The lock of a daemon that listens no more. No other can take its place until this is dropped.
pub struct Lock(#[allow(dead_code, reason = "holding it is its use")] Option<File>);

impl BoundSocket {
    /// The listener.
    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the service manager made it and keeps it.
    pub fn is_activated(&self) -> bool {
        self.is_activated
    }

    /// Stops listening and removes the socket if it is our own, but keeps the lock.
    pub fn close(self) -> Lock {
        drop(self.listener);
        self.lock
    }
}

/// Takes the lock beside `path` and listens on `path`. Must be called within a tokio runtime.
///
/// # Errors
/// See [`SocketError`].
pub fn bind(path: &Path) -> Result<BoundSocket, SocketError> {
    #[cfg(unix)]
    let lock = {
        let folder = folder_of(path);
        unix::secure_folder(folder)?;
        let lock = unix::lock(path)?;
        unix::remove_stale(path)?;
        app::remove_stale(folder);
        Some(lock)
    };
    #[cfg(not(unix))]
    let lock = None;
    Ok(BoundSocket {
        listener: listen(path)?,
        lock: Lock(lock),
        path: path.to_owned(),
        is_activated: false,
    })
}

/// Takes the lock beside a socket that was handed over, and accepts on it from now on. The rules for
/// its folder and itself are those of [`bind`]; it is never removed. Must be called within a tokio
/// runtime.
///
/// # Errors
/// See [`SocketError`].
#[cfg(unix)]
pub fn adopt(listener: std::os::unix::net::UnixListener) -> Result<BoundSocket, SocketError> {
    let path = activation::path_of(&listener)?;
    let folder = folder_of(&path);
    unix::secure_folder(folder)?;
    let lock = unix::lock(&path)?;
    unix::confirm_socket(&path)?;
    app::remove_stale(folder);
    let listener = interprocess::os::unix::uds_local_socket::tokio::Listener::try_from(
        std::os::fd::OwnedFd::from(listener),
    );
    let listener = listener.map_err(|source| SocketError::Io {
        what: "accept on",
        path: path.clone(),
        source,
    })?;
    Ok(BoundSocket {
        listener: listener.into(),
        lock: Lock(Some(lock)),
        path,
        is_activated: true,
    })
}

/// Listens on `path` under the same rules, but without a lock: for the further sockets of a daemon
/// that holds one. Dropping the listener removes the socket.
///
/// # Errors
/// See [`SocketError`].
pub(crate) fn listen_beside(path: &Path) -> Result<Listener, SocketError> {
    #[cfg(unix)]
    {
        unix::secure_folder(folder_of(path))?;
        unix::remove_stale(path)?;
    }
    listen(path)
}

/// Listens on a path where nothing lies, for this user alone.
fn listen(path: &Path) -> Result<Listener, SocketError> {
    let failed = |source| SocketError::Io {
        what: "listen on",
        path: path.to_owned(),
        source,
    };
    let name = path.to_fs_name::<GenericFilePath>().map_err(failed)?;
    let options = ListenerOptions::new().name(name).try_overwrite(false);
    #[cfg(unix)]
    let options = {
        use interprocess::os::unix::local_socket::ListenerOptionsExt as _;
        options.mode(0o600)
    };
    let listener = options.create_tokio().map_err(failed)?;
    #[cfg(unix)]
    unix::confirm_socket(path)?;
    Ok(listener)
}

#[cfg(unix)]
fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

#[cfg(unix)]
mod unix {
    use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
    use std::io::{self, Read as _, Seek as _, Write as _};
    use std::os::unix::fs::{
        DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
    };
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use super::SocketError;

    fn failed<'a>(
        what: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> SocketError + use<'a> {
        move |source| SocketError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }

    /// Makes the folder if it is missing, and refuses one that others could meddle with.
    pub(super) fn secure_folder(folder: &Path) -> Result<(), SocketError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        // `create` follows a symbolic link at the end; what counts is what lies there itself.
        let found = folder
            .symlink_metadata()
            .map_err(|error| failed("make the folder", folder)(made.err().unwrap_or(error)))?;
        let refuse = |problem: String| {
            Err(SocketError::UnsafeFolder {
                path: folder.to_owned(),
                problem,
            })
        };
        let own = rustix::process::geteuid().as_raw();
        if found.file_type().is_symlink() {
            return refuse("is a symbolic link; name the real folder".to_owned());
        }
        if !found.is_dir() {
            return refuse("is not a folder".to_owned());
        }
        if found.uid() != own {
            return refuse(format!(
                "belongs to user {}, not to user {own}",
                found.uid()
            ));
        }
        let mode = found.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return refuse(format!("has mode {mode:04o}; mend it with `chmod 700`"));
        }
        Ok(())
    }

    /// Takes the lock and writes our process id into it.
    pub(super) fn lock(socket: &Path) -> Result<File, SocketError> {
        let path = hearth_proto::endpoint::lock_path(socket);
        let no_follow = rustix::fs::OFlags::NOFOLLOW.bits();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(i32::try_from(no_follow).unwrap_or(0))
            .open(&path)
            .map_err(failed("open the lock", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = (&mut file).take(20).read_to_string(&mut text);
                let pid = text.trim().parse().ok();
                return Err(SocketError::Taken {
                    path: socket.to_owned(),
                    pid,
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed("write the lock", &path))?;
        Ok(file)
    }

    /// Removes a socket that nobody listens on. The daemon's lock must be held.
    pub(super) fn remove_stale(path: &Path) -> Result<(), SocketError> {
        let found = match path.symlink_metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("look at", path)(error)),
        };
        if !found.file_type().is_socket() {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        match UnixStream::connect(path) {
            Ok(_) => Err(SocketError::Taken {
                path: path.to_owned(),
                pid: None,
            }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tracing::info!(path = %path.display(), "removing a stale socket");
                std::fs::remove_file(path).map_err(failed("remove the stale socket", path))
            }
            Err(error) => Err(failed("probe", path)(error)),
        }
    }

    /// Checks that what was bound is what callers will find.
    pub(super) fn confirm_socket(path: &Path) -> Result<(), SocketError> {
        let found = path.symlink_metadata().map_err(failed("look at", path))?;
        let own = rustix::process::geteuid().as_raw();
        if !found.file_type().is_socket() || found.uid() != own {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        if found.mode() & 0o7777 != 0o600 {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(path, mode).map_err(failed("set the mode of", path))?;
        }
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests;
