//! A warm model at work: admits requests, submits steps, takes their results.
//!
//! Steps are submitted ahead of their results: a decode step takes its token from the GPU, so the GPU
//! never waits for the CPU between tokens. At most [`STEPS_AHEAD`] steps are under way.

mod results;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use hearth_shaders::params::{Sampling, TOKEN_FROM_SLOT};

use self::results::{LOGITS_AT, take_readback, token_outputs};
use crate::engine::{LoadedModel, Shared};
use crate::error::EngineError;
use crate::event::{EventSink, FinishReason};
use crate::gpu::{Gpu, Readback, SubmissionIndex};
use crate::kv_cache::KvCache;
use crate::model::plan::DECODE_COLUMNS_MAX;
use crate::model::{Column, Forward, OUTPUTS_MAX, RING_LEN, StepInput};
use crate::request::{GenerateRequest, SamplingParams, Speculation};
use crate::scheduler::{Admission, Scheduler, SequenceId};
use crate::sequence::{NextStep, Sequence};
use crate::speculation::StepCosts;

/// Steps under way at most.
const STEPS_AHEAD: usize = 2;

/// A step whose results are not taken yet.
struct StepUnderWay {
    id: SequenceId,
    step: NextStep,
    submission: SubmissionIndex,
    /// Tokens it samples.
    outputs: u32,
    /// Where its tokens (and logits) arrive; `None` if it samples none.
    readback: Option<Readback>,
    begun_at: Instant,
    submitted_at: Instant,
}

/// See the module.
pub(crate) struct Running {
    pub(crate) model: Arc<LoadedModel>,
    forward: Forward,
    scheduler: Scheduler,
    sequences: HashMap<SequenceId, Sequence>,
    under_way: VecDeque<StepUnderWay>,
    spare_readbacks: Vec<Readback>,
    next_id: u64,
    ring: u32,
    prefill_chunk: u32,
    speculation: Speculation,
    costs: StepCosts,
    last_done: Instant,
}

impl Running {
    /// Starts with no sequences.
    pub(crate) fn new(
        model: Arc<LoadedModel>,
        forward: Forward,
        prefill_chunk: u32,
        speculation: Speculation,
    ) -> Self {
        let limits = forward.limits();
        Self {
            scheduler: Scheduler::new(limits.slots, limits.kv_blocks),
            model,
            forward,
            sequences: HashMap::new(),
            under_way: VecDeque::new(),
            spare_readbacks: Vec::new(),
            next_id: 0,
            ring: 0,
            prefill_chunk,
            speculation,
            costs: StepCosts::default(),
            last_done: Instant::now(),
        }
    }

    /// Tells whether there is any sequence.
    pub(crate) fn is_idle(&self) -> bool {
        self.sequences.is_empty() && self.under_way.is_empty()
    }

    /// Tells whether nothing can go on until a reader takes its events.
    pub(crate) fn is_stalled(&self) -> bool {
        self.under_way.is_empty()
            && self
                .sequences
                .values()
                .all(|s| s.is_stalled() || s.lease.is_none())
    }

    /// Takes a request that was checked against this model.
    pub(crate) fn submit(&mut self, gpu: &Gpu, request: GenerateRequest, sink: Box<dyn EventSink>) {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let mut sequence = Sequence::new(id, request, Arc::clone(&self.model), sink);
        let blocks = KvCache::blocks_for(sequence.positions_max());
        match self.scheduler.submit(id, blocks) {
            Admission::Admitted(lease) => {
                self.start(gpu, &mut sequence, lease);
            }
            Admission::Queued { ahead } => sequence.queued(ahead + 1),
            // `LoadedModel::context_len` is never more than the pool holds.
            Admission::Rejected => sequence.end(FinishReason::Fault, None),
        }
        self.sequences.insert(id, sequence);
    }

    fn start(&self, gpu: &Gpu, sequence: &mut Sequence, lease: crate::scheduler::Lease) {
        self.forward
            .reset_slot(gpu, lease.slot, &gpu_sampling(&sequence.request.sampling));
        sequence.start(lease);
        if self.speculation != Speculation::Off {
            sequence.speculate(self.speculation == Speculation::Always);
        }
    }

    /// One turn: delivers, ends, admits, submits at most one step, and takes results when enough
    /// steps are under way. Returns false if there was nothing to do.
    pub(crate) fn turn(&mut self, gpu: &Gpu, shared: &Shared) -> Result<bool, EngineError> {
        self.sweep(gpu, shared);
        let submitted = self.submit_step(gpu, shared)?;
        let full = self.under_way.len() >= STEPS_AHEAD;
        let took = (full || !submitted) && self.take_results(gpu, shared)?;
        Ok(submitted || took)
    }

