//! How prefill's attention maps rows to workgroups: its kernel, overrides and grid, for recorder and
//! tests.

use hearth_shaders::{ActivationFormat, Kernel, RowsOut};

use super::Axis;

/// See the module.
pub(crate) struct PrefillAttention {
    pub(crate) kernel: Kernel,
    pub(crate) overrides: Vec<(&'static str, u32)>,
    /// The grid's second axis; the first is the KV heads.
    pub(crate) tiles: Axis,
    /// Workgroup memory that the portable kernel takes; what the other takes, the device is known to
    /// have.
    pub(crate) shared_bytes: u32,
}

/// The mapping for heads of `head_dim` values, `group` query heads to a KV head, whose results are
/// stored as `out` if blocks of 32 values fill heads, else as floats for `Combine`.
pub(crate) fn prefill_attention(
    head_dim: u32,
    group: u32,
    out: ActivationFormat,
    cooperative_matrix: bool,
) -> PrefillAttention {
    let whole = head_dim.is_multiple_of(32);
    // Long heads take more of the workgroup's memory, so it does fewer rows.
    let few = head_dim > 128;
    let (kernel, threads) = match (whole, cooperative_matrix) {
        (true, true) => (
            Kernel::AttentionPrefillMatrix(out),
            if few { 64 } else { 128 },
        ),
        (true, false) => (Kernel::AttentionPrefill(RowsOut::Activations(out)), 64),
        (false, _) => (Kernel::AttentionPrefill(RowsOut::Partial), 64),
    };
    let shared_bytes = if kernel.uses_cooperative_matrix() {
        0
    } else {
        // A tile of 32 positions, then five vec4 a thread, then a little for the runs of columns.
        32 * (head_dim / 8 + 1) * 16 + 5 * 16 * threads + 256
    };
    let mut overrides = vec![("WG", threads), ("G", group), ("HEAD_DIM", head_dim)];
    if kernel.uses_cooperative_matrix() {
        overrides.extend([("LINE", head_dim / 4), ("TILE", threads / 2)]);
    } else {
        overrides.push(("LINE", head_dim / 8));
    }
    PrefillAttention {
        kernel,
        overrides,
        tiles: Axis::RowTiles {
            group,
            rows: threads / 2,
        },
        shared_bytes,
    }
}
