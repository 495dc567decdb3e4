//! What steps leave for the CPU: sampled tokens, log-probabilities where a request asks for them, and
//! the time they took.

use std::time::{Duration, Instant};

use super::Running;
use super::steps::{Part, StepUnderWay};
use crate::engine::Shared;
use crate::error::EngineError;
use crate::event::TokenOutput;
use crate::gpu::{Gpu, Readback};
use crate::model::{OUTPUTS_MAX, StepInput};
use crate::request::Class;
use crate::sampler::log_probabilities;
use crate::scheduler::SequenceId;
use crate::sequence::NextStep;

/// Where logits start in a readback buffer, after the tokens.
pub(super) const LOGITS_AT: u64 = OUTPUTS_MAX as u64 * 4;

/// Longest rest between two steps: where a step takes longer than this times `pace / (1 - pace)`, the GPU
/// works a greater share of the time than the pace asks for, and no stream stands still for long.
const REST_MAX: Duration = Duration::from_secs(1);

/// What a step took.
struct Took {
    /// The GPU.
    busy: Duration,
    /// The GPU, with the CPU's part where the GPU had to wait for it.
    in_all: Duration,
    /// It followed another at once.
    without_pause: bool,
}

impl Running {
    /// Waits for the oldest step under way and hands its results to its sequences.
    pub(super) fn take_results(&mut self, gpu: &Gpu, shared: &Shared) -> Result<bool, EngineError> {
        let Some(mut step) = self.under_way.pop_front() else {
            return Ok(false);
        };
        let tokens = match step.readback.take() {
            Some(mut readback) => {
                let vocab = self.model.config.vocab_size as usize;
                let tokens = readback.read(gpu, step.submission.clone(), |raw| {
                    token_outputs(raw, &step.parts, vocab)
                })?;
                self.spare_readbacks.push(readback);
                tokens
            }
            None => {
                gpu.wait(Some(step.submission.clone()))?;
                step.parts.iter().map(|_| Vec::new()).collect()
            }
        };
        let now = Instant::now();
        let took = Took {
            busy: now - step.submitted_at.max(self.last_done),
            in_all: now - step.begun_at.max(self.last_done),
            without_pause: step.begun_at < self.last_done,
        };
        self.last_done = now;
        self.last_step = took.busy;
        self.pace_now = self.pace_of(&step);
        self.rest_after(took.busy, now);
        self.account(shared, &step, &took);
        let alone = step.parts.len() == 1;
        for (part, tokens) in step.parts.iter().zip(tokens) {
            self.deliver(shared, part, tokens, alone.then_some(&took));
        }
        Ok(true)
    }

    /// The pace that is allowed for a step.
    fn pace_of(&self, step: &StepUnderWay) -> f32 {
        let allowance = &self.allowance;
        let is_background = |part: &Part| part.class == Class::Background;
        if step.parts.iter().all(is_background) {
            allowance.pace.min(allowance.background_pace)
        } else {
            allowance.pace
        }
    }

    /// Rests as long as the allowed pace asks for after a step that took `busy`.
    fn rest_after(&mut self, busy: Duration, now: Instant) {
        let pace = f64::from(self.pace_now);
        self.rest_until = (pace < 1.0).then(|| {
            let rest = busy.as_secs_f64() * (1.0 / pace.max(0.01) - 1.0);
            now + Duration::try_from_secs_f64(rest).map_or(REST_MAX, |rest| rest.min(REST_MAX))
        });
    }

    /// Charges the energy that the meter counted, and notes what it still has to count.
    fn settle_energy(&mut self, shared: &Shared, step: &StepUnderWay) {
        let mut energy = self.energy.lock();
        if !energy.has_meter() {
            return;
        }
        for charge in energy.settle(self.last_done) {
            shared.update(|stats| stats.energy_uj += charge.energy_uj);
            shared.account(&charge.app, |account| account.energy_uj += charge.energy_uj);
            match self.sequences.get_mut(&charge.id) {
                Some(sequence) => sequence.energy_settled_uj += charge.energy_uj,
                None => energy.set_aside(&charge),
            }
        }
        for part in &step.parts {
            if let Some(sequence) = self.sequences.get_mut(&part.id) {
                sequence.energy_settled_uj += energy.take_aside(part.id);
                let settled = sequence.energy_settled_uj;
                let outstanding = energy.outstanding_uj(part.id);
                sequence.energy_uj = outstanding.map(|more| settled + more);
            }
        }
    }

