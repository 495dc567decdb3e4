// Weights of the flavours q4_0 and q4_g*: w = d * (n - 8), n in 0..15, one f16 scale d per GROUP_BLOCKS
// blocks (one: Q4_0; more: symmetric GPTQ). Blocks of 32 columns; a row's last group may be short; an even number of
// rows is stored (the last may be padding). The kernel table puts `const GROUP_BLOCKS` before this file.

// Quant plane: [row, block]: 32 nibbles.
// Metadata plane: [row, ceil(groups / 2)]: two f16 scales.

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let q = quant_at(plane_index(row, block, blocks));
    let row_words = (blocks + 2u * GROUP_BLOCKS - 1u) / (2u * GROUP_BLOCKS);
    let group = block / GROUP_BLOCKS;
    let scales = unpack2x16float(meta_at(plane_index(row, group / 2u, row_words)));
    let d = select(scales.x, scales.y, (group & 1u) == 1u);
    return nibble_block(q, d, -8.0 * d);
}
