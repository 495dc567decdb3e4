//! Which kernels a model takes: refusals by the driver (forced here) cost speed and not answers, and
//! choices are measured once and remembered. On a tiny model, with the kernels of a GPU on whatever
//! adapter there is.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use hearth_engine::format::ModelFiles;
use hearth_engine::{
    CacheScope, Caller, Class, Engine, EngineConfig, EngineError, Event, GenerateRequest,
    LoadError, SamplingParams, Tuning,
};
use hearth_test_support::{ChannelSink, tiny_model};
use tempfile::TempDir;

/// Most that a log-probability may move by another order of sums.
const FLOAT_SLACK: f32 = 1e-3;

fn model() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    tiny_model::write(&path, 1);
    (dir, path)
}

/// The kernels of a GPU, untuned, but for those whose description starts with one of `refused`.
fn config(refused: &[&str]) -> EngineConfig {
    EngineConfig {
        software_as_gpu: true,
        tuning: Tuning::Off,
        context_len_max: 256,
        refused_kernels: refused.iter().map(|&r| r.to_owned()).collect(),
        ..EngineConfig::default()
    }
}

fn load(path: &Path, config: EngineConfig) -> Result<Engine, LoadError> {
    let engine = Engine::start(config).unwrap();
    engine.load(&ModelFiles::at(path)?, &mut |_| true)?;
    Ok(engine)
}

/// Log-probabilities of the prompt's tokens in prefill, then of a few decoded ones, with their ids.
fn scores(engine: &Engine) -> Vec<(u32, f32)> {
    let (sender, events) = mpsc::channel();
    let request = GenerateRequest {
        prompt: (10..40).collect(),
        max_tokens: Some(8),
        sampling: SamplingParams::default(),
        stop: Vec::new(),
        stop_tokens: Vec::new(),
        ignore_eos: true,
        logprobs: Some(0),
        new_text: false,
        echo: true,
        deadline: None,
        caller: Caller::default(),
        class: Class::Interactive,
        cache_scope: CacheScope::Nobody,
    };
    engine
        .submit(request, Box::new(ChannelSink(sender)))
        .unwrap();
    let mut scores = Vec::new();
    for event in events {
        match event {
            Event::Echo { tokens, .. } | Event::Delta { tokens, .. } => {
                scores.extend(tokens.iter().map(|t| (t.id, t.logprob.unwrap_or(0.0))));
            }
            Event::End(_) => return scores,
            _ => {}
        }
    }
    panic!("the stream has no end");
}

fn assert_close(found: &[(u32, f32)], wanted: &[(u32, f32)], slack: f32, what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (i, ((id, found), (wanted_id, wanted))) in found.iter().zip(wanted).enumerate() {
        assert_eq!(id, wanted_id, "{what}: token {i}");
        assert!(
            (found - wanted).abs() <= slack,
            "{what}: token {i}: {found}, not {wanted}"
        );
    }
}

#[test]
fn refused_kernels_are_replaced() {
    let (_dir, path) = model();
    let plain = load(&path, config(&[])).unwrap();
    assert!(plain.model().unwrap().refused_kernels.is_empty());
    let wanted = scores(&plain);
    let subgroups = plain.adapter().subgroup_size > 0;
    drop(plain);
    let matrices = ["qkv", "residual", "glu", "store"];
    let each = |start: &str, end: &str| -> Vec<String> {
        matrices
            .iter()
            .map(|m| format!("{start}.f32.float.{m}{end}"))
            .collect()
    };
    let mut next_cut = each("gemv", " subgroup WG=64");
    next_cut.extend(each("gemv.normed", " subgroup WG=64"));
    let one = |r: &str| vec![r.to_owned()];
    // Each link of the chains, and what must be refused for it.
    let mut links = vec![
        ("the next cut", next_cut),
        (
            "a cut refused at four columns alone",
            each("gemv4", " subgroup WG=64"),
        ),
        ("a norm apart", each("gemv.normed", "")),
        ("eight columns for one", one("gemv.")),
        ("eight columns instead of a tile", one("gemm.")),
        ("few columns for many", one("gemm")),
        ("decode's attention in prefill", one("attention_prefill")),
        (
            "shorter attention loads",
            ["8", "4"]
                .map(|n| format!("attention.float subgroup HEADS=2 AHEAD={n}"))
                .to_vec(),
        ),
        ("fewer heads", one("attention.float subgroup HEADS=2")),
        (
            "sampling by fewer",
            vec![
                "sample subgroup".to_owned(),
                "sample shared WG=1024".to_owned(),
            ],
        ),
    ];
    let mut shared = each("gemv", " subgroup");
    shared.extend(each("gemm", " subgroup"));
    shared.extend(["attention.float subgroup", "norm.float subgroup"].map(str::to_owned));
    links.push(("workgroup memory instead of subgroups", shared));
    for (what, refused) in links {
        if !subgroups && refused.iter().any(|r| r.contains("subgroup")) {
            continue;
        }
        let refused: Vec<&str> = refused.iter().map(String::as_str).collect();
        let engine = load(&path, config(&refused)).unwrap_or_else(|e| panic!("{what}: {e}"));
        let refusals = engine.model().unwrap().refused_kernels.clone();
        assert!(!refusals.is_empty(), "{what}");
        assert_close(&scores(&engine), &wanted, FLOAT_SLACK, what);
    }
}

