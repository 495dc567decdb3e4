//! The file of choices, whatever is in it; and races with results that are known.

use std::path::Path;
use std::time::Duration;

use hearth_shaders::Kernel;
use hearth_shaders::params::CopyParams;

use super::choices::Cut;
use super::plan::GemvPlan;
use super::tuning::{Bench, Stored, Track, Trial};
use super::tuning_cache::TuningCache;
use crate::bench::{Format, Shape};
use crate::engine::{AdapterInfo, AdapterKind};
use crate::gpu::{self, Axis, Buffer, Gpu, Op, Pipelines, Reads, Recording};
use crate::model::{Forward, ForwardLimits, WeightSource};
use crate::request::{Activations, EngineConfig, Tuning};

fn adapter(name: &str, driver: &str) -> AdapterInfo {
    AdapterInfo {
        name: name.to_owned(),
        vendor_id: 1,
        device_id: 2,
        driver: driver.to_owned(),
        backend: "vulkan".to_owned(),
        kind: AdapterKind::Integrated,
        subgroup_size: 32,
        binding_bytes_max: 1 << 30,
    }
}

fn cut(threads: u32) -> Cut {
    Cut {
        plan: GemvPlan {
            threads,
            lanes: 8,
            passes: 1,
        },
        own_norm: threads > 64,
    }
}

fn store(dir: &Path, adapter: &AdapterInfo, entries: &[(&str, Cut)]) {
    let mut cache = TuningCache::open(dir, adapter);
    cache.store(entries.iter().copied()).unwrap();
}

#[test]
fn choices_come_back_for_the_same_adapter_and_driver() {
    let dir = tempfile::tempdir().unwrap();
    // It is made if it is not there.
    let dir = &dir.path().join("a/b");
    let (one, two) = (adapter("one", "1.0"), adapter("two", "1.0"));
    assert_eq!(TuningCache::open(dir, &one).get("p 64x64"), None);
    store(dir, &one, &[("p 64x64", cut(64)), ("q 64x64", cut(128))]);
    store(dir, &two, &[("p 64x64", cut(256))]);
    store(dir, &one, &[("p 64x64", cut(32))]);
    let get = |adapter, product| TuningCache::open(dir, adapter).get(product);
    assert_eq!(get(&one, "p 64x64"), Some(cut(32)));
    assert_eq!(get(&one, "q 64x64"), Some(cut(128)));
    assert_eq!(get(&two, "p 64x64"), Some(cut(256)));
    assert_eq!(get(&two, "q 64x64"), None);
    // Another driver chooses anew, and what the former chose is dropped.
    let updated = adapter("one", "1.1");
    assert_eq!(get(&updated, "p 64x64"), None);
    store(dir, &updated, &[("p 64x64", cut(64))]);
    assert_eq!(get(&one, "p 64x64"), None);
    assert_eq!(get(&two, "p 64x64"), Some(cut(256)));
}

#[test]
fn files_that_are_not_ours_are_empty() {
    let dir = tempfile::tempdir().unwrap();
    let one = adapter("one", "1.0");
    let path = dir.path().join("kernels.json");
    store(dir.path(), &one, &[("p", cut(64))]);
    let sound = std::fs::read_to_string(&path).unwrap();
    let mut cases = vec![
        String::new(),
        "[]".to_owned(),
        "\u{0}\u{0}".to_owned(),
        sound.replace("\"format\": 1", "\"format\": 2"),
        sound.replace("\"threads\": 64", "\"threads\": -64"),
        sound.replace("\"threads\"", "\"fingers\""),
        sound[..sound.len() - 3].to_owned(),
    ];
    cases.push(format!("{sound}{}", " ".repeat(1 << 20)));
    cases.push("[".repeat(100_000));
    for text in cases {
        std::fs::write(&path, &text).unwrap();
        let head: String = text.chars().take(40).collect();
        // Blanks behind a sound file are no harm as far as they are read.
        let sound_start = text.starts_with(&sound);
        let found = TuningCache::open(dir.path(), &one).get("p");
        assert!(found.is_none() || sound_start, "{head}");
        store(dir.path(), &one, &[("q", cut(64))]);
        assert!(
            TuningCache::open(dir.path(), &one).get("q").is_some(),
            "{head}"
        );
    }
}

