//! Measures the engine on this machine, without a daemon: prefill, decode, and what bounds them, in
//! per cent of the copy bandwidth measured in the same run.
//!
//! `shape.rs` has the models that need no file, `steps.rs` runs them, `profile.rs` times the kernels
//! within a step, `copy.rs` has the yardstick and `report.rs` the figures.

mod copy;
mod profile;
mod report;
mod shape;
mod steps;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use hearth_shaders::params::Sampling;
use serde::Serialize;

pub use report::{
    BenchReport, CopyReport, DecodeReport, KernelReport, PrefillReport, Profile, Spread,
};
pub use shape::{Format, Shape};

use crate::energy::metered;
use crate::engine_loop::limits;
use crate::error::{EngineError, LoadError};
use crate::format::{Checkpoint, ModelFiles};
use crate::gpu::{Gpu, OutOfMemory, Stopwatch};
use crate::kv_cache::BLOCK_LEN;
use crate::limits::CONTEXT_MAX;
use crate::model::{Forward, ForwardLimits, ModelConfig, OUTPUTS_MAX, Patterns, WeightSource};
use crate::prefill_pace::prefill_chunk;
use crate::request::{Activations, EngineConfig};
use steps::Steps;

/// A GPU is kept busy this long before anything counts, so that its clocks are up.
const WARM_UP: Duration = Duration::from_millis(300);

/// What to measure.
#[derive(Debug, Clone, Serialize)]
pub struct BenchOptions {
    /// Lengths of prompts to prefill, in tokens.
    pub prompts: Vec<u32>,
    /// Positions of a sequence before the first decoded token.
    pub depths: Vec<u32>,
    /// Sequences decoded together in one step.
    pub batches: Vec<u32>,
    /// Steps of a decode run.
    pub generate: u32,
    /// Counted runs of each, after some that do not count.
    pub runs: u32,
    /// Time the kernels of each step as well.
    pub kernels: bool,
    /// Choose the kernels anew before measuring, and forget what was chosen earlier.
    pub retune: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            prompts: vec![128],
            depths: vec![128],
            batches: vec![1],
            generate: 32,
            runs: 5,
            kernels: false,
            retune: false,
        }
    }
}

/// Which model to measure.
#[derive(Debug, Clone)]
pub enum BenchModel {
    /// A model's files.
    Files(ModelFiles),
    /// Random weights in a known model's sizes.
    Shape(Shape, Format),
}

/// The measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An option is out of range.
    #[error("{option} {problem}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// Loads the model, or makes it up, and measures.
///
/// # Errors
/// See [`BenchError`].
pub fn run(
    config: &EngineConfig,
    model: &BenchModel,
    options: &BenchOptions,
) -> Result<BenchReport, BenchError> {
    check(options)?;
    let config = &EngineConfig {
        retune: options.retune,
        ..config.clone()
    };
    let gpu = Gpu::open(config)?;
    let copy = copy::measure(&gpu)?;
    let started = Instant::now();
    let (forward, model_config) = match model {
        BenchModel::Files(files) => {
            let checkpoint = Checkpoint::open(files).map_err(LoadError::from)?;
            let model = ModelConfig::of(&checkpoint).map_err(LoadError::from)?;
            let source = WeightSource::File(&checkpoint);
            (load(&gpu, source, &model, config, options)?, model)
        }
        BenchModel::Shape(shape, format) => {
            let model = shape.config(*format);
            let weights = format.weights(&model);
            let source = WeightSource::Random(&weights);
            (load(&gpu, source, &model, config, options)?, model)
        }
    };
    let load_seconds = started.elapsed().as_secs_f64();
    // As the engine does.
    let chunk = prefill_chunk(&gpu, &forward, &model_config, config.prefill_chunk)?;
    // Attention takes as long for any numbers, so histories need no prefill.
    let mut patterns = Patterns::default();
    for buffer in forward.kv_buffers() {
        patterns.fill_halves(&gpu, buffer)?;
    }
    for slot in 0..forward.limits().slots {
        forward.reset_slot(&gpu, slot, &Sampling::GREEDY);
    }
    let (chosen, refused) = (forward.chosen.clone(), forward.refused.clone());
    let (weights_bytes, kv_bytes) = (forward.weights_bytes, forward.kv_bytes());
    let activations = match forward.activations {
        Activations::Int8 => "int8",
        _ => "float",
    };
    let mut steps = Steps {
        vocab_size: model_config.vocab_size,
        chunk,
        blocks_per_sequence: sequence_blocks(options),
        spare: Vec::new(),
        gpu,
        forward,
        meter: config.meter.clone(),
    };
    let n_layers = usize::try_from(model_config.n_layers).unwrap_or(1);
    let (prefill, decode) = measure(&mut steps, n_layers, options, copy.bytes_per_second)?;
    let info = &steps.gpu.info;
    Ok(BenchReport {
        version: env!("CARGO_PKG_VERSION"),
        adapter: info.name.clone(),
        driver: info.driver.clone(),
        backend: info.backend.clone(),
        software_adapter: info.kind == crate::AdapterKind::Software,
        subgroup_size: info.subgroup_size,
        timestamps: steps.gpu.timestamps.name(),
        model: model_config.name,
        synthetic: matches!(model, BenchModel::Shape(..)),
        quantization: model_config.quantization,
        parameter_count: model_config.parameter_count,
        n_layers: model_config.n_layers,
        activations,
        weights_bytes,
        kv_bytes,
        load_seconds,
        chosen,
        refused,
        options: options.clone(),
        copy,
        prefill,
        decode,
    })
}

