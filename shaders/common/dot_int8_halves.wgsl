// Products of a block with a scale for each half with int8 activations.

// `sum` and the sum over 32 columns of weight times activation, fused by name as common/dot_int8.wgsl.
fn block_add(w: WeightBlock, a: ActBlock, sum: f32) -> f32 {
    return fma(a.scale, halves_sum(w, a), sum);
}

// Sum over 32 columns of weight times activation.
fn block_dot(w: WeightBlock, a: ActBlock) -> f32 {
    return a.scale * halves_sum(w, a);
}

fn halves_sum(w: WeightBlock, a: ActBlock) -> f32 {
    return fma(w.scale_hi, f32(dot16(w.hi, a.hi)), w.scale_lo * f32(dot16(w.lo, a.lo)));
}

// What the tiled product keeps of a block beside its bytes,
fn block_scales(w: WeightBlock) -> vec2<f32> {
    return vec2<f32>(w.scale_lo, w.scale_hi);
}

// and the product of such a block, by the sums of its halves, with activations of (scale, sum) `a`.
fn scaled(w: vec2<f32>, lo: i32, hi: i32, a: vec2<f32>) -> f32 {
    return a.x * (w.x * f32(lo) + w.y * f32(hi));
}
