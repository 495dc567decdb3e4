// Activations that all threads of a workgroup need: without subgroups each thread loads them itself.

// Named by `shared_act`, which nothing calls in this variant.
fn from_lane(v: vec4<f32>, lane: u32) -> vec4<f32> {
    return v;
}

// What a thread loads ahead of `pick_act`: nothing of use here.
fn ahead_act(column: u32, block: u32, blocks: u32, lid: u32, by_column: bool) -> ActBlock {
    return load_act(column, block, blocks);
}

// Activations of `column`, `block`, the `i`th of those loaded ahead.
fn pick_act(ahead: ActBlock, column: u32, block: u32, blocks: u32, i: u32) -> ActBlock {
    return load_act(column, block, blocks);
}
