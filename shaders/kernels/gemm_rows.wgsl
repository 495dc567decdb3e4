// y[column, row] = sum over k of W[row, k] * x[column, k], eight columns of activations together.
//
// A thread holds one pair of rows times eight columns in registers, so each weight block is read
// and unpacked once for eight columns. Workgroup (i, j) does pairs 32 i .. 32 i + 31 and columns
// 8 j .. 8 j + 7. All threads need the same activations: common/share*.wgsl.
// Reference: reference::matmul (and the epilogue's own).

override WG: u32 = 32u; // threads, one a pair
const TILE_COLUMNS: u32 = 8u;

fn pair_dot(w0: WeightBlock, w1: WeightBlock, ahead: ActBlock, first: u32, block: u32, i: u32) -> vec2<f32> {
    let a = pick_act(ahead, first + i, block, params.blocks, i);
    return vec2<f32>(block_dot(w0, a), block_dot(w1, a));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let columns_all = select(params.columns_max, step_columns(), params.columns_max == 0u);
    let first = group.y * TILE_COLUMNS;
    let pair = group.x * WG + lid;
    let row = 2u * min(pair, params.pairs - 1u);
    var s0 = vec2<f32>(0.0);
    var s1 = vec2<f32>(0.0);
    var s2 = vec2<f32>(0.0);
    var s3 = vec2<f32>(0.0);
    var s4 = vec2<f32>(0.0);
    var s5 = vec2<f32>(0.0);
    var s6 = vec2<f32>(0.0);
    var s7 = vec2<f32>(0.0);
    for (var block = 0u; block < params.blocks; block++) {
        let ahead = ahead_act(first, block, params.blocks, lid, true);
        let w0 = load_block(row, block, params.blocks);
        let w1 = load_block(row + 1u, block, params.blocks);
        s0 += pair_dot(w0, w1, ahead, first, block, 0u);
        s1 += pair_dot(w0, w1, ahead, first, block, 1u);
        s2 += pair_dot(w0, w1, ahead, first, block, 2u);
        s3 += pair_dot(w0, w1, ahead, first, block, 3u);
        s4 += pair_dot(w0, w1, ahead, first, block, 4u);
        s5 += pair_dot(w0, w1, ahead, first, block, 5u);
        s6 += pair_dot(w0, w1, ahead, first, block, 6u);
        s7 += pair_dot(w0, w1, ahead, first, block, 7u);
    }
    let columns = min(TILE_COLUMNS, columns_all - first);
    if (pair < params.pairs) {
        let at = params.first_row + 2u * pair;
        emit(first, 0u, at, lid, s0);
        if (columns > 1u) { emit(first + 1u, 1u, at, lid, s1); }
        if (columns > 2u) { emit(first + 2u, 2u, at, lid, s2); }
        if (columns > 3u) { emit(first + 3u, 3u, at, lid, s3); }
        if (columns > 4u) { emit(first + 4u, 4u, at, lid, s4); }
        if (columns > 5u) { emit(first + 5u, 5u, at, lid, s5); }
        if (columns > 6u) { emit(first + 6u, 6u, at, lid, s6); }
        if (columns > 7u) { emit(first + 7u, 7u, at, lid, s7); }
    }
    finish(first, columns, group.x * WG, lid);
}
