// Joins the splits of attention and stores the result as activations for the output projection:
// o = sum_s exp(m_s - m) acc_s / sum_s exp(m_s - m) l_s, m = max_s m_s.
//
// One thread a block of 32 values; workgroup (i, c) does blocks WG i .. of column c.
// Reference: reference::attention.

struct CombineParams {
    blocks: u32, // blocks of 32 values: heads * head_dim / 32
    heads: u32,
    head_dim: u32,
    splits_max: u32, // splits that `partial` and `sums` have room for
}

@group(0) @binding(0) var<uniform> params: CombineParams;
@group(0) @binding(6) var<storage, read> partial: array<vec4<f32>>; // [column, split, head, head_dim / 4]
@group(0) @binding(7) var<storage, read> sums: array<vec2<f32>>; // [column, split, head]: maximum, sum

override WG: u32 = 32u;

// Values 4e..4e+3 of a column's attention result.
fn joined(column: u32, splits: u32, e: u32) -> vec4<f32> {
    let head = 4u * e / params.head_dim;
    var top = -3.0e38;
    for (var s = 0u; s < splits; s++) {
        top = max(top, sums[(column * params.splits_max + s) * params.heads + head].x);
    }
    var total = 0.0;
    var value = vec4<f32>(0.0);
    for (var s = 0u; s < splits; s++) {
        let row = column * params.splits_max + s;
        let part = sums[row * params.heads + head];
        let share = exp(part.x - top);
        total += share * part.y;
        value += share * partial[row * (params.blocks * 8u) + e];
    }
    return value / total;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let block = group.x * WG + lid;
    let column = group.y;
    if (block >= params.blocks) {
        return;
    }
    let splits = column_position(column) / step_split_len() + 1u;
    var y: array<vec4<f32>, 8>;
    for (var i = 0u; i < 8u; i++) {
        y[i] = joined(column, splits, 8u * block + i);
    }
    store_act(column, block, params.blocks, &y);
}
