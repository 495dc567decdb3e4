//! The life of an app socket: how it is made, how many there may be, what ends it, what is left.

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth::Client;
use hearth_proto::v1;
use hearth_test_support::{Clients, Daemon, Process, Setup, text_of};
use tonic::Code;

use super::{APP, open, refusal};

/// Waits until the path is gone; panics after 10 s.
async fn wait_until_gone(path: &Path) {
    let begun = Instant::now();
    while path.symlink_metadata().is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{path:?} stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_is_private_and_alone_in_its_folder() {
    let (daemon, _clients) = Daemon::ready(Setup::empty()).await;
    let socket = open(&daemon, APP).await;
    let mode = |path: &Path| path.symlink_metadata().unwrap().mode() & 0o7777;
    let folder = socket.path().parent().unwrap();
    assert_eq!(mode(socket.path()), 0o600);
    assert_eq!(mode(folder), 0o700);
    assert_eq!(mode(folder.parent().unwrap()), 0o700);
    assert_eq!(folder.read_dir().unwrap().count(), 1);
    let name = folder.file_name().unwrap().to_str().unwrap();
    assert!(name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_eq!(
        folder.parent().unwrap(),
        daemon.socket.with_file_name("apps")
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_a_socket_ends_what_runs_through_it() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let socket = open(&daemon, APP).await;
    let kept = open(&daemon, APP).await;
    let path = socket.path().to_owned();
    let mut inside = Clients::connect(&path).await;
    let mut beside = Clients::connect(kept.path()).await;
    let mut stream = inside.endless("hello", 1900).await;
    stream.message().await.unwrap().unwrap();
    drop(socket);
    let ended = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a stream that was cut ended as if whole"),
            Err(status) => break status,
        }
    };
    assert_ne!(ended.code(), Code::Ok);
    wait_until_gone(path.parent().unwrap()).await;
    assert!(UnixStream::connect(&path).is_err());
    assert!(
        inside
            .daemon
            .get_status(v1::GetStatusRequest {})
            .await
            .is_err()
    );
    let status = clients
        .wait_for("idle", |status| status.queue.unwrap().active == 0)
        .await;
    assert!(status.counters.unwrap().generated_tokens < 1900);
    assert_eq!(status.app_sockets.len(), 1, "the other socket is open");
    assert_eq!(beside.status().await.state(), v1::LifecycleState::Ready);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launcher_that_dies_takes_its_socket_along() {
    // The launcher is a connection here: all that the daemon sees of a death is its end.
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    let launcher = Client::connect_to(&daemon.socket).await.unwrap();
    let socket = launcher.open_app_socket(APP, None).await.unwrap();
    let path = socket.path().to_owned();
    let held = UnixStream::connect(&path).unwrap();
    clients
        .wait_for("connected", |status| status.app_sockets[0].connections == 1)
        .await;
    drop((launcher, socket));
    wait_until_gone(path.parent().unwrap()).await;
    held.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    // What the daemon said first may still be there; then the end.
    let mut heard = Vec::new();
    let _ = (&held).read_to_end(&mut heard);
    clients
        .wait_for("rid of it", |status| {
            status.app_sockets.is_empty() && status.connections == 1
        })
        .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_sockets_and_no_more() {
    let (mut daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    let launchers = [
        Client::connect_to(&daemon.socket).await.unwrap(),
        Client::connect_to(&daemon.socket).await.unwrap(),
        Client::connect_to(&daemon.socket).await.unwrap(),
    ];
    let mut sockets = Vec::new();
    for i in 0..hearthd::limits::APP_SOCKETS_MAX {
        // A connection has 32 streams.
        let launcher = &launchers[i / 30];
        let app = format!("app{i}");
        sockets.push(launcher.open_app_socket(app, None).await.unwrap());
    }
    let (code, reason, message) =
        refusal(launchers[2].open_app_socket(APP, None).await.unwrap_err());
    assert_eq!(code, Code::ResourceExhausted);
    assert_eq!(reason, "TOO_MANY_APP_SOCKETS");
    assert!(message.contains("64"), "{message}");
    let names: Vec<String> = clients
        .status()
        .await
        .app_sockets
        .into_iter()
        .map(|row| row.app)
        .collect();
    assert_eq!(names.len(), 64);
    assert_eq!((names[0].as_str(), names[63].as_str()), ("app0", "app63"));
    drop(sockets.pop());
    clients
        .wait_for("one less", |status| status.app_sockets.len() == 63)
        .await;
    assert!(launchers[2].open_app_socket(APP, None).await.is_ok());
    // A daemon that stops leaves nothing behind.
    daemon.begin_stop();
    wait_until_gone(&daemon.socket.with_file_name("apps")).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_cannot_take_every_connection() {
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    let socket = open(&daemon, APP).await;
    // A second socket of the same app has no places of its own.
    let second = open(&daemon, APP).await;
    let max = hearthd::limits::APP_CONNECTIONS_MAX;
    let held: Vec<UnixStream> = (0..max)
        .map(|i| UnixStream::connect(if i % 2 == 0 { &socket } else { &second }.path()).unwrap())
        .collect();
    let through_apps = |status: &v1::DaemonStatus| -> u32 {
        status.app_sockets.iter().map(|row| row.connections).sum()
    };
    let full = u32::try_from(max).unwrap();
    clients
        .wait_for("full", |status| through_apps(status) == full)
        .await;
    let mut one_more = UnixStream::connect(second.path()).unwrap();
    one_more
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    // It is served, and one of its own idle ones has left for it.
    assert!(one_more.read(&mut [0; 64]).unwrap() > 0);
    clients
        .wait_for("still full", |status| through_apps(status) == full)
        .await;
    // Others find room, the launcher and another app.
    let other = open(&daemon, "org.example.Other").await;
    let mut other = Clients::connect(other.path()).await;
    assert_eq!(other.status().await.connections, 1);
    drop(held);
    clients
        .wait_for("empty", |status| through_apps(status) <= 1)
        .await;
    let mut inside = Clients::connect(socket.path()).await;
    assert_eq!(inside.status().await.connections, 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_removes_the_socket_and_lets_streams_finish() {
    let (mut daemon, _clients) = Daemon::tiny().await;
    let mut socket = open(&daemon, APP).await;
    let path = socket.path().to_owned();
    let mut inside = Clients::connect(&path).await;
    let mut stream = inside.endless("hello", 400).await;
    stream.message().await.unwrap().unwrap();
    daemon.begin_stop();
    let (code, reason, _) = refusal(socket.closed().await);
    assert_eq!((code, reason.as_str()), (Code::Unavailable, "DRAINING"));
    assert!(!path.exists(), "it is gone before its launcher is told");
    drop(socket);
    let text = text_of(stream, |reply: v1::GenerateResponse| reply.event);
    assert_eq!(text.await.unwrap().end.unwrap().generated_tokens, 400);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_daemon_left_is_removed_by_the_next() {
    let setup = Setup::empty();
    let first = Process::start(&setup);
    let launcher = Client::connect_to(&first.socket).await.unwrap();
    let socket = launcher.open_app_socket(APP, None).await.unwrap();
    let folder: PathBuf = socket.path().parent().unwrap().to_owned();
    first.kill();
    assert!(socket.path().exists(), "kill -9 leaves it behind");
    let precious = folder.with_file_name("precious");
    std::fs::write(&precious, "x").unwrap();
    let second = Process::start(&setup);
    wait_until_gone(&folder).await;
    assert!(precious.exists(), "nothing else goes");
    std::fs::remove_file(precious).unwrap();
    // The new daemon makes new ones.
    let launcher = Client::connect_to(&second.socket).await.unwrap();
    let socket = launcher.open_app_socket(APP, None).await.unwrap();
    assert!(Clients::connect(socket.path()).await.status().await.pid == 0);
    assert!(second.terminate().success());
    assert!(!folder.parent().unwrap().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_the_way_is_refused_and_not_followed() {
    let (daemon, _clients) = Daemon::ready(Setup::empty()).await;
    let elsewhere = daemon.setup.dir().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, daemon.socket.with_file_name("apps")).unwrap();
    let launcher = Client::connect_to(&daemon.socket).await.unwrap();
    let refused = launcher.open_app_socket(APP, None).await.unwrap_err();
    let (code, reason, message) = refusal(refused);
    assert_eq!(
        (code, reason.as_str()),
        (Code::FailedPrecondition, "SOCKET")
    );
    assert!(message.contains("symbolic link"), "{message}");
    assert_eq!(elsewhere.read_dir().unwrap().count(), 0);
    daemon.stop().await;
}
