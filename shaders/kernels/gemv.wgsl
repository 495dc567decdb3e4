// y[column, row] = sum over k of W[row, k] * x[column, k], COLUMNS columns of activations together.
//
// TPR threads share a pair of rows (at least 8): thread `lane` takes blocks lane, lane + TPR, ..., so
// that neighbours read neighbouring blocks; the run then adds its sums. Each weight block is read once for
// all columns, and every column is summed in the same order whatever COLUMNS is. A workgroup does
// PASSES * WG / TPR pairs; workgroup (i, j) the i-th such group for columns COLUMNS j ...
// The activations come from common/input_*.wgsl (stored) or common/normed_*.wgsl (norm first).
// Reference: reference::matmul (and the epilogue's own).

override WG: u32 = 64u; // threads
override TPR: u32 = 8u; // threads a row pair
override PASSES: u32 = 1u;
override BLOCKS: u32 = 8u; // blocks of 32 columns in a row: a constant, so that the loops unroll
override PAIRS: u32 = 8u; // row pairs of the part: a constant, so that no load waits for it
const TILE_COLUMNS: u32 = COLUMNS;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let first = group.y * COLUMNS;
    let runs = WG / TPR;
    let first_pair = group.x * runs * PASSES;
    let lane = lid % TPR;
    let near = min(lane, BLOCKS - 1u);
    // Threads past the end read the last pair again: the reductions need all of them. The first
    // blocks are on their way while the activations are prepared.
    var row = 2u * min(first_pair + lid / TPR, PAIRS - 1u);
    var w0 = load_block(row, near, BLOCKS);
    var w1 = load_block(row + 1u, near, BLOCKS);
    prepare_input(first, lid);
    let columns_all = select(params.columns_max, step_columns(), params.columns_max == 0u);
    for (var turn = 0u; turn < PASSES; turn++) {
        let local_pair = turn * runs + lid / TPR;
        let pair = first_pair + local_pair;
        if (turn > 0u) {
            row = 2u * min(pair, PAIRS - 1u);
            w0 = load_block(row, near, BLOCKS);
            w1 = load_block(row + 1u, near, BLOCKS);
        }
        var sums: array<vec2<f32>, COLUMNS>;
        for (var c = 0u; c < COLUMNS; c++) {
            sums[c] = vec2<f32>(0.0);
            if (lane < BLOCKS) {
                let a = input_block(first + c, near);
                sums[c] = vec2<f32>(block_add(w0, a, 0.0), block_add(w1, a, 0.0));
            }
        }
        // A constant number of rounds, so that their loads are on their way together.
        for (var round = 1u; round < (BLOCKS + TPR - 1u) / TPR; round++) {
            let block = round * TPR + lane;
            if (block < BLOCKS) {
                let v0 = load_block(row, block, BLOCKS);
                let v1 = load_block(row + 1u, block, BLOCKS);
                for (var c = 0u; c < COLUMNS; c++) {
                    let a = input_block(first + c, block);
                    sums[c] = vec2<f32>(block_add(v0, a, sums[c].x), block_add(v1, a, sums[c].y));
                }
            }
        }
        // Thread `lane` sends column `lane`, so that the columns' epilogues wait for their loads
        // together. Twice, not in a loop: compilers do not unroll a loop with barriers, and would keep
        // `sums` in memory instead of registers.
        let width = min(COLUMNS, part_threads());
        var mine = vec2<f32>(0.0);
        for (var c = 0u; c < width; c++) {
            let sum = part_sum(sums[c], lid);
            mine = select(mine, sum, lane % part_threads() == c);
        }
        mine = run_join(mine, lid);
        if (lane < width && pair < PAIRS && first + lane < columns_all) {
            emit(first + lane, lane, params.first_row + 2u * pair, local_pair, mine);
        }
        if (COLUMNS > width) {
            for (var c = 0u; c < width; c++) {
                let sum = part_sum(sums[(width + c) % COLUMNS], lid);
                mine = select(mine, sum, lane % part_threads() == c);
            }
            mine = run_join(mine, lid);
            let column = width + lane;
            if (lane < width && pair < PAIRS && first + column < columns_all) {
                emit(first + column, column, params.first_row + 2u * pair, local_pair, mine);
            }
        }
    }
    finish(first, min(COLUMNS, columns_all - first), first_pair, lid);
}
