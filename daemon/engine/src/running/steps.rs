//! Steps: who is in the next one, what the GPU is told of it, and what is noted while it is under way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_shaders::params::{Sampling, TOKEN_FROM_SLOT};

use super::Running;
use super::results::{LOGITS_AT, take_readback};
use crate::engine::Shared;
use crate::error::EngineError;
use crate::gpu::{CommandEncoder, Gpu, Readback, SubmissionIndex};
use crate::model::plan::DECODE_COLUMNS_MAX;
use crate::model::{Column, OUTPUTS_MAX, RING_LEN, StepInput};
use crate::request::{Class, SamplingParams, Speculation};
use crate::scheduler::{SequenceId, Turn};
use crate::sequence::NextStep;

/// A sequence's part in a step.
pub(super) struct Part {
    pub(super) id: SequenceId,
    pub(super) step: NextStep,
    pub(super) app: Arc<str>,
    pub(super) class: Class,
    /// Tokens it samples.
    pub(super) outputs: u32,
    /// Alternatives to report with their log-probabilities; `None`: no log-probabilities.
    pub(super) logprobs: Option<u32>,
}

/// A step whose results are not taken yet.
pub(super) struct StepUnderWay {
    pub(super) parts: Vec<Part>,
    pub(super) submission: SubmissionIndex,
    /// Where its tokens (and logits) arrive; `None` if it samples none.
    pub(super) readback: Option<Readback>,
    pub(super) begun_at: Instant,
    pub(super) submitted_at: Instant,
}

impl Running {
    /// Longest draft of a verify step. Beyond the decode kernels' columns, sums have another order,
    /// and a tie could turn out otherwise than in plain decoding: only tests go there.
    fn drafted_max(&self) -> u32 {
        let limits = self.forward.limits();
        let columns = match self.speculation {
            Speculation::Always => limits.columns_max.max(DECODE_COLUMNS_MAX),
            Speculation::Auto | Speculation::Off => DECODE_COLUMNS_MAX,
        };
        columns.clamp(1, OUTPUTS_MAX) - 1
    }

    /// Submits the next step. Returns false if no sequence has one.
    pub(super) fn submit_step(&mut self, gpu: &Gpu, shared: &Shared) -> Result<bool, EngineError> {
        let begun_at = Instant::now();
        let now = self.now();
        let sequences = &self.sequences;
        let turn = self.scheduler.turn(now, |id| sequences[&id].work());
        let parts = match turn {
            None => return Ok(false),
            Some(Turn::Prefill(id)) => self.prefill_part(gpu, shared, id, now),
            Some(Turn::Decode(ids)) => self.decode_parts(gpu, shared, &ids, now),
        };
        if parts.is_empty() {
            // Whoever was to step waits for results, or had to make room.
            return Ok(self.under_way.is_empty());
        }
        self.submit_parts(gpu, shared, parts, begun_at)?;
        Ok(true)
    }

    fn prefill_part(
        &mut self,
        gpu: &Gpu,
        shared: &Shared,
        id: SequenceId,
        now: Duration,
    ) -> Vec<Part> {
        let company = self.sequences.len() > 1;
        let chunk = self.pace.chunk(company);
        let chunk = chunk.min(self.allowance.prefill_chunk_max).max(1);
        let chunk = if self.careful {
            chunk.div_ceil(2)
        } else {
            chunk
        };
        let step = self.sequences[&id].next_prefill(chunk);
        if self.make_room(gpu, shared, id, step, now) {
            vec![self.part(id, step)]
        } else {
            Vec::new()
        }
    }

    /// `now` is that of the turn: the order of `ids` holds at that time, and by it none takes the blocks of
    /// one before it.
    fn decode_parts(
        &mut self,
        gpu: &Gpu,
        shared: &Shared,
        ids: &[SequenceId],
        now: Duration,
    ) -> Vec<Part> {
        // Drafts pay for a sequence alone: in company its columns are better used by the others.
        let alone = self.scheduler.running().count() == 1;
        let drafted_max = if alone { self.drafted_max() } else { 0 };
        let mut parts = Vec::with_capacity(ids.len());
        for &id in ids {
            // One that went first may have taken this one's blocks, and its slot.
            let Some(sequence) = self.sequences.get(&id).filter(|s| s.slot.is_some()) else {
                continue;
            };
            if let Some(step) = sequence.next_decode(drafted_max, &self.costs)
                && self.make_room(gpu, shared, id, step, now)
            {
                parts.push(self.part(id, step));
            }
        }
        parts
    }

    fn part(&self, id: SequenceId, step: NextStep) -> Part {
        let sequence = &self.sequences[&id];
        Part {
            id,
            step,
            app: Arc::clone(&sequence.request.caller.app),
            class: sequence.request.class,
            outputs: sequence.outputs(step),
            logprobs: sequence.request.logprobs,
        }
    }

