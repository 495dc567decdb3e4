// Writes activations as 32-bit floats, for common/act_float.wgsl to read.

@group(0) @binding(5) var<storage, read_write> act_out: array<vec4<f32>>; // [column, block, 8]: 32 floats

// Stores block `block` of the `blocks` blocks of a column.
fn store_act(column: u32, block: u32, blocks: u32, v: ptr<function, array<vec4<f32>, 8>>) {
    let index = column * blocks + block;
    for (var i = 0u; i < 8u; i++) {
        act_out[8u * index + i] = (*v)[i];
    }
}