#[test]
fn the_adapters_own_kernels_stand_in_for_each_other() {
    let (_dir, path) = model();
    let own = |refused: &[&str]| EngineConfig {
        software_as_gpu: false,
        ..config(refused)
    };
    let wanted = scores(&load(&path, own(&[])).unwrap());
    for refused in ["gem", "gemv", "gemm"] {
        match load(&path, own(&[refused])) {
            Ok(engine) => assert_close(&scores(&engine), &wanted, FLOAT_SLACK, refused),
            Err(error) => assert_eq!(refused, "gem", "{error}"),
        }
    }
}

#[test]
fn a_kernel_without_a_substitute_ends_the_load() {
    let (_dir, path) = model();
    for refused in [vec!["embed"], vec!["gemv", "gemm"]] {
        let Err(LoadError::Engine(error)) = load(&path, config(&refused)) else {
            panic!("{refused:?} loads");
        };
        let EngineError::KernelRefused { kernel, driver, .. } = &error else {
            panic!("{error}");
        };
        assert!(refused.iter().any(|r| kernel.starts_with(r)), "{kernel}");
        let text = error.to_string();
        assert!(
            text.contains(kernel.as_str()) && text.contains(driver.as_str()),
            "{text}"
        );
    }
}

#[test]
fn choices_are_measured_once() {
    let (dir, path) = model();
    let cache = dir.path().join("cache");
    let tuned = |retune| EngineConfig {
        tuning: Tuning::Auto,
        cache_dir: Some(cache.clone()),
        tuning_budget: Duration::from_millis(200),
        retune,
        ..config(&[])
    };
    let plain = scores(&load(&path, config(&[])).unwrap());
    let first = load(&path, tuned(false)).unwrap();
    let chosen = first.model().unwrap().chosen_kernels.clone();
    assert_eq!(chosen.len(), 5, "{chosen:?}");
    assert!(chosen.iter().all(|c| c.measured), "{chosen:?}");
    // Nothing of the measuring is left in the KV cache.
    assert_close(&scores(&first), &plain, FLOAT_SLACK, "tuned");
    drop(first);

    let file = cache.join("kernels.json");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let second = load(&path, tuned(false)).unwrap().model().unwrap();
    let recalled: Vec<_> = second
        .chosen_kernels
        .iter()
        .map(|c| (&c.product, c.threads))
        .collect();
    for choice in &chosen {
        assert!(
            recalled.contains(&(&choice.product, choice.threads)),
            "{recalled:?}"
        );
    }
    assert!(second.chosen_kernels.iter().all(|c| !c.measured));

    let again = load(&path, tuned(true)).unwrap().model().unwrap();
    assert!(again.chosen_kernels.iter().all(|c| c.measured));
    std::fs::write(&file, "{ not ours").unwrap();
    let mended = load(&path, tuned(false)).unwrap().model().unwrap();
    assert!(mended.chosen_kernels.iter().all(|c| c.measured));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    assert_eq!(
        std::fs::read_dir(&cache).unwrap().count(),
        1,
        "no other file is left"
    );
}
