//! The program `hearthd`: flags, configuration, lock and socket, signals, exit codes.
//!
//! Everything else is in the library, which binds no port and installs no handler by itself.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hearthd::OwnProcess;
use hearthd::bench::BenchArgs;
use hearthd::config::{self, Config};
use hearthd::socket::{self, BoundSocket, SocketError};
use hearthd::supervisor::Supervisor;
use hearthd::templates::Templates;

/// Exit code of a configuration that cannot be used (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;
/// Exit code if another daemon serves the socket (`EX_TEMPFAIL`).
const EXIT_TAKEN: u8 = 75;

/// Keeps one Llama model warm on the GPU and serves it over a local socket.
///
/// Settings come from the configuration file (`config.toml` in the configuration directory), under
/// the environment, under these flags. Exit codes: 78 for a bad configuration, 75 if another
/// daemon serves the socket, 2 for bad flags, 1 for anything else.
#[derive(Parser)]
#[command(name = "hearthd", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration file [environment: HEARTH_CONFIG].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Checks the configuration and leaves: 0 if it is sound, 78 if not.
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Measures prefill and decode on this machine, without a daemon.
    Bench {
        #[command(flatten)]
        settings: Box<Settings>,
        #[command(flatten)]
        what: BenchArgs,
    },
    /// Renders chat templates for the daemon that starts it.
    #[cfg(unix)]
    #[command(name = hearthd::templates::RENDERER_COMMAND, hide = true)]
    RenderTemplates,
}

/// One flag for each setting that is worth one; each overrides the setting of the same name.
#[derive(clap::Args)]
struct Settings {
    /// Socket to listen on: an absolute path of at most 103 bytes [HEARTH_SOCKET].
    #[arg(long, value_name = "PATH")]
    socket: Option<String>,
    /// Folder of models [HEARTH_MODELS].
    #[arg(long, value_name = "DIR")]
    models_dir: Option<String>,
    /// Model to load at start: a name in the store or an absolute path of a file [HEARTH_MODEL].
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// Most models that are warm at once, where memory allows it [HEARTH_MODELS_MAX].
    #[arg(long, value_name = "N")]
    models_max: Option<String>,
    /// GPU: auto, integrated, discrete, software or name:TEXT [HEARTH_ADAPTER].
    #[arg(long, value_name = "WHICH")]
    adapter: Option<String>,
    /// Activations in matrix products: auto, float or int8 [HEARTH_ACTIVATIONS].
    #[arg(long, value_name = "KIND")]
    activations: Option<String>,
    /// Drafts of tokens from earlier text, verified in one step: auto or off [HEARTH_SPECULATION].
    #[arg(long, value_name = "WHEN")]
    speculation: Option<String>,
    /// Timing of kernels at the first load on a GPU: auto or off [HEARTH_TUNING].
    #[arg(long, value_name = "WHEN")]
    tuning: Option<String>,
    /// Longest context of a sequence, in tokens [HEARTH_CONTEXT_LEN].
    #[arg(long, value_name = "TOKENS")]
    context_len: Option<String>,
    /// GPU memory of the KV cache, in bytes.
    #[arg(long, value_name = "BYTES")]
    kv_bytes_max: Option<String>,
    /// Most prompt tokens in one step.
    #[arg(long, value_name = "TOKENS")]
    prefill_chunk: Option<String>,
    /// Most sequences at once.
    #[arg(long, value_name = "N")]
    slots: Option<String>,
    /// Most requests waiting.
    #[arg(long, value_name = "N")]
    queue_max: Option<String>,
    /// Most requests of one app waiting.
    #[arg(long, value_name = "N")]
    app_queue_max: Option<String>,
    /// Most sequences of one app at once.
    #[arg(long, value_name = "N")]
    app_slots: Option<String>,
    /// Share of the GPU's time for background requests while others are at work: above 0, at most 1.
    #[arg(long, value_name = "SHARE")]
    background_share: Option<String>,
    /// Keep finished prompts for later ones that begin the same way: true or false.
    #[arg(long, value_name = "BOOL")]
    prefix_cache: Option<String>,
    /// Watts that the GPU draws at work, to estimate energy where the machine tells nothing.
    #[arg(long, value_name = "WATTS")]
    gpu_watts: Option<String>,
    /// Writes counters to this file, for Prometheus [HEARTH_METRICS_FILE].
    #[arg(long, value_name = "PATH")]
    metrics_file: Option<String>,
    /// Answers `GET /metrics` on this local socket [HEARTH_METRICS_SOCKET].
    #[arg(long, value_name = "PATH")]
    metrics_socket: Option<String>,
    /// Least time between two versions of the metrics file.
    #[arg(long, value_name = "SECONDS")]
    metrics_interval_s: Option<String>,
    /// Largest storage binding, in bytes: matrices are cut in shards below it.
    #[arg(long, value_name = "BYTES")]
    binding_bytes_max: Option<String>,
    /// Never uses subgroup operations.
    #[arg(long)]
    no_subgroups: bool,
    /// Never multiplies by cooperative matrices.
    #[arg(long)]
    no_cooperative_matrix: bool,
    /// Giving up, for good, what the daemon has no use for: auto or off [HEARTH_HARDENING].
    #[arg(long, value_name = "WHEN")]
    hardening: Option<String>,
    /// Log filter, such as `info` or `hearthd=debug,warn` [HEARTH_LOG].
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Writes the log as JSON, one object a line.
    #[arg(long)]
    log_json: bool,
}

