//! How long each kernel takes within real steps: the GPU's clock is read between the dispatches, in
//! the order and with the caches of a step.

use super::report::{KernelReport, Profile, Spread};
use super::steps::Steps;
use crate::AdapterKind;
use crate::error::EngineError;
use crate::gpu::{Reads, Stopwatch};
use crate::model::StepInput;

/// Times that each step is taken.
const ROUNDS: usize = 9;
const ROUNDS_SOFTWARE: usize = 3;

/// Positions of the step's sequences, all histories together.
fn positions(step: &StepInput) -> u64 {
    let mut longest = std::collections::BTreeMap::new();
    for column in &step.columns {
        let history = longest.entry(column.table).or_insert(0);
        *history = (column.position + 1).max(*history);
    }
    longest.values().copied().map(u64::from).sum()
}

fn bytes(reads: Reads, step: &StepInput) -> u64 {
    match reads {
        Reads::Little => 0,
        Reads::Weights(bytes) => bytes,
        Reads::Kv(position_bytes) => position_bytes * positions(step),
    }
}

fn kind(reads: Reads) -> &'static str {
    match reads {
        Reads::Little => "little",
        Reads::Weights(_) => "weights",
        Reads::Kv(_) => "kv",
    }
}

impl Steps {
    /// Dispatches of a step.
    pub(super) fn dispatches(&self, step: &StepInput) -> usize {
        let recordings = self.forward.recordings(step);
        let extent = self.forward.extent(step);
        recordings.iter().map(|r| r.ops_of(extent).count()).sum()
    }

    /// Bytes of weights and KV that a step needs to read, each once.
    pub(super) fn bytes(&self, step: &StepInput) -> u64 {
        let recordings = self.forward.recordings(step);
        let extent = self.forward.extent(step);
        let ops = recordings.iter().flat_map(|r| r.ops_of(extent));
        ops.map(|op| bytes(op.reads, step)).sum()
    }

    /// Times the kernels of `steps`, one after the other; `None` without the GPU's clock.
    pub(super) fn profile(
        &mut self,
        steps: &[StepInput],
        copy_rate: f64,
    ) -> Result<Option<Profile>, EngineError> {
        let mut groups: Vec<(Reads, KernelReport)> = Vec::new();
        let mut plain_us = 0.0;
        for step in steps {
            let Some((plain, seconds)) = self.op_seconds(step)? else {
                return Ok(None);
            };
            plain_us += plain * 1e6;
            let recordings = self.forward.recordings(step);
            let extent = self.forward.extent(step);
            let ops = recordings.iter().flat_map(|r| r.ops_of(extent));
            for (op, seconds) in ops.zip(seconds) {
                let name = &op.pipeline.name;
                let index = groups
                    .iter()
                    .position(|(reads, k)| *reads == op.reads && k.kernel == *name);
                let index = index.unwrap_or_else(|| {
                    groups.push((
                        op.reads,
                        KernelReport {
                            kernel: name.clone(),
                            reads: kind(op.reads),
                            dispatches: 0,
                            us: 0.0,
                            bytes: 0,
                            bytes_per_second: 0.0,
                            percent_of_copy: 0.0,
                        },
                    ));
                    groups.len() - 1
                });
                let group = &mut groups[index].1;
                group.dispatches += 1;
                group.us += seconds * 1e6;
                group.bytes += bytes(op.reads, step);
            }
        }
        let kernels = groups.into_iter().map(|(_, kernel)| kernel).collect();
        Ok(Some(summary(kernels, plain_us, copy_rate)))
    }

    /// Seconds of the step as it is, and of each of its dispatches with the clock read between
    /// them; medians over several times.
    fn op_seconds(&mut self, step: &StepInput) -> Result<Option<(f64, Vec<f64>)>, EngineError> {
        let ops = self.dispatches(step);
        // Two marks a dispatch at most, and two about the step as it is.
        let marks = u32::try_from(2 * ops + 8).unwrap_or(u32::MAX);
        let Some(mut stopwatch) = Stopwatch::new(&self.gpu, marks) else {
            return Ok(None);
        };
        let software = self.gpu.info.kind == AdapterKind::Software;
        let rounds = if software { ROUNDS_SOFTWARE } else { ROUNDS };
        let mut plain = Vec::with_capacity(rounds);
        let mut samples = vec![Vec::with_capacity(rounds); ops];
        for _ in 0..rounds {
            self.forward.write_step(&self.gpu, step);
            let extent = self.forward.extent(step);
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            // The step as it is comes first, so that the caches are as in a run for the second.
            stopwatch.mark(&mut encoder, 0);
            for recording in self.forward.recordings(step) {
                recording.encode(&mut encoder, extent);
            }
            stopwatch.mark(&mut encoder, 1);
            let mut spans = Vec::with_capacity(ops);
            let mut next = 2;
            for recording in self.forward.recordings(step) {
                let (marks, after) = recording.encode_each(&mut encoder, extent, &stopwatch, next);
                spans.extend(marks);
                next = after;
            }
            self.gpu.queue.submit([encoder.finish()]);
            let times = stopwatch.read(&self.gpu, next)?;
            plain.push(times[1] - times[0]);
            for (sample, (start, end)) in samples.iter_mut().zip(spans) {
                sample.push((times[end as usize] - times[start as usize]).max(0.0));
            }
        }
        let medians = samples.into_iter().map(|s| Spread::of(s).median);
        Ok(Some((Spread::of(plain).median, medians.collect())))
    }
}

fn summary(mut kernels: Vec<KernelReport>, plain_us: f64, copy_rate: f64) -> Profile {
    let rate = |bytes: u64, us: f64| {
        if us > 0.0 {
            super::float(bytes) / us * 1e6
        } else {
            0.0
        }
    };
    for kernel in &mut kernels {
        kernel.bytes_per_second = rate(kernel.bytes, kernel.us);
        kernel.percent_of_copy = 100.0 * kernel.bytes_per_second / copy_rate;
    }
    kernels.sort_by(|a, b| b.us.total_cmp(&a.us));
    let us: f64 = kernels.iter().map(|k| k.us).sum();
    let dispatches: usize = kernels.iter().map(|k| k.dispatches).sum();
    let mark_us = (us - plain_us).max(0.0) / count(dispatches.max(1));
    let matrices = || kernels.iter().filter(|k| k.reads == "weights");
    let matrix_us: f64 = matrices().map(|k| k.us).sum();
    let matrix_bytes = matrices().map(|k| k.bytes).sum();
    let matrix_dispatches = matrices().map(|k| k.dispatches).sum();
    let unmarked_us = matrix_us - mark_us * count(matrix_dispatches);
    let percent = |us: f64| 100.0 * rate(matrix_bytes, us) / copy_rate;
    Profile {
        us,
        plain_us,
        mark_us,
        matrix_us,
        matrix_percent_of_copy: percent(matrix_us),
        matrix_percent_of_copy_unmarked: percent(unmarked_us),
        kernels,
    }
}

fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::MAX, f64::from)
}