    /// Charges a step's time to those who took part in it, each by its columns.
    fn account(&mut self, shared: &Shared, step: &StepUnderWay, took: &Took) {
        let columns: u32 = step.parts.iter().map(|part| part.step.columns()).sum();
        let busy_us = u64::try_from(took.busy.as_micros()).unwrap_or(u64::MAX);
        for part in &step.parts {
            let share = took.busy * part.step.columns() / columns.max(1);
            self.scheduler.charge(&part.app, part.class, share);
            if let Some(sequence) = self.sequences.get_mut(&part.id) {
                sequence.gpu_time += share;
                sequence.steps_under_way -= 1;
            }
            shared.account(&part.app, |account| account.gpu_time += share);
            let mut energy = self.energy.lock();
            energy.worked(part.id, &part.app, share, self.last_done);
        }
        self.settle_energy(shared, step);
        shared.update(|stats| match step.parts[0].step {
            NextStep::Prefill { from, to, .. } => {
                stats.prompt_tokens += u64::from(to - from);
                stats.prefill_us += busy_us;
            }
            NextStep::Replay { .. } => stats.prefill_us += busy_us,
            NextStep::Decode { .. } | NextStep::Verify { .. } => stats.decode_us += busy_us,
        });
        if let NextStep::Prefill { from, to, .. } = step.parts[0].step {
            self.pace.took(to - from, took.busy);
        }
    }

