//! What steps leave for the CPU: sampled tokens, and log-probabilities where a request asks for them.

use super::Running;
use crate::error::EngineError;
use crate::event::TokenOutput;
use crate::gpu::{Gpu, Readback};
use crate::model::{OUTPUTS_MAX, StepInput};
use crate::sampler::log_probabilities;
use crate::scheduler::SequenceId;

/// Where logits start in a readback buffer, after the tokens.
pub(super) const LOGITS_AT: u64 = OUTPUTS_MAX as u64 * 4;

impl Running {
    /// Echoes the chunk's prompt tokens, with their log-probabilities if asked for. Those are read
    /// at once: the chunk's residual stream is gone with the next step.
    pub(super) fn score_prompt(
        &mut self,
        gpu: &Gpu,
        id: SequenceId,
        from: u32,
        to: u32,
        input: &StepInput,
    ) -> Result<(), EngineError> {
        let Some(sequence) = self.sequences.get(&id) else {
            return Ok(());
        };
        if !sequence.request.echo {
            return Ok(());
        }
        let prompt = &sequence.request.prompt;
        let plain = |id: u32| TokenOutput {
            id,
            logprob: None,
            top: Vec::new(),
        };
        let mut tokens = Vec::new();
        if from == 0 {
            tokens.push(plain(prompt[0]));
        }
        let last = to as usize == prompt.len();
        // Column c predicts the token after it; the last prompt token predicts none of the prompt.
        let targets = &prompt[from as usize + 1..prompt.len().min(to as usize + 1)];
        match sequence.request.logprobs {
            None => tokens.extend(targets.iter().map(|&t| plain(t))),
            Some(top) => {
                let targets = targets.to_vec();
                for (group, at) in targets.chunks(crate::model::OUTPUTS_MAX as usize).zip(0..) {
                    let first = at * crate::model::OUTPUTS_MAX;
                    let logits = self.output_logits(gpu, input, first, group.len())?;
                    let rows = logits.chunks_exact(self.model.config.vocab_size as usize);
                    tokens.extend(group.iter().zip(rows).map(|(&id, row)| {
                        let (logprob, top) = log_probabilities(row, id, top);
                        TokenOutput {
                            id,
                            logprob: Some(logprob),
                            top,
                        }
                    }));
                }
            }
        }
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.echo(tokens, last);
        }
        Ok(())
    }

    /// Logits of columns `first .. first + count` of the step that was submitted last.
    fn output_logits(
        &mut self,
        gpu: &Gpu,
        input: &StepInput,
        first: u32,
        count: usize,
    ) -> Result<Vec<f32>, EngineError> {
        let outputs = u32::try_from(count).unwrap_or(u32::MAX);
        let input = StepInput {
            output_first: first,
            outputs,
            ..input.clone()
        };
        self.forward.write_step(gpu, &input);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        self.forward.encode_head(&mut encoder, &input);
        let bytes = self.forward.logits_bytes() * u64::from(outputs);
        let mut readback = take_readback(&mut self.spare_readbacks, gpu, bytes);
        readback.copy_from(&mut encoder, &self.forward.scratch.logits, 0, 0, bytes);
        let submission = gpu.queue.submit([encoder.finish()]);
        readback.request();
        let values = readback.read(gpu, submission, |raw| {
            raw[..usize::try_from(bytes).unwrap_or(0)]
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect()
        });
        self.spare_readbacks.push(readback);
        values
    }
}

/// A readback of at least `bytes`, used before if there is one.
pub(super) fn take_readback(spare: &mut Vec<Readback>, gpu: &Gpu, bytes: u64) -> Readback {
    match spare.iter().position(|r| r.bytes() >= bytes) {
        Some(at) => spare.swap_remove(at),
        None => Readback::new(gpu, bytes),
    }
}

/// The `count` tokens sampled, or the one with its log-probability if logits came along.
pub(super) fn token_outputs(
    raw: &[u8],
    count: u32,
    top: Option<u32>,
    vocab: usize,
) -> Vec<TokenOutput> {
    let word = |at: usize| [raw[at], raw[at + 1], raw[at + 2], raw[at + 3]];
    let id_at = |i: usize| u32::from_le_bytes(word(4 * i));
    let Some(top) = top else {
        let plain = |i| TokenOutput {
            id: id_at(i),
            logprob: None,
            top: Vec::new(),
        };
        return (0..count as usize).map(plain).collect();
    };
    let id = id_at(0);
    let start = usize::try_from(LOGITS_AT).unwrap_or(0);
    let logits: Vec<f32> = (0..vocab)
        .map(|i| f32::from_le_bytes(word(start + 4 * i)))
        .collect();
    let (logprob, top) = log_probabilities(&logits, id, top);
    vec![TokenOutput {
        id,
        logprob: Some(logprob),
        top,
    }]
}
