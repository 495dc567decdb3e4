// Weight values of the integer flavours as floats: value = scale * byte + bias.

// Columns 4i..4i+3 of a block. Call with a constant i, so that the branch folds away.
fn values(w: WeightBlock, i: u32) -> vec4<f32> {
    var word: u32;
    if (i < 4u) {
        word = w.lo[i];
    } else {
        word = w.hi[i - 4u];
    }
    return vec4<f32>(unpack4xI8(word)) * w.scale + vec4<f32>(w.bias);
}
