//! The daemon as a process of its own, for what only a process can do: exit codes, signals, death.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use crate::daemon::Setup;

/// The program `hearthd`, beside the test's own. Built if it is missing.
pub fn hearthd_binary() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().and_then(|deps| deps.parent()).unwrap();
    let path = folder.join(format!("hearthd{}", std::env::consts::EXE_SUFFIX));
    if !path.exists() {
        let built = Command::new(env!("CARGO"))
            .args(["build", "-p", "hearthd"])
            .status()
            .unwrap();
        assert!(built.success(), "hearthd does not build");
    }
    path
}

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
        let pid = self.pid().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(setup: &Setup) -> Command {
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
        .envs(std::env::vars().filter(|(name, _)| !name.starts_with("HEARTH_")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(model) = &config.model {
        command.arg("--model").arg(model);
    }
    command
}
