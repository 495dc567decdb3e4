//! The command line of `hearth service`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `hearth service`
#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is installed unless you ask: without it, the daemon starts when a command needs it. Installed,
it starts at login, is watched, and its socket outlives it: an upgrade refuses nobody.")]
pub(crate) struct ServiceArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) action: ServiceAction,
    /// Service manager to use [default: this system's]
    #[arg(long, global = true, value_enum, value_name = "WHICH", hide = true)]
    pub(crate) manager: Option<Manager>,
}

/// What to do with the service.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceAction {
    /// Write the units for this user, start the daemon, and start it at every login
    Install(InstallArgs),
    /// Stop the daemon and remove what `install` wrote; models and settings stay
    Uninstall(DryRun),
    /// Start the socket and the daemon
    Start(DryRun),
    /// Stop the daemon and close its socket, until the next login
    Stop(DryRun),
    /// Tell whether the service is installed and runs
    Status,
    /// Show the daemon's log as it grows
    Logs(LogsArgs),
}

/// `hearth service install`
#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// Program of the daemon [default: `hearthd` beside this program, else in PATH]
    #[arg(long, value_name = "FILE")]
    pub(crate) program: Option<PathBuf>,
    /// Let the daemon write below this folder too, such as a `models_dir` of your choice (may be
    /// given several times)
    #[arg(long, value_name = "FOLDER")]
    pub(crate) write: Vec<PathBuf>,
    /// Leave out what needs user namespaces, which some systems forbid
    #[arg(long)]
    pub(crate) no_namespaces: bool,
    /// Flags shared with the other actions.
    #[command(flatten)]
    pub(crate) dry_run: DryRun,
}

/// Whether to do anything at all.
#[derive(Debug, Args)]
pub(crate) struct DryRun {
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// `hearth service logs`
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Show this many lines of the past
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    pub(crate) lines: u32,
    /// End with the last line there is, instead of waiting for more
    #[arg(long)]
    pub(crate) no_follow: bool,
}

/// A service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Manager {
    /// The user's systemd
    Systemd,
    /// The user's launchd
    Launchd,
}
