//! Copy bandwidth: the yardstick for every kernel that reads weights or KV.

use std::time::Instant;

use hearth_shaders::Kernel;
use hearth_shaders::params::CopyParams;

use super::WARM_UP;
use super::report::CopyReport;
use crate::AdapterKind;
use crate::error::EngineError;
use crate::gpu::{
    self, Axis, Buffer, CommandEncoder, Extent, Gpu, Op, Pipelines, Reads, Recording, Stopwatch,
};
use crate::model::Patterns;

/// Bytes of each buffer on a GPU: larger than any cache,
const BYTES: u64 = 1 << 30;
/// and on a software adapter.
const BYTES_SOFTWARE: u64 = 64 << 20;
/// Copies of one measurement, and measurements of one way to copy.
const COPIES: u32 = 8;
const COPIES_SOFTWARE: u32 = 1;
const ROUNDS: usize = 3;
const ROUNDS_SOFTWARE: usize = 2;
/// Threads of a workgroup.
const THREADS: u32 = 256;
/// Workgroups to try: some drivers like threads that go on, some like one load a thread.
const GROUPS: [u32; 4] = [1024, 2048, 8192, 16_384];
const GROUPS_SOFTWARE: [u32; 1] = [256];
/// Bytes that each thread has under way at a time.
const BYTES_PER_THREAD: u64 = 64;

struct Copier<'a> {
    gpu: &'a Gpu,
    stopwatch: Option<Stopwatch>,
    from: Buffer,
    to: Buffer,
    copies: u32,
    rounds: usize,
}

/// Measures how fast the GPU copies from one buffer to another.
pub(super) fn measure(gpu: &Gpu) -> Result<CopyReport, EngineError> {
    let software = gpu.info.kind == AdapterKind::Software;
    let wanted = if software { BYTES_SOFTWARE } else { BYTES };
    let groups: &[u32] = if software { &GROUPS_SOFTWARE } else { &GROUPS };
    // Whole rounds of all threads, as the kernel asks.
    let most = groups.iter().max().copied().unwrap_or(1);
    let round = u64::from(most * THREADS) * BYTES_PER_THREAD;
    let bytes = (wanted.min(gpu.buffer_bytes_max()) / round).max(1) * round;
    let mut copier = Copier {
        gpu,
        stopwatch: Stopwatch::new(gpu, 2),
        from: gpu::storage(gpu, "copy source", bytes),
        to: gpu::storage(gpu, "copy target", bytes),
        copies: if software { COPIES_SOFTWARE } else { COPIES },
        rounds: if software { ROUNDS_SOFTWARE } else { ROUNDS },
    };
    // Some memories move zeros faster than numbers.
    Patterns::default().fill_halves(gpu, &copier.from)?;
    let mut report = CopyReport {
        kernel_threads: THREADS,
        ..CopyReport::default()
    };
    for (i, &groups) in groups.iter().enumerate() {
        let recording = copier.recording(groups)?;
        let encode = |_: &Copier<'_>, encoder: &mut CommandEncoder| {
            recording.encode(encoder, Extent::default());
        };
        if i == 0 && !software {
            let started = Instant::now();
            while started.elapsed() < WARM_UP {
                copier.seconds(&encode)?;
            }
        }
        let rate = copier.best_rate(&encode)?;
        if rate > report.kernel_bytes_per_second {
            report.kernel_bytes_per_second = rate;
            report.kernel_workgroups = groups;
        }
    }
    report.command_bytes_per_second = copier.best_rate(&|copier, encoder| {
        encoder.copy_buffer_to_buffer(&copier.from, 0, &copier.to, 0, copier.from.size());
    })?;
    report.bytes_per_second = report
        .kernel_bytes_per_second
        .max(report.command_bytes_per_second);
    Ok(report)
}

impl Copier<'_> {
    fn recording(&self, groups: u32) -> Result<Recording, EngineError> {
        let count = u32::try_from(self.from.size() / 16).unwrap_or(u32::MAX);
        let params = gpu::uniform(
            self.gpu,
            &CopyParams {
                count,
                ..CopyParams::default()
            },
        );
        let pipeline = Pipelines::default().get(self.gpu, Kernel::Copy, &[("WG", THREADS)])?;
        let bind_group = pipeline.bind(self.gpu, &[&params, &self.from, &self.to]);
        Ok(Recording {
            ops: vec![Op {
                pipeline,
                bind_group,
                grid: [Axis::Fixed(groups), Axis::Fixed(1), Axis::Fixed(1)],
                only_split: false,
                reads: Reads::Little,
            }],
        })
    }

    fn best_rate(
        &mut self,
        encode: &dyn Fn(&Copier<'_>, &mut CommandEncoder),
    ) -> Result<f64, EngineError> {
        let mut best = f64::MAX;
        for _ in 0..self.rounds {
            best = best.min(self.seconds(encode)?);
        }
        Ok(2.0 * super::float(self.from.size()) / best)
    }

    /// Seconds of one copy.
    fn seconds(
        &mut self,
        encode: &dyn Fn(&Copier<'_>, &mut CommandEncoder),
    ) -> Result<f64, EngineError> {
        let run = |copier: &Copier<'_>, copies: u32| {
            let mut encoder = copier
                .gpu
                .device
                .create_command_encoder(&Default::default());
            if let Some(stopwatch) = &copier.stopwatch {
                stopwatch.mark(&mut encoder, 0);
            }
            for _ in 0..copies {
                encode(copier, &mut encoder);
            }
            if let Some(stopwatch) = &copier.stopwatch {
                stopwatch.mark(&mut encoder, 1);
            }
            let started = Instant::now();
            copier.gpu.queue.submit([encoder.finish()]);
            copier.gpu.wait(None)?;
            Ok::<f64, EngineError>(started.elapsed().as_secs_f64())
        };
        // Without the GPU's clock, the difference leaves out what a submission costs.
        let once = if self.stopwatch.is_none() {
            run(self, 1)?
        } else {
            0.0
        };
        let mut seconds = run(self, 1 + self.copies)?;
        let mut copies = self.copies;
        if let Some(stopwatch) = &mut self.stopwatch {
            seconds = stopwatch.read(self.gpu, 2)?[1];
            copies += 1;
        }
        Ok((seconds - once).max(1e-9) / f64::from(copies))
    }
}
