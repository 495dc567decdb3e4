//! The command line: every flag with its documentation and its parser.
//! It does not know what the commands do.

mod service;
mod store;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::duration::parse_duration;

pub(crate) use store::{ImportArgs, PullArgs, Quantize, RmArgs};

pub(crate) use service::{InstallArgs, LogsArgs, Manager, ServiceAction, ServiceArgs};

const AFTER_HELP: &str = "\
Exit codes: 0 ok, 1 runtime, 2 usage, 3 denied, 4 context overflow, 5 model unavailable, 6 busy,
7 schema unmet, 8 daemon unreachable, 9 deferred by the power plan, 130 interrupted.

Environment: HEARTH_SOCKET (the daemon's socket), HEARTH_AUTOSTART=0 (never start the daemon),
NO_COLOR. A daemon that the command starts gets the command's environment.";

/// Ask the language model that stays warm on this machine.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, after_help = AFTER_HELP, propagate_version = true)]
#[command(
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Print JSON instead of text: one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Do not start the daemon if none runs
    #[arg(long, global = true)]
    pub(crate) no_start: bool,
    /// Socket of the daemon [default: $HEARTH_SOCKET, or one in the user's runtime folder]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer one prompt and end
    Run(RunArgs),
    /// Talk with the model in the terminal
    Chat(ChatArgs),
    /// Show how a text is cut into tokens
    Tokenize(TokenizeArgs),
    /// Add a model of this machine to the store
    Import(ImportArgs),
    /// Fetch a model from a hub into the store
    Pull(PullArgs),
    /// List the models in the store
    #[command(visible_alias = "list")]
    Ls,
    /// Show what is known about a model
    Show(NameArg),
    /// Remove a model from the store
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Load a model onto the GPU, beside those that are warm if there is room, and keep it warm
    Load(LoadArgs),
    /// Take a model off the GPU, or all
    Unload(OptionalNameArg),
    /// Keep a warm model warm, however long nobody asks
    Pin(OptionalNameArg),
    /// Let a warm model be unloaded again when nobody asks for a while
    Unpin(OptionalNameArg),
    /// Open a socket for one sandboxed app, which may ask the model and manage nothing
    AppSocket(AppSocketArgs),
    /// Show the daemon's state
    Status(StatusArgs),
    /// Show who runs what now, or who has used how much
    Ps(PsArgs),
    /// Show how much power the daemon may use, or say so by hand
    Power(PowerArgs),
    /// Run the daemon as a service of this user: install, uninstall, start, stop, status, logs
    Service(ServiceArgs),
    /// Look for what keeps Hearth from working, and say how to mend it
    Doctor,
    /// Measure the engine's speed (arguments go to `hearthd bench`)
    #[command(disable_help_flag = true)]
    Bench(BenchArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, of one command or of `hearth` itself
    Man(ManArgs),
}

/// `hearth run`
#[derive(Debug, Args)]
#[command(after_help = "\
Standard input, when it is not a terminal, joins the prompt: its text first, then the words given
here, so `git diff | hearth run write a commit message` does what it says.")]
pub(crate) struct RunArgs {
    /// The prompt; several words are joined by spaces
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: Vec<String>,
    /// Do not read standard input
    #[arg(long, short = 'n')]
    pub(crate) no_stdin: bool,
    /// What the model is told before the conversation
    #[arg(long, short, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,
    /// Continue the prompt as it is, without the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,
    /// Report log-probabilities, with this many alternatives for each token (0 to 20)
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "0", require_equals = true)]
    pub(crate) logprobs: Option<u32>,
    /// Report the prompt's tokens too (with --logprobs: how likely each was)
    #[arg(long)]
    pub(crate) echo: bool,
    /// If the daemon is busy, try again when it says to, for at most TIME if one is given
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
        value_parser = parse_duration)]
    pub(crate) wait: Option<Option<Duration>>,
    /// Start when no other request is at work, however long that takes, also over restarts of the
    /// daemon
    #[arg(long, conflicts_with = "on_mains")]
    pub(crate) when_idle: bool,
    /// Start when the machine is on mains power, likewise
    #[arg(long)]
    pub(crate) on_mains: bool,
    /// If the prompt is too long, drop its oldest part instead of failing
    #[arg(long)]
    pub(crate) allow_truncation: bool,
    /// Flags shared with `chat`.
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

/// `hearth chat`
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// What the model is told before the conversation
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Keep no history of the lines typed here
    #[arg(long)]
    pub(crate) no_history: bool,
    /// Flags shared with `run`.
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

