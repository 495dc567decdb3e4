//! The buffers a step works in: activations, logits, the step's input, and what a slot keeps from
//! step to step.

use hearth_shaders::params::{
    ATTENTION_SPLITS_MAX, PEAK_PARTS, STEP_HEADER_WORDS, Sampling, attention_split_len,
};
use hearth_shaders::{ActivationFormat, Planes, TILE_COLUMNS};

use super::ModelConfig;
use super::forward::ForwardLimits;
use super::plan::DECODE_COLUMNS_MAX;
use crate::error::EngineError;
use crate::gpu::{self, Bound, Buffer, Gpu, Image};

/// Output columns whose logits fit at once.
pub(crate) const OUTPUTS_MAX: u32 = 16;
/// Entries of the ring of sampled tokens: more than steps can be under way.
pub(crate) const RING_LEN: u32 = 64;

/// Activations between kernels, in any format.
pub(crate) struct Acts {
    buffer: Buffer,
    /// Where float activations lie on a software adapter.
    image: Option<Image>,
}

impl Acts {
    fn new(gpu: &Gpu, label: &str, blocks: u64) -> Self {
        let bytes = blocks * ActivationFormat::Float.block_bytes();
        let image = gpu.planes() == Planes::Images;
        Self {
            buffer: gpu::storage(gpu, label, bytes),
            image: image.then(|| Image::new(gpu, label, 4, bytes)),
        }
    }

    /// For a kernel that reads or writes `format`.
    pub(crate) fn bound(&self, format: ActivationFormat) -> Bound<'_> {
        match (&self.image, format) {
            (Some(image), ActivationFormat::FloatImage) => image.into(),
            _ => (&self.buffer).into(),
        }
    }
}

/// See the module.
pub(crate) struct Scratch {
    /// Residual stream: f32 `[column, hidden_dim]`.
    pub(crate) x: Buffer,
    /// Normalised hidden state: activations `[column, hidden_dim]`.
    pub(crate) hidden: Acts,
    /// Queries: f32 `[column, n_heads, head_dim]`.
    pub(crate) q: Buffer,
    /// Unnormalised attention: f32 `[column, split, n_heads, head_dim]`.
    pub(crate) partial: Buffer,
    /// Its maxima and sums: 2 f32 `[column, split, n_heads]`.
    pub(crate) sums: Buffer,
    /// Attention's result: activations `[column, n_heads * head_dim]`.
    pub(crate) attended: Acts,
    /// Feed-forward hidden state: activations `[column, ffn_dim]`.
    pub(crate) ffn: Acts,
    /// Activations in another order of columns, where weights want it: `[column, the longer of the two]`.
    pub(crate) gathered: Acts,
    /// Normalised hidden state of output columns: activations `[output, hidden_dim]`.
    pub(crate) outputs: Acts,
    /// f32 `[output, vocab_size]`.
    pub(crate) logits: Buffer,
    /// Largest logits: value and token of each part of the vocabulary, `[output, PEAK_PARTS]`.
    pub(crate) peaks: Buffer,
    /// The step's input (common/step.wgsl).
    pub(crate) step: Buffer,
    /// Sampled tokens: u32 `[RING_LEN]`.
    pub(crate) ring: Buffer,
    /// Token each slot sampled last: u32 `[slot]`.
    pub(crate) last_tokens: Buffer,
    /// What each slot has seen of each token: u32 `[slot, vocab_size]`.
    pub(crate) history: Buffer,
    /// Sampling settings: `[slot]`.
    pub(crate) samplings: Buffer,
}

impl Scratch {
    /// Buffers for steps within `limits`; the longest input that a matrix wants in its own order.
    pub(crate) fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        limits: &ForwardLimits,
        gathered_dim: u64,
    ) -> Self {
        let columns = limits.columns_max.max(DECODE_COLUMNS_MAX);
        let columns = u64::from(columns.next_multiple_of(TILE_COLUMNS));
        let attention_dim = u64::from(config.n_heads * config.head_dim);
        // A decode step's columns over all splits, or all columns over one.
        let split_rows = columns.max(u64::from(DECODE_COLUMNS_MAX * limits.splits_max));
        let acts = |label: &str, columns: u64, dim: u64| Acts::new(gpu, label, columns * dim / 32);
        let hidden = u64::from(config.hidden_dim);
        let vocab = u64::from(config.vocab_size);
        let slots = u64::from(limits.slots);
        let step_words = STEP_HEADER_WORDS as u64
            + columns * 4
            + columns * u64::from(config.rope.dim)
            + slots * u64::from(limits.context_len.div_ceil(limits.block_len));
        Self {
            x: gpu::storage(gpu, "x", columns * hidden * 4),
            hidden: acts("hidden", columns, hidden),
            q: gpu::storage(gpu, "q", columns * attention_dim * 4),
            partial: gpu::storage(gpu, "partial", split_rows * attention_dim * 4),
            sums: gpu::storage(gpu, "sums", split_rows * u64::from(config.n_heads) * 8),
            attended: acts("attended", columns, attention_dim),
            ffn: acts("ffn", columns, u64::from(config.ffn_dim)),
            gathered: acts("gathered", columns, gathered_dim),
            outputs: acts("outputs", u64::from(OUTPUTS_MAX), hidden),
            logits: gpu::storage(gpu, "logits", u64::from(OUTPUTS_MAX) * vocab * 4),
            peaks: gpu::storage(gpu, "peaks", u64::from(OUTPUTS_MAX * PEAK_PARTS) * 8),
            step: gpu::storage(gpu, "step", step_words * 4),
            ring: gpu::storage(gpu, "ring", u64::from(RING_LEN) * 4),
            last_tokens: gpu::storage(gpu, "last_tokens", slots * 4),
            history: gpu::storage(gpu, "history", slots * vocab * 4),
            samplings: gpu::storage(gpu, "samplings", slots * size_of::<Sampling>() as u64),
        }
    }

    fn all(&self) -> [&Buffer; 16] {
        [
            &self.x,
            &self.hidden.buffer,
            &self.q,
            &self.partial,
            &self.sums,
            &self.attended.buffer,
            &self.ffn.buffer,
            &self.gathered.buffer,
            &self.outputs.buffer,
            &self.logits,
            &self.peaks,
            &self.step,
            &self.ring,
            &self.last_tokens,
            &self.history,
            &self.samplings,
        ]
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> u64 {
        let acts = [
            &self.hidden,
            &self.attended,
            &self.ffn,
            &self.gathered,
            &self.outputs,
        ];
        let images: u64 = acts.iter().flat_map(|a| &a.image).map(Image::bytes).sum();
        images + self.all().iter().map(|b| b.size()).sum::<u64>()
    }

    /// Refuses a binding limit that one of them exceeds: they are not cut in shards.
    pub(crate) fn check_bindings(&self, gpu: &Gpu) -> Result<(), EngineError> {
        let largest = self.all().iter().map(|b| b.size()).max().unwrap_or(0);
        if largest <= gpu.info.binding_bytes_max {
            return Ok(());
        }
        Err(EngineError::AdapterLacks {
            adapter: gpu.info.name.clone(),
            what: format!(
                "storage bindings of {largest} bytes for this model's activations and logits; the \
                 limit is {}",
                gpu.info.binding_bytes_max
            ),
        })
    }
}

/// Most splits of a history of at most `context_len` positions.
pub(crate) fn splits_max(context_len: u32) -> u32 {
    if context_len <= attention_split_len(1) {
        return 1;
    }
    context_len.div_ceil(64).min(ATTENTION_SPLITS_MAX)
}
