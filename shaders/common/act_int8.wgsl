// Activations as int8 in blocks of 32: x_i = d * q_i. The block also carries s = d * sum(q), so that
// sum((scale * n + bias) * x) = scale * d * sum(n * q) + bias * s needs no second pass.

// One block of 32 activations.
struct ActBlock {
    lo: vec4<u32>, // bytes 0..15
    hi: vec4<u32>, // bytes 16..31
    scale: f32,
    sum: f32,
}

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
