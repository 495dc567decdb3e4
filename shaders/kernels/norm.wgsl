// y = x / sqrt(mean(x^2) + eps) * weight, stored as activations for the next matrix product.
//
// One workgroup a column; a thread takes whole blocks of 32. With `outputs` = 1 the columns are
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
    for (var block = lid; block < params.blocks; block += WG) {
        var y: array<vec4<f32>, 8>;
        for (var i = 0u; i < 8u; i++) {
            y[i] = x[first + 8u * block + i] * scale * weight[8u * block + i];
        }
        store_act(group.x, block, params.blocks, &y);
    }
}
