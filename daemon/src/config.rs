//! The configuration: a TOML file, under the environment, under flags.
//!
//! One table, [`KEYS`], holds for each setting its name, its variable and its parser, so that
//! every source is read the same way and every complaint names its source. It opens the file and
//! nothing else.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_engine::{Activations, AdapterChoice, EngineConfig, Speculation, Tuning};
use hearth_proto::endpoint::{self, EndpointError};

use crate::limits::METRICS_INTERVAL;

/// Everything that can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen.
    pub socket: PathBuf,
    /// Where the models are.
    pub models_dir: PathBuf,
    /// What to load at start: a name in the store or an absolute path of a file. `None`: the only
    /// model in the store, if there is exactly one.
    pub model: Option<String>,
    /// What the engine does.
    pub engine: EngineConfig,
    /// Where counters are exported to; nowhere unless asked for.
    pub metrics: Metrics,
    /// Filter of the log, as `tracing` reads it.
    pub log: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
}

/// Where the daemon's counters go besides `hearth.v1.Daemon`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// A file in Prometheus's text format, replaced while something changes.
    pub file: Option<PathBuf>,
    /// A local socket that answers `GET /metrics`.
    pub socket: Option<PathBuf>,
    /// Least time between two versions of the file.
    pub interval: Duration,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file, and the line in it.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// A variable of the environment.
    Variable(&'static str),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag --{}", name.replace('_', "-")),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{origin}: {problem}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What is wrong.
        problem: String,
    },
    /// There is no such setting.
    #[error("{origin}: there is no setting `{key}`; there are: {known}")]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// The name.
        key: String,
        /// All names.
        known: String,
    },
    /// The value is not one the setting can have.
    #[error("{origin}: {key} must be {allowed}, not `{value}`")]
    BadValue {
        /// Where.
        origin: Origin,
        /// The setting.
        key: &'static str,
        /// What it can be.
        allowed: &'static str,
        /// What it is.
        value: String,
    },
    /// A path cannot be used or found.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

/// What a setting's text must be.
type Apply = fn(&mut Config, &str) -> Result<(), &'static str>;

/// A setting: its name in the file and as a flag, its variable, its parser.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    variable: Option<&'static str>,
    apply: Apply,
}

/// All settings, in the order of `hearthd --help`.
pub(crate) const KEYS: [Key; 24] = [
    Key {
        name: "socket",
        variable: Some("HEARTH_SOCKET"),
        apply: set_socket,
    },
    Key {
        name: "models_dir",
        variable: Some("HEARTH_MODELS"),
        apply: set_models_dir,
    },
    Key {
        name: "model",
        variable: Some("HEARTH_MODEL"),
        apply: set_model,
    },
    Key {
        name: "adapter",
        variable: Some("HEARTH_ADAPTER"),
        apply: set_adapter,
    },
    Key {
        name: "activations",
        variable: Some("HEARTH_ACTIVATIONS"),
        apply: set_activations,
    },
    Key {
        name: "speculation",
        variable: Some("HEARTH_SPECULATION"),
        apply: set_speculation,
    },
    Key {
        name: "tuning",
        variable: Some("HEARTH_TUNING"),
        apply: set_tuning,
    },
    Key {
        name: "context_len",
        variable: Some("HEARTH_CONTEXT_LEN"),
        apply: set_context_len,
    },
    Key {
        name: "kv_bytes_max",
        variable: None,
        apply: set_kv_bytes_max,
    },
    Key {
        name: "prefill_chunk",
        variable: None,
        apply: set_prefill_chunk,
    },
    Key {
        name: "slots",
        variable: None,
        apply: set_slots,
    },
    Key {
        name: "queue_max",
        variable: None,
        apply: set_queue_max,
    },
    Key {
        name: "app_queue_max",
        variable: None,
        apply: set_app_queue_max,
    },
    Key {
        name: "app_slots",
        variable: None,
        apply: set_app_slots,
    },
    Key {
        name: "background_share",
        variable: None,
        apply: set_background_share,
    },
    Key {
        name: "prefix_cache",
        variable: None,
        apply: set_prefix_cache,
    },
    Key {
        name: "metrics_file",
        variable: Some("HEARTH_METRICS_FILE"),
        apply: set_metrics_file,
    },
    Key {
        name: "metrics_socket",
        variable: Some("HEARTH_METRICS_SOCKET"),
        apply: set_metrics_socket,
    },
    Key {
        name: "metrics_interval_s",
        variable: None,
        apply: set_metrics_interval_s,
    },
    Key {
        name: "binding_bytes_max",
        variable: None,
        apply: set_binding_bytes_max,
    },
    Key {
        name: "no_subgroups",
        variable: None,
        apply: set_no_subgroups,
    },
    Key {
        name: "no_cooperative_matrix",
        variable: None,
        apply: set_no_cooperative_matrix,
    },
    Key {
        name: "log",
        variable: Some("HEARTH_LOG"),
        apply: set_log,
    },
    Key {
        name: "log_json",
        variable: None,
        apply: set_log_json,
    },
];

