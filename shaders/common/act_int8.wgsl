// Activations as int8 in blocks of 32: x_i = d * q_i. The block also carries s = d * sum(q), so that
// sum((scale * n + bias) * x) = scale * d * sum(n * q) + bias * s needs no second pass.

// One block of 32 activations.
struct ActBlock {
    lo: vec4<u32>, // bytes 0..15
    hi: vec4<u32>, // bytes 16..31
    scale: f32,
    sum: f32,
}

// Sum of the products of 16 bytes.
fn dot16(w: vec4<u32>, a: vec4<u32>) -> i32 {
    return dot4I8Packed(w.x, a.x) + dot4I8Packed(w.y, a.y) + dot4I8Packed(w.z, a.z) + dot4I8Packed(w.w, a.w);
}
