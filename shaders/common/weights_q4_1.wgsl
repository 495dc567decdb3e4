// Weights of flavour q4_1: w = d * n + m, n in 0..15, one f16 pair (d, m) per 32 columns.
// Blocks of 32 columns; an even number of rows is stored (the last may be padding).

// Quant plane: [row, block]: 32 nibbles.
// Metadata plane: [row, block]: f16 d, f16 m.

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let index = plane_index(row, block, blocks);
    let q = quant_at(index);
    let pack = unpack2x16float(meta_at(index));
    return nibble_block(q, pack.x, pack.y);
}
