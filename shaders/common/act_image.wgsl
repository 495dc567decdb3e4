// Float activations in an image.

@group(0) @binding(3) var act: texture_storage_2d<rgba32uint, read>; // [column, block, 8]: 32 floats

fn act_at(index: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(textureLoad(act, texel(index)));
}