#[test]
fn the_file_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..12 {
        store(
            dir.path(),
            &adapter(&format!("card {n}"), "1"),
            &[("p", cut(64))],
        );
    }
    let get = |n| TuningCache::open(dir.path(), &adapter(&format!("card {n}"), "1")).get("p");
    assert!((0..4).all(|n| get(n).is_none()));
    assert!((4..12).all(|n| get(n).is_some()));
}

/// Copies of four words, one of which is wrong.
#[test]
fn a_wrong_result_is_out_of_the_race() {
    let gpu = Gpu::open(&EngineConfig::default()).unwrap();
    let mut pipelines = Pipelines::default();
    let buffer = |values: [f32; 4]| {
        let buffer = gpu::storage(&gpu, "values", 16);
        gpu::upload(&gpu, &buffer, 0, bytemuck::cast_slice(&values)).unwrap();
        buffer
    };
    let result = gpu::storage(&gpu, "result", 16);
    let params = gpu::uniform(
        &gpu,
        &CopyParams {
            count: 1,
            pad: [0; 3],
        },
    );
    let mut copy = |from: &Buffer| {
        let pipeline = pipelines.get(&gpu, Kernel::Copy, &[("WG", 32)]).unwrap();
        let bind_group = pipeline.bind(&gpu, &[&params, from, &result]);
        Recording {
            ops: vec![Op {
                pipeline,
                bind_group,
                grid: [Axis::Fixed(1); 3],
                only_split: false,
                reads: Reads::Little,
            }],
        }
    };
    let bench = Bench {
        x: gpu::storage(&gpu, "x", 16),
        before: None,
        results: vec![(result.clone(), 16, Stored::Floats)],
    };
    let right = buffer([1.0, -2.0, 3.0, 4.0]);
    let mut race = |others: &[Buffer]| {
        let count = u32::try_from(others.len()).unwrap();
        let cuts: Vec<Cut> = (0..=count).map(cut).collect();
        let mut tried = 0;
        let outcome = Track::new(&gpu)
            .unwrap()
            .race("copy", &bench, &cuts, Duration::from_secs(60), |cut| {
                let from = match cut.plan.threads {
                    0 => &right,
                    n => &others[n as usize - 1],
                };
                tried += 1;
                Ok(Some(Trial {
                    cut,
                    once: copy(from),
                    many: copy(from),
                }))
            })
            .unwrap()
            .unwrap();
        (outcome.cut.plan.threads, tried)
    };
    let wrong = [[1.0, -2.0, 3.0, 4.1], [1.0, -2.0, f32::NAN, 4.0], [0.0; 4]].map(buffer);
    assert_eq!(race(&wrong), (0, 4));
    // A little off is the order of a sum: either may win.
    assert_eq!(race(&[buffer([1.0, -2.0, 3.0, 4.01])]).1, 2);
}

fn int8_model(refused: &[&str]) -> Forward {
    let engine = EngineConfig {
        activations: Activations::Int8,
        tuning: Tuning::Off,
        software_as_gpu: true,
        refused_kernels: refused.iter().map(|&r| r.to_owned()).collect(),
        ..EngineConfig::default()
    };
    let gpu = Gpu::open(&engine).unwrap();
    let format = Format::ALL[0];
    let config = Shape::TINY.config(format);
    let weights = format.weights(&config);
    let limits = ForwardLimits {
        columns_max: 16,
        context_len: 0,
        splits_max: 0,
        slots: 1,
        kv_blocks: 4,
        block_len: 16,
    }
    .with_context(64);
    let source = WeightSource::Random(&weights);
    Forward::load(&gpu, source, &config, limits, &engine, &mut |_| true).unwrap()
}

#[test]
fn float_activations_are_the_way_out_of_int8() {
    let plain = int8_model(&[]);
    assert_eq!(plain.activations, Activations::Int8);
    assert!(plain.refused.is_empty());
    for refused in [
        &["gemv2.q4_0.int8.glu"][..],
        &["gemv16.q8_0.int8"],
        &["combine.int8"],
        &["norm.int8"],
        &["attention.int8"],
    ] {
        let forward = int8_model(refused);
        let found = &forward.refused;
        assert!(!found.is_empty(), "{refused:?}");
        assert_eq!(forward.activations, Activations::Float, "{found:?}");
    }
    // One cut less is no reason.
    let cut_less = int8_model(&[
        "gemv.q4_0.int8.glu subgroup WG=64",
        "gemv.q4_0.int8.qkv shared",
    ]);
    assert_eq!(cut_less.activations, Activations::Int8);
}
