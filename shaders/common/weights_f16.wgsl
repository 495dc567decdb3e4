// Weights of flavour f16: 32 half-precision floats a block, no metadata.
// Blocks of 32 columns; an even number of rows is stored (the last may be padding).

// Quant plane: [row, block, 4]: 32 f16.

struct WeightBlock {
    index: u32, // of the block's first vec4
}

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    return WeightBlock(4u * plane_index(row, block, blocks));
}

// Columns 4i..4i+3 of a block.
fn values(w: WeightBlock, i: u32) -> vec4<f32> {
    let q = quant_at(w.index + i / 2u);
    let pair = select(q.xy, q.zw, (i & 1u) == 1u);
    return vec4<f32>(unpack2x16float(pair.x), unpack2x16float(pair.y));
}
