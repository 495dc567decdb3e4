// Joins the splits of attention and stores the result as activations for the output projection:
// o = sum_s exp(m_s - m) acc_s / sum_s exp(m_s - m) l_s, m = max_s m_s.
//
// Workgroup (i, c) does block i of 32 values of column c: eight threads a share of the splits, one for
// each four values. Reference: reference::attention.

struct CombineParams {
    blocks: u32, // blocks of 32 values: heads * head_dim / 32
    heads: u32,
    head_dim: u32,
    splits_max: u32, // splits that `partial` and `sums` have room for
    direct: u32, // 1: attention has stored the columns of one split itself
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: CombineParams;
@group(0) @binding(6) var<storage, read> partial: array<vec4<f32>>; // [column, split, head, head_dim / 4]
@group(0) @binding(7) var<storage, read> sums: array<vec2<f32>>; // [column, split, head]: maximum, sum

override WG: u32 = 64u; // a multiple of 8

var<workgroup> shares: array<vec4<f32>, WG>;
var<workgroup> totals: array<f32, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let block = group.x;
    let column = group.y;
    let splits = column_splits(column);
    if (splits == 1u && params.direct == 1u) {
        return;
    }
    let e = 8u * block + lid % 8u;
    let head = 4u * e / params.head_dim;
    let first = column * params.splits_max;
    var top = -3.0e38;
    for (var s = 0u; s < splits; s++) {
        top = max(top, sums[(first + s) * params.heads + head].x);
    }
    var total = 0.0;
    var value = vec4<f32>(0.0);
    for (var s = lid / 8u; s < splits; s += WG / 8u) {
        let part = sums[(first + s) * params.heads + head];
        let share = exp(part.x - top);
        total += share * part.y;
        value += share * partial[(first + s) * (params.blocks * 8u) + e];
    }
    shares[lid] = value;
    totals[lid] = total;
    workgroupBarrier();
    if (lid < 8u) {
        for (var other = lid + 8u; other < WG; other += 8u) {
            value += shares[other];
            total += totals[other];
        }
        shares[lid] = value / total;
    }
    workgroupBarrier();
    if (lid == 0u) {
        var y: array<vec4<f32>, 8>;
        for (var i = 0u; i < 8u; i++) {
            y[i] = shares[i];
        }
        store_act(column, block, params.blocks, &y);
    }
}
