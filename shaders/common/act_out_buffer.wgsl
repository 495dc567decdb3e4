// Writes activations as 32-bit floats to a storage buffer, for common/act_buffer.wgsl to read.

@group(0) @binding(5) var<storage, read_write> act_out: array<vec4<f32>>; // [column, block, 8]: 32 floats

// Stores one block of 32 activations; `index` = column * blocks + block.
fn store_act(index: u32, v: ptr<function, array<vec4<f32>, 8>>) {
    for (var i = 0u; i < 8u; i++) {
        act_out[8u * index + i] = (*v)[i];
    }
}
