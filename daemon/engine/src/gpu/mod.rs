//! The only modules that name wgpu: the device, buffers, pipelines, and recordings of dispatches.

mod buffer;
mod device;
#[cfg(test)]
mod kernel_tests;
mod pipeline;
mod prefill_attention;
mod recording;
mod stopwatch;

pub(crate) use buffer::{Readback, storage, uniform, upload};
pub(crate) use device::{Gpu, OutOfMemory};
pub(crate) use pipeline::{Overrides, Pipeline, Pipelines};
pub(crate) use prefill_attention::prefill_attention;
pub(crate) use recording::{Axis, Extent, Op, Reads, Recording};
pub(crate) use stopwatch::{Stopwatch, Timestamps};
pub(crate) use wgpu::{Buffer, CommandEncoder, SubmissionIndex};
