// Weights of flavour q5_1: w = d * n + m, n in 0..31, one f16 pair (d, m) per 32 columns.
// Blocks of 32 columns; an even number of rows is stored (the last may be padding).

// Quant plane: [row]: [block]: 32 nibbles, the low bits; then [ceil(blocks / 4)]: the fifth bits.
// Metadata plane: [row, block]: f16 d, f16 m.

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let units = blocks + (blocks + 3u) / 4u;
    let low = nibble_block(quant_at(plane_index(row, block, units)), 0.0, 0.0);
    let high = one_bits(blocks, row, block, units);
    let pack = unpack2x16float(meta_at(plane_index(row, block, blocks)));
    let four = vec4<u32>(4u);
    return WeightBlock(low.lo | (ones_lo(high) << four), low.hi | (ones_hi(high) << four), pack.x, pack.y);
}
