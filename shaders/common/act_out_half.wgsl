// Writes activations as f16, for kernels/gemm_coop.wgsl to read. Beyond f16's range a value counts as
// its largest, not as infinity.

@group(0) @binding(5) var<storage, read_write> act_out: array<vec4<u32>>; // [column, block, 4]: 32 f16

const LARGEST_HALF: vec4<f32> = vec4<f32>(65504.0);

fn halves_of(v: vec4<f32>) -> vec2<u32> {
    let near = clamp(v, -LARGEST_HALF, LARGEST_HALF);
    return vec2<u32>(pack2x16float(near.xy), pack2x16float(near.zw));
}

// Stores block `block` of the `blocks` blocks of a column.
fn store_act(column: u32, block: u32, blocks: u32, v: ptr<function, array<vec4<f32>, 8>>) {
    let index = 4u * (column * blocks + block);
    for (var i = 0u; i < 4u; i++) {
        act_out[index + i] = vec4<u32>(halves_of((*v)[2u * i]), halves_of((*v)[2u * i + 1u]));
    }
}
