//! The configuration: a TOML file, under the environment, under flags.
//!
//! One table (`config/keys.rs`) holds for each setting its name, its variable and its parser, so
//! that every source is read the same way and every complaint names its source. It opens the file
//! and nothing else.

mod governor;
mod keys;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_engine::EngineConfig;
use hearth_proto::endpoint::{self, EndpointError};

use crate::limits::{METRICS_INTERVAL, WARM_MODELS_MAX};
pub use governor::{Governor, PowerSource};
use keys::Key;

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
    /// Most models that are warm at once, where memory allows it.
    pub models_max: usize,
    /// What the engine does.
    pub engine: EngineConfig,
    /// Watts that the GPU draws at work, to estimate energy where nothing on the machine tells it.
    pub gpu_watts: Option<f64>,
    /// Where counters are exported to; nowhere unless asked for.
    pub metrics: Metrics,
    /// When to save power and memory.
    pub governor: Governor,
    /// The folder for what must survive the daemon; `None`: there is none.
    pub state_dir: Option<PathBuf>,
    /// Whether the process gives up what it does not need.
    pub hardening: Hardening,
    /// Filter of the log, as `tracing` reads it.
    pub log: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
}

/// Whether the process gives up, for good, what it does not need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hardening {
    /// As far as the system offers it.
    Auto,
    /// Not at all, to find out what a driver lacks.
    Off,
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
    for key in keys::all() {
        let Some(name) = key.variable else { continue };
        if let Some(value) = variable(name).filter(|value| !value.is_empty()) {
            set(&mut config, key, &value, Origin::Variable(name))?;
        }
    }
    for (name, value) in flags {
        if let Some(key) = keys::all().find(|key| key.name == *name) {
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
        models_max: WARM_MODELS_MAX,
        engine: EngineConfig {
            // Without a home the kernels are timed at every start; nothing else is lost.
            cache_dir: endpoint::cache_dir().ok(),
            ..EngineConfig::default()
        },
        gpu_watts: None,
        metrics: Metrics {
            file: None,
            socket: None,
            interval: METRICS_INTERVAL,
        },
        governor: Governor::default(),
        // Without a home nothing is kept.
        state_dir: endpoint::state_dir().ok(),
        hardening: Hardening::Auto,
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
        let Some(key) = keys::all().find(|key| key.name == name.get_ref().as_ref()) else {
            return Err(ConfigError::UnknownKey {
                origin: at,
                key: name.get_ref().to_string(),
                known: keys::all()
                    .map(|key| key.name)
                    .collect::<Vec<_>>()
                    .join(", "),
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

#[cfg(test)]
mod tests;
