// Weights of flavour bf16: 32 floats of 16 bits, the upper half of a 32-bit float's, no metadata.
// Blocks of 32 columns; an even number of rows is stored (the last may be padding).

// Quant plane: [row, block, 4]: 32 bf16.

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
    let bits = vec4<u32>(pair.x << 16u, pair.x & 0xffff0000u, pair.y << 16u, pair.y & 0xffff0000u);
    return bitcast<vec4<f32>>(bits);
}
