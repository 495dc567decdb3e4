//! How kernels map threads to work on this adapter: the choices a recorder starts from and the tuner
//! tries. Pure arithmetic over what the adapter offers.

use hearth_shaders::{
    ActivationFormat, AttentionKernel, Epilogue, GemvInput, MatrixKernel, Planes, Tile,
};

use crate::engine::AdapterKind;
use crate::gpu::Gpu;

/// Row pairs of a workgroup that must hold whole blocks of 32 gate and up pairs.
pub(crate) const GLU_PAIRS: u32 = 32;
/// Most columns that one `gemv` does together, and most columns of a step that takes it.
pub(crate) const DECODE_COLUMNS_MAX: u32 = 16;
/// Storage buffers of the product that norms its own input and writes q, k and v.
const NORMED_STORAGE_BUFFERS: u32 = 9;
/// Workgroup memory that a `gemv` takes beside the normed input, at most: sums and a tile of results.
const GEMV_SHARED_BYTES: u32 = 10 << 10;

/// How a `gemv` is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct GemvPlan {
    /// Threads of a workgroup.
    pub(crate) threads: u32,
    /// Threads that share a row pair.
    pub(crate) lanes: u32,
    /// Row pairs that a run of threads does, one after the other.
    pub(crate) passes: u32,
}

impl GemvPlan {
    /// The plan for `input`. Sums keep their order, which is that of `lanes`.
    pub(crate) fn of(self, gpu: &Gpu, epilogue: Epilogue, input: GemvInput) -> Self {
        let glu = matches!(epilogue, Epilogue::Glu(_));
        let limit = gpu.device.limits().max_compute_invocations_per_workgroup;
        let each = input.pairs();
        // From four columns on, registers are short and smaller workgroups better.
        let threads: u32 = match input {
            _ if input.columns() < 4 => return self,
            GemvInput::Wide { .. } if glu => 256 * each,
            GemvInput::Wide { columns, .. } => {
                if columns > 8 || self.lanes < gpu.threads_per_row {
                    512
                } else {
                    256
                }
            }
            _ => 128.min(self.threads),
        };
        let most = if glu {
            self.lanes * GLU_PAIRS / each
        } else {
            limit
        };
        let threads = threads.min(limit).min(most).max(self.lanes);
        Self {
            threads,
            passes: if glu {
                GLU_PAIRS * self.lanes / (threads * each)
            } else {
                self.passes.div_ceil(each)
            },
            ..self
        }
    }

    /// Row pairs of a workgroup.
    pub(crate) fn pairs(self) -> u32 {
        self.threads / self.lanes * self.passes
    }

    /// The kernel's override constants for `pairs` row pairs of `blocks` blocks.
    pub(crate) fn overrides(self, pairs: u32, blocks: u32) -> Vec<(&'static str, u32)> {
        vec![
            ("WG", self.threads),
            ("TPR", self.lanes),
            ("PASSES", self.passes),
            ("BLOCKS", blocks),
            ("PAIRS", pairs),
        ]
    }
}

/// How `matrix` takes `columns` columns of stored activations. Sums of several row pairs take registers,
/// which small GPUs have fewer of.
pub(crate) fn stored_input(
    gpu: &Gpu,
    plan: GemvPlan,
    matrix: MatrixKernel,
    columns: u32,
) -> GemvInput {
    let reach = gpu.threads_per_row;
    match matrix.epilogue {
        _ if !matrix.goes_wide() || reach < 32 => GemvInput::Stored { columns },
        Epilogue::Glu(_) if columns >= 4 => GemvInput::Wide {
            columns,
            pairs: if plan.lanes < reach { 1 } else { 2 },
        },
        Epilogue::Qkv if columns >= 8 => GemvInput::Wide { columns, pairs: 1 },
        _ => GemvInput::Stored { columns },
    }
}

