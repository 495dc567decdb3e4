// Activations that all threads of a workgroup need: each of eight lanes loads one block, and the
// subgroup hands them round. A subgroup has at least eight threads.

// `v` of lane `lane`, below 8. Call with a constant, so that the switch folds away.
fn from_lane(v: vec4<f32>, lane: u32) -> vec4<f32> {
    switch lane {
        case 0u: { return subgroupBroadcast(v, 0u); }
        case 1u: { return subgroupBroadcast(v, 1u); }
        case 2u: { return subgroupBroadcast(v, 2u); }
        case 3u: { return subgroupBroadcast(v, 3u); }
        case 4u: { return subgroupBroadcast(v, 4u); }
        case 5u: { return subgroupBroadcast(v, 5u); }
        case 6u: { return subgroupBroadcast(v, 6u); }
        default: { return subgroupBroadcast(v, 7u); }
    }
}

// What a thread loads ahead of `pick_act`: block `block` of column `column + lane`, or block
// `block + lane` of column `column`.
fn ahead_act(column: u32, block: u32, blocks: u32, lid: u32, by_column: bool) -> ActBlock {
    let lane = lid % 8u;
    if (by_column) {
        return load_act(column + lane, block, blocks);
    }
    return load_act(column, min(block + lane, blocks - 1u), blocks);
}

// Activations of `column`, `block`, the `i`th of those loaded ahead.
fn pick_act(ahead: ActBlock, column: u32, block: u32, blocks: u32, i: u32) -> ActBlock {
    return shared_act(ahead, i);
}