impl Settings {
    fn pairs(self) -> Vec<(&'static str, String)> {
        let flag = |set: bool| set.then(|| "true".to_owned());
        [
            ("socket", self.socket),
            ("models_dir", self.models_dir),
            ("model", self.model),
            ("models_max", self.models_max),
            ("adapter", self.adapter),
            ("activations", self.activations),
            ("speculation", self.speculation),
            ("tuning", self.tuning),
            ("context_len", self.context_len),
            ("kv_bytes_max", self.kv_bytes_max),
            ("prefill_chunk", self.prefill_chunk),
            ("slots", self.slots),
            ("queue_max", self.queue_max),
            ("app_queue_max", self.app_queue_max),
            ("app_slots", self.app_slots),
            ("background_share", self.background_share),
            ("prefix_cache", self.prefix_cache),
            ("gpu_watts", self.gpu_watts),
            ("metrics_file", self.metrics_file),
            ("metrics_socket", self.metrics_socket),
            ("metrics_interval_s", self.metrics_interval_s),
            ("binding_bytes_max", self.binding_bytes_max),
            ("no_subgroups", flag(self.no_subgroups)),
            ("no_cooperative_matrix", flag(self.no_cooperative_matrix)),
            ("hardening", self.hardening),
            ("log", self.log),
            ("log_json", flag(self.log_json)),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let variable = |name: &str| std::env::var(name).ok();
    match cli.command {
        Some(Command::Bench { settings, what }) => {
            return match config::load(cli.config.as_deref(), &variable, &settings.pairs()) {
                Ok(config) => bench(&config, &what),
                Err(error) => complain(&error, EXIT_CONFIG),
            };
        }
        #[cfg(unix)]
        Some(Command::RenderTemplates) => {
            return match hearthd::templates::render_for_parent() {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => complain(&error, 1),
            };
        }
        None => {}
    }
    let config = match config::load(cli.config.as_deref(), &variable, &cli.settings.pairs()) {
        Ok(config) => config,
        Err(error) => return complain(&error, EXIT_CONFIG),
    };
    if cli.check_config {
        return ExitCode::SUCCESS;
    }
    hearthd::start_log(&config.log, config.log_json);
    hearthd::hide_panic_messages();
    serve(config)
}

/// Prepares the process, which has one thread until then, and serves.
fn serve(mut config: Config) -> ExitCode {
    hearthd::forbid_core_files();
    hearthd::give_back_what_is_freed();
    let handed_over = match HandedOver::take() {
        Ok(handed_over) => handed_over,
        Err(error) => return complain(&error, 1),
    };
    if let Some(path) = handed_over.path() {
        config.socket = path;
    }
    let process = OwnProcess {
        supervisor: Supervisor::from_environment(),
        // Before the process is confined, and while it is small.
        templates: Templates::start(),
        protection: hearthd::hardening::begin(&config),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("hearthd")
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(run(process, config, handed_over));
            // A driver's start that hangs must not keep the process.
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            code
        }
        Err(error) => complain(&error, 1),
    }
}

fn bench(config: &Config, what: &BenchArgs) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match hearthd::bench::run(config, what, &mut stdout) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, 1),
    }
}

async fn run(process: OwnProcess, config: Config, handed_over: HandedOver) -> ExitCode {
    let shutdown = match Signals::new() {
        Ok(signals) => signals.first(),
        Err(error) => return complain(&error, 1),
    };
    let socket = match handed_over.listen(&config) {
        Ok(socket) => socket,
        Err(error @ SocketError::Taken { .. }) => return complain(&error, EXIT_TAKEN),
        Err(error) => return complain(&error, 1),
    };
    match hearthd::serve_as(process, config, socket, shutdown).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error, 1),
    }
}

/// The socket that the service manager made, if there is one.
struct HandedOver(#[cfg(unix)] Option<std::os::unix::net::UnixListener>);

impl HandedOver {
    /// Must be called before the process has other threads.
    #[cfg(unix)]
    fn take() -> Result<Self, SocketError> {
        socket::activation::handed_over().map(Self)
    }

    #[cfg(not(unix))]
    fn take() -> Result<Self, SocketError> {
        Ok(Self())
    }

    /// Where it lies, whatever the configuration says.
    fn path(&self) -> Option<PathBuf> {
        #[cfg(unix)]
        if let Some(listener) = &self.0 {
            let address = listener.local_addr().ok()?;
            return address.as_pathname().map(std::path::Path::to_owned);
        }
        None
    }

    /// Listens on it, or on a socket of our own.
    fn listen(self, config: &Config) -> Result<BoundSocket, SocketError> {
        #[cfg(unix)]
        if let Some(listener) = self.0 {
            return socket::adopt(listener);
        }
        socket::bind(&config.socket)
    }
}

/// Says what is wrong, with its causes.
fn complain(error: &dyn std::error::Error, code: u8) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    let _ = write!(stderr, "hearthd: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(stderr, ": {error}");
        cause = error.source();
    }
    let _ = writeln!(stderr);
    ExitCode::from(code)
}

/// The signals that end the daemon, caught from before the socket exists.
#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn first(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
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

    async fn first(self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}
