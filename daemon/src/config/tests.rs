//! Tests of the configuration: which source wins, what complaints say, the edges of settings.

use hearth_engine::AdapterChoice;

use super::*;

fn load_text(
    text: &str,
    variables: &[(&str, &str)],
    flags: &[(&'static str, String)],
) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    let variable = |name: &str| {
        variables
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| (*value).to_owned())
    };
    load(Some(&path), &variable, flags)
}

#[test]
fn flags_beat_the_environment_and_that_the_file() {
    let text = "context_len = 1_024\nslots = 2\nlog = 'warn'\n";
    let variables = [("HEARTH_CONTEXT_LEN", "2048"), ("HEARTH_LOG", "debug")];
    let config = load_text(text, &variables, &[("log", "error".to_owned())]).unwrap();
    assert_eq!(config.engine.slots, 2);
    assert_eq!(config.engine.context_len_max, 2048);
    assert_eq!(config.log, "error");
}

#[test]
fn complaints_name_the_line() {
    let cases = [
        (
            "slots = 1\n\ncontext_len = 'many'\n",
            ":3: context_len must be from 16 to 1048576",
        ),
        ("slots = 1\nsolts = 2\n", ":2: there is no setting `solts`"),
        ("slots = = 1\n", ":1: "),
        (
            "slots = 1\nadapter = 'fast'\n",
            ":2: adapter must be auto, integrated",
        ),
        ("slots = 0\n", ":1: slots must be from 1 to 64, not `0`"),
        ("slots = 65\n", "not `65`"),
        ("slots = -1\n", "not `-1`"),
        ("slots = 1.5\n", ":1: slots must be"),
        ("model = '../x'\n", ":1: model must be"),
        (
            "socket = 'relative'\n",
            ":1: socket must be an absolute path",
        ),
        ("[engine]\nslots = 1\n", ":1: there is no setting `engine`"),
        (
            "speculation = 'always'\n",
            ":1: speculation must be auto or off",
        ),
        ("tuning = true\n", ":1: tuning must be auto or off"),
        ("hardening = true\n", ":1: hardening must be auto or off"),
        ("log = '%%%='\n", ":1: log must be"),
    ];
    for (text, wanted) in cases {
        let error = load_text(text, &[], &[]).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text:?}: {error}");
    }
}

#[test]
fn complaints_name_the_variable_and_the_flag() {
    let error = load_text("", &[("HEARTH_ACTIVATIONS", "x")], &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("environment variable HEARTH_ACTIVATIONS: "),
        "{error}"
    );
    let error = load_text("", &[], &[("models_dir", "x".to_owned())])
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("flag --models-dir: "), "{error}");
}

#[test]
fn a_named_file_must_exist() {
    let error = load(Some(Path::new("/nonexistent/x.toml")), &|_| None, &[]).unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable { .. }));
}

#[test]
fn adapters_have_names() {
    let config = load_text("adapter = 'name:Arc'", &[], &[]).unwrap();
    assert_eq!(
        config.engine.adapter,
        AdapterChoice::Named("Arc".to_owned())
    );
    assert!(load_text("adapter = 'name:'", &[], &[]).is_err());
}

#[test]
fn what_apps_share_has_edges() {
    let config = load_text("", &[], &[]).unwrap();
    assert_eq!(config.engine.queue_max, 512);
    assert!(config.engine.prefix_cache, "on unless turned off");
    let good = "queue_max = 65536\napp_queue_max = 0\napp_slots = 64\nbackground_share = 1\n\
                prefix_cache = false\n";
    let engine = load_text(good, &[], &[]).unwrap().engine;
    assert_eq!((engine.queue_max, engine.app_queue_max), (65_536, 0));
    assert_eq!((engine.app_slots_max, engine.prefix_cache), (64, false));
    assert!((engine.background_share - 1.0).abs() < f32::EPSILON);
    let share = load_text("background_share = 0.05", &[], &[]).unwrap();
    assert!((share.engine.background_share - 0.05).abs() < f32::EPSILON);
    for (text, wanted) in [
        ("queue_max = 65537", "queue_max must be from 0 to 65536"),
        ("app_queue_max = 65537", "app_queue_max must be from 0"),
        ("app_queue_max = 0.5", "app_queue_max must be from 0"),
        ("app_slots = 0", "app_slots must be from 1 to 64"),
        ("app_slots = 65", "app_slots must be from 1 to 64"),
        ("background_share = 0", "above 0 and at most 1, not `0`"),
        ("background_share = 0.0", "above 0 and at most 1"),
        ("background_share = 1.01", "above 0 and at most 1"),
        ("background_share = -0.1", "above 0 and at most 1"),
        ("background_share = nan", "above 0 and at most 1"),
        ("background_share = inf", "above 0 and at most 1"),
        ("prefix_cache = 'on'", "prefix_cache must be true or false"),
    ] {
        let error = load_text(text, &[], &[]).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text:?}: {error}");
    }
}

