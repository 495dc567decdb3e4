// Weight values of the flavours without a scale for a whole block: (factor, addend) = (1, 0).

fn raw_values(w: WeightBlock, i: u32) -> vec4<f32> {
    return values(w, i);
}

fn scaling(w: WeightBlock) -> vec2<f32> {
    return vec2<f32>(1.0, 0.0);
}