/// Flags that shape a reply.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of the reply")]
pub(crate) struct GenerationArgs {
    /// Model to ask [default: the warm one]
    #[arg(long, short, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// Most tokens to generate [default: 2048]
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<u32>,
    /// 0 takes the likeliest token each time; higher is more varied (0 to 10)
    #[arg(long, short, value_name = "X", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Choose among the N likeliest tokens; 0 for all
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<u32>,
    /// Choose among the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Drop tokens less likely than this times the likeliest
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// Make tokens that occurred before less likely; 1 for no effect
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) repeat_penalty: Option<f32>,
    /// Make tokens less likely for each time they were generated (-2 to 2)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,
    /// Make tokens less likely that were generated before (-2 to 2)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,
    /// Key of the random choices: the same seed gives the same reply
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// End the reply before this text (may be given several times)
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// How urgent the request is
    #[arg(long, value_enum, value_name = "CLASS")]
    pub(crate) class: Option<Class>,
    /// Who may reuse the work on this prompt for a later one that begins the same way
    #[arg(long, value_enum, value_name = "WHO")]
    pub(crate) cache: Option<Cache>,
    /// Give up after this time, such as 30s, 500ms or 2m
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// How urgent a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Class {
    /// Someone waits for it
    Interactive,
    /// Someone will want it soon
    Utility,
    /// Whenever there is time and power
    Background,
}

/// Who may reuse a prompt's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cache {
    /// The same app, which is the default
    App,
    /// Every app: others can tell by the time it takes that the prompt was seen
    Shared,
    /// Nobody: nothing is kept
    None,
}

/// `hearth tokenize`
#[derive(Debug, Args)]
pub(crate) struct TokenizeArgs {
    /// The text; standard input without it
    #[arg(value_name = "TEXT")]
    pub(crate) text: Vec<String>,
    /// Print token ids alone, on one line
    #[arg(long, conflicts_with = "count")]
    pub(crate) ids: bool,
    /// Print the number of tokens alone
    #[arg(long)]
    pub(crate) count: bool,
    /// Take the names of special tokens in the text as those tokens
    #[arg(long)]
    pub(crate) special: bool,
    /// Model whose tokenizer to use [default: the warm one]
    #[arg(long, short, value_name = "NAME")]
    pub(crate) model: Option<String>,
}

/// The name of a model.
#[derive(Debug, Args)]
pub(crate) struct NameArg {
    /// Name of the model, as `hearth ls` shows it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// `hearth load`
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Name of the model, as `hearth ls` shows it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Unload it after this time without requests; the next one loads it again [default: the daemon's
    /// setting]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) keep_alive: Option<Duration>,
}

/// The name of a model, if it is not the warm one.
#[derive(Debug, Args)]
pub(crate) struct OptionalNameArg {
    /// Name of the model [default: the warm one]
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
}

/// `hearth app-socket`
#[derive(Debug, Args)]
#[command(after_help = "\
Whatever connects through the socket is APP to the daemon. It may ask the model; it cannot manage
models, open sockets, or see what other apps do. The socket lies alone in its folder.

Without COMMAND the path is printed, and the socket lives until this command is interrupted. With
COMMAND it lives while that runs, with HEARTH_SOCKET set; the exit code is passed on.

  hearth app-socket org.example.App -- org.example.App --some-flag")]
pub(crate) struct AppSocketArgs {
    /// Name of the app, such as org.example.App (A-Z, a-z, 0-9, `.`, `_`, `-`; at most 64)
    #[arg(value_name = "APP")]
    pub(crate) app: String,
    /// Which of several instances of the app it is, for `hearth status`
    #[arg(long, value_name = "NAME")]
    pub(crate) instance: Option<String>,
    /// Command to run, with its arguments, after `--`
    #[arg(value_name = "COMMAND", last = true)]
    pub(crate) command: Vec<OsString>,
}

/// `hearth status`
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Print again at every change, until Ctrl-C
    #[arg(long, short)]
    pub(crate) watch: bool,
}

/// `hearth power`
#[derive(Debug, Args)]
#[command(after_help = "\
The choice holds until another is made, also for later daemons. Heat and short memory count whatever
is chosen.")]
pub(crate) struct PowerArgs {
    /// Whose word counts [default: only show]
    #[arg(value_enum, value_name = "MODE")]
    pub(crate) mode: Option<PowerMode>,
}

/// How much power may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PowerMode {
    /// As battery, power profile and temperature say
    Auto,
    /// Full power, whatever the battery says
    Full,
    /// Save power, as on a low battery
    Saver,
}

/// `hearth ps`
#[derive(Debug, Args)]
#[command(after_help = "\
STATE is `prefill` while a prompt is read, `decode` while text is made, or `queued N` with N requests
ahead. PROMPT, CACHED and GENERATED count tokens; CACHED of PROMPT did not need to be computed. KV
counts blocks of the cache, KEPT those kept for an app's later prompts.")]
pub(crate) struct PsArgs {
    /// Show each app's account since the daemon's start, the busiest first
    #[arg(long, short)]
    pub(crate) apps: bool,
}

/// `hearth bench`
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Arguments of `hearthd bench`; `--help` lists them
    #[arg(
        value_name = "ARGS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) args: Vec<OsString>,
}

/// `hearth man`
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Command whose page to print
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Option<String>,
    /// Write all pages into this folder instead
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    pub(crate) dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests;
