// y[column, row] = sum over k of W[row, k] * x[column, k], one column of activations at a time.
//
// The other mapping than kernels/gemv.wgsl: one thread walks the whole of two pairs of rows, and the
// threads share the activations (common/share*.wgsl). For adapters where loads cost more than their
// order: software ones. Workgroup (i, c) does pairs 2 WG i .. 2 WG (i + 1) - 1 of column c; eight
// threads share a tile of 32 rows (common/planes_image.wgsl).
// Reference: reference::matmul (and the epilogue's own).

override WG: u32 = 8u; // threads, two pairs each; a multiple of 8
const TILE_COLUMNS: u32 = 1u;

fn pair_dot(row: u32, block: u32, a: ActBlock) -> vec2<f32> {
    let w0 = load_block(row, block, params.blocks);
    let w1 = load_block(row + 1u, block, params.blocks);
    return vec2<f32>(block_dot(w0, a), block_dot(w1, a));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let local = lid / 8u * 16u + lid % 8u;
    let pair = 2u * WG * group.x + local;
    // Threads past the end read the last pair again: handing activations round needs all of them.
    let near = 2u * min(pair, params.pairs - 1u);
    let far = 2u * min(pair + 8u, params.pairs - 1u);
    var near_sum = vec2<f32>(0.0);
    var far_sum = vec2<f32>(0.0);
    for (var first = 0u; first < params.blocks; first += 8u) {
        let ahead = ahead_act(group.y, first, params.blocks, lid, false);
        let count = min(8u, params.blocks - first);
        for (var i = 0u; i < count; i++) {
            let a = pick_act(ahead, group.y, first + i, params.blocks, i);
            near_sum += pair_dot(near, first + i, a);
            far_sum += pair_dot(far, first + i, a);
        }
    }
    if (pair < params.pairs) {
        emit(group.y, 0u, params.first_row + 2u * pair, local, near_sum);
    }
    if (pair + 8u < params.pairs) {
        emit(group.y, 0u, params.first_row + 2u * (pair + 8u), local + 8u, far_sum);
    }
    finish(group.y, 1u, 2u * WG * group.x, lid);
}
