// Writes activations as 32-bit floats to an image, for common/act_image.wgsl to read.

@group(0) @binding(5) var act_out: texture_storage_2d<rgba32uint, write>; // [column, block, 8]: 32 floats

// Stores one block of 32 activations; `index` = column * blocks + block.
fn store_act(index: u32, v: ptr<function, array<vec4<f32>, 8>>) {
    for (var i = 0u; i < 8u; i++) {
        textureStore(act_out, texel(8u * index + i), bitcast<vec4<u32>>((*v)[i]));
    }
}
