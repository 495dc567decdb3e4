// Weights of flavour q5_0: w = d * (n - 16), n in 0..31, one f16 scale d per 32 columns.
// Blocks of 32 columns; an even number of rows is stored (the last may be padding).

// Quant plane: [row]: [block]: 32 nibbles, the low bits; then [ceil(blocks / 4)]: the fifth bits.
// Metadata plane: [row, ceil(blocks / 2)]: two f16 scales.

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let units = blocks + (blocks + 3u) / 4u;
    let low = nibble_block(quant_at(plane_index(row, block, units)), 0.0, 0.0);
    let high = one_bits(blocks, row, block, units);
    let scales = unpack2x16float(meta_at(plane_index(row, block / 2u, (blocks + 1u) / 2u)));
    let d = select(scales.x, scales.y, (block & 1u) == 1u);
    let four = vec4<u32>(4u);
    return WeightBlock(low.lo | (ones_lo(high) << four), low.hi | (ones_hi(high) << four), d, -16.0 * d);
}
