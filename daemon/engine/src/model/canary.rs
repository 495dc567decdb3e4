//! A small computation on the loaded weights whose result is known from the load: if it comes out
//! otherwise, or not at all, the device is not to be trusted.

use std::hash::{DefaultHasher, Hasher as _};

use super::step::{Column, StepInput};
use super::{Forward, ModelConfig};
use crate::error::EngineError;
use crate::gpu::{Gpu, Readback};

/// Tokens of its prompt.
const PROMPT_TOKENS: u32 = 7;

/// What came out. The same device gives the same for the same weights, to the last bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Canary(u64);

impl Canary {
    /// Computes a prompt by prefill's kernels, and one token more by decode's; all of their logits
    /// count. Uses the KV block `block`, which is to be zeroed afterwards, and slot 0, which must be set
    /// up anew before a sequence uses it.
    pub(crate) fn compute(
        gpu: &Gpu,
        forward: &Forward,
        config: &ModelConfig,
        block: u32,
    ) -> Result<Self, EngineError> {
        let mut hasher = DefaultHasher::new();
        for (prefill, positions) in [
            (true, 0..PROMPT_TOKENS),
            (false, PROMPT_TOKENS..PROMPT_TOKENS + 1),
        ] {
            let columns: Vec<Column> = positions
                .map(|position| Column {
                    // Tokens that differ, from all over the vocabulary.
                    token: (position + 1).wrapping_mul(2_654_435_761) % config.vocab_size,
                    position,
                    table: 0,
                    slot: 0,
                })
                .collect();
            let step = StepInput {
                output_first: u32::try_from(columns.len()).unwrap_or(1) - 1,
                outputs: 1,
                columns,
                prefill,
                tables: vec![block],
                ring: 0,
            };
            hasher.write(&logits(gpu, forward, &step)?);
        }
        Ok(Self(hasher.finish()))
    }
}

/// The logits of a step with one output, as the GPU left them.
fn logits(gpu: &Gpu, forward: &Forward, step: &StepInput) -> Result<Vec<u8>, EngineError> {
    forward.write_step(gpu, step);
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    forward.encode_body(&mut encoder, step);
    forward.encode_head(&mut encoder, step);
    let bytes = forward.logits_bytes();
    let mut readback = Readback::new(gpu, bytes);
    readback.copy_from(&mut encoder, &forward.scratch.logits, 0, 0, bytes);
    let submission = gpu.queue.submit([encoder.finish()]);
    readback.request();
    readback.read(gpu, submission, |raw| {
        raw[..usize::try_from(bytes).unwrap_or(0)].to_vec()
    })
}