/// Reads the file (`file`, else `HEARTH_CONFIG`, else the usual place), then the environment, then
/// `flags`: pairs of a setting's name and its text. A file that nobody named may be missing.
///
/// # Errors
/// See [`ConfigError`]; each names the file and line, the variable, or the flag.
pub fn load(
    file: Option<&Path>,
    variable: &dyn Fn(&str) -> Option<String>,
    flags: &[(&'static str, String)],
) -> Result<Config, ConfigError> {
    let mut config = defaults()?;
    let named = file.is_some() || variable(endpoint::CONFIG_VARIABLE).is_some();
    let path = match file {
        Some(path) => path.to_owned(),
        None => endpoint::config_path()?,
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => apply_file(&mut config, &path, &text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => {}
        Err(source) => return Err(ConfigError::Unreadable { path, source }),
    }
    for key in &KEYS {
        let Some(name) = key.variable else { continue };
        if let Some(value) = variable(name).filter(|value| !value.is_empty()) {
            set(&mut config, key, &value, Origin::Variable(name))?;
        }
    }
    for (name, value) in flags {
        if let Some(key) = KEYS.iter().find(|key| key.name == *name) {
            set(&mut config, key, value, Origin::Flag(key.name))?;
        }
    }
    Ok(config)
}

/// The configuration with nothing set.
///
/// # Errors
/// The home directory is unknown.
fn defaults() -> Result<Config, ConfigError> {
    Ok(Config {
        socket: endpoint::socket_path()?,
        models_dir: endpoint::models_dir()?,
        model: None,
        engine: EngineConfig {
            // Without a home the kernels are timed at every start; nothing else is lost.
            cache_dir: endpoint::cache_dir().ok(),
            ..EngineConfig::default()
        },
        metrics: Metrics {
            file: None,
            socket: None,
            interval: METRICS_INTERVAL,
        },
        log: "info".to_owned(),
        log_json: false,
    })
}

fn apply_file(config: &mut Config, path: &Path, text: &str) -> Result<(), ConfigError> {
    let origin = |offset: usize| Origin::File {
        path: path.to_owned(),
        line: text.as_bytes()[..offset.min(text.len())]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1,
    };
    let table = toml::de::DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        origin: origin(error.span().map_or(0, |span| span.start)),
        problem: error.message().to_owned(),
    })?;
    for (name, value) in table.get_ref() {
        let at = origin(name.span().start);
        let Some(key) = KEYS.iter().find(|key| key.name == name.get_ref().as_ref()) else {
            return Err(ConfigError::UnknownKey {
                origin: at,
                key: name.get_ref().to_string(),
                known: KEYS.map(|key| key.name).join(", "),
            });
        };
        let text = match value.get_ref() {
            toml::de::DeValue::String(text) => text.to_string(),
            toml::de::DeValue::Boolean(flag) => flag.to_string(),
            toml::de::DeValue::Integer(number) if number.radix() == 10 => {
                number.as_str().to_owned()
            }
            toml::de::DeValue::Float(number) => number.as_str().to_owned(),
            other => {
                return Err(ConfigError::BadValue {
                    origin: at,
                    key: key.name,
                    allowed: "a text, a decimal number or a truth value",
                    value: other.type_str().to_owned(),
                });
            }
        };
        set(config, key, &text, at)?;
    }
    Ok(())
}

fn set(config: &mut Config, key: &Key, value: &str, origin: Origin) -> Result<(), ConfigError> {
    (key.apply)(config, value).map_err(|allowed| ConfigError::BadValue {
        origin,
        key: key.name,
        allowed,
        value: value.to_owned(),
    })
}

fn set_socket(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.socket = endpoint::check_socket_path(PathBuf::from(value))
        .map_err(|_| "an absolute path of at most 103 bytes")?;
    Ok(())
}

fn set_models_dir(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.models_dir = Some(PathBuf::from(value))
        .filter(|path| path.is_absolute())
        .ok_or("an absolute path")?;
    Ok(())
}

fn set_model(config: &mut Config, value: &str) -> Result<(), &'static str> {
    let allowed = "a model's name or an absolute path of a file";
    let sound = Path::new(value).is_absolute() || crate::store::name::check(value).is_ok();
    config.model = Some(value.to_owned())
        .filter(|_| sound)
        .ok_or(allowed)
        .map(Some)?;
    Ok(())
}

