// Activations as 32-bit floats: the reference path.

// One block of 32 activations.
struct ActBlock {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
    e: vec4<f32>,
    f: vec4<f32>,
    g: vec4<f32>,
    h: vec4<f32>,
}

// `sum` and the sum over 32 columns of weight times activation.
fn block_add(w: WeightBlock, x: ActBlock, sum: f32) -> f32 {
    return sum + block_dot(w, x);
}

// Sum over 32 columns of weight times activation.
fn block_dot(w: WeightBlock, x: ActBlock) -> f32 {
    var sum = dot(values(w, 0u), x.a) + dot(values(w, 1u), x.b);
    sum += dot(values(w, 2u), x.c) + dot(values(w, 3u), x.d);
    sum += dot(values(w, 4u), x.e) + dot(values(w, 5u), x.f);
    sum += dot(values(w, 6u), x.g) + dot(values(w, 7u), x.h);
    return sum;
}
