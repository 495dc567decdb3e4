// Weights of the flavours q4_g*: w = d * (n - 8), n in 0..15, one f16 scale d per GROUP_BLOCKS blocks
// (symmetric GPTQ). Blocks of 32 columns; a row's last group may be short; an even number of
// rows is stored (the last may be padding). The kernel table puts `const GROUP_BLOCKS` before this file.

// Quant plane: [row, block]: 32 nibbles.
// Metadata plane: [row, ceil(groups / 2)]: two f16 scales.

// 32 weights as bytes in column order: value i = scale * byte i + bias.
struct WeightBlock {
    lo: vec4<u32>, // bytes 0..15
    hi: vec4<u32>, // bytes 16..31
    scale: f32,
    bias: f32,
}

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let q = quant_at(plane_index(row, block, blocks));
    let row_words = (blocks + 2u * GROUP_BLOCKS - 1u) / (2u * GROUP_BLOCKS);
    let group = block / GROUP_BLOCKS;
    let scales = unpack2x16float(meta_at(plane_index(row, group / 2u, row_words)));
    let d = select(scales.x, scales.y, (group & 1u) == 1u);
    return WeightBlock(q & vec4<u32>(0x0f0f0f0fu), (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu), d, -8.0 * d);
}
