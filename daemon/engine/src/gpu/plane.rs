//! Planes: packed weights in GPU memory, in a storage buffer or in an image.

use hearth_shaders::{IMAGE_LINE, IMAGE_TILE_ROWS, Planes};

use super::{Gpu, storage, upload};
use crate::error::EngineError;

/// Bytes of the widest texel.
const TEXEL_BYTES_MAX: u64 = 16;

/// What a kernel binds besides its parameters.
#[derive(Clone, Copy)]
pub(crate) enum Bound<'a> {
    /// A whole buffer.
    Buffer(&'a wgpu::Buffer),
    /// An image.
    Image(&'a wgpu::TextureView),
}

impl<'a> From<&'a wgpu::Buffer> for Bound<'a> {
    fn from(buffer: &'a wgpu::Buffer) -> Self {
        Self::Buffer(buffer)
    }
}

impl<'a> Bound<'a> {
    pub(super) fn resource(self) -> wgpu::BindingResource<'a> {
        match self {
            Self::Buffer(buffer) => buffer.as_entire_binding(),
            Self::Image(view) => wgpu::BindingResource::TextureView(view),
        }
    }
}

/// Units of one size for each block, or few blocks, of a matrix's rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlaneShape {
    pub(crate) rows: u64,
    /// Units of a row.
    pub(crate) units: u64,
    /// A multiple of 4 `texel_words`.
    pub(crate) unit_bytes: u64,
    /// 32-bit words of a texel where the plane is an image: 1 or 4.
    pub(crate) texel_words: u32,
}

impl PlaneShape {
    fn row_bytes(self) -> u64 {
        self.units * self.unit_bytes
    }
}

enum Memory {
    Buffer(wgpu::Buffer),
    Image(wgpu::Texture, wgpu::TextureView),
}

/// See the module.
pub(crate) struct Plane {
    shape: PlaneShape,
    memory: Memory,
}

impl Plane {
    /// A zeroed plane. Rows are rounded up: to a pair, or to a tile.
    pub(crate) fn new(gpu: &Gpu, label: &str, place: Planes, shape: PlaneShape) -> Self {
        let memory = match place {
            Planes::Buffers => {
                let bytes = shape.rows.next_multiple_of(2) * shape.row_bytes();
                Memory::Buffer(storage(gpu, label, bytes))
            }
            Planes::Images => {
                let rows = shape.rows.next_multiple_of(u64::from(IMAGE_TILE_ROWS));
                let texture = image(gpu, label, shape.texel_words, rows * shape.row_bytes());
                let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
                Memory::Image(texture, view)
            }
        };
        Self { shape, memory }
    }

    /// Bytes of GPU memory.
    pub(crate) fn bytes(&self) -> u64 {
        match &self.memory {
            Memory::Buffer(buffer) => buffer.size(),
            Memory::Image(texture, _) => {
                let size = texture.size();
                u64::from(size.width) * u64::from(size.height) * self.texel_bytes()
            }
        }
    }

    fn texel_bytes(&self) -> u64 {
        4 * u64::from(self.shape.texel_words)
    }

