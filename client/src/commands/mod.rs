//! The commands, one a file, and what they share: which command runs, and the way to the daemon.

mod app_socket;
mod bench;
mod chat;
mod doctor;
mod doctor_driver;
mod doctor_machine;
mod models;
mod pages;
mod power;
mod ps;
mod pull;
mod reply;
mod request;
mod run;
mod service;
mod show;
mod status;
mod tokenize;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use hearth::{Client, Error};
use hearth_proto::endpoint;

use crate::cli::{Cli, Command, Global};
use crate::exit::Failure;
use crate::output::{Output, complain};

/// Turns starting the daemon on demand off when it is 0, `false`, `no` or `off`.
const AUTOSTART_VARIABLE: &str = "HEARTH_AUTOSTART";
/// Longest wait for the daemon's state before a command goes on without it.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the command.
///
/// # Errors
/// Why it did not succeed.
pub(crate) async fn run(cli: Cli, output: Output) -> Result<(), Failure> {
    let global = cli.global;
    match cli.command {
        Command::Run(args) => run::run(args, &global, output).await,
        Command::Chat(args) => chat::chat(args, &global, output).await,
        Command::Tokenize(args) => tokenize::tokenize(args, &global, output).await,
        Command::Import(args) => models::import(args, &global, output).await,
        Command::Pull(args) => pull::pull(args, &global, output).await,
        Command::Rm(args) => models::remove(args, &global, output).await,
        Command::Ls => models::list(&global, output).await,
        Command::Show(args) => show::show(args, &global, output).await,
        Command::Load(args) => models::load(args, &global, output).await,
        Command::Unload(args) => models::unload(args, &global, output).await,
        Command::Pin(args) => models::pin(args, true, &global, output).await,
        Command::Unpin(args) => models::pin(args, false, &global, output).await,
        Command::AppSocket(args) => app_socket::app_socket(args, &global, output).await,
        Command::Status(args) => status::status(args, &global, output).await,
        Command::Power(args) => power::power(args, &global, output).await,
        Command::Ps(args) => ps::ps(args, &global, output).await,
        Command::Service(args) => service::service(args, &global, output).await,
        Command::Doctor => doctor::doctor(&global, output).await,
        Command::Bench(args) => bench::bench(args, &global),
        Command::Completions { shell } => pages::completions(shell, output),
        Command::Man(args) => pages::man(args, output),
    }
}

/// The socket that this command uses.
fn socket(global: &Global) -> Result<PathBuf, Failure> {
    let path = match &global.socket {
        Some(path) => endpoint::check_socket_path(path.clone()),
        None => endpoint::socket_path(),
    };
    Ok(path.map_err(Error::from)?)
}

/// Connects to the daemon; starts one if none runs and nothing forbids that.
async fn connect(global: &Global, output: Output) -> Result<Client, Failure> {
    let socket = socket(global)?;
    let client = match Client::connect_to(&socket).await {
        Err(Error::NotRunning { .. } | Error::Refused { .. }) if may_start(global) => {
            let progress = output.progress();
            progress.say("starting the daemon");
            Client::start_on(&socket).await?
        }
        other => other?,
    };
    warn_on_skew(&client).await;
    Ok(client)
}

/// Connects to the daemon that runs; never starts one.
async fn connect_to_running(global: &Global) -> Result<Client, Failure> {
    let client = Client::connect_to(socket(global)?).await?;
    warn_on_skew(&client).await;
    Ok(client)
}

/// Tells when the daemon and this command are of different versions: after an update the old daemon
/// may still run.
async fn warn_on_skew(client: &Client) {
    // A daemon too old or too busy to tell its state gets the command itself, which reports it.
    if let Ok(Ok(status)) = tokio::time::timeout(STATUS_TIMEOUT, client.status()).await
        && let Some(warning) = skew_warning(&status.version, status.pid)
    {
        complain(&format!("hearth: warning: {warning}\n"));
    }
}

/// The words of [`warn_on_skew`]; `None` when the versions agree.
fn skew_warning(daemon: &str, pid: u32) -> Option<String> {
    let own = env!("CARGO_PKG_VERSION");
    (daemon != own).then(|| {
        if pid == 0 {
            // Through an app socket nobody is told, and nobody but the user can do anything.
            return format!("the daemon is version {daemon}, this command is {own}");
        }
        format!(
            "the daemon (pid {pid}) is version {daemon}, this command is {own}; \
             end it with `kill {pid}` and the new one starts by itself"
        )
    })
}

/// Whether a daemon may be started.
fn may_start(global: &Global) -> bool {
    !global.no_start && autostart(std::env::var_os(AUTOSTART_VARIABLE).as_deref())
}

fn autostart(value: Option<&OsStr>) -> bool {
    let value = value.map(|value| value.to_string_lossy().to_ascii_lowercase());
    !matches!(value.as_deref(), Some("0" | "false" | "no" | "off"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn autostart_is_on_unless_turned_off() {
        for on in [None, Some(""), Some("1"), Some("yes")] {
            assert!(autostart(on.map(OsStr::new)), "{on:?}");
        }
        for off in ["0", "false", "No", "OFF"] {
            assert!(!autostart(Some(OsStr::new(off))), "{off}");
        }
    }

    #[test]
    fn only_different_versions_are_worth_a_word() {
        assert_eq!(skew_warning(env!("CARGO_PKG_VERSION"), 1), None);
        let warning = skew_warning("0.0.1", 42).unwrap();
        assert!(
            warning.contains("0.0.1") && warning.contains("kill 42"),
            "{warning}"
        );
        let warning = skew_warning("0.0.1", 0).unwrap();
        assert!(!warning.contains("kill"), "{warning}");
    }
}
