// Weight values of the float flavours: they need no scaling.

fn raw_values(w: WeightBlock, i: u32) -> vec4<f32> {
    return values(w, i);
}

fn scaling(w: WeightBlock) -> vec2<f32> {
    return vec2<f32>(1.0, 0.0);
}
