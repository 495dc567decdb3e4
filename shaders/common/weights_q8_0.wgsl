// Weights of flavour q8_0: w = d * n, n a signed byte, one f16 scale d per 32 columns.
// Blocks of 32 columns; an even number of rows is stored (the last may be padding).

// Quant plane: [row, block, 2]: 32 bytes.
// Metadata plane: [row, ceil(blocks / 2)]: two f16 scales.

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let index = 2u * plane_index(row, block, blocks);
    let scales = unpack2x16float(meta_at(plane_index(row, block / 2u, (blocks + 1u) / 2u)));
    let d = select(scales.x, scales.y, (block & 1u) == 1u);
    return WeightBlock(quant_at(index), quant_at(index + 1u), d, 0.0);
}
