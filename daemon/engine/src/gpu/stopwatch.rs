//! Reads the GPU's own clock at marks between dispatches, so that a measurement holds neither the
//! CPU's time nor a submission's.

use super::{Gpu, Readback};
use crate::error::EngineError;

/// Where the GPU's clock can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timestamps {
    /// Nowhere.
    Nowhere,
    /// At the start and end of a pass.
    AroundPasses,
    /// Between the dispatches of a pass as well.
    InsidePasses,
}

impl Timestamps {
    /// What a device with `features` offers.
    pub(crate) fn of(features: wgpu::Features) -> Self {
        if !features.contains(wgpu::Features::TIMESTAMP_QUERY) {
            Self::Nowhere
        } else if features.contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
            Self::InsidePasses
        } else {
            Self::AroundPasses
        }
    }

    /// Lower-case name, as in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nowhere => "none",
            Self::AroundPasses => "around passes",
            Self::InsidePasses => "inside passes",
        }
    }
}

/// A run of marks, each a reading of the GPU's clock.
pub(crate) struct Stopwatch {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readback: Readback,
    inside_passes: bool,
    tick_seconds: f64,
}

impl Stopwatch {
    /// Room for `marks` marks; `None` if the GPU has no clock to read, or not for so many.
    pub(crate) fn new(gpu: &Gpu, marks: u32) -> Option<Self> {
        if gpu.timestamps == Timestamps::Nowhere || marks > wgpu::QUERY_SET_MAX_QUERIES {
            return None;
        }
        let bytes = u64::from(marks) * 8;
        Some(Self {
            set: gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("marks"),
                ty: wgpu::QueryType::Timestamp,
                count: marks,
            }),
            resolved: gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("resolved marks"),
                size: bytes,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            }),
            readback: Readback::new(gpu, bytes),
            inside_passes: gpu.timestamps == Timestamps::InsidePasses,
            tick_seconds: f64::from(gpu.queue.get_timestamp_period()) * 1e-9,
        })
    }

    /// Tells whether [`Stopwatch::mark_in`] works here.
    pub(crate) fn inside_passes(&self) -> bool {
        self.inside_passes
    }

    /// Begins a pass with a mark at its start and one at its end.
    pub(crate) fn begin_pass<'e>(
        &self,
        encoder: &'e mut wgpu::CommandEncoder,
        start: Option<u32>,
        end: Option<u32>,
    ) -> wgpu::ComputePass<'e> {
        let marks =
            (start.is_some() || end.is_some()).then_some(wgpu::ComputePassTimestampWrites {
                query_set: &self.set,
                beginning_of_pass_write_index: start,
                end_of_pass_write_index: end,
            });
        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: None,
            timestamp_writes: marks,
        })
    }

    /// Sets a mark when everything before it is done.
    pub(crate) fn mark(&self, encoder: &mut wgpu::CommandEncoder, mark: u32) {
        drop(self.begin_pass(encoder, Some(mark), None));
    }

    /// Sets a mark between two dispatches.
    pub(crate) fn mark_in(&self, pass: &mut wgpu::ComputePass<'_>, mark: u32) {
        pass.write_timestamp(&self.set, mark);
    }

    /// Waits for marks `0 .. count`, all of which must have been submitted, and returns each one's
    /// seconds since mark 0.
    pub(crate) fn read(&mut self, gpu: &Gpu, count: u32) -> Result<Vec<f64>, EngineError> {
        let bytes = u64::from(count) * 8;
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        encoder.resolve_query_set(&self.set, 0..count, &self.resolved, 0);
        self.readback
            .copy_from(&mut encoder, &self.resolved, 0, 0, bytes);
        let submission = gpu.queue.submit([encoder.finish()]);
        self.readback.request();
        let tick = self.tick_seconds;
        self.readback.read(gpu, submission, |raw| {
            let mut ticks = raw
                .chunks_exact(8)
                .take(count as usize)
                .map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .peekable();
            let zero = ticks.peek().copied().unwrap_or(0);
            ticks.map(|t| seconds(t.wrapping_sub(zero), tick)).collect()
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a measurement")]
fn seconds(ticks: u64, tick_seconds: f64) -> f64 {
    ticks.cast_signed() as f64 * tick_seconds
}
