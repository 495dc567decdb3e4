//! What a bench has measured, as one JSON object.

use serde::Serialize;

use super::BenchOptions;
use crate::model::ChosenKernel;

/// The smallest, the median and the largest of the counted runs.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The median; of an even number the upper one.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`; zeros if there are none.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
        Self {
            min: at(0),
            median: at(values.len() / 2),
            max: at(values.len().saturating_sub(1)),
        }
    }
}

/// How fast memory is copied here: bytes read and bytes written, together, a second.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct CopyReport {
    /// The better of both ways: the yardstick of everything else.
    pub bytes_per_second: f64,
    /// A plain kernel, at its best number of workgroups.
    pub kernel_bytes_per_second: f64,
    /// Its number of workgroups.
    pub kernel_workgroups: u32,
    /// Its threads a workgroup.
    pub kernel_threads: u32,
    /// The driver's own copy command.
    pub command_bytes_per_second: f64,
}

/// All dispatches of one kernel that read equally much, in one step or one prompt.
#[derive(Debug, Clone, Serialize)]
pub struct KernelReport {
    /// The kernel.
    pub kernel: String,
    /// `weights`, `kv` or `little`.
    pub reads: &'static str,
    /// Dispatches.
    pub dispatches: usize,
    /// Microseconds of all of them, by the GPU's clock; a median over several steps.
    pub us: f64,
    /// Bytes of weights or KV that all of them need to read.
    pub bytes: u64,
    /// `bytes` over the time.
    pub bytes_per_second: f64,
    /// That as per cent of the copy bandwidth.
    pub percent_of_copy: f64,
}

/// The kernels of one step or one prompt.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Profile {
    /// From the one that takes most.
    pub kernels: Vec<KernelReport>,
    /// Microseconds of all kernels.
    pub us: f64,
    /// Microseconds of the same steps without the clock being read between dispatches.
    pub plain_us: f64,
    /// What reading the clock adds to a dispatch, microseconds: the difference of the two, shared
    /// out evenly.
    pub mark_us: f64,
    /// Microseconds of all kernels that read weights.
    pub matrix_us: f64,
    /// Their bytes over their time, per cent of the copy bandwidth.
    pub matrix_percent_of_copy: f64,
    /// The same without what reading the clock adds.
    pub matrix_percent_of_copy_unmarked: f64,
}

/// A prompt's prefill.
#[derive(Debug, Clone, Serialize)]
pub struct PrefillReport {
    /// Tokens of the prompt.
    pub tokens: u32,
    /// Tokens of a step.
    pub chunk: u32,
    /// Tokens a second.
    pub tokens_per_second: Spread,
    /// Tokens a joule; none where the machine tells no energy.
    pub tokens_per_joule: Option<f64>,
    /// Dispatches of all steps.
    pub dispatches: usize,
    /// If asked for.
    pub profile: Option<Profile>,
}

/// Decoding at one depth with one batch.
#[derive(Debug, Clone, Serialize)]
pub struct DecodeReport {
    /// Sequences decoded together in one step.
    pub batch: u32,
    /// Positions of each before the first token.
    pub depth: u32,
    /// Steps of a run.
    pub steps: u32,
    /// Tokens a second, of all sequences together.
    pub tokens_per_second: Spread,
    /// Tokens a joule; none where the machine tells no energy.
    pub tokens_per_joule: Option<f64>,
    /// Microseconds of a step.
    pub step_us: f64,
    /// Microseconds of a step from its first dispatch to its last by the GPU's clock, median; none
    /// without that clock.
    pub gpu_us: Option<f64>,
    /// Dispatches of a step.
    pub dispatches: usize,
    /// Of these, in each layer (the whole quotient),
    pub dispatches_per_layer: usize,
    /// and beside the layers (the remainder).
    pub dispatches_beside: usize,
    /// Bytes of weights and KV that a step needs to read, half-way through the run.
    pub bytes: u64,
    /// `bytes` over the step's time.
    pub bytes_per_second: f64,
    /// That as per cent of the copy bandwidth.
    pub percent_of_copy: f64,
    /// Time to prepare and submit a step, microseconds, median.
    pub submit_us: f64,
    /// CPU time that the thread spends in that, microseconds a step; none where it cannot be told.
    pub submit_cpu_us: Option<f64>,
    /// CPU time that the thread spends on a step in all, waiting and reading the token included.
    pub step_cpu_us: Option<f64>,
    /// Microseconds between the end of a step on the GPU and the start of the next, median; none
    /// without the GPU's clock.
    pub idle_us: Option<f64>,
    /// That as per cent of the time from start to start.
    pub idle_percent: Option<f64>,
    /// If asked for.
    pub profile: Option<Profile>,
}

/// Everything that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Version of the engine.
    pub version: &'static str,
    /// Adapter name.
    pub adapter: String,
    /// Driver, with its version.
    pub driver: String,
    /// Graphics interface.
    pub backend: String,
    /// The adapter renders in software.
    pub software_adapter: bool,
    /// Smallest subgroup; 0 if subgroups are not used.
    pub subgroup_size: u32,
    /// Where the GPU's clock can be read: `none`, `around passes` or `inside passes`.
    pub timestamps: &'static str,
    /// Model name.
    pub model: String,
    /// The weights are random numbers.
    pub synthetic: bool,
    /// Weights' type.
    pub quantization: String,
    /// Values in all weights.
    pub parameter_count: u64,
    /// Layers.
    pub n_layers: u32,
    /// `float` or `int8`.
    pub activations: &'static str,
    /// Bytes of all weights on the GPU.
    pub weights_bytes: u64,
    /// Bytes of the KV cache.
    pub kv_bytes: u64,
    /// Seconds until the weights were there and the kernels chosen and compiled.
    pub load_seconds: f64,
    /// How matrix products are cut, where that was chosen by measuring.
    pub chosen: Vec<ChosenKernel>,
    /// Descriptions of kernels that the driver refused.
    pub refused: Vec<String>,
    /// What was asked for.
    pub options: BenchOptions,
    /// Copy bandwidth.
    pub copy: CopyReport,
    /// A prompt length each.
    pub prefill: Vec<PrefillReport>,
    /// A depth and batch each.
    pub decode: Vec<DecodeReport>,
}
