// y[column, row] = sum over k of W[row, k] * x[column, k]: a tile of rows times a tile of columns.
//
// A workgroup of TP times TC threads brings STEP blocks of its rows' weights and of its columns'
// activations into workgroup memory (common/tile_*.wgsl); each thread multiplies PAIRS row pairs by
// COLUMNS columns of them and keeps the sums in registers. The next step's blocks are on their way
// meanwhile. Workgroup (i, j) does the i-th tile of pairs for the j-th tile of columns. No subgroups.
// PAIRS, COLUMNS, TP and TC are put in front of this file. Reference: reference::matmul (and the
// epilogue's own).

const WG: u32 = TP * TC;
const TILE_PAIRS: u32 = TP * PAIRS;
const TILE_COLUMNS: u32 = TC * COLUMNS;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let columns_all = select(params.columns_max, step_columns(), params.columns_max == 0u);
    let first_pair = group.x * TILE_PAIRS;
    let first_column = group.y * TILE_COLUMNS;
    // 32 neighbours are four pairs by eight columns: they read little of workgroup memory at a time.
    let tc = lid % 8u + 8u * (lid / 32u % (TC / 8u));
    let tp = lid / 8u % 4u + 4u * (lid / (4u * TC));
    var sums: array<vec2<f32>, PAIRS * COLUMNS>; // [pair, column]
    var ahead: Ahead;
    fetch_weights(&ahead, first_pair, 0u, lid);
    fetch_acts(&ahead, first_column, columns_all, 0u, lid);
    for (var block = 0u; block < params.blocks; block += STEP) {
        workgroupBarrier();
        put_weights(&ahead, lid);
        put_acts(&ahead, block, lid);
        workgroupBarrier();
        fetch_weights(&ahead, first_pair, block + STEP, lid);
        fetch_acts(&ahead, first_column, columns_all, block + STEP, lid);
        multiply(&sums, tp, tc);
    }
    for (var turn = 0u; turn < COLUMNS; turn++) {
        // Where `finish` waits for others this loop stays one, and `sums` must be indexed by constants
        // to be registers: hence a loop over columns of which one counts.
        for (var j = 0u; j < COLUMNS; j++) {
            let column = first_column + tile_column(tc, j);
            for (var i = 0u; i < PAIRS; i++) {
                let local_pair = tile_pair(tp, i);
                if (j == turn && first_pair + local_pair < params.pairs && column < columns_all) {
                    let row = params.first_row + 2u * (first_pair + local_pair);
                    emit(column, tc, row, local_pair, sums[i * COLUMNS + j]);
                }
            }
        }
        finish(first_column + tile_column(0u, turn), columns_all, first_pair, lid);
    }
}
