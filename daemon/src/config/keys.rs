//! The table of settings: each with its name, its variable and its parser.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_engine::{Activations, AdapterChoice, Speculation, Tuning};
use hearth_proto::endpoint;

use super::{Config, Hardening, governor};

/// What a setting's text must be.
pub(super) type Apply = fn(&mut Config, &str) -> Result<(), &'static str>;

/// A setting: its name in the file and as a flag, its variable, its parser.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) variable: Option<&'static str>,
    pub(super) apply: Apply,
}

/// All settings.
pub(super) fn all() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().chain(&governor::KEYS)
}

/// The settings but the governor's, in the order of `hearthd --help`.
static KEYS: [Key; 28] = [
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
        name: "models_max",
        variable: Some("HEARTH_MODELS_MAX"),
        apply: set_models_max,
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
        name: "gpu_watts",
        variable: None,
        apply: set_gpu_watts,
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
        name: "state_dir",
        variable: None,
        apply: set_state_dir,
    },
    Key {
        name: "hardening",
        variable: Some("HEARTH_HARDENING"),
        apply: set_hardening,
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

fn set_models_max(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.models_max = number(value, 1, 16, "from 1 to 16")?;
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

fn set_gpu_watts(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.gpu_watts = Some(number(value, 0.1, 10_000.0, "from 0.1 to 10000 watts")?);
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

fn set_state_dir(config: &mut Config, value: &str) -> Result<(), &'static str> {
    let path = Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    config.state_dir = Some(path.ok_or("an absolute path")?);
    Ok(())
}

fn set_hardening(config: &mut Config, value: &str) -> Result<(), &'static str> {
    config.hardening = match value {
        "auto" => Hardening::Auto,
        "off" => Hardening::Off,
        _ => return Err("auto or off"),
    };
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

/// A number within its bounds.
pub(super) fn number<T: std::str::FromStr + PartialOrd>(
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
