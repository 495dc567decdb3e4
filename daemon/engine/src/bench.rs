//! Measures the engine on this machine: tokens a second, dispatches and bytes a step, and per cent of
//! the copy bandwidth measured in the same run. Runs without a daemon.

use std::path::Path;
use std::time::{Duration, Instant};

use hearth_shaders::Kernel;
use hearth_shaders::params::{CopyParams, Sampling, TOKEN_FROM_SLOT};
use serde::Serialize;

use crate::engine::AdapterInfo;
use crate::engine_loop::limits;
use crate::error::{EngineError, LoadError};
use crate::format::Gguf;
use crate::gpu::{self, Axis, Extent, Gpu, Op, Pipelines, Recording};
use crate::model::{Column, Forward, ModelConfig, RING_LEN, StepInput};
use crate::request::{Activations, EngineConfig};

/// Threads of a workgroup of the copy kernel.
const COPY_THREADS: u32 = 256;
/// Workgroups of the copy kernel: enough to fill any GPU.
const COPY_GROUPS: u32 = 2048;

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Prompt tokens of a prefill run.
    pub prefill_tokens: u32,
    /// Tokens of a decode run.
    pub decode_tokens: u32,
    /// Positions before the first decoded token.
    pub depth: u32,
    /// Counted runs of each, after one that does not count.
    pub runs: u32,
    /// Measure each kernel by itself as well.
    pub kernels: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            prefill_tokens: 128,
            decode_tokens: 32,
            depth: 128,
            runs: 5,
            kernels: false,
        }
    }
}

/// Tokens a second over the counted runs.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rate {
    /// The slowest run.
    pub min: f64,
    /// The median run.
    pub median: f64,
    /// The fastest run.
    pub max: f64,
}

/// One kernel's share of a decode step.
#[derive(Debug, Clone, Serialize)]
pub struct KernelTime {
    /// The kernel.
    pub kernel: String,
    /// Dispatches a step.
    pub dispatches: u32,
    /// Microseconds of all of them, each repeated by itself.
    pub step_us: f64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Adapter name.
    pub adapter: String,
    /// Driver.
    pub driver: String,
    /// The adapter renders in software.
    pub software_adapter: bool,
    /// Model name.
    pub model: String,
    /// Weights' type.
    pub quantization: String,
    /// `float` or `int8`.
    pub activations: &'static str,
    /// Prompt tokens of a prefill run.
    pub prefill_tokens: u32,
    /// Prefill, tokens a second.
    pub prefill: Rate,
    /// Tokens of a decode run.
    pub decode_tokens: u32,
    /// Positions before the first decoded token.
    pub depth: u32,
    /// Decode, tokens a second.
    pub decode: Rate,
    /// Dispatches of a decode step.
    pub dispatches_per_step: usize,
    /// Bytes of weights and KV a decode step reads, at `depth`.
    pub bytes_per_step: u64,
    /// Copy bandwidth, bytes read and written a second.
    pub copy_bytes_per_second: f64,
    /// Bytes a step over the step's time, per cent of the copy bandwidth.
    pub decode_percent_of_copy: f64,
    /// CPU time to prepare and submit a decode step, microseconds, median.
    pub submit_us: f64,
    /// Kernels of a decode step, if asked for.
    pub kernels: Vec<KernelTime>,
}

struct Bench {
    gpu: Gpu,
    forward: Forward,
    tables: Vec<u32>,
    vocab_size: u32,
    chunk: u32,
}