fn set_adapter(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.adapter = match value {
        "auto" => AdapterChoice::Auto,
        "integrated" => AdapterChoice::Integrated,
        "discrete" => AdapterChoice::Discrete,
        "software" => AdapterChoice::Software,
        other => match other.strip_prefix("name:") {
            Some(name) if !name.is_empty() => AdapterChoice::Named(name.to_owned()),
            _ => return Err("auto, integrated, discrete, software or name:TEXT"),
        },
    };
    Ok(())
}

fn set_activations(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.activations = match value {
        "auto" => Activations::Auto,
        "float" => Activations::Float,
        "int8" => Activations::Int8,
        _ => return Err("auto, float or int8"),
    };
    Ok(())
}

fn set_speculation(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.speculation = match value {
        "auto" => Speculation::Auto,
        "off" => Speculation::Off,
        _ => return Err("auto or off"),
    };
    Ok(())
}

fn set_tuning(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.tuning = match value {
        "auto" => Tuning::Auto,
        "off" => Tuning::Off,
        _ => return Err("auto or off"),
    };
    Ok(())
}

fn set_context_len(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.context_len_max = number(value, 16, 1 << 20, "from 16 to 1048576 tokens")?;
    Ok(())
}

fn set_kv_bytes_max(config: &mut Config, value: &str) -> Result<(), &'static str> {
    let bytes = number(value, 1 << 16, 1 << 40, "from 65536 to 1099511627776 bytes")?;
    config.engine.kv_bytes_max = Some(bytes);
    Ok(())
}

fn set_prefill_chunk(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.prefill_chunk = number(value, 1, 4096, "from 1 to 4096 tokens")?;
    Ok(())
}

fn set_slots(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.slots = number(value, 1, 64, "from 1 to 64")?;
    Ok(())
}

fn set_queue_max(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.queue_max = number(value, 0, 65_536, "from 0 to 65536")?;
    Ok(())
}

fn set_app_queue_max(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.app_queue_max = number(value, 0, 65_536, "from 0 to 65536")?;
    Ok(())
}

fn set_app_slots(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.app_slots_max = number(value, 1, 64, "from 1 to 64")?;
    Ok(())
}

fn set_background_share(config: &mut Config, value: &str) -> Result<(), &'static str> {
    let allowed = "above 0 and at most 1";
    let share: f32 = number(value, 0.0, 1.0, allowed)?;
    config.engine.background_share = Some(share).filter(|share| *share > 0.0).ok_or(allowed)?;
    Ok(())
}

fn set_prefix_cache(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.prefix_cache = truth(value)?;
    Ok(())
}

fn set_metrics_file(config: &mut Config, value: &str) -> Result<(), &'static str> {
    // A name is needed: the file is written beside itself, under another one.
    let path = Some(PathBuf::from(value))
        .filter(|path| path.is_absolute() && path.file_name().is_some())
        .ok_or("the absolute path of a file")?;
    config.metrics.file = Some(path);
    Ok(())
}

fn set_metrics_socket(config: &mut Config, value: &str) -> Result<(), &'static str> {
    let path = endpoint::check_socket_path(PathBuf::from(value))
        .map_err(|_| "an absolute path of at most 103 bytes")?;
    config.metrics.socket = Some(path);
    Ok(())
}

fn set_metrics_interval_s(config: &mut Config, value: &str) -> Result<(), &'static str> {
    let seconds = number(value, 1, 3600, "from 1 to 3600 seconds")?;
    config.metrics.interval = Duration::from_secs(seconds);
    Ok(())
}

fn set_binding_bytes_max(config: &mut Config, value: &str) -> Result<(), &'static str> {
    let bytes = number(
        value,
        1 << 20,
        1 << 40,
        "from 1048576 to 1099511627776 bytes",
    )?;
    config.engine.binding_bytes_max = Some(bytes);
    Ok(())
}

fn set_no_subgroups(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.no_subgroups = truth(value)?;
    Ok(())
}

fn set_no_cooperative_matrix(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.engine.cooperative_matrix = !truth(value)?;
    Ok(())
}

fn set_log(config: &mut Config, value: &str) -> Result<(), &'static str> {
    crate::logging::check_filter(value)
        .map_err(|()| "a filter such as `info` or `hearthd=debug,warn`")?;
    config.log = value.to_owned();
    Ok(())
}

fn set_log_json(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.log_json = truth(value)?;
    Ok(())
}

fn truth(value: &str) -> Result<bool, &'static str> {
    value.parse().map_err(|_| "true or false")
}

fn number<T: std::str::FromStr + PartialOrd>(
    value: &str,
    least: T,
    most: T,
    allowed: &'static str,
) -> Result<T, &'static str> {
    value
        .replace('_', "")
        .parse()
        .ok()
        .filter(|number| *number >= least && *number <= most)
        .ok_or(allowed)
}

#[cfg(test)]
mod tests;
