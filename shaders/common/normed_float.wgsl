// The input of a matrix product is RMSNorm of the residual stream as floats: every workgroup norms
// the column for itself, which costs less than a dispatch of its own. One column.

override OUTPUTS: u32 = 0u; // 1: column c is column output_first + c of x

@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>; // [column, block, 8]
@group(0) @binding(9) var<storage, read> norm_weight: array<vec4<f32>>; // [block, 8]

var<workgroup> normed: array<vec4<f32>, 8u * BLOCKS>; // [part of a block, block]

fn prepare_input(column: u32, lid: u32) {
    let first = 8u * BLOCKS * (column + select(0u, step_output_first(), OUTPUTS == 1u));
    let scale = rms_scale(first, BLOCKS, params.eps, lid);
    for (var i = lid; i < 8u * BLOCKS; i += WG) {
        normed[(i % 8u) * BLOCKS + i / 8u] = x[first + i] * scale * norm_weight[i];
    }
    workgroupBarrier();
}

fn input_block(column: u32, block: u32) -> ActBlock {
    return ActBlock(
        normed[block], normed[BLOCKS + block], normed[2u * BLOCKS + block], normed[3u * BLOCKS + block],
        normed[4u * BLOCKS + block], normed[5u * BLOCKS + block], normed[6u * BLOCKS + block], normed[7u * BLOCKS + block],
    );
}
