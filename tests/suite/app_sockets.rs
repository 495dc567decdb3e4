//! App sockets: whose label counts, what may be done through one, how long it lives, what is left.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth::{AppSocket, Client};
use hearth_proto::v1;
use hearth_test_support::{Clients, Daemon, Process, Setup, reason, text_of};
use prost::Message as _;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

const APP: &str = "org.example.App";

/// Opens a socket as a launcher does, over a connection of its own.
async fn open(daemon: &Daemon, app: &str) -> AppSocket {
    let launcher = Client::connect_to(&daemon.socket).await.unwrap();
    launcher.open_app_socket(app, None).await.unwrap()
}

fn refusal(error: hearth::Error) -> (Code, String, String) {
    match error {
        hearth::Error::Rpc(rpc) => (rpc.code, rpc.reason.unwrap_or_default(), rpc.message),
        other => panic!("not an answer of the daemon: {other:?}"),
    }
}

/// Waits until the path is gone; panics after 10 s.
async fn wait_until_gone(path: &Path) {
    let begun = Instant::now();
    while path.symlink_metadata().is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{path:?} stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn generate(cache_scope: v1::CacheScope) -> v1::GenerateRequest {
    v1::GenerateRequest {
        input: Some(v1::generate_request::Input::Prompt("hello".to_owned())),
        options: Some(v1::GenerationOptions {
            max_tokens: Some(3),
            cache_scope: cache_scope.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Calls an RPC with an empty message and tells how it ended.
async fn call(clients: &Clients, path: &str) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(clients.channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = path.parse().unwrap();
    let mut stream = grpc
        .server_streaming(Request::new(()), path, codec)
        .await?
        .into_inner();
    stream.message().await.map(|_| ())
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
async fn the_launchers_label_counts() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let launcher = Client::connect_to(&daemon.socket).await.unwrap();
    let socket = launcher
        .open_app_socket(APP, Some("two".to_owned()))
        .await
        .unwrap();
    let mut inside = Clients::connect(socket.path()).await;
    let refused = call(&inside, "/hearth.v1.Models/Unload").await.unwrap_err();
    let facts = refused.get_details_error_info().unwrap().metadata;
    assert_eq!(facts["app"], APP, "not the name of this process");

    let rows = clients.status().await.app_sockets;
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].app.as_str(), rows[0].instance()), (APP, "two"));
    assert_eq!(rows[0].launcher_pid, std::process::id());
    assert_eq!(rows[0].connections, 1);
    assert_eq!(inside.status().await.state(), v1::LifecycleState::Ready);
    drop(inside);
    clients
        .wait_for("left", |status| status.app_sockets[0].connections == 0)
        .await;
    daemon.stop().await;
}

/// The RPCs that a sandboxed app may call. Written down here once more, so that the daemon's table
/// does not grow by mistake.
const ALLOWED: [&str; 10] = [
    "/hearth.v1.Daemon/GetStatus",
    "/hearth.v1.Daemon/WatchStatus",
    "/hearth.v1.Inference/Chat",
    "/hearth.v1.Inference/CountTokens",
    "/hearth.v1.Inference/Detokenize",
    "/hearth.v1.Inference/Embed",
    "/hearth.v1.Inference/Generate",
    "/hearth.v1.Inference/Tokenize",
    "/hearth.v1.Models/List",
    "/hearth.v1.Models/Show",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_of_the_contract_is_allowed_or_denied_as_written() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let socket = open(&daemon, APP).await;
    let inside = Clients::connect(socket.path()).await;
    let set = prost_types::FileDescriptorSet::decode(hearth_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut allowed = BTreeSet::new();
    let mut denied = 0;
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let refused = call(&inside, &path).await.err();
                let Some(refused) = refused.filter(|r| r.code() == Code::PermissionDenied) else {
                    allowed.insert(path);
                    continue;
                };
                denied += 1;
                assert_eq!(reason(&refused), "SANDBOXED", "{path}");
                let call = format!("{}.{} is not for sandboxed", service.name(), method.name());
                assert!(refused.message().starts_with(&call), "{refused}");
            }
        }
    }
    assert_eq!(allowed, ALLOWED.map(str::to_owned).into());
    assert_eq!(denied, 8);
    let unknown = call(&inside, "/hearth.v1.Daemon/Shutdown")
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::PermissionDenied);
    let unknown = call(&clients, "/hearth.v1.Daemon/Shutdown")
        .await
        .unwrap_err();
    assert_eq!(
        unknown.code(),
        Code::Unimplemented,
        "outside it is only unknown"
    );
    // Nothing of all that was done.
    let status = clients.status().await;
    assert!(status.model.is_some() && status.app_sockets.len() == 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_allowed_works() {
    let (daemon, _clients) = Daemon::tiny().await;
    let socket = open(&daemon, APP).await;
    let mut inside = Clients::connect(socket.path()).await;
    for scope in [
        v1::CacheScope::Unspecified,
        v1::CacheScope::App,
        v1::CacheScope::None,
    ] {
        let stream = inside.inference.generate(generate(scope)).await.unwrap();
        let text = text_of(stream.into_inner(), |reply: v1::GenerateResponse| {
            reply.event
        });
        assert!(text.await.unwrap().end.is_some());
    }
    // How fast an answer comes must not tell what others have asked.
    let shared = generate(v1::CacheScope::Shared);
    let refused = inside.inference.generate(shared).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::PermissionDenied, "SANDBOXED")
    );
    let chat = v1::ChatRequest {
        messages: vec![v1::ChatMessage {
            role: v1::Role::User.into(),
            content: "hello".to_owned(),
        }],
        options: generate(v1::CacheScope::Shared).options,
        ..Default::default()
    };
    let refused = inside.inference.chat(chat).await.unwrap_err();
    assert_eq!(reason(&refused), "SANDBOXED");

    let tokenize = v1::TokenizeRequest {
        text: "hello".to_owned(),
        ..Default::default()
    };
    let tokens = inside.inference.tokenize(tokenize).await.unwrap();
    assert!(!tokens.into_inner().ids.is_empty());
    let models = inside.models.list(v1::ListRequest {}).await.unwrap();
    assert_eq!(models.into_inner().models[0].name, "tiny");
    let shown = inside
        .models
        .show(v1::ShowRequest::default())
        .await
        .unwrap();
    let shown = shown.into_inner();
    assert!(shown.n_heads > 0 && shown.path.is_empty(), "{}", shown.path);
    let mut health = tonic_health::pb::health_client::HealthClient::new(inside.channel.clone());
    let request = tonic_health::pb::HealthCheckRequest::default();
    assert!(health.check(request).await.is_ok());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandboxed_app_sees_itself_alone() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let socket = open(&daemon, APP).await;
    let _other_socket = open(&daemon, "org.example.Other").await;
    let mut inside = Clients::connect(socket.path()).await;
    let watch = v1::WatchStatusRequest {
        min_interval: Some(prost_types::Duration {
            seconds: 0,
            nanos: 100_000_000,
        }),
    };
    let mut watch = inside
        .daemon
        .watch_status(watch)
        .await
        .unwrap()
        .into_inner();
    let first = watch.message().await.unwrap().unwrap().status.unwrap();

    // Another app is at work now, and has been.
    let mut stream = clients.endless("hello", 1900).await;
    stream.message().await.unwrap().unwrap();
    let all = clients.status().await;
    assert_eq!((all.queue.unwrap().active, all.connections), (1, 4));
    let own = inside.status().await;
    for status in [&own, &first] {
        assert_eq!(status.state(), v1::LifecycleState::Ready);
        assert_eq!(status.version, all.version);
        assert!(status.model.is_some() && status.adapter.is_some());
        assert_eq!(status.connections, 1, "its own");
        assert_eq!((status.pid, status.rss_bytes), (0, None));
        assert!(status.socket_path.is_empty() && status.models_dir.is_empty());
        assert!(status.app_sockets.is_empty());
        let foreign = |app: &String| app != APP;
        assert!(!status.apps.iter().map(|row| &row.app).any(foreign));
        assert!(!status.sequences.iter().map(|row| &row.app).any(foreign));
        let queue = status.queue.unwrap();
        assert_eq!((queue.active, queue.waiting), (0, 0));
        let counters = status.counters.unwrap();
        assert_eq!((counters.requests, counters.steps), (0, 0));
        assert_eq!(status.model.clone().unwrap().kv_blocks_used, 0);
    }
    // Nor does the watch speak while others work: not even its time tells of them.
    let silent = tokio::time::timeout(Duration::from_millis(500), watch.message()).await;
    assert!(silent.is_err(), "{silent:?}");
    drop(stream);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_names_are_refused_by_field() {
    let (daemon, clients) = Daemon::ready(Setup::empty()).await;
    let launcher = Client::connect_to(&daemon.socket).await.unwrap();
    let long = "x".repeat(65);
    for bad in ["", "a b", "../x", ".x", "\u{e4}", "a\n", &long] {
        let refused = launcher.open_app_socket(bad, None).await.unwrap_err();
        let (code, reason, message) = refusal(refused);
        assert_eq!(
            (code, reason.as_str()),
            (Code::InvalidArgument, "BAD_FIELD")
        );
        assert!(message.starts_with("app: must have 1 to 64"), "{message}");
        let instance = Some(bad.to_owned());
        let refused = launcher.open_app_socket(APP, instance).await.unwrap_err();
        assert!(refusal(refused).2.starts_with("instance: must"), "{bad}");
    }
    let longest = launcher.open_app_socket("x".repeat(64), None).await;
    assert!(longest.is_ok());
    drop(clients);
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
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
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
    let apps = daemon.socket.with_file_name("apps");
    daemon.stop().await;
    assert!(!apps.exists(), "a daemon that stops leaves nothing behind");
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
    assert_eq!(one_more.read(&mut [0; 64]).unwrap_or(0), 0);
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
    let apps = daemon.socket.with_file_name("apps");
    daemon.stop().await;
    assert!(!apps.exists());
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
    assert!(elsewhere.exists());
}
