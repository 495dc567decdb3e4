// Rows of prefill's attention: (column, query head), G rows a column, WG / 2 rows a workgroup. Rows of
// several sequences may meet in a workgroup; each run of one block table is walked by itself.
// A kernel that takes this has the overrides WG, G and LINE, and TILE.

struct AttentionParams {
    head_dim: u32,
    kv_heads: u32,
    block_len: u32, // positions of a KV block
    splits_max: u32, // unused
    window: u32, // sliding window in positions, 0 for none
    scale: f32, // 1 / sqrt(head_dim)
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: AttentionParams;

const NO_ROW: u32 = 0xffffffffu;

var<workgroup> lines: array<u32, TILE>; // where in the caches each position of a tile starts
var<workgroup> next_row: atomic<u32>;
var<workgroup> next_begin: atomic<u32>;
var<workgroup> next_last: atomic<u32>;
var<workgroup> next: vec3<u32>;

// First position that a column at `position` sees.
fn oldest(position: u32) -> u32 {
    let windowed = params.window > 0u && position >= params.window;
    return select(0u, position + 1u - params.window, windowed);
}

// Finds where the positions `first`.. start in the caches; past `last`, that one stands in.
fn find_lines(table: u32, kv_head: u32, first: u32, last: u32, lid: u32) {
    if (lid < TILE) {
        let p = min(first + lid, last);
        let block = step_words[table + p / params.block_len];
        lines[lid] = ((block * params.kv_heads + kv_head) * params.block_len + p % params.block_len) * LINE;
    }
}

// The rows of one sequence, among those from `row_first` on: (the first of them, the first position
// that one sees, the last), each sequence once; no row when there are no more. `done`, at first false,
// is for these calls.
fn next_run(row_first: u32, done: ptr<function, bool>, lid: u32) -> vec3<u32> {
    let row = row_first + lid;
    let own = !*done && lid < WG / 2u && row < step_columns() * G;
    if (lid == 0u) {
        atomicStore(&next_row, NO_ROW);
        atomicStore(&next_begin, NO_ROW);
        atomicStore(&next_last, 0u);
    }
    workgroupBarrier();
    if (own) {
        atomicMin(&next_row, row);
    }
    workgroupBarrier();
    if (own) {
        let column = row / G;
        let position = column_position(column);
        if (kv_table(column) == kv_table(atomicLoad(&next_row) / G)) {
            atomicMin(&next_begin, oldest(position));
            atomicMax(&next_last, position);
            *done = true;
        }
    }
    workgroupBarrier();
    if (lid == 0u) {
        next = vec3<u32>(atomicLoad(&next_row), atomicLoad(&next_begin), atomicLoad(&next_last));
    }
    return workgroupUniformLoad(&next);
}