/// Loads `path` and measures.
///
/// # Errors
/// As [`crate::Engine::load`], and an error naming the field where the options do not fit the context.
pub fn run(
    config: &EngineConfig,
    path: &Path,
    options: &BenchOptions,
) -> Result<BenchReport, LoadError> {
    let gpu = Gpu::open(config)?;
    let gguf = Gguf::open(path)?;
    let model = ModelConfig::from_gguf(&gguf)?;
    let limits = limits(&gpu, config, &model);
    let longest = options
        .prefill_tokens
        .max(options.depth + options.decode_tokens);
    if longest > limits.context_len || options.prefill_tokens == 0 || options.decode_tokens == 0 {
        return Err(EngineError::AdapterLacks {
            adapter: gpu.info.name.clone(),
            what: format!(
                "room for {longest} positions: the context here is {} tokens, and both prefill \
                 and decode need at least one",
                limits.context_len
            ),
        }
        .into());
    }
    let forward = Forward::load(&gpu, &gguf, &model, limits, config.activations, &mut |_| {
        true
    })?;
    let bench = Bench {
        tables: (0..forward.limits().kv_blocks).collect(),
        vocab_size: model.vocab_size,
        chunk: config.prefill_chunk,
        gpu,
        forward,
    };
    let info = bench.gpu.info.clone();
    let report = bench.measure(&info, &model, options)?;
    Ok(report)
}

impl Bench {
    fn measure(
        &self,
        info: &AdapterInfo,
        model: &ModelConfig,
        options: &BenchOptions,
    ) -> Result<BenchReport, EngineError> {
        self.forward.reset_slot(&self.gpu, 0, &Sampling::GREEDY);
        let mut prefill = Vec::new();
        let mut decode = Vec::new();
        let mut submits = Vec::new();
        for run in 0..=options.runs.max(1) {
            let started = Instant::now();
            self.prefill(options.prefill_tokens)?;
            let time = started.elapsed();
            self.prefill(options.depth.max(1))?;
            let started = Instant::now();
            let submit = self.decode(options.depth.max(1), options.decode_tokens)?;
            if run > 0 {
                prefill.push(f64::from(options.prefill_tokens) / time.as_secs_f64());
                decode.push(f64::from(options.decode_tokens) / started.elapsed().as_secs_f64());
                submits.push(submit.as_secs_f64() * 1e6 / f64::from(options.decode_tokens));
            }
        }
        let copy = self.copy_bandwidth()?;
        let decode = rate(decode);
        let positions = u64::from(options.depth + options.decode_tokens / 2);
        let kv_position = self.forward.kv_bytes()
            / u64::from(self.forward.limits().kv_blocks * self.forward.limits().block_len);
        let bytes_per_step = self.forward.token_bytes + positions * kv_position;
        Ok(BenchReport {
            adapter: info.name.clone(),
            driver: info.driver.clone(),
            software_adapter: info.kind == crate::AdapterKind::Software,
            model: model.name.clone(),
            quantization: model.quantization.clone(),
            activations: match self.forward.activations {
                Activations::Int8 => "int8",
                _ => "float",
            },
            prefill_tokens: options.prefill_tokens,
            prefill: rate(prefill),
            decode_tokens: options.decode_tokens,
            depth: options.depth,
            decode,
            dispatches_per_step: self.forward.dispatches(),
            bytes_per_step,
            copy_bytes_per_second: copy,
            decode_percent_of_copy: 100.0 * float(bytes_per_step) * decode.median / copy,
            submit_us: rate(submits).median,
            kernels: if options.kernels {
                self.kernels(options)?
            } else {
                Vec::new()
            },
        })
    }

    /// A token that differs from its neighbours, so that no two columns are alike.
    fn token(&self, position: u32) -> u32 {
        position.wrapping_mul(2_654_435_761) % self.vocab_size
    }

    fn prefill(&self, tokens: u32) -> Result<(), EngineError> {
        let mut from = 0;
        while from < tokens {
            let to = tokens.min(from + self.chunk);
            let columns = (from..to)
                .map(|p| Column {
                    token: self.token(p),
                    position: p,
                    table: 0,
                    slot: 0,
                })
                .collect();
            self.submit(&StepInput {
                columns,
                tables: self.tables.clone(),
                output_first: to - from - 1,
                outputs: u32::from(to == tokens),
                ring: 0,
            });
            from = to;
        }
        self.gpu.wait(None)
    }

