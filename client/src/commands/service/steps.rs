//! What is done to install, start or remove a service, as data: it can be printed instead of done.
//! Programs are run as children, never through a shell.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::exit::{Failure, Kind};

/// Longest wait for a daemon that was told to end; it may drain for 15 s.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two looks at it.
const END_PAUSE: Duration = Duration::from_millis(50);

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Make a folder for the user alone, with those above it, if it is missing.
    MakeFolder(PathBuf),
    /// Write a file in the place of what is there.
    Write { path: PathBuf, text: String },
    /// Remove a file, if it is there.
    Remove(PathBuf),
    /// Remove a folder, if it is there and empty.
    RemoveEmpty(PathBuf),
    /// End a daemon that runs apart from the service, and wait for that.
    EndDaemon { pid: u32 },
    /// Run a program of the service manager.
    Run(Call),
}

/// A program with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) program: &'static str,
    pub(super) arguments: Vec<String>,
    /// Whether failing is no failure: there was nothing to do.
    pub(super) may_fail: bool,
}

impl Call {
    pub(super) fn new(program: &'static str, arguments: &[&str]) -> Self {
        Self {
            program,
            arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
            may_fail: false,
        }
    }

    pub(super) fn may_fail(mut self) -> Self {
        self.may_fail = true;
        self
    }

    fn words(&self) -> String {
        format!("{} {}", self.program, self.arguments.join(" "))
    }

    /// Runs it and hands out what it wrote to stdout.
    ///
    /// # Errors
    /// It is missing or fails; the message holds the last line of its stderr.
    pub(super) async fn output(&self) -> Result<String, Failure> {
        let mut command = Command::new(self.program);
        command.args(&self.arguments).kill_on_drop(true);
        let output = command.stdin(std::process::Stdio::null()).output().await;
        let output = output.map_err(|error| self.not_run(&error))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let last = stderr.lines().rfind(|line| !line.trim().is_empty());
            let last = last.unwrap_or("it does not say why").trim().to_owned();
            let message = format!("`{}` failed ({}): {last}", self.words(), output.status);
            return Err(Failure::new(Kind::Runtime, message));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it on this process's own terminal, to its end.
    ///
    /// # Errors
    /// It is missing; or it fails, which it has explained itself.
    pub(super) async fn show(&self) -> Result<(), Failure> {
        let mut command = Command::new(self.program);
        command.args(&self.arguments).kill_on_drop(true);
        let status = command.status().await;
        let status = status.map_err(|error| self.not_run(&error))?;
        if status.success() {
            return Ok(());
        }
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Err(Failure::new(
            Kind::Command(code.unwrap_or(Kind::Runtime.exit_code())),
            format!("`{}` failed ({status})", self.words()),
        ))
    }

    fn not_run(&self, error: &io::Error) -> Failure {
        if error.kind() == io::ErrorKind::NotFound {
            let message = format!("there is no `{}` on this system", self.program);
            return Failure::new(Kind::Runtime, message).with_hint(
                "`hearth service` needs systemd or launchd; without them the daemon still starts \
                 when a command needs it",
            );
        }
        Failure::new(
            Kind::Runtime,
            format!("cannot run {}: {error}", self.program),
        )
    }
}

impl Step {
    /// In words, for a person; the text of a file beneath it.
    pub(super) fn words(&self) -> String {
        match self {
            Self::MakeFolder(path) => format!("make the folder {}", path.display()),
            Self::Write { path, text } => {
                let text: String = text.lines().map(|line| format!("    {line}\n")).collect();
                format!("write {}\n{}", path.display(), text.trim_end())
            }
            Self::Remove(path) => format!("remove {}", path.display()),
            Self::RemoveEmpty(path) => format!("remove {} if it is empty", path.display()),
            Self::EndDaemon { pid } => format!("end the daemon that runs (process {pid})"),
            Self::Run(call) => format!("run {}", call.words()),
        }
    }

    /// As JSON.
    pub(super) fn value(&self) -> Value {
        match self {
            Self::MakeFolder(path) => json!({"step": "make_folder", "path": path}),
            Self::Write { path, text } => json!({"step": "write", "path": path, "text": text}),
            Self::Remove(path) => json!({"step": "remove", "path": path}),
            Self::RemoveEmpty(path) => json!({"step": "remove_empty", "path": path}),
            Self::EndDaemon { pid } => json!({"step": "end_daemon", "pid": pid}),
            Self::Run(call) => json!({
                "step": "run", "program": call.program, "arguments": call.arguments,
            }),
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// It cannot be done.
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let at = |path: &Path, error: io::Error| {
            let message = format!("cannot {}: {error}", short(self, path));
            Failure::new(Failure::from(error).kind, message)
        };
        match self {
            Self::MakeFolder(path) => make_private(path).map_err(|error| at(path, error)),
            Self::Write { path, text } => write(path, text).map_err(|error| at(path, error)),
            Self::Remove(path) => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path, error)),
                _ => Ok(()),
            },
            Self::RemoveEmpty(path) => {
                // Whatever keeps it from going is a reason to leave it.
                let _ = fs::remove_dir(path);
                Ok(())
            }
            Self::EndDaemon { pid } => end(*pid).await,
            Self::Run(call) => match call.output().await {
                Err(failure) if !call.may_fail => Err(failure),
                _ => Ok(()),
            },
        }
    }
}

fn short(step: &Step, path: &Path) -> String {
    match step {
        Step::MakeFolder(_) => format!("make the folder {}", path.display()),
        Step::Write { .. } => format!("write {}", path.display()),
        _ => format!("remove {}", path.display()),
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Writes a file whole or not at all.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    fs::write(&beside, text)?;
    fs::rename(&beside, path)
}

#[cfg(unix)]
async fn end(pid: u32) -> Result<(), Failure> {
    use rustix::process::{Pid, Signal, kill_process, test_kill_process};
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    if kill_process(pid, Signal::TERM).is_err() {
        return Ok(()); // It has ended by itself.
    }
    let begin = std::time::Instant::now();
    while test_kill_process(pid).is_ok() {
        if begin.elapsed() > END_TIMEOUT {
            let message = format!("the daemon that runs (process {pid:?}) does not end");
            return Err(Failure::new(Kind::Runtime, message));
        }
        tokio::time::sleep(END_PAUSE).await;
    }
    Ok(())
}

#[cfg(not(unix))]
async fn end(_pid: u32) -> Result<(), Failure> {
    let _ = (END_TIMEOUT, END_PAUSE);
    Ok(())
}
