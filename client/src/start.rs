//! Starting the daemon on demand: find its program, run it apart from the caller, wait until its
//! socket answers. It does not decide whether the daemon should be started.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hearth_proto::endpoint;
use tokio::process::{Child, Command};

use crate::Error;
use crate::connect::{daemon_pid, open};

/// Longest wait for the socket of a new daemon. It listens before it loads a model.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// First pause between two looks at the socket; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause between two looks at the socket.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Exit code of a daemon that found another one running.
const EXIT_ANOTHER_RUNS: i32 = 75;
/// A log above this size is put aside before a new daemon writes.
const LOG_BYTES_MAX: u64 = 4 << 20;
/// How much of the log's end is searched for its last line.
const LOG_TAIL_BYTES: u64 = 4096;

/// The program `hearthd`: beside the running program, else in `PATH`.
#[must_use]
pub fn daemon_program() -> Option<PathBuf> {
    let name = format!("hearthd{}", std::env::consts::EXE_SUFFIX);
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(&name)));
    let in_path = std::env::var_os("PATH")
        .map(|path| {
            std::env::split_paths(&path)
                .map(|dir| dir.join(&name))
                .collect::<Vec<_>>()
        })
        .unwrap_or_default();
    beside
        .into_iter()
        .chain(in_path)
        .find(|path| is_program(path))
}

/// The log of daemons that clients start: `hearthd.log` in the state directory.
///
/// # Errors
/// [`Error::Endpoint`] if there is no home directory.
pub fn daemon_log_path() -> Result<PathBuf, Error> {
    Ok(endpoint::state_dir()?.join("hearthd.log"))
}

/// Starts a daemon on this socket and waits until it answers.
///
/// # Errors
/// Those of [`crate::Client::connect_or_start`].
pub(crate) async fn start_daemon(socket: &Path) -> Result<(), Error> {
    let program = daemon_program().ok_or(Error::ProgramNotFound)?;
    let log = daemon_log_path()?;
    let failed = |source| Error::Spawn {
        program: program.clone(),
        source,
    };
    let file = open_log(&log).map_err(failed)?;
    let log_start = file.metadata().map_err(failed)?.len();
    let mut child = spawn(&program, socket, file).map_err(failed)?;
    wait_for_socket(&mut child, socket, &log, log_start).await
}

fn spawn(program: &Path, socket: &Path, log: File) -> io::Result<Child> {
    let mut command = Command::new(program);
    command
        .env(endpoint::SOCKET_VARIABLE, socket)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(false);
    // A process group of its own: Ctrl-C in the caller's terminal, and the hang-up when it closes,
    // go to the foreground group and pass the daemon by.
    #[cfg(unix)]
    command.process_group(0);
    command.spawn()
}

/// Looks at the socket until it answers, the daemon ends, or the time is over.
async fn wait_for_socket(
    child: &mut Child,
    socket: &Path,
    log: &Path,
    log_start: u64,
) -> Result<(), Error> {
    let begin = Instant::now();
    let pid = child.id().unwrap_or_default();
    let mut pause = FIRST_PAUSE;
    let mut other_runs = false;
    loop {
        let refusal = match open(socket).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if !other_runs && let Ok(Some(status)) = child.try_wait() {
            // Two commands may start a daemon at the same moment: the one that lost the race for
            // the lock ends, and its caller waits for the other's.
            if status.code() != Some(EXIT_ANOTHER_RUNS) {
                return Err(exited(status, log, log_start));
            }
            other_runs = true;
        }
        if begin.elapsed() > START_TIMEOUT {
            return Err(if other_runs {
                let socket = socket.to_owned();
                Error::Refused {
                    pid: daemon_pid(&socket),
                    socket,
                    source: refusal,
                }
            } else {
                let waited_ms = begin.elapsed().as_millis();
                Error::StartTimeout {
                    pid,
                    waited_ms,
                    log: log.to_owned(),
                }
            });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn exited(status: ExitStatus, log: &Path, log_start: u64) -> Error {
    let last_line = last_line(log, log_start)
        .map(|line| format!(": {line}"))
        .unwrap_or_default();
    Error::DaemonExited {
        status,
        last_line,
        log: log.to_owned(),
    }
}

/// Opens the log for appending; creates its folder (0700) and the file (0600).
fn open_log(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(dir)?;
    }
    if fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// The last line with anything on it that was written to the log after `start`.
fn last_line(path: &Path, start: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let end = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(
        start.max(end.saturating_sub(LOG_TAIL_BYTES)),
    ))
    .ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())
        .map(str::to_owned)
}

#[cfg(unix)]
fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_program(path: &Path) -> bool {
    path.is_file()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_log_is_private_and_keeps_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/hearthd.log");
        fs::create_dir(dir.path().join("state")).unwrap();
        fs::write(&path, "old error\n").unwrap();
        fs::remove_file(&path).unwrap();
        drop(open_log(&path).unwrap());
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::write(&path, "old error\n").unwrap();
        let start = open_log(&path).unwrap().metadata().unwrap().len();
        assert_eq!(last_line(&path, start), None);
        fs::write(&path, "old error\nnew error\n\n").unwrap();
        assert_eq!(last_line(&path, start).as_deref(), Some("new error"));
    }

    #[test]
    fn a_large_log_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hearthd.log");
        File::create(&path)
            .unwrap()
            .set_len(LOG_BYTES_MAX + 1)
            .unwrap();
        assert_eq!(open_log(&path).unwrap().metadata().unwrap().len(), 0);
        assert!(dir.path().join("hearthd.log.old").exists());
    }

    #[tokio::test]
    async fn a_program_that_ends_is_reported_with_its_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("hearthd");
        fs::write(
            &program,
            "#!/bin/sh\necho config.toml: line 3: unknown key >&2\nexit 78\n",
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let log = dir.path().join("hearthd.log");
        let socket = dir.path().join("hearthd.sock");
        let mut child = spawn(&program, &socket, open_log(&log).unwrap()).unwrap();
        let error = wait_for_socket(&mut child, &socket, &log, 0)
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("78") && text.contains("line 3: unknown key"),
            "{text}"
        );
    }
}