    /// Hands its sequence what a part of a step made. `took`: the step's time, if the part was all of it.
    fn deliver(
        &mut self,
        shared: &Shared,
        part: &Part,
        tokens: Vec<TokenOutput>,
        took: Option<&Took>,
    ) {
        let one_at_a_time = self.steps_ahead() == 1;
        let Some(sequence) = self.sequences.get_mut(&part.id) else {
            return;
        };
        if let NextStep::Prefill { to, .. } = part.step {
            sequence.prefill_done(to);
        }
        let (held, taken) = sequence.accept_step(tokens);
        if taken > 0 {
            shared.update(|stats| {
                stats.generated_tokens += u64::from(taken);
                stats.accepted_tokens += u64::from(held.min(taken));
            });
            shared.account(&part.app, |account| {
                account.generated_tokens += u64::from(taken);
            });
        }
        if let NextStep::Verify { drafted, .. } = part.step {
            shared.update(|stats| stats.drafted_tokens += u64::from(drafted));
        }
        let Some(took) = took else { return };
        let in_all = took.in_all.as_secs_f64();
        match part.step {
            NextStep::Prefill { .. } | NextStep::Replay { .. } => {}
            // Where one step goes at a time each begins after the last: that is no pause of its own.
            NextStep::Decode { .. } if took.without_pause || one_at_a_time => {
                self.costs.plain(in_all);
            }
            NextStep::Decode { .. } => sequence.paused(self.costs.lost(in_all)),
            NextStep::Verify { drafted, .. } => {
                self.costs.verify(drafted + 1, in_all);
                sequence.verified(held + 1, self.costs.ratio(drafted + 1));
            }
        }
    }

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
        let Some(sequence) = self.sequences.get(&id).filter(|s| s.request.echo) else {
            return Ok(());
        };
        let prompt = &sequence.tokens()[..sequence.prompt_tokens() as usize];
        // Column c predicts the token after it; the last prompt token predicts none of the prompt. What
        // was echoed before is not echoed again if the prompt has to be computed twice.
        let start = (from as usize + 1).max(sequence.echoed());
        let end = prompt.len().min(to as usize + 1);
        let plain = |&id: &u32| TokenOutput {
            id,
            logprob: None,
            top: Vec::new(),
        };
        let mut tokens = Vec::new();
        if sequence.echoed() == 0 {
            tokens.push(plain(&prompt[0]));
        }
        let targets = prompt.get(start..end).unwrap_or_default().to_vec();
        match sequence.request.logprobs {
            None => tokens.extend(targets.iter().map(plain)),
            Some(top) => {
                let skipped = u32::try_from(start - 1).unwrap_or(u32::MAX) - from;
                for (group, at) in targets.chunks(OUTPUTS_MAX as usize).zip(0..) {
                    let first = skipped + at * OUTPUTS_MAX;
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
        if let Some(sequence) = self.sequences.get_mut(&id)
            && !tokens.is_empty()
        {
            sequence.echo(tokens);
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

/// A readback of at least `bytes`, used before if there is one. There are never more of them than steps
/// were under way at once: where none is large enough, a larger one takes a spare one's place.
pub(super) fn take_readback(spare: &mut Vec<Readback>, gpu: &Gpu, bytes: u64) -> Readback {
    let sizes: Vec<u64> = spare.iter().map(Readback::bytes).collect();
    match spare_for(&sizes, bytes) {
        Some((at, true)) => spare.swap_remove(at),
        Some((at, false)) => {
            drop(spare.swap_remove(at));
            Readback::new(gpu, bytes)
        }
        None => Readback::new(gpu, bytes),
    }
}

/// Which of the spare ones is for `bytes`, and whether it is large enough: the smallest that is, else the
/// largest, so that small ones stay for small steps.
fn spare_for(sizes: &[u64], bytes: u64) -> Option<(usize, bool)> {
    let sized = || sizes.iter().enumerate();
    let enough = sized().filter(|(_, size)| **size >= bytes);
    let enough = enough.min_by_key(|(_, size)| **size);
    let largest = || sized().max_by_key(|(_, size)| **size);
    enough
        .map(|(at, _)| (at, true))
        .or_else(|| largest().map(|(at, _)| (at, false)))
}

/// The tokens that each part sampled; with their log-probabilities where logits came along.
fn token_outputs(raw: &[u8], parts: &[Part], vocab: usize) -> Vec<Vec<TokenOutput>> {
    let word = |at: usize| [raw[at], raw[at + 1], raw[at + 2], raw[at + 3]];
    let (mut output, mut row) = (0, usize::try_from(LOGITS_AT).unwrap_or(0));
    let mut all = Vec::with_capacity(parts.len());
    for part in parts {
        let mut tokens = Vec::new();
        for i in 0..part.outputs as usize {
            let id = u32::from_le_bytes(word(4 * (output + i)));
            let mut token = TokenOutput {
                id,
                logprob: None,
                top: Vec::new(),
            };
            if let Some(top) = part.logprobs {
                // Such a request has one output a step.
                let logits: Vec<f32> = (0..vocab)
                    .map(|i| f32::from_le_bytes(word(row + 4 * i)))
                    .collect();
                let (logprob, top) = log_probabilities(&logits, id, top);
                (token.logprob, token.top) = (Some(logprob), top);
                row += 4 * vocab;
            }
            tokens.push(token);
        }
        output += part.outputs as usize;
        all.push(tokens);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::spare_for;

    #[test]
    fn readbacks_grow_in_place_and_small_steps_take_small_ones() {
        assert_eq!(spare_for(&[], 64), None);
        assert_eq!(spare_for(&[4096, 64, 1024], 64), Some((1, true)));
        assert_eq!(spare_for(&[4096, 64, 1024], 65), Some((2, true)));
        assert_eq!(spare_for(&[4096, 64, 1024], 4097), Some((0, false)));
        // Two steps under way at most, of any sizes: two readbacks, each as large as the largest.
        let mut spare = vec![];
        let mut out = vec![];
        for rows in [1, 3, 1, 2, 8, 1, 1, 5, 8, 7, 1, 6] {
            let bytes = match spare_for(&spare, rows) {
                Some((at, enough)) => spare.swap_remove(at).max(if enough { 0 } else { rows }),
                None => rows,
            };
            out.push(bytes);
            if out.len() == 2 {
                spare.push(out.remove(0));
            }
        }
        assert!(spare.len() + out.len() <= 2, "{spare:?} {out:?}");
        assert!(spare.iter().chain(&out).all(|size| *size <= 8));
    }
}
