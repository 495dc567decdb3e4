// A block of the integer flavours with a scale for each half, and its weights as floats.

// 32 weights as signed bytes in column order.
struct WeightBlock {
    lo: vec4<u32>, // bytes 0..15
    hi: vec4<u32>, // bytes 16..31
    scale_lo: f32,
    scale_hi: f32,
}

// Columns 4i..4i+3 of a block, for a constant i.
fn values(w: WeightBlock, i: u32) -> vec4<f32> {
    if (i < 4u) {
        return vec4<f32>(unpack4xI8(w.lo[i])) * w.scale_lo;
    }
    return vec4<f32>(unpack4xI8(w.hi[i - 4u])) * w.scale_hi;
}
