//! How the matrix kernels map threads to work: the overrides and grids that a recorder may choose; and
//! which of them the everyday run tests.

use hearth_shaders::{
    ActivationFormat, COOPERATIVE_COLUMNS, COOPERATIVE_PAIRS, Epilogue, GemvInput, Kernel,
    MatrixKernel, Planes, Reduction, TILE_COLUMNS_FEW, Tile, WeightFormat,
};

use super::super::Gpu;
use crate::model::plan::{GemvPlan, gemm_tiles, gemv_plans, norms_own_input, rows_threads};

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
        Kernel::Gemv(m, r, _) | Kernel::GemvRows(m, r) | Kernel::GemmRows(m, r, ..) => Some((m, r)),
        Kernel::Gemm(m, _) | Kernel::GemmCoop(m) => Some((m, Reduction::Shared)),
        Kernel::Embed(..)
        | Kernel::Norm(..)
        | Kernel::Attention(..)
        | Kernel::AttentionPrefill(_)
        | Kernel::AttentionPrefillMatrix(_)
        | Kernel::Combine(_)
        | Kernel::Gather(_)
        | Kernel::AddBias
        | Kernel::Peaks
        | Kernel::Sample(_)
        | Kernel::Copy => None,
    }
}

/// Ways to run the matrix kernel `kernel` on this adapter, over `pairs` row pairs of `blocks` blocks.
pub(super) fn plans(kernel: Kernel, gpu: &Gpu, pairs: u32, blocks: u32) -> Vec<Plan> {
    match kernel {
        Kernel::Gemv(m, _, input) => {
            if input == GemvInput::Normed && !normed_fits(gpu, m, blocks) {
                return Vec::new();
            }
            gemv_plans(gpu, m.epilogue, blocks)
                .into_iter()
                .map(|plan| {
                    let (overrides, together) = cut(gpu, m, plan, input, pairs, blocks);
                    Plan {
                        overrides,
                        pairs: together,
                        columns: input.columns(),
                    }
                })
                .collect()
        }
        Kernel::GemvRows(m, _) => vec![rows_plan(Planes::Images, m, 1)],
        Kernel::GemmRows(m, _, place, columns) => vec![rows_plan(place, m, columns)],
        Kernel::Gemm(m, tile) if gemm_tiles(gpu, m.activations).any(|t| t == tile) => vec![Plan {
            overrides: Vec::new(),
            pairs: tile.pairs(),
            columns: tile.columns(),
        }],
        Kernel::GemmCoop(_) if gpu.cooperative_matrix => vec![Plan {
            overrides: Vec::new(),
            pairs: COOPERATIVE_PAIRS,
            columns: COOPERATIVE_COLUMNS,
        }],
        _ => Vec::new(),
    }
}

/// The overrides of `plan` for `input` over `pairs` row pairs of `blocks` blocks, and the row pairs of a
/// workgroup.
pub(super) fn cut(
    gpu: &Gpu,
    m: MatrixKernel,
    plan: GemvPlan,
    input: GemvInput,
    pairs: u32,
    blocks: u32,
) -> (Vec<(&'static str, u32)>, u32) {
    let plan = plan.of(gpu, m.epilogue, input);
    (plan.overrides(pairs, blocks), plan.pairs() * input.pairs())
}

fn rows_plan(place: Planes, m: MatrixKernel, columns: u32) -> Plan {
    let threads = rows_threads(place, m.epilogue);
    Plan {
        overrides: vec![("WG", threads)],
        pairs: 2 * threads,
        columns,
    }
}

/// A software adapter never norms in a product; the kernels are tested on it all the same.
fn normed_fits(gpu: &Gpu, m: MatrixKernel, blocks: u32) -> bool {
    let memory = gpu.device.limits().max_compute_workgroup_storage_size;
    norms_own_input(gpu, m.activations, blocks)
        || m.activations.normed_bytes(blocks) + (10 << 10) <= memory
}

/// Tells whether the everyday run tests this product.
///
/// Each format's products are stored, q4_1's go through each epilogue too, with the adapter's own
/// reduction; the other reduction has one kernel of each mapping. A format that differs from
/// another in its group size alone has one kernel of each mapping too. Of the kernels that norm their
/// input or do several columns there are q4_1's alone.
pub(super) fn everyday(kernel: Kernel, m: MatrixKernel, reduction: Reduction, gpu: &Gpu) -> bool {
    let thorough = m.weights == WeightFormat::Q4_1;
    if let Kernel::Gemv(_, _, input) = kernel
        && input != (GemvInput::Stored { columns: 1 })
    {
        let chosen = match input {
            GemvInput::Wide { columns: 16, .. } => m.epilogue == Epilogue::Qkv,
            _ => matches!(
                (input.columns(), m.epilogue),
                (1, _) | (4, Epilogue::Residual) | (8, Epilogue::Glu(_))
            ),
        };
        let mixed = matches!(m.epilogue, Epilogue::Glu(out) if out != m.activations);
        return thorough && reduction == gpu.reduction && chosen && !mixed;
    }
    // Nothing is exchanged in these but by barriers. Of the tiles of a format the smallest stands for all.
    let tiled = match kernel {
        Kernel::Gemm(_, tile) => {
            if Some(&tile) != Tile::choices(m.activations).last() {
                return thorough && m.epilogue == Epilogue::Residual;
            }
            true
        }
        Kernel::GemmCoop(_) => true,
        _ => false,
    };
    if reduction != gpu.reduction && !tiled {
        return thorough
            && m.activations == ActivationFormat::Int8
            && m.epilogue == Epilogue::Residual;
    }
    // The two activation formats that the feed-forward layer can leave are one file each.
    let mixed = matches!(m.epilogue, Epilogue::Glu(out) if out != m.activations);
    let resized = matches!(
        m.weights,
        WeightFormat::Q4G64
            | WeightFormat::Q4Z32
            | WeightFormat::Q4Z64
            | WeightFormat::Q8Z32
            | WeightFormat::Q8Z64
    );
    let stored =
        m.epilogue == Epilogue::Store && (!resized || m.activations == ActivationFormat::Int8);
    // Rows kernels take int8 only where somebody asks a software adapter for it, and buffers only
    // for the logits of several columns; the epilogues are the same.
    let rare = match kernel {
        Kernel::GemvRows(..) => m.activations == ActivationFormat::Int8,
        Kernel::GemmRows(.., TILE_COLUMNS_FEW) => {
            return thorough && !mixed && m.activations != ActivationFormat::Int8;
        }
        Kernel::GemmRows(_, _, place, _) => {
            place == Planes::Buffers || m.activations == ActivationFormat::Int8
        }
        _ => false,
    };
    stored || thorough && !mixed && !rare
}
