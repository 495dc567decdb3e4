// y[column, row] = sum over k of W[row, k] * x[column, k], one column of activations at a time.
//
// The other mapping than kernels/gemv.wgsl: one thread walks the whole of one pair of rows, and the
// threads share the activations (common/share*.wgsl). For adapters where a thread's loads cost more
// than their order: software ones. Workgroup (i, c) does pairs 32 i .. 32 i + 31 of column c.
// Reference: reference::matmul (and the epilogue's own).

override WG: u32 = 32u; // threads, one a pair
const TILE_COLUMNS: u32 = 1u;

fn pair_dot(row: u32, ahead: ActBlock, column: u32, block: u32, i: u32) -> vec2<f32> {
    let a = pick_act(ahead, column, block + i, params.blocks, i);
    let w0 = load_block(row, block + i, params.blocks);
    let w1 = load_block(row + 1u, block + i, params.blocks);
    return vec2<f32>(block_dot(w0, a), block_dot(w1, a));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let pair = group.x * WG + lid;
    let row = 2u * min(pair, params.pairs - 1u);
    var sum = vec2<f32>(0.0);
    for (var block = 0u; block < params.blocks; block += 8u) {
        let ahead = ahead_act(group.y, block, params.blocks, lid, false);
        sum += pair_dot(row, ahead, group.y, block, 0u);
        if (block + 1u < params.blocks) { sum += pair_dot(row, ahead, group.y, block, 1u); }
        if (block + 2u < params.blocks) { sum += pair_dot(row, ahead, group.y, block, 2u); }
        if (block + 3u < params.blocks) { sum += pair_dot(row, ahead, group.y, block, 3u); }
        if (block + 4u < params.blocks) { sum += pair_dot(row, ahead, group.y, block, 4u); }
        if (block + 5u < params.blocks) { sum += pair_dot(row, ahead, group.y, block, 5u); }
        if (block + 6u < params.blocks) { sum += pair_dot(row, ahead, group.y, block, 6u); }
        if (block + 7u < params.blocks) { sum += pair_dot(row, ahead, group.y, block, 7u); }
    }
    if (pair < params.pairs) {
        emit(group.y, 0u, params.first_row + 2u * pair, lid, sum);
    }
    finish(group.y, 1u, group.x * WG, lid);
}
