// Weights of flavour q5_k: w = d * s * n - e * m, n in 0..31, 6-bit s and m per 32 columns, one f16 pair
// (d, e) per 256. Blocks of 32 columns; a row's last run of eight blocks may be short; an even
// number of rows is stored (the last may be padding).

// Quant plane: [row]: [block]: 32 nibbles, the low bits; then [ceil(blocks / 4)]: the fifth bits.
// Metadata plane: [row, ceil(blocks / 8)]: f16 d, f16 e; s and m as common/weights_q4_k.wgsl has them.

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let units = blocks + (blocks + 3u) / 4u;
    let low = nibble_block(quant_at(plane_index(row, block, units)), 0.0, 0.0);
    let high = one_bits(blocks, row, block, units);
    let pack = wide_meta_at(plane_index(row, block / 8u, (blocks + 7u) / 8u));
    let d = unpack2x16float(pack.x);
    let bits = pack.yzw >> vec3<u32>(4u * (block & 7u));
    let s = (bits.x & 15u) | ((bits.z & 3u) << 4u);
    let m = (bits.y & 15u) | ((bits.z & 12u) << 2u);
    let four = vec4<u32>(4u);
    let lo = low.lo | (ones_lo(high) << four);
    return WeightBlock(lo, low.hi | (ones_hi(high) << four), d.x * f32(s), -d.y * f32(m));
}
