//! How prefill's attention maps rows to workgroups: its overrides and its grid, for recorder and tests.

use super::Axis;

/// Threads of a workgroup.
const THREADS: u32 = 64;
/// Rows (a column's query head) that a workgroup does: four for every eight threads.
const ROWS: u32 = THREADS / 2;

/// See the module.
pub(crate) struct PrefillAttention {
    pub(crate) overrides: [(&'static str, u32); 4],
    /// The grid's second axis.
    pub(crate) tiles: Axis,
}

/// The mapping for heads of `head_dim` values, `group` query heads to a KV head.
pub(crate) fn prefill_attention(head_dim: u32, group: u32) -> PrefillAttention {
    PrefillAttention {
        overrides: [
            ("WG", THREADS),
            ("G", group),
            ("HEAD_DIM", head_dim),
            ("LINE", head_dim / 8),
        ],
        tiles: Axis::RowTiles { group, rows: ROWS },
    }
}
