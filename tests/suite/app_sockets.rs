//! App sockets: whose label counts, what may be done and seen through one.

mod life;

use std::collections::BTreeSet;
use std::time::Duration;

use hearth::{AppSocket, Client};
use hearth_proto::v1;
use hearth_test_support::{Clients, Daemon, Setup, reason, text_of};
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
    assert_eq!(denied, 9);
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
async fn what_others_asked_is_not_in_a_sandboxed_apps_cache() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let socket = open(&daemon, APP).await;
    let other_socket = open(&daemon, "org.example.Other").await;
    let mut inside = Clients::connect(socket.path()).await;
    let mut other = Clients::connect(other_socket.path()).await;
    let mut request = generate(v1::CacheScope::Unspecified);
    request.input = Some(v1::generate_request::Input::Prompt("hello ".repeat(40)));
    let mut shared = request.clone();
    shared.options = generate(v1::CacheScope::Shared).options;
    let cached = async |clients: &mut Clients, request: &v1::GenerateRequest| {
        let stream = clients.inference.generate(request.clone()).await.unwrap();
        let text = text_of(stream.into_inner(), |reply: v1::GenerateResponse| {
            reply.event
        });
        text.await.unwrap().end.unwrap().cached_tokens
    };
    cached(&mut clients, &shared).await;
    assert!(cached(&mut clients, &shared).await > 0, "it is kept");
    for sandboxed in [&mut inside, &mut other] {
        assert_eq!(cached(sandboxed, &request).await, 0, "not even the shared");
        assert!(cached(sandboxed, &request).await > 0, "its own is kept");
    }
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
    // Its own work it sees, in the watch too, and no number that counts the work of others.
    let mut own_stream = inside.endless("hello", 1900).await;
    own_stream.message().await.unwrap().unwrap();
    let own = inside
        .wait_for("its own", |status| status.sequences.len() == 1)
        .await;
    assert_eq!(
        (own.sequences[0].app.as_str(), own.sequences[0].id),
        (APP, 0)
    );
    assert_eq!((own.apps.len(), own.queue.unwrap().active), (1, 1));
    assert_eq!(own.counters.unwrap().requests, 1);
    let told = tokio::time::timeout(Duration::from_secs(10), watch.message()).await;
    let told = told.expect("a change is told").unwrap().unwrap();
    assert!(told.status.unwrap().apps.iter().all(|row| row.app == APP));
    drop(own_stream);
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
