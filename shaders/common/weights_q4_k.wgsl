// Weights of flavour q4_k: w = d * s * n - e * m, n in 0..15, 6-bit s and m per 32 columns, one f16 pair
// (d, e) per 256. Blocks of 32 columns; a row's last run of eight blocks may be short; an even
// number of rows is stored (the last may be padding).
//
// A run's word y holds the low four bits of its eight s, z those of its eight m, and w the high two bits
// of each s and, above them, of each m, four bits a block: one shift by 4 * block serves all three.

// Quant plane: [row, block]: 32 nibbles.
// Metadata plane: [row, ceil(blocks / 8)]: f16 d, f16 e; s and m.

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let q = quant_at(plane_index(row, block, blocks));
    let pack = wide_meta_at(plane_index(row, block / 8u, (blocks + 7u) / 8u));
    let d = unpack2x16float(pack.x);
    let bits = pack.yzw >> vec3<u32>(4u * (block & 7u));
    let s = (bits.x & 15u) | ((bits.z & 3u) << 4u);
    let m = (bits.y & 15u) | ((bits.z & 12u) << 2u);
    return nibble_block(q, d.x * f32(s), -d.y * f32(m));
}