    /// Decodes and returns the CPU's time for preparing and submitting.
    fn decode(&self, depth: u32, tokens: u32) -> Result<Duration, EngineError> {
        let mut before = None;
        let mut busy = Duration::ZERO;
        for i in 0..tokens {
            let started = Instant::now();
            let submission = self.submit(&self.decode_step(depth + i, i));
            busy += started.elapsed();
            if let Some(before) = before.replace(submission) {
                self.gpu.wait(Some(before))?;
            }
        }
        self.gpu.wait(None)?;
        Ok(busy)
    }

    fn decode_step(&self, position: u32, ring: u32) -> StepInput {
        StepInput {
            columns: vec![Column {
                token: TOKEN_FROM_SLOT,
                position,
                table: 0,
                slot: 0,
            }],
            tables: self.tables.clone(),
            output_first: 0,
            outputs: 1,
            ring: ring % RING_LEN,
        }
    }

    fn submit(&self, step: &StepInput) -> gpu::SubmissionIndex {
        self.forward.write_step(&self.gpu, step);
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        self.forward.encode_body(&mut encoder, step);
        if step.outputs > 0 {
            self.forward.encode_head(&mut encoder, step);
            self.forward.encode_sample(&mut encoder, step);
        }
        self.gpu.queue.submit([encoder.finish()])
    }

    /// Bytes read and written a second by a plain kernel over buffers larger than any cache.
    fn copy_bandwidth(&self) -> Result<f64, EngineError> {
        let software = self.gpu.info.kind == crate::AdapterKind::Software;
        let wanted: u64 = if software { 128 << 20 } else { 1 << 30 };
        let round = u64::from(COPY_GROUPS * COPY_THREADS * 4 * 16);
        let bytes = wanted.min(self.gpu.buffer_bytes_max()) / round * round;
        let [from, to] =
            ["copy source", "copy target"].map(|label| gpu::storage(&self.gpu, label, bytes));
        let count = u32::try_from(bytes / 16).unwrap_or(u32::MAX);
        let params = gpu::uniform(
            &self.gpu,
            &CopyParams {
                count,
                ..CopyParams::default()
            },
        );
        let pipeline =
            Pipelines::default().get(&self.gpu, Kernel::Copy, &[("WG", COPY_THREADS)])?;
        let bind_group = pipeline.bind(&self.gpu, &[&params, &from, &to]);
        let grid = [Axis::Fixed(COPY_GROUPS), Axis::Fixed(1), Axis::Fixed(1)];
        let recording = Recording {
            ops: vec![Op {
                pipeline,
                bind_group,
                grid,
                only_split: false,
            }],
        };
        let best = (0..5)
            .map(|_| recording.time_each(&self.gpu, Extent::default(), 8))
            .collect::<Result<Vec<_>, EngineError>>()?
            .into_iter()
            .flatten()
            .fold(f64::MAX, |best, (_, seconds)| best.min(seconds));
        Ok(2.0 * float(bytes) / best)
    }

    /// Each kernel of a decode step, repeated by itself.
    fn kernels(&self, options: &BenchOptions) -> Result<Vec<KernelTime>, EngineError> {
        let step = self.decode_step(options.depth.max(1), 0);
        self.forward.write_step(&self.gpu, &step);
        let mut list: Vec<KernelTime> = Vec::new();
        for (name, seconds) in self.forward.time_each_op(&self.gpu, &step)? {
            match list.iter_mut().find(|k| k.kernel == name) {
                Some(entry) => {
                    entry.dispatches += 1;
                    entry.step_us += seconds * 1e6;
                }
                None => {
                    list.push(KernelTime {
                        kernel: name,
                        dispatches: 1,
                        step_us: seconds * 1e6,
                    });
                }
            }
        }
        list.sort_by(|a, b| b.step_us.total_cmp(&a.step_us));
        Ok(list)
    }
}

fn rate(mut values: Vec<f64>) -> Rate {
    values.sort_by(f64::total_cmp);
    let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
    Rate {
        min: at(0),
        median: at(values.len() / 2),
        max: at(values.len().saturating_sub(1)),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn float(n: u64) -> f64 {
    n as f64
}
