// Weights of flavour f32: 32 floats a block, no metadata.
// Blocks of 32 columns; an even number of rows is stored (the last may be padding).

// Quant plane: [row, block, 8]: 32 f32.

struct WeightBlock {
    index: u32, // of the block's first vec4
}

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    return WeightBlock(8u * plane_index(row, block, blocks));
}

// Columns 4i..4i+3 of a block.
fn values(w: WeightBlock, i: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(quant_at(w.index + i));
}