fn check(options: &BenchOptions) -> Result<(), BenchError> {
    let bad = |option, problem: String| Err(BenchError::Option { option, problem });
    let longest = options
        .prompts
        .iter()
        .chain(&options.depths)
        .map(|&n| u64::from(n) + u64::from(options.generate))
        .max()
        .unwrap_or(0);
    if longest > u64::from(CONTEXT_MAX) {
        return bad(
            "prompt, depth and generate",
            format!("ask for {longest} positions; {CONTEXT_MAX} is the most"),
        );
    }
    match options.batches.iter().find(|&&n| n == 0 || n > OUTPUTS_MAX) {
        Some(n) => bad("batch", format!("is {n}; 1 to {OUTPUTS_MAX} is possible")),
        None => Ok(()),
    }
}

/// KV blocks of the longest sequence.
fn sequence_blocks(options: &BenchOptions) -> u32 {
    let prompt = options.prompts.iter().copied().max().unwrap_or(0);
    let depth = options.depths.iter().copied().max().unwrap_or(0);
    // One position more: a profile decodes the one after the last.
    prompt.max(depth + options.generate + 1).div_ceil(BLOCK_LEN)
}

/// Loads with just the KV and the slots that `options` need.
fn load(
    gpu: &Gpu,
    source: WeightSource<'_>,
    model: &ModelConfig,
    config: &EngineConfig,
    options: &BenchOptions,
) -> Result<Forward, BenchError> {
    let batch = options.batches.iter().copied().max().unwrap_or(1);
    let blocks = sequence_blocks(options);
    let kv_blocks = blocks.saturating_mul(batch);
    let mut limits = limits(&gpu.info, config, model);
    limits.slots = batch;
    limits.columns_max = limits.columns_max.max(batch);
    limits.kv_blocks = kv_blocks;
    let limits = limits.with_context(blocks * BLOCK_LEN);
    let block_bytes = ForwardLimits::kv_block_bytes(model, BLOCK_LEN);
    if u64::from(kv_blocks) * block_bytes > gpu.info.binding_bytes_max {
        return Err(BenchError::Option {
            option: "batch and depth",
            problem: format!(
                "need KV buffers of {} bytes; the adapter binds {}",
                u64::from(kv_blocks) * block_bytes,
                gpu.info.binding_bytes_max
            ),
        });
    }
    let mut done_bytes = 0;
    let loaded = gpu.allocating(|| {
        let mut progress = |bytes| {
            done_bytes = bytes;
            true
        };
        Forward::load(gpu, source, model, limits.clone(), config, &mut progress)
    });
    let forward = match loaded {
        Ok(forward) => forward?,
        Err(OutOfMemory { granted_bytes }) => {
            let needed_bytes = done_bytes + limits.kv_bytes(model);
            return Err(LoadError::OutOfMemory {
                needed_bytes,
                granted_bytes,
            }
            .into());
        }
    };
    gpu.check()?;
    Ok(forward)
}

fn measure(
    steps: &mut Steps,
    n_layers: usize,
    options: &BenchOptions,
    copy_rate: f64,
) -> Result<(Vec<PrefillReport>, Vec<DecodeReport>), EngineError> {
    let mut prefill = Vec::new();
    for &tokens in options.prompts.iter().filter(|&&tokens| tokens > 0) {
        prefill.push(measure_prefill(steps, tokens, options, copy_rate)?);
    }
    let mut decode = Vec::new();
    if options.generate > 0 {
        for &depth in &options.depths {
            for &batch in &options.batches {
                let case = (batch, depth);
                decode.push(measure_decode(steps, n_layers, case, options, copy_rate)?);
            }
        }
    }
    Ok((prefill, decode))
}

/// Runs that do not count: one, and on a GPU as many as bring its clocks up.
fn warm_up(
    steps: &mut Steps,
    mut run: impl FnMut(&mut Steps) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let started = Instant::now();
    loop {
        run(steps)?;
        if steps.is_software() || started.elapsed() >= WARM_UP {
            return Ok(());
        }
    }
}

