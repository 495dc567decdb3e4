//! How the tiled matrix products are cut: what the kernel is compiled for and a recorder counts with.

use crate::ActivationFormat;

/// Row pairs of a workgroup of the cooperative-matrix product.
pub const COOPERATIVE_PAIRS: u32 = 64;
/// Columns of a workgroup of the cooperative-matrix product.
pub const COOPERATIVE_COLUMNS: u32 = 128;
/// Threads of a subgroup that the cooperative-matrix product is written for.
pub const COOPERATIVE_SUBGROUP: u32 = 32;
/// Threads of a workgroup of the cooperative-matrix product.
pub const COOPERATIVE_THREADS: u32 = 256;
/// Bytes of workgroup memory of the cooperative-matrix product.
pub const COOPERATIVE_BYTES: u32 = 2 * 128 * 18 * 8 + COOPERATIVE_THREADS * 32;

/// A tile of kernels/gemm.wgsl: whole blocks of 32 row pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Row pairs of a thread.
    pub thread_pairs: u32,
    /// Columns of a thread: a multiple of four.
    pub thread_columns: u32,
    /// Threads along the row pairs: a multiple of four.
    pub threads_down: u32,
    /// Threads along the columns: a multiple of eight.
    pub threads_across: u32,
}

const fn tile(
    thread_pairs: u32,
    thread_columns: u32,
    threads_down: u32,
    threads_across: u32,
) -> Tile {
    Tile {
        thread_pairs,
        thread_columns,
        threads_down,
        threads_across,
    }
}

impl Tile {
    /// The tiles for activations of that format, the fastest first.
    pub fn choices(activations: ActivationFormat) -> &'static [Self] {
        const INT8: [Tile; 1] = [tile(4, 4, 16, 8)];
        const FLOAT: [Tile; 3] = [tile(4, 8, 16, 16), tile(4, 8, 16, 8), tile(4, 4, 8, 8)];
        match activations {
            ActivationFormat::Int8 => &INT8,
            ActivationFormat::Float => &FLOAT,
            ActivationFormat::FloatImage | ActivationFormat::Half => &[],
        }
    }

    /// Row pairs of a workgroup.
    pub fn pairs(self) -> u32 {
        self.thread_pairs * self.threads_down
    }

    /// Columns of a workgroup.
    pub fn columns(self) -> u32 {
        self.thread_columns * self.threads_across
    }

    /// Threads of a workgroup.
    pub fn threads(self) -> u32 {
        self.threads_down * self.threads_across
    }

    /// Bytes of workgroup memory, at most.
    pub fn workgroup_bytes(self, activations: ActivationFormat) -> u32 {
        let gathered = 4 * self.threads_across * self.pairs();
        let lines = match activations {
            // A block's row is 32 bytes and 8 of scales, of two blocks.
            ActivationFormat::Int8 => 80 * (2 * self.pairs() + 5 + self.columns() + 1),
            _ => 32 * 4 * (2 * self.pairs() + 4 + self.columns() + 4),
        };
        gathered + lines
    }

    pub(crate) fn constants(self) -> String {
        format!(
            "const PAIRS: u32 = {}u;\nconst COLUMNS: u32 = {}u;\nconst TP: u32 = {}u;\nconst TC: u32 = {}u;\n",
            self.thread_pairs, self.thread_columns, self.threads_down, self.threads_across
        )
    }
}
