//! `hearth app-socket`: holds a socket for one sandboxed app, while a command runs or until told to
//! stop.

use std::ffi::OsString;
use std::process::ExitStatus;

use hearth::AppSocket;
use hearth_proto::endpoint::SOCKET_VARIABLE;
use tokio::process::{Child, Command};

use crate::cli::{AppSocketArgs, Global};
use crate::exit::{Failure, Kind};
use crate::output::{Output, complain};

use super::{AUTOSTART_VARIABLE, connect};

/// Opens the socket and holds it.
///
/// # Errors
/// The socket cannot be had or was lost; the command cannot be run, or failed.
pub(crate) async fn app_socket(
    args: AppSocketArgs,
    global: &Global,
    output: Output,
) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let client = connect(global, output).await?;
    let mut socket = client
        .open_app_socket(args.app.clone(), args.instance.clone())
        .await?;
    match args.command.split_first() {
        Some((program, arguments)) => run(program, arguments, socket, signals).await,
        None => {
            show(&args, &socket, output)?;
            tokio::select! {
                // Being told to stop is how this ends, and no failure.
                _ = signals.next() => Ok(()),
                error = socket.closed() => Err(lost(error)),
            }
        }
    }
}

fn show(args: &AppSocketArgs, socket: &AppSocket, output: Output) -> Result<(), Failure> {
    let path = socket.path().display().to_string();
    if output.json {
        return Ok(output.object(&serde_json::json!({
            "event": "app_socket",
            "app": args.app,
            "instance": args.instance,
            "socket_path": path,
        }))?);
    }
    Ok(output.line(&path)?)
}

/// Runs a command that finds the socket in its environment, and ends as it ends.
async fn run(
    program: &OsString,
    arguments: &[OsString],
    mut socket: AppSocket,
    mut signals: Signals,
) -> Result<(), Failure> {
    let mut child = Command::new(program)
        .args(arguments)
        .env(SOCKET_VARIABLE, socket.path())
        // A daemon that the command started would not know the app from any other.
        .env(AUTOSTART_VARIABLE, "0")
        .spawn()
        .map_err(|error| {
            let program = program.to_string_lossy();
            Failure::usage(format!("cannot run {program}: {error}"))
        })?;
    let mut is_open = true;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            asked = signals.next() => match asked {
                // The terminal interrupts the command too: whether it ends is its affair.
                Asked::Interrupt => {}
                #[cfg(unix)]
                Asked::Terminate => terminate(&mut child),
            },
            error = socket.closed(), if is_open => {
                is_open = false;
                complain(&format!("hearth: warning: {}\n", lost(error).message()));
            }
        }
    };
    match exit_code(status) {
        0 => Ok(()),
        code => Err(Failure::new(
            Kind::Command(code),
            format!("the command ended with {status}"),
        )),
    }
}

/// The daemon closed the socket.
fn lost(error: hearth::Error) -> Failure {
    let cause = Failure::from(error);
    let message = format!("the app socket is closed: {}", cause.message());
    Failure::new(Kind::Unreachable, message)
}

/// The exit code that tells how the command ended; for one that a signal ended, as shells have it.
fn exit_code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return u8::try_from(128 + signal).unwrap_or(u8::MAX);
    }
    status
        .code()
        .map_or(u8::MAX, |code| u8::try_from(code).unwrap_or(u8::MAX))
}

/// Hands SIGTERM on to the command.
#[cfg(unix)]
fn terminate(child: &mut Child) {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        // It may have ended just now.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// What a signal asks for.
enum Asked {
    Interrupt,
    #[cfg(unix)]
    Terminate,
}

/// The signals that ask this command to end, caught from before the socket is open.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Interrupt,
            _ = self.terminate.recv() => Asked::Terminate,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> Asked {
        let _ = tokio::signal::ctrl_c().await;
        Asked::Interrupt
    }
}
