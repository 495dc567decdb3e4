//! What happens to KV blocks and slots between steps: zeroed, copied, set up for their next sequence.

use hearth_shaders::params::Sampling;

use super::ModelConfig;
use super::forward::{Forward, ForwardLimits};
use crate::gpu::{CommandEncoder, Gpu};

impl Forward {
    /// Makes a slot forget its history, and sets how it samples.
    pub(crate) fn reset_slot(&self, gpu: &Gpu, slot: u32, sampling: &Sampling) {
        let bytes = self.logits_bytes();
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        encoder.clear_buffer(&self.scratch.history, u64::from(slot) * bytes, Some(bytes));
        gpu.queue.submit([encoder.finish()]);
        let at = u64::from(slot) * size_of::<Sampling>() as u64;
        gpu.queue
            .write_buffer(&self.scratch.samplings, at, bytemuck::bytes_of(sampling));
    }

    /// Sets what a slot has seen: a word for each token of the vocabulary (kernels/embed.wgsl).
    pub(crate) fn write_history(&self, gpu: &Gpu, slot: u32, history: &[u32]) {
        let at = u64::from(slot) * self.logits_bytes();
        gpu.queue
            .write_buffer(&self.scratch.history, at, bytemuck::cast_slice(history));
    }

    /// Zeroes KV blocks, so that nothing of their last owner is left.
    pub(crate) fn clear_blocks(&self, gpu: &Gpu, config: &ModelConfig, blocks: &[u32]) {
        let bytes = ForwardLimits::kv_block_bytes(config, self.limits().block_len);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        for run in consecutive(blocks) {
            let at = u64::from(run.start) * bytes;
            let len = u64::from(run.end - run.start) * bytes;
            for buffer in self.kv_buffers() {
                encoder.clear_buffer(buffer, at, Some(len));
            }
        }
        gpu.queue.submit([encoder.finish()]);
    }

    /// Copies a KV block to another.
    pub(crate) fn copy_block(&self, gpu: &Gpu, config: &ModelConfig, from: u32, to: u32) {
        let bytes = ForwardLimits::kv_block_bytes(config, self.limits().block_len);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        // WebGPU copies between two buffers only: by way of the scratch of the residual stream, which
        // holds nothing between steps.
        let buffers: Vec<_> = self.kv_buffers().collect();
        let room = usize::try_from(self.scratch.x.size() / bytes).unwrap_or(1);
        for group in buffers.chunks(room.max(1)) {
            self.copy_by_way(&mut encoder, group, bytes, (from, to));
        }
        gpu.queue.submit([encoder.finish()]);
    }

    fn copy_by_way(
        &self,
        encoder: &mut CommandEncoder,
        buffers: &[&crate::gpu::Buffer],
        bytes: u64,
        (from, to): (u32, u32),
    ) {
        let way = &self.scratch.x;
        for (buffer, at) in buffers.iter().zip(0..) {
            encoder.copy_buffer_to_buffer(buffer, u64::from(from) * bytes, way, at * bytes, bytes);
        }
        for (buffer, at) in buffers.iter().zip(0..) {
            encoder.copy_buffer_to_buffer(way, at * bytes, buffer, u64::from(to) * bytes, bytes);
        }
    }
}

/// Runs of consecutive numbers, whatever the order of `blocks`.
fn consecutive(blocks: &[u32]) -> Vec<std::ops::Range<u32>> {
    let mut sorted = blocks.to_vec();
    sorted.sort_unstable();
    let mut runs: Vec<std::ops::Range<u32>> = Vec::new();
    for block in sorted {
        match runs.last_mut() {
            Some(run) if run.end == block => run.end += 1,
            Some(run) if run.end > block => {}
            _ => runs.push(block..block + 1),
        }
    }
    runs
}
