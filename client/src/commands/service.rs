//! `hearth service`: the daemon as a service of this user, in systemd or launchd. Opt-in: nothing
//! else installs it.

mod launchd;
mod steps;
mod systemd;

use std::path::PathBuf;
use std::time::Duration;

use hearth::{Client, Error};
use hearth_proto::endpoint;
use serde_json::json;

use crate::cli::{Global, InstallArgs, LogsArgs, Manager, ServiceAction, ServiceArgs};
use crate::exit::{Failure, Kind};
use crate::output::Output;

use steps::Step;

/// Longest wait for a running daemon's word on whether it is the service's.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// What the texts of the units are made for.
struct Place {
    /// The daemon's program.
    program: PathBuf,
    /// Its socket.
    socket: PathBuf,
    /// Folders that it writes in; they are made if they are missing.
    folders: Vec<PathBuf>,
    /// Its log, where no journal keeps one.
    log: PathBuf,
    /// Whether to leave out what needs user namespaces.
    no_namespaces: bool,
    /// A daemon that runs apart from the service and has the socket.
    running: Option<u32>,
}

/// How the service is.
struct State {
    is_installed: bool,
    is_enabled: bool,
    is_running: bool,
    is_listening: bool,
    pid: Option<u32>,
    words: String,
}

/// Does what is asked to the service.
///
/// # Errors
/// There is no service manager, or it refuses.
pub(crate) async fn service(
    args: ServiceArgs,
    global: &Global,
    output: Output,
) -> Result<(), Failure> {
    let manager = match args.manager.or_else(usual) {
        Some(manager) => manager,
        None => {
            let message = "there is neither systemd nor launchd on this system";
            return Err(Failure::new(Kind::Runtime, message));
        }
    };
    match args.action {
        ServiceAction::Status => status(manager, output).await,
        ServiceAction::Logs(args) => logs(manager, &args).await,
        ServiceAction::Install(args) => {
            let place = place(&args, global).await?;
            let steps = match manager {
                Manager::Systemd => systemd::install(&place)?,
                Manager::Launchd => launchd::install(&place)?,
            };
            carry_out("install", manager, &steps, args.dry_run.dry_run, output).await
        }
        ServiceAction::Uninstall(args) => {
            let mut folders = own_folders()?;
            // The models' folder lies in one that is the daemon's own too.
            let outer: Vec<PathBuf> = folders
                .iter()
                .filter_map(|f| f.parent())
                .map(Into::into)
                .collect();
            folders.extend(outer.into_iter().filter(|outer| outer.ends_with("hearth")));
            let steps = match manager {
                Manager::Systemd => systemd::uninstall(&folders)?,
                Manager::Launchd => launchd::uninstall(&folders)?,
            };
            carry_out("uninstall", manager, &steps, args.dry_run, output).await
        }
        ServiceAction::Start(args) => {
            let running = apart_from_service(global).await?;
            let steps = match manager {
                Manager::Systemd => systemd::start(running),
                Manager::Launchd => launchd::start(running)?,
            };
            carry_out("start", manager, &steps, args.dry_run, output).await
        }
        ServiceAction::Stop(args) => {
            let steps = match manager {
                Manager::Systemd => systemd::stop(),
                Manager::Launchd => launchd::stop(),
            };
            carry_out("stop", manager, &steps, args.dry_run, output).await
        }
    }
}

/// The service manager of this system.
fn usual() -> Option<Manager> {
    if cfg!(target_os = "macos") {
        Some(Manager::Launchd)
    } else if cfg!(target_os = "linux") {
        Some(Manager::Systemd)
    } else {
        None
    }
}