/// Ways to cut a `gemv` over rows of `blocks` blocks, the best guess first.
pub(crate) fn gemv_plans(gpu: &Gpu, epilogue: Epilogue, blocks: u32) -> Vec<GemvPlan> {
    let limit = gpu.device.limits().max_compute_invocations_per_workgroup;
    let wide = gpu.threads_per_row >= 32;
    let mut plans: Vec<GemvPlan> = Vec::new();
    // Blocks for at least half the threads of a run; long rows of few pairs want longer runs.
    let lanes: &[u32] = match (blocks, epilogue) {
        (96.., Epilogue::Residual) if wide => &[64, 32, 128],
        (96.., _) | (17.., _) if wide => &[32, 16, 64],
        (33.., _) => &[16, 32, 8],
        _ => &[8, 16, 32],
    };
    let threads: &[u32] = match epilogue {
        Epilogue::Glu(_) if wide && blocks < 96 => &[1024, 512, 256],
        Epilogue::Glu(_) if wide => &[512, 1024, 256],
        _ if wide => &[256, 512, 128],
        _ => &[64, 128, 32],
    };
    for &lanes in lanes {
        for &threads in threads.iter().filter(|&&t| t <= limit && t >= lanes) {
            let runs = threads / lanes;
            let passes = match epilogue {
                Epilogue::Glu(_) if runs > GLU_PAIRS => continue,
                Epilogue::Glu(_) => GLU_PAIRS / runs,
                _ => 1,
            };
            plans.push(GemvPlan {
                threads,
                lanes,
                passes,
            });
        }
    }
    plans
}

/// The same for `pairs` row pairs: without those that need more workgroups than a grid may have.
pub(crate) fn gemv_plans_for(
    gpu: &Gpu,
    epilogue: Epilogue,
    blocks: u32,
    pairs: u32,
) -> Vec<GemvPlan> {
    let most = gpu.device.limits().max_compute_workgroups_per_dimension;
    let mut plans = gemv_plans(gpu, epilogue, blocks);
    let guess = plans[0];
    plans.retain(|plan| pairs.div_ceil(plan.pairs()) <= most);
    if plans.is_empty() {
        // Only vocabularies are as long, and their product is free to do several pairs in turn.
        let passes = pairs.div_ceil(most).div_ceil(guess.pairs()) * guess.passes;
        plans.push(GemvPlan { passes, ..guess });
    }
    plans
}

/// Threads of a workgroup of the kernels whose threads walk two row pairs each.
pub(crate) fn rows_threads(place: Planes, epilogue: Epilogue) -> u32 {
    match (epilogue, place) {
        (Epilogue::Glu(_), _) => GLU_PAIRS / 2,
        // One tile: the smaller the workgroups, the more even the cores' shares.
        (_, Planes::Images) => 8,
        (_, Planes::Buffers) => 32,
    }
}

/// Tells whether a product over rows of `blocks` blocks can norm its own input here.
pub(crate) fn norms_own_input(gpu: &Gpu, activations: ActivationFormat, blocks: u32) -> bool {
    let limits = gpu.device.limits();
    gpu.info.kind != AdapterKind::Software
        && limits.max_storage_buffers_per_shader_stage >= NORMED_STORAGE_BUFFERS
        && activations.normed_bytes(blocks) + GEMV_SHARED_BYTES
            <= limits.max_compute_workgroup_storage_size
}

/// How decode attention is cut: the kernel and its threads.
pub(crate) fn attention_plan(
    gpu: &Gpu,
    head_dim: u32,
    group: u32,
    block_len: u32,
    activations: ActivationFormat,
) -> (AttentionKernel, u32) {
    let software = gpu.info.kind == AdapterKind::Software;
    let chunks = head_dim / 8;
    let lanes = gpu.threads_per_row.min(1 << chunks.ilog2());
    let per_lane = chunks.div_ceil(lanes);
    // A head's q and o take 16 registers a chunk; software adapters compile for minutes beyond four.
    let heads = group.min(if software { 4 } else { 8 } / per_lane).max(1);
    // As even as it goes: 7 heads are 4 and 3, not 5 and 2.
    let heads = group.div_ceil(group.div_ceil(heads));
    let (ahead, threads) = match (software, heads * per_lane) {
        // Each run of threads beyond the first, each barrier and each word of a table cost it dear.
        (true, _) => (1, gpu.threads_per_row.max(8)),
        (_, 1) => (4, 256),
        (_, 2..=3) => (4, 128),
        (_, 4) => (2, 256),
        _ => (1, 128),
    };
    let kernel = AttentionKernel {
        group,
        heads,
        block_len,
        head_dim,
        lanes,
        ahead,
        stretch: if software { block_len } else { 1 },
        activations,
    };
    (kernel, threads)
}

/// The tiles that fit this adapter, the fastest first.
pub(crate) fn gemm_tiles(
    gpu: &Gpu,
    activations: ActivationFormat,
) -> impl Iterator<Item = Tile> + use<> {
    let limits = gpu.device.limits();
    Tile::choices(activations)
        .iter()
        .copied()
        .filter(move |tile| {
            tile.threads() <= limits.max_compute_invocations_per_workgroup
                && tile.workgroup_bytes(activations) <= limits.max_compute_workgroup_storage_size
        })
}
