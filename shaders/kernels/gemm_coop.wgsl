// y[column, row] = sum over k of W[row, k] * x[column, k], by cooperative matrices of 16 by 16: f16
// operands, f32 sums. For adapters whose subgroups have 32 threads.
//
// A workgroup does 128 rows by 128 columns. Its eight subgroups, two along the rows by four along the
// columns, hold 64 by 32 of the sums each. 64 k at a time, each thread turns a block of weights to f16
// in workgroup memory and copies activations there; the next ones are on their way meanwhile.
// The sums go through `stage` to the epilogue's `emit`. Workgroup (i, j) does the i-th tile of rows for
// the j-th tile of columns. Reference: reference::matmul (and the epilogue's own).

enable f16;
enable wgpu_cooperative_matrix;

const WG: u32 = 256u;
const TILE_ROWS: u32 = 128u;
const TILE_COLUMNS: u32 = 128u;
const ROW_FRAGMENTS: u32 = 4u; // of 16 rows, a subgroup
const COLUMN_FRAGMENTS: u32 = 2u; // of 16 columns, a subgroup
const STEP: u32 = 2u; // blocks of 32 k
const FOURS: u32 = 8u * STEP; // groups of four values in a step's k
// Runs of workgroup memory are padded to an odd number of 16 bytes: rows below each other then lie in
// different banks.
const LINE: u32 = FOURS + 2u;
const ACTS_EACH: u32 = TILE_COLUMNS * FOURS / WG;

@group(0) @binding(3) var<storage, read> act: array<vec4<f16>>; // [column, block, 8]: 32 f16

var<workgroup> w_tile: array<vec4<f16>, TILE_ROWS * LINE>; // [row, k / 4]
var<workgroup> a_tile: array<vec4<f16>, TILE_COLUMNS * LINE>; // [column, k / 4]
var<workgroup> stage: array<f32, WG * 8u>; // [subgroup, column, row]: a fragment each

// What a thread brings for the next step.
struct Ahead {
    w: WeightBlock,
    a: array<vec4<f16>, ACTS_EACH>,
}

fn fetch(ahead: ptr<function, Ahead>, first_row: u32, first_column: u32, columns: u32, block: u32, lid: u32) {
    let row = min(first_row + lid / STEP, 2u * params.pairs - 1u);
    (*ahead).w = load_block(row, min(block + lid % STEP, params.blocks - 1u), params.blocks);
    for (var i = 0u; i < ACTS_EACH; i++) {
        let n = lid + i * WG;
        let column = min(first_column + n / FOURS, columns - 1u);
        let k = min(8u * block + n % FOURS, 8u * params.blocks - 1u);
        (*ahead).a[i] = act[8u * column * params.blocks + k];
    }
}

fn put(ahead: ptr<function, Ahead>, block: u32, lid: u32) {
    for (var i = 0u; i < ACTS_EACH; i++) {
        let n = lid + i * WG;
        a_tile[n / FOURS * LINE + n % FOURS] = (*ahead).a[i];
    }
    let w = (*ahead).w;
    let at = lid / STEP * LINE + 8u * (lid % STEP);
    // Past the row's end is the last block again, which must not count twice.
    let there = block + lid % STEP < params.blocks;
    for (var j = 0u; j < 8u; j++) {
        w_tile[at + j] = select(vec4<f16>(), vec4<f16>(values(w, j)), there);
    }
}

// Hands one fragment of each subgroup to the epilogue: rows from `row` of the part, columns from `column`.
fn hand_out(row: u32, column: u32, columns: u32, lid: u32) {
    workgroupBarrier();
    let lane = lid % 32u;
    for (var i = 0u; i < 4u; i++) {
        let c = lane / 8u + 4u * i;
        let at = lid / 32u * 256u + 16u * c + 2u * (lane % 8u);
        let pair = row / 2u + lane % 8u;
        if (pair < params.pairs && column + c < columns) {
            emit(column + c, 0u, params.first_row + 2u * pair, 0u, vec2<f32>(stage[at], stage[at + 1u]));
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let columns_all = select(params.columns_max, step_columns(), params.columns_max == 0u);
    let first_row = group.x * TILE_ROWS;
    let first_column = group.y * TILE_COLUMNS;
    let subgroup = lid / 32u;
    let w_first = subgroup % 2u * 16u * ROW_FRAGMENTS;
    let a_first = subgroup / 2u * 16u * COLUMN_FRAGMENTS;
    var c: array<coop_mat16x16<f32, C>, ROW_FRAGMENTS * COLUMN_FRAGMENTS>; // [column, row]
    var ahead: Ahead;
    fetch(&ahead, first_row, first_column, columns_all, 0u, lid);
    for (var block = 0u; block < params.blocks; block += STEP) {
        workgroupBarrier();
        put(&ahead, block, lid);
        workgroupBarrier();
        fetch(&ahead, first_row, first_column, columns_all, block + STEP, lid);
        for (var k = 0u; k < 2u * STEP; k++) {
            var a: array<coop_mat16x16<f16, A>, ROW_FRAGMENTS>;
            for (var i = 0u; i < ROW_FRAGMENTS; i++) {
                a[i] = coopLoadT<coop_mat16x16<f16, A>>(&w_tile[(w_first + 16u * i) * LINE + 4u * k], LINE);
            }
            for (var j = 0u; j < COLUMN_FRAGMENTS; j++) {
                let b = coopLoad<coop_mat16x16<f16, B>>(&a_tile[(a_first + 16u * j) * LINE + 4u * k], LINE);
                for (var i = 0u; i < ROW_FRAGMENTS; i++) {
                    c[j * ROW_FRAGMENTS + i] = coopMultiplyAdd(a[i], b, c[j * ROW_FRAGMENTS + i]);
                }
            }
        }
    }
    // Not a loop: it would not be unrolled across the barriers, and `c` has to be registers.
    let row = first_row + w_first;
    let column = first_column + a_first;
    coopStore(c[0], &stage[256u * subgroup], 16u);
    hand_out(row, column, columns_all, lid);
    coopStore(c[1], &stage[256u * subgroup], 16u);
    hand_out(row + 16u, column, columns_all, lid);
    coopStore(c[2], &stage[256u * subgroup], 16u);
    hand_out(row + 32u, column, columns_all, lid);
    coopStore(c[3], &stage[256u * subgroup], 16u);
    hand_out(row + 48u, column, columns_all, lid);
    coopStore(c[4], &stage[256u * subgroup], 16u);
    hand_out(row, column + 16u, columns_all, lid);
    coopStore(c[5], &stage[256u * subgroup], 16u);
    hand_out(row + 16u, column + 16u, columns_all, lid);
    coopStore(c[6], &stage[256u * subgroup], 16u);
    hand_out(row + 32u, column + 16u, columns_all, lid);
    coopStore(c[7], &stage[256u * subgroup], 16u);
    hand_out(row + 48u, column + 16u, columns_all, lid);
}
