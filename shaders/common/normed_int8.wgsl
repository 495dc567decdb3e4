// The input of a matrix product is RMSNorm of the residual stream, quantised to int8 as
// common/act_out_int8.wgsl does: every workgroup norms the column for itself, which costs less than a
// dispatch of its own. One column.

override OUTPUTS: u32 = 0u; // 1: column c is column output_first + c of x

@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>; // [column, block, 8]
@group(0) @binding(9) var<storage, read> norm_weight: array<vec4<f32>>; // [block, 8]

var<workgroup> normed_quants: array<vec4<u32>, 2u * BLOCKS>; // [half, block]
var<workgroup> normed_scales: array<vec2<f32>, BLOCKS>; // (d, s)

fn prepare_input(column: u32, lid: u32) {
    let first = 8u * BLOCKS * (column + select(0u, step_output_first(), OUTPUTS == 1u));
    let scale = rms_scale(first, BLOCKS, params.eps, lid);
    // Eight threads a block. All threads go round as often as the others: they exchange values.
    for (var start = 0u; start < 8u * BLOCKS; start += WG) {
        let i = start + lid;
        let at = min(i, 8u * BLOCKS - 1u);
        let q = eight_quants(x[first + at] * scale * norm_weight[at], lid);
        if (i < 8u * BLOCKS) {
            let block = i / 8u;
            let word = i % 8u;
            normed_quants[(word / 4u) * BLOCKS + block][word % 4u] = q.word;
            if (word == 0u) {
                normed_scales[block] = vec2<f32>(q.scale, q.sum);
            }
        }
    }
    workgroupBarrier();
}

fn input_block(column: u32, block: u32) -> ActBlock {
    let pack = normed_scales[block];
    return ActBlock(normed_quants[block], normed_quants[BLOCKS + block], pack.x, pack.y);
}
