// y = x / sqrt(mean(x^2) + eps) * weight, stored as int8 activations for the next matrix product.
//
// One workgroup a column; eight threads take a block of 32. With `outputs` = 1 the columns are
// those whose logits are wanted, counted from the first of them. Reference: reference::rms_norm.

struct NormParams {
    blocks: u32, // blocks of 32 values
    outputs: u32, // 1: column c of the result is column output_first + c of x
    eps: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: NormParams;
@group(0) @binding(6) var<storage, read> x: array<vec4<f32>>; // [column, block, 8]
@group(0) @binding(7) var<storage, read> weight: array<vec4<f32>>; // [block, 8]

override WG: u32 = 64u;
override TPR: u32 = 8u;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let source = group.x + select(0u, step_output_first(), params.outputs == 1u);
    let first = 8u * source * params.blocks;
    let scale = rms_scale(first, params.blocks, params.eps, lid);
    // All threads go round as often as the others: they exchange values.
    for (var start = 0u; start < 8u * params.blocks; start += WG) {
        let i = start + lid;
        let at = min(i, 8u * params.blocks - 1u);
        let q = eight_quants(x[first + at] * scale * weight[at], lid);
        if (i < 8u * params.blocks) {
            store_eighth(group.x * params.blocks + i / 8u, i % 8u, q);
        }
    }
}
