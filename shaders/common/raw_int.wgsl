// Weight values of the integer flavours before their scale: value = factor * raw value + addend.

// Signed bytes as floats, 2^24 times too large: the top byte of a word needs no sign extension.
fn shifted(word: u32) -> vec4<f32> {
    let top = (vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) & vec4<u32>(0xff000000u);
    return vec4<f32>(bitcast<vec4<i32>>(top));
}

// Columns 4i..4i+3 of a block, for a constant i.
fn raw_values(w: WeightBlock, i: u32) -> vec4<f32> {
    return shifted(block_word(w, i));
}

// (factor, addend).
fn scaling(w: WeightBlock) -> vec2<f32> {
    return vec2<f32>(w.scale * (1.0 / 16777216.0), w.bias);
}
