//! Sockets of sandboxed apps, beside the main one: `apps/` and 16 hexadecimal digits, each folder
//! with one socket. A launcher shows such a folder to a sandbox.
//!
//! The digits only keep the folders apart; what keeps others out is the main socket's folder, 0700.
//! Nothing here follows a symbolic link, and only what this file made is removed. What is spoken
//! over the sockets, and to whom they belong, is not known here.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use hearth_proto::endpoint::{self, SOCKET_NAME};
use interprocess::local_socket::tokio::Listener;

use super::{SocketError, listen};

/// The folder of all app sockets, in the folder of the main socket.
const APPS: &str = "apps";
/// Hexadecimal digits in the name of a socket's folder.
const NAME_DIGITS: usize = 16;
/// Tries to find a name that is not taken. One is enough but for a miracle.
const NAME_TRIES: usize = 8;

/// A socket for one app. Dropping it removes the socket, then its folder.
#[derive(Debug)]
pub(crate) struct AppListener {
    // Fields are dropped in this order.
    listener: Listener,
    _folder: Folder,
    path: PathBuf,
}

impl AppListener {
    /// The listener.
    pub(crate) fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A folder of our own that goes when this is dropped, if nobody left anything in it.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "an app socket's folder stays");
        }
    }
}

/// Listens on a new socket beneath `main`, the folder of the main socket, which is safe already.
/// Must be called within a tokio runtime.
///
/// # Errors
/// See [`SocketError`]; where sockets are no files, always.
pub(crate) fn bind(main: &Path) -> Result<AppListener, SocketError> {
    let apps = main.join(APPS);
    for _ in 0..NAME_TRIES {
        let folder = apps.join(new_name());
        let path = endpoint::check_socket_path(folder.join(SOCKET_NAME))?;
        if !make_folder(&apps, &folder)? {
            continue;
        }
        let folder = Folder(folder);
        return Ok(AppListener {
            listener: listen(&path)?,
            _folder: folder,
            path,
        });
    }
    Err(SocketError::Io {
        what: "find a free name in",
        path: apps,
        source: io::ErrorKind::AlreadyExists.into(),
    })
}

/// Names need not be secret, only different: a hash with fresh keys will do.
fn new_name() -> String {
    let number = RandomState::new().hash_one(std::process::id());
    format!("{number:0NAME_DIGITS$x}")
}

/// Makes a private folder; false if its name is taken.
#[cfg(unix)]
fn make_folder(apps: &Path, folder: &Path) -> Result<bool, SocketError> {
    use std::os::unix::fs::DirBuilderExt as _;
    super::unix::secure_folder(apps)?;
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(SocketError::Io {
            what: "make the folder",
            path: folder.to_owned(),
            source,
        }),
    }
}

#[cfg(not(unix))]
fn make_folder(_apps: &Path, folder: &Path) -> Result<bool, SocketError> {
    Err(SocketError::Io {
        what: "make a socket in",
        path: folder.to_owned(),
        source: io::ErrorKind::Unsupported.into(),
    })
}

/// Removes what a dead daemon left beneath `main`. The lock must be held.
#[cfg(unix)]
pub(super) fn remove_stale(main: &Path) {
    use std::os::unix::fs::FileTypeExt as _;
    let apps = main.join(APPS);
    if !is_own_folder(&apps) {
        return;
    }
    let entries = std::fs::read_dir(&apps).into_iter().flatten().flatten();
    for folder in entries.map(|entry| entry.path()) {
        if !has_our_name(&folder) || !is_own_folder(&folder) {
            continue;
        }
        let socket = folder.join(SOCKET_NAME);
        if socket
            .symlink_metadata()
            .is_ok_and(|found| found.file_type().is_socket())
        {
            tracing::info!(path = %socket.display(), "removing a stale app socket");
            let _ = std::fs::remove_file(&socket);
        }
        // Fails if anything else lies there, which is left alone.
        drop(Folder(folder));
    }
    let _ = std::fs::remove_dir(&apps);
}

