// Weights of flavour f32: 32 floats a block, no metadata.
// Row-major blocks of 32 columns; an even number of rows is stored (the last may be padding).

@group(0) @binding(1) var<storage, read> weight_quants: array<vec4<u32>>; // [row, block, 8]: 32 f32
@group(0) @binding(2) var<storage, read> weight_meta: array<u32>; // unused, one word

struct WeightBlock {
    index: u32, // of the block's first vec4
}

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    return WeightBlock(8u * (row * blocks + block));
}

// Columns 4i..4i+3 of a block.
fn values(w: WeightBlock, i: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(weight_quants[w.index + i]);
}
