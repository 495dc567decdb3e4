//! Tests of the socket: folders, locks, stale sockets, sockets that are handed over.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;

use super::*;

fn folder(mode: u32) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("hearth");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
    (dir, folder)
}

#[tokio::test]
async fn a_missing_folder_is_made_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/hearth/hearthd.sock");
    let socket = bind(&path).unwrap();
    assert_eq!(
        path.parent().unwrap().metadata().unwrap().mode() & 0o777,
        0o700
    );
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    drop(socket);
    assert!(!path.exists());
}

#[tokio::test]
async fn open_folders_are_refused() {
    for mode in [0o755, 0o701, 0o770, 0o777] {
        let (_dir, folder) = folder(mode);
        let error = bind(&folder.join("hearthd.sock"))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }
}

#[tokio::test]
async fn links_and_files_in_the_way_are_refused() {
    let (dir, real) = folder(0o700);
    let link = dir.path().join("link");
    symlink(&real, &link).unwrap();
    let error = bind(&link.join("hearthd.sock")).err().unwrap().to_string();
    assert!(error.contains("symbolic link"), "{error}");

    let path = real.join("hearthd.sock");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(bind(&path), Err(SocketError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");

    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(real.join("hearthd.lock")).unwrap();
    symlink(dir.path().join("elsewhere"), real.join("hearthd.lock")).unwrap();
    assert!(matches!(
        bind(&path),
        Err(SocketError::Io {
            what: "open the lock",
            ..
        })
    ));
}

#[tokio::test]
async fn a_second_daemon_is_told_of_the_first() {
    let (_dir, folder) = folder(0o700);
    let path = folder.join("hearthd.sock");
    let first = bind(&path).unwrap();
    match bind(&path) {
        Err(SocketError::Taken { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
        _ => panic!("a second daemon was let in"),
    }
    assert!(path.exists());
    drop(first);
    assert!(bind(&path).is_ok());
}

#[tokio::test]
async fn a_socket_that_was_handed_over_is_locked_and_left_behind() {
    let (dir, folder) = folder(0o700);
    let path = folder.join("hearthd.sock");
    let made = UnixListener::bind(&path).unwrap();
    let first = adopt(made.try_clone().unwrap()).unwrap();
    assert!(first.is_activated() && first.path() == path);
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    let second = adopt(made.try_clone().unwrap());
    assert!(matches!(
        second,
        Err(SocketError::Taken { pid: Some(_), .. })
    ));
    drop(first.close());
    assert!(path.exists(), "it is the service manager's");
    drop(adopt(made.try_clone().unwrap()).unwrap());

    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&folder, open).unwrap();
    let refused = adopt(made.try_clone().unwrap());
    assert!(matches!(refused, Err(SocketError::UnsafeFolder { .. })));
    let unnamed = UnixListener::from(std::os::fd::OwnedFd::from(
        std::os::unix::net::UnixStream::pair().unwrap().0,
    ));
    assert!(matches!(
        adopt(unnamed),
        Err(SocketError::HandedOver { .. })
    ));
    drop(dir);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let (_dir, folder) = folder(0o700);
    let path = folder.join("hearthd.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(bind(&path).unwrap());

    let _live = UnixListener::bind(&path).unwrap();
    assert!(matches!(
        bind(&path),
        Err(SocketError::Taken { pid: None, .. })
    ));
    assert!(path.exists());
}
