// Stored int8 activations, as common/act_out_int8.wgsl writes them.

@group(0) @binding(3) var<storage, read> act: array<vec4<u32>>; // [column, block, 3]: q 0..15, q 16..31, (d, s, 0, 0)

fn load_act(column: u32, block: u32, blocks: u32) -> ActBlock {
    let index = 3u * (column * blocks + block);
    let pack = bitcast<vec4<f32>>(act[index + 2u]);
    return ActBlock(act[index], act[index + 1u], pack.x, pack.y);
}
