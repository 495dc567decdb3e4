// Weights of the flavours q8_z*: w = d * (n - z), n a signed byte, one f16 pair (d, z) per GROUP_BLOCKS
// blocks: 8-bit GPTQ, its numbers and zero points less 128. Blocks of 32 columns; a row's last group may
// be short; an even number of rows is stored (the last may be padding). The kernel table puts
// `const GROUP_BLOCKS` before this file.

// Quant plane: [row, block, 2]: 32 bytes.
// Metadata plane: [row, group]: f16 d, f16 z.

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let index = 2u * plane_index(row, block, blocks);
    let groups = (blocks + GROUP_BLOCKS - 1u) / GROUP_BLOCKS;
    let pack = unpack2x16float(meta_at(plane_index(row, block / GROUP_BLOCKS, groups)));
    return WeightBlock(quant_at(index), quant_at(index + 1u), pack.x, -pack.x * pack.y);
}