#[test]
fn metrics_go_nowhere_unless_asked() {
    let metrics = load_text("", &[], &[]).unwrap().metrics;
    assert_eq!((metrics.file, metrics.socket), (None, None));
    let text = "metrics_file = '/var/lib/x/hearth.prom'\nmetrics_interval_s = 3600\n";
    let variables = [("HEARTH_METRICS_SOCKET", "/run/x/metrics.sock")];
    let metrics = load_text(text, &variables, &[]).unwrap().metrics;
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    assert_eq!(
        path(&metrics.file).as_deref(),
        Some("/var/lib/x/hearth.prom")
    );
    assert_eq!(
        path(&metrics.socket).as_deref(),
        Some("/run/x/metrics.sock")
    );
    assert_eq!(metrics.interval, Duration::from_secs(3600));
    let long = format!("metrics_socket = '/{}'", "x".repeat(103));
    for (text, wanted) in [
        (
            "metrics_file = 'hearth.prom'",
            "the absolute path of a file",
        ),
        ("metrics_file = '/'", "the absolute path of a file"),
        ("metrics_file = ''", "the absolute path of a file"),
        ("metrics_socket = 'x.sock'", "at most 103 bytes"),
        (long.as_str(), "at most 103 bytes"),
        ("metrics_interval_s = 0", "from 1 to 3600 seconds"),
        ("metrics_interval_s = 3601", "from 1 to 3600 seconds"),
    ] {
        let error = load_text(text, &[], &[]).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text:?}: {error}");
    }
}

#[test]
fn the_governor_has_settings_with_edges() {
    let governor = load_text("", &[], &[]).unwrap().governor;
    assert_eq!(governor, Governor::default());
    let text = "power_source = 'sysfs'\nsaver_slots = 3\nbattery_low_percent = 30\n\
                power_up_s = 0.5\nmemory_some_stall_ms = 2000\nmemory_watch = false\n";
    let governor = load_text(text, &[], &[]).unwrap().governor;
    assert_eq!(governor.power_source, PowerSource::Sysfs);
    assert_eq!((governor.saver_slots, governor.memory_watch), (3, false));
    assert_eq!(governor.power_up, Duration::from_millis(500));
    assert!((governor.battery_low_percent - 30.0).abs() < f64::EPSILON);
    for (text, wanted) in [
        ("power_source = 'on'", "auto, sysfs or none"),
        ("power_up_s = -1", "from 0 to 86400 seconds"),
        ("power_up_s = nan", "from 0 to 86400 seconds"),
        ("look_s = 0", "from 0.1 to 3600 seconds"),
        ("memory_calm_s = 0", "from 0.1 to 3600 seconds"),
        ("battery_low_percent = 101", "from 0 to 100 per cent"),
        ("saver_pace = 0", "from 0.05 to 1"),
        ("memory_high_stall_ms = 2001", "from 1 to 2000 milliseconds"),
        ("meminfo_file = 'meminfo'", "an absolute path"),
        ("memory_watch = 1", "true or false"),
    ] {
        let error = load_text(text, &[], &[]).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text:?}: {error}");
    }
}

#[test]
fn every_setting_is_in_the_readme() {
    let readme = include_str!("../../../README.md");
    for key in keys::all() {
        let name = format!("`{}`", key.name);
        assert!(readme.contains(&name), "{name} is not documented");
    }
}
