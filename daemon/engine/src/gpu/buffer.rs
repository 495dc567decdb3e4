//! Buffers: storage, uniforms, uploads in bounded pieces, and reading results back.

use std::sync::mpsc;
use std::time::Duration;

use super::Gpu;
use crate::error::EngineError;

/// Most bytes handed to the driver before waiting for it to take them.
const UPLOAD_PIECE_BYTES: usize = 8 << 20;
/// Longest that a mapping may be on its way when its submission is done.
const MAPPING_MAX: Duration = Duration::from_secs(2);

/// A storage buffer of `bytes` (rounded up to 16), zeroed.
pub(crate) fn storage(gpu: &Gpu, label: &str, bytes: u64) -> wgpu::Buffer {
    gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: bytes.max(16).next_multiple_of(16),
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    })
}

/// A uniform buffer that holds one parameter block.
pub(crate) fn uniform<P: bytemuck::Pod>(gpu: &Gpu, params: &P) -> wgpu::Buffer {
    let bytes = bytemuck::bytes_of(params);
    let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("params"),
        size: (bytes.len() as u64).next_multiple_of(16),
        usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    gpu.queue.write_buffer(&buffer, 0, bytes);
    buffer
}

/// Writes `data` into `buffer` from `offset` and waits, so that staging memory stays bounded.
pub(crate) fn upload(
    gpu: &Gpu,
    buffer: &wgpu::Buffer,
    offset: u64,
    data: &[u8],
) -> Result<(), EngineError> {
    let mut at = offset;
    for piece in data.chunks(UPLOAD_PIECE_BYTES) {
        gpu.queue.write_buffer(buffer, at, piece);
        gpu.queue.submit([]);
        gpu.wait(None)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// A buffer the CPU can read after a submission copied into it.
pub(crate) struct Readback {
    buffer: wgpu::Buffer,
    mapped: Option<mpsc::Receiver<Result<(), wgpu::BufferAsyncError>>>,
}

impl Readback {
    /// Room for `bytes`.
    pub(crate) fn new(gpu: &Gpu, bytes: u64) -> Self {
        let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size: bytes.max(16).next_multiple_of(16),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Self {
            buffer,
            mapped: None,
        }
    }

    /// Bytes it holds.
    pub(crate) fn bytes(&self) -> u64 {
        self.buffer.size()
    }

    /// Records a copy into it.
    pub(crate) fn copy_from(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        source: &wgpu::Buffer,
        source_offset: u64,
        offset: u64,
        bytes: u64,
    ) {
        encoder.copy_buffer_to_buffer(source, source_offset, &self.buffer, offset, bytes);
    }

    /// Records a copy of all of `image`, of four words a texel, into it.
    #[cfg(test)]
    pub(crate) fn copy_from_image(&self, encoder: &mut wgpu::CommandEncoder, image: &super::Image) {
        encoder.copy_texture_to_buffer(
            image.texture.as_image_copy(),
            wgpu::TexelCopyBufferInfo {
                buffer: &self.buffer,
                layout: wgpu::TexelCopyBufferLayout {
                    offset: 0,
                    bytes_per_row: Some(16 * hearth_shaders::IMAGE_LINE),
                    rows_per_image: None,
                },
            },
            image.texture.size(),
        );
    }

    /// Asks for the mapping; call it right after the submission.
    pub(crate) fn request(&mut self) {
        let (done, mapped) = mpsc::channel();
        self.buffer
            .slice(..)
            .map_async(wgpu::MapMode::Read, move |result| {
                // The receiver is gone only if nobody wants the bytes any more.
                let _ = done.send(result);
            });
        self.mapped = Some(mapped);
    }

    /// Waits for `submission` and hands the bytes to `read`.
    pub(crate) fn read<T>(
        &mut self,
        gpu: &Gpu,
        submission: wgpu::SubmissionIndex,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, EngineError> {
        gpu.wait(Some(submission))?;
        let failed = |what: String| EngineError::Device(format!("reading results: {what}"));
        let mapped = self
            .mapped
            .take()
            .ok_or_else(|| failed("not requested".to_owned()))?;
        // The wait above has made the mapping, unless the device was lost meanwhile.
        mapped
            .recv_timeout(MAPPING_MAX)
            .map_err(|e| failed(e.to_string()))?
            .map_err(|e| failed(e.to_string()))?;
        let view = self
            .buffer
            .slice(..)
            .get_mapped_range()
            .map_err(|e| failed(e.to_string()))?;
        let value = read(&view);
        drop(view);
        self.buffer.unmap();
        Ok(value)
    }
}