    /// Ends what is over, abandoned or out of time, gives back what it held, admits who waits.
    fn sweep(&mut self, gpu: &Gpu, shared: &Shared) {
        let now = Instant::now();
        let mut over = Vec::new();
        for (id, sequence) in &mut self.sequences {
            sequence.flush();
            sequence.check_time(now);
            if sequence.is_over() || sequence.is_abandoned() {
                over.push(*id);
            }
        }
        let mut to_clear = Vec::new();
        for id in over {
            if let Some(sequence) = self.sequences.remove(&id) {
                to_clear.extend(self.give_back(shared, &sequence));
            }
        }
        // Before the GPU is asked: a submission can wait for the step under way.
        self.report(shared);
        if !to_clear.is_empty() {
            // Blocks leave their owner zeroed. The GPU runs this after the steps already submitted
            // and before those of the next owner.
            self.forward
                .clear_blocks(gpu, &self.model.config, &to_clear);
        }
        while let Some((id, lease)) = self.scheduler.admit_waiting() {
            if let Some(mut sequence) = self.sequences.remove(&id) {
                self.start(gpu, &mut sequence, lease);
                self.sequences.insert(id, sequence);
            }
        }
        self.report(shared);
    }

    fn report(&self, shared: &Shared) {
        shared.update(|stats| {
            stats.queued_now = self.scheduler.waiting();
            stats.active_now =
                u32::try_from(self.sequences.len()).unwrap_or(u32::MAX) - self.scheduler.waiting();
            stats.kv_blocks_used_now = self.scheduler.kv().used();
            stats.kv_blocks_total = self.scheduler.kv().total();
        });
    }

    /// Takes back what a sequence held; returns the blocks it wrote to.
    fn give_back(&mut self, shared: &Shared, sequence: &Sequence) -> Vec<u32> {
        if sequence.is_cancelled() {
            shared.update(|stats| stats.cancelled += 1);
        }
        let Some(lease) = &sequence.lease else {
            self.scheduler.forget(sequence.id);
            return Vec::new();
        };
        let written = KvCache::blocks_for(sequence.positions()) as usize;
        let written = lease.blocks[..written.min(lease.blocks.len())].to_vec();
        self.scheduler.finish(sequence.id, lease);
        written
    }

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

