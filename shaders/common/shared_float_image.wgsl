// The block that lane `lane` of the subgroup loaded.
fn shared_act(x: ActBlock, lane: u32) -> ActBlock {
    return ActBlock(
        from_lane(x.a, lane), from_lane(x.b, lane), from_lane(x.c, lane), from_lane(x.d, lane),
        from_lane(x.e, lane), from_lane(x.f, lane), from_lane(x.g, lane), from_lane(x.h, lane),
        from_lane(vec4<f32>(x.sum), lane).x,
    );
}