    fn submit_parts(
        &mut self,
        gpu: &Gpu,
        shared: &Shared,
        parts: Vec<Part>,
        begun_at: Instant,
    ) -> Result<(), EngineError> {
        self.energy.lock().step_begins(begun_at);
        let input = self.input(&parts);
        self.forward.write_step(gpu, &input);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        self.forward.encode_body(&mut encoder, &input);
        let readback =
            (input.outputs > 0).then(|| self.encode_outputs(gpu, &mut encoder, &input, &parts));
        for part in &parts {
            if let Some(sequence) = self.sequences.get_mut(&part.id) {
                sequence.submitted(part.step);
            }
        }
        let submission = gpu.queue.submit([encoder.finish()]);
        let mut under_way = StepUnderWay {
            parts,
            submission,
            readback,
            begun_at,
            submitted_at: Instant::now(),
        };
        if let Some(readback) = &mut under_way.readback {
            readback.request();
        }
        shared.update(|stats| stats.steps += 1);
        let (id, step) = (under_way.parts[0].id, under_way.parts[0].step);
        self.under_way.push_back(under_way);
        if let NextStep::Prefill { from, to, .. } = step {
            self.keep_kv(id);
            self.score_prompt(gpu, id, from, to, &input)?;
        }
        gpu.check()
    }

    /// Encodes logits, sampling, and the way of both to the CPU.
    fn encode_outputs(
        &mut self,
        gpu: &Gpu,
        encoder: &mut CommandEncoder,
        input: &StepInput,
        parts: &[Part],
    ) -> Readback {
        self.forward.encode_head(encoder, input);
        let row = self.forward.logits_bytes();
        let wanted = |part: &&Part| part.outputs > 0 && part.logprobs.is_some();
        let rows = parts.iter().filter(wanted).count();
        let bytes = LOGITS_AT + row * u64::try_from(rows).unwrap_or(0);
        let readback = take_readback(&mut self.spare_readbacks, gpu, bytes);
        let scratch = &self.forward.scratch;
        // Before sampling: log-probabilities are those of the untouched logits.
        let (mut output, mut at) = (0, LOGITS_AT);
        for part in parts {
            if wanted(&part) {
                readback.copy_from(encoder, &scratch.logits, u64::from(output) * row, at, row);
                at += row;
            }
            output += part.outputs;
        }
        self.forward.encode_sample(encoder, input);
        let (at, bytes) = (u64::from(input.ring) * 4, u64::from(input.outputs) * 4);
        readback.copy_from(encoder, &scratch.ring, at, 0, bytes);
        readback
    }

    fn input(&mut self, parts: &[Part]) -> StepInput {
        let mut input = StepInput::default();
        for part in parts {
            let sequence = &self.sequences[&part.id];
            let Some(slot) = sequence.slot else {
                unreachable!("only sequences with a slot step");
            };
            let table = u32::try_from(input.tables.len()).unwrap_or(u32::MAX);
            let column = |token, position| Column {
                token,
                position,
                table,
                slot,
            };
            input.prefill |= matches!(part.step, NextStep::Prefill { .. });
            match part.step {
                NextStep::Prefill { from, to, .. } | NextStep::Replay { from, to } => {
                    let tokens = &sequence.tokens()[from as usize..to as usize];
                    let columns = tokens.iter().zip(from..).map(|(&t, p)| column(t, p));
                    input.columns.extend(columns);
                }
                NextStep::Decode { position, token } => {
                    let token = token.unwrap_or(TOKEN_FROM_SLOT);
                    input.columns.push(column(token, position));
                }
                NextStep::Verify { position, drafted } => {
                    let tokens = sequence.verify_columns(drafted);
                    let columns = tokens.iter().zip(position..);
                    input.columns.extend(columns.map(|(&t, p)| column(t, p)));
                }
            }
            input.tables.extend(&sequence.table.blocks);
            input.outputs += part.outputs;
        }
        let columns = u32::try_from(input.columns.len()).unwrap_or(u32::MAX);
        input.output_first = columns - input.outputs.max(1);
        // A step's tokens lie together, and do not meet those of the steps under way.
        if self.ring + input.outputs > RING_LEN {
            self.ring = 0;
        }
        input.ring = self.ring;
        self.ring = (self.ring + input.outputs) % RING_LEN;
        input
    }
}

/// Sampling settings as the GPU has them.
pub(super) fn gpu_sampling(p: &SamplingParams) -> Sampling {
    Sampling {
        temperature: p.temperature,
        top_p: p.top_p,
        min_p: p.min_p,
        repeat_penalty: p.repeat_penalty,
        frequency_penalty: p.frequency_penalty,
        presence_penalty: p.presence_penalty,
        top_k: p.top_k,
        penalties: u32::from(p.has_penalties()),
        seed_low: u32::try_from(p.seed & 0xffff_ffff).unwrap_or(0),
        seed_high: u32::try_from(p.seed >> 32).unwrap_or(0),
        pad: [0; 2],
    }
}
