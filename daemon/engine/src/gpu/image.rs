//! Images: 32-bit words that kernels read as texels, in lines of one length.

use hearth_shaders::IMAGE_LINE;

use super::Gpu;

/// A two-dimensional texture taken as one long row of texels.
pub(crate) struct Image {
    pub(super) texture: wgpu::Texture,
    pub(super) view: wgpu::TextureView,
    texel_bytes: u64,
}

impl Image {
    /// Zeroed room for `bytes`, in texels of `texel_words` words: 1 or 4.
    pub(crate) fn new(gpu: &Gpu, label: &str, texel_words: u32, bytes: u64) -> Self {
        let texel_bytes = 4 * u64::from(texel_words);
        let lines = bytes.div_ceil(u64::from(IMAGE_LINE) * texel_bytes).max(1);
        let texture = gpu.device.create_texture(&wgpu::TextureDescriptor {
            label: Some(label),
            size: wgpu::Extent3d {
                width: IMAGE_LINE,
                height: as_u32(lines),
                depth_or_array_layers: 1,
            },
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: texel_format(texel_words),
            usage: wgpu::TextureUsages::STORAGE_BINDING
                | wgpu::TextureUsages::COPY_DST
                | wgpu::TextureUsages::COPY_SRC,
            view_formats: &[],
        });
        let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
        Self {
            texture,
            view,
            texel_bytes,
        }
    }

    /// Bytes of the largest image of such texels.
    pub(crate) fn bytes_max(gpu: &Gpu, texel_words: u32) -> u64 {
        let lines = u64::from(gpu.device.limits().max_texture_dimension_2d);
        u64::from(IMAGE_LINE) * lines * 4 * u64::from(texel_words)
    }

    /// Bytes of GPU memory.
    pub(crate) fn bytes(&self) -> u64 {
        let size = self.texture.size();
        u64::from(size.width) * u64::from(size.height) * self.texel_bytes
    }

    /// Queues a write of whole texels from byte `offset`: the rest of a line, whole lines, a part of
    /// one.
    pub(crate) fn write(&self, gpu: &Gpu, offset: u64, mut data: &[u8]) {
        let line = u64::from(IMAGE_LINE);
        let mut at = offset / self.texel_bytes;
        while !data.is_empty() {
            let left = data.len() as u64 / self.texel_bytes;
            let (x, y) = (at % line, at / line);
            let (width, height) = if x > 0 || left < line {
                ((line - x).min(left), 1)
            } else {
                (line, left / line)
            };
            let (now, rest) = data.split_at(as_usize(width * height * self.texel_bytes));
            let origin = wgpu::Origin3d {
                x: as_u32(x),
                y: as_u32(y),
                z: 0,
            };
            gpu.queue.write_texture(
                wgpu::TexelCopyTextureInfo {
                    origin,
                    ..self.texture.as_image_copy()
                },
                now,
                wgpu::TexelCopyBufferLayout {
                    offset: 0,
                    bytes_per_row: Some(as_u32(width * self.texel_bytes)),
                    rows_per_image: None,
                },
                wgpu::Extent3d {
                    width: as_u32(width),
                    height: as_u32(height),
                    depth_or_array_layers: 1,
                },
            );
            data = rest;
            at += width * height;
        }
    }
}

/// The format of texels of `words` 32-bit words: 1 or 4.
pub(super) fn texel_format(words: u32) -> wgpu::TextureFormat {
    if words == 1 {
        wgpu::TextureFormat::R32Uint
    } else {
        wgpu::TextureFormat::Rgba32Uint
    }
}

fn as_u32(n: u64) -> u32 {
    u32::try_from(n).unwrap_or_else(|_| unreachable!("an image's sizes fit 32 bits: {n}"))
}

fn as_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or_else(|_| unreachable!("a piece of an image fits memory: {n}"))
}
