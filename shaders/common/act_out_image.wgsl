// Writes activations as 32-bit floats to an image, for common/input_float_image.wgsl to read.

@group(0) @binding(5) var act_out: texture_storage_2d<rgba32uint, write>; // [column, block, 8]: 32 floats

// Stores block `block` of the `blocks` blocks of a column.
fn store_act(column: u32, block: u32, blocks: u32, v: ptr<function, array<vec4<f32>, 8>>) {
    let index = column * blocks + block;
    for (var i = 0u; i < 8u; i++) {
        textureStore(act_out, texel(8u * index + i), bitcast<vec4<u32>>((*v)[i]));
    }
}
