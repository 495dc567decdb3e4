// Weights of flavour q6_k: w = d * s * (n - 32), n in 0..63, a signed byte s per 16 columns, one f16 d per
// 256. Blocks of 32 columns; a row's last run of eight blocks may be short; an even number of rows is
// stored (the last may be padding).

// Quant plane: [row]: [block]: 32 nibbles, the low bits; then [ceil(blocks / 2)]: the high two.
// Metadata plane: common/meta_sixteenths.wgsl.

// n - 32 as signed bytes.
fn centred(low: vec4<u32>, high: vec4<u32>) -> vec4<u32> {
    let n = low | (high << vec4<u32>(4u));
    let negative = ~n & vec4<u32>(0x20202020u);
    return (n & vec4<u32>(0x1f1f1f1fu)) | (negative * vec4<u32>(7u));
}

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let units = blocks + (blocks + 1u) / 2u;
    let q = quant_at(plane_index(row, block, units));
    let high = two_bits(blocks, row, block, units);
    let low = vec4<u32>(0x0f0f0f0fu);
    let scales = half_scales(row, block, blocks);
    let hi = centred((q >> vec4<u32>(4u)) & low, twos(high.y));
    return WeightBlock(centred(q & low, twos(high.x)), hi, scales.x, scales.y);
}
