//! Planes: packed weights in GPU memory, in a storage buffer or in an image.

use hearth_shaders::{IMAGE_TILE_ROWS, Planes};

use super::{Bound, Gpu, Image, storage, upload};
use crate::error::EngineError;

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
    Image(Image),
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
                let bytes = rows * shape.row_bytes();
                Memory::Image(Image::new(gpu, label, shape.texel_words, bytes))
            }
        };
        Self { shape, memory }
    }

    /// Bytes of the largest plane of this adapter.
    pub(crate) fn bytes_max(gpu: &Gpu, place: Planes) -> u64 {
        let binding = gpu.info.binding_bytes_max;
        match place {
            Planes::Buffers => binding,
            // A plane of narrower texels has no more of them.
            Planes::Images => binding.min(Image::bytes_max(gpu, 4)),
        }
    }

    /// Bytes of GPU memory.
    pub(crate) fn bytes(&self) -> u64 {
        match &self.memory {
            Memory::Buffer(buffer) => buffer.size(),
            Memory::Image(image) => image.bytes(),
        }
    }

    /// For a kernel to read it, or to fill it as a whole.
    pub(crate) fn bound(&self) -> Bound<'_> {
        match &self.memory {
            Memory::Buffer(buffer) => buffer.into(),
            Memory::Image(image) => image.into(),
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
            Memory::Image(image) => {
                image.write(gpu, start, &tiles(rows, self.shape));
                gpu.queue.submit([]);
                gpu.wait(None)
            }
        }
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

fn as_usize(n: u64) -> usize {
    usize::try_from(n).unwrap_or_else(|_| unreachable!("a piece of a plane fits memory: {n}"))
}
