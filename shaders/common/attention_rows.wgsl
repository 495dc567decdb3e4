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
    group: u32, // = G
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: AttentionParams;

const NO_ROW: u32 = 0xffffffffu;

// Matrix units read workgroup memory at multiples of 16 bytes, and nothing in WGSL asks for such a place:
// so every variable there is a multiple of 16 bytes long.
var<workgroup> lines: array<u32, TILE>; // where in the caches each position of a tile starts
var<workgroup> found: array<atomic<u32>, 4>; // of the next run: first row, first position, last position
var<workgroup> next: vec4<u32>; // the same, for all to read

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
fn next_run(row_first: u32, done: ptr<function, bool>, lid: u32) -> vec4<u32> {
    let row = row_first + lid;
    let own = !*done && lid < WG / 2u && row < step_columns() * G;
    if (lid == 0u) {
        atomicStore(&found[0], NO_ROW);
        atomicStore(&found[1], NO_ROW);
        atomicStore(&found[2], 0u);
    }
    workgroupBarrier();
    if (own) {
        atomicMin(&found[0], row);
    }
    workgroupBarrier();
    if (own) {
        let column = row / G;
        let position = column_position(column);
        if (kv_table(column) == kv_table(atomicLoad(&found[0]) / G)) {
            atomicMin(&found[1], oldest(position));
            atomicMax(&found[2], position);
            *done = true;
        }
    }
    workgroupBarrier();
    if (lid == 0u) {
        next = vec4<u32>(atomicLoad(&found[0]), atomicLoad(&found[1]), atomicLoad(&found[2]), 0u);
    }
    return workgroupUniformLoad(&next);
}
