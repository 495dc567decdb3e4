// y[column, row] = sum over k of W[row, k] * x[column, k], one column of activations at a time.
//
// TPR threads share a pair of rows: thread `lane` takes blocks lane, lane + TPR, ..., so that
// neighbours read neighbouring blocks; a run then adds its sums. A workgroup does
// PASSES * WG / TPR pairs, workgroup (i, c) the i-th such group for column c.
// Reference: reference::matmul (and the epilogue's own).

override WG: u32 = 64u; // threads
override TPR: u32 = 8u; // threads a row pair
override PASSES: u32 = 1u;
const TILE_COLUMNS: u32 = 1u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let runs = WG / TPR;
    let first_pair = group.x * runs * PASSES;
    let lane = lid % TPR;
    for (var turn = 0u; turn < PASSES; turn++) {
        let local_pair = turn * runs + lid / TPR;
        let pair = first_pair + local_pair;
        // Threads past the end read the last pair again: the reductions need all of them.
        let row = 2u * min(pair, params.pairs - 1u);
        var sum = vec2<f32>(0.0);
        for (var block = lane; block < params.blocks; block += TPR) {
            let a = load_act(group.y, block, params.blocks);
            sum.x += block_dot(load_block(row, block, params.blocks), a);
            sum.y += block_dot(load_block(row + 1u, block, params.blocks), a);
        }
        sum = cluster_sum(sum, lid);
        if (lane == 0u && pair < params.pairs) {
            emit(group.y, 0u, params.first_row + 2u * pair, local_pair, sum);
        }
    }
    finish(group.y, 1u, first_pair, lid);
}