/// Prints the steps, or does them one after the other until one fails.
async fn carry_out(
    action: &str,
    manager: Manager,
    steps: &[Step],
    dry_run: bool,
    output: Output,
) -> Result<(), Failure> {
    if !dry_run {
        match manager {
            Manager::Systemd => systemd::check().await?,
            Manager::Launchd => launchd::check().await?,
        }
        for step in steps {
            output.note(step.words().lines().next().unwrap_or_default());
            if let Err(failure) = step.run().await {
                let starts = matches!(action, "install" | "start");
                return Err(match manager {
                    Manager::Systemd if starts && matches!(step, Step::Run(_)) => {
                        failure.with_hint(systemd::advice().await)
                    }
                    _ => failure,
                });
            }
        }
    }
    if output.json {
        return Ok(output.object(&json!({
            "event": "service",
            "action": action,
            "dry_run": dry_run,
            "steps": steps.iter().map(Step::value).collect::<Vec<_>>(),
        }))?);
    }
    if dry_run {
        for step in steps {
            output.line(&step.words())?;
        }
        return Ok(());
    }
    Ok(output.line(match action {
        "install" => "installed: the daemon runs, and starts at every login",
        "uninstall" => "uninstalled; models and settings are still there",
        "start" => "started",
        _ => "stopped, until the next login",
    })?)
}

async fn place(args: &InstallArgs, global: &Global) -> Result<Place, Failure> {
    let program = match &args.program {
        Some(program) => program.clone(),
        None => hearth::daemon_program().ok_or(Error::ProgramNotFound)?,
    };
    let absolute = |path: PathBuf| {
        path.canonicalize()
            .map_err(|error| Failure::usage(format!("cannot use {}: {error}", path.display())))
    };
    let mut folders = own_folders()?;
    for folder in &args.write {
        folders.push(absolute(folder.clone())?);
    }
    Ok(Place {
        // A link is kept: a package manager may turn it to the next version.
        program: std::path::absolute(program)?,
        socket: super::socket(global)?,
        folders,
        log: hearth::daemon_log_path()?,
        no_namespaces: args.no_namespaces,
        running: apart_from_service(global).await?,
    })
}

/// The folders that a daemon makes for itself, those of settings left out.
fn own_folders() -> Result<Vec<PathBuf>, Failure> {
    let models = endpoint::models_dir().map_err(Error::from)?;
    let state = endpoint::state_dir().map_err(Error::from)?;
    let cache = endpoint::cache_dir().map_err(Error::from)?;
    Ok(vec![models, state, cache])
}

/// The process of a daemon that runs, if it is not the service's.
async fn apart_from_service(global: &Global) -> Result<Option<u32>, Failure> {
    let socket = super::socket(global)?;
    let ask = async {
        let client = Client::connect_to(&socket).await.ok()?;
        client.status().await.ok()
    };
    let status = tokio::time::timeout(ASK_TIMEOUT, ask).await;
    let status = status.ok().flatten().filter(|status| status.pid != 0);
    let is_service = |status: &hearth::v1::DaemonStatus| {
        let process = status.process.as_ref();
        process.is_some_and(|process| process.socket_activated)
    };
    Ok(status
        .filter(|status| !is_service(status))
        .map(|status| status.pid))
}

async fn status(manager: Manager, output: Output) -> Result<(), Failure> {
    let state = match manager {
        Manager::Systemd => systemd::state().await?,
        Manager::Launchd => launchd::state().await?,
    };
    if output.json {
        output.object(&json!({
            "event": "service_status",
            "installed": state.is_installed,
            "enabled": state.is_enabled,
            "running": state.is_running,
            "listening": state.is_listening,
            "pid": state.pid,
            "state": state.words,
        }))?;
    } else if state.is_installed {
        let yes = |fact, yes: &'static str, no: &'static str| if fact { yes } else { no };
        let pid = state.pid.map(|pid| format!(", process {pid}"));
        output.text(&format!(
            "service  {}{}\nsocket   {}\nlogin    {}\n",
            state.words,
            pid.unwrap_or_default(),
            yes(state.is_listening, "open", "closed"),
            yes(
                state.is_enabled,
                "starts at login",
                "does not start at login"
            ),
        ))?;
    } else {
        output.line("not installed; `hearth service install` does that")?;
    }
    if state.is_running || (state.is_installed && state.is_listening) {
        return Ok(());
    }
    Err(Failure::new(Kind::Unreachable, "the service does not run"))
}

async fn logs(manager: Manager, args: &LogsArgs) -> Result<(), Failure> {
    let follow = !args.no_follow;
    let call = match manager {
        Manager::Systemd => systemd::logs(args.lines, follow),
        Manager::Launchd => launchd::logs(&hearth::daemon_log_path()?, args.lines, follow),
    };
    call.show().await
}