fn measure_prefill(
    steps: &mut Steps,
    tokens: u32,
    options: &BenchOptions,
    copy_rate: f64,
) -> Result<PrefillReport, EngineError> {
    let mut rates = Vec::new();
    warm_up(steps, |steps| steps.prefill(tokens).map(drop))?;
    let meter = steps.meter.clone();
    let runs = options.runs.max(1);
    let (done, joules) = metered(meter.as_deref(), || -> Result<(), EngineError> {
        for _ in 0..runs {
            rates.push(f64::from(tokens) / steps.prefill(tokens)?);
        }
        Ok(())
    });
    done?;
    let tokens_in_all = f64::from(tokens) * f64::from(runs);
    let inputs = steps.prefill_steps(tokens);
    Ok(PrefillReport {
        tokens,
        chunk: steps.chunk,
        tokens_per_second: Spread::of(rates),
        tokens_per_joule: joules.map(|joules| tokens_in_all / joules),
        dispatches: inputs.iter().map(|step| steps.dispatches(step)).sum(),
        profile: if options.kernels {
            steps.profile(&inputs, copy_rate)?
        } else {
            None
        },
    })
}

fn measure_decode(
    steps: &mut Steps,
    n_layers: usize,
    (batch, depth): (u32, u32),
    options: &BenchOptions,
    copy_rate: f64,
) -> Result<DecodeReport, EngineError> {
    let count = options.generate;
    let (mut rates, mut submits) = (Vec::new(), Vec::new());
    let (mut submit_cpu, mut cpu) = (Vec::new(), Vec::new());
    warm_up(steps, |steps| {
        steps.decode(batch, depth, count, None).map(drop)
    })?;
    let meter = steps.meter.clone();
    let runs = options.runs.max(1);
    let tokens = f64::from(count) * f64::from(batch);
    let (done, joules) = metered(meter.as_deref(), || -> Result<(), EngineError> {
        for _ in 0..runs {
            let times = steps.decode(batch, depth, count, None)?;
            rates.push(tokens / times.seconds);
            submits.extend(times.submits);
            submit_cpu.extend(times.submit_cpu);
            cpu.extend(times.cpu);
        }
        Ok(())
    });
    done?;
    let step_us = |seconds: Vec<f64>| {
        let each = Spread::of(seconds).median * 1e6 / f64::from(count);
        (each > 0.0).then_some(each)
    };
    let on_gpu = gpu_times(steps, (batch, depth), count)?;
    let middle = steps.decode_step(batch, depth + count / 2, 0);
    let rate = Spread::of(rates);
    let step_seconds = f64::from(batch) / rate.median;
    let bytes = steps.bytes(&middle);
    let dispatches = steps.dispatches(&middle);
    Ok(DecodeReport {
        batch,
        depth,
        steps: count,
        tokens_per_second: rate,
        tokens_per_joule: joules.map(|joules| tokens * f64::from(runs) / joules),
        step_us: step_seconds * 1e6,
        dispatches,
        dispatches_per_layer: dispatches / n_layers,
        dispatches_beside: dispatches % n_layers,
        bytes,
        bytes_per_second: float(bytes) / step_seconds,
        percent_of_copy: 100.0 * float(bytes) / step_seconds / copy_rate,
        submit_us: Spread::of(submits).median * 1e6,
        submit_cpu_us: step_us(submit_cpu),
        step_cpu_us: step_us(cpu),
        gpu_us: on_gpu.map(|times| times.step * 1e6),
        idle_us: on_gpu.map(|times| times.gap * 1e6),
        idle_percent: on_gpu.map(|times| 100.0 * times.gap / times.period),
        profile: if options.kernels {
            steps.profile(&[middle], copy_rate)?
        } else {
            None
        },
    })
}

/// Median seconds of decode steps by the GPU's clock.
#[derive(Clone, Copy)]
struct GpuTimes {
    /// From the first dispatch to the last.
    step: f64,
    /// From one step's end to the next one's start.
    gap: f64,
    /// From start to start.
    period: f64,
}

/// Times of a run of its own. `None` without the GPU's clock, or for a single step.
fn gpu_times(
    steps: &mut Steps,
    (batch, depth): (u32, u32),
    count: u32,
) -> Result<Option<GpuTimes>, EngineError> {
    let marks = count.saturating_mul(2);
    let (Some(mut stopwatch), true) = (Stopwatch::new(&steps.gpu, marks), count > 1) else {
        return Ok(None);
    };
    steps.decode(batch, depth, count, Some(&stopwatch))?;
    let marks = stopwatch.read(&steps.gpu, marks)?;
    let pairs: Vec<&[f64]> = marks.chunks_exact(2).collect();
    let median = |of: fn(&[f64], &[f64]) -> f64| {
        Spread::of(pairs.windows(2).map(|w| of(w[0], w[1])).collect()).median
    };
    let times = GpuTimes {
        step: median(|this, _| this[1] - this[0]),
        gap: median(|this, next| (next[0] - this[1]).max(0.0)),
        period: median(|this, next| next[0] - this[0]),
    };
    Ok((times.period > 0.0).then_some(times))
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn float(n: u64) -> f64 {
    n as f64
}
