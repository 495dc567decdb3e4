// Stored float activations, as common/act_out_float.wgsl writes them.

@group(0) @binding(3) var<storage, read> act: array<vec4<f32>>; // [column, block, 8]: 32 floats

fn load_act(column: u32, block: u32, blocks: u32) -> ActBlock {
    let i = 8u * (column * blocks + block);
    return ActBlock(act[i], act[i + 1u], act[i + 2u], act[i + 3u], act[i + 4u], act[i + 5u], act[i + 6u], act[i + 7u]);
}
