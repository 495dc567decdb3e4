//! The only modules that name wgpu: the device, buffers, pipelines, and recordings of dispatches.

mod buffer;
mod device;
#[cfg(test)]
mod kernel_tests;
mod pipeline;
mod plane;
mod recording;

pub(crate) use buffer::{Readback, storage, uniform, upload};
pub(crate) use device::{Gpu, OutOfMemory};
pub(crate) use pipeline::{Pipeline, Pipelines};
pub(crate) use plane::{Bound, Plane, PlaneShape, plane_bytes_max};
pub(crate) use recording::{Axis, Extent, Op, Recording};
pub(crate) use wgpu::{Buffer, CommandEncoder, SubmissionIndex};
