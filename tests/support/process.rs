//! The daemon as a process of its own, for what only a process can do: exit codes, signals, death.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::daemon::Setup;

/// The program `hearthd`, beside the test's own. Built if it is missing.
pub fn hearthd_binary() -> PathBuf {
    binary("hearthd")
}

/// The program `hearth`, likewise.
pub fn hearth_binary() -> PathBuf {
    binary("hearth")
}

fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().and_then(|deps| deps.parent()).unwrap();
    let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if !path.exists() {
        let built = Command::new(env!("CARGO"))
            .args(["build", "-p", name])
            .status()
            .unwrap();
        assert!(built.success(), "{name} does not build");
    }
    path
}

/// Hands the socket on stdin on as a service manager does: as descriptor 3, told by the environment.
/// The process id in it is known only to the process itself, so a shell turns into the daemon.
const HAND_OVER: &str = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 </dev/null";

/// A running `hearthd`, killed when dropped.
pub struct Process {
    pub socket: PathBuf,
    child: Child,
}

impl Process {
    /// Starts one and waits until its socket is there.
    pub fn start(setup: &Setup) -> Self {
        Self::start_with(setup, |_| {})
    }

    /// Starts one whose command `change` had its way with.
    pub fn start_with(setup: &Setup, change: impl FnOnce(&mut Command)) -> Self {
        let config = setup.config();
        let mut command = command(setup);
        change(&mut command);
        let mut process = Self {
            socket: config.socket.clone(),
            child: command.spawn().unwrap(),
        };
        let begun = Instant::now();
        // A stale socket may be there from before: what counts is that somebody answers.
        while std::os::unix::net::UnixStream::connect(&process.socket).is_err() {
            let ended = process.child.try_wait().unwrap();
            assert!(ended.is_none(), "hearthd ended at once: {ended:?}");
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "hearthd does not listen"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        process
    }

    /// Starts one on a socket that is listened on already, as a service manager does. Does not wait.
    pub fn start_on(setup: &Setup, listener: &UnixListener) -> Self {
        let (config, plain) = (setup.config(), command(setup));
        let mut command = Command::new("sh");
        command
            .args(["-c", HAND_OVER])
            .arg(plain.get_program())
            .args(plain.get_args())
            .env_clear()
            .envs(kept_environment())
            .stdin(OwnedFd::from(listener.try_clone().unwrap()))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self {
            socket: config.socket,
            child: command.spawn().unwrap(),
        }
    }

    /// Runs one that is expected to end by itself.
    pub fn run(setup: &Setup, extra: &[&str]) -> Output {
        command(setup)
            .args(extra)
            .stderr(Stdio::piped())
            .output()
            .unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as the system would: no goodbye.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end and waits for that.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.child.wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        rustix::process::kill_process(pid.unwrap(), signal).unwrap();
    }

    /// What `/proc/PID/status` says under a name.
    pub fn proc_status(&self, name: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The environment without what would change a daemon.
fn kept_environment() -> impl Iterator<Item = (String, String)> {
    let set_by_tests = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];
    std::env::vars().filter(move |(name, _)| {
        !name.starts_with("HEARTH_")
            && !name.starts_with("LISTEN_")
            && !set_by_tests.contains(&name.as_str())
    })
}

/// The command of a daemon.
pub fn command(setup: &Setup) -> Command {
    let config = setup.config();
    let mut command = Command::new(hearthd_binary());
    command
        .arg("--config")
        .arg(setup.dir().join("config.toml"))
        .arg("--socket")
        .arg(&config.socket)
        .arg("--models-dir")
        .arg(&config.models_dir)
        .env_clear()
        .envs(kept_environment())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(model) = &config.model {
        command.arg("--model").arg(model);
    }
    command
}
