// Activations as 32-bit floats: the reference path.

@group(0) @binding(3) var<storage, read> act: array<vec4<f32>>; // [column, block, 8]: 32 floats

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

fn load_act(column: u32, block: u32, blocks: u32) -> ActBlock {
    let i = 8u * (column * blocks + block);
    return ActBlock(act[i], act[i + 1u], act[i + 2u], act[i + 3u], act[i + 4u], act[i + 5u], act[i + 6u], act[i + 7u]);
}

// The block that lane `lane` of the subgroup loaded. Call with a constant.
fn shared_act(x: ActBlock, lane: u32) -> ActBlock {
    return ActBlock(
        from_lane(x.a, lane), from_lane(x.b, lane), from_lane(x.c, lane), from_lane(x.d, lane),
        from_lane(x.e, lane), from_lane(x.f, lane), from_lane(x.g, lane), from_lane(x.h, lane),
    );
}

// Sum over 32 columns of weight times activation.
fn block_dot(w: WeightBlock, x: ActBlock) -> f32 {
    var sum = dot(values(w, 0u), x.a) + dot(values(w, 1u), x.b);
    sum += dot(values(w, 2u), x.c) + dot(values(w, 3u), x.d);
    sum += dot(values(w, 4u), x.e) + dot(values(w, 5u), x.f);
    sum += dot(values(w, 6u), x.g) + dot(values(w, 7u), x.h);
    return sum;
}
