// Activations as 32-bit floats that software adapters keep in images. A block carries its sum, so that
// a weight's scale and bias cost one multiplication a block each.

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
    sum: f32,
}

// Sum over 32 columns of weight times activation.
fn block_dot(w: WeightBlock, x: ActBlock) -> f32 {
    var sums = raw_values(w, 0u) * x.a + raw_values(w, 1u) * x.b;
    sums += raw_values(w, 2u) * x.c + raw_values(w, 3u) * x.d;
    sums += raw_values(w, 4u) * x.e + raw_values(w, 5u) * x.f;
    sums += raw_values(w, 6u) * x.g + raw_values(w, 7u) * x.h;
    let scaled = scaling(w);
    return dot(sums, vec4<f32>(1.0)) * scaled.x + x.sum * scaled.y;
}
