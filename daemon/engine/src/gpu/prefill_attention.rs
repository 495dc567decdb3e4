//! How prefill's attention maps rows to workgroups: its overrides and its grid, for recorder and tests.

use super::Axis;

/// Threads of a workgroup.
const THREADS: u32 = 64;
/// Rows (a column's query head) that a workgroup does: four for every eight threads.
const ROWS: u32 = THREADS / 2;
/// Chunks of eight values of a K or V line that a workgroup stages at a time.
const SLAB_MAX: u32 = 16;

/// See the module.
pub(crate) struct PrefillAttention {
    pub(crate) overrides: [(&'static str, u32); 4],
    /// The grid's second axis.
    pub(crate) tiles: Axis,
}

/// The mapping for heads of `head_dim` values, `group` query heads to a KV head.
pub(crate) fn prefill_attention(head_dim: u32, group: u32) -> PrefillAttention {
    let chunks = head_dim / 8;
    let slabs = (1..=chunks)
        .find(|n| chunks.is_multiple_of(*n) && chunks / n <= SLAB_MAX)
        .unwrap_or(chunks);
    PrefillAttention {
        overrides: [
            ("WG", THREADS),
            ("G", group),
            ("HEAD_DIM", head_dim),
            ("SLAB", chunks / slabs),
        ],
        tiles: Axis::RowTiles { group, rows: ROWS },
    }
}
