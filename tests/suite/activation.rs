//! Sockets that a service manager makes and keeps: who comes while no daemon runs is answered by the
//! next one.

use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hearth_proto::v1;
use hearth_proto::v1::daemon_client::DaemonClient;
use hearth_test_support::{Clients, Process, Setup, command};
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

/// The socket, made as a service manager makes it.
fn listen(setup: &Setup) -> UnixListener {
    let path = setup.config().socket;
    let mut folder = std::fs::DirBuilder::new();
    folder.mode(0o700).create(path.parent().unwrap()).unwrap();
    UnixListener::bind(path).unwrap()
}

/// Connects and asks for the state once, for as long as it takes up to a minute.
async fn ask(socket: &Path) -> Result<v1::DaemonStatus, tonic::Status> {
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    let answer = async {
        let refused = |error| tonic::Status::unavailable(format!("no connection: {error:?}"));
        let mut client = DaemonClient::new(endpoint.connect().await.map_err(refused)?);
        let reply = client.get_status(v1::GetStatusRequest {}).await?;
        Ok(reply.into_inner().status.unwrap())
    };
    tokio::time::timeout(Duration::from_secs(60), answer)
        .await
        .expect("an answer in time")
}

/// Connects a hundred times at once, then asks over each connection.
async fn hundred_ask(socket: &Path) {
    let mut asking = JoinSet::new();
    for _ in 0..100 {
        let socket = socket.to_owned();
        asking.spawn(async move { ask(&socket).await });
    }
    for status in asking.join_all().await {
        let status = status.unwrap();
        assert!(status.process.unwrap().socket_activated);
        assert_eq!(Path::new(&status.socket_path), socket);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_who_come_first_are_all_answered() {
    let setup = Setup::empty();
    let listener = listen(&setup);
    let socket = setup.config().socket;
    let asking = tokio::spawn({
        let socket = socket.clone();
        async move { hundred_ask(&socket).await }
    });
    let daemon = Process::start_on(&setup, &listener);
    asking.await.unwrap();

    // A second one leaves, and the first is not disturbed.
    assert_eq!(Process::start_on(&setup, &listener).wait().code(), Some(75));
    assert!(ask(&socket).await.is_ok());
    assert!(daemon.terminate().success());
    assert!(socket.exists(), "the socket is the service manager's");
    UnixStream::connect(&socket).expect("its queue is open");
}

/// Killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether connections to the socket are queued. Its file is there a moment earlier, when it is bound;
/// to connect, to see whether that works, would be the first connection.
fn is_listening(socket: &Path) -> bool {
    // proc_pid_net(5): the fourth field holds the flags, of which 0x10000 is "listens"; the path is last.
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    sockets.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.last().is_some_and(|path| Path::new(path) == socket) && fields[3] == "00010000"
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn systemds_own_tool_activates_it() {
    let setup = Setup::empty();
    let plain = command(&setup);
    let socket = setup.config().socket;
    let mut folder = std::fs::DirBuilder::new();
    folder.mode(0o700).create(socket.parent().unwrap()).unwrap();
    let mut tool = Command::new("systemd-socket-activate");
    tool.arg(format!("--listen={}", socket.display()));
    for (name, _) in std::env::vars() {
        // It hands on nothing that it is not told to.
        if ["HOME", "PATH", "XDG_CACHE_HOME", "VK_ICD_FILENAMES"].contains(&name.as_str()) {
            tool.arg(format!("--setenv={name}"));
        }
    }
    tool.arg("--")
        .arg(plain.get_program())
        .args(plain.get_args());
    tool.stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let Ok(child) = tool.spawn() else {
        return; // Not every system has it. The test above does the same by hand.
    };
    let _daemon = Killed(child);
    let begun = Instant::now();
    while !is_listening(&socket) {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "it does not listen"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    hundred_ask(&socket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_under_load_refuses_nobody() {
    let setup = Setup::tiny();
    let listener = listen(&setup);
    let socket = setup.config().socket;
    let first = Process::start_on(&setup, &listener);
    let first_pid = first.pid();
    let mut clients = Clients::connect(&socket).await;
    clients.wait_ready().await;

    let stop = Arc::new(AtomicBool::new(false));
    let (of_first, of_second) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut load = JoinSet::new();
    for _ in 0..8 {
        let (stop, socket) = (Arc::clone(&stop), socket.clone());
        let (of_first, of_second) = (Arc::clone(&of_first), Arc::clone(&of_second));
        load.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                match ask(&socket).await {
                    Ok(status) if status.pid == first_pid => {
                        of_first.fetch_add(1, Ordering::Relaxed)
                    }
                    Ok(_) => of_second.fetch_add(1, Ordering::Relaxed),
                    // Who was let in by a daemon that then leaves is told to come again.
                    Err(status) => {
                        let text = status.message();
                        assert!(!text.contains("no connection"), "{text}");
                        assert!(!text.contains("ConnectionRefused"), "{text}");
                        continue;
                    }
                };
            }
        });
    }
    let some_of = |count: Arc<AtomicU64>| async move {
        let begun = Instant::now();
        while count.load(Ordering::Relaxed) < 20 {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "nobody is answered"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    some_of(Arc::clone(&of_first)).await;
    // A stream that runs goes on to its end while others wait for the next daemon.
    let mut stream = clients.endless("hello", 1500).await;
    stream.message().await.unwrap().unwrap();
    let ended = tokio::task::spawn_blocking(move || first.terminate());
    let mut tokens = 0;
    while let Some(reply) = stream.message().await.unwrap() {
        use v1::generation_event::Event;
        if let Some(Event::End(end)) = reply.event.and_then(|event| event.event) {
            tokens = end.generated_tokens;
        }
    }
    assert_eq!(tokens, 1500, "the drain let it finish");
    assert!(ended.await.unwrap().success());
    UnixStream::connect(&socket).expect("no daemon runs, and the queue is open");
    let second = Process::start_on(&setup, &listener);
    some_of(of_second).await;
    stop.store(true, Ordering::Relaxed);
    load.join_all().await;
    assert!(second.terminate().success());
}

#[test]
fn what_is_no_listening_socket_is_refused() {
    let setup = Setup::empty();
    let path = setup.config().socket;
    drop(listen(&setup));
    std::fs::remove_file(&path).unwrap();
    // A socket that is bound and not listened on cannot be had from the standard library.
    let (near, _far) = UnixStream::pair().unwrap();
    let bad = UnixListener::from(std::os::fd::OwnedFd::from(near));
    assert_eq!(Process::start_on(&setup, &bad).wait().code(), Some(1));
    assert!(
        !path.exists(),
        "it does not fall back to a socket of its own"
    );
}
