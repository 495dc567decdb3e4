//! The socket and the process: who may connect, who may serve, what a death leaves behind.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hearth_proto::v1;
use hearth_test_support::{Clients, Daemon, Process, Setup, reason, text_of};
use tonic::Code;
use tonic::transport::Endpoint;

fn stderr_of(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn folder_and_socket_are_private() {
    let (daemon, _clients) = Daemon::ready(Setup::empty()).await;
    let mode = |path: &std::path::Path| path.metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode(&daemon.socket), 0o600);
    assert_eq!(mode(daemon.socket.parent().unwrap()), 0o700);
    assert_eq!(mode(&daemon.socket.with_file_name("hearthd.lock")), 0o600);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return; // Only root can become somebody else.
    }
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    // Modes alone would keep others out already: open them, to see the second line hold.
    let open = std::fs::Permissions::from_mode(0o777);
    for path in [
        daemon.setup.dir(),
        daemon.socket.parent().unwrap(),
        &daemon.socket,
    ] {
        std::fs::set_permissions(path, open.clone()).unwrap();
    }
    let socket = daemon.socket.clone();
    let heard = std::thread::spawn(move || {
        // Of this thread alone: the calls go past the C library, which would change all threads.
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let mut stream = UnixStream::connect(socket).expect("the modes are open");
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut heard = Vec::new();
        match stream.read_to_end(&mut heard) {
            Ok(_) => heard,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                heard
            }
        }
    })
    .join()
    .unwrap();
    assert!(heard.is_empty(), "a foreign user heard something");
    assert_eq!(clients.status().await.connections, 1);
    daemon.stop().await;
}

/// Reads all that comes until the other side closes; gives up after 30 s.
async fn heard(mut stream: UnixStream) -> Vec<u8> {
    let wait = Some(Duration::from_secs(30));
    stream.set_read_timeout(wait).unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut heard = Vec::new();
        // A reset is an end too.
        let ended = stream.read_to_end(&mut heard);
        let kind = ended.err().map(|error| error.kind());
        assert!(matches!(kind, None | Some(ErrorKind::ConnectionReset)));
        heard
    });
    read.await.unwrap()
}

