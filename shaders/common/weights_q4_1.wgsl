// Weights of flavour q4_1: w = d * n + m, n in 0..15, one f16 pair (d, m) per 32 columns.
// Blocks of 32 columns; an even number of rows is stored (the last may be padding).

// Quant plane: [row, block]: 32 nibbles.
// Metadata plane: [row, block]: f16 d, f16 m.

// 32 weights as bytes in column order: value i = scale * byte i + bias.
struct WeightBlock {
    lo: vec4<u32>, // bytes 0..15
    hi: vec4<u32>, // bytes 16..31
    scale: f32,
    bias: f32,
}

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let index = plane_index(row, block, blocks);
    let q = quant_at(index);
    let pack = unpack2x16float(meta_at(index));
    return WeightBlock(q & vec4<u32>(0x0f0f0f0fu), (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu), pack.x, pack.y);
}
