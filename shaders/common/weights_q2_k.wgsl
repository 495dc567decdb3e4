// Weights of flavour q2_k: w = d * s * n - e * m, n in 0..3, 4-bit s and m per 16 columns, one f16 pair
// (d, e) per 256. Blocks of 32 columns; a row's last run of eight blocks may be short; an even number of
// rows is stored (the last may be padding). Float activations alone.

// Quant plane: [row, ceil(blocks / 2)]: two bits a weight.
// Metadata plane: [row]: [ceil(blocks / 8)]: sixteen bytes s + 16 m, in four units; then
// [ceil(blocks / 8)]: f16 d, f16 e.

// 32 weights as bytes in column order; a scale and a bias for each half.
struct WeightBlock {
    lo: vec4<u32>, // bytes 0..15
    hi: vec4<u32>, // bytes 16..31
    scales: vec2<f32>,
    biases: vec2<f32>,
}

fn load_block(row: u32, block: u32, blocks: u32) -> WeightBlock {
    let q = two_bits(0u, row, block, (blocks + 1u) / 2u);
    let runs = (blocks + 7u) / 8u;
    let run = block / 8u;
    let word = meta_at(plane_index(row, 4u * run + (block & 7u) / 2u, 5u * runs));
    let bytes = (vec2<u32>(word) >> (vec2<u32>(0u, 8u) + vec2<u32>(16u * (block & 1u)))) & vec2<u32>(255u);
    let pack = unpack2x16float(meta_at(plane_index(row, 4u * runs + run, 5u * runs)));
    let scales = pack.x * vec2<f32>(bytes & vec2<u32>(15u));
    let biases = -pack.y * vec2<f32>(bytes >> vec2<u32>(4u));
    return WeightBlock(twos(q.x), twos(q.y), scales, biases);
}

// Columns 4i..4i+3 of a block, for a constant i.
fn values(w: WeightBlock, i: u32) -> vec4<f32> {
    if (i < 4u) {
        return vec4<f32>(unpack4xI8(w.lo[i])) * w.scales.x + vec4<f32>(w.biases.x);
    }
    return vec4<f32>(unpack4xI8(w.hi[i - 4u])) * w.scales.y + vec4<f32>(w.biases.y);
}
