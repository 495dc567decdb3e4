// Products of a block of the integer flavours with int8 activations.

// `sum` and the sum over 32 columns of weight times activation. Fused by name, so that a sum is the same in
// every kernel, whatever a compiler would fuse by itself.
fn block_add(w: WeightBlock, a: ActBlock, sum: f32) -> f32 {
    return fma(w.bias, a.sum, fma(w.scale, a.scale * f32(block_count(w, a)), sum));
}

// Sum over 32 columns of weight times activation.
fn block_dot(w: WeightBlock, a: ActBlock) -> f32 {
    return w.scale * a.scale * f32(block_count(w, a)) + w.bias * a.sum;
}

fn block_count(w: WeightBlock, a: ActBlock) -> i32 {
    var sum = dot4I8Packed(w.lo.x, a.lo.x) + dot4I8Packed(w.lo.y, a.lo.y);
    sum += dot4I8Packed(w.lo.z, a.lo.z) + dot4I8Packed(w.lo.w, a.lo.w);
    sum += dot4I8Packed(w.hi.x, a.hi.x) + dot4I8Packed(w.hi.y, a.hi.y);
    sum += dot4I8Packed(w.hi.z, a.hi.z) + dot4I8Packed(w.hi.w, a.hi.w);
    return sum;
}

// What the tiled product keeps of a block beside its bytes,
fn block_scales(w: WeightBlock) -> vec2<f32> {
    return vec2<f32>(w.scale, w.bias);
}

// and the product of such a block, by the sums of its halves, with activations of (scale, sum) `a`.
fn scaled(w: vec2<f32>, lo: i32, hi: i32, a: vec2<f32>) -> f32 {
    return w.x * a.x * f32(lo + hi) + w.y * a.y;
}
