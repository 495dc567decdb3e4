//! The only modules that name wgpu: the device, buffers, pipelines, and recordings of dispatches.

mod adapter;
mod buffer;
mod burial;
mod device;
mod image;
#[cfg(test)]
mod kernel_tests;
mod pipeline;
mod plane;
mod prefill_attention;
mod recording;
mod stopwatch;

pub(crate) use adapter::{Drivers, Identity};
pub(crate) use buffer::{Readback, storage, uniform, upload};
pub(crate) use burial::bury;
pub(crate) use device::{Gpu, OutOfMemory};
pub(crate) use image::Image;
pub(crate) use pipeline::{Bound, Overrides, Pipeline, Pipelines};
pub(crate) use plane::{Plane, PlaneShape};
pub(crate) use prefill_attention::prefill_attention;
pub(crate) use recording::{Axis, Extent, Op, Reads, Recording};
pub(crate) use stopwatch::{Stopwatch, Timestamps};
pub(crate) use wgpu::{Buffer, CommandEncoder, SubmissionIndex};
