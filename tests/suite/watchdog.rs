//! What the service manager hears, in systemd's protocol: ready, how it goes, stopping; and signs of
//! life while the daemon's threads advance, and none while they do not.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use hearth_test_support::{Clients, Process, Setup};
use rustix::process::Signal;

/// A service manager that listens.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(setup: &Setup) -> Self {
        Self(UnixDatagram::bind(setup.dir().join("notify")).unwrap())
    }

    /// Starts a daemon that is watched with this period.
    fn start(&self, setup: &Setup, period: Duration) -> Process {
        Process::start_with(setup, |command: &mut Command| {
            command
                .env("NOTIFY_SOCKET", setup.dir().join("notify"))
                .env("WATCHDOG_USEC", period.as_micros().to_string());
        })
    }

    /// The next message, if one comes within `wait`.
    fn hear(&self, wait: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(wait)).unwrap();
        let mut bytes = [0; 4096];
        match self.0.recv(&mut bytes) {
            Ok(count) => Some(String::from_utf8(bytes[..count].to_vec()).unwrap()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Listens until a message holds this line.
    fn wait_for(&self, line: &str) {
        let begun = Instant::now();
        let mut heard = Vec::new();
        while begun.elapsed() < Duration::from_secs(60) {
            if let Some(message) = self.hear(Duration::from_secs(1)) {
                if message.lines().any(|heard| heard.starts_with(line)) {
                    return;
                }
                heard.push(message);
            }
        }
        panic!("never {line}: {heard:?}");
    }

    /// Listens until nothing has come for this long.
    fn wait_for_silence(&self, silence: Duration) {
        let begun = Instant::now();
        while self.hear(silence).is_some() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "it never falls silent"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_hears_how_the_daemon_is_and_that_it_lives() {
    let setup = Setup::tiny();
    let manager = Manager::listen(&setup);
    let daemon = manager.start(&setup, Duration::from_millis(500));
    manager.wait_for("READY=1");
    manager.wait_for("STATUS=ready, tiny is warm");
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    let mut clients = Clients::connect(&daemon.socket).await;
    let watchdog = clients.status().await.process.unwrap().watchdog.unwrap();
    assert_eq!((watchdog.seconds, watchdog.nanos), (0, 500_000_000));

    daemon.signal(Signal::STOP);
    while manager
        .hear(Duration::ZERO.max(Duration::from_millis(1)))
        .is_some()
    {}
    assert_eq!(
        manager.hear(Duration::from_secs(2)),
        None,
        "a stopped process says nothing"
    );
    daemon.signal(Signal::CONT);
    manager.wait_for("WATCHDOG=1");

    daemon.signal(Signal::TERM);
    manager.wait_for("STOPPING=1");
    manager.wait_for("STATUS=draining");
    assert!(daemon.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_for_a_model_holds_nobody_up() {
    // Opened as a file it would wait in the system for somebody who writes into it.
    let setup = Setup::empty();
    let pipe = setup.dir().join("pipe.gguf");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let setup = setup.set("model", pipe.display());
    let manager = Manager::listen(&setup);
    let daemon = manager.start(&setup, Duration::from_millis(100));
    manager.wait_for("STATUS=ready, no model is warm: cannot load");
    manager.wait_for("WATCHDOG=1");
    let mut clients = Clients::connect(&daemon.socket).await;
    let state = clients.status().await.state();
    assert_eq!(state, hearth_proto::v1::LifecycleState::Ready);
    assert!(daemon.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_hangs_is_no_life() {
    use nix::sys::ptrace;
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitPidFlag, waitpid};
    let setup = Setup::tiny();
    let manager = Manager::listen(&setup);
    let daemon = manager.start(&setup, Duration::from_millis(500));
    let mut clients = Clients::connect(&daemon.socket).await;
    clients.wait_ready().await;
    // Nobody reads: the engine's thread stays at its turns until the reader is given up.
    let mut stream = clients.endless("hello", 1900).await;
    stream.message().await.unwrap().unwrap();
    let pid = daemon.pid();
    let frozen = tokio::task::spawn_blocking(move || {
        // All of ptrace must be asked by one thread.
        let thread = thread_named(pid, "engine");
        if ptrace::seize(thread, ptrace::Options::empty()).is_err() {
            return false; // The daemon lets nobody trace it but root.
        }
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        // A turn may take four periods, here 2 s.
        manager.wait_for_silence(Duration::from_secs(3));
        ptrace::detach(thread, None::<Signal>).unwrap();
        manager.wait_for("WATCHDOG=1");
        true
    });
    if frozen.await.unwrap() {
        assert_eq!(clients.status().await.pid, pid);
    }
    drop(stream);
    assert!(daemon.terminate().success());
}

/// A thread of a process by its name.
fn thread_named(pid: u32, name: &str) -> nix::unistd::Pid {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    for task in tasks {
        let task = task.unwrap();
        let comm = std::fs::read_to_string(task.path().join("comm")).unwrap();
        if comm.trim() == name {
            let number = task.file_name().into_string().unwrap();
            return nix::unistd::Pid::from_raw(number.parse().unwrap());
        }
    }
    panic!("no thread is called {name}");
}
