// y[column, row] = sum over k of W[row, k] * x[column, k], four or eight columns of activations together.
//
// A thread holds two pairs of rows times the tile's columns in registers, so each weight block is read
// and unpacked once for them. Workgroup (i, j) does pairs 2 WG i .. 2 WG (i + 1) - 1 and the j-th tile of
// columns; threads and rows as in kernels/gemv_rows.wgsl, and each column's sum in the same order, so
// that it is the same to the bit. TILE_COLUMNS, 4 or 8, is a constant put before this file.
// Reference: reference::matmul (and the epilogue's own).

override WG: u32 = 8u; // threads, two pairs each; a multiple of 8

// Two pairs of rows of one block.
struct FourBlocks {
    near: WeightBlock,
    near_odd: WeightBlock,
    far: WeightBlock,
    far_odd: WeightBlock,
}

fn four_blocks(near: u32, far: u32, block: u32) -> FourBlocks {
    return FourBlocks(
        load_block(near, block, params.blocks),
        load_block(near + 1u, block, params.blocks),
        load_block(far, block, params.blocks),
        load_block(far + 1u, block, params.blocks),
    );
}

fn four_dots(w: FourBlocks, ahead: ActBlock, first: u32, block: u32, i: u32) -> vec4<f32> {
    let a = pick_act(ahead, first + i, block, params.blocks, i);
    return vec4<f32>(block_dot(w.near, a), block_dot(w.near_odd, a), block_dot(w.far, a), block_dot(w.far_odd, a));
}

fn emit_four(column: u32, local_column: u32, pair: u32, local: u32, sums: vec4<f32>) {
    if (pair < params.pairs) {
        emit(column, local_column, params.first_row + 2u * pair, local, sums.xy);
    }
    if (pair + 8u < params.pairs) {
        emit(column, local_column, params.first_row + 2u * (pair + 8u), local + 8u, sums.zw);
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let columns_all = select(params.columns_max, step_columns(), params.columns_max == 0u);
    let first = group.y * TILE_COLUMNS;
    let local = lid / 8u * 16u + lid % 8u;
    let pair = 2u * WG * group.x + local;
    // Threads past the end read the last pair again: handing activations round needs all of them.
    let near = 2u * min(pair, params.pairs - 1u);
    let far = 2u * min(pair + 8u, params.pairs - 1u);
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    for (var block = 0u; block < params.blocks; block++) {
        let ahead = ahead_act(first, block, params.blocks, lid, true);
        let w = four_blocks(near, far, block);
        s0 += four_dots(w, ahead, first, block, 0u);
        s1 += four_dots(w, ahead, first, block, 1u);
        s2 += four_dots(w, ahead, first, block, 2u);
        s3 += four_dots(w, ahead, first, block, 3u);
        if (TILE_COLUMNS > 4u) { s4 += four_dots(w, ahead, first, block, 4u); }
        if (TILE_COLUMNS > 5u) { s5 += four_dots(w, ahead, first, block, 5u); }
        if (TILE_COLUMNS > 6u) { s6 += four_dots(w, ahead, first, block, 6u); }
        if (TILE_COLUMNS > 7u) { s7 += four_dots(w, ahead, first, block, 7u); }
    }
    let columns = min(TILE_COLUMNS, columns_all - first);
    emit_four(first, 0u, pair, local, s0);
    if (columns > 1u) { emit_four(first + 1u, 1u, pair, local, s1); }
    if (columns > 2u) { emit_four(first + 2u, 2u, pair, local, s2); }
    if (columns > 3u) { emit_four(first + 3u, 3u, pair, local, s3); }
    if (TILE_COLUMNS > 4u && columns > 4u) { emit_four(first + 4u, 4u, pair, local, s4); }
    if (TILE_COLUMNS > 5u && columns > 5u) { emit_four(first + 5u, 5u, pair, local, s5); }
    if (TILE_COLUMNS > 6u && columns > 6u) { emit_four(first + 6u, 6u, pair, local, s6); }
    if (TILE_COLUMNS > 7u && columns > 7u) { emit_four(first + 7u, 7u, pair, local, s7); }
    finish(first, columns, 2u * WG * group.x, lid);
}
