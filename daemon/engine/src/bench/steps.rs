//! Steps as the engine makes them, over slots and KV blocks of the bench's own: prefill in chunks,
//! decode one step ahead of the token that is read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use hearth_shaders::params::TOKEN_FROM_SLOT;

use crate::AdapterKind;
use crate::energy::EnergyMeter;
use crate::error::EngineError;
use crate::gpu::{Gpu, Readback, Stopwatch, SubmissionIndex};
use crate::model::{Column, Forward, RING_LEN, StepInput};

/// Steps under way at once, as in the engine.
const STEPS_AHEAD: usize = 2;

/// A loaded model and the memory it runs in.
pub(super) struct Steps {
    pub(super) gpu: Gpu,
    pub(super) forward: Forward,
    pub(super) vocab_size: u32,
    /// Most prompt tokens of a step.
    pub(super) chunk: u32,
    /// KV blocks of each sequence.
    pub(super) blocks_per_sequence: u32,
    /// Readbacks of sampled tokens that are not in use.
    pub(super) spare: Vec<Readback>,
    /// What tells energy.
    pub(super) meter: Option<Arc<dyn EnergyMeter>>,
}

/// What a run of decode steps took.
pub(super) struct DecodeRun {
    /// From the first preparation to the last token.
    pub(super) seconds: f64,
    /// To prepare and submit, each step.
    pub(super) submits: Vec<f64>,
    /// CPU time of that, all steps.
    pub(super) submit_cpu: Option<f64>,
    /// CPU time of everything, all steps.
    pub(super) cpu: Option<f64>,
}

impl Steps {
    pub(super) fn is_software(&self) -> bool {
        self.gpu.info.kind == AdapterKind::Software
    }

    /// The blocks of the first `batch` sequences: neighbouring positions lie apart, as after a while
    /// of use.
    fn tables(&self, batch: u32) -> Vec<u32> {
        (0..batch)
            .flat_map(|sequence| {
                (0..self.blocks_per_sequence).map(move |block| block * batch + sequence)
            })
            .collect()
    }

    /// The steps of a prompt.
    pub(super) fn prefill_steps(&self, tokens: u32) -> Vec<StepInput> {
        let chunk = usize::try_from(self.chunk.max(1)).unwrap_or(1);
        let positions: Vec<u32> = (0..tokens).collect();
        positions
            .chunks(chunk)
            .map(|positions| {
                let columns: Vec<Column> = positions
                    .iter()
                    .map(|&position| Column {
                        // Tokens that differ, so that no two columns are alike.
                        token: position.wrapping_mul(2_654_435_761) % self.vocab_size,
                        position,
                        table: 0,
                        slot: 0,
                    })
                    .collect();
                StepInput {
                    output_first: u32::try_from(columns.len()).unwrap_or(1) - 1,
                    outputs: u32::from(columns.last().is_some_and(|c| c.position + 1 == tokens)),
                    columns,
                    prefill: true,
                    tables: self.tables(1),
                    ring: 0,
                }
            })
            .collect()
    }

    /// The step that decodes position `position` of `batch` sequences.
    pub(super) fn decode_step(&self, batch: u32, position: u32, number: u32) -> StepInput {
        StepInput {
            columns: (0..batch)
                .map(|slot| Column {
                    token: TOKEN_FROM_SLOT,
                    position,
                    table: slot * self.blocks_per_sequence,
                    slot,
                })
                .collect(),
            prefill: false,
            tables: self.tables(batch),
            output_first: 0,
            outputs: batch,
            ring: number.wrapping_mul(batch) % RING_LEN,
        }
    }

    /// Runs a prompt; returns seconds.
    pub(super) fn prefill(&mut self, tokens: u32) -> Result<f64, EngineError> {
        let started = Instant::now();
        let mut last = None;
        for step in self.prefill_steps(tokens) {
            let readback = self.take_readback();
            let submission = self.submit(&step, readback, None);
            if let Some(before) = last.replace(submission) {
                self.take_tokens(before)?;
            }
        }
        if let Some(last) = last {
            self.take_tokens(last)?;
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// Decodes `count` positions of `batch` sequences from `depth` on. A stopwatch gets marks at the
    /// start (2 i) and the end (2 i + 1) of each step.
    pub(super) fn decode(
        &mut self,
        batch: u32,
        depth: u32,
        count: u32,
        stopwatch: Option<&Stopwatch>,
    ) -> Result<DecodeRun, EngineError> {
        let mut under_way = VecDeque::new();
        let mut submits = Vec::new();
        let mut submit_cpu = cpu_seconds().map(|_| 0.0);
        let started = Instant::now();
        let cpu_started = cpu_seconds();
        for i in 0..count {
            let (step_started, step_cpu) = (Instant::now(), cpu_seconds());
            let step = self.decode_step(batch, depth + i, i);
            let readback = self.take_readback();
            under_way.push_back(self.submit(&step, readback, stopwatch.map(|s| (s, 2 * i))));
            submits.push(step_started.elapsed().as_secs_f64());
            if let (Some(sum), Some(from), Some(to)) = (&mut submit_cpu, step_cpu, cpu_seconds()) {
                *sum += to - from;
            }
            if under_way.len() >= STEPS_AHEAD
                && let Some(oldest) = under_way.pop_front()
            {
                self.take_tokens(oldest)?;
            }
        }
        for step in under_way {
            self.take_tokens(step)?;
        }
        Ok(DecodeRun {
            seconds: started.elapsed().as_secs_f64(),
            submits,
            submit_cpu,
            cpu: cpu_started.zip(cpu_seconds()).map(|(from, to)| to - from),
        })
    }

    fn take_readback(&mut self) -> Readback {
        self.spare
            .pop()
            .unwrap_or_else(|| Readback::new(&self.gpu, u64::from(RING_LEN) * 4))
    }

    fn submit(
        &self,
        step: &StepInput,
        mut readback: Readback,
        stopwatch: Option<(&Stopwatch, u32)>,
    ) -> (SubmissionIndex, Readback) {
        self.forward.write_step(&self.gpu, step);
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        let extent = self.forward.extent(step);
        let recordings = self.forward.recordings(step);
        let last = recordings.len() - 1;
        for (i, recording) in recordings.into_iter().enumerate() {
            match stopwatch {
                Some((stopwatch, mark)) => {
                    let marks = ((i == 0).then_some(mark), (i == last).then_some(mark + 1));
                    recording.encode_between(&mut encoder, extent, stopwatch, marks);
                }
                None => recording.encode(&mut encoder, extent),
            }
        }
        let ring = &self.forward.scratch.ring;
        readback.copy_from(&mut encoder, ring, 0, 0, u64::from(RING_LEN) * 4);
        let submission = self.gpu.queue.submit([encoder.finish()]);
        readback.request();
        (submission, readback)
    }

    fn take_tokens(
        &mut self,
        (submission, mut readback): (SubmissionIndex, Readback),
    ) -> Result<(), EngineError> {
        readback.read(&self.gpu, submission, |_| ())?;
        self.spare.push(readback);
        Ok(())
    }
}

/// CPU time of this thread so far, in seconds.
#[cfg(unix)]
#[expect(clippy::cast_precision_loss, reason = "a measurement")]
fn cpu_seconds() -> Option<f64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Some(time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9)
}

#[cfg(not(unix))]
fn cpu_seconds() -> Option<f64> {
    None
}
