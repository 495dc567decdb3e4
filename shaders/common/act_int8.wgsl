// Activations as int8 in blocks of 32: x_i = d * q_i. The block also carries s = d * sum(q), so that
// sum((scale * n + bias) * x) = scale * d * sum(n * q) + bias * s needs no second pass.

@group(0) @binding(3) var<storage, read> act: array<vec4<u32>>; // [column, block, 3]: q 0..15, q 16..31, (d, s, 0, 0)

// One block of 32 activations.
struct ActBlock {
    lo: vec4<u32>, // bytes 0..15
    hi: vec4<u32>, // bytes 16..31
    scale: f32,
    sum: f32,
}

fn load_act(column: u32, block: u32, blocks: u32) -> ActBlock {
    let index = 3u * (column * blocks + block);
    let pack = bitcast<vec4<f32>>(act[index + 2u]);
    return ActBlock(act[index], act[index + 1u], pack.x, pack.y);
}

// The block that lane `lane` of the subgroup loaded.
fn shared_act(x: ActBlock, lane: u32) -> ActBlock {
    let pack = from_lane(vec4<f32>(x.scale, x.sum, 0.0, 0.0), lane);
    return ActBlock(
        bitcast<vec4<u32>>(from_lane(bitcast<vec4<f32>>(x.lo), lane)),
        bitcast<vec4<u32>>(from_lane(bitcast<vec4<f32>>(x.hi), lane)),
        pack.x,
        pack.y,
    );
}

// Sum over 32 columns of weight times activation.
fn block_dot(w: WeightBlock, a: ActBlock) -> f32 {
    var sum = dot4I8Packed(w.lo.x, a.lo.x) + dot4I8Packed(w.lo.y, a.lo.y);
    sum += dot4I8Packed(w.lo.z, a.lo.z) + dot4I8Packed(w.lo.w, a.lo.w);
    sum += dot4I8Packed(w.hi.x, a.hi.x) + dot4I8Packed(w.hi.y, a.hi.y);
    sum += dot4I8Packed(w.hi.z, a.hi.z) + dot4I8Packed(w.hi.w, a.hi.w);
    return w.scale * a.scale * f32(sum) + w.bias * a.sum;
}