    /// Submits the next step in turn. Returns false if no sequence has one.
    fn submit_step(&mut self, gpu: &Gpu, shared: &Shared) -> Result<bool, EngineError> {
        let begun_at = Instant::now();
        let drafted_max = self.drafted_max();
        let (sequences, chunk, costs) = (&self.sequences, self.prefill_chunk, &self.costs);
        let step_of = |id: SequenceId| {
            let sequence = sequences.get(&id)?;
            sequence.next_step(chunk, drafted_max, costs)
        };
        let Some(id) = self.scheduler.next(|id| step_of(id).is_some()) else {
            return Ok(false);
        };
        let Some(step) = step_of(id) else {
            return Ok(false);
        };
        let input = self.input(id, step);
        self.forward.write_step(gpu, &input);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        self.forward.encode_body(&mut encoder, &input);
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return Ok(false);
        };
        let readback = if input.outputs > 0 {
            self.forward.encode_head(&mut encoder, &input);
            let logits = sequence.request.logprobs.is_some();
            let bytes = LOGITS_AT
                + if logits {
                    self.forward.logits_bytes()
                } else {
                    0
                };
            let readback = take_readback(&mut self.spare_readbacks, gpu, bytes);
            let scratch = &self.forward.scratch;
            if logits {
                // Before sampling: log-probabilities are those of the untouched logits.
                let bytes = self.forward.logits_bytes();
                readback.copy_from(&mut encoder, &scratch.logits, 0, LOGITS_AT, bytes);
            }
            self.forward.encode_sample(&mut encoder, &input);
            let (at, bytes) = (u64::from(input.ring) * 4, u64::from(input.outputs) * 4);
            readback.copy_from(&mut encoder, &scratch.ring, at, 0, bytes);
            Some(readback)
        } else {
            None
        };
        sequence.submitted(step);
        let submission = gpu.queue.submit([encoder.finish()]);
        let mut under_way = StepUnderWay {
            id,
            step,
            submission,
            outputs: input.outputs,
            readback,
            begun_at,
            submitted_at: Instant::now(),
        };
        if let Some(readback) = &mut under_way.readback {
            readback.request();
        }
        self.under_way.push_back(under_way);
        shared.update(|stats| stats.steps += 1);
        if let NextStep::Prefill { from, to, .. } = step {
            self.score_prompt(gpu, id, from, to, &input)?;
        }
        gpu.check()?;
        Ok(true)
    }

    fn input(&mut self, id: SequenceId, step: NextStep) -> StepInput {
        let sequence = &self.sequences[&id];
        let lease = sequence
            .lease
            .as_ref()
            .unwrap_or_else(|| unreachable!("only sequences with a lease have a next step"));
        let column = |token, position| Column {
            token,
            position,
            table: 0,
            slot: lease.slot,
        };
        let (columns, outputs): (Vec<Column>, u32) = match step {
            NextStep::Prefill { from, to, last } => {
                let tokens = &sequence.request.prompt[from as usize..to as usize];
                let columns = tokens
                    .iter()
                    .zip(from..)
                    .map(|(&t, p)| column(t, p))
                    .collect();
                (columns, u32::from(last && sequence.generates()))
            }
            NextStep::Decode { position, token } => {
                (vec![column(token.unwrap_or(TOKEN_FROM_SLOT), position)], 1)
            }
            NextStep::Verify { position, drafted } => {
                let tokens = sequence.verify_columns(drafted);
                let columns = tokens.iter().zip(position..);
                (columns.map(|(&t, p)| column(t, p)).collect(), drafted + 1)
            }
        };
        // A step's tokens lie together, and do not meet those of the steps under way.
        if self.ring + outputs > RING_LEN {
            self.ring = 0;
        }
        let ring = self.ring;
        self.ring = (ring + outputs) % RING_LEN;
        StepInput {
            output_first: u32::try_from(columns.len()).unwrap_or(outputs) - outputs.max(1),
            tables: lease.blocks.clone(),
            columns,
            outputs,
            ring,
        }
    }

    /// Waits for the oldest step under way and hands its results to its sequence.
    fn take_results(&mut self, gpu: &Gpu, shared: &Shared) -> Result<bool, EngineError> {
        let Some(step) = self.under_way.pop_front() else {
            return Ok(false);
        };
        let top = self
            .sequences
            .get(&step.id)
            .and_then(|s| s.request.logprobs);
        let tokens = match step.readback {
            Some(mut readback) => {
                let vocab = self.model.config.vocab_size as usize;
                let tokens = readback.read(gpu, step.submission, |raw| {
                    token_outputs(raw, step.outputs, top, vocab)
                })?;
                self.spare_readbacks.push(readback);
                tokens
            }
            None => {
                gpu.wait(Some(step.submission))?;
                Vec::new()
            }
        };
        let now = Instant::now();
        let busy = now - step.submitted_at.max(self.last_done);
        // With the CPU's part where the GPU had to wait for it.
        let in_all = (now - step.begun_at.max(self.last_done)).as_secs_f64();
        let without_pause = step.begun_at < self.last_done;
        self.last_done = now;
        let busy_us = u64::try_from(busy.as_micros()).unwrap_or(u64::MAX);
        shared.update(|stats| match step.step {
            NextStep::Prefill { from, to, .. } => {
                stats.prompt_tokens += u64::from(to - from);
                stats.prefill_us += busy_us;
            }
            NextStep::Decode { .. } | NextStep::Verify { .. } => stats.decode_us += busy_us,
        });
        let Some(sequence) = self.sequences.get_mut(&step.id) else {
            return Ok(true);
        };
        if let NextStep::Prefill { to, .. } = step.step {
            sequence.prefill_done(to);
        }
        let (held, taken) = sequence.accept_step(tokens);
        shared.update(|stats| {
            stats.generated_tokens += u64::from(taken);
            stats.accepted_tokens += u64::from(held.min(taken));
        });
        match step.step {
            NextStep::Prefill { .. } => {}
            NextStep::Decode { .. } if without_pause => self.costs.plain(in_all),
            NextStep::Decode { .. } => sequence.paused(self.costs.lost(in_all)),
            NextStep::Verify { drafted, .. } => {
                self.costs.verify(drafted + 1, in_all);
                sequence.verified(held + 1, self.costs.ratio(drafted + 1));
                shared.update(|stats| stats.drafted_tokens += u64::from(drafted));
            }
        }
        Ok(true)
    }

    /// Ends every sequence with `reason`; those with room in their channel learn it.
    pub(crate) fn end_all(&mut self, reason: FinishReason) {
        for sequence in self.sequences.values_mut() {
            sequence.end(reason, None);
        }
        self.sequences.clear();
        self.under_way.clear();
    }

    /// Ends the sequences that wait for a lease.
    pub(crate) fn end_waiting(&mut self, reason: FinishReason) {
        for sequence in self.sequences.values_mut().filter(|s| s.lease.is_none()) {
            sequence.end(reason, None);
        }
    }
}

fn gpu_sampling(p: &SamplingParams) -> Sampling {
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
