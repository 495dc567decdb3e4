// Stored float activations in an image, as common/act_out_image.wgsl writes them.

@group(0) @binding(3) var act: texture_storage_2d<rgba32uint, read>; // [column, block, 8]: 32 floats

fn act_at(index: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(textureLoad(act, texel(index)));
}

fn load_act(column: u32, block: u32, blocks: u32) -> ActBlock {
    let i = 8u * (column * blocks + block);
    var x = ActBlock(
        act_at(i), act_at(i + 1u), act_at(i + 2u), act_at(i + 3u),
        act_at(i + 4u), act_at(i + 5u), act_at(i + 6u), act_at(i + 7u),
        0.0,
    );
    x.sum = dot(x.a + x.b + x.c + x.d + x.e + x.f + x.g + x.h, vec4<f32>(1.0));
    return x;
}
