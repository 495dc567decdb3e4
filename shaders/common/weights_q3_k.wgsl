// Weights of flavour q3_k: w = d * s * (n - 4), n in 0..7, a signed byte s per 16 columns, one f16 d per
// 256. Blocks of 32 columns; a row's last run of eight blocks may be short; an even number of rows is
// stored (the last may be padding).

// Quant plane: [row]: [ceil(blocks / 2)]: the low two bits; then [ceil(blocks / 4)]: the third.
// Metadata plane: common/meta_sixteenths.wgsl.

// n - 4 as signed bytes.
fn centred(low: vec4<u32>, high: vec4<u32>) -> vec4<u32> {
    return low | ((vec4<u32>(0x01010101u) - high) * vec4<u32>(0xfcu));
}

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let first = (blocks + 1u) / 2u;
    let units = first + (blocks + 3u) / 4u;
    let low = two_bits(0u, row, block, units);
    let high = one_bits(first, row, block, units);
    let scales = half_scales(row, block, blocks);
    let hi = centred(twos(low.y), ones_hi(high));
    return WeightBlock(centred(twos(low.x), ones_lo(high)), hi, scales.x, scales.y);
}
