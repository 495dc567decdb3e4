// The block that lane `lane` of the subgroup loaded. Call with a constant.
fn shared_act(x: ActBlock, lane: u32) -> ActBlock {
    let pack = from_lane(vec4<f32>(x.scale, x.sum, 0.0, 0.0), lane);
    return ActBlock(
        bitcast<vec4<u32>>(from_lane(bitcast<vec4<f32>>(x.lo), lane)),
        bitcast<vec4<u32>>(from_lane(bitcast<vec4<f32>>(x.hi), lane)),
        pack.x,
        pack.y,
    );
}
