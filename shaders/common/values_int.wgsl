// A block of the integer flavours, and its weights as floats.

// 32 weights as bytes in column order: value i = scale * byte i + bias.
struct WeightBlock {
    lo: vec4<u32>, // bytes 0..15
    hi: vec4<u32>, // bytes 16..31
    scale: f32,
    bias: f32,
}

// The block of 32 nibbles in the planes' order: a low nibble a byte, then the high ones.
fn nibble_block(q: vec4<u32>, scale: f32, bias: f32) -> WeightBlock {
    let low = vec4<u32>(0x0f0f0f0fu);
    return WeightBlock(q & low, (q >> vec4<u32>(4u)) & low, scale, bias);
}

// Bytes 4i..4i+3 of a block. Call with a constant i, so that the branch folds away.
fn block_word(w: WeightBlock, i: u32) -> u32 {
    var word: u32;
    if (i < 4u) {
        word = w.lo[i];
    } else {
        word = w.hi[i - 4u];
    }
    return word;
}

// Columns 4i..4i+3 of a block, for a constant i.
fn values(w: WeightBlock, i: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(block_word(w, i))) * w.scale + vec4<f32>(w.bias);
}
