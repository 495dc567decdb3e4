// Weights of the flavours q4_z*: w = d * (n - z), n in 0..15, one f16 pair (d, z) per GROUP_BLOCKS
// blocks (AWQ, asymmetric GPTQ). The zero point is kept as it is, not as a bias: d * z would lose bits
// as an f16. Blocks of 32 columns; a row's last group may be short; an even number of rows is
// stored (the last may be padding). The kernel table puts `const GROUP_BLOCKS` before this file.

// Quant plane: [row, block]: 32 nibbles.
// Metadata plane: [row, group]: f16 d, f16 z.

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let q = quant_at(plane_index(row, block, blocks));
    let groups = (blocks + GROUP_BLOCKS - 1u) / GROUP_BLOCKS;
    let pack = unpack2x16float(meta_at(plane_index(row, block / GROUP_BLOCKS, groups)));
    return nibble_block(q, pack.x, -pack.x * pack.y);
}
