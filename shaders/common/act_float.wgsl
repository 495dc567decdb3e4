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
    sum: f32,
}

fn load_act(column: u32, block: u32, blocks: u32) -> ActBlock {
    let i = 8u * (column * blocks + block);
    var x = ActBlock(
        act_at(i), act_at(i + 1u), act_at(i + 2u), act_at(i + 3u),
        act_at(i + 4u), act_at(i + 5u), act_at(i + 6u), act_at(i + 7u),
        0.0,
    );
    x.sum = dot(x.a + x.b + x.c + x.d + x.e + x.f + x.g + x.h, vec4<f32>(1.0));
    return x;
}

// The block that lane `lane` of the subgroup loaded.
fn shared_act(x: ActBlock, lane: u32) -> ActBlock {
    return ActBlock(
        from_lane(x.a, lane), from_lane(x.b, lane), from_lane(x.c, lane), from_lane(x.d, lane),
        from_lane(x.e, lane), from_lane(x.f, lane), from_lane(x.g, lane), from_lane(x.h, lane),
        from_lane(vec4<f32>(x.sum), lane).x,
    );
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