/// Waits until one of the connections is closed.
async fn one_is_closed(held: &[UnixStream]) {
    for stream in held {
        stream.set_nonblocking(true).unwrap();
    }
    let begun = Instant::now();
    // What the daemon says first, and its goodbye, come before the end.
    while !held.iter().any(|mut stream| {
        let mut reads = std::iter::repeat_with(|| stream.read(&mut [0; 256]));
        matches!(reads.find(|read| !matches!(read, Ok(1..))), Some(Ok(0)))
    }) {
        assert!(begun.elapsed() < Duration::from_secs(8), "all stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_makes_room_when_all_places_are_taken() {
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    // No app may have them all: three more have as many as an app may.
    let launcher = hearth::Client::connect_to(&daemon.socket).await.unwrap();
    let each = hearthd::limits::APP_CONNECTIONS_MAX;
    let mut sockets = Vec::new();
    let mut held = Vec::new();
    for app in ["a", "b", "c"] {
        let socket = launcher.open_app_socket(app, None).await.unwrap();
        held.extend((0..each).map(|_| UnixStream::connect(socket.path()).unwrap()));
        sockets.push(socket);
    }
    let left = hearthd::limits::CONNECTIONS_MAX - 2 - 3 * each;
    held.extend((0..left).map(|_| UnixStream::connect(&daemon.socket).unwrap()));
    clients
        .wait_for("full", |status| status.connections == 256)
        .await;
    let other = launcher.open_app_socket("d", None).await.unwrap();
    let mut one_more = UnixStream::connect(other.path()).unwrap();
    one_more
        .set_read_timeout(Some(Duration::from_secs(8)))
        .unwrap();
    one_is_closed(&held).await;
    let mut said = [0; 9];
    one_more.read_exact(&mut said).unwrap();
    assert_eq!(said[3], 4, "SETTINGS: it is served");
    drop(held);
    clients
        .wait_for("empty again", |status| status.connections == 3)
        .await;
    drop(one_more);
    clients
        .wait_for("as at first", |status| status.connections == 2)
        .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_app_has_its_share_of_connections_and_no_more() {
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    let each = hearthd::limits::APP_CONNECTIONS_MAX;
    let mut held: Vec<UnixStream> = (0..each - 1)
        .map(|_| UnixStream::connect(&daemon.socket).unwrap())
        .collect();
    clients
        .wait_for("full", |status| status.connections == 64)
        .await;
    held.push(UnixStream::connect(&daemon.socket).unwrap());
    one_is_closed(&held).await;
    assert!(clients.status().await.connections <= 64);
    drop(held);
    clients
        .wait_for("empty again", |status| status.connections == 1)
        .await;

    // Those that have a stream stay, and one more is told so.
    let watch = || v1::WatchStatusRequest {
        min_interval: Some(Duration::from_secs(3600).try_into().unwrap()),
    };
    let mut busy = Vec::new();
    for _ in 1..each {
        let mut own = daemon.clients().await;
        let stream = own.daemon.watch_status(watch()).await.unwrap();
        busy.push((own, stream));
    }
    let own = clients.daemon.watch_status(watch()).await.unwrap();
    let told = heard(UnixStream::connect(&daemon.socket).unwrap()).await;
    assert_eq!((told[3], told[12]), (4, 7), "SETTINGS, then GOAWAY");
    assert!(told.ends_with(b"too many connections"));
    assert_eq!(clients.status().await.connections, 64);
    drop((busy, own));
    clients
        .wait_for("empty again", |status| status.connections == 1)
        .await;
    daemon.clients().await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_never_speaks_http2_is_closed() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let (daemon, mut clients) = Daemon::ready(Setup::empty()).await;
    let connect = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let (silent, half, whole) = (connect(b""), connect(&PREFACE[..9]), connect(PREFACE));
    let mut speaking = connect(PREFACE);
    speaking.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    for stream in [silent, half, whole] {
        heard(stream).await;
    }
    clients
        .wait_for("rid of them", |status| status.connections == 2)
        .await;
    speaking.write_all(&[0, 0, 8, 6, 0, 0, 0, 0, 0]).unwrap();
    speaking.write_all(b"stillok?").unwrap();
    let mut answer = Vec::new();
    speaking
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    while !answer.ends_with(b"stillok?") {
        let mut more = [0; 256];
        let count = speaking.read(&mut more).unwrap();
        assert_ne!(count, 0, "it was closed");
        answer.extend(&more[..count]);
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_loses_its_stream_and_nobody_else_does() {
    let (daemon, mut clients) = Daemon::tiny().await;
    let endpoint = Endpoint::from_shared(format!("unix:{}", daemon.socket.display())).unwrap();
    let channel = endpoint
        .initial_stream_window_size(1024)
        .connect()
        .await
        .unwrap();
    let mut slow = v1::inference_client::InferenceClient::new(channel);
    let request = v1::GenerateRequest {
        input: Some(v1::generate_request::Input::Prompt("hello".to_owned())),
        options: Some(v1::GenerationOptions {
            max_tokens: Some(1900),
            ignore_eos: true,
            logprobs: Some(20),
            ..Default::default()
        }),
        ..Default::default()
    };
    let stalled = slow.generate(request).await.unwrap().into_inner();
    let begun = Instant::now();
    let other = clients.endless("world", 50).await;
    let text = text_of(other, |reply: v1::GenerateResponse| reply.event)
        .await
        .unwrap();
    assert_eq!(text.end.unwrap().generated_tokens, 50);
    clients
        .wait_for("one left", |status| status.queue.unwrap().active == 1)
        .await;
    clients
        .wait_for("rid of the stalled", |status| {
            status.queue.unwrap().active == 0
        })
        .await;
    assert!(
        begun.elapsed() > Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    let ended = text_of(stalled, |reply: v1::GenerateResponse| reply.event)
        .await
        .err()
        .unwrap();
    assert_eq!(
        (ended.code(), reason(&ended).as_str()),
        (Code::ResourceExhausted, "READER_STALLED")
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_breaks_its_streams_and_the_next_one_serves() {
    let setup = Setup::tiny();
    let first = Process::start(&setup);
    let mut clients = Clients::connect(&first.socket).await;
    clients.wait_ready().await;
    let mut stream = clients.endless("hello", 1900).await;
    stream.message().await.unwrap().unwrap();
    let socket = first.socket.clone();
    first.kill();
    let broken = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a broken stream ended as if whole"),
            Err(status) => break status,
        }
    };
    assert!(
        matches!(
            broken.code(),
            Code::Unavailable | Code::Unknown | Code::Internal
        ),
        "{broken}"
    );
    assert!(socket.exists(), "kill -9 leaves its socket behind");

    let second = Process::start(&setup);
    let mut clients = Clients::connect(&second.socket).await;
    clients.wait_ready().await;
    let stream = clients.endless("hello", 3).await;
    assert!(
        text_of(stream, |reply: v1::GenerateResponse| reply.event)
            .await
            .is_ok()
    );
    assert!(second.terminate().success());
    assert!(!socket.exists());
}

#[test]
fn a_second_daemon_is_refused_with_75_and_the_first_ones_process() {
    let setup = Setup::empty();
    let first = Process::start(&setup);
    let output = Process::run(&setup, &[]);
    assert_eq!(output.status.code(), Some(75));
    let stderr = stderr_of(&output);
    assert!(
        stderr.contains(&format!("process {}", first.pid())),
        "{stderr}"
    );
    assert!(
        UnixStream::connect(&first.socket).is_ok(),
        "the first one still serves"
    );
    assert!(first.terminate().success());
}

#[test]
fn a_symlinked_or_open_folder_is_refused() {
    let setup = Setup::empty();
    let real = setup.dir().join("real");
    std::fs::create_dir(&real).unwrap();
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o700)).unwrap();
    let folder = setup.dir().join("run");
    symlink(&real, &folder).unwrap();
    let output = Process::run(&setup, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr_of(&output).contains("symbolic link"),
        "{}",
        stderr_of(&output)
    );
    assert_eq!(
        real.read_dir().unwrap().count(),
        0,
        "nothing was made behind the link"
    );

    std::fs::remove_file(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = Process::run(&setup, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr_of(&output).contains("chmod 700"),
        "{}",
        stderr_of(&output)
    );
}

#[test]
fn a_bad_configuration_exits_with_78_and_its_line() {
    let setup = Setup::empty();
    let bad = setup.dir().join("bad.toml");
    std::fs::write(&bad, "slots = 2\ncontext_len = 'much'\n").unwrap();
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(hearth_test_support::hearthd_binary())
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), stderr_of(&output))
    };
    let path = bad.display().to_string();
    for flags in [
        vec!["--config", &path],
        vec!["--config", &path, "--check-config"],
    ] {
        let (code, stderr) = run(&flags);
        assert_eq!(code, Some(78), "{stderr}");
        assert!(
            stderr.contains("bad.toml:2: context_len must be"),
            "{stderr}"
        );
    }
    std::fs::write(&bad, "slots = 2\n").unwrap();
    assert_eq!(run(&["--config", &path, "--check-config"]).0, Some(0));
    assert_eq!(
        run(&["--config", "/nonexistent.toml", "--check-config"]).0,
        Some(78)
    );
    assert_eq!(run(&["--no-such-flag"]).0, Some(2));
}