#[cfg(unix)]
fn has_our_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| {
        name.len() == NAME_DIGITS
            && name
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Whether a folder of this user, and no link to one, lies there.
#[cfg(unix)]
fn is_own_folder(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let own = rustix::process::geteuid().as_raw();
    path.symlink_metadata()
        .is_ok_and(|found| found.is_dir() && found.uid() == own)
}

/// Removes the folder of all app sockets if none is left. The lock must be held.
pub(crate) fn remove_folder(main: &Path) {
    let _ = std::fs::remove_dir(main.join(APPS));
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn main_folder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("run");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&main)
            .unwrap();
        (dir, main)
    }

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().mode() & 0o7777
    }

    #[tokio::test]
    async fn a_socket_lies_alone_and_private_and_goes_without_a_trace() {
        let (_dir, main) = main_folder();
        let first = bind(&main).unwrap();
        let second = bind(&main).unwrap();
        assert_ne!(first.path(), second.path());
        let folder = first.path().parent().unwrap().to_owned();
        assert!(has_our_name(&folder), "{folder:?}");
        assert_eq!(folder.parent().unwrap(), main.join("apps"));
        assert_eq!(mode(first.path()), 0o600);
        assert_eq!((mode(&folder), mode(&main.join("apps"))), (0o700, 0o700));
        assert_eq!(folder.read_dir().unwrap().count(), 1);
        drop(first);
        assert!(!folder.exists());
        assert!(second.path().exists());
        remove_folder(&main);
        assert!(second.path().exists(), "the folder is still needed");
        drop(second);
        remove_folder(&main);
        assert_eq!(main.read_dir().unwrap().count(), 0);
    }

    #[tokio::test]
    async fn links_and_open_folders_in_the_way_are_refused() {
        let (dir, main) = main_folder();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&elsewhere)
            .unwrap();
        symlink(&elsewhere, main.join("apps")).unwrap();
        let error = bind(&main).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
        assert_eq!(elsewhere.read_dir().unwrap().count(), 0);
        std::fs::remove_file(main.join("apps")).unwrap();
        std::fs::create_dir(main.join("apps")).unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(main.join("apps"), open).unwrap();
        let error = bind(&main).unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_told_before_anything_is_made() {
        let (_dir, main) = main_folder();
        // The path of an app socket is 35 bytes longer than that of the folder.
        let rest = 104 - 35 - main.as_os_str().len() - 1;
        let deep = main.join("x".repeat(rest));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&deep)
            .unwrap();
        let error = bind(&deep).unwrap_err().to_string();
        assert!(error.contains("104 bytes; at most 103"), "{error}");
        assert_eq!(deep.read_dir().unwrap().count(), 0);
        let shorter = main.join("x".repeat(rest - 1));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&shorter)
            .unwrap();
        assert_eq!(bind(&shorter).unwrap().path().as_os_str().len(), 103);
    }

    #[tokio::test]
    async fn only_what_a_dead_daemon_left_is_removed() {
        let (dir, main) = main_folder();
        let apps = main.join("apps");
        let folder = |name: &str| {
            let folder = apps.join(name);
            std::fs::create_dir_all(&folder).unwrap();
            folder
        };
        let stale = folder("00000000deadbeef");
        drop(UnixListener::bind(stale.join(SOCKET_NAME)).unwrap());
        let empty = folder("0000000000000000");
        let with_file = folder("0000000000000001");
        drop(UnixListener::bind(with_file.join(SOCKET_NAME)).unwrap());
        std::fs::write(with_file.join("precious"), "x").unwrap();
        let no_socket = folder("0000000000000002");
        std::fs::write(no_socket.join(SOCKET_NAME), "x").unwrap();
        let foreign_names = ["00000000DEADBEEF", "0000000000000", "notes"].map(folder);
        for folder in &foreign_names {
            drop(UnixListener::bind(folder.join(SOCKET_NAME)).unwrap());
        }
        // Links to a folder, and to a socket, that look like ours.
        let elsewhere = dir.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        drop(UnixListener::bind(elsewhere.join(SOCKET_NAME)).unwrap());
        symlink(&elsewhere, apps.join("0000000000000003")).unwrap();
        let linked = folder("0000000000000004");
        symlink(elsewhere.join(SOCKET_NAME), linked.join(SOCKET_NAME)).unwrap();

        remove_stale(&main);
        assert!(!stale.exists() && !empty.exists());
        assert!(with_file.join("precious").exists() && !with_file.join(SOCKET_NAME).exists());
        assert!(no_socket.join(SOCKET_NAME).exists());
        assert!(foreign_names.iter().all(|f| f.join(SOCKET_NAME).exists()));
        assert!(elsewhere.join(SOCKET_NAME).exists());
        assert!(linked.join(SOCKET_NAME).is_symlink());

        // A link in the place of the whole folder is not followed either.
        std::fs::rename(&apps, dir.path().join("moved")).unwrap();
        let left = dir.path().join("moved/00000000000000ff");
        std::fs::create_dir(&left).unwrap();
        symlink(dir.path().join("moved"), &apps).unwrap();
        remove_stale(&main);
        assert!(left.exists() && apps.is_symlink());
    }
}