    /// For a kernel to read it.
    pub(crate) fn bound(&self) -> Bound<'_> {
        match &self.memory {
            Memory::Buffer(buffer) => Bound::Buffer(buffer),
            Memory::Image(_, view) => Bound::Image(view),
        }
    }

    /// Writes whole rows, given one after the other, from row `first`, a multiple of 32; waits until
    /// the driver has them.
    ///
    /// # Errors
    ///
    /// As [`upload`].
    pub(crate) fn upload(&self, gpu: &Gpu, first: u64, rows: &[u8]) -> Result<(), EngineError> {
        let start = first * self.shape.row_bytes();
        match &self.memory {
            Memory::Buffer(buffer) => upload(gpu, buffer, start, rows),
            Memory::Image(texture, _) => {
                let tiles = tiles(rows, self.shape);
                self.write_texels(gpu, texture, start / self.texel_bytes(), &tiles);
                gpu.queue.submit([]);
                gpu.wait(None)
            }
        }
    }

    /// Writes consecutive texels from number `at`: the rest of a line, whole lines, a part of one.
    fn write_texels(&self, gpu: &Gpu, texture: &wgpu::Texture, mut at: u64, mut texels: &[u8]) {
        let line = u64::from(IMAGE_LINE);
        while !texels.is_empty() {
            let left = texels.len() as u64 / self.texel_bytes();
            let (x, y) = (at % line, at / line);
            let (width, height) = if x > 0 || left < line {
                ((line - x).min(left), 1)
            } else {
                (line, left / line)
            };
            let (now, rest) = texels.split_at(as_usize(width * height * self.texel_bytes()));
            gpu.queue.write_texture(
                wgpu::TexelCopyTextureInfo {
                    origin: wgpu::Origin3d {
                        x: as_u32(x),
                        y: as_u32(y),
                        z: 0,
                    },
                    ..texture.as_image_copy()
                },
                now,
                wgpu::TexelCopyBufferLayout {
                    offset: 0,
                    bytes_per_row: Some(as_u32(width * self.texel_bytes())),
                    rows_per_image: None,
                },
                wgpu::Extent3d {
                    width: as_u32(width),
                    height: as_u32(height),
                    depth_or_array_layers: 1,
                },
            );
            texels = rest;
            at += width * height;
        }
    }
}

/// Bytes of the largest plane of this adapter.
pub(crate) fn plane_bytes_max(gpu: &Gpu, place: Planes) -> u64 {
    let binding = gpu.info.binding_bytes_max;
    match place {
        Planes::Buffers => binding,
        Planes::Images => {
            let lines = u64::from(gpu.device.limits().max_texture_dimension_2d);
            // A plane of narrower texels has no more of them.
            binding.min(u64::from(IMAGE_LINE) * lines * TEXEL_BYTES_MAX)
        }
    }
}

fn image(gpu: &Gpu, label: &str, texel_words: u32, bytes: u64) -> wgpu::Texture {
    let line_bytes = u64::from(IMAGE_LINE * texel_words) * 4;
    gpu.device.create_texture(&wgpu::TextureDescriptor {
        label: Some(label),
        size: wgpu::Extent3d {
            width: IMAGE_LINE,
            height: as_u32(bytes.div_ceil(line_bytes).max(1)),
            depth_or_array_layers: 1,
        },
        mip_level_count: 1,
        sample_count: 1,
        dimension: wgpu::TextureDimension::D2,
        format: texel_format(texel_words),
        usage: wgpu::TextureUsages::STORAGE_BINDING | wgpu::TextureUsages::COPY_DST,
        view_formats: &[],
    })
}

/// The format of texels of `words` 32-bit words: 1 or 4.
pub(super) fn texel_format(words: u32) -> wgpu::TextureFormat {
    if words == 1 {
        wgpu::TextureFormat::R32Uint
    } else {
        wgpu::TextureFormat::Rgba32Uint
    }
}

/// Rows in the order of an image: for each tile its rows' first units, then their second, and so on.
/// The last tile is filled up with zeros.
fn tiles(rows: &[u8], shape: PlaneShape) -> Vec<u8> {
    let (unit, row_bytes) = (as_usize(shape.unit_bytes), as_usize(shape.row_bytes()));
    let tile_rows = IMAGE_TILE_ROWS as usize;
    if row_bytes == 0 {
        return Vec::new();
    }
    let count = rows.len() / row_bytes;
    let mut tiled = vec![0; count.next_multiple_of(tile_rows) * row_bytes];
    for (n, row) in rows.chunks_exact(row_bytes).enumerate() {
        let tile = n / tile_rows * tile_rows * row_bytes;
        for (i, bytes) in row.chunks_exact(unit).enumerate() {
            let at = tile + (i * tile_rows + n % tile_rows) * unit;
            tiled[at..at + unit].copy_from_slice(bytes);
        }
    }
    tiled
}

fn as_u32(n: u64) -> u32 {
    u32::try_from(n).unwrap_or_else(|_| unreachable!("an image's sizes fit 32 bits: {n}"))
}

fn as_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or_else(|_| unreachable!("a piece of a plane fits memory: {n}"))
}
