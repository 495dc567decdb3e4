//! How the matrix kernels map threads to work: the overrides and grids that a recorder may choose.

use hearth_shaders::{Epilogue, Kernel, MatrixKernel, Reduction, TILE_COLUMNS};

use super::super::Gpu;

/// One way to run a matrix kernel.
pub(super) struct Plan {
    pub(super) overrides: Vec<(&'static str, u32)>,
    /// Row pairs of a workgroup.
    pub(super) pairs: u32,
    /// Columns of a workgroup.
    pub(super) columns: u32,
}

/// The matrix product and the reduction that a kernel is, or `None` if it is no matrix product.
pub(super) fn matrix(kernel: Kernel) -> Option<(MatrixKernel, Reduction)> {
    match kernel {
        Kernel::Gemv(m, r)
        | Kernel::GemvRows(m, r)
        | Kernel::Gemm(m, r)
        | Kernel::GemmRows(m, r) => Some((m, r)),
        Kernel::Embed(..)
        | Kernel::Norm(..)
        | Kernel::Attention(_)
        | Kernel::Combine(_)
        | Kernel::Sample(_)
        | Kernel::Copy => None,
    }
}

/// A thread has two pairs; gate and up need whole blocks of pairs in a workgroup.
fn rows_plan(matrix: MatrixKernel, columns: u32) -> Plan {
    let threads = match matrix.epilogue {
        Epilogue::Glu(_) => 16,
        _ => 8,
    };
    Plan {
        overrides: vec![("WG", threads)],
        pairs: 2 * threads,
        columns,
    }
}

/// Ways to run the matrix kernel `kernel` on this adapter.
pub(super) fn plans(kernel: Kernel, gpu: &Gpu) -> Vec<Plan> {
    match kernel {
        Kernel::Gemv(m, _) => {
            let lanes = gpu.threads_per_row;
            let threads = if lanes >= 32 { 128 } else { 64 };
            let runs = threads / lanes;
            let plan = |passes| Plan {
                overrides: vec![("WG", threads), ("TPR", lanes), ("PASSES", passes)],
                pairs: runs * passes,
                columns: 1,
            };
            // Gate and up need whole blocks of pairs in a workgroup.
            match m.epilogue {
                Epilogue::Glu(_) => vec![plan(32 / runs)],
                _ => vec![plan(1)],
            }
        }
        Kernel::GemvRows(m, _) => vec![rows_plan(m, 1)],
        Kernel::GemmRows(m, _) => vec![rows_plan(m, TILE_COLUMNS)],
        Kernel::Gemm(..) => {
            vec![Plan {
                overrides: vec![("WG", 32)],
                pairs: 32,
                columns: TILE_COLUMNS,
            }]
        }
        _ => Vec::new(),
    }
}
